"""What a sweep deletes on the real kernel, and all that it leaves as it was."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import pytest

import netsweep
from netsweep import leases, locks
from netsweep.backends import legacy, nft
from netsweep.interfaces import Interfaces
from netsweep.orphans import Live
from netsweep.sweeper import LOOK_MAX
from tests.extensions import COMMENT, EXTENSIONS, NAT, accepted
from tests.namespace import FLAVOURS, Namespace, flocked, leak, leaks, unchanged, wait_until_queued
from tests.soak import is_free

LIVE = ("hm1a", "hm2b", "hm3c")
DEAD = [f"hm{0x3FA2000 + number:x}" for number in range(300)]


class Line(NamedTuple):
    """A rule less its ``-A CHAIN``, and whether a sweep is to delete it."""

    body: str
    goes: bool = False


class Expected:
    """Which rules of one flavour are to go, told by their places alone."""

    def __init__(self, ns: Namespace, flavour: str) -> None:
        self.ns = ns
        self.flavour = flavour
        self._goes: dict[tuple[str, str], list[bool]] = defaultdict(list)

    def load(self, table: str, chain: str, lines: Sequence[Line], *before: str) -> None:
        """Append ``lines`` to a chain, each with counters of its own."""
        goes = self._goes[table, chain]
        rules = [f"[{number}:{number * 84}] -A {chain} {line.body}" for number, line in enumerate(lines, len(goes) + 1)]
        text = "".join(f"{line}\n" for line in (f"*{table}", *before, *rules, "COMMIT"))
        self.ns.run(f"iptables-{self.flavour}-restore", "--noflush", "--counters", "-w", "5", input=text)
        goes += [line.goes for line in lines]

    def load_native(self, table: str, chain: str, lines: Sequence[Line]) -> None:
        """Append ``lines``, in the words of nft, to a chain."""
        commands = "".join(f"add rule ip {table} {chain} {line.body}\n" for line in lines)
        self.ns.run("nft", "-f", "-", input=commands)
        self._goes[table, chain] += [line.goes for line in lines]

    def orphans(self) -> set[tuple[str, str, str, int]]:
        """Backend, table, chain and position of all that is to go."""
        return {
            (self.flavour, table, chain, position)
            for (table, chain), goes in self._goes.items()
            for position, each in enumerate(goes, 1)
            if each
        }

    def surviving(self, save: Sequence[str]) -> list[str]:
        """``iptables-save`` output less what is to go."""
        return list(self._filtered(save, r"\*(\S+)", r"\[\d+:\d+\] -A (\S+)"))

    def surviving_ruleset(self, ruleset: str) -> list[str]:
        """The lines of ``nft -a list ruleset`` less what is to go."""
        return list(self._filtered(ruleset.splitlines(), r"table ip (\S+) \{|table ()", r"\t\t.* # handle \d+$"))

    def _filtered(self, lines: Sequence[str], table_line: str, rule_line: str) -> Iterator[str]:
        table = chain = ""
        places: dict[tuple[str, str], Iterator[bool]] = {}
        for line in lines:
            if found := re.match(table_line, line):
                table = found.group(1) or ""
            elif found := re.match(r"\tchain (\S+)", line):
                chain = found.group(1)
            elif found := re.match(rule_line, line):
                key = (table, found.group(1) if found.groups() else chain)
                if key in self._goes and next(places.setdefault(key, iter(self._goes[key]))):
                    continue
            yield line
        assert all(next(rest, None) is None for rest in places.values())
        assert set(places) == {key for key, goes in self._goes.items() if goes}


def swept(ns: Namespace, *options: str) -> dict[str, Any]:
    """Sweep, which has to work; the report."""
    done = ns.netsweep("sweep", "--format", "json", *options)
    assert (done.returncode, done.stderr) == (0, "")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def places(report: dict[str, Any], key: str = "orphans") -> set[tuple[str, str, str, int]]:
    found = {(rule["backend"], rule["table"], rule["chain"], rule["position"]) for rule in report[key]}
    assert len(found) == len(report[key])
    return found


def in_process(ns: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let netsweep find the namespace's own locks and leases in this process too."""
    for name in ("TMPDIR", "XTABLES_LOCKFILE"):
        monkeypatch.setenv(name, ns.environment[name])


def of_bridge(ns: Namespace, flavour: str, bridge: str) -> int:
    """How many rules name ``bridge``."""
    return sum(bool(re.search(rf"\b{bridge}\b", line)) for line in ns.save(flavour))


def bodies(bridge: str, table: str) -> list[str]:
    """What the test harness leaves in ``table`` for one bridge, less the chain."""
    return [rule.split(maxsplit=2)[2] for rule in leak(bridge)[table]]


