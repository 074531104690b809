"""The readers of what came from the host, given anything at all.

They run as root on bytes that others had a hand in. Whatever those are, a reader gives a rule or one
of netsweep's own exceptions; and no bytes around the name of a live bridge make its rule an orphan.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from netsweep import netlink
from netsweep.backends.legacy import MalformedEntryError, keep_entry, parse_entry
from netsweep.backends.nft import parse_rule
from netsweep.errors import ContentionError, NetsweepError, NotPermittedError
from netsweep.netlink import GoneError, InterruptedDumpError, MalformedError
from netsweep.orphans import Live, Ownership, Verdict
from netsweep.rules import Interface, Rule
from tests.verdicts import decide

OURS = Ownership(["hm"], ["ha"])
LIVE = b"hm11fe"
WHERE = ("filter", "FORWARD", 7)

# How long an example takes is the machine's business.
fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


# x_tables: struct ipt_entry, as linux/netfilter_ipv4/ip_tables.h has it.

HEADER = struct.Struct("=4s4s4s4s16s16s16s16sHBBIHHIQQ")
EXTENSION = struct.Struct("=H29sB")
TARGET_OFFSET = 88


class Match(NamedTuple):
    """What an entry says of one interface: the name's bytes, its mask, and whether it is inverted."""

    name: bytes
    mask: bytes
    inverted: bool = False


ANY = Match(b"", b"")


def extension(name: bytes, info: bytes, revision: int = 0) -> bytes:
    info += bytes(-len(info) % 8)
    return EXTENSION.pack(EXTENSION.size + len(info), name, revision) + info


def xt_comment(text: bytes) -> bytes:
    return extension(b"comment", text.ljust(256, b"\0"))


def physdev(i: Match, o: Match, mode: int = 1) -> bytes:
    """The data of a ``physdev`` match (linux/netfilter/xt_physdev.h)."""
    inverted = i.inverted | o.inverted << 1
    return struct.pack("=16s16s16s16sBB6x", i.name, i.mask, o.name, o.mask, inverted, mode)


ACCEPT = extension(b"", struct.pack("=i", -2))
MASQUERADE = extension(b"MASQUERADE", bytes(24))
CONNTRACK = extension(b"conntrack", bytes(range(160)), 3)


def entry(matches: Sequence[bytes], target: bytes, i: Match = ANY, o: Match = ANY) -> bytes:
    target_offset = HEADER.size + sum(map(len, matches))
    header = HEADER.pack(
        *(bytes([10, 200, 1, 0]), bytes(4), b"\xff\xff\xff\0", bytes(4)),
        *(i.name, o.name, i.mask, o.mask),
        *(0, 0, i.inverted | o.inverted << 1),
        *(0, target_offset, target_offset + len(target), 0, 12, 345),
    )
    return header + b"".join(matches) + target


def exactly(name: bytes) -> Match:
    """As iptables writes a whole name: the mask covers the closing NUL."""
    return Match(name, b"\xff" * (len(name) + 1))


# nf_tables: attributes, as linux/netfilter/nf_tables.h numbers them.

NESTED = 0x8000
IIFNAME, OIFNAME = 6, 7
REGISTERS = (1, 2, 3, 4, *range(8, 24))


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">I", value))


def expression(name: bytes, *data: bytes) -> bytes:
    return attribute(1, name + b"\0") + attribute(2 | NESTED, b"".join(data))


def load(key: int, register: int = 1) -> bytes:
    return expression(b"meta", number(2, key), number(1, register))


def compare(data: bytes, operator: int = 0, register: int = 1) -> bytes:
    return expression(b"cmp", number(1, register), number(2, operator), attribute(3 | NESTED, attribute(1, data)))


def payload(base: int, offset: int, length: int, register: int = 1) -> bytes:
    return expression(b"payload", number(1, register), number(2, base), number(3, offset), number(4, length))


def immediate(code: bytes, chain: bytes = b"") -> bytes:
    verdict = attribute(1, code) + (attribute(2, chain + b"\0") if chain else b"")
    return expression(b"immediate", number(1, 0), attribute(2 | NESTED, attribute(2 | NESTED, verdict)))


def bitwise(source: int, destination: int, mask: bytes) -> bytes:
    operands = (attribute(4 | NESTED, attribute(1, mask)), attribute(5 | NESTED, attribute(1, bytes(len(mask)))))
    return expression(b"bitwise", number(1, source), number(2, destination), number(3, len(mask)), *operands)


