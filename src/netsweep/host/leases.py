"""The test harness's lease file: which bridges a running job has, or is about to create."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from netsweep.errors import ContentionError, NetsweepError
from netsweep.host.files import read_regular, replace_regular
from netsweep.host.processes import all_pids, is_running, listed_pids
from netsweep.model import Lease
from netsweep.report import LeaseFile

SIZE_MAX = 16 * 1024 * 1024
"""Bytes of the largest lease file that is read: all 12,800 test subnets take about 3 MB."""

PID_MAX = 2**22
"""The largest process ID that Linux gives (PID_MAX_LIMIT, linux/threads.h)."""


@dataclass(frozen=True)
class Leases:
    """What a lease file says.

    ``content`` is ``None`` where there is no file, which means no leases.
    """

    path: str
    content: bytes | None = field(default=None, repr=False)
    by_name: Mapping[str, tuple[Lease, ...]] = field(default_factory=dict)

    @property
    def all(self) -> list[Lease]:
        """Every lease."""
        return [lease for of_name in self.by_name.values() for lease in of_name]

    @property
    def pids(self) -> set[int]:
        """The processes that leases name."""
        return {lease.pid for lease in self.all}

    def without(self, unwanted: Callable[[Lease], bool]) -> Rewritten:
        """What the file says without those leases that are ``unwanted``; takes as long as reading it."""
        gone = {lease.subnet for lease in self.all if unwanted(lease)}
        return Rewritten(self, len(gone), _rewritten(self.content or b"", gone) if gone else b"")


class Rewritten(NamedTuple):
    """A lease file that is about to change: what it said, how many leases are ``removed``, and what it is to say."""

    known: Leases
    removed: int
    content: bytes

    def replace(self) -> None:
        """Replace the file by rename, under the subnet lock; owner, mode and all that is not understood in it stay.

        Raises :class:`~netsweep.errors.ContentionError` where it does not say what is ``known`` any more, and
        :class:`~netsweep.errors.NetsweepError` where it cannot be replaced.
        """
        replace_regular(self.known.path, self.known.content or b"", self.content, what="lease file")


def _rewritten(content: bytes, gone: Collection[str]) -> bytes:
    """A lease file's content without the leases for the subnets that are ``gone``; numbers stay as they are written."""
    mark = os.urandom(8).hex()
    document: dict[str, Any] = json.loads(content, parse_int=f"{mark}{{}}".format, parse_float=f"{mark}{{}}".format)
    document["leases"] = {subnet: lease for subnet, lease in document["leases"].items() if subnet not in gone}
    return re.sub(f'"{mark}([^"]*)"', r"\1", json.dumps(document)).encode("ascii") + b"\n"


class _NotUnderstoodError(ValueError):
    pass


def read(path: str, known: Leases | None = None, parse_max: int | None = None) -> Leases:
    """Read the lease file at ``path``; a missing or empty file means no leases.

    Returns ``known`` itself where the file still says the same, which takes 5 ms for 16 MiB; parsing
    them takes a second. Raises :class:`~netsweep.errors.ContentionError` where it says something else
    and is larger than ``parse_max`` bytes, and :class:`~netsweep.errors.NetsweepError` with file and
    reason where it cannot be read, or where anything in it cannot be understood: half a list of leases
    would make live bridges look dead.
    """
    content = read_regular(path, "lease file", SIZE_MAX)
    if known is not None and (known.path, known.content) == (path, content):
        return known
    if content is None:
        return Leases(path)
    if parse_max is not None and len(content) > parse_max:
        raise ContentionError("the lease file changed")
    try:
        return of(path, content, _parse(content))
    except _NotUnderstoodError as error:
        raise NetsweepError(
            f"cannot understand lease file {path!a}: {error}; repair it, or remove it when no test runs"
        ) from None


