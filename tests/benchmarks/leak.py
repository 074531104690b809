"""The leak that netsweep was made for, in simulated time, as its metrics tell it: a picture, ``leak.svg``.

Dead jobs leave rules in a network namespace of its own. Every four simulated hours ``netsweep list --metrics-file``
runs there, and what it wrote is read back. After seven days ``netsweep sweep`` runs after each reading.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.namespace import NETSWEEP, Namespace, leaks, new_namespace

STEP = 4
"""Simulated hours between two readings."""

BRIDGES = 7
"""Bridges that leak in one step, with three rules each: 880 rules in seven days, as on the host that had the leak."""

LEAKING, SWEPT = 7, 2
"""Days without and with sweeps."""

ALERTS = Path(__file__).parents[2] / "docs" / "alerts.yml"


def threshold() -> int:
    """How many rules raise the alert."""
    found = re.search(r"netsweep_orphaned_rules - netsweep_deleted_rules > (\d+)", ALERTS.read_text())
    assert found, f"{ALERTS} has another alert"
    return int(found[1])


def measure(ns: Namespace, leaking: int, swept: int) -> list[tuple[float, float]]:
    """Days, and the orphaned rules by the metrics of then: for ``leaking`` steps, and ``swept`` more with sweeps."""
    metrics = ns.directory / "netsweep.prom"
    readings = []
    for step in range(leaking + swept + 1):
        if step:
            ns.restore("nft", leaks(f"hm{step * BRIDGES + number:06x}" for number in range(BRIDGES)))
        ns.run(*NETSWEEP, "list", "--metrics-file", str(metrics))
        readings.append((step * STEP / 24, value(metrics, "netsweep_orphaned_rules")))
        if step >= leaking:
            ns.run(*NETSWEEP, "sweep")
            ns.run(*NETSWEEP, "list", "--metrics-file", str(metrics))
            readings.append((step * STEP / 24, value(metrics, "netsweep_orphaned_rules")))
    return readings


def value(path: Path, name: str) -> float:
    """The one sample of a metric in the file at ``path``."""
    (found,) = [
        sample.value
        for family in text_string_to_metric_families(path.read_text("ascii"))
        for sample in family.samples
        if sample.name == name
    ]
    return found


def draw(path: Path, readings: Sequence[tuple[float, float]], limit: int, swept_from: float) -> None:
    """Write the readings as an SVG, with the alert, and where sweeps begin."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    # The same figures make the same file.
    mpl.rcParams.update({"svg.hashsalt": "netsweep", "svg.fonttype": "none", "font.size": 9})
    figure, axis = pyplot.subplots(figsize=(8, 3.6))
    days, rules = zip(*readings, strict=True)
    fires = next(day for day, number in readings if number > limit)
    axis.axvspan(fires, swept_from, color="tab:red", alpha=0.08, linewidth=0)
    axis.axhline(limit, color="tab:red", linestyle="--", linewidth=1)
    axis.plot(days, rules, color="tab:blue")
    top = max(rules)
    axis.text(fires + 0.1, 0.95 * top, f"the alert fires: more than {limit} orphaned rules", color="tab:red")
    axis.text(swept_from + 0.1, 0.5 * top, f"from here on,\n'netsweep sweep'\nevery {STEP} hours", va="center")
    axis.set(xlabel="days (simulated)", ylabel="netsweep_orphaned_rules", xlim=(0, days[-1]), ylim=(0, None))
    axis.set_xticks(range(int(days[-1]) + 1))
    axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.leak", description=__doc__)
    parser.add_argument("--into", metavar="DIR", type=Path, required=True, help="where to write leak.svg")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, new_namespace(Path(directory)) as ns:
        readings = measure(ns, LEAKING * 24 // STEP, SWEPT * 24 // STEP)
    draw(arguments.into / "leak.svg", readings, threshold(), LEAKING)
    return 0


if __name__ == "__main__":
    sys.exit(main())