def compat_comment(text: bytes) -> bytes:
    return expression(b"match", attribute(1, b"comment\0"), number(2, 0), attribute(3, text.ljust(256, b"\0")))


def compat_physdev(i: Match, o: Match) -> bytes:
    return expression(b"match", attribute(1, b"physdev\0"), number(2, 0), attribute(3, physdev(i, o)))


def user_data(*comments: bytes) -> bytes:
    return b"".join(bytes([0, len(text) + 1]) + text + b"\0" for text in comments)


def message(kind: int, flags: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 4711) + body + bytes(-len(body) % 4)


def rule_message(expressions: Sequence[bytes], userdata: bytes = b"") -> bytes:
    attributes = [
        attribute(1, b"filter\0"),
        attribute(2, b"FORWARD\0"),
        attribute(3, struct.pack(">Q", 42)),
        attribute(4 | NESTED, b"".join(attribute(1 | NESTED, each) for each in expressions)),
        *([attribute(7, userdata)] if userdata else []),
    ]
    return message(0xA06, 0, struct.pack(">BBH", 2, 0, 5) + b"".join(attributes))


COUNTER = expression(b"counter", attribute(1, struct.pack(">Q", 12)), attribute(2, struct.pack(">Q", 345)))

EXPRESSIONS = [
    load(IIFNAME),
    load(OIFNAME, 2),
    load(4),
    load(16),
    load(99),
    compare(b"hmdead\0"),
    compare(b"hmdead".ljust(16, b"\0"), 1, 2),
    compare(b"hm"),
    compare(b"\6"),
    compare(b""),
    payload(1, 12, 3),
    payload(1, 16, 4, 9),
    payload(1, 9, 1),
    bitwise(1, 1, b"\xff\xff\0\0"),
    bitwise(2, 1, b"\xff" * 16),
    immediate(struct.pack(">i", 0)),
    immediate(struct.pack(">i", -3), b"JOBS"),
    COUNTER,
    compat_comment(b"hypeman-nat-hmdead"),
    compat_physdev(exactly(b"hmdead"), ANY),
    expression(b"match", attribute(1, b"set\0"), number(2, 4), attribute(3, bytes(16))),
    expression(b"target", attribute(1, b"SET\0"), number(2, 3), attribute(3, bytes(32))),
    expression(b"lookup", attribute(1, b"__set7\0"), number(2, 1)),
    expression(b"ct", number(1, 1), number(2, 0)),
    expression(b"masq"),
    expression(b"objref", number(1, 1), attribute(2, b"x\0")),
    expression(b"of a later kernel"),
    b"",
]


# Damage.

interesting_bytes = st.one_of(st.sampled_from([0, 1, 2, 4, 31, 32, 112, 127, 128, 255]), st.integers(0, 255))
edits = st.lists(st.tuples(st.integers(0, 2**16), interesting_bytes), max_size=8)


def edited(data: bytes, changes: Sequence[tuple[int, int]], keep: Sequence[range] = ()) -> bytes:
    """``data`` with some bytes changed, none of them in the ranges to ``keep``."""
    free = [at for at in range(len(data)) if not any(at in each for each in keep)]
    changed = bytearray(data)
    for at, byte in changes:
        if free:
            changed[free[at % len(free)]] = byte
    return bytes(changed)


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes], *headers: int) -> bytes:
    """Bytes changed, cut off or added; ``headers`` are offsets of fields worth changing."""
    data = edited(draw(whole), draw(edits))
    for at, value in draw(st.lists(st.tuples(st.sampled_from(headers or (0,)), st.integers(0, 2**16 - 1)), max_size=2)):
        if at + 2 <= len(data):
            data = data[:at] + struct.pack("=H", value) + data[at + 2 :]
    if draw(st.booleans()):
        data = data[: draw(st.integers(0, len(data)))]
    return data + draw(st.binary(max_size=8))


extensions = st.one_of(
    st.sampled_from([xt_comment(b"hypeman-nat-hmdead"), xt_comment(b"\xff" * 256), CONNTRACK, extension(b"set", b"")]),
    st.builds(extension, st.binary(max_size=29), st.binary(max_size=300), st.integers(0, 255)),
    st.builds(
        extension,
        st.sampled_from([b"set", b"SET", b"comment", b"physdev", b"devgroup"]),
        st.binary(max_size=80),
        st.integers(0, 4),
    ),
)
whole_targets = st.sampled_from([ACCEPT, MASQUERADE, extension(b"SET", bytes(8), 2)])
targets = whole_targets | extensions | st.just(extension(b"", b""))
masks = st.integers(0, 16).map(lambda covered: b"\xff" * covered) | st.binary(max_size=16)
interface_matches = st.builds(Match, st.sampled_from([b"", b"hmdead", b"hm+", b"x" * 16]), masks, st.booleans())
entries, whole_entries = (
    st.builds(entry, st.lists(extensions, max_size=3), each, interface_matches, interface_matches)
    for each in (targets, whole_targets)
)
chain_names = st.none() | st.sampled_from([b"", b"ACCEPT", b"JOBS", b"\xff" * 28])

