"""What a rule of nf_tables says, read from the kernel's bytes. No I/O.

Numbers are those of ``linux/netfilter/nf_tables.h`` and ``nf_tables_compat.h``.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from socket import AF_INET, AF_INET6
from typing import NamedTuple

from netsweep.firewall import extensions
from netsweep.firewall.extensions import Extension
from netsweep.host import netlink
from netsweep.model import COMMENT_MAX, Interface, Spec

_FAMILY_AT = netlink.HEADER.size
"""Where ``struct nfgenmsg`` begins, with the family."""

_ATTRIBUTES_AT = netlink.HEADER.size + 4
"""Bytes before the attributes: ``struct nlmsghdr`` and ``struct nfgenmsg``."""

_RULE_HANDLE, _RULE_EXPRESSIONS, _RULE_POSITION, _RULE_USERDATA = 3, 4, 6, 7
_EXPR_NAME, _EXPR_DATA = 1, 2
_DATA_VALUE, _DATA_VERDICT = 1, 2
_VERDICT_CODE, _VERDICT_CHAIN = 1, 2
_UDATA_COMMENT = 0
"""NFTNL_UDATA_RULE_COMMENT (libnftnl/udata.h)."""

_REG_VERDICT = 0
_CMP_EQ, _CMP_NEQ, _CMP_LTE, _CMP_GTE = 0, 1, 3, 5
_VERDICTS = {0: "DROP", 1: "ACCEPT", 3: "QUEUE", -1: None, -2: None, -5: "RETURN"}
"""NF_DROP, NF_ACCEPT, NF_QUEUE, NFT_CONTINUE, NFT_BREAK, NFT_RETURN."""
_GOTO = -4
_JUMPS = (-3, _GOTO)
"""NFT_JUMP and NFT_GOTO."""

_META_PROTOCOL, _META_MARK, _META_IIFNAME, _META_OIFNAME, _META_NFPROTO, _META_L4PROTO = 1, 3, 6, 7, 15, 16
_META_NUMBERS = (4, 5)
"""NFT_META_IIF and NFT_META_OIF."""
_META_INTERFACES: Mapping[int, str] = {
    4: "matches interfaces by number",
    5: "matches interfaces by number",
    8: "matches interfaces by type",
    9: "matches interfaces by type",
    17: "matches interfaces by the bridge that they are ports of",
    18: "matches interfaces by the bridge that they are ports of",
    21: extensions.BY_GROUP,
    22: extensions.BY_GROUP,
    26: "matches interfaces by kind",
    27: "matches interfaces by kind",
    28: "matches interfaces by VLAN",
    29: "matches interfaces by VLAN",
    33: "matches interfaces by number",
    34: "matches interfaces by their VRF",
}
"""Keys of ``meta`` that speak of interfaces otherwise than by name: iif, oif, iiftype, oiftype,
bri_iifname, bri_oifname, iifgroup, oifgroup, iifkind, oifkind, bri_iifpvid, bri_iifvproto, sdif, sdifname."""

_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
"""NFT_PAYLOAD_NETWORK_HEADER and _TRANSPORT_HEADER."""
_FIELDS: Mapping[int, Mapping[int, str]] = {
    AF_INET: {12: "source", 16: "destination"},
    AF_INET6: {8: "source", 24: "destination"},
}
"""Offsets of the addresses in the network header. NFPROTO_IPV4 and _IPV6 are AF_INET and AF_INET6."""
_PROTOCOL_AT: Mapping[int, int] = {AF_INET: 9, AF_INET6: 6}
"""Offset of the protocol (the next header) in the network header."""
_PORTS_AT = ((0, 2), (2, 2), (0, 4))
"""Offset and length of the source's port, the destination's, and both, in the transport header."""
_ALL_PORTS = ((_CMP_LTE, b"\xff\xff"), (_CMP_GTE, b"\0\0"))
"""Comparisons that hold for every port."""
_FLAGS_AT = (13, 1)
"""Offset and length of the flags in TCP's header."""
_FRAGMENT = (6, b"\x1f\xff")
"""Offset and mask of the fragment's offset in the header of IPv4: 0 in a packet's first fragment."""
_ADDRESS_SIZE: Mapping[int, int] = {AF_INET: 4, AF_INET6: 16}
_PROTOCOLS = {
    bytes([AF_INET]): AF_INET,
    bytes([AF_INET6]): AF_INET6,
    b"\x08\x00": AF_INET,
    b"\x86\xdd": AF_INET6,
}
"""Values of ``meta nfproto`` and ``meta protocol`` (ETH_P_IP, ETH_P_IPV6)."""

