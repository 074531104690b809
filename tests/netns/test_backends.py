"""One contract for every backend: the same tests on x_tables, on nf_tables and in memory.

Where backends may differ, what the protocol shows of them decides: rules that have a handle are
deleted as they were scanned, rules that have none as the transaction reads them again.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pytest

from netsweep.backends import Addition, Backend, Scan, Transaction
from netsweep.backends.fake import FakeBackend
from netsweep.errors import BusyError, ContentionError
from netsweep.journal import Place, find_place, places
from netsweep.locks import LockTimes
from netsweep.orphans import Live, Ownership, Verdict
from netsweep.rules import ChainRef, Interface, Rule, Undo
from netsweep.sweeper import open_backend
from tests.namespace import Namespace, flocked, restore_input, unchanged
from tests.verdicts import decide

OURS = Ownership(["hm"], ["ha"])
TABLE, CHAIN, OTHER_CHAIN = "filter", "FORWARD", "JOBS"


def rule(
    comment: str,
    i: Interface | None = None,
    o: Interface | None = None,
    *,
    chain: str = CHAIN,
    source: str | None = None,
    destination: str | None = None,
    target: str | None = "ACCEPT",
) -> Rule:
    """A rule to make. Comments that begin with ``hm`` make it one of ours, which every backend has to show."""
    undo = Undo(comment.encode(), comment.encode())
    return Rule("fake", TABLE, chain, 0, None, i, o, source, destination, target, comment, undo=undo)


def named(*comments: str, chain: str = CHAIN) -> list[Rule]:
    """Rules that differ in nothing but their comments."""
    return [rule(comment, chain=chain) for comment in comments]


class Firewall(ABC):
    """What a test has to do with a firewall besides through its backend."""

    def __init__(self, folder: Path) -> None:
        # Not the lock that iptables takes: who interferes in these tests heeds no lock.
        self.lock = folder / "unheeded.lock"

    @abstractmethod
    def prepare(self) -> None:
        """Make the table with both chains, empty."""

    @abstractmethod
    def open(self, *, keep_undo: bool = False) -> Backend: ...

    @abstractmethod
    def make(self, rules: Sequence[Rule]) -> None:
        """Put ``rules`` at the ends of their chains."""

    @abstractmethod
    def remove(self, comment: str, chain: str = CHAIN) -> None:
        """Delete the first rule that has this comment."""

    @abstractmethod
    def standing(self, chain: str = CHAIN) -> list[str]:
        """The comments of a chain's rules, in order, as somebody else than the backend sees them."""

    @abstractmethod
    def unchanged(self) -> AbstractContextManager[None]:
        """Check that all rules are the same afterwards."""

    @abstractmethod
    def inside(self, function: Callable[[], None]) -> None:
        """Call ``function`` where the firewall is."""

    @contextmanager
    def transaction(self, backend: Backend, scan: Scan) -> Iterator[Transaction]:
        with backend.writing(LockTimes(str(self.lock)), 5), backend.transaction(scan) as transaction:
            yield transaction


class KernelFirewall(Firewall):
    def __init__(self, ns: Namespace, flavour: str) -> None:
        super().__init__(ns.folder)
        self.ns = ns
        self.flavour = flavour

    def prepare(self) -> None:
        self.ns.restore(self.flavour, restore_input({TABLE: [f":{OTHER_CHAIN} - [0:0]"]}))

    def open(self, *, keep_undo: bool = False) -> Backend:
        return open_backend(self.flavour, OURS.hints, keep_undo=keep_undo)

    def make(self, rules: Sequence[Rule]) -> None:
        self.ns.restore(self.flavour, restore_input({TABLE: [self._options(each) for each in rules]}))

    def remove(self, comment: str, chain: str = CHAIN) -> None:
        self.ns.iptables(self.flavour, "-D", chain, str(self.standing(chain).index(comment) + 1))

    def standing(self, chain: str = CHAIN) -> list[str]:
        found = (re.search(rf"-A {chain} .*--comment \"?([^\s\"]+)", line) for line in self.ns.save(self.flavour))
        return [match.group(1) for match in found if match]

    def unchanged(self) -> AbstractContextManager[None]:
        return unchanged(self.ns)

    def inside(self, function: Callable[[], None]) -> None:
        self.ns.inside(function)

    @staticmethod
    def _options(made: Rule) -> str:
        line = f"-A {made.chain}"
        for flag, value in (
            ("-i", made.in_interface),
            ("-o", made.out_interface),
            ("-s", made.source),
            ("-d", made.destination),
        ):
            if value is not None:
                line += f"{' !' if str(value).startswith('!') else ''} {flag} {str(value).lstrip('!')}"
        line += f" -m comment --comment {made.comment}"
        return line + (f" -j {made.target}" if made.target else "")


