"""One contract for every backend: the same tests on x_tables, on nf_tables and in memory, in each family.

Where backends may differ, what the protocol shows of them decides: rules either have handles or not.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path

import pytest

from netsweep.errors import BusyError, ContentionError
from netsweep.firewall import Addition
from netsweep.model import Chain, Family, Rule, Spec
from netsweep.report import LockTimes
from tests.contract.firewalls import (
    CHAIN,
    OTHER,
    Firewall,
    IptablesFirewall,
    MemoryFirewall,
    NativeFirewall,
    chosen,
    comments,
    spec,
)
from tests.namespace import PLACES, flocked, read


@pytest.fixture(
    params=[
        *(pytest.param(("memory", each), id=f"memory-{each}") for each in (Family.IPV4, Family.INET)),
        *(pytest.param(each, marks=pytest.mark.kernel, id="-".join(each)) for each in PLACES),
    ]
)
def bare(request: pytest.FixtureRequest, tmp_path: Path) -> Firewall:
    """A firewall without a table."""
    name, family = request.param
    if name == "memory":
        return MemoryFirewall(tmp_path, family)
    ns = request.getfixturevalue("ns")
    return NativeFirewall(ns) if family == Family.INET else IptablesFirewall(ns, name, Family(family))


@pytest.fixture
def firewall(bare: Firewall) -> Firewall:
    """A firewall with two empty chains in one table."""
    bare.prepare()
    return bare


def where_the_firewall_is(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in the firewall's namespace."""

    @functools.wraps(test)
    def wrapped(firewall: Firewall, **arguments: object) -> None:
        firewall.inside(lambda: test(firewall, **arguments))

    return wrapped


# Looking.


def test_looking_for_tables_where_there_are_none_makes_none(bare: Firewall) -> None:
    def look() -> None:
        with closing(bare.open()) as backend:
            assert [list(backend.tables()), list(backend.tables())] == [[], []]

    with bare.unchanged():
        bare.inside(look)


@where_the_firewall_is
def test_the_tables_that_exist_are_named_with_their_family(firewall: Firewall) -> None:
    with closing(firewall.open()) as backend, firewall.unchanged():
        assert list(backend.tables()) == [firewall.table]
        assert backend.name == firewall.name


@where_the_firewall_is
def test_rules_come_in_chain_order_and_are_counted_from_one(firewall: Firewall) -> None:
    firewall.make(*map(spec, ["other-1", "hm-a", "hm-b", "other-2", "other-3", "hm-a"]))
    firewall.make(*map(spec, ["hm-c", "other-4", "hm-d"]), chain=OTHER)
    for undo in (False, True):
        with closing(firewall.open(undo=undo)) as backend:
            scan = read(backend, firewall.other, firewall.chain)
        ours = [each for each in scan.rules if comments([each])]
        # Chain by chain, in the order in which the firewall tells the chains.
        found = {chain: [*rules] for chain, rules in itertools.groupby(ours, lambda each: each.chain)}
        assert [*found] == scan.chains
        assert {
            chain.name: [(each.position, each.spec.comment) for each in rules] for chain, rules in found.items()
        } == {OTHER: [(1, "hm-c"), (3, "hm-d")], CHAIN: [(2, "hm-a"), (3, "hm-b"), (6, "hm-a")]}
        assert (scan.scanned, scan.complete) == ({firewall.other: 3, firewall.chain: 6}, True)
        assert {each.chain.table for each in scan.rules} == {firewall.table}


@where_the_firewall_is
def test_either_every_rule_has_a_handle_of_its_own_or_none_has(firewall: Firewall) -> None:
    firewall.make(*map(spec, ["hm-a", "hm-a", "hm-b"]))
    with closing(firewall.open()) as backend:
        handles = [each.handle for each in read(backend, firewall.chain).rules]
    assert len(handles) == 3
    assert set(handles) == {None} or (None not in handles and len(set(handles)) == 3)


LONGEST = "hm0123456789abc"

