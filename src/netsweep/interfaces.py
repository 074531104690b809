"""Live interfaces of this network namespace, through pyroute2."""

from __future__ import annotations

import time

from pyroute2.netlink import NETLINK_ROUTE, NLM_F_DUMP, NLM_F_REQUEST
from pyroute2.netlink.nlsocket import NetlinkSocket
from pyroute2.netlink.rtnl import RTM_GETLINK
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from netsweep.errors import BusyError, ContentionError
from netsweep.netlink import HEADER, attributes, dump

RTEXT_FILTER_SKIP_STATS = 1 << 3
"""linux/rtnetlink.h: leave out the counters, which are most of each answer."""

_IFLA_IFNAME = 3
_IFINFOMSG_SIZE = 16
_PATIENCE = 5.0
"""Seconds to insist on a list during which no interface came or went; reading one takes ~1 ms."""


class Interfaces:
    """Reads the names of the interfaces that exist. A context manager; holds one socket."""

    def __init__(self) -> None:
        self._socket = NetlinkSocket(family=NETLINK_ROUTE)
        request = ifinfmsg()
        request["header"]["type"] = RTM_GETLINK
        request["header"]["flags"] = NLM_F_REQUEST | NLM_F_DUMP
        request["attrs"] = [("IFLA_EXT_MASK", RTEXT_FILTER_SKIP_STATS)]
        request.encode()
        self._request = bytes(request.data)

    def __enter__(self) -> Interfaces:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def names(self) -> frozenset[str]:
        """The names, read now.

        A list that changed while it was read may lack an interface that is there, so it is read
        again; raises :class:`BusyError` where that goes on for 5 s.
        """
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                return frozenset(
                    name
                    for buffer, offset, end in dump(self._socket, self._request, "reading interfaces")
                    for name in _names(buffer, offset, end)
                )
            except ContentionError as error:
                if time.monotonic() > deadline:
                    raise BusyError(f"{error} for {_PATIENCE:g} s; retry") from None
                time.sleep(0.001)


def _names(buffer: bytes, offset: int, end: int) -> list[str]:
    return [
        data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
        for kind, data in attributes(buffer, offset + HEADER.size + _IFINFOMSG_SIZE, end)
        if kind == _IFLA_IFNAME
    ]
