"""What a sweep deletes on the real kernel, and all that it leaves as it was."""

from __future__ import annotations

import itertools
import os
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import pytest

import netsweep
from netsweep.errors import ContentionError, TableError
from netsweep.firewall.nftables import transport as nftables
from netsweep.firewall.xtables import transport as xtables
from netsweep.host import leases, locks, netlink
from netsweep.host.interfaces import Interfaces
from netsweep.jobs import sweep as sweep_job
from netsweep.jobs.journal import Journal
from netsweep.jobs.look import Judge
from netsweep.model import Chain
from netsweep.report import LockTimes, Report
from tests import schema
from tests.extensions import COMMENT, EXTENSIONS, IPV6, NAT, accepted, is_readable, orphan
from tests.namespace import (
    FLAVOURS,
    NATIVE_NAMES,
    NETSWEEP,
    PLACES,
    Namespace,
    flocked,
    in_family,
    in_process,
    is_free,
    leak,
    leaks,
    of_bridge,
    program,
    report_of,
    restore_input,
    unchanged,
    wait_until_queued,
    write_leases,
)

LIVE = ("hm1a", "hm2b", "hm3c")
DEAD = [f"hm{0x3FA2000 + number:x}" for number in range(300)]


Place = tuple[str, str, str, str, int]
"""Backend, family, table, chain and position of a rule."""


class Line(NamedTuple):
    """A rule less its ``-A CHAIN``, and whether a sweep is to delete it."""

    body: str
    goes: bool = False


OF_IPTABLES = [(flavour, family) for flavour, family in PLACES if family != "inet"]
"""Flavours and families that iptables has."""


class Expected:
    """Which rules of one flavour and family are to go, told by their places alone."""

    def __init__(self, ns: Namespace, flavour: str, family: str = "ipv4") -> None:
        self.ns = ns
        self.flavour = flavour
        self.family = family
        self._goes: dict[tuple[str, str], list[bool]] = defaultdict(list)

    def load(self, table: str, chain: str, lines: Sequence[Line], *before: str) -> None:
        """Append ``lines`` to a chain, each with counters of its own; those of inet have none yet."""
        goes = self._goes[table, chain]
        rules = in_family((f"-A {chain} {line.body}" for line in lines), self.family)
        if self.family == "inet":
            self.ns.restore(self.flavour, restore_input({table: [*before, *rules]}), self.family)
        else:
            counted = [f"[{number}:{number * 84}] {rule}" for number, rule in enumerate(rules, len(goes) + 1)]
            restore = (program(self.flavour, self.family, "-restore"), "--noflush", "--counters", "-w", "5")
            self.ns.run(*restore, input=restore_input({table: [*before, *counted]}))
        goes += [line.goes for line in lines]

    def load_native(self, table: str, chain: str, lines: Sequence[Line]) -> None:
        """Append ``lines``, in the words of nft, to a chain."""
        where = f"{NATIVE_NAMES[self.family]} {table} {chain}"
        commands = "".join(f"add rule {where} {line.body}\n" for line in lines)
        self.ns.run("nft", "-f", "-", input=commands)
        self._goes[table, chain] += [line.goes for line in lines]

    def orphans(self) -> set[Place]:
        """Where all that is to go stands."""
        return {
            (self.flavour, self.family, table, chain, position)
            for (table, chain), goes in self._goes.items()
            for position, each in enumerate(goes, 1)
            if each
        }

    def surviving(self, save: Sequence[str]) -> list[str]:
        """What was saved of this family less what is to go."""
        if self.family == "inet":
            return list(self._filtered(save, r"table inet (\S+) \{", r"\t\t(?!type )"))
        return list(self._filtered(save, r"\*(\S+)", r"\[\d+:\d+\] -A (\S+)"))

    def surviving_ruleset(self, ruleset: str) -> list[str]:
        """The lines of ``nft -a list ruleset`` less what is to go."""
        table = rf"table {NATIVE_NAMES[self.family]} (\S+) \{{|table ()"
        return list(self._filtered(ruleset.splitlines(), table, r"\t\t.* # handle \d+$"))

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
    return report_of(ns.netsweep("sweep", "--format", "json", *options))