expressions = st.lists(
    st.sampled_from(EXPRESSIONS)
    | st.builds(edited, st.sampled_from(EXPRESSIONS), edits)
    | st.builds(expression, st.binary(max_size=12), st.binary(max_size=24)),
    max_size=6,
)
userdata = st.sampled_from([b"", user_data(b"hypeman-nat-hmdead")]) | st.binary(max_size=24)
rule_messages = st.builds(rule_message, expressions, userdata)


def verdicts(rule: Rule, live: Sequence[bytes] = (LIVE,)) -> list[Verdict]:
    names = [name.decode() for name in live]
    return [finding.verdict for finding in decide([rule], OURS, lambda *_: Live(names), ())]


# Anything at all.


@fuzz
@given(st.binary(max_size=400) | entries | damaged(entries, TARGET_OFFSET, TARGET_OFFSET + 2, HEADER.size), chain_names)
def test_an_entry_is_read_or_malformed(raw: bytes, target: bytes | None) -> None:
    try:
        rule = parse_entry(raw, *WHERE, target)
    except MalformedEntryError:
        return
    assert (rule.backend, rule.table, rule.chain, rule.position) == ("legacy", *WHERE)
    assert len(verdicts(rule)) <= 1
    for jumps in (False, True):
        undo = keep_entry(raw, target, jumps=jumps)
        assert undo.jump == (rule.target if jumps and target else None)
        assert all(0 <= each < 0xFFFF for each in undo.sets)


@pytest.mark.parametrize(
    ("at", "value"),
    [
        pytest.param(TARGET_OFFSET, HEADER.size - 8, id="target within the header"),
        pytest.param(TARGET_OFFSET, 2**16 - 8, id="target behind the entry"),
        pytest.param(TARGET_OFFSET, HEADER.size + 8, id="less than a match before the target"),
        pytest.param(TARGET_OFFSET + 2, 0, id="entry of no size"),
        pytest.param(TARGET_OFFSET + 2, HEADER.size + 288 + 8, id="target cut off"),
        pytest.param(TARGET_OFFSET + 2, 2**16 - 8, id="entry larger than its bytes"),
        pytest.param(HEADER.size, 0, id="match of no size"),
        pytest.param(HEADER.size, 24, id="match smaller than its header"),
        pytest.param(HEADER.size, 288 - 8, id="rest of a match"),
        pytest.param(HEADER.size, 288 + 8, id="match that reaches into the target"),
        pytest.param(HEADER.size, 2**16 - 8, id="match larger than the entry"),
    ],
)
def test_sizes_and_offsets_that_contradict_each_other_are_malformed(at: int, value: int) -> None:
    raw = entry([xt_comment(b"hypeman-nat-hmdead")], ACCEPT)
    assert parse_entry(raw, *WHERE).comment == "hypeman-nat-hmdead"
    with pytest.raises(MalformedEntryError, match="filter/FORWARD"):
        parse_entry(raw[:at] + struct.pack("=H", value) + raw[at + 2 :], *WHERE)


@pytest.mark.parametrize("size", [0, 1, HEADER.size - 1, HEADER.size, HEADER.size + 288])
def test_an_entry_that_is_cut_off_is_malformed(size: int) -> None:
    with pytest.raises(MalformedEntryError, match="filter/FORWARD"):
        parse_entry(entry([xt_comment(b"hypeman-nat-hmdead")], ACCEPT)[:size], *WHERE)


@fuzz
@given(whole_entries, st.sampled_from([b"ACCEPT", b"JOBS"]))
def test_an_entry_that_is_kept_reads_as_the_one_it_was_made_of(raw: bytes, target: bytes) -> None:
    undo = keep_entry(raw, target)
    assert parse_entry(undo.raw, *WHERE, target) == parse_entry(raw, *WHERE, target)
    assert keep_entry(undo.raw, target).raw == undo.raw