def of(path: str, content: bytes, leases: Iterable[Lease]) -> Leases:
    """``leases`` as a file at ``path`` with that ``content`` has them."""
    by_name: dict[str, list[Lease]] = {}
    for lease in leases:
        by_name.setdefault(lease.bridge, []).append(lease)
    return Leases(path, content, {name: tuple(of_name) for name, of_name in by_name.items()})


def dead(pids: Collection[int]) -> set[int]:
    """Those of ``pids`` that no running process on this host has, in any PID namespace.

    A job in a container may have written the PID that it has there, so a PID that does not run here
    proves nothing as long as any process has it somewhere. Where that cannot be known the answer is
    empty. Takes milliseconds: to be called before a lock is taken.
    """
    ended = {pid for pid in pids if not is_running(pid)}
    if not ended:
        return ended
    taken = all_pids()
    return set() if taken is None else ended - taken


def living(
    leases: Leases,
    names: Collection[str],
    dead: Collection[int],
    ignored: Callable[[Lease], bool] = lambda _: False,
) -> dict[str, str]:
    """Those of ``names`` that are leased, each with the reason why the lease counts.

    ``dead`` is what :func:`dead` said; a PID in it that runs by now counts again, and one that it was
    not asked about counts. Leases that are ``ignored`` never count.
    """
    leased = [name for name in names if name in leases.by_name]
    if not leased:
        return {}
    # Asking for each PID alone takes 0.4 s for 300,000 of them, which a file of 16 MiB can hold.
    present, running = listed_pids(), functools.cache(is_running)
    found = {}
    for name in leased:
        for pid in [lease.pid for lease in leases.by_name[name] if not ignored(lease)]:
            if pid in present and running(pid):
                found[name] = f"a running process (PID {pid}) holds a lease for {name}"
                break
            if pid not in dead:
                found[name] = f"the lease for {name} names PID {pid}, which may be of another PID namespace"
                break
    return found


def summary(leases: Leases, dead: Collection[int]) -> LeaseFile:
    """The report on a lease file; ``dead`` is what :func:`dead` said of all its PIDs."""
    running = sum(lease.pid not in dead for lease in leases.all)
    return LeaseFile(leases.path, leases.content is not None, len(leases.all), running)


def _parse(content: bytes) -> list[Lease]:
    """The leases; raises :class:`_NotUnderstoodError` with the reason."""
    if not content.strip():
        return []
    try:
        document = json.loads(content, object_pairs_hook=_no_name_twice, parse_constant=_no_constant)
    except _NotUnderstoodError:
        raise
    except (ValueError, RecursionError) as error:
        raise _NotUnderstoodError(f"not JSON ({ascii(str(error))[1:-1][:80]})") from None
    if not isinstance(document, dict) or "leases" not in document:
        raise _NotUnderstoodError('no "leases" in it')
    leases = document["leases"]
    if leases is None:  # how Go writes an empty map that was never made
        return []
    if not isinstance(leases, dict):
        raise _NotUnderstoodError('"leases" is not an object')
    return [_parse_lease(subnet, lease) for subnet, lease in leases.items()]


def _parse_lease(subnet: str, lease: object) -> Lease:
    where = f"lease {ascii(subnet)[:60]}"
    if not isinstance(lease, dict):
        raise _NotUnderstoodError(f"{where} is not an object")
    bridge, pid = lease.get("bridge_name"), lease.get("pid")
    if not isinstance(bridge, str) or not bridge:
        raise _NotUnderstoodError(f"{where} has no bridge_name")
    # bool is an int to Python, and a PID outside the kernel's range does not tell which process runs.
    if not isinstance(pid, int) or isinstance(pid, bool) or not 0 < pid <= PID_MAX:
        raise _NotUnderstoodError(f"{where} has no valid pid")
    return Lease(subnet, bridge, pid, json.dumps(lease))


def _no_constant(text: str) -> None:
    raise _NotUnderstoodError(f"{text} is not JSON")


def _no_name_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise _NotUnderstoodError("a name occurs twice in one object")
    return names
