"""What ``netsweep doctor`` found, for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from netsweep.model import BACKEND_OF_FLAVOUR
from netsweep.output.escape import escape
from netsweep.output.text import count, elsewhere, listed

_KINDS = {"legacy": "x_tables", "nft": "nf_tables"}


def doctor_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The lines for ``found``, which is the object that ``--format json`` writes."""
    yield from (_line(each["name"], _backend(each)) for each in found["backends"])
    yield _line("iptables", _iptables(found))
    yield _line("capabilities", _pairs(found["capabilities"], {True: "yes", False: "no", None: "not known"}))
    for name, lock in found["locks"].items():
        yield _line(f"{name} lock", f"{lock['path']}: {_lock(lock)}")
    if found["leases"]:
        yield _line("lease file", f"{found['leases']['path']}: {_leases(found['leases'])}")
    if subnets := found["subnets"]:
        yield _line("subnets", _subnets(subnets))
    settings = {k: v for k, v in found["settings"].items() if k not in ("lock_file", "lease_file")}
    yield _line("settings", "; ".join(f"{_words(name)} {_value(value)}" for name, value in settings.items()))
    own = {name: version for name, version in found["versions"].items() if name in ("netsweep", "python", "kernel")}
    libraries = {name: version for name, version in found["versions"].items() if name not in own}
    yield _line("versions", _pairs(own, {None: "missing"}))
    yield _line("libraries", _pairs(libraries, {None: "missing"}))
    yield from (_line("note", note) for note in found["notes"])
    yield from (_line("warning", warning) for warning in found["warnings"])
    yield ""
    yield escape(_verdict(found))


def _line(name: str, text: str) -> str:
    return f"{name + ':':<14} {escape(text)}"


def _pairs(values: Mapping[str, Any], words: Mapping[Any, str]) -> str:
    return ", ".join(f"{name} {words.get(value, value)}" for name, value in values.items())


def _words(name: str) -> str:
    return name.replace("_", " ")


def _value(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return ", ".join(value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g} s" if isinstance(value, float) else str(value)


def _backend(backend: Mapping[str, Any]) -> str:
    kind = _KINDS[backend["name"]]
    if backend["tables"] is None:
        return f"{kind}: could not be read"
    others = ", ".join(backend["other_tables"])
    others = f"; not looked at: {others}" if others else ""
    if not backend["tables"]:
        return f"{kind}: no {backend['family']} tables here{others}"
    owned = "1 names a bridge" if backend["owned"] == 1 else f"{backend['owned']:,} name bridges"
    return (
        f"{kind}: {backend['family']} tables {', '.join(backend['tables'])}; "
        f"{count(backend['scanned'], 'rule')} in the chains looked at, "
        f"{owned} of ours{others}"
    )


def _iptables(found: Mapping[str, Any]) -> str:
    iptables = found["iptables"]
    if iptables["path"] is None:
        return "not installed"
    if iptables["flavour"] is None:
        return f"{iptables['path']} does not show its version"
    known = f"{iptables['path']} {iptables['version']} ({iptables['flavour']})"
    if iptables["swept"]:
        return f"{known}; a sweep covers its rules"
    if BACKEND_OF_FLAVOUR.get(iptables["flavour"]) not in [each["name"] for each in found["backends"]]:
        return f"{known}; --backend leaves its rules out"
    return f"{known}; it has no tables here"


def _lock(lock: Mapping[str, Any]) -> str:
    if not lock["exists"]:
        return "does not exist yet"
    waiting = f", {lock['waiting']} waiting" if lock["waiting"] else ""
    if lock["held_by"] is None:
        return f"{'held by a process that is not visible here' if waiting else 'free, as far as /proc shows'}{waiting}"
    return f"held by {_process(lock)}{waiting}"


def _process(lock: Mapping[str, Any]) -> str:
    return f"process {lock['held_by']}" + (f" ({lock['holder']})" if lock["holder"] else "")


def _leases(leases: Mapping[str, Any]) -> str:
    if not leases["exists"]:
        return "does not exist: no leases"
    if leases["leases"] is None:
        return "could not be read or understood"
    return f"{count(leases['leases'], 'lease')}, {leases['running']:,} of running processes"


def _subnets(subnets: Mapping[str, Any]) -> str:
    return (
        f"{subnets['range']}: {subnets['in_use']:,} in use, {subnets['leaked']:,} leaked, {subnets['free']:,} free "
        f"of {subnets['total']:,} (/24)"
    )


def _verdict(found: Mapping[str, Any]) -> str:
    if found["status"]:
        return f"A sweep would fail here with exit status {found['status']}: {found['errors'][0]}"
    more = ""
    if found["elsewhere"]:
        more = f" {elsewhere(found['elsewhere'], found['settings']['chains'])}."
    if not (found["orphans"] or found["bridges"]):
        return f"A sweep could run here. It would find nothing to delete.{more}"
    going = [count(found["bridges"], "bridge")] if found["bridges"] else []
    going += [count(found["orphans"], "rule")] if found["orphans"] else []
    deletes = f"It would delete {listed(going)}.{more}"
    if found["waits_for"]:
        locks = " and ".join(
            f"{_process(found['locks'][name])} releases the {name} lock" for name in found["waits_for"]
        )
        return f"A sweep could run here, once {locks}. {deletes}"
    return f"A sweep could run here. {deletes}"