def places(report: dict[str, Any], key: str = "orphans") -> set[Place]:
    where = ("backend", "family", "table", "chain", "position")
    found = {(*(rule[name] for name in where),) for rule in report[key]}
    assert len(found) == len(report[key])
    return found


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
        f"-i {live} -o {first} -j ACCEPT",
        f"-i {first} ! -o {live} -j ACCEPT",
        f"-m comment --comment hypeman-fwd-in-{first} -j ACCEPT",
        f"-i docker0 -m comment --comment hypeman-fwd-out-{first} -j ACCEPT",
        f"-i {first} -m physdev --physdev-in {first} -j DROP",
        f"-i {first} -m comment --comment hypeman-ha12-{first} -j ACCEPT",
        f'-i {first} -m comment --comment "it has moved to haproxy" -j ACCEPT',
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
        f"-i {first} -m comment --comment hypeman-fwd-out-ha12 -j ACCEPT",
        "-i hm+ -j ACCEPT",
        "! -i hm+ -j ACCEPT",
        f"-i {first}+ -j ACCEPT",
        f"-i hm+ -o {first} -m comment --comment hypeman-fwd-in-{first} -j ACCEPT",
        "-i h+ -j ACCEPT",
        f"! -o {first} -j ACCEPT",
        f"! -i {first} ! -o {second} -j ACCEPT",
        f"! -o {first} -m comment --comment hypeman-fwd-out-{first} -j ACCEPT",
        f"-i {first} -m comment --comment hypeman-fwd-in-{live} -j ACCEPT",
        f'-i {first} -m comment --comment "beside {live}" -j ACCEPT',
        f"-i {first} -m physdev --physdev-in {live} -j DROP",
        f"-i {live} -m comment --comment hypeman-fwd-in-{first} -j ACCEPT",
        f"-m comment --comment {first} -j ACCEPT",
        f'-m comment --comment "hypeman: {first} of {second}" -j ACCEPT',
        f'! -i {first} -p tcp --dport 8080 -m comment --comment "admin UI only over {first}" -j DROP',
        f'-s 192.0.2.0/24 -m comment --comment "keep guests off {first}" -j DROP',
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


@pytest.mark.parametrize(("flavour", "family"), OF_IPTABLES)
def test_exactly_the_orphans_of_300_bridges_go(ns: Namespace, flavour: str, family: str) -> None:
    ns.add_bridges(*LIVE)
    expected = Expected(ns, flavour, family)
    crowded(expected)
    save, ruleset = ns.save(flavour, family), ns.ruleset()
    rules = sum(line.startswith("[") for line in save)

    report = swept(ns)

    assert len(expected.orphans()) == 974
    assert places(report) == expected.orphans()
    assert report["scanned"] == rules
    assert report["deleted"] == len(expected.orphans())
    assert ns.save(flavour, family) == expected.surviving(save)
    if flavour == "nft":
        assert ns.ruleset().splitlines() == expected.surviving_ruleset(ruleset)


def test_a_rule_goes_as_often_as_it_stands_there(ns: Namespace, place: tuple[str, str]) -> None:
    expected = Expected(ns, *place)
    copies = [Line(body, goes=True) for body in bodies("hmdead", "filter")] * 7
    expected.load("filter", "FORWARD", [Line("-i eth0 -j ACCEPT"), *copies, Line("-i eth0 -j ACCEPT"), *copies])
    save = ns.save(*place)
    assert swept(ns)["deleted"] == 28
    assert ns.save(*place) == expected.surviving(save)


@pytest.mark.parametrize("family", ["ipv4", "inet"])
def test_rules_made_with_nft_go_and_stay_like_those_of_iptables(ns: Namespace, family: str) -> None:
    ns.add_bridges(*LIVE)
    expected = Expected(ns, "nft", family)
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
            Line(f'iifname != "hm1" accept {into}'),
            Line('iifname != "hm1" accept'),
            Line('iifname != { "hm1", "hm2" } accept'),
            Line('iifname { "hm1", "hm2" } drop'),
            Line(f'iifname {{ "hm1", "hm2" }} drop {into}'),
            Line(f'iifname {{ "hm1", "hm1a" }} drop {into}'),
            Line('iifname . oifname { "hm1" . "eth0" } accept'),
            Line(f'iifname vmap {{ "hm1" : accept, "hm1a" : drop }} {into}'),
            Line('iifname "hm1" oifname "hm1a" accept', True),
            Line('iifname "hm1" oifname { "hm1a", "hm2b" } accept', True),
            Line(f'iif "lo" accept {into}'),
            Line('iifname "hm1" accept comment "hypeman-fwd-out-hma1"', True),
            Line(f'iifname "ha1" accept {into}'),
            Line('iifname "hm1" accept comment "hypeman-fwd-out-ha1"'),
            Line('iifname "hm1" accept comment "hypeman-ha1-hm1"', True),
            Line('accept comment "admin UI only over hm1"'),
            Line('log iifname "hm1" drop'),
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


def test_other_tables_and_chains_and_families_that_cannot_be_decided_on_are_none_of_ours(ns: Namespace) -> None:
    expected = Expected(ns, "nft")
    expected.load("filter", "FORWARD", [Line(body, goes=True) for body in bodies("hmdead", "filter")])
    for family in ("ip", "ip6", "inet", "bridge", "arp"):
        for table, chain in (("filter", "forward"), ("nat", "FORWARD"), ("mine", "FORWARD")):
            rule = f'{family} {table} {chain} iifname "hmdead" counter packets 5 bytes 6'
            ns.run("nft", f"add table {family} {table}; add chain {family} {table} {chain}; add rule {rule}")
    for family in ("bridge", "arp"):
        ns.run("nft", f'add chain {family} filter FORWARD; add rule {family} filter FORWARD iifname "hmdead" drop')
    before = ns.ruleset()
    assert swept(ns)["deleted"] == 2
    assert ns.ruleset().splitlines() == expected.surviving_ruleset(before)


