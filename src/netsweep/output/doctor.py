"""What ``netsweep doctor`` found, for people and for bug reports."""

from __future__ import annotations

import ipaddress
import os
import pwd
import re
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from netsweep.model import BACKEND_OF_FLAVOUR
from netsweep.output.escape import escape
from netsweep.output.text import count, elsewhere, listed

WIDTH = 80
"""Columns of what is not written to a terminal."""

_KINDS = {"legacy": "x_tables", "nft": "nf_tables"}

_LABEL = 15
"""Columns of the names of the lines."""

_OWN_VERSIONS = ("netsweep", "python", "kernel", "nft")

OPTIONS = {"names": "name", "prefixes": "prefix", "protected": "protect", "chains": "chain"}
"""The names of the options of those settings that have another name."""

_AS_IT_IS = ("versions", "system", "iptables")
"""What in a bug report is shown as it is: versions may look like addresses."""

_ADDRESS = re.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f.]*)(?:/\d+)?(?![\w:])"
)
_MAC = re.compile(r"(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}")
_HOME = re.compile(r"/home/[^/\s'\"]+|(?<![\w.-])/root(?![\w.-])")

_PEOPLE = 1000
"""The lowest number of a user who is no part of the system, on most distributions."""

_READ_FIRST = (
    "Made by 'netsweep doctor --report'. Please read it before you post it. It names tables, chains, prefixes, paths, "
    "and the processes that hold the locks. It leaves out rules and their comments, leases, addresses, and the names "
    "of this host, its users and their home directories."
)


def doctor_lines(found: Mapping[str, Any], width: int = WIDTH) -> Iterator[str]:
    """The lines for ``found``, which is the object that ``--format json`` writes, of at most ``width`` columns.

    Only a path may be longer: it is there to be copied.
    """
    for name, text in _parts(found):
        further = 0 if name and name != "settings" else 2
        yield from _wrapped(text, width, f"{name + ':' if name else '':<{_LABEL}}", " " * (_LABEL + further))
    yield ""
    for sentence in _verdict(found):
        yield from _wrapped(sentence, width)


def report_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a bug report: Markdown, without what is private."""
    public = {key: value if key in _AS_IT_IS else _redacted(value) for key, value in found.items()}
    content = [*doctor_lines(public), f"Exit status of doctor: {found['status']}"]
    # A name of the host may hold a fence too.
    longest = max((len(run) for line in content for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    yield from _wrapped(f"<!-- {_READ_FIRST} -->", WIDTH)
    versions, distribution = found["versions"], found["system"]["distribution"] or "Linux"
    yield from ("<details>", f"<summary>netsweep {versions['netsweep']} on {escape(distribution)}</summary>", "")
    yield from (f"{fence}text", *content, fence)
    yield from ("", "</details>")


def _parts(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The names and the texts of the lines; a line without a name belongs to the one before."""
    yield from ((each["name"], _backend(each)) for each in found["backends"])
    yield "iptables", _iptables(found)
    yield "capabilities", _pairs(found["capabilities"], {True: "yes", False: "no", None: "not known"})
    for name, lock in found["locks"].items():
        yield f"{name} lock", f"{lock['path']}: {_lock(lock)}"
    if found["leases"]:
        yield "lease file", f"{found['leases']['path']}: {_leases(found['leases'])}"
    if subnets := found["subnets"]:
        yield "subnets", _subnets(subnets)
    label = "settings"
    for name, value in found["settings"].items():
        source = re.sub("(option|environment) ", "", found["sources"][name])
        yield label, f"{OPTIONS.get(name, name).replace('_', '-')}: {_value(value)} ({source})"
        label = ""
    own = {name: version for name, version in found["versions"].items() if name in _OWN_VERSIONS}
    libraries = {name: version for name, version in found["versions"].items() if name not in own}
    yield "versions", _pairs(own, {None: "missing"})
    yield "libraries", _pairs(libraries, {None: "missing"})
    yield "system", _system(found["system"])
    yield from (("note", note) for note in found["notes"])
    yield from (("warning", warning) for warning in found["warnings"])


def _wrapped(text: str, width: int, first: str = "", rest: str = "") -> list[str]:
    return textwrap.wrap(
        escape(text),
        width,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words="/" not in text,
        break_on_hyphens=False,
    )


