"""The main path: look, lock, look again, decide, journal, delete, report.

The first look takes no lock. Where it finds orphans, the subnet lock is taken (then, for x_tables, the
xtables lock); the rules, the leases and the interfaces are looked at again, and what still is an orphan
is deleted: a table of x_tables in one atomic step, those of nf_tables together in batches. Rules are always read
before interfaces: a bridge is made before its rules, so a name that is missing from the later answer is
truly gone.
"""

from __future__ import annotations

import gc
import itertools
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from netsweep.errors import NetsweepError, TableError
from netsweep.firewall import Backend
from netsweep.host import locks, observer, priority
from netsweep.jobs.locked import subnet_locked
from netsweep.jobs.look import Judge, look_around, opened, reporting
from netsweep.jobs.patience import Patience
from netsweep.model import BridgeFinding, Finding, Rule, Table, Verdict
from netsweep.output.text import count
from netsweep.profiles.options import Options
from netsweep.report import Command, LockTimes, Report

if TYPE_CHECKING:
    from netsweep.jobs.journal import Journal

LOOK_MAX = 4_000
"""Rules of one chain that a sweep reads before it deletes the orphans among them, where reading all at once is
slower. A dump of 60,000 rules of nf_tables takes 4.6 s; a sweep of 90,000 orphans takes 10.0 s with this, 11.6 s with
twice and 11.5 s with half of it."""

MANY = 1_000
"""More orphans than this take so long to delete that a raised priority would be felt by others; it is one batch."""


def find_orphans(options: Options, *, keep: bool = False, command: Command = "list", dry_run: bool = False) -> Report:
    """Report the orphaned rules, and with ``keep`` the others that get a verdict; change nothing, take no lock.

    Where bridges are asked for, so are they, and the rules that would go with them are orphans too. Orphans in chains
    that were not selected are counted. Raises :class:`~netsweep.errors.NetsweepError`.
    """
    report = Report(command, dry_run=dry_run)
    with reporting(report), Judge(options) as judge, opened(options, judge.prefilter) as backends:
        patience = Patience(options.wait, report)
        look = look_around(options, backends, judge, patience, report, everywhere=True)
        if options.settle and judge.policy.orphans([*look.rules, *look.elsewhere], look.life):
            # Their owner may have deleted some of the rules meanwhile.
            look = look_around(options, backends, judge, patience, report, everywhere=True, again=True)
        life, leaked = look.life, list[BridgeFinding]()
        if options.bridges:
            from netsweep.jobs.bridges import Bridges, explained, presumed_gone  # most runs need none

            with Bridges(options, judge, patience, report) as bridges:
                leaked = bridges.find(keep=keep).leaked
            life = presumed_gone(life, leaked)
        findings = judge.policy.judge(look.rules, life)
        orphans = [finding for finding in findings if finding.verdict is Verdict.ORPHAN]
        report.add_orphans(explained(orphans, leaked) if leaked else orphans)
        report.negated = [finding for finding in findings if finding.verdict is Verdict.NEGATED]
        report.kept = [finding for finding in findings if keep and finding.verdict is not Verdict.ORPHAN]
        report.elsewhere = len(judge.policy.orphans(look.elsewhere, life))
        if dry_run:
            check_number(options, len(report.orphans), len(leaked))
    return report


def check_number(options: Options, rules: int, bridges: int = 0) -> None:
    """Raise :class:`NetsweepError` where more would go than ``options`` allow."""
    if options.max_deletes is not None and rules + bridges > options.max_deletes:
        going = count(rules, "rule") + (f" and {count(bridges, 'bridge')}" if bridges else "")
        raise NetsweepError(f"{going} would go, which is more than --max-deletes {options.max_deletes:,}")