@pytest.mark.parametrize(
    ("family", "others"), [("ipv4", {"ipv6"}), ("ipv6", {"ipv4"}), ("all", set())], ids=lambda each: str(each)
)
def test_only_the_families_that_are_asked_for_are_swept(ns: Namespace, family: str, others: set[str]) -> None:
    """Tables of inet belong to both."""
    for each in PLACES:
        ns.restore(each[0], leaks(["hmdead"]), each[1])
    assert swept(ns, "--family", family)["deleted"] == 3 * len([each for each in PLACES if each[1] not in others])
    left = {each for each in PLACES if any("hmdead" in line for line in ns.save(*each))}
    assert left == {each for each in PLACES if each[1] in others}


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
        *IPV6,
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


def bystanders(ns: Namespace, flavour: str, family: str) -> dict[tuple[str, str], list[str]]:
    """Rules of others, of as many kinds as this host can make."""
    of_family = ("family", "inet6") if family == "ipv6" else ()
    ns.run("ipset", "create", "blocked", "hash:ip,port", *of_family, "timeout", "0")
    found = {}
    for (table, chain), candidates in MORE.items():
        known = accepted(ns, flavour, table, chain, candidates, family)
        found[table, chain] = [body for body in candidates if orphan(chain, body) in known and "hmdead" not in body]
    return found


@pytest.mark.parametrize(("flavour", "family"), OF_IPTABLES)
def test_hundreds_of_rules_of_every_kind_survive_byte_for_byte(ns: Namespace, flavour: str, family: str) -> None:
    expected = Expected(ns, flavour, family)
    found = bystanders(ns, flavour, family)
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
            tied = Line(f"{COMMENT} {kind}", goes=is_readable(kind))
            dead = Line(orphan(chain, kind).removeprefix(f"-A {chain} "), goes=True)
            lines += [[other], [other, tied], [dead, other]][number % 3]
        expected.load(table, chain, lines, "-F", ":USERS - [0:0]", "-A USERS -p udp -j RETURN")
    assert total >= 250
    save, ruleset = ns.save(flavour, family), ns.ruleset()
    options = [part for table, chain in found for part in ("--chain", f"{table}/{chain}")]
    assert places(swept(ns, *options)) == expected.orphans()
    assert ns.save(flavour, family) == expected.surviving(save)
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
    (ns.directory / "xtables.lock").unlink(missing_ok=True)
    report = swept(ns)
    assert report["locks"] == {"subnet": None, "xtables": None}
    assert list(ns.directory.iterdir()) == []


def test_all_families_of_both_backends_are_clean_after_one_run(ns: Namespace) -> None:
    ns.add_bridges(*LIVE)
    expected = {place: Expected(ns, *place) for place in PLACES}
    for number, each in enumerate(expected.values(), 5):
        dead = DEAD[number : 2 * number]
        mixed = [Line(body, bridge in dead) for bridge in (*LIVE, *dead) for body in bodies(bridge, "filter")]
        each.load("filter", "FORWARD", mixed)
    saves = {place: ns.save(*place) for place in PLACES}
    report = swept(ns)
    assert report["backends"] == [
        {"name": flavour, "family": family, "scanned": 6 + goes, "orphans": goes, "deleted": goes}
        for goes, (flavour, family) in zip((10, 12, 14, 16, 18), PLACES, strict=True)
    ]
    assert (report["scanned"], report["deleted"]) == (100, 70)
    assert places(report) == set().union(*(each.orphans() for each in expected.values()))
    for place in PLACES:
        assert ns.save(*place) == expected[place].surviving(saves[place])


