"""Live interfaces of this network namespace, through pyroute2."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Collection, Iterator, Sequence

from pyroute2.netlink import NETLINK_ROUTE, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_ERROR
from pyroute2.netlink.nlsocket import NetlinkSocket
from pyroute2.netlink.rtnl import RTM_GETLINK
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from netsweep.errors import BusyError, ContentionError
from netsweep.netlink import (
    HEADER,
    RECEIVE_SIZE,
    InterruptedDumpError,
    attribute,
    attributes,
    dump,
    error_code,
    extend,
    messages,
    refused,
)
from netsweep.orphans import Live

RTEXT_FILTER_SKIP_STATS = 1 << 3
"""linux/rtnetlink.h: leave out the counters, which are most of each answer."""

_IFLA_IFNAME = 3
_IFINFOMSG_SIZE = 16
_ATTEMPTS = 2
"""How often to try for a list during which no interface came or went; reading one takes ~1 ms."""

_QUESTION = 6e-6
"""Seconds that asking for one name takes."""

_NEVER_AGAIN = 0.1
"""Seconds that a list counts for which could not be had: many thousand names are not asked for one by one."""

_QUESTIONS = 50
"""Names to ask for at once: the kernel takes its lock for each, which is much faster in one go where
others want it too; the answers have to fit in the socket's buffer."""


class Interfaces:
    """Finds out which interfaces exist. A context manager; holds one socket."""

    def __init__(self) -> None:
        self._list = _get_link(NLM_F_REQUEST | NLM_F_DUMP)
        self._get = _get_link(NLM_F_REQUEST)
        self._socket = NetlinkSocket(family=NETLINK_ROUTE)
        self._list_took = 0.0

    def __enter__(self) -> Interfaces:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def live(self, asked: Callable[[], Collection[str]], *, all_names: bool = False) -> Live:
        """Which interfaces exist now, all of those that ``asked`` returns among them.

        A list is fastest on a quiet host. On a busy one the kernel waits in the middle of it for those
        who make and remove interfaces (300 ms, where asking for 300 names takes 2), and a list that
        changed meanwhile may lack an interface that is there. So names are asked for where the last
        list was not to be had, or took longer than that.

        ``all_names``: a list is wanted all the same. Raises :class:`BusyError` where an answer gets
        lost.
        """
        try:
            seen: set[str] = set()
            if all_names or len(asked()) * _QUESTION > self._list_took:
                began = time.monotonic()
                for _ in range(_ATTEMPTS):
                    with contextlib.suppress(InterruptedDumpError):
                        for buffer, offset, end in dump(self._socket, self._list, "reading interfaces"):
                            seen.update(_names(buffer, offset, end))
                        self._list_took = time.monotonic() - began
                        return Live(seen)
                self._list_took = _NEVER_AGAIN
            seen.update(self._ask([name for name in asked() if name not in seen]))
            return Live(seen, complete=False)
        except ContentionError as error:
            raise BusyError(f"{error}; retry") from None

    def _ask(self, names: Sequence[str]) -> Iterator[str]:
        """The names of the interfaces that have one of ``names``, alternative names included."""
        for start in range(0, len(names), _QUESTIONS):
            encoded = [name.encode("utf-8", "surrogateescape") for name in names[start : start + _QUESTIONS]]
            self._socket.send(b"".join(extend(self._get, attribute(_IFLA_IFNAME, name + b"\0")) for name in encoded))
            answers = 0
            while answers < len(encoded):
                buffer = self._socket.recv(RECEIVE_SIZE)
                for offset, end, kind, _ in messages(buffer):
                    answers += 1
                    if kind != NLMSG_ERROR:
                        yield from _names(buffer, offset, end)
                    elif (code := error_code(buffer, offset, end)) != errno.ENODEV:
                        raise refused(code, "asking for interfaces by name")


def _get_link(flags: int) -> bytes:
    request = ifinfmsg()
    request["header"]["type"] = RTM_GETLINK
    request["header"]["flags"] = flags
    request["attrs"] = [("IFLA_EXT_MASK", RTEXT_FILTER_SKIP_STATS)]
    request.encode()
    return bytes(request.data)


def _names(buffer: bytes, offset: int, end: int) -> list[str]:
    return [
        data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
        for kind, data in attributes(buffer, offset + HEADER.size + _IFINFOMSG_SIZE, end)
        if kind == _IFLA_IFNAME
    ]
