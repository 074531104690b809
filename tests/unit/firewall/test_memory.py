"""What the firewall in memory has besides the contract: its state, its hooks, and what it refuses."""

from __future__ import annotations

import pytest

from netsweep import testing
from netsweep.errors import ContentionError, NetsweepError
from netsweep.firewall import Addition, Backend
from netsweep.firewall.memory import MemoryBackend
from netsweep.model import Chain, Family, Spec, Table
from tests.namespace import read

FORWARD = Chain(Table("nft", Family.IPV4, "filter"), "FORWARD")
INPUT = Chain(FORWARD.table, "INPUT")
POSTROUTING = Chain(Table("nft", Family.IPV4, "nat"), "POSTROUTING")
INET = Chain(Table("nft", Family.INET, "filter"), "FORWARD")


def named(text: str) -> Spec:
    return Spec(comments=(text,))


def comments(backend: MemoryBackend, chain: Chain = FORWARD) -> list[str | None]:
    return [rule.spec.comment for rule in backend.rules(chain)]


def test_it_ships_for_the_tests_of_others() -> None:
    backend: Backend = testing.MemoryBackend()
    assert list(backend.tables()) == []


def test_tables_of_one_name_in_two_families_are_two() -> None:
    backend = MemoryBackend([FORWARD, INPUT, POSTROUTING, INET])
    assert list(backend.tables()) == [FORWARD.table, POSTROUTING.table, INET.table]
    backend.append(INET, named("a"))
    assert (comments(backend), comments(backend, INET)) == ([], ["a"])


def test_rules_can_be_placed_removed_and_replaced() -> None:
    backend = MemoryBackend([FORWARD])
    first, last = backend.append(FORWARD, named("first")), backend.append(FORWARD, named("last"))
    between = backend.place(FORWARD, 1, named("between"))
    assert [rule.position for rule in backend.rules(FORWARD)] == [1, 2, 3]
    backend.replace(between, named("new"))
    backend.remove(first)
    assert comments(backend) == ["new", "last"]
    new, other = backend.rules(FORWARD)
    assert (new.handle, other.handle) == (between.handle, last.handle)
    assert between.undo
    assert new.undo
    assert new.undo.identity != between.undo.identity


def test_a_table_can_be_made_anew_with_the_handles_of_old() -> None:
    backend = MemoryBackend([FORWARD, POSTROUTING])
    old = backend.append(FORWARD, named("old"))
    backend.append(POSTROUTING, named("other table"))
    backend.remake(FORWARD.table)
    assert comments(backend) == []
    assert backend.append(FORWARD, named("new")).handle == old.handle
    assert comments(backend, POSTROUTING) == ["other table"]


def test_others_can_interfere_before_a_reading_and_before_a_commit() -> None:
    backend = MemoryBackend([FORWARD])
    backend.before_read = lambda: backend.append(FORWARD, named("read")) and None
    assert [rule.spec.comment for rule in read(backend, FORWARD).rules] == ["read"]
    backend.before_commit = lambda: backend.append(FORWARD, named("commit")) and None
    with backend.transaction([FORWARD], backend.rules(FORWARD)) as transaction:
        transaction.delete(transaction.rules)
        with pytest.raises(ContentionError):
            transaction.commit()
    assert comments(backend) == ["read", "commit"]


def test_it_refuses_what_a_kernel_refuses() -> None:
    backend = MemoryBackend([FORWARD, POSTROUTING])
    rule = backend.append(FORWARD, named("a"))
    with pytest.raises(NetsweepError, match="one table"), backend.transaction([FORWARD, POSTROUTING]):
        raise AssertionError("two tables in one transaction")
    with backend.transaction([FORWARD]) as transaction:
        with pytest.raises(NetsweepError, match="does not have"):
            transaction.delete([rule])
        with pytest.raises(NetsweepError, match="does not have"):
            transaction.insert([Addition(INPUT, 0, [b"x"])])


def test_what_is_put_back_is_again_what_it_was() -> None:
    """Taken away and put back twice, it has the identity that it had at first."""
    backend = MemoryBackend([FORWARD])
    backend.append(FORWARD, named("\udcff a's \N{SNOWMAN}"))
    (rule,) = backend.rules(FORWARD)
    for _ in range(2):
        with backend.transaction([FORWARD], backend.rules(FORWARD)) as transaction:
            transaction.delete(transaction.rules)
            transaction.commit()
        assert rule.undo
        with backend.transaction([FORWARD], orders=True) as transaction:
            transaction.insert([Addition(FORWARD, 0, [rule.undo.raw])])
            transaction.commit()
        assert [(each.undo, each.spec) for each in backend.rules(FORWARD)] == [(rule.undo, rule.spec)]
