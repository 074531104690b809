"""Ages by the kernel's clocks, whatever its timer's frequency is and however long it runs."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import pytest

from netsweep.host import clocks
from netsweep.host.clocks import address_clock, age_of, is_younger, process_clock

DAY = 86400


def kernel(monkeypatch: pytest.MonkeyPatch, hz: int, uptime: float, *, suspended: float = 0.0) -> None:
    """Let times(2) and the clocks tell what a kernel of that frequency tells so long after it began."""
    jiffies = int(uptime * hz) + 2**32 - 300 * hz
    length = (10**9 + hz // 2) // hz
    elapsed = jiffies * length // (10**9 // clocks.TICKS)
    told = {time.CLOCK_MONOTONIC: uptime, time.CLOCK_BOOTTIME: uptime + suspended}
    monkeypatch.setattr(os, "times", lambda: SimpleNamespace(elapsed=elapsed / clocks.TICKS))
    monkeypatch.setattr(time, "clock_gettime", told.__getitem__)


@pytest.mark.parametrize("hz", [100, 200, 250, 300, 500, 1000])
@pytest.mark.parametrize("uptime", [0.0, 0.07, 299.0, 301.0, 3600.0, 30 * DAY, 400 * DAY, 500 * DAY, 3000 * DAY])
def test_the_clock_of_addresses_is_told_whatever_the_frequency(
    monkeypatch: pytest.MonkeyPatch, hz: int, uptime: float
) -> None:
    kernel(monkeypatch, hz, uptime)
    now = address_clock()
    assert now is not None
    # 300 Hz is not a whole number of nanoseconds: what times(2) says is off by a part in 10**7.
    assert abs(now / clocks.TICKS - uptime) <= 0.05 + uptime * 2e-7


@pytest.mark.parametrize("ahead", [-9.9, 9.9])
def test_the_clocks_may_run_apart_by_days(monkeypatch: pytest.MonkeyPatch, ahead: float) -> None:
    kernel(monkeypatch, 250, 100 * DAY)
    monkeypatch.setattr(time, "clock_gettime", lambda _: (100 + ahead) * DAY)
    now = address_clock()
    assert now is not None
    assert abs(now / clocks.TICKS - 100 * DAY) < 1


def offsets(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Let the file at ``path`` be /proc/self/timens_offsets."""

    def opened(name: str, **options: str) -> IO[str]:
        assert name == "/proc/self/timens_offsets"
        return path.open(**options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(clocks, "open", opened, raising=False)


@pytest.mark.parametrize(
    ("seconds", "nanoseconds", "shift"),
    [(0, 0, 0.0), (100 * DAY, 0, 100.0 * DAY), (-50 * DAY, 500_000_000, -50 * DAY + 0.5), (3, 250_000_000, 3.25)],
)
def test_a_time_namespace_shifts_the_clock_that_tells_the_frequency(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seconds: int, nanoseconds: int, shift: float
) -> None:
    """By more than the frequencies are apart, it told a wrong one, or none."""
    written = tmp_path / "timens_offsets"
    written.write_text(f"monotonic  {seconds:10} {nanoseconds:9}\nboottime            7         0\n")
    offsets(monkeypatch, written)
    assert clocks._shift() == shift
    kernel(monkeypatch, 250, 60 * DAY)
    monkeypatch.setattr(time, "clock_gettime", lambda _: 60 * DAY + shift)
    now = address_clock()
    assert now is not None
    assert abs(now / clocks.TICKS - 60 * DAY) < 1


def test_a_kernel_without_time_namespaces_shifts_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    offsets(monkeypatch, tmp_path / "missing")
    assert clocks._shift() == 0
    kernel(monkeypatch, 250, 1000.0)
    assert address_clock() is not None


def test_where_no_frequency_fits_it_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel(monkeypatch, 250, 100 * DAY)
    monkeypatch.setattr(time, "clock_gettime", lambda _: 111 * DAY)
    assert address_clock() is None


def test_with_other_units_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel(monkeypatch, 250, 1000.0)
    assert process_clock() is not None
    monkeypatch.setattr(os, "sysconf", lambda _: 1024)
    assert address_clock() is None
    assert process_clock() is None


def test_this_kernel_tells_its_own() -> None:
    now = address_clock()
    assert now is not None
    assert abs(now / clocks.TICKS - time.clock_gettime(time.CLOCK_MONOTONIC)) < 60


WRAP = 2**32


@pytest.mark.parametrize(
    ("stamp", "now", "age"),
    [
        (0, 0, 0.0),
        (1000, 1000, 0.0),
        (1000, 1100, 1.0),
        (0, 360_000, 3600.0),
        # The kernel counts on behind 32 bits, and the stamp begins again.
        (WRAP - 100, WRAP + 100, 2.0),
        (50, WRAP + 100, 0.5),
        (100, WRAP + 100, 0.0),
        (WRAP - 100, 2 * WRAP + 100, 2.0),
        (0, WRAP - 6001, (WRAP - 6001) / 100),
        # Stamps of the future: one of just now, as the clocks are read one after the other.
        (1001, 1000, 0.0),
        (7000, 1001, 0.0),
        (100, WRAP + 99, 0.0),
        (6098, WRAP + 99, 0.0),
        # One that cannot be: it is older than the kernel.
        (9000, 1000, 0.0),
        (WRAP - 1, 1000, 0.0),
    ],
)
def test_ages_of_addresses(stamp: int, now: int, age: float) -> None:
    assert age_of(stamp, now) == age


def test_an_old_address_counts_as_younger_and_never_as_older() -> None:
    now = 3 * WRAP + 12345
    for true_age in (0, 1, 6000, WRAP // 2, WRAP - 1, WRAP, WRAP + 1, 2 * WRAP + 7):
        assert age_of((now - true_age) % WRAP, now) * clocks.TICKS <= true_age


def test_the_clock_of_processes_is_the_time_since_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel(monkeypatch, 250, 1000.0)
    assert process_clock() == 1000.0
    for suspended in (0.05, -0.05):
        kernel(monkeypatch, 250, 1000.0, suspended=suspended)
        assert process_clock() == 1000.0 + suspended


@pytest.mark.parametrize("suspended", [0.11, -0.11, 5.0, 1e6])
def test_after_a_suspend_it_is_not_to_be_compared(monkeypatch: pytest.MonkeyPatch, suspended: float) -> None:
    kernel(monkeypatch, 250, 1000.0, suspended=suspended)
    assert process_clock() is None


@pytest.mark.parametrize(
    ("process", "address", "younger"),
    [(1.0, 2.0, True), (1.0, 1.04, True), (1.0, 1.02, False), (1.0, 1.0, False), (2.0, 1.0, False), (0.0, 0.0, False)],
)
def test_a_process_is_younger_only_beyond_what_is_rounded(process: float, address: float, younger: bool) -> None:
    assert is_younger(process, address) is younger