def test_each_table_of_x_tables_is_swept_under_a_hold_of_its_own_and_all_of_nf_tables_under_one(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for flavour in FLAVOURS:
        ns.restore(flavour, leaks(["hmdead"]))
    in_process(ns, monkeypatch)
    held = locks.held
    seen: list[tuple[str, str, int]] = []

    def left() -> int:
        return sum(of_bridge(ns, flavour, "hmdead") for flavour in FLAVOURS)

    @contextmanager
    def watched(times: LockTimes, timeout: float, **settings: Any) -> Iterator[None]:
        seen.append((settings["what"], "wanted", left()))
        with held(times, timeout, **settings):
            yield
            seen.append((settings["what"], "kept until", left()))

    monkeypatch.setattr(locks, "held", watched)
    report = ns.inside(netsweep.sweep)
    assert report.deleted == 6
    assert report.subnet_lock
    assert report.xtables_lock
    assert 0 < report.xtables_lock.longest_ms < report.xtables_lock.held_ms
    assert report.xtables_lock.longest_ms < report.subnet_lock.longest_ms < report.subnet_lock.held_ms
    tables = [finding.rule.chain.table for finding in report.orphans]
    assert [table.backend for table in dict.fromkeys(tables)] == ["legacy", "legacy", "nft", "nft"]
    filter_or_nat = [number for table, number in Counter(tables).items() if table.backend == "legacy"]
    expected: list[tuple[str, str, int]] = []
    before = 6
    for number in filter_or_nat:
        inner = [("xtables lock", "wanted", before), ("xtables lock", "kept until", before - number)]
        expected += [("subnet lock", "wanted", before), *inner, ("subnet lock", "kept until", before - number)]
        before -= number
    expected += [("subnet lock", "wanted", 3), ("subnet lock", "kept until", 0)]
    assert seen == expected


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


LOOK, BEFORE_LOCKS, BEFORE_COMMIT, NEXT_TABLE, LAST = 1, 2, 3, 4, 5
"""When a sweep of two tables asks which interfaces exist: once it has read everything, and for each table of x_tables,
and for all of nf_tables, before it takes the locks and right before it commits."""


def at_question(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None], *, after: bool = False) -> None:
    """Call ``act`` right before question ``number`` about interfaces, from 1, or right after it."""
    find = Interfaces.find
    numbers = itertools.count(1)

    def hooked(*arguments: Any, **settings: Any) -> Any:
        due = next(numbers) == number
        if due and not after:
            act()
        found = find(*arguments, **settings)
        if due and after:
            act()
        return found

    monkeypatch.setattr(Interfaces, "find", hooked)


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
        rules = ns.directory / "arrival"
        rules.write_text(leaks(["hmbac", "hmfe1"]))
        xtables_lock = ns.directory / "xtables.lock"
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


def swept_beside(arrival: Arrival, ns: Namespace) -> Report:
    """Sweep in this process, and wait for what ``arrival`` started."""
    report = ns.inside(netsweep.sweep)
    arrival.wait()
    return report


def in_first_table(report: Report) -> int:
    """How many rules of a bridge stood in the table that was swept first."""
    return {"filter": 2, "nat": 1}[report.orphans[0].rule.chain.table.name]


@pytest.mark.parametrize(
    ("flavour", "question"),
    [
        *((flavour, question) for flavour in FLAVOURS for question in (LOOK, BEFORE_LOCKS, BEFORE_COMMIT)),
        ("legacy", NEXT_TABLE),
        ("legacy", LAST),
    ],
)
def test_a_bridge_that_comes_back_keeps_all_its_rules_that_still_stand(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch, flavour: str, question: int
) -> None:
    ns.restore(flavour, leaks(["hmdead", "hmbac", "hmbee"]))
    in_process(ns, monkeypatch)
    arrival = Arrival(ns, flavour)
    at_question(monkeypatch, question, arrival)
    report = swept_beside(arrival, ns)
    gone = 0 if question <= BEFORE_COMMIT else in_first_table(report)
    assert sum(finding.bridge == "hmbac" for finding in report.orphans) == gone
    assert report.deleted == len(report.orphans) == 6 + gone
    assert of_bridge(ns, flavour, "hmbac") == 6 - gone
    assert of_bridge(ns, flavour, "hmfe1") == 3
    assert of_bridge(ns, flavour, "hmdead") == of_bridge(ns, flavour, "hmbee") == 0


