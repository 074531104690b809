"""The two locks: the test harness's subnet lock, and the xtables lock of iptables.

Order: subnet lock, then xtables lock. Both are ``flock(2)`` locks on files that others use too, so
the file is never written, truncated, re-moded or deleted.

filelock does the locking itself, on a descriptor that we opened. Its ``FileLock`` cannot be used: it
refuses a file in a sticky directory that another user owns, which is the usual case (tests run as the
runner's user, netsweep as root).

Waiting is not left to filelock either. It polls, while every other user of these locks waits in the
kernel's queue and gets the lock before a poller looks again: measured beside eleven
``iptables -w 5``, 0.7 s median and 3.9 s at worst, against 33 and 70 ms in the queue.
"""

from __future__ import annotations

import fcntl
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

from netsweep.errors import BusyError, NetsweepError
from netsweep.host import observer, priority
from netsweep.host.files import describe, open_or_create_regular
from netsweep.host.processes import held_by
from netsweep.report import LockTimes

XTABLES_LOCK = "/run/xtables.lock"
"""XT_LOCK_NAME as distributions build iptables (iptables/xshared.h)."""

_PAUSE = 0.001
"""Seconds before a file that was replaced, or is not to be opened yet, is opened again."""


_SEARCH = 1.0
"""Seconds to find out who holds a lock: /proc may be large, and reading of a hostile process may never end."""


def xtables_lock_path() -> str:
    """Where iptables keeps its lock: ``XTABLES_LOCKFILE``, as iptables honours it, or the default."""
    return os.environ.get("XTABLES_LOCKFILE") or XTABLES_LOCK


def load() -> None:
    """Import what it takes to lock a file: 30 ms, for which nothing that was waited for should wait."""
    if "filelock" in sys.modules:
        return
    import logging

    # filelock imports hashlib. Where memory is short and nobody listens, that prints a traceback for each hash that it
    # cannot load. A handler of our own is taken away again whatever other threads do to logging meanwhile.
    silent = logging.NullHandler()
    logging.getLogger().addHandler(silent)
    try:
        import filelock  # noqa: F401
    finally:
        logging.getLogger().removeHandler(silent)


@contextmanager
def held(times: LockTimes, timeout: float, *, mode: int, what: str, option: str) -> Iterator[None]:
    """Hold the lock on ``times.path`` and add to ``times``.

    ``timeout``: seconds to wait, 0 for not at all. ``mode``: what the file gets where it is missing.
    ``what`` and ``option`` name the lock and the option that sets its timeout in messages.
    A long wait is told to the :data:`~netsweep.host.observer.current` observer. Raises :class:`BusyError` where the
    lock could not be taken in time, and else what :func:`netsweep.host.files.open_or_create_regular` raises.
    """
    load()
    from filelock import unlock_descriptor

    with priority.hurried():
        began = time.monotonic()
        with closing(_Wait(times.path, began + timeout, what)) as wait:
            descriptor = _acquire(wait, mode)
        if descriptor is None:
            raise BusyError(_busy(times.path, timeout, what, option))
        acquired = time.monotonic()
        try:
            times.waited_ms += (acquired - began) * 1000
            yield
        finally:
            # Read first: a process that waits for the lock may get the processor with it.
            held_ms = (time.monotonic() - acquired) * 1000
            try:
                # Closing is not enough: a child that was forked meanwhile has the descriptor too.
                unlock_descriptor(descriptor)
            finally:
                os.close(descriptor)
                times.held_ms += held_ms
                times.longest_ms = max(times.longest_ms, held_ms)


def _busy(path: str, timeout: float, what: str, option: str) -> str:
    state = f"was busy for {timeout:g} s" if timeout else "is in use"
    return f"{what} {path!a} {state} ({_held_by(path)}); retry, or raise {option}"


def _held_by(path: str) -> str:
    """Who holds the lock on ``path``, where that is found out in time: another lock may be held meanwhile."""
    found: list[str] = []

    def search() -> None:
        with suppress(OSError, NetsweepError):
            found.append(held_by(os.stat(path)))

    searching = threading.Thread(target=search, name="netsweep-holder", daemon=True)
    with suppress(RuntimeError):
        searching.start()
        searching.join(_SEARCH)
    return found[0] if found else "held by another process"