class FakeFirewall(Firewall):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.backend = FakeBackend(batch=3)

    def prepare(self) -> None:
        self.backend = FakeBackend([ChainRef(TABLE, CHAIN), ChainRef(TABLE, OTHER_CHAIN)], batch=3)

    def open(self, *, keep_undo: bool = False) -> Backend:
        return self.backend

    def make(self, rules: Sequence[Rule]) -> None:
        for each in rules:
            self.backend.append(each)

    def remove(self, comment: str, chain: str = CHAIN) -> None:
        self.backend.remove(next(r for r in self.backend.rules(ChainRef(TABLE, chain)) if r.comment == comment))

    def standing(self, chain: str = CHAIN) -> list[str]:
        return [each.comment or "" for each in self.backend.rules(ChainRef(TABLE, chain))]

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        before = self._everything()
        yield
        assert self._everything() == before

    def inside(self, function: Callable[[], None]) -> None:
        function()

    def _everything(self) -> list[list[Rule]]:
        tables = self.backend.tables()
        return [self.backend.rules(ChainRef(table, chain)) for table in tables for chain in (CHAIN, OTHER_CHAIN)]


@pytest.fixture(params=["legacy", "nft", "fake"])
def bare(request: pytest.FixtureRequest, tmp_path: Path) -> Firewall:
    """A firewall without a table."""
    if request.param == "fake":
        return FakeFirewall(tmp_path)
    return KernelFirewall(request.getfixturevalue("ns"), request.param)


@pytest.fixture
def firewall(bare: Firewall) -> Firewall:
    """A firewall with two empty chains in one table."""
    bare.prepare()
    return bare


def where_the_firewall_is(test: Callable[[Firewall], None]) -> Callable[[Firewall], None]:
    """Run a test in the firewall's namespace."""

    @functools.wraps(test)
    def wrapped(firewall: Firewall) -> None:
        firewall.inside(lambda: test(firewall))

    return wrapped


def ours(scan: Scan) -> list[Rule]:
    """Backends may leave out what is not ours; here as at home that has no ``hm`` in it."""
    return [each for each in scan.rules if (each.comment or "").startswith("hm")]


def comments(rules: Sequence[Rule]) -> list[str | None]:
    return [each.comment for each in rules]


def chosen(scan: Scan, *comments: str) -> list[Rule]:
    """The rules with these comments, in the scan's order."""
    return [each for each in scan.rules if each.comment in comments]


def delete(transaction: Transaction, rules: Sequence[Rule]) -> None:
    """Delete ``rules`` in as many batches as it takes."""
    size = transaction.batch or max(1, len(rules))
    for start in range(0, len(rules), size):
        transaction.delete(rules[start : start + size])


def test_looking_for_tables_where_there_are_none_makes_none(bare: Firewall) -> None:
    def look() -> None:
        with closing(bare.open()) as backend:
            assert list(backend.tables()) == []
            assert list(backend.tables()) == []

    with bare.unchanged():
        bare.inside(look)


@where_the_firewall_is
def test_the_tables_that_exist_are_named(firewall: Firewall) -> None:
    with closing(firewall.open()) as backend, firewall.unchanged():
        assert list(backend.tables()) == [TABLE]


@where_the_firewall_is
def test_rules_come_in_chain_order_and_are_counted_from_one(firewall: Firewall) -> None:
    firewall.make(named("other-1", "hm-a", "hm-b", "other-2", "other-3", "hm-a"))
    firewall.make(named("hm-c", "other-4", "hm-d", chain=OTHER_CHAIN))
    with closing(firewall.open()) as backend:
        scan = backend.scan(TABLE, [OTHER_CHAIN, CHAIN])
    assert [(each.chain, each.position, each.comment) for each in ours(scan)] == [
        (OTHER_CHAIN, 1, "hm-c"),
        (OTHER_CHAIN, 3, "hm-d"),
        (CHAIN, 2, "hm-a"),
        (CHAIN, 3, "hm-b"),
        (CHAIN, 6, "hm-a"),
    ]
    assert (scan.table, list(scan.chains), scan.scanned) == (TABLE, [OTHER_CHAIN, CHAIN], 9)
    assert (scan.complete, scan.missing) == (True, [])
    assert {(each.backend, each.table) for each in ours(scan)} == {(backend.name, TABLE)}


@where_the_firewall_is
def test_either_every_rule_has_a_handle_of_its_own_or_none_has(firewall: Firewall) -> None:
    firewall.make(named("hm-a", "hm-a", "hm-b"))
    with closing(firewall.open()) as backend:
        handles = [each.handle for each in ours(backend.scan(TABLE, [CHAIN]))]
    assert len(handles) == 3
    assert set(handles) == {None} or (None not in handles and len(set(handles)) == 3)


LONGEST = "hm0123456789abc"