def forward_lines() -> list[Line]:
    """All sorts of rules, most of them of dead bridges."""
    first, second = DEAD[:2]
    live = LIVE[0]
    ours = [Line(body, goes=True) for bridge in DEAD for body in bodies(bridge, "filter")]
    copies = [line for line in ours[:20] for _ in range(2)]
    alive = [Line(body) for bridge in LIVE for body in bodies(bridge, "filter")]
    orphans = [
        f"-i {first} -j ACCEPT",
        f"-o {first} -j DROP",
        f"-i {first} -o {second} -j ACCEPT",
        f"-i {first} ! -o eth0 -j DROP",
        f"! -i {first} -o {second} -j DROP",
        f"-i {first} -s 10.200.1.0/24 -d 10.200.1.1 -m comment --comment hypeman-gateway-{first} -j ACCEPT",
        f"! -o {first} -m comment --comment hypeman-fwd-out-{first} -j ACCEPT",
        f"-m comment --comment hypeman-fwd-in-{first} -j ACCEPT",
        f'-m comment --comment "hypeman: {first} of {second}" -j ACCEPT',
        f"-i docker0 -m comment --comment hypeman-fwd-out-{first} -j ACCEPT",
        f"-i {first}",
    ]
    others = [
        "-j ACCEPT",
        "-i docker0 -o eth0 -j ACCEPT",
        "-i hmvpn0 -m comment --comment hypeman-fwd-out-hmvpn0 -j ACCEPT",
        "-i xhm12 -m comment --comment hypeman-fwd-out-xhm12 -j ACCEPT",
        f"-i x{first} -j ACCEPT",
        f"-i {first}x -j ACCEPT",
        f"-i {first.upper()} -j ACCEPT",
        "-i hm -j ACCEPT",
        "-i ha12 -o eth0 -m comment --comment hypeman-fwd-out-ha12 -j ACCEPT",
        f"-i {first} -o ha12 -j ACCEPT",
        f"-i {first} -m comment --comment hypeman-ha12-{first} -j ACCEPT",
        "-i hm+ -j ACCEPT",
        "! -i hm+ -j ACCEPT",
        f"-i {first}+ -j ACCEPT",
        f"-i hm+ -o {first} -m comment --comment hypeman-fwd-in-{first} -j ACCEPT",
        "-i h+ -j ACCEPT",
        f"! -o {first} -j ACCEPT",
        f"! -i {first} ! -o {second} -j ACCEPT",
        f"-i {live} -o {first} -j ACCEPT",
        f"-i {first} ! -o {live} -j ACCEPT",
        f"-i {first} -m comment --comment hypeman-fwd-in-{live} -j ACCEPT",
        f"-i {live} -m comment --comment hypeman-fwd-in-{first} -j ACCEPT",
        f"-m comment --comment {first} -j ACCEPT",
        f"-m comment --comment hypeman-fwd-in-{first}- -j ACCEPT",
        f"-m comment --comment hypeman-fwd-in-x{first} -j ACCEPT",
        f'-m string --string "hypeman-fwd-in-{first}" --algo bm -j DROP',
        f"-m physdev --physdev-in {first} -j DROP",
    ]
    stay = [Line(body) for body in others]
    return [*ours, *copies, *(Line(body, goes=True) for body in orphans), *(3 * alive), *(4 * stay)]


def postrouting_lines() -> list[Line]:
    """The same for the table where the bridge's name is in the comment only."""
    ours = [Line(body, goes=True) for bridge in DEAD for body in bodies(bridge, "nat")]
    alive = [Line(body) for bridge in LIVE for body in bodies(bridge, "nat")]
    others = [
        "-s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
        "-s 10.200.1.0/24 -o eth0 -j MASQUERADE",
        "-s 10.100.0.0/16 -m comment --comment hypeman-nat-ha12 -j MASQUERADE",
        "-s 10.100.0.0/16 -m comment --comment hypeman-nat-hmvpn0 -j MASQUERADE",
        "-o hm+ -j MASQUERADE",
    ]
    return [*ours, *ours[:20], *alive, *(3 * [Line(body) for body in others])]


def crowded(expected: Expected) -> None:
    """Load 300 leaked bridges among all that may stand beside them, in a random order that is always the same."""
    shuffled = random.Random(300)
    for table, chain, lines in (
        ("filter", "FORWARD", forward_lines()),
        ("nat", "POSTROUTING", postrouting_lines()),
    ):
        shuffled.shuffle(lines)
        # libiptc by itself drops a policy's counters with every change to a table.
        expected.load(table, chain, lines, f":{chain} DROP [41:4242]" if table == "filter" else "")


