"""Other processes: which run, what they are called, and which lock which file. Read from /proc only."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

from netsweep.errors import NetsweepError
from netsweep.host.clocks import TICKS

_INITIAL_PID_NAMESPACE = 0xEFFFFFFC
"""PROC_PID_INIT_INO, linux/proc_ns.h."""

_STARTTIME = 19
"""The field of /proc/PID/stat, counted from the first behind the name (proc(5))."""

_LOCKED_INODES = rb"(?m)^lock:\t\d+: (?:FLOCK|LEASE +(?:BREAKING|ACTIVE +WRITE)) .*?\w+:\w+:(\d+) "
"""Locks of an open file in /proc/PID/fdinfo (lock_get_status in fs/locks.c); compiled where it is needed."""

_PLAIN_WORD = r"[a-zA-Z0-9_.+][a-zA-Z0-9_.+-]{0,23}"
"""An argument that may be shown. Options may hold secrets, and long words may be some."""

_NAME_MAX = 40
"""Characters of a program's name that are shown."""


class Process(NamedTuple):
    """A process: its PID, and its program with the first argument, as ``go test``.

    The latter may hold any characters, and is ``None`` where it is unknown.
    """

    pid: int
    command: str | None

    def __str__(self) -> str:
        return f"process {self.pid}" + (f" ({ascii(self.command)[1:-1]})" if self.command else "")


def is_running(pid: int) -> bool:
    """Say whether a process with this ID exists here and has not ended. In doubt it runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:
        return not _has_ended(_status(pid))
    except (OSError, KeyError, ValueError):
        return True


def all_pids() -> set[int] | None:
    """Every PID that a running process on this host has, in any PID namespace.

    ``None`` where that cannot be known: this process is not in the initial PID namespace, or /proc
    does not show all processes.
    """
    found = _namesakes()
    return None if found is None else set(found)


def ages(pids: Collection[int], now: float) -> dict[int, float]:
    """The age, in seconds, of the oldest running process that has each of ``pids``, in any PID namespace.

    ``now`` is from :func:`netsweep.host.clocks.process_clock`; who started later has a negative age. A PID that nobody
    has is missing, and so is one of which that cannot be known.
    """
    known: dict[int, float] = {}
    found = _namesakes() or {}
    for pid in found.keys() & pids:
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The name in parentheses may hold anything.
            behind_name = [_read(f"/proc/{each}/stat").rpartition(b")")[2].split() for each in found[pid]]
            known[pid] = now - min(int(fields[_STARTTIME]) for fields in behind_name) / TICKS
    return known


def sees_all() -> bool:
    """Whether /proc shows every process of this host: this one is in the initial PID namespace, and nothing is hidden.

    Mounted with hidepid, /proc leaves out other users' processes: the first one is root's. Raises :class:`OSError`.
    """
    return os.stat("/proc/self/ns/pid").st_ino == _INITIAL_PID_NAMESPACE and os.path.exists("/proc/1")


def _namesakes() -> dict[int, list[int]] | None:
    """The running processes, by the PIDs that they have in all their PID namespaces; see :func:`all_pids`."""
    try:
        if not sees_all():
            return None
        found: dict[int, list[int]] = {}
        for pid in listed_pids():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                status = _status(pid)
                if not _has_ended(status):
                    for each in map(int, status[b"NSpid"].split()):
                        found.setdefault(each, []).append(pid)
    except (OSError, KeyError, ValueError):
        return None
    return found


def ancestors() -> set[int]:
    """The PIDs of this process and of those that it descends from, where no process of a container has them too.

    From within a PID namespace that cannot be known, and there are none.
    """
    found, pid = set[int](), os.getpid()
    with contextlib.suppress(OSError, KeyError, ValueError):
        while pid > 1 and pid not in found:
            found.add(pid)
            pid = int(_status(pid)[b"PPid"])
    known = _namesakes() or {}
    return {pid for pid in found if known.get(pid) == [pid]}


def listed_pids() -> set[int]:
    """The PIDs of the processes that /proc shows; raises :class:`NetsweepError` where it cannot be read."""
    try:
        return {int(name) for name in os.listdir("/proc") if name.isdecimal()}
    except OSError as error:
        raise NetsweepError(f"cannot read /proc: {error.strerror}; mount it") from error


def _status(pid: int) -> dict[bytes, bytes]:
    """The fields of /proc/PID/status (proc(5)); no value has a line break in it."""
    lines = _read(f"/proc/{pid}/status").split(b"\n")
    return {name: value for name, _, value in (line.partition(b":\t") for line in lines)}


def _has_ended(status: dict[bytes, bytes]) -> bool:
    """Say whether a process is there only for its parent to ask how it ended."""
    # A first thread that ended before the others is a zombie too.
    return status[b"State"][:1] in (b"Z", b"X") and int(status[b"Threads"]) <= 1


def holders(file: str | int) -> list[Process]:
    """The processes that hold a ``flock(2)`` on ``file``, a path or descriptor; takes no lock.

    These are the processes that have the locked file open: first the one that took the lock, where it still has it,
    then others by PID. The one that took it may have ended and left it to a child. A file lease (fcntl(2), F_SETLEASE)
    that keeps readers out counts too. Processes that this one may not look into are missing. Raises :class:`OSError`.
    """
    return list(_holders(os.stat(file), set()))


def held_by(status: os.stat_result) -> str:
    """Who holds a ``flock(2)`` on the file with ``status``, for messages: ``held by process 5643 (go test)``.

    Names no process that is not known to hold it. Raises :class:`OSError` and :class:`NetsweepError`.
    """
    hidden = set[int]()
    if found := next(_holders(status, hidden), None):
        return f"held by {found}"
    for taker in _takers(status, exact=True):
        if taker in hidden:
            return f"held by another process (PID {taker} took it)"
    if hidden:
        return "held by another process"
    with contextlib.suppress(OSError):
        if not sees_all():
            return "held by a process that is not visible here"
    return "held by a process that was not found"


def _holders(status: os.stat_result, hidden: set[int]) -> Iterator[Process]:
    """See :func:`holders`. Processes that this one may not look into are added to ``hidden``."""
    takers, listed = _takers(status), listed_pids()
    for pid in [*(taker for taker in takers if taker in listed), *sorted(listed.difference(takers))]:
        try:
            if any(_is_locked(pid, descriptor, status) for descriptor in os.listdir(f"/proc/{pid}/fdinfo")):
                yield Process(pid, _command(pid))
        except PermissionError:
            hidden.add(pid)
        except OSError:  # it has ended
            continue


def _is_locked(pid: int, descriptor: str, status: os.stat_result) -> bool:
    """Say whether a process's descriptor is of the file with ``status``, and locks it."""
    with contextlib.suppress(FileNotFoundError):  # it was closed
        info = _read(f"/proc/{pid}/fdinfo/{descriptor}")
        if any(int(inode) == status.st_ino for inode in re.findall(_LOCKED_INODES, info)):
            # The device in that line may differ from what stat says (btrfs, overlayfs).
            return os.path.samestat(os.stat(f"/proc/{pid}/fd/{descriptor}"), status)
    return False