KINDS = [
    rule("hm-in", Interface("hm1")),
    rule("hm-out", None, Interface("hm1")),
    rule("hm-both", Interface("hm1"), Interface("eth0"), target="DROP"),
    rule("hm-longest", Interface(LONGEST), Interface(LONGEST, negated=True)),
    rule("hm-negated", Interface("hm1", negated=True), Interface("eth0", negated=True)),
    rule("hm-wild", Interface("hm", wildcard=True), Interface("h", wildcard=True)),
    rule("hm-longest-wild", Interface(LONGEST[:14], wildcard=True)),
    rule("hm-negated-wild", None, Interface("eth", wildcard=True, negated=True)),
    rule("hm-odd-name", Interface("hm.1-_:x@'")),
    rule("hm-source", source="10.200.1.0/24", target="RETURN"),
    rule("hm-addresses", source="!10.200.1.1/32", destination="10.0.0.0/8"),
    rule("hm-odd-mask", destination="!10.200.0.9/255.255.0.255"),
    rule("hm-everything", Interface("hm1"), Interface("hm2"), source="10.2.0.0/15", destination="10.2.3.4/32"),
    rule("hm-jump", target=OTHER_CHAIN),
    rule("hm-reject", target="REJECT"),
    rule("hm-log", target="LOG"),
    rule("hm-no-target", target=None),
]


@where_the_firewall_is
def test_interfaces_networks_and_targets_are_what_they_were_made_as(firewall: Firewall) -> None:
    firewall.make(KINDS)

    def meaning(made: Rule) -> tuple[object, ...]:
        interfaces = (made.in_interface, made.out_interface)
        return made.comment, *interfaces, made.source, made.destination, made.target, made.opaque

    for keep_undo in (False, True):
        with closing(firewall.open(keep_undo=keep_undo)) as backend:
            scan = backend.scan(TABLE, [CHAIN])
        assert [meaning(each) for each in ours(scan)] == [meaning(each) for each in KINDS]


@where_the_firewall_is
def test_a_chain_that_does_not_exist_is_missing_and_an_empty_one_is_not(firewall: Firewall) -> None:
    firewall.make(named("hm-a"))
    with closing(firewall.open()) as backend, firewall.unchanged():
        scan = backend.scan(TABLE, ["NOSUCH", CHAIN, OTHER_CHAIN, "NEITHER"])
        assert scan.missing == ["NOSUCH", "NEITHER"]
        assert (comments(ours(scan)), scan.scanned, scan.complete) == (["hm-a"], 1, True)
        assert backend.scan(TABLE, [OTHER_CHAIN]).missing == []


@where_the_firewall_is
def test_looking_changes_nothing(firewall: Firewall) -> None:
    firewall.make([*KINDS, *named("hm-a", "hm-a", chain=OTHER_CHAIN)])
    with firewall.unchanged():
        for keep_undo in (False, True):
            with closing(firewall.open(keep_undo=keep_undo)) as backend:
                backend.scan(TABLE, [CHAIN], 2)
                scan = backend.scan(TABLE, [CHAIN, OTHER_CHAIN, "NOSUCH"])
                with firewall.transaction(backend, scan) as transaction:
                    assert comments(ours(transaction.scan)) == comments(ours(scan))


@where_the_firewall_is
def test_a_scan_with_a_limit_is_the_beginning_of_each_chain_and_says_so(firewall: Firewall) -> None:
    names = [f"hm-{number}" for number in range(40)]
    firewall.make([*named(*names), *named("hm-a", "hm-b", chain=OTHER_CHAIN)])
    with closing(firewall.open()) as backend:
        scan = backend.scan(TABLE, [CHAIN, OTHER_CHAIN], 16)
        assert not scan.complete
        assert 0 < scan.scanned < 42
        first = [each for each in ours(scan) if each.chain == CHAIN]
        assert [(each.position, each.comment) for each in first] == list(enumerate(names, 1))[: len(first)]
        assert 0 < len(first) <= 16
        assert comments([each for each in ours(scan) if each.chain == OTHER_CHAIN]) == ["hm-a", "hm-b"]
        # What was left out does not get into the way of what comes next.
        assert list(backend.tables()) == [TABLE]
        whole = backend.scan(TABLE, [CHAIN, OTHER_CHAIN])
        assert (whole.complete, comments(ours(whole))) == (True, [*names, "hm-a", "hm-b"])


@where_the_firewall_is
def test_a_limit_that_is_not_reached_leaves_nothing_out(firewall: Firewall) -> None:
    firewall.make(named("hm-a", "other", "hm-b"))
    with closing(firewall.open()) as backend:
        scan = backend.scan(TABLE, [CHAIN], 4)
    assert (scan.complete, scan.scanned, comments(ours(scan))) == (True, 3, ["hm-a", "hm-b"])


