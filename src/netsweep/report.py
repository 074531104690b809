"""What a run found and did. Data only; :mod:`netsweep.output` shows it."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from netsweep.model import BackendName, BridgeFinding, Family, Finding, Rule, Verdict

Command = Literal["list", "sweep", "teardown", "restore", "doctor"]
"""What a report may be of."""

_table_of = operator.attrgetter("rule.chain.table")


@dataclass
class BackendReport:
    """What one family of one backend held, and what was done to it.

    Attributes:
        name: The backend: ``legacy`` is x_tables, ``nft`` is nf_tables.
        family: The family of the tables.
        scanned: How many rules were read in the chains that were looked at.
        orphans: How many of them are orphaned.
        deleted: How many rules were deleted.
        restored: How many rules were put back; only a restore does that.
    """

    name: BackendName
    family: Family
    scanned: int = 0
    orphans: int = 0
    deleted: int = 0
    restored: int = 0


@dataclass
class LockTimes:
    """How long a lock was waited for and held.

    Attributes:
        path: The lock file.
        waited_ms: Milliseconds of waiting, over all times that the lock was taken.
        held_ms: Milliseconds of holding it, over all times that it was taken.
        longest_ms: Milliseconds of the longest single hold.
    """

    path: str
    waited_ms: float = 0.0
    held_ms: float = 0.0
    longest_ms: float = 0.0


@dataclass
class LeaseFile:
    """The lease file that was used.

    Attributes:
        path: The file.
        exists: False where there is no such file, which means no leases.
        leases: How many leases it holds.
        running: How many of them count: those of processes that run, or may run in another PID namespace.
    """

    path: str
    exists: bool = False
    leases: int = 0
    running: int = 0


@dataclass
class Report:
    """The outcome of a run.

    Attributes:
        command: What ran.
        dry_run: Whether it was a dry run, which changes nothing.
        orphans: The orphaned rules that were found; for a sweep those that were deleted come first.
        kept: The other rules that got a verdict, where they were asked for.
        negated: Those of ``kept`` that a list always shows: they match everything but a bridge that is gone.
        bridges: The leaked bridges, where they were asked for; with ``kept`` the others that got a verdict too.
        bridges_scanned: How many bridges got a verdict; ``None`` where they were not asked for.
        bridges_live: How many bridges of ours are not leaked; in doubt a bridge is alive. ``None`` as above.
        stale_leases: How many leases are of leaked bridges, or of dead processes whose bridge does not exist.
        leases_removed: How many leases were removed.
        backends: What was read, found and done, for each family of each backend.
        chains: The chains that were asked for, as ``[FAMILY:]TABLE/CHAIN``.
        overlooked: The tables that exist here and were not looked at, as ``nft inet firewalld``.
        elsewhere: How many orphans are in chains and families that were not asked for; a sweep does not look there.
        leases: The lease file; ``None`` where the profile has none.
        subnet_lock: How long the subnet lock was waited for and held; ``None`` where it was never taken.
        xtables_lock: The same for the xtables lock.
        returning: The rules that a dry run of a restore would put back, with the positions that they would have.
        journal: The absolute path of the file that says what was deleted, where one was asked for and written.
        duration_ms: Milliseconds that the run took, without the start of the process.
        warnings: What a reader has to know, one line each.
        errors: Why the run failed, one line each; empty where it did not.
    """

    command: Command
    dry_run: bool = False
    orphans: list[Finding] = field(default_factory=list)
    kept: list[Finding] = field(default_factory=list)
    negated: list[Finding] = field(default_factory=list)
    bridges: list[BridgeFinding] = field(default_factory=list)
    bridges_scanned: int | None = None
    bridges_live: int | None = None
    stale_leases: int = 0
    leases_removed: int = 0
    backends: list[BackendReport] = field(default_factory=list)
    chains: list[str] = field(default_factory=list)
    overlooked: list[str] = field(default_factory=list)
    elsewhere: int = 0
    leases: LeaseFile | None = None
    subnet_lock: LockTimes | None = None
    xtables_lock: LockTimes | None = None
    returning: list[Rule] = field(default_factory=list)
    journal: str | None = None
    duration_ms: float = 0.0
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def scanned(self) -> int:
        """Rules read."""
        return sum(backend.scanned for backend in self.backends)

    @property
    def deleted(self) -> int:
        """Rules deleted."""
        return sum(backend.deleted for backend in self.backends)

    @property
    def restored(self) -> int:
        """Rules put back."""
        return sum(backend.restored for backend in self.backends)

    @property
    def leaked(self) -> list[BridgeFinding]:
        """The leaked bridges."""
        return [finding for finding in self.bridges if finding.verdict is Verdict.LEAKED]

    @property
    def bridges_deleted(self) -> int:
        """Bridges deleted."""
        return sum(finding.deleted for finding in self.bridges)

    @property
    def changed(self) -> bool:
        """Whether anything was changed."""
        return self.deleted + self.restored + self.bridges_deleted + self.leases_removed > 0

    def of(self, name: BackendName, family: Family) -> BackendReport:
        """The part of the report on one family of one backend, made where it is not there yet."""
        for found in self.backends:
            if (found.name, found.family) == (name, family):
                return found
        self.backends.append(BackendReport(name, family))
        return self.backends[-1]

    def add_orphans(self, findings: Sequence[Finding]) -> None:
        """Add orphans that were found."""
        self.orphans += findings
        for table, number in Counter(map(_table_of, findings)).items():
            self.of(table.backend, table.family).orphans += number

    def warn(self, text: str) -> None:
        """Add a warning, once."""
        if text not in self.warnings:
            self.warnings.append(text)
