"""Run a job, show what came of it, and return the exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import click

from netsweep.errors import ORPHANS_FOUND, NetsweepError, UsageError
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
) -> tuple[int, Report]:
    """Call ``job`` and write its report to stdout as ``output`` says; return the exit status and the report.

    ``best_effort``: failures are told and the status is 0, but for wrong usage. ``exit_code``: the status says whether
    there are orphans or leaked bridges.
    """
    failure: NetsweepError | None = None
    known: Report | None = None
    try:
        try:
            from netsweep.output.status import Status  # what only shows help needs none

            with nullcontext() if output.quiet else Status():
                report = known = job()
        except Exception as error:
            failure = explain(error)
            known = failure.report
            report = known or Report(command, errors=[str(failure)])
            complain(str(failure))
        for warning in report.warnings:
            complain(f"warning: {warning}")
        answer = ORPHANS_FOUND if exit_code and (report.orphans or report.leaked) else 0
        try:
            tolerated = best_effort and not isinstance(failure, UsageError)
            _write(report, output, best_effort=tolerated)
        except Exception as error:
            unwritten = _unwritten(error, report)
            failure = failure or unwritten
    except SystemExit as stopped:  # a signal
        known = known or getattr(stopped, "report", None)
        _write_metrics(known, command, output, stopped.code)
        _write_outputs(known or Report(command), output, stopped.code)
        raise
    without_metrics = _write_metrics(known, command, output, failure.exit_status if failure else answer)
    failure = failure or without_metrics
    # Last, as the status is one of them.
    without_outputs = _write_outputs(report, output, failure.exit_status if failure else answer)
    failure = failure or without_outputs
    if failure is None:
        return answer, report
    return 0 if best_effort and not isinstance(failure, UsageError) else failure.exit_status, report


def _unwritten(error: Exception, report: Report | None) -> NetsweepError:
    """Tell that something could not be written, and what had been done before."""
    failure = explain(error)
    done = f"; the {report.command} {changed}" if report and (changed := changes(report)) else ""
    complain(f"{failure}{done}")
    return failure


def _write_metrics(report: Report | None, command: str, output: Output, status: object) -> NetsweepError | None:
    """Write the metrics where they are asked for; return why that failed, which is told."""
    if output.metrics_file is None:
        return None
    try:
        from netsweep.output.metrics import write_metrics  # most runs need none

        labels = {"command": command, "profile": output.profile}
        write_metrics(output.metrics_file, report, labels, status if isinstance(status, int) else 1)
    except Exception as error:
        return _unwritten(error, report)
    return None


def _write_outputs(report: Report, output: Output, status: object) -> NetsweepError | None:
    """Write the outputs of a workflow's step where this is one; return why that failed, which is told."""
    path = os.environ.get("GITHUB_OUTPUT")
    if output.form != "github" or not path:
        return None
    try:
        from netsweep.output.github import write_outputs

        write_outputs(report, status if isinstance(status, int) else 1, path)
    except Exception as error:
        return _unwritten(error, report)
    return None


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
    """The format where ``--format`` is not given: what the environment says, or that of where netsweep runs."""
    return os.environ.get("NETSWEEP_FORMAT") or _form_of_runner()


def _form_of_runner() -> str:
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
        try:
            _write(report, output)
        except Exception as error:
            complain(str(explain(error)))
        _write_outputs(report, output, status)
    return status


def _form_asked_for(arguments: Sequence[str]) -> str:
    """The format that a command line asks for, also where click could not read it to its end.

    One that does not exist is what is wrong with the line, and asks for nothing.
    """
    forms = [_form_of_runner(), os.environ.get("NETSWEEP_FORMAT", "")]
    for before, argument in zip(("", *arguments), arguments, strict=False):
        if before == "--format":
            forms.append(argument)
        elif argument.startswith("--format="):
            forms.append(argument.removeprefix("--format="))
    return [form for form in forms if form in FORMATS][-1]