def test_a_rule_that_comes_after_the_last_question_makes_nf_tables_ask_again(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    ns.restore("nft", leaks(["hmdead", "hmbac"]))
    in_process(ns, monkeypatch)
    arrival = Arrival(ns, "nft")
    at_question(monkeypatch, BEFORE_COMMIT, arrival, after=True)
    assert swept_beside(arrival, ns).deleted == 3
    assert of_bridge(ns, "nft", "hmbac") == 6


def test_a_look_never_calls_rules_of_a_bridge_that_just_came_orphans(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch, flavour: str
) -> None:
    ns.restore(flavour, leaks(["hmdead", "hmbac"]))
    in_process(ns, monkeypatch)
    arrival = Arrival(ns, flavour)
    at_question(monkeypatch, LOOK, arrival)
    report = ns.inside(netsweep.find_orphans)
    arrival.wait()
    assert {finding.bridge for finding in report.orphans} == {"hmdead"}


def test_with_the_interfaces_read_first_such_a_bridge_would_be_called_dead(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch, flavour: str
) -> None:
    """Proof that the test above can fail."""
    ns.restore(flavour, leaks(["hmdead", "hmbac"]))
    in_process(ns, monkeypatch)
    arrival = Arrival(ns, flavour)
    at_question(monkeypatch, LOOK, arrival, after=True)
    report = ns.inside(netsweep.find_orphans)
    arrival.wait()
    assert {finding.bridge for finding in report.orphans} == {"hmdead", "hmbac"}


@pytest.mark.parametrize("when", ["living", "leased_since"])
def test_a_rule_that_sends_to_an_interface_that_came_meanwhile_stays(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """By its number: before the look the rule sends nowhere, or to a number that no interface has."""
    add = 'table ip filter { chain FORWARD { ip saddr 10.0.0.1 counter comment "hypeman-fwd-hmdead"; }; }'
    sends = 'ip saddr 10.0.0.1 dup to 10.0.0.9 device "hm77" comment "hypeman-fwd-hmdead"'
    ns.run("nft", add)
    handle = re.findall(r"counter.*# handle (\d+)", ns.run("nft", "-a", "list", "ruleset").stdout)[0]

    def come() -> None:
        ns.run("ip", "link", "add", "hm77", "index", "77", "type", "bridge")

    def replace() -> None:
        ns.run("nft", f"replace rule ip filter FORWARD handle {handle} {sends}")

    if when == "leased_since":
        come()
        replace()
        ns.run("ip", "link", "del", "hm77")
    original, times = getattr(Judge, when), list[str]()

    def asked(*arguments: Any) -> Any:
        result = original(*arguments)
        if not times:
            come()
            if when == "living":
                replace()
        times.append(when)
        return result

    monkeypatch.setattr(Judge, when, asked)
    in_process(ns, monkeypatch)
    assert ns.inside(lambda: netsweep.sweep(backend="nft")).deleted == 0
    assert times
    assert "hypeman-fwd-hmdead" in ns.ruleset()


def test_asked_only_before_the_locks_such_a_bridge_would_lose_its_rules(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch, flavour: str
) -> None:
    """Proof that the test of a sweep can fail."""
    ns.restore(flavour, leaks(["hmdead", "hmbac"]))
    in_process(ns, monkeypatch)
    monkeypatch.setattr(Judge, "confirm", lambda *_: None)
    arrival = Arrival(ns, flavour)
    at_question(monkeypatch, BEFORE_LOCKS, arrival, after=True)
    report = swept_beside(arrival, ns)
    # In x_tables also those that came with the bridge, but only of one table.
    gone = 2 * in_first_table(report) if flavour == "legacy" else 3
    assert of_bridge(ns, flavour, "hmbac") == 6 - gone


SWEPT = {
    "legacy": ["leases", "interfaces", "subnet lock", "xtables lock", "rules", "leases", "delete", "interfaces"],
    # What became of the rules that were read is told, so that they are not read again.
    "nft": ["leases", "interfaces", "subnet lock", "changes", "leases", "delete", "interfaces"],
}
"""What happens up to the commit: to each table of x_tables, and to all of nf_tables."""


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
    note(Interfaces, "find", "interfaces")
    note(xtables.XtablesBackend, "_read", "rules")
    note(nftables.NftablesBackend, "_read", "rules")
    note(nftables.NftablesBackend, "_current", "changes")
    for transaction in (xtables._Transaction, nftables._Transaction):
        note(transaction, "delete", "delete")
        note(transaction, "commit", "commit")
    ns.inside(netsweep.sweep)
    looked = [*["rules"] * 4, "leases", "interfaces"]
    assert events == looked + 2 * [*SWEPT["legacy"], "commit"] + [*SWEPT["nft"], "commit"]


def prepared(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None], *, first: int = 1) -> None:
    """Call ``act`` once, when the deletion number ``first`` is prepared and written down but not yet committed."""
    numbers = itertools.count(1)

    def noting(original: Callable[..., None]) -> Callable[..., None]:
        def noted(*arguments: Any) -> None:
            original(*arguments)
            if next(numbers) == first:
                act()

        return noted

    for transaction in (xtables._Transaction, nftables._Transaction):
        monkeypatch.setattr(transaction, "delete", noting(transaction.delete))


@pytest.mark.parametrize("journal", [False, True])
def test_a_bridge_that_comes_back_while_the_deletion_is_prepared_keeps_its_rules(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch, flavour: str, journal: bool
) -> None:
    """Nothing changes in the rules, so that only who asks for the interface again can know of it."""
    ns.restore(flavour, leaks(["hmdead", "hmbac"]))
    before = ns.save(flavour)
    in_process(ns, monkeypatch)
    path = ns.directory / "journal" if journal else None
    if journal:
        record = Journal.record

        def recorded(*arguments: Any) -> None:
            record(*arguments)
            monkeypatch.setattr(Journal, "record", record)
            ns.add_bridges("hmbac")

        monkeypatch.setattr(Journal, "record", recorded)
    else:
        prepared(monkeypatch, lambda: ns.add_bridges("hmbac"))
    report = ns.inside(lambda: netsweep.sweep(journal=path))
    assert {finding.bridge for finding in report.orphans} == {"hmdead"}
    assert of_bridge(ns, flavour, "hmbac") == 3
    if path:
        # What was written down and did not go is not put back beside itself.
        assert ns.inside(lambda: netsweep.restore(path)).restored == 3
        assert ns.save(flavour) == before


@pytest.mark.parametrize("journal", [False, True])
def test_a_bridge_that_comes_back_between_two_batches_keeps_its_rules(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch, journal: bool
) -> None:
    monkeypatch.setattr(nftables.NftablesBackend, "batch", 60)
    ns.restore("nft", leaks([*DEAD[:100], "hmbac"]))
    in_process(ns, monkeypatch)
    path = ns.directory / "journal" if journal else None
    prepared(monkeypatch, lambda: ns.add_bridges("hmbac"), first=3)
    report = ns.inside(lambda: netsweep.sweep(journal=path))
    assert (report.deleted, of_bridge(ns, "nft", "hmbac")) == (300, 3)
    assert sum(line.startswith("[") for line in ns.save("nft")) == 3


def right_before_sending(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None], *, times: int = 1) -> None:
    """Call ``act`` right before a batch is sent to nf_tables, the first ``times`` times."""
    send = nftables._Transaction._send
    numbers = itertools.count(1)

    def hooked(*arguments: Any, **settings: Any) -> None:
        if next(numbers) <= times:
            act()
        send(*arguments, **settings)

    monkeypatch.setattr(nftables._Transaction, "_send", hooked)


