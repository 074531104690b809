"""Read and change x_tables tables through libiptc.

A table comes as one snapshot; rules are deleted from it by number; one commit replaces the table in the
kernel. The kernel notices only a changed *count* of rules in between, so the xtables lock is held from
before the snapshot until after the commit.
"""

from __future__ import annotations

import ctypes
import itertools
import operator
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache

from netsweep.firewall import Addition, Scan, Standing, Transaction
from netsweep.firewall.xtables.bindings import Counters, libiptc
from netsweep.firewall.xtables.codec import ENTRY_SIZE, NFCACHE_OFFSET, SIZE_OFFSET, decode, parts
from netsweep.firewall.xtables.modules import existing_tables
from netsweep.host import locks
from netsweep.model import Chain, Rule, Table, Undo
from netsweep.report import LockTimes


class XtablesBackend:
    """The x_tables tables of this network namespace; see :func:`netsweep.firewall.opening.open_backend`."""

    name = "legacy"
    batch = sys.maxsize

    def __init__(self, prefilter: Sequence[bytes], *, undo: bool = False) -> None:
        self._prefilter = tuple(prefilter)
        self._undo = undo
        # The second reading, which has the lock, meets the rules of the first. By a hash of their bytes, with a
        # key that nobody knows: the bytes themselves take 40 MB for 90,000 rules.
        self._known: dict[int, Rule] = {}

    def tables(self) -> Sequence[Table]:
        return existing_tables()

    def read(self, chains: Collection[Chain], limit: int | None = None) -> Scan:
        scan = Scan()
        for table, of_table in itertools.groupby(chains, operator.attrgetter("table")):
            with _opened(table) as handle:
                self._read(handle, list(of_table), scan, None)
        if scan.rules:
            libiptc().give_back()
        return scan

    def locked(self, times: LockTimes, timeout: float) -> AbstractContextManager[None]:
        return locks.held(times, timeout, mode=0o600, what="xtables lock", option="--wait")

    @contextmanager
    def transaction(
        self, chains: Sequence[Chain], rules: Sequence[Rule] = (), *, orders: bool = False
    ) -> Iterator[Transaction]:
        table = chains[0].table
        with _opened(table) as handle:
            scan, found = Scan(), dict[Chain, list[Standing]]()
            self._read(handle, chains, scan, found if orders else None)
            yield _Transaction(handle, table, scan.rules, found)

    def close(self) -> None:
        self._known.clear()

    def _read(
        self, handle: int, chains: Sequence[Chain], scan: Scan, orders: dict[Chain, list[Standing]] | None
    ) -> None:
        for chain in chains:
            if not libiptc().is_chain(chain.name.encode(), handle):
                continue
            scan.chains.append(chain)
            scan.scanned[chain.table] += self._read_rules(handle, chain, scan.rules)
            if orders is not None:
                orders[chain] = [Standing(_undo(handle, *each).identity, None) for each in _entries(handle, chain)]

    def _read_rules(self, handle: int, chain: Chain, rules: list[Rule]) -> int:
        position, known, found = 0, self._known, rules.append
        for entry, raw in _entries(handle, chain):
            position += 1
            key = hash(raw[:NFCACHE_OFFSET] + raw[ENTRY_SIZE:])
            rule = known.get(key)
            if rule is None:
                if self._is_ours(raw):
                    found(self._decode(handle, entry, raw, chain, position, key))
            elif rule.position == position and rule.chain == chain:
                found(rule)
            else:
                found(rule._replace(position=position, chain=chain))
        return position

    def _decode(self, handle: int, entry: int, raw: bytes, chain: Chain, position: int, key: int) -> Rule:
        target, jumps = _target(handle, entry)
        undo = _undo(handle, entry, raw) if self._undo else None
        rule = Rule(chain, position, None, decode(raw, target, jumps=jumps), undo)
        # The bytes of a jump hold an offset, which may mean another chain next time.
        if not jumps:
            self._known[key] = rule
        return rule

    def _is_ours(self, raw: bytes) -> bool:
        return any(map(raw.__contains__, self._prefilter))


def _entries(handle: int, chain: Chain) -> Iterator[tuple[int, bytes]]:
    """Each rule of ``chain``: its address, and a copy of its bytes."""
    size_at, array_of, following = ctypes.c_uint16.from_address, _array_of, libiptc().next_rule
    entry = libiptc().first_rule(chain.name.encode(), handle)
    while entry:
        size = size_at(entry + SIZE_OFFSET).value
        yield entry, array_of(size).from_address(entry).raw
        entry = following(entry, handle)


def _target(handle: int, entry: int) -> tuple[bytes, bool]:
    """The name of an entry's target, and whether it is a chain."""
    target: bytes = libiptc().get_target(entry, handle) or b""
    return target, bool(target and libiptc().is_chain(target, handle))


def _undo(handle: int, entry: int, raw: bytes) -> Undo:
    from netsweep.firewall.xtables.undo import undo_of  # most runs need none

    target, jumps = _target(handle, entry)
    return undo_of(raw, target, jumps=jumps)


@cache  # there are few sizes, and a type is made more slowly than a rule is read
def _array_of(size: int) -> type[ctypes.Array[ctypes.c_char]]:
    return ctypes.c_char * max(size, ENTRY_SIZE)


@contextmanager
def _opened(table: Table) -> Iterator[int]:
    handle = libiptc().open(table.name)
    try:
        yield handle
    finally:
        libiptc().free(handle)


class _Transaction:
    incarnation: int | None = None

    def __init__(self, handle: int, table: Table, rules: Sequence[Rule], orders: dict[Chain, list[Standing]]) -> None:
        self.rules: Sequence[Rule] = rules
        self.orders: Mapping[Chain, Sequence[Standing]] = orders
        self._handle = handle
        self._table = table

    def delete(self, rules: Sequence[Rule]) -> None:
        lib, handle = libiptc(), self._handle
        names = {rule.chain: rule.chain.name.encode() for rule in rules}
        # From the back, so that no deletion moves a rule that is still to be deleted.
        for rule in reversed(rules):
            if not lib.delete_num_entry(names[rule.chain], rule.position - 1, handle):
                raise lib.failure(f"deleting {rule}")

    def insert(self, additions: Sequence[Addition]) -> None:
        lib, handle = libiptc(), self._handle
        # From the back, so that no insertion moves the place of one that is still to come.
        for addition in sorted(additions, key=operator.attrgetter("place"), reverse=True):
            for raw in reversed(addition.rules):
                # libiptc believes whatever the entry says of itself.
                list(parts(raw))
                if not lib.insert_entry(addition.chain.name.encode(), raw, addition.place, handle):
                    raise lib.failure(f"inserting a rule into {addition.chain}")

    def check(self) -> None:
        # libiptc has checked the chains already; the kernel looks at a table only when it replaces it.
        pass

    def commit(self, confirm: Callable[[], None] = lambda: None) -> None:
        lib, handle = libiptc(), self._handle
        # libiptc carries every rule's counters over but lets those of the policies begin at zero.
        chain = lib.first_chain(handle)
        while chain:
            counters = Counters()
            if policy := lib.get_policy(chain, counters, handle):
                lib.set_policy(chain, policy, counters, handle)
            chain = lib.next_chain(handle)
        confirm()
        if not lib.commit(handle):
            raise lib.failure(f"committing table {self._table}")