@where_the_firewall_is
def test_what_a_scan_with_a_limit_found_can_be_deleted(firewall: Firewall) -> None:
    names = [f"hm-{number}" for number in range(40)]
    firewall.make(named(*names))
    with closing(firewall.open()) as backend:
        scan = backend.scan(TABLE, [CHAIN], 16)
        found = comments(ours(scan))
        with firewall.transaction(backend, scan) as transaction:
            delete(transaction, [each for each in ours(transaction.scan) if each.comment in found])
    assert firewall.standing() == names[len(found) :]


@where_the_firewall_is
def test_the_rules_that_are_not_deleted_stay_in_order(firewall: Firewall) -> None:
    firewall.make(named("other-1", "hm-a", "hm-b", "other-2", "hm-c", "hm-d", "other-3", "hm-e"))
    firewall.make(named("hm-f", "hm-g", "other-4", chain=OTHER_CHAIN))
    with closing(firewall.open()) as backend:
        scan = backend.scan(TABLE, [CHAIN, OTHER_CHAIN])
        with firewall.transaction(backend, scan) as transaction:
            delete(transaction, chosen(transaction.scan, "hm-a", "hm-c", "hm-d", "hm-e", "hm-f"))
        assert firewall.standing() == ["other-1", "hm-b", "other-2", "other-3"]
        assert firewall.standing(OTHER_CHAIN) == ["hm-g", "other-4"]
        assert [each.position for each in ours(backend.scan(TABLE, [CHAIN, OTHER_CHAIN]))] == [2, 1]


@where_the_firewall_is
def test_all_rules_of_a_chain_can_go(firewall: Firewall) -> None:
    firewall.make([*named("hm-a", "hm-b", "hm-a"), *named("hm-c", chain=OTHER_CHAIN)])
    with closing(firewall.open()) as backend:
        with firewall.transaction(backend, backend.scan(TABLE, [CHAIN])) as transaction:
            delete(transaction, transaction.scan.rules)
        scan = backend.scan(TABLE, [CHAIN])
        assert (scan.scanned, scan.rules, scan.missing, scan.complete) == (0, [], [], True)
    assert (firewall.standing(), firewall.standing(OTHER_CHAIN)) == ([], ["hm-c"])


@where_the_firewall_is
def test_of_rules_that_are_the_same_only_the_chosen_copies_go(firewall: Firewall) -> None:
    firewall.make(named("hm-twin", "hm-a", "hm-twin", "hm-b", "hm-twin", "hm-twin", "hm-c", "hm-twin"))
    with closing(firewall.open()) as backend:
        with firewall.transaction(backend, backend.scan(TABLE, [CHAIN])) as transaction:
            delete(transaction, [each for each in transaction.scan.rules if each.position in (3, 6)])
        assert firewall.standing() == ["hm-twin", "hm-a", "hm-b", "hm-twin", "hm-c", "hm-twin"]
        with firewall.transaction(backend, backend.scan(TABLE, [CHAIN])) as transaction:
            delete(transaction, [each for each in transaction.scan.rules if each.position in (1, 6)])
    assert firewall.standing() == ["hm-a", "hm-b", "hm-twin", "hm-c"]


@where_the_firewall_is
def test_deleting_nothing_does_nothing(firewall: Firewall) -> None:
    firewall.make(named("hm-a", "other"))
    with closing(firewall.open()) as backend, firewall.unchanged():
        scan = backend.scan(TABLE, [CHAIN])
        with firewall.transaction(backend, scan) as transaction:
            transaction.delete([])


@where_the_firewall_is
def test_a_rule_that_goes_between_the_scan_and_the_deletion_is_noticed(firewall: Firewall) -> None:
    firewall.make(named("hm-a", "hm-b", "hm-c", "hm-d"))
    with closing(firewall.open()) as backend:
        scan = backend.scan(TABLE, [CHAIN], 1000)
        firewall.remove("hm-b")
        with firewall.transaction(backend, scan) as transaction:
            going = chosen(transaction.scan, "hm-a", "hm-b", "hm-c")
            if any(each.handle is not None for each in going):
                with pytest.raises(ContentionError), firewall.unchanged():
                    transaction.delete(going)
                left = ["hm-a", "hm-c", "hm-d"]
            else:
                assert [(each.position, each.comment) for each in going] == [(1, "hm-a"), (2, "hm-c")]
                transaction.delete(going)
                left = ["hm-d"]
        assert firewall.standing() == left


@where_the_firewall_is
def test_a_twin_that_takes_the_place_of_a_rule_is_not_that_rule(firewall: Firewall) -> None:
    firewall.make(named("hm-a", "hm-b"))
    with closing(firewall.open()) as backend:
        scan = backend.scan(TABLE, [CHAIN])
        firewall.remove("hm-b")
        firewall.make(named("hm-b"))
        with firewall.transaction(backend, scan) as transaction:
            going = chosen(transaction.scan, "hm-b")
            if going[0].handle is not None:
                with pytest.raises(ContentionError), firewall.unchanged():
                    transaction.delete(going)
            else:
                # It is decided on anew, as of the transaction's own scan.
                assert transaction.scan is not scan