class _Wait:
    """A wait for the lock on ``path``, until ``deadline``, which is told where it takes long."""

    def __init__(self, path: str, deadline: float, what: str) -> None:
        self.path = path
        self.what = what
        self._deadline = deadline
        self._told_from = time.monotonic() + observer.TOLD_AFTER
        self._told = self._over = False

    @property
    def remaining(self) -> float:
        """The seconds that are left."""
        return self._deadline - time.monotonic()

    def until(self, done: Callable[[float], bool]) -> bool:
        """Call ``done`` with the seconds to wait until it returns True or time is up; return what it returns."""
        quiet = self._told_from - time.monotonic()
        if not self._told and quiet < self.remaining:
            if done(max(0.0, quiet)):
                return True
            self.tell()
        return done(max(0.0, min(self.remaining, threading.TIMEOUT_MAX)))

    def tell(self) -> None:
        """Tell of the wait, where that is due."""
        if not self._told and time.monotonic() >= self._told_from:
            self._told = True
            observer.current.waiting(self._describe)

    def close(self) -> None:
        """Tell that the wait is over, where it was told of."""
        self._over = True
        if self._told:
            observer.current.waiting(None)

    def _describe(self) -> str:
        by, remaining = _held_by(self.path), self.remaining
        # Finding out who holds the lock takes long: it may be ours by now.
        if self._over or remaining <= 0 or f"{by} ".startswith(f"held by process {os.getpid()} "):
            return ""
        end = f"; giving up in {math.ceil(remaining)} s" if math.isfinite(remaining) else ""
        return f"waiting for the {self.what}, {by}{end}"


def _acquire(wait: _Wait, mode: int) -> int | None:
    """The descriptor of the locked file, or ``None`` where time was up."""
    while True:
        descriptor = _try_once(wait, mode)
        if descriptor is not None:
            return descriptor
        remaining = wait.remaining
        if remaining <= 0:
            return None
        wait.tell()
        time.sleep(min(_PAUSE, remaining))


def _try_once(wait: _Wait, mode: int) -> int | None:
    """Lock the file that stands at the path now; ``None`` where that fails, in time or not."""
    from filelock import lock_descriptor

    path, what = wait.path, wait.what
    try:
        # Read-only is enough for flock(2), and all that a file of another user may allow.
        descriptor = open_or_create_regular(path, os.O_RDONLY, mode, what=what)
    except BusyError:
        return None
    try:
        locked = lock_descriptor(descriptor, blocking=False)
    except OSError as error:
        os.close(descriptor)
        raise describe(error, f"cannot lock {what} {path!a}") from error
    if not locked:
        if wait.remaining <= 0:
            os.close(descriptor)
            return None
        if not _Waiter(descriptor, f"{what} {path!a}").wait(wait):
            return None
    if _is_still_there(descriptor, path):
        return descriptor
    # The file was replaced while we waited: the next process locks the new one.
    _release(descriptor)
    return None


def _is_still_there(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except OSError:
        return False


def _release(descriptor: int) -> None:
    # A forked child that has the descriptor too would keep the lock where it is only closed.
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


class _Waiter(threading.Thread):
    """A blocking ``flock`` in a thread of its own: the only way into the kernel's queue that has a
    timeout, leaves signals to their handlers and works outside the main thread too.

    Where the caller gives up, the thread keeps waiting and then gives the lock back at once; where
    the process ends first, the kernel does. The descriptor is closed unless :meth:`wait` says True.
    """

    def __init__(self, descriptor: int, name: str) -> None:
        super().__init__(name="netsweep-flock", daemon=True)
        self._descriptor = descriptor
        self._lock_name = name
        self._done = threading.Event()
        self._settling = threading.Lock()
        self._given_up = False
        self._error: OSError | None = None

    def run(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        except OSError as error:
            self._error = error
        with self._settling:
            if self._given_up:
                _release(self._descriptor)
            self._done.set()

    def wait(self, wait: _Wait) -> bool:
        """Wait for as long as ``wait`` allows; False where the lock did not come, and never will."""
        granted = False
        try:
            self.start()
            granted = wait.until(self._done.wait) and self._error is None
        except RuntimeError as error:
            self._done.set()
            raise NetsweepError(
                f"cannot wait for {self._lock_name}: {error}; retry, or raise the limit on processes (ulimit -u)"
            ) from error
        finally:
            # Also where a signal ends the wait: nobody would use a lock that came later.
            if not granted:
                with self._settling:
                    self._given_up = True
                    if self._done.is_set():
                        _release(self._descriptor)
        if self._error:
            raise describe(self._error, f"cannot lock {self._lock_name}") from self._error
        return granted
