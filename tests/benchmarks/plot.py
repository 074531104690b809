"""The sweeps of a benchmark as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

Curves = Mapping[str, Mapping[int, float]]
"""Milliseconds by what was run, and by how many rules had leaked."""


def draw(path: Path, panels: Mapping[str, Curves]) -> None:
    """Write an SVG with one panel for each firewall."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    # The same figures make the same file.
    mpl.rcParams.update({"svg.hashsalt": "netsweep", "svg.fonttype": "none", "font.size": 9})
    figure, axes = pyplot.subplots(1, len(panels), figsize=(5 * len(panels), 4), sharey=True, squeeze=False)
    for axis, (firewall, curves) in zip(axes[0], panels.items(), strict=True):
        for name, points in curves.items():
            axis.plot(list(points), list(points.values()), marker="o", markersize=3, label=name)
        axis.set(title=firewall, xlabel="leaked rules", xscale="log", yscale="log")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("ms for the whole process")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
