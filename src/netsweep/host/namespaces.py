"""The other network namespaces of this host, and how to talk to their kernel side. Changes nothing in them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import socket
import threading

from netsweep.host.capabilities import CAP_SYS_PTRACE, effective_capabilities
from netsweep.host.netlink import open_socket
from netsweep.host.processes import listed_pids, sees_all

_CLONE_NEWNET = 0x40000000
"""linux/sched.h."""

OWN = "/proc/thread-self/ns/net"
"""This thread's network namespace (proc(5))."""


_ESCAPED = re.compile(r"\\([0-7]{3})")
"""How /proc/PID/mountinfo writes blanks and backslashes."""


def other_namespaces() -> tuple[list[str], bool]:
    """Paths of the other network namespaces: those that threads are in, and those that are mounted by name here.

    Also says whether this process may see all that threads are in. Raises :class:`~netsweep.errors.NetsweepError`
    where /proc cannot be read.
    """
    paths = list[str]()
    for pid in sorted(listed_pids()):
        with contextlib.suppress(OSError):  # a process that ended
            paths += [f"/proc/{pid}/task/{thread}/ns/net" for thread in os.listdir(f"/proc/{pid}/task")]
    mounted = "/proc/thread-self/mountinfo"
    with contextlib.suppress(OSError), open(mounted, encoding="utf-8", errors="surrogateescape") as mounts:
        # The fourth field is the root of the mount, the fifth where it is (proc(5), mountinfo).
        found = [fields[4] for fields in map(str.split, mounts) if fields[3].startswith("net:[")]
        paths += [_ESCAPED.sub(lambda octal: chr(int(octal[1], 8)), path) for path in found]
    known: dict[int, str] = {os.stat(OWN).st_ino: OWN}
    for path in paths:
        with contextlib.suppress(OSError):  # a thread that ended, or one of a process with more capabilities
            known.setdefault(os.stat(path).st_ino, path)
    complete = sees_all() and bool(effective_capabilities() >> CAP_SYS_PTRACE & 1)
    return [path for path in known.values() if path != OWN], complete


def socket_in(path: str, protocol: int) -> socket.socket:
    """A netlink socket for ``protocol`` of the network namespace at ``path``; raises :class:`OSError`.

    A socket stays in the namespace that it was opened in, so only a thread that ends at once goes there.
    """
    found = list[socket.socket]()
    failed = list[OSError]()

    def enter() -> None:
        try:
            with open(path, "rb") as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            found.append(open_socket(protocol))
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=enter, name="netsweep-setns")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]
