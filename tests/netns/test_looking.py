"""Looking on the real kernel: it changes nothing, and what it says is exact."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import netsweep
from netsweep.backends import legacy
from tests.namespace import (
    FLAVOURS,
    Namespace,
    complaint,
    flocked,
    leak,
    leaks,
    new_namespace,
    restore_input,
    unchanged,
)
from tests.netns.test_sweep import in_process, of_bridge, places, write_leases

LOOKS = (["list", "--all"], ["sweep", "--dry-run"], ["doctor"])


def kernel_state(ns: Namespace) -> dict[str, object]:
    """What looking might bring into being: tables, modules, files."""
    modules = Path("/proc/modules")
    names = [line.split()[0] for line in modules.read_text().splitlines()] if modules.exists() else None
    return {
        "x_tables": ns.run("cat", "/proc/net/ip_tables_names", check=False).stdout.split(),
        "x_tables of IPv6": ns.run("cat", "/proc/net/ip6_tables_names", check=False).stdout.split(),
        "nf_tables": ns.run("nft", "list", "tables").stdout.splitlines(),
        "modules": names,
        "files": sorted(path.name for path in ns.folder.iterdir()),
    }


EMPTY: dict[str, object] = {"x_tables": [], "x_tables of IPv6": [], "nf_tables": [], "files": []}


@contextmanager
def nothing_made(ns: Namespace) -> Iterator[dict[str, object]]:
    before = kernel_state(ns)
    yield before
    assert kernel_state(ns) == before


@pytest.mark.parametrize("command", [*LOOKS, ["sweep"]])
def test_in_an_empty_namespace_nothing_comes_into_being(ns: Namespace, command: list[str]) -> None:
    with nothing_made(ns) as before:
        assert {**before, **EMPTY} == before
        done = ns.netsweep(*command, "--format", "json")
        assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    if command == ["doctor"]:
        assert [backend["tables"] for backend in report["backends"]] == [[], []]
    else:
        assert (report["backends"], report["scanned"], report["orphans"]) == ([], 0, [])


@pytest.mark.parametrize("backend", FLAVOURS)
def test_asking_for_a_backend_that_holds_nothing_makes_no_table(ns: Namespace, backend: str) -> None:
    with nothing_made(ns):
        report = listed(ns, "--backend", backend)
    assert report["backends"] == [{"name": backend, "family": "ipv4", "scanned": 0, "orphans": 0, "deleted": 0}]


@pytest.mark.parametrize("command", LOOKS)
def test_looking_at_one_firewall_makes_no_table_of_the_other(ns: Namespace, flavour: str, command: list[str]) -> None:
    ns.add_bridges("hm1a")
    # One of the two tables only, so that the other could come into being.
    ns.restore(flavour, restore_input({"nat": leak("hmdead")["nat"] + leak("hm1a")["nat"]}))
    (ns.folder / "xtables.lock").unlink(missing_ok=True)
    with nothing_made(ns) as before:
        assert before["x_tables"] == (["nat"] if flavour == "legacy" else [])
        assert before["nf_tables"] == (["table ip nat"] if flavour == "nft" else [])
        assert ns.netsweep(*command).returncode == 0


@pytest.mark.parametrize("command", LOOKS)
def test_looking_takes_no_lock_makes_none_and_changes_no_rule(ns: Namespace, command: list[str]) -> None:
    for flavour in FLAVOURS:
        ns.restore(flavour, leaks(["hmdead"]))
    xtables_lock = ns.folder / "xtables.lock"
    xtables_lock.unlink()
    with unchanged(ns), nothing_made(ns):
        done = ns.netsweep(*command, "--format", "json")
        assert (done.returncode, done.stderr) == (0, "")
    without_locks = json.loads(done.stdout)
    with flocked(ns.lock_file), flocked(xtables_lock), unchanged(ns), nothing_made(ns):
        done = ns.netsweep(*command, "--format", "json", "--wait", "0")
        assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    if command != ["doctor"]:
        assert len(report["orphans"]) == 6
        assert report["orphans"] == without_locks["orphans"]
        assert report["locks"] == {"subnet": None, "xtables": None}


WATCHED = """
import json, sys

