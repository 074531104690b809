"""What a run did, as an object, as text, as JSON, and for GitHub's log and step summary."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, TextIO

from netsweep import __version__
from netsweep.orphans import Finding
from netsweep.rules import Rule
from netsweep.safefile import describe, open_or_create_regular

if TYPE_CHECKING:
    from netsweep.locks import LockTimes

SCHEMA = 1
"""Version of the JSON; grows when a field changes its meaning, not when one is added."""

ROWS_MAX = 15
"""How many groups a text report lists before it sums up the rest."""


@dataclass
class BackendReport:
    """What one backend held: rules read, orphans among them, rules deleted; or rules put back."""

    name: str
    family: str
    scanned: int = 0
    orphans: int = 0
    deleted: int = 0
    restored: int = 0

    def to_dict(self, command: str) -> dict[str, Any]:
        """The backend as the JSON contract has it."""
        return {k: v for k, v in vars(self).items() if k != "restored" or command == "restore"}


@dataclass
class Report:
    """The outcome of a look or a sweep.

    ``orphans`` are the orphaned rules that were found, or for a sweep those that were deleted;
    ``kept`` the other rules that have to do with us, where they were asked for. ``subnet_lock`` and
    ``xtables_lock`` are ``None`` where the lock was never taken. ``duration_ms`` is in milliseconds.
    """

    command: str
    dry_run: bool = False
    orphans: list[Finding] = field(default_factory=list)
    kept: list[Finding] = field(default_factory=list)
    backends: list[BackendReport] = field(default_factory=list)
    subnet_lock: LockTimes | None = None
    xtables_lock: LockTimes | None = None
    duration_ms: float = 0.0
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def scanned(self) -> int:
        """Rules read."""
        return sum(backend.scanned for backend in self.backends)

    @property
    def deleted(self) -> int:
        """Rules deleted."""
        return sum(backend.deleted for backend in self.backends)

    @property
    def changed(self) -> bool:
        """Whether any table was changed."""
        return self.deleted + self.restored > 0

    @property
    def restored(self) -> int:
        """Rules put back."""
        return sum(backend.restored for backend in self.backends)

    def to_dict(self) -> dict[str, Any]:
        """The report as the JSON contract has it, made of plain objects."""
        return {name: list(value) if name in _RULE_LISTS else value for name, value in self._fields()}

    def _fields(self) -> Iterator[tuple[str, Any]]:
        yield "schema", SCHEMA
        yield "version", __version__
        yield "command", self.command
        yield "dry_run", self.dry_run
        yield "changed", self.changed
        yield "scanned", self.scanned
        yield "deleted", self.deleted
        yield "orphans", map(rule_dict, self.orphans)
        yield "kept", map(rule_dict, self.kept)
        yield "backends", [backend.to_dict(self.command) for backend in self.backends]
        yield "locks", {"subnet": _lock_dict(self.subnet_lock), "xtables": _lock_dict(self.xtables_lock)}
        yield "duration_ms", round(self.duration_ms, 1)
        yield "errors", self.errors


_RULE_LISTS = ("orphans", "kept")


def rule_dict(finding: Finding) -> dict[str, Any]:
    """One rule as the JSON contract has it; what does not apply is ``None``."""
    rule = finding.rule
    return {
        "backend": rule.backend,
        "family": "ipv4",
        "table": rule.table,
        "chain": rule.chain,
        "position": rule.position,
        "handle": rule.handle,
        "bridge": finding.bridge,
        "in": str(rule.in_interface) if rule.in_interface else None,
        "out": str(rule.out_interface) if rule.out_interface else None,
        "source": rule.source,
        "destination": rule.destination,
        "target": rule.target,
        "comment": _comment(rule),
        "verdict": finding.verdict.value,
        "reason": finding.reason,
    }


def _comment(rule: Rule) -> str | None:
    return rule.comment and rule.comment.replace("\0", " ")


def _lock_dict(times: LockTimes | None) -> dict[str, Any] | None:
    if times is None:
        return None
    return {"path": times.path, "waited_ms": round(times.waited_ms, 3), "held_ms": round(times.held_ms, 3)}


def write_json(report: Report, out: TextIO) -> None:
    """Write the report as one JSON object; the rules by the hundred, as there may be very many."""
    separator = "{"
    for name, value in report._fields():
        out.write(f"{separator}{json.dumps(name)}: ")
        separator = ", "
        if name in _RULE_LISTS:
            out.write("[")
            written = 0
            while rules := list(islice(value, 100)):
                out.write(", " * bool(written) + json.dumps(rules)[1:-1])
                written += len(rules)
            out.write("]")
        else:
            out.write(json.dumps(value))
    out.write("}\n")


def escape(text: str) -> str:
    """Make text from the host safe to print: all but printable ASCII becomes an escape.

    Bytes that were no UTF-8 come out as ``\\xff``. GitHub's runner takes ``##[`` anywhere in a line
    for a command, so the second ``#`` of it is escaped too.
    """
    if not (text.isascii() and text.isprintable() and "\\" not in text):
        text = "".join(c if " " <= c <= "~" and c != "\\" else _escape_character(c) for c in text)
    return text.replace("##[", "#\\x23[")


def _escape_character(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a surrogate escape (PEP 383)
        return f"\\x{code - 0xDC00:02x}"
    return {"\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(
        character, f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    )


def text_lines(report: Report, *, verbose: bool = False) -> Iterator[str]:
    """The report for people: groups, then every rule where ``verbose``, then what was done."""
    if report.orphans:
        yield from _grouped(report.orphans, None if verbose else ROWS_MAX)
        yield ""
    if verbose and report.orphans:
        yield from map(_rule_line, report.orphans)
        yield ""
    if report.kept:
        yield "Kept, and why:"
        yield from map(_rule_line, report.kept)
        yield ""
    yield summary(report)


def _grouped(findings: Iterable[Finding], limit: int | None) -> Iterator[str]:
    groups = Counter((f.bridge or "", f.rule.backend, f"{f.rule.table}/{f.rule.chain}") for f in findings)
    rows = [("BRIDGE", "BACKEND", "TABLE/CHAIN", "RULES")]
    ordered = sorted(groups)
    rows += [(escape(key[0]), key[1], key[2], str(groups[key])) for key in ordered[:limit]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        bridge, backend, chain, count = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"{bridge}  {backend}  {chain}  {count.strip():>{widths[3]}}"
    if rest := ordered[limit:] if limit is not None else ():
        bridges = {key[0] for key in rest}
        rules = sum(groups[key] for key in rest)
        yield f"... and {_count(rules, 'more rule')} of {_count(len(bridges), 'bridge')} (-v lists every rule)"


def _rule_line(finding: Finding) -> str:
    rule = finding.rule
    parts = [f"{rule.backend} {rule.table}/{rule.chain} {rule.position}:"]
    for option, value in (
        ("-s", rule.source),
        ("-d", rule.destination),
        ("-i", rule.in_interface),
        ("-o", rule.out_interface),
        ("-j", rule.target),
    ):
        if value:
            text = str(value)
            inverted = "! " if text.startswith("!") else ""
            parts.append(f"{inverted}{option} {escape(text.removeprefix('!'))}")
    if (comment := _comment(rule)) is not None:
        parts.append(f'"{escape(comment)}"')
    return f"{' '.join(parts)} -- {finding.verdict.value}: {escape(finding.reason)}"


def summary(report: Report) -> str:
    """One sentence: what was found, what was done, in what time."""
    took = _duration(report.duration_ms)
    bridges = len({finding.bridge for finding in report.orphans})
    found = f"{_count(len(report.orphans), 'orphaned rule')} of {_count(bridges, 'bridge')}"
    where = ", ".join(
        f"{b.name}: {b.deleted if report.changed else b.orphans:,} of {_count(b.scanned, 'rule')}"
        for b in report.backends
    )
    if report.command == "restore" and not report.errors:
        restored = ", ".join(f"{b.name}: {b.restored:,}" for b in report.backends)
        return f"Restored {_count(report.restored, 'rule')} in {took} ({restored})."
    if report.errors:
        verb, number = ("restored", report.restored) if report.command == "restore" else ("deleted", report.deleted)
        done = f"{verb} {_count(number, 'rule')}" if report.changed else "nothing was changed"
        left = len(report.orphans) - report.deleted
        rest = f", {left:,} left: run it again" if report.deleted and left else ""
        return f"Failed after {took}; {done}{rest}."
    if not report.orphans:
        if not report.backends:
            return f"Nothing to sweep: this network namespace has no iptables tables ({took})."
        return f"Nothing to sweep: no orphaned rules, {_count(report.scanned, 'rule')} read in {took}."
    if report.changed:
        return f"Deleted {found} in {took} ({where})."
    hint = "" if report.dry_run else " 'netsweep sweep' deletes them."
    return f"Found {found} in {took} ({where}); nothing was changed.{hint}"


def _duration(ms: float) -> str:
    return f"{ms / 1000:.2f} s" if ms >= 1000 else f"{ms:.0f} ms" if ms >= 10 else f"{ms:.1f} ms"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def github_lines(report: Report, *, verbose: bool = False, best_effort: bool = False) -> Iterator[str]:
    """The report for a GitHub log: a folded group with the details, and one annotation with the sum.

    Nothing from the host can be a workflow command: the runner takes ``::`` at the start of a line
    for that, and ``##[``, which :func:`escape` leaves nowhere.
    """
    yield "::group::netsweep: details"
    for line in text_lines(report, verbose=verbose):
        yield line.replace("::", ":\\x3a")
    yield "::endgroup::"
    level, text = "notice", summary(report)
    if report.errors:
        level = "warning" if best_effort else "error"
        text = f"{'; '.join(report.errors)} ({text.rstrip('.')})"
    elif report.orphans and not report.changed:
        level = "warning"
    # %, CR and LF have escapes of their own in commands (actions/toolkit, packages/core, command.ts).
    yield f"::{level} title=netsweep::{escape(text).replace('%', '%25')}"


def write_step_summary(report: Report, path: str) -> None:
    """Append a short Markdown table to GitHub's step summary at ``path``.

    Raises :class:`~netsweep.errors.NetsweepError` where it is no regular file or cannot be written.
    """
    what = "step summary"
    rows = "".join(f"| {b.name} | {b.scanned} | {b.orphans} | {b.deleted} |\n" for b in report.backends)
    text = "".join(f"- {_markdown(error)}\n" for error in report.errors)
    table = f"| backend | rules read | orphaned | deleted |\n| --- | ---: | ---: | ---: |\n{rows}\n" if rows else ""
    content = f"### netsweep\n\n{table}{_markdown(summary(report))}\n{text}\n"
    try:
        descriptor = open_or_create_regular(path, os.O_WRONLY | os.O_APPEND, 0o644, what=what)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
    except OSError as error:
        raise describe(error, f"cannot write {what} {path!a}") from error


def _markdown(text: str) -> str:
    return "".join(f"&#{ord(c)};" if c in "&<>|`*_[]()~#!\\" else c for c in escape(text))