def of_nft(first: str, second: str) -> str:
    rules = "".join(f'iifname "{name}" accept comment "hypeman-fwd-out-{name}"\n' for name in (first, second))
    return f"table ip filter {{ chain FORWARD {{ type filter hook forward priority 0;\n{rules}}}; }}\n"


REPLACEMENTS = {
    "flush ruleset": ("nft", "flush ruleset\n" + of_nft("hmf0", "hmdead")),
    "flush table": ("nft", "flush table ip filter\n" + of_nft("hmf0", "hmdead")),
    "delete table": ("nft", "delete table ip filter\n" + of_nft("hmf0", "hmdead")),
    "restore": (
        "iptables-nft-restore",
        restore_input(
            {
                "filter": [
                    ":FORWARD ACCEPT [0:0]",
                    "-A FORWARD -i hmf0 -m comment --comment hypeman-fwd-out-hmf0 -j ACCEPT",
                    "-A FORWARD -i hmdead -m comment --comment hypeman-fwd-out-hmdead -j ACCEPT",
                ]
            }
        ),
    ),
}
"""Tables that stand in the place of one that holds the same rules the other way round."""


def replace_table(ns: Namespace, how: str) -> None:
    program, text = REPLACEMENTS[how]
    path = ns.directory / "replacement"
    path.write_text(text)
    ns.run(program, *(["-f"] if program == "nft" else []), str(path))


