"""Verdicts on bridges: a bridge goes only on proof that its owner is dead."""

from __future__ import annotations

import math
from typing import Any

import pytest

from netsweep.model import Address, Bridge, Lease, Verdict
from netsweep.policy.bridges import BridgePolicy, Leased, duration
from netsweep.policy.names import Names

HOUR = 3600.0
OLD = (Address("10.200.1.1/24", HOUR),)
YOUNG = (Address("10.200.1.1/24", HOUR - 0.01),)
LEASE = Lease("10.200.1.0/24", "hm1", 4711)
DEAD = Leased([LEASE], None, "its lease names PID 4711, which is gone")
NOBODY = Leased()
ALIVE = Leased([LEASE], "a running process (PID 4711) holds a lease for hm1")


def policy(min_age: float | None = HOUR, *globs: str) -> BridgePolicy:
    return BridgePolicy(Names(["hm"], ["ha"], ["hypeman-{role}-{name}"], globs), min_age)


def judged(leased: Leased = NOBODY, *, by: BridgePolicy | None = None, **bridge: Any) -> tuple[Verdict, str]:
    found = (by or policy()).judge(Bridge(**{"name": "hm1", "ifindex": 7, "addresses": OLD, **bridge}), leased)
    return found.verdict, found.reason


@pytest.mark.parametrize(
    ("bridge", "leased", "verdict", "reason"),
    [
        ({}, Leased(), Verdict.LEAKED, "not leased, and 1 hour old"),
        ({"addresses": YOUNG}, Leased(), Verdict.UNDECIDABLE, "59 minutes old, and not leased"),
        ({"addresses": YOUNG}, DEAD, Verdict.LEAKED, "its lease names PID 4711, which is gone"),
        ({"addresses": ()}, DEAD, Verdict.LEAKED, "its lease names PID 4711, which is gone"),
        ({}, ALIVE, Verdict.LEASED, "leased: a running process (PID 4711) holds a lease for hm1"),
        ({"ports": ("tap1", "tap2")}, Leased(), Verdict.LIVE, "has port tap1, has port tap2"),
        ({"ports": ("tap1",)}, DEAD, Verdict.LIVE, "has port tap1"),
        ({"uses": ("mv0 is on top of it",)}, DEAD, Verdict.LIVE, "mv0 is on top of it"),
        ({"ports": ("tap1",), "uses": ("x uses it",)}, DEAD, Verdict.LIVE, "has port tap1, x uses it"),
        # No age.
        (
            {"addresses": ()},
            Leased(),
            Verdict.UNDECIDABLE,
            "age unknown: it has no address of its own with an age in the kernel",
        ),
        ({"addresses": (Address("fe80::1/64", HOUR),)}, Leased(), Verdict.UNDECIDABLE, "age unknown: it has no addr"),
        ({"addresses": (*OLD, Address("10.0.0.1/8", None))}, Leased(), Verdict.UNDECIDABLE, "age unknown: it has no"),
        # The youngest address counts, link-local ones too.
        ({"addresses": (*OLD, *YOUNG)}, Leased(), Verdict.UNDECIDABLE, "59 minutes old, and not leased"),
        ({"addresses": (*OLD, Address("fe80::1/64", 5.0))}, Leased(), Verdict.UNDECIDABLE, "5 seconds old, and not"),
        ({"addresses": (*OLD, Address("fe80::1/64", None))}, Leased(), Verdict.UNDECIDABLE, "age unknown: it has no"),
        ({"addresses": (Address("fd00::1/64", 86400.0),)}, Leased(), Verdict.LEAKED, "not leased, and 1 day old"),
        # Not ours, by whatever name.
        ({"name": "ha1"}, DEAD, Verdict.PROTECTED, "ha1 is protected"),
        ({"aliases": ("ha1",)}, DEAD, Verdict.PROTECTED, "ha1 is protected"),
        ({"name": "br0", "aliases": ("hm1",)}, DEAD, Verdict.FOREIGN, "br0 is not a name of ours: a prefix and hex"),
        ({"aliases": ("mine",)}, DEAD, Verdict.FOREIGN, "mine is not a name of ours: a prefix and hex digits"),
        ({"aliases": ("hm2",)}, DEAD, Verdict.LEAKED, "its lease names PID 4711"),
        ({"kind": "veth"}, DEAD, Verdict.FOREIGN, "it is a veth, not a bridge"),
        ({"kind": None}, DEAD, Verdict.FOREIGN, "it is hardware, not a bridge"),
    ],
)
def test_verdicts(bridge: dict[str, Any], leased: Leased, verdict: Verdict, reason: str) -> None:
    found, said = judged(leased, **bridge)
    assert found is verdict
    assert said.startswith(reason)