@fuzz
@given(st.binary(max_size=200) | rule_messages | damaged(rule_messages, 0, 20, 44, 56, 60), st.booleans())
def test_a_rule_message_is_read_or_malformed(data: bytes, keep_undo: bool) -> None:
    try:
        rule = parse_rule(data, *WHERE, keep_undo=keep_undo)
    except MalformedError:
        return
    assert (rule.backend, rule.table, rule.chain, rule.position) == ("nft", *WHERE)
    assert rule.handle is not None
    assert len(verdicts(rule)) <= 1
    assert (rule.undo is not None) == keep_undo
    if rule.undo:
        assert rule._replace(undo=None) == parse_rule(data, *WHERE)
        raw, parts = rule.undo.raw, 0
        while raw:
            (size,) = struct.unpack_from("=I", raw)
            raw, parts = raw[4 + size :], parts + 1
        assert parts == 3


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(immediate(b"\x7f" * 2000), id="a verdict too long to print"),
        pytest.param(immediate(b""), id="a verdict of no bytes"),
        pytest.param(compare(b""), id="a comparison with nothing"),
        pytest.param(bitwise(1, 1, b""), id="a mask of no bytes"),
        pytest.param(payload(1, 12, 2**32 - 1), id="a huge payload"),
        pytest.param(load(2**32 - 1, 2**32 - 1), id="a key and a register that do not exist"),
    ],
)
@pytest.mark.parametrize(
    "before",
    [
        pytest.param(load(IIFNAME), id="name"),
        pytest.param(payload(1, 12, 4), id="address"),
        pytest.param(payload(1, 9, 1), id="protocol"),
        pytest.param(load(16), id="other protocol"),
    ],
)
def test_a_rule_with_odd_numbers_is_read_or_malformed(part: bytes, before: bytes) -> None:
    for keep_undo in (False, True):
        with suppress(MalformedError):
            assert parse_rule(rule_message([before, part]), *WHERE, keep_undo=keep_undo).handle == 42


attribute_lists = st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=20)), max_size=5)


@fuzz
@given(attribute_lists, st.binary(max_size=24))
def test_attributes_are_read_as_they_were_written(written: list[tuple[int, bytes]], before: bytes) -> None:
    data = b"".join(attribute(kind | NESTED * (kind % 2), value) for kind, value in written)
    assert netlink.attributes(before + data + b"\xff" * 3, len(before)) == written
    assert netlink.attributes(before + data + b"\xff" * 9, len(before), len(before + data)) == written


@fuzz
@given(
    st.binary(max_size=60) | damaged(attribute_lists.map(lambda all_: b"".join(attribute(*each) for each in all_)), 0),
    st.integers(0, 70),
    st.none() | st.integers(0, 60),
)
def test_attributes_are_read_within_their_bounds_or_malformed(data: bytes, offset: int, end: int | None) -> None:
    end = None if end is None else min(end, len(data))
    with suppress(MalformedError):
        found = netlink.attributes(data, offset, end)
        room = max(0, (len(data) if end is None else end) - offset)
        assert sum(4 + len(value) for _, value in found) <= room
        assert all(value in data[offset:end] for _, value in found)


message_parts = st.lists(st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.binary(max_size=20)), max_size=5)


@fuzz
@given(message_parts)
def test_messages_are_read_as_they_were_written(written: list[tuple[int, int, bytes]]) -> None:
    data = b"".join(message(*each) for each in written)
    found = [(kind, flags, data[at + 16 : end]) for at, end, kind, flags in netlink.messages(data)]
    assert found == written


@fuzz
@given(st.binary(max_size=80) | damaged(message_parts.map(lambda all_: b"".join(message(*each) for each in all_)), 0))
def test_messages_are_read_within_their_bounds_or_malformed(data: bytes) -> None:
    last = 0
    with suppress(MalformedError):
        for offset, end, _, _ in netlink.messages(data):
            assert last <= offset <= end - 16 <= len(data) - 16
            assert netlink.error_code(data, offset, end) >= 0
            last = end


# Dumps.

NLMSG_ERROR, NLMSG_DONE, NLM_F_DUMP_INTR = 2, 3, 0x10
MAX_ERRNO = 4095
REQUEST = b"the request"


class ScriptedSocket:
    """Answers with the datagrams and errors of a script, and at its end as a socket that was closed."""

    def __init__(self, script: Sequence[bytes | OSError]) -> None:
        self.sent: list[bytes] = []
        self._left: Iterator[bytes | OSError] = iter([*script, OSError(errno.EBADF, "closed")])

    def send(self, data: bytes) -> int:
        self.sent.append(data)
        return len(data)

    def recv(self, size: int, flags: int = 0) -> bytes:
        answer = next(self._left)
        if isinstance(answer, OSError):
            raise answer
        return answer

    def left(self) -> list[bytes | OSError]:
        return list(self._left)[:-1]


