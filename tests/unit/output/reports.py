"""Reports to show."""

from __future__ import annotations

from typing import Any

from netsweep.model import (
    Address,
    BackendName,
    Bridge,
    BridgeFinding,
    Chain,
    Family,
    Finding,
    Interface,
    Lease,
    Rule,
    Spec,
    Table,
    Verdict,
)
from netsweep.report import BackendReport, LeaseFile, LockTimes, Report

CHAINS = ["filter/FORWARD", "nat/POSTROUTING"]


def finding(
    bridge: str | None = "hmdead",
    position: int = 1,
    *,
    backend: BackendName = "legacy",
    family: Family = Family.IPV4,
    table: str = "filter",
    chain: str = "FORWARD",
    handle: int | None = None,
    comment: str | None = None,
    verdict: Verdict = Verdict.ORPHAN,
    reason: str = "bridge is gone",
    live_traffic: str | None = None,
) -> Finding:
    """A finding on ``-i BRIDGE -j ACCEPT``, or with ``live_traffic`` on ``! -i BRIDGE`` and that target."""
    spec = Spec(
        in_interface=Interface(bridge, negated=live_traffic is not None) if bridge else None,
        target=live_traffic or "ACCEPT",
        comments=() if comment is None else (comment,),
    )
    rule = Rule(Chain(Table(backend, family, table), chain), position, handle, spec)
    return Finding(rule, verdict, bridge, reason, live_traffic)


def negated(number: int, target: str = "DROP") -> list[Finding]:
    """Rules that stay though what they match negated is gone."""
    return [
        finding(f"hm{nth:x}", nth, verdict=Verdict.NEGATED, reason="only negated", live_traffic=target)
        for nth in range(1, number + 1)
    ]


def listed(orphans: list[Finding], scanned: int = 1203) -> Report:
    """The report of a ``list`` that found ``orphans``."""
    return Report(
        "list",
        orphans=orphans,
        backends=[BackendReport("legacy", Family.IPV4, scanned, len(orphans))],
        chains=list(CHAINS),
        leases=LeaseFile("/tmp/leases", True, 3, 1),
        duration_ms=2540.54,
    )


def swept(orphans: list[Finding], scanned: int = 1203) -> Report:
    """The report of a ``sweep`` that deleted ``orphans``."""
    report = listed(orphans, scanned)
    report.command = "sweep"
    report.backends[0].deleted = len(orphans)
    report.subnet_lock = LockTimes("/tmp/lock", 0.12345, 9.87654, 5.4321)
    return report


def leaked(bridges: int) -> list[Finding]:
    """Three rules of each bridge, in two chains."""
    return [
        finding(f"hm{number:04x}", number * 3 + nth + 1, table=table, chain=chain)
        for number in range(bridges)
        for nth, (table, chain) in enumerate([("filter", "FORWARD")] * 2 + [("nat", "POSTROUTING")])
    ]


def bridge(
    name: str = "hmdead",
    *,
    verdict: Verdict = Verdict.LEAKED,
    reason: str = "not leased, and 2 hours old",
    subnet: str | None = "10.200.1.1/24",
    deleted: bool = False,
    lease: Lease | None = None,
    **fields: Any,
) -> BridgeFinding:
    """A finding on a bridge that is two hours old."""
    addresses = (Address(subnet, 7200.25),) if subnet else ()
    return BridgeFinding(Bridge(name, 7, addresses=addresses, **fields), verdict, reason, lease, deleted)


def torn_down(bridges: int = 1, rules: int = 3, leases: int = 1) -> Report:
    """The report of a ``teardown``."""
    report = swept([finding("hm1", position + 1) for position in range(rules)])
    report.command = "teardown"
    report.bridges = [bridge(f"hm{number:x}", reason="it was torn down", deleted=True) for number in range(bridges)]
    report.leases_removed = leases
    return report
