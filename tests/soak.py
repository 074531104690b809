"""Sweeps beside writers, killers, jobs and each other, on the real kernel and for as long as wanted.

``python -m tests.soak --minutes 10`` runs every scenario on both flavours of iptables and exits 1 if a
rule or a network was lost or a call failed. tests/netns/test_contention.py runs the same scenarios for seconds.
Rules leak, are written and swept in all families of a flavour at the same time. Each scenario compares every
rule, of all of them, that is not netsweep's to delete with what its owner left.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from netsweep.errors import BusyError
from netsweep.host.locks import held
from netsweep.report import LockTimes
from tests.namespace import (
    FAMILIES,
    FLAVOURS,
    NATIVE_NAMES,
    NETSWEEP,
    Namespace,
    flocked,
    in_family,
    is_free,
    leak,
    leaks,
    new_namespace,
    program,
    restore_input,
    wait_until_queued,
    without,
)

WRITERS = 11
"""As many as the CI host has runners."""

LIVE = [f"hmf{number:x}" for number in range(WRITERS)]
"""One bridge that exists for each writer."""

QUIETLY = ("--quiet", "--format", "json")
"""Options of a sweep whose stderr is empty unless something is wrong: without them it tells there of long waits."""

TAG = re.compile(r"\b[a-z][0-9]+r[0-9]+\b")
"""What is in the comment of one rule of one writer only."""

_COUNTER = re.compile(r"counter packets \d+ bytes \d+")


class Host(Namespace):
    """A namespace in which the calling thread is already, so that starting a program costs no way in."""

    def __init__(self, namespace: Namespace) -> None:
        super().__init__(namespace.name, namespace.directory)
        self._identity = os.stat(f"/run/netns/{self.name}").st_ino

    def command(self, *arguments: str) -> list[str]:
        if os.stat("/proc/thread-self/ns/net").st_ino != self._identity:
            raise RuntimeError(f"{arguments} would run outside of {self.name}")
        return list(arguments)

    def free_locks(self) -> bool:
        """Say whether nobody holds either lock."""
        return all(is_free(path) for path in (self.lock_file, self.xtables_lock) if path.exists())

    def leak(self, flavour: str, bridges: Sequence[str]) -> None:
        """Leave the rules of dead ``bridges`` behind, those of each in one family."""
        for family, own in by_family(flavour, bridges):
            self.restore(flavour, leaks(own), family)

    def add(
        self, flavour: str, family: str, table: str, rule: Sequence[str], action: str = "-A"
    ) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        """Add a rule; what came of it, and the command that deletes the rule again."""
        if family == "inet":
            line = " ".join(f'"{word}"' if " " in word else word for word in (action, *rule))
            done = self.run("nft", "-ea", "-f", "-", input=self.native(restore_input({table: [line]})), check=False)
            handles = re.findall(r"# handle (\d+)", done.stdout)
            return done, ["nft", "delete", "rule", "inet", table, rule[0], "handle", *handles[-1:]]
        command = [program(flavour, family), "-w", "5", "-t", table]
        own = in_family(rule, family)
        return self.run(*command, action, *own, check=False), [*command, "-D", *own]


@dataclass
class Tally:
    """What happened in a scenario.

    ``losses``: what netsweep did to rules or locks that it must not do. ``failures``: programs that
    did not end as they should. ``latencies``: ms of each call of a writer. ``seen``: how often each
    of a scenario's own events came about; ``longest``: how many ms some of them took at worst.
    """

    operations: int = 0
    sweeps: int = 0
    kills: int = 0
    deleted: int = 0
    losses: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    orphan_ages: list[float] = field(default_factory=list)
    longest: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.operations + other.operations,
            self.sweeps + other.sweeps,
            self.kills + other.kills,
            self.deleted + other.deleted,
            self.losses + other.losses,
            self.failures + other.failures,
            self.latencies + other.latencies,
            self.seen + other.seen,
            self.orphan_ages + other.orphan_ages,
            self.longest | other.longest,
        )

    def call(self, done: subprocess.CompletedProcess[str]) -> bool:
        """Count a call of somebody else's, and say whether it worked."""
        self.operations += 1
        if done.returncode:
            self.failures.append(f"{' '.join(done.args)} exited {done.returncode}: {done.stderr.strip()}")
        return not done.returncode

    def sweep(self, done: subprocess.CompletedProcess[str]) -> dict[str, Any] | None:
        """Count a sweep, and return its report if it worked."""
        self.sweeps += 1
        report: dict[str, Any] = json.loads(done.stdout or "{}")
        # One that failed may have deleted rules before.
        self.deleted += report.get("deleted", 0)
        if done.returncode or done.stderr:
            self.failures.append(f"netsweep exited {done.returncode}: {done.stderr.strip()}")
            return None
        return report

    def took(self, what: str, milliseconds: float) -> None:
        """Keep the longest time of a kind."""
        self.longest[what] = max(self.longest[what], math.ceil(milliseconds))

    def expect(self, kept: bool, loss: str) -> None:
        """Record ``loss`` unless what it is about was ``kept``."""
        if not kept:
            self.losses.append(loss)


def together(host: Host, seconds: float, stop: threading.Event, tasks: Sequence[Callable[[], Tally]]) -> Tally:
    """Run ``tasks`` at once for ``seconds``, each in a thread in the namespace, until ``stop`` ends them."""
    with ThreadPoolExecutor(len(tasks), initializer=host.enter) as pool:
        futures = [pool.submit(task) for task in tasks]
        try:
            wait(futures, seconds, FIRST_EXCEPTION)
        finally:
            stop.set()
    return sum((future.result() for future in futures), Tally())


def sweep(host: Host, *options: str) -> subprocess.CompletedProcess[str]:
    return host.netsweep("sweep", *QUIETLY, *options)


def dead_bridges(count: int, first: int = 0) -> list[str]:
    return [f"hm1{number:05x}" for number in range(first, first + count)]


def by_family(flavour: str, bridges: Sequence[str]) -> list[tuple[str, Sequence[str]]]:
    """The families of a flavour, and which of ``bridges`` have their rules in each."""
    families = FAMILIES[flavour]
    return [(family, bridges[number :: len(families)]) for number, family in enumerate(families)]


# Rules of others, of which every single one is compared at the end of each scenario.

GUARDS = {
    "filter": [
        ":HOST - [0:0]",
        "-A HOST -s 192.0.2.7/32 -m comment --comment hypeman-fwd-out-hm1dead -j RETURN",
        "-A INPUT -s 198.51.100.0/24 -j HOST",
        "-A INPUT -i hm1dead -j DROP",
        "-A FORWARD -i hm+ -j ACCEPT",
        "-A FORWARD -i ha1 -o eth0 -m comment --comment hypeman-fwd-out-ha1 -j ACCEPT",
        "-A FORWARD ! -o hm1dead -j ACCEPT",
        '-A FORWARD ! -i hm1dead -p tcp -m tcp --dport 8080 -m comment --comment "admin UI only over hm1dead" -j DROP',
        '-A FORWARD -s 203.0.113.0/24 -m comment --comment "keep guests off hm1dead" -j DROP',
        "-A FORWARD -s 192.0.2.0/24 -m conntrack --ctstate INVALID -j DROP",
        "-A FORWARD -i hmf0 -o eth0 -m comment --comment hypeman-fwd-out-hm1dead -j ACCEPT",
    ],
    "nat": [
        "-A POSTROUTING -s 10.1.0.0/16 -o eth0 -m comment --comment hypeman-nat-ha1 -j MASQUERADE",
        "-A POSTROUTING -s 192.0.2.0/24 -j RETURN",
        "-A PREROUTING -i hm1dead -j RETURN",
    ],
    "mangle": ["-A FORWARD -i hm1dead -j MARK --set-xmark 0x7/0xff"],
}
"""Rules that no sweep touches, whatever is in them, and the chain that they need."""