@where_the_firewall_is
def test_rules_that_come_between_the_scan_and_the_deletion_stay(firewall: Firewall) -> None:
    firewall.make(named("hm-a", "hm-b", "hm-c"))
    with closing(firewall.open()) as backend:
        # The limit makes x_tables remember what it read.
        scan = backend.scan(TABLE, [CHAIN, OTHER_CHAIN], 1000)
        firewall.remove("hm-a")
        firewall.make(named("hm-new", "hm-a"))
        firewall.make(named("hm-other", chain=OTHER_CHAIN))
        with firewall.transaction(backend, scan) as transaction:
            delete(transaction, chosen(transaction.scan, "hm-b"))
        assert firewall.standing() == ["hm-c", "hm-new", "hm-a"]
        assert firewall.standing(OTHER_CHAIN) == ["hm-other"]


@where_the_firewall_is
def test_a_rule_that_goes_in_the_middle_of_the_transaction_is_contention(firewall: Firewall) -> None:
    """x_tables keeps others away by a lock; here somebody ignores it."""
    firewall.make(named("hm-a", "hm-b", "hm-c"))
    with closing(firewall.open()) as backend:
        with firewall.transaction(backend, backend.scan(TABLE, [CHAIN])) as transaction:
            going = chosen(transaction.scan, "hm-a", "hm-b")
            firewall.remove("hm-b")
            with pytest.raises(ContentionError), firewall.unchanged():
                transaction.delete(going)
        assert firewall.standing() == ["hm-a", "hm-c"]
        # Contention is answered by reading again.
        with firewall.transaction(backend, backend.scan(TABLE, [CHAIN])) as transaction:
            transaction.delete(chosen(transaction.scan, "hm-a", "hm-b"))
        assert firewall.standing() == ["hm-c"]


@where_the_firewall_is
def test_more_rules_than_a_batch_takes_go_in_several(firewall: Firewall) -> None:
    with closing(firewall.open()) as backend:
        with firewall.transaction(backend, backend.scan(TABLE, [CHAIN])) as transaction:
            batch = transaction.batch or 50
        names = [f"hm-{number}" for number in range(2 * batch + 2)]
        firewall.make(named("hm-first", *names, "hm-last"))
        with firewall.transaction(backend, backend.scan(TABLE, [CHAIN])) as transaction:
            assert transaction.batch in (batch, None)
            delete(transaction, chosen(transaction.scan, *names))
    assert firewall.standing() == ["hm-first", "hm-last"]


@where_the_firewall_is
def test_what_one_batch_deleted_stays_deleted_where_the_next_one_fails(firewall: Firewall) -> None:
    firewall.make(named("hm-a", "hm-b", "hm-c", "hm-d", "hm-e"))
    with (
        closing(firewall.open()) as backend,
        firewall.transaction(backend, backend.scan(TABLE, [CHAIN])) as transaction,
    ):
        if transaction.batch is None:
            # All or nothing, in the one call there is.
            transaction.delete(chosen(transaction.scan, "hm-a", "hm-c", "hm-d"))
        else:
            transaction.delete(chosen(transaction.scan, "hm-a", "hm-c"))
            with pytest.raises(ContentionError), firewall.unchanged():
                transaction.delete(chosen(transaction.scan, "hm-c", "hm-d"))
            transaction.delete(chosen(transaction.scan, "hm-d"))
    assert firewall.standing() == ["hm-b", "hm-e"]


@where_the_firewall_is
def test_rules_without_handles_are_written_under_a_lock(firewall: Firewall) -> None:
    firewall.make(named("hm-a"))
    with closing(firewall.open()) as backend:
        needed = ours(backend.scan(TABLE, [CHAIN]))[0].handle is None
        times = LockTimes(str(firewall.lock))
        with flocked(firewall.lock):
            if needed:
                with pytest.raises(BusyError), backend.writing(times, 0):
                    raise AssertionError("took a lock that is held")
            else:
                with backend.writing(times, 0):
                    pass
        assert not times.held_ms
        with backend.writing(times, 0):
            pass
        assert bool(times.held_ms) == needed


def open_files() -> list[str]:
    return os.listdir("/proc/self/fd")


@where_the_firewall_is
def test_closing_gives_back_every_file_and_can_be_done_twice(firewall: Firewall) -> None:
    firewall.make(named("hm-a", "hm-b"))

    def use() -> None:
        backend = firewall.open()
        scan = backend.scan(TABLE, [CHAIN])
        with firewall.transaction(backend, scan) as transaction:
            assert len(ours(transaction.scan)) == 2
        backend.scan(TABLE, [CHAIN], 1)
        backend.close()
        backend.close()

    use()  # what libraries keep for the whole process is open now
    before = open_files()
    use()
    assert open_files() == before