KINDS = [
    spec("hm-in", "hm1"),
    spec("hm-out", None, "hm1"),
    spec("hm-both", "hm1", "eth0", target="DROP"),
    spec("hm-longest", LONGEST, f"!{LONGEST}"),
    spec("hm-negated", "!hm1", "!eth0"),
    spec("hm-wild", "hm+", "h+"),
    spec("hm-longest-wild", f"{LONGEST[:14]}+"),
    spec("hm-negated-wild", None, "!eth+"),
    spec("hm-odd-name", "hm.1-_:x@'"),
    spec("hm-protocol", protocol="udp"),
    spec("hm-negated-protocol", "hm1", protocol="!tcp"),
    spec("hm-protocol-number", protocol="253", target="DROP"),
    spec("hm-port", "hm1", protocol="tcp", ports=True, matches=("tcp",)),
    spec("hm-negated-port", protocol="udp", matches=("more of udp", "udp")),
    spec("hm-matches", "hm1", matches=("addrtype", "conntrack", "limit", "mark")),
    spec("hm-jump", target=OTHER),
    spec("hm-goto", "hm1", matches=("-g",), target=OTHER),
    spec("hm-reject", target="REJECT"),
    spec("hm-log", target="LOG"),
    spec("hm-no-target", target=None),
]


def addressed(icmp: str, net: str, wide: str, address: str, odd: str, other: str) -> list[Spec]:
    return [
        spec("hm-icmp", protocol=icmp),
        spec("hm-source", source=net, target="RETURN"),
        spec("hm-addresses", source=f"!{address}", destination=wide),
        spec("hm-odd-mask", destination=f"!{odd}"),
        spec("hm-everything", "hm1", "hm2", source=other, destination=address, protocol="tcp"),
    ]


OF_FAMILY = {
    Family.IPV4: addressed(
        "icmp", "10.200.1.0/24", "10.0.0.0/8", "10.200.1.1/32", "10.200.0.9/255.255.0.255", "10.2.0.0/15"
    ),
    Family.IPV6: addressed(
        "ipv6-icmp", "fd00:200:1::/48", "fc00::/7", "fd00:200::1/128", "fd00:200::9/ffff:ffff::ffff", "fd00:2::/31"
    ),
}
OF_FAMILY[Family.INET] = [*OF_FAMILY[Family.IPV4], *OF_FAMILY[Family.IPV6]]


def kinds(family: Family) -> list[Spec]:
    return [*KINDS, *OF_FAMILY[family]]


@where_the_firewall_is
def test_rules_are_read_as_they_were_made(firewall: Firewall) -> None:
    made = kinds(firewall.family)
    firewall.make(*made)
    for undo in (False, True):
        with closing(firewall.open(undo=undo)) as backend:
            rules = read(backend, firewall.chain).rules
            assert [each.spec for each in rules] == made
            with firewall.transaction(backend, rules) as transaction:
                assert [each.spec for each in transaction.rules] == made


@where_the_firewall_is
def test_only_chains_that_exist_are_read(firewall: Firewall) -> None:
    firewall.make(spec("hm-a"))
    asked = [Chain(firewall.table, name) for name in ("NOSUCH", CHAIN, OTHER, "NEITHER")]
    with closing(firewall.open()) as backend, firewall.unchanged():
        scan = read(backend, *asked)
        assert sorted(scan.chains) == asked[1:3]
        assert (comments(scan.rules), scan.scanned.total(), scan.complete) == (["hm-a"], 1, True)
        assert read(backend).chains == []


@where_the_firewall_is
def test_tables_of_one_name_in_two_families_are_two(firewall: Firewall) -> None:
    other = firewall.beside()
    firewall.make(*map(spec, ["hm-a", "hm-b"]))
    other.make(*map(spec, ["hm-a", "hm-c"]))
    with closing(firewall.open(undo=True)) as backend:
        tables = backend.tables()
        assert {*tables} == {firewall.table, other.table}
        for left in (["hm-a", "hm-b"], ["hm-b"]):
            rules = backend.read(tables, lambda chain: chain.name == CHAIN).rules
            found = [[each for each in rules if each.chain == family.chain] for family in (firewall, other)]
            assert [comments(each) for each in found] == [left, ["hm-a", "hm-c"]]
            with firewall.transaction(backend, found[0]) as transaction:
                transaction.delete(chosen(transaction.rules, "hm-a"))
                transaction.commit()
    assert (firewall.standing(), other.standing()) == (["hm-b"], ["hm-a", "hm-c"])