NATIVE = """
table inet guards {
    chain FORWARD {
        type filter hook forward priority 0; policy accept;
        iifname "hm1dead" counter drop comment "hypeman-fwd-out-hm1dead"
        ip saddr 192.0.2.0/24 drop
    }
}
table ip guards {
    chain FORWARD { iifname "hm1dead" drop; }
}
table ip6 guards {
    chain FORWARD { iifname "hm1dead" drop; }
}
"""
"""Tables that no sweep touches, beside those of ``GUARDS``."""


class Foreign:
    """Rules of others. ``guards``: what is never changed by anybody; the rules of writers carry tags."""

    def __init__(self, host: Host, flavour: str) -> None:
        self._host = host
        self._flavour = flavour
        host.add_bridges(*LIVE)
        for family in FAMILIES[flavour]:
            host.restore(flavour, restore_input(GUARDS), family)
        if flavour == "nft":
            host.run("nft", "-f", "-", input=NATIVE)
        self.guards = _rules(host, flavour)
        self._native = self._native_tables()

    def check(self, total: Tally, standing: Iterable[str] = ()) -> None:
        """Compare all that stands with the guards and with the tags of rules that their owners left ``standing``.

        Whatever is there and neither is a leftover that a sweep should have deleted.
        """
        rules = _rules(self._host, self._flavour)
        expected, found = Counter(standing), Counter(TAG.findall("\n".join(rules)))
        for tag in expected.keys() | found.keys():
            total.expect(found[tag] == expected[tag], f"the rule {tag} stands {found[tag]} times, not {expected[tag]}")
        others = [rule for rule in rules if not TAG.search(rule)]
        # A table's tables may be listed in another order once one was made anew.
        total.expect(_by_table(others) == _by_table(self.guards), f"changed: {set(others) ^ set(self.guards)}")
        total.expect(self._native_tables() == self._native, "the tables of nft changed")

    def _native_tables(self) -> list[str]:
        if self._flavour != "nft":
            return []
        listed = ("nft", "-s", "list", "table")
        lines = [self._host.run(*listed, family, "guards").stdout for family in NATIVE_NAMES.values()]
        return [line for text in lines for line in text.splitlines()]


def _by_table(rules: Iterable[str]) -> dict[str, list[str]]:
    tables: dict[str, list[str]] = {}
    for rule in rules:
        tables.setdefault(rule.partition(" -A ")[0], []).append(rule)
    return tables


def _rules(host: Host, flavour: str) -> list[str]:
    """Every rule of every family with its table and chain, without its counters."""
    rules = []
    for family in FAMILIES[flavour]:
        table = chain = ""
        for line in host.save(flavour, family):
            if line.startswith("*"):
                table = f"{family} {line}"
            elif line.startswith("["):
                rules.append(f"{table} {line.partition('] ')[2]}")
            elif line.startswith("table "):
                table = f"{family} *{line.split()[2]}"
            elif line.startswith("\tchain "):
                chain = line.split()[1]
            elif line.startswith("\t\t"):
                rules.append(f"{table} -A {chain} {_COUNTER.sub('counter', line.strip())}")
    return rules


# Writers: nobody else's change is lost.


def writers(host: Host, flavour: str, seconds: float) -> Tally:
    """Eleven writers add and delete rules of their own while rules leak and are swept."""
    stop = threading.Event()
    foreign = Foreign(host, flavour)
    crew = [Writer(host, flavour, number, stop) for number in range(WRITERS)]
    leaker = Leaker(host, flavour, stop)
    total = together(host, seconds, stop, [*(writer.work for writer in crew), leaker.work, leaker.sweep])

    total.sweep(sweep(host))
    foreign.check(total, [tag for writer in crew for tag in writer.standing])
    total.expect(
        total.deleted == 3 * leaker.leaked, f"{total.deleted} rules were deleted, {3 * leaker.leaked} had leaked"
    )
    return total


def busy(host: Host, flavour: str, seconds: float, bridges: int = 300) -> Tally:
    """Eleven writers work without a pause; each sweep beside them takes every orphan that was there when it began."""
    stop = threading.Event()
    foreign = Foreign(host, flavour)
    crew = [Writer(host, flavour, number, stop) for number in range(WRITERS)]
    started = threading.Barrier(WRITERS + 1)

    def work(writer: Writer) -> Tally:
        started.wait(60)
        return writer.work()

    def sweep_all() -> Tally:
        tally = Tally()
        started.wait(60)
        deadline = time.monotonic() + seconds
        while not tally.sweeps or time.monotonic() < deadline:
            dead = dead_bridges(bridges, tally.sweeps * bridges)
            host.leak(flavour, dead)
            report = tally.sweep(sweep(host))
            rules = _rules(host, flavour)
            left = len(rules) - len(without(rules, *dead))
            deleted = report["deleted"] if report else 0
            tally.expect(left == 0, f"{left} of {3 * bridges} orphans that were there when a sweep began are left")
            tally.expect(deleted == 3 * bridges, f"{deleted} of {3 * bridges} orphans were deleted")
        stop.set()
        return tally

    total = together(host, seconds + 120, stop, [*(lambda writer=w: work(writer) for w in crew), sweep_all])
    foreign.check(total, [tag for writer in crew for tag in writer.standing])
    return total


class Writer:
    """A job that adds and deletes rules, some of its live bridge and some that are not ours at all."""

    def __init__(self, host: Host, flavour: str, number: int, stop: threading.Event) -> None:
        self._host = host
        self._flavour = flavour
        self._number = number
        self._stop = stop
        self._random = random.Random()
        # What deletes each of the rules again.
        self.standing: dict[str, list[str]] = {}

    def work(self) -> Tally:
        tally = Tally()
        serial = 0
        while not self._stop.is_set():
            if self.standing and self._random.random() < len(self.standing) / 12:
                tag = self._random.choice(list(self.standing))
                began = time.monotonic()
                if tally.call(self._host.run(*self.standing[tag], check=False)):
                    del self.standing[tag]
            else:
                serial += 1
                tag = f"w{self._number}r{serial}"
                family, action = self._random.choice(FAMILIES[self._flavour]), self._random.choice(["-A", "-I"])
                table, *rule = self._rule(tag, serial)
                began = time.monotonic()
                done, deletion = self._host.add(self._flavour, family, table, rule, action)
                if tally.call(done):
                    self.standing[tag] = deletion
            tally.latencies.append((time.monotonic() - began) * 1000)
        return tally

    def _rule(self, tag: str, serial: int) -> list[str]:
        bridge, subnet, nat = LIVE[self._number], f"10.201.{self._number}.0/24", ["nat", "POSTROUTING"]
        return [
            ["filter", "FORWARD", "-i", bridge, *_comment(f"{tag} hypeman-fwd-out-{bridge}"), "-j", "ACCEPT"],
            ["filter", "FORWARD", "-s", subnet, "-p", "tcp", "--dport", "80", *_comment(tag), "-j", "DROP"],
            [*nat, "-s", subnet, "-o", "eth0", *_comment(f"{tag} hypeman-nat-{bridge}"), "-j", "MASQUERADE"],
            ["filter", "INPUT", "-s", subnet, *_comment(tag), "-j", "RETURN"],
        ][serial % 4]