def sweep(options: Options) -> Report:
    """Delete the orphaned rules, where they are asked for the leaked bridges before, and report them.

    Raises :class:`~netsweep.errors.NetsweepError`, whose ``report`` says what was deleted before.
    """
    report = Report("sweep")
    with (
        reporting(report),
        Judge(options) as judge,
        opened(options, judge.prefilter, writes=True) as backends,
        _journal(options, report) as journal,
    ):
        patience = Patience(options.wait, report)
        refused: dict[Table, str] = {}
        with _bridges_deleted(options, backends, judge, journal, patience, report) as failures:
            # What a journal could not put back, and how much goes, has to be known before anything goes.
            limit = None if options.journal or options.max_deletes is not None else LOOK_MAX
            began, more = time.monotonic(), True
            while more:
                rules, _, life, more = look_around(options, backends, judge, patience, report, limit)
                orphans = _as_numbered_at_first(judge.policy.orphans(rules, life), report)
                kept = [rule for rule in orphans if rule.chain.table in refused]
                wanted = [rule for rule in orphans if rule.chain.table not in refused]
                with _checking(orphans, judge, report):
                    check_number(options, report.deleted + len(orphans), report.bridges_deleted)
                    if journal and wanted:
                        journal.check(wanted)
                if more or len(orphans) > MANY:
                    priority.calm_down()
                if wanted:
                    kept += delete_rules(
                        options, backends, wanted, judge, journal, patience, refused, report, more=more
                    )
                if limit and 2 * len(wanted) < limit:
                    limit *= 2  # mostly rules that stay: the next look has to see behind them
                if time.monotonic() > began + options.wait:
                    limit = None  # who leaks as fast as this deletes must not keep it going: the next look is the last
                judge.policy.forget()
            report.add_orphans(judge.policy.found(kept))
        if failures or refused:
            raise TableError("; ".join([*failures, *refused.values()]))
    return report


@contextmanager
def _bridges_deleted(
    options: Options,
    backends: Mapping[str, Backend],
    judge: Judge,
    journal: Journal | None,
    patience: Patience,
    report: Report,
) -> Iterator[list[str]]:
    """Delete leaked bridges before, where they are asked for, and in the end their leases; yield what failed."""
    if not options.bridges:
        yield []
        return
    from netsweep.jobs.bridges import Bridges, presumed_gone  # most runs need none

    with Bridges(options, judge, patience, report) as bridges:
        look = bridges.find()
        if look.leaked:
            priority.calm_down()  # each takes 40 ms
        if look.leaked and (journal or options.max_deletes is not None):
            rules, _, life, _ = look_around(options, backends, judge, patience, report)
            orphans = judge.policy.orphans(rules, presumed_gone(life, look.leaked))
            with _checking(orphans, judge, report):
                check_number(options, len(orphans), len(look.leaked))
                if journal:
                    journal.check(orphans)
        failures = bridges.delete(look, journal)
        judge.ignored = bridges.unwanted.__contains__
        yield failures
        # Not where sweeping the rules ended early: as long as they are left, nobody else should lease the names.
        failures += bridges.remove_leases()


@contextmanager
def _checking(orphans: Sequence[Rule], judge: Judge, report: Report) -> Iterator[None]:
    """Report ``orphans`` where a check that comes before anything goes ends the run: they are there, and stay."""
    try:
        yield
    except Exception:
        report.add_orphans(judge.policy.found(orphans))
        raise


def _as_numbered_at_first(rules: list[Rule], report: Report) -> list[Rule]:
    """``rules``, read when those of the report had gone, numbered as if these still stood in front of them."""
    gone = Counter(finding.rule.chain for finding in report.orphans)
    return [rule._replace(position=rule.position + gone[rule.chain]) for rule in rules] if gone else rules


