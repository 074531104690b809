"""Read and change x_tables tables through libiptc.

A table comes as one snapshot; rules are deleted from it by number; one commit replaces the table in the
kernel. The kernel notices only a changed *count* of rules in between, so the xtables lock is held from
before the snapshot until after the commit.
"""

from __future__ import annotations

import ctypes
import operator
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import NamedTuple

from netsweep.firewall import Addition, Scan, Standing, Transaction
from netsweep.firewall.extensions import text
from netsweep.firewall.xtables.bindings import Counters, Library, libiptc
from netsweep.firewall.xtables.codec import LAYOUTS, Layout, decode, parts
from netsweep.firewall.xtables.modules import existing_tables
from netsweep.host import locks
from netsweep.model import BackendName, Chain, Rule, Spec, Table, Undo
from netsweep.report import LockTimes


class XtablesBackend:
    """The x_tables tables of this network namespace; see :func:`netsweep.firewall.opening.open_backend`."""

    name: BackendName = "legacy"
    batch = sys.maxsize
    spans_tables = False

    def __init__(self, prefilter: Sequence[bytes], *, undo: bool = False) -> None:
        self._prefilter = tuple(prefilter)
        self._undo = undo
        # The second reading, which has the lock, meets the rules of the first. By a hash of their bytes, with a
        # key that nobody knows: the bytes themselves take 40 MB for 90,000 rules. Those of one family are no
        # multiple of eight bytes, those of the other are.
        self._known: dict[int, Rule] = {}

    def tables(self) -> Sequence[Table]:
        return existing_tables()

    def read(
        self,
        tables: Collection[Table],
        wanted: Callable[[Chain], bool],
        limit: int | None = None,
        *,
        again: bool = False,
    ) -> Scan:
        scan = Scan()
        for table in tables:
            with _opened(table) as snapshot:
                chains = (Chain(table, text(name)) for name in snapshot.chains())
                self._read(snapshot, list(filter(wanted, chains)), scan)
        if scan.rules:
            libiptc(scan.rules[0].chain.table.family).give_back()
        return scan

    def refusal(self, table: Table) -> str | None:
        return None

    def ready(self, rules: Sequence[Rule]) -> None:
        pass

    def locked(self, times: LockTimes, timeout: float) -> AbstractContextManager[None]:
        return locks.held(times, timeout, mode=0o600, what="xtables lock", option="--wait")

    @contextmanager
    def transaction(
        self, chains: Sequence[Chain], rules: Sequence[Rule] = (), *, orders: bool = False
    ) -> Iterator[Transaction]:
        table = chains[0].table
        with _opened(table) as snapshot:
            scan, found = Scan(), dict[Chain, list[Standing]]()
            self._read(snapshot, chains, scan, found if orders else None, again=True)
            yield _Transaction(snapshot, table, scan.rules, found)

    def spec_of(self, table: Table, raw: bytes) -> Spec:
        return decode(raw, LAYOUTS[table.family])

    def close(self) -> None:
        self._known.clear()

    def _read(
        self,
        snapshot: _Snapshot,
        chains: Sequence[Chain],
        scan: Scan,
        orders: dict[Chain, list[Standing]] | None = None,
        *,
        again: bool = False,
    ) -> None:
        for chain in chains:
            if not snapshot.is_chain(_bytes(chain.name)):
                continue
            scan.chains.append(chain)
            scan.scanned[chain] += self._read_rules(snapshot, chain, scan.rules, again=again)
            if orders is not None:
                orders[chain] = [Standing(snapshot.undo(*each).identity, None) for each in snapshot.entries(chain)]

    def _read_rules(self, snapshot: _Snapshot, chain: Chain, rules: list[Rule], *, again: bool) -> int:
        position, known, found = 0, self._known, rules.append
        text_end, matches_at = snapshot.layout.nfcache, snapshot.layout.entry
        for entry, raw in snapshot.entries(chain):
            position += 1
            # At first most rules are those of others; under the lock, most of what matters is known.
            if not again and not self._is_ours(raw):
                continue
            key = hash(raw[:text_end] + raw[matches_at:])
            rule = known.get(key)
            if rule is None:
                if not again or self._is_ours(raw):
                    found(self._decode(snapshot, entry, raw, chain, position, key))
            elif rule.position == position and rule.chain == chain:
                found(rule)
            else:
                found(rule._replace(position=position, chain=chain))
        return position

    def _decode(self, snapshot: _Snapshot, entry: int, raw: bytes, chain: Chain, position: int, key: int) -> Rule:
        target, jumps = snapshot.target(entry)
        undo = snapshot.undo(entry, raw) if self._undo else None
        rule = Rule(chain, position, None, decode(raw, snapshot.layout, target, jumps=jumps), undo)
        # The bytes of a jump, and of a rule without a target, hold an offset, which may mean another chain next time.
        if target and not jumps:
            self._known[key] = rule
        return rule

    def _is_ours(self, raw: bytes) -> bool:
        return any(map(raw.__contains__, self._prefilter))


