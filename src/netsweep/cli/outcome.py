"""Run a job, show what came of it, and return the exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import click

from netsweep.errors import NetsweepError, UsageError
from netsweep.output.failures import complain, explain
from netsweep.output.text import changes, text_lines
from netsweep.report import Report


class Output(NamedTuple):
    """How a report is shown: in which of the formats, and whether with every rule.

    ``quiet``: as text only where something failed. ``color``: ``auto``, ``always`` or ``never``.
    """

    form: str
    verbose: bool = False
    quiet: bool = False
    color: str = "auto"


def guarded(job: Callable[[], int]) -> int:
    """Return what ``job`` returns, or tell its failure and return the exit status of that."""
    try:
        return job()
    except Exception as error:
        failure = explain(error)
        complain(str(failure))
        return failure.exit_status


def show(command: str, job: Callable[[], Report], output: Output, *, best_effort: bool = False) -> tuple[int, Report]:
    """Call ``job`` and write its report to stdout as ``output`` says; return the exit status and the report.

    ``best_effort``: failures are told and the status is 0, but for wrong usage.
    """
    failure: NetsweepError | None = None
    try:
        from netsweep.output.status import Status  # what only shows help needs none

        with nullcontext() if output.quiet else Status():
            report = job()
    except Exception as error:
        failure = explain(error)
        report = failure.report or Report(command, errors=[str(failure)])
        complain(str(failure))
    for warning in report.warnings:
        complain(f"warning: {warning}")
    try:
        _write(report, output, best_effort)
    except Exception as error:
        unwritten = explain(error)
        done = f"; the {report.command} {changed}" if (changed := changes(report)) else ""
        complain(f"{unwritten}{done}")
        failure = failure or unwritten
    if failure is None or (best_effort and not isinstance(failure, UsageError)):
        return 0, report
    return failure.exit_status, report


def _write(report: Report, output: Output, best_effort: bool) -> None:
    form, verbose = output.form, output.verbose
    # What a run does not need is not imported.
    if form == "json":
        from netsweep.output.json import write_json

        write_json(report, sys.stdout)
    elif form == "github":
        from netsweep.output.github import github_lines, write_step_summary

        sys.stdout.writelines(f"{line}\n" for line in github_lines(report, verbose=verbose, best_effort=best_effort))
    elif report.changed if report.errors else not output.quiet:
        tables, coloured = _looks(output.color)
        if tables:
            from netsweep.output.terminal import write_tables

            write_tables(report, sys.stdout, verbose=verbose, coloured=coloured)
        else:
            sys.stdout.writelines(f"{line}\n" for line in text_lines(report, verbose=verbose))
    sys.stdout.flush()
    if form == "github" and (path := os.environ.get("GITHUB_STEP_SUMMARY")):
        write_step_summary(report, path)


def _looks(color: str) -> tuple[bool, bool]:
    """Whether text is shown in tables, and whether in colour.

    An option comes before NO_COLOR (https://no-color.org), that before FORCE_COLOR (https://force-color.org), and both
    before what the terminal can do. Who forces colours gets what a terminal gets.
    """
    terminal = sys.stdout.isatty()
    if color != "auto":
        coloured = color == "always"
    elif os.environ.get("NO_COLOR"):
        coloured = False
    else:
        coloured = bool(os.environ.get("FORCE_COLOR")) or (terminal and os.environ.get("TERM") != "dumb")
    return terminal or coloured, coloured


def invoke(command: click.Command, arguments: Sequence[str]) -> int:
    """Run a command line and return the exit status."""
    try:
        status = command.main(arguments, prog_name="netsweep", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.UsageError as error:
        context = f" {error.ctx.info_name}" if error.ctx and error.ctx.parent else ""
        complain(f"{error.format_message().rstrip('.')} (see: netsweep{context} --help)")
        return error.exit_code
    except click.ClickException as error:
        complain(error.format_message())
        return error.exit_code
