"""A report for GitHub's log and step summary."""

from __future__ import annotations

import os
from collections.abc import Iterator

from netsweep.host.files import describe, open_or_create_regular
from netsweep.output.escape import escape
from netsweep.output.text import summary, text_lines
from netsweep.report import Report


def github_lines(report: Report, *, verbose: bool = False, best_effort: bool = False) -> Iterator[str]:
    """The report for a log: a folded group with the details, an annotation per warning, and one with the sum.

    Nothing from the host can be a workflow command: the runner takes ``::`` at the start of a line
    for that, and ``##[``, which :func:`escape` leaves nowhere.
    """
    yield "::group::netsweep: details"
    for line in text_lines(report, verbose=verbose):
        yield line.replace("::", ":\\x3a")
    yield "::endgroup::"
    for warning in report.warnings:
        yield _annotation("warning", escape(warning))
    level, text = "notice", summary(report)
    if report.errors:
        level = "warning" if best_effort else "error"
        text = f"{escape('; '.join(report.errors))} ({text.rstrip('.')})"
    elif (report.orphans or report.leaked) and not report.changed:
        level = "warning"
    yield _annotation(level, text)


def _annotation(level: str, text: str) -> str:
    # %, CR and LF have escapes of their own in commands (actions/toolkit, packages/core, command.ts).
    return f"::{level} title=netsweep::{text.replace('%', '%25')}"


def write_step_summary(report: Report, path: str) -> None:
    """Append a short Markdown table to GitHub's step summary at ``path``.

    Raises :class:`~netsweep.errors.NetsweepError` where it is not a regular file or cannot be written.
    """
    rows = "".join(f"| {b.name} | {b.family} | {b.scanned} | {b.orphans} | {b.deleted} |\n" for b in report.backends)
    head = "| backend | family | rules read | orphaned | deleted |\n| --- | --- | ---: | ---: | ---: |\n"
    notes = [*report.errors, *(f"warning: {warning}" for warning in report.warnings)]
    content = (
        "### netsweep\n\n"
        + (f"{head}{rows}\n" if rows else "")
        + f"{_markdown(summary(report))}\n"
        + "".join(f"- {_markdown(escape(note))}\n" for note in notes)
        + "\n"
    )
    what = "step summary"
    try:
        descriptor = open_or_create_regular(path, os.O_WRONLY | os.O_APPEND, 0o644, what=what)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
    except OSError as error:
        raise describe(error, f"could not write {what} {path!a}") from error


def _markdown(text: str) -> str:
    return "".join(f"&#{ord(c)};" if c in "&<>|`*_[]()~#!\\" else c for c in text)
