"""A firewall in memory, for tests of everything above it; it ships as :mod:`netsweep.testing`.

It keeps state and refuses what a kernel refuses: a commit after something else has changed, a chain or
table that does not exist, a jump to a chain that has gone.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from netsweep.errors import ContentionError, NetsweepError
from netsweep.firewall import Addition, Scan, Standing, Transaction
from netsweep.model import BackendName, Chain, Rule, Spec, Table, Undo
from netsweep.report import LockTimes

_INCARNATIONS = itertools.count(1)


class MemoryBackend:
    """Rules by chain.

    ``before_read`` and ``before_commit`` are called at the start of each reading and each commit: the
    place for a test to interfere. ``batch`` as in :class:`netsweep.firewall.Backend`.
    """

    spans_tables = False

    def __init__(self, chains: Collection[Chain] = (), *, name: BackendName = "nft", batch: int = 1000) -> None:
        self.name = name
        self.batch = batch
        self.before_read: Callable[[], None] = lambda: None
        self.before_commit: Callable[[], None] = lambda: None
        self._chains: dict[Chain, list[Rule]] = {chain: [] for chain in chains}
        self._handles = itertools.count(1)
        self._generation = 0
        # What rules say by what is kept of them, so that those that are put back say it again.
        self._specs: dict[bytes, Spec] = {}
        self._incarnations = {chain.table: next(_INCARNATIONS) for chain in chains}

    def append(self, chain: Chain, spec: Spec) -> Rule:
        """Put a rule at the end of ``chain`` and return it."""
        return self.place(chain, len(self._chains[chain]), spec)

    def place(self, chain: Chain, index: int, spec: Spec) -> Rule:
        """Put a rule before the one at ``index`` of ``chain`` and return it."""
        rule = Rule(chain, index + 1, next(self._handles), spec, self._undo(spec))
        self._chains[chain].insert(index, rule)
        self._generation += 1
        return rule

    def remove(self, rule: Rule) -> None:
        """Take away the rule that has the handle of ``rule``."""
        chain = self._chains[rule.chain]
        chain[:] = [each for each in chain if each.handle != rule.handle]
        self._generation += 1

    def replace(self, rule: Rule, spec: Spec) -> None:
        """Put another rule under the handle of ``rule``, as ``iptables-nft -R`` does."""
        chain = self._chains[rule.chain]
        made = rule._replace(spec=spec, undo=self._undo(spec))
        chain[:] = [made if each.handle == rule.handle else each for each in chain]
        self._generation += 1

    def remake(self, table: Table) -> None:
        """Create the chains of ``table`` again, without rules; handles start again, as those of the kernel do."""
        for chain in self._chains:
            if chain.table == table:
                self._chains[chain] = []
        self._handles = itertools.count(1)
        self._incarnations[table] = next(_INCARNATIONS)
        self._generation += 1

    def rules(self, chain: Chain) -> list[Rule]:
        """The rules of ``chain`` as they stand now, with their positions."""
        return [rule._replace(position=number) for number, rule in enumerate(self._chains[chain], 1)]

    def tables(self) -> Sequence[Table]:
        return list(dict.fromkeys(chain.table for chain in self._chains))

    def read(
        self,
        tables: Collection[Table],
        wanted: Callable[[Chain], bool],
        limit: int | None = None,
        *,
        again: bool = False,
    ) -> Scan:
        self.before_read()
        scan = Scan(chains=[chain for chain in self._chains if chain.table in tables and wanted(chain)])
        for chain in scan.chains:
            rules = self.rules(chain)
            scan.rules += rules
            scan.scanned[chain] += len(rules)
        return scan

    def refusal(self, table: Table) -> str | None:
        return None

    def ready(self, rules: Sequence[Rule]) -> None:
        pass

    def locked(self, times: LockTimes, timeout: float) -> AbstractContextManager[None]:
        return nullcontext()

    @contextmanager
    def transaction(
        self, chains: Sequence[Chain], rules: Sequence[Rule] = (), *, orders: bool = False
    ) -> Iterator[Transaction]:
        if len({chain.table for chain in chains}) > 1:
            raise NetsweepError("a transaction is on one table")
        standing = {chain: self.rules(chain) for chain in chains if chain in self._chains}
        now = {(chain, rule.handle): rule for chain, of_chain in standing.items() for rule in of_chain}
        again = [(rule.position, now.get((rule.chain, rule.handle))) for rule in rules]
        # As in nf_tables, the position stays that of the reading.
        fresh = [rule._replace(position=position) for position, rule in again if rule]
        incarnation = self._incarnations.get(chains[0].table) if chains else None
        yield _Transaction(self, self._generation, incarnation, fresh, standing if orders else {})

    def spec_of(self, table: Table, raw: bytes) -> Spec:
        return self._specs.get(raw, Spec())

    def close(self) -> None:
        pass

    def commit(self, generation: int, deleted: Sequence[Rule], additions: Sequence[Addition]) -> int:
        """Do what a transaction prepared, and return the new generation; see :class:`Transaction`."""
        self.before_commit()
        if generation != self._generation:
            raise ContentionError("something else was committed meanwhile")
        for rule in deleted:
            self.remove(rule)
        for addition in sorted(additions, key=operator.attrgetter("place"), reverse=True):
            for raw in reversed(addition.rules):
                rule = self.place(addition.chain, addition.place, self._specs.get(raw, Spec()))
                self._chains[addition.chain][addition.place] = rule._replace(undo=Undo(raw, raw))
        return self._generation

    def _undo(self, spec: Spec) -> Undo:
        raw = repr(spec).encode()
        self._specs[raw] = spec
        return Undo(raw, raw)


class _Transaction:
    def __init__(
        self,
        backend: MemoryBackend,
        generation: int,
        incarnation: int | None,
        rules: Sequence[Rule],
        standing: Mapping[Chain, list[Rule]],
    ) -> None:
        self.incarnation = incarnation
        self.rules: Sequence[Rule] = rules
        self.orders: Mapping[Chain, Sequence[Standing]] = {
            chain: [Standing(rule.undo.identity if rule.undo else b"", rule.handle) for rule in of_chain]
            for chain, of_chain in standing.items()
        }
        self._backend = backend
        self._generation = generation
        self._deleted: list[Rule] = []
        self._additions: list[Addition] = []

    def delete(self, rules: Sequence[Rule]) -> None:
        if any(rule not in self.rules for rule in rules):
            raise NetsweepError("a rule that this transaction does not have")
        self._deleted += rules

    def insert(self, additions: Sequence[Addition]) -> None:
        if any(addition.chain not in self.orders for addition in additions):
            raise NetsweepError("a chain that this transaction does not have")
        self._additions += additions

    def check(self) -> None:
        self._deleted.clear()
        self._additions.clear()

    def commit(self, confirm: Callable[[], None] = lambda: None) -> None:
        confirm()
        self._generation = self._backend.commit(self._generation, self._deleted, self._additions)
        self.check()
