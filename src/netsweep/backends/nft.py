"""nf_tables (``iptables-nft`` and ``nft``) through pyroute2's nf_tables netlink.

Rules are deleted by handle, many in one transaction. A handle names one rule of its table for as
long as the table lives, and a rule never changes: what was read without a lock can be deleted
later. Where the table itself was replaced in between, its own handle tells.

No generation ID ties a transaction to the state that was read: on a busy host that changes every few
milliseconds, and the sweep would starve. A rule that has gone meanwhile undoes its transaction
(ENOENT), which is then made anew from what is there.
"""

from __future__ import annotations

import errno
import functools
import itertools
import operator
import os
import re
import socket
import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

from pyroute2.netlink import NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_ERROR
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES
from pyroute2.netlink.nfnetlink.nftsocket import (
    NFT_MSG_DELRULE,
    NFT_MSG_GETCHAIN,
    NFT_MSG_GETRULE,
    NFT_MSG_GETTABLE,
    NFT_MSG_NEWRULE,
    NFTSocket,
    nft_chain_msg,
    nft_rule_msg,
    nft_table_msg,
)

from netsweep import extensions, netlink
from netsweep.backends import Addition, Scan, Transaction
from netsweep.errors import ContentionError, NetsweepError, NoBackendError
from netsweep.rules import Interface, Rule, Undo

if TYPE_CHECKING:
    from netsweep.locks import LockTimes

NFPROTO_IPV4 = 2
_MESSAGE = netlink.HEADER.size + 4
"""Bytes before the attributes: ``struct nlmsghdr`` and ``struct nfgenmsg``."""

BATCH, LONG_CHAIN_BATCH = 1000, 2000
"""Rules for one transaction: measured on chains of 6,000 and of 60,000 rules, twice and half as many
take longer."""

_SO_SNDBUFFORCE = 32
"""asm-generic/socket.h; needs CAP_NET_ADMIN in the first user namespace."""

_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
"""NFNL_MSG_BATCH_BEGIN and _END (linux/netfilter/nfnetlink.h)."""

# Attribute numbers and keys of linux/netfilter/nf_tables.h and nf_tables_compat.h.
_TABLE_NAME, _TABLE_HANDLE = 1, 4
_RULE_HANDLE, _RULE_EXPRESSIONS, _RULE_COMPAT, _RULE_POSITION, _RULE_USERDATA = 3, 4, 5, 6, 7
_NESTED = 0x8000
_COMPAT_INVERTED = 1 << 1
"""NFT_RULE_COMPAT_F_INV."""

_META_DREG, _META_KEY, _META_SREG = 1, 2, 3
_META_IIFNAME, _META_OIFNAME = 6, 7
_META_L4PROTO = 16
_IP_PROTOCOL = (1, 9, 1)
"""Base (network header), offset and length of the IPv4 header's protocol."""
_META_LAST_KNOWN = 35
_INTERFACE_KEYS = frozenset({4, 5, 17, 18, 21, 22, 26, 27, 33, 34})
"""iif, oif, bri_iifname, bri_oifname, iifgroup, oifgroup, iifkind, oifkind, sdif, sdifname: they speak
of interfaces in a way that no bridge's name can be read from."""

_INSIST = 100
"""How often to read the list of tables again: one short answer, so a change rarely falls into it."""

_REG_VERDICT = 0
_CMP_EQ, _CMP_NEQ = 0, 1
_VERDICTS = {0: "DROP", 1: "ACCEPT", -5: "RETURN"}
_JUMP, _GOTO = -3, -4
_NATIVE_TARGETS = {
    b"masq": "MASQUERADE",
    b"redir": "REDIRECT",
    b"reject": "REJECT",
    b"queue": "QUEUE",
    b"tproxy": "TPROXY",
    b"notrack": "NOTRACK",
    b"synproxy": "SYNPROXY",
}
_LOGGING = ("LOG", "NFLOG")
_FIB_INTERFACES = (1, 2)
"""NFT_FIB_RESULT_OIF and _OIFNAME."""
_FIB_PRESENT = 1 << 5
"""NFTA_FIB_F_PRESENT: not which interface, but whether there is one."""
_OBJREF_SET_SREG = 3
_UDATA_COMMENT = 0
"""NFTNL_UDATA_RULE_COMMENT (libnftnl/udata.h)."""

