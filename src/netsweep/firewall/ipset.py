"""The names of ipset's sets: the kernel shows a rule's sets by number only."""

from __future__ import annotations

import struct

from netsweep.firewall.extensions import text
from netsweep.host import netlink
from netsweep.host.netlink import NETLINK_NETFILTER, NFNL_SUBSYS_IPSET, NLM_F_REQUEST, NLMSG_ERROR

_GET_BYINDEX = 15
_PROTOCOL, _SETNAME, _INDEX = 1, 2, 11
"""IPSET_CMD_GET_BYINDEX and IPSET_ATTR_* (linux/netfilter/ipset/ip_set.h)."""

_PROTOCOL_VERSION = 7
"""The first that knows the command (Linux 4.20)."""

_NET_BYTEORDER = 0x4000
"""NLA_F_NET_BYTEORDER (linux/netlink.h)."""


def set_name(number: int) -> str | None:
    """The name of the set that has ``number`` in this network namespace now; ``None`` where there is none.

    The kernel gives a number out again when its set has gone.
    """
    body = struct.pack("=BBH", 0, 0, 0) + netlink.attribute(_PROTOCOL, bytes([_PROTOCOL_VERSION]))
    body += netlink.attribute(_INDEX | _NET_BYTEORDER, struct.pack(">H", number))
    with netlink.open_socket(NETLINK_NETFILTER) as sock:
        sock.sendall(netlink.request(NFNL_SUBSYS_IPSET << 8 | _GET_BYINDEX, NLM_F_REQUEST, body))
        answer = netlink.receive(sock)
    for offset, end, kind, _ in netlink.messages(answer):
        if kind != NLMSG_ERROR:
            found = dict(netlink.attributes(answer, offset + netlink.HEADER.size + 4, end))
            return text(found.get(_SETNAME, b"")) or None
    return None
