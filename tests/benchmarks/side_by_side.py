"""This checkout's netsweep and another's, in turn and on the same rules."""

from __future__ import annotations

import compileall
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import netsweep
from tests.benchmarks.contents import BACKENDS, RULES_PER_BRIDGE, BenchmarkError, Contents, Cost
from tests.benchmarks.figures import median_of, number, progress, ratio, read_locks, table
from tests.benchmarks.neighbours import feel

HEADS = ("firewall", "what", "wanted", "outcome", "ours", "theirs", "ratio")

LONGEST_SWEEP = 60.0
"""Seconds after which a sweep beside the neighbours is cut off."""

BUSY_LEAKED = 900


@dataclass(frozen=True)
class Plan:
    """Repeats by number of leaked rules, for whole runs and for the holds of locks; rounds beside neighbours."""

    runs: dict[int, int]
    holds: dict[int, int]
    rounds: int


FULL = Plan(runs={0: 31, 900: 11, 9_000: 5, 90_000: 3}, holds={900: 21, 9_000: 7}, rounds=12)
QUICK = Plan(runs={0: 2, 900: 1}, holds={900: 1}, rounds=1)


class Side(NamedTuple):
    """One checkout: how its netsweep is called."""

    name: str
    command: list[str]


class Busy(NamedTuple):
    """One sweep beside the neighbours: seconds it took, and ms of its longest hold of the subnet lock."""

    seconds: float
    longest_ms: float


class Figures:
    """What was measured of one side in one firewall, by number of leaked rules."""

    def __init__(self) -> None:
        self.costs: dict[int, list[Cost]] = defaultdict(list)
        self.subnet_ms: dict[int, list[float | None]] = defaultdict(list)
        self.xtables_ms: dict[int, list[float | None]] = defaultdict(list)
        self.busy: list[Busy] = []

    def cost(self, leaked: int, what: str) -> float | None:
        """The median of ``wall_ms``, ``cpu_ms`` or ``peak_mb``."""
        return median_of(getattr(cost, what) for cost in self.costs[leaked])


class Line(NamedTuple):
    """One comparison. ``most``: what ours may be at most, and whether that is a ratio to theirs."""

    what: str
    unit: str
    figure: Callable[[Figures], float | None]
    most: float | None = None
    times: bool = True


def _cost(leaked: int, what: str) -> Callable[[Figures], float | None]:
    return lambda figures: figures.cost(leaked, what)


def _held(what: str, leaked: int) -> Callable[[Figures], float | None]:
    return lambda figures: median_of(getattr(figures, what)[leaked])


def lines(flavour: str) -> Iterator[Line]:
    """What is compared, and what this checkout may take at most."""
    yield Line("nothing to sweep, wall", "ms", _cost(0, "wall_ms"), 1.05)
    yield Line("nothing to sweep, CPU", "ms", _cost(0, "cpu_ms"), 1.05)
    for leaked in (900, 9_000, 90_000):
        most = 1.3 if leaked == 90_000 else None
        yield Line(f"{leaked:,} orphans, wall", "ms", _cost(leaked, "wall_ms"), most)
        yield Line(f"{leaked:,} orphans, CPU", "ms", _cost(leaked, "cpu_ms"))
        # Of less the peak is that of the process that starts it, which Linux begins with.
        if leaked > 900:
            yield Line(f"{leaked:,} orphans, peak memory", "MB", _cost(leaked, "peak_mb"), most)
    for leaked in (900, 9_000):
        absolute = (flavour, leaked) == ("nft", 900)
        what = f"{leaked:,} orphans, subnet lock held"
        yield Line(what, "ms", _held("subnet_ms", leaked), 12 if absolute else None, not absolute)
        if flavour == "legacy":
            yield Line(f"{leaked:,} orphans, xtables lock held", "ms", _held("xtables_ms", leaked), 1.1)
    yield Line(
        "beside eleven jobs, longest single hold of the subnet lock",
        "ms",
        lambda figures: max((each.longest_ms for each in figures.busy), default=None),
        250,
        False,
    )
    yield Line(
        "beside eleven jobs, 900 orphans, longest sweep",
        "s",
        lambda figures: max((each.seconds for each in figures.busy), default=None),
        3,
        False,
    )
    yield Line(
        "beside eleven jobs, 900 orphans, median sweep",
        "s",
        lambda figures: median_of(each.seconds for each in figures.busy),
    )


