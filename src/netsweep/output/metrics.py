"""A run as Prometheus metrics, for node_exporter's textfile collector."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from netsweep.errors import ORPHANS_FOUND, BusyError
from netsweep.host.files import open_regular, put_regular
from netsweep.output.escape import escape
from netsweep.output.failures import complain
from netsweep.report import LockTimes, Report

_WHAT = "metrics file"
_LAST_SUCCESS = "netsweep_last_success_timestamp_seconds"

_READ_MAX = 1 << 16
"""Bytes of an old metrics file that are looked at; one of ours has some 3,000."""


def write_metrics(path: str, report: Report | None, labels: Mapping[str, str], status: int) -> None:
    """Put the metrics of a run in the place of the file at ``path``, in one step.

    ``report`` is ``None`` where the run ended before it had one. ``labels`` are those of every metric, ``status`` is
    the exit status, as it is without ``--best-effort``. Of the old file only the time of the last success is kept.
    Raises :class:`~netsweep.errors.NetsweepError`.
    """
    gauges = _Gauges({name: escape(value) for name, value in labels.items()})
    if report:
        _add_findings(gauges, report)
    now = time.time()
    gauges.add("netsweep_exit_status", "Exit status of the run, as it is without --best-effort.", status)
    gauges.add("netsweep_last_run_timestamp_seconds", "When the run ended, in Unix time.", now)
    gauges.add(
        _LAST_SUCCESS,
        "When a run that wrote this file last succeeded, in Unix time; 0 where that is not known.",
        now if status in (0, ORPHANS_FOUND) else _last_success(path, now),
    )
    registry = CollectorRegistry()
    registry.register(gauges)
    # Not with write_to_textfile(): its temporary file has a name that others can guess, and it follows links.
    put_regular(path, generate_latest(registry), 0o644, what=_WHAT)
    if not path.endswith(".prom"):
        complain(f"warning: {_WHAT} {path!a} does not end in .prom: node_exporter does not read it")


class _Gauges(Collector):
    """Metrics with the same ``labels``. All are gauges: the next run begins at zero again.

    ``Gauge`` is not used: with ``PROMETHEUS_MULTIPROC_DIR`` in the environment it writes files of its own.
    """

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._labels = labels
        self._gauges: list[GaugeMetricFamily] = []

    def add(self, name: str, about: str, value: float) -> None:
        self.add_each(name, about, "", {"": value})

    def add_each(self, name: str, about: str, label: str, values: Mapping[str, float]) -> None:
        """Add a metric with a sample for each of ``values``, by what they have for ``label``."""
        gauge = GaugeMetricFamily(name, about, labels=(*self._labels, *filter(None, [label])))
        for key, value in values.items():
            gauge.add_metric((*self._labels.values(), *filter(None, [key])), value)
        self._gauges.append(gauge)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        return self._gauges


def _add_findings(gauges: _Gauges, report: Report) -> None:
    # A run that failed may have ended before it found any: 0 would be a false all-clear.
    complete = not report.errors
    if report.scanned or complete:
        gauges.add("netsweep_rules", "Rules in the chains that the run looked at.", report.scanned)
    if report.orphans or complete:
        about = "Orphaned rules that the run found, also those that it then deleted."
        gauges.add("netsweep_orphaned_rules", about, len(report.orphans))
    gauges.add("netsweep_deleted_rules", "Orphaned rules that the run deleted.", report.deleted)
    # Without --bridges it looked at none.
    if report.bridges_live is not None:
        gauges.add_each(
            "netsweep_bridges",
            "Bridges of ours that the run found: leaked, also those that it then deleted; or live, as is any that "
            "nothing proves to be leaked.",
            "state",
            {"leaked": len(report.leaked), "live": report.bridges_live},
        )
        gauges.add("netsweep_deleted_bridges", "Leaked bridges that the run deleted.", report.bridges_deleted)
    taken = {"subnet": report.subnet_lock, "xtables": report.xtables_lock}
    # A lock that a run did not get may be why it failed: that it waited for 0 seconds would be wrong.
    locks = {name: times or LockTimes("") for name, times in taken.items() if times or complete}
    if locks:
        gauges.add_each(
            "netsweep_lock_wait_seconds",
            "How long the run waited for a lock, over all times that it took it.",
            "lock",
            {name: times.waited_ms / 1000 for name, times in locks.items()},
        )
        gauges.add_each(
            "netsweep_lock_hold_seconds",
            "How long the run held a lock, over all times that it took it.",
            "lock",
            {name: times.held_ms / 1000 for name, times in locks.items()},
        )
    about = "How long the run took, without the time that Python needs to start."
    gauges.add("netsweep_duration_seconds", about, report.duration_ms / 1000)


def _last_success(path: str, now: float) -> float:
    """The last success by the metrics file at ``path``; 0 where it has none, or one that cannot be true."""
    try:
        descriptor = open_regular(path, os.O_RDONLY, what=_WHAT)
    except (FileNotFoundError, BusyError):
        return 0.0
    with open(descriptor, "rb") as file:
        lines = file.read(_READ_MAX).decode("ascii", "replace").splitlines()
    for line in lines:
        if line.startswith((f"{_LAST_SUCCESS} ", f"{_LAST_SUCCESS}{{")):
            try:
                value = float(line.rpartition(" ")[2])
            except ValueError:
                continue
            if 0 <= value <= now:  # one in the future would silence alerts; NaN is neither
                return value
    return 0.0
