"""Requests to nf_tables, and the fixed part of its answers. No I/O.

Numbers are those of ``linux/netfilter/nf_tables.h`` and ``linux/netfilter/nfnetlink.h``.
"""

from __future__ import annotations

import itertools
import operator
import struct
from collections.abc import Callable, Iterator, Sequence

from netsweep.firewall.nftables.codec import read_rule
from netsweep.host import netlink
from netsweep.host.netlink import NFNL_SUBSYS_NFTABLES, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST
from netsweep.model import Chain, Family, Rule, Table

FAMILIES = {1: Family.INET, 2: Family.IPV4, 3: Family.ARP, 5: Family.NETDEV, 7: Family.BRIDGE, 10: Family.IPV6}
"""NFPROTO_* (linux/netfilter.h)."""

NUMBERS = {family: number for number, family in FAMILIES.items()}

GETTABLE, DELTABLE, NEWCHAIN, GETCHAIN, DELCHAIN, NEWRULE, GETRULE, DELRULE = 1, 2, 3, 4, 5, 6, 7, 8
GETSET, NEWGEN, GETGEN = 10, 15, 16
"""NFT_MSG_* (linux/netfilter/nf_tables.h)."""

TABLE_NAME, TABLE_FLAGS, TABLE_HANDLE, TABLE_OWNER = 1, 2, 4, 7
TABLE_OWNED = 0x2
"""NFT_TABLE_F_OWNER: only the process that made the table may change it."""

CHAIN_TABLE, CHAIN_NAME, CHAIN_FLAGS = 1, 3, 10
CHAIN_BOUND = 0x4
"""NFT_CHAIN_BINDING: the chain belongs to the rule that jumps to it, and cannot be changed."""

RULE_TABLE, RULE_CHAIN, RULE_HANDLE, RULE_EXPRESSIONS, RULE_POSITION = 1, 2, 3, 4, 6
TYPE_MASK = 0x3FFF
"""NLA_TYPE_MASK (linux/netlink.h): an attribute's type without its flags."""

SET_TABLE, SET_NAME, SET_FLAGS = 1, 2, 3
SET_ANONYMOUS = 0x1
"""NFT_SET_ANONYMOUS: the set goes with the rule that uses it, whatever its name."""

GEN_ID = 1
BATCH_GENID = 1
"""NFNL_BATCH_GENID (linux/netfilter/nfnetlink.h)."""

BATCH_BEGIN, BATCH_END = 0x10, 0x11
"""NFNL_MSG_BATCH_BEGIN and _END (linux/netfilter/nfnetlink.h)."""

HEADER_SIZE = netlink.HEADER.size + 4
"""Bytes before the attributes: ``struct nlmsghdr`` and ``struct nfgenmsg``."""


def reader(chain: Chain) -> Callable[[bytes, int, int], tuple[int, int | None, int]]:
    """A function that takes the message of a rule of ``chain`` apart.

    It gives the rule's handle, the handle of the rule before it, and where the rest begins, which is what
    the rule's meaning depends on. The kernel writes the attributes in a fixed order
    (nf_tables_fill_rule_info); where they are not where they should be, the message is read as a whole.
    1 us for each rule instead of 4.
    """
    at = HEADER_SIZE + len(names(RULE_TABLE, RULE_CHAIN, chain))
    first, second = struct.Struct("=HH8s"), struct.Struct("=HH8s")

    def taken_apart(buffer: bytes, offset: int, end: int) -> tuple[int, int | None, int]:
        start = offset + at
        if end - start >= first.size:
            size, kind, handle = first.unpack_from(buffer, start)
            if (size, kind) == (first.size, RULE_HANDLE):
                start += first.size
                if end - start < second.size:
                    return int.from_bytes(handle, "big"), None, start
                size, kind, before = second.unpack_from(buffer, start)
                if (size, kind) == (second.size, RULE_POSITION):
                    return int.from_bytes(handle, "big"), int.from_bytes(before, "big"), start + second.size
                if kind & TYPE_MASK == RULE_EXPRESSIONS:
                    return int.from_bytes(handle, "big"), None, start
        return *read_rule(buffer[offset:end])[:2], offset

    return taken_apart


def request(kind: int, flags: int, table: Table | None = None, attributes: bytes = b"", sequence: int = 0) -> bytes:
    return netlink.request(NFNL_SUBSYS_NFTABLES << 8 | kind, flags, nfgenmsg(table) + attributes, sequence)


def nfgenmsg(table: Table | None) -> bytes:
    # Family, version, resource ID (linux/netfilter/nfnetlink.h).
    return struct.pack(">BBH", NUMBERS[table.family] if table else 0, 0, 0)


def attribute(kind: int, value: str | bytes) -> bytes:
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogateescape") + b"\0"
    return netlink.attribute(kind, value)


def names(table: int, name: int, chain: Chain) -> bytes:
    return attribute(table, chain.table.name) + attribute(name, chain.name)


def deletions(rules: Sequence[Rule]) -> Iterator[bytes]:
    """The message that deletes each of ``rules``, which ends with the rule's handle."""
    handle = struct.Struct(">Q")
    for chain, of_chain in itertools.groupby(rules, operator.attrgetter("chain")):
        where = names(RULE_TABLE, RULE_CHAIN, chain)
        head = request(DELRULE, NLM_F_REQUEST, chain.table, where + attribute(RULE_HANDLE, handle.pack(0)))
        for rule in of_chain:
            yield head[: -handle.size] + handle.pack(rule.handle or 0)


def insertion(chain: Chain, after: int | None, raw: bytes) -> bytes:
    from netsweep.firewall.nftables.undo import rule_attributes

    attributes = names(RULE_TABLE, RULE_CHAIN, chain) + rule_attributes(raw)
    if after is None:
        return request(NEWRULE, NLM_F_REQUEST | NLM_F_CREATE, chain.table, attributes)
    attributes += attribute(RULE_POSITION, struct.pack(">Q", after))
    return request(NEWRULE, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_APPEND, chain.table, attributes)


def batch_edge(kind: int, attributes: bytes = b"") -> bytes:
    # struct nfgenmsg: family unspecified, version 0, and the subsystem in network byte order.
    return netlink.request(kind, NLM_F_REQUEST, struct.pack(">BBH", 0, 0, NFNL_SUBSYS_NFTABLES) + attributes)