MATCHES_BY_NUMBER = tuple(struct.pack("=HH", 8, 2) + struct.pack(">I", key) for key in _META_NUMBERS)
"""What the expressions that match interfaces by number hold: NFTA_META_KEY (nft_meta_get_dump)."""

LOOKS_UP = b"lookup\0"
"""What the expression that uses a set or a map holds: its name."""

_PLAIN = frozenset(
    {b"meta", b"payload", b"cmp", b"range", b"bitwise", b"byteorder", b"immediate", b"counter", b"match", b"target"}
)
"""Expressions that say nothing but what fields of a Spec hold."""

_MATCHES: Mapping[bytes, str] = {b"ct": "conntrack", b"fib": "addrtype", b"limit": "limit", b"connlimit": "connlimit"}
"""What iptables calls what these match; others go by their own names."""

_FIB_RESULT, _FIB_FLAGS = 2, 3
_FIB_INTERFACES = (1, 2)
"""NFT_FIB_RESULT_OIF and _OIFNAME."""
_FIB_PRESENT = 1 << 5
"""NFTA_FIB_F_PRESENT: not which interface, but whether there is one."""

_LOGGING = ("LOG", "NFLOG")

_ANONYMOUS = rb"__(set|map)[0-9]+\0"
"""Names that nft gives to sets and maps without one."""

BOUND_CHAIN = r"__chain[0-9]+"
"""Names that the kernel gives to chains that go with a rule (nf_tables_addchain)."""

_BLOCK = "holds a block of rules, which is not read"
_BY_SET = "matches interfaces by a set"
_BY_OPERATION = "uses an interface's name in a way that cannot be read"
_BY_ROUTE = "matches interfaces by a route"
_TWICE = "matches interfaces more than once in one direction"
_DEVICE_NOT_TOLD = "sends packets to an interface that cannot be read"
_VERDICT_UNKNOWN = "holds a verdict that is not known"
_BAD_USERDATA = "has user data that cannot be read"

_UNIT = 4
_NAME_UNITS = 4
"""A name takes IFNAMSIZ (16) bytes."""
_ALL_UNITS = 16
"""Where it is not told how much of the registers is meant: all from the first one on."""


class Form(NamedTuple):
    """How an expression that is free of interfaces works.

    ``free`` says why it is. ``pure``: it has no effect but to fill ``fills``, or where that is 0 but to
    match. ``reads`` and ``fills`` are the attributes that hold registers, ``units`` how much may be
    filled; without the attribute ``fills`` it writes to somewhere else. ``last`` is the highest value
    known of the attribute ``key``.
    """

    free: str
    pure: bool = False
    reads: tuple[int, ...] = ()
    fills: int = 0
    units: int = _NAME_UNITS
    key: int = 0
    last: int = 0
    target: str | None = None


