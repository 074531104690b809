"""A report for GitHub: the log of a workflow, the summary of its step, and the outputs of its step."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

from netsweep.host.files import describe, open_or_create_regular
from netsweep.output.escape import escape
from netsweep.output.text import count, place, summary, text_lines
from netsweep.report import Report

ROWS_MAX = 100
"""How many rows a table of the step summary has before it sums up the rest."""

_BYTES_MAX = 1 << 18
"""And how many bytes. GitHub drops a summary of more than 1 MiB; it has two such tables at most, and a list."""

_PLACES_MAX = 12
"""How many chains a row of the step summary names."""


def github_lines(report: Report, *, verbose: bool = False, best_effort: bool = False) -> Iterator[str]:
    """The report for a log: a folded group with the details, an annotation per warning, and one with the sum.

    Where there was nothing to do, the sum is a line of the log and no annotation.

    Nothing from the host can be a workflow command: the runner takes ``::`` at the start of a line
    for that, and ``##[``, which :func:`escape` leaves nowhere.
    """
    total = summary(report, verbose=verbose)
    details = [line for line in text_lines(report, verbose=verbose) if line != total]
    if details and not details[-1]:
        del details[-1]  # it sets off the sum
    if details:
        yield "::group::netsweep: details"
        for line in details:
            yield line.replace("::", ":\\x3a")
        yield "::endgroup::"
    for warning in report.warnings:
        yield _annotation("warning", escape(warning))
    if report.errors:
        done = f" ({total.rstrip('.')})" if report.changed else ""
        yield _annotation("warning" if best_effort else "error", f"{escape('; '.join(report.errors))}{done}")
    elif report.changed:
        yield _annotation("notice", total)
    elif report.orphans or report.leaked or report.stale_leases:
        yield _annotation("warning", total)
    else:
        yield total


def _annotation(level: str, text: str) -> str:
    # %, CR and LF have escapes of their own in commands (actions/toolkit, packages/core, command.ts).
    return f"::{level} title=netsweep::{text.replace('%', '%25')}"


def write_outputs(report: Report, status: int, path: str) -> None:
    """Append the outputs of the step to the file at ``path``, which is ``$GITHUB_OUTPUT``.

    ``deleted`` and ``orphans`` are numbers of rules, ``changed`` is ``true`` or ``false``. ``status`` is the exit
    status, of a run that is not best effort. Raises :class:`~netsweep.errors.NetsweepError` where it is not a regular
    file or cannot be written.
    """
    outputs = {
        "deleted": report.deleted,
        "orphans": len(report.orphans),
        "changed": str(report.changed).lower(),
        "status": status,
    }
    _append(path, "".join(f"{name}={value}\n" for name, value in outputs.items()), what="step output")


def write_step_summary(report: Report, path: str) -> None:
    """Append the report in Markdown to the file at ``path``, which is ``$GITHUB_STEP_SUMMARY``.

    Raises :class:`~netsweep.errors.NetsweepError` where it is not a regular file or cannot be written.
    """
    # Where nothing was changed, the sum has nothing to add to an error.
    head = summary(report) if report.changed or not report.errors else "Failed:"
    notes = [*report.errors, *(f"warning: {warning}" for warning in report.warnings)]
    parts = [
        ["### netsweep"],
        [_markdown(head)],
        [*_fitting((f"- {_markdown(escape(note))}" for note in notes), len(notes), "- ... {}", "more message")],
        _bridges(report),
        _backends(report),
        _locks(report),
    ]
    _append(path, "".join("\n".join(part) + "\n\n" for part in parts if part), what="step summary")


def _bridges(report: Report) -> list[str]:
    """A row for each bridge: its rules by backend and chain."""
    places: dict[str, Counter[str]] = {finding.bridge.name: Counter() for finding in report.leaked}
    for finding in report.orphans:
        places.setdefault(finding.bridge or "", Counter())[" ".join(place(finding))] += 1
    if not places:
        return []
    states = {finding.bridge.name: "deleted" if finding.deleted else "leaked" for finding in report.leaked}
    rows = (
        f"| {_cell(name)} | {states.get(name, 'gone')} | {found.total():,} | {_chains(found)} |"
        for name, found in sorted(places.items())
    )
    return [
        "| bridge | state | orphaned rules | by backend and chain |",
        "| --- | --- | ---: | --- |",
        *_fitting(rows, len(places), "| ... {} | | | |", "more bridge"),
    ]


def _chains(found: Counter[str]) -> str:
    texts = [f"{_cell(where)}: {number:,}" for where, number in sorted(found.items())]
    rest = len(texts) - _PLACES_MAX
    return ", ".join(texts[:_PLACES_MAX]) + (f" and {count(rest, 'more chain')}" if rest > 0 else "")


def _backends(report: Report) -> list[str]:
    if not report.backends:
        return []
    if report.command == "restore":
        rows = [f"| {each.name} | {each.family} | {each.restored:,} |" for each in report.backends]
        return ["| backend | family | restored |", "| --- | --- | ---: |", *rows]
    rows = [
        f"| {each.name} | {each.family} | {each.scanned:,} | {each.orphans:,} | {each.deleted:,} |"
        for each in report.backends
    ]
    return [
        "| backend | family | rules read | orphaned | deleted |",
        "| --- | --- | ---: | ---: | ---: |",
        *rows,
    ]


def _locks(report: Report) -> list[str]:
    taken = {"subnet": report.subnet_lock, "xtables": report.xtables_lock}
    rows = [
        f"| {name} | {times.waited_ms:.1f} ms | {times.held_ms:.1f} ms | {times.longest_ms:.1f} ms |"
        for name, times in taken.items()
        if times is not None
    ]
    if not rows:
        return ["No lock was taken."] if report.backends else []  # a run that looked at nothing could not take one
    return ["| lock | waited | held | longest hold |", "| --- | ---: | ---: | ---: |", *rows]


def _fitting(lines: Iterable[str], number: int, more: str, noun: str) -> Iterator[str]:
    """Those of ``lines``, of which there are ``number``, that fit in, and how many more there are."""
    size = shown = 0
    for line in islice(lines, ROWS_MAX):
        size += len(line)
        if size > _BYTES_MAX:
            break
        shown += 1
        yield line
    if shown < number:
        yield more.format(count(number - shown, noun))


def _cell(text: str) -> str:
    return _markdown(escape(text))


def _markdown(text: str) -> str:
    return "".join(f"&#{ord(c)};" if c in "&<>|`*_[]()~#!\\" else c for c in text)


def _append(path: str, content: str, *, what: str) -> None:
    try:
        descriptor = open_or_create_regular(path, os.O_WRONLY | os.O_APPEND, 0o644, what=what)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
    except OSError as error:
        raise describe(error, f"could not write {what} {path!a}") from error
