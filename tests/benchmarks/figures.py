"""Numbers as Markdown, and what netsweep's report says of its locks."""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.contents import BenchmarkError


def read_locks(path: Path) -> dict[str, Any]:
    """The ``locks`` of a JSON report, without the rules before them, which may fill 100 MB as objects."""
    with path.open("rb") as report:
        size = report.seek(0, os.SEEK_END)
        report.seek(max(0, size - 4096))
        text = report.read().decode()
    # Within a string the quotes would be escaped.
    _, quoted, end = text.rpartition('"backends": [')
    try:
        locks: dict[str, Any] = json.loads("{" + quoted + end)["locks"]
    except (ValueError, KeyError) as error:
        raise BenchmarkError(f"the end of netsweep's JSON report cannot be read: {text[-200:]!a}") from error
    return locks


def median_of(values: Iterable[float | None]) -> float | None:
    """The median of what was measured; ``None`` where nothing was."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def number(value: float | None, unit: str = "") -> str:
    """Three digits that count, or more before the point; nothing for what was not measured."""
    if value is None:
        return ""
    digits = 0 if abs(value) >= 100 or value == int(value) else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}{unit}"


def table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> Iterator[str]:
    """A Markdown table; the first ``left`` columns are text, the others numbers."""
    yield f"\n## {title}\n"
    for cells in (heads, ["---"] * left + ["---:"] * (len(heads) - left), *rows):
        yield f"| {' | '.join(cells)} |"


def progress(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr)