def test_exactly_the_orphans_of_300_bridges_go(ns: Namespace, flavour: str) -> None:
    ns.add_bridges(*LIVE)
    expected = Expected(ns, flavour)
    crowded(expected)
    save, ruleset = ns.save(flavour), ns.ruleset()
    rules = sum(line.startswith("[") for line in save)

    report = swept(ns)

    assert len(expected.orphans()) == 971
    assert places(report) == expected.orphans()
    assert report["scanned"] == rules
    assert report["deleted"] == len(expected.orphans())
    assert ns.save(flavour) == expected.surviving(save)
    if flavour == "nft":
        assert ns.ruleset().splitlines() == expected.surviving_ruleset(ruleset)


def test_a_rule_goes_as_often_as_it_stands_there(ns: Namespace, flavour: str) -> None:
    expected = Expected(ns, flavour)
    copies = [Line(body, goes=True) for body in bodies("hmdead", "filter")] * 7
    expected.load("filter", "FORWARD", [Line("-i eth0 -j ACCEPT"), *copies, Line("-i eth0 -j ACCEPT"), *copies])
    save = ns.save(flavour)
    assert swept(ns)["deleted"] == 28
    assert ns.save(flavour) == expected.surviving(save)


def test_rules_made_with_nft_go_and_stay_like_those_of_iptables(ns: Namespace) -> None:
    ns.add_bridges(*LIVE)
    expected = Expected(ns, "nft")
    expected.load("filter", "FORWARD", [Line(body, goes=True) for body in bodies("hm0", "filter")])
    expected.load("nat", "POSTROUTING", [Line(body, goes=True) for body in bodies("hm0", "nat")])
    out, into = 'comment "hypeman-fwd-out-hm1"', 'comment "hypeman-fwd-in-hm1"'
    expected.load_native(
        "filter",
        "FORWARD",
        [
            Line(
                'iifname "hm1" oifname "eth0" ct state new,related,established counter packets 7 bytes 77 accept', True
            ),
            Line('iifname "hm*" accept'),
            Line(f'iifname "hm1" oifname "eth0" counter packets 8 bytes 88 accept {out}', True),
            Line(f'iifname "hm1a" oifname "eth0" counter packets 9 bytes 99 accept {out[:-2]}1a"'),
            Line(f'iifname "eth0" oifname "hm1" accept {into}', True),
            Line(f'iifname "hm*" oifname "hm1" accept {into}'),
            Line(f"accept {into}", True),
            Line(f'iifname != "hm1" accept {into}', True),
            Line('iifname != "hm1" accept'),
            Line('iifname != { "hm1", "hm2" } accept'),
            Line('iifname { "hm1", "hm2" } drop'),
            Line(f'iifname {{ "hm1", "hm2" }} drop {into}'),
            Line(f'iifname {{ "hm1", "hm1a" }} drop {into}'),
            Line('iifname . oifname { "hm1" . "eth0" } accept'),
            Line(f'iifname vmap {{ "hm1" : accept, "hm1a" : drop }} {into}'),
            Line('iifname "hm1" oifname "hm1a" accept'),
            Line('iifname "hm1" oifname { "hm1a" } accept'),
            Line(f'iif "lo" accept {into}'),
            Line('iifname "hm1" accept comment "hypeman-fwd-out-hma1"', True),
            Line(f'iifname "ha1" accept {into}'),
            Line('iifname "hm1" accept comment "hypeman-ha1-hm1"'),
            Line('iifname "hmvpn0" accept'),
            Line('iifname "hm1" tcp dport { 22, 80 } limit rate 3/minute log prefix "hm1" drop', True),
        ],
    )
    nat = 'ip saddr 10.200.1.0/24 oifname "eth0"'
    expected.load_native(
        "nat",
        "POSTROUTING",
        [
            Line(f'{nat} counter packets 1 bytes 2 masquerade comment "hypeman-nat-hm1"', True),
            Line(f'{nat} counter packets 3 bytes 4 masquerade comment "hypeman-nat-hm1a"'),
            Line(f"{nat} masquerade"),
            Line('ip saddr 10.200.1.0/24 oifname "hm*" masquerade comment "hypeman-nat-hm1"'),
        ],
    )
    expected.load("filter", "FORWARD", [Line(body, goes=True) for body in bodies("hm3", "filter")])
    ruleset = ns.ruleset()
    assert places(swept(ns)) == expected.orphans()
    assert ns.ruleset().splitlines() == expected.surviving_ruleset(ruleset)


