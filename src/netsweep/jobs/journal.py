"""What a sweep deletes, written down before it goes.

A journal is a file of JSON lines, each with a digest of its own: a header, then an entry for each
transaction, written before the transaction is sent, and a line that says that it was done. An entry
holds its rules as the kernel had them, and for each the rules that stood right before and behind it once
they were gone: that is the place to put it back to.

In a directory each journal gets a name of its own. Whoever may write to the directory may remove it, but can put none
of their own in its place: :func:`read` takes only what this user or root has written.

Nothing waits for the disk: what a journal is to survive is the end of the process, not of the kernel,
whose rules would be gone too.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import socket
import stat
import struct
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Any, NamedTuple

from netsweep.errors import ContentionError, NetsweepError, NotPermittedError
from netsweep.firewall import Standing, Transaction
from netsweep.firewall.ipset import set_name
from netsweep.host.files import check_creatable, create_regular, describe, open_regular
from netsweep.model import BACKENDS, Bridge, Chain, Family, Rule, Table, Undo
from netsweep.version import __version__

FORMAT = 2
"""Version of the journal's lines."""

NEIGHBOURS = 8
"""How many rules on each side tell a place. On a busy host the nearest ones are often gone a moment later."""

_WHAT = "journal"

_PREFIX, _SUFFIX = "netsweep-", ".journal"
"""How the names of journals in a directory begin and end."""

_SO_NETNS_COOKIE = 71
"""asm-generic/socket.h: a number of the network namespace that is never given out twice (Linux 5.14)."""


class Anchor(NamedTuple):
    """A rule beside a place: its identity and handle, and which of how many of its kind it is, from 0."""

    identity: bytes
    handle: int | None
    number: int
    copies: int


class Place(NamedTuple):
    """Where a rule was; the fields are those of :class:`Saved`."""

    after: tuple[Anchor, ...]
    before: tuple[Anchor, ...]
    left: int


class Saved(NamedTuple):
    """A deleted rule.

    ``after`` and ``before`` are the rules that stood around its place when it was gone, the nearest first:
    as many as :data:`NEIGHBOURS`, or all up to the chain's own end. ``left`` is how many of its kind still
    stood in the chain then. ``incarnation`` is that of the table whose handles these are.
    """

    incarnation: int | None
    chain: Chain
    undo: Undo
    handle: int | None
    after: tuple[Anchor, ...]
    before: tuple[Anchor, ...]
    left: int
    sets: Mapping[str, int]


