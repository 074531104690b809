"""Sweeps beside writers, killers, jobs and each other, on the real kernel and for as long as wanted.

``python -m tests.soak --minutes 10`` runs every scenario on both flavours of iptables and exits 1 if a
rule was lost or a call failed. tests/netns/test_contention.py runs the same scenarios for seconds.
"""

from __future__ import annotations

import argparse
import fcntl
import json
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
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from netsweep.errors import BusyError
from netsweep.locks import LockTimes, held
from tests.namespace import (
    FLAVOURS,
    Namespace,
    flocked,
    leak,
    leaks,
    new_namespace,
    restore_input,
    wait_until_queued,
    without,
)

WRITERS = 11
"""As many as the CI host has runners."""

LIVE = [f"hmf{number:x}" for number in range(WRITERS)]
"""One bridge that exists for each writer."""

NETSWEEP = (sys.executable, "-m", "netsweep")

_TAG = re.compile(r"\bw[0-9]+r[0-9]+\b")
"""What is in the comment of one rule of one writer only."""


class Host(Namespace):
    """A namespace in which the calling thread is already, so that starting a program costs no way in."""

    def __init__(self, namespace: Namespace) -> None:
        super().__init__(namespace.name, namespace.folder)
        self.xtables_lock = namespace.folder / "xtables.lock"
        self._identity = os.stat(f"/run/netns/{self.name}").st_ino

    def command(self, *arguments: str) -> list[str]:
        if os.stat("/proc/thread-self/ns/net").st_ino != self._identity:
            raise RuntimeError(f"{arguments} would run outside of {self.name}")
        return list(arguments)

    def free_locks(self) -> bool:
        """Say whether nobody holds either lock."""
        return all(is_free(path) for path in (self.lock_file, self.xtables_lock) if path.exists())


