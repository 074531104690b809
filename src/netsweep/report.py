"""What a run found and did. Data only; :mod:`netsweep.output` shows it."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from netsweep.model import BridgeFinding, Family, Finding, Rule, Verdict

_table_of = operator.attrgetter("rule.chain.table")


@dataclass
class BackendReport:
    """What one family of one backend held: rules read, orphans among them, rules deleted; or rules put back."""

    name: str
    family: Family
    scanned: int = 0
    orphans: int = 0
    deleted: int = 0
    restored: int = 0


@dataclass
class LockTimes:
    """How long the lock at ``path`` was waited for and held, in ms, over all times it was taken.

    ``longest_ms`` is the longest single hold.
    """

    path: str
    waited_ms: float = 0.0
    held_ms: float = 0.0
    longest_ms: float = 0.0


@dataclass
class LeaseFile:
    """The lease file that was used: how many leases it holds, and how many of them count.

    ``exists`` is False where there is no such file, which means no leases.
    """

    path: str
    exists: bool = False
    leases: int = 0
    running: int = 0


@dataclass
class Report:
    """The outcome of a run.

    ``orphans`` are the orphaned rules that were found; for a sweep those that were deleted come first.
    ``kept`` are the other rules that got a verdict, where they were asked for; ``negated`` are those of
    them that a list always shows. ``bridges`` are the leaked bridges, where they were asked for, and with ``kept``
    the others that got a verdict; ``bridges_scanned`` counts all of them, ``bridges_live`` those of
    ours that are not leaked, where in doubt a bridge is alive, ``stale_leases`` the leases of the leaked ones
    and those of dead processes whose bridge does not exist. ``chains`` are the chains that were asked for, as
    ``[FAMILY:]TABLE/CHAIN``;
    ``overlooked`` the tables that exist here and were not looked at, as ``nft inet firewalld``. ``elsewhere`` counts
    the orphans in chains and families that were not asked for; a sweep does not look there. ``subnet_lock`` and
    ``xtables_lock`` are ``None`` where the lock was never taken, ``leases`` where there is no lease file.
    ``returning`` are the rules that a dry run of a restore would put back, with the positions that they would have.
    ``journal`` is the absolute path of the file that says what was deleted, where one was asked for.
    ``duration_ms`` is in milliseconds.
    """

    command: str
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

    def of(self, name: str, family: Family) -> BackendReport:
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
