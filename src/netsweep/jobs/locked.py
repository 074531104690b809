"""The subnet lock of a run, however often it is taken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from netsweep.host import locks
from netsweep.profiles.options import Options
from netsweep.report import LockTimes, Report


@contextmanager
def subnet_locked(options: Options, report: Report) -> Iterator[None]:
    """Hold the subnet lock, where there is one; what that took is in the report.

    The timeout bounds the whole run. Raises as :func:`netsweep.host.locks.held`.
    """
    times = report.subnet_lock or LockTimes(options.lock_file or "")
    left = max(0.0, options.lock_timeout - times.waited_ms / 1000)
    try:
        with (
            locks.held(times, left, mode=0o666, what="subnet lock", option="--lock-timeout")
            if options.lock_file
            else nullcontext()
        ):
            yield
    finally:
        # A lock that was never held is not reported.
        report.subnet_lock = times if times.held_ms else None
