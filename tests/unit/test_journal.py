"""Where deleted rules go back to, whatever became of their chain."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from netsweep.backends import Addition, Scan
from netsweep.errors import NetsweepError
from netsweep.journal import Anchor, Entry, Place, Saved, find_place, places, plan

CHAIN = "FORWARD"


def scan_of(order: Sequence[bytes], missing: Sequence[str] = ()) -> Scan:
    return Scan("filter", [CHAIN, *missing], order={CHAIN: list(order)}, missing=list(missing))


def saved(identity: bytes, place: Place, jump: str | None = None) -> Saved:
    return Saved(CHAIN, identity, place, jump, {}, identity)


def journal_of(order: Sequence[bytes], going: Sequence[int], batch: int = 1_000, first: int = 1) -> list[Entry]:
    """The entries of a sweep that deletes the positions ``going`` of ``order``, ``batch`` at a time."""
    place_of = places(order, going)
    entries = []
    for number, start in enumerate(range(0, len(going), batch), first):
        rules = [saved(order[position - 1], place_of[position]) for position in going[start : start + batch]]
        entries.append(Entry(number, "nft", "filter", rules))
    return entries


def restored(order: Sequence[bytes], additions: Sequence[Addition]) -> list[bytes]:
    """``order`` with the additions, each before what stands at its place."""
    at: dict[int, list[bytes]] = {}
    for addition in additions:
        assert addition.chain == CHAIN
        assert addition.place not in at, "two additions to one place have no order"
        at[addition.place] = addition.rules
    result = []
    for index in range(len(order) + 1):
        result += at.pop(index, [])
        result += order[index : index + 1]
    assert not at, "a place outside the chain"
    return result


def put_back(order: Sequence[bytes], entries: Sequence[Entry]) -> list[bytes]:
    return restored(order, plan(entries, scan_of(order), "nft filter"))


def standing(order: Sequence[bytes]) -> dict[bytes, list[int]]:
    return {identity: [n for n, each in enumerate(order) if each == identity] for identity in order}


# Many twins among the rules that stay, and among those that go; a rule that stays is never like one that goes.
kinds = st.sampled_from([b"a", b"b", b"c", b"-x", b"-y"])
chains = st.lists(kinds, max_size=20)


def going_of(order: Sequence[bytes]) -> list[int]:
    return [position for position, identity in enumerate(order, 1) if identity.startswith(b"-")]


def without(order: Sequence[bytes], going: Sequence[int]) -> list[bytes]:
    return [identity for position, identity in enumerate(order, 1) if position not in set(going)]


@given(chains, st.integers(1, 6))
def test_where_nothing_else_changed_the_chain_is_as_it_was(order: list[bytes], batch: int) -> None:
    going = going_of(order)
    assume(going)
    assert put_back(without(order, going), journal_of(order, going, batch)) == order


@given(chains, st.integers(1, 6), st.integers(2, 8))
def test_a_chain_swept_in_several_looks_comes_back_as_it_was(order: list[bytes], batch: int, limit: int) -> None:
    entries: list[Entry] = []
    now = list(order)
    while going := going_of(now[:limit]) or going_of(now):
        # A look reads the head of the chain only, so its last rules do not know what stands behind them.
        seen = now[:limit] if going[-1] <= limit else now
        entries += journal_of(seen, going, batch, first=len(entries) + 1)
        now = without(now, going)
    assume(entries)
    assert put_back(now, entries) == order


@given(chains, st.integers(1, 6), st.data())
def test_after_a_sweep_that_was_killed_only_what_went_comes_back(
    order: list[bytes], batch: int, data: st.DataObject
) -> None:
    """The last entry was written, and its transaction never sent."""
    # Told apart, as a copy that still stands would look like the one that went.
    order = [identity + b"%d" % n if identity.startswith(b"-") else identity for n, identity in enumerate(order)]
    going = going_of(order)
    entries = journal_of(order, going, batch)
    assume(entries)
    done = data.draw(st.integers(0, len(entries) - 1))
    now = without(order, going[: done * batch])
    after = put_back(now, entries[: done + 1])
    assert sorted(after) == sorted(order)
    # Where the rules stand that the sweep never came to is nothing that the others' places depend on.
    spared = {order[position - 1] for position in going[done * batch :]}
    assert [r for r in after if r not in spared] == [r for r in order if r not in spared]


@st.composite
def changed_by_others(draw: st.DrawFn) -> tuple[list[bytes], list[bytes]]:
    """A chain before a sweep, and after it and after others took rules away, added some and moved some."""
    dead = draw(st.lists(st.booleans(), max_size=10))
    dead.insert(draw(st.integers(0, len(dead))), True)
    order = [b"-%d" % n if each else b"%d" % n for n, each in enumerate(dead)]
    now = without(order, going_of(order))
    fresh = count()
    for _ in range(draw(st.integers(0, 6))):
        what = draw(st.sampled_from(["add", "move", "delete", "move"]))
        taken = now.pop(draw(st.integers(0, len(now) - 1))) if what != "add" and now else b"new%d" % next(fresh)
        if what != "delete":
            now.insert(draw(st.integers(0, len(now))), taken)
    return order, now


def neighbours(order: Sequence[bytes], index: int, now: Sequence[bytes]) -> tuple[bytes | None, bytes | None]:
    """The nearest rules before and behind ``order[index]`` that stayed, where they still stand in ``now``."""
    before = next((r for r in reversed(order[:index]) if not r.startswith(b"-")), None)
    behind = next((r for r in order[index + 1 :] if not r.startswith(b"-")), None)
    return before if before in now else None, behind if behind in now else None


@settings(max_examples=300)  # few of them are those that show anything
@given(changed_by_others(), st.integers(1, 4))
def test_whatever_others_did_each_rule_stands_between_its_neighbours_or_nothing_is_restored(
    chain: tuple[list[bytes], list[bytes]], batch: int
) -> None:
    order, now = chain
    try:
        after = put_back(now, journal_of(order, going_of(order), batch))
    except NetsweepError:
        return
    assert [r for r in after if not r.startswith(b"-")] == now, "rules of others were touched"
    assert sorted(r for r in after if r.startswith(b"-")) == sorted(r for r in order if r.startswith(b"-"))
    for index, rule in enumerate(order):
        if not rule.startswith(b"-"):
            continue
        at = after.index(rule)
        before, behind = neighbours(order, index, now)
        assert before or behind or all(r.startswith(b"-") for r in order), "neither was there to hold on to"
        if before:
            assert after.index(before) < at
        if behind:
            assert at < after.index(behind)
        # Next to one of them: nothing but other rules of the same gap is in between.
        gap = (b"-", *(r for r in (before,) if r))
        if before:
            assert all(r.startswith(gap) for r in after[after.index(before) : at])
        elif behind:
            assert all(r.startswith(b"-") for r in after[at : after.index(behind)])


@given(changed_by_others())
def test_it_is_refused_only_where_a_neighbour_is_gone_or_they_changed_sides(
    chain: tuple[list[bytes], list[bytes]],
) -> None:
    order, now = chain
    going = going_of(order)
    for position in going:
        before, behind = neighbours(order, position - 1, now)
        if before and behind:
            assume(now.index(before) < now.index(behind))
        else:
            assume(before or behind or all(r.startswith(b"-") for r in order))
    assert len(put_back(now, journal_of(order, going))) == len(now) + len(going)


@given(changed_by_others())
def test_rules_of_one_gap_keep_their_order(chain: tuple[list[bytes], list[bytes]]) -> None:
    order, now = chain
    try:
        after = put_back(now, journal_of(order, going_of(order), batch=2))
    except NetsweepError:
        return
    place_of = places(order, going_of(order))
    for place in set(place_of.values()):
        gap = [order[position - 1] for position in sorted(place_of) if place_of[position] == place]
        start = after.index(gap[0])
        assert after[start : start + len(gap)] == gap


def test_places_name_the_rules_that_stay_and_which_of_their_kind() -> None:
    order = [b"-1", b"a", b"-2", b"-3", b"a", b"-4"]
    first, second = Anchor(b"a", 0), Anchor(b"a", 1)
    assert places(order, [1, 3, 4, 6]) == {
        1: Place(None, first),
        3: Place(first, second),
        4: Place(first, second),
        6: Place(second, None),
    }
    assert places([b"-1", b"-2"], [1, 2]) == {1: Place(None, None), 2: Place(None, None)}
    assert places([b"a"], []) == places([], []) == {}


@pytest.mark.parametrize(
    ("order", "place", "expected"),
    [
        ([b"a", b"b"], Place(Anchor(b"a", 0), Anchor(b"b", 0)), 1),
        ([b"new", b"b"], Place(Anchor(b"a", 0), Anchor(b"b", 0)), 1),
        ([b"a", b"new"], Place(Anchor(b"a", 0), Anchor(b"b", 0)), 1),
        ([b"a", b"new", b"b"], Place(Anchor(b"a", 0), Anchor(b"b", 0)), 1),
        ([b"new"], Place(Anchor(b"a", 0), Anchor(b"b", 0)), None),
        ([b"a", b"a", b"a"], Place(Anchor(b"a", 1), None), 2),
        ([b"a"], Place(Anchor(b"a", 1), None), None),
        ([b"new", b"b"], Place(None, Anchor(b"b", 0)), 1),
        ([b"new"], Place(None, Anchor(b"b", 0)), None),
        ([b"new"], Place(None, None), 0),
        ([], Place(None, None), 0),
    ],
)
def test_a_place_is_found_by_either_neighbour(order: list[bytes], place: Place, expected: int | None) -> None:
    assert find_place(order, place, standing(order)) == expected


def test_a_place_whose_neighbours_changed_sides_is_none() -> None:
    """Behind the one it would stand behind the other too, which it never did."""
    order = [b"b", b"new", b"a"]
    assert find_place(order, Place(Anchor(b"a", 0), Anchor(b"b", 0)), standing(order)) is None


def test_an_entry_whose_rules_all_stand_was_never_acted_on() -> None:
    order = [b"a", b"-1", b"-2", b"b"]
    assert plan(journal_of(order, [2, 3]), scan_of(order), "nft filter") == []


def test_an_entry_some_of_whose_rules_stand_is_refused() -> None:
    entries = journal_of([b"a", b"-1", b"-2", b"b"], [2, 3])
    with pytest.raises(NetsweepError, match=r"nft filter/FORWARD has some of the rules again.*nothing was restored"):
        put_back([b"a", b"-2", b"b"], entries)


def test_rules_whose_neighbours_are_gone_are_refused() -> None:
    entries = journal_of([b"a", b"-1", b"b"], [2])
    with pytest.raises(
        NetsweepError, match="around their places in nft filter/FORWARD have gone: nothing was restored"
    ):
        put_back([b"new"], entries)


@pytest.mark.parametrize(("missing", "jump"), [(CHAIN, None), ("USERS", "USERS")])
def test_rules_whose_chain_or_target_is_gone_are_refused(missing: str, jump: str | None) -> None:
    scan = scan_of([], missing=[missing])
    if missing == CHAIN:
        del scan.order[CHAIN]
    entry = Entry(1, "nft", "filter", [saved(b"-1", Place(None, None), jump)])
    with pytest.raises(NetsweepError, match=f"chain nft filter/{missing} is gone: nothing was restored"):
        plan([entry], scan, "nft filter")


def test_chains_of_one_table_are_planned_each_for_itself() -> None:
    scan = Scan("filter", ["A", "B"], order={"A": [b"x"], "B": [b"y", b"x"]})
    behind_x = Place(Anchor(b"x", 0), None)
    rules = [Saved(chain, b"-1" + chain.encode(), behind_x, None, {}, chain.encode()) for chain in "AB"]
    assert plan([Entry(1, "nft", "filter", rules)], scan, "nft filter") == [
        Addition("A", 1, [b"A"]),
        Addition("B", 2, [b"B"]),
    ]
