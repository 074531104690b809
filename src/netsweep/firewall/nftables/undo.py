"""What it takes to put a rule of nf_tables back. No I/O."""

from __future__ import annotations

import re
import struct
from collections.abc import Collection, Container, Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

from netsweep.firewall import extensions
from netsweep.firewall.nftables.codec import BOUND_CHAIN, Content, jump, number, read_rule, split_expression, value
from netsweep.host import netlink
from netsweep.model import Undo

_NESTED = 0x8000
"""NLA_F_NESTED (linux/netlink.h)."""
_RULE_EXPRESSIONS, _RULE_COMPAT, _RULE_USERDATA = 4, 5, 7
_COMPAT_PROTOCOL, _COMPAT_FLAGS = 1, 2
_COMPAT_INVERTED = 1 << 1
"""NFT_RULE_COMPAT_F_INV."""
_CMP_NEQ = 1

_COUNTS: Mapping[bytes, frozenset[int]] = {
    b"counter": frozenset({1, 2, 3}),
    b"quota": frozenset({3, 4}),
    b"last": frozenset({1, 2, 3}),
}
"""Attributes that hold what an expression has counted; without them it begins at zero: bytes and
packets; bytes consumed; whether there was a packet, and when; each with its padding."""

_SETS: Mapping[bytes, int] = {b"lookup": 1, b"dynset": 1, b"objref": 4}
"""The attribute with the name of a set: NFTA_LOOKUP_SET, NFTA_DYNSET_SET_NAME, NFTA_OBJREF_SET_NAME."""

_DYNSET_TIMEOUT = 6
_EXTHDR_DREG, _EXTHDR_OFFSET, _EXTHDR_LEN, _EXTHDR_FLAGS, _EXTHDR_SREG = 1, 3, 4, 5, 7
_OSF_FLAGS = 3

_L4PROTO_KEY = 16
"""NFT_META_L4PROTO."""
_IP_PROTOCOLS = ((1, 9, 1), (1, 6, 1))
"""Base (network header), offset and length of the protocol in the headers of IPv4 and IPv6."""


def undo_of(message: bytes, lasting: Container[str] = ()) -> Undo:
    """Give what it takes to put the rule in an NFT_MSG_NEWRULE message back, with its counters at zero.

    ``lasting`` are the sets of its table that stay when the rule goes (without NFT_SET_ANONYMOUS). A rule
    does not tell which they are, so by default all that it uses count as lost. The kernel shows all of a
    rule but NFTA_RULE_COMPAT: the protocol that xt matches and targets are checked against, which
    iptables-nft gives beside the expressions that match it. Raises
    :class:`~netsweep.host.netlink.MalformedError`.
    """
    _, _, content = read_rule(message)
    kept: list[bytes] = []
    numbers: tuple[int, ...] = ()
    to = lost = None
    compat = b""
    protocol_loaded = False
    for part in _parts(content.expressions):
        kept.append(part.kept)
        if part.set is not None and part.set not in lasting:
            lost = lost or f"uses the set {ascii(part.set)[1:-1]}, which is deleted with the rule"
        if part.chain is not None:
            to = part.chain
            if re.fullmatch(BOUND_CHAIN, to):
                lost = lost or f"jumps to the chain {to}, which is deleted with the rule"
        if part.numbers is None:
            lost = lost or "uses ipset in a way that is not known"
        else:
            numbers += part.numbers
        if protocol_loaded and part.compat:
            compat = part.compat
        protocol_loaded = part.loads_protocol
    sections = (b"".join(kept), content.userdata, compat)
    raw = b"".join(struct.pack("=I", len(each)) + each for each in sections)
    return Undo(raw, blake2b(raw, digest_size=16).digest(), to, numbers, lost)


def rule_attributes(raw: bytes) -> bytes:
    """Give the attributes for NFT_MSG_NEWRULE that make the rule of :attr:`netsweep.model.Undo.raw` again.

    Table, chain and place are not among them. Raises :class:`~netsweep.host.netlink.MalformedError`.
    """
    expressions, userdata, compat = _sections(raw)
    return b"".join(
        (
            netlink.attribute(_RULE_EXPRESSIONS | _NESTED, expressions),
            netlink.attribute(_RULE_USERDATA, userdata) if userdata else b"",
            netlink.attribute(_RULE_COMPAT | _NESTED, compat) if compat else b"",
        )
    )