class Journal:
    """Writes down what is about to go; see :mod:`netsweep.jobs.journal`. A context manager.

    ``path`` is that of the new file, or of a directory for it. The file is created when something is to go. All methods
    raise :class:`NetsweepError` where it exists then: what it holds is somebody's only way back.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: int | None = None
        self._entries = 0
        self._bridges = 0
        self._sets: dict[int, str] = {}

    @property
    def path(self) -> str | None:
        """The absolute path of the file; ``None`` where nothing was written down."""
        return _absolute(self._path) if self._entries or self._bridges else None

    @property
    def _in_directory(self) -> bool:
        return self._path.endswith("/") or os.path.isdir(self._path)

    def _open(self) -> int:
        if self._in_directory:
            self._file = self._create_in(self._path)
        else:
            try:
                self._file = self._create(self._path)
            except FileExistsError:
                raise self._exists() from None
        header = {"netsweep_journal": FORMAT, "version": __version__, "written_at_unix": int(time.time())}
        self._write({**header, "namespace": namespace()})
        return self._file

    def _create(self, path: str) -> int:
        created = create_regular(path, os.O_WRONLY | os.O_APPEND, 0o600, what=_WHAT)
        self._path = path
        return created

    def _create_in(self, directory: str) -> int:
        """Create a file with a name of its own in ``directory``."""
        _check_directory(directory)
        began = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        for number in itertools.count(1):
            name = f"{_PREFIX}{began}-{os.getpid()}{f'-{number}' if number > 1 else ''}{_SUFFIX}"
            with suppress(FileExistsError):
                return self._create(os.path.join(directory, name))
        raise AssertionError("unreachable")

    def check(self, rules: Iterable[Rule]) -> None:
        """Raise :class:`NetsweepError` where one of ``rules`` could not be put back."""
        if self._file is None:
            self._open()
        self._check(rules)

    def foresee(self, rules: Iterable[Rule]) -> None:
        """Raise what :meth:`check` would, as far as that shows without creating the file."""
        path = self._path
        if self._in_directory:
            _check_directory(path)
            path = os.path.join(path, _PREFIX)  # any name
        elif os.path.lexists(path):
            raise self._exists()
        check_creatable(path, what=_WHAT)
        self._check(rules)

    def _exists(self) -> NetsweepError:
        return NetsweepError(
            f"{_WHAT} {self._path!a} exists already: nothing was deleted; give a new name, or a directory"
        )

    def _check(self, rules: Iterable[Rule]) -> None:
        for rule in rules:
            undo = _undo(rule)
            lost = undo.lost
            for number in undo.sets:
                if number not in self._sets and (name := set_name(number)):
                    self._sets[number] = name
                if number not in self._sets:
                    lost = f"uses ipset's set number {number}, whose name cannot be found out"
            if lost:
                raise NetsweepError(
                    f"{rule} {lost}: it could not be put back, so it was not deleted; "
                    "sweep without --journal to delete it"
                )

    def record(self, rules: Sequence[Rule], transaction: Transaction) -> None:
        """Write an entry for ``rules``, which are about to go in ``transaction``.

        It was opened with the orders of their chains. Raises :class:`NetsweepError` where one
        could not be put back, or the file cannot be written.
        """
        self.check(rules)
        going: dict[Chain, list[Rule]] = defaultdict(list)
        for rule in rules:
            going[rule.chain].append(rule)
        saved = [
            self._saved_out(rule, place)
            for chain, of_chain in going.items()
            for rule, place in zip(of_chain, places(transaction.orders[chain], of_chain), strict=True)
        ]
        self._entries += 1
        backend, family, name = rules[0].chain.table
        where = {"backend": backend, "family": family, "table": name, "incarnation": transaction.incarnation}
        self._write({"entry": self._entries, **where, "rules": saved})

    def note(self, bridge: Bridge) -> None:
        """Write down that ``bridge`` is about to go, for the record: a restore does not bring it back."""
        self._bridges += 1
        addresses = [address.text for address in bridge.addresses]
        self._write({"bridge": bridge.name, "addresses": addresses, "mtu": bridge.mtu, "mac": bridge.mac})

    def confirm(self) -> None:
        """Note that the last entry's rules have gone."""
        self._write({"done": self._entries})

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is None:
            return
        with suppress(OSError):
            # A file without entries tells nothing.
            if not (self._entries or self._bridges) and os.path.samestat(os.fstat(self._file), os.lstat(self._path)):
                os.unlink(self._path)
        os.close(self._file)

    def _saved_out(self, rule: Rule, place: Place) -> dict[str, Any]:
        undo = _undo(rule)
        return {
            "chain": rule.chain.name,
            "position": rule.position,
            "comment": rule.spec.comment,
            "identity": undo.identity.hex(),
            "handle": rule.handle,
            "after": [[anchor.identity.hex(), *anchor[1:]] for anchor in place.after],
            "before": [[anchor.identity.hex(), *anchor[1:]] for anchor in place.before],
            "left": place.left,
            "jump": undo.jump,
            "sets": {self._sets[number]: number for number in undo.sets},
            "raw": base64.b64encode(undo.raw).decode("ascii"),
        }

    def _write(self, line: dict[str, Any]) -> None:
        data = json.dumps({**line, "digest": _digest(line)}).encode("ascii") + b"\n"
        try:
            while data:
                data = data[os.write(self._open() if self._file is None else self._file, data) :]
        except OSError as error:
            raise describe(error, f"cannot write {_WHAT} {self._path!a}") from error


def places(order: Sequence[Standing], going: Sequence[Rule]) -> list[Place]:
    """The place that each of ``going`` leaves.

    ``order``: every rule of the chain. Rules without handles are found by their positions. Raises
    :class:`ContentionError` where ``order`` is of another moment and has others.
    """
    by_handle = going[0].handle is not None
    keys = [rule.handle if by_handle else rule.position for rule in going]
    at = {each.handle if by_handle else position: position - 1 for position, each in enumerate(order, 1)}
    if any(
        key not in at or order[at[key]].identity != _undo(rule).identity for key, rule in zip(keys, going, strict=True)
    ):
        raise ContentionError("rules changed while their places were read")
    gone = {at[key] for key in keys}
    staying = [each for index, each in enumerate(order) if index not in gone]
    copies, counted = Counter(each.identity for each in staying), Counter[bytes]()
    anchors = []
    for identity, handle in staying:
        anchors.append(Anchor(identity, handle, counted[identity], copies[identity]))
        counted[identity] += 1
    ahead = list(itertools.accumulate((index not in gone for index in range(len(order))), initial=0))
    found = []
    for key in keys:
        here = ahead[at[key]]
        after = tuple(reversed(anchors[max(0, here - NEIGHBOURS) : here]))
        before = tuple(anchors[here : here + NEIGHBOURS])
        found.append(Place(after, before, copies[order[at[key]].identity]))
    return found


def _check_directory(path: str) -> None:
    """Raise :class:`NetsweepError` where a journal in the directory at ``path`` would be at anybody's mercy."""
    try:
        link, status = os.lstat(path.rstrip("/") or "/"), os.stat(path)
        above = os.stat(os.path.join(path, os.pardir))
    except OSError as error:
        raise describe(error, f"cannot create {_WHAT} in {path!a}") from error
    if stat.S_ISLNK(link.st_mode) and link.st_uid not in (0, os.geteuid()):
        raise NetsweepError(
            f"{path!a} is another user's link to a directory: nothing was deleted; give the directory itself"
        )
    if status.st_uid not in (0, os.geteuid()) and above.st_mode & stat.S_IWOTH:
        # Where a new file was meant, it may have been put there to take the journal.
        raise NetsweepError(
            f"{path!a} is another user's directory in one that every user can write to: nothing was deleted; "
            "give another directory"
        )
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        raise NetsweepError(
            f"every user can remove a {_WHAT} in {path!a}: nothing was deleted; "
            "give another directory, or set its sticky bit (chmod +t)"
        )