def run(flavours: Sequence[str], other: Path, *, quick: bool) -> Iterator[str]:
    """Measure both, and yield a table for each backend as soon as it is there."""
    own = Path(netsweep.__file__).parents[1]
    sides = (_side("ours", sys.executable, own), _side("theirs", str(other / ".venv/bin/python"), other / "src"))
    for flavour in flavours:
        with tempfile.TemporaryDirectory(prefix="netsweep-bench-") as directory:
            ours, theirs = _measure(Contents(Path(directory), flavour), sides, QUICK if quick else FULL)
        rows = [_row(flavour, line, ours, theirs) for line in lines(flavour)]
        title = f"This checkout and {other} in {BACKENDS[flavour]}, medians of runs in turn"
        yield from table(title, HEADS, rows, 4)


def _side(name: str, python: str, source: Path) -> Side:
    # The path goes with the command: an installation of the virtual environment's may be of another checkout.
    command = ["/usr/bin/env", f"PYTHONPATH={source}", python]
    probe = [*command, "-c", "import netsweep; print(netsweep.__file__)"]
    try:
        found = subprocess.run(probe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise BenchmarkError(f"{python} cannot import netsweep from {source}: {error}") from error
    if not Path(found).is_relative_to(source):
        raise BenchmarkError(f"{python} imports {found}, which is not in {source}")
    compileall.compile_dir(source / "netsweep", quiet=2)
    return Side(name, [*command, "-m", "netsweep", "sweep"])


def _measure(contents: Contents, sides: Sequence[Side], plan: Plan) -> list[Figures]:
    figures = {side.name: Figures() for side in sides}
    for side in sides:
        contents.load(RULES_PER_BRIDGE)
        contents.measure(side.command)
    for leaked, repeats in plan.runs.items():
        progress(f"{BACKENDS[contents.flavour]}: {leaked:,} leaked rules, side by side")
        for side in _in_turn(sides, repeats):
            contents.load(leaked)
            figures[side.name].costs[leaked].append(contents.measure(side.command))
            contents.check(side.name)
    for leaked, repeats in plan.holds.items():
        progress(f"{BACKENDS[contents.flavour]}: locks at {leaked:,} leaked rules, side by side")
        for side in _in_turn(sides, repeats):
            contents.load(leaked)
            contents.measure([*side.command, "--format", "json"])
            locks = read_locks(contents.output)
            figures[side.name].subnet_ms[leaked].append(locks["subnet"]["held_ms"])
            figures[side.name].xtables_ms[leaked].append(locks["xtables"] and locks["xtables"]["held_ms"])
    progress(f"{BACKENDS[contents.flavour]}: beside neighbours, side by side")
    for side in _in_turn(sides, plan.rounds):
        swept = feel(contents, BUSY_LEAKED, [*side.command, "--format", "json"], LONGEST_SWEEP)
        if not swept.finished:
            figures[side.name].busy.append(Busy(swept.seconds, float("inf")))
            continue
        contents.check(side.name)
        subnet = read_locks(contents.output)["subnet"]
        # Where a sweep knew only one hold, its time was that of the longest.
        figures[side.name].busy.append(Busy(swept.seconds, subnet.get("longest_ms", subnet["held_ms"])))
    return list(figures.values())


def _in_turn(sides: Sequence[Side], repeats: int) -> Iterator[Side]:
    for turn in range(repeats):
        # Nobody always comes after the other.
        yield from sides if turn % 2 == 0 else reversed(sides)


def _row(flavour: str, line: Line, ours: Figures, theirs: Figures) -> tuple[str, ...]:
    own, other = line.figure(ours), line.figure(theirs)
    times = ratio(own, other)
    judged = times if line.times else own
    wanted = "" if line.most is None else f"at most {number(line.most)} {'x' if line.times else line.unit}"
    if line.most is None:
        outcome = ""
    elif judged is None:
        outcome = "not measured"
    else:
        outcome = "reached" if judged <= line.most else "**missed**"
    return (
        BACKENDS[flavour],
        line.what,
        wanted,
        outcome,
        *(number(value, f" {line.unit}" if value is not None else "") for value in (own, other)),
        number(times, " x" if times is not None else ""),
    )