EXPRESSIONS: Mapping[bytes, Form] = {
    # Loads and comparisons.
    b"meta": Form("its keys are told apart", True, (3,), 1, key=2, last=34),
    b"payload": Form("the packet's content", True, (5,), 1),
    b"exthdr": Form("the packet's content", True, (7,), 1, _ALL_UNITS, key=6, last=4),
    b"ct": Form("the connection", True, (4,), 1, key=2, last=23),
    b"rt": Form("realm, next hop and segment size of the route", True, (), 1, key=2, last=4),
    b"fib": Form("its results are told apart", True, (), 1, key=2, last=3),
    b"socket": Form("the socket", True, (), 2, key=1, last=3),
    b"osf": Form("the sender's operating system", True, (), 1),
    b"xfrm": Form("the IPsec state: addresses and numbers", True, (), 1, key=2, last=6),
    b"tunnel": Form("the tunnel's number and whether there is one", True, (), 2, key=1, last=1),
    b"numgen": Form("a number", True, (), 1, key=3, last=1),
    b"hash": Form("a number, from a register or the packet", True, (1,), 2, key=7, last=1),
    b"immediate": Form("a constant or a verdict", True, (), 1),
    b"cmp": Form("compares a register", True),
    b"range": Form("compares a register", True, (1,)),
    b"bitwise": Form("from register to register", True, (1, 8), 2, _ALL_UNITS, key=6, last=5),
    b"byteorder": Form("from register to register", True, (1,), 2, _ALL_UNITS),
    b"lookup": Form("what is in the set is what its register held", True, (2,), 3, _ALL_UNITS),
    # xt matches and targets.
    b"match": Form("told apart by extensions.read_match"),
    b"target": Form("told apart by extensions.read_target"),
    # Statements.
    b"counter": Form("counts"),
    b"limit": Form("counts"),
    b"quota": Form("counts"),
    b"connlimit": Form("counts connections"),
    b"last": Form("keeps a time"),
    b"log": Form("logs", target="LOG"),
    b"dynset": Form("what goes into the set is what its registers held", reads=(4, 5)),
    b"objref": Form("counters, limits and settings, by name", reads=(3,), key=1, last=10),
    b"nat": Form("changes addresses and ports", reads=(3, 4, 5, 6)),
    b"masq": Form("changes the source to an address of the interface it leaves by", reads=(2, 3), target="MASQUERADE"),
    b"redir": Form("changes the destination's port", reads=(1, 2), target="REDIRECT"),
    b"tproxy": Form("gives the packet to a socket", reads=(2, 3), target="TPROXY"),
    b"queue": Form("gives the packet to a queue", reads=(4,), target="QUEUE"),
    b"reject": Form("answers and drops the packet", target="REJECT"),
    b"notrack": Form("leaves the packet out of connection tracking", target="NOTRACK"),
    b"synproxy": Form("answers for a server", target="SYNPROXY"),
    b"dup": Form("its device is read", reads=(1,)),
    b"fwd": Form("its device is read", reads=(2,)),
}
"""The expressions that are free of interfaces, or whose interfaces are read.

Not here: ``flow_offload`` (a flow table holds interfaces), ``inner`` (it holds other expressions).
"""


class Content(NamedTuple):
    """All of a rule that its meaning depends on: equal content is equal meaning.

    ``family`` is the NFPROTO number of its table.
    """

    family: int
    expressions: bytes
    userdata: bytes


def read_rule(message: bytes) -> tuple[int, int | None, Content]:
    """Take an NFT_MSG_NEWRULE message apart: handle, position, content.

    ``message`` begins with its ``struct nlmsghdr``. The position is the handle of the rule before it
    (NFTA_RULE_POSITION), ``None`` for the first of a chain. Raises
    :class:`~netsweep.host.netlink.MalformedError`.
    """
    if len(message) < _ATTRIBUTES_AT:
        raise netlink.MalformedError("nf_tables: a rule is cut off")
    found = dict(netlink.attributes(message, _ATTRIBUTES_AT))
    handle, position = found.get(_RULE_HANDLE), found.get(_RULE_POSITION)
    if handle is None:
        raise netlink.MalformedError("nf_tables: a rule has no handle")
    content = Content(message[_FAMILY_AT], found.get(_RULE_EXPRESSIONS, b""), found.get(_RULE_USERDATA, b""))
    return int.from_bytes(handle, "big"), None if position is None else int.from_bytes(position, "big"), content


def spec_of(content: Content) -> Spec:
    """Say what a rule means.

    Whatever it does with interfaces that is not told by plain names makes it ``unreadable``. Raises
    :class:`~netsweep.host.netlink.MalformedError`.
    """
    reading = _Reading(content.family)
    for _, expression in netlink.attributes(content.expressions):
        if not reading.take_variable(expression):
            reading.take(_read_expression(expression))
    reading.take_userdata(content.userdata)
    return reading.spec()


def split_expression(expression: bytes) -> tuple[bytes, dict[int, bytes]]:
    """Take one element of NFTA_RULE_EXPRESSIONS apart: name, and data by attribute."""
    found = _found(expression)
    return found.get(_EXPR_NAME, b"").partition(b"\0")[0], _found(found.get(_EXPR_DATA, b""))


