"""Whole networks that leaked: find the bridges whose owner is dead, delete them, and remove their leases."""

from __future__ import annotations

import ipaddress
import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from netsweep.errors import BusyError, ContentionError, NetsweepError, NotPermittedError
from netsweep.host import leases, observer
from netsweep.host.clocks import is_younger, process_clock
from netsweep.host.leases import Leases
from netsweep.host.links import Link, Links, find_at_once
from netsweep.host.processes import ages
from netsweep.host.sockets import SocketsInUse
from netsweep.jobs.locked import subnet_locked
from netsweep.jobs.look import Judge
from netsweep.jobs.patience import Patience
from netsweep.model import Bridge, BridgeFinding, Finding, Lease, Life, Verdict
from netsweep.output.text import count
from netsweep.policy.bridges import BridgePolicy, Leased
from netsweep.profiles.options import Options
from netsweep.report import Report

if TYPE_CHECKING:
    from netsweep.jobs.journal import Journal

PORTION = 10
"""How many bridges are deleted before all are looked at again: that takes as long as deleting one or two."""

_TURN = 0.005
"""Seconds between two holds of the subnet lock, so that those who queue for it get it first."""

_FRESH = 1.0
"""Seconds that a look counts for what is not looked at again under the lock: sockets, addresses, other namespaces."""

_LIVE = (Verdict.LIVE, Verdict.LEASED, Verdict.UNDECIDABLE)
"""Verdicts on bridges of ours that stay: in doubt, one is alive."""

_CHANGED = "it changed while it was looked at"
_UNSEEN = "a network namespace that cannot be looked into may use it: run as root, outside of containers"
_GOES_FIRST = "its bridge is leaked, and is deleted first"


class BridgeLook(NamedTuple):
    """Every bridge that may concern us, with a verdict, and what these depend on.

    ``dead`` are processes of leases that are gone, ``ages`` are those of the others, in seconds. ``stale`` are the
    leases whose process is gone and whose bridge does not exist. ``ended`` is by :func:`time.monotonic`.
    """

    ended: float
    findings: list[BridgeFinding]
    leases: Leases
    dead: Collection[int]
    ages: Mapping[int, float]
    stale: list[Lease]

    @property
    def leaked(self) -> list[BridgeFinding]:
        """The leaked ones."""
        return [finding for finding in self.findings if finding.verdict is Verdict.LEAKED]

    def leases_of(self, bridge: Bridge) -> list[Lease]:
        """The leases that name a bridge."""
        return _of(bridge, self.leases)