@where_the_firewall_is
def test_chains_may_have_odd_names(firewall: Firewall) -> None:
    names = firewall.odd_names
    chains = [Chain(firewall.table, name) for name in names]
    firewall.add_chains(*names)
    for name in names:
        firewall.make(*map(spec, ["hm-a", "other"]), chain=name)
    firewall.make(*(spec("hm-jump", target=name) for name in names))
    with closing(firewall.open(undo=True)) as backend:
        scan = backend.read([firewall.table], lambda chain: chain not in (firewall.chain, firewall.other))
        scanned = {chain: count for chain, count in scan.scanned.items() if chain in chains}
        assert scanned == dict.fromkeys(chains, 2)
        jumps = chosen(read(backend, firewall.chain).rules, "hm-jump")
        assert [each.spec.target for each in jumps] == list(names)
        with firewall.transaction(backend, scan.rules, chains=chains, orders=True) as transaction:
            assert [len(transaction.orders[chain]) for chain in chains] == [2] * len(chains)
            gone = chosen(transaction.rules, "hm-a")
            transaction.delete(gone)
            transaction.commit()
        assert {each.chain for each in gone} == {*chains}
        assert [firewall.standing(name) for name in names] == [["other"]] * len(names)
        with firewall.transaction(backend, chains=chains, orders=True) as transaction:
            transaction.insert([Addition(each.chain, 0, [each.undo.raw]) for each in gone if each.undo])
            transaction.commit()
    assert [firewall.standing(name) for name in names] == [["hm-a", "other"]] * len(names)


@where_the_firewall_is
def test_what_is_not_committed_changes_nothing(firewall: Firewall) -> None:
    firewall.make(*kinds(firewall.family), *map(spec, ["hm-a", "hm-a", "other"]))
    for undo in (False, True):
        with closing(firewall.open(undo=undo)) as backend, firewall.unchanged():
            backend.tables()
            scan = read(backend, firewall.chain, firewall.other)
            with firewall.transaction(backend, scan.rules) as transaction:
                transaction.delete(transaction.rules)
            with firewall.transaction(backend, scan.rules) as transaction:
                transaction.delete(transaction.rules)
                transaction.check()
            if undo:
                with firewall.transaction(backend, orders=True) as transaction:
                    transaction.insert([Addition(firewall.chain, 1, firewall.kept(backend, "hm-a"))])
                    transaction.check()


# Transactions decide on what stands there now.


@where_the_firewall_is
@pytest.mark.parametrize("undo", [False, True])
def test_a_rule_that_was_replaced_is_shown_as_what_it_is_now(firewall: Firewall, undo: bool) -> None:
    firewall.make(*map(spec, ["other", "hm-a", "hm-b"]))
    with closing(firewall.open(undo=undo)) as backend:
        rules = read(backend, firewall.chain).rules
        firewall.replace("hm-a", "hm-live")
        with firewall.transaction(backend, rules) as transaction:
            assert comments(transaction.rules) == ["hm-live", "hm-b"]
            transaction.delete(chosen(transaction.rules, "hm-b"))
            transaction.commit()
    assert firewall.standing() == ["other", "hm-live"]


@where_the_firewall_is
@pytest.mark.parametrize("undo", [False, True])
@pytest.mark.parametrize(
    ("now", "left"),
    [
        (["hm-live", "hm-a"], ["hm-live"]),
        (["hm-live"], ["hm-live"]),
        (["other", "hm-live", "other"], ["other", "hm-live", "other"]),
        ([], []),
    ],
)
def test_of_a_table_that_was_made_anew_no_old_rule_is_shown(
    firewall: Firewall, undo: bool, now: Sequence[str], left: Sequence[str]
) -> None:
    firewall.make(*map(spec, ["hm-a", "hm-a"]))
    with closing(firewall.open(undo=undo)) as backend:
        rules = read(backend, firewall.chain).rules
        firewall.remake(*now)
        with firewall.transaction(backend, rules) as transaction:
            assert set(comments(transaction.rules)) <= set(now)
            # Whoever decides that hm-a is dead deletes no other rule.
            transaction.delete(chosen(transaction.rules, "hm-a"))
            transaction.commit()
    assert firewall.standing() == list(left)