def is_free(path: Path) -> bool:
    """Say whether nobody holds the lock on the file at ``path``."""
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@dataclass
class Tally:
    """What happened in a scenario.

    ``losses``: what netsweep did to rules or locks that it must not do. ``failures``: programs that
    did not end as they should. ``latencies``: ms of each call of a writer. ``seen``: how often each
    of a scenario's own events came about.
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
        if done.returncode or done.stderr:
            self.failures.append(f"netsweep exited {done.returncode}: {done.stderr.strip()}")
            return None
        report: dict[str, Any] = json.loads(done.stdout)
        self.deleted += report["deleted"]
        return report

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


def sweep(host: Host) -> subprocess.CompletedProcess[str]:
    return host.netsweep("sweep", "--format", "json")


def dead_bridges(count: int, first: int = 0) -> list[str]:
    return [f"hm1{number:05x}" for number in range(first, first + count)]


# Writers: nobody else's change is lost.


def writers(host: Host, flavour: str, seconds: float) -> Tally:
    """Eleven writers add and delete rules of their own while rules leak and are swept."""
    stop = threading.Event()
    host.add_bridges(*LIVE)
    host.restore(flavour, restore_input(BYSTANDERS))
    bystanders = _rules(host, flavour)
    crew = [Writer(host, flavour, number, stop) for number in range(WRITERS)]
    leaker = Leaker(host, flavour, stop)
    total = together(host, seconds, stop, [*(writer.work for writer in crew), leaker.work, leaker.sweep])

    total.sweep(sweep(host))
    rules = _rules(host, flavour)
    expected = Counter(tag for writer in crew for tag in writer.standing)
    found = Counter(_TAG.findall("\n".join(rules)))
    for tag in expected.keys() | found.keys():
        total.expect(found[tag] == expected[tag], f"{tag} of a writer stands {found[tag]} times, not {expected[tag]}")
    others = [rule for rule in rules if not _TAG.search(rule)]
    total.expect(others == bystanders, f"bystanders changed: {set(others) ^ set(bystanders)}")
    total.expect(
        total.deleted == 3 * leaker.leaked, f"{total.deleted} rules were deleted, {3 * leaker.leaked} had leaked"
    )
    return total


class Writer:
    """A job that adds and deletes rules, some of its live bridge and some that are not ours at all."""

    def __init__(self, host: Host, flavour: str, number: int, stop: threading.Event) -> None:
        self._host = host
        self._program = f"iptables-{flavour}"
        self._number = number
        self._stop = stop
        self._random = random.Random()
        self.standing: dict[str, list[str]] = {}

    def work(self) -> Tally:
        tally = Tally()
        serial = 0
        while not self._stop.is_set():
            if self.standing and self._random.random() < len(self.standing) / 12:
                tag = self._random.choice(list(self.standing))
                if self._call(tally, "-D", self.standing[tag]):
                    del self.standing[tag]
            else:
                serial += 1
                tag = f"w{self._number}r{serial}"
                rule = self._rule(tag, serial)
                if self._call(tally, self._random.choice(["-A", "-I"]), rule):
                    self.standing[tag] = rule
        return tally

    def _rule(self, tag: str, serial: int) -> list[str]:
        bridge, subnet = LIVE[self._number], f"10.201.{self._number}.0/24"
        return [
            ["FORWARD", "-i", bridge, "-o", "eth0", *_comment(f"{tag} hypeman-fwd-out-{bridge}"), "-j", "ACCEPT"],
            ["FORWARD", "-s", subnet, "-p", "tcp", "--dport", "80", *_comment(tag), "-j", "DROP"],
            ["POSTROUTING", "-s", subnet, "-o", "eth0", *_comment(f"{tag} hypeman-nat-{bridge}"), "-j", "MASQUERADE"],
            ["INPUT", "-s", subnet, *_comment(tag), "-j", "RETURN"],
        ][serial % 4]

    def _call(self, tally: Tally, action: str, rule: list[str]) -> bool:
        table = "nat" if rule[0] == "POSTROUTING" else "filter"
        began = time.monotonic()
        done = self._host.run(self._program, "-w", "5", "-t", table, action, *rule, check=False)
        tally.latencies.append((time.monotonic() - began) * 1000)
        return tally.call(done)


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
        while not self._stop.is_set():
            bridges = dead_bridges(random.randint(1, 20), self.leaked)
            program = f"iptables-{self._flavour}-restore"
            if tally.call(self._host.run(program, "--noflush", "-w", "5", input=leaks(bridges), check=False)):
                self.leaked += len(bridges)
                self._since.update(dict.fromkeys(bridges, time.monotonic()))
            self._stop.wait(random.uniform(0, 0.3))
        return tally

    def sweep(self) -> Tally:
        tally = Tally()
        while not self._stop.is_set():
            due = dict(self._since)
            if tally.sweep(sweep(self._host)) is None:
                continue
            now = time.monotonic()
            text = "\n".join(self._host.save(self._flavour))
            for bridge, since in due.items():
                tally.expect(bridge not in text, f"rules of {bridge} survived a sweep that began after they leaked")
                tally.orphan_ages.append(now - since)
                del self._since[bridge]
        return tally


def _rules(host: Host, flavour: str) -> list[str]:
    """Every rule with its table, without its counters."""
    rules, table = [], ""
    for line in host.save(flavour):
        if line.startswith("*"):
            table = line
        elif line.startswith("["):
            rules.append(f"{table} {line.partition('] ')[2]}")
    return rules


BYSTANDERS = {
    "filter": [
        "-A FORWARD -i hm+ -j ACCEPT",
        "-A FORWARD -i ha1 -o eth0 -m comment --comment hypeman-fwd-out-ha1 -j ACCEPT",
        "-A FORWARD ! -o hm1dead -j ACCEPT",
        "-A FORWARD -s 192.0.2.0/24 -m conntrack --ctstate INVALID -j DROP",
        "-A FORWARD -i hm1dead -o hmf0 -j ACCEPT",
    ],
    "nat": [
        "-A POSTROUTING -s 10.1.0.0/16 -o eth0 -m comment --comment hypeman-nat-ha1 -j MASQUERADE",
        "-A POSTROUTING -s 192.0.2.0/24 -j RETURN",
    ],
}
"""Rules that no sweep touches, whatever is in them."""


# Kills: every table as it was or as it should be, and no lock behind.

Tables = dict[str, list[str]]


class Course(NamedTuple):
    """How long a sweep that is left alone takes, and how long it holds the subnet lock; seconds."""

    whole: float
    locked: float


def kills(host: Host, flavour: str, seconds: float, at_least: int = 0, bridges: int = 100) -> Tally:
    """Send signals to sweeps at random moments, half of them while the subnet lock is held."""
    host.add_bridges(*LIVE)
    victims = Victims(host, flavour, bridges)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline or victims.tally.sweeps < at_least:
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
            for under_lock in (False, True):
                victims.kill(number, under_lock)
    return victims.tally


class Victims:
    """Sweeps of the same rules again and again, each ended by a signal."""

    def __init__(self, host: Host, flavour: str, bridges: int) -> None:
        self._host = host
        self._flavour = flavour
        dead = dead_bridges(bridges)
        half = bridges // 2
        # Orphans stand among rules that stay, and at both ends.
        parts = [leaks(dead[:half]), leaks(LIVE), restore_input(BYSTANDERS), leaks(dead[half:])]
        flush = restore_input({"filter": ["-F"], "nat": ["-F"]})
        self._content = flush + "".join(parts)
        self.tally = Tally()
        self._load()
        self._before = self._tables()
        self._course = self._measure()
        self._after = self._tables()
        if any(self._before[table] == self._after[table] for table in ("filter", "nat")):
            raise RuntimeError("a sweep that nobody killed left orphans")

    def kill(self, number: signal.Signals, under_lock: bool) -> None:
        """End one sweep with signal ``number``, check what it left, and let another finish its work."""
        self._load()
        ended = self._kill_under_lock(number) if under_lock else self._kill_anywhere(number)
        self._check(ended, number)
        self.tally.sweep(sweep(self._host))
        self.tally.expect(self._tables() == self._after, f"the sweep after {number.name} did not finish the work")

    def _load(self) -> None:
        self._host.restore(self._flavour, self._content)

    def _tables(self) -> Tables:
        tables: Tables = {}
        for line in self._host.save(self._flavour):
            if line.startswith("*"):
                table = tables.setdefault(line[1:], [])
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
        process = self._host.start(*NETSWEEP, "sweep")
        began = time.monotonic()
        if number != signal.SIGKILL:
            _wait_for_handler(process, number)
        delay = random.uniform(time.monotonic() - began, self._course.whole * 1.1)
        time.sleep(max(0.0, began + delay - time.monotonic()))
        return _end(process, number)

    def _kill_under_lock(self, number: signal.Signals) -> subprocess.CompletedProcess[str]:
        with flocked(self._host.lock_file):
            process = self._host.start(*NETSWEEP, "sweep")
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
        done = [name for name in ("filter", "nat") if tables[name] == self._after[name]]
        tally.seen[f"{len(done)} of 2 tables done"] += 1
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
    crew = [Job(host, flavour, number, stop) for number in range(3)]
    total = together(host, seconds, stop, [*(job.work for job in crew), *[lambda: _sweep_until(host, stop)] * 2])
    total.sweep(sweep(host))
    left = [rule for rule in _rules(host, flavour) if "hm" in rule]
    total.expect(left == [], f"orphans are left: {left}")
    return total


def _sweep_until(host: Host, stop: threading.Event) -> Tally:
    tally = Tally()
    while not stop.is_set():
        tally.sweep(sweep(host))
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
        leased = random.random() < 0.7
        for _ in range(random.randrange(3)):
            self._host.restore(self._flavour, restore_input(rules))
        twins = 0
        if leased:
            self._lease(subnet, bridge)
            # What is left of the twins cannot go any more: a sweep that was under way has ended.
            twins = self._standing(bridge)
            self._tally.seen["leased with stale twins"] += twins > 0
            self._check(bridge, twins, "leased", pauses=2)
        self._run("ip", "link", "add", bridge, "type", "bridge")
        self._each(rules, "-A")
        self._check(bridge, twins + 3, "leased and alive" if leased else "alive", pauses=3)
        self._each(rules, "-D")
        self._run("ip", "link", "del", bridge)
        if leased:
            self._check(bridge, twins, "leased", pauses=2)
            self._lease(subnet, None)

    def _each(self, tables: dict[str, list[str]], action: str) -> None:
        for table, rules in tables.items():
            for rule in rules:
                self._run(f"iptables-{self._flavour}", "-w", "5", "-t", table, action, *rule.split()[1:])

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
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline or total.sweeps < at_least * WRITERS:
        for queued in (False, True):
            total += _rush(host, flavour, bridges, queued)
    return total


def _rush(host: Host, flavour: str, bridges: int, queued: bool) -> Tally:
    tally = Tally()
    dead = dead_bridges(bridges)
    host.restore(flavour, leaks(dead))
    host.lock_file.touch()
    command = (*NETSWEEP, "sweep", "--format", "json")
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
    # A few ms, and now and then a turn of another process on a busy machine.
    tally.expect(max(held_ms, default=0) <= 250, f"one of {held_ms} ms is a lot in {total_ms:.0f} ms")
    tally.seen["sweeps that took the lock"] += len(held_ms)
    counted = Counter((orphan["table"], orphan["comment"]) for report in reports for orphan in report["orphans"])
    tally.expect(tally.deleted == 3 * bridges, f"{tally.deleted} of {3 * bridges} orphans were counted")
    tally.expect(set(counted.values()) == {1}, f"reported more than once: {counted.most_common(3)}")
    tally.expect(len(counted) == 3 * bridges, f"{len(counted)} of {3 * bridges} orphans were reported")
    left = [rule for rule in _rules(host, flavour) if "hm" in rule]
    tally.expect(left == [], f"{len(left)} orphans are left")
    return tally


# Locks: netsweep and flock(1) keep each other out, however many give up waiting.


def exclusion(host: Host, path: Path, seconds: float) -> Tally:
    """Add to a counter that only the lock on ``path`` protects, from flock(1) and from netsweep."""
    stop = threading.Event()
    path.touch()
    counter = host.folder / "counter"
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
    "writers": (writers, 0.40),
    "kills": (lambda host, flavour, seconds: kills(host, flavour, seconds, bridges=300), 0.30),
    "jobs": (jobs, 0.15),
    "crowd": (lambda host, flavour, seconds: crowd(host, flavour, seconds, bridges=300), 0.10),
    "exclusion": (lambda host, _, seconds: exclusion(host, host.lock_file, seconds), 0.05),
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
    if tally.seen:
        lines.append(", ".join(f"{what}: {times}" for what, times in sorted(tally.seen.items())))
    for kind, events in (("LOSS", tally.losses), ("FAILED", tally.failures)):
        lines += [f"{kind} ({times} times) {event}" for event, times in Counter(events).most_common(20)]
    return lines


def soak(flavour: str, seconds: float) -> Tally:
    """Run every scenario, in ``seconds`` altogether, and print what happens."""
    total = Tally()
    for name, (scenario, share) in SHARES.items():
        with tempfile.TemporaryDirectory(prefix="netsweep-soak-") as folder, new_namespace(Path(folder)) as ns:
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
