"""The pages of the documentation, and what is in them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]

PAGES = sorted(
    path for top in (".", ".github", "docs") for path in (ROOT / top).glob("**/*.md" if top == "docs" else "*.md")
)

UPDATE = bool(os.environ.get("UPDATE_DOCS"))
"""Whether to write what the tests found into the pages, instead of comparing."""


class Block(NamedTuple):
    """A fenced block of a page: where its first line is, its language, and the scene that a comment before it names."""

    page: Path
    line: int
    language: str
    scene: str
    lines: list[str]


def name_of(page: Path) -> str:
    """The path of a page in the repository."""
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start = language = None
    for number, line in enumerate(lines):
        if not (fence := re.match(r" *```(\w*)$", line)):
            continue
        if start is None:
            start, language = number, fence[1]
            continue
        scene = re.fullmatch(r"<!-- scene: (.*) -->", lines[start - 1])
        yield Block(page, start + 1, language or "", scene[1] if scene else "", lines[start + 1 : number])
        start = None
    assert start is None, f"{name_of(page)}:{start}: a block without an end"


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^ *```\w*\n(?:.*\n)*? *```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)


def links(page: Path) -> list[str]:
    """Where the links and pictures of a page lead."""
    return re.findall(r'(?:\]\(|\b(?:src|srcset|href)=")([^)"\s]+)', prose(page))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def table(page: Path, heading: str) -> list[list[str]]:
    """The cells of the first table of a page whose head begins with ``heading``, by row."""
    rows = re.search(rf"^\| {heading} \|.*\n\|.*\n((?:\|.*\n)+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows, f"{name_of(page)} has no table of {heading}"
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows[1].splitlines()]