def kind_of(code: int) -> type[Exception]:
    """The exception that a caller tells an errno by."""
    if code in (errno.EPERM, errno.EACCES):
        return NotPermittedError
    if code == errno.ENOENT:
        return GoneError
    transient = (errno.EINTR, errno.EAGAIN, errno.EBUSY, errno.ENOBUFS, errno.ERESTART)
    return ContentionError if code in transient else NetsweepError


codes = st.sampled_from([0, errno.EPERM, errno.EACCES, errno.ENOENT, errno.EINTR, errno.ENOBUFS, errno.EINVAL]).map(
    lambda code: -code
) | st.integers(-MAX_ERRNO, 2**31 - 1)
flags = st.sampled_from([0, 2, NLM_F_DUMP_INTR, 2 | NLM_F_DUMP_INTR])
rows = st.tuples(st.just(0xA06), flags, st.binary(max_size=20))
ends = st.tuples(st.sampled_from([NLMSG_ERROR, NLMSG_DONE]), flags, codes.map(lambda code: struct.pack("=i", code)))
datagrams = st.lists(st.lists(rows | rows | rows | ends, max_size=3), max_size=5)


@fuzz
@given(datagrams)
@example([[(0xA06, NLM_F_DUMP_INTR, b"row")], [], [(NLMSG_DONE, 0, struct.pack("=i", 0))], [(0xA06, 0, b"next")]])
def test_a_dump_ends_as_the_kernel_says(script: list[list[tuple[int, int, bytes]]]) -> None:
    rows_before: list[bytes] = []
    ending: type[Exception] | None = NetsweepError  # the socket's own, where the script has no end
    unread = 0
    interrupted = False
    for count, datagram in enumerate(script, 1):
        last = None
        for kind, flag, body in datagram:
            interrupted = interrupted or bool(flag & NLM_F_DUMP_INTR)
            if kind != 0xA06:
                last = kind, body
                break
            rows_before.append(body)
        if last:
            code = struct.unpack("=i", last[1])[0]
            ending = kind_of(-code) if code < 0 else InterruptedDumpError if interrupted else None
            unread = len(script) - count
            break

    socket = ScriptedSocket([b"".join(message(*each) for each in datagram) for datagram in script])
    seen: list[bytes] = []
    raised: type[Exception] | None = None
    said = ""
    try:
        for buffer, offset, end in netlink.dump(socket, REQUEST, "reading x"):
            seen.append(buffer[offset + 16 : end])
    except (NetsweepError, ContentionError) as error:
        raised, said = type(error), str(error)
    assert (seen, raised) == (rows_before, ending)
    assert said.startswith("reading x: ") == (raised is not None)
    assert len(socket.left()) == unread
    assert socket.sent == [REQUEST]


def test_an_error_that_is_no_errno_is_an_error_of_ours() -> None:
    for kind in (NLMSG_ERROR, NLMSG_DONE):
        socket = ScriptedSocket([message(kind, 0, struct.pack("=i", -(2**31)))])
        with pytest.raises(NetsweepError):
            list(netlink.dump(socket, REQUEST, "reading x"))


raw_datagrams = datagrams.map(lambda all_: [b"".join(message(*each) for each in one) for one in all_])


@fuzz
@given(
    st.lists(
        st.binary(max_size=40)
        | damaged(raw_datagrams.map(b"".join), 0)
        | st.sampled_from([errno.ENOBUFS, errno.EPERM, errno.EINTR, errno.EIO]).map(OSError),
        max_size=4,
    )
)
def test_a_dump_of_anything_ends_with_one_of_our_own_exceptions(script: list[bytes | OSError]) -> None:
    whole = b"".join(each for each in script if isinstance(each, bytes))
    with suppress(NetsweepError, ContentionError):
        for buffer, offset, end in netlink.dump(ScriptedSocket(script), REQUEST, "reading x"):
            assert 0 <= offset <= end - 16 <= len(buffer) - 16
            assert buffer[offset:end] in whole


# What was written is what is read.

names = st.binary(min_size=1, max_size=15).map(lambda raw: raw.replace(b"\0", b"n")) | st.sampled_from(
    [b"hm1", b"hm+", b"+", b"!", b"hm0123456789abc", b"\xff\xfe"]
)
interfaces = st.none() | st.builds(
    Interface, names.map(lambda raw: raw.decode("utf-8", "surrogateescape")), st.booleans(), st.booleans()
)
remarks = st.none() | st.binary(max_size=255).map(lambda raw: raw.replace(b"\0", b"n"))


