"""What this host has, on one screen, and whether a sweep could run here. Changes nothing."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import Any, TypeVar

from netsweep import __version__, leases
from netsweep.errors import BusyError, NetsweepError
from netsweep.locks import xtables_lock_path
from netsweep.programs import find_program
from netsweep.report import SCHEMA, escape
from netsweep.safefile import open_regular
from netsweep.sweeper import BACKENDS, Options, effective_capabilities, require_net_admin, survey

T = TypeVar("T")

_CAPABILITIES = {
    "CAP_NET_ADMIN": (12, "needed to read and change rules"),
    "CAP_NET_RAW": (13, "needed for x_tables"),
    "CAP_DAC_READ_SEARCH": (2, "needed for x_tables by users other than root"),
}
"""Bits of linux/capability.h."""

_LIBRARIES = ("click", "filelock", "pyroute2", "python-iptables")
_IPTABLES_VERSION = re.compile(r"v(\S+)(?: \((\w+)\))?")
_BACKEND_OF = {"nf_tables": "nft", "legacy": "legacy"}


@dataclass
class Diagnosis:
    """What was found. ``status`` is 0, or the exit status that a sweep would end with here."""

    backends: list[dict[str, Any]] = field(default_factory=list)
    iptables: dict[str, Any] = field(default_factory=dict)
    capabilities: dict[str, bool] = field(default_factory=dict)
    locks: dict[str, dict[str, Any]] = field(default_factory=dict)
    leases: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str | None] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    status: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The diagnosis as a plain object, in the manner of the reports' JSON."""
        return {"schema": SCHEMA, "version": __version__, "command": "doctor", **vars(self)}

    def attempt(self, examine: Callable[[], T]) -> T | None:
        """Call ``examine``; note its failure as what a sweep would end with."""
        try:
            return examine()
        except NetsweepError as error:
            self.status = self.status or error.exit_status
            if str(error) not in self.errors:
                self.errors.append(str(error))
            return None


def diagnose(options: Options) -> Diagnosis:
    """Look at everything that a sweep with ``options`` depends on, in its order.

    Raises :class:`~netsweep.errors.UsageError` for options that mean nothing; all other failures are
    in the diagnosis.
    """
    options.check()
    found = Diagnosis()
    effective = effective_capabilities()
    found.capabilities = {name: bool(effective >> bit & 1) for name, (bit, _) in _CAPABILITIES.items()}
    found.attempt(require_net_admin)
    for name in BACKENDS:
        if options.backend in ("auto", name):
            found.backends.append(_backend(found, options, name))
    found.leases = _lease_file(found, options.lease_path)
    found.locks = {
        "subnet": _lock(found, options.lock_path, "subnet lock"),
        "xtables": _lock(found, xtables_lock_path(), "xtables lock"),
    }
    subnet = found.locks["subnet"]
    if options.lock_timeout == 0 and subnet["held_by"]:
        found.attempt(lambda: _busy(subnet["path"]))
    found.iptables = _iptables([b["name"] for b in found.backends if b["tables"]])
    found.versions = _versions()
    return found


def _busy(path: str) -> None:
    raise BusyError(f"subnet lock {path!a} is busy, and --lock-timeout 0 means not to wait")


def _backend(found: Diagnosis, options: Options, name: str) -> dict[str, Any]:
    counts = found.attempt(lambda: survey(replace(options, backend=name)))
    if counts is None:
        return {"name": name, "family": "ipv4", "tables": None, "scanned": None, "owned": None}
    return {
        "name": name,
        "family": "ipv4",
        "tables": sorted(counts.tables),
        "scanned": counts.scanned,
        "owned": counts.owned,
    }


def _lease_file(found: Diagnosis, path: str) -> dict[str, Any]:
    listed = found.attempt(lambda: leases.read(path))
    return {
        "path": path,
        "exists": os.path.lexists(path),
        "leases": None if listed is None else len(listed),
        "running": None if listed is None else len(leases.leased_bridges(listed)),
    }


def _lock(found: Diagnosis, path: str, what: str) -> dict[str, Any]:
    """State of a lock, without taking it: somebody might come to wait for it just then."""
    lock: dict[str, Any] = {
        "path": path,
        "exists": os.path.lexists(path),
        "held_by": None,
        "holder": None,
        "waiting": 0,
    }

    def examine() -> None:
        try:
            descriptor = open_regular(path, os.O_RDONLY, what=what)
        except FileNotFoundError:
            folder = os.path.dirname(os.path.abspath(path))
            if not os.access(folder, os.W_OK | os.X_OK):
                raise NetsweepError(f"{what} {path!a} cannot be created: no folder {folder!a} to write to") from None
            return
        try:
            for pid, waiting in _flocks(os.fstat(descriptor)):
                if waiting:
                    lock["waiting"] += 1
                else:
                    lock["held_by"], lock["holder"] = pid, _process_name(pid)
        finally:
            os.close(descriptor)

    found.attempt(examine)
    return lock