@where_the_firewall_is
@pytest.mark.parametrize("undo", [False, True])
def test_what_went_and_what_came_since_the_reading_is_not_deleted(firewall: Firewall, undo: bool) -> None:
    firewall.make(*map(spec, ["hm-a", "hm-b", "hm-c"]))
    with closing(firewall.open(undo=undo)) as backend:
        rules = read(backend, firewall.chain, firewall.other).rules
        firewall.remove("hm-a")
        firewall.make(*map(spec, ["hm-new", "hm-a"]))
        firewall.make(spec("hm-other"), chain=OTHER)
        with firewall.transaction(backend, chosen(rules, "hm-a", "hm-b")) as transaction:
            if all(each.handle is not None for each in rules):
                # Told as it was read, since what the others saw meanwhile does not count.
                assert [(each.position, each.spec.comment) for each in transaction.rules] == [(2, "hm-b")]
            transaction.delete(chosen(transaction.rules, "hm-b"))
            transaction.commit()
    assert (firewall.standing(), firewall.standing(OTHER)) == (["hm-c", "hm-new", "hm-a"], ["hm-other"])


@where_the_firewall_is
@pytest.mark.parametrize("undo", [False, True])
def test_what_others_do_to_a_rule_before_its_deletion_is_contention(firewall: Firewall, undo: bool) -> None:
    """x_tables keeps others away by a lock; here somebody ignores it."""
    for change in firewall.notices:
        firewall.remake("hm-a", "other", "hm-b", "hm-c")
        with closing(firewall.open(undo=undo)) as backend:
            rules = read(backend, firewall.chain).rules
            with firewall.transaction(backend, rules, orders=undo) as transaction:
                transaction.delete(chosen(transaction.rules, "hm-a", "hm-c"))
                getattr(firewall, change)()
                with firewall.unchanged(), pytest.raises(ContentionError):
                    transaction.commit()
            # Contention is answered by deciding again, at the latest on what is read again.
            for _ in range(2):
                with suppress(ContentionError), firewall.transaction(backend, rules, orders=undo) as transaction:
                    transaction.delete(chosen(transaction.rules, "hm-a", "hm-b", "hm-c"))
                    transaction.commit()
                rules = read(backend, firewall.chain).rules
            expected = {"remove": ["other"], "replace": ["hm-new", "other"], "remake": []}
            assert firewall.standing() == expected[change], change


@where_the_firewall_is
@pytest.mark.parametrize("undo", [False, True])
@pytest.mark.parametrize("change", ["append", "append_elsewhere"])
def test_what_others_do_elsewhere_is_contention_or_stays(firewall: Firewall, change: str, undo: bool) -> None:
    firewall.make(*map(spec, ["hm-a", "other", "hm-b", "hm-c"]))
    with closing(firewall.open(undo=undo)) as backend:
        rules = read(backend, firewall.chain).rules
        with firewall.transaction(backend, rules, orders=undo) as transaction:
            transaction.delete(chosen(transaction.rules, "hm-a", "hm-c"))
            getattr(firewall, change)()
            going: tuple[str, ...] = ()
            before = [*firewall.standing(), *firewall.standing(OTHER)]
            with suppress(ContentionError):
                transaction.commit()
                going = ("hm-a", "hm-c")
        assert [*firewall.standing(), *firewall.standing(OTHER)] == [each for each in before if each not in going]