def _is_trusted(status: os.stat_result) -> bool:
    """Whether nobody but this user (or root) can have written the journal with ``status``."""
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o022


def _absolute(path: str) -> str:
    # To resolve '..' as text would be wrong behind a link, and the current directory may be gone.
    if ".." not in path.split("/"):
        return os.path.abspath(path)
    return path if os.path.isabs(path) else os.path.join(os.getcwd(), path)


def _journals_in(path: str) -> str:
    """Which journals the directory at ``path`` holds, for a message."""
    try:
        with os.scandir(path) as entries:
            found = [
                (entry.stat(follow_symlinks=False), entry.name)
                for entry in entries
                if entry.name.startswith(_PREFIX) and entry.name.endswith(_SUFFIX)
            ]
    except OSError as error:
        raise describe(error, f"cannot read directory {path!a}") from error
    names = sorted(((status.st_mtime_ns, name) for status, name in found if _is_trusted(status)), reverse=True)
    newest, *others = [os.path.join(path, name) for _, name in names] or [""]
    if not newest:
        return f"{path!a} is a directory without {_WHAT}s: give the file that a sweep wrote"
    more = f", before that {', '.join(map(ascii, others[:2]))}" if others else ""
    rest = f" and {len(others) - 2:,} more" if len(others) > 2 else ""
    return f"{path!a} is a directory; its newest {_WHAT} is {newest!a}{more}{rest}: give one of them"


def namespace() -> list[str | int]:
    """What tells this network namespace from all others: the boot, and the namespace's number."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as boot:
        boot_id = boot.read().strip()
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            cookie = struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))[0]
        except OSError:
            cookie = os.stat("/proc/thread-self/ns/net").st_ino
    return [boot_id, cookie]


def read(path: str) -> tuple[list[list[Saved]], list[str], list[str | int]]:
    """The entries of the journal at ``path``, oldest first, the bridges in it, and the network namespace that it is of.

    An entry that was not done is left out where another follows, as then its transaction came to
    nothing; of the last one nobody knows. Its rules go into the kernel as they are, so only a file
    counts that nobody but this user (or root) can have written. Raises :class:`NetsweepError`; a last
    line that is cut off, as a sweep that was killed may leave, was never acted on and is left out.
    """
    if os.path.isdir(path):
        raise NetsweepError(_journals_in(path))
    try:
        descriptor = open_regular(path, os.O_RDONLY, what=_WHAT)
    except FileNotFoundError:
        raise NetsweepError(f"there is no {_WHAT} {path!a}") from None
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not _is_trusted(status):
            raise NotPermittedError(
                f"{_WHAT} {path!a} can be written by other users, so its rules cannot be trusted: nothing was restored"
            )
        try:
            lines = (file.read() or b"").split(b"\n")
        except OSError as error:
            raise describe(error, f"cannot read {_WHAT} {path!a}") from error
    try:
        header, *rest = map(_line, lines[:-1])
        if header["netsweep_journal"] != FORMAT:
            raise ValueError("unknown format")
        return list(_entries(rest)), [str(line["bridge"]) for line in rest if "bridge" in line], header["namespace"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise NetsweepError(f"{path!a} is not a {_WHAT} of netsweep, or it is damaged") from error


def _entries(lines: Sequence[Mapping[str, Any]]) -> Iterator[list[Saved]]:
    done = {line["done"] for line in lines if "done" in line}
    entries = [line for line in lines if "entry" in line]
    for line in entries:
        if line["entry"] in done or line is entries[-1]:
            if line["backend"] not in BACKENDS:
                raise ValueError("unknown backend")
            table = Table(line["backend"], Family(line["family"]), line["table"])
            yield [_saved_in(line["incarnation"], table, rule) for rule in line["rules"]]


def _saved_in(incarnation: int | None, table: Table, rule: Mapping[str, Any]) -> Saved:
    raw, identity = base64.b64decode(rule["raw"], validate=True), bytes.fromhex(rule["identity"])
    undo = Undo(raw, identity, rule["jump"], tuple(rule["sets"].values()))
    after, before = (
        tuple(Anchor(bytes.fromhex(identity), *rest) for identity, *rest in rule[side]) for side in ("after", "before")
    )
    return Saved(
        incarnation, Chain(table, rule["chain"]), undo, rule["handle"], after, before, int(rule["left"]), rule["sets"]
    )


def _line(text: bytes) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(text)
    if line.pop("digest") != _digest(line):
        raise ValueError("wrong digest")
    return line


def _digest(line: Mapping[str, Any]) -> str:
    return blake2b(json.dumps(line).encode("ascii"), digest_size=16).hexdigest()


def _undo(rule: Rule) -> Undo:
    if rule.undo is None:
        raise NetsweepError("the rules were not read with what a restore needs")
    return rule.undo
