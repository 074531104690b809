"""Take down whole networks by name: what the clean-up of a test does."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from netsweep.errors import ContentionError, NetsweepError, UsageError
from netsweep.firewall import Backend
from netsweep.host import leases
from netsweep.host.leases import Leases
from netsweep.host.links import Link, Links, Network, Route, find_at_once
from netsweep.host.processes import ancestors
from netsweep.jobs.bridges import bridge_of
from netsweep.jobs.locked import subnet_locked
from netsweep.jobs.look import PARSE_MAX, Judge, look_around, opened, reporting
from netsweep.jobs.patience import Patience
from netsweep.jobs.sweep import delete_rules
from netsweep.model import BridgeFinding, Lease, Table, Verdict
from netsweep.output.text import count
from netsweep.policy.names import Names
from netsweep.profiles.options import Options
from netsweep.report import Report

_LEFT = (Verdict.ORPHAN, Verdict.LIVE, Verdict.LEASED, Verdict.UNDECIDABLE)
"""Verdicts on rules that belong to a network."""


def teardown(options: Options, names: Sequence[str], subnet: str | None = None, *, force: bool = False) -> Report:
    """Delete the bridges called ``names``, their routes, rules and leases; what is gone already counts as done.

    ``subnet``: that of the one network, where neither its lease nor its bridge tells. ``force``: also where another
    running process leases it. The leases go last, so that nobody else gets the name while it is taken down.
    Raises :class:`~netsweep.errors.NetsweepError` where anything of a network is left; the rest is done anyway.
    """
    report, failures = Report("teardown"), list[NetsweepError]()
    with reporting(report):
        policy = Judge(options).policy
        subnets = _checked(policy.names, names, subnet)
        patience = Patience(options.wait, report)
        owners = _Owners(options, force=force)

        def attempt(step: Callable[[], object]) -> bool:
            try:
                patience.retry(step)
            except NetsweepError as error:
                failures.append(error)
                return False
            return True

        everywhere = options.everywhere()
        with Links() as links, opened(options, policy.names.prefilter, writes=True) as backends:
            down = [
                name
                for name in dict.fromkeys(names)
                if attempt(partial(_delete_bridge, options, links, policy.names, name, subnets, owners, report))
            ]
            for name, backend in backends.items():
                with Judge(everywhere, owners.is_ours, only=down) as judge:
                    attempt(partial(_delete_rules, everywhere, {name: backend}, judge, patience, report))
            if down:
                attempt(partial(_remove_leases, options, down, owners, report))
        if failures:
            raise _together(failures)
    return report


class _Owners:
    """Whose leases keep a network: not those of processes that are ``dead`` or ``ours``.

    A test that calls netsweep tears down its own network, so its process and those that it descends from are ours.
    With ``force`` so are those that lease a network when it is first looked at.
    """

    def __init__(self, options: Options, *, force: bool) -> None:
        self._path = options.lease_file
        self._force = force
        self._claimed = set[str]()
        self.known = self.read()
        self.dead = leases.dead(self.known.pids)
        self.ours = ancestors()

    def claim(self, names: Sequence[str]) -> None:
        """With ``force``, take those that lease ``names`` now for ours, the first time."""
        for name in names if self._force else ():
            if name not in self._claimed:
                self._claimed.add(name)
                self.ours |= {lease.pid for lease in self.known.by_name.get(name, ())}

    def read(self) -> Leases:
        """The leases of now."""
        self.known = leases.read(self._path) if self._path else Leases("")
        return self.known

    def read_again(self) -> Leases:
        """The leases of now, under the subnet lock; raises :class:`ContentionError` where reading them takes long."""
        return leases.read(self._path, self.known, PARSE_MAX) if self._path else self.known

    def others(self, found: Leases, names: Sequence[str]) -> str | None:
        """The reason why a lease for one of ``names`` counts that is of another process."""
        return next(iter(leases.living(found, names, self.dead, self.is_ours).values()), None)

    def is_ours(self, lease: Lease) -> bool:
        """Whether a lease is of a process that is ours."""
        return lease.pid in self.ours


def _checked(owned: Names, names: Sequence[str], subnet: str | None) -> list[Network]:
    for name in names:
        if owned.protects(name):
            raise UsageError(f"{name!a} is protected: change --protect if it is not")
        if not owned.owns(name):
            raise UsageError(f"{name!a} is not a name of ours{owned.shape}: see --prefix, --name and --profile")
    if subnet is None:
        return []
    if len(set(names)) > 1:
        raise UsageError("--subnet is for one network: give one name")
    try:
        return [ipaddress.ip_network(subnet, strict=False)]
    except ValueError as error:
        raise UsageError(f"--subnet {subnet!a} is not a subnet as 10.200.1.0/24: {error}") from error


def _delete_bridge(
    options: Options,
    links: Links,
    names: Names,
    name: str,
    subnets: Sequence[Network],
    owners: _Owners,
    report: Report,
) -> None:
    """Delete a bridge and its routes under the subnet lock, unless another running process leases it."""
    link = _checked_bridge(links.find(name=name), name, names)
    found = owners.read()
    owners.claim((name, *(link.aliases if link else ())))
    bridge, routes = None, list[Route]()
    if link:
        bridge = bridge_of(link)._replace(addresses=tuple(links.addresses().get(link.ifindex, ())))
        texts = [address.text for address in bridge.addresses]
        texts += [lease.subnet for lease in found.by_name.get(name, ())]
        within = [*subnets, *_networks(texts)]
        routes = [each for each in links.routes() if each.ifindex == link.ifindex and _is_within(each.network, within)]
        links.wait_until_quiet(link.ifindex)
    with subnet_locked(options, report):
        now = _checked_bridge(find_at_once(name=name), name, names)
        if other := owners.others(owners.read_again(), (name, *(now.aliases if now else ()))):
            raise NetsweepError(f"{name} was left alone: {other}; --force tears it down anyway")
        if (link and link.ifindex) != (now and now.ifindex):
            raise ContentionError(f"{name} was created again meanwhile")
        if link is None or bridge is None:
            return
        finish = links.delete(link.ifindex)
    try:
        deleted = finish()
    except NetsweepError:
        # They go with the bridge, and are no use where it stays.
        with suppress(NetsweepError, ContentionError):
            for route in routes:
                links.delete_route(route)
        raise
    if deleted:
        report.bridges.append(BridgeFinding(bridge, Verdict.LEAKED, "it was torn down", deleted=True))


def _checked_bridge(link: Link | None, name: str, names: Names) -> Link | None:
    if link and link.name != name:
        raise NetsweepError(f"{name} was left alone: it is an alternative name of {link.name}")
    if link and link.kind != "bridge":
        raise NetsweepError(f"{name} was left alone: it is not a bridge, but {link.kind or 'hardware'}")
    for alias in link.aliases if link else ():
        if names.protects(alias):
            raise NetsweepError(f"{name} was left alone: its alternative name {alias} is protected")
    return link


def _networks(texts: Sequence[str]) -> list[Network]:
    found = list[Network]()
    for text in texts:
        try:
            found.append(ipaddress.ip_network(text, strict=False))
        except ValueError:  # a lease may be for anything
            continue
    return found


def _is_within(network: Network, others: Sequence[Network]) -> bool:
    return any(network.version == each.version and network.subnet_of(each) for each in others)  # type: ignore[arg-type]


def _delete_rules(
    options: Options, backends: Mapping[str, Backend], judge: Judge, patience: Patience, report: Report
) -> None:
    refused: dict[Table, str] = {}
    rules, _, life, _ = look_around(options, backends, judge, patience, report)
    if orphans := judge.policy.orphans(rules, life):
        delete_rules(options, backends, orphans, judge, None, patience, refused, report)
        rules, _, life, _ = look_around(options, backends, judge, patience, report)
    left = [each for each in judge.policy.judge(rules, life) if each.verdict in _LEFT]
    if refused or left:
        shown = [f"{each.rule} is left: {each.reason}" for each in left[:1]]
        shown += [f"{count(len(left) - 1, 'more rule')} of this network left"] if len(left) > 1 else []
        raise NetsweepError("; ".join([*refused.values(), *shown]))


def _remove_leases(options: Options, names: Sequence[str], owners: _Owners, report: Report) -> None:
    """Remove the leases of networks that are gone, but those of processes that lease the names now.

    Raises :class:`NetsweepError` where one of ``names`` exists again, and nobody leased it.
    """
    found = owners.read()
    free = [name for name in names if not owners.others(found, [name])]
    back = [name for name in free if find_at_once(name=name)]
    ended = {*owners.dead, *owners.ours}
    without = found.without(lambda lease: lease.bridge in free and lease.bridge not in back and lease.pid in ended)
    if without.removed:
        with subnet_locked(options, report):
            without.replace()
        report.leases_removed += without.removed
    if back:
        raise NetsweepError(f"{back[0]} was created again meanwhile")


def _together(failures: Sequence[NetsweepError]) -> NetsweepError:
    """One error for all; its exit status is theirs where they agree."""
    kinds = {type(failure) for failure in failures}
    kind = kinds.pop() if len(kinds) == 1 else NetsweepError
    return kind("; ".join(dict.fromkeys(map(str, failures))))