def number(data: Mapping[int, bytes], attribute: int, *, signed: bool = False) -> int:
    """Give the number in an attribute, 0 where there is none; nf_tables writes them big end first."""
    return int.from_bytes(data.get(attribute, b""), "big", signed=signed)


def value(data: Mapping[int, bytes], attribute: int) -> bytes:
    """Give the bytes of a constant (NFTA_DATA_VALUE) in an attribute."""
    return _found(data.get(attribute, b"")).get(_DATA_VALUE, b"")


def jump(immediate: Mapping[int, bytes]) -> str | None:
    """Give the chain that an ``immediate`` expression jumps or goes to."""
    verdict = _found(_found(immediate.get(2, b"")).get(_DATA_VERDICT, b""))
    if number(verdict, _VERDICT_CODE, signed=True) not in _JUMPS:
        return None
    return extensions.text(verdict.get(_VERDICT_CHAIN, b"")) or None


_CMP = netlink.attribute(_EXPR_NAME, b"cmp\0")
_CMP_LAYOUT = struct.Struct("=2xH2xH4s2xH4s2xHHH")
_CMP_KINDS = (2, 1, 2, 3, 1)
"""What follows the name of a comparison: types of NFTA_EXPR_DATA, NFTA_CMP_SREG, NFTA_CMP_OP, NFTA_CMP_DATA and
NFTA_DATA_VALUE; with register and operator behind theirs, and the length of the last before it."""

_CMP_VALUE_AT = len(_CMP) + _CMP_LAYOUT.size

_COMMENT_SIZE = COMMENT_MAX + 1
_COMMENT = b"".join(
    (
        netlink.attribute(_EXPR_NAME, b"match\0"),
        struct.pack("=HH", 28 + _COMMENT_SIZE, _EXPR_DATA),
        netlink.attribute(1, b"comment\0"),
        netlink.attribute(2, bytes(4)),
        struct.pack("=HH", 4 + _COMMENT_SIZE, 3),
    )
)
"""An xt comment of revision 0, up to its text."""


class _Name(NamedTuple):
    """In a register: the name of the packet's interface, by key of ``meta``."""

    key: int


class _Protocol(NamedTuple):
    """In a register: whether the packet is IPv4 or IPv6."""


class _Number(NamedTuple):
    """In a register: the number of the packet's interface."""


class _L4Protocol(NamedTuple):
    """In a register: the packet's protocol, as ``-p`` matches it."""


class _Ports(NamedTuple):
    """In a register: a port of the packet, or both. ``destination``: that of the destination alone."""

    destination: bool


class _Flags(NamedTuple):
    """In a register: flags of the packet where it is TCP."""


class _Constant(NamedTuple):
    """In a register: what the rule put there."""

    data: bytes


class _Field(NamedTuple):
    """In a register: bytes of the network header from ``offset`` on, under a mask."""

    offset: int
    mask: bytes


class _Masked(NamedTuple):
    """To put into a register: what is in the register ``source``, under a mask; under none, something made of it."""

    source: int
    mask: bytes


_Held = _Name | _Protocol | _Number | _L4Protocol | _Ports | _Flags | _Constant | _Field


@dataclass(slots=True)
class _Step:
    """What one expression does. ``reads`` and ``fills`` are registers, and units of four bytes.

    ``how``: why the rule cannot be read where ``reads`` holds an interface's name. ``device`` is the
    register with the number of an interface that packets are sent to. ``match`` is the name of what it
    matches or does that no other field of a Spec holds.
    """

    effect: bool = False
    reads: tuple[tuple[int, int], ...] = ()
    how: str = _BY_OPERATION
    fills: tuple[int, int] | None = None
    holds: _Held | _Masked | None = None
    compare: tuple[int, int, bytes] | None = None
    within: tuple[int, bool] | None = None
    match: str | None = None
    target: str | None = None
    says: Extension | None = None
    device: int | None = None
    unreadable: str | None = None


