"""Netlink over the standard library's sockets, decoding no more than is asked for.

pyroute2 is not used here. Its sockets run an event loop of their own, which fails inside a running one, and its
decoding turns every attribute of every message into objects: 50 ms for 900 rules, where walking the bytes takes
a few. Importing it for its constants takes 10 ms. Layouts and constants are those of ``linux/netlink.h``,
``linux/rtnetlink.h`` and ``linux/netfilter/nfnetlink.h``; the kernel writes layouts in the machine's byte order.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress

from netsweep.errors import ContentionError, NetsweepError, NotPermittedError

NETLINK_ROUTE, NETLINK_SOCK_DIAG, NETLINK_NETFILTER = 0, 4, 12
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR = 0x1, 0x4, 0x10
NLM_F_DUMP, NLM_F_CREATE, NLM_F_APPEND = 0x300, 0x400, 0x800
RTM_GETLINK, RTM_DELLINK, RTM_GETADDR, RTM_GETROUTE, RTM_DELROUTE, RTM_GETNSID = 18, 17, 22, 26, 25, 90
NFNL_SUBSYS_IPSET, NFNL_SUBSYS_NFTABLES = 6, 10

HEADER = struct.Struct("=IHHII")
"""``struct nlmsghdr``: length, type, flags, sequence number, port."""

SEQUENCES = itertools.count(1)
"""Sequence numbers for requests, so that late answers to an earlier one are told apart."""

TRANSIENT = frozenset({errno.EINTR, errno.EAGAIN, errno.EBUSY, errno.ENOBUFS, errno.ERESTART, errno.ENOENT})
"""What the kernel says where somebody else was quicker; reading again is the answer to all."""

MAX_ERRNO = 4095
"""linux/err.h."""

IFINFOMSG = struct.Struct("=BxHiII")
"""``struct ifinfomsg``: family, type, index, flags, change."""

_SEQUENCE = struct.Struct("=I")
_SEQUENCE_OFFSET = 8
_ATTRIBUTE = struct.Struct("=HH")
_TYPE_MASK = 0x3FFF
"""NLA_TYPE_MASK: an attribute's type without the flags for nested and byte order."""

_PEEK = int(socket.MSG_PEEK | socket.MSG_TRUNC)
"""Plain numbers: the enumeration's operators take longer than the call."""

_PEEKED = bytearray(1 << 15)
"""Where a first look at a datagram goes; nobody reads it. The kernel makes the datagrams of a dump as
large as what it was last asked for, at most 32 KiB (netlink_recvmsg in net/netlink/af_netlink.c)."""


_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
"""asm-generic/socket.h; need CAP_NET_ADMIN in the first user namespace."""


_DUMP_SIZE = 1 << 15

_AT_ONCE = int(socket.MSG_DONTWAIT)

_AT_ONCE_MAX = 64
"""Datagrams of a dump that are received before the first is looked at: 2 MiB, 4,000 rules."""


class MalformedError(NetsweepError):
    """The kernel's message is not of the form its headers promise."""


class InterruptedDumpError(ContentionError):
    """What was dumped changed meanwhile: each message is right, but some may be missing or double.

    ``at_end``: the kernel noticed a change when it wrote the last message (NLMSG_DONE). It compares
    generations at the first message of each datagram and at the last one.
    """

    def __init__(self, message: str, *, at_end: bool = False) -> None:
        super().__init__(message)
        self.at_end = at_end


class GoneError(ContentionError):
    """Something that the request names is not there (any more)."""


def open_socket(protocol: int) -> socket.socket:
    """A bound netlink socket for ``protocol`` (``NETLINK_ROUTE``, …); raises :class:`OSError`."""
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    opened.settimeout(None)  # with a default timeout of the caller, MSG_DONTWAIT waits
    try:
        opened.bind((0, 0))
    except OSError:
        opened.close()
        raise
    return opened