def _flocks(status: os.stat_result) -> Iterator[tuple[int, bool]]:
    """PID, and whether it is still waiting, of each ``flock(2)`` on a file (proc(5), /proc/locks).

    The kernel lists those of its own PID namespace, and not those whose filesystem shows other device
    numbers than it has.
    """
    file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        with open("/proc/locks", encoding="ascii", errors="replace") as locks:
            lines = locks.read().splitlines()
    except OSError:
        return
    for line in lines:
        words = line.split()
        waiting = words[1:2] == ["->"]
        kind, *rest = words[2:] if waiting else words[1:]
        if kind == "FLOCK" and file in rest:
            yield int(rest[rest.index(file) - 1]), waiting


def _process_name(pid: int) -> str | None:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="surrogateescape") as comm:
            return comm.read().rstrip("\n")
    except OSError:
        return None


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
        # Before 1.8 there was one flavour only, and no word of it.
        flavour = version.group(2) or "legacy"
        iptables.update(version=version.group(1), flavour=flavour, swept=_BACKEND_OF.get(flavour) in swept)
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


def text_lines(found: Diagnosis) -> Iterator[str]:
    """The diagnosis for people."""
    for backend in found.backends:
        kind = {"legacy": "x_tables", "nft": "nf_tables"}[backend["name"]]
        if backend["tables"] is None:
            yield _line(backend["name"], f"{kind}: cannot be read")
        elif not backend["tables"]:
            yield _line(backend["name"], f"{kind}: no tables here")
        else:
            tables = escape(", ".join(backend["tables"]))
            counts = f"{backend['scanned']:,} rules in the chains looked at, {backend['owned']:,} name bridges of ours"
            yield _line(backend["name"], f"{kind}: tables {tables}; {counts}")
    yield _line("iptables", _iptables_line(found))
    yield _line(
        "capabilities",
        ", ".join(f"{name} {'yes' if has else 'no'}" for name, has in found.capabilities.items()),
    )
    for name, lock in found.locks.items():
        yield _line(f"{name} lock", f"{escape(lock['path'])}: {_lock_line(lock)}")
    held = found.leases
    if not held["exists"]:
        state = "does not exist: no leases"
    elif held["leases"] is None:
        state = "cannot be read or understood"
    else:
        state = f"{held['leases']} leases, {held['running']} of running processes"
    yield _line("lease file", f"{escape(held['path'])}: {state}")
    versions = [f"{name} {version or 'missing'}" for name, version in found.versions.items()]
    own = len(versions) - len(_LIBRARIES)
    yield _line("versions", ", ".join(versions[:own]))
    yield _line("libraries", ", ".join(versions[own:]))
    yield ""
    subnet = found.locks["subnet"]
    if found.status:
        yield f"A sweep would fail here with exit status {found.status}: {escape(found.errors[0])}"
    elif subnet["held_by"]:
        yield f"A sweep could run here, once process {subnet['held_by']} gives the subnet lock back."
    else:
        yield "A sweep could run here."


def _line(name: str, text: str) -> str:
    return f"{name + ':':<14} {text}"


def _iptables_line(found: Diagnosis) -> str:
    iptables = found.iptables
    if iptables["path"] is None:
        return "not installed"
    if iptables["flavour"] is None:
        return f"{iptables['path']} does not tell its version"
    known = f"{iptables['path']} {escape(iptables['version'])} ({escape(iptables['flavour'])})"
    if iptables["swept"]:
        return f"{known}; a sweep covers its rules"
    backend = _BACKEND_OF.get(iptables["flavour"])
    if backend not in [b["name"] for b in found.backends]:
        return f"{known}; --backend leaves its rules out"
    return f"{known}; it has no tables here"


def _lock_line(lock: dict[str, Any]) -> str:
    if not lock["exists"]:
        return "does not exist yet"
    waiting = f", {lock['waiting']} waiting" if lock["waiting"] else ""
    if lock["held_by"] is None:
        return f"free, as far as /proc/locks tells{waiting}"
    holder = f" ({escape(lock['holder'])})" if lock["holder"] else ""
    return f"held by process {lock['held_by']}{holder}{waiting}"