class _Reading:
    """Follows what a rule's expressions do to the registers, in their order."""

    def __init__(self, family: int) -> None:
        self._family = family
        self._registers: dict[int, tuple[int, _Held]] = {}
        self._interfaces: dict[int, Interface] = {}
        self._networks: dict[str, str] = {}
        self._protocol: str | None = None
        self._ports = False
        self._matches: set[str] = set()
        self._numbers: list[int] = []
        self._by_set = False
        self._target: str | None = None
        self._comments: dict[str, None] = {}
        self._physdev: list[Interface] = []
        self._devices: list[str] = []
        self._device_indexes: list[int] = []
        self._unreadable: str | None = None
        self._effect = False

    def take(self, step: _Step) -> None:
        if step.unreadable:
            self._doubt(step.unreadable)
        for register, units in step.reads:
            self._read(register, units, step.how)
        if step.compare:
            self._compare(*step.compare)
        if step.within:
            self._match_ports(*step.within)
        if step.match:
            self._matches.add(step.match)
        if step.fills:
            self._fill(*step.fills, step.holds)
        if step.device is not None:
            self._send_to(step.device)
        if step.says:
            self._say(step.says, step.match)
        if step.target and self._target:
            self._matches.add(f"and {step.target}")
        if step.target and not (self._target and step.target in _LOGGING):
            self._target = step.target
        self._effect = self._effect or step.effect

    def take_variable(self, expression: bytes) -> bool:
        """Take a comparison or a comment, which differ from rule to rule; False where it is none.

        They are read by the layout that the kernel gives them (nft_cmp_dump, nft_match_dump), and not
        remembered: a third of the time for rules of many bridges.
        """
        if expression.startswith(_CMP) and len(expression) > _CMP_VALUE_AT:
            data, sreg, register, op, operator, constant, size, kind = _CMP_LAYOUT.unpack_from(expression, len(_CMP))
            end = _CMP_VALUE_AT + size - 4
            if (data, sreg, op, constant, kind) != _CMP_KINDS or not _CMP_VALUE_AT < end <= len(expression):
                return False
            number = int.from_bytes(operator, "big")
            self._compare(_units_before(int.from_bytes(register, "big")), number, expression[_CMP_VALUE_AT:end])
            return True
        if expression.startswith(_COMMENT) and len(expression) == len(_COMMENT) + _COMMENT_SIZE:
            self._comments[extensions.text(expression[len(_COMMENT) :])] = None
            return True
        return False

    def take_userdata(self, userdata: bytes) -> None:
        # Entries of type, length and data, one byte each for the first two (libnftnl/udata.h).
        offset = 0
        while offset < len(userdata):
            kind, length = userdata[offset], userdata[offset + 1] if offset + 1 < len(userdata) else 0
            if kind == _UDATA_COMMENT:
                self._comments[extensions.text(userdata[offset + 2 : offset + 2 + length])] = None
            offset += 2 + length
        if offset > len(userdata):
            self._doubt(_BAD_USERDATA)

    def spec(self) -> Spec:
        return Spec(
            in_interface=self._interfaces.get(_META_IIFNAME),
            out_interface=self._interfaces.get(_META_OIFNAME),
            source=self._networks.get("source"),
            destination=self._networks.get("destination"),
            protocol=self._protocol,
            ports=self._ports,
            matches=tuple(sorted(self._matches)),
            target=self._target,
            comments=tuple(self._comments),
            physdev=tuple(self._physdev),
            devices=tuple(self._devices),
            device_indexes=tuple(self._device_indexes),
            by_number=tuple(self._numbers),
            by_set=self._by_set,
            unreadable=self._unreadable,
        )

    def _doubt(self, reason: str) -> None:
        self._unreadable = self._unreadable or reason

    def _say(self, extension: Extension, name: str | None) -> None:
        self._comments.update(dict.fromkeys(extension.comments))
        self._physdev += extension.physdev
        self._devices += extension.devices
        self._ports = self._ports or extension.ports
        if extension.more:
            self._matches.add(f"more of {name}")
        if extension.unreadable:
            self._doubt(extension.unreadable)

    def _overlapping(self, register: int, units: int) -> list[int]:
        if not self._registers:
            return []
        end = register + units
        return [start for start, (size, _) in self._registers.items() if start < end and register < start + size]

    def _read(self, register: int, units: int, how: str) -> None:
        for start in self._overlapping(register, units):
            held = self._registers[start][1]
            if isinstance(held, (_Name, _Number)):
                self._by_set = self._by_set or how == _BY_SET
                self._doubt(how)

    def _fill(self, register: int, units: int, holds: _Held | _Masked | None) -> None:
        if isinstance(holds, _Masked):
            holds = self._masked(holds)
        self._registers.pop(register, None)
        # A part of a name is left where another register is written over it.
        self._read(register, units, _BY_OPERATION)
        for start in self._overlapping(register, units):
            del self._registers[start]
        if holds is not None:
            self._registers[register] = units, holds

    def _masked(self, masked: _Masked) -> _Field | _Flags | None:
        _, held = self._registers.get(masked.source, (0, None))
        if isinstance(held, _Flags):
            return held
        if isinstance(held, _Field) and len(held.mask) == len(masked.mask):
            return _Field(held.offset, bytes(a & b for a, b in zip(held.mask, masked.mask, strict=True)))
        if isinstance(held, (_Field, _Ports, _Protocol, _L4Protocol)):
            self._matches.add("bitwise")
        return None

    def _compare(self, register: int, operator: int, data: bytes) -> None:
        _, held = self._registers.get(register, (0, None))
        if isinstance(held, _Name):
            self._match_interface(held.key, _read_name(data, operator, after_effect=self._effect))
            return
        if isinstance(held, _Number) and operator == _CMP_EQ and len(data) == _UNIT:
            self._numbers.append(struct.unpack("=I", data)[0])
            return
        self._read(register, _units(len(data)), _BY_OPERATION)
        if isinstance(held, _Field):
            self._match_field(held, operator, data)
        elif isinstance(held, _L4Protocol):
            self._match_protocol(operator, data)
        elif isinstance(held, _Ports):
            positive = operator != _CMP_NEQ and (operator, data) not in _ALL_PORTS
            self._match_ports(register, positive, one=held.destination and operator == _CMP_EQ)
        elif isinstance(held, _Flags):
            self._matches.update(("tcp", "more of tcp") if self._protocol == "tcp" else ("payload",))
        elif isinstance(held, _Protocol):
            family = _PROTOCOLS.get(data)
            if operator != _CMP_EQ or not family or (self._family in _FIELDS and self._family != family):
                self._matches.add("meta")
            else:
                self._family = family

    def _match_interface(self, key: int, interface: Interface | None) -> None:
        if interface is None:
            self._doubt(_BY_OPERATION)
        elif key in self._interfaces:
            self._doubt(_TWICE)
        else:
            self._interfaces[key] = interface

    def _match_ports(self, register: int, positive: bool, *, one: bool = False) -> None:
        """Note a match of ports; ``one``: of one port of the destination."""
        _, held = self._registers.get(register, (0, None))
        if isinstance(held, _Ports):
            name = self._protocol or "ports"
            self._ports = self._ports or positive
            self._matches.update((name,) if one else (name, f"more of {name}"))
        else:
            self._matches.add("payload" if isinstance(held, _Field) else "range")

    def _match_protocol(self, operator: int, data: bytes) -> None:
        tells = operator in (_CMP_EQ, _CMP_NEQ) and len(data) == 1
        protocol = extensions.protocol(data[0], operator == _CMP_NEQ) if tells else None
        self._protocol = self._protocol or protocol
        if protocol is None or protocol != self._protocol:
            self._matches.add("protocol")

    def _match_field(self, field: _Field, operator: int, data: bytes) -> None:
        if field == (_PROTOCOL_AT.get(self._family), b"\xff"):
            self._match_protocol(operator, data)
            return
        where, size = _FIELDS.get(self._family, {}).get(field.offset), _ADDRESS_SIZE.get(self._family, 0)
        if where and any(field.mask) and operator in (_CMP_EQ, _CMP_NEQ) and len(data) == len(field.mask) <= size:
            address, mask = data.ljust(size, b"\0"), field.mask.ljust(size, b"\0")
            network = extensions.network(address, mask, negated=operator == _CMP_NEQ)
            if self._networks.setdefault(where, network) == network:
                return
        is_fragment = self._family == AF_INET and field == _FRAGMENT and (operator, data) == (_CMP_NEQ, b"\0\0")
        self._matches.add("-f" if is_fragment else "payload")

    def _send_to(self, register: int) -> None:
        _, held = self._registers.get(register, (0, None))
        if isinstance(held, _Constant) and len(held.data) == _UNIT:
            self._device_indexes.append(struct.unpack("=I", held.data)[0])
        else:
            self._doubt(_DEVICE_NOT_TOLD)