_COUNTING = frozenset({b"counter", b"quota", b"last"})
_REFERRING = frozenset({b"lookup", b"dynset", b"objref", b"immediate"})
_ANONYMOUS = re.compile(rb"__(?:set|map|chain)[0-9]+")
"""Names that nft gives what a rule brings along and takes away (nftables, src/evaluate.c)."""

_DESTINATIONS = {
    b"payload": 1,
    b"ct": 1,
    b"rt": 1,
    b"fib": 1,
    b"numgen": 1,
    b"osf": 1,
    b"xfrm": 1,
    b"exthdr": 1,
    b"socket": 2,
    b"tunnel": 2,
}
"""Expressions that fill a register, with the attribute that says which."""

_WITHOUT_REGISTERS = frozenset(
    {b"counter", b"match", b"target", b"limit", b"quota", b"connlimit", b"last", b"flow_offload"}
)


class _Op(NamedTuple):
    """What an expression does, as far as it concerns us."""

    kind: str
    register: int = -1
    value: Any = None


_INERT = _Op("inert")
_UNIT = 4
_NAME_UNITS = 4
_CANNOT_READ = "matches interfaces in a way that netsweep cannot read"
_BY_OTHER_MEANS = "matches interfaces by something else than a name"


class NftBackend:
    """The ``ip`` tables of nf_tables in this network namespace.

    ``hints``: rules that hold none of these byte strings are counted, not read. ``keep_undo``: fill
    :attr:`Rule.undo`.
    """

    name = "nft"
    family = "ipv4"

    def __init__(self, hints: Sequence[bytes], *, keep_undo: bool = False) -> None:
        self._hints = tuple(hints)
        self._keep_undo = keep_undo
        self._socket: NFTSocket | None = None

    def tables(self) -> Collection[str]:
        if not kernel_has_nf_tables():
            return []
        return list(self._table_handles())

    def scan(self, table: str, chains: Sequence[str], limit: int | None = None) -> Scan:
        scan = Scan(table, chains, token=self._table_handles().get(table))
        for chain in chains:
            before = scan.scanned
            self._read(scan, chain, limit)
            if scan.scanned == before and not self._exists(table, chain):
                scan.missing.append(chain)
        return scan

    def writing(self, times: LockTimes, timeout: float) -> AbstractContextManager[None]:
        return nullcontext()

    @contextmanager
    def transaction(self, scan: Scan) -> Iterator[Transaction]:
        yield _Transaction(self, scan)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _read(self, scan: Scan, chain: str, limit: int | None) -> None:
        where = f"{scan.table}/{chain}"
        request = _request(
            nft_rule_msg,
            NFT_MSG_GETRULE,
            NLM_F_REQUEST | NLM_F_DUMP,
            [("NFTA_RULE_TABLE", scan.table), ("NFTA_RULE_CHAIN", chain)],
        )
        hints, keep_undo = self._hints, self._keep_undo
        position = 0
        seen: set[int | None] = set()
        order = scan.order.setdefault(chain, [])
        handles = scan.handles.setdefault(chain, [])
        answer = netlink.dump(self._open(), request, f"reading {where}")
        try:
            for buffer, offset, end in answer:
                position += 1
                message = buffer[offset:end]
                hinted = any(hint in message for hint in hints)
                if hinted or keep_undo:
                    rule = parse_rule(message, scan.table, chain, position, keep_undo=keep_undo)
                    # A dump that is interrupted may show a rule twice.
                    if rule.handle not in seen:
                        seen.add(rule.handle)
                        if hinted:
                            scan.rules.append(rule)
                        if rule.undo and rule.handle is not None:
                            order.append(rule.undo.identity)
                            handles.append(rule.handle)
                if position == limit:
                    scan.complete = False
                    # The rest of the answer would be read as that of the next question.
                    self.close()
                    break
        except netlink.InterruptedDumpError:
            # What was read was there, and handles stay true: good enough to delete, not to conclude.
            scan.complete = False
        scan.scanned += position

    def _exists(self, table: str, chain: str) -> bool:
        request = _request(
            nft_chain_msg, NFT_MSG_GETCHAIN, NLM_F_REQUEST, [("NFTA_CHAIN_TABLE", table), ("NFTA_CHAIN_NAME", chain)]
        )
        sock = self._open()
        sock.send(request)
        answer = sock.recv(netlink.RECEIVE_SIZE)
        return not any(
            kind == NLMSG_ERROR and netlink.error_code(answer, offset, end)
            for offset, end, kind, _ in netlink.messages(answer)
        )

    def _table_handles(self) -> dict[str, bytes]:
        request = _request(nft_table_msg, NFT_MSG_GETTABLE, NLM_F_REQUEST | NLM_F_DUMP, [])
        for _ in range(_INSIST):
            handles = {}
            try:
                for buffer, offset, end in netlink.dump(self._open(), request, "reading nf_tables"):
                    found = dict(netlink.attributes(buffer, offset + _MESSAGE, end))
                    handles[extensions.text(found.get(_TABLE_NAME, b""))] = found.get(_TABLE_HANDLE, b"")
            except netlink.InterruptedDumpError:
                continue
            return handles
        raise ContentionError("reading nf_tables: changed while being read")

    def _open(self) -> NFTSocket:
        if self._socket is None:
            try:
                self._socket = NFTSocket(nfgen_family=NFPROTO_IPV4)
            except OSError as error:
                if error.errno in (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT):
                    raise NoBackendError("this kernel has no nf_tables: leave it out with --backend legacy") from error
                raise netlink.refused(error.errno or errno.EIO, "opening nf_tables") from error
        return self._socket

    def delete(self, scan: Scan, rules: Sequence[Rule]) -> None:
        """Delete ``rules`` in one transaction; see :class:`netsweep.backends.Transaction`."""
        self._commit(scan, _delete_messages(rules), f"deleting rules of {scan.table}")

    def insert(self, scan: Scan, additions: Sequence[Addition]) -> None:
        """Put rules back in one transaction; see :class:`netsweep.backends.Transaction`."""
        messages = [m for addition in additions for m in _insert_messages(scan, addition)]
        doing = f"inserting rules into {scan.table}"
        try:
            self._commit(scan, messages, doing)
        except netlink.GoneError:
            now = self.scan(scan.table, list(scan.handles))
            if now.complete and now.handles == scan.handles:
                raise NetsweepError(f"{doing}: something that they refer to has gone, so they no longer fit") from None
            raise

    def _commit(self, scan: Scan, messages: Sequence[bytes], doing: str) -> None:
        if not messages:
            return
        if self._table_handles().get(scan.table) != scan.token:
            raise ContentionError(f"table {scan.table} was replaced")
        sock = self._open()
        # A batch goes in one send, which the buffer has to be large enough for.
        size = 2 * sum(map(len, messages)) + 2**16
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, size)
        except PermissionError:
            # Root of a user namespace gets what any user gets, which is enough for a thousand deletions.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
        send_batch(sock, messages, doing)


