from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netsweep.firewall.nftables import dumps
from netsweep.firewall.nftables.dumps import Dump, Gathered
from netsweep.host import netlink
from netsweep.host.netlink import attribute
from netsweep.model import Chain, Family, Rule, Spec, Table

CHAIN = Chain(Table("nft", Family.IPV4, "filter"), "FORWARD")


def message(handle: int, before: int | None) -> bytes:
    """What the kernel says of a rule; ``before`` is the handle of the rule before it."""
    names = attribute(1, b"filter\0") + attribute(2, b"FORWARD\0") + attribute(3, struct.pack(">Q", handle))
    place = b"" if before is None else attribute(6, struct.pack(">Q", before))
    return netlink.request(0xA06, 0, struct.pack(">BBH", 2, 0, 0) + names + place + attribute(4, b""))


class Kernel:
    """A chain that is dumped as nf_tables does it: a few rules at once, and on from as many as were passed.

    ``changes`` are made between two answers, each a kind and a place.
    """

    def __init__(self, rules: int, changes: Sequence[tuple[str, float]], at_once: int) -> None:
        self.rules = list(range(1, rules + 1))
        self.old = set(self.rules)
        self._changes = iter(changes)
        self._at_once = at_once
        self._made = rules
        self.departures = 0

    def dump(self, *_: object) -> Iterator[tuple[bytes, int, int]]:
        passed = 0
        while answer := self._answer(passed):
            passed += len(answer)
            yield from ((each, 0, len(each)) for each in answer)
            self._change()

    def _answer(self, passed: int) -> list[bytes]:
        places = range(passed, min(passed + self._at_once, len(self.rules)))
        return [message(self.rules[place], self.rules[place - 1] if place else None) for place in places]

    def _change(self) -> None:
        kind, where = next(self._changes, ("nothing", 0.0))
        place = int(where * len(self.rules))
        if kind == "delete" and self.rules:
            self.old.discard(self.rules.pop(place))
            self.departures += 1
        elif kind == "insert":
            self._made += 1
            self.rules.insert(place, self._made)


def gather(kernel: Kernel, gathered: Gathered, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Dump once, and return what was shown, in its order."""
    monkeypatch.setattr(netlink, "dump", kernel.dump)
    with socket.socket() as unused:
        dump = Dump(unused, CHAIN)
        before = kernel.departures
        shown = [handle for handle, _, _ in dump]
    if kernel.departures == before:
        dump.end()
    gathered.add(dump.runs)
    return shown


def again(kernel: Kernel) -> Kernel:
    """The same chain, which nobody changes any more."""
    quiet = Kernel(0, [], 3)
    quiet.rules = list(kernel.rules)
    return quiet


changes = st.lists(
    st.tuples(st.sampled_from(["delete", "delete", "insert", "nothing"]), st.floats(0, 1, exclude_max=True)),
    max_size=60,
)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 30), changes, st.integers(1, 7), st.integers(1, 6))
def test_what_is_complete_has_every_rule_that_was_there_all_the_time(
    rules: int, made: list[tuple[str, float]], at_once: int, most: int
) -> None:
    kernel, gathered, shown = Kernel(rules, made, at_once), Gathered(), set[int]()
    with pytest.MonkeyPatch.context() as monkeypatch:
        for _ in range(most):
            shown.update(gather(kernel, gathered, monkeypatch))
            if gathered.complete:
                assert kernel.old <= shown
                return
        # Once nobody changes it any more, one dump is enough.
        assert gather(again(kernel), gathered, monkeypatch) == kernel.rules
        assert gathered.complete


def run(changes: Sequence[tuple[str, float]], monkeypatch: pytest.MonkeyPatch) -> tuple[Kernel, Gathered, list[int]]:
    kernel, gathered = Kernel(12, changes, 3), Gathered()
    return kernel, gathered, gather(kernel, gathered, monkeypatch)


def test_a_dump_without_changes_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, gathered, shown = run([], monkeypatch)
    assert shown == kernel.rules
    assert gathered.complete


def test_rules_that_come_meanwhile_leave_no_gap_and_are_shown_once(monkeypatch: pytest.MonkeyPatch) -> None:
    _, gathered, shown = run([("insert", 0.0)] * 3, monkeypatch)
    assert shown == list(range(1, 13))
    assert gathered.complete


def test_a_rule_that_goes_ahead_of_the_cursor_leaves_a_gap_that_the_next_dump_fills(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel, gathered, shown = run([("delete", 0.0)], monkeypatch)
    assert 4 not in shown
    assert not gathered.complete
    assert gather(again(kernel), gathered, monkeypatch) == kernel.rules
    assert gathered.complete


def test_the_last_rules_may_be_hidden_by_one_that_goes_in_front(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is shown tells of the gap."""
    _, gathered, shown = run([("nothing", 0.0)] * 2 + [("delete", 0.0)] * 3, monkeypatch)
    assert shown[-1] in (9, 12)
    assert not gathered.complete


def test_dumps_that_share_no_rule_prove_nothing_together() -> None:
    gathered = Gathered()
    gathered.add([{None, 1, 2}, {5, 6}])
    gathered.add([{None, 1}, {3, 4}, {6, 7, dumps._END}])
    assert not gathered.complete
    gathered.add([{2, 3}])
    assert not gathered.complete
    gathered.add([{4, 5}])
    assert gathered.complete


def test_a_limit_that_one_dump_reached_ends_no_later_one() -> None:
    gathered = Gathered()
    gathered.add([{None, 1, 2}, {5, 6, 7}], last=7)
    assert not gathered.complete
    gathered.add([{None, 1, 2, 5, 6, 7}], last=7)
    assert gathered.complete
    gathered.add([{None, 1, 2, 5, 6}])
    assert not gathered.complete, "fewer rules stand now, and what is behind them is not proven"
    gathered.add([{None, 1, 2, 5, 6, dumps._END}])
    assert gathered.complete


def test_what_a_complete_dump_does_not_show_has_gone() -> None:
    gathered = Gathered()
    rules = [Rule(CHAIN, handle, handle, Spec()) for handle in (1, 2, 3)]
    gathered.rules = {rule.handle or 0: rule for rule in rules}
    gathered.add([{None, 1}, {3}])
    assert list(gathered.rules) == [1, 2, 3]
    gathered.add([{None, 1, 3, dumps._END}])
    assert list(gathered.rules) == [1, 3]