@where_the_firewall_is
def test_a_backend_that_was_never_used_can_be_closed(firewall: Firewall) -> None:
    backend = firewall.open()
    backend.close()
    backend.close()
    with firewall.unchanged(), closing(firewall.open()) as another:
        assert list(another.tables()) == [TABLE]


Taken = list[tuple[Rule, Place]]


def take_away(firewall: Firewall, backend: Backend, *positions: tuple[str, int]) -> Taken:
    """Delete the rules at ``positions``, and keep what a journal keeps of them."""
    with firewall.transaction(backend, backend.scan(TABLE, [CHAIN, OTHER_CHAIN])) as transaction:
        scan = transaction.scan
        place_of = {
            chain: places(scan.order[chain], [position for name, position in positions if name == chain])
            for chain in (CHAIN, OTHER_CHAIN)
        }
        going = [each for each in scan.rules if (each.chain, each.position) in positions]
        delete(transaction, going)
    return [(each, place_of[each.chain][each.position]) for each in going]


def additions_for(taken: Taken, scan: Scan) -> list[Addition]:
    """Where the rules belong in what is there now."""
    additions: dict[tuple[str, int], Addition] = {}
    for each, place in taken:
        order = scan.order[each.chain]
        standing = {identity: [i for i, other in enumerate(order) if other == identity] for identity in order}
        index = find_place(order, place, standing)
        assert index is not None
        assert each.undo
        additions.setdefault((each.chain, index), Addition(each.chain, index, [])).rules.append(each.undo.raw)
    return list(additions.values())


def put_back(firewall: Firewall, backend: Backend, taken: Taken) -> None:
    with firewall.transaction(backend, backend.scan(TABLE, [CHAIN, OTHER_CHAIN])) as transaction:
        transaction.insert(additions_for(taken, transaction.scan))


@pytest.mark.parametrize("going", [(1,), (7,), (1, 2), (6, 7), (2, 3, 5), (1, 4, 7), (1, 2, 3, 4, 5, 6, 7)])
def test_deleted_rules_come_back_to_their_places(firewall: Firewall, going: Sequence[int]) -> None:
    def take_and_put_back() -> None:
        firewall.make(named("hm-a", "hm-b", "hm-twin", "hm-c", "hm-twin", "hm-twin", "hm-d"))
        firewall.make(named("hm-e", "hm-f", chain=OTHER_CHAIN))
        before, elsewhere = firewall.standing(), firewall.standing(OTHER_CHAIN)
        with closing(firewall.open(keep_undo=True)) as backend:
            order = backend.scan(TABLE, [CHAIN, OTHER_CHAIN]).order
            positions = [(CHAIN, number) for number in going]
            taken = take_away(firewall, backend, *positions, (OTHER_CHAIN, 2))
            assert len(firewall.standing()) == len(before) - len(going)
            put_back(firewall, backend, taken)
            assert backend.scan(TABLE, [CHAIN, OTHER_CHAIN]).order == order
        assert (firewall.standing(), firewall.standing(OTHER_CHAIN)) == (before, elsewhere)

    firewall.inside(take_and_put_back)


@where_the_firewall_is
def test_rules_come_back_beside_their_neighbours_whatever_came_and_went(firewall: Firewall) -> None:
    firewall.make(named("hm-a", "hm-b", "hm-c", "hm-d", "hm-e"))
    with closing(firewall.open(keep_undo=True)) as backend:
        taken = take_away(firewall, backend, (CHAIN, 2), (CHAIN, 4))
        firewall.remove("hm-a")
        firewall.make(named("hm-new"))
        put_back(firewall, backend, taken)
    assert firewall.standing() == ["hm-b", "hm-c", "hm-d", "hm-e", "hm-new"]


@where_the_firewall_is
def test_the_order_of_a_chain_covers_every_rule_and_tells_twins_from_others(firewall: Firewall) -> None:
    firewall.make(named("hm-a", "other", "hm-a", "hm-b"))
    with closing(firewall.open(keep_undo=True)) as backend:
        scan = backend.scan(TABLE, [CHAIN])
        order = scan.order[CHAIN]
        assert len(order) == 4
        assert order[0] == order[2]
        assert len(set(order)) == 3
        assert [each.undo.identity for each in ours(scan) if each.undo] == [order[0], order[2], order[3]]


@where_the_firewall_is
def test_putting_back_beside_a_rule_that_goes_meanwhile_is_contention(firewall: Firewall) -> None:
    firewall.make(named("hm-a", "hm-b", "hm-c"))
    with closing(firewall.open(keep_undo=True)) as backend:
        taken = take_away(firewall, backend, (CHAIN, 2))
        with firewall.transaction(backend, backend.scan(TABLE, [CHAIN, OTHER_CHAIN])) as transaction:
            additions = additions_for(taken, transaction.scan)
            firewall.remove("hm-c")
            with pytest.raises(ContentionError), firewall.unchanged():
                transaction.insert(additions)
        put_back(firewall, backend, taken)
    assert firewall.standing() == ["hm-a", "hm-b"]