@lru_cache(maxsize=4096)  # most rules of a host are made of the same few expressions
def _read_expression(expression: bytes) -> _Step:
    name, data = split_expression(expression)
    form = EXPRESSIONS.get(name)
    if form is None:
        return _Step(effect=True, match=name.decode("utf-8", "replace"), unreadable=_not_free(name))
    step = _follow(name, form, data)
    if name not in _PLAIN and not step.target:
        step.match = _MATCHES.get(name) or name.decode("utf-8", "replace")
    refine = _REFINEMENTS.get(name)
    if refine:
        refine(step, data)
    return step


def _follow(name: bytes, form: Form, data: dict[int, bytes]) -> _Step:
    """What an expression does by its form alone."""
    known = not form.key or number(data, form.key) <= form.last
    loads = form.fills in data and number(data, form.fills) != _REG_VERDICT
    return _Step(
        effect=not (form.pure and known and (loads or not form.fills)),
        reads=tuple([(_register(data, each), _ALL_UNITS) for each in form.reads if each in data]),
        fills=(_register(data, form.fills), form.units) if loads else None,
        target=form.target,
        unreadable=None if known else _not_free(name),
    )


def _refine_meta(step: _Step, data: dict[int, bytes]) -> None:
    key = number(data, 2)
    if not step.fills:
        step.match = "meta"
    elif key in _META_INTERFACES:
        step.match = "meta"
        step.unreadable = _META_INTERFACES[key]
        step.holds = _Number() if key in _META_NUMBERS else None
    elif key in (_META_IIFNAME, _META_OIFNAME):
        step.holds = _Name(key)
    elif key in (_META_PROTOCOL, _META_NFPROTO):
        step.holds = _Protocol()
    elif key == _META_L4PROTO:
        step.holds = _L4Protocol()
    else:
        step.match = "mark" if key == _META_MARK else "meta"


