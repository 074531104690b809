"""How old addresses and processes are, by the kernel's own clocks. Wall-clock times can be set, so they do not count.

The kernel stamps an address with the clock of its timer ticks (jiffies), a process with the time since boot.
The two run apart: they began 70 ms from each other where this was measured, and only the second goes on in
suspend. So times are never compared, only ages, each by its own clock.
"""

from __future__ import annotations

import os
import time

TICKS = 100
"""USER_HZ, the unit of both kinds of stamps: hundredths of a second (asm-generic/param.h)."""

_STAMP_BITS = 32
"""Addresses have 32 bits for a stamp, which last 497 days."""

_HZ = (100, 200, 250, 300, 500, 1000)
"""The kernel's timer frequencies (kernel/Kconfig.hz, and those of ARM)."""

_UPTIME_TOLERANCE = 10 * 86400 * TICKS
"""The frequency of the timer is told by the time since boot, which differs by 33 days or more between two of these."""

_IN_FUTURE = 60 * TICKS
"""A stamp that is ahead by less than this is one of just now: clocks are read one after the other."""

_SAME = 0.1
"""Seconds by which CLOCK_BOOTTIME and CLOCK_MONOTONIC may differ on a host that was never suspended."""

_ROUNDED = 0.03
"""Seconds that ages may be wrong by: two units of a stamp, and one tick of the slowest timer."""


def address_clock() -> int | None:
    """Now, by the clock that addresses are stamped with (``IFA_CACHEINFO``): hundredths of a second since boot.

    ``None`` where it cannot be told.
    """
    if os.sysconf("SC_CLK_TCK") != TICKS:
        return None
    # times(2) returns the kernel's ticks since 300 s before they would not fit in 32 bits any more, converted by
    # their length in whole nanoseconds (INITIAL_JIFFIES, include/linux/jiffies.h; kernel/time/time.c).
    elapsed = round(os.times().elapsed * TICKS)
    uptime = (time.clock_gettime(time.CLOCK_MONOTONIC) - _shift()) * TICKS
    clocks = []
    for hz in _HZ:
        length = (10**9 + hz // 2) // hz
        ticks = elapsed * (10**9 // TICKS) // length - (2**32 - 300 * hz)
        clocks.append(ticks * TICKS // hz)
    nearest = min(clocks, key=lambda clock: abs(clock - uptime))
    return nearest if abs(nearest - uptime) < _UPTIME_TOLERANCE else None


def _shift() -> float:
    """The seconds by which this time namespace shifts CLOCK_MONOTONIC (time_namespaces(7)); times(2) is not shifted."""
    try:
        with open("/proc/self/timens_offsets", encoding="ascii") as offsets:
            found = {fields[0]: int(fields[1]) + int(fields[2]) / 1e9 for fields in map(str.split, offsets)}
    except FileNotFoundError:  # a kernel without time namespaces
        return 0.0
    return found.get("monotonic", 0.0)


def age_of(stamp: int, now: int) -> float:
    """Seconds since an address got its ``stamp``; ``now`` is from :func:`address_clock`.

    An address that is older than a stamp lasts counts as younger.
    """
    age = (now - stamp) % 2**_STAMP_BITS
    return 0.0 if age > now or age > 2**_STAMP_BITS - _IN_FUTURE else age / TICKS


def process_clock() -> float | None:
    """Now, by the clock that says when processes started: seconds since boot.

    ``None`` where ages of processes are not to be compared with those of addresses: where the host was suspended, as
    the clock of addresses stood still then.
    """
    since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
    suspended = abs(since_boot - time.clock_gettime(time.CLOCK_MONOTONIC)) > _SAME
    return None if suspended or os.sysconf("SC_CLK_TCK") != TICKS else since_boot


def is_younger(process: float, address: float) -> bool:
    """Whether a process of that age is certainly younger than an address of that age, both in seconds."""
    return process + _ROUNDED < address