def test_other_families_and_tables_of_nf_tables_are_none_of_ours(ns: Namespace) -> None:
    expected = Expected(ns, "nft")
    expected.load("filter", "FORWARD", [Line(body, goes=True) for body in bodies("hmdead", "filter")])
    ns.run("ip6tables-nft", "-A", "FORWARD", "-i", "hmdead", "-j", "ACCEPT")
    names = (("inet", "filter"), ("ip6", "filter"), ("ip6", "nat"), ("bridge", "filter"), ("ip", "mine"))
    for family, table in names:
        rule = f'{family} {table} FORWARD iifname "hmdead" counter packets 5 bytes 6 comment "hypeman-fwd-out-hmdead"'
        ns.run("nft", f"add table {family} {table}; add chain {family} {table} FORWARD; add rule {rule}")
    ns.run("nft", 'add chain ip filter forward; add rule ip filter forward iifname "hmdead" drop')
    before = ns.ruleset()
    assert swept(ns)["deleted"] == 2
    assert ns.ruleset().splitlines() == expected.surviving_ruleset(before)


def test_x_tables_of_ipv6_are_none_of_ours(ns: Namespace) -> None:
    ns.restore("legacy", leaks(["hmdead"]))
    ns.run("ip6tables-legacy", "-w", "-A", "FORWARD", "-i", "hmdead", "-j", "ACCEPT")
    before = ns.run("ip6tables-legacy", "-S").stdout
    assert swept(ns)["deleted"] == 3
    assert "hmdead" in before
    assert ns.run("ip6tables-legacy", "-S").stdout == before


ELSEWHERE = (
    ("filter", "INPUT"),
    ("filter", "OUTPUT"),
    ("filter", "HYPEMAN"),
    ("nat", "PREROUTING"),
    ("mangle", "FORWARD"),
    ("mangle", "POSTROUTING"),
)


def test_only_the_chains_that_are_asked_for_are_swept(ns: Namespace, flavour: str) -> None:
    line = f"-s 10.200.1.0/24 {COMMENT}"
    default = Expected(ns, flavour)
    default.load("filter", "FORWARD", [Line(f"{line} -j ACCEPT", goes=True), Line("-j ACCEPT")])
    default.load("nat", "POSTROUTING", [Line(f"{line} -j MASQUERADE", goes=True)])
    other = Expected(ns, flavour)
    for table, chain in ELSEWHERE:
        lines = [Line(line, goes=True), Line("-p tcp"), Line(line, goes=True)]
        other.load(table, chain, lines, f":{chain} - [0:0]" if chain == "HYPEMAN" else "")

    save = ns.save(flavour)
    options = [part for table, chain in ELSEWHERE for part in ("--chain", f"{table}/{chain}")]
    assert places(swept(ns, *options)) == other.orphans()
    after = other.surviving(save)
    assert ns.save(flavour) == after

    for table, chain in ELSEWHERE:
        other.load(table, chain, [Line(line, goes=True)])
    save = ns.save(flavour)
    assert places(swept(ns)) == default.orphans()
    assert ns.save(flavour) == default.surviving(save)


MORE = {
    ("filter", "FORWARD"): [
        *EXTENSIONS,
        "-p sctp -m sctp --dport 7",
        "-p dccp -m dccp --dport 7",
        "-p ah -m ah --ahspi 1:2",
        "-p esp -m esp ! --espspi 3",
        "-m cpu --cpu 0",
        "-m devgroup --src-group 0x1",
        "-m realm --realm 0x1",
        "-m cluster --cluster-total-nodes 2 --cluster-local-node 1 --cluster-hash-seed 0x7",
        "-m policy --dir in --pol none",
        "-p tcp -m osf --genre Linux",
        "-j TEE --gateway 192.0.2.1",
        "-j AUDIT --type accept",
        "-j IDLETIMER --timeout 5 --label netsweep",
        "-p tcp -j SYNPROXY --sack-perm --mss 1460",
    ],
    ("nat", "POSTROUTING"): NAT,
    ("mangle", "PREROUTING"): [
        "-p tcp -j TPROXY --on-port 1 --on-ip 127.0.0.1 --tproxy-mark 0x1/0x1",
        "-j TTL --ttl-set 5",
        "-j TOS --set-tos 0x10/0x3f",
        "-j DSCP --set-dscp 0x10",
        "-p tcp -j ECN --ecn-tcp-remove",
        "-j HMARK --hmark-tuple src --hmark-mod 4 --hmark-rnd 0x1",
        "-p udp -j CHECKSUM --checksum-fill",
        "-p tcp -j TCPOPTSTRIP --strip-options sack-permitted",
        "-j MARK --set-xmark 0x4/0x4",
    ],
    ("raw", "PREROUTING"): ["-j CT --notrack", "-j TRACE", "-p tcp -j CT --zone 3"],
}
"""What stands in rules of others, by where it may stand."""


