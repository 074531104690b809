"""``python -m tests.benchmarks.bench``: netsweep against what it replaces, as Markdown tables.

``--into DIR`` also writes the tables, and a picture of the sweeps, into files there. ``--against DIR`` measures the
netsweep of another checkout instead, in turn with this one.
Everything happens in network namespaces of its own. Needs root.
"""

from __future__ import annotations

import argparse
import compileall
import importlib.util
import math
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks import side_by_side
from tests.benchmarks.contents import BACKENDS, CHAINS, DEAD, RULES_PER_BRIDGE, BenchmarkError, Contents, Cost
from tests.benchmarks.figures import median_of, number, progress, ratio, read_locks, table
from tests.benchmarks.neighbours import (
    Call,
    LockWaits,
    Slice,
    feel,
    neighbours,
    overlapping,
    run_beside,
    wait_for_lock,
)
from tests.benchmarks.plot import Curves, draw
from tests.namespace import FAMILIES

NETSWEEP = str(Path(sys.executable).parent / "netsweep")
SWEEP = [NETSWEEP, "sweep"]
LIST = [NETSWEEP, "list"]
PARTS = ("sweeps", "neighbours", "busy", "steady", "locks", "list", "families", "bridges")

PLAIN = "netsweep"
WITH_JSON = "netsweep --format json"
ONE_BY_ONE = "(a) one iptables -D for each"
PIPELINE = "(b) save, grep -v, restore"
RESTORE = "(c) restore --noflush with -D"
FLOOR = "(d) python, importing click"
NO_SWEEP = "no sweep"
BRIDGE_BY_BRIDGE = "one ip link del for each, rules and leases stay"
ALONE, BESIDE = "nobody", "eleven neighbours"
LISTING, STARTING = "netsweep list", "netsweep --version"
SAVES = {"legacy": "iptables-save and ip6tables-save", "nft": "nft list ruleset"}

SWEEP_HEADS = (
    *("firewall", "leaked rules", "what", "runs", "wall ms", "CPU ms", "peak MB"),
    *("subnet lock held ms", "xtables lock held ms", "time against netsweep"),
)
NEIGHBOUR_HEADS = (
    *("firewall", "beside", "calls", "failed", "p50 ms", "p99 ms", "worst ms"),
    *("p99 against no sweep", "sweep took"),
)
BUSY_HEADS = (
    *("firewall", "beside", "sweeps", "p50 ms", "p90 ms", "p99 ms", "worst ms"),
    *("p99 against idle", "longest hold of the subnet lock ms"),
)
STEADY_HEADS = (
    *("firewall", "beside", "calls", "failed", "p50 ms", "p99 ms", "p99 of each while ms", "worst ms"),
    *("p50 against no sweep", "p99 against no sweep", "longest hold of the subnet lock ms"),
)
LIST_HEADS = ("firewall", "what", "runs", "wall ms", "CPU ms", "time against writing all out")
BRIDGE_HEADS = (
    *("firewall", "what", "beside", "wall s", "ms for each bridge", "longest hold of the subnet lock ms"),
    "time against netsweep",
)
FELT_HEADS = (
    *("firewall", "beside", "calls", "failed", "p50 ms", "p99 ms", "worst ms"),
    *("wait for the subnet lock: p50 ms", "p99 ms", "worst ms"),
)
FAMILY_HEADS = ("firewall", "family", "runs", "wall ms", "CPU ms", "subnet lock held ms", "xtables lock held ms")


@dataclass(frozen=True)
class Plan:
    """How much to measure. ``repeats`` by number of leaked rules; ``slow`` replaces those of slow contenders."""

    repeats: dict[int, int]
    slow: dict[tuple[str, str, int], int]
    rounds: int
    busy: int
    steady: int
    steady_seconds: int
    lock_samples: int
    lists: int
    others: int
    families: int
    bridges: int


