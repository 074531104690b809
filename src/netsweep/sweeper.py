"""The one path: look, lock, look again, delete, report.

The first look takes no lock. Where it finds orphans, the subnet lock is taken (then, for x_tables,
the xtables lock), the leases and the interfaces are read, and only then it is decided what goes.
Rules are always read before interfaces: a bridge is created before its rules, so a name that is
missing from the later list is truly gone.
"""

from __future__ import annotations

import operator
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from netsweep import leases
from netsweep.backends import Backend, Scan, Transaction
from netsweep.errors import BusyError, ContentionError, NetsweepError, NotPermittedError, UsageError
from netsweep.orphans import Case, Finding, Live, Ownership, Verdict
from netsweep.report import BackendReport, Report
from netsweep.rules import DEFAULT_CHAINS, ChainRef

if TYPE_CHECKING:
    from netsweep.interfaces import Interfaces
    from netsweep.journal import Journal
    from netsweep.locks import LockTimes

T = TypeVar("T")

BACKENDS = ("legacy", "nft")
LOOK_MAX = 8_000
"""Rules of one chain that a sweep reads before it deletes the orphans among them. The kernel starts
each 32 KiB of an nf_tables dump from the head of the chain, so a dump's time grows with the square of
its length."""

_PAUSE = 0.002
"""Seconds before a retry: longer than the transaction that got in between, shorter than is felt."""

_CAP_NET_ADMIN = 12
"""linux/capability.h."""

_CHANGING = "the rules changed whenever they were read; some may have been missed"

_BUILT_IN_CHAINS = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"})


def _default_path(name: str) -> str:
    return os.path.join(os.environ.get("TMPDIR") or "/tmp", name)


@dataclass(frozen=True)
class Options:
    """What to look for, where, and how long to wait (seconds). Checked when made."""

    prefix: Sequence[str] = ("hm",)
    protect: Sequence[str] = ("ha",)
    chain: Sequence[str | ChainRef] = DEFAULT_CHAINS
    backend: str = "auto"
    lock_file: str | None = None
    lease_file: str | None = None
    lock_timeout: float = 30.0
    wait: float = 5.0
    journal: str | None = None

    @property
    def lock_path(self) -> str:
        """The subnet lock's file."""
        return _default_path("hypeman-test-network.lock") if self.lock_file is None else self.lock_file

    @property
    def lease_path(self) -> str:
        """The lease file."""
        return _default_path("hypeman-test-network-leases.json") if self.lease_file is None else self.lease_file

    def ownership(self) -> Ownership:
        """The names that are ours; raises :class:`UsageError`."""
        return Ownership(_several(self.prefix), _several(self.protect))

    def chains(self) -> dict[str, list[str]]:
        """The chains to look at, by table; raises :class:`UsageError`."""
        wanted: dict[str, list[str]] = {}
        for text in _several(self.chain):
            ref = text if isinstance(text, ChainRef) else ChainRef.parse(text)
            if ref.chain not in wanted.setdefault(ref.table, []):
                wanted[ref.table].append(ref.chain)
        if not wanted:
            raise UsageError("no chain given")
        return wanted

    def check(self) -> None:
        """Raise :class:`UsageError` for what means nothing."""
        self.ownership()
        self.chains()
        if self.backend not in ("auto", *BACKENDS):
            raise UsageError(f"{self.backend!a} is no backend: give auto, {' or '.join(BACKENDS)}")
        for name, seconds in (("lock-timeout", self.lock_timeout), ("wait", self.wait)):
            if not seconds >= 0:  # also refuses NaN
                raise UsageError(f"--{name} has to be 0 seconds or more, not {seconds:g}")
        for name, path in (
            ("lock-file", self.lock_path),
            ("lease-file", self.lease_path),
            ("journal", self.journal),
        ):
            if path is not None and (not path or "\0" in path):
                raise UsageError(f"--{name} {path!a} is no path: " + ("it has a NUL in it" if path else "it is empty"))


def _several(values: Sequence[str | ChainRef]) -> list[str]:
    # A single name is a sequence of letters to Python, and surely not meant as that.
    return [values] if isinstance(values, str) else list(values)  # type: ignore[arg-type]


@dataclass(eq=False)
class _Look:
    """What was found in one table of one backend.

    ``deleted`` counts the orphans, from the first, that are gone; ``before`` the rules that this
    sweep had deleted from each chain before it was read.
    """

    backend: Backend
    scan: Scan
    case: Case
    before: Counter[str]
    findings: list[Finding] = field(default_factory=list)
    deleted: int = 0

    @property
    def orphans(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.verdict is Verdict.ORPHAN]