RECOGNIZING = """
import subprocess
from netsweep.backends import legacy

parsed = []
parse_entry = legacy.parse_entry
legacy.parse_entry = lambda *entry: parsed.append(1) or parse_entry(*entry)
backend = legacy.LegacyBackend([b"hm"])
scan = backend.scan("filter", ["FORWARD"], 1000)
subprocess.run(["iptables-legacy", "-D", "FORWARD", "1"], check=True)
with backend.transaction(scan) as transaction:
    print(len(parsed), *((rule.position, rule.comment) for rule in transaction.scan.rules), sep="\\n")
"""


def test_rules_that_are_recognized_by_their_bytes_have_the_positions_of_now(ns: Namespace) -> None:
    names = [f"hm-{number}" for number in range(500)]
    KernelFirewall(ns, "legacy").make(named("other", *names))
    parsed, *found = ns.run(sys.executable, "-c", RECOGNIZING).stdout.splitlines()
    assert found == [str(each) for each in enumerate(names, 1)]
    assert int(parsed) < 2 * len(names)


def read(ns: Namespace, flavour: str, hints: Sequence[bytes] = OURS.hints) -> list[Rule]:
    """The rules of the chain, as a sweep reads them."""

    def scan() -> list[Rule]:
        rules = []
        for keep_undo in (False, True):
            with closing(open_backend(flavour, hints, keep_undo=keep_undo)) as backend:
                rules.append([each._replace(undo=None) for each in backend.scan(TABLE, [CHAIN]).rules])
        assert rules[0] == rules[1]
        return rules[0]

    return ns.inside(scan)


def verdicts(rules: Sequence[Rule], *live: str) -> list[Verdict]:
    return [finding.verdict for finding in decide(rules, OURS, lambda *_: Live(live), ())]


REMARKS = [
    "x" * 255,
    "x" * 248 + "-hmdead",
    "\u00e9" * 127 + "x",
    "\u20ac" * 85,
    "\udcff" * 255,
    "\udcc3-hmdead",
    "\udced\udca0\udc80",
    "\ufeffhm1",
    'quotes " \' ` \\" and -hmdead',
    "ends with a backslash \\",
    "new\nline\r\n\ttab\n",
    "\x1b[31m\x07\x7f\x01",
    " spaces around ",
    "-j DROP --comment x",
    "%s %n %0A",
    "",
]
"""Comments that are hard to read right: the longest, those that are no text, those that look like something else."""


def test_comments_are_read_byte_for_byte(ns: Namespace, flavour: str) -> None:
    for remark in REMARKS:
        ns.iptables(flavour, "-A", "FORWARD", "-i", "hmdead", "-j", "DROP", "-m", "comment", "--comment", remark)
    assert comments(read(ns, flavour)) == REMARKS


def test_a_rule_of_two_comments_has_both(ns: Namespace, flavour: str) -> None:
    both = ("-m", "comment", "--comment", "hypeman-x-hm1", "-m", "comment", "--comment", "hypeman-x-hmdead")
    ns.iptables(flavour, "-A", "FORWARD", *both, "-j", "DROP")
    rules = read(ns, flavour)
    assert comments(rules) == ["hypeman-x-hm1\0hypeman-x-hmdead"]
    assert verdicts(rules, "hm1") == [Verdict.LIVE]


@pytest.fixture
def native(ns: Namespace) -> Callable[..., list[Rule]]:
    """Makes rules with ``nft`` itself, and reads them."""
    ns.add_bridges("hm11fe")
    ns.run("nft", f"add table ip {TABLE}; add chain ip {TABLE} {CHAIN}; add chain ip {TABLE} {OTHER_CHAIN}")
    ns.run("nft", f"add set ip {TABLE} bridges {{ type ifname; elements = {{ hmdead }}; }}")
    ns.run("nft", f"add map ip {TABLE} verdicts {{ type ifname : verdict; elements = {{ hmdead : drop }}; }}")

    def add_and_read(*lines: str) -> list[Rule]:
        for line in lines:
            ns.run("nft", f"add rule ip {TABLE} {CHAIN} {line}")
        return read(ns, "nft", (b"",))

    return add_and_read


def test_comments_of_native_rules_are_read_byte_for_byte(native: Callable[..., list[Rule]]) -> None:
    # nft takes 128 bytes and has no way to write a quote.
    remarks = [remark for remark in REMARKS if len(os.fsencode(remark)) <= 128 and remark and '"' not in remark]
    remarks += ["x" * 121 + "-hmdead", "\udcff" * 128]
    rules = native(*(f'iifname "hmdead" drop comment "{remark}"' for remark in remarks))
    assert len(remarks) > 10
    assert comments(rules) == remarks


