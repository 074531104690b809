"""What this host has, and what a sweep would end with here. Changes nothing, takes no lock."""

from __future__ import annotations

import ipaddress
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import metadata
from types import MappingProxyType
from typing import Any, TypeVar

from netsweep.errors import BusyError, NetsweepError, TableError, UsageError
from netsweep.host import capabilities, leases, locks, processes
from netsweep.host.files import check_creatable, describe, open_regular
from netsweep.host.links import Links
from netsweep.host.locks import xtables_lock_path
from netsweep.host.programs import find_program
from netsweep.jobs.bridges import look_at_bridges
from netsweep.jobs.look import SWEPT, BackendSurvey, Judge, survey
from netsweep.jobs.patience import Patience
from netsweep.jobs.sweep import check_number, find_orphans
from netsweep.model import BACKEND_OF_FLAVOUR, Family
from netsweep.output.doctor import OPTIONS
from netsweep.output.failures import explain
from netsweep.output.text import count
from netsweep.policy.patterns import ALL_CHAINS, ChainPattern
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
    "leaves them; 'podman network reload --all' creates them again": (
        ChainPattern(None, "*", "NETAVARK-*"),
        ChainPattern(None, "*", "NETAVARK_*"),
        ChainPattern(None, "netavark", "*"),
    ),
}
"""What is said where there are chains of software that ties its rules to no interface."""

_LIBRARIES = ("click", "filelock", "pyroute2", "python-iptables")
_VERSION = re.compile(r"v(\S+)(?: \((\w+)\))?")

_OF_PROFILE = ("names", "prefixes", "protected", "chains", "settle", "lock_file", "lease_file", "min_age", "subnets")
"""The settings whose defaults are in the profile."""

_CONTAINERS = {"/.dockerenv": "docker", "/run/.containerenv": "podman"}
"""Files that container engines put into their containers."""


@dataclass
class Diagnosis:
    """What was found; the fields are those of the JSON.

    ``status`` is the exit status that a sweep would end with now, and ``errors`` says why where it is
    not 0. ``warnings`` hold what would stop a sweep that had more to do than there is now. ``orphans``
    is ``None`` where they could not be looked for, and so is ``elsewhere``, which counts those in chains and
    families that were not selected; ``bridges`` counts the leaked ones where they were asked for, and
    ``stale_leases`` the leases that would go with them. ``notes`` tell of rules that are not netsweep's business;
    ``waits_for`` names the locks that a sweep would wait for now. ``sources`` says of each setting where it comes
    from: an option, an environment variable, the profile, or netsweep's default.
    """

    settings: dict[str, Any]
    sources: dict[str, str] = field(default_factory=dict)
    system: dict[str, Any] = field(default_factory=dict)
    backends: list[dict[str, Any]] = field(default_factory=list)
    iptables: dict[str, Any] = field(default_factory=dict)
    capabilities: dict[str, bool | None] = field(default_factory=dict)
    locks: dict[str, dict[str, Any]] = field(default_factory=dict)
    leases: dict[str, Any] | None = None
    subnets: dict[str, Any] | None = None
    versions: dict[str, str | None] = field(default_factory=dict)
    orphans: int | None = None
    bridges: int | None = None
    stale_leases: int | None = None
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
        except Exception as failure:
            error = explain(failure)
            if needed:
                self.status = self.status or error.exit_status
            notes = self.errors if needed else self.warnings
            if str(error) not in self.errors + notes:
                notes.append(str(error))
            return None