def find_orphans(options: Options, *, keep: bool = False, command: str = "list", dry_run: bool = False) -> Report:
    """Report the orphaned rules; change nothing and take no lock.

    ``keep``: report the other rules that have to do with us too. Raises
    :class:`~netsweep.errors.NetsweepError`.
    """
    run = _Run(options, Report(command, dry_run))
    with run.reporting():
        run.look(limit=None)
        if keep:
            run.keep_rest()
    return run.report


class Survey(NamedTuple):
    """What the backends hold: their tables, the rules read, and how many of those are owned."""

    tables: Collection[str]
    scanned: int
    owned: int


def survey(options: Options) -> Survey:
    """Count rules without asking who is alive; change nothing and take no lock.

    Raises :class:`~netsweep.errors.NetsweepError`.
    """
    run = _Run(options, Report("doctor"))
    with run.reporting():
        return run.survey()


def restore(path: str, wait: float) -> Report:
    """Put back what the journal at ``path`` says was deleted; ``wait``: seconds to retry for.

    Raises :class:`~netsweep.errors.NetsweepError`.
    """
    from netsweep import journal

    Options(wait=wait, journal=path).check()
    require_net_admin()
    return journal.restore(path, lambda name: open_backend(name, (), keep_undo=True), wait)


def sweep(options: Options) -> Report:
    """Delete the orphaned rules and report them.

    Raises :class:`~netsweep.errors.NetsweepError`, whose ``report`` says what was deleted before.
    """
    run = _Run(options, Report("sweep"))
    with run.reporting():
        run.sweep()
    return run.report