def bystanders(ns: Namespace, flavour: str) -> dict[tuple[str, str], list[str]]:
    """Rules of others, of as many kinds as this host can make."""
    ns.run("ipset", "create", "blocked", "hash:ip,port", "timeout", "0")
    found = {}
    for (table, chain), candidates in MORE.items():
        known = accepted(ns, flavour, table, chain, candidates)
        own = [rule.removeprefix(f"-A {chain} {COMMENT}").strip() for rule in known]
        found[table, chain] = [body for body in own if "hmdead" not in body]
    return found


def test_hundreds_of_rules_of_every_kind_survive_byte_for_byte(ns: Namespace, flavour: str) -> None:
    expected = Expected(ns, flavour)
    found = bystanders(ns, flavour)
    assert sum(map(len, found.values())) >= 50
    wrappings = ("", "-i docker0", "! -o hmvpn0", '-m comment --comment "hm {}: not \\"ours\\", é"', "-o hm+")
    total = 0
    for (table, chain), kinds in found.items():
        # Only FORWARD knows both -i and -o.
        usable = wrappings if chain == "FORWARD" else (wrappings[0], wrappings[3])
        others = [Line(f"{wrap.format(n)} {body}") for wrap in usable for n, body in enumerate(kinds)]
        total += len(others)
        lines: list[Line] = []
        for number, other in enumerate(others):
            kind = kinds[number % len(kinds)]
            # What interfaces are in a group is nothing that a rule tells.
            dead = Line(f"{COMMENT} {kind}", goes="devgroup" not in kind)
            lines += [other, dead] if number % 3 else [other]
        expected.load(table, chain, lines, "-F", ":USERS - [0:0]", "-A USERS -p udp -j RETURN")
    assert total >= 300
    save, ruleset = ns.save(flavour), ns.ruleset()
    options = [part for table, chain in found for part in ("--chain", f"{table}/{chain}")]
    assert places(swept(ns, *options)) == expected.orphans()
    assert ns.save(flavour) == expected.surviving(save)
    if flavour == "nft":
        assert ns.ruleset().splitlines() == expected.surviving_ruleset(ruleset)


def test_a_second_sweep_finds_nothing_takes_no_lock_and_changes_nothing(ns: Namespace, flavour: str) -> None:
    ns.add_bridges(*LIVE)
    ns.restore(flavour, leaks([*LIVE, *DEAD[:20]]))
    assert swept(ns)["locks"]["subnet"]
    ns.lock_file.unlink()
    with unchanged(ns):
        report = swept(ns)
    assert report["orphans"] == []
    assert (report["deleted"], report["changed"], report["scanned"]) == (0, False, 9)
    assert report["locks"] == {"subnet": None, "xtables": None}
    assert not ns.lock_file.exists()


def test_where_nothing_was_ever_left_behind_no_lock_is_taken_or_made(ns: Namespace, flavour: str) -> None:
    ns.add_bridges(*LIVE)
    ns.restore(flavour, leaks(LIVE))
    (ns.folder / "xtables.lock").unlink(missing_ok=True)
    report = swept(ns)
    assert report["locks"] == {"subnet": None, "xtables": None}
    assert list(ns.folder.iterdir()) == []


def test_both_backends_are_clean_after_one_run(ns: Namespace) -> None:
    ns.add_bridges(*LIVE)
    expected = {flavour: Expected(ns, flavour) for flavour in FLAVOURS}
    for flavour, dead in zip(FLAVOURS, (DEAD[:7], DEAD[5:10]), strict=True):
        mixed = [Line(body, bridge in dead) for bridge in (*LIVE, *dead) for body in bodies(bridge, "filter")]
        expected[flavour].load("filter", "FORWARD", mixed)
    saves = {flavour: ns.save(flavour) for flavour in FLAVOURS}
    report = swept(ns)
    assert report["backends"] == [
        {"name": "legacy", "family": "ipv4", "scanned": 20, "orphans": 14, "deleted": 14},
        {"name": "nft", "family": "ipv4", "scanned": 16, "orphans": 10, "deleted": 10},
    ]
    assert (report["scanned"], report["deleted"]) == (36, 24)
    assert places(report) == expected["legacy"].orphans() | expected["nft"].orphans()
    for flavour in FLAVOURS:
        assert ns.save(flavour) == expected[flavour].surviving(saves[flavour])


