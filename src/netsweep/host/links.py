"""The links of this network namespace with their addresses, what depends on a link, and how to delete one.

Layouts and constants are those of ``linux/rtnetlink.h``, ``linux/if_link.h``, ``linux/if_addr.h`` and
``linux/net_namespace.h``.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from netsweep.errors import ContentionError, NetsweepError
from netsweep.host.clocks import address_clock, age_of
from netsweep.host.namespaces import OWN, other_namespaces, socket_in
from netsweep.host.netlink import (
    HEADER,
    IFINFOMSG,
    NETLINK_ROUTE,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETNSID,
    RTM_GETROUTE,
    SEQUENCES,
    SKIP_STATS,
    InterruptedDumpError,
    attribute,
    attributes,
    dump,
    error_code,
    messages,
    open_socket,
    receive,
    refused,
    request,
)
from netsweep.model import Address

_IFADDRMSG = struct.Struct("=BBBBI")
"""``struct ifaddrmsg``: family, prefix length, flags, scope, index."""

_RTMSG = struct.Struct("=BBBBBBBBI")
"""``struct rtmsg``: family, lengths of destination and source, TOS, table, protocol, scope, type, flags."""

_INT = struct.Struct("=i")
_CACHEINFO = struct.Struct("=IIII")
"""``struct ifa_cacheinfo``: preferred, valid, cstamp, tstamp."""

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER, _IFLA_LINKINFO = 1, 3, 4, 5, 10, 18
_IFLA_PROMISCUITY, _IFLA_LINK_NETNSID, _IFLA_XDP = 30, 37, 43
_IFLA_TARGET_NETNSID, _IFLA_PROP_LIST, _IFLA_ALT_IFNAME, _IFLA_ALLMULTI = 46, 52, 53, 61
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _IFLA_XDP_ATTACHED = 1, 2, 2
_IFLA_VXLAN_LINK = 3
_IFA_ADDRESS, _IFA_LOCAL, _IFA_CACHEINFO = 1, 2, 6
_RTA_DST, _RTA_OIF = 1, 4
_NETNSA_NSID, _NETNSA_FD = 1, 3

_QUICK = 0.0003
"""Seconds that an answer takes at most where nobody holds the kernel's RTNL lock: 0.04 ms is usual."""

_AT_ONCE = 0.03
"""Seconds to wait for an answer under the subnet lock, which leaves time to delete a link within 100 ms."""

_SOL_NETLINK, _ADD_MEMBERSHIP, _LINK_GROUP = 270, 1, 1
"""NETLINK_ADD_MEMBERSHIP of linux/netlink.h, RTNLGRP_LINK."""

_LOOK_UP = 0.002
"""Seconds to wait for an event before it is looked whether a deletion has ended."""

_QUIET_MAX = 0.5
"""Seconds to wait for a moment in which nobody holds the RTNL lock."""


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Link(NamedTuple):
    """A link: its index, its name and alternative names, and its kind (``None`` for hardware).

    ``mac`` is its link-layer address. ``master`` is the index of the bridge or bond that it is a port of, and
    ``lower`` that of the link it is on top of, 0 for none; ``lower_nsid`` is the number of that one's network
    namespace where it is of another. ``settings`` are the values that its kind has, as the kernel packs them, but for
    those of bridges. ``others``: what else uses the link, as far as itself tells.
    """

    ifindex: int
    name: str
    aliases: tuple[str, ...] = ()
    kind: str | None = None
    mtu: int = 0
    mac: str = ""
    master: int = 0
    lower: int = 0
    lower_nsid: int | None = None
    settings: frozenset[bytes] = frozenset()
    others: tuple[str, ...] = ()


class Route(NamedTuple):
    """A route: where it leads, the index of its link (0 where it has several or none), and the kernel's message."""

    network: Network
    ifindex: int
    message: bytes