FULL = Plan(
    repeats={0: 11, 90: 7, 900: 9, 9_000: 5, 90_000: 2},
    slow={
        ("legacy", ONE_BY_ONE, 90): 5,
        ("legacy", ONE_BY_ONE, 900): 3,
        ("nft", ONE_BY_ONE, 90): 3,
        ("nft", ONE_BY_ONE, 900): 1,
        ("nft", RESTORE, 90_000): 0,  # two minutes
    },
    rounds=12,
    busy=100,
    steady=12,
    steady_seconds=5,
    lock_samples=100,
    lists=21,
    others=10_000,
    families=7,
    bridges=500,
)
QUICK = Plan(
    repeats={0: 1, 900: 1},
    slow={("legacy", ONE_BY_ONE, 900): 0, ("nft", ONE_BY_ONE, 900): 0},
    rounds=1,
    busy=1,
    steady=1,
    steady_seconds=1,
    lock_samples=5,
    lists=1,
    others=600,
    families=1,
    bridges=5,
)
ONE_BY_ONE_MAX = 900
NEIGHBOURS_LEAKED = 900
FAMILIES_LEAKED = 900
LONGEST_SWEEP = 60.0
"""Seconds for one sweep beside the neighbours, which takes less than one."""
LONGEST_BRIDGES = 180.0
"""Seconds to delete all leaked bridges, which takes half a minute."""
CALM = 5.0
"""Seconds of neighbours at work without a sweep of bridges, to be compared with those beside one."""


class Sample(NamedTuple):
    """One run. The locks' times are ``None`` where no lock was taken, or where nothing tells them."""

    cost: Cost
    subnet_ms: float | None = None
    xtables_ms: float | None = None


class Bridges(NamedTuple):
    """All leaked bridges deleted once: how long that took, and what neighbours felt, where there were some.

    ``longest_ms``: the longest single hold of the subnet lock, where it was taken.
    """

    seconds: float
    longest_ms: float | None = None
    calls: Sequence[Call] = ()


class Busy(NamedTuple):
    """One sweep: ms that it took, and ms of its longest single hold of the subnet lock."""

    wall_ms: float
    longest_ms: float


@dataclass
class Results:
    """All that was measured: runs by backend, leaked rules and contender; the others by backend.

    ``holds``: the longest single hold of the subnet lock, in ms, of each sweep beside the neighbours. ``busy``: sweeps
    by backend and who was beside. ``steady``: what neighbours felt by backend, with a sweep each second and without;
    ``steady_holds``: the longest hold of the subnet lock, in ms, of each of these sweeps.
    ``lists``: runs beside many rules of others, by backend and contender. ``families``: sweeps of rules of
    one family, by backend and family. ``bridges``: deletions of bridges, by backend, contender and who was beside.
    """

    sweeps: dict[tuple[str, int, str], list[Sample]] = field(default_factory=lambda: defaultdict(list))
    slices: dict[tuple[str, str], list[Slice]] = field(default_factory=lambda: defaultdict(list))
    locks: dict[str, LockWaits] = field(default_factory=dict)
    holds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    busy: dict[tuple[str, str], list[Busy]] = field(default_factory=lambda: defaultdict(list))
    steady: dict[tuple[str, str], list[Slice]] = field(default_factory=lambda: defaultdict(list))
    steady_holds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    lists: dict[tuple[str, str], list[Cost]] = field(default_factory=lambda: defaultdict(list))
    families: dict[tuple[str, str], list[Sample]] = field(default_factory=lambda: defaultdict(list))
    bridges: dict[tuple[str, str, str], Bridges] = field(default_factory=dict)

    def median(self, flavour: str, leaked: int, contender: str, what: str) -> float | None:
        """The median of ``wall_ms``, ``cpu_ms``, ``peak_mb``, ``subnet_ms`` or ``xtables_ms``."""
        samples = self.sweeps.get((flavour, leaked, contender), [])
        values = [getattr(sample if what in Sample._fields else sample.cost, what) for sample in samples]
        return median_of(values)


def contenders(contents: Contents, leaked: int) -> dict[str, list[str]]:
    """The command line of each contender at this size."""
    save, restore = contents.tool("-save"), contents.tool("-restore")
    commands = {
        PLAIN: SWEEP,
        WITH_JSON: [*SWEEP, "--format", "json"],
        PIPELINE: ["sh", "-c", f"{save} -c | grep -vE '{DEAD}' | {restore} -c"],
        FLOOR: [sys.executable, "-c", "import click"],
    }
    if leaked:
        commands[RESTORE] = [restore, "--noflush", contents.deletions(leaked)]
        if leaked <= ONE_BY_ONE_MAX:
            commands[ONE_BY_ONE] = ["sh", contents.script(leaked)]
    return commands


