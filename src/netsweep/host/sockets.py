"""Which addresses and interfaces the sockets of running processes use here. Loads no kernel module.

The kernel tells by sock_diag(7), layouts as in ``linux/inet_diag.h``. A protocol whose module for that is not loaded is
read from /proc/net instead, which does not say what interface a socket is bound to.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from functools import cache

from netsweep.errors import NetsweepError
from netsweep.host.netlink import (
    HEADER,
    NETLINK_SOCK_DIAG,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    GoneError,
    dump,
    open_socket,
    request,
)

_SOCK_DIAG_BY_FAMILY = 20
_REQUEST = struct.Struct("=BBBxI48x")
"""``struct inet_diag_req_v2``: family, protocol, extensions, states, and the identity of one socket."""
_ALL_STATES = 0xFFFFFFFF
_PORT, _SOURCE, _INTERFACE, _INODE = 4, 8, 40, 68
"""Offsets in ``struct inet_diag_msg``."""

_PROTOCOLS = {
    "tcp": (socket.IPPROTO_TCP, "tcp_diag"),
    "udp": (socket.IPPROTO_UDP, "udp_diag"),
    "udplite": (136, "udp_diag"),
    "raw": (socket.IPPROTO_RAW, "raw_diag"),
    "icmp": (None, ""),
    "sctp": (132, "sctp_diag"),
}
"""By their files in /proc/net: the number of each protocol, and the module that tells of its sockets."""

_FAMILIES = ((socket.AF_INET, "", 4), (socket.AF_INET6, "6", 16))


class SocketsInUse:
    """What sockets use: ``addresses``, each with one of its sockets as ``tcp port 80``, and ``devices`` by their index.

    A socket that listens on every address uses none of them. What no process holds, as a connection that waits for its
    last packets, does not count. Raises :class:`~netsweep.errors.NetsweepError`.
    """

    def __init__(self) -> None:
        self.addresses: dict[str, str] = {}
        self.devices = set[int]()
        try:
            with open_socket(NETLINK_SOCK_DIAG) as opened:
                for protocol in _PROTOCOLS:
                    for family, suffix, size in _FAMILIES:
                        for address, port, device in _sockets(opened, protocol, family, suffix, size):
                            if not address.is_unspecified:
                                own = str(getattr(address, "ipv4_mapped", None) or address)
                                self.addresses[own] = f"{protocol} port {port}"
                            self.devices.add(device)
            self.devices.update(int(line[4]) for line in _table("packet"))
        except (OSError, ValueError, IndexError) as error:
            raise NetsweepError(f"could not find out which addresses are in use: {error}") from error
        self.devices.discard(0)


def _sockets(
    opened: socket.socket, protocol: str, family: int, suffix: str, size: int
) -> Iterator[tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int, int]]:
    """The own address, the port and the device of each socket of a process; 0 is no device."""
    number, module = _PROTOCOLS[protocol]
    if number is not None and _is_loaded(module):
        asked = request(_SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, _REQUEST.pack(family, number, 0, _ALL_STATES))
        try:
            for buffer, offset, _ in dump(opened, asked, f"reading {protocol} sockets"):
                body = offset + HEADER.size
                if any(buffer[body + _INODE : body + _INODE + 4]):
                    device = int(struct.unpack_from("=I", buffer, body + _INTERFACE)[0])
                    port = int(struct.unpack_from("!H", buffer, body + _PORT)[0])
                    yield ipaddress.ip_address(buffer[body + _SOURCE : body + _SOURCE + size]), port, device
            return
        except GoneError:  # the kernel has no such module
            pass
    for line in _table(protocol + suffix):
        if line[9] != "0":
            shown, _, shown_port = line[1].partition(":")
            words = bytes.fromhex(shown)
            # The address is in 32-bit words of the machine's byte order.
            address = b"".join(struct.pack("=I", each) for (each,) in struct.iter_unpack(">I", words))
            yield ipaddress.ip_address(address), int(shown_port, 16), 0


def _table(name: str) -> Iterator[list[str]]:
    """The lines of a table in /proc/net, without its head; none where the kernel has no such protocol."""
    try:
        with open(f"/proc/thread-self/net/{name}", encoding="ascii", errors="replace") as table:
            yield from (line.split() for line in list(table)[1:])
    except FileNotFoundError:
        return


@cache
def _is_loaded(module: str) -> bool:
    """Whether a module is there, so that using it loads none."""
    try:
        with open("/proc/modules", encoding="ascii", errors="replace") as modules:
            if any(line.startswith(f"{module} ") for line in modules):
                return True
    except FileNotFoundError:
        return True  # a kernel without loadable modules
    try:
        with open(f"/lib/modules/{os.uname().release}/modules.builtin", encoding="utf-8", errors="replace") as builtin:
            return any(f"/{module}.ko" in line for line in builtin)
    except OSError:
        return False