@where_the_firewall_is
def test_what_others_commit_before_an_insertion_is_contention_or_does_not_touch_its_place(firewall: Firewall) -> None:
    for change in (*firewall.notices, "append", "append_elsewhere"):
        firewall.remake("hm-a", "other", "hm-b")
        with closing(firewall.open(undo=True)) as backend:
            raw = firewall.kept(backend, "hm-b")
            with firewall.transaction(backend, orders=True) as transaction:
                transaction.insert([Addition(firewall.chain, 1, raw)])
                getattr(firewall, change)()
                before = firewall.standing()
                if change in firewall.notices:
                    with pytest.raises(ContentionError):
                        transaction.commit()
                else:
                    with suppress(ContentionError):
                        transaction.commit()
                        before.insert(1, "hm-b")
            assert firewall.standing() == before, change


# Deleting.


@where_the_firewall_is
@pytest.mark.parametrize("undo", [False, True])
def test_the_rules_that_are_not_deleted_stay_in_order_with_their_counters(firewall: Firewall, undo: bool) -> None:
    firewall.make(*map(spec, ["other-1", "hm-a", "hm-b", "other-2", "hm-c", "hm-d", "other-3", "hm-e"]))
    firewall.make(*map(spec, ["hm-f", "hm-g", "other-4"]), chain=OTHER)
    going = ("hm-a", "hm-c", "hm-d", "hm-e", "hm-f")
    left = [[each for each in firewall.shown(chain) if each[0] not in going] for chain in (CHAIN, OTHER)]
    with closing(firewall.open(undo=undo)) as backend:
        rules = read(backend, firewall.chain, firewall.other).rules
        with firewall.transaction(backend, rules) as transaction:
            transaction.delete(chosen(transaction.rules, *going))
            transaction.commit()
        scan = read(backend, firewall.chain, firewall.other)
        assert {each.chain: each.position for each in scan.rules if comments([each])} == {
            firewall.chain: 2,
            firewall.other: 1,
        }
    assert [firewall.shown(CHAIN), firewall.shown(OTHER)] == left
    assert [len(each) for each in left] == [4, 2]


@where_the_firewall_is
def test_all_rules_of_a_chain_can_go(firewall: Firewall) -> None:
    firewall.make(*map(spec, ["hm-a", "hm-b", "hm-a"]))
    firewall.make(spec("hm-c"), chain=OTHER)
    with closing(firewall.open()) as backend:
        with firewall.transaction(backend, read(backend, firewall.chain).rules) as transaction:
            transaction.delete([each for each in transaction.rules if each.chain == firewall.chain])
            transaction.commit()
        scan = read(backend, firewall.chain)
        assert (scan.rules, scan.scanned.total(), scan.chains, scan.complete) == ([], 0, [firewall.chain], True)
    assert firewall.standing(OTHER) == ["hm-c"]


@where_the_firewall_is
@pytest.mark.parametrize(
    ("positions", "left"),
    [
        ([3, 6], ["hm-twin", "hm-a", "hm-b", "hm-twin", "hm-c", "hm-twin"]),
        ([1], ["hm-a", "hm-twin", "hm-b", "hm-twin", "hm-twin", "hm-c", "hm-twin"]),
        ([1, 3, 5, 6, 8], ["hm-a", "hm-b", "hm-c"]),
    ],
)
def test_of_rules_that_are_the_same_only_the_chosen_copies_go(
    firewall: Firewall, positions: Sequence[int], left: Sequence[str]
) -> None:
    firewall.make(*map(spec, ["hm-twin", "hm-a", "hm-twin", "hm-b", "hm-twin", "hm-twin", "hm-c", "hm-twin"]))
    # Copies differ in their counters, which tells the right ones from others.
    shown = [each for number, each in enumerate(firewall.shown(), 1) if number not in positions]
    with (
        closing(firewall.open()) as backend,
        firewall.transaction(backend, read(backend, firewall.chain).rules) as transaction,
    ):
        transaction.delete([each for each in transaction.rules if each.position in positions])
        transaction.commit()
    assert firewall.standing() == list(left)
    assert firewall.shown() == shown


@where_the_firewall_is
def test_what_the_confirmation_raises_ends_the_commit_with_nothing_changed(firewall: Firewall) -> None:
    """It is the last thing before the kernel is asked."""
    firewall.make(*map(spec, ["hm-a", "other"]))

    def refuse() -> None:
        raise ContentionError("a bridge was created meanwhile")

    with (
        closing(firewall.open()) as backend,
        firewall.unchanged(),
        firewall.transaction(backend, read(backend, firewall.chain).rules) as transaction,
    ):
        transaction.delete(chosen(transaction.rules, "hm-a"))
        with pytest.raises(ContentionError, match="a bridge was created meanwhile"):
            transaction.commit(refuse)