def measure_sweeps(contents: Contents, plan: Plan, results: Results) -> None:
    """Run all contenders in turn at each size, each on the same rules."""
    for name, command in contenders(contents, RULES_PER_BRIDGE).items():
        contents.load(RULES_PER_BRIDGE)
        run_once(contents, name, command)
    for leaked, repeats in plan.repeats.items():
        progress(f"{BACKENDS[contents.flavour]}: {leaked:,} leaked rules")
        commands = contenders(contents, leaked)
        contents.load(leaked)
        for turn in range(repeats):
            names = list(commands)
            # Nobody always comes after the same one.
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                if turn >= plan.slow.get((contents.flavour, name, leaked), repeats):
                    continue
                sample = run_once(contents, name, commands[name])
                results.sweeps[contents.flavour, leaked, name].append(sample)
                if name != FLOOR:
                    contents.load(leaked)


def run_once(contents: Contents, name: str, command: Sequence[str]) -> Sample:
    """Run one contender and make sure that it did what it is for."""
    cost = contents.measure(command)
    if name != FLOOR:
        contents.check(name)
    if name != WITH_JSON:
        return Sample(cost)
    locks = read_locks(contents.output)
    return Sample(cost, *(lock and lock["held_ms"] for lock in (locks["subnet"], locks["xtables"])))


def measure_neighbours(contents: Contents, plan: Plan, results: Results) -> None:
    """Let the neighbours work with netsweep, with no sweep and with (a), in turn and equally long."""
    one_by_one = ["sh", contents.script(NEIGHBOURS_LEAKED)]
    for turn in range(plan.rounds):
        if turn % 10 == 0:
            progress(f"{BACKENDS[contents.flavour]}: neighbours, round {turn + 1} of {plan.rounds}")
        swept = feel(contents, NEIGHBOURS_LEAKED, [*SWEEP, "--format", "json"], LONGEST_SWEEP)
        contents.check("netsweep beside neighbours")
        results.holds[contents.flavour].append(read_locks(contents.output)["subnet"]["longest_ms"])
        # The longer a call the likelier it is under way within a while, so the whiles have to be equal.
        others = [(NO_SWEEP, None), (ONE_BY_ONE, one_by_one)]
        slices = [(name, feel(contents, NEIGHBOURS_LEAKED, command, swept.seconds)) for name, command in others]
        for name, part in [*slices, (PLAIN, swept)]:
            results.slices[contents.flavour, name].append(part)


def measure_busy(contents: Contents, plan: Plan, results: Results) -> None:
    """Sweep the same rules again and again, alone and then beside the neighbours."""
    for beside in (ALONE, BESIDE):
        progress(f"{BACKENDS[contents.flavour]}: {plan.busy} sweeps, beside {beside}")
        contents.load(0)
        with neighbours(contents) if beside == BESIDE else nullcontext():
            for _ in range(plan.busy):
                contents.leak_more(NEIGHBOURS_LEAKED)
                cost = contents.measure([*SWEEP, "--format", "json"])
                contents.check(f"netsweep beside {beside}")
                longest_ms = read_locks(contents.output)["subnet"]["longest_ms"]
                results.busy[contents.flavour, beside].append(Busy(cost.wall_ms, longest_ms))