class Bridges:
    """Looks at the bridges of this network namespace, and deletes leaked ones. A context manager.

    ``unwanted`` are the leases of deleted bridges, and stale ones. They are removed last: nobody leases their names as
    long as rules of the old networks are left.
    """

    def __init__(self, options: Options, judge: Judge, patience: Patience, report: Report) -> None:
        self._options = options
        self._judge = judge
        self._patience = patience
        self._report = report
        self._links = Links()
        self.unwanted = set[Lease]()

    def __enter__(self) -> Bridges:
        return self

    def __exit__(self, *arguments: object) -> None:
        self._links.__exit__(*arguments)

    def find(self, *, keep: bool = False) -> BridgeLook:
        """Look at the bridges, and report the leaked ones, with ``keep`` all of them; takes no lock."""
        look, report = self._look_again(), self._report
        report.bridges, report.bridges_scanned = look.findings if keep else look.leaked, len(look.findings)
        report.bridges_live = sum(finding.verdict in _LIVE for finding in look.findings)
        report.stale_leases = len(look.stale) + sum(len(look.leases_of(finding.bridge)) for finding in look.leaked)
        return look

    def delete(self, first: BridgeLook, journal: Journal | None) -> list[str]:
        """Delete the bridges that leaked at the ``first`` look and still do.

        The subnet lock is taken again for each bridge, which is checked again under it. Returns what failed; that does
        not stop the others. Raises :class:`~netsweep.errors.NetsweepError` where none could be deleted any more.
        """
        failures = list[str]()
        self.unwanted.update(first.stale)
        shown = {finding.bridge.ifindex: finding for finding in first.leaked}
        left, look = list(shown), first
        while left:
            portion, left = left[:PORTION], left[PORTION:]
            for ifindex in portion:
                try:
                    look, shown[ifindex] = self._delete(look, shown[ifindex], journal)
                except (BusyError, NotPermittedError):
                    raise
                except NetsweepError as error:
                    failures.append(f"{shown[ifindex].bridge.name}: {error}")
                finally:
                    self._report.bridges = list(shown.values())
                observer.current.working(f"deleted {self._report.bridges_deleted:,} of {count(len(shown), 'bridge')}")
                time.sleep(_TURN)
            look = self._look_again() if left else look
        return failures

    def remove_leases(self) -> list[str]:
        """Remove the ``unwanted`` leases, under the subnet lock; return what failed."""
        path = self._options.lease_file
        if not self.unwanted or path is None:
            return []
        try:
            self._report.leases_removed += self._patience.retry(partial(self._remove, path))
        except BusyError:
            raise
        except NetsweepError as error:
            return [str(error)]
        return []

    def _remove(self, path: str) -> int:
        without = leases.read(path).without(self.unwanted.__contains__)
        if not without.removed:
            return 0
        with subnet_locked(self._options, self._report):
            without.replace()
        return without.removed

    def _look_again(self) -> BridgeLook:
        return self._patience.retry(partial(look_at_bridges, self._options, self._judge, self._links))

    def _delete(
        self, look: BridgeLook, finding: BridgeFinding, journal: Journal | None
    ) -> tuple[BridgeLook, BridgeFinding]:
        """Delete a bridge where it leaks in ``look``; return what became of it, and the look that this depends on."""

        def attempt() -> tuple[BridgeLook, BridgeFinding]:
            nonlocal look
            ifindex = finding.bridge.ifindex
            now = next((each for each in look.findings if each.bridge.ifindex == ifindex), None)
            if now is None:
                # Somebody else deleted it.
                self.unwanted.update(lease for lease in look.stale if lease.bridge in finding.bridge.names)
                return look, finding._replace(deleted=True)
            if now.verdict is not Verdict.LEAKED:
                return look, now
            if now.bridge.names != finding.bridge.names:
                return look, now._replace(verdict=Verdict.UNDECIDABLE, reason=_CHANGED)
            self._links.wait_until_quiet(ifindex)
            try:
                return look, self._delete_at_once(look, now, journal)
            except ContentionError:
                look = look_at_bridges(self._options, self._judge, self._links)
                raise

        return self._patience.retry(attempt)

    def _delete_at_once(self, look: BridgeLook, finding: BridgeFinding, journal: Journal | None) -> BridgeFinding:
        """Delete a bridge under the subnet lock, where it is as it was in ``look``."""
        bridge, links = finding.bridge, self._links
        changed = finding._replace(verdict=Verdict.UNDECIDABLE, reason=_CHANGED)
        with subnet_locked(self._options, self._report):
            if time.monotonic() > look.ended + _FRESH:
                raise ContentionError("waiting for the subnet lock took too long")
            now = self._judge.leases_since(look.leases)
            of_bridge = look.leases_of(bridge)
            if _of(bridge, now) != of_bridge or _alive([bridge], now, look.dead, look.ages):
                raise ContentionError("leases changed")
            link = find_at_once(ifindex=bridge.ifindex)
            if link is None:
                # Somebody else deleted it. Who leased its name since may be younger than the bridge was.
                self.unwanted.update(lease for lease in of_bridge if lease.pid in look.dead)
                return finding._replace(deleted=True)
            if bridge_of(link) != bridge._replace(addresses=()) or link.master or links.ports(link.ifindex):
                return changed
            if journal:
                journal.note(bridge)
            finish = links.delete(link.ifindex)
        finish()
        self.unwanted.update(of_bridge)
        return finding._replace(deleted=True)


def look_at_bridges(options: Options, judge: Judge, links: Links) -> BridgeLook:
    """Look at the bridges of this network namespace and decide on them; takes no lock.

    Raises :class:`~netsweep.errors.ContentionError` where they changed meanwhile, and
    :class:`~netsweep.errors.NetsweepError`.
    """
    policy = BridgePolicy(judge.policy.names, options.min_age)
    # Leases last: a lease is written before its bridge is made.
    everything, addresses = links.all(), links.addresses()
    # After the addresses got their ages: what is read later makes processes older, and so no bridge leaked.
    clock = process_clock()
    concerned = [link for link in everything if policy.concerns((link.name, *link.aliases))]
    bridges = list[Bridge]()
    if concerned:
        elsewhere, complete = links.elsewhere()
        bridges = _bridges(concerned, everything, elsewhere)
        bridges = [bridge._replace(addresses=tuple(addresses.get(bridge.ifindex, ()))) for bridge in bridges]
        sockets = SocketsInUse()
        # As a tunnel has its local address.
        settings = {value: link.name for link in (*everything, *elsewhere) for value in link.settings}
        unseen = () if complete else (_UNSEEN,)
        bridges = [each._replace(uses=(*each.uses, *_served(each, sockets, settings), *unseen)) for each in bridges]
    found, dead = judge.leases()
    undecided = {lease.pid for bridge in bridges for lease in _of(bridge, found)}.difference(dead)
    known = ages(undecided, clock) if undecided and clock is not None else {}
    alive = _alive(bridges, found, dead, known)
    findings = [policy.judge(bridge, _leased(bridge, found, dead, alive)) for bridge in bridges]
    here = {name for link in everything for name in (link.name, *link.aliases)}
    names = judge.policy.names
    stale = [each for each in found.all if each.pid in dead and each.bridge not in here and names.owns(each.bridge)]
    return BridgeLook(time.monotonic(), findings, found, dead, known, stale)


