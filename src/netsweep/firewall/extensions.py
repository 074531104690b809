"""What xt matches and targets say of interfaces. Both firewalls carry them as bytes.

Layouts are those of ``linux/netfilter/xt_*.h``. What is not listed here as free of interfaces is not.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import lru_cache
from socket import AF_INET, AF_INET6, inet_ntop
from typing import NamedTuple

from netsweep.model import Interface

MATCHES: Mapping[str, str] = {
    "addrtype": "tests the kind of an address; --limit-iface-in names no interface",
    "ah": "tests a header of the packet",
    "cgroup": "tests the sender's control group",
    "cluster": "tests a hash of addresses",
    "connbytes": "tests counters of the connection",
    "connlabel": "tests a label of the connection",
    "connlimit": "counts connections by address",
    "connmark": "tests the mark of the connection",
    "conntrack": "tests the state of the connection",
    "cpu": "tests the processor's number",
    "dccp": "tests a header of the packet",
    "dscp": "tests a header of the packet",
    "dst": "tests a header of the packet",
    "ecn": "tests a header of the packet",
    "esp": "tests a header of the packet",
    "eui64": "tests addresses of the packet",
    "frag": "tests a header of the packet",
    "hashlimit": "counts packets by address and port; its name is that of a hash table",
    "hbh": "tests a header of the packet",
    "helper": "tests the helper of the connection",
    "hl": "tests a header of the packet",
    "icmp": "tests a header of the packet",
    "icmp6": "tests a header of the packet",
    "ipcomp": "tests a header of the packet",
    "iprange": "tests addresses of the packet",
    "ipv6header": "tests which headers the packet has",
    "ipvs": "tests the virtual service of the connection",
    "l2tp": "tests a header of the packet",
    "length": "tests the length of the packet",
    "limit": "counts packets",
    "mac": "tests an address of the packet",
    "mark": "tests the mark of the packet",
    "mh": "tests a header of the packet",
    "multiport": "tests ports of the packet",
    "nfacct": "counts packets; its name is that of a counter",
    "osf": "tests headers of the packet",
    "owner": "tests the user of the sending socket",
    "pkttype": "tests broadcast, multicast or unicast",
    "policy": "tests the IPsec policy, by address and number",
    "quota": "counts bytes",
    "rateest": "compares rates; its names are those of estimators",
    "realm": "tests the realm of the route",
    "recent": "keeps lists of addresses; its name is that of a list",
    "rpfilter": "tests the route back; names no interface",
    "rt": "tests a header of the packet",
    "sctp": "tests a header of the packet",
    "socket": "tests whether there is a socket",
    "srh": "tests a header of the packet",
    "state": "tests the state of the connection",
    "statistic": "counts packets, or none",
    "string": "tests the content of the packet",
    "tcp": "tests a header of the packet",
    "tcpmss": "tests a header of the packet",
    "time": "tests the clock",
    "tos": "tests a header of the packet",
    "ttl": "tests a header of the packet",
    "u32": "tests the content of the packet",
    "udp": "tests a header of the packet",
    "udplite": "tests a header of the packet",
}
"""Matches that are free of interfaces, each with the reason.

Not here: ``set`` (an ipset may hold interfaces), ``bpf`` (a program may ask for the interface),
``devgroup``. ``comment`` and ``physdev`` are read.
"""

STATEFUL = frozenset(
    {"connlabel", "connlimit", "hashlimit", "limit", "nfacct", "osf", "quota", "recent", "socket", "statistic"}
)
"""Those of :data:`MATCHES` that keep state or act: ``connlabel --set``, ``osf --log`` and
``socket --restore-skmark`` act."""

TARGETS: Mapping[str, str] = {
    "AUDIT": "writes to the audit log",
    "CHECKSUM": "changes the packet",
    "CLASSIFY": "sets the packet's priority",
    "CONNMARK": "sets the connection's mark",
    "CONNSECMARK": "copies a security mark",
    "CT": "sets zone, helper and timeouts of the connection",
    "DNAT": "changes the destination to an address",
    "DNPT": "changes the destination's prefix",
    "DSCP": "changes the packet",
    "ECN": "changes the packet",
    "HL": "changes the packet",
    "HMARK": "sets the packet's mark from a hash",
    "IDLETIMER": "starts a timer; its label is that of the timer",
    "LED": "blinks; its name is that of a trigger",
    "LOG": "writes to the kernel's log",
    "MARK": "sets the packet's mark",
    "MASQUERADE": "changes the source to an address of whatever interface the packet leaves by",
    "NETMAP": "changes an address's prefix",
    "NFLOG": "gives the packet to a group of listeners",
    "NFQUEUE": "gives the packet to a queue",
    "NOTRACK": "leaves the packet out of connection tracking",
    "RATEEST": "counts packets; its name is that of an estimator",
    "REDIRECT": "changes the destination's port",
    "REJECT": "answers and drops the packet",
    "SECMARK": "sets a security mark",
    "SNAT": "changes the source to an address",
    "SNPT": "changes the source's prefix",
    "SYNPROXY": "answers for a server",
    "TCPMSS": "changes the packet",
    "TCPOPTSTRIP": "changes the packet",
    "TOS": "changes the packet",
    "TPROXY": "gives the packet to a socket by address, port and mark",
    "TRACE": "traces the packet",
    "TTL": "changes the packet",
    "ULOG": "gives the packet to a group of listeners",
}
"""Targets that are free of interfaces, each with the reason.

