"""netsweep finds iptables rules that dead test jobs left behind, and deletes them.

``find_orphans()`` looks, ``sweep()`` deletes, ``restore()`` puts back; all return a :class:`Report`. The
options are those of the command line, and so are their defaults: what is ``None`` is as the profile has
it; ``name`` adds to the names of the profile. Several values may come as any iterable; paths may be
:class:`os.PathLike`; times are in seconds.
Failures are raised as :class:`NetsweepError`, one subclass for each exit status.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from netsweep.errors import (
    BusyError,
    NetsweepError,
    NoBackendError,
    NotPermittedError,
    TableError,
    UsageError,
)
from netsweep.model import Chain, Family, Finding, Interface, Rule, Spec, Table, Undo, Verdict
from netsweep.report import BackendReport, LeaseFile, LockTimes, Report
from netsweep.version import __version__

__all__ = [
    "BackendReport",
    "BusyError",
    "Chain",
    "Family",
    "Finding",
    "Interface",
    "LeaseFile",
    "LockTimes",
    "NetsweepError",
    "NoBackendError",
    "NotPermittedError",
    "Report",
    "Rule",
    "Spec",
    "Table",
    "TableError",
    "Undo",
    "UsageError",
    "Verdict",
    "__version__",
    "find_orphans",
    "restore",
    "sweep",
]


def find_orphans(
    *,
    profile: str | os.PathLike[str] | None = None,
    prefix: str | Iterable[str] | None = None,
    name: str | Iterable[str] | None = None,
    protect: str | Iterable[str] | None = None,
    chain: str | Iterable[str] | None = None,
    all_chains: bool = False,
    family: str | None = None,
    include_negated: bool = False,
    settle: float | None = None,
    backend: str | None = None,
    lease_file: str | os.PathLike[str] | None = None,
    wait: float | None = None,
    include_kept: bool = False,
) -> Report:
    """Report the orphaned rules; change nothing and take no lock.

    ``include_kept``: report the other rules that get a verdict too, each with the reason why it stays.
    Raises :class:`NetsweepError`.
    """
    from netsweep.jobs import sweep as job
    from netsweep.profiles.options import Options

    options = Options(
        profile=profile,
        prefix=prefix,
        name=name,
        protect=protect,
        chain=chain,
        all_chains=all_chains,
        family=family,
        include_negated=include_negated,
        settle=settle,
        backend=backend,
        lease_file=lease_file,
        wait=wait,
    )
    return job.find_orphans(options, keep=include_kept)


def sweep(
    *,
    profile: str | os.PathLike[str] | None = None,
    prefix: str | Iterable[str] | None = None,
    name: str | Iterable[str] | None = None,
    protect: str | Iterable[str] | None = None,
    chain: str | Iterable[str] | None = None,
    all_chains: bool = False,
    family: str | None = None,
    include_negated: bool = False,
    settle: float | None = None,
    backend: str | None = None,
    lock_file: str | os.PathLike[str] | None = None,
    lease_file: str | os.PathLike[str] | None = None,
    lock_timeout: float | None = None,
    wait: float | None = None,
    max_deletes: int | None = None,
    journal: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
) -> Report:
    """Delete the orphaned rules and report them; with ``dry_run``, only report them.

    ``journal``: a new file to write what goes to, before it goes; :func:`restore` puts it back.
    Raises :class:`NetsweepError`, whose ``report`` says what had been deleted before.
    """
    from netsweep.jobs import sweep as job
    from netsweep.profiles.options import Options

    options = Options(
        profile=profile,
        prefix=prefix,
        name=name,
        protect=protect,
        chain=chain,
        all_chains=all_chains,
        family=family,
        include_negated=include_negated,
        settle=settle,
        backend=backend,
        lock_file=lock_file,
        lease_file=lease_file,
        lock_timeout=lock_timeout,
        wait=wait,
        max_deletes=max_deletes,
        journal=journal,
    )
    return job.find_orphans(options, command="sweep", dry_run=True) if dry_run else job.sweep(options)


def restore(journal: str | os.PathLike[str], *, wait: float | None = None, force: bool = False) -> Report:
    """Put back the rules that a sweep wrote to the file ``journal`` and deleted.

    ``force``: also where the journal is of another network namespace. Raises :class:`NetsweepError`
    where the rules no longer fit; then no table is changed.
    """
    from netsweep.jobs import restore as job

    return job.restore(journal, wait, force=force)
