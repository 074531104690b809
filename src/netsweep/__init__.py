"""netsweep finds iptables rules that dead test jobs left behind, and removes them.

``find_orphans()`` looks, ``sweep()`` deletes; both return a :class:`Report`. The options are those of
the command line, and so are their defaults; times are in seconds. Failures are raised as
:class:`NetsweepError`, one subclass for each exit status.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

from netsweep.errors import (
    BusyError,
    NetsweepError,
    NoBackendError,
    NotPermittedError,
    UsageError,
)

if TYPE_CHECKING:
    from netsweep.report import Report

__all__ = [
    "BusyError",
    "NetsweepError",
    "NoBackendError",
    "NotPermittedError",
    "Report",
    "UsageError",
    "find_orphans",
    "restore",
    "sweep",
]


def find_orphans(
    *,
    prefix: str | Sequence[str] = ("hm",),
    protect: str | Sequence[str] = ("ha",),
    chain: str | Sequence[str] = ("filter/FORWARD", "nat/POSTROUTING"),
    backend: str = "auto",
    lease_file: str | None = None,
    wait: float = 5.0,
    include_kept: bool = False,
) -> Report:
    """Report the orphaned rules; change nothing and take no lock.

    ``include_kept``: report the other rules that have to do with us too, each with the reason why it
    stays. Raises :class:`NetsweepError`.
    """
    from netsweep.sweeper import Options
    from netsweep.sweeper import find_orphans as run

    options = Options(prefix, protect, chain, backend, lease_file=lease_file, wait=wait)
    return run(options, keep=include_kept)


def sweep(
    *,
    prefix: str | Sequence[str] = ("hm",),
    protect: str | Sequence[str] = ("ha",),
    chain: str | Sequence[str] = ("filter/FORWARD", "nat/POSTROUTING"),
    backend: str = "auto",
    lock_file: str | None = None,
    lease_file: str | None = None,
    lock_timeout: float = 30.0,
    wait: float = 5.0,
    dry_run: bool = False,
    journal: str | None = None,
) -> Report:
    """Delete the orphaned rules and report them; with ``dry_run``, only report them.

    ``journal``: a new file to write what goes to, before it goes; :func:`restore` puts it back.
    Raises :class:`NetsweepError`, whose ``report`` says what had been deleted before.
    """
    from netsweep.sweeper import Options
    from netsweep.sweeper import find_orphans as look
    from netsweep.sweeper import sweep as run

    options = Options(prefix, protect, chain, backend, lock_file, lease_file, lock_timeout, wait, journal)
    return look(options, command="sweep", dry_run=True) if dry_run else run(options)


def restore(journal: str, *, wait: float = 5.0) -> Report:
    """Put back the rules that a sweep wrote to the file ``journal`` and deleted.

    Raises :class:`NetsweepError` where they no longer fit; then no table is changed.
    """
    from netsweep.sweeper import restore as run

    return run(journal, wait)


def __getattr__(name: str) -> Any:
    # Report comes late: what a run does not need is not imported.
    if name == "Report":
        from netsweep.report import Report

        return Report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