def bridge_of(link: Link) -> Bridge:
    """A link as a bridge, without what only a look at other links and addresses tells."""
    return Bridge(link.name, link.ifindex, link.kind, link.aliases, uses=link.others, mtu=link.mtu, mac=link.mac)


def _bridges(concerned: Sequence[Link], everything: Sequence[Link], elsewhere: Sequence[Link]) -> list[Bridge]:
    """Links as bridges, with their ports and what other links, here and ``elsewhere``, do with them."""
    ports, uses = defaultdict[int, list[str]](list), defaultdict[int, list[str]](list)
    names = {link.ifindex: link.name for link in everything}
    for link in everything:
        ports[link.master].append(link.name)
        if link.lower_nsid is None:
            uses[link.lower].append(f"{link.name} is on top of it")
        if link.master:
            uses[link.ifindex].append(f"it is a port of {names.get(link.master, 'another link')}")
    for link in elsewhere:
        uses[link.lower].append(f"{link.name} of another network namespace is on top of it")
    return [
        bridge_of(link)._replace(
            ports=tuple(ports.get(link.ifindex, ())), uses=(*uses.get(link.ifindex, ()), *link.others)
        )
        for link in concerned
    ]


def _served(bridge: Bridge, sockets: SocketsInUse, settings: Mapping[bytes, str]) -> list[str]:
    """What processes do with a bridge, and links that have an address of it among their ``settings``."""
    addresses = [address.text.split("/")[0] for address in bridge.addresses]
    used = sockets.addresses
    uses = [f"a process uses its address {each} ({used[each]})" for each in addresses if each in used]
    packed = [ipaddress.ip_address(address).packed for address in addresses if settings]
    uses += [f"{settings[each]} uses an address of it" for each in packed if each in settings]
    return uses + (["a socket is bound to it"] if bridge.ifindex in sockets.devices else [])


def _of(bridge: Bridge, found: Leases) -> list[Lease]:
    return [lease for name in bridge.names for lease in found.by_name.get(name, ())]


def _alive(
    bridges: Sequence[Bridge], found: Leases, dead: Collection[int], known: Mapping[int, float]
) -> dict[str, str]:
    """Those names of ``bridges`` that a process leases that may be the owner, each with the reason."""
    names, younger = list[str](), set[Lease]()
    for bridge in bridges:
        if of_bridge := _of(bridge, found):
            names += bridge.names
            age = bridge.age
            younger.update(
                lease
                for lease in of_bridge
                if age is not None and lease.pid in known and is_younger(known[lease.pid], age)
            )
    return leases.living(found, names, dead, younger.__contains__)


def _leased(bridge: Bridge, found: Leases, dead: Collection[int], alive: Mapping[str, str]) -> Leased:
    of_bridge = _of(bridge, found)
    if not of_bridge:
        return Leased()
    pid = of_bridge[0].pid
    how = "which is gone" if pid in dead else "which started after its address was made"
    reason = next((alive[name] for name in bridge.names if name in alive), None)
    return Leased(of_bridge, reason, f"its lease names PID {pid}, {how}")


def presumed_gone(life: Life, leaked: Sequence[BridgeFinding]) -> Life:
    """``life`` as it will be when the leaked bridges are deleted."""
    names = {name for finding in leaked for name in finding.bridge.names}
    others = {name: reason for name, reason in life.leases.items() if name not in names}
    return life._replace(gone=life.gone | names, leases=others)


def explained(findings: Sequence[Finding], leaked: Sequence[BridgeFinding]) -> list[Finding]:
    """``findings`` on orphans, with the reason why those of leaked bridges are some."""
    names = {name for finding in leaked for name in finding.bridge.names}
    return [each._replace(reason=_GOES_FIRST) if each.bridge in names else each for each in findings]
