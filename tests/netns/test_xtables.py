"""What only x_tables has: entries that are recognised by their bytes, and counters of policies."""

from __future__ import annotations

from contextlib import closing

import pytest

from netsweep.firewall.opening import open_backend
from netsweep.firewall.xtables import transport
from netsweep.firewall.xtables.codec import decode
from netsweep.model import Chain, Family, Rule, Spec, Table
from tests.namespace import Namespace, restore_input

FORWARD = Chain(Table("legacy", Family.IPV4, "filter"), "FORWARD")
INPUT = Chain(FORWARD.table, "INPUT")


def rules(*names: str, chain: str = "FORWARD") -> str:
    return restore_input({"filter": [f"-A {chain} -m comment --comment {name} -j ACCEPT" for name in names]})


def test_rules_that_are_recognised_by_their_bytes_have_the_positions_of_now(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"hm-{number}" for number in range(300)]
    ns.restore("legacy", rules("hm-first", *names))
    decoded: list[bytes] = []

    def counted(raw: bytes, target: bytes | None, *, jumps: bool) -> Spec:
        decoded.append(raw)
        return decode(raw, target, jumps=jumps)

    monkeypatch.setattr(transport, "decode", counted)

    def read_twice() -> list[Rule]:
        with closing(open_backend("legacy", (b"hm",), writes=True)) as backend:
            first = backend.read([FORWARD]).rules
            ns.iptables("legacy", "-D", "FORWARD", "1")
            with backend.transaction([FORWARD], first) as transaction:
                return list(transaction.rules)

    found = ns.inside(read_twice)
    assert [(rule.position, rule.spec.comment) for rule in found] == list(enumerate(names, 1))
    # Only what other bytes stand in gaps of is read a second time.
    assert len(decoded) < 2 * len(names)


def test_a_jump_is_read_anew_as_its_bytes_are_an_offset(ns: Namespace) -> None:
    """The same bytes lead to another chain once a chain before it has gone."""
    chains = [":A - [0:0]", ":B - [0:0]", ":C - [0:0]"]
    ns.restore("legacy", restore_input({"filter": [*chains, "-A FORWARD -i hm1 -j B", "-A FORWARD -i hm1 -j C"]}))

    def read_twice() -> list[str | None]:
        with closing(open_backend("legacy", (b"hm",), writes=True)) as backend:
            first = backend.read([FORWARD]).rules
            ns.iptables("legacy", "-D", "FORWARD", "1")
            ns.iptables("legacy", "-X", "B")
            ns.iptables("legacy", "-N", "D")
            ns.iptables("legacy", "-I", "FORWARD", "1", "-i", "hm1", "-j", "D")
            second = backend.read([FORWARD]).rules
            return [rule.spec.target for rule in (*first, *second)]

    assert ns.inside(read_twice) == ["B", "C", "D", "C"]


@pytest.mark.parametrize("undo", [False, True])
def test_a_commit_keeps_the_counters_of_policies_and_of_other_chains(ns: Namespace, undo: bool) -> None:
    tables = [":INPUT ACCEPT [5:500]", ":FORWARD DROP [7:700]", ":USERS - [0:0]", "[3:30] -A INPUT -i lo -j USERS"]
    text = restore_input({"filter": [*tables, "[1:10] -A FORWARD -i hm1 -j DROP", "[2:20] -A FORWARD -j USERS"]})
    ns.run("iptables-legacy-restore", "-c", input=text)
    before = ns.save("legacy")

    def delete() -> None:
        with closing(open_backend("legacy", (b"hm",), undo=undo, writes=True)) as backend:
            found = backend.read([FORWARD]).rules
            with backend.transaction([FORWARD], found, orders=undo) as transaction:
                transaction.delete(transaction.rules)
                transaction.commit()

    ns.inside(delete)
    assert ns.save("legacy") == [line for line in before if "hm1" not in line]


def test_the_other_families_tables_are_named_and_not_made(ns: Namespace) -> None:
    ns.run("ip6tables-legacy", "-w", "5", "-A", "FORWARD", "-i", "hm1", "-j", "DROP")

    def look() -> list[Table]:
        with closing(open_backend("legacy", (b"hm",), writes=True)) as backend:
            backend.tables()
            return list(backend.tables())

    assert ns.inside(look) == [Table("legacy", Family.IPV6, "filter")]


def test_a_rule_with_two_comments_has_both(ns: Namespace) -> None:
    both = ("-m", "comment", "--comment", "hypeman-x-hm1", "-m", "comment", "--comment", "hypeman-x-hmdead")
    ns.iptables("legacy", "-A", "FORWARD", *both, "-j", "DROP")

    def read() -> tuple[str, ...]:
        with closing(open_backend("legacy", (b"hm",), writes=True)) as backend:
            return backend.read([FORWARD]).rules[0].spec.comments

    assert ns.inside(read) == ("hypeman-x-hm1", "hypeman-x-hmdead")