class _Transaction:
    def __init__(self, backend: NftBackend, scan: Scan) -> None:
        self._backend = backend
        self.scan = scan
        # The kernel finds each rule by walking its chain past those deleted before it in the same
        # transaction, so time grows with the square of a batch; and each transaction copies what is
        # left of the chain, so the longer that is, the fewer there should be.
        self.batch: int | None = BATCH if scan.complete else LONG_CHAIN_BATCH

    def delete(self, rules: Sequence[Rule]) -> None:
        self._backend.delete(self.scan, rules)

    def insert(self, additions: Sequence[Addition]) -> None:
        self._backend.insert(self.scan, additions)


def _request(message_class: Any, kind: int, flags: int, attributes: list[tuple[str, Any]]) -> bytes:
    message = message_class()
    message["nfgen_family"] = NFPROTO_IPV4
    message["header"]["type"] = NFNL_SUBSYS_NFTABLES << 8 | kind
    message["header"]["flags"] = flags
    message["attrs"] = attributes
    message.encode()
    return bytes(message.data)


def _delete_messages(rules: Iterable[Rule]) -> list[bytes]:
    """The messages that delete ``rules``: pyroute2 encodes one for each chain, the handle is put in."""
    handle = struct.Struct(">Q").pack
    messages: list[bytes] = []
    for (table, chain), group in itertools.groupby(rules, operator.attrgetter("table", "chain")):
        attributes = [("NFTA_RULE_TABLE", table), ("NFTA_RULE_CHAIN", chain), ("NFTA_RULE_HANDLE", 0)]
        head = _request(nft_rule_msg, NFT_MSG_DELRULE, NLM_F_REQUEST, attributes)[:-8]
        messages += [head + handle(rule.handle) for rule in group]
    return messages


