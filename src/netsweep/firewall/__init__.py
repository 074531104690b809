"""What netsweep needs of a firewall: one protocol, three implementations.

``xtables`` is what ``iptables-legacy`` writes, ``nftables`` what ``iptables-nft`` and ``nft`` write,
``memory`` keeps its rules in memory. Which rules go is decided elsewhere; "delete them" is one call here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from netsweep.model import BackendName, Chain, Rule, Spec, Table
from netsweep.report import LockTimes


@dataclass
class Scan:
    """What reading some chains found.

    ``rules`` are those that may concern us, chain by chain and in chain order; ``scanned`` counts all that
    were read. ``chains`` are the chains that exist and were wanted. ``complete`` is False where rules that were there
    from the beginning may have been missed because the chains changed while they were read; ``more`` is True where the
    rest was left for another time.
    """

    rules: list[Rule] = field(default_factory=list)
    scanned: Counter[Chain] = field(default_factory=Counter)
    chains: list[Chain] = field(default_factory=list)
    complete: bool = True
    more: bool = False


class Standing(NamedTuple):
    """A rule's place in a chain's order: its identity (see :class:`netsweep.model.Undo`) and its handle."""

    identity: bytes
    handle: int | None


class Addition(NamedTuple):
    """Rules to put into ``chain`` before the one at index ``place`` of the chain's order, or at its end.

    ``rules`` are what :attr:`netsweep.model.Undo.raw` held.
    """

    chain: Chain
    place: int
    rules: list[bytes]


class Transaction(Protocol):
    """Atomic steps, one for each :meth:`commit`; more than one only where the backend has a ``batch`` size.

    Nothing is changed before a commit, and nothing where it raises.

    ``rules``: what is there now of what was asked for; decide on these. ``orders``: every rule of
    each chain that exists as it stands now, where they were asked for. ``incarnation``: the kernel's number
    of the table, another one when the table is created again and its handles begin again; ``None`` where
    rules have no handles.
    """

    incarnation: int | None
    rules: Sequence[Rule]
    orders: Mapping[Chain, Sequence[Standing]]

    def delete(self, rules: Sequence[Rule]) -> None:
        """Prepare the deletion of ``rules``, all taken from :attr:`rules` and in its order."""
        ...

    def insert(self, additions: Sequence[Addition]) -> None:
        """Prepare the insertion of rules; places are those of :attr:`orders`."""
        ...

    def check(self) -> None:
        """Find out whether the kernel would take what was prepared, as far as it tells, and drop it.

        Raises :class:`~netsweep.errors.NetsweepError` where it would not.
        """
        ...

    def commit(self, confirm: Callable[[], None] = ...) -> None:
        """Do all that was prepared.

        ``confirm`` is called right before the kernel is asked to, each time that it is; what it raises ends
        the commit. Raises :class:`~netsweep.errors.ContentionError` where anything that matters changed
        since the transaction was opened, and :class:`~netsweep.errors.NetsweepError` for all else.
        """
        ...


class Backend(Protocol):
    """A firewall of this network namespace. Opening one changes nothing.

    ``batch``: the most rules that a transaction should delete or insert. ``spans_tables``: whether one may delete
    rules of several tables.
    """

    name: BackendName

    @property
    def spans_tables(self) -> bool: ...

    @property
    def batch(self) -> int: ...

    def tables(self) -> Sequence[Table]:
        """Every table that exists here, of every family. Creates none, loads no module.

        Raises :class:`~netsweep.errors.ContentionError` where the tables kept changing.
        """
        ...

    def read(
        self,
        tables: Collection[Table],
        wanted: Callable[[Chain], bool],
        limit: int | None = None,
        *,
        again: bool = False,
    ) -> Scan:
        """Read those chains of ``tables`` that are ``wanted``, without any lock.

        The tables are some of those that :meth:`tables` returned. ``limit``: how many rules of a chain to
        read at once where that is faster than to read all. ``again``: the last reading was not complete; go on
        with it, and return all that was read since it began. Raises
        :class:`~netsweep.errors.ContentionError` where they could not be read because they were changing.
        """
        ...

    def refusal(self, table: Table) -> str | None:
        """Why no transaction can change ``table``, which :meth:`tables` returned last; ``None`` where one may."""
        ...

    def ready(self, rules: Sequence[Rule]) -> None:
        """Prepare the deletion of ``rules``, and wait for those who change the firewall now; before any lock is held.

        Raises :class:`~netsweep.errors.NetsweepError`.
        """
        ...

    def locked(self, times: LockTimes, timeout: float) -> AbstractContextManager[None]:
        """Keep other writers away for as long as the firewall needs that, adding to ``times``.

        Waits for ``timeout`` seconds. Raises :class:`~netsweep.errors.BusyError`.
        """
        ...

    def transaction(
        self, chains: Sequence[Chain], rules: Sequence[Rule] = (), *, orders: bool = False
    ) -> AbstractContextManager[Transaction]:
        """Open a transaction on ``chains``, all of one table unless :attr:`spans_tables`, inside :meth:`locked`.

        ``rules``: what was read of them before and is to be decided on again. ``orders``: fill
        :attr:`Transaction.orders`. Raises :class:`~netsweep.errors.ContentionError`, and
        :class:`~netsweep.errors.TableError` where one of the tables cannot be changed.
        """
        ...

    def spec_of(self, table: Table, raw: bytes) -> Spec:
        """What a rule of ``table`` says that :attr:`netsweep.model.Undo.raw` holds.

        Raises :class:`~netsweep.errors.NetsweepError` where it cannot be understood.
        """
        ...

    def close(self) -> None:
        """Give back sockets and memory."""
        ...