def _comment(text: str) -> list[str]:
    return ["-m", "comment", "--comment", text]


class Leaker:
    """Leaves rules of dead bridges behind, and sweeps them."""

    def __init__(self, host: Host, flavour: str, stop: threading.Event) -> None:
        self._host = host
        self._flavour = flavour
        self._stop = stop
        self._since: dict[str, float] = {}
        self.leaked = 0

    def work(self) -> Tally:
        tally = Tally()
        serial = 0
        while not self._stop.is_set():
            bridges = dead_bridges(random.randint(1, 20), serial)
            serial += len(bridges)
            for family, own in by_family(self._flavour, bridges):
                if tally.call(self._host.restore(self._flavour, leaks(own), family, check=False)):
                    self.leaked += len(own)
                    self._since.update(dict.fromkeys(own, time.monotonic()))
            self._stop.wait(random.uniform(0, 0.3))
        return tally

    def sweep(self) -> Tally:
        tally = Tally()
        while not self._stop.is_set():
            due = dict(self._since)
            if tally.sweep(sweep(self._host)) is None:
                continue
            now = time.monotonic()
            text = "\n".join(_rules(self._host, self._flavour))
            for bridge, since in due.items():
                tally.expect(bridge not in text, f"rules of {bridge} survived a sweep that began after they leaked")
                tally.orphan_ages.append(now - since)
                del self._since[bridge]
        return tally


# Kills: every table as it was or as it should be, and no lock behind.

Tables = dict[str, list[str]]


class Course(NamedTuple):
    """How long a sweep that is left alone takes, and how long it holds the subnet lock; seconds."""

    whole: float
    locked: float


def kills(host: Host, flavour: str, seconds: float, at_least: int = 0, bridges: int = 100) -> Tally:
    """Send signals to sweeps at random moments, half of them while the subnet lock is held."""
    victims = Victims(host, flavour, bridges)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline or victims.tally.sweeps < at_least:
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
            for under_lock in (False, True):
                victims.kill(number, under_lock)
    victims.foreign.check(victims.tally)
    return victims.tally


class Victims:
    """Sweeps of the same rules again and again, each ended by a signal."""

    def __init__(self, host: Host, flavour: str, bridges: int) -> None:
        self._host = host
        self._flavour = flavour
        self._content: dict[str, str] = {}
        for family, dead in by_family(flavour, dead_bridges(bridges)):
            half = len(dead) // 2
            # Orphans stand among rules that stay, and at both ends.
            parts = [leaks(dead[:half]), restore_input(GUARDS), leaks(dead[half:])]
            self._content[family] = restore_input({table: ["-F"] for table in GUARDS}) + "".join(parts)
        self._swept = [f"{family} {table}" for family in FAMILIES[flavour] for table in ("filter", "nat")]
        self.tally = Tally()
        self.foreign = Foreign(host, flavour)
        self._load()
        self._before = self._tables()
        self._course = self._measure()
        self._after = self._tables()
        if any(self._before[table] == self._after[table] for table in self._swept):
            raise RuntimeError("a sweep that nobody killed left orphans")

    def kill(self, number: signal.Signals, under_lock: bool) -> None:
        """End one sweep with signal ``number``, check what it left, and let another finish its work."""
        self._load()
        ended = self._kill_under_lock(number) if under_lock else self._kill_anywhere(number)
        self._check(ended, number)
        self.tally.sweep(sweep(self._host))
        self.tally.expect(self._tables() == self._after, f"the sweep after {number.name} did not finish the work")

    def _load(self) -> None:
        for family, content in self._content.items():
            self._host.restore(self._flavour, content, family)

    def _tables(self) -> Tables:
        tables: Tables = {}
        for family in FAMILIES[self._flavour]:
            for line in self._host.save(self._flavour, family):
                if line.startswith(("*", "table ")):
                    table = tables.setdefault(f"{family} {line.strip('*{ ').split()[-1]}", [])
                else:
                    table.append(line)
        return tables

    def _measure(self) -> Course:
        whole, locked = [], []
        for _ in range(5):
            self._load()
            began = time.monotonic()
            report = json.loads(sweep(self._host).stdout)
            whole.append(time.monotonic() - began)
            locked.append(report["locks"]["subnet"]["held_ms"] / 1000)
        return Course(statistics.median(whole), statistics.median(locked))

    def _kill_anywhere(self, number: signal.Signals) -> subprocess.CompletedProcess[str]:
        process = self._host.start(*NETSWEEP, "sweep", "--quiet")
        began = time.monotonic()
        if number != signal.SIGKILL:
            _wait_for_handler(process, number)
        delay = random.uniform(time.monotonic() - began, self._course.whole * 1.1)
        time.sleep(max(0.0, began + delay - time.monotonic()))
        return _end(process, number)

    def _kill_under_lock(self, number: signal.Signals) -> subprocess.CompletedProcess[str]:
        with flocked(self._host.lock_file):
            process = self._host.start(*NETSWEEP, "sweep", "--quiet")
            wait_until_queued(process.pid, self._host.lock_file)
        time.sleep(random.uniform(0, self._course.locked * 2))
        return _end(process, number)

    def _check(self, ended: subprocess.CompletedProcess[str], number: signal.Signals) -> None:
        tally, status, stderr = self.tally, ended.returncode, ended.stderr
        tally.sweeps += 1
        tally.kills += status != 0
        by_signal = -number if number == signal.SIGKILL else 128 + number
        lines = {0: 0, 128 + number: 1}.get(status, 0)
        if status not in (0, by_signal) or len(stderr.splitlines()) != lines or "Traceback" in stderr:
            tally.failures.append(f"netsweep exited {status} on {number.name}: {stderr.strip()!a}")

        tables = self._tables()
        done = [name for name in self._swept if tables[name] == self._after[name]]
        tally.seen[f"{len(done)} of {len(self._swept)} tables done"] += 1
        for name in tables.keys() | self._before.keys():
            whole = tables.get(name) in (self._before[name], self._after[name])
            tally.expect(whole, f"{number.name} left table {name} half done")
        tally.expect(status != 0 or tables == self._after, "a sweep that exited 0 left orphans")
        tally.expect(self._host.free_locks(), f"{number.name} left a lock behind")