def _insert_messages(scan: Scan, addition: Addition) -> Iterator[bytes]:
    """The messages that put rules back: before a rule that is there, else at the chain's end."""
    handles = scan.handles[addition.chain]
    at_end = addition.place >= len(handles)
    flags = NLM_F_REQUEST | NLM_F_CREATE | (NLM_F_APPEND if at_end else 0)
    attributes = [("NFTA_RULE_TABLE", scan.table), ("NFTA_RULE_CHAIN", addition.chain)]
    head = _request(nft_rule_msg, NFT_MSG_NEWRULE, flags, attributes)
    for raw in addition.rules:
        expressions, userdata, protocol = _unpack_raw(raw)
        body = netlink.attribute(_RULE_EXPRESSIONS | _NESTED, expressions)
        if userdata:
            body += netlink.attribute(_RULE_USERDATA, userdata)
        if protocol:
            body += netlink.attribute(_RULE_COMPAT | _NESTED, protocol)
        if not at_end:
            body += netlink.attribute(_RULE_POSITION, struct.pack(">Q", handles[addition.place]))
        yield netlink.extend(head, body)


def send_batch(sock: netlink.Socket, messages: Sequence[bytes], doing: str) -> None:
    """Send ``messages`` as one transaction and raise what the kernel says of any of them.

    The kernel does all the work within the send, so every answer is there when it returns. It
    answers each message that failed; of those that worked only the last is asked to answer, as a
    receipt that the whole was read (before Linux 6.10 the end of a batch gives none).
    """
    *others, last = messages
    kind, asked = struct.unpack_from("=HH", last, 4)
    last = last[:4] + struct.pack("=HHI", kind, asked | NLM_F_ACK, len(messages)) + last[12:]
    batch = b"".join((_batch_edge(_BATCH_BEGIN), *others, last, _batch_edge(_BATCH_END)))
    confirmed = False
    failures: list[int] = []
    try:
        sock.send(batch)
        while True:
            answer = sock.recv(netlink.RECEIVE_SIZE, socket.MSG_DONTWAIT)
            for offset, end, kind, _ in netlink.messages(answer):
                if kind == NLMSG_ERROR:
                    code = netlink.error_code(answer, offset, end)
                    failures += [code] if code else []
                    confirmed = confirmed or netlink.HEADER.unpack_from(answer, offset)[3] == len(messages)
    except BlockingIOError:
        pass
    except OSError as error:
        raise netlink.refused(error.errno or errno.EIO, doing) from error
    if failures:
        # One that is final says more than any number of rules that have gone.
        final = [code for code in failures if code not in netlink.TRANSIENT]
        raise netlink.refused((final or failures)[0], doing)
    if not confirmed:
        raise ContentionError(f"{doing}: the kernel gave no receipt")


def _batch_edge(kind: int) -> bytes:
    # struct nfgenmsg: family unspecified, version 0, and the subsystem in network byte order.
    return netlink.HEADER.pack(20, kind, NLM_F_REQUEST, 0, 0) + struct.pack(">BBH", 0, 0, NFNL_SUBSYS_NFTABLES)


def parse_rule(message: bytes, table: str, chain: str, position: int, *, keep_undo: bool = False) -> Rule:
    """Read one NFT_MSG_NEWRULE message, header included.

    An interface match is a ``meta`` load of a name and the ``cmp`` right behind it. Whatever else is
    done to a loaded name (sets, maps, bit operations) makes the rule opaque: its interfaces cannot
    be told. Raises :class:`netsweep.netlink.MalformedError`.
    """
    found = dict(netlink.attributes(message, _MESSAGE))
    try:
        handle = int.from_bytes(found[_RULE_HANDLE], "big")
    except KeyError:
        raise netlink.MalformedError(f"rule {position} of {table}/{chain} has no handle") from None
    expressions, userdata = found.get(_RULE_EXPRESSIONS, b""), found.get(_RULE_USERDATA, b"")
    reading = _Reading()
    for _, expression in netlink.attributes(expressions):
        op = parse_expression(expression)
        if op is not _INERT:
            reading.take(*op)
    comments = [*reading.comments, *_userdata_comments(userdata)]
    return Rule(
        "nft",
        table,
        chain,
        position,
        handle,
        in_interface=reading.interfaces.get(_META_IIFNAME),
        out_interface=reading.interfaces.get(_META_OIFNAME),
        source=reading.networks.get(12),
        destination=reading.networks.get(16),
        target=reading.target,
        comment="\0".join(dict.fromkeys(comments)) if comments else None,
        ports=tuple(reading.ports),
        opaque=reading.opaque,
        undo=_undo(expressions, userdata) if keep_undo else None,
    )