def waiting(file: str | int) -> int:
    """How many wait for a ``flock(2)`` on ``file``, a path or descriptor (proc(5), /proc/locks); takes no lock.

    Those of another PID namespace are missing, and all where the filesystem shows other device numbers
    than the kernel has. Raises :class:`OSError`.
    """
    shown = _shown(os.stat(file))
    return sum(words[1:3] == [b"->", b"FLOCK"] and shown in words for words in _kernel_locks())


def is_locked(file: str | int) -> bool:
    """Whether a process holds a ``flock(2)`` on ``file``, as far as the kernel tells; see :func:`waiting`.

    Tells that also of processes that this one may not look into. Raises :class:`OSError`.
    """
    return bool(_takers(os.stat(file), exact=True))


def _takers(status: os.stat_result, *, exact: bool = False) -> list[int]:
    """The PIDs that took a ``flock(2)`` on a file, as far as the kernel tells; they may have ended since.

    With ``exact``, none is of another file that has the same number on another device.
    """
    shown = _shown(status)
    end = shown if exact else shown[shown.rindex(b":") :]
    return [
        int(words[4])
        for words in _kernel_locks()
        if words[1:2] == [b"FLOCK"] and len(words) > 5 and words[4].isdigit() and words[5].endswith(end)
    ]


def _kernel_locks() -> list[list[bytes]]:
    """The words of each line of /proc/locks (proc(5))."""
    return [line.split() for line in _read("/proc/locks").split(b"\n")]


def _shown(status: os.stat_result) -> bytes:
    """A file as /proc/locks names it."""
    return b"%02x:%02x:%d" % (os.major(status.st_dev), os.minor(status.st_dev), status.st_ino)


def _command(pid: int) -> str | None:
    """The program that a process runs, with the first argument where that tells more and is no option."""
    try:
        program, *arguments = _read(f"/proc/{pid}/cmdline").decode("utf-8", "surrogateescape").split("\0")
        # A daemon may call itself 'nginx: worker process', or 'sshd: alice@pts/0': what follows may be private.
        name = os.path.basename(program.partition(": ")[0])
        if not name:
            name = _read(f"/proc/{pid}/comm").rstrip(b"\n").decode("utf-8", "surrogateescape")
    except OSError:
        return None
    words = arguments[:2] if arguments[:1] == ["-m"] else [os.path.basename(word) for word in arguments[:1]]
    shown = all(re.fullmatch(_PLAIN_WORD, word) for word in words if word != "-m")
    return " ".join([name[:_NAME_MAX], *(words if shown else ())])


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()