def _end(process: subprocess.Popen[str], number: signal.Signals) -> subprocess.CompletedProcess[str]:
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=30)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def _wait_for_handler(process: subprocess.Popen[str], number: int) -> None:
    """Wait until ``process`` catches the signal: before, the interpreter itself is still starting."""
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        caught = next(line for line in status.read_text().splitlines() if line.startswith("SigCgt:"))
        # Python catches SIGINT from early on, for KeyboardInterrupt; SIGTERM only where it is told to.
        if int(caught.split()[1], 16) >> signal.SIGTERM - 1 & 1:
            return
        time.sleep(0.0005)


# Jobs: no rule of a bridge that is alive or leased ever disappears.


def jobs(host: Host, flavour: str, seconds: float) -> Tally:
    """Jobs create leased bridges, whose names recur, use them and remove them, beside sweeps."""
    stop = threading.Event()
    foreign = Foreign(host, flavour)
    crew = [Job(host, flavour, number, stop) for number in range(3)]
    total = together(host, seconds, stop, [*(job.work for job in crew), *[lambda: _sweep_until(host, stop)] * 2])
    total.sweep(sweep(host))
    foreign.check(total)
    return total


def _sweep_until(host: Host, stop: threading.Event, *options: str) -> Tally:
    tally = Tally()
    while not stop.is_set():
        tally.sweep(sweep(host, *options))
    return tally


class Job:
    """A test job: lease, bridge, rules; and the other way round. Some harnesses know no leases."""

    def __init__(self, host: Host, flavour: str, number: int, stop: threading.Event) -> None:
        self._host = host
        self._flavour = flavour
        self._number = number
        self._stop = stop
        self._tally = Tally()

    def work(self) -> Tally:
        while not self._stop.is_set():
            which = random.randrange(2)
            self._use(f"hmc{self._number}{which}", f"10.240.{2 * self._number + which}.0/24")
        return self._tally

    def _use(self, bridge: str, subnet: str) -> None:
        rules = leak(bridge, subnet)
        family = random.choice(FAMILIES[self._flavour])
        leased = random.random() < 0.7
        for _ in range(random.randrange(3)):
            self._host.restore(self._flavour, restore_input(rules), family)
        twins = 0
        if leased:
            self._lease(subnet, bridge)
            # What is left of the twins cannot go any more: a sweep that was under way has ended.
            twins = self._standing(bridge)
            self._tally.seen["leased with stale twins"] += twins > 0
            self._check(bridge, twins, "leased", pauses=2)
        self._run("ip", "link", "add", bridge, "type", "bridge")
        deletions = self._add(rules, family)
        self._check(bridge, twins + 3, "leased and alive" if leased else "alive", pauses=3)
        for deletion in deletions:
            self._run(*deletion)
        self._run("ip", "link", "del", bridge)
        if leased:
            self._check(bridge, twins, "leased", pauses=2)
            self._lease(subnet, None)

    def _add(self, tables: dict[str, list[str]], family: str) -> list[list[str]]:
        """Add each rule, and return the commands that delete them."""
        deletions = []
        for table, rules in tables.items():
            for rule in rules:
                done, deletion = self._host.add(self._flavour, family, table, rule.split()[1:])
                self._tally.call(done)
                deletions.append(deletion)
        return deletions

    def _run(self, *arguments: str) -> None:
        self._tally.call(self._host.run(*arguments, check=False))

    def _check(self, bridge: str, expected: int, state: str, pauses: int) -> None:
        for _ in range(pauses):
            time.sleep(random.uniform(0, 0.08))
            standing = self._standing(bridge)
            # Without a lease, a sweep that was under way may still have to take twins away.
            kept = standing == expected or (standing > expected and state == "alive")
            self._tally.expect(kept, f"{standing} rules of {bridge}, which is {state}, not {expected}")

    def _standing(self, bridge: str) -> int:
        rules = _rules(self._host, self._flavour)
        return len(rules) - len(without(rules, bridge))

    def _lease(self, subnet: str, bridge: str | None) -> None:
        """Write the lease for ``bridge`` as the test harness does, or take the subnet's lease back."""
        file = self._host.lease_file
        with flocked(self._host.lock_file):
            leases = json.loads(file.read_text())["leases"] if file.exists() else {}
            leases.pop(subnet, None)
            if bridge:
                leases[subnet] = {
                    "test_name": f"TestJob{self._number}",
                    "bridge_name": bridge,
                    "subnet_cidr": subnet,
                    "pid": os.getpid(),
                    "created_at_unix": int(time.time()),
                }
            new = file.with_suffix(".new")
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as output:
                json.dump({"leases": leases}, output)
            new.rename(file)


# Many netsweeps at once: each orphan is counted once, and no lock is held for longer than it takes.


def crowd(host: Host, flavour: str, seconds: float, at_least: int = 2, bridges: int = 100) -> Tally:
    """Start eleven sweeps at once, every other time with all of them waiting for the lock first."""
    total = Tally()
    foreign = Foreign(host, flavour)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline or total.sweeps < at_least * WRITERS:
        for queued in (False, True):
            total += _rush(host, flavour, bridges, queued)
            foreign.check(total)
    return total


def _rush(host: Host, flavour: str, bridges: int, queued: bool) -> Tally:
    tally = Tally()
    dead = dead_bridges(bridges)
    host.leak(flavour, dead)
    host.lock_file.touch()
    command = (*NETSWEEP, "sweep", *QUIETLY)
    if queued:
        with flocked(host.lock_file):
            processes = [host.start(*command) for _ in range(WRITERS)]
            for process in processes:
                wait_until_queued(process.pid, host.lock_file)
            began = time.monotonic()
    else:
        began = time.monotonic()
        processes = [host.start(*command) for _ in range(WRITERS)]
    reports = []
    for process in processes:
        stdout, stderr = process.communicate(timeout=60)
        report = tally.sweep(subprocess.CompletedProcess(command, process.returncode, stdout, stderr))
        reports += [report] if report else []
    total_ms = (time.monotonic() - began) * 1000

    held_ms = [report["locks"]["subnet"]["held_ms"] for report in reports if report["locks"]["subnet"]]
    tally.expect(sum(held_ms) <= total_ms, f"the subnet lock was held for {held_ms} ms in {total_ms:.0f} ms")
    tally.seen["sweeps that took the lock"] += len(held_ms)
    orphans = [orphan for report in reports for orphan in report["orphans"]]
    counted = Counter((orphan["family"], orphan["table"], orphan["comment"]) for orphan in orphans)
    tally.expect(tally.deleted == 3 * bridges, f"{tally.deleted} of {3 * bridges} orphans were counted")
    tally.expect(set(counted.values()) == {1}, f"reported more than once: {counted.most_common(3)}")
    tally.expect(len(counted) == 3 * bridges, f"{len(counted)} of {3 * bridges} orphans were reported")
    return tally


# Reloads: a table that is made anew, and whose handles start anew, loses none of its live rules.


