"""netsweep finds iptables rules that dead test jobs left behind, and deletes them.

``find_orphans()`` looks, ``sweep()`` deletes, ``teardown()`` takes a network down, ``restore()`` puts back; all
return a :class:`Report`. The
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
from netsweep.model import (
    Address,
    BackendChoice,
    BackendName,
    Bridge,
    BridgeFinding,
    Chain,
    Family,
    FamilyChoice,
    Finding,
    Interface,
    Lease,
    Rule,
    Spec,
    Table,
    Undo,
    Verdict,
)
from netsweep.report import BackendReport, Command, LeaseFile, LockTimes, Report
from netsweep.version import __version__

__all__ = [
    "Address",
    "BackendChoice",
    "BackendName",
    "BackendReport",
    "Bridge",
    "BridgeFinding",
    "BusyError",
    "Chain",
    "Command",
    "Family",
    "FamilyChoice",
    "Finding",
    "Interface",
    "Lease",
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
    "teardown",
]


def find_orphans(
    *,
    profile: str | os.PathLike[str] | None = None,
    prefix: str | Iterable[str] | None = None,
    name: str | Iterable[str] | None = None,
    protect: str | Iterable[str] | None = None,
    chain: str | Iterable[str] | None = None,
    all_chains: bool = False,
    family: FamilyChoice | None = None,
    include_negated: bool = False,
    settle: float | None = None,
    backend: BackendChoice | None = None,
    lease_file: str | os.PathLike[str] | None = None,
    wait: float | None = None,
    bridges: bool = False,
    min_age: float | str | None = None,
    include_kept: bool = False,
) -> Report:
    """Report the orphaned rules; change nothing and take no lock.

    ``bridges``: report leaked bridges too, and the rules that go with them. ``include_kept``: report the other rules
    and bridges that get a verdict too, each with the reason why it stays.
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
        bridges=bridges,
        min_age=min_age,
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
    family: FamilyChoice | None = None,
    include_negated: bool = False,
    settle: float | None = None,
    backend: BackendChoice | None = None,
    lock_file: str | os.PathLike[str] | None = None,
    lease_file: str | os.PathLike[str] | None = None,
    lock_timeout: float | None = None,
    wait: float | None = None,
    max_deletes: int | None = None,
    bridges: bool = False,
    min_age: float | str | None = None,
    journal: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
) -> Report:
    """Delete the orphaned rules and report them; with ``dry_run``, only report them.

    ``bridges``: also delete leaked bridges and their leases. ``min_age``: how old a bridge without a lease has to be,
    in seconds or as ``1h30m``.
    ``journal``: a new file, or a directory for one, to which rules are written before they are deleted; :func:`restore`
    puts back what is in :attr:`Report.journal`.
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
        bridges=bridges,
        min_age=min_age,
        journal=journal,
    )
    return job.find_orphans(options, command="sweep", dry_run=True) if dry_run else job.sweep(options)


def teardown(
    name: str | Iterable[str],
    *,
    subnet: str | None = None,
    force: bool = False,
    profile: str | os.PathLike[str] | None = None,
    prefix: str | Iterable[str] | None = None,
    own: str | Iterable[str] | None = None,
    protect: str | Iterable[str] | None = None,
    backend: BackendChoice | None = None,
    lock_file: str | os.PathLike[str] | None = None,
    lease_file: str | os.PathLike[str] | None = None,
    lock_timeout: float | None = None,
    wait: float | None = None,
) -> Report:
    """Delete the bridges called ``name`` with their routes, rules and leases; what is gone already counts as done.

    ``subnet``: that of the one network. ``force``: also where another running process leases it. ``own``: globs of
    names that are ours, as the command line's ``--name``. Raises :class:`NetsweepError` where anything is left.
    """
    from netsweep.jobs import teardown as job
    from netsweep.profiles.options import Options

    options = Options(
        profile=profile,
        prefix=prefix,
        name=own,
        protect=protect,
        backend=backend,
        lock_file=lock_file,
        lease_file=lease_file,
        lock_timeout=lock_timeout,
        wait=wait,
    )
    return job.teardown(options, [name] if isinstance(name, str) else list(name), subnet, force=force)


def restore(
    journal: str | os.PathLike[str], *, wait: float | None = None, force: bool = False, dry_run: bool = False
) -> Report:
    """Put back the rules that a sweep wrote to the file ``journal`` and deleted.

    ``force``: also where the journal is from another network namespace. ``dry_run``: only check, and report the rules
    that would be put back in :attr:`Report.returning`. Raises :class:`NetsweepError` where the rules no longer fit;
    then no table is changed.
    """
    from netsweep.jobs import restore as job

    return job.restore(journal, wait, force=force, dry_run=dry_run)
