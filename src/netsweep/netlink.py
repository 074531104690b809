"""Read netlink dumps through pyroute2's sockets, without decoding what is not needed.

pyroute2 gives the sockets, the encoded requests and the constants. Its own decoding turns every
attribute of every message into objects: 50 ms for 900 rules, where walking the bytes takes a few.
Layouts are those of ``linux/netlink.h``; the kernel writes them in the machine's byte order.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from typing import Protocol

from pyroute2.netlink import NLMSG_DONE, NLMSG_ERROR

from netsweep.errors import ContentionError, NetsweepError, NotPermittedError

NLM_F_DUMP_INTR = 0x10
"""The dump's subject changed while it was read (linux/netlink.h)."""

RECEIVE_SIZE = 1 << 16
"""Bytes for one datagram; the kernel makes none larger than 32 KiB (netlink_recvmsg)."""

HEADER = struct.Struct("=IHHII")
"""``struct nlmsghdr``: length, type, flags, sequence number, port."""

_ATTRIBUTE = struct.Struct("=HH")
_TYPE_MASK = 0x3FFF
"""NLA_TYPE_MASK: an attribute's type without the flags for nested and byte order."""

TRANSIENT = frozenset({errno.EINTR, errno.EAGAIN, errno.EBUSY, errno.ENOBUFS, errno.ERESTART, errno.ENOENT})
"""What the kernel says where somebody else was quicker; reading again is the answer to all."""


MAX_ERRNO = 4095
"""linux/err.h."""


class MalformedError(NetsweepError):
    """The kernel's message is not of the form its headers promise."""


class InterruptedDumpError(ContentionError):
    """What was dumped changed meanwhile: each message is right, but some may be missing or double."""


class GoneError(ContentionError):
    """Something that the request names is not there (any more)."""


class Socket(Protocol):
    """What this module needs of a pyroute2 socket."""

    def send(self, data: bytes) -> int: ...
    def recv(self, size: int, flags: int = 0) -> bytes: ...


def refused(code: int, doing: str) -> Exception:
    """The exception for an errno that the kernel answered with while ``doing`` something."""
    if code in (errno.EPERM, errno.EACCES):
        return NotPermittedError(f"{doing}: not permitted; CAP_NET_ADMIN in this network namespace is needed")
    if code == errno.ENOENT:
        return GoneError(f"{doing}: {os.strerror(code)}")
    if code in TRANSIENT:
        return ContentionError(f"{doing}: {os.strerror(code)}")
    return NetsweepError(f"{doing}: {os.strerror(code)} (errno {code})")


def dump(socket: Socket, request: bytes, doing: str) -> Iterator[tuple[bytes, int, int]]:
    """Send ``request`` and yield ``(buffer, offset, end)`` for each message of the answer.

    A message's header is at ``offset``. Raises :class:`InterruptedDumpError` after the last message
    where the kernel says that the subject changed, :class:`ContentionError` where the answer got
    lost, :class:`MalformedError` where it is none, else what :func:`refused` says.
    """
    interrupted = False
    try:
        socket.send(request)
        while True:
            buffer = socket.recv(RECEIVE_SIZE)
            for offset, end, kind, flags in messages(buffer):
                interrupted = interrupted or bool(flags & NLM_F_DUMP_INTR)
                if kind in (NLMSG_ERROR, NLMSG_DONE):
                    if code := error_code(buffer, offset, end):
                        raise refused(code, doing)
                    if interrupted:
                        raise InterruptedDumpError(f"{doing}: changed while being read")
                    return
                yield buffer, offset, end
    except OSError as error:
        raise refused(error.errno or errno.EIO, doing) from error


def messages(buffer: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield ``(offset, end, type, flags)`` of each message in a datagram."""
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
    """One attribute, padded."""
    return _ATTRIBUTE.pack(4 + len(data), kind) + data + bytes(-len(data) % 4)


def extend(message: bytes, more: bytes) -> bytes:
    """``message`` with attributes ``more`` at its end."""
    return struct.pack("=I", len(message) + len(more)) + message[4:] + more


def attributes(buffer: bytes, offset: int = 0, end: int | None = None) -> list[tuple[int, bytes]]:
    """The type and data of each attribute (``struct nlattr``) between two offsets."""
    if end is None:
        end = len(buffer)
    unpack, found = _ATTRIBUTE.unpack_from, []
    while end - offset >= 4:
        length, kind = unpack(buffer, offset)
        if length < 4 or offset + length > end:
            raise MalformedError("netlink: an attribute has a wrong length")
        found.append((kind & _TYPE_MASK, buffer[offset + 4 : offset + length]))
        offset += length + 3 & ~3
    return found