def measure_steady(contents: Contents, plan: Plan, results: Results) -> None:
    """Let the neighbours work while a bridge leaks each second, and is swept in every other while."""
    progress(f"{BACKENDS[contents.flavour]}: {plan.steady} times {plan.steady_seconds} s with a sweep each second")
    contents.load(0)
    whiles: list[tuple[str, float, float]] = []
    with neighbours(contents) as calls:
        for turn in range(2 * plan.steady):
            # Which of the two comes first changes each time.
            name = (PLAIN, NO_SWEEP)[(turn + turn // 2) % 2]
            began = time.monotonic()
            for second in range(1, plan.steady_seconds + 1):
                contents.leak_more()
                if name == PLAIN:
                    contents.measure([*SWEEP, "--format", "json"])
                    # The xtables lock is held within the subnet lock.
                    results.steady_holds[contents.flavour].append(read_locks(contents.output)["subnet"]["longest_ms"])
                time.sleep(max(0.0, began + second - time.monotonic()))
            whiles.append((name, began, time.monotonic()))
            contents.measure(SWEEP)
    for name, began, ended in whiles:
        part = Slice(ended - began, True, overlapping(calls, began, ended))
        results.steady[contents.flavour, name].append(part)


def measure_lists(contents: Contents, plan: Plan, results: Results) -> None:
    """Look at a host with many rules of others, in turn with what writes them all out."""
    progress(f"{BACKENDS[contents.flavour]}: a list beside {plan.others:,} rules of others")
    contents.crowd(plan.others)
    commands = {LISTING: LIST, SAVES[contents.flavour]: contents.save_all(), STARTING: [NETSWEEP, "--version"]}
    for turn in range(plan.lists + 1):
        for name, command in commands.items():
            cost = contents.measure(command)
            if name == LISTING and b"no orphaned rules, 33 rules read" not in contents.output.read_bytes():
                raise BenchmarkError("netsweep list found something else than the rules of live bridges")
            if turn:  # each program has run once before
                results.lists[contents.flavour, name].append(cost)


def measure_families(contents: Contents, plan: Plan, results: Results) -> None:
    """Sweep rules of each family in turn; the tables of all are there each time."""
    families = FAMILIES[contents.flavour]
    for family in families:
        progress(f"{BACKENDS[contents.flavour]}: {FAMILIES_LEAKED:,} leaked rules of {family}")
        contents.load(0, family)
    for _ in range(plan.families):
        for family in families:
            contents.load(FAMILIES_LEAKED, family)
            sample = run_once(contents, WITH_JSON, [*SWEEP, "--format", "json"])
            results.families[contents.flavour, family].append(sample)


def measure_bridges(contents: Contents, plan: Plan, results: Results) -> None:
    """Delete leaked bridges, alone and beside neighbours that take the subnet lock too."""
    sweep = [*SWEEP, "--bridges", "--format", "json"]
    one_by_one = ["sh", contents.delete_bridges(plan.bridges)]
    for name, command, beside in (
        (PLAIN, sweep, ALONE),
        (BRIDGE_BY_BRIDGE, one_by_one, ALONE),
        (PLAIN, sweep, BESIDE),
    ):
        progress(f"{BACKENDS[contents.flavour]}: {plan.bridges} leaked bridges, {name.split(',')[0]}, beside {beside}")
        contents.leak_networks(plan.bridges)
        if beside == ALONE:
            seconds, calls = contents.measure(command).wall_ms / 1000, list[Call]()
        else:
            # What the rules that leaked cost the neighbours anyway is not the sweep's doing.
            calmed = run_beside(contents, None, CALM, leasing=True)
            results.bridges[contents.flavour, NO_SWEEP, BESIDE] = Bridges(calmed.seconds, None, calmed.calls)
            seconds, finished, calls = run_beside(contents, command, LONGEST_BRIDGES, leasing=True)
            if not finished:
                raise BenchmarkError(f"{name} was cut off after {seconds:.0f} s with leaked bridges left")
        contents.check_bridges(name)
        longest = None
        if name == PLAIN:
            contents.check(f"{name} --bridges")
            longest = read_locks(contents.output)["subnet"]["longest_ms"]
        results.bridges[contents.flavour, name, beside] = Bridges(seconds, longest, calls)


@dataclass(frozen=True)
class Target:
    """A figure to reach; ``value`` is ``None`` where this run did not measure it."""

    what: str
    flavour: str
    value: float | None
    limit: float
    unit: str
    at_least: bool = False
    otherwise_right: bool = True

    def row(self) -> tuple[str, ...]:
        """The target as a row of the last table."""
        wanted = f"{'at least' if self.at_least else 'at most'} {number(self.limit)} {self.unit}"
        if self.value is None:
            return (BACKENDS[self.flavour], self.what, wanted, "", "not measured")
        within = self.value >= self.limit if self.at_least else self.value <= self.limit
        outcome = "reached" if within and self.otherwise_right else "**missed**"
        return (BACKENDS[self.flavour], self.what, wanted, f"{number(self.value)} {self.unit}", outcome)


def targets(results: Results, flavour: str) -> list[Target]:
    """What netsweep has set itself to reach."""

    def median(leaked: int, contender: str, what: str) -> float | None:
        return results.median(flavour, leaked, contender, what)

    def target(what: str, value: float | None, limits: tuple[float, float], unit: str, **rest: bool) -> Target:
        return Target(what, flavour, value, limits[flavour == "nft"], unit, **rest)

    over_nothing = ratio(median(900, PLAIN, "wall_ms"), median(0, PLAIN, "wall_ms"))
    over_floor = ratio(median(0, PLAIN, "wall_ms"), median(0, FLOOR, "wall_ms"))
    unlocked = median(0, WITH_JSON, "subnet_ms") is None and median(0, WITH_JSON, "xtables_ms") is None
    faster = ratio(median(900, ONE_BY_ONE, "wall_ms"), median(900, PLAIN, "wall_ms"))
    felt = ratio(p99(results, flavour, PLAIN), p99(results, flavour, NO_SWEEP))
    listing = ratio(listed(results, flavour, LISTING), listed(results, flavour, SAVES[flavour]))
    held = [*results.holds.get(flavour, []), *results.steady_holds.get(flavour, [])]
    held += [each.longest_ms for each in results.busy.get((flavour, BESIDE), [])]
    found = [
        target("subnet lock held, 900 orphans", median(900, WITH_JSON, "subnet_ms"), (5, 8), "ms"),
        target("subnet lock held, 9,000 orphans", median(9_000, WITH_JSON, "subnet_ms"), (60, 150), "ms"),
        target("nothing to sweep, against (d), no lock taken", over_floor, (1.8, 1.8), "x", otherwise_right=unlocked),
        target("900 orphans, against nothing to sweep", over_nothing, (1.4, 1.4), "x"),
        target("900 orphans, faster than (a)", faster, (12, 60), "x", at_least=True),
        target("90,000 orphans, whole process", median(90_000, PLAIN, "wall_ms"), (2000, 4000), "ms"),
        target("90,000 orphans, peak memory", median(90_000, PLAIN, "peak_mb"), (150, 200), "MB"),
        target("neighbours' p99 during a sweep, against no sweep", felt, (1.2, 1.2), "x"),
        target("longest hold of the subnet lock beside neighbours", max(held, default=None), (150, 150), "ms"),
        target("p99 of a sweep beside neighbours, against idle", slowed(results, flavour), (3, 3), "x"),
        target("neighbours' p50 with a sweep each second", steadily(results, flavour, 0.5), (1.1, 1.1), "x"),
        target("neighbours' p99 with a sweep each second", steadily(results, flavour, 0.99), (1.1, 1.1), "x"),
        target(f"list beside many rules of others, against {SAVES[flavour]}", listing, (2, 2), "x"),
    ]
    if flavour == "nft":
        found.append(Target("time per rule, 90,000 against 9,000", flavour, growth(results, flavour), 1.5, "x"))
    else:
        waits = results.locks.get(flavour)
        for what, figure in (("median", statistics.median), ("p90", p90)):
            value = ratio(figure(waits.netsweep), figure(waits.flock)) if waits else None
            found.append(Target(f"wait for the xtables lock, {what}, against flock", flavour, value, 2, "x"))
    return found


def per_rule(results: Results, flavour: str, leaked: int) -> float | None:
    """Microseconds for each rule, without what an empty sweep takes."""
    whole, empty = (results.median(flavour, size, PLAIN, "wall_ms") for size in (leaked, 0))
    return None if whole is None or empty is None else (whole - empty) * 1000 / leaked


def growth(results: Results, flavour: str) -> float | None:
    """How many times longer a rule takes at 90,000 than at 9,000."""
    return ratio(per_rule(results, flavour, 90_000), per_rule(results, flavour, 9_000))


def latencies(results: Results, flavour: str, condition: str) -> list[float]:
    """Milliseconds of every call of a neighbour under this condition."""
    slices = results.slices.get((flavour, condition), [])
    return [(call.ended - call.began) * 1000 for part in slices for call in part.calls]


def p99(results: Results, flavour: str, condition: str) -> float | None:
    return p99_of(latencies(results, flavour, condition))


def p99_of(values: Sequence[float]) -> float | None:
    return quantile(values, 0.99) if values else None


def p90(values: Sequence[float]) -> float:
    return quantile(values, 0.9)


def quantile(values: Sequence[float], share: float) -> float:
    """The value that so large a share of all is not above."""
    return sorted(values)[math.ceil(len(values) * share) - 1]


def curves(results: Results, flavour: str) -> Curves:
    """The medians of all sweeps of rules, by contender and number of leaked rules."""
    found: dict[str, dict[int, float]] = {}
    for of_flavour, leaked, name in sorted(results.sweeps):
        median = results.median(flavour, leaked, name, "wall_ms")
        if of_flavour == flavour and leaked and median and name not in (WITH_JSON, FLOOR):
            found.setdefault(name, {})[leaked] = median
    return found


def sweep_rows(results: Results) -> Iterator[Sequence[str]]:
    # The kernel starts a program's peak at that of the process which starts it: this one.
    own_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    order = (PLAIN, WITH_JSON, ONE_BY_ONE, PIPELINE, RESTORE, FLOOR)
    for flavour, leaked, name in sorted(results.sweeps, key=lambda key: (*key[:2], order.index(key[2]))):

        def median(what: str, key: tuple[str, int, str] = (flavour, leaked, name)) -> float | None:
            return results.median(*key, what)

        peak = median("peak_mb") or 0
        locks = [median("subnet_ms"), median("xtables_ms")]
        yield (
            BACKENDS[flavour],
            f"{leaked:,}",
            name,
            str(len(results.sweeps[flavour, leaked, name])),
            number(median("wall_ms")),
            number(median("cpu_ms")),
            number(peak) if peak > own_peak else f"< {number(own_peak)}",
            *("not taken" if name == WITH_JSON and held is None else number(held) for held in locks),
            number(ratio(median("wall_ms"), results.median(flavour, leaked, PLAIN, "wall_ms")), " x"),
        )


def neighbour_rows(results: Results) -> Iterator[Sequence[str]]:
    for (flavour, name), slices in sorted(results.slices.items(), key=lambda item: item[0][0]):
        times = latencies(results, flavour, name)
        failed = sum(not call.worked for part in slices for call in part.calls)
        took = statistics.median(part.seconds for part in slices)
        cut_off = not all(part.finished for part in slices)
        yield (
            BACKENDS[flavour],
            name,
            str(len(times)),
            str(failed),
            number(statistics.median(times)),
            number(p99(results, flavour, name)),
            number(max(times)),
            number(ratio(p99(results, flavour, name), p99(results, flavour, NO_SWEEP)), " x"),
            "" if name == NO_SWEEP else f"{'cut off after ' if cut_off else ''}{number(took)} s",
        )


def busy_rows(results: Results) -> Iterator[Sequence[str]]:
    for (flavour, beside), sweeps in results.busy.items():
        times = [sweep.wall_ms for sweep in sweeps]
        yield (
            *(BACKENDS[flavour], beside, str(len(times))),
            *map(number, [statistics.median(times), p90(times), p99_of(times), max(times)]),
            number(slowed(results, flavour) if beside == BESIDE else None, " x"),
            number(max(sweep.longest_ms for sweep in sweeps)),
        )


def slowed(results: Results, flavour: str) -> float | None:
    """How many times longer the 99th of 100 sweeps takes beside the neighbours."""
    beside, alone = ([sweep.wall_ms for sweep in results.busy.get((flavour, who), [])] for who in (BESIDE, ALONE))
    return ratio(p99_of(beside), p99_of(alone))


def steady_rows(results: Results) -> Iterator[Sequence[str]]:
    for (flavour, name), parts in results.steady.items():
        times = [(call.ended - call.began) * 1000 for part in parts for call in part.calls]
        each = [quantile([(call.ended - call.began) * 1000 for call in part.calls], 0.99) for part in parts]
        yield (
            *(BACKENDS[flavour], name, str(len(times))),
            str(sum(not call.worked for part in parts for call in part.calls)),
            *(
                number(quantile(times, 0.5)),
                number(quantile(times, 0.99)),
                f"{number(min(each))} to {number(max(each))}",
            ),
            number(max(times)),
            *(number(steadily(results, flavour, share) if name == PLAIN else None, " x") for share in (0.5, 0.99)),
            number(max(results.steady_holds[flavour], default=None) if name == PLAIN else None),
        )


def steadily(results: Results, flavour: str, share: float) -> float | None:
    """A quantile of what neighbours feel with a sweep each second, against without."""
    found = []
    for name in (PLAIN, NO_SWEEP):
        parts = results.steady.get((flavour, name), [])
        times = [call.ended - call.began for part in parts for call in part.calls]
        found.append(quantile(times, share) if times else None)
    return ratio(*found)


def listed(results: Results, flavour: str, name: str, what: str = "wall_ms") -> float | None:
    """The median of ``wall_ms``, ``cpu_ms`` or ``peak_mb`` beside many rules of others."""
    return median_of(getattr(cost, what) for cost in results.lists.get((flavour, name), []))


def list_rows(results: Results) -> Iterator[Sequence[str]]:
    for (flavour, name), costs in results.lists.items():
        medians = [listed(results, flavour, name, what) for what in ("wall_ms", "cpu_ms")]
        times = ratio(medians[0], listed(results, flavour, SAVES[flavour]))
        yield (BACKENDS[flavour], name, str(len(costs)), *map(number, medians), number(times, " x"))


def family_rows(results: Results) -> Iterator[Sequence[str]]:
    for (flavour, family), samples in results.families.items():
        costs = [median_of(getattr(sample.cost, what) for sample in samples) for what in ("wall_ms", "cpu_ms")]
        holds = [median_of(getattr(sample, what) for sample in samples) for what in ("subnet_ms", "xtables_ms")]
        yield (BACKENDS[flavour], family, str(len(samples)), *map(number, [*costs, *holds]))


def bridge_rows(results: Results, bridges: int) -> Iterator[Sequence[str]]:
    for (flavour, name, beside), measured in results.bridges.items():
        if name == NO_SWEEP:
            continue
        yield (
            *(BACKENDS[flavour], name, beside, number(measured.seconds)),
            *(number(measured.seconds * 1000 / bridges), number(measured.longest_ms)),
            number(ratio(measured.seconds, results.bridges[flavour, PLAIN, ALONE].seconds), " x"),
        )


def felt_rows(results: Results) -> Iterator[Sequence[str]]:
    for (flavour, name, beside), measured in results.bridges.items():
        if beside == BESIDE:
            times = [(call.ended - call.began) * 1000 for call in measured.calls]
            waits = [call.waited_ms for call in measured.calls]
            failed = sum(not call.worked for call in measured.calls)
            figures = [(statistics.median(each), p99_of(each), max(each)) for each in (times, waits)]
            yield (
                *(BACKENDS[flavour], name, str(len(times)), str(failed)),
                *(number(value) for each in figures for value in each),
            )


def growth_rows(results: Results, flavours: Iterable[str]) -> Iterator[Sequence[str]]:
    for flavour in flavours:
        if (grown := growth(results, flavour)) is not None:
            each = [number(per_rule(results, flavour, leaked)) for leaked in (9_000, 90_000)]
            yield (BACKENDS[flavour], *each, number(grown, " x"))


def lock_rows(results: Results) -> Iterator[Sequence[str]]:
    for waits in results.locks.values():
        for name, values in (("netsweep", waits.netsweep), ("blocking flock", waits.flock)):
            yield (name, str(len(values)), number(statistics.median(values)), number(p90(values)))
        figures = [ratio(figure(waits.netsweep), figure(waits.flock)) for figure in (statistics.median, p90)]
        yield ("ratio", "", *(number(figure, " x") for figure in figures))


def report(results: Results, flavours: Sequence[str], plan: Plan) -> Iterator[str]:
    """All tables, for the README."""
    yield "# Benchmark\n"
    yield from (f"- {line}" for line in machine(flavours[0]))
    if results.sweeps:
        yield from table("Sweeping, medians", SWEEP_HEADS, sweep_rows(results), 3)
    if results.slices:
        title = f"How long eleven neighbours take for `iptables -w 5 -A` and `-D`, {NEIGHBOURS_LEAKED} leaked rules"
        yield from table(title, NEIGHBOUR_HEADS, neighbour_rows(results), 2)
    if results.busy:
        title = f"A sweep of {NEIGHBOURS_LEAKED} leaked rules, alone and beside eleven neighbours that never pause"
        yield from table(title, BUSY_HEADS, busy_rows(results), 2)
    if results.steady:
        title = "How long eleven neighbours take while a bridge leaks each second, with a sweep each second and without"
        yield from table(title, STEADY_HEADS, steady_rows(results), 2)
    if rows := list(growth_rows(results, flavours)):
        title = "Time per rule, less that of a sweep with nothing to do"
        yield from table(title, ("firewall", "us per rule at 9,000", "us per rule at 90,000", "ratio"), rows, 1)
    if results.locks:
        title = "Waiting for the xtables lock beside eleven `iptables -w 5`, some 900 rules that stay"
        yield from table(title, ("who", "times", "median ms", "p90 ms"), lock_rows(results), 1)
    if results.lists:
        title = f"`list` beside rules of others in {CHAINS} chains, half of them of IPv6, medians"
        yield from table(title, LIST_HEADS, list_rows(results), 2)
    if results.families:
        title = f"Sweeping {FAMILIES_LEAKED} leaked rules of one family beside the tables of all, medians"
        yield from table(title, FAMILY_HEADS, family_rows(results), 2)
    if results.bridges:
        leaked = f"{plan.bridges} leaked bridges with {plan.bridges * RULES_PER_BRIDGE:,} rules"
        yield from table(f"Deleting {leaked}, all dead leases", BRIDGE_HEADS, bridge_rows(results, plan.bridges), 3)
        title = f"How long eleven neighbours that take the subnet lock take for `iptables -w 5`, {leaked}"
        yield from table(title, FELT_HEADS, felt_rows(results), 2)
    outcomes = [target.row() for flavour in flavours for target in targets(results, flavour)]
    yield from table("Targets", ("firewall", "target", "wanted", "measured", "outcome"), outcomes, 5)


def machine(flavour: str) -> Iterator[str]:
    """What the figures depend on."""
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    iptables = subprocess.run([f"iptables-{flavour}", "-V"], capture_output=True, text=True, check=True).stdout.split()[
        1
    ]
    yield f"{found[1] if found else platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    yield f"Linux {platform.release()}, Python {platform.python_version()}, iptables {iptables.lstrip('v')}"
    yield f"{time.strftime('%Y-%m-%d')}; bytecode is compiled, each program has run once before"
    yield "beside the leaked rules there are those of eleven live bridges; MB are 10^6 bytes"


def compile_bytecode() -> None:
    """Compile what is imported, as installing it does."""
    for name in ("netsweep", "click", "filelock", "pyroute2", "iptc"):
        package = importlib.util.find_spec(name)
        for directory in (package and package.submodule_search_locations) or ():
            compileall.compile_dir(directory, quiet=2)


def run(flavours: Sequence[str], parts: Sequence[str], plan: Plan) -> Results:
    """Measure the given parts for each backend, each in a network namespace of its own."""
    if not os.access(NETSWEEP, os.X_OK):
        raise BenchmarkError(f"there is no {NETSWEEP}: install netsweep beside this Python")
    results = Results()
    compile_bytecode()
    for flavour in flavours:
        with tempfile.TemporaryDirectory(prefix="netsweep-bench-") as directory:
            contents = Contents(Path(directory), flavour)
            if "sweeps" in parts:
                measure_sweeps(contents, plan, results)
            if "neighbours" in parts:
                measure_neighbours(contents, plan, results)
            if "busy" in parts:
                measure_busy(contents, plan, results)
            if "steady" in parts:
                measure_steady(contents, plan, results)
            if "locks" in parts and flavour == "legacy":
                progress("waiting for the xtables lock")
                results.locks[flavour] = wait_for_lock(contents, plan.lock_samples)
                contents.check("netsweep waiting for the lock")
            if "list" in parts:
                contents.load(0)
                measure_lists(contents, plan, results)
            if "families" in parts:
                measure_families(Contents(Path(directory), flavour), plan, results)
            if "bridges" in parts:
                measure_bridges(Contents(Path(directory), flavour), plan, results)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes and few repeats: does it all still work?")
    parser.add_argument("--backend", choices=BACKENDS, action="append", help="only this one; repeatable")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this one; repeatable")
    parser.add_argument("--bridges", metavar="N", type=int, help="how many leaked bridges (default: 500, 5 if quick)")
    parser.add_argument("--against", metavar="DIR", type=Path, help="another checkout, to be compared with this one")
    parser.add_argument("--into", metavar="DIR", type=Path, help="write benchmark.md and benchmark.svg there too")
    arguments = parser.parse_args()
    flavours = arguments.backend or list(BACKENDS)
    if arguments.into and (arguments.part or arguments.backend or arguments.against or arguments.quick):
        parser.error("--into takes all that can be measured")
    try:
        if arguments.against:
            compile_bytecode()
            lines = side_by_side.run(flavours, arguments.against.resolve(), quick=arguments.quick)
            print("# Side by side\n", *(f"- {line}" for line in machine(flavours[0])), sep="\n")
            for line in lines:
                print(line, flush=True)
            return 0
        plan = QUICK if arguments.quick else FULL
        if arguments.bridges:
            plan = replace(plan, bridges=arguments.bridges)
        results = run(flavours, arguments.part or PARTS, plan)
    except (BenchmarkError, AssertionError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    text = "\n".join(report(results, flavours, plan))
    print(text)
    if arguments.into:
        (arguments.into / "benchmark.md").write_text(f"{text}\n")
        draw(arguments.into / "benchmark.svg", {BACKENDS[flavour]: curves(results, flavour) for flavour in flavours})
    return 0


if __name__ == "__main__":
    sys.exit(main())