@where_the_firewall_is
def test_committing_nothing_does_nothing(firewall: Firewall) -> None:
    firewall.make(*map(spec, ["hm-a", "other"]))
    with closing(firewall.open()) as backend:
        before = firewall.shown()
        with firewall.transaction(backend, read(backend, firewall.chain).rules) as transaction:
            transaction.delete([])
            transaction.commit()
        assert firewall.shown() == before


@where_the_firewall_is
@pytest.mark.parametrize("undo", [False, True])
def test_more_than_a_thousand_rules_go_as_any_other(firewall: Firewall, undo: bool) -> None:
    names = [f"hm-{number}" for number in range(1100)]
    firewall.make(*map(spec, ["hm-first", *names, "hm-last"]))
    with closing(firewall.open(undo=undo)) as backend:
        rules = chosen(read(backend, firewall.chain).rules, *names)
        while rules:
            portion = rules[: backend.batch]
            with firewall.transaction(backend, portion) as transaction:
                transaction.delete(chosen(transaction.rules, *comments(portion)))
                transaction.commit()
            rules = rules[len(portion) :]
    assert firewall.standing() == ["hm-first", "hm-last"]


# Putting back.


@where_the_firewall_is
def test_the_order_of_a_chain_covers_every_rule_and_tells_twins_from_others(firewall: Firewall) -> None:
    firewall.make(*map(spec, ["hm-a", "other", "hm-a", "hm-b"]))
    with closing(firewall.open(undo=True)) as backend:
        rules = read(backend, firewall.chain).rules
        with firewall.transaction(backend, rules, orders=True) as transaction:
            order = transaction.orders[firewall.chain]
            assert [each.identity == order[0].identity for each in order] == [True, False, True, False]
            assert len({each.identity for each in order}) == 3
            assert transaction.orders[firewall.other] == []
            shown = [(each.undo.identity, each.handle) for each in transaction.rules if each.undo and comments([each])]
            assert shown == [order[0], order[2], order[3]]


@where_the_firewall_is
@pytest.mark.parametrize("place", [0, 1, 3])
def test_rules_are_put_in_before_the_place(firewall: Firewall, place: int) -> None:
    firewall.make(*map(spec, ["hm-a", "other", "hm-b"]))
    shown = firewall.shown()
    with closing(firewall.open(undo=True)) as backend:
        raw = firewall.kept(backend, "hm-a", "hm-b")
        with firewall.transaction(backend, orders=True) as transaction:
            transaction.insert([Addition(firewall.chain, place, raw), Addition(firewall.other, 0, raw[1:])])
            transaction.commit()
    expected = ["hm-a", "other", "hm-b"]
    expected[place:place] = ["hm-a", "hm-b"]
    assert (firewall.standing(), firewall.standing(OTHER)) == (expected, ["hm-b"])
    after = firewall.shown()
    assert after[:place] + after[place + 2 :] == shown


@where_the_firewall_is
@pytest.mark.parametrize("going", [(1,), (7,), (1, 2), (6, 7), (2, 3, 5), (1, 4, 7), (1, 2, 3, 4, 5, 6, 7)])
def test_deleted_rules_come_back_to_their_places(firewall: Firewall, going: Sequence[int]) -> None:
    firewall.make(*map(spec, ["hm-a", "hm-b", "hm-twin", "hm-c", "hm-twin", "hm-twin", "hm-d"]))
    before = firewall.standing()
    with closing(firewall.open(undo=True)) as backend:
        order = firewall.order(backend)
        with firewall.transaction(backend, read(backend, firewall.chain).rules) as transaction:
            rules = [each for each in transaction.rules if each.position in going]
            transaction.delete(rules)
            transaction.commit()
        assert len(firewall.standing()) == len(before) - len(going)
        with firewall.transaction(backend, orders=True) as transaction:
            transaction.insert(gaps(firewall.chain, rules))
            transaction.commit()
        assert firewall.order(backend) == order
    assert firewall.standing() == before


