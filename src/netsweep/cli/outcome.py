"""Run a job, show what came of it, and return the exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import click

from netsweep.errors import NetsweepError, UsageError
from netsweep.output.failures import complain, explain
from netsweep.output.text import changes, text_lines
from netsweep.report import Report


class Output(NamedTuple):
    """How a report is shown: in which of the formats, and whether with every rule."""

    form: str
    verbose: bool = False


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

        with Status():
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
    form, verbose = output
    # What a run does not need is not imported.
    if form == "json":
        from netsweep.output.json import write_json

        write_json(report, sys.stdout)
    elif form == "github":
        from netsweep.output.github import github_lines, write_step_summary

        sys.stdout.writelines(f"{line}\n" for line in github_lines(report, verbose=verbose, best_effort=best_effort))
    elif not report.errors or report.changed:
        sys.stdout.writelines(f"{line}\n" for line in text_lines(report, verbose=verbose))
    sys.stdout.flush()
    if form == "github" and (path := os.environ.get("GITHUB_STEP_SUMMARY")):
        write_step_summary(report, path)


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