NAMES: dict[str, tuple[Interface | None, Interface | None]] = {
    'iifname "hmdead"': (Interface("hmdead"), None),
    f'iifname "{LONGEST}"': (Interface(LONGEST), None),
    'iifname != "hmdead" oifname "eth0"': (Interface("hmdead", negated=True), Interface("eth0")),
    'iifname "hm*"': (Interface("hm", wildcard=True), None),
    'iifname != "hm*"': (Interface("hm", wildcard=True, negated=True), None),
    f'oifname "{LONGEST[:14]}*"': (None, Interface(LONGEST[:14], wildcard=True)),
    'oifname "hm\\*"': (None, Interface("hm*")),
    'oifname "hmdead" ip saddr 10.200.1.0/24 tcp dport 22 ct state new': (None, Interface("hmdead")),
    'ct state new meta l4proto tcp iifname "hmdead" oifname "hmbee"': (Interface("hmdead"), Interface("hmbee")),
    "ip saddr 10.200.1.0/24": (None, None),
}
"""The interface matches that ``nft`` makes: it pads a name to all 16 bytes, and closes no wildcard."""


def test_interface_names_of_native_rules(native: Callable[..., list[Rule]]) -> None:
    rules = native(*(f"{line} counter accept" for line in NAMES))
    found = ((each.in_interface, each.out_interface) for each in rules)
    assert dict(zip(NAMES, found, strict=True)) == NAMES
    assert {(each.opaque, each.target) for each in rules} == {(None, "ACCEPT")}


def test_native_rules_of_dead_bridges_are_orphans(native: Callable[..., list[Rule]]) -> None:
    rules = native(
        'iifname "hmdead" oifname "eth0" accept comment "hypeman-fwd-out-hmdead"',
        'ip saddr 10.200.1.0/24 oifname "eth0" counter drop comment "hypeman-nat-hmdead"',
        'oifname "hmdead" ip daddr { 192.0.2.1, 192.0.2.2 } drop',
        'oifname "hmdead" tcp dport vmap { 22 : accept, 23 : drop }',
    )
    assert verdicts(rules) == [Verdict.ORPHAN] * 4


UNCLEAR = [
    'iifname "hm*"',
    'iifname "hmdead" oifname "h*"',
    'iifname "hmdead" oifname != "hm*"',
    'iifname { "hmdead", "hmbee" }',
    'iifname != { "hmdead", "hmbee" }',
    'iifname { "hm1*", "hm2*" }',
    "iifname @bridges",
    "iifname @bridges oifname hmdead",
    'iifname vmap { "hmdead" : drop, "hm11fe" : accept }',
    "iifname vmap @verdicts",
    'iifname . oifname { "hmdead" . "eth0", "hm11fe" . "eth0" }',
    'ip saddr . iifname { 10.200.1.1 . "hmdead" }',
    'iif "hm11fe"',
    'iif != "lo" oifname "hmdead"',
    'oif { "lo", "hm11fe" }',
    'oif "hm11fe" iifname "hmdead"',
    "iifgroup 7",
    'oifgroup != 0 iifname "hmdead"',
    "iifgroup { 1, 2 }",
    'meta iifkind "bridge"',
    'meta oifkind "bridge" iifname "hmdead"',
    "meta sdifname hm11fe",
]
"""Matches whose interfaces are not, or not only, plain names that a reader could look up."""


def test_native_rules_whose_interfaces_are_no_plain_names_stay(native: Callable[..., list[Rule]]) -> None:
    actions = ("" if "vmap" in line else "drop" for line in UNCLEAR)
    rules = native(*(f'{line} {act} comment "hypeman-x-hmdead"' for line, act in zip(UNCLEAR, actions, strict=True)))
    assert dict(zip(UNCLEAR, verdicts(rules), strict=True)) == dict.fromkeys(UNCLEAR, Verdict.WILDCARD)


def test_a_table_that_was_replaced_is_another_table_though_its_handles_are_the_same(ns: Namespace) -> None:
    firewall = KernelFirewall(ns, "nft")

    def replace_and_delete() -> None:
        firewall.prepare()
        firewall.make(named("hm-a", "hm-b"))
        with closing(firewall.open()) as backend:
            scan = backend.scan(TABLE, [CHAIN])
            ns.run("nft", "delete", "table", "ip", TABLE)
            firewall.prepare()
            firewall.make(named("hm-new", "hm-b"))
            assert [each.handle for each in backend.scan(TABLE, [CHAIN]).rules] == [each.handle for each in scan.rules]
            with (
                firewall.transaction(backend, scan) as transaction,
                pytest.raises(ContentionError),
                firewall.unchanged(),
            ):
                transaction.delete(chosen(transaction.scan, "hm-a"))

    ns.inside(replace_and_delete)
