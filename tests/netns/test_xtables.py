"""What only x_tables has: entries that are recognised by their bytes, and counters of policies."""

from __future__ import annotations

from contextlib import closing

import pytest

from netsweep.firewall.opening import open_backend
from netsweep.firewall.xtables import transport
from netsweep.firewall.xtables.codec import Layout, decode
from netsweep.model import Chain, Family, Rule, Spec, Table
from tests.namespace import FAMILIES, Namespace, program, read, restore_input

FORWARD = Chain(Table("legacy", Family.IPV4, "filter"), "FORWARD")
FORWARD_6 = Chain(Table("legacy", Family.IPV6, "filter"), "FORWARD")

forwards = pytest.mark.parametrize("forward", [FORWARD, FORWARD_6], ids=FAMILIES["legacy"])


def rules(*names: str, chain: str = "FORWARD") -> str:
    return restore_input({"filter": [f"-A {chain} -m comment --comment {name} -j ACCEPT" for name in names]})


@forwards
def test_rules_that_are_recognised_by_their_bytes_have_the_positions_of_now(
    ns: Namespace, forward: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = forward.table.family
    names = [f"hm-{number}" for number in range(300)]
    ns.restore("legacy", rules("hm-first", *names), family)
    decoded: list[bytes] = []

    def counted(raw: bytes, layout: Layout, target: bytes | None, *, jumps: bool) -> Spec:
        decoded.append(raw)
        return decode(raw, layout, target, jumps=jumps)

    monkeypatch.setattr(transport, "decode", counted)

    def read_twice() -> list[Rule]:
        with closing(open_backend("legacy", (b"hm",), writes=True)) as backend:
            first = read(backend, forward).rules
            ns.iptables("legacy", "-D", "FORWARD", "1", family=family)
            with backend.transaction([forward], first) as transaction:
                return list(transaction.rules)

    found = ns.inside(read_twice)
    assert [(rule.position, rule.spec.comment) for rule in found] == list(enumerate(names, 1))
    # Only what other bytes stand in gaps of is read a second time.
    assert len(decoded) < 2 * len(names)


@forwards
def test_a_jump_is_read_anew_as_its_bytes_are_an_offset(ns: Namespace, forward: Chain) -> None:
    """The same bytes lead to another chain once a chain before it has gone."""
    chains, family = [":A - [0:0]", ":B - [0:0]", ":C - [0:0]"], forward.table.family
    jumps = ["-A FORWARD -i hm1 -j B", "-A FORWARD -i hm1 -j C"]
    ns.restore("legacy", restore_input({"filter": [*chains, *jumps]}), family)

    def read_twice() -> list[str | None]:
        with closing(open_backend("legacy", (b"hm",), writes=True)) as backend:
            first = read(backend, forward).rules
            lines = ["-D FORWARD 1", "-X B", ":D - [0:0]", "-I FORWARD 1 -i hm1 -j D"]
            ns.restore("legacy", restore_input({"filter": lines}), family)
            second = read(backend, forward).rules
            return [rule.spec.target for rule in (*first, *second)]

    assert ns.inside(read_twice) == ["B", "C", "D", "C"]


@forwards
@pytest.mark.parametrize("undo", [False, True])
def test_a_rule_without_a_target_is_read_anew_as_its_bytes_are_an_offset(
    ns: Namespace, forward: Chain, undo: bool
) -> None:
    """The offset of the rule behind it: the same bytes are a jump once a chain begins there."""
    restore = program("legacy", forward.table.family, "-restore")
    ns.run(restore, input=restore_input({"filter": [":A - [0:0]", "-A A -i hm1"]}))

    def read_twice() -> list[tuple[str | None, str | None]]:
        with closing(open_backend("legacy", (b"hm",), undo=undo, writes=True)) as backend:
            first = read(backend, Chain(forward.table, "A")).rules
            ns.run(restore, input=restore_input({"filter": [":B - [0:0]", "-A FORWARD -i hm1 -j B"]}))
            rules = [*first, *read(backend, forward).rules]
            return [(rule.spec.target, rule.undo.jump if rule.undo else rule.spec.target) for rule in rules]

    assert ns.inside(read_twice) == [(None, None), ("B", "B")]


@forwards
@pytest.mark.parametrize("undo", [False, True])
def test_a_commit_keeps_the_counters_of_policies_and_of_other_chains(ns: Namespace, forward: Chain, undo: bool) -> None:
    family = forward.table.family
    tables = [":INPUT ACCEPT [5:500]", ":FORWARD DROP [7:700]", ":USERS - [0:0]", "[3:30] -A INPUT -i lo -j USERS"]
    text = restore_input({"filter": [*tables, "[1:10] -A FORWARD -i hm1 -j DROP", "[2:20] -A FORWARD -j USERS"]})
    ns.run(program("legacy", family, "-restore"), "-c", input=text)
    before = ns.save("legacy", family)

    def delete() -> None:
        with closing(open_backend("legacy", (b"hm",), undo=undo, writes=True)) as backend:
            found = read(backend, forward).rules
            with backend.transaction([forward], found, orders=undo) as transaction:
                transaction.delete(transaction.rules)
                transaction.commit()

    ns.inside(delete)
    assert ns.save("legacy", family) == [line for line in before if "hm1" not in line]


@forwards
def test_the_tables_of_the_other_family_and_other_tables_of_this_one_are_not_made(
    ns: Namespace, forward: Chain
) -> None:
    ns.iptables("legacy", "-A", "FORWARD", "-i", "hm1", "-j", "DROP", family=forward.table.family)

    def look() -> list[Table]:
        with closing(open_backend("legacy", (b"hm",), undo=True, writes=True)) as backend:
            rules = backend.read(backend.tables(), lambda _: True).rules
            with backend.transaction([forward], rules, orders=True) as transaction:
                assert len(transaction.rules) == 1
            return list(backend.tables())

    assert ns.inside(look) == [forward.table]


def test_a_rule_with_two_comments_has_both(ns: Namespace) -> None:
    both = ("-m", "comment", "--comment", "hypeman-x-hm1", "-m", "comment", "--comment", "hypeman-x-hmdead")
    ns.iptables("legacy", "-A", "FORWARD", *both, "-j", "DROP")

    def look() -> tuple[str, ...]:
        with closing(open_backend("legacy", (b"hm",), writes=True)) as backend:
            return read(backend, FORWARD).rules[0].spec.comments

    assert ns.inside(look) == ("hypeman-x-hm1", "hypeman-x-hmdead")