def reloads(host: Host, flavour: str, seconds: float) -> Tally:
    """One owner loads its tables as a whole again and again, with orphans at other places each time."""
    stop = threading.Event()
    reloader = Reloader(host, flavour, stop)
    total = together(host, seconds, stop, [reloader.work, *[lambda: _sweep_until(host, stop)] * 2])
    total.sweep(sweep(host))
    reloader.check(total)
    total.expect(reloader.orphans() == [], f"orphans are left: {reloader.orphans()}")
    return total


class Reloader:
    """Owns all rules there are. Where orphans stood, rules of live bridges stand after the next load."""

    RULES = 400

    def __init__(self, host: Host, flavour: str, stop: threading.Event) -> None:
        self._host = host
        self._flavour = flavour
        self._stop = stop
        self._live: dict[str, list[str]] = {family: [] for family in FAMILIES[flavour]}
        self._serial = 0
        host.add_bridges(*LIVE)

    def work(self) -> Tally:
        tally = Tally()
        while not self._stop.is_set():
            self._load(tally, random.choice(FAMILIES[self._flavour]))
            for _ in range(random.randrange(3)):
                self._stop.wait(random.uniform(0, 0.1))
                self.check(tally)
        return tally

    def check(self, tally: Tally) -> None:
        """Every rule of a live bridge stands, in its place among the others.

        Beside a commit ``iptables-nft-save`` may miss rules without knowing: the kernel takes rules off
        their chain after it has counted up the generation. What is lost is missing the next time too.
        """
        left = self._standing()
        if left != self._live:
            tally.seen["torn readings"] += 1
            left = self._standing()
        for family, live in self._live.items():
            there = left[family]
            tally.expect(live == there, f"of {len(live)} live {family} rules {len(there)} are left in their order")

    def _standing(self) -> dict[str, list[str]]:
        standing: dict[str, list[str]] = {family: [] for family in self._live}
        for rule in _rules(self._host, self._flavour):
            standing[rule.split()[0]] += TAG.findall(rule)
        return standing

    def orphans(self) -> list[str]:
        """What is left of dead bridges."""
        return [rule for rule in _rules(self._host, self._flavour) if "hm1" in rule]

    def _load(self, tally: Tally, family: str) -> None:
        live = [f"v0r{self._serial + number}" for number in range(self.RULES)]
        dead = dead_bridges(self.RULES // 2, self._serial)
        self._serial += self.RULES
        # The orphans together, at one end or in the middle: what stood at their handles, or will.
        place = random.choice((0, len(live) // 2, len(live)))
        rules = [*live[:place], *dead, *live[place:]]
        # The first is iptables' own way.
        ways = ["", "flush ruleset", "flush table {} filter", "delete table {} filter"]
        way = random.choice(ways[family == "inet" : None if self._flavour == "nft" else 1])
        command, text = self._native(way, family, rules) if way else self._restored(family, rules)
        path = self._host.directory / "reload"
        path.write_text(text)
        # Under the lock that sweeps wait for when they have looked, or at any other moment.
        with flocked(self._host.lock_file) if random.random() < 0.5 else nullcontext():
            self._stop.wait(random.uniform(0, 0.2))
            if tally.call(self._host.run(*command, str(path), check=False)):
                if way == "flush ruleset":
                    self._live = {each: [] for each in self._live}
                self._live[family] = live
                tally.seen["reloads"] += 1

    def _restored(self, family: str, rules: list[str]) -> tuple[tuple[str, ...], str]:
        lines = [
            f"-A FORWARD -i {LIVE[0]} -m comment --comment {rule} -j ACCEPT"
            if TAG.fullmatch(rule)
            else f"-A FORWARD -i {rule} -j ACCEPT"
            for rule in rules
        ]
        wait = ("-w", "5") if self._flavour == "legacy" else ()
        text = restore_input({"filter": [":INPUT ACCEPT [0:0]", ":FORWARD ACCEPT [0:0]", *lines]})
        return (program(self._flavour, family, "-restore"), *wait), text

    def _native(self, way: str, family: str, rules: list[str]) -> tuple[tuple[str, ...], str]:
        lines = [
            f'iifname "{LIVE[0]}" counter accept comment "{rule}"'
            if TAG.fullmatch(rule)
            else f'iifname "{rule}" counter accept'
            for rule in rules
        ]
        chain = "type filter hook forward priority filter; policy accept;"
        body = "".join(f"{line}\n" for line in (chain, *lines))
        name = NATIVE_NAMES[family]
        # A table has to be there to be flushed.
        before = f"add table {name} filter\n{way.format(name)}"
        return ("nft", "-f"), f"{before}\ntable {name} filter {{\nchain FORWARD {{\n{body}}}\n}}\n"


# Replacements: another rule under the handle, or at the number, of one that was an orphan.


def replacements(host: Host, flavour: str, seconds: float) -> Tally:
    """Jobs put rules of live bridges in the place of stale ones, beside sweeps."""
    stop = threading.Event()
    foreign = Foreign(host, flavour)
    crew = [Replacer(host, flavour, number, stop) for number in range(3)]
    total = together(host, seconds, stop, [*(job.work for job in crew), *[lambda: _sweep_until(host, stop)] * 2])
    total.sweep(sweep(host))
    foreign.check(total, [tag for job in crew for tag in job.standing])
    return total


class Replacer:
    """Leaves rules behind, and then replaces some of them that still stand."""

    def __init__(self, host: Host, flavour: str, number: int, stop: threading.Event) -> None:
        self._host = host
        self._flavour = flavour
        self._number = number
        self._stop = stop
        self._serial = 0
        # What deletes each of the rules again.
        self.standing: dict[str, list[str]] = {}

    def work(self) -> Tally:
        tally = Tally()
        while not self._stop.is_set():
            family = random.choice(FAMILIES[self._flavour])
            bridges = dead_bridges(6, (self._number << 16) + 6 * self._serial)
            rules = [f"-A FORWARD -i {bridge} -m comment --comment hypeman-x-{bridge} -j ACCEPT" for bridge in bridges]
            self._host.restore(self._flavour, restore_input({"filter": rules}), family)
            # A sweep has seen them by now, or waits for the lock to delete them.
            self._stop.wait(random.uniform(0, 0.15))
            if family == "inet" or (self._flavour == "nft" and random.random() < 0.5):
                self._by_handle(tally, family, bridges)
            else:
                self._by_number(tally, family, bridges)
        return tally

    def _by_number(self, tally: Tally, family: str, bridges: Iterable[str]) -> None:
        iptables = (program(self._flavour, family), "-w", "5")
        # Numbers stay as they are only while no sweep and no other job of this kind changes the chain.
        with flocked(self._host.lock_file):
            for bridge in random.sample(list(bridges), 3):
                chain = f"{family} *filter -A FORWARD"
                lines = [rule for rule in _rules(self._host, self._flavour) if rule.startswith(chain)]
                places = [place for place, line in enumerate(lines, 1) if line not in without([line], bridge)]
                for place in places:
                    tag = self._new()
                    rule = ["-i", LIVE[self._number], *_comment(tag), "-j", "ACCEPT"]
                    done = self._host.run(*iptables, "-R", "FORWARD", str(place), *rule, check=False)
                    if tally.call(done):
                        self.standing[tag] = [*iptables, "-D", "FORWARD", *rule]
                        tally.seen["replaced by number"] += 1
            for tag in list(self.standing)[:-10]:
                if tally.call(self._host.run(*self.standing[tag], check=False)):
                    del self.standing[tag]

    def _by_handle(self, tally: Tally, family: str, bridges: Iterable[str]) -> None:
        chain = (NATIVE_NAMES[family], "filter", "FORWARD")
        listed = self._host.run("nft", "-a", "list", "chain", *chain).stdout.splitlines()
        for bridge in bridges:
            for line in listed:
                if f'"{bridge}"' in line:
                    tag = self._new()
                    new = f'iifname "{LIVE[self._number]}" counter accept comment "{tag}"'
                    where = [*chain, "handle", line.rpartition(" ")[2]]
                    done = self._host.run("nft", "replace", "rule", *where, new, check=False)
                    tally.operations += 1
                    if done.returncode:
                        tally.seen["swept before it was replaced"] += 1
                    else:
                        self.standing[tag] = ["nft", "delete", "rule", *where]
                        tally.seen["replaced by handle"] += 1

    def _new(self) -> str:
        self._serial += 1
        return f"x{self._number}r{self._serial}"


# Returns: a name that comes back, by whatever way, has its rules from then on.


def returns(host: Host, flavour: str, seconds: float) -> Tally:
    """Names of bridges come and go without any lease, each time with rules of their own."""
    stop = threading.Event()
    foreign = Foreign(host, flavour)
    crew = [Returner(host, flavour, number, stop) for number in range(4)]
    total = together(host, seconds, stop, [*(job.work for job in crew), *[lambda: _sweep_until(host, stop)] * 2])
    total.sweep(sweep(host))
    foreign.check(total)
    return total


class Returner:
    """Has one name again and again: as a bridge, as another name of one, or by renaming one."""

    WAYS: ClassVar = {
        "as a bridge": ("link add {name} type bridge", "link del {name}"),
        "as another name": (
            "link property add dev {bridge} altname {name}",
            "link property del dev {bridge} altname {name}",
        ),
        "by renaming": ("link set {bridge} name {name}", "link set {name} name {bridge}"),
    }

    def __init__(self, host: Host, flavour: str, number: int, stop: threading.Event) -> None:
        self._host = host
        self._flavour = flavour
        self._number = number
        self._stop = stop
        self._bridge = f"spare{number}"
        host.add_bridges(self._bridge)

    def work(self) -> Tally:
        tally = Tally()
        serial = 0
        while not self._stop.is_set():
            way = random.choice(list(self.WAYS))
            name = f"hmb{self._number}{random.randrange(2)}"
            come, go = (["ip", *text.format(name=name, bridge=self._bridge).split()] for text in self.WAYS[way])
            if not tally.call(self._host.run(*come, check=False)):
                continue
            tags = []
            family = random.choice(FAMILIES[self._flavour])
            # A rule of nft has one comment.
            tied = ["-o", name] if family == "inet" else _comment(f"hypeman-nat-{name}")
            for table, body in (
                ("filter", ["FORWARD", "-i", name, "-j", "ACCEPT"]),
                ("filter", ["FORWARD", "-o", name, "-j", "DROP"]),
                ("nat", ["POSTROUTING", "-s", f"10.241.{self._number}.0/24", *tied]),
            ):
                serial += 1
                tags.append(f"b{self._number}r{serial}")
                tally.call(self._host.add(self._flavour, family, table, [*body, *_comment(tags[-1])])[0])
            for _ in range(random.randint(1, 3)):
                time.sleep(random.uniform(0, 0.05))
                text = "\n".join(_rules(self._host, self._flavour))
                standing = [tag for tag in tags if tag in TAG.findall(text)]
                tally.expect(
                    standing == tags, f"{name} came back {way}: {len(standing)} of its {len(tags)} rules stand"
                )
            tally.seen[way] += 1
            # Its rules are left behind.
            tally.call(self._host.run(*go, check=False))
        return tally


# Profiles: networks of other software, which has no leases.


def engines(host: Host, flavour: str, seconds: float) -> Tally:
    """Networks as Docker's come and go, and some are forgotten, beside sweeps with its profile."""
    stop = threading.Event()
    for family in Engine.FAMILIES:
        host.restore(flavour, restore_input({"filter": [":DOCKER - [0:0]"], "nat": [":DOCKER - [0:0]"]}), family)
    foreign = Foreign(host, flavour)
    crew = [Engine(host, flavour, stop) for _ in range(4)]
    options = ("--profile", "docker")
    sweeping = [lambda: _sweep_until(host, stop, *options)] * 2
    total = together(host, seconds, stop, [*(engine.work for engine in crew), *sweeping])
    total.sweep(sweep(host, *options))
    foreign.check(total)
    leaked = sum(engine.leaked for engine in crew)
    total.expect(total.deleted >= leaked, f"{total.deleted} rules were deleted, {leaked} had leaked")
    return total


class Engine:
    """Makes a network, lets it live for a while, and takes it down, or forgets its rules."""

    FAMILIES: ClassVar = ("ipv4", "ipv6")
    SUBNETS: ClassVar = {"ipv4": "172.{}.0.0/16", "ipv6": "fd00:{}::/64"}
    RULES: ClassVar = {
        "filter": [
            "FORWARD -o {name} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            "FORWARD -o {name} -j DOCKER",
            "FORWARD -i {name} ! -o {name} -j ACCEPT",
            "FORWARD -i {name} -o {name} -j ACCEPT",
            "DOCKER ! -i {name} -o {name} -p tcp -m tcp --dport 80 -j ACCEPT",
        ],
        "nat": ["POSTROUTING -s {net} ! -o {name} -j MASQUERADE", "DOCKER -i {name} -j RETURN"],
    }

    def __init__(self, host: Host, flavour: str, stop: threading.Event) -> None:
        self._host = host
        self._flavour = flavour
        self._stop = stop
        self.leaked = 0

    def work(self) -> Tally:
        tally = Tally()
        while not self._stop.is_set():
            name, family = f"br-{random.randrange(1 << 48):012x}", random.choice(self.FAMILIES)
            net = self.SUBNETS[family].format(random.randint(16, 31))
            self._ip(tally, "link", "add", name, "type", "bridge")
            self._change(tally, family, "-A", name, net)
            expected = sum(map(len, self.RULES.values()))
            for _ in range(random.randint(1, 3)):
                time.sleep(random.uniform(0, 1))
                standing = sum(name in rule for rule in _rules(self._host, self._flavour))
                tally.expect(standing == expected, f"{standing} of {expected} rules of a network that lives stand")
            ending = random.choice(["in order", "bridge first", "forgotten"])
            tally.seen[f"networks taken down {ending}"] += 1
            if ending == "in order":
                self._change(tally, family, "-D", name, net)
            self._ip(tally, "link", "del", name)
            if ending == "bridge first":  # up to 0.1 s before its rules
                time.sleep(random.uniform(0, 0.1))
                self._change(tally, family, "-D", name, net)
            elif ending == "forgotten":
                self.leaked += expected
        return tally

    def _ip(self, tally: Tally, *arguments: str) -> None:
        tally.call(self._host.run("ip", *arguments, check=False))

    def _change(self, tally: Tally, family: str, action: str, name: str, net: str) -> None:
        rules = {
            table: [f"{action} {rule.format(name=name, net=net)}" for rule in own] for table, own in self.RULES.items()
        }
        tally.call(self._host.restore(self._flavour, restore_input(rules), family, check=False))


# Journals: what was deleted and put back stands once, and nobody else's change is lost.


def journals(host: Host, flavour: str, seconds: float) -> Tally:
    """Sweeps with a journal, some of them killed, and their undoing, beside writers."""
    stop = threading.Event()
    foreign = Foreign(host, flavour)
    crew = [Writer(host, flavour, number, stop) for number in range(4)]
    keeper = Keeper(host, flavour, stop)
    total = together(host, seconds, stop, [*(writer.work for writer in crew), keeper.work])
    total.sweep(sweep(host))
    foreign.check(total, [tag for writer in crew for tag in writer.standing])
    return total


class Keeper:
    """Leaves rules behind, sweeps them into a journal, and puts them back."""

    BRIDGES = 40

    def __init__(self, host: Host, flavour: str, stop: threading.Event) -> None:
        self._host = host
        self._flavour = flavour
        self._stop = stop
        self._serial = 0

    def work(self) -> Tally:
        tally = Tally()
        while not self._stop.is_set():
            bridges = dead_bridges(self.BRIDGES, self._serial)
            self._serial += self.BRIDGES
            self._host.leak(self._flavour, bridges)
            with self._journal() as path:
                if self._swept(tally, path, kill=random.random() < 0.4):
                    self._put_back(tally, path, bridges)
            tally.sweep(sweep(self._host))
            left = self._standing(bridges)
            tally.expect(not left, f"{left.total()} rules that were put back survived a sweep")
        return tally

    @contextmanager
    def _journal(self) -> Iterator[Path]:
        path = self._host.directory / f"journal-{self._serial}"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _swept(self, tally: Tally, path: Path, *, kill: bool) -> bool:
        """Sweep into ``path``, and say whether there is something to be put back."""
        command = (*NETSWEEP, "sweep", *QUIETLY, "--journal", str(path))
        if not kill:
            report = tally.sweep(self._host.run(*command, check=False))
            return bool(report and report["deleted"])
        process = self._host.start(*command)
        # From the first line of the journal on, at any moment.
        deadline = time.monotonic() + 10
        while process.poll() is None and not path.exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.06))
        killed = _end(process, signal.SIGKILL)
        tally.sweeps += 1
        tally.kills += killed.returncode != 0
        return path.exists()

    def _put_back(self, tally: Tally, path: Path, bridges: Sequence[str]) -> None:
        before = self._standing(bridges)
        done = self._host.run(*NETSWEEP, "restore", "--quiet", str(path), check=False)
        after = self._standing(bridges)
        doubled = {rule: number for rule, number in after.items() if number != 1}
        tally.expect(not doubled, f"put back more than once: {doubled}")
        tally.expect(not before - after, f"a restore took {(before - after).total()} rules away")
        if done.returncode == 0:
            tally.expect(
                len(after) == 3 * len(bridges), f"{len(after)} of {3 * len(bridges)} rules stand after a restore"
            )
            tally.seen["put back"] += 1
        elif any(why in done.stderr for why in ("exists already", "no rules", "no longer fit", "not a journal")):
            # Writers delete the rules around a place, and a kill may come before anything was written or deleted.
            tally.seen["not put back"] += 1
            tally.expect(before == after, "a restore that refused changed something")
        else:
            tally.failures.append(f"netsweep restore exited {done.returncode}: {done.stderr.strip()}")

    def _standing(self, bridges: Sequence[str]) -> Counter[str]:
        rules = _rules(self._host, self._flavour)
        return Counter(rules) - Counter(without(rules, *bridges))


# Networks: no bridge, lease or rule of a job that lives is harmed, and no subnet stays lost.

MIN_AGE = 2.0
"""Seconds: shorter than bridges of jobs live, which their leases protect."""

EVENTS = "events"
"""The file in the namespace's directory where jobs write down what they see."""


def networks(host: Host, flavour: str, seconds: float, at_least: int = 0) -> Tally:
    """Eleven jobs lease networks, wait with them, use them and tear them down, beside sweeps of bridges.

    A third of the jobs, sweeps and teardowns are killed; see tests/networks.py for what a job does. Goes on until
    ``at_least`` so many bridges and leases were swept, for another minute at most.
    """
    foreign = Foreign(host, flavour)
    total = Tally()

    def enough() -> bool:
        over = time.monotonic() - deadline
        swept = min(total.seen["bridges swept"], total.seen["leases swept"])
        return over > 60 or (over > 0 and swept >= at_least)

    deadline = time.monotonic() + seconds
    with _harness(host, flavour) as harness:
        while harness.poll() is None and not enough():
            _sweep_networks(host, total, kill=random.random() < 1 / 3)
        assert harness.stdin
        harness.stdin.close()
        last = time.monotonic() + 120
        while harness.poll() is None and time.monotonic() < last:
            _sweep_networks(host, total)
        if harness.poll() != 0:
            total.failures.append(f"the harness did not end, or with {harness.returncode}")
    _add_events(host, total)
    # Those that were killed last may have left a bridge without a lease.
    time.sleep(MIN_AGE)
    for _ in range(2):
        _sweep_networks(host, total)
    left = sorted(name for name in _bridges(host) if name not in LIVE)
    total.expect(not left, f"bridges stay lost: {left}")
    leases = json.loads(host.lease_file.read_text())["leases"]
    total.expect(not leases, f"leases of dead jobs are left: {sorted(leases)}")
    foreign.check(total)
    return total


@contextmanager
def _harness(host: Host, flavour: str) -> Iterator[subprocess.Popen[bytes]]:
    # Modules of the tests are found from here.
    root = Path(__file__).parent.parent
    command = host.command(sys.executable, "-m", "tests.networks", host.name, str(host.directory), flavour)
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=host.environment, cwd=root) as harness:
        try:
            yield harness
        finally:
            # With it go its jobs.
            harness.kill()