Not here: ``SET`` (an ipset may hold interfaces), ``CLUSTERIP`` (it changes the interface of its rule's
``-i``). ``TEE`` is read.
"""

PROTOCOLS: Mapping[int, str] = {
    1: "icmp",
    6: "tcp",
    17: "udp",
    33: "dccp",
    50: "esp",
    51: "ah",
    58: "ipv6-icmp",
    132: "sctp",
    136: "udplite",
}
"""The protocols that iptables knows without /etc/protocols (xtables_chain_protos in libxtables/xtables.c)."""

BY_GROUP = "matches interfaces by group"

_PHYSDEV = struct.Struct("=16s16s16s16sBB")
"""``struct xt_physdev_info``: in-interface, its mask, out-interface, its mask, what is inverted."""

_PHYSDEV_IN, _PHYSDEV_OUT = 0x01, 0x02
"""XT_PHYSDEV_OP_IN and _OUT."""

_TEE, _TEE_REVISION = struct.Struct("=16x16s"), 1
"""``struct xt_tee_tginfo``: the gateway's address, and the interface to it."""

_TCP, _UDP, _SCTP, _MULTIPORT = map(struct.Struct, ("=4HBBxB", "=4HB", "=4H276xII", "=xB15H15BB"))
"""``struct xt_tcp``: lowest and highest port of the source, the same of the destination, an option, the mask of
flags, what is inverted. ``struct xt_udp``: the ports, what is inverted. ``struct xt_sctp_info``: the ports of the
destination, those of the source, what is matched, what of it is inverted. In all three bit 0 is the source,
bit 1 the destination. ``struct xt_multiport_v1``: how many ports, the ports, which of them begin a range that
the next ends, whether it is inverted."""

_PORTS = {"tcp": (_TCP, 0), "udp": (_UDP, 0), "sctp": (_SCTP, 0), "multiport": (_MULTIPORT, 1)}
"""Matches of ports: the layout, and the revision that has it."""

_ALL = (0, 0xFFFF)

_NO_SET = 0xFFFF
"""IPSET_INVALID_ID (linux/netfilter/ipset/ip_set.h)."""

_SETS = {
    **{("match", revision): (0,) for revision in range(5)},
    ("target", 0): (0, 32),
    ("target", 1): (0, 4),
    ("target", 2): (0, 4),
    ("target", 3): (0, 4, 8),
}
"""Where each revision of the ``set`` match and the ``SET`` target holds its sets' numbers
(linux/netfilter/xt_set.h)."""


class Extension(NamedTuple):
    """What one match or target says, as fields of :class:`netsweep.model.Spec`.

    ``ports``: it matches some ports, not negated. ``more``: it matches more than its name tells, or, of ports,
    other than one of the destination. ``effect``: it does more than to match.
    """

    comments: tuple[str, ...] = ()
    ports: bool = False
    more: bool = False
    physdev: tuple[Interface, ...] = ()
    devices: tuple[str, ...] = ()
    unreadable: str | None = None
    effect: bool = False


_FREE, _FREE_EFFECT = Extension(), Extension(effect=True)


def read_match(name: str, revision: int, info: bytes) -> Extension:
    """Say what an xt match means, given its kernel name, its revision and its data."""
    if name == "comment" and revision == 0:
        return Extension(comments=(text(info),))
    if name == "physdev" and revision == 0 and len(info) >= _PHYSDEV.size:
        return Extension(physdev=_read_physdev(info))
    if name == "devgroup":
        return Extension(unreadable=BY_GROUP)
    if name in _PORTS:
        return _read_ports(name, revision, info)
    if name in MATCHES:
        return _FREE_EFFECT if name in STATEFUL else _FREE
    return Extension(unreadable=not_free("match", name), effect=True)