def watch(event, arguments):
    if event == "socket.__new__":
        events.append(f"socket {int(arguments[1])} {arguments[3]}")
    elif event in ("fcntl.flock", "ctypes.dlopen", "import", "open"):
        events.append(f"{event} {arguments[0]}")

events = []
sys.addaudithook(watch)
from netsweep.cli import run
status = run(sys.argv[1:])
print(json.dumps({"status": status, "events": events, "modules": sorted(sys.modules)}), file=sys.stderr)
"""

NETFILTER_SOCKET = "socket 16 12"
"""AF_NETLINK, NETLINK_NETFILTER (linux/netlink.h)."""


class Watched:
    """What a run of the command line imported, opened and locked."""

    def __init__(self, ns: Namespace, *arguments: str) -> None:
        done = ns.run(sys.executable, "-c", WATCHED, *arguments)
        seen = json.loads(done.stderr)
        assert seen["status"] == 0
        self.modules = set(seen["modules"])
        self._events: list[str] = seen["events"]

    @property
    def x_tables(self) -> set[str]:
        """Every sign of x_tables but the question whether there are any."""
        libraries = [event for event in self._events if event.startswith("ctypes.dlopen") and "tc.so" in event]
        modules = [name for name in self.modules if name.split(".")[0] == "iptc"]
        return {*libraries, *modules}

    @property
    def asked_for_x_tables(self) -> bool:
        return any("ip_tables_names" in event for event in self._events)

    @property
    def nf_tables(self) -> bool:
        return NETFILTER_SOCKET in self._events

    @property
    def locked(self) -> bool:
        return any(event.startswith("fcntl.flock") for event in self._events)


@pytest.mark.parametrize("command", [["list"], ["doctor"], ["sweep"]])
def test_python_iptables_is_not_imported_where_there_are_no_x_tables(ns: Namespace, command: list[str]) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    watched = Watched(ns, *command)
    assert not watched.x_tables
    assert watched.asked_for_x_tables
    assert watched.nf_tables
    assert watched.locked == (command == ["sweep"])
    ns.restore("legacy", leaks(["hmdead"]))
    assert "iptc.ip4tc" in Watched(ns, *command).x_tables


@pytest.mark.parametrize("command", [["list"], ["doctor"], ["sweep"]])
def test_one_backend_never_opens_the_other(ns: Namespace, command: list[str]) -> None:
    for flavour in FLAVOURS:
        ns.restore(flavour, leaks(["hmdead"]))

    watched = Watched(ns, *command, "--backend", "nft")
    assert watched.nf_tables
    assert not watched.x_tables
    assert not watched.asked_for_x_tables
    assert "netsweep.backends.legacy" not in watched.modules

    watched = Watched(ns, *command, "--backend", "legacy")
    assert watched.x_tables
    assert not watched.nf_tables
    assert "netsweep.backends.nft" not in watched.modules


def test_the_nft_backend_works_without_python_iptables(ns: Namespace) -> None:
    without = "import sys\nsys.modules['iptc'] = sys.modules['iptc.ip4tc'] = None\n"
    run = "from netsweep.cli import run\nsys.exit(run(sys.argv[1:]))"
    for flavour in FLAVOURS:
        ns.restore(flavour, leaks(["hmdead"]))
    script = (sys.executable, "-c", without + run)
    with unchanged(ns):
        done = ns.run(*script, "sweep", check=False)
        assert done.returncode == 69
        assert "python-iptables cannot be loaded" in done.stderr
    ns.run(*script, "sweep", "--backend", "nft")
    assert [of_bridge(ns, flavour, "hmdead") for flavour in FLAVOURS] == [3, 0]


def listed(ns: Namespace, *options: str) -> dict[str, Any]:
    """List, which has to work; the report."""
    done = ns.netsweep("list", "--format", "json", *options)
    assert (done.returncode, done.stderr) == (0, "")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


NUMBER = (int, float)

REPORT_KEYS: dict[str, Any] = {
    "schema": int,
    "version": str,
    "command": str,
    "dry_run": bool,
    "changed": bool,
    "scanned": int,
    "deleted": int,
    "orphans": list,
    "kept": list,
    "backends": list,
    "locks": dict,
    "duration_ms": NUMBER,
    "errors": list,
}
TEXT_OR_NULL = (str, type(None))
RULE_KEYS: dict[str, Any] = {
    "backend": str,
    "family": str,
    "table": str,
    "chain": str,
    "position": int,
    "handle": (int, type(None)),
    "bridge": TEXT_OR_NULL,
    "in": TEXT_OR_NULL,
    "out": TEXT_OR_NULL,
    "source": TEXT_OR_NULL,
    "destination": TEXT_OR_NULL,
    "target": TEXT_OR_NULL,
    "comment": TEXT_OR_NULL,
    "verdict": str,
    "reason": str,
}
BACKEND_KEYS: dict[str, Any] = {"name": str, "family": str, "scanned": int, "orphans": int, "deleted": int}
LOCK_KEYS: dict[str, Any] = {"path": str, "waited_ms": NUMBER, "held_ms": NUMBER}


def conforms(value: dict[str, Any], keys: dict[str, Any]) -> None:
    assert list(value) == list(keys)
    for name, kind in keys.items():
        assert isinstance(value[name], kind), (name, value[name])
        assert isinstance(value[name], bool) == (kind is bool), (name, value[name])


@pytest.mark.parametrize("command", [["list"], ["list", "--all"], ["sweep", "--dry-run"], ["sweep"]])
def test_json_holds_every_key_of_the_contract(ns: Namespace, command: list[str]) -> None:
    ns.add_bridges("hm1a")
    for flavour in FLAVOURS:
        ns.restore(flavour, leaks(["hmdead", "hm1a"]))
    done = ns.netsweep(*command, "--format", "json")
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    report = json.loads(done.stdout)
    conforms(report, REPORT_KEYS)
    for rule in report["orphans"] + report["kept"]:
        conforms(rule, RULE_KEYS)
    for backend in report["backends"]:
        conforms(backend, BACKEND_KEYS)
    assert list(report["locks"]) == ["subnet", "xtables"]
    swept = command == ["sweep"]
    for lock, path in (("subnet", ns.lock_file), ("xtables", ns.folder / "xtables.lock")):
        if swept:
            conforms(report["locks"][lock], LOCK_KEYS)
            assert report["locks"][lock]["path"] == str(path)
            assert report["locks"][lock]["held_ms"] > 0
        else:
            assert report["locks"][lock] is None
    assert (report["schema"], report["version"], report["errors"]) == (1, netsweep.__version__, [])
    assert (report["command"], report["dry_run"]) == (command[0], "--dry-run" in command)
    assert (report["changed"], report["deleted"]) == (swept, 6 if swept else 0)
    assert [backend["deleted"] for backend in report["backends"]] == ([3, 3] if swept else [0, 0])
    assert [backend["orphans"] for backend in report["backends"]] == [3, 3]
    assert (report["scanned"], len(report["orphans"])) == (12, 6)
    assert len(report["kept"]) == (6 if "--all" in command else 0)


NOTHING = dict.fromkeys(("in", "out", "source", "destination", "target", "comment"))

RULES: list[tuple[str, dict[str, str | None]]] = [
    ("-i hmdead -o eth0 -j ACCEPT", {"in": "hmdead", "out": "eth0", "target": "ACCEPT"}),
    ("-i hmdead ! -o eth0 -j DROP", {"in": "hmdead", "out": "!eth0", "target": "DROP"}),
    (
        "-i hmdead -s 10.200.1.0/24 -d 10.200.1.1 -m comment --comment hypeman-gateway-hmdead -j ACCEPT",
        {
            "in": "hmdead",
            "source": "10.200.1.0/24",
            "destination": "10.200.1.1/32",
            "target": "ACCEPT",
            "comment": "hypeman-gateway-hmdead",
        },
    ),
    ("! -s 10.200.1.0/24 -o hmdead -j RETURN", {"out": "hmdead", "source": "!10.200.1.0/24", "target": "RETURN"}),
    (
        "-s 10.0.0.1/255.0.0.255 -i hmdead -j USERS",
        {"in": "hmdead", "source": "10.0.0.1/255.0.0.255", "target": "USERS"},
    ),
    ("-i hmdead -j LOG --log-prefix x", {"in": "hmdead", "target": "LOG"}),
    ("-i hmdead -j REJECT", {"in": "hmdead", "target": "REJECT"}),
    ("-i hmdead", {"in": "hmdead"}),
    (
        '-m comment --comment "two words: hypeman-x-hmdead" -j ACCEPT',
        {"comment": "two words: hypeman-x-hmdead", "target": "ACCEPT"},
    ),
]


def test_a_rules_fields_are_what_iptables_shows(ns: Namespace, flavour: str) -> None:
    ns.add_bridges("hm1a")
    others = ["-i docker0 -j ACCEPT", "-j RETURN"]
    rules = [f"-A FORWARD {body}" for each, _ in RULES for body in (*others, each)]
    ns.restore(flavour, restore_input({"filter": [":USERS - [0:0]", *rules]}))
    ns.restore(flavour, restore_input({"nat": leak("hm1a", "10.200.7.0/24")["nat"] + leak("hmdead")["nat"]}))

    *orphans, nat = listed(ns)["orphans"]
    numbered = ns.run(f"iptables-{flavour}", "-n", "-v", "-L", "FORWARD", "--line-numbers").stdout.splitlines()[2:]
    shown = {int(line.split()[0]): line.split() for line in numbered}
    handles = re.findall(r"^\t\t.* # handle (\d+)$", ns.ruleset().partition("chain FORWARD")[2], re.MULTILINE)
    for orphan, (_, fields) in zip(orphans, RULES, strict=True):
        assert {name: orphan[name] for name in NOTHING} == {**NOTHING, **fields}
        position = orphan["position"]
        assert orphan["handle"] == (int(handles[position - 1]) if flavour == "nft" else None)
        # num, pkts, bytes, the target where there is one, prot, opt, in, out.
        line = shown[position][3 + bool(orphan["target"]) :]
        assert line[2:4] == [orphan["in"] or "*", orphan["out"] or "*"]
        where = ("backend", "family", "table", "chain", "bridge", "verdict", "reason")
        assert [orphan[name] for name in where] == [
            *(flavour, "ipv4", "filter", "FORWARD", "hmdead", "orphan"),
            "bridge is gone",
        ]
    assert [orphan["position"] for orphan in orphans] == [3 * number for number in range(1, len(RULES) + 1)]
    assert (nat["table"], nat["chain"], nat["position"], nat["bridge"]) == ("nat", "POSTROUTING", 2, "hmdead")
    assert (nat["in"], nat["out"], nat["target"]) == (None, "eth0", "MASQUERADE")
    assert nat["source"] == "10.200.1.0/24"


KEPT = [
    ("-i hm1a -j ACCEPT", "live", "hm1a", "hm1a exists"),
    ("-i hm1a -o hmdead -j ACCEPT", "live", "hm1a", "hm1a exists"),
    ("-i hm1ea5ed -j ACCEPT", "leased", "hm1ea5ed", "a running process holds a lease for hm1ea5ed"),
    ("-i hmdead -o ha12 -j ACCEPT", "protected", "ha12", "names ha12, which is protected"),
    (
        "-i hmdead -m comment --comment hypeman-x-ha12 -j ACCEPT",
        *("protected", "ha12", "its comment names ha12, which is protected"),
    ),
    ("-i hm+ -j ACCEPT", "wildcard", "hm+", "matches interfaces by wildcard hm+"),
    (
        "! -o hmdead -j ACCEPT",
        *("negated", "hmdead", "names hmdead only in a negated match, so it still matches live traffic"),
    ),
    ("-i hmvpn0 -j ACCEPT", "foreign", None, "hmvpn0 is no bridge of ours: ours are a prefix and hex digits"),
    ("-i xhm12 -j ACCEPT", "foreign", None, "xhm12 is no bridge of ours: ours are a prefix and hex digits"),
]


def test_all_says_of_every_rule_that_stays_why(ns: Namespace, flavour: str) -> None:
    ns.add_bridges("hm1a")
    write_leases(ns, {"hm1ea5ed": os.getpid()})
    rules = [f"-A FORWARD {body}" for each, *_ in KEPT for body in ("-i docker0 -j ACCEPT", each)]
    ns.restore(flavour, restore_input({"filter": [*rules, *leak("hmdead")["filter"]]}))
    report = listed(ns, "--all")
    said = [(rule["verdict"], rule["bridge"], rule["reason"]) for rule in report["kept"]]
    assert said == [tuple(expected) for _, *expected in KEPT]
    assert places(report, "kept") == {(flavour, "filter", "FORWARD", 2 * n) for n in range(1, len(KEPT) + 1)}
    assert len(report["orphans"]) == 2
    less = listed(ns)
    assert less == {**report, "kept": [], "duration_ms": less["duration_ms"]}

    text = ns.netsweep("list", "--all").stdout
    for _, verdict, _, reason in KEPT:
        assert f" -- {verdict}: {reason}\n" in text


def test_exit_code_tells_of_orphans(ns: Namespace) -> None:
    ns.add_bridges("hm1a")
    ns.restore("nft", leaks(["hm1a"]))
    assert ns.netsweep("list", "--exit-code", "--all").returncode == 0
    ns.restore("nft", leaks(["hmdead"]))
    for form in ("text", "json"):
        assert ns.netsweep("list", "--exit-code", "--format", form).returncode == 3
    assert ns.netsweep("list").returncode == 0
    assert ns.netsweep("sweep").returncode == 0
    assert ns.netsweep("list", "--exit-code").returncode == 0


MIXED = [
    ("hmdead", "-i hmdead -j ACCEPT"),
    ("vmdead", "-i vmdead -j ACCEPT"),
    ("vmbee", "-m comment --comment test-fwd-vmbee -j ACCEPT"),
    ("", "-i hmdead -o eth9 -j ACCEPT"),
    ("", "-i vmdead -o kube0 -j ACCEPT"),
    ("ha12", "-i ha12 -j ACCEPT"),
]


@pytest.fixture
def mixed(ns: Namespace) -> Namespace:
    ns.restore("nft", restore_input({"filter": [f"-A FORWARD {body}" for _, body in MIXED]}))
    return ns


def bridges(report: dict[str, Any]) -> list[str]:
    return [rule["bridge"] for rule in report["orphans"]]


def test_several_prefixes_and_protected_names_can_be_given(mixed: Namespace) -> None:
    ns = mixed
    both = ("--prefix", "hm", "--prefix", "vm")
    assert bridges(listed(ns)) == ["hmdead", "hmdead"]
    assert bridges(listed(ns, "--prefix", "vm")) == ["vmdead", "vmbee", "vmdead"]
    assert bridges(listed(ns, *both)) == ["hmdead", "vmdead", "vmbee", "hmdead", "vmdead"]
    guarded = (*both, "--protect", "kube", "--protect", "eth9")
    assert bridges(listed(ns, *guarded)) == ["hmdead", "vmdead", "vmbee"]
    assert bridges(listed(ns, "--prefix", "ha", "--protect", "hm")) == ["ha12"]
    assert ns.netsweep("sweep", *guarded).returncode == 0
    assert [of_bridge(ns, "nft", name) for name in ("hmdead", "vmdead", "vmbee", "ha12")] == [1, 1, 0, 1]


def test_options_come_from_the_environment_too(mixed: Namespace) -> None:
    ns = mixed
    ns.restore("nft", restore_input({"filter": ["-A INPUT -i vmdead -j ACCEPT"]}))
    environment = ns.environment
    environment["NETSWEEP_PREFIX"] = "hm vm"
    environment["NETSWEEP_FORMAT"] = "json"
    assert bridges(json.loads(ns.netsweep("list").stdout)) == ["hmdead", "vmdead", "vmbee", "hmdead", "vmdead"]
    environment["NETSWEEP_PROTECT"] = "kube eth9"
    environment["NETSWEEP_CHAIN"] = "filter/FORWARD filter/INPUT"
    report = json.loads(ns.netsweep("list").stdout)
    assert bridges(report) == ["hmdead", "vmdead", "vmbee", "vmdead"]
    assert report["orphans"][-1]["chain"] == "INPUT"
    assert bridges(json.loads(ns.netsweep("list", "--prefix", "hm").stdout)) == ["hmdead"]

    environment["NETSWEEP_BACKEND"] = "legacy"
    assert bridges(json.loads(ns.netsweep("list").stdout)) == []
    environment["NETSWEEP_BACKEND"] = "nft"
    environment["NETSWEEP_EXIT_CODE"] = environment["NETSWEEP_ALL"] = "1"
    done = ns.netsweep("list")
    assert done.returncode == 3
    assert {rule["verdict"] for rule in json.loads(done.stdout)["kept"]} == {"protected"}

    environment["NETSWEEP_LEASE_FILE"] = str(ns.folder / "other.json")
    write_leases(ns, {"vmbee": os.getpid()})
    ns.lease_file.rename(ns.folder / "other.json")
    assert bridges(json.loads(ns.netsweep("list").stdout)) == ["hmdead", "vmdead", "vmdead"]

    environment["NETSWEEP_LOCK_FILE"] = str(ns.folder / "other.lock")
    environment["NETSWEEP_LOCK_TIMEOUT"] = "0"
    with flocked(ns.folder / "other.lock"), unchanged(ns):
        assert ns.netsweep("sweep").returncode == 75
        environment["NETSWEEP_BEST_EFFORT"] = "1"
        assert ns.netsweep("sweep").returncode == 0
        environment["NETSWEEP_DRY_RUN"] = "1"
        assert json.loads(ns.netsweep("sweep").stdout)["dry_run"] is True
    del environment["NETSWEEP_DRY_RUN"]
    report = json.loads(ns.netsweep("sweep").stdout)
    assert report["locks"]["subnet"]["path"] == str(ns.folder / "other.lock")
    assert bridges(report) == ["hmdead", "vmdead", "vmdead"]
    assert not ns.lock_file.exists()
    assert of_bridge(ns, "nft", "vmbee") == 1


def test_wait_comes_from_the_environment_too(ns: Namespace) -> None:
    ns.restore("legacy", leaks(["hmdead"]))
    with flocked(ns.folder / "xtables.lock"), unchanged(ns):
        ns.environment["NETSWEEP_WAIT"] = "-1"
        assert "--wait" in complaint(ns.netsweep("sweep"), 2)
        ns.environment["NETSWEEP_WAIT"] = "0"
        assert "xtables lock" in complaint(ns.netsweep("sweep"), 75)


@pytest.fixture
def here(ns: Namespace, monkeypatch: pytest.MonkeyPatch) -> Namespace:
    in_process(ns, monkeypatch)
    return ns


def test_python_callers_get_what_the_command_line_says(here: Namespace, flavour: str) -> None:
    ns = here
    ns.add_bridges("hm1a")
    ns.restore(flavour, leaks(["hmdead", "hm1a"]))
    with unchanged(ns):
        looked = ns.inside(lambda: netsweep.find_orphans(include_kept=True))
        rehearsed = ns.inside(lambda: netsweep.sweep(dry_run=True))
    assert isinstance(looked, netsweep.Report)
    assert (looked.command, looked.dry_run, looked.changed, looked.deleted) == ("list", False, False, 0)
    assert (rehearsed.command, rehearsed.dry_run, rehearsed.changed, rehearsed.deleted) == ("sweep", True, False, 0)
    assert looked.orphans == rehearsed.orphans
    assert [finding.bridge for finding in looked.orphans] == ["hmdead"] * 3
    assert [(finding.bridge, finding.verdict.value) for finding in looked.kept] == [("hm1a", "live")] * 3
    assert rehearsed.kept == []
    assert (looked.subnet_lock, looked.xtables_lock) == (None, None)
    assert (looked.scanned, looked.errors, looked.warnings) == (6, [], [])

    said = listed(ns, "--all")
    assert looked.to_dict() == {**said, "duration_ms": looked.to_dict()["duration_ms"]}

    swept = ns.inside(netsweep.sweep)
    assert (swept.command, swept.dry_run, swept.changed, swept.deleted, swept.scanned) == ("sweep", False, True, 3, 6)
    assert swept.orphans == looked.orphans
    assert swept.subnet_lock is not None
    assert swept.subnet_lock.path == str(ns.lock_file)
    assert (swept.xtables_lock is None) == (flavour == "nft")
    assert [(b.name, b.family, b.scanned, b.orphans, b.deleted) for b in swept.backends] == [(flavour, "ipv4", 6, 3, 3)]
    assert of_bridge(ns, flavour, "hmdead") == 0
    assert of_bridge(ns, flavour, "hm1a") == 3


def test_each_call_of_one_process_sees_the_host_as_it_is_then(here: Namespace, flavour: str) -> None:
    ns = here

    def found() -> list[str | None]:
        return [finding.bridge for finding in ns.inside(netsweep.find_orphans).orphans]

    assert found() == []
    ns.restore(flavour, leaks(["hmdead", "hmbee"]))
    assert found() == ["hmdead", "hmdead", "hmbee", "hmbee", "hmdead", "hmbee"]
    ns.add_bridges("hmbee")
    assert found() == ["hmdead"] * 3
    assert ns.inside(netsweep.sweep).deleted == 3
    assert ns.inside(netsweep.sweep).deleted == 0
    ns.run("ip", "link", "del", "hmbee")
    assert found() == ["hmbee"] * 3
    write_leases(ns, {"hmbee": os.getpid()})
    assert found() == []
    ns.restore(flavour, leaks(["hmdead"]))
    assert ns.inside(netsweep.sweep).deleted == 3
    ns.lease_file.unlink()
    assert ns.inside(netsweep.sweep).deleted == 3
    assert not [line for line in ns.save(flavour) if "hypeman" in line]


def test_options_are_those_of_the_command_line(here: Namespace) -> None:
    ns = here
    rules = [f"-A {chain} -i vmdead -m comment --comment for-kube0-vmdead" for chain in ("FORWARD", "INPUT")]
    ns.restore("nft", restore_input({"filter": rules}))
    ns.restore("legacy", restore_input({"filter": rules[:1]}))
    leases = ns.folder / "other.json"

    def sweep(**options: Any) -> int:
        report = ns.inside(lambda: netsweep.sweep(lock_file=str(ns.folder / "other.lock"), **options))
        return report.deleted

    assert sweep() == 0
    assert sweep(prefix="vm", protect=["ha", "kube"]) == 0
    write_leases(ns, {"vmdead": os.getpid()})
    ns.lease_file.rename(leases)
    assert sweep(prefix=["hm", "vm"], lease_file=str(leases)) == 0
    assert sweep(prefix=["hm", "vm"], chain=["filter/INPUT"], backend="nft") == 1
    assert sweep(prefix="vm", backend="nft") == 1
    assert sweep(prefix="vm", backend="nft") == 0
    assert sweep(prefix="vm") == 1
    assert not ns.lock_file.exists()
    assert (ns.folder / "other.lock").exists()


def failure(ns: Namespace, kind: type[netsweep.NetsweepError], status: int, call: Callable[[], object]) -> Any:
    """The report on the error that ``call`` has to raise, with nothing changed."""
    with unchanged(ns), pytest.raises(kind) as raised:
        ns.inside(call)
    assert type(raised.value) is kind
    assert raised.value.exit_status == status
    report = raised.value.report
    if report is not None:
        assert report.errors == [str(raised.value)]
        assert (report.changed, report.deleted) == (False, 0)
    return report


def test_python_callers_tell_failures_by_their_kind(here: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    ns = here
    for flavour in FLAVOURS:
        ns.restore(flavour, leaks(["hmdead"]))
    assert failure(ns, netsweep.UsageError, 2, lambda: netsweep.sweep(prefix="")) is None
    assert failure(ns, netsweep.UsageError, 2, lambda: netsweep.find_orphans(chain="FORWARD")) is None
    assert failure(ns, netsweep.UsageError, 2, lambda: netsweep.sweep(backend="ebtables")) is None
    with flocked(ns.lock_file):
        report = failure(ns, netsweep.BusyError, 75, lambda: netsweep.sweep(lock_timeout=0))
        assert (len(report.orphans), report.subnet_lock) == (6, None)
    with flocked(ns.folder / "xtables.lock"):
        report = failure(ns, netsweep.BusyError, 75, lambda: netsweep.sweep(wait=0))
        assert report.subnet_lock is not None
        assert report.xtables_lock is None
    ns.lease_file.write_text("no leases")
    assert failure(ns, netsweep.NetsweepError, 1, netsweep.sweep) is not None
    assert failure(ns, netsweep.NetsweepError, 1, netsweep.find_orphans) is not None
    ns.lease_file.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(legacy, "_loaded", None)
        patch.setitem(sys.modules, "iptc.ip4tc", None)
        assert failure(ns, netsweep.NoBackendError, 69, netsweep.sweep) is not None
    assert ns.inside(netsweep.sweep).deleted == 6


def test_threads_sweep_namespaces_of_their_own_at_the_same_time(here: Namespace, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    with new_namespace(folder) as other:
        both = (here, other)
        deleted = {}
        for number, ns in enumerate(both):
            ns.add_bridges(("hmbee", "hmdead")[number])
            for flavour in FLAVOURS:
                ns.restore(flavour, leaks(["hmdead", "hmbee"]))
        together = threading.Barrier(2, timeout=30)

        def sweep(ns: Namespace) -> netsweep.Report:
            together.wait()
            return netsweep.sweep(lock_file=str(ns.folder / "lock"), lease_file=str(ns.folder / "leases"))

        def run(ns: Namespace) -> None:
            deleted[ns.name] = {finding.bridge for finding in ns.inside(lambda: sweep(ns)).orphans}

        threads = [threading.Thread(target=run, args=(ns,)) for ns in both]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert deleted == {here.name: {"hmdead"}, other.name: {"hmbee"}}
        for flavour in FLAVOURS:
            assert [of_bridge(here, flavour, name) for name in ("hmdead", "hmbee")] == [0, 3]
            assert [of_bridge(other, flavour, name) for name in ("hmdead", "hmbee")] == [3, 0]
