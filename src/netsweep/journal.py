"""Undo: what a sweep is about to delete, written down before, and put back on demand.

A journal is a file of JSON lines, each with a digest of its own: a header, then one entry for each
transaction, on the disk before the transaction is sent. An entry holds its rules as the kernel had
them, and for each the rules that stood before and after it and stay: that is the place to put it back
to, whatever came or went elsewhere in the chain since.
"""

from __future__ import annotations

import base64
import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, NamedTuple

from netsweep import __version__, locks
from netsweep.backends import Addition, Backend, Scan
from netsweep.errors import BusyError, ContentionError, NetsweepError, NotPermittedError, UsageError
from netsweep.orphans import Finding
from netsweep.report import BackendReport, Report
from netsweep.rules import ChainRef, Undo
from netsweep.safefile import create_regular, describe, open_regular

FORMAT = 1
"""Version of the journal's lines."""

_WHAT = "journal"


class Anchor(NamedTuple):
    """A rule that stays: its identity, and the how-manieth of its kind it is in the chain, from 0."""

    identity: bytes
    number: int


class Place(NamedTuple):
    """Where a rule belongs: behind one rule and before another; ``None`` is the chain's own end."""

    after: Anchor | None
    before: Anchor | None


def places(order: Sequence[bytes], going: Sequence[int]) -> dict[int, Place]:
    """The place of each position in ``going``, in a chain of rules with the identities ``order``.

    Positions count from 1. ``going`` are all that will not be there to hold on to.
    """
    gone = set(going)
    counts: Counter[bytes] = Counter()
    anchors: list[Anchor | None] = []
    for position, identity in enumerate(order, 1):
        if position in gone:
            anchors.append(None)
        else:
            anchors.append(Anchor(identity, counts[identity]))
            counts[identity] += 1
    following: list[Anchor | None] = [None] * len(anchors)
    nearest: Anchor | None = None
    for index in reversed(range(len(anchors))):
        following[index] = nearest
        nearest = anchors[index] or nearest
    found = {}
    nearest = None
    for index, anchor in enumerate(anchors):
        if anchor is None:
            found[index + 1] = Place(nearest, following[index])
        nearest = anchor or nearest
    return found


def find_place(order: Sequence[bytes], place: Place, standing: Mapping[bytes, Sequence[int]]) -> int | None:
    """The index in ``order`` to insert at, or ``None`` where both neighbours have gone.

    ``standing``: the indices at which each identity stands in ``order``.
    """

    def index_of(anchor: Anchor) -> int | None:
        found = standing.get(anchor.identity, ())
        return found[anchor.number] if anchor.number < len(found) else None

    after = index_of(place.after) if place.after else None
    before = index_of(place.before) if place.before else None
    if after is not None:
        # Where they changed sides there is no place between them.
        return after + 1 if before is None or after < before else None
    if before is not None:
        return before
    # A chain that nothing was left of: what was added since came behind it.
    return 0 if place == Place(None, None) else None