def content_of(raw: bytes, family: int) -> Content:
    """What the rule of :attr:`netsweep.model.Undo.raw` holds, in a table of a family, by its NFPROTO number.

    Raises :class:`~netsweep.host.netlink.MalformedError`.
    """
    expressions, userdata, _ = _sections(raw)
    return Content(family, expressions, userdata)


def _sections(raw: bytes) -> tuple[bytes, bytes, bytes]:
    parts = []
    while raw:
        size = 4 + struct.unpack_from("=I", raw)[0] if len(raw) >= 4 else 4
        if size > len(raw):
            raise netlink.MalformedError("nf_tables: a saved rule is cut off")
        parts.append(raw[4:size])
        raw = raw[size:]
    if len(parts) != 3:
        raise netlink.MalformedError("nf_tables: a saved rule is incomplete")
    expressions, userdata, compat = parts
    return expressions, userdata, compat


class _Part(NamedTuple):
    """What is kept of one expression, and what it refers to.

    ``compat`` is what NFTA_RULE_COMPAT holds where it compares the packet's protocol; ``numbers`` is
    ``None`` where the ipset sets cannot be told.
    """

    kept: bytes
    set: str | None
    chain: str | None
    numbers: tuple[int, ...] | None
    compat: bytes
    loads_protocol: bool


def _parts(expressions: bytes) -> list[_Part]:
    return [_read_part(expression) for _, expression in netlink.attributes(expressions)]


@lru_cache(maxsize=4096)  # most rules of a host are made of the same few expressions
def _read_part(expression: bytes) -> _Part:
    name, data = split_expression(expression)
    return _Part(
        netlink.attribute(1 | _NESTED, _reset(expression, name, data)),
        _set_name(name, data),
        jump(data) if name == b"immediate" else None,
        _set_numbers(name, data) if name in (b"match", b"target") else (),
        _compat(data) if name == b"cmp" else b"",
        _loads_protocol(name, data),
    )


def _reset(expression: bytes, name: bytes, data: Mapping[int, bytes]) -> bytes:
    """The expression as the kernel takes it, as if it had counted nothing."""
    left_out = _COUNTS.get(name) or _not_taken(name, data)
    if not left_out:
        return expression
    kept = b"".join(netlink.attribute(kind, each) for kind, each in data.items() if kind not in left_out)
    return netlink.attribute(1, name + b"\0") + netlink.attribute(2 | _NESTED, kept)


def _not_taken(name: bytes, data: Mapping[int, bytes]) -> Collection[int]:
    """The attributes that the kernel shows where they mean nothing, and does not take there."""
    if name == b"dynset" and not number(data, _DYNSET_TIMEOUT):
        return (_DYNSET_TIMEOUT,)  # it is for sets that have timeouts
    if name == b"exthdr" and _EXTHDR_DREG not in data:
        # What changes an option has no flags, and what takes one away has no part of it (nft_exthdr_tcp_strip_init).
        return (_EXTHDR_FLAGS,) if _EXTHDR_SREG in data else (_EXTHDR_OFFSET, _EXTHDR_LEN, _EXTHDR_FLAGS)
    if name == b"osf" and not number(data, _OSF_FLAGS):
        return (_OSF_FLAGS,)
    return ()


def _set_name(name: bytes, data: Mapping[int, bytes]) -> str | None:
    attribute = _SETS.get(name)
    return extensions.text(data[attribute]) if attribute is not None and attribute in data else None


def _set_numbers(name: bytes, data: Mapping[int, bytes]) -> tuple[int, ...] | None:
    extension = extensions.text(data.get(1, b""))
    return extensions.set_numbers(name.decode("ascii"), extension, number(data, 2), data.get(3, b""))


def _loads_protocol(name: bytes, data: Mapping[int, bytes]) -> bool:
    if name == b"meta":
        return number(data, 2) == _L4PROTO_KEY
    return name == b"payload" and (number(data, 2), number(data, 3), number(data, 4)) in _IP_PROTOCOLS


def _compat(cmp: Mapping[int, bytes]) -> bytes:
    protocol = value(cmp, 3)[:1].rjust(4, b"\0")
    flags = _COMPAT_INVERTED if number(cmp, 2) == _CMP_NEQ else 0
    return netlink.attribute(_COMPAT_PROTOCOL, protocol) + netlink.attribute(_COMPAT_FLAGS, struct.pack(">I", flags))