def _refine_payload(step: _Step, data: dict[int, bytes]) -> None:
    step.match = "payload"
    if step.fills:
        base, offset, length = number(data, 2), number(data, 3), number(data, 4)
        step.fills = step.fills[0], _units(length)
        if base == _NETWORK_HEADER and 0 < length <= _ADDRESS_SIZE[AF_INET6]:
            step.holds, step.match = _Field(offset, b"\xff" * length), None
        elif base == _TRANSPORT_HEADER and (offset, length) in _PORTS_AT:
            step.holds, step.match = _Ports(offset == 2), None
        elif base == _TRANSPORT_HEADER and (offset, length) == _FLAGS_AT:
            step.holds, step.match = _Flags(), None


def _refine_bitwise(step: _Step, data: dict[int, bytes]) -> None:
    # Other operations than masking (NFT_BITWISE_MASK_XOR without bits to change) leave nothing that can be told.
    masks = number(data, 6) == 0 and not any(value(data, 5))
    step.holds = _Masked(_register(data, 1), value(data, 4) if masks else b"")


def _refine_byteorder(step: _Step, data: dict[int, bytes]) -> None:
    step.holds = _Masked(_register(data, 1), b"")


def _refine_cmp(step: _Step, data: dict[int, bytes]) -> None:
    step.compare = _register(data, 1), number(data, 2), value(data, 3)


def _refine_range(step: _Step, data: dict[int, bytes]) -> None:
    # NFT_RANGE_EQ is 0.
    whole = (value(data, 3), value(data, 4)) == (b"\0\0", b"\xff\xff")
    step.within = _register(data, 1), number(data, 2) == 0 and not whole


def _refine_immediate(step: _Step, data: dict[int, bytes]) -> None:
    if step.fills:
        constant = value(data, 2)
        step.fills, step.holds = (step.fills[0], _units(len(constant))), _Constant(constant)
        return
    verdict = _found(_found(data.get(2, b"")).get(_DATA_VERDICT, b""))
    code = number(verdict, _VERDICT_CODE, signed=True)
    if code in _JUMPS:
        step.target = jump(data)
        step.match = "-g" if code == _GOTO else None
        if step.target and re.fullmatch(BOUND_CHAIN, step.target):
            step.unreadable = _BLOCK
    elif _VERDICT_CODE in verdict and code in _VERDICTS:
        step.target = _VERDICTS[code]
    else:
        step.unreadable = _VERDICT_UNKNOWN


