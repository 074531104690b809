"""The two locks: the test harness's subnet lock, and the xtables lock of iptables.

Order: subnet lock, then xtables lock. Both are ``flock(2)`` locks on files that others use too, so
the file is never written, truncated, re-moded or deleted.

filelock does the locking itself, on a descriptor that we opened. Its ``FileLock`` cannot be used: it
refuses a file in a sticky folder that another user owns, which is the usual case (tests run as the
runner's user, netsweep as root).

Waiting is not left to filelock either. It polls, while every other user of these locks waits in the
kernel's queue and gets the lock before a poller looks again: measured beside eleven
``iptables -w 5``, 0.7 s median and 3.9 s at worst, against 33 and 70 ms in the queue.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from filelock import lock_descriptor, unlock_descriptor

from netsweep.errors import BusyError
from netsweep.safefile import describe, open_or_create_regular

XTABLES_LOCK = "/run/xtables.lock"
"""XT_LOCK_NAME as distributions build iptables (iptables/xshared.h)."""


@dataclass
class LockTimes:
    """How long a lock at ``path`` was waited for and held, in ms, over all times it was taken."""

    path: str
    waited_ms: float = 0.0
    held_ms: float = 0.0


def xtables_lock_path() -> str:
    """Where iptables keeps its lock: ``XTABLES_LOCKFILE``, as iptables honours it, or the default."""
    return os.environ.get("XTABLES_LOCKFILE") or XTABLES_LOCK


@contextmanager
def held(times: LockTimes, timeout: float, *, mode: int, what: str, option: str) -> Iterator[None]:
    """Hold the lock on ``times.path`` and add to ``times``.

    ``timeout``: seconds to wait, 0 for not at all. ``mode``: what the file gets where it is missing.
    ``what`` and ``option`` name the lock and the option that sets its timeout in messages.
    Raises :class:`BusyError` where the lock was not to be had in time, and what
    :func:`netsweep.safefile.open_or_create_regular` raises.
    """
    began = time.monotonic()
    descriptor = _acquire(times.path, began + timeout, mode, what)
    if descriptor is None:
        busy = f"was busy for {timeout:g} s" if timeout else "is held by another process"
        raise BusyError(f"{what} {times.path!a} {busy}; retry, or raise {option} ('netsweep doctor' says who holds it)")
    acquired = time.monotonic()
    try:
        times.waited_ms += (acquired - began) * 1000
        yield
    finally:
        # Read first: whoever waits for the lock may get the processor with it.
        times.held_ms += (time.monotonic() - acquired) * 1000
        try:
            unlock_descriptor(descriptor)
        finally:
            os.close(descriptor)


def _acquire(path: str, deadline: float, mode: int, what: str) -> int | None:
    while True:
        # Read-only is enough for flock(2), and all that a file of another user may allow.
        descriptor = open_or_create_regular(path, os.O_RDONLY, mode, what=what)
        try:
            locked = lock_descriptor(descriptor, blocking=False)
        except OSError as error:
            os.close(descriptor)
            raise describe(error, f"cannot lock {what} {path!a}") from error
        if not locked:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                os.close(descriptor)
                return None
            if not _Queued(descriptor).wait(remaining):
                return None
        if _still_there(descriptor, path):
            return descriptor
        # Somebody replaced the file while we waited: whoever comes next locks the new one.
        os.close(descriptor)


def _still_there(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


class _Queued:
    """A blocking ``flock`` in a thread of its own: the only way into the kernel's queue that has a
    timeout, leaves signals to their handlers and works outside the main thread too.

    Where the waiter gives up, the thread keeps waiting and then closes the descriptor at once,
    which gives the lock back; where the process ends first, the kernel does.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._granted = threading.Event()
        self._settling = threading.Lock()
        self._given_up = False
        threading.Thread(target=self._run, name="netsweep-flock", daemon=True).start()

    def _run(self) -> None:
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        with self._settling:
            if self._given_up:
                os.close(self._descriptor)
            self._granted.set()

    def wait(self, timeout: float) -> bool:
        """Wait for ``timeout`` seconds; False where the lock did not come, and never will."""
        granted = False
        try:
            granted = self._granted.wait(min(timeout, threading.TIMEOUT_MAX))
        finally:
            # Also where a signal ends the wait: who waits no more must not come to own the lock.
            if not granted:
                with self._settling:
                    self._given_up = True
                    if self._granted.is_set():
                        os.close(self._descriptor)
        return granted