def _undo(expressions: bytes, userdata: bytes) -> Undo:
    """The rule as the kernel wants it back, its identity, and what would be missing.

    The kernel shows everything of a rule but NFTA_RULE_COMPAT: the protocol that xt matches and
    targets are checked against, which iptables-nft gives beside the expressions that match it. The
    identity leaves out the expressions that count.
    """
    identity = blake2b(userdata, digest_size=16)
    jump = lost = None
    sets: tuple[int, ...] = ()
    protocol = b""
    protocol_loaded = False
    for _, expression in netlink.attributes(expressions):
        found = _found(expression)
        name, data = found.get(1, b"").partition(b"\0")[0], _found(found.get(2, b""))
        if name not in _COUNTING:
            identity.update(expression)
        if name in _REFERRING and (anonymous := _ANONYMOUS.search(expression)):
            lost = f"refers to the anonymous {anonymous.group().decode('ascii')}, which goes with the rule"
        if name == b"immediate":
            jump = _jump(data) or jump
        if name in (b"match", b"target"):
            extension = extensions.text(data.get(1, b""))
            numbers = extensions.set_numbers(name.decode("ascii"), extension, _number(data, 2), data.get(3, b""))
            sets += numbers or ()
            lost = "uses ipset in a way that is not known" if numbers is None else lost
        if name == b"cmp" and protocol_loaded:
            value = _found(data.get(3, b"")).get(1, b"\0")
            flags = _COMPAT_INVERTED if _number(data, 2) == _CMP_NEQ else 0
            protocol = netlink.attribute(1, value[:1].rjust(4, b"\0")) + netlink.attribute(2, struct.pack(">I", flags))
        is_l4proto = name == b"meta" and _number(data, _META_KEY) == _META_L4PROTO
        is_ip_protocol = name == b"payload" and (_number(data, 2), _number(data, 3), _number(data, 4)) == _IP_PROTOCOL
        protocol_loaded = is_l4proto or is_ip_protocol
    parts = (expressions, userdata, protocol)
    raw = b"".join(struct.pack("=I", len(part)) + part for part in parts)
    return Undo(raw, identity.digest(), jump, sets, lost)


def _jump(immediate: dict[int, bytes]) -> str | None:
    """The chain that an ``immediate`` expression jumps to."""
    verdict = _found(_found(immediate.get(2, b"")).get(2, b""))
    return extensions.text(verdict.get(2, b"")) or None if _number(verdict, 1, signed=True) in (_JUMP, _GOTO) else None


def _unpack_raw(raw: bytes) -> list[bytes]:
    """Expressions, user data and the content of NFTA_RULE_COMPAT, each behind its length."""
    parts = []
    while raw:
        size = struct.unpack_from("=I", raw)[0]
        parts.append(raw[4 : 4 + size])
        raw = raw[4 + size :]
    return parts