def delete_rules(
    options: Options,
    backends: Mapping[str, Backend],
    orphans: Sequence[Rule],
    judge: Judge,
    journal: Journal | None,
    patience: Patience,
    refused: dict[Table, str],
    report: Report,
    *,
    more: bool = False,
) -> list[Rule]:
    """Delete ``orphans``, portion by portion, and return those of tables that refuse.

    Why a table refuses is added to ``refused``; it does not stop the others. ``more``: there may be others.
    """
    pending, kept = orphans, list[Rule]()
    total = report.deleted + len(orphans)
    # A journal is of one table at a time.
    apart = journal is not None
    try:
        while pending:
            backend = backends[pending[0].chain.table.backend]
            portion = list(itertools.islice(_together(pending, apart or not backend.spans_tables), backend.batch))
            now = f", {len(portion):,} more at once" if len(portion) > MANY else ""
            done = count(report.deleted, "rule") if more else f"{report.deleted:,} of {count(total, 'rule')}"
            observer.current.working(f"deleted {done}{now}")
            attempt = partial(_delete_some, options, backend, portion, judge, journal, report)
            try:
                deleted = patience.retry(attempt)
            except TableError as error:
                if portion[0].chain.table != portion[-1].chain.table:
                    apart = True  # which of them it is shows when each is changed alone
                    continue
                refused[pending[0].chain.table] = str(error)
                refusing = list(_together(pending, apart=True))
                kept += refusing
                pending = pending[len(refusing) :]
                continue
            report.add_orphans(deleted)
            pending = pending[len(portion) :]
            if journal and deleted:
                journal.confirm()
    finally:
        report.add_orphans(judge.policy.found(pending))
    return kept


def _delete_some(
    options: Options,
    backend: Backend,
    portion: Sequence[Rule],
    judge: Judge,
    journal: Journal | None,
    report: Report,
) -> list[Finding]:
    """Lock, look again, decide, journal and delete, in one step; return what was deleted."""
    living = judge.living(portion)
    chains = list(dict.fromkeys(rule.chain for rule in portion))
    locks.load()
    backend.ready(portion)
    with (
        _locked(backend, options, report),
        backend.transaction(chains, portion, orders=journal is not None) as transaction,
    ):
        life = judge.leased_since(living)
        orphans = judge.policy.orphans(transaction.rules, life)
        if orphans:
            check_number(options, report.deleted + len(orphans))
            transaction.delete(orphans)
            if journal:
                journal.record(orphans, transaction)
            # Interfaces last: reading a long table or writing a journal takes seconds.
            transaction.commit(partial(judge.confirm, orphans, life))
            for family, deleted in Counter(rule.chain.table.family for rule in orphans).items():
                report.of(backend.name, family).deleted += deleted
    return judge.policy.judge(orphans, life)


@contextmanager
def _journal(options: Options, report: Report) -> Iterator[Journal | None]:
    """The journal, where one was asked for; where it is, and what it is of, is in the report."""
    if options.journal is None:
        yield None
        return
    from netsweep.jobs.journal import Journal  # most runs need none

    with Journal(options.journal) as journal:
        try:
            yield journal
        except SystemExit as stopped:
            # A signal: nobody gets to see the report. That something was deleted may not be known yet.
            vars(stopped)["journal"] = journal.path
            raise
        finally:
            if report.changed:
                report.journal = journal.path


def _together(rules: Sequence[Rule], apart: bool) -> Iterator[Rule]:
    """The first of ``rules``, up to one of another backend; with ``apart``, of another table."""
    table = rules[0].chain.table
    if apart:
        return itertools.takewhile(lambda rule: rule.chain.table == table, rules)
    return itertools.takewhile(lambda rule: rule.chain.table.backend == table.backend, rules)


@contextmanager
def _locked(backend: Backend, options: Options, report: Report) -> Iterator[None]:
    """Hold the subnet lock, and then the backend's own; what that took is in the report.

    Each timeout bounds the whole run, however often the lock is taken.
    """
    xtables = report.xtables_lock or LockTimes(locks.xtables_lock_path())
    try:
        with (
            subnet_locked(options, report),
            backend.locked(xtables, max(0.0, options.wait - xtables.waited_ms / 1000)),
            _uncollected(),
        ):
            yield
    finally:
        # A lock that was never held is not reported.
        report.xtables_lock = xtables if xtables.held_ms else None


@contextmanager
def _uncollected() -> Iterator[None]:
    """Leave garbage collection for later: it takes a quarter of a hold with 9,000 orphans."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
