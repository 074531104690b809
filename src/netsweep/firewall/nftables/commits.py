"""Commits to nf_tables: those of others, as the kernel tells them, and our own.

A busy host leaves no time to read rules again between reading the generation and sending a batch of it:
eleven jobs queue for the kernel's commit mutex, and every one that comes before us makes a new
generation. So the rules are read once, after a socket has joined the kernel's multicast group; from then
on the kernel's messages tell whether one of them was touched, and which generation is the newest. That
takes 0.1 ms for any number of rules. A commit is told before it gives the mutex back (nf_tables_commit),
so all that came before a batch that is refused has been told by then.

The kernel counts the generation up before the new rules are in force and before the old ones have left
their chains, and tells nobody of what a commit did before somebody listened. So a commit that is under way
when the socket joins is waited for (:meth:`Commits.settle`) before the generation is read.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections import Counter
from collections.abc import Collection, Sequence

from netsweep.errors import ContentionError, NetsweepError
from netsweep.firewall.extensions import text
from netsweep.firewall.nftables import messages as nft
from netsweep.host import netlink
from netsweep.host.netlink import NETLINK_NETFILTER, NFNL_SUBSYS_NFTABLES, NLM_F_ACK, NLMSG_ERROR
from netsweep.model import Chain, Family, Table

_SOL_NETLINK, _ADD_MEMBERSHIP, _NFTABLES_GROUP = 270, 1, 7
"""SOL_NETLINK and NETLINK_ADD_MEMBERSHIP (linux/netlink.h), NFNLGRP_NFTABLES (linux/netfilter/nfnetlink.h)."""

_RECEIVE_BUFFER = 8 << 20
"""Bytes: 2,000 messages about rules, which the kernel gives 4 KiB each."""

_RECEIPT = 1
"""The sequence number of the message that is asked for a receipt; all others have 0."""

_TYPE_AT, _PORT_AT = 4, 12
"""Type and port in ``struct nlmsghdr``: of a message about a commit, the port of the socket that made it."""

_SO_ATTACH_FILTER = 26
"""asm-generic/socket.h."""

_LOAD_WORD, _LOAD_HALF, _JUMP_EQUAL, _RETURN = 0x20, 0x28, 0x15, 0x06
"""BPF_LD | BPF_W | BPF_ABS, BPF_LD | BPF_H | BPF_ABS, BPF_JMP | BPF_JEQ | BPF_K, BPF_RET | BPF_K
(linux/bpf_common.h)."""

_AT_ONCE = int(socket.MSG_DONTWAIT)


Changed = tuple[Chain, int] | Chain | Table
"""A rule by its handle, or all rules of a chain or a table."""


def is_among(changed: Collection[Changed], chain: Chain, handle: int) -> bool:
    """Whether a rule may be another one by what has changed."""
    return (chain, handle) in changed or chain in changed or chain.table in changed


class TooLateError(ContentionError):
    """A batch of a generation that was over (ERESTART)."""


class Commits:
    """Follows what others commit in this network namespace, from when it is made, and commits batches.

    ``generation`` is the newest one; give it the one that is read right after :meth:`settle`. ``changed``
    are the rules that others made, replaced or deleted, and the chains and tables that they deleted;
    ``deletions`` counts the rules that left each chain, and the changes of chains in each table; ``losses`` says
    how often there may have been more.
    """

    def __init__(self) -> None:
        self.generation = 0
        self.changed: set[Changed] = set()
        self.deletions = Counter[Chain | Table]()
        self.losses = 0
        self._answers: list[tuple[int, int]] = []
        self._chains: dict[tuple[Family, bytes, bytes], Chain] = {}
        self._socket = netlink.open_socket(NETLINK_NETFILTER)
        try:
            netlink.enlarge(self._socket, receive=_RECEIVE_BUFFER)
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _NFTABLES_GROUP)
            self._leave_out_own()
        except OSError:
            self._socket.close()
            raise

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _leave_out_own(self) -> None:
        """Let the kernel leave out what it tells of our own commits: as many messages as rules.

        A filter of classic BPF (linux/filter.h), which loads in network byte order: errors pass, and
        all of other ports than ours.
        """
        own = int.from_bytes(struct.pack("=I", self._socket.getsockname()[0]), "big")
        error = int.from_bytes(struct.pack("=H", NLMSG_ERROR), "big")
        program = b"".join(
            struct.pack("=HBBI", *instruction)
            for instruction in (
                (_LOAD_HALF, 0, 0, _TYPE_AT),
                (_JUMP_EQUAL, 2, 0, error),
                (_LOAD_WORD, 0, 0, _PORT_AT),
                (_JUMP_EQUAL, 1, 0, own),
                (_RETURN, 0, 0, 0xFFFFFFFF),
                (_RETURN, 0, 0, 0),
            )
        )
        held = ctypes.create_string_buffer(program, len(program))
        filter_of = struct.pack("HP", len(program) // 8, ctypes.addressof(held))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_of)

    def settle(self) -> None:
        """Wait until a commit that is under way has ended: an empty batch queues behind it and changes nothing.

        The kernel takes its commit mutex for a batch (nf_tables_valid_genid) and leaves the generation as it
        is where there is nothing to commit (nf_tables_commit).
        """
        try:
            self._socket.send(nft.batch_edge(nft.BATCH_BEGIN) + nft.batch_edge(nft.BATCH_END))
        except OSError as error:
            raise netlink.refused(error.errno or errno.EIO, "following nf_tables") from error

    def follow(self) -> None:
        """Take in what was committed; raises :class:`ContentionError` where that is more than the socket holds."""
        lost = False
        while True:
            try:
                buffer = netlink.receive(self._socket, _AT_ONCE)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise netlink.refused(error.errno or errno.EIO, "following nf_tables") from error
                lost = True
                self.losses += 1
                continue
            self._take(buffer)
        if lost:
            raise ContentionError("nf_tables changed faster than netsweep can follow")

    def prepare(self, messages: Sequence[bytes]) -> bytes:
        """What :meth:`send` sends of ``messages``, and room for it: a batch goes in one send."""
        kind, flags = struct.unpack_from("=HH", messages[-1], 4)
        last = messages[-1][:4] + struct.pack("=HHI", kind, flags | NLM_F_ACK, _RECEIPT) + messages[-1][12:]
        prepared = b"".join((*messages[:-1], last))
        netlink.enlarge(self._socket, send=2 * len(prepared) + 2**16)
        return prepared

    def send(self, prepared: bytes, doing: str, *, commit: bool = True) -> int:
        """Send a batch that counts only in :attr:`generation`; raise what the kernel says of it.

        Returns the generation that it made.

        Without ``commit`` the kernel checks the batch and changes nothing. It does all the work within
        the send, so every answer is there when that returns. It answers each message that failed; of
        those that worked only the last is asked to answer, as a receipt that the whole was read (before
        Linux 6.10 the end of a batch gives none).
        """
        made = self.generation + 1 & 0xFFFFFFFF or 1  # nf_tables_commit leaves 0 out
        only_in = nft.attribute(nft.BATCH_GENID, struct.pack(">I", self.generation)) if commit else b""
        begin, end = nft.batch_edge(nft.BATCH_BEGIN, only_in), nft.batch_edge(nft.BATCH_END) if commit else b""
        self._answers.clear()
        try:
            self._socket.send(begin + prepared + end)
        except OSError as error:
            raise netlink.refused(error.errno or errno.EIO, doing) from error
        lost = False
        try:
            self.follow()
        except ContentionError:
            lost = True
        if failures := [code for _, code in self._answers if code]:
            # One that is final says more than any number of rules that have gone.
            final = [code for code in failures if code not in netlink.TRANSIENT]
            if not final and errno.ERESTART in failures and not lost:
                raise TooLateError(f"{doing}: nf_tables changed meanwhile")
            raise netlink.refused((final or failures)[0], doing)
        if (_RECEIPT, 0) not in self._answers:
            # To try again would hide what this has changed, if it has.
            raise NetsweepError(f"{doing}: the kernel's answer was lost, so it is not known whether this was done")
        if commit:
            # What others committed since may have been followed already.
            self.generation = max(made, self.generation, key=lambda each: (each - made + 2**31) & 0xFFFFFFFF)
        return made

    def _take(self, buffer: bytes) -> None:
        for offset, end, kind, _ in netlink.messages(buffer):
            if kind == NLMSG_ERROR:
                number = netlink.HEADER.unpack_from(buffer, offset)[3]
                self._answers.append((number, netlink.error_code(buffer, offset, end)))
            elif kind >> 8 == NFNL_SUBSYS_NFTABLES:
                self._take_change(kind & 0xFF, buffer, offset, end)

    def _take_change(self, what: int, buffer: bytes, offset: int, end: int) -> None:
        family = nft.FAMILIES.get(buffer[offset + netlink.HEADER.size])
        start = offset + nft.HEADER_SIZE
        if what == nft.NEWGEN:
            self.generation = int.from_bytes(dict(netlink.attributes(buffer, start, end))[nft.GEN_ID], "big")
        elif family and what in (nft.NEWRULE, nft.DELRULE):
            # Table, chain and handle come first (nf_tables_fill_rule_info); the rest is long, and time is short.
            found = dict(netlink.attributes(buffer, start, end, 3))
            names = family, found.get(nft.RULE_TABLE, b""), found.get(nft.RULE_CHAIN, b"")
            chain = self._chains.get(names)
            if chain is None:
                chain = self._chains[names] = Chain(Table("nft", family, text(names[1])), text(names[2]))
            self.changed.add((chain, int.from_bytes(found.get(nft.RULE_HANDLE, b""), "big")))
            self.deletions[chain] += what == nft.DELRULE
        elif family and what in (nft.NEWCHAIN, nft.DELCHAIN):
            found = dict(netlink.attributes(buffer, start, end))
            table = Table("nft", family, text(found.get(nft.CHAIN_TABLE, b"")))
            self.deletions[table] += 1
            if what == nft.DELCHAIN:
                self.changed.add(Chain(table, text(found.get(nft.CHAIN_NAME, b""))))
        elif family and what == nft.DELTABLE:
            found = dict(netlink.attributes(buffer, start, end))
            self.changed.add(Table("nft", family, text(found.get(nft.TABLE_NAME, b""))))