class Links:
    """Asks for links, addresses and routes, and deletes them. A context manager; holds one socket.

    ``opened``: a socket of another network namespace, which is closed in the end.
    All methods raise :class:`~netsweep.errors.ContentionError` where links changed meanwhile, and what
    :func:`netsweep.host.netlink.refused` says. Raises :class:`~netsweep.errors.NetsweepError` where there is no
    socket to be opened.
    """

    def __init__(self, opened: socket.socket | None = None) -> None:
        try:
            self._socket = opened or open_socket(NETLINK_ROUTE)
        except OSError as error:
            raise NetsweepError(f"cannot open a netlink socket to read links: {error.strerror}") from error

    def __enter__(self) -> Links:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def all(self) -> list[Link]:
        """Every link here."""
        return [_link(*message) for message in self._dump_links(SKIP_STATS)]

    def find(self, *, ifindex: int = 0, name: str = "") -> Link | None:
        """The link that has an index, or a name or alternative name; ``None`` where there is none."""
        named = attribute(_IFLA_IFNAME, name.encode("utf-8", "surrogateescape") + b"\0") if name else b""
        answer = self._ask(RTM_GETLINK, IFINFOMSG.pack(0, 0, ifindex, 0, 0) + SKIP_STATS + named, "asking for a link")
        if isinstance(answer, int):
            if answer == errno.ENODEV:
                return None
            raise refused(answer, "asking for a link")
        return _link(answer, 0, len(answer))

    def ports(self, ifindex: int) -> list[str]:
        """The names of the ports of the bridge with that index."""
        wanted = SKIP_STATS + attribute(_IFLA_MASTER, _INT.pack(ifindex))
        # Kernels before 4.6 do not filter, and send all.
        return [link.name for message in self._dump_links(wanted) if (link := _link(*message)).master == ifindex]

    def elsewhere(self) -> tuple[list[Link], bool]:
        """Links of other network namespaces that were made in this one, or on top of a link here.

        Also says whether these are all: a namespace that cannot be entered may hold more. Those that have a number
        here, as one that a link was moved to has, need not be entered.
        """
        found = list[Link]()
        paths, complete = other_namespaces()
        with open(OWN, "rb") as own:
            for nsid in self._nsids():
                links = self._links_of(nsid)
                # The kernel gives this namespace a number when it tells of a link that belongs to one here.
                number = self._nsid(own.fileno()) if links else None
                if nsid != number:
                    found += [link for link in links if link.lower_nsid == number]
            for path in paths:
                try:
                    with open(path, "rb") as namespace:
                        if self._nsid(namespace.fileno()) is not None:
                            continue
                    opened = socket_in(path, NETLINK_ROUTE)
                except (FileNotFoundError, ProcessLookupError):
                    continue
                except OSError:
                    complete = False
                    continue
                with Links(opened) as others:
                    links = [link for link in others.all() if link.lower_nsid is not None]
                    number = others._nsid(own.fileno()) if links else None
                    found += [link for link in links if link.lower_nsid == number]
        return found, complete

    def addresses(self) -> dict[int, list[Address]]:
        """The addresses here, by the index of their link."""
        now = address_clock()
        found: dict[int, list[Address]] = {}
        everything = request(RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, _IFADDRMSG.pack(0, 0, 0, 0, 0))
        for buffer, offset, end in dump(self._socket, everything, "reading addresses"):
            family, length, _, _, index = _IFADDRMSG.unpack_from(buffer, offset + HEADER.size)
            read = dict(attributes(buffer, offset + HEADER.size + _IFADDRMSG.size, end))
            # IFA_LOCAL is the address; where it is missing, IFA_ADDRESS is (of a point-to-point link the peer's).
            address = read.get(_IFA_LOCAL) or read.get(_IFA_ADDRESS)
            if family not in (socket.AF_INET, socket.AF_INET6) or address is None:
                continue
            info = read.get(_IFA_CACHEINFO)
            age = None if info is None or now is None else age_of(_CACHEINFO.unpack_from(info)[2], now)
            text = f"{socket.inet_ntop(family, address)}/{length}"
            found.setdefault(index, []).append(Address(text, age))
        return found

    def delete(self, ifindex: int) -> Callable[[], bool]:
        """Delete a link by its index. Returns when it is not there any more; what it returns waits for the rest.

        That says False where the link was gone already, and raises what failed. Of the 40 ms that deleting a bridge
        takes, it is there for the first 16; for the rest nobody needs to hold a lock.
        """
        with self._events() as events:
            deletion = _Deletion(ifindex)
            deletion.start()
            while deletion.is_alive() and not _tells_of_deletion(events, ifindex):
                pass
        return deletion.finish

    def delete_route(self, route: Route) -> None:
        """Delete a route; one that is gone already is done."""
        code = self._do(RTM_DELROUTE, route.message)
        if code and code not in (errno.ESRCH, errno.ENODEV):
            raise refused(code, "deleting a route")

    def routes(self) -> list[Route]:
        """Every route but the default ones."""
        found = []
        everything = request(RTM_GETROUTE, NLM_F_REQUEST | NLM_F_DUMP, _RTMSG.pack(0, 0, 0, 0, 0, 0, 0, 0, 0))
        for buffer, offset, end in dump(self._socket, everything, "reading routes"):
            family, length = _RTMSG.unpack_from(buffer, offset + HEADER.size)[:2]
            read = dict(attributes(buffer, offset + HEADER.size + _RTMSG.size, end))
            if family in (socket.AF_INET, socket.AF_INET6) and _RTA_DST in read:
                network = ipaddress.ip_network(f"{socket.inet_ntop(family, read[_RTA_DST])}/{length}", strict=False)
                found.append(Route(network, _int(read.get(_RTA_OIF)) or 0, buffer[offset + HEADER.size : end]))
        return found

    def wait_until_quiet(self, ifindex: int) -> None:
        """Wait for a moment in which nobody holds the kernel's RTNL lock, for half a second at most.

        Deleting a link needs that lock. Beside eleven jobs that make and delete bridges without a pause,
        deleting one took 140 ms at worst, and 63 ms after such a moment.
        """
        deadline = time.monotonic() + _QUIET_MAX
        while (began := time.monotonic()) < deadline:
            self.find(ifindex=ifindex)
            if time.monotonic() - began < _QUICK:
                return

    def _dump_links(self, extra: bytes) -> Iterator[tuple[bytes, int, int]]:
        """The messages of a dump of links; an interrupted one counts where it cannot have missed any."""
        everything = request(RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, IFINFOMSG.pack(0, 0, 0, 0, 0) + extra)
        last, ascending = 0, True
        try:
            for buffer, offset, end in dump(self._socket, everything, "reading links"):
                index = IFINFOMSG.unpack_from(buffer, offset + HEADER.size)[2]
                ascending, last = ascending and index > last, index
                yield buffer, offset, end
        except InterruptedDumpError:
            # Kernels since 6.8 walk by index, so they skip no link that stands. Older ones walk lists, where one that
            # goes may hide another; their answers are not in order.
            if not ascending:
                raise

    def _events(self) -> socket.socket:
        """A socket that is told of links that come and go."""
        events = open_socket(NETLINK_ROUTE)
        events.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _LINK_GROUP)
        events.settimeout(_LOOK_UP)
        return events

    def _nsids(self) -> list[int]:
        """The numbers of the other network namespaces that have one here (``ip netns list-id``)."""
        everything = request(RTM_GETNSID, NLM_F_REQUEST | NLM_F_DUMP, bytes(4))
        messages = dump(self._socket, everything, "reading network namespaces")
        read = [dict(attributes(buffer, offset + HEADER.size + 4, end)) for buffer, offset, end in messages]
        return [nsid for nsid in map(_int, [each.get(_NETNSA_NSID) for each in read]) if nsid is not None and nsid >= 0]

    def _links_of(self, nsid: int) -> list[Link]:
        """Links of the namespace with that number that are on top of links of others; none where it is gone."""
        target = attribute(_IFLA_TARGET_NETNSID, _INT.pack(nsid))
        try:
            links = [_link(*message) for message in self._dump_links(SKIP_STATS + target)]
        except NetsweepError:
            if nsid in self._nsids():
                raise
            return []
        return [link for link in links if link.lower_nsid is not None]

    def _nsid(self, namespace: int) -> int | None:
        """The number that this socket's namespace has for the one of a descriptor; ``None`` for none."""
        doing = "asking for a network namespace"
        answer = self._ask(RTM_GETNSID, bytes(4) + attribute(_NETNSA_FD, struct.pack("=I", namespace)), doing)
        if isinstance(answer, int):
            raise refused(answer, doing)
        nsid = _int(dict(attributes(answer, HEADER.size + 4)).get(_NETNSA_NSID))
        return None if nsid is None or nsid < 0 else nsid

    def _do(self, kind: int, body: bytes) -> int:
        """Send a request and return the errno of the answer, 0 for success."""
        answer = self._ask(kind, body, "changing links", NLM_F_REQUEST | NLM_F_ACK)
        return answer if isinstance(answer, int) else 0

    def _ask(self, kind: int, body: bytes, doing: str, flags: int = NLM_F_REQUEST) -> bytes | int:
        """The answer to one request: a message, or an errno."""
        number = next(SEQUENCES)
        try:
            self._socket.send(request(kind, flags, body, number))
            while True:
                buffer = receive(self._socket)
                _, answered, _, sequence, _ = HEADER.unpack_from(buffer)
                if sequence == number:
                    return error_code(buffer, 0, len(buffer)) if answered == NLMSG_ERROR else buffer
        except OSError as error:
            raise refused(error.errno or errno.EIO, doing) from error