def _sweep_networks(host: Host, tally: Tally, *, kill: bool = False) -> None:
    process = host.start(*NETSWEEP, "sweep", *QUIETLY, "--bridges", "--min-age", f"{MIN_AGE:.0f}s")
    if kill:
        with suppress(subprocess.TimeoutExpired):
            process.wait(random.uniform(0, 1))
        process.kill()
    stdout, stderr = process.communicate(timeout=120)
    if process.returncode == -signal.SIGKILL:
        tally.sweeps += 1
        tally.kills += 1
        return
    report = tally.sweep(subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr))
    if report:
        tally.seen["bridges swept"] += report["bridges_deleted"]
        tally.seen["leases swept"] += report["leases_removed"]
        if lock := report["locks"]["subnet"]:
            tally.took("hold of the subnet lock by a sweep", lock["longest_ms"])
            tally.seen["sweeps that held the subnet lock for over 100 ms"] += lock["longest_ms"] > 100


def _add_events(host: Host, tally: Tally) -> None:
    """Add what the jobs saw."""
    stages: dict[int, str] = {}
    for line in (host.directory / EVENTS).read_text().splitlines():
        serial, kind, value = json.loads(line)
        if kind == "lost":
            tally.losses.append(f"when a network {stages[serial]}: {value}")
        elif kind == "failed":
            tally.failures.append(f"when a network {stages[serial]}: {value}")
        elif kind == "stage":
            stages[serial] = value
            tally.operations += 1
        elif kind == "ended":
            del stages[serial]
            tally.seen["jobs that ended"] += 1
        elif kind == "waited":
            tally.took("wait of a job for the subnet lock", value)
        elif kind == "got a subnet":
            tally.took("wait of a job for a subnet", value)
        elif kind == "teardown held":
            tally.took("hold of the subnet lock by a teardown", value)
            tally.seen["teardowns that held the subnet lock for over 100 ms"] += value > 100
        else:
            tally.seen[kind] += value
    tally.kills += len(stages)
    tally.seen.update(f"killed when a network {stage}" for stage in stages.values())


