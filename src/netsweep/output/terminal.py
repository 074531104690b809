"""A report for people at a terminal: tables, in colour where that is wanted.

Text from the host goes through :func:`~netsweep.output.escape.escape`, which leaves ASCII, and to rich as
:class:`~rich.text.Text`, in which rich looks for no markup, emoji or links.
"""

from __future__ import annotations

import locale
import re
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from netsweep.model import BridgeFinding, Finding, Verdict
from netsweep.output.escape import escape
from netsweep.output.text import (
    ROWS_MAX,
    count,
    kept_of,
    last_lines,
    negated_advice,
    negated_heading,
    place,
    reason_of,
    returning_lines,
    rule_parts,
)
from netsweep.report import Report

_STYLES = {
    Verdict.ORPHAN: "red",
    Verdict.LEAKED: "red",
    Verdict.LIVE: "green",
    Verdict.LEASED: "green",
    Verdict.PROTECTED: "cyan",
    Verdict.WILDCARD: "cyan",
    Verdict.UNDECIDABLE: "magenta",
    Verdict.NEGATED: "magenta",
    Verdict.FOREIGN: "default",
}
"""Yellow is hard to read on white, and blue on black."""

_OUTCOMES = {
    "Nothing": "green",
    "Deleted": "green",
    "Restored": "green",
    "Would": "green",
    "Found": "red",
    "Failed": "red",
}
"""By the first word of a summary."""

_GLUE = "\N{NO-BREAK SPACE}"
"""Stands for a space at which no line is broken; what :func:`escape` returns holds none."""

_GAP = 2
"""Between two columns of a table."""

_WIDTH_MIN = 20
"""Of a terminal, and of the last column of a table where that has to be wrapped."""


def write_tables(report: Report, out: TextIO, *, verbose: bool = False, coloured: bool = True) -> None:
    """Write the report to ``out``, as wide as the terminal; where there is none, 80 columns or ``COLUMNS``.

    ``verbose``: all bridges, and every rule.
    """
    _Writer(report, out, coloured).write(None if verbose else ROWS_MAX)