def as_entry(interface: Interface | None, plus: bool) -> Match:
    if interface is None:
        return ANY
    name = interface.name.encode("utf-8", "surrogateescape")
    if interface.wildcard:
        # iptables leaves the + behind the part that the mask covers.
        return Match(name + b"+" * plus, b"\xff" * len(name), interface.negated)
    return exactly(name)._replace(inverted=interface.negated)


def as_expressions(key: int, interface: Interface | None, padded: bool, register: int) -> list[bytes]:
    if interface is None:
        return []
    name = interface.name.encode("utf-8", "surrogateescape")
    if not interface.wildcard:
        # nft compares all 16 bytes, iptables-nft the name and its NUL.
        name = name.ljust(16 if padded else len(name) + 1, b"\0")
    return [load(key, register), compare(name, int(interface.negated), register)]


@fuzz
@given(interfaces, interfaces, remarks, st.booleans())
def test_an_entry_is_read_as_it_was_written(
    i: Interface | None, o: Interface | None, remark: bytes | None, plus: bool
) -> None:
    matches = [CONNTRACK] if remark is None else [CONNTRACK, xt_comment(remark)]
    raw = entry(matches, ACCEPT, as_entry(i, plus), as_entry(o, plus))
    comment = None if remark is None else remark.decode("utf-8", "surrogateescape")
    for each in (raw, keep_entry(raw, b"ACCEPT").raw):
        rule = parse_entry(each, *WHERE, b"ACCEPT")
        assert (rule.in_interface, rule.out_interface, rule.comment) == (i, o, comment)
        assert (rule.source, rule.destination, rule.target) == ("10.200.1.0/24", None, "ACCEPT")
    assert parse_entry(raw, *WHERE).target == "ACCEPT"


@fuzz
@given(interfaces, interfaces, remarks, st.booleans(), st.booleans(), st.sampled_from([1, 2, 3, 8, 12, 16]))
def test_a_rule_message_is_read_as_it_was_written(
    i: Interface | None, o: Interface | None, remark: bytes | None, padded: bool, native: bool, register: int
) -> None:
    parts = [
        *as_expressions(IIFNAME, i, padded, register),
        *([payload(1, 12, 3, register), compare(bytes([10, 200, 1]), 0, register)]),
        *as_expressions(OIFNAME, o, padded, register),
        *([compat_comment(remark)] if remark is not None and not native else []),
        COUNTER,
        immediate(struct.pack(">i", 1)),
    ]
    data = rule_message(parts, user_data(remark[:254]) if remark is not None and native else b"")
    rule = parse_rule(data, *WHERE)
    comment = None if remark is None else (remark[:254] if native else remark).decode("utf-8", "surrogateescape")
    assert (rule.in_interface, rule.out_interface, rule.comment, rule.opaque) == (i, o, comment, None)
    assert (rule.handle, rule.source, rule.target) == (42, "10.200.1.0/24", "ACCEPT")


@fuzz
@given(
    st.lists(extensions, max_size=3), targets, st.binary(min_size=16, max_size=16), st.binary(min_size=4, max_size=4)
)
def test_an_identity_leaves_out_what_the_kernel_changes_by_itself(
    matches: list[bytes], target: bytes, counters: bytes, other: bytes
) -> None:
    raw = entry(matches, target, exactly(b"hmdead"))
    later = raw[:84] + other + raw[88:92] + other + counters + raw[HEADER.size :]
    # Behind the NUL of an extension's name the kernel leaves what was in its memory.
    name = slice(len(raw) - len(target) + 2, len(raw) - len(target) + 31)
    if (nul := raw[name].find(b"\0")) >= 0:
        later = later[: name.start + nul + 1] + b"\xee" * (28 - nul) + later[name.stop :]
    assert keep_entry(later, b"ACCEPT").identity == keep_entry(raw, b"ACCEPT").identity


@fuzz
@given(entries, st.integers(0, 83), st.integers(1, 255))
def test_an_identity_tells_rules_of_other_matches_apart(raw: bytes, at: int, change: int) -> None:
    other = bytearray(raw)
    other[at] ^= change
    assert keep_entry(bytes(other), b"ACCEPT").identity != keep_entry(raw, b"ACCEPT").identity