def _bridges(host: Host) -> list[str]:
    links = json.loads(host.run("ip", "-j", "link", "show", "type", "bridge").stdout)
    return [link["ifname"] for link in links]


# Locks: netsweep and flock(1) keep each other out, however many give up waiting.


def exclusion(host: Host, path: Path, seconds: float) -> Tally:
    """Add to a counter that only the lock on ``path`` protects, from flock(1) and from netsweep."""
    stop = threading.Event()
    path.touch()
    counter = host.directory / "counter"
    counter.write_text("0")
    tasks = [
        *[lambda: _count_with_flock(host, path, counter, stop)] * 2,
        *[lambda: _count_with_netsweep(path, counter, stop, 60.0)] * 2,
        *[lambda: _count_with_netsweep(path, counter, stop, 0.005)] * 4,
    ]
    total = together(host, seconds, stop, tasks)
    counted = int(counter.read_text())
    expected = total.seen["counted with flock"] + total.seen["counted with netsweep"]
    total.expect(counted == expected, f"{expected - counted} of {expected} additions under the lock were lost")
    # The threads of those that gave up get the lock in turn, and give it back at once.
    deadline = time.monotonic() + 5
    while abandoned_waiters() and time.monotonic() < deadline:
        time.sleep(0.001)
    total.expect(abandoned_waiters() == 0, "threads of abandoned waiters are left")
    total.expect(is_free(path), "the lock is held though nobody wants it any more")
    return total