class _Deletion(threading.Thread):
    """Deletes a link."""

    def __init__(self, ifindex: int) -> None:
        super().__init__(name="netsweep-delete", daemon=True)
        self._ifindex = ifindex
        self._code = 0
        self._failed: Exception | None = None

    def run(self) -> None:
        try:
            with Links() as links:
                self._code = links._do(RTM_DELLINK, IFINFOMSG.pack(0, 0, self._ifindex, 0, 0))
        except Exception as error:
            self._failed = error

    def finish(self) -> bool:
        """Wait for the end; False where the link was gone already."""
        self.join()
        if self._failed:
            raise self._failed
        if self._code and self._code != errno.ENODEV:
            raise refused(self._code, "deleting a link")
        return not self._code


def _tells_of_deletion(events: socket.socket, ifindex: int) -> bool:
    """Wait for an event for a moment; say whether one was that the link is gone."""
    try:
        buffer = receive(events)
    except TimeoutError:
        return False
    except OSError as error:
        if error.errno != errno.ENOBUFS:  # events were lost
            raise
        return False
    for offset, _, kind, _ in messages(buffer):
        family, _, index, *_ = IFINFOMSG.unpack_from(buffer, offset + HEADER.size)
        if kind == RTM_DELLINK and (family, index) == (socket.AF_UNSPEC, ifindex):
            return True
    return False