def test_both_backends_are_swept_under_one_hold_of_the_subnet_lock(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for flavour in FLAVOURS:
        ns.restore(flavour, leaks(["hmdead"]))
    in_process(ns, monkeypatch)
    held = locks.held
    seen: list[tuple[object, ...]] = []

    @contextmanager
    def watched(times: locks.LockTimes, timeout: float, **settings: Any) -> Iterator[None]:
        left = [of_bridge(ns, flavour, "hmdead") for flavour in FLAVOURS] if settings["what"] == "subnet lock" else []
        seen.append((settings["what"], "wanted", *left))
        with held(times, timeout, **settings):
            yield
            left = [of_bridge(ns, flavour, "hmdead") for flavour in FLAVOURS]
            seen.append((settings["what"], "kept until", *left))

    monkeypatch.setattr(locks, "held", watched)
    report = ns.inside(netsweep.sweep)
    assert report.deleted == 6
    assert seen == [
        ("subnet lock", "wanted", 3, 3),
        ("xtables lock", "wanted"),
        ("xtables lock", "kept until", 0, 3),
        ("subnet lock", "kept until", 0, 0),
    ]


def test_one_backend_alone_leaves_the_other_as_it_is(ns: Namespace, flavour: str) -> None:
    other = FLAVOURS[1 - FLAVOURS.index(flavour)]
    for each in FLAVOURS:
        ns.restore(each, leaks(["hmdead"]))
    before = ns.save(other)
    report = swept(ns, "--backend", flavour)
    assert [backend["name"] for backend in report["backends"]] == [flavour]
    assert (report["locks"]["xtables"] is None) == (flavour == "nft")
    assert {rule["backend"] for rule in report["orphans"]} == {flavour}
    assert of_bridge(ns, flavour, "hmdead") == 0
    assert ns.save(other) == before


def between_readings(monkeypatch: pytest.MonkeyPatch, reading: int, act: Callable[[], None]) -> None:
    """Call ``act`` between the reading of rules and that of interfaces, whichever comes first.

    ``reading``: which pair of them, from 1.
    """
    live = Interfaces.live
    readings = itertools.count(1)
    rules_read = False

    def hooked(*arguments: Any, **settings: Any) -> Live:
        nonlocal rules_read
        due = next(readings) == reading
        if due and rules_read:
            act()
        found = live(*arguments, **settings)
        if due and not rules_read:
            act()
        rules_read = False
        return found

    def noting(original: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            nonlocal rules_read
            rules_read = True
            return original(*arguments)

        return noted

    monkeypatch.setattr(Interfaces, "live", hooked)
    for backend in (legacy.LegacyBackend, nft.NftBackend):
        monkeypatch.setattr(backend, "scan", noting(backend.scan))
        monkeypatch.setattr(backend, "transaction", noting(backend.transaction))


def after_interfaces(monkeypatch: pytest.MonkeyPatch, reading: int, act: Callable[[], None]) -> None:
    """Call ``act`` when the interfaces have just been read, as if that came before the rules."""
    live = Interfaces.live
    readings = itertools.count(1)

    def hooked(*arguments: Any, **settings: Any) -> Live:
        found = live(*arguments, **settings)
        if next(readings) == reading:
            act()
        return found

    monkeypatch.setattr(Interfaces, "live", hooked)


class Arrival:
    """A bridge that comes back to the rules it left, and one that is new; both with new rules.

    iptables may have to wait for the xtables lock, so it is not waited for before the sweep ends.
    """

    def __init__(self, ns: Namespace, flavour: str) -> None:
        self._ns = ns
        self._flavour = flavour
        self._jobs: list[subprocess.Popen[str]] = []

    def __call__(self) -> None:
        ns = self._ns
        ns.add_bridges("hmbac", "hmfe1")
        rules = ns.folder / "arrival"
        rules.write_text(leaks(["hmbac", "hmfe1"]))
        xtables_lock = ns.folder / "xtables.lock"
        has_to_wait = self._flavour == "legacy" and not is_free(xtables_lock)
        job = ns.start(f"iptables-{self._flavour}-restore", "--noflush", "-w", "30", str(rules))
        self._jobs.append(job)
        if has_to_wait:
            wait_until_queued(job.pid, xtables_lock)
        else:
            assert job.wait() == 0

    def wait(self) -> None:
        assert len(self._jobs) == 1, "nobody arrived"
        for job in self._jobs:
            _, stderr = job.communicate(timeout=30)
            assert (job.returncode, stderr) == (0, "")


LOOK, UNDER_LOCK = 1, 2


@pytest.mark.parametrize("reading", [LOOK, UNDER_LOCK])
def test_a_bridge_that_comes_between_the_rules_and_the_interfaces_keeps_its_rules(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch, flavour: str, reading: int
) -> None:
    ns.restore(flavour, leaks(["hmdead", "hmbac", "hmbee"]))
    in_process(ns, monkeypatch)
    arrival = Arrival(ns, flavour)
    between_readings(monkeypatch, reading, arrival)
    report = ns.inside(netsweep.sweep)
    arrival.wait()
    assert {finding.bridge for finding in report.orphans} == {"hmdead", "hmbee"}
    assert of_bridge(ns, flavour, "hmbac") == 6
    assert of_bridge(ns, flavour, "hmfe1") == 3
    assert of_bridge(ns, flavour, "hmdead") == of_bridge(ns, flavour, "hmbee") == 0


def test_a_look_never_calls_rules_of_a_bridge_that_just_came_orphans(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch, flavour: str
) -> None:
    ns.restore(flavour, leaks(["hmdead", "hmbac"]))
    in_process(ns, monkeypatch)
    arrival = Arrival(ns, flavour)
    between_readings(monkeypatch, LOOK, arrival)
    report = ns.inside(netsweep.find_orphans)
    arrival.wait()
    assert {finding.bridge for finding in report.orphans} == {"hmdead"}


def test_with_the_interfaces_read_first_such_a_bridge_would_lose_its_rules(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch, flavour: str
) -> None:
    """Proof that the tests above can fail."""
    ns.restore(flavour, leaks(["hmdead", "hmbac"]))
    in_process(ns, monkeypatch)
    with monkeypatch.context() as patch:
        arrival = Arrival(ns, flavour)
        after_interfaces(patch, LOOK, arrival)
        report = ns.inside(netsweep.find_orphans)
        arrival.wait()
        assert {finding.bridge for finding in report.orphans} == {"hmdead", "hmbac"}
    ns.run("ip", "link", "del", "hmbac")
    ns.run("ip", "link", "del", "hmfe1")

    arrival = Arrival(ns, flavour)
    after_interfaces(monkeypatch, UNDER_LOCK, arrival)
    report = ns.inside(netsweep.sweep)
    arrival.wait()
    assert "hmbac" in {finding.bridge for finding in report.orphans}
    assert "hmbac" in ns.run("ip", "-o", "link").stdout
    # All that is left is what came after the decision.
    assert of_bridge(ns, flavour, "hmbac") == 3


def test_rules_are_read_before_interfaces_and_leases_after_the_subnet_lock(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for flavour in FLAVOURS:
        ns.restore(flavour, leaks(["hmdead"]))
    in_process(ns, monkeypatch)
    events: list[str] = []

    def note(owner: object, name: str, event: str) -> None:
        original = getattr(owner, name)

        def noted(*arguments: Any, **settings: Any) -> Any:
            result = original(*arguments, **settings)
            events.append(event)
            return result

        monkeypatch.setattr(owner, name, noted)

    def note_lock(original: Callable[..., AbstractContextManager[None]]) -> Callable[..., AbstractContextManager[None]]:
        @contextmanager
        def noted(*arguments: Any, what: str, **settings: Any) -> Iterator[None]:
            with original(*arguments, what=what, **settings):
                events.append(what)
                yield

        return noted

    monkeypatch.setattr(locks, "held", note_lock(locks.held))
    note(leases, "read", "leases")
    note(Interfaces, "live", "interfaces")
    note(legacy.LegacyBackend, "_read", "rules")
    note(nft.NftBackend, "scan", "rules")
    note(legacy._Transaction, "delete", "delete")
    note(nft._Transaction, "delete", "delete")
    ns.inside(netsweep.sweep)

    locked = events.index("subnet lock")
    look, under_lock = events[:locked], events[locked:]
    assert look[-1] == "interfaces"
    assert sorted(look) == ["interfaces", "leases", *["rules"] * 4]
    first_delete = under_lock.index("delete")
    # What was read of nf_tables before the lock will do: a handle names one rule for good.
    assert under_lock[first_delete:] == ["delete", "delete", "interfaces", "delete", "delete"]
    assert under_lock[first_delete - 1] == "interfaces"
    assert sorted(under_lock[1 : first_delete - 1]) == ["leases", "rules", "rules", "xtables lock"]
    assert under_lock.index("xtables lock") < under_lock.index("rules")


def write_leases(ns: Namespace, pids: dict[str, int]) -> None:
    """Write the lease file as the test harness does: under a name of its own, then renamed."""
    content = {
        f"10.200.{number}.0/24": {
            "test_name": "TestX",
            "bridge_name": bridge,
            "subnet_cidr": f"10.200.{number}.0/24",
            "pid": pid,
            "created_at_unix": 1781049600,
        }
        for number, (bridge, pid) in enumerate(pids.items())
    }
    new = ns.folder / "leases.new"
    new.write_text(json.dumps({"leases": content}))
    new.chmod(0o600)
    new.rename(ns.lease_file)


def ended_pid() -> int:
    """The ID of a process that has ended just now: none is given out again so soon."""
    with subprocess.Popen(["true"]) as process:
        pass
    return process.pid


def test_a_leased_bridge_that_does_not_exist_yet_keeps_its_rules(ns: Namespace, flavour: str) -> None:
    write_leases(ns, {"hm1ea5ed": os.getpid(), "hm0": ended_pid()})
    expected = Expected(ns, flavour)
    lines = [
        Line(body, bridge != "hm1ea5ed")
        for bridge in ("hm0", "hm1ea5ed", "hmdead")
        for body in bodies(bridge, "filter")
    ]
    expected.load("filter", "FORWARD", [*lines, Line("-i hm1ea5ed -o hmdead -j ACCEPT")])
    save = ns.save(flavour)
    listed = json.loads(ns.netsweep("list", "--all", "--format", "json").stdout)
    assert places(listed) == places(swept(ns)) == expected.orphans()
    assert {(rule["verdict"], rule["bridge"]) for rule in listed["kept"]} == {("leased", "hm1ea5ed")}
    assert len(listed["kept"]) == 3
    assert ns.save(flavour) == expected.surviving(save)


@pytest.mark.parametrize("others", [[], ["hmbee"]])
def test_a_lease_that_is_taken_while_the_sweep_waits_for_the_lock_counts(
    ns: Namespace, flavour: str, others: list[str]
) -> None:
    ns.restore(flavour, leaks(["hmdead", *others]))
    with flocked(ns.lock_file):
        process = ns.start(sys.executable, "-m", "netsweep", "sweep", "--format", "json")
        wait_until_queued(process.pid, ns.lock_file)
        write_leases(ns, {"hmdead": os.getpid()})
    stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (0, "")
    report = json.loads(stdout)
    assert {rule["bridge"] for rule in report["orphans"]} == set(others)
    assert report["changed"] is bool(others)
    assert report["locks"]["subnet"]
    assert of_bridge(ns, flavour, "hmdead") == 3
    assert of_bridge(ns, flavour, "hmbee") == 0


def test_a_lease_that_is_given_back_while_the_sweep_waits_for_the_lock_counts_no_more(
    ns: Namespace, flavour: str
) -> None:
    ns.restore(flavour, leaks(["hmdead", "hmbee"]))
    write_leases(ns, {"hmdead": os.getpid()})
    with flocked(ns.lock_file):
        process = ns.start(sys.executable, "-m", "netsweep", "sweep")
        wait_until_queued(process.pid, ns.lock_file)
        write_leases(ns, {})
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (0, "")
    assert ns.netsweep("list", "--exit-code").returncode == 0


class Run(NamedTuple):
    """Rules of one kind that stand in a row."""

    number: int
    goes: bool


BEHIND = [Run(LOOK_MAX + 1000, False), Run(300, True), Run(1, False)]
BOTH_SIDES = [Run(10, False), Run(LOOK_MAX // 8 + 200, True), Run(LOOK_MAX, False), Run(200, True)]
NEARLY_ALL = [Run(1, False), Run(LOOK_MAX + 1000, True), Run(1, False), Run(7, True)]


@pytest.mark.parametrize("runs", [BEHIND, BOTH_SIDES, NEARLY_ALL])
def test_all_orphans_of_a_long_chain_go_in_one_run(ns: Namespace, flavour: str, runs: Collection[Run]) -> None:
    ns.add_bridges("hm1a")
    expected = Expected(ns, flavour)
    names = itertools.count(0x1000)
    # Most of what stays has to do with us, so that it is read and not only counted.
    lines = [
        Line(f"-i hm{next(names):x} -j ACCEPT", goes=True) if run.goes else Line(f"-i hm1a -s 10.200.{n % 256}.0/24")
        for run in runs
        for n in range(run.number)
    ]
    assert len(lines) > LOOK_MAX
    expected.load("filter", "FORWARD", lines)
    save = ns.save(flavour)
    report = swept(ns)
    assert report["scanned"] == len(lines)
    assert places(report) == expected.orphans()
    assert ns.save(flavour) == expected.surviving(save)