def abandoned_waiters() -> int:
    """How many threads of this process wait for a lock on behalf of somebody."""
    return sum(thread.name == "netsweep-flock" for thread in threading.enumerate())


def _count_with_flock(host: Host, path: Path, counter: Path, stop: threading.Event) -> Tally:
    tally = Tally()
    script = 'n=$(cat "$0"); sleep 0.002; echo $((n + 1)) >"$0"'
    while not stop.is_set():
        if tally.call(host.run("flock", str(path), "sh", "-c", script, str(counter), check=False)):
            tally.seen["counted with flock"] += 1
    return tally


def _count_with_netsweep(path: Path, counter: Path, stop: threading.Event, timeout: float) -> Tally:
    tally = Tally()
    while not stop.is_set():
        tally.operations += 1
        try:
            with held(LockTimes(str(path)), timeout, mode=0o666, what="lock", option="none"):
                number = int(counter.read_text())
                time.sleep(0.001)
                counter.write_text(str(number + 1))
        except BusyError:
            tally.seen["gave up waiting"] += 1
        else:
            tally.seen["counted with netsweep"] += 1
    return tally


# The long run.

Scenario = Callable[[Host, str, float], Tally]

SHARES: dict[str, tuple[Scenario, float]] = {
    "writers": (writers, 0.12),
    "busy": (busy, 0.05),
    "kills": (lambda host, flavour, seconds: kills(host, flavour, seconds, bridges=300), 0.12),
    "jobs": (jobs, 0.08),
    "reloads": (reloads, 0.10),
    "replacements": (replacements, 0.10),
    "returns": (returns, 0.08),
    "engines": (engines, 0.08),
    "journals": (journals, 0.08),
    "networks": (networks, 0.10),
    "crowd": (lambda host, flavour, seconds: crowd(host, flavour, seconds, bridges=300), 0.05),
    "exclusion": (lambda host, _, seconds: exclusion(host, host.lock_file, seconds), 0.04),
}
"""Each scenario, and its share of the time."""


def percentile(values: Iterable[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def summary(tally: Tally) -> list[str]:
    """What happened, in lines of text."""
    lines = [
        f"operations {tally.operations}, sweeps {tally.sweeps}, kills {tally.kills}, rules swept {tally.deleted}, "
        f"losses {len(tally.losses)}, failed calls {len(tally.failures)}"
    ]
    if tally.latencies:
        p50, p99, worst = (percentile(tally.latencies, share) for share in (0.5, 0.99, 1))
        lines.append(f"writers' calls: p50 {p50:.0f} ms, p99 {p99:.0f} ms, worst {worst:.0f} ms")
    if tally.orphan_ages:
        p50, worst = percentile(tally.orphan_ages, 0.5), max(tally.orphan_ages)
        lines.append(f"orphans' age when gone: p50 {p50:.1f} s, worst {worst:.1f} s")
    if tally.longest:
        lines.append("longest " + ", ".join(f"{what}: {ms} ms" for what, ms in sorted(tally.longest.items())))
    if tally.seen:
        lines.append(", ".join(f"{what}: {times}" for what, times in sorted(tally.seen.items())))
    for kind, events in (("LOSS", tally.losses), ("FAILED", tally.failures)):
        lines += [f"{kind} ({times} times) {event}" for event, times in Counter(events).most_common(20)]
    return lines


def soak(flavour: str, seconds: float) -> Tally:
    """Run every scenario, in ``seconds`` altogether, and print what happens."""
    total = Tally()
    for name, (scenario, share) in SHARES.items():
        with tempfile.TemporaryDirectory(prefix="netsweep-soak-") as directory, new_namespace(Path(directory)) as ns:
            host = Host(ns)
            host.enter()
            tally = scenario(host, flavour, seconds * share)
        print(f"{flavour} {name}", *summary(tally), sep="\n  ", flush=True)
        total += tally
    return total


def main() -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="soak", description="Sweep under contention and kills, for long.")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long, altogether (default: 10)")
    arguments = parser.parse_args()
    # In a shell's background SIGINT is ignored, and netsweep would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    totals = {flavour: soak(flavour, arguments.minutes * 60 / len(FLAVOURS)) for flavour in FLAVOURS}
    for flavour, total in totals.items():
        print(f"{flavour} in total", *summary(total), sep="\n  ")
    return 1 if any(total.losses or total.failures for total in totals.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
