"""A firewall in memory, for tests of everything above it.

It keeps state and refuses what a kernel refuses: a rule that is not there any more, a second commit,
a chain or table that does not exist.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

from netsweep.backends import Addition, Scan, Transaction
from netsweep.errors import ContentionError, NetsweepError
from netsweep.locks import LockTimes
from netsweep.rules import ChainRef, Rule, Undo


class FakeBackend:
    """Rules by table and chain. ``batch`` as in :class:`netsweep.backends.Transaction`.

    ``before_delete`` is called at the start of each deletion: the place for a test to interfere.
    """

    name = "fake"
    family = "ipv4"

    def __init__(self, chains: Collection[ChainRef] = (), batch: int | None = None) -> None:
        self.batch = batch
        self.before_delete: Callable[[], None] = lambda: None
        self._chains: dict[ChainRef, list[Rule]] = {chain: [] for chain in chains}
        self._handles = itertools.count(1)

    def append(self, rule: Rule) -> None:
        """Put ``rule`` at the end of its chain and give it a handle of its own."""
        self._chains[ChainRef(rule.table, rule.chain)].append(rule._replace(handle=next(self._handles)))

    def remove(self, rule: Rule) -> None:
        """Take away the rule that has the handle of ``rule``."""
        chain = self._chains[ChainRef(rule.table, rule.chain)]
        chain[:] = [r for r in chain if r.handle != rule.handle]

    def put_back(self, chain: ChainRef, addition: Addition) -> None:
        """Insert the rules whose names are in ``addition``."""
        made = [
            Rule("fake", *chain, 0, next(self._handles), comment=raw.decode(), undo=Undo(raw, raw))
            for raw in addition.rules
        ]
        self._chains[chain][addition.place : addition.place] = made

    def rules(self, chain: ChainRef) -> list[Rule]:
        """The rules of ``chain`` as they stand now, with their positions."""
        return [rule._replace(position=n) for n, rule in enumerate(self._chains[chain], 1)]

    def tables(self) -> Collection[str]:
        return list(dict.fromkeys(chain.table for chain in self._chains))

    def scan(self, table: str, chains: Sequence[str], limit: int | None = None) -> Scan:
        if table not in self.tables():
            raise NetsweepError(f"no table {table}")
        scan = Scan(table, chains)
        for name in chains:
            if (chain := ChainRef(table, name)) not in self._chains:
                scan.missing.append(name)
                continue
            rules = self.rules(chain)
            scan.complete = scan.complete and (limit is None or len(rules) <= limit)
            scan.rules += rules[:limit]
            scan.order[name] = [rule.undo.identity if rule.undo else b"" for rule in rules[:limit]]
            scan.handles[name] = [rule.handle for rule in rules[:limit] if rule.handle is not None]
            scan.scanned += len(rules[:limit])
        return scan

    @contextmanager
    def writing(self, times: LockTimes, timeout: float) -> Iterator[None]:
        yield

    @contextmanager
    def transaction(self, scan: Scan) -> Iterator[Transaction]:
        yield _Transaction(self, scan)

    def close(self) -> None:
        pass


class _Transaction:
    def __init__(self, backend: FakeBackend, scan: Scan) -> None:
        self._backend = backend
        self._committed = False
        self.scan = scan
        self.batch = backend.batch

    def delete(self, rules: Sequence[Rule]) -> None:
        backend = self._backend
        if backend.batch is None and self._committed:
            raise NetsweepError("this transaction is committed")
        if backend.batch is not None and len(rules) > backend.batch:
            raise NetsweepError("more rules than a batch takes")
        backend.before_delete()
        here = {rule.handle for name in self.scan.order for rule in backend.rules(ChainRef(self.scan.table, name))}
        if any(rule.handle not in here for rule in rules):
            raise ContentionError("a rule has gone meanwhile")
        for rule in rules:
            backend.remove(rule)
        self._committed = True

    def insert(self, additions: Sequence[Addition]) -> None:
        backend, found = self._backend, []
        for addition in sorted(additions, key=lambda a: a.place, reverse=True):
            chain = ChainRef(self.scan.table, addition.chain)
            scanned, now = self.scan.handles[addition.chain], [rule.handle for rule in backend.rules(chain)]
            before = scanned[addition.place] if addition.place < len(scanned) else None
            if before is not None and before not in now:
                raise ContentionError("a rule has gone meanwhile")
            found.append((chain, addition._replace(place=now.index(before) if before is not None else len(now))))
        for chain, addition in found:
            backend.put_back(chain, addition)
