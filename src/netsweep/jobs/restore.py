"""Undo: put back what a journal says was deleted, where it stood, or say why that cannot be."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from netsweep.errors import NetsweepError
from netsweep.firewall import Addition, Backend, Transaction
from netsweep.firewall.ipset import set_name
from netsweep.firewall.opening import open_backend
from netsweep.host import locks, observer
from netsweep.host.capabilities import require_net_admin
from netsweep.jobs import journal
from netsweep.jobs.journal import Saved
from netsweep.jobs.look import reporting
from netsweep.jobs.patience import Patience
from netsweep.jobs.plan import plan
from netsweep.model import Chain, Rule, Table
from netsweep.output.text import count
from netsweep.profiles import options
from netsweep.report import LockTimes, Report

Entries = Mapping[Chain, Sequence[Sequence[Saved]]]
"""The entries of a journal by chain, oldest first."""


def restore(
    path: str | os.PathLike[str], wait: float | None = None, *, force: bool = False, dry_run: bool = False
) -> Report:
    """Put back what the journal at ``path`` says was deleted; the report's backends say how much.

    ``wait``: seconds to wait and to retry for. ``force``: restore a journal from another network namespace.
    ``dry_run``: only check, and report the rules that would be put back, with their places.
    All is checked before the first table is changed. A restore that was stopped can be run again to go on.
    Raises :class:`~netsweep.errors.NetsweepError`.
    """
    wait = options.WAIT if wait is None else options.seconds("wait", wait)
    path = options.path("journal", path)
    report = Report("restore", dry_run=dry_run)
    with reporting(report), ExitStack() as stack:
        require_net_admin()
        entries, bridges, namespace = journal.read(path)
        if not dry_run:
            # Two restores of one journal at the same time would both find its rules missing.
            stack.enter_context(locks.held(LockTimes(path), wait, mode=0o600, what="journal", option="--wait"))
        if namespace != journal.namespace() and not force:
            raise NetsweepError(
                f"journal {path!a} is from another network namespace, or from before a reboot: nothing was restored; "
                "run restore where the sweep ran, or give --force"
            )
        _check_sets(entries)
        tables = _by_table(entries)
        backends: dict[str, Backend] = {}
        for name in dict.fromkeys(table.backend for table in tables):
            backends[name] = open_backend(name, (), undo=True)
            stack.callback(backends[name].close)
        patience = Patience(wait, report)
        # What no longer fits, in any table, has to be known before the first one is changed.
        for act in (_check,) if dry_run else (_check, _put_back):
            for table, of_table in tables.items():
                patience.retry(partial(act, backends[table.backend], table, of_table, wait, report))
        if bridges:
            report.warn(f"bridges are not brought back: {', '.join(sorted(set(bridges)))}")
        if not (report.returning if dry_run else report.restored):
            why = "every rule of the journal exists already" if entries else "there are no rules in the journal"
            raise NetsweepError(f"{why}: nothing was restored")
    return report


def _check(backend: Backend, table: Table, entries: Entries, wait: float, report: Report) -> None:
    with _planned(backend, table, entries) as (transaction, additions):
        if additions:
            transaction.insert(additions)
            transaction.check()
    if report.dry_run:
        report.returning += _rules(backend, additions)


def _rules(backend: Backend, additions: Sequence[Addition]) -> Iterator[Rule]:
    """The rules of ``additions``, which are in chain order, as they would stand."""
    ahead = Counter[Chain]()
    for chain, place, rules in additions:
        for raw in rules:
            ahead[chain] += 1
            yield Rule(chain, place + ahead[chain], None, backend.spec_of(chain.table, raw))


def _put_back(backend: Backend, table: Table, entries: Entries, wait: float, report: Report) -> None:
    xtables = report.xtables_lock or LockTimes(locks.xtables_lock_path())
    try:
        left = max(0.0, wait - xtables.waited_ms / 1000)
        with backend.locked(xtables, left), _planned(backend, table, entries) as (transaction, additions):
            for batch in _batches(additions, backend.batch):
                transaction.insert(batch)
                transaction.commit()
                report.of(table.backend, table.family).restored += sum(len(addition.rules) for addition in batch)
                observer.current.working(f"restored {count(report.restored, 'rule')}")
    finally:
        report.xtables_lock = xtables if xtables.held_ms else None


@contextmanager
def _planned(backend: Backend, table: Table, entries: Entries) -> Iterator[tuple[Transaction, list[Addition]]]:
    """A transaction, and what has to be inserted in it; raises :class:`NetsweepError` where rules no longer fit."""
    if table not in backend.tables():
        raise NetsweepError(f"table {table} is gone: nothing was restored")
    jumps = [Chain(table, s.undo.jump) for of_chain in entries.values() for e in of_chain for s in e if s.undo.jump]
    chains = list(dict.fromkeys([*entries, *jumps]))
    with backend.transaction(chains, orders=True) as transaction:
        if gone := [chain for chain in chains if chain not in transaction.orders]:
            raise NetsweepError(f"chain {gone[0]} is gone: nothing was restored")
        yield (
            transaction,
            [
                addition
                for chain, of_chain in entries.items()
                for addition in plan(of_chain, chain, transaction.orders[chain], transaction.incarnation)
            ],
        )


def _batches(additions: Sequence[Addition], size: int) -> Iterator[list[Addition]]:
    """``additions`` in batches of at most ``size`` rules.

    From the back, so that no insertion moves the place of one that is still to come.
    """
    batch: list[Addition] = []
    room = size
    for chain, place, rules in reversed(additions):
        end = len(rules)
        while end:
            start = max(0, end - room)
            batch.append(Addition(chain, place, rules[start:end]))
            room -= end - start
            end = start
            if not room:
                yield batch
                batch, room = [], size
    if batch:
        yield batch


def _by_table(entries: Sequence[Sequence[Saved]]) -> dict[Table, dict[Chain, list[list[Saved]]]]:
    tables: dict[Table, dict[Chain, list[list[Saved]]]] = {}
    for entry in entries:
        for chain in dict.fromkeys(saved.chain for saved in entry):
            of_chain = [saved for saved in entry if saved.chain == chain]
            tables.setdefault(chain.table, {}).setdefault(chain, []).append(of_chain)
    return tables


def _check_sets(entries: Sequence[Sequence[Saved]]) -> None:
    for name, number in {item for entry in entries for saved in entry for item in saved.sets.items()}:
        if set_name(number) != name:
            raise NetsweepError(f"ipset's set {name!a} has changed: nothing was restored")
