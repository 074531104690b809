"""Run a job, show what came of it, and return the exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import click

from netsweep.errors import ORPHANS_FOUND, UsageError
from netsweep.output.failures import complain, explain
from netsweep.output.text import changes, text_lines
from netsweep.profiles import DEFAULT
from netsweep.report import Command, Report

COMPLETE_VARIABLE = "_NETSWEEP_COMPLETE"
"""The environment variable by which a shell asks for completions, as click names it after the program."""

FORMATS = {
    "text": "text for people",
    "json": "json for programs",
    "github": "github for the log, summary and outputs of a workflow's step, and the default there",
}


class Output(NamedTuple):
    """How a report is shown: in which of the formats, and whether with every rule.

    ``quiet``: as text only where something failed. ``color``: ``auto``, ``always`` or ``never``. ``metrics_file``:
    where metrics are written, too; ``profile`` is in their labels.
    """

    form: str
    verbose: bool = False
    quiet: bool = False
    color: str = "auto"
    metrics_file: str | None = None
    profile: str = DEFAULT


def guarded(job: Callable[[], int]) -> int:
    """Return what ``job`` returns, or tell its failure and return the exit status of that.

    Raises :class:`~netsweep.errors.UsageError`, which :func:`invoke` tells.
    """
    try:
        return job()
    except UsageError:
        raise
    except Exception as error:
        failure = explain(error)
        complain(str(failure))
        return failure.exit_status


def show(
    command: Command, job: Callable[[], Report], output: Output, *, best_effort: bool = False, exit_code: bool = False
) -> int:
    """Call ``job`` and write its report to stdout as ``output`` says; return the exit status.

    ``best_effort``: failures are told and the status is 0, but for wrong usage. ``exit_code``: the status says whether
    there are orphans or leaked bridges.
    """
    known: Report | None = None
    try:
        try:
            from netsweep.output.status import Status  # what only shows help needs none

            with nullcontext() if output.quiet else Status():
                report = known = job()
            status = ORPHANS_FOUND if exit_code and (report.orphans or report.leaked) else 0
        except Exception as error:
            failure = explain(error)
            known, status = failure.report, failure.exit_status
            report = known or Report(command, errors=[str(failure)])
            complain(str(failure))
        for warning in report.warnings:
            complain(f"warning: {warning}")
        tolerated = best_effort and status != UsageError.exit_status
        status = _attempted(lambda: _write(report, output, best_effort=tolerated), report, status)
    except SystemExit as stopped:  # a signal
        known = known or getattr(stopped, "report", None)
        _record(command, known, output, stopped.code if isinstance(stopped.code, int) else 1)
        raise
    status = _record(command, known, output, status)
    return 0 if tolerated else status


def _attempted(write: Callable[[], None], report: Report | None, status: int) -> int:
    """Call ``write``; return ``status``, or that of its failure where nothing failed before.

    The failure is told, and what ``report`` says had been done before.
    """
    try:
        write()
    except Exception as error:
        failure = explain(error)
        done = f"; the {report.command} {changed}" if report and (changed := changes(report)) else ""
        complain(f"{failure}{done}")
        return failure.exit_status if status in (0, ORPHANS_FOUND) else status
    return status


def _record(command: Command, report: Report | None, output: Output, status: int) -> int:
    """Write the metrics of a run and the outputs of a workflow's step, where they are asked for.

    ``report`` is ``None`` where the run ended before it had one. Returns ``status`` as :func:`_attempted` does.
    """
    # The outputs last, as the status is one of them.
    for write in (_write_metrics, _write_outputs):
        status = _attempted(partial(write, command, report, output, status), report, status)
    return status


def _write_metrics(command: Command, report: Report | None, output: Output, status: int) -> None:
    if output.metrics_file is not None:
        from netsweep.output.metrics import write_metrics  # most runs need none

        write_metrics(output.metrics_file, report, {"command": command, "profile": output.profile}, status)


def _write_outputs(command: Command, report: Report | None, output: Output, status: int) -> None:
    if output.form == "github" and (path := os.environ.get("GITHUB_OUTPUT")):
        from netsweep.output.github import write_outputs

        write_outputs(report or Report(command), status, path)


def _write(report: Report, output: Output, *, best_effort: bool = False) -> None:
    form, verbose = output.form, output.verbose
    # What a run does not need is not imported.
    if form == "json":
        from netsweep.output.json import write_json

        write_json(report, sys.stdout)
    elif form == "github":
        from netsweep.output.github import github_lines

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
        from netsweep.output.github import write_step_summary

        write_step_summary(report, path)


def default_form() -> str:
    """The format where neither ``--format`` nor the environment gives one: that of where netsweep runs."""
    return "github" if os.environ.get("GITHUB_ACTIONS") == "true" else "text"


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
        command_name = error.ctx.info_name if error.ctx and error.ctx.parent else None
        context = f" {command_name}" if command_name else ""
        message = f"{error.format_message().rstrip('.')} (see: netsweep{context} --help)"
        return _refuse(message, error.exit_code, arguments)
    except UsageError as error:
        return _refuse(str(error), error.exit_status, arguments)
    except click.ClickException as error:
        complain(error.format_message())
        return error.exit_code


def _refuse(message: str, status: int, arguments: Sequence[str]) -> int:
    """Tell of a command that did not come to be run, and in a workflow tell that too; return ``status``."""
    complain(message)
    if _form_asked_for(arguments) == "github":
        report, output = Report("list", errors=[message]), Output("github")  # its command is shown nowhere
        _attempted(lambda: _write(report, output), report, status)
        _record(report.command, report, output, status)
    return status


def _form_asked_for(arguments: Sequence[str]) -> str:
    """The format that a command line asks for, also where click could not read it to its end.

    One that does not exist is what is wrong with the line, and asks for nothing.
    """
    forms = [default_form(), os.environ.get("NETSWEEP_FORMAT", "")]
    for before, argument in zip(("", *arguments), arguments, strict=False):
        if before == "--format":
            forms.append(argument)
        elif argument.startswith("--format="):
            forms.append(argument.removeprefix("--format="))
    return [form for form in forms if form in FORMATS][-1]
