"""Where deleted rules go back to, whatever became of their chain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import count

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from netsweep.errors import NetsweepError
from netsweep.firewall import Addition, Standing
from netsweep.jobs.journal import Saved, places
from netsweep.jobs.plan import plan
from netsweep.model import Chain, Family, Rule, Spec, Table, Undo

CHAIN = Chain(Table("nft", Family.IPV4, "filter"), "FORWARD")
FIRST, ANEW = 1, 2
"""Incarnations of the table."""

fast = settings(deadline=None)


class Line:
    """A chain and the journal of what was deleted from it; rules are told apart by their kinds.

    ``handles``: whether its rules have some.
    """

    def __init__(self, kinds: Sequence[str], *, handles: bool = True) -> None:
        self.entries: list[list[Saved]] = []
        self.incarnation = FIRST if handles else None
        self._numbers = count(1)
        self.order = [self._standing(kind) for kind in kinds]

    @property
    def kinds(self) -> list[str]:
        return [identity.decode() for identity, _ in self.order]

    def sweep(self, going: Sequence[int], batch: int = 1000, *, sent: int | None = None) -> None:
        """Delete the rules at the indexes ``going``, in batches; only the first ``sent`` of these reach the kernel.

        What was written down is every batch up to and with the one that did not.
        """
        chosen = [self.order[index] for index in going]
        numbers = [index + 1 for index in going]
        for number, start in enumerate(range(0, len(chosen), batch)):
            part = chosen[start : start + batch]
            rules = [
                Rule(CHAIN, position - start, each.handle, Spec(), Undo(each.identity, each.identity))
                for each, position in zip(part, numbers[start : start + batch], strict=True)
            ]
            self.entries.append(
                [
                    Saved(self.incarnation, CHAIN, each.undo or Undo(b"", b""), each.handle, *place, {})
                    for each, place in zip(rules, places(self.order, rules), strict=True)
                ]
            )
            if sent is not None and number >= sent:
                return
            at = {rule.position - 1 for rule in rules} if self.incarnation is None else set()
            self.order = [
                each
                for index, each in enumerate(self.order)
                if index not in at and not any(each is other for other in part if other.handle is not None)
            ]

    def insert(self, index: int, kind: str) -> None:
        self.order.insert(index, self._standing(kind))

    def remake(self, kinds: Sequence[str]) -> None:
        """Make the table anew; its handles begin again."""
        self._numbers = count(1)
        self.incarnation = self.incarnation and ANEW
        self.order = [self._standing(kind) for kind in kinds]

    def plan(self) -> list[Addition]:
        return plan(self.entries, CHAIN, self.order, self.incarnation)

    def restore(self, commits: int | None = None) -> list[str]:
        """Put back what the plan says, the first ``commits`` rules from the back; what stands there then."""
        steps = [(addition.place, raw) for addition in self.plan() for raw in addition.rules]
        for place, raw in list(reversed(steps))[:commits]:
            self.order.insert(place, self._standing(raw.decode()))
        return self.kinds

    def _standing(self, kind: str) -> Standing:
        return Standing(kind.encode(), None if self.incarnation is None else next(self._numbers))


@st.composite
def lines(draw: st.DrawFn) -> tuple[list[str], list[int], int, bool]:
    """A chain with many twins, which of its rules go, in what batches, and whether rules have handles.

    Where they have none, all copies of what goes go at once.
    """
    kinds = draw(st.lists(st.sampled_from("abcxy"), min_size=1, max_size=14))
    if draw(st.booleans()):
        going = draw(st.lists(st.integers(0, len(kinds) - 1), min_size=1, unique=True).map(sorted))
        return kinds, going, draw(st.integers(1, 6)), True
    kinds.append("x")
    return kinds, [index for index, kind in enumerate(kinds) if kind in "xy"], len(kinds), False


@fast
@given(lines())
def test_where_nothing_else_changed_the_chain_is_as_it_was(line: tuple[list[str], list[int], int, bool]) -> None:
    kinds, going, batch, handles = line
    chain = Line(kinds, handles=handles)
    chain.sweep(going, batch)
    assert len(chain.order) == len(kinds) - len(going)
    assert chain.restore() == kinds
    # Run again, there is nothing left to do.
    assert chain.plan() == []


@fast
@given(lines(), st.integers(0, 14))
def test_a_restore_that_was_stopped_goes_on(line: tuple[list[str], list[int], int, bool], commits: int) -> None:
    kinds, going, batch, handles = line
    chain = Line(kinds, handles=handles)
    chain.sweep(going, batch)
    chain.restore(commits)
    assert Counter(chain.restore()) == Counter(kinds)


@fast
@given(lines(), st.integers(0, 14))
def test_after_a_sweep_that_was_killed_only_what_went_comes_back(
    line: tuple[list[str], list[int], int, bool], sent: int
) -> None:
    """The last entry was written, and its transaction never sent."""
    kinds, going, batch, handles = line
    chain = Line(kinds, handles=handles)
    chain.sweep(going, batch, sent=sent)
    assert Counter(chain.restore()) == Counter(kinds)
    if handles:
        assert chain.kinds == kinds


@fast
@given(lines())
@example((["b", "a", "a"], [0, 1, 2], 1, True))
def test_in_a_table_that_was_made_anew_as_it_was_rules_come_back(
    line: tuple[list[str], list[int], int, bool],
) -> None:
    kinds, going, batch, handles = line
    chain = Line(kinds, handles=handles)
    chain.sweep(going, batch)
    chain.remake(chain.kinds)
    try:
        after = chain.restore()
    except NetsweepError:
        assert len(set(kinds)) < len(kinds), "only copies can be taken for each other"
        return
    assert after == kinds


# Others take rules away, add some and move some; all rules are told apart.


@st.composite
def changed(draw: st.DrawFn) -> tuple[Line, list[str]]:
    dead = draw(st.lists(st.booleans(), max_size=9))
    dead.insert(draw(st.integers(0, len(dead))), True)
    kinds = [f"-{n}" if each else f"{n}" for n, each in enumerate(dead)]
    chain = Line(kinds, handles=draw(st.booleans()))
    chain.sweep([index for index, each in enumerate(dead) if each], draw(st.integers(1, 4)))
    fresh = count()
    for _ in range(draw(st.integers(0, 5))):
        what = draw(st.sampled_from(["add", "move", "delete", "add"]))
        kind = f"new{next(fresh)}"
        if what != "add" and chain.order:
            kind = chain.order.pop(draw(st.integers(0, len(chain.order) - 1))).identity.decode()
        if what != "delete":
            chain.insert(draw(st.integers(0, len(chain.order))), kind)
    return chain, kinds


@settings(fast, max_examples=300)  # few of them are those that show anything
@given(changed())
def test_whatever_others_did_their_rules_stay_and_each_rule_comes_back_once_or_none_does(
    changed: tuple[Line, list[str]],
) -> None:
    chain, kinds = changed
    now = chain.kinds
    try:
        after = chain.restore()
    except NetsweepError:
        return
    assert [kind for kind in after if not kind.startswith("-")] == now, "rules of others were touched"
    assert sorted(kind for kind in after if kind.startswith("-")) == sorted(k for k in kinds if k.startswith("-"))
    # Between the nearest of its old neighbours that nobody moved.
    stayed = {identity.decode() for identity, handle in chain.order if handle is None or handle <= len(kinds)}
    for index, kind in enumerate(kinds):
        if not kind.startswith("-"):
            continue
        before = next((k for k in reversed(kinds[:index]) if k in stayed and not k.startswith("-")), None)
        behind = next((k for k in kinds[index + 1 :] if k in stayed and not k.startswith("-")), None)
        if before in after and behind in after and after.index(before) > after.index(behind):
            continue
        if chain.incarnation is not None:
            assert before not in after or after.index(before) < after.index(kind)
            assert behind not in after or after.index(kind) < after.index(behind)


@pytest.mark.parametrize("handles", [True, False])
@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (0, ["new", "a", "x", "y", "b", "z"]),
        (1, ["a", "x", "y", "b", "z"]),
        (2, ["a", "x", "y", "b", "new", "z"]),
    ],
)
def test_places_are_kept_whatever_others_insert(index: int, expected: list[str], handles: bool) -> None:
    """Before, between and behind; between the two, either side of the new rule is right."""
    chain = Line(["a", "x", "y", "b", "z"], handles=handles)
    chain.sweep([1, 2, 4])
    chain.insert(index, "new")
    after = chain.restore()
    if index == 1:
        assert after.pop(after.index("new")) == "new"
    if index == 2:
        # Nothing of its old place is behind z but the chain's end.
        assert after in (expected, ["a", "x", "y", "b", "z", "new"])
    else:
        assert after == expected


@pytest.mark.parametrize("handles", [True, False])
@pytest.mark.parametrize("gone", ["a", "b"])
def test_one_neighbour_is_enough(gone: str, handles: bool) -> None:
    chain = Line(["first", "a", "x", "b", "last"], handles=handles)
    chain.sweep([2])
    chain.order.pop(chain.kinds.index(gone))
    assert chain.restore() == [kind for kind in ("first", "a", "x", "b", "last") if kind != gone]


@pytest.mark.parametrize("handles", [True, False])
@pytest.mark.parametrize("batch", [1, 2, 10])
@pytest.mark.parametrize("tail", ["c", ""])
def test_rules_of_places_that_became_one_keep_their_order(tail: str, batch: int, handles: bool) -> None:
    """a x b y d z c, and then b and d are gone."""
    kinds = [each for each in ("a", "x", "b", "y", "d", "z", tail) if each]
    chain = Line(kinds, handles=handles)
    chain.sweep([1, 3, 5], batch)
    for gone in "bd":
        chain.order.pop(chain.kinds.index(gone))
    assert chain.restore() == [kind for kind in kinds if kind not in "bd"]


@pytest.mark.parametrize("handles", [True, False])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("tail", ["b", ""])
def test_rules_around_the_first_one_that_stayed_keep_their_order_when_it_goes(
    tail: str, batch: int, handles: bool
) -> None:
    chain = Line([each for each in ("x", "a", "y", tail) if each], handles=handles)
    chain.sweep([0, 2], batch)
    chain.order.pop(chain.kinds.index("a"))
    assert chain.restore() == [each for each in ("x", "y", tail) if each]


def test_two_copies_side_by_side_are_not_the_place_where_counting_leads_to_another() -> None:
    """Behind the drop the rule would never be reached."""
    chain = Line(["s", "x", "t", "drop", "s", "t"], handles=False)
    chain.sweep([1])
    chain.insert(1, "new")
    after = chain.restore()
    assert after.pop(after.index("new")) == "new"
    assert after == ["s", "x", "t", "drop", "s", "t"]


@pytest.mark.parametrize("handles", [True, False])
def test_neighbours_that_changed_sides_leave_no_place(handles: bool) -> None:
    """Behind the one it would stand behind the other too, which it never did."""
    chain = Line(["a", "x", "b"], handles=handles)
    chain.sweep([1])
    chain.remake(["b", "new", "a"])
    with pytest.raises(NetsweepError, match=r"a place in nft ipv4 filter/FORWARD .*nothing was restored"):
        chain.plan()


def test_rules_all_of_whose_neighbours_are_gone_leave_no_place() -> None:
    kinds = [f"{number}" for number in range(40)]
    chain = Line(kinds)
    chain.sweep([20])
    chain.remake(["new", "other"])
    with pytest.raises(NetsweepError, match="nothing was restored"):
        chain.plan()


def test_copies_are_counted_not_looked_up() -> None:
    """Of three copies two went; somebody made one again."""
    chain = Line(["a", "x", "x", "b", "x"])
    chain.sweep([1, 4])
    chain.insert(3, "x")
    assert Counter(chain.restore()) == Counter({"x": 3, "a": 1, "b": 1})


@pytest.mark.parametrize("handles", [True, False])
def test_a_chain_that_held_nothing_else_gets_its_rules_back(handles: bool) -> None:
    chain = Line(["x", "y", "x"], handles=handles)
    chain.sweep([0, 1, 2], batch=2)
    assert chain.order == []
    assert chain.restore() == ["x", "y", "x"]


def test_each_rule_leaves_the_place_between_those_that_stay() -> None:
    chain = Line(["x", "a", "y", "z", "a", "w"])
    chain.sweep([0, 2, 3, 5])
    ((x, y, z, w),) = chain.entries

    def nearest(saved: Saved) -> list[tuple[bytes, int, int]]:
        return [(each[0].identity, each[0].number, each[0].copies) if each else (b"", 0, 0) for each in saved[4:6]]

    assert nearest(x) == [(b"", 0, 0), (b"a", 0, 2)]
    assert nearest(y) == nearest(z) == [(b"a", 0, 2), (b"a", 1, 2)]
    assert nearest(w) == [(b"a", 1, 2), (b"", 0, 0)]


@fast
@given(lines())
def test_a_plan_names_each_place_once(line: tuple[list[str], list[int], int, bool]) -> None:
    kinds, going, batch, handles = line
    chain = Line(kinds, handles=handles)
    chain.sweep(going, batch)
    additions = chain.plan()
    assert {addition.chain for addition in additions} == {CHAIN}
    spots = [addition.place for addition in additions]
    assert spots == sorted(set(spots))
    assert all(0 <= place <= len(chain.order) for place in spots)
    assume(additions)
    assert sum(len(addition.rules) for addition in additions) == len(going)