class _Run:
    def __init__(self, options: Options, report: Report) -> None:
        options.check()
        self.options = options
        self.report = report
        self._started = time.monotonic()
        self._ownership = options.ownership()
        self._wanted = options.chains()
        self._resources = ExitStack()
        self._backends: list[Backend] = []
        self._interfaces: Interfaces | None = None
        self._journal: Journal | None = None
        self._looks: list[_Look] = []
        self._swept: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Finish the report whatever happens, and hang it on the error that ends the run."""
        try:
            with self._resources:
                require_net_admin()
                self._open_backends()
                yield
        except NetsweepError as error:
            if isinstance(error, BusyError):
                # The status of a lock that was not to be had promises that nothing was changed.
                if self.report.changed:
                    error = NetsweepError(f"{error}; {self.report.deleted} were deleted before")
                else:
                    error = BusyError(f"{error}; nothing was changed")
            self.report.errors.append(str(error))
            error.report = self.report
            raise error from None
        finally:
            self._sum_up()

    def look(self, limit: int | None) -> None:
        """Read every wanted table of every backend here, without a lock, and decide on it.

        ``limit`` as in :meth:`netsweep.backends.Backend.scan`; without one, chains that change while
        they are read are read again for ``--wait`` seconds.
        """
        leased = self._leased()
        self._looks = []
        for backend in self._backends:
            tables = self._insist(backend.tables)
            if not tables and self.options.backend == "auto":
                continue
            self._report_of(backend)
            for table, chains in self._wanted.items():
                if table in tables:
                    before = self._swept[backend.name, table].copy()
                    scan = self._scan(backend, table, chains, limit)
                    self._looks.append(_Look(backend, scan, Case(scan.rules, self._ownership), before))
        self._decide(self._looks, leased)
        self._warn_of_missing_chains()

    def survey(self) -> Survey:
        """Count the rules of every wanted table of every backend here."""
        tables: list[str] = []
        scanned = owned = 0
        for backend in self._backends:
            existing = self._insist(backend.tables)
            tables += existing
            for table, chains in self._wanted.items():
                if table in existing:
                    scan = self._scan(backend, table, chains, None)
                    scanned += scan.scanned
                    owned += sum(map(self._ownership.owns, scan.rules))
        return Survey(tables, scanned, owned)

    def sweep(self) -> None:
        """Look and delete until a look has seen everything."""
        deadline = time.monotonic() + self.options.wait
        # What a journal could not put back has to be known before anything goes, wherever it stands.
        limit = None if self.options.journal else LOOK_MAX
        while True:
            self.look(limit)
            complete = all(look.scan.complete for look in self._looks)
            if not any(look.orphans for look in self._looks):
                if complete or limit is None:
                    return
                # So many rules that stay: the orphans are behind them, if there are any.
                limit = None
                continue
            deleted = self.report.deleted
            try:
                self._delete()
            except ContentionError as error:
                if time.monotonic() > deadline:
                    raise self._too_busy(error) from None
            else:
                if complete:
                    return
            if limit and 2 * (self.report.deleted - deleted) < limit:
                limit *= 2  # mostly rules that stay: the next look has to see behind them
            if self.report.deleted > deleted:
                deadline = time.monotonic() + self.options.wait
            else:
                time.sleep(_PAUSE)

    def keep_rest(self) -> None:
        """Report the rules that have to do with us and are no orphans."""
        self.report.kept = [f for look in self._looks for f in look.findings if f.verdict is not Verdict.ORPHAN]

    def _delete(self) -> None:
        # Imported before the lock is taken: under it nothing is waited for.
        from netsweep import locks

        if self.options.journal and not self._journal:
            from netsweep.journal import Journal

            self._journal = Journal(self.options.journal)
            self._resources.callback(self._journal.close)
        if self._journal:
            # Again under the lock; what that takes is found out and imported here.
            self._journal.check([orphan for look in self._looks for orphan in look.orphans])
        options, report = self.options, self.report
        subnet = report.subnet_lock or locks.LockTimes(options.lock_path)
        xtables = report.xtables_lock or locks.LockTimes(locks.xtables_lock_path())
        try:
            with locks.held(subnet, options.lock_timeout, mode=0o666, what="subnet lock", option="--lock-timeout"):
                self._delete_locked(xtables)
        finally:
            # A lock that was never held is not reported.
            report.subnet_lock = subnet if subnet.held_ms else None
            report.xtables_lock = xtables if xtables.held_ms else None

    def _delete_locked(self, xtables: LockTimes) -> None:
        leased = self._leased()
        doomed: dict[Backend, list[_Look]] = {}
        for look in self._looks:
            if look.orphans:
                doomed.setdefault(look.backend, []).append(look)
        if self._journal:
            # What cannot be put back, in any table, has to be known before anything is deleted.
            with ExitStack() as writing:
                for backend in doomed:
                    writing.enter_context(backend.writing(xtables, self.options.wait))
                self._delete_from([look for looks in doomed.values() for look in looks], leased)
            return
        for backend, looks in doomed.items():
            with backend.writing(xtables, self.options.wait):
                # Long tables one by one, for their memory; others share one look at the interfaces.
                for group in [looks] if all(look.scan.complete for look in looks) else [[look] for look in looks]:
                    self._delete_from(group, leased)

    def _delete_from(self, looks: Sequence[_Look], leased: Collection[str]) -> None:
        """Read again, decide again, delete."""
        with ExitStack() as opened:
            transactions = [opened.enter_context(look.backend.transaction(look.scan)) for look in looks]
            for look, transaction in zip(looks, transactions, strict=True):
                if transaction.scan.rules != look.scan.rules:
                    look.case = Case(transaction.scan.rules, self._ownership)
                look.scan = transaction.scan
            self._decide(looks, leased)
            if self._journal:
                self._journal.check([orphan for look in looks for orphan in look.orphans])
            for look, transaction in zip(looks, transactions, strict=True):
                self._delete_orphans(look, transaction)

    def _delete_orphans(self, look: _Look, transaction: Transaction) -> None:
        orphans = look.orphans
        size = transaction.batch or max(1, len(orphans))
        for start in range(0, len(orphans), size):
            batch = orphans[start : start + size] if size < len(orphans) else orphans
            if self._journal:
                self._journal.record(look.backend, look.scan, orphans, batch)
            try:
                transaction.delete([finding.rule for finding in batch])
            except ContentionError:
                if self._journal:
                    self._journal.void()
                raise
            look.deleted += len(batch)
            self._deleted(look, batch)

    def _deleted(self, look: _Look, batch: list[Finding]) -> None:
        report = self._report_of(look.backend)
        report.deleted += len(batch)
        report.orphans += len(batch)
        self._swept[look.backend.name, look.scan.table].update(map(_chain_of, batch))
        if look.before:
            batch = [_moved(finding, look.before[finding.rule.chain]) for finding in batch]
        self.report.orphans += batch

    def _sum_up(self) -> None:
        for look in self._looks:
            left = look.orphans[look.deleted :]
            report = self._report_of(look.backend)
            report.scanned += look.scan.scanned + look.before.total()
            report.orphans += len(left)
            self.report.orphans += left
        self.report.duration_ms = (time.monotonic() - self._started) * 1000

    def _open_backends(self) -> None:
        names = BACKENDS if self.options.backend == "auto" else (self.options.backend,)
        for name in names:
            backend = open_backend(name, self._ownership.hints, keep_undo=self.options.journal is not None)
            self._backends.append(backend)
            self._resources.callback(backend.close)

    def _report_of(self, backend: Backend) -> BackendReport:
        for report in self.report.backends:
            if report.name == backend.name:
                return report
        self.report.backends.append(BackendReport(backend.name, backend.family))
        return self.report.backends[-1]

    def _scan(self, backend: Backend, table: str, chains: Sequence[str], limit: int | None) -> Scan:
        def read() -> Scan:
            scan = backend.scan(table, chains, limit)
            if limit is None and not scan.complete and time.monotonic() < patience:
                raise ContentionError(f"reading {table}")
            return scan

        patience = time.monotonic() + self.options.wait
        scan = self._insist(read)
        if limit is None and not scan.complete:
            self._warn(_CHANGING)
        return scan

    def _insist(self, read: Callable[[], T]) -> T:
        deadline = time.monotonic() + self.options.wait
        while True:
            try:
                return read()
            except ContentionError as error:
                if time.monotonic() > deadline:
                    raise self._too_busy(error) from None
            time.sleep(_PAUSE)

    def _too_busy(self, error: ContentionError) -> BusyError:
        return BusyError(f"{error}, for {self.options.wait:g} s; retry, or raise --wait")

    def _leased(self) -> frozenset[str]:
        return leases.leased_bridges(leases.read(self.options.lease_path))

    def _decide(self, looks: Sequence[_Look], leased: Collection[str]) -> None:
        """Decide on what was read: who is alive is found out now, once for all ``looks``."""

        def names() -> frozenset[str]:
            return frozenset[str]().union(*(look.case.names for look in looks))

        all_names = any(look.case.all_names for look in looks)
        live = self._live_names(names, all_names) if all_names or names() else Live()
        for look in looks:
            look.findings = look.case.decide(live, leased)

    def _live_names(self, asked: Callable[[], Collection[str]], all_names: bool) -> Live:
        if self._interfaces is None:
            from netsweep.interfaces import Interfaces

            self._interfaces = self._resources.enter_context(Interfaces())
        return self._interfaces.live(asked, all_names=all_names)

    def _warn_of_missing_chains(self) -> None:
        found = {
            ChainRef(look.scan.table, c) for look in self._looks for c in look.scan.chains if c not in look.scan.missing
        }
        for look in self._looks:
            for chain in look.scan.missing:
                ref = ChainRef(look.scan.table, chain)
                # A chain of iptables' own comes into being when it is first used.
                if ref not in found and chain not in _BUILT_IN_CHAINS:
                    self._warn(f"there is no chain {ref}")

    def _warn(self, text: str) -> None:
        if text not in self.report.warnings:
            self.report.warnings.append(text)


_chain_of = operator.attrgetter("rule.chain")


def _moved(finding: Finding, places: int) -> Finding:
    return finding._replace(rule=finding.rule._replace(position=finding.rule.position + places))


def open_backend(name: str, hints: Sequence[bytes], *, keep_undo: bool) -> Backend:
    """The backend called ``name``, for rules that hold one of ``hints``; ``keep_undo``: for undo.

    Each is imported only here, as what a run does not need takes most of its time.
    """
    if name == "legacy":
        from netsweep.backends.legacy import LegacyBackend

        return LegacyBackend(hints, keep_undo=keep_undo)
    from netsweep.backends.nft import NftBackend

    return NftBackend(hints, keep_undo=keep_undo)


def require_net_admin() -> None:
    """Raise :class:`NotPermittedError` where CAP_NET_ADMIN is not in effect, whoever the user is."""
    if not effective_capabilities() >> _CAP_NET_ADMIN & 1:
        raise NotPermittedError("CAP_NET_ADMIN is missing: run as root, or give this process the capability")


def effective_capabilities() -> int:
    """The capabilities that this thread has in effect, one bit each (proc(5), status, CapEff)."""
    with open("/proc/thread-self/status", encoding="ascii", errors="replace") as status:
        return next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