@fuzz
@given(expressions, st.binary(min_size=8, max_size=8), st.integers(0, 6))
def test_an_identity_leaves_counters_out_and_tells_all_else_apart(parts: list[bytes], count: bytes, at: int) -> None:
    def identity(*between: bytes) -> bytes | None:
        data = rule_message([*parts[:at], *between, *parts[at:]])
        with suppress(MalformedError):
            undo = parse_rule(data, *WHERE, keep_undo=True).undo
            assert undo
            return undo.identity
        return None

    if (known := identity(COUNTER)) is not None:
        assert identity(expression(b"counter", attribute(1, count))) == known
        assert identity(COUNTER, expression(b"notrack")) != known


# Never a live rule.

LIVE_REMARKS = (b"hypeman-nat-" + LIVE, LIVE, b"hypeman-x-hmdead, before that " + LIVE + b"\n", b"\xff " + LIVE)


@st.composite
def matches_of_the_living(draw: st.DrawFn) -> tuple[Match, int]:
    """A match of the live name, and how many bytes of the mask it takes: under one of zeros it names nobody."""
    mask = draw(masks)
    if not any(mask):
        mask = b"\xff"
    return Match(LIVE, mask, draw(st.booleans())), len(mask) - len(mask.lstrip(b"\0")) + 1


@st.composite
def entries_of_the_living(draw: st.DrawFn) -> bytes:
    """An entry that names a live bridge once, in bytes that stay as they are, and dead ones around it.

    What stays besides the name is what leads to it: of a match its own header, the sizes of the
    matches before it and the offset of the target. Without these the entry has no such match.
    """
    where = draw(st.sampled_from(["in", "out", "port in", "port out", "comment"]))
    live, mask_size = draw(matches_of_the_living())
    text = draw(st.sampled_from(LIVE_REMARKS))
    others = [*draw(st.lists(extensions, max_size=2)), xt_comment(b"hypeman-fwd-hmdead")]
    i, o = (draw(interface_matches | st.just(exactly(b"hmdead"))) for _ in range(2))
    if where in ("in", "out"):
        raw = entry(others, draw(targets), *((live, o) if where == "in" else (i, live)))
        name_at, mask_at = (16, 48) if where == "in" else (32, 64)
        return edited(raw, draw(edits), named_at(name_at, mask_at, mask_size))
    index = draw(st.integers(0, len(others)))
    starts = [HEADER.size + sum(map(len, others[:n])) for n in range(index + 1)]
    info_at = starts[-1] + EXTENSION.size
    keep = [range(TARGET_OFFSET, TARGET_OFFSET + 2), *(range(start, start + 2) for start in starts)]
    if where == "comment":
        match = xt_comment(text)
        keep += [range(starts[-1], starts[-1] + 2 + len(b"comment\0")), range(info_at, info_at + len(text) + 1)]
    else:
        match = extension(b"physdev", physdev(*((live, ANY) if where == "port in" else (ANY, live))))
        keep += [range(starts[-1], starts[-1] + 2 + len(b"physdev\0"))]
        keep += named_at(info_at + 32 * (where == "port out"), info_at + 16 + 32 * (where == "port out"), mask_size)
    raw = entry([*others[:index], match, *others[index:]], draw(targets), i, o)
    return edited(raw, draw(edits), keep)


def named_at(name_at: int, mask_at: int, mask_size: int) -> list[range]:
    return [range(name_at, name_at + len(LIVE) + 1), range(mask_at + mask_size - 1, mask_at + mask_size)]


@settings(fuzz, max_examples=300)
@given(entries_of_the_living())
def test_no_entry_that_names_a_live_bridge_is_an_orphan(raw: bytes) -> None:
    with suppress(MalformedEntryError):
        assert Verdict.ORPHAN not in verdicts(parse_entry(raw, *WHERE))


dead_expressions = st.sampled_from(
    [
        *EXPRESSIONS,
        load(IIFNAME, 8),
        compare(b"hmdead\0", 0, 8),
        load(OIFNAME),
        load(IIFNAME, 2),
    ]
)