def read_target(name: str, revision: int, info: bytes) -> Extension:
    """Say what an xt target means, given its kernel name, its revision and its data."""
    if name == "TEE" and revision == _TEE_REVISION and len(info) >= _TEE.size:
        device = text(_TEE.unpack_from(info)[0])
        return Extension(devices=(device,) if device else (), effect=True)
    if name in TARGETS:
        return _FREE_EFFECT
    return Extension(unreadable=not_free("target", name), effect=True)


def not_free(kind: str, name: str) -> str:
    """Why the interfaces of a rule that holds ``name`` cannot be told."""
    return f"holds the {kind} '{ascii(name)[1:-1][:32]}', which is not known to be free of interfaces"


def text(field: bytes) -> str:
    """Decode a C string; bytes that are not UTF-8 become surrogate escapes (PEP 383)."""
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


@lru_cache(maxsize=1024)  # the rules of one bridge stand together
def interface(name: bytes, mask: bytes, negated: int) -> Interface | None:
    """Give the match that an interface's name under a mask makes; ``None`` where it matches all."""
    if not negated and not any(mask):
        return None
    covered = len(mask) - len(mask.lstrip(b"\xff"))
    own = name.split(b"\0", 1)[0]
    # iptables covers the name's closing NUL too, except where it may go on (xtables_parse_interface).
    wildcard = covered <= len(own)
    return Interface(text(own[:covered] if wildcard else own), wildcard, bool(negated))


def set_numbers(kind: str, name: str, revision: int, info: bytes) -> tuple[int, ...] | None:
    """Give the numbers of the ipset sets in an extension's data; ``None`` where its revision is not known.

    ``kind`` is ``match`` or ``target``. Other extensions than ipset's have none.
    """
    if name != {"match": "set", "target": "SET"}[kind]:
        return ()
    offsets = _SETS.get((kind, revision))
    if offsets is None or len(info) < offsets[-1] + 2:
        return None
    found = (struct.unpack_from("=H", info, offset)[0] for offset in offsets)
    return tuple(number for number in found if number != _NO_SET)


def network(address: bytes, mask: bytes, *, negated: bool = False) -> str:
    """Give an IPv4 or IPv6 network as iptables-save writes it, with ``!`` in front where it is negated."""
    bits, size = int.from_bytes(mask, "big"), 8 * len(mask)
    length = bits.bit_count()
    contiguous = bits == (1 << length) - 1 << size - length
    family = AF_INET if len(address) == 4 else AF_INET6
    suffix = str(length) if contiguous else inet_ntop(family, mask)
    return f"{'!' if negated else ''}{inet_ntop(family, address)}/{suffix}"


def protocol(number: int, negated: int) -> str | None:
    """Give the protocol as in :attr:`netsweep.model.Spec.protocol`; ``None`` where a rule matches all."""
    return f"{'!' if negated else ''}{PROTOCOLS.get(number, number)}" if number else None


@lru_cache(maxsize=1024)  # most rules of a host have the same few ports
def _read_ports(name: str, revision: int, info: bytes) -> Extension:
    layout, known = _PORTS[name]
    if revision != known or len(info) < layout.size:
        return Extension(more=True)
    if layout is _MULTIPORT:
        count, *rest, inverted = layout.unpack_from(info)
        ports, begins = rest[:15], rest[15:]
        total = sum(ports[at + 1] - ports[at] if begins[at] else 1 for at in range(min(count, 14)))
        return Extension(ports=not inverted and total < _ALL[1])
    low, high, other_low, other_high, *flags, inverted = layout.unpack_from(info)
    source, destination = (low, high), (other_low, other_high)
    if layout is _SCTP:
        (matched,) = flags
        source, destination = (destination if matched & 1 else _ALL), (source if matched & 2 else _ALL)
        flags = [matched & ~3]
    positive = (source != _ALL and not inverted & 1) or (destination != _ALL and not inverted & 2)
    one = source == _ALL and destination[0] == destination[1] and not inverted & 3
    return Extension(ports=bool(positive), more=any(flags) or not (one or (source, destination) == (_ALL, _ALL)))


def _read_physdev(info: bytes) -> tuple[Interface, ...]:
    in_name, in_mask, out_name, out_mask, inverted, _ = _PHYSDEV.unpack_from(info)
    found = (
        interface(in_name, in_mask, inverted & _PHYSDEV_IN),
        interface(out_name, out_mask, inverted & _PHYSDEV_OUT),
    )
    return tuple(port for port in found if port and (port.name or port.wildcard))