class _Writer:
    def __init__(self, report: Report, out: TextIO, coloured: bool) -> None:
        self._report = report
        self._width = max(_WIDTH_MIN, shutil.get_terminal_size().columns)
        # Nothing is left for rich to find out from the environment.
        self._console = Console(
            file=out,
            width=self._width,
            height=25,
            color_system="standard" if coloured else None,
            force_terminal=True,
            no_color=False,
            legacy_windows=False,
            markup=False,
            emoji=False,
            highlight=False,
        )

    def write(self, limit: int | None) -> None:
        report = self._report
        if leaked := report.leaked:
            self._leaked(leaked, limit)
        if report.orphans:
            self._orphans(report.orphans, limit)
        if report.negated:
            self._negated(report.negated, limit)
        self._kept(*kept_of(report))
        for line in returning_lines(report):
            self._print(line)
        if report.returning:
            self._console.print()
        for line in last_lines(report, verbose=limit is None):
            first = line.partition(" ")[0]
            if first == "Undo:":  # a command to copy stays in one line
                self._console.print(Text(line), soft_wrap=True)
                continue
            # No time without its unit.
            line = re.sub(r"(?<=\d) (?=m?s\b)", _GLUE, line)
            self._print(line, mark=first if first in _OUTCOMES else "", style=_OUTCOMES.get(first, ""))

    def _leaked(self, leaked: Sequence[BridgeFinding], limit: int | None) -> None:
        shown = leaked[:limit]
        names = [(escape(each.bridge.name), each.bridge.subnet or "") for each in shown]
        if self._report.command == "teardown":  # they need not have been leaked
            self._table(("BRIDGE", "SUBNET"), names)
        else:
            self._heading(Verdict.LEAKED, count(len(leaked), "bridge"))
            rows = [(*name, reason_of(each)) for name, each in zip(names, shown, strict=True)]
            self._table(("BRIDGE", "SUBNET", "REASON"), rows)
        if rest := len(leaked) - len(shown):
            self._print(f"... {count(rest, 'more leaked bridge')} (-v lists all)")
        self._console.print()

    def _orphans(self, orphans: Sequence[Finding], limit: int | None) -> None:
        rules = Counter(each.bridge or "-" for each in orphans)
        chains = Counter((each.bridge or "-", *place(each)) for each in orphans)
        shown = sorted(rules)[:limit]
        by_bridge: dict[str, dict[str, list[str]]] = {bridge: {} for bridge in shown}
        for bridge, backend, chain in sorted(chains):
            if bridge in by_bridge:
                text = f"{escape(chain)}{_GLUE}{chains[bridge, backend, chain]:,}"
                by_bridge[bridge].setdefault(backend, []).append(text)
        rows = []
        for bridge, backends in by_bridge.items():
            first = (escape(bridge), f"{rules[bridge]:,}")
            for backend, texts in backends.items():
                rows.append((*first, backend, ", ".join(texts)))
                first = ("", "")
        if self._report.command != "teardown":
            self._heading(Verdict.ORPHAN, f"{count(len(orphans), 'rule')} of {count(len(rules), 'bridge')}")
        self._table(("BRIDGE", "RULES", "BACKEND", "CHAINS"), rows)
        if rest := len(rules) - len(shown):
            left = count(len(orphans) - sum(rules[bridge] for bridge in shown), "more rule")
            self._print(f"... {left} of {count(rest, 'more bridge')} (-v lists every rule)")
        if limit is None:
            self._console.print()
            self._by_reason(orphans)
        self._console.print()

    def _negated(self, negated: Sequence[Finding], limit: int | None) -> None:
        heading = negated_heading(len(negated))
        self._print(heading, mark=heading.partition(" that ")[0], style=_STYLES[Verdict.NEGATED])
        shown = negated[:limit]
        self._by_reason(shown)
        if rest := len(negated) - len(shown):
            self._print(f"... {count(rest, 'more rule')} (-v lists every rule)")
        self._print(negated_advice(len(negated)))
        self._console.print()

    def _kept(self, bridges: Sequence[BridgeFinding], rules: Sequence[Finding]) -> None:
        everything: list[Finding | BridgeFinding] = [*bridges, *rules]
        groups: dict[Verdict, list[Finding | BridgeFinding]] = {verdict: [] for verdict in Verdict}
        for each in everything:
            groups[each.verdict].append(each)
        if everything:
            self._print("Kept, and why:")
            self._console.print()
        for verdict, findings in groups.items():
            if findings:
                number = sum(isinstance(each, BridgeFinding) for each in findings)
                numbers = ((number, "bridge"), (len(findings) - number, "rule"))
                text = ", ".join(count(number, noun) for number, noun in numbers if number)
                reasons = {reason_of(each) for each in findings}
                same = f" -- {reasons.pop()}" if len(reasons) == 1 else ""
                self._heading(verdict, f"{text}{same}")
                self._by_reason(findings, tell=not same)
                self._console.print()

    def _by_reason(self, findings: Iterable[Finding | BridgeFinding], *, tell: bool = True) -> None:
        """Write what stands where, under the reason of its verdict where that is to be told."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for each in findings:
            groups.setdefault(reason_of(each), []).append(_row(each))
        before = max(len(where) for rows in groups.values() for where, _ in rows) + _GAP
        indent = 4 if tell else 2
        for reason, rows in groups.items():
            if tell:
                self._print(f"{reason}:", indent=2)
            self._rows(rows, " " * indent, before)

    def _rows(self, rows: Sequence[tuple[str, str]], margin: str, before: int) -> None:
        """Write rows of two columns. There may be very many, for which a table of rich takes too long."""
        width = self._width - len(margin)
        room = width - before
        below = not _fits([last for _, last in rows], room, width)
        lines = []
        for where, rule in rows:
            if below:
                lines += [where, *_wrapped(rule, width, _GAP)]
            else:
                first, *others = [*_wrapped(rule, room, broken=True), ""]
                lines += [f"{where:<{before}}{first}", *(" " * before + other for other in others if other)]
        self._console.out("\n".join(f"{margin}{line}".rstrip() for line in lines), highlight=False)

    def _heading(self, verdict: Verdict, text: str) -> None:
        self._print(f"{verdict.value}: {text}", mark=verdict.value, style=_STYLES[verdict])

    def _table(self, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Write a table of which only the last column is wrapped; or a list, where a word of that would not fit in."""
        widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
        room = self._width - sum(widths[:-1]) - _GAP * (len(widths) - 1)
        if not _fits([row[-1] for row in rows], room, self._width):
            self._list(headers, rows)
            return
        widths[-1] = min(widths[-1], room)
        box = SIMPLE_HEAD if "UTF" in locale.getpreferredencoding(False).upper() else None
        gap = _GAP - (box is not None)  # what is between its columns is a space
        table = Table(box=box, show_edge=False, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
        for header, width in zip(headers, widths, strict=True):
            justify: JustifyMethod = "right" if header == "RULES" else "left"
            table.add_column(Text(header), width=width, no_wrap=True, justify=justify)
        table.columns[0].style = "bold"
        for row in rows:
            last = "\n".join(_wrapped(row[-1], room, broken=True))
            table.add_row(*map(Text, row[:-1]), Text(last))
        self._console.print(table)

    def _list(self, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        for row in rows:
            if row[0]:
                self._print(row[0], mark=row[0])
            for header, cell in zip(headers[1:], row[1:], strict=True):
                if cell:
                    self._print(f"{header.lower()}: {cell}", indent=_GAP)

    def _print(self, text: str, *, indent: int = 0, mark: str = "", style: str = "default") -> None:
        """Write ``text`` in lines that are broken between words, with ``mark``, with which it begins, in ``style``."""
        for number, line in enumerate(_wrapped(text, self._width, indent)):
            shown = Text(line)
            if mark and not number:
                shown.stylize(f"bold {style}", indent, indent + len(mark))
            # Without soft_wrap rich would break words that are longer than the terminal is wide, as paths may be.
            self._console.print(shown, soft_wrap=True)


def _fits(cells: Sequence[str], room: int, width: int) -> bool:
    """Whether ``cells`` can be shown in ``room`` columns without breaking words that ``width`` columns can hold."""
    longest = max(map(len, cells))
    words = [len(word) for cell in cells for word in cell.split(" ") if len(word) <= width - _GAP]
    return room >= max([*words, min(longest, _WIDTH_MIN)])


def _row(each: Finding | BridgeFinding) -> tuple[str, str]:
    if isinstance(each, BridgeFinding):
        return f"bridge {escape(each.bridge.name)}", each.bridge.subnet or ""
    parts = [part if part.startswith('"') else part.replace(" ", _GLUE) for part in rule_parts(each.rule.spec)]
    return f"{' '.join(map(escape, place(each)))} {each.rule.position}", " ".join(parts)


def _wrapped(text: str, width: int, indent: int = 0, *, broken: bool = False) -> Iterator[str]:
    """``text`` in lines; ``broken``: of words that are longer than ``width``, too."""
    before = " " * indent
    for line in textwrap.wrap(
        text,
        width,
        initial_indent=before,
        subsequent_indent=before + "  " * (indent > 0),
        break_long_words=broken,
        break_on_hyphens=False,
    ):
        yield line.replace(_GLUE, " ")