def enlarge(sock: socket.socket, *, receive: int = 0, send: int = 0) -> bool:
    """Let the buffers of a socket hold so many bytes; False where they hold only what any user gets.

    The latter is so for root of a user namespace.
    """
    forced = True
    for size, force, ask in ((receive, _SO_RCVBUFFORCE, socket.SO_RCVBUF), (send, _SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        if size:
            try:
                sock.setsockopt(socket.SOL_SOCKET, force, size)
            except PermissionError:
                sock.setsockopt(socket.SOL_SOCKET, ask, size)
                forced = False
    return forced


def receive(sock: socket.socket, flags: int = 0) -> bytes:
    """The next datagram, of any size; ``flags`` are those of recv(2). Raises :class:`OSError`."""
    # An interface with many alternative names has a message of more than 64 KiB.
    size = sock.recv_into(_PEEKED, 0, flags | _PEEK)
    # A dump's datagrams are as large as the largest that was asked for, up to this (netlink_dump).
    return sock.recv(max(size, _DUMP_SIZE), flags)


def _received(sock: socket.socket) -> list[bytes]:
    """The next datagrams of a dump: the kernel makes each when the one before is received.

    So what is done with one before the next is received gives others time to change what is dumped.
    """
    buffers = [receive(sock)]
    with suppress(BlockingIOError):
        while len(buffers) < _AT_ONCE_MAX:
            buffers.append(receive(sock, _AT_ONCE))
    return buffers


def request(kind: int, flags: int, body: bytes, sequence: int = 0) -> bytes:
    """A message of type ``kind``; ``body`` is all that follows its header."""
    return HEADER.pack(HEADER.size + len(body), kind, flags, sequence, 0) + body


def refused(code: int, doing: str) -> Exception:
    """The exception for an errno that the kernel answered with while ``doing`` something."""
    if code in (errno.EPERM, errno.EACCES):
        return NotPermittedError(f"{doing}: not permitted; CAP_NET_ADMIN in this network namespace is needed")
    if code == errno.ENOENT:
        return GoneError(f"{doing}: {os.strerror(code)}")
    if code in TRANSIENT:
        return ContentionError(f"{doing}: {os.strerror(code)}")
    return NetsweepError(f"{doing}: {os.strerror(code)} (errno {code})")


def dump(sock: socket.socket, request: bytes, doing: str) -> Iterator[tuple[bytes, int, int]]:
    """Send ``request`` and yield ``(buffer, offset, end)`` for each message of the answer.

    A message's header is at ``offset``. ``request`` gets a sequence number of its own. Raises
    :class:`InterruptedDumpError` after the last message where the kernel says that the subject
    changed, :class:`ContentionError` where the answer got lost, :class:`MalformedError` where it is
    none, else what :func:`refused` says.
    """
    sequence = _SEQUENCE.pack(next(SEQUENCES))
    after = _SEQUENCE_OFFSET + _SEQUENCE.size
    interrupted = False
    try:
        sock.send(request[:_SEQUENCE_OFFSET] + sequence + request[after:])
        while True:
            for buffer in _received(sock):
                # A dump that was given up before its end may still be sending; a datagram answers one request.
                if buffer[_SEQUENCE_OFFSET:after] != sequence:
                    continue
                for offset, end, kind, flags in messages(buffer):
                    changed = bool(flags & NLM_F_DUMP_INTR)
                    interrupted = interrupted or changed
                    if kind in (NLMSG_ERROR, NLMSG_DONE):
                        if code := error_code(buffer, offset, end):
                            raise refused(code, doing)
                        if interrupted:
                            raise InterruptedDumpError(f"{doing}: changed while being read", at_end=changed)
                        return
                    yield buffer, offset, end
    except OSError as error:
        raise refused(error.errno or errno.EIO, doing) from error


def messages(buffer: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield ``(offset, end, type, flags)`` of each message in a datagram; raises :class:`MalformedError`."""
    offset, size = 0, len(buffer)
    while offset < size:
        if size - offset < HEADER.size:
            raise MalformedError("netlink: a message is cut off")
        length, kind, flags, _, _ = HEADER.unpack_from(buffer, offset)
        if length < HEADER.size or offset + length > size:
            raise MalformedError("netlink: a message has a wrong length")
        yield offset, offset + length, kind, flags
        offset += length + 3 & ~3


def error_code(buffer: bytes, offset: int, end: int) -> int:
    """The errno in an NLMSG_ERROR or NLMSG_DONE message; 0 for success."""
    if end - offset < HEADER.size + 4:
        return 0
    code: int = struct.unpack_from("=i", buffer, offset + HEADER.size)[0]
    if code < -MAX_ERRNO:
        raise MalformedError("netlink: an error has no errno")
    return -code if code < 0 else 0


def attribute(kind: int, data: bytes) -> bytes:
    """One attribute (``struct nlattr``), padded."""
    return _ATTRIBUTE.pack(4 + len(data), kind) + data + bytes(-len(data) % 4)


def attributes(
    buffer: bytes, offset: int = 0, end: int | None = None, most: int | None = None
) -> list[tuple[int, bytes]]:
    """The type and data of each attribute between two offsets, or of the first ones; raises :class:`MalformedError`."""
    if end is None:
        end = len(buffer)
    unpack, found = _ATTRIBUTE.unpack_from, list[tuple[int, bytes]]()
    while end - offset >= 4 and len(found) != most:
        length, kind = unpack(buffer, offset)
        if length < 4 or offset + length > end:
            raise MalformedError("netlink: an attribute has a wrong length")
        found.append((kind & _TYPE_MASK, buffer[offset + 4 : offset + length]))
        offset += length + 3 & ~3
    return found


SKIP_STATS = attribute(29, struct.pack("=I", 1 << 3))
"""IFLA_EXT_MASK with RTEXT_FILTER_SKIP_STATS: leave out the counters of links, which are most of each answer."""