def diagnose(
    options: Options,
    subnets: str | None = None,
    *,
    dry_run: bool = False,
    best_effort: bool = False,
    given: Mapping[str, str] = MappingProxyType({}),
) -> Diagnosis:
    """Look at everything that a sweep with ``options`` depends on, and at what it would do.

    ``subnets``: those to count, as ``FIRST-LAST``; the profile's where it is ``None``. ``given``: where the options
    that were given come from, by name. ``dry_run`` and ``best_effort`` are those of the sweep.
    """
    subnets = options.profile.subnets if subnets is None else subnets
    counted = subnets and subnets_of(subnets)
    settings = _settings(options) | {"subnets": subnets, "dry_run": dry_run, "best_effort": best_effort}
    found = Diagnosis(settings, {name: _source(name, options, given) for name in settings})
    # What a sweep does first: its failure is a sweep's, and its orphans say which locks a sweep needs.
    report = found.attempt(lambda: find_orphans(options, command="doctor"), needed=True)
    surveyed = survey(options)
    if report:
        found.orphans, found.elsewhere = len(report.orphans), report.elsewhere
        if options.bridges:
            found.bridges, found.stale_leases = len(report.leaked), report.stale_leases
        found.warnings += report.warnings
        found.attempt(lambda: check_number(options, len(report.orphans), len(report.leaked)), needed=True)
    effective = found.attempt(capabilities.effective_capabilities, needed=True)
    found.capabilities = {
        name: None if effective is None else bool(effective >> bit & 1) for name, bit in _CAPABILITIES.items()
    }
    found.backends = [shown for each in surveyed for shown in _backends(found, each)]
    found.notes = [note for note, theirs in _THEIRS.items() if any(_is(theirs, each) for each in surveyed)]
    found.leases = _lease_file(found, options.lease_file) if options.lease_file else None
    if subnets and counted:
        found.subnets = found.attempt(lambda: _subnets(options, subnets, counted), needed=False)
    _foresee(found, options, Report("doctor") if report is None or dry_run else report, surveyed)
    found.iptables = _iptables({each["name"]: each["tables"] for each in found.backends if each["tables"] != []})
    found.versions = _versions()
    found.system = _system()
    if best_effort and found.status != UsageError.exit_status:
        found.status = 0
    return found


def _foresee(found: Diagnosis, options: Options, report: Report, surveyed: Sequence[BackendSurvey]) -> None:
    """Examine what a sweep needs to delete what ``report`` found, in the order in which it needs that."""
    tables = {finding.rule.chain.table for finding in report.orphans}
    changes = bool(tables or found.bridges or report.stale_leases)
    if options.journal and (tables or found.bridges):
        _examine_journal(found, options.journal, report)
    if changes:
        found.attempt(locks.load, needed=True)
    for name, path, timeout, option, needed in (
        ("subnet", options.lock_file, options.lock_timeout, "--lock-timeout", changes),
        ("xtables", xtables_lock_path(), options.wait, "--wait", any(table.backend == "legacy" for table in tables)),
    ):
        if path:
            found.locks[name] = _lock(found, name, path, timeout=timeout, option=option, needed=needed)
    refusals = {table: why for each in surveyed for table, why in each.refusals.items() if table in tables}
    for why in refusals.values():
        found.attempt(partial(_refuse, why), needed=True)
    if report.stale_leases and options.lease_file:
        found.attempt(partial(_check_replaceable, options.lease_file), needed=True)


def _examine_journal(found: Diagnosis, path: str, report: Report) -> None:
    from netsweep.jobs.journal import Journal

    found.attempt(lambda: Journal(path).foresee(finding.rule for finding in report.orphans), needed=True)


def _check_replaceable(path: str) -> None:
    """Raise :class:`NetsweepError` where the lease file at ``path`` could not be replaced, as far as that shows."""
    try:
        check_creatable(f"{path}.netsweep", what="lease file")  # the new file is written beside it first
    except NetsweepError as error:
        raise _of_leases(error) from error
    foreign = os.path.exists(path) and os.stat(path).st_uid != os.geteuid()
    if foreign and not capabilities.effective_capabilities() >> capabilities.CAP_CHOWN & 1:
        raise NetsweepError(f"cannot replace lease file {path!a}: it belongs to another user; run as root")


def _of_leases(error: NetsweepError) -> NetsweepError:
    """``error`` as a sweep tells it that removes leases: by then it may have deleted bridges."""
    return NetsweepError(str(error))


def _refuse(why: str) -> None:
    raise TableError(why)


def _settings(options: Options) -> dict[str, Any]:
    left_out = ("profile", "globs", "patterns", "chains_given")
    rest = {name: value for name, value in vars(options).items() if name not in left_out}
    return {
        "profile": options.profile.name,
        "names": options.globs,
        **rest,
        "xtables_lock_file": xtables_lock_path(),
    }


