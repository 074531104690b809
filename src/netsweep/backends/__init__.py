"""What netsweep needs of a firewall: one narrow interface, three implementations.

``legacy`` is x_tables, ``nft`` is nf_tables, ``fake`` keeps its rules in memory. What to delete is
data made by :mod:`netsweep.orphans`; "delete it" is one call here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from netsweep.rules import Rule

if TYPE_CHECKING:
    from netsweep.locks import LockTimes


@dataclass
class Scan:
    """What a look at some chains of one table found.

    ``scanned`` counts all rules read; ``rules`` are those that may have to do with us, in chain
    order. ``complete`` is False where rules were left out: the limit was reached or the chains
    changed while they were read. ``missing`` are chains that do not exist. ``token`` is the
    backend's own. ``order`` and ``handles`` are filled where the backend was asked to keep what a
    restore needs: for each chain the identity of every rule, counters left out, and for nf_tables
    its handle.
    """

    table: str
    chains: Sequence[str]
    scanned: int = 0
    rules: list[Rule] = field(default_factory=list)
    complete: bool = True
    missing: list[str] = field(default_factory=list)
    token: object = None
    order: dict[str, list[bytes]] = field(default_factory=dict)
    handles: dict[str, list[int]] = field(default_factory=dict)


class Addition(NamedTuple):
    """Rules to put into ``chain`` before the one at index ``place`` of the scan's order, or at its end.

    ``rules`` are what :attr:`netsweep.rules.Undo.raw` held.
    """

    chain: str
    place: int
    rules: list[bytes]


class Transaction(Protocol):
    """A moment in which rules can be deleted.

    ``batch``: the most rules one :meth:`delete` takes; ``None``: all, and only one call.
    """

    scan: Scan
    batch: int | None

    def delete(self, rules: Sequence[Rule]) -> None:
        """Delete ``rules``, all taken from ``scan`` and in its order, in one atomic step.

        Raises :class:`~netsweep.errors.ContentionError` where somebody else changed the table so
        that nothing was deleted, and :class:`~netsweep.errors.NetsweepError` for all else.
        """
        ...

    def insert(self, additions: Sequence[Addition]) -> None:
        """Put rules back, all in one atomic step; raises as :meth:`delete`."""
        ...


class Backend(Protocol):
    """A firewall of this network namespace. Opening one changes nothing."""

    name: str
    family: str

    def tables(self) -> Collection[str]:
        """The tables that exist. Creates none, loads no module."""
        ...

    def scan(self, table: str, chains: Sequence[str], limit: int | None = None) -> Scan:
        """Read chains of an existing table, without any lock.

        ``limit``: about how many rules to read of each chain before leaving the rest for later.
        Raises :class:`~netsweep.errors.ContentionError` where the chains could not be read because
        they were changing.
        """
        ...

    def writing(self, times: LockTimes, timeout: float) -> AbstractContextManager[None]:
        """Keep other writers away for as long as the firewall needs that, adding to ``times``."""
        ...

    def transaction(self, scan: Scan) -> AbstractContextManager[Transaction]:
        """Open the scanned chains for deleting, inside :meth:`writing`.

        ``Transaction.scan`` is what to decide on: it may be newer than ``scan``.
        """
        ...

    def close(self) -> None:
        """Give back sockets and handles."""
        ...
