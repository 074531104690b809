"""The test harness's lease file: which bridges a running job is about to create."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import NamedTuple

from netsweep.errors import NetsweepError
from netsweep.safefile import describe, open_regular

SIZE_MAX = 16 * 1024 * 1024
"""Bytes of the largest lease file that is read: all 12,800 test subnets take about 3 MB."""

PID_MAX = 2**22
"""The largest process ID that Linux gives (PID_MAX_LIMIT, linux/threads.h)."""


class Lease(NamedTuple):
    """A bridge's name, and the process that holds it."""

    bridge: str
    pid: int


class _NotUnderstood(ValueError):
    pass


def parse(text: bytes) -> list[Lease]:
    """Read a lease file's content; empty means no leases.

    Raises :class:`ValueError` with the reason where anything in it cannot be understood: half a
    list of leases would make live bridges look dead.
    """
    if not text.strip():
        return []
    try:
        content = json.loads(text, object_pairs_hook=_no_name_twice)
    except _NotUnderstood:
        raise
    except (ValueError, RecursionError) as error:
        raise _NotUnderstood(f"not JSON ({ascii(str(error))[1:-1][:80]})") from None
    if not isinstance(content, dict) or "leases" not in content:
        raise _NotUnderstood('no "leases" in it')
    leases = content["leases"]
    if leases is None:  # how Go writes an empty map that was never made
        return []
    if not isinstance(leases, dict):
        raise _NotUnderstood('"leases" is no object')
    return [_parse_lease(subnet, lease) for subnet, lease in leases.items()]


def _parse_lease(subnet: str, lease: object) -> Lease:
    where = f"lease {ascii(subnet)[:60]}"
    if not isinstance(lease, dict):
        raise _NotUnderstood(f"{where} is no object")
    bridge, pid = lease.get("bridge_name"), lease.get("pid")
    if not isinstance(bridge, str) or not bridge:
        raise _NotUnderstood(f"{where} has no bridge_name")
    # bool is an int to Python, and a PID outside the kernel's range tells nothing about who runs.
    if not isinstance(pid, int) or isinstance(pid, bool) or not 0 < pid <= PID_MAX:
        raise _NotUnderstood(f"{where} has no valid pid")
    return Lease(bridge, pid)


def _no_name_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise _NotUnderstood("a name stands twice in one object")
    return names


def is_running(pid: int) -> bool:
    """Say whether a process with this ID exists and has not ended. In doubt it runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return not _has_ended(pid)


def _has_ended(pid: int) -> bool:
    """Say whether a process is there only for its parent to ask how it ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            # proc(5): the fields from the third on, behind a name that may hold anything.
            fields = stat.read().rpartition(b")")[2].split()
        state, threads = fields[0], int(fields[17])
    except (OSError, IndexError, ValueError):
        return False
    # A first thread that ended before the others is a zombie too.
    return state in (b"Z", b"X") and threads <= 1


def leased_bridges(leases: Iterable[Lease]) -> frozenset[str]:
    """The bridges of those leases whose process is running."""
    return frozenset(lease.bridge for lease in leases if is_running(lease.pid))


def read(path: str) -> list[Lease]:
    """Read the lease file at ``path``; a missing file means no leases.

    Raises :class:`NetsweepError` with file and reason where it cannot be opened or understood.
    """
    what = "lease file"
    try:
        descriptor = open_regular(path, os.O_RDONLY, what=what)
    except FileNotFoundError:
        return []
    with open(descriptor, "rb") as file:
        try:
            text = file.read(SIZE_MAX + 1)
        except OSError as error:
            raise describe(error, f"cannot read {what} {path!a}") from error
    try:
        if len(text) > SIZE_MAX:
            raise _NotUnderstood(f"larger than {SIZE_MAX // 2**20} MiB")
        return parse(text)
    except _NotUnderstood as error:
        raise NetsweepError(
            f"cannot understand lease file {path!a}: {error}; "
            "nothing was changed; repair it, or remove it when no test runs"
        ) from None