class _Snapshot(NamedTuple):
    """A table as libiptc read it: ``handle`` is the one to pass to ``calls``."""

    calls: Library
    handle: int
    layout: Layout

    def chains(self) -> Iterator[bytes]:
        """The names of all chains, in libiptc's order."""
        name = self.calls.first_chain(self.handle)
        while name:
            yield name
            name = self.calls.next_chain(self.handle)

    def is_chain(self, name: bytes) -> bool:
        """Whether the table has a chain of this name."""
        return bool(self.calls.is_chain(name, self.handle))

    def entries(self, chain: Chain) -> Iterator[tuple[int, bytes]]:
        """Each rule of ``chain``: its address, and a copy of its bytes."""
        handle, following = self.handle, self.calls.next_rule
        size_at, array_at = ctypes.c_uint16.from_address, _array_at
        offset, least = self.layout.size, self.layout.entry
        entry = self.calls.first_rule(_bytes(chain.name), handle)
        while entry:
            size = size_at(entry + offset).value
            yield entry, array_at(size if size > least else least)(entry).raw
            entry = following(entry, handle)

    def target(self, entry: int) -> tuple[bytes, bool]:
        """The name of an entry's target, and whether it is a chain."""
        target: bytes = self.calls.get_target(entry, self.handle) or b""
        return target, bool(target and self.is_chain(target))

    def undo(self, entry: int, raw: bytes) -> Undo:
        """What it takes to put an entry back."""
        from netsweep.firewall.xtables.undo import undo_of  # most runs need none

        target, jumps = self.target(entry)
        return undo_of(raw, self.layout, target, jumps=jumps)


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


@cache  # there are few sizes, and a type is made more slowly than a rule is read
def _array_at(size: int) -> Callable[[int], ctypes.Array[ctypes.c_char]]:
    return (ctypes.c_char * size).from_address


@contextmanager
def _opened(table: Table) -> Iterator[_Snapshot]:
    library = libiptc(table.family)
    handle = library.open(table.name)
    try:
        yield _Snapshot(library, handle, LAYOUTS[table.family])
    finally:
        library.free(handle)


class _Transaction:
    incarnation: int | None = None

    def __init__(
        self, snapshot: _Snapshot, table: Table, rules: Sequence[Rule], orders: dict[Chain, list[Standing]]
    ) -> None:
        self.rules: Sequence[Rule] = rules
        self.orders: Mapping[Chain, Sequence[Standing]] = orders
        self._snapshot = snapshot
        self._table = table

    def delete(self, rules: Sequence[Rule]) -> None:
        lib, handle, _ = self._snapshot
        names = {rule.chain: _bytes(rule.chain.name) for rule in rules}
        # From the back, so that no deletion moves a rule that is still to be deleted.
        for rule in reversed(rules):
            if not lib.delete_num_entry(names[rule.chain], rule.position - 1, handle):
                raise lib.failure(f"deleting {rule}")

    def insert(self, additions: Sequence[Addition]) -> None:
        lib, handle, layout = self._snapshot
        # From the back, so that no insertion moves the place of one that is still to come.
        for addition in sorted(additions, key=operator.attrgetter("place"), reverse=True):
            for raw in reversed(addition.rules):
                # libiptc believes whatever the entry says of itself.
                list(parts(raw, layout))
                if not lib.insert_entry(_bytes(addition.chain.name), raw, addition.place, handle):
                    raise lib.failure(f"inserting a rule into {addition.chain}")

    def check(self) -> None:
        # libiptc has checked the chains already; the kernel looks at a table only when it replaces it.
        pass

    def commit(self, confirm: Callable[[], None] = lambda: None) -> None:
        lib, handle, _ = self._snapshot
        # libiptc carries every rule's counters over but lets those of the policies begin at zero.
        for chain in self._snapshot.chains():
            counters = Counters()
            if policy := lib.get_policy(chain, counters, handle):
                lib.set_policy(chain, policy, counters, handle)
        confirm()
        if not lib.commit(handle):
            raise lib.failure(f"committing table {self._table}")
