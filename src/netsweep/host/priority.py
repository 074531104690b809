"""The priority of this thread: one that holds a lock, or is about to take one, should not wait for a CPU.

Beside eleven busy jobs on two CPUs a sweep gets a sixth of one otherwise. It takes five times as long as on an idle
host then, and holds its locks as much longer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_RAISE = 10
"""In nice values; each is a quarter more time than the one after it (sched_prio_to_weight, kernel/sched/core.c)."""


def hurry() -> None:
    """Raise the priority of this thread, where CAP_SYS_NICE permits that, until :func:`calm_down`."""
    global _usual
    _usual = _now()
    _set(_usual - _RAISE)


def calm_down() -> None:
    """Go back to the priority before :func:`hurry`: what takes longer is not to be felt by others."""
    global _usual
    if _usual is not None:
        _set(_usual)
        _usual = None


@contextmanager
def hurried() -> Iterator[None]:
    """Raise the priority of this thread for a while, where CAP_SYS_NICE permits that, to -10 at least."""
    before = _now()
    try:
        _set(min(before, -_RAISE))
        yield
    finally:
        _set(before)


_usual: int | None = None


def _now() -> int:
    return os.getpriority(os.PRIO_PROCESS, 0)


def _set(priority: int) -> None:
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, priority)