class Journal:
    """Writes down what is about to go. Made when the first rule is about to; see :mod:`netsweep.journal`.

    Raises :class:`NetsweepError` where the file exists: what it holds is somebody's only way back.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._file = create_regular(path, os.O_WRONLY | os.O_APPEND, 0o600, what=_WHAT)
        except FileExistsError:
            raise NetsweepError(f"{_WHAT} {path!a} exists already: nothing was deleted; give a new name") from None
        self._entries = 0
        self._sets: dict[int, str] = {}
        self._write({"netsweep_journal": FORMAT, "version": __version__, "written_at_unix": int(time.time())})
        self._sync_folder()

    def check(self, orphans: Sequence[Finding]) -> None:
        """Find out what has to be known of ``orphans`` besides their bytes.

        Raises :class:`NetsweepError` where one of them could not be put back.
        """
        for finding in orphans:
            rule, undo = finding.rule, _undo(finding)
            lost = undo.lost
            for number in undo.sets:
                if number not in self._sets and (name := _set_name(number)):
                    self._sets[number] = name
                if number not in self._sets:
                    lost = f"refers to ipset's set number {number}, whose name cannot be found out"
            if lost:
                raise NetsweepError(
                    f"rule {rule.position} of {rule.backend} {rule.table}/{rule.chain} {lost}: "
                    "it could not be put back, so nothing was deleted; sweep without --journal to delete it"
                )

    def record(self, backend: Backend, scan: Scan, orphans: Sequence[Finding], batch: Sequence[Finding]) -> None:
        """Write an entry for ``batch``, part of the checked ``orphans`` of ``scan``, and wait until it is on the disk.

        Raises :class:`NetsweepError` where the file cannot be written.
        """
        going: dict[str, list[int]] = defaultdict(list)
        for finding in orphans:
            going[finding.rule.chain].append(finding.rule.position)
        place_of = {chain: places(scan.order[chain], positions) for chain, positions in going.items()}
        rules = []
        for finding in batch:
            rule, undo = finding.rule, _undo(finding)
            place = place_of[rule.chain][rule.position]
            rules.append(
                {
                    "chain": rule.chain,
                    "position": rule.position,
                    "comment": rule.comment,
                    "identity": undo.identity.hex(),
                    "after": _anchor_out(place.after),
                    "before": _anchor_out(place.before),
                    "jump": undo.jump,
                    "sets": {self._sets[number]: number for number in undo.sets},
                    "raw": base64.b64encode(undo.raw).decode("ascii"),
                }
            )
        self._entries += 1
        self._write({"entry": self._entries, "backend": backend.name, "table": scan.table, "rules": rules})

    def void(self) -> None:
        """Take the last entry back: its transaction came to nothing."""
        self._write({"void": self._entries})

    def close(self) -> None:
        os.close(self._file)

    def _write(self, line: dict[str, Any]) -> None:
        data = json.dumps({**line, "digest": _digest(line)}).encode("ascii") + b"\n"
        try:
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        except OSError as error:
            raise describe(error, f"cannot write {_WHAT} {self._path!a}") from error

    def _sync_folder(self) -> None:
        folder = os.open(os.path.dirname(os.path.abspath(self._path)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _undo(finding: Finding) -> Undo:
    if finding.rule.undo is None:
        raise NetsweepError("the rules were not read with what a restore needs")
    return finding.rule.undo


def _set_name(number: int) -> str | None:
    """The name of the ipset set that has this number in this network namespace now.

    The kernel shows a rule's sets by number only, and gives the number out again when the set has gone.
    """
    from pyroute2.ipset import IPSet
    from pyroute2.netlink.exceptions import NetlinkError

    with IPSet() as ipset:
        try:
            (answer,) = ipset.get_set_byindex(number)
        except (NetlinkError, OSError):
            return None
        name = answer.get_attr("IPSET_ATTR_SETNAME")
        return name if isinstance(name, str) else None


def _digest(line: Mapping[str, Any]) -> str:
    return blake2b(json.dumps(line).encode("ascii"), digest_size=16).hexdigest()


def _anchor_out(anchor: Anchor | None) -> list[object] | None:
    return [anchor.identity.hex(), anchor.number] if anchor else None


@dataclass
class Saved:
    """A rule from a journal."""

    chain: str
    identity: bytes
    place: Place
    jump: str | None
    sets: dict[str, int]
    raw: bytes


@dataclass
class Entry:
    """A transaction from a journal."""

    number: int
    backend: str
    table: str
    rules: list[Saved] = field(default_factory=list)


def read(path: str) -> list[Entry]:
    """The entries of the journal at ``path`` that were not taken back.

    Its rules go into the kernel as they are, so only a file counts that nobody but this user (or
    root) can have written. Raises :class:`NetsweepError`; a last line that is cut off, as a sweep
    that was killed may leave, was never acted on and is left out.
    """
    try:
        descriptor = open_regular(path, os.O_RDONLY, what=_WHAT)
    except FileNotFoundError:
        raise NetsweepError(f"there is no {_WHAT} {path!a}") from None
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            raise NotPermittedError(f"{_WHAT} {path!a} can be written by others: refused, its rules would be anybody's")
        lines = file.read().split(b"\n")
    try:
        return list(_entries(lines[:-1]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError) as error:
        raise NetsweepError(f"{path!a} is no {_WHAT} of netsweep, or damaged") from error


def _entries(lines: Sequence[bytes]) -> Iterator[Entry]:
    header, *rest = map(_line, lines)
    if header["netsweep_journal"] != FORMAT:
        raise ValueError("unknown format")
    taken_back = {line["void"] for line in rest if "void" in line}
    for line in rest:
        if "entry" in line and line["entry"] not in taken_back:
            if line["backend"] not in ("legacy", "nft"):
                raise ValueError("unknown backend")
            entry = Entry(line["entry"], line["backend"], line["table"])
            for rule in line["rules"]:
                ref = ChainRef.parse(f"{entry.table}/{rule['chain']}")
                place = Place(_anchor_in(rule["after"]), _anchor_in(rule["before"]))
                raw = base64.b64decode(rule["raw"], validate=True)
                identity = bytes.fromhex(rule["identity"])
                entry.rules.append(Saved(ref.chain, identity, place, rule["jump"], rule["sets"], raw))
            yield entry


def _line(text: bytes) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(text)
    if line.pop("digest") != _digest(line):
        raise ValueError("wrong digest")
    return line


def _anchor_in(anchor: Any) -> Anchor | None:
    if anchor is None:
        return None
    identity, number = anchor
    if not isinstance(number, int) or number < 0:
        raise ValueError("no number")
    return Anchor(bytes.fromhex(identity), number)


def plan(entries: Sequence[Entry], scan: Scan, where: str) -> list[Addition]:
    """What to insert where, so that the rules of ``entries`` stand again as they did.

    An entry whose rules all stand already is one whose transaction never was: it is left out. Raises
    :class:`NetsweepError` where the rules no longer fit.
    """
    there: dict[str, dict[bytes, list[int]]] = {}
    for chain, order in scan.order.items():
        standing = there[chain] = defaultdict(list)
        for index, identity in enumerate(order):
            standing[identity].append(index)
    additions: dict[tuple[str, int], Addition] = {}
    for entry in entries:
        again = [rule.chain for rule in entry.rules if rule.identity in there.get(rule.chain, {})]
        if len(again) == len(entry.rules):
            continue
        if again:
            raise NetsweepError(
                f"{where}/{again[0]} has some of the rules again already: nothing was restored, they no longer fit"
            )
        for rule in entry.rules:
            if gone := {rule.chain, rule.jump}.intersection(scan.missing):
                raise NetsweepError(f"chain {where}/{gone.pop()} is gone: nothing was restored")
            place = find_place(scan.order[rule.chain], rule.place, there[rule.chain])
            if place is None:
                raise NetsweepError(
                    f"the rules around their places in {where}/{rule.chain} have gone: nothing was restored, "
                    "they no longer fit"
                )
            additions.setdefault((rule.chain, place), Addition(rule.chain, place, [])).rules.append(rule.raw)
    return list(additions.values())


def restore(path: str, open_backend: Callable[[str], Backend], wait: float) -> Report:
    """Put back what the journal at ``path`` says was deleted; the report's backends say how much.

    ``open_backend`` makes a backend that keeps what a restore needs, from its name; ``wait`` is in
    seconds. All tables are checked before the first is changed, and each is changed in one step.
    Raises :class:`NetsweepError`.
    """
    started = time.monotonic()
    report = Report("restore")
    tables: dict[str, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for entry in read(path):
        tables[entry.backend][entry.table].append(entry)
    xtables = locks.LockTimes(locks.xtables_lock_path())
    try:
        deadline = started + wait
        while True:
            try:
                with ExitStack() as stack:
                    _restore(tables, open_backend, stack, xtables, wait, report)
                break
            except ContentionError as error:
                if time.monotonic() > deadline:
                    raise BusyError(f"{error}, for {wait:g} s; retry, or raise --wait") from None
                time.sleep(0.002)
    except NetsweepError as error:
        report.errors.append(str(error))
        error.report = report
        raise
    finally:
        report.xtables_lock = xtables if xtables.held_ms else None
        report.duration_ms = (time.monotonic() - started) * 1000
    return report


def _check_sets(rules: Sequence[Saved]) -> None:
    for name, number in {item for rule in rules for item in rule.sets.items()}:
        if _set_name(number) != name:
            raise NetsweepError(f"ipset's set {name!a} is not the same any more: nothing was restored")


def _restore(
    tables: dict[str, dict[str, list[Entry]]],
    open_backend: Callable[[str], Backend],
    stack: ExitStack,
    xtables: locks.LockTimes,
    wait: float,
    report: Report,
) -> None:
    steps = []
    for by_table in tables.values():
        _check_sets([rule for entries in by_table.values() for entry in entries for rule in entry.rules])
    for name, by_table in tables.items():
        backend = open_backend(name)
        stack.callback(backend.close)
        existing = backend.tables()
        stack.enter_context(backend.writing(xtables, wait))
        for table, entries in by_table.items():
            where = f"{name} {table}"
            if table not in existing:
                raise NetsweepError(f"table {where} is gone: nothing was restored")
            rules = [rule for entry in entries for rule in entry.rules]
            chains = list(dict.fromkeys(chain for rule in rules for chain in (rule.chain, rule.jump) if chain))
            transaction = stack.enter_context(backend.transaction(backend.scan(table, chains)))
            if not transaction.scan.complete:
                raise ContentionError(f"reading {where}")
            if additions := plan(entries, transaction.scan, where):
                steps.append((backend, transaction, additions))
    for backend, transaction, additions in steps:
        transaction.insert(additions)
        done = next((b for b in report.backends if b.name == backend.name), None)
        if done is None:
            done = BackendReport(backend.name, backend.family)
            report.backends.append(done)
        done.restored += sum(len(addition.rules) for addition in additions)
    if not steps:
        raise NetsweepError("all rules of the journal stand already: nothing was restored")