@st.composite
def expressions_of_the_living(draw: st.DrawFn) -> tuple[list[bytes], bytes]:
    """Expressions and user data that name a live bridge once, and dead ones around it.

    An interface match is a name's load and the comparison right behind it: of these the operator is
    free to change, and everything before and behind.
    """
    others = [edited(each, draw(edits)) if draw(st.booleans()) else each for each in draw(st.lists(dead_expressions))]
    index = draw(st.integers(0, len(others)))
    where = draw(st.sampled_from(["interface", "port", "comment", "user data"]))
    text = draw(st.sampled_from(LIVE_REMARKS))
    live: list[bytes] = []
    comments = [b"hypeman-nat-hmdead"]
    if where == "interface":
        register = draw(st.sampled_from(REGISTERS))
        name = draw(st.sampled_from([LIVE, LIVE + b"\0", LIVE.ljust(16, b"\0")]))
        live = [
            load(draw(st.sampled_from([IIFNAME, OIFNAME])), register),
            compare(name, draw(st.integers(0, 7)), register),
        ]
    elif where == "port":
        match, _ = draw(matches_of_the_living())
        live = [compat_physdev(*((match, ANY) if draw(st.booleans()) else (ANY, match)))]
    elif where == "comment":
        live = [compat_comment(text)]
    else:
        comments.insert(draw(st.integers(0, 1)), text)
    return [*others[:index], *live, *others[index:]], user_data(*comments) + draw(st.binary(max_size=6))


@settings(fuzz, max_examples=300)
@given(expressions_of_the_living(), st.booleans())
def test_no_rule_message_that_names_a_live_bridge_is_an_orphan(parts: tuple[list[bytes], bytes], keep: bool) -> None:
    with suppress(MalformedError):
        assert Verdict.ORPHAN not in verdicts(parse_rule(rule_message(*parts), *WHERE, keep_undo=keep))


def slots(register: int, size: int) -> set[int]:
    """The 4-byte registers that ``size`` bytes from ``register`` on take up."""
    first = register - 8 if register >= 8 else 4 * (register - 1)
    return set(range(first, first + -(-size // 4)))


fillers = st.one_of(
    st.tuples(st.sampled_from(REGISTERS), st.integers(1, 16)).map(lambda f: (slots(*f), payload(1, 0, f[1], f[0]))),
    st.sampled_from(REGISTERS).map(lambda r: (slots(r, 4), load(3, r))),
    st.sampled_from(REGISTERS).map(lambda r: (slots(r, 4), expression(b"ct", number(1, r), number(2, 0)))),
    st.tuples(st.sampled_from(REGISTERS), st.sampled_from(REGISTERS)).map(
        lambda f: (slots(f[1], 4), bitwise(f[0], f[1], b"\xff\xff\0\0"))
    ),
)


@settings(fuzz, max_examples=300)
@given(st.sampled_from(REGISTERS), st.lists(fillers, max_size=3), st.booleans())
def test_what_fills_other_registers_does_not_hide_a_live_bridge(
    register: int, between: list[tuple[set[int], bytes]], padded: bool
) -> None:
    """What comes between a name's load and its comparison may fill any register that is not compared."""
    name = LIVE.ljust(16 if padded else len(LIVE) + 1, b"\0")
    compared = slots(register, len(name))
    harmless = [each for filled, each in between if not filled & compared]
    parts = [load(IIFNAME, register), *harmless, compare(name, 0, register), compat_comment(b"hypeman-nat-hmdead")]
    assert Verdict.ORPHAN not in verdicts(parse_rule(rule_message(parts), *WHERE))


@pytest.mark.parametrize("live", [(LIVE,), ()])
def test_what_the_fuzzing_starts_from_is_an_orphan_but_for_the_live_name(live: Sequence[bytes]) -> None:
    dead = exactly(b"hmdead")
    comments = [xt_comment(b"hypeman-nat-hmdead")]
    rules = [
        parse_entry(entry(comments, ACCEPT, exactly(LIVE), dead), *WHERE),
        parse_entry(entry(comments, ACCEPT, dead, exactly(LIVE)), *WHERE),
        parse_entry(entry([extension(b"physdev", physdev(ANY, exactly(LIVE))), *comments], ACCEPT, dead), *WHERE),
        *(parse_entry(entry([xt_comment(text), *comments], ACCEPT, dead), *WHERE) for text in LIVE_REMARKS),
        parse_rule(rule_message([load(OIFNAME), compare(LIVE + b"\0"), compat_comment(b"x-hmdead")]), *WHERE),
        parse_rule(rule_message([compat_physdev(exactly(LIVE), ANY), compat_comment(b"x-hmdead")]), *WHERE),
        parse_rule(rule_message([COUNTER, compat_comment(LIVE_REMARKS[0])], user_data(b"x-hmdead")), *WHERE),
        parse_rule(rule_message([COUNTER], user_data(LIVE_REMARKS[0], b"x-hmdead")), *WHERE),
    ]
    expected = Verdict.LIVE if live else Verdict.ORPHAN
    assert [verdicts(rule, live) for rule in rules] == [[expected]] * len(rules)