@pytest.mark.parametrize("how", list(REPLACEMENTS))
def test_a_table_that_is_replaced_right_before_the_batch_loses_no_live_rule(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    ns.add_bridges("hmf0")
    ns.run("nft", "-f", "-", input=of_nft("hmdead", "hmf0"))
    in_process(ns, monkeypatch)
    right_before_sending(monkeypatch, lambda: replace_table(ns, how))
    report = ns.inside(netsweep.sweep)
    assert of_bridge(ns, "nft", "hmf0") == 1
    # Its orphan goes where a handle of the first look still leads to it, and else in the next sweep.
    assert of_bridge(ns, "nft", "hmdead") == 1 - report.deleted
    monkeypatch.undo()
    swept(ns)
    assert (of_bridge(ns, "nft", "hmdead"), of_bridge(ns, "nft", "hmf0")) == (0, 1)


def test_sent_without_its_generation_the_batch_would_take_the_live_rule(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proof that the test above can fail."""
    ns.add_bridges("hmf0")
    ns.run("nft", "-f", "-", input=of_nft("hmdead", "hmf0"))
    in_process(ns, monkeypatch)
    right_before_sending(monkeypatch, lambda: replace_table(ns, "flush ruleset"))
    for name, module in list(sys.modules.items()):
        if name.startswith("netsweep.firewall.nftables.") and hasattr(module, "BATCH_GENID"):
            monkeypatch.setattr(module, "BATCH_GENID", 0x3FFF)  # no attribute that the kernel knows
    ns.inside(netsweep.sweep)
    assert of_bridge(ns, "nft", "hmf0") == 0


def rules_and_handles(ns: Namespace) -> list[tuple[str, str]]:
    """Every rule and its handle, in the words of nft."""
    found = (line.strip().rpartition(" # handle ") for line in ns.ruleset().splitlines() if line.startswith("\t\t"))
    return [(rule, handle) for rule, _, handle in found if rule]


def with_iptables(ns: Namespace) -> None:
    ns.iptables("nft", "-R", "FORWARD", "1", "-i", "hmf0", "-j", "ACCEPT")
    ns.iptables("nft", "-R", "FORWARD", "2", "-s", "192.0.2.66", "-j", "DROP")


def with_nft(ns: Namespace) -> None:
    new = ('iifname "hmf0" counter accept', "ip saddr 192.0.2.66 counter drop")
    for (_, handle), rule in zip(rules_and_handles(ns), new, strict=False):
        ns.run("nft", f"replace rule ip filter FORWARD handle {handle} {rule}")


@pytest.mark.parametrize("replace", [with_iptables, with_nft])
@pytest.mark.parametrize("when", ["waiting for the lock", "sending"])
def test_a_rule_that_was_put_under_the_handle_of_an_orphan_stays(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch, replace: Callable[[Namespace], None], when: str
) -> None:
    ns.add_bridges("hmf0")
    dead = [f"-A FORWARD -p tcp -m comment --comment hypeman-x-hm{number}dead -j ACCEPT" for number in (1, 2, 3)]
    ns.restore("nft", restore_input({"filter": dead}))
    handles = [handle for _, handle in rules_and_handles(ns)]
    in_process(ns, monkeypatch)
    if when == "sending":
        right_before_sending(monkeypatch, lambda: replace(ns))
        assert ns.inside(netsweep.sweep).deleted == 1
    else:
        with flocked(ns.lock_file):
            process = ns.start(*NETSWEEP, "sweep", "--format", "json")
            wait_until_queued(process.pid, ns.lock_file)
            replace(ns)
        stdout, stderr = process.communicate(timeout=30)
        assert (process.returncode, stderr) == (0, "")
        (gone,) = schema.read(stdout)["orphans"]
        assert gone["bridge"] == "hm3dead"
    assert rules_and_handles(ns) == [
        ('iifname "hmf0" counter packets 0 bytes 0 accept', handles[0]),
        ("ip saddr 192.0.2.66 counter packets 0 bytes 0 drop", handles[1]),
    ]


def take_away(ns: Namespace) -> None:
    for handle in [handle for _, handle in rules_and_handles(ns)][:2]:
        ns.run("nft", f"delete rule ip filter FORWARD handle {handle}")


@pytest.mark.parametrize("change", [with_iptables, with_nft, take_away])
def test_a_second_attempt_knows_of_what_the_first_found_changed(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch, change: Callable[[Namespace], None]
) -> None:
    ns.add_bridges("hmf0")
    dead = [f"-A FORWARD -p tcp -m comment --comment hypeman-x-hm{number}dead -j ACCEPT" for number in (1, 2, 3)]
    ns.restore("nft", restore_input({"filter": dead}))
    in_process(ns, monkeypatch)
    at_question(monkeypatch, BEFORE_LOCKS, lambda: change(ns))
    confirm, attempts = Judge.confirm, itertools.count(1)

    def refusing(*arguments: Any) -> None:
        if next(attempts) == 1:
            raise ContentionError("the first attempt comes to nothing")
        confirm(*arguments)

    monkeypatch.setattr(Judge, "confirm", refusing)
    report = ns.inside(netsweep.sweep)
    assert [finding.bridge for finding in report.orphans] == ["hm3dead"]
    assert len(rules_and_handles(ns)) == (0 if change is take_away else 2)
    assert next(attempts) > 2


def test_a_batch_that_comes_too_late_again_and_again_is_sent_until_it_goes_through(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever commits in between touches no rule of the batch."""
    ns.restore("nft", leaks(DEAD[:100]))
    in_process(ns, monkeypatch)
    right_before_sending(monkeypatch, lambda: add_and_take_away(ns), times=20)
    assert ns.inside(netsweep.sweep).deleted == 300
    assert not any(line.startswith("[") for line in ns.save("nft"))


def test_where_what_others_do_was_lost_the_orphans_go_though_nobody_tells_the_generation_again(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    ns.run("nft", "add table ip other; add chain ip other c")
    in_process(ns, monkeypatch)
    enlarge, current = netlink.enlarge, nftables.NftablesBackend._current
    monkeypatch.setattr(
        netlink, "enlarge", lambda sock, *, receive=0, send=0: enlarge(sock, receive=receive and 2**16, send=send)
    )
    were_lost: list[bool] = []

    def noted(*arguments: Any, lost: bool) -> Any:
        were_lost.append(lost)
        return current(*arguments, lost=lost)

    monkeypatch.setattr(nftables.NftablesBackend, "_current", noted)

    def burst() -> None:
        ns.run("nft", "-f", "-", input="add rule ip other c accept\n" * 3000)

    at_question(monkeypatch, BEFORE_LOCKS, burst)
    assert ns.inside(lambda: netsweep.sweep(wait=10)).deleted == 3
    assert were_lost == [True]
    assert of_bridge(ns, "nft", "hmdead") == 0
    assert ns.ruleset().count("\t\taccept # handle") == 3000


def test_a_table_that_refuses_does_not_end_the_sweep_of_one_longer_than_a_look(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    ns.add_bridges("hm1a")
    nat = ["-o hm1a -j ACCEPT", *(f"-o hm{number:x} -j ACCEPT" for number in range(0x1000, 0x1064))]
    filter_ = [f"-i hm{number:x} -j ACCEPT" for number in range(0x1000, 0x101E)]
    lines = {"filter": [f"-A FORWARD {each}" for each in filter_], "nat": [f"-A POSTROUTING {each}" for each in nat]}
    ns.restore("nft", restore_input(lines))
    in_process(ns, monkeypatch)
    transaction = nftables.NftablesBackend.transaction

    def refusing(backend: Any, chains: Sequence[Chain], *arguments: Any, **settings: Any) -> Any:
        if chains[0].table.name == "filter":
            raise TableError("filter is another's")
        return transaction(backend, chains, *arguments, **settings)

    monkeypatch.setattr(nftables.NftablesBackend, "transaction", refusing)
    monkeypatch.setattr(sweep_job, "LOOK_MAX", 20)
    with pytest.raises(TableError, match=r"^filter is another's$") as raised:
        ns.inside(netsweep.sweep)
    report = raised.value.report
    assert report
    assert [line for line in ns.save("nft") if "POSTROUTING -" in line] == ["[0:0] -A POSTROUTING -o hm1a -j ACCEPT"]
    assert (report.scanned, report.deleted) == (131, 100)
    found = [(finding.rule.chain.table.name, finding.rule.position) for finding in report.orphans]
    assert found == [*(("nat", number) for number in range(2, 102)), *(("filter", number) for number in range(1, 31))]
    assert [each.orphans for each in report.backends] == [130]


def add_and_take_away(ns: Namespace) -> None:
    ns.run("nft", "add table ip other; delete table ip other")


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
    expected.load("filter", "FORWARD", [*lines, Line("-i hm1ea5ed -o hmdead -j ACCEPT", goes=True)])
    save = ns.save(flavour)
    listed = report_of(ns.netsweep("list", "--all", "--format", "json"))
    assert places(listed) == places(swept(ns)) == expected.orphans()
    assert {(rule["verdict"], rule["bridge"]) for rule in listed["kept"]} == {("leased", "hm1ea5ed")}
    assert len(listed["kept"]) == 2
    assert ns.save(flavour) == expected.surviving(save)


@pytest.mark.parametrize("others", [[], ["hmbee"]])
def test_a_lease_that_is_taken_while_the_sweep_waits_for_the_lock_counts(
    ns: Namespace, flavour: str, others: list[str]
) -> None:
    ns.restore(flavour, leaks(["hmdead", *others]))
    with flocked(ns.lock_file):
        process = ns.start(*NETSWEEP, "sweep", "--format", "json")
        wait_until_queued(process.pid, ns.lock_file)
        write_leases(ns, {"hmdead": os.getpid()})
    stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (0, "")
    report = schema.read(stdout)
    assert {rule["bridge"] for rule in report["orphans"]} == set(others)
    assert report["changed"] is bool(others)
    assert report["locks"]["subnet"]
    assert of_bridge(ns, flavour, "hmdead") == 3
    assert of_bridge(ns, flavour, "hmbee") == 0


def test_a_lease_that_is_given_back_while_the_sweep_waits_for_the_lock_keeps_nothing_from_the_next(
    ns: Namespace, flavour: str
) -> None:
    ns.restore(flavour, leaks(["hmdead", "hmbee"]))
    write_leases(ns, {"hmdead": os.getpid()})
    with flocked(ns.lock_file):
        process = ns.start(*NETSWEEP, "sweep")
        wait_until_queued(process.pid, ns.lock_file)
        write_leases(ns, {})
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (0, "")
    assert of_bridge(ns, flavour, "hmbee") == 0
    swept(ns)
    assert of_bridge(ns, flavour, "hmdead") == 0


class Run(NamedTuple):
    """Rules of one kind that stand in a row."""

    number: int
    goes: bool


LONG = 8000
"""Many batches and many messages of a dump."""

BEHIND = [Run(LONG, False), Run(300, True), Run(1, False)]
BOTH_SIDES = [Run(10, False), Run(nftables.BATCH_MAX + 200, True), Run(LONG, False), Run(200, True)]
NEARLY_ALL = [Run(1, False), Run(LONG, True), Run(1, False), Run(7, True)]


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
    expected.load("filter", "FORWARD", lines)
    save = ns.save(flavour)
    report = swept(ns)
    assert report["scanned"] == len(lines)
    assert places(report) == expected.orphans()
    assert ns.save(flavour) == expected.surviving(save)