def _refine_lookup(step: _Step, data: dict[int, bytes]) -> None:
    # The elements of a set may count. What a set without a name counts goes with its rule.
    has_name = not re.fullmatch(_ANONYMOUS, data.get(1, b""))
    step.effect = has_name or (3 in data and step.effect)
    step.how = _BY_SET


def _refine_set_user(step: _Step, data: dict[int, bytes]) -> None:
    step.how = _BY_SET


def _refine_numgen(step: _Step, data: dict[int, bytes]) -> None:
    # NFT_NG_INCREMENTAL counts; NFT_NG_RANDOM does not.
    step.effect = step.effect or number(data, 3) == 0


def _refine_fib(step: _Step, data: dict[int, bytes]) -> None:
    if number(data, _FIB_RESULT) in _FIB_INTERFACES and not number(data, _FIB_FLAGS) & _FIB_PRESENT:
        step.unreadable = _BY_ROUTE


def _refine_match(step: _Step, data: dict[int, bytes]) -> None:
    name = extensions.text(data.get(1, b""))
    step.says = extensions.read_match(name, number(data, 2), data.get(3, b""))
    step.match = None if name == "comment" else name
    step.effect = step.says.effect


def _refine_target(step: _Step, data: dict[int, bytes]) -> None:
    step.target = extensions.text(data.get(1, b""))
    step.says = extensions.read_target(step.target, number(data, 2), data.get(3, b""))


def _refine_dup(step: _Step, data: dict[int, bytes]) -> None:
    # Without a device the packet goes where its address leads.
    if 2 in data:
        step.device = _register(data, 2)


def _refine_fwd(step: _Step, data: dict[int, bytes]) -> None:
    step.device = _register(data, 1)


def _refine_nat(step: _Step, data: dict[int, bytes]) -> None:
    step.target = {0: "SNAT", 1: "DNAT"}.get(number(data, 1))
    step.match = None


def _refine_log(step: _Step, data: dict[int, bytes]) -> None:
    if 1 in data:
        step.target = "NFLOG"


_REFINEMENTS: Mapping[bytes, Callable[[_Step, dict[int, bytes]], None]] = {
    b"meta": _refine_meta,
    b"payload": _refine_payload,
    b"bitwise": _refine_bitwise,
    b"byteorder": _refine_byteorder,
    b"cmp": _refine_cmp,
    b"range": _refine_range,
    b"immediate": _refine_immediate,
    b"lookup": _refine_lookup,
    b"dynset": _refine_set_user,
    b"objref": _refine_set_user,
    b"numgen": _refine_numgen,
    b"fib": _refine_fib,
    b"match": _refine_match,
    b"target": _refine_target,
    b"dup": _refine_dup,
    b"fwd": _refine_fwd,
    b"nat": _refine_nat,
    b"log": _refine_log,
}


def _read_name(data: bytes, operator: int, *, after_effect: bool) -> Interface | None:
    """The match that comparing an interface's name with ``data`` makes; ``None`` for none that is known."""
    name, nul, padding = data.partition(b"\0")
    if operator not in (_CMP_EQ, _CMP_NEQ) or not name or padding.strip(b"\0") or len(data) > _NAME_UNITS * _UNIT:
        return None
    return Interface(name.decode("utf-8", "surrogateescape"), not nul, operator == _CMP_NEQ, after_effect)


def _not_free(name: bytes) -> str:
    return extensions.not_free("nf_tables expression", name.decode("utf-8", "surrogateescape"))


def _found(buffer: bytes) -> dict[int, bytes]:
    return dict(netlink.attributes(buffer))


def _register(data: Mapping[int, bytes], attribute: int) -> int:
    """A register's number in units of four bytes.

    NFT_REG_1 (1) and up are four units each, NFT_REG32_00 (8) and up are one and begin at the same
    place.
    """
    return _units_before(number(data, attribute))


def _units_before(register: int) -> int:
    return register - 8 if register >= 8 else 4 * (register - 1)


def _units(size: int) -> int:
    return -(-size // _UNIT)