def test_of_several_reasons_the_strongest_is_given() -> None:
    """Each of these is given up in turn, and the next one shows."""
    bridge: dict[str, Any] = {
        "name": "ha1",
        "aliases": ("other",),
        "kind": "veth",
        "ports": ("tap1",),
        "addresses": YOUNG,
    }
    assert judged(ALIVE, **bridge)[0] is Verdict.PROTECTED
    bridge["name"] = "hm1"
    assert judged(ALIVE, **bridge) == (Verdict.FOREIGN, "other is not a name of ours: a prefix and hex digits")
    bridge["aliases"] = ()
    assert judged(ALIVE, **bridge) == (Verdict.FOREIGN, "it is a veth, not a bridge")
    bridge["kind"] = "bridge"
    assert judged(ALIVE, **bridge)[0] is Verdict.LEASED
    assert judged(DEAD, **bridge)[0] is Verdict.LIVE
    bridge["ports"] = ()
    assert judged(DEAD, **bridge)[0] is Verdict.LEAKED
    assert judged(Leased(), **bridge)[0] is Verdict.UNDECIDABLE


def test_where_no_age_proves_anything_only_a_lease_does() -> None:
    never = policy(None)
    old = (Address("10.200.1.1/24", 1e9),)
    assert judged(by=never, addresses=old) == (Verdict.UNDECIDABLE, "11574 days old, and not leased")
    assert judged(DEAD, by=never)[0] is Verdict.LEAKED
    assert judged(by=policy(math.inf), addresses=old)[0] is Verdict.UNDECIDABLE
    assert judged(by=policy(0), addresses=(Address("10.200.1.1/24", 0.0),)) == (
        Verdict.LEAKED,
        "not leased, and 0 seconds old",
    )


def test_the_finding_holds_the_bridge_and_its_first_lease() -> None:
    bridge = Bridge("hm1", 7)
    second = Lease("10.200.2.0/24", "hm1", 1)
    assert policy().judge(bridge, Leased([LEASE, second], None, "dead"))[::3] == (bridge, LEASE)
    found = policy().judge(bridge, Leased())
    assert (found.lease, found.deleted) == (None, False)


def test_names_by_glob_are_ours_too() -> None:
    assert judged(DEAD, by=policy(HOUR, "mybr*"), name="mybr0")[0] is Verdict.LEAKED
    assert judged(DEAD, by=policy(HOUR, "mybr*"), name="hmxyz") == (Verdict.FOREIGN, "hmxyz is not a name of ours")


@pytest.mark.parametrize(
    ("names", "concerns"),
    [
        (["hm1"], True),
        (["hmxyz"], True),
        (["xhm1"], True),
        (["ha1"], True),
        (["br0", "hm1"], True),
        (["br0"], False),
        (["eth0", "lan"], False),
        ([], False),
    ],
)
def test_only_what_is_like_ours_concerns_us(names: list[str], concerns: bool) -> None:
    assert policy().concerns(names) is concerns


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 seconds"),
        (0.99, "0 seconds"),
        (1, "1 second"),
        (59.9, "59 seconds"),
        (60, "1 minute"),
        (719, "11 minutes"),
        (720, "12 minutes"),
        (3599.99, "59 minutes"),
        (3600, "1 hour"),
        (86399, "23 hours"),
        (86400, "1 day"),
        (2 * 86400, "2 days"),
    ],
)
def test_a_duration_is_in_its_largest_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_bridge_tells_its_subnet_by_its_first_address_of_its_own() -> None:
    addresses = (Address("fe80::1/64", 1.0), Address("10.200.1.77/24", 2.0), Address("10.0.0.1/8", 3.0))
    assert Bridge("hm1", 7, addresses=addresses).subnet == "10.200.1.0/24"
    assert Bridge("hm1", 7, addresses=addresses[:1]).subnet is None
    assert Bridge("hm1", 7, addresses=(Address("fd00:1::5/64", 1.0),)).subnet == "fd00:1::/64"