def gaps(chain: Chain, rules: Sequence[Rule]) -> list[Addition]:
    """Where rules belong that have gone from a chain that nothing else happened to."""
    at: dict[int, list[bytes]] = {}
    for number, rule in enumerate(rules):
        assert rule.undo
        at.setdefault(rule.position - 1 - number, []).append(rule.undo.raw)
    return [Addition(chain, place, raw) for place, raw in at.items()]


@where_the_firewall_is
def test_a_transaction_that_was_committed_can_be_committed_again_where_there_are_batches(firewall: Firewall) -> None:
    firewall.make(*map(spec, ["hm-a", "hm-b", "hm-c", "hm-d"]))
    with closing(firewall.open(undo=True)) as backend:
        rules = read(backend, firewall.chain).rules
        raw = [firewall.kept(backend, name) for name in ("hm-a", "hm-b", "hm-c")]
        with firewall.transaction(backend, rules) as transaction:
            transaction.delete(chosen(transaction.rules, "hm-c", "hm-d"))
            transaction.commit()
            assert firewall.standing() == ["hm-a", "hm-b"]
            if backend.batch == sys.maxsize:
                return
            transaction.delete(chosen(transaction.rules, "hm-b"))
            transaction.commit()
            assert firewall.standing() == ["hm-a"]
        with firewall.transaction(backend, orders=True) as transaction:
            # From the back, as places are those of the beginning.
            for place, name in ((1, 1), (0, 2), (0, 0)):
                transaction.insert([Addition(firewall.chain, place, raw[name])])
                transaction.commit()
            assert firewall.standing() == ["hm-a", "hm-c", "hm-a", "hm-b"]
        firewall.remake("hm-a", "hm-b")
        with firewall.transaction(backend, read(backend, firewall.chain).rules) as transaction:
            transaction.delete(chosen(transaction.rules, "hm-a"))
            transaction.commit()
            transaction.delete(chosen(transaction.rules, "hm-b"))
            firewall.remove("hm-b")
            with firewall.unchanged(), pytest.raises(ContentionError):
                transaction.commit()


# Locks and files.


@where_the_firewall_is
def test_rules_without_handles_are_written_under_a_lock(firewall: Firewall) -> None:
    firewall.make(spec("hm-a"))
    with closing(firewall.open()) as backend:
        needed = read(backend, firewall.chain).rules[0].handle is None
        times = LockTimes(str(firewall.lock))
        with flocked(firewall.lock):
            if needed:
                with pytest.raises(BusyError), backend.locked(times, 0):
                    raise AssertionError("took a lock that is held")
            else:
                with backend.locked(times, 0):
                    pass
        assert not times.held_ms
        with backend.locked(times, 0):
            pass
        assert bool(times.held_ms) == needed


def open_files() -> list[str]:
    return os.listdir("/proc/self/fd")


@where_the_firewall_is
@pytest.mark.parametrize("undo", [False, True])
def test_closing_gives_back_every_file_and_can_be_done_twice(firewall: Firewall, undo: bool) -> None:
    firewall.make(*map(spec, ["hm-a", "hm-b"]))

    def use() -> None:
        backend = firewall.open(undo=undo)
        backend.tables()
        rules = read(backend, firewall.chain).rules
        with firewall.transaction(backend, rules, orders=undo) as transaction:
            assert len(transaction.rules) == 2
        with pytest.raises(ZeroDivisionError), firewall.transaction(backend, rules):
            raise ZeroDivisionError
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
        assert list(another.tables()) == [firewall.table]


def test_the_kinds_cover_every_field_that_all_backends_show() -> None:
    """A field that no kind sets would be compared with nothing."""
    empty = Spec()
    fields = ("in_interface", "out_interface", "source", "destination", "protocol", "ports", "matches", "target")
    for family in OF_FAMILY:
        for field in (*fields, "comments"):
            assert any(getattr(kind, field) != getattr(empty, field) for kind in kinds(family)), field