class _Reading:
    """Follows what a rule's expressions do to the registers, in their order.

    Registers are counted in units of four bytes; a name takes four of them.
    """

    def __init__(self) -> None:
        self.interfaces: dict[int, Interface] = {}
        self.networks: dict[int, str] = {}
        self.ports: list[Interface] = []
        self.comments: list[str] = []
        self.target: str | None = None
        self.opaque: str | None = None
        self._names: dict[int, int] = {}
        self._addresses: dict[int, tuple[int, bytes]] = {}

    def take(self, kind: str, register: int, value: Any) -> None:
        if kind == "cmp":
            self._compare(register, *value)
        elif kind == "interface":
            self._fill(register)
            self._names[register] = value
        elif kind == "payload":
            size, address = value
            self._fill(register, size)
            if address:
                self._addresses[register] = address
        elif kind == "mask":
            source, mask = value
            address = self._addresses.get(source)
            self._read(source)
            self._fill(register)
            if address and len(mask) == len(address[1]):
                self._addresses[register] = (address[0], mask)
        elif kind == "reads":
            self._read(register)
        elif kind == "fills":
            self._fill(register)
        elif kind == "comment":
            self.comments.append(value)
        elif kind == "ports":
            self.ports += value
        elif kind == "target":
            self.target = self.target if self.target and value in _LOGGING else value
        elif kind == "unclear":
            self.opaque = self.opaque or value
        elif kind == "unknown" and self._names:
            self.opaque = self.opaque or f"does with an interface name what netsweep cannot read ({value})"

    def _fill(self, register: int, size: int = _NAME_UNITS) -> None:
        self._names.pop(register, None)
        self._addresses = {r: a for r, a in self._addresses.items() if not register <= r < register + size}
        self._read(register, size)

    def _read(self, register: int, size: int = _NAME_UNITS) -> None:
        # Also where only a part of a name is read or written over.
        if any(register < name + _NAME_UNITS and name < register + size for name in self._names):
            self.opaque = self.opaque or _CANNOT_READ

    def _compare(self, register: int, operator: int, data: bytes) -> None:
        if register in self._names:
            key = self._names[register]
            interface = _interface(data, operator)
            if interface is None or key in self.interfaces:
                self._read(register)
            else:
                self.interfaces[key] = interface
            return
        self._read(register, -(-len(data) // _UNIT))
        if register in self._addresses and operator in (_CMP_EQ, _CMP_NEQ):
            where, mask = self._addresses[register]
            if len(data) == len(mask):
                self.networks[where] = _network(data, mask, operator == _CMP_NEQ)


def _interface(data: bytes, operator: int) -> Interface | None:
    """The match that comparing an interface's name with ``data`` makes; ``None`` for none we know."""
    name, nul, padding = data.partition(b"\0")
    if operator not in (_CMP_EQ, _CMP_NEQ) or not name or padding.strip(b"\0"):
        return None
    return Interface(name.decode("utf-8", "surrogateescape"), not nul, operator == _CMP_NEQ)


def _network(data: bytes, mask: bytes, negated: bool) -> str:
    bits = int.from_bytes(mask.ljust(4, b"\0"), "big")
    length = bits.bit_count()
    contiguous = bits == 0xFFFFFFFF << (32 - length) & 0xFFFFFFFF
    suffix = str(length) if contiguous else ".".join(map(str, mask.ljust(4, b"\0")))
    return f"{'!' if negated else ''}{'.'.join(map(str, data.ljust(4, chr(0).encode())))}/{suffix}"


@functools.lru_cache(maxsize=4096)  # most rules of a host are made of the same few expressions
def parse_expression(expression: bytes) -> _Op:
    """Read one element of NFTA_RULE_EXPRESSIONS: its name (1) and its data (2)."""
    found = _found(expression)
    name = found.get(1, b"").partition(b"\0")[0]
    data = _found(found.get(2, b""))
    if name == b"cmp":
        value = _found(data.get(3, b"")).get(1, b"")
        return _Op("cmp", _register(data, 1), (_number(data, 2), value))
    if name == b"meta":
        return _parse_meta(data)
    if name == b"match":
        return _parse_match(extensions.text(data.get(1, b"")), data.get(3, b""))
    if name == b"target":
        return _Op("target", value=extensions.text(data.get(1, b"")))
    if name == b"immediate":
        verdict = _found(_found(data.get(2, b"")).get(2, b""))
        if _number(data, 1) == _REG_VERDICT and 1 in verdict:
            return _Op("target", value=_jump(data) or _VERDICTS.get(_number(verdict, 1, signed=True)))
        return _fills(data, 1)
    if name == b"payload" and 1 in data:
        where, length = _number(data, 3), _number(data, 4)
        is_address = _number(data, 2) == 1 and where in (12, 16) and length <= 4
        address = (where, b"\xff" * length) if is_address else None
        return _Op("payload", _register(data, 1), (-(-length // _UNIT), address))
    if name == b"bitwise":
        mask = _found(data.get(4, b"")).get(1, b"")
        return _Op("mask", _register(data, 2), (_register(data, 1), mask))
    if name in (b"hash", b"byteorder") and 2 in data:
        # Without a source it is a hash of the packet's own.
        return _Op("mask", _register(data, 2), (_register(data, 1), b"")) if 1 in data else _fills(data, 2)
    if name == b"range":
        return _Op("reads", _register(data, 1))
    if name == b"fib" and _number(data, 2) in _FIB_INTERFACES and not _number(data, 3) & _FIB_PRESENT:
        return _Op("unclear", value=_BY_OTHER_MEANS)
    if name == b"exthdr" and 1 not in data:
        return _Op("reads", _register(data, 7)) if 7 in data else _INERT
    if name == b"nat":
        return _Op("target", value={0: "SNAT", 1: "DNAT"}.get(_number(data, 1)))
    if name == b"log":
        return _Op("target", value="NFLOG" if 1 in data else "LOG")
    if name in _NATIVE_TARGETS:
        return _Op("target", value=_NATIVE_TARGETS[name])
    if name in _DESTINATIONS and _DESTINATIONS[name] in data:
        return _fills(data, _DESTINATIONS[name])
    if name in _WITHOUT_REGISTERS or (name == b"objref" and _OBJREF_SET_SREG not in data):
        return _INERT
    return _Op("unknown", value=ascii(name.decode("utf-8", "surrogateescape"))[1:-1][:32])


def _parse_match(name: str, info: bytes) -> _Op:
    if name == "comment":
        return _Op("comment", value=extensions.text(info))
    if name == "physdev":
        return _Op("ports", value=tuple(extensions.ports(info)))
    if name == "devgroup":
        return _Op("unclear", value=extensions.GROUPS)
    return _INERT


def _fills(data: dict[int, bytes], attribute: int) -> _Op:
    return _Op("fills", _register(data, attribute))


def _parse_meta(data: dict[int, bytes]) -> _Op:
    key = _number(data, _META_KEY)
    if _META_DREG not in data:
        return _INERT
    register = _register(data, _META_DREG)
    if key in (_META_IIFNAME, _META_OIFNAME):
        return _Op("interface", register, key)
    if key in _INTERFACE_KEYS or key > _META_LAST_KNOWN:
        return _Op("unclear", register, _BY_OTHER_MEANS)
    return _fills(data, _META_DREG)


def _found(buffer: bytes) -> dict[int, bytes]:
    return dict(netlink.attributes(buffer))


def _number(data: dict[int, bytes], attribute: int, *, signed: bool = False) -> int:
    return int.from_bytes(data.get(attribute, b""), "big", signed=signed)


def _register(data: dict[int, bytes], attribute: int) -> int:
    """A register's number in units of four bytes.

    NFT_REG_1 (1) and up are four units each, NFT_REG32_00 (8) and up are one and begin at the same
    place.
    """
    number = _number(data, attribute)
    return number - 8 if number >= 8 else 4 * (number - 1)


def _userdata_comments(userdata: bytes) -> Iterator[str]:
    """Comments in NFTA_RULE_USERDATA: entries of type, length and data, one byte each for the first two."""
    offset = 0
    while offset + 2 <= len(userdata):
        kind, length = userdata[offset], userdata[offset + 1]
        if kind == _UDATA_COMMENT:
            yield extensions.text(userdata[offset + 2 : offset + 2 + length])
        offset += 2 + length


def kernel_has_nf_tables() -> bool:
    """Say whether nf_tables is there already, so that asking it for tables loads no module."""
    try:
        with open("/proc/modules", encoding="ascii", errors="replace") as modules:
            if any(line.startswith("nf_tables ") for line in modules):
                return True
    except FileNotFoundError:
        # A kernel without loadable modules: whatever it has is there.
        return True
    try:
        with open(f"/lib/modules/{os.uname().release}/modules.builtin", encoding="utf-8", errors="replace") as builtin:
            return any("/nf_tables.ko" in line for line in builtin)
    except OSError:
        # A container without the host's modules folder. The kernel's own list of symbols is long,
        # so it comes last.
        with open("/proc/kallsyms", encoding="ascii", errors="replace") as symbols:
            return any(line.split()[2:3] == ["nft_do_chain"] for line in symbols)