def find_at_once(*, ifindex: int = 0, name: str = "") -> Link | None:
    """The same as :meth:`Links.find`, where the answer comes at once.

    Raises :class:`~netsweep.errors.ContentionError` where somebody else holds the RTNL lock. A question that waits for
    that lock cannot be taken back, so a thread of its own asks it.
    """
    found = list[Link | None]()
    failed = list[Exception]()

    def ask() -> None:
        try:
            with Links() as links:
                found.append(links.find(ifindex=ifindex, name=name))
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=ask, name="netsweep-link", daemon=True)
    thread.start()
    thread.join(_AT_ONCE)
    if failed:
        raise failed[0]
    if not found:
        raise ContentionError("other processes kept the links of the kernel locked")
    return found[0]


def _link(buffer: bytes, offset: int, end: int) -> Link:
    index = IFINFOMSG.unpack_from(buffer, offset + HEADER.size)[2]
    read = dict(attributes(buffer, offset + HEADER.size + IFINFOMSG.size, end))
    info = dict(attributes(read.get(_IFLA_LINKINFO, b"")))
    kind = _text(info[_IFLA_INFO_KIND]) if _IFLA_INFO_KIND in info else None
    # Those of a bridge are timers, most of them.
    settings = {} if kind == "bridge" else dict(attributes(info.get(_IFLA_INFO_DATA, b"")))
    lower = _int(read.get(_IFLA_LINK)) or 0
    if kind == "vxlan":
        # Its IFLA_LINK is its own index.
        lower = _int(settings.get(_IFLA_VXLAN_LINK)) or 0
    aliases = [_text(data) for each, data in attributes(read.get(_IFLA_PROP_LIST, b"")) if each == _IFLA_ALT_IFNAME]
    others = []
    if _int(read.get(_IFLA_PROMISCUITY)) or _int(read.get(_IFLA_ALLMULTI)):
        others.append("something reads all of its packets")
    if any(dict(attributes(read.get(_IFLA_XDP, b""))).get(_IFLA_XDP_ATTACHED, b"")):
        others.append("an XDP program is attached to it")
    lower_nsid = _int(read.get(_IFLA_LINK_NETNSID))
    if lower == index and lower_nsid is None:  # how some links say that they are on top of none
        lower = 0
    return Link(
        index,
        _text(read.get(_IFLA_IFNAME, b"")),
        tuple(aliases),
        kind,
        _int(read.get(_IFLA_MTU)) or 0,
        read.get(_IFLA_ADDRESS, b"").hex(":"),
        _int(read.get(_IFLA_MASTER)) or 0,
        lower,
        lower_nsid,
        frozenset(settings.values()),
        tuple(others),
    )


def _int(data: bytes | None) -> int | None:
    return None if data is None or len(data) < _INT.size else int(_INT.unpack_from(data)[0])


def _text(data: bytes) -> str:
    return os.fsdecode(data.split(b"\0", 1)[0])
