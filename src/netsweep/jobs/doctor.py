"""What this host has, and what a sweep would end with here. Changes nothing, takes no lock."""

from __future__ import annotations

import ipaddress
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any, TypeVar

from netsweep.errors import BusyError, NetsweepError
from netsweep.host import capabilities, leases, processes
from netsweep.host.files import describe, open_regular
from netsweep.host.links import Links
from netsweep.host.locks import xtables_lock_path
from netsweep.host.programs import find_program
from netsweep.jobs.bridges import look_at_bridges
from netsweep.jobs.look import SWEPT, BackendSurvey, Judge, survey
from netsweep.jobs.patience import Patience
from netsweep.jobs.sweep import find_orphans
from netsweep.model import BACKEND_OF_FLAVOUR, Family
from netsweep.policy.patterns import ChainPattern
from netsweep.profiles.options import Options
from netsweep.profiles.options import subnets as subnets_of
from netsweep.report import Report
from netsweep.version import __version__

T = TypeVar("T")

_CAPABILITIES = {
    "CAP_NET_ADMIN": capabilities.CAP_NET_ADMIN,
    "CAP_NET_RAW": capabilities.CAP_NET_RAW,
    "CAP_DAC_READ_SEARCH": capabilities.CAP_DAC_READ_SEARCH,
}

_THEIRS = {
    "there are rules of CNI networks: they belong to containers, not to interfaces, so netsweep leaves them; "
    "the container runtime's garbage collection removes dead ones ('cnitool gc', CNI 1.1 and later)": (
        ChainPattern(None, "*", "CNI-*"),
        ChainPattern(None, "cni_hostport", "*"),
        ChainPattern(None, "cni_plugins_masquerade", "*"),
    ),
    "there are rules of Podman's netavark: they belong to containers and subnets, not to interfaces, so netsweep "
    "leaves them; 'podman network reload --all' makes them anew": (
        ChainPattern(None, "*", "NETAVARK-*"),
        ChainPattern(None, "*", "NETAVARK_*"),
        ChainPattern(None, "netavark", "*"),
    ),
}
"""What is said where there are chains of software that ties its rules to no interface."""

_LIBRARIES = ("click", "filelock", "pyroute2", "python-iptables")
_IPTABLES_VERSION = re.compile(r"v(\S+)(?: \((\w+)\))?")


@dataclass
class Diagnosis:
    """What was found; the fields are those of the JSON.

    ``status`` is the exit status that a sweep would end with now, and ``errors`` says why where it is
    not 0. ``warnings`` hold what would stop a sweep that had more to do than there is now. ``orphans``
    is ``None`` where they could not be looked for, and so is ``elsewhere``, which counts those in chains and
    families that were not selected; ``bridges`` counts the leaked ones where they were asked for. ``notes``
    tell of rules that are not netsweep's business; ``waits_for`` names the locks that a sweep would wait
    for now.
    """

    settings: dict[str, Any]
    backends: list[dict[str, Any]] = field(default_factory=list)
    iptables: dict[str, Any] = field(default_factory=dict)
    capabilities: dict[str, bool | None] = field(default_factory=dict)
    locks: dict[str, dict[str, Any]] = field(default_factory=dict)
    leases: dict[str, Any] | None = None
    subnets: dict[str, Any] | None = None
    versions: dict[str, str | None] = field(default_factory=dict)
    orphans: int | None = None
    bridges: int | None = None
    elsewhere: int | None = None
    notes: list[str] = field(default_factory=list)
    waits_for: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    status: int = 0

    def attempt(self, examine: Callable[[], T], *, needed: bool) -> T | None:
        """Call ``examine``; its failure is what a sweep would end with where the sweep needs it now."""
        try:
            return examine()
        except NetsweepError as error:
            if needed:
                self.status = self.status or error.exit_status
            notes = self.errors if needed else self.warnings
            if str(error) not in self.errors + notes:
                notes.append(str(error))
            return None


def diagnose(options: Options, subnets: str | None = None) -> Diagnosis:
    """Look at everything that a sweep with ``options`` depends on, and at what it would do.

    ``subnets``: those to count, as ``FIRST-LAST``; the profile's where it is ``None``.
    """
    subnets = options.profile.subnets if subnets is None else subnets
    counted = subnets and subnets_of(subnets)
    found = Diagnosis(_settings(options))
    # What a sweep does first: its failure is a sweep's, and its orphans say which locks a sweep needs.
    report = found.attempt(lambda: find_orphans(options, command="doctor"), needed=True)
    found.orphans = None if report is None else len(report.orphans)
    found.bridges = len(report.leaked) if report and options.bridges else None
    found.elsewhere = None if report is None else report.elsewhere
    found.warnings += report.warnings if report else []
    effective = found.attempt(capabilities.effective_capabilities, needed=True)
    found.capabilities = {
        name: None if effective is None else bool(effective >> bit & 1) for name, bit in _CAPABILITIES.items()
    }
    surveyed = survey(options)
    found.backends = [shown for each in surveyed for shown in _backends(found, each)]
    found.notes = [note for note, theirs in _THEIRS.items() if any(_is(theirs, each) for each in surveyed)]
    found.leases = _lease_file(found, options.lease_file) if options.lease_file else None
    if subnets and counted:
        found.subnets = found.attempt(lambda: _subnets(options, subnets, counted), needed=False)
    needing = {finding.rule.chain.table.backend for finding in report.orphans} if report else set()
    found.locks = {
        name: _lock(found, name, path, timeout=timeout, option=option, needed=needed)
        for name, path, timeout, option, needed in (
            ("subnet", options.lock_file, options.lock_timeout, "--lock-timeout", bool(needing or found.bridges)),
            ("xtables", xtables_lock_path(), options.wait, "--wait", "legacy" in needing),
        )
        if path
    }
    found.iptables = _iptables([each["name"] for each in found.backends if each["tables"]])
    found.versions = _versions()
    return found