def _source(setting: str, options: Options, given: Mapping[str, str]) -> str:
    """Where a setting comes from; ``given`` as in :func:`diagnose`."""
    profile = f"profile {options.profile.name}"
    if setting == "xtables_lock_file":
        return "environment XTABLES_LOCKFILE" if os.environ.get("XTABLES_LOCKFILE") else "default"
    source = given.get(OPTIONS.get(setting, setting))
    if setting == "chains" and not options.chains_given:
        source = given.get("all_chains") if options.chains == (ALL_CHAINS,) else None
    if setting == "names" and source and options.profile.names:
        return f"{profile} and {source}"
    if source:
        return source
    if setting not in _OF_PROFILE:
        return "default"
    in_tmpdir = str(getattr(options.profile, setting, None)).startswith("$TMPDIR")
    return f"{profile} and environment TMPDIR" if in_tmpdir and os.environ.get("TMPDIR") else profile


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
    what = f"{name} lock"
    lock: dict[str, Any] = {
        "path": path,
        "exists": os.path.lexists(path),
        "held": None,
        "held_by": None,
        "holder": None,
        "waiting": 0,
        "error": None,
    }

    def examine() -> None:
        # As a sweep opens it.
        try:
            os.close(open_regular(path, os.O_RDONLY, what=what))
        except FileNotFoundError:
            check_creatable(path, what=what)
            return
        except BusyError:
            pass  # another process has a file lease on it, and is one of the holders
        try:
            holders, lock["waiting"] = processes.holders(path), processes.waiting(path)
            lock["held"] = bool(holders) or processes.is_locked(path)
        except OSError as error:
            raise describe(error, f"could not find out which process holds {what} {path!a}") from error
        if holders:
            lock["held_by"], lock["holder"] = holders[0]
        if lock["held"]:
            by = holders[0] if holders else "a process that is not visible here"
            if timeout == 0:
                raise _busy(f"{what} {path!a} is held by {by}, and {option} 0 means not to wait")
            if needed:
                found.waits_for.append(name)

    def _busy(text: str) -> NetsweepError:
        # Bridges go before their rules, and then a sweep no longer ends with the status that says that nothing changed.
        if name == "xtables" and found.bridges:
            return NetsweepError(f"{text}; before that, it would delete {count(found.bridges, 'bridge')}")
        return BusyError(text)

    def noted() -> None:
        try:
            examine()
        except BusyError:
            raise
        except NetsweepError as error:
            lock["error"] = None if lock["held"] else str(error)
            raise (
                _of_leases(error) if found.stale_leases and not (found.bridges or found.orphans) else error
            ) from None

    found.attempt(noted, needed=needed)
    return lock


def _iptables(held: Mapping[str, list[str] | None]) -> dict[str, Any]:
    """The iptables here; ``held``: the tables of each backend that has some, ``None`` where that is not known."""
    path = find_program("iptables")
    iptables: dict[str, Any] = {"path": path, "version": None, "flavour": None, "swept": None}
    if version := _VERSION.search(_said_by("iptables", "-V")):
        # Before 1.8 there was one flavour only, and its output does not name it.
        flavour = version.group(2) or "legacy"
        backend = BACKEND_OF_FLAVOUR.get(flavour, "")
        swept = None if backend in held and held[backend] is None else backend in held
        iptables.update(version=version.group(1), flavour=flavour, swept=swept)
    return iptables


def _said_by(name: str, *arguments: str) -> str:
    """What a program of the system prints; nothing where it is missing or cannot be run."""
    path = find_program(name)
    with suppress(OSError, subprocess.SubprocessError, UnicodeDecodeError):
        if path:
            run = [path, *arguments]
            return subprocess.run(run, capture_output=True, text=True, timeout=10, check=False).stdout  # noqa: S603
    return ""


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"netsweep": __version__, "python": platform.python_version()}
    versions["kernel"] = platform.release()
    nft = _VERSION.search(_said_by("nft", "-v"))
    versions["nft"] = nft.group(1) if nft else None
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _system() -> dict[str, Any]:
    """The distribution, the machine, and what netsweep is confined to."""
    system: dict[str, Any] = {"distribution": None, "machine": platform.machine(), "virtualization": None}
    with suppress(OSError):
        system["distribution"] = platform.freedesktop_os_release().get("PRETTY_NAME")
    container = next((kind for path, kind in _CONTAINERS.items() if os.path.exists(path)), None)
    # "none" on a machine of its own
    system["virtualization"] = _said_by("systemd-detect-virt").strip() or container
    with suppress(OSError), open("/proc/self/uid_map", encoding="ascii") as ids:
        system["user_namespace"] = ids.read().split() != ["0", "0", "4294967295"]
    with suppress(OSError):
        system["all_processes_visible"] = processes.sees_all()
    return {**system, "root": os.geteuid() == 0}
