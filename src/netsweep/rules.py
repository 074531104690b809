"""What a rule is, the same for every backend."""

from __future__ import annotations

import re
from typing import NamedTuple

from netsweep.errors import UsageError

TABLES = ("filter", "nat", "mangle", "raw", "security")
"""The tables that iptables has for IPv4 (iptables(8), TABLES)."""

CHAIN_NAME_MAX = 28
"""Longest chain name that every backend takes (XT_EXTENSION_MAXNAMELEN, linux/netfilter/x_tables.h)."""

_CHAIN = re.compile(rf"[A-Za-z0-9_.:@+=-]{{1,{CHAIN_NAME_MAX}}}")


class ChainRef(NamedTuple):
    """A chain of a table, as in ``filter/FORWARD``."""

    table: str
    chain: str

    def __str__(self) -> str:
        return f"{self.table}/{self.chain}"

    @classmethod
    def parse(cls, text: str) -> ChainRef:
        """Read ``TABLE/CHAIN``; raises :class:`UsageError` where there can be no such chain."""
        table, slash, chain = text.partition("/")
        if not slash or table not in TABLES or not _CHAIN.fullmatch(chain):
            raise UsageError(
                f"{text!a} is no chain: give TABLE/CHAIN, as filter/FORWARD; tables are {', '.join(TABLES)}"
            )
        return cls(table, chain)


DEFAULT_CHAINS = (ChainRef("filter", "FORWARD"), ChainRef("nat", "POSTROUTING"))


class Interface(NamedTuple):
    """One interface match of a rule (``-i`` or ``-o``).

    ``name`` is without the ``+`` of a wildcard.
    """

    name: str
    wildcard: bool = False
    negated: bool = False

    def __str__(self) -> str:
        return f"{'!' if self.negated else ''}{self.name}{'+' if self.wildcard else ''}"


class Undo(NamedTuple):
    """What it takes to put a rule back.

    ``raw`` is for the backend that made it; ``identity`` is the same for rules that differ in nothing
    but counters and place; ``jump`` is the chain that it jumps to; ``sets`` are the numbers of the
    ipset sets it speaks of; ``lost`` says what could not be put back, where that is so.
    """

    raw: bytes
    identity: bytes
    jump: str | None = None
    sets: tuple[int, ...] = ()
    lost: str | None = None


class Rule(NamedTuple):
    """A rule as it stood in its chain when it was read.

    ``position`` counts from 1 as ``iptables -L --line-numbers`` does; ``handle`` is nf_tables' own
    number of the rule; ``comment`` holds bytes that are not UTF-8 as surrogate escapes (PEP 383), and
    several comments with a NUL, which no comment can hold, between them. ``ports`` are interfaces that
    it matches in another way than ``-i`` and ``-o``; ``opaque`` says why its interfaces cannot be told
    from its text, where that is so.
    ``undo`` is there where the backend was asked for it.
    """

    backend: str
    table: str
    chain: str
    position: int
    handle: int | None = None
    in_interface: Interface | None = None
    out_interface: Interface | None = None
    source: str | None = None
    destination: str | None = None
    target: str | None = None
    comment: str | None = None
    ports: tuple[Interface, ...] = ()
    opaque: str | None = None
    undo: Undo | None = None
