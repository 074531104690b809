"""The first half of every job: which chains are there, what they hold, and who is alive. Takes no lock."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from netsweep.errors import BusyError, ContentionError, NetsweepError, UsageError
from netsweep.firewall import Backend, Scan
from netsweep.firewall.opening import open_backend
from netsweep.host import leases, observer
from netsweep.host.capabilities import require_net_admin
from netsweep.host.leases import Leases
from netsweep.jobs.patience import Patience
from netsweep.model import BackendName, Chain, Family, Lease, Life, Rule, Table
from netsweep.output.failures import explain
from netsweep.output.text import changes
from netsweep.policy.names import Names
from netsweep.policy.patterns import ChainPattern
from netsweep.policy.verdicts import Policy
from netsweep.profiles.options import Options
from netsweep.report import Report

if TYPE_CHECKING:
    from netsweep.host.interfaces import Interfaces

BUILT_IN = {
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "raw": ("PREROUTING", "OUTPUT"),
    "security": ("INPUT", "FORWARD", "OUTPUT"),
}
"""The chains that iptables makes when they are first used (iptables(8), TABLES)."""

SWEPT = frozenset({Family.IPV4, Family.IPV6, Family.INET})
"""The families whose rules can be decided on."""

PARSE_MAX = 64 * 1024
"""Bytes of leases that are parsed under the subnet lock; they take 7 ms. Larger files are only compared there."""


class Look(NamedTuple):
    """The rules that may concern us, and who was alive after they were read.

    ``elsewhere`` are rules of chains that were not selected, where they were asked for. ``more``: a chain
    has rules beyond the limit.
    """

    rules: list[Rule]
    elsewhere: list[Rule]
    life: Life
    more: bool


class Living(NamedTuple):
    """Who was alive, with the leases that say so, and the processes of leases that were dead."""

    life: Life
    leases: Leases
    dead: Collection[int]


class Judge:
    """Decides on rules: by policy, and by who is alive here. A context manager that holds at most one socket.

    ``ignored``: leases that do not count. ``only`` as in :class:`~netsweep.policy.verdicts.Policy`.
    """

    def __init__(
        self,
        options: Options,
        ignored: Callable[[Lease], bool] = lambda _: False,
        only: Collection[str] | None = None,
    ) -> None:
        profile = options.profile
        names = Names(options.prefixes, options.protected, profile.comments, options.globs)
        self.ignored = ignored
        self.policy = Policy(names, profile.claims, include_negated=options.include_negated, only=only)
        self._settle = options.settle
        self._settled: frozenset[str] = frozenset()
        self._lease_file = options.lease_file
        self._leases: Leases | None = None
        self._dead: Collection[int] = ()
        self._interfaces: Interfaces | None = None
        self._resources = ExitStack()

    @property
    def prefilter(self) -> Sequence[bytes]:
        """Byte strings one of which is in every rule that gets a verdict."""
        return self.policy.names.prefilter

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def living(self, rules: Sequence[Rule]) -> Living:
        """Who is alive of those that verdicts on ``rules`` depend on; takes no lock.

        Ask after the rules were read: a bridge is made before its rules, so a name that is missing from
        the later answer is truly gone. Raises :class:`~netsweep.errors.NetsweepError` where leases or
        interfaces cannot be read.
        """
        living = self._living(rules)
        return living._replace(life=living.life._replace(gone=self._settled_of(living.life.gone)))

    def settle(self, rules: Sequence[Rule]) -> Living:
        """Who is alive, as :meth:`living`, for a first look.

        With a settle time, a name is gone only where it was gone in two looks so far apart. Waits where an
        orphan among ``rules`` has a name of which that is not known yet.
        """
        living = self._living(rules)
        if not self._settle:
            return living
        names, _ = self.policy.asked(self.policy.orphans(rules, living.life))
        if self._settled.issuperset(names & living.life.gone):
            return living
        observer.current.working(f"waiting {self._settle:g} s for names that come back")
        time.sleep(self._settle)
        again = self._living(rules)
        self._settled |= living.life.gone & again.life.gone
        return again._replace(life=again.life._replace(gone=self._settled_of(again.life.gone)))

    def _settled_of(self, gone: frozenset[str]) -> frozenset[str]:
        return gone & self._settled if self._settle else gone

    def _living(self, rules: Sequence[Rule]) -> Living:
        names, indexes = self.policy.asked(rules)
        found, dead = self.leases()
        gone, devices = self._find(names, indexes)
        return Living(Life(gone, devices, leases.living(found, names, dead, self.ignored)), found, dead)

    def leases(self) -> tuple[Leases, Collection[int]]:
        """The leases of now, and which of their processes are dead; raises as :func:`netsweep.host.leases.read`."""
        found = self._read_leases(self._leases)
        if found is not self._leases:
            self._leases = found
            self._dead = leases.dead(found.pids)
        return found, self._dead

    def leases_since(self, known: Leases) -> Leases:
        """``known`` with what was written since, under the subnet lock.

        Raises :class:`ContentionError` where a lease file that takes long to read has changed.
        """
        return self._read_leases(known, PARSE_MAX)

    def _read_leases(self, known: Leases | None, parse_max: int | None = None) -> Leases:
        if self._lease_file is None:
            return known or Leases("")
        return leases.read(self._lease_file, known, parse_max)

    def leased_since(self, living: Living) -> Life:
        """``living`` with the leases of now, under the subnet lock.

        Raises :class:`ContentionError` where a lease file that takes long to read has changed.
        """
        gone, known = living.life.gone, living.leases
        found = self.leases_since(known)
        # A process that was dead is not the one of a lease that is new, which may be of another PID namespace.
        new = {
            each.pid for name in gone for each in found.by_name.get(name, ()) if each not in known.by_name.get(name, ())
        }
        dead = set(living.dead) - new if found is not known else living.dead
        return living.life._replace(leases=leases.living(found, gone, dead, self.ignored))

    def confirm(self, orphans: Sequence[Rule], life: Life) -> None:
        """Ask again which interfaces exist; raises :class:`ContentionError` where one keeps an orphan now."""
        gone, devices = self._find(life.gone, life.devices)
        if (gone, devices) == (life.gone, life.devices):
            return
        if len(self.policy.orphans(orphans, life._replace(gone=gone, devices=devices))) < len(orphans):
            came = ", ".join(sorted(life.gone - gone)[:1])
            raise ContentionError(f"{came or 'an interface'} was created meanwhile")

    def _find(
        self, names: Collection[str], indexes: Collection[int]
    ) -> tuple[frozenset[str], Mapping[int, tuple[str, ...]]]:
        if not names and not indexes:
            return frozenset(), {}
        if self._interfaces is None:
            from netsweep.host.interfaces import Interfaces

            self._interfaces = self._resources.enter_context(Interfaces())
        gone, devices = self._interfaces.find(names, indexes)
        self._settled -= gone.symmetric_difference(names)  # who came back has to settle again
        return gone, devices


@contextmanager
def opened(options: Options, prefilter: Sequence[bytes], *, writes: bool = False) -> Iterator[dict[str, Backend]]:
    """The backends that ``options`` name, by name; closed in the end.

    ``prefilter`` and ``writes`` as in :func:`netsweep.firewall.opening.open_backend`.
    """
    require_net_admin()
    undo = options.journal is not None
    with ExitStack() as stack:
        backends = dict[str, Backend]()
        for name in options.backends:
            backends[name] = open_backend(name, prefilter, undo=undo, writes=writes)
            stack.callback(backends[name].close)
        yield backends


@contextmanager
def reporting(report: Report) -> Iterator[None]:
    """Finish the report whatever happens, and attach it to the error or the signal that ends the run."""
    began = time.monotonic()
    try:
        yield
    except Exception as error:
        failure = explain(error)
        if isinstance(failure, BusyError):
            # The status of a timeout promises that nothing was changed.
            if report.changed:
                failure = NetsweepError(f"{failure}; before that, it {changes(report)}")
            else:
                failure = BusyError(f"{failure}; nothing was changed")
        report.errors.append(str(failure))
        failure.report = report
        raise failure from error
    except SystemExit as stopped:  # a signal
        report.errors.append("stopped by a signal")
        vars(stopped)["report"] = report
        raise
    finally:
        report.duration_ms = (time.monotonic() - began) * 1000


def look_around(
    options: Options,
    backends: Mapping[str, Backend],
    judge: Judge,
    patience: Patience,
    report: Report,
    limit: int | None = None,
    *,
    everywhere: bool = False,
    again: bool = False,
) -> Look:
    """Read the chains that ``options`` select in every backend, and then ask who is alive.

    ``limit`` as in :meth:`netsweep.firewall.Backend.read`. ``everywhere``: read all other chains too.
    ``again``: names had time to settle in a look before. What was looked at, and what was not, is noted in
    the report. Raises :class:`UsageError` where none of the chains that were given exists, and
    :class:`~netsweep.errors.NetsweepError`.
    """
    rules, elsewhere, found = list[Rule](), list[Rule](), list[Chain]()
    more = False
    if not report.changed:
        observer.current.working("reading the rules")
    report.chains, report.overlooked = list(options.chains), []
    for each in report.backends:
        each.scanned = each.deleted  # what was deleted was read before
    for backend in backends.values():
        tables, scan = _read(backend, options, patience, report, limit, everywhere=everywhere)
        selected = {chain: options.selects(chain) for chain in scan.chains}
        for rule in scan.rules:
            (rules if selected[rule.chain] else elsewhere).append(rule)
        more = more or scan.more
        looked = [chain for chain, chosen in selected.items() if chosen]
        found += looked
        for table in tables:
            of_table = [chain for chain in looked if chain.table == table]
            if of_table:
                report.of(backend.name, table.family).scanned += sum(scan.scanned[chain] for chain in of_table)
            elif not any(chain.table == table for chain in selected):
                report.overlooked.append(str(table))
    if options.chains_given:
        _check_chains(options, found, report)
    ask = judge.living if again else judge.settle
    living = ask([*rules, *elsewhere])
    report.leases = leases.summary(living.leases, living.dead) if options.lease_file else None
    return Look(rules, elsewhere, living.life, more)


def _read(
    backend: Backend,
    options: Options,
    patience: Patience,
    report: Report,
    limit: int | None = None,
    *,
    everywhere: bool = False,
) -> tuple[Sequence[Table], Scan]:
    """Read the chains that ``options`` select, and with ``everywhere`` all others too."""

    def wanted(chain: Chain) -> bool:
        return options.allows(chain) and (everywhere or options.selects(chain))

    tables, scan = _read_families(backend, options.families & SWEPT, wanted, patience, report, limit)
    rest = SWEPT - options.families
    if everywhere and any(table.family in rest for table in tables):
        try:
            others = _read_families(backend, rest, wanted, patience, report, limit)[1]
        except NetsweepError as error:
            # A sweep does not read them.
            report.warn(f"orphans of other families were not counted: {error}")
        else:
            scan.rules += others.rules
            scan.scanned.update(others.scanned)
            scan.chains += others.chains
    return tables, scan


def _read_families(
    backend: Backend,
    families: Collection[Family],
    wanted: Callable[[Chain], bool],
    patience: Patience,
    report: Report,
    limit: int | None,
) -> tuple[Sequence[Table], Scan]:
    """The tables of ``backend``, and the chains that are ``wanted`` of those of ``families``."""
    again = False

    def read() -> tuple[Sequence[Table], Scan]:
        nonlocal again
        tables = backend.tables()
        scan = backend.read([table for table in tables if table.family in families], wanted, limit, again=again)
        again = not scan.complete
        if again and not patience.exhausted:
            raise ContentionError("the rules changed while they were read")
        return tables, scan

    try:
        tables, scan = patience.retry(read)
    except BusyError:
        # Read once more and accept an incomplete answer, with a warning.
        tables, scan = patience.retry(read)
    if not scan.complete:
        report.warn("the rules changed each time they were read; some may have been missed")
    return tables, scan


def _check_chains(options: Options, found: Collection[Chain], report: Report) -> None:
    missing = [
        text
        for text, pattern in zip(options.chains, options.patterns, strict=True)
        if not any(map(pattern.matches, found)) and not _is_built_in(pattern)
    ]
    if missing and len(missing) == len(options.chains):
        raise UsageError(f"there is no chain {' or '.join(missing)}: 'iptables-save' and 'nft list ruleset' show all")
    for text in missing:
        report.warn(f"there is no chain {text}")


def _is_built_in(pattern: ChainPattern) -> bool:
    # A chain of iptables' own comes into being when it is first used.
    families = (Family.IPV4, Family.IPV6)
    return any(
        pattern.matches(Chain(Table("legacy", family, table), chain))
        for family in families
        for table, chains in BUILT_IN.items()
        for chain in chains
    )


class BackendSurvey(NamedTuple):
    """What one backend holds, or why that cannot be told. ``owned``: rules that name interfaces of ours.

    ``scanned`` and ``owned`` are about the chains that were selected, by family; ``chains`` are all. ``refusals``:
    why tables cannot be changed.
    """

    name: BackendName
    tables: Sequence[Table] | None
    scanned: Mapping[Family, int]
    owned: Mapping[Family, int]
    chains: Sequence[Chain] = ()
    error: NetsweepError | None = None
    refusals: Mapping[Table, str] = MappingProxyType({})


def survey(options: Options) -> list[BackendSurvey]:
    """Count the rules of the selected chains of every backend here; change nothing and take no lock."""
    policy = Judge(options).policy
    found = []
    for name in options.backends:
        try:
            with closing(open_backend(name, policy.names.prefilter)) as backend:
                report = Report("doctor")
                tables, scan = _read(backend, options, Patience(options.wait, report), report, everywhere=True)
                refusals = {table: why for table in tables if (why := backend.refusal(table))}
        except Exception as error:
            found.append(BackendSurvey(name, None, {}, {}, error=explain(error)))
            continue
        scanned, owned = Counter[Family](), Counter[Family]()
        for chain in filter(options.selects, scan.chains):
            scanned[chain.table.family] += scan.scanned[chain]
        for rule in scan.rules:
            if options.selects(rule.chain):
                owned[rule.chain.table.family] += policy.owned([rule])
        found.append(BackendSurvey(name, tables, scanned, owned, scan.chains, refusals=refusals))
    return found


def chain_names(options: Options) -> list[str]:
    """The chains that a sweep may look at, as ``TABLE/CHAIN``: the profile's, iptables' own, and those that exist here.

    Reads no rule. Where the chains of the kernel cannot be read, they are left out.
    """
    names = {f"{table}/{chain}" for table, chains in BUILT_IN.items() for chain in chains}
    names.update(text for text in options.chains if not set(text) & set("*?[:"))

    def note(chain: Chain) -> bool:
        if chain.table.family in SWEPT and options.allows(chain):
            names.add(f"{chain.table.name}/{chain.name}")
        return False

    for name in options.backends:
        with suppress(NetsweepError, ContentionError):
            require_net_admin()
            with closing(open_backend(name, ())) as backend:
                backend.read(backend.tables(), note)
    return sorted(names)