def _settings(options: Options) -> dict[str, Any]:
    left_out = ("profile", "globs", "patterns", "chains_given", "max_deletes", "journal")
    rest = {name: value for name, value in vars(options).items() if name not in left_out}
    return {"profile": options.profile.name, "names": options.globs, **rest}


def _is(theirs: Sequence[ChainPattern], survey: BackendSurvey) -> bool:
    return any(pattern.matches(chain) for pattern in theirs for chain in survey.chains)


def _backends(found: Diagnosis, each: BackendSurvey) -> Iterator[dict[str, Any]]:
    """What each family of a backend holds; one line for a backend that holds nothing that could be swept."""
    shown: dict[str, Any] = {"name": each.name, "family": Family.IPV4.value}
    if each.error or each.tables is None:
        if each.error and str(each.error) not in found.errors:
            found.warnings.append(str(each.error))
        yield {**shown, "tables": None, "other_tables": None, "scanned": None, "owned": None}
        return
    others = sorted(f"{table.family} {table.name}" for table in each.tables if table.family not in SWEPT)
    families = [family for family in Family if family in SWEPT and any(t.family is family for t in each.tables)]
    for family in families or [Family.IPV4]:
        yield {
            **shown,
            "family": family.value,
            "tables": sorted(table.name for table in each.tables if table.family is family),
            "other_tables": others,
            "scanned": each.scanned.get(family, 0),
            "owned": each.owned.get(family, 0),
        }
        others = []


def _lease_file(found: Diagnosis, path: str) -> dict[str, Any]:
    # Where there is nothing to decide on, a sweep does not depend on it.
    read = found.attempt(lambda: leases.read(path), needed=False)
    if read is None:
        return {"path": path, "exists": os.path.lexists(path), "leases": None, "running": None}
    return asdict(leases.summary(read, leases.dead(read.pids)))


def _subnets(options: Options, text: str, counted: range) -> dict[str, Any]:
    """How many /24 subnets are in use, by an interface, a route or a running process's lease, and leaked."""
    with Links() as links, Judge(options) as judge:
        patience = Patience(options.wait, Report("doctor"))
        look = patience.retry(lambda: look_at_bridges(options, judge, links))
        addresses = patience.retry(links.addresses)
        routes = patience.retry(links.routes)
    leaked = {finding.bridge.ifindex for finding in look.leaked}
    of_leaked = {lease for finding in look.leaked for lease in look.leases_of(finding.bridge)}
    used, lost = set[int](), set[int]()
    for ifindex, of_link in addresses.items():
        (lost if ifindex in leaked else used).update(_numbers([address.text for address in of_link]))
    for route in routes:
        (lost if route.ifindex in leaked else used).update(_numbers([str(route.network)]))
    for lease in look.leases.all:
        (lost if lease in of_leaked or lease in look.stale else used).update(_numbers([lease.subnet]))
    in_use = len(used.intersection(counted))
    gone = len((lost - used).intersection(counted))
    return {
        "range": text,
        "total": len(counted),
        "in_use": in_use,
        "leaked": gone,
        "free": len(counted) - in_use - gone,
    }


def _numbers(texts: Iterable[str]) -> Iterator[int]:
    """The /24 subnets that addresses or networks of at most that size are in; see :func:`subnets_of`."""
    for text in texts:
        with suppress(ValueError):  # a lease may be for anything
            network = ipaddress.ip_interface(text).network
            if network.version == 4 and network.prefixlen >= 24:
                yield int(network.network_address) >> 8


def _lock(found: Diagnosis, name: str, path: str, *, timeout: float, option: str, needed: bool) -> dict[str, Any]:
    """State of a lock, without taking it: another process might ask for it just then."""
    lock: dict[str, Any] = {
        "path": path,
        "exists": os.path.lexists(path),
        "held_by": None,
        "holder": None,
        "waiting": 0,
    }

    def examine() -> None:
        try:
            descriptor = open_regular(path, os.O_RDONLY, what=f"{name} lock")
        except FileNotFoundError:
            directory = os.path.dirname(os.path.abspath(path))
            if not os.access(directory, os.W_OK | os.X_OK):
                raise NetsweepError(
                    f"{name} lock {path!a} cannot be created: directory {directory!a} is missing or not writable"
                ) from None
            return
        try:
            holders = processes.holders(descriptor)
            lock["waiting"] = processes.waiting(descriptor)
        except OSError as error:
            raise describe(error, f"could not find out which process holds {name} lock {path!a}") from error
        finally:
            os.close(descriptor)
        if holders:
            lock["held_by"], lock["holder"] = holders[0]
            if timeout == 0:
                raise BusyError(f"{name} lock {path!a} is held by {holders[0]}, and {option} 0 means not to wait")
            if needed:
                found.waits_for.append(name)

    found.attempt(examine, needed=needed)
    return lock


def _iptables(swept: list[str]) -> dict[str, Any]:
    path = find_program("iptables")
    iptables: dict[str, Any] = {"path": path, "version": None, "flavour": None, "swept": None}
    if path is None:
        return iptables
    try:
        said = subprocess.run([path, "-V"], capture_output=True, text=True, timeout=10, check=False).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return iptables
    if version := _IPTABLES_VERSION.search(said):
        # Before 1.8 there was one flavour only, and its output does not name it.
        flavour = version.group(2) or "legacy"
        iptables.update(version=version.group(1), flavour=flavour, swept=BACKEND_OF_FLAVOUR.get(flavour) in swept)
    return iptables


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"netsweep": __version__, "python": platform.python_version()}
    versions["kernel"] = platform.release()
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions
