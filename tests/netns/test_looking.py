"""Looking on the real kernel: it changes nothing, and what it says is exact."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import netsweep
from netsweep.firewall.xtables import bindings
from netsweep.firewall.xtables.bindings import libiptc
from netsweep.output.json import write_json
from tests import schema
from tests.namespace import (
    FLAVOURS,
    NATIVE_NAMES,
    PLACES,
    Namespace,
    complaint,
    flocked,
    in_process,
    leak,
    leaks,
    of_bridge,
    report_of,
    restore_input,
    unchanged,
    write_leases,
)

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
        "files": sorted(path.name for path in ns.directory.iterdir()),
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
    assert (report["backends"], report["orphans"]) == ([], [])


@pytest.mark.parametrize("command", LOOKS)
def test_looking_at_one_table_makes_no_other_in_any_family(
    ns: Namespace, place: tuple[str, str], command: list[str]
) -> None:
    flavour, family = place
    ns.add_bridges("hm1a")
    # One of the two tables only, so that the other could come into being.
    ns.restore(flavour, restore_input({"nat": leak("hmdead")["nat"] + leak("hm1a")["nat"]}), family)
    (ns.xtables_lock).unlink(missing_ok=True)
    with nothing_made(ns) as before:
        assert before["x_tables"] == (["nat"] if place == ("legacy", "ipv4") else [])
        assert before["x_tables of IPv6"] == (["nat"] if place == ("legacy", "ipv6") else [])
        assert before["nf_tables"] == ([f"table {NATIVE_NAMES[family]} nat"] if flavour == "nft" else [])
        assert ns.netsweep(*command).returncode == 0


@pytest.mark.parametrize("command", LOOKS)
def test_looking_takes_no_lock_makes_none_and_changes_no_rule(ns: Namespace, command: list[str]) -> None:
    for flavour in FLAVOURS:
        ns.restore(flavour, leaks(["hmdead"]))
    xtables_lock = ns.xtables_lock
    xtables_lock.unlink()
    with unchanged(ns), nothing_made(ns):
        done = ns.netsweep(*command, "--format", "json")
        assert (done.returncode, done.stderr) == (0, "")
    without_locks = json.loads(done.stdout)
    with flocked(ns.lock_file), flocked(xtables_lock), unchanged(ns), nothing_made(ns):
        # Doctor tells what a sweep would end with, which would not wait for the lock.
        patience = () if command == ["doctor"] else ("--wait", "0", "--lock-timeout", "0")
        report = report_of(ns.netsweep(*command, "--format", "json", *patience))
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
        modules = [name for name in self.modules if "iptc" in name]
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
    assert any(name.endswith(".ip4tc") for name in Watched(ns, *command).x_tables)


@pytest.mark.parametrize("command", [["doctor"], ["sweep"]])
def test_one_backend_never_opens_the_other(ns: Namespace, command: list[str]) -> None:
    for flavour in FLAVOURS:
        ns.restore(flavour, leaks(["hmdead"]))

    watched = Watched(ns, *command, "--backend", "nft")
    assert watched.nf_tables
    assert not watched.x_tables
    assert not watched.asked_for_x_tables
    assert "netsweep.firewall.xtables" not in watched.modules

    watched = Watched(ns, *command, "--backend", "legacy")
    assert watched.x_tables
    assert not watched.nf_tables
    assert "netsweep.firewall.nftables" not in watched.modules


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
    return report_of(ns.netsweep("list", "--format", "json", *options))


def in_order(value: dict[str, Any], path: str) -> None:
    """Check that an object has its fields in the order of the schema."""
    assert list(value) == [name for name in dict(schema.objects())[path]["properties"] if name in value]


@pytest.mark.parametrize("command", [["list"], ["list", "--all"], ["sweep", "--dry-run"], ["sweep"]])
def test_json_holds_every_key_of_the_contract(ns: Namespace, command: list[str]) -> None:
    ns.add_bridges("hm1a")
    for flavour, family in PLACES:
        ns.restore(flavour, leaks(["hmdead", "hm1a"]), family)
        ns.restore(flavour, restore_input({"filter": ["-A FORWARD ! -i hmdead -j DROP", "-A INPUT -i hmdead"]}), family)
    done = ns.netsweep(*command, "--format", "json")
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    report = json.loads(done.stdout)
    schema.valid(report)
    in_order(report, "report")
    for rule in report["orphans"] + report["negated"] + report["kept"]:
        in_order(rule, "rule")
    for backend in report["backends"]:
        in_order(backend, "backend_report")
    in_order(report["leases"], "lease_file")
    in_order(report["locks"], "report.locks")
    swept = command == ["sweep"]
    for lock, path in (("subnet", ns.lock_file), ("xtables", ns.xtables_lock)):
        if swept:
            in_order(report["locks"][lock], "lock_times")
            assert report["locks"][lock]["path"] == str(path)
            assert report["locks"][lock]["held_ms"] >= report["locks"][lock]["longest_ms"] > 0
        else:
            assert report["locks"][lock] is None
    assert (report["schema"], report["version"], report["errors"]) == (1, netsweep.__version__, [])
    assert (report["command"], report["dry_run"]) == (command[0], "--dry-run" in command)
    places = len(PLACES)
    assert (report["changed"], report["deleted"]) == (swept, 3 * places if swept else 0)
    assert [(backend["name"], backend["family"]) for backend in report["backends"]] == PLACES
    assert [backend["deleted"] for backend in report["backends"]] == [3 * swept] * places
    assert [backend["orphans"] for backend in report["backends"]] == [3] * places
    assert (report["scanned"], len(report["orphans"])) == (7 * places, 3 * places)
    assert len(report["kept"]) == (4 * places if "--all" in command else 0)
    # A sweep does not pay for what it does not delete.
    assert (len(report["negated"]), report["elsewhere"]) == ((0, 0) if swept else (places, places))
    assert {rule["live_traffic"] for rule in report["negated"]} == (set() if swept else {"DROP"})
    assert {rule["live_traffic"] for rule in report["orphans"]} == {None}


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
    ("-i hmdead -o hm1a -j ACCEPT", {"in": "hmdead", "out": "hm1a", "target": "ACCEPT"}),
    (
        '-i hmdead -m comment --comment "two words" -j ACCEPT',
        {"in": "hmdead", "comment": "two words", "target": "ACCEPT"},
    ),
    (
        "-m comment --comment hypeman-two-words-hmdead -j ACCEPT",
        {"comment": "hypeman-two-words-hmdead", "target": "ACCEPT"},
    ),
]


def test_a_rules_fields_are_what_iptables_shows(ns: Namespace, flavour: str) -> None:
    ns.add_bridges("hm1a")
    others = ["-i docker0 -j ACCEPT", "-j RETURN"]
    rules = [f"-A FORWARD {body}" for each, _ in RULES for body in (*others, each)]
    ns.restore(flavour, restore_input({"filter": [":USERS - [0:0]", *rules]}))
    ns.restore(flavour, restore_input({"nat": leak("hm1a", "10.200.7.0/24")["nat"] + leak("hmdead")["nat"]}))

    found = listed(ns)["orphans"]
    orphans = [orphan for orphan in found if orphan["table"] == "filter"]
    (nat,) = [orphan for orphan in found if orphan["table"] == "nat"]
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
        where = ("backend", "family", "table", "chain", "bridge", "verdict")
        assert [orphan[name] for name in where] == [flavour, "ipv4", "filter", "FORWARD", "hmdead", "orphan"]
        matched = "hmdead" in (orphan["in"], orphan["out"])
        assert orphan["reason"] == (
            "it matches an interface that is gone" if matched else "the interface that its comment belongs to is gone"
        )
    assert [orphan["position"] for orphan in orphans] == [3 * number for number in range(1, len(RULES) + 1)]
    assert (nat["table"], nat["chain"], nat["position"], nat["bridge"]) == ("nat", "POSTROUTING", 2, "hmdead")
    assert (nat["in"], nat["out"], nat["target"]) == (None, "eth0", "MASQUERADE")
    assert nat["source"] == "10.200.1.0/24"


KEPT = [
    ("-i hm1a -j ACCEPT", "live", "hm1a", "hm1a exists"),
    ('-i hmdead -m comment --comment "beside hm1a" -j ACCEPT', "live", "hm1a", "hm1a exists"),
    (
        "-i hm1ea5ed -j ACCEPT",
        "leased",
        "hm1ea5ed",
        f"a running process (PID {os.getpid()}) holds a lease for hm1ea5ed",
    ),
    ("-i hmdead -o ha12 -j ACCEPT", "protected", "ha12", "it names ha12, which is protected"),
    (
        "-i hmdead -m comment --comment hypeman-x-ha12 -j ACCEPT",
        *("protected", "ha12", "its comment belongs to ha12, which is protected"),
    ),
    ("-i hm+ -j ACCEPT", "wildcard", "hm+", "it matches interfaces by wildcard hm+"),
    (
        f"-i hmdead -m comment --comment {'x' * 255} -j ACCEPT",
        *("undecidable", "hmdead", "one of its comments may be cut off, and may have named another interface"),
    ),
    (
        "! -o hmdead -j ACCEPT",
        *("negated", "hmdead", "it names hmdead only in a negated match, so it still matches live traffic"),
    ),
    (
        "! -i hmdead -p tcp -m tcp --dport 8080 -m comment --comment hypeman-guard-hmdead -j DROP",
        *("negated", "hmdead", "it names hmdead only in a negated match, so it still matches live traffic"),
    ),
    ("-i hmvpn0 -j ACCEPT", "foreign", None, "hmvpn0 is not a name of ours: a prefix and hex digits"),
    ("-i xhm12 -j ACCEPT", "foreign", None, "xhm12 is not a name of ours: a prefix and hex digits"),
    (
        '-s 192.0.2.0/24 -m comment --comment "keep guests off hmdead" -j DROP',
        *("foreign", None, "its comment does not have, as a whole, a form of ours"),
    ),
]

UNTIED = [
    '-i docker0 -m comment --comment "web tier has moved"',
    '-i docker0 -m comment --comment "traffic to haproxy"',
    "-i docker0",
]
"""Rules without any verdict."""


def test_all_says_of_every_rule_that_stays_why(ns: Namespace, flavour: str) -> None:
    ns.add_bridges("hm1a")
    write_leases(ns, {"hm1ea5ed": os.getpid()})
    untied = itertools.cycle(UNTIED)
    rules = [f"-A FORWARD {body}" for each, *_ in KEPT for body in (next(untied), each)]
    ns.restore(flavour, restore_input({"filter": [*rules, *leak("hmdead")["filter"]]}))
    report = listed(ns, "--all")
    said = [(rule["verdict"], rule["bridge"], rule["reason"]) for rule in report["kept"]]
    assert said == [tuple(expected) for _, *expected in KEPT]
    assert [rule["position"] for rule in report["kept"]] == [2 * n for n in range(1, len(KEPT) + 1)]
    assert len(report["orphans"]) == 2
    less = listed(ns)
    assert less == {**report, "kept": [], "duration_ms": less["duration_ms"]}
    assert less["negated"] == [rule for rule in report["kept"] if rule["verdict"] == "negated"]

    text = ns.netsweep("list", "--all").stdout
    for body, verdict, _, reason in KEPT:
        harm = f" ({body.rpartition(' ')[2]})" if verdict == "negated" else ""
        assert f" -- {verdict}: {reason}{harm}\n" in text


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
    ("vmbee", "-m comment --comment hypeman-fwd-in-vmbee -j ACCEPT"),
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

    environment["NETSWEEP_LEASE_FILE"] = str(ns.directory / "other.json")
    write_leases(ns, {"vmbee": os.getpid()})
    ns.lease_file.rename(ns.directory / "other.json")
    assert bridges(json.loads(ns.netsweep("list").stdout)) == ["hmdead", "vmdead", "vmdead"]

    environment["NETSWEEP_LOCK_FILE"] = str(ns.directory / "other.lock")
    environment["NETSWEEP_LOCK_TIMEOUT"] = "0"
    with flocked(ns.directory / "other.lock"), unchanged(ns):
        assert ns.netsweep("sweep").returncode == 75
        environment["NETSWEEP_BEST_EFFORT"] = "1"
        assert ns.netsweep("sweep").returncode == 0
        environment["NETSWEEP_DRY_RUN"] = "1"
        assert json.loads(ns.netsweep("sweep").stdout)["dry_run"] is True
    del environment["NETSWEEP_DRY_RUN"]
    report = json.loads(ns.netsweep("sweep").stdout)
    assert report["locks"]["subnet"]["path"] == str(ns.directory / "other.lock")
    assert bridges(report) == ["hmdead", "vmdead", "vmdead"]
    assert not ns.lock_file.exists()
    assert of_bridge(ns, "nft", "vmbee") == 1


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
    out = io.StringIO()
    write_json(looked, out)
    assert {**json.loads(out.getvalue()), "duration_ms": said["duration_ms"]} == said

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

    def found() -> list[str]:
        return sorted(str(finding.bridge) for finding in ns.inside(netsweep.find_orphans).orphans)

    assert found() == []
    ns.restore(flavour, leaks(["hmdead", "hmbee"]))
    assert found() == ["hmbee"] * 3 + ["hmdead"] * 3
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
    rules = ["-A FORWARD -i vmdead -o kube0", "-A INPUT -i vmdead -m comment --comment hypeman-input-kube0"]
    ns.restore("nft", restore_input({"filter": rules}))
    ns.restore("legacy", restore_input({"filter": rules[:1]}))
    leases = ns.directory / "other.json"

    def sweep(**options: Any) -> int:
        report = ns.inside(lambda: netsweep.sweep(lock_file=str(ns.directory / "other.lock"), **options))
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
    assert (ns.directory / "other.lock").exists()


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
    wrong: Any = "ebtables"
    assert failure(ns, netsweep.UsageError, 2, lambda: netsweep.sweep(backend=wrong)) is None
    assert failure(ns, netsweep.UsageError, 2, lambda: netsweep.sweep(chain="filter/TYPO")) is not None
    with flocked(ns.lock_file):
        report = failure(ns, netsweep.BusyError, 75, lambda: netsweep.sweep(lock_timeout=0))
        assert (len(report.orphans), report.subnet_lock) == (6, None)
    with flocked(ns.xtables_lock):
        report = failure(ns, netsweep.BusyError, 75, lambda: netsweep.sweep(wait=0))
        assert report.subnet_lock is not None
        assert report.xtables_lock is None
    ns.lease_file.write_text("no leases")
    assert failure(ns, netsweep.NetsweepError, 1, netsweep.sweep) is not None
    assert failure(ns, netsweep.NetsweepError, 1, netsweep.find_orphans) is not None
    ns.lease_file.unlink()
    with monkeypatch.context() as patch:
        libiptc.cache_clear()
        patch.setattr(bindings, "_private_package", bindings._private_package.__wrapped__)
        patch.setitem(sys.modules, "iptc", None)
        assert failure(ns, netsweep.NoBackendError, 69, netsweep.sweep) is not None
    assert ns.inside(netsweep.sweep).deleted == 6


def gaps(ns: Namespace, *options: str) -> list[str]:
    """The tables that a sweep did not look at."""
    return sorted(report_of(ns.netsweep("sweep", "--format", "json", *options))["overlooked"])


def test_rules_of_one_family_alone_are_found_and_those_of_others_are_no_all_clear(
    ns: Namespace, place: tuple[str, str]
) -> None:
    flavour, family = place
    ns.restore(flavour, leaks(["hmdead"]), family)
    found = listed(ns)
    assert [(rule["backend"], rule["family"]) for rule in found["orphans"]] == [place] * 3
    assert found["elsewhere"] == 0
    said = " ".join(ns.netsweep("doctor").stdout.split())
    assert f"{family} tables filter, nat; 3 rules in the chains looked at, 3 name bridges of ours " in said
    other = "ipv4" if family == "ipv6" else "ipv6"
    left = 0 if family == "inet" else 3
    assert listed(ns, "--family", other)["elsewhere"] == left
    assert gaps(ns, "--family", other) == [f"{flavour} {family} {name}" for name in ("filter", "nat") if left]
    assert report_of(ns.netsweep("sweep", "--format", "json"))["deleted"] == left


FIREWALLD = """
table inet firewalld {
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        iifname "hmdead" accept
        oifname "hmdead" accept
    }
}
table bridge guard { }
table arp filter { }
"""


def test_tables_that_were_not_looked_at_are_no_all_clear_in_any_format(ns: Namespace) -> None:
    ns.run("nft", "-f", "-", input=FIREWALLD)
    others = ["nft arp filter", "nft bridge guard"]
    # A list counts the orphans of all that can be decided on; a sweep does not pay for that.
    found = listed(ns)
    assert (sorted(found["overlooked"]), found["elsewhere"]) == (others, 2)
    with nothing_made(ns), unchanged(ns):
        assert gaps(ns) == [*others, "nft inet firewalld"]
        assert gaps(ns, "--backend", "legacy") == []
        for form in ("text", "github"):
            text = ns.netsweep("list", "--format", form).stdout.splitlines()[-1]
            assert "Nothing to sweep: no rules in filter/FORWARD, nat/POSTROUTING (" in text
            assert "2 more orphaned rules in chains that were not looked at: --all-chains; not looked at: nft " in text
            text = ns.netsweep("sweep", "--format", form).stdout.splitlines()[-1]
            assert "; not looked at: nft inet firewalld, nft bridge guard, nft arp filter; " in text
        assert "2 more orphaned rules in chains" in ns.netsweep("doctor").stdout.splitlines()[-1]
    ns.restore("nft", leaks(["hm1a"]))
    ns.add_bridges("hm1a")
    assert "nft inet firewalld" in gaps(ns)
    assert ns.netsweep("list").stdout.startswith("Nothing to sweep: no orphaned rules, 3 rules read in filter/FORWARD")
    assert report_of(ns.netsweep("sweep", "--format", "json", "--all-chains"))["deleted"] == 2


def test_a_table_of_ours_without_the_chains_asked_for_was_not_looked_at(ns: Namespace, flavour: str) -> None:
    ns.restore(flavour, leaks(["hmdead"]))
    assert listed(ns, "--chain", "nat/POSTROUTING")["elsewhere"] == 2
    assert gaps(ns, "--chain", "nat/POSTROUTING") == [f"{flavour} ipv4 filter"]
    assert gaps(ns) == []


LOOKING = (["list"], ["sweep", "--dry-run"], ["sweep"])


def test_where_no_chain_exists_that_was_asked_for_the_options_are_wrong(ns: Namespace) -> None:
    for flavour in FLAVOURS:
        ns.restore(flavour, leaks(["hmdead"]))
    ns.run("ip6tables-nft", "-N", "ONLY6")
    with unchanged(ns):
        for command in (*LOOKING, ["doctor"]):
            assert "filter/TYPO" in complaint(ns.netsweep(*command, "--chain", "filter/TYPO"), 2)
        line = complaint(ns.netsweep("sweep", "--chain", "ipv4:filter/ONLY6", "--chain", "nat/FORWARD"), 2)
        assert "ipv4:filter/ONLY6 or nat/FORWARD" in line
        complaint(ns.netsweep("sweep", "--chain", "filter/ONLY6", "--family", "ipv4"), 2)
        assert report_of(ns.netsweep("sweep", "--chain", "filter/ONLY6", "--format", "json"))["scanned"] == 0
        report = json.loads(ns.netsweep("sweep", "--chain", "filter/TYPO", "--format", "json").stdout)
    assert (report["chains"], len(report["errors"]), report["changed"]) == (["filter/TYPO"], 1, False)


def test_a_chain_that_exists_nowhere_is_a_warning_in_every_format(ns: Namespace, flavour: str) -> None:
    ns.iptables(flavour, "-N", "MINE")
    ns.restore(flavour, leaks(["hmdead"]))
    chains = ("--chain", "filter/MINE", "--chain", "filter/TYPO", "--chain", "nat/POSTROUTING")
    ns.environment["GITHUB_STEP_SUMMARY"] = str(ns.directory / "summary")
    for command in (["list"], ["sweep"]):
        ns.restore(flavour, leaks(["hmbee"]))
        text = ns.netsweep(*command, *chains)
        assert (text.returncode, text.stderr) == (0, "netsweep: warning: there is no chain filter/TYPO\n")
        ns.restore(flavour, leaks(["hmbee"]))
        report = json.loads(ns.netsweep(*command, *chains, "--format", "json").stdout)
        assert report["chains"] == ["filter/MINE", "filter/TYPO", "nat/POSTROUTING"]
        assert (report["warnings"], report["errors"]) == (["there is no chain filter/TYPO"], [])
        assert {rule["chain"] for rule in report["orphans"]} == {"POSTROUTING"}
        annotations = ns.netsweep(*command, *chains, "--format", "github").stdout
        assert "::warning title=netsweep::there is no chain filter/TYPO\n" in annotations
    assert "- warning: there is no chain filter/TYPO\n" in (ns.directory / "summary").read_text()
    # The summary of a run that found nothing names the chains.
    assert "in filter/MINE, filter/TYPO, nat/POSTROUTING (" in ns.netsweep("list", *chains).stdout
    assert report_of(ns.netsweep("doctor", *chains, "--format", "json"))["warnings"] == [
        "there is no chain filter/TYPO"
    ]


def test_a_built_in_chain_that_nobody_used_yet_is_no_typing_error(ns: Namespace) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    for chain in ("mangle/FORWARD", "filter/INPUT", "raw/PREROUTING"):
        assert listed(ns, "--chain", chain)["warnings"] == []


def test_the_lease_file_that_was_used_is_told_and_whether_it_exists(ns: Namespace) -> None:
    ns.restore("nft", leaks(["hm1ea5ed"]))

    def told(*options: str) -> tuple[dict[str, Any], list[str]]:
        """Lease file in JSON, and the last lines of text and of the workflow's log."""
        used = listed(ns, *options)["leases"]
        assert report_of(ns.netsweep("doctor", "--format", "json", *options))["leases"] == used
        forms = ("text", "github")
        return used, [ns.netsweep("list", "--format", form, *options).stdout.splitlines()[-1] for form in forms]

    used, texts = told()
    assert used == {"path": str(ns.lease_file), "exists": False, "leases": 0, "running": 0}
    for text in texts:
        assert f"; lease file {ns.lease_file} does not exist" in text
    write_leases(ns, {"hm1ea5ed": os.getpid(), "hmbee": 2**22})
    used, texts = told()
    assert used == {"path": str(ns.lease_file), "exists": True, "leases": 2, "running": 1}
    for text in texts:
        assert "lease file" not in text
        assert "no orphaned rules" in text
    verbose = ns.netsweep("list", "-v").stdout
    assert f"Lease file {ns.lease_file}: 2 leases, 1 in force.\n" in verbose
    other = ns.directory / "elsewhere.json"
    used, texts = told("--lease-file", str(other))
    assert (used["path"], used["exists"]) == (str(other), False)
    for text in texts:
        assert "Found 3 orphaned rules" in text
        assert f"; lease file {other} does not exist" in text


def test_without_tmpdir_the_report_says_that_it_looked_in_tmp(ns: Namespace) -> None:
    """As through sudo: the lease that keeps the bridge is elsewhere."""
    ns.restore("nft", leaks(["hm1ea5ed"]))
    write_leases(ns, {"hm1ea5ed": os.getpid()})
    done = ns.run("env", "-u", "TMPDIR", sys.executable, "-m", "netsweep", "list", "--format", "json")
    report = json.loads(done.stdout)
    assert report["leases"]["path"] == "/tmp/hypeman-test-network-leases.json"
    assert report["leases"]["exists"] == Path("/tmp/hypeman-test-network-leases.json").exists()
    assert listed(ns)["leases"]["exists"]


def test_an_existing_lease_file_is_told_by_a_sweep_too(ns: Namespace) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    write_leases(ns, {"hm1ea5ed": os.getpid()})
    used = report_of(ns.netsweep("sweep", "--format", "json"))["leases"]
    assert used == {"path": str(ns.lease_file), "exists": True, "leases": 1, "running": 1}
