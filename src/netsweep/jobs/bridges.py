"""Whole networks that leaked: find the bridges whose owner is dead, delete them, and remove their leases."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from netsweep.errors import BusyError, NetsweepError, NotPermittedError
from netsweep.host import leases
from netsweep.host.clocks import is_younger
from netsweep.host.leases import Leases
from netsweep.host.links import Link, Links
from netsweep.host.processes import ages
from netsweep.host.sockets import SocketsInUse
from netsweep.jobs.locked import subnet_locked
from netsweep.jobs.look import Judge
from netsweep.jobs.patience import Patience
from netsweep.model import Bridge, BridgeFinding, Finding, Lease, Life, Verdict
from netsweep.policy.bridges import BridgePolicy, Leased
from netsweep.profiles.options import Options
from netsweep.report import Report

if TYPE_CHECKING:
    from netsweep.jobs.journal import Journal

PORTION = 10
"""How many bridges are deleted before all are looked at again: deleting one takes 36 ms, a look at 500 takes 20."""

_TURN = 0.005
"""Seconds between two holds of the subnet lock, so that those who queue for it get it first."""

_GOES_WITH_BRIDGE = "its bridge is leaked, and goes first"


class BridgeLook(NamedTuple):
    """Every bridge that may concern us, with a verdict, and what these depend on.

    ``dead`` are processes of leases that are gone, ``ages`` are those of the others, in seconds. ``stale`` are the
    leases whose process is gone and whose bridge does not exist.
    """

    findings: list[BridgeFinding]
    leases: Leases
    dead: Collection[int]
    ages: Mapping[int, float]
    stale: list[Lease]

    @property
    def leaked(self) -> list[BridgeFinding]:
        """The leaked ones."""
        return [finding for finding in self.findings if finding.verdict is Verdict.LEAKED]


def look_at_bridges(options: Options, judge: Judge, links: Links) -> BridgeLook:
    """Look at the bridges of this network namespace and decide on them; takes no lock.

    Raises :class:`~netsweep.errors.ContentionError` where they changed meanwhile, and
    :class:`~netsweep.errors.NetsweepError`.
    """
    policy = BridgePolicy(judge.policy.names, options.min_age)
    everything, addresses = links.all(), links.addresses()
    concerned = [link for link in everything if policy.concerns((link.name, *link.aliases))]
    found, dead = judge.leases()
    known: Mapping[int, float] = {}
    bridges = list[Bridge]()
    if concerned:
        sockets, elsewhere = SocketsInUse(), links.elsewhere()
        for link in concerned:
            of_link = tuple(addresses.get(link.ifindex, ()))
            used = [address.text.split("/")[0] for address in of_link]
            uses = [f"{each.name} is on top of it" for each in everything if each.lower == link.ifindex]
            if link.ifindex in elsewhere:
                uses.append(f"{elsewhere[link.ifindex]} of another network namespace is on top of it")
            uses += [f"it is a port of {each.name}" for each in everything if each.ifindex == link.master]
            uses += [f"a process uses its address {address}" for address in used if address in sockets.addresses]
            uses += ["a socket is bound to it"] if link.ifindex in sockets.devices else []
            ports = tuple(each.name for each in everything if each.master == link.ifindex)
            bridges.append(bridge_of(link)._replace(addresses=of_link, ports=ports, uses=(*uses, *link.others)))
        named = {lease.pid for bridge in bridges for lease in _of(bridge, found)}
        if undecided := named.difference(dead):
            known = ages(undecided)
    findings = [policy.judge(bridge, _leased(bridge, found, dead, known)) for bridge in bridges]
    here = {name for link in everything for name in (link.name, *link.aliases)}
    names = judge.policy.names
    stale = [each for each in found.all if each.pid in dead and each.bridge not in here and names.owns(each.bridge)]
    return BridgeLook(findings, found, dead, known, stale)


def bridge_of(link: Link) -> Bridge:
    """A link as a bridge, without what only a look at other links and addresses tells."""
    return Bridge(link.name, link.ifindex, link.kind, link.aliases, uses=link.others, mtu=link.mtu, mac=link.mac)


def _of(bridge: Bridge, found: Leases) -> list[Lease]:
    return [lease for name in bridge.names for lease in found.by_name.get(name, ())]


def _leased(bridge: Bridge, found: Leases, dead: Collection[int], known: Mapping[int, float]) -> Leased:
    of_bridge = _of(bridge, found)
    if not of_bridge:
        return Leased()
    age = bridge.age
    younger = {
        lease.pid for lease in of_bridge if age is not None and lease.pid in known and is_younger(known[lease.pid], age)
    }
    alive = leases.living(found, bridge.names, dead, younger)
    pid = of_bridge[0].pid
    how = "which started after its address was made" if pid in younger else "which is gone"
    return Leased(of_bridge, next(iter(alive.values()), None), f"its lease names PID {pid}, {how}")


def find_leaked(
    options: Options, judge: Judge, links: Links, patience: Patience, report: Report, *, keep: bool = False
) -> BridgeLook:
    """Look at the bridges, and report the leaked ones, with ``keep`` all of them."""
    look = patience.retry(partial(look_at_bridges, options, judge, links))
    report.bridges, report.bridges_scanned = look.findings if keep else look.leaked, len(look.findings)
    report.stale_leases = len(look.stale) + sum(len(_of(finding.bridge, look.leases)) for finding in look.leaked)
    return look


def presumed_gone(life: Life, leaked: Sequence[BridgeFinding]) -> Life:
    """``life`` as it will be when the leaked bridges are deleted."""
    names = {name for finding in leaked for name in finding.bridge.names}
    return life._replace(
        gone=life.gone | names, leases={name: reason for name, reason in life.leases.items() if name not in names}
    )


def explained(findings: list[Finding], leaked: Sequence[BridgeFinding]) -> list[Finding]:
    """``findings`` on rules, where the reason why one is an orphan is that its bridge is one of ``leaked``."""
    names = {name for finding in leaked for name in finding.bridge.names}
    return [each._replace(reason=_GOES_WITH_BRIDGE) if each.bridge in names else each for each in findings]


def delete_leaked(
    options: Options,
    judge: Judge,
    links: Links,
    first: BridgeLook,
    journal: Journal | None,
    patience: Patience,
    report: Report,
) -> list[str]:
    """Delete the bridges that leaked at the ``first`` look and still do, and the leases that are stale then.

    The subnet lock is taken for each bridge anew, and each is checked again under it. Returns what failed; a failure
    does not stop the others. Raises :class:`~netsweep.errors.BusyError` where the lock could not be had.
    """
    failures = list[str]()
    shown = {finding.bridge.ifindex: finding for finding in first.leaked}
    left = list(shown)
    look = first
    while True:
        portion, left = left[:PORTION], left[PORTION:]
        going = [each for each in look.leaked if each.bridge.ifindex in portion]
        shown.update(
            {finding.bridge.ifindex: finding for finding in look.findings if finding.bridge.ifindex in portion}
        )
        unwanted = set() if left else set(look.stale)
        for finding in going:
            links.wait_until_quiet(finding.bridge.ifindex)
            try:
                attempt = partial(_delete_one, options, judge, links, look, finding, journal, report)
                deleted = patience.retry(attempt)
            except NetsweepError as error:
                if isinstance(error, (BusyError, NotPermittedError)):
                    raise
                failures.append(f"{finding.bridge.name}: {error}")
                continue
            changed = finding._replace(verdict=Verdict.UNDECIDABLE, reason="it changed while it was looked at")
            shown[finding.bridge.ifindex] = finding._replace(deleted=True) if deleted else changed
            unwanted.update(_of(finding.bridge, look.leases) if deleted else ())
            report.bridges = list(shown.values())
            time.sleep(_TURN)
        if unwanted:
            with subnet_locked(options, report):
                report.leases_removed += leases.remove(look.leases, unwanted.__contains__)
        if not left:
            break
        look = patience.retry(partial(look_at_bridges, options, judge, links))
    return failures


def _delete_one(
    options: Options,
    judge: Judge,
    links: Links,
    look: BridgeLook,
    finding: BridgeFinding,
    journal: Journal | None,
    report: Report,
) -> bool:
    """Delete one bridge under the subnet lock; False where it is not as it was in ``look``, and stays.

    One that is gone already counts as deleted.
    """
    bridge = finding.bridge
    with subnet_locked(options, report):
        now = judge.leases_since(look.leases)
        if _of(bridge, now) != _of(bridge, look.leases) or _leased(bridge, now, look.dead, look.ages).alive:
            return False
        link = links.find(ifindex=bridge.ifindex)
        if link is None:
            return True
        if (
            bridge_of(link) != bridge._replace(addresses=(), ports=(), uses=())
            or link.master
            or links.ports(link.ifindex)
        ):
            return False
        if journal:
            journal.note(bridge)
        links.delete(link.ifindex)
        return True