def _redacted(value: Any) -> Any:
    """``value`` with what is private in its texts replaced."""
    if isinstance(value, Mapping):
        return {key: _redacted(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_redacted(each) for each in value]
    if not isinstance(value, str):
        return value
    for name, home in _users():
        if home.count("/") > 1:
            value = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", value)
        if name != "root":
            value = re.sub(rf"(?<=/){re.escape(name)}(?![\w.-])", "USER", value)
    value = _HOME.sub("~", value)
    if len(host := os.uname().nodename) > 1:
        value = re.sub(rf"(?<![\w-]){re.escape(host)}(?![\w-])", "HOST", value)
    return _ADDRESS.sub(_without_address, _MAC.sub("ADDRESS", value))


def _users() -> Iterator[tuple[str, str]]:
    """The name and the home directory of who runs this, of who called sudo, and of people."""
    yield from ((user.pw_name, user.pw_dir) for user in pwd.getpwall() if user.pw_uid >= _PEOPLE)
    for uid in (os.getuid(), os.environ.get("SUDO_UID", "")):
        with suppress(KeyError, ValueError):
            user = pwd.getpwuid(int(uid))
            yield user.pw_name, user.pw_dir
            yield user.pw_name, os.environ.get("HOME", "")


def _without_address(found: re.Match[str]) -> str:
    try:
        ipaddress.ip_interface(found[0].rstrip("."))
    except ValueError:
        return found[0]
    return "ADDRESS"


def _pairs(values: Mapping[str, Any], words: Mapping[Any, str]) -> str:
    return ", ".join(f"{name} {words.get(value, value)}" for name, value in values.items())


def _value(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return ", ".join(value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
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
        f"{kind}: {backend['family']} {'table' if len(backend['tables']) == 1 else 'tables'} "
        f"{', '.join(backend['tables'])}; "
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
    if iptables["swept"] is None:
        return f"{known}; its rules could not be read"
    if iptables["swept"]:
        return f"{known}; a sweep covers its rules"
    if BACKEND_OF_FLAVOUR.get(iptables["flavour"]) not in [each["name"] for each in found["backends"]]:
        return f"{known}; --backend leaves its rules out"
    return f"{known}; it has no tables here"


def _lock(lock: Mapping[str, Any]) -> str:
    if lock["error"]:
        return "cannot be used" if lock["exists"] else "does not exist, and cannot be created"
    if not lock["exists"]:
        return "does not exist yet"
    waiting = f", {lock['waiting']} waiting" if lock["waiting"] else ""
    held = lock["held"] or lock["held_by"] or waiting
    return f"held by {_process(lock)}{waiting}" if held else "free, as far as /proc shows"


def _process(lock: Mapping[str, Any]) -> str:
    if lock["held_by"] is None:
        return "a process that is not visible here"
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


def _system(system: Mapping[str, Any]) -> str:
    parts = [system["distribution"] or "unknown distribution", system["machine"]]
    if system["virtualization"] not in (None, "none"):
        parts.append(f"virtualization {system['virtualization']}")
    parts.append("root" if system["root"] else "not root")
    if system.get("user_namespace"):
        parts.append("in a user namespace")
    if system.get("all_processes_visible") is False:
        parts.append("not all processes are visible")
    return ", ".join(parts)


def _verdict(found: Mapping[str, Any]) -> Iterator[str]:
    """What a sweep would do, sentence by sentence."""
    settings = found["settings"]
    if found["errors"]:
        status = found["status"] or "0, because of --best-effort"
        yield f"A sweep would fail here with exit status {status}: {found['errors'][0]}"
        return
    waits = " and ".join(f"{_process(found['locks'][name])} releases the {name} lock" for name in found["waits_for"])
    numbers = ((found["bridges"], "bridge"), (found["stale_leases"], "lease"), (found["orphans"], "rule"))
    going = [count(number, noun) for number, noun in numbers if number]
    does = f"It would delete {listed(going)}." if going else "It would find nothing to delete."
    if going and settings["dry_run"]:
        does = f"It would show {listed(going)}, and delete nothing because of --dry-run."
    yield f"A sweep could run here{f', once {waits}' if waits else ''}. {does}"
    for name in found["waits_for"]:
        timeout = settings["lock_timeout" if name == "subnet" else "wait"]
        yield f"It would wait for the {name} lock for {timeout:g} s, and then fail."
    if found["elsewhere"]:
        yield f"{elsewhere(found['elsewhere'], settings['chains'])}."
