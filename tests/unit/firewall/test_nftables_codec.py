"""The reader of nf_tables' rules, given anything at all.

It runs as root on bytes that others had a hand in. Whatever those are, it gives a rule or one of
netsweep's own exceptions; and no bytes around an interface's name hide it.
"""

from __future__ import annotations

import itertools
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netsweep.firewall.nftables import codec
from netsweep.firewall.nftables.codec import Content, read_rule, spec_of
from netsweep.firewall.nftables.undo import rule_attributes, undo_of
from netsweep.host import netlink
from netsweep.host.netlink import MalformedError
from netsweep.model import Interface, Spec

LIVE = "hm11fe"

# How long an example takes is the machine's business.
fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

NESTED = 0x8000
IIFNAME, OIFNAME, NFPROTO, L4PROTO = 6, 7, 15, 16
REGISTERS = (1, 2, 3, 4, *range(8, 24))
IPV4, IPV6, INET = 2, 10, 1
DROP, ACCEPT, JUMP, GOTO = 0, 1, -3, -4


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">I", value))


def expression(name: bytes, *data: bytes) -> bytes:
    return attribute(1, name + b"\0") + attribute(2 | NESTED, b"".join(data))


def constant(kind: int, data: bytes) -> bytes:
    return attribute(kind | NESTED, attribute(1, data))


def load(key: int, register: int = 1) -> bytes:
    return expression(b"meta", number(2, key), number(1, register))


def compare(data: bytes, operator: int = 0, register: int = 1) -> bytes:
    return expression(b"cmp", number(1, register), number(2, operator), constant(3, data))


def payload(base: int, offset: int, length: int, register: int = 1) -> bytes:
    return expression(b"payload", number(1, register), number(2, base), number(3, offset), number(4, length))


def bitwise(source: int, destination: int, mask: bytes) -> bytes:
    operands = (constant(4, mask), constant(5, bytes(len(mask))))
    return expression(b"bitwise", number(1, source), number(2, destination), number(3, len(mask)), *operands)


def put(data: bytes, register: int = 1) -> bytes:
    return expression(b"immediate", number(1, register), constant(2, data))


def verdict(code: int | bytes, chain: bytes = b"") -> bytes:
    data = attribute(1, code if isinstance(code, bytes) else struct.pack(">i", code))
    data += attribute(2, chain + b"\0") if chain else b""
    return expression(b"immediate", number(1, 0), attribute(2 | NESTED, attribute(2 | NESTED, data)))


def lookup(name: bytes, register: int = 1, destination: int | None = None) -> bytes:
    to = () if destination is None else (number(3, destination),)
    return expression(b"lookup", attribute(1, name + b"\0"), number(2, register), *to)


def extension(kind: bytes, name: bytes, info: bytes, revision: int = 0) -> bytes:
    return expression(kind, attribute(1, name + b"\0"), number(2, revision), attribute(3, info))


def comment(remark: bytes) -> bytes:
    return extension(b"match", b"comment", remark.ljust(256, b"\0"))


def physdev(i: bytes, o: bytes = b"") -> bytes:
    masks = [b"\xff" * (len(name) + 1) if name else b"" for name in (i, o)]
    return extension(b"match", b"physdev", struct.pack("=16s16s16s16sBB6x", i, masks[0], o, masks[1], 0, 1))


def user_data(*comments: bytes) -> bytes:
    return b"".join(bytes([0, len(remark) + 1]) + remark + b"\0" for remark in comments)


def content(expressions: Sequence[bytes], userdata: bytes = b"", family: int = IPV4) -> Content:
    return Content(family, b"".join(attribute(1 | NESTED, each) for each in expressions), userdata)


def message(
    expressions: Sequence[bytes], userdata: bytes = b"", family: int = IPV4, position: int | None = None
) -> bytes:
    body = [
        struct.pack(">BBH", family, 0, 5),
        attribute(1, b"filter\0"),
        attribute(2, b"FORWARD\0"),
        attribute(3, struct.pack(">Q", 42)),
        *([] if position is None else [attribute(6, struct.pack(">Q", position))]),
        attribute(4 | NESTED, content(expressions).expressions),
        *([attribute(7, userdata)] if userdata else []),
    ]
    data = b"".join(body)
    return struct.pack("=IHHII", 16 + len(data), 0xA06, 0, 1, 4711) + data


def read(*expressions: bytes, userdata: bytes = b"", family: int = IPV4) -> Spec:
    return spec_of(content(expressions, userdata, family))


def counter(count: int, size: int) -> bytes:
    return expression(b"counter", attribute(1, struct.pack(">Q", size)), attribute(2, struct.pack(">Q", count)))


COUNTER = counter(345, 12)
INPUT_DEAD = (load(IIFNAME), compare(b"hmdead\0"))
FORBIDDEN = [
    expression(b"of a later kernel"),
    expression(b"flow_offload", attribute(1, b"ft\0")),
    expression(b"inner", number(1, 0)),
    expression(b"ct", number(1, 1), number(2, 24)),
    expression(b"rt", number(1, 1), number(2, 5)),
    expression(b"socket", number(1, 4), number(2, 1)),
    expression(b"objref", number(1, 11), attribute(2, b"x\0")),
    load(35),
    load(99),
    extension(b"match", b"bpf", bytes(64)),
    extension(b"target", b"SET", bytes(32), 3),
    verdict(77),
    b"",
]
EXPRESSIONS = [
    load(IIFNAME),
    load(OIFNAME, 2),
    load(4),
    load(L4PROTO),
    load(NFPROTO),
    load(99),
    compare(b"hmdead\0"),
    compare(b"hmdead".ljust(16, b"\0"), 1, 2),
    compare(b"hm"),
    compare(b"\6"),
    compare(b"\2"),
    compare(b""),
    payload(1, 12, 3),
    payload(1, 16, 4, 9),
    payload(1, 9, 1),
    payload(1, 8, 16),
    bitwise(1, 1, b"\xff\xff\0\0"),
    bitwise(2, 1, b"\xff" * 16),
    put(struct.pack("=I", 2), 2),
    expression(b"dup", number(1, 1), number(2, 2)),
    expression(b"fwd", number(1, 2)),
    verdict(ACCEPT),
    verdict(JUMP, b"JOBS"),
    COUNTER,
    comment(b"hypeman-nat-hmdead"),
    physdev(b"hmdead"),
    extension(b"match", b"set", bytes(16), 4),
    extension(b"target", b"SET", bytes(32), 3),
    extension(b"target", b"TEE", struct.pack("=16s16s8x", b"", b"hmdead"), 1),
    lookup(b"__set7"),
    expression(b"dynset", attribute(1, b"flood\0"), number(4, 1)),
    expression(b"ct", number(1, 1), number(2, 0)),
    expression(b"masq"),
    expression(b"objref", number(1, 1), attribute(2, b"x\0")),
    expression(b"of a later kernel"),
    b"",
]

interesting_bytes = st.one_of(st.sampled_from([0, 1, 2, 4, 31, 32, 112, 127, 128, 255]), st.integers(0, 255))
edits = st.lists(st.tuples(st.integers(0, 2**16), interesting_bytes), max_size=8)


def edited(data: bytes, changes: Sequence[tuple[int, int]]) -> bytes:
    changed = bytearray(data)
    for at, byte in changes:
        if changed:
            changed[at % len(changed)] = byte
    return bytes(changed)


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Bytes changed, cut off or added."""
    data = edited(draw(whole), draw(edits))
    for at in draw(st.lists(st.sampled_from((0, 20, 32, 48, 60)), max_size=2)):
        if at + 2 <= len(data):
            data = data[:at] + struct.pack("=H", draw(st.integers(0, 2**16 - 1))) + data[at + 2 :]
    if draw(st.booleans()):
        data = data[: draw(st.integers(0, len(data)))]
    return data + draw(st.binary(max_size=8))


parts = st.lists(
    st.sampled_from(EXPRESSIONS)
    | st.builds(edited, st.sampled_from(EXPRESSIONS), edits)
    | st.builds(expression, st.binary(max_size=12), st.binary(max_size=24)),
    max_size=6,
)
userdata = st.sampled_from([b"", user_data(b"hypeman-nat-hmdead")]) | st.binary(max_size=24)
families = st.sampled_from([IPV4, IPV6, INET]) | st.integers(0, 255)
messages = st.builds(message, parts, userdata, families, st.none() | st.integers(0, 2**64 - 1))


def names(spec: Spec) -> set[str]:
    """All interfaces that a rule speaks of."""
    matches = [spec.in_interface, spec.out_interface, *spec.physdev]
    return {each.name for each in matches if each} | {*spec.devices}


# Anything at all.


@fuzz
@given(st.binary(max_size=200) | messages | damaged(messages))
def test_a_message_is_read_or_malformed(data: bytes) -> None:
    with suppress(MalformedError):
        spec = spec_of(read_rule(data)[2])
        assert (spec.comment is None) == (not spec.comments)
        for reason in (spec.unreadable, undo_of(data).lost):
            assert reason is None or (reason.isascii() and reason.isprintable() and len(reason) < 200)


@fuzz
@given(messages | damaged(messages))
def test_what_is_kept_of_a_rule_is_the_rule_but_for_what_it_counted(data: bytes) -> None:
    with suppress(MalformedError):
        undo = undo_of(data)
        _, _, read_ = read_rule(data)
        found = dict(netlink.attributes(rule_attributes(undo.raw)))
        kept = Content(read_.family, found[4], found.get(7, b""))
        assert spec_of(kept) == spec_of(read_)
        again = undo_of(message([each for _, each in netlink.attributes(kept.expressions)], kept.userdata))
        assert again == undo


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(verdict(b"\x7f" * 2000), id="a verdict too long to print"),
        pytest.param(verdict(b""), id="a verdict of no bytes"),
        pytest.param(compare(b""), id="a comparison with nothing"),
        pytest.param(bitwise(1, 1, b""), id="a mask of no bytes"),
        pytest.param(payload(1, 12, 2**32 - 1), id="a huge payload"),
        pytest.param(payload(1, 12, 0), id="no payload"),
        pytest.param(load(2**32 - 1, 2**32 - 1), id="a key and a register that do not exist"),
    ],
)
@pytest.mark.parametrize(
    "before",
    [
        pytest.param(load(IIFNAME), id="name"),
        pytest.param(payload(1, 12, 4), id="address"),
        pytest.param(payload(1, 9, 1), id="protocol"),
        pytest.param(load(L4PROTO), id="other protocol"),
    ],
)
def test_a_rule_with_odd_numbers_is_read_or_malformed(part: bytes, before: bytes) -> None:
    with suppress(MalformedError):
        handle, _, content = read_rule(message([before, part]))
        assert spec_of(content)
        assert handle == 42
        assert undo_of(message([before, part])).raw


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(message([COUNTER])[:19], id="less than its headers"),
        pytest.param(message([COUNTER])[:44], id="no handle"),
        pytest.param(message([COUNTER])[:-2], id="cut off"),
        pytest.param(message([COUNTER[:-2]]), id="an expression that is cut off"),
        pytest.param(message([struct.pack("=HH", 2, 1)]), id="an attribute smaller than its header"),
    ],
)
def test_a_message_that_is_not_whole_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedError):
        spec_of(read_rule(data)[2])


def test_a_rule_that_was_kept_and_is_not_whole_is_malformed() -> None:
    raw = undo_of(message([COUNTER], user_data(b"x"))).raw
    for broken in (raw[:-1], raw[: len(raw) // 2], raw[:3], raw + b"\0\0\0\0", b""):
        with pytest.raises(MalformedError):
            rule_attributes(broken)


# What was written is what is read.

interface_names = st.binary(min_size=1, max_size=15).map(lambda raw: raw.replace(b"\0", b"n")) | st.sampled_from(
    [b"hm1", b"hm+", b"+", b"!", b"hm0123456789abc", b"\xff\xfe"]
)
interfaces = st.none() | st.builds(
    Interface,
    interface_names.map(lambda raw: raw.decode("utf-8", "surrogateescape")),
    st.booleans(),
    st.booleans(),
    st.just(False),
)
remarks = st.none() | st.binary(max_size=255).map(lambda raw: raw.replace(b"\0", b"n"))


def match(key: int, interface: Interface | None, padded: bool, register: int) -> list[bytes]:
    if interface is None:
        return []
    name = interface.name.encode("utf-8", "surrogateescape")
    if not interface.wildcard:
        # nft compares all 16 bytes, iptables-nft the name and its NUL.
        name = name.ljust(16 if padded else len(name) + 1, b"\0")
    return [load(key, register), compare(name, int(interface.negated), register)]


@fuzz
@given(interfaces, interfaces, remarks, st.booleans(), st.booleans(), st.sampled_from([1, 2, 3, 8, 12, 16]))
def test_a_message_is_read_as_it_was_written(
    i: Interface | None, o: Interface | None, remark: bytes | None, padded: bool, native: bool, register: int
) -> None:
    expressions = [
        *match(IIFNAME, i, padded, register),
        payload(1, 12, 3, register),
        compare(bytes([10, 200, 1]), 0, register),
        *match(OIFNAME, o, padded, register),
        *([comment(remark)] if remark is not None and not native else []),
        COUNTER,
        verdict(ACCEPT),
    ]
    said = None if remark is None else remark[:254] if native else remark
    data = message(expressions, user_data(said) if said is not None and native else b"", position=41)
    handle, position, content = read_rule(data)
    assert (handle, position) == (42, 41)
    assert spec_of(content) == Spec(
        in_interface=i,
        out_interface=o,
        source="10.200.1.0/24",
        target="ACCEPT",
        comments=() if said is None else (said.decode("utf-8", "surrogateescape"),),
    )


def test_equal_content_is_equal_meaning_wherever_the_rule_stands() -> None:
    first, second = message([*INPUT_DEAD], position=None), message([*INPUT_DEAD], position=7)
    assert first != second
    assert read_rule(first)[2] == read_rule(second)[2]
    assert read_rule(message([*INPUT_DEAD], family=IPV6))[2] != read_rule(first)[2]


# Never a name that is overlooked.

READ_REMARKS = (LIVE.encode(), b"hypeman-nat-" + LIVE.encode(), b"\xff " + LIVE.encode())
around = st.sampled_from([*EXPRESSIONS, load(IIFNAME, 8), compare(b"hmdead\0", 0, 8), load(OIFNAME), load(IIFNAME, 2)])


@st.composite
def rules_of_the_living(draw: st.DrawFn) -> tuple[list[bytes], bytes]:
    """Expressions and user data that name a live bridge once, and dead ones around it."""
    others = [edited(each, draw(edits)) if draw(st.booleans()) else each for each in draw(st.lists(around))]
    index = draw(st.integers(0, len(others)))
    where = draw(st.sampled_from(["interface", "port", "device", "comment", "user data"]))
    name, remark = LIVE.encode(), draw(st.sampled_from(READ_REMARKS))
    live: list[bytes] = []
    comments = [b"hypeman-nat-hmdead"]
    if where == "interface":
        register = draw(st.sampled_from(REGISTERS))
        data = draw(st.sampled_from([name, name + b"\0", name.ljust(16, b"\0")]))
        key = draw(st.sampled_from([IIFNAME, OIFNAME]))
        live = [load(key, register), compare(data, draw(st.integers(0, 7)), register)]
    elif where == "port":
        live = [physdev(*((name, b"") if draw(st.booleans()) else (b"", name)))]
    elif where == "device":
        live = [extension(b"target", b"TEE", struct.pack("=16s16s8x", b"", name), 1)]
    elif where == "comment":
        live = [comment(remark)]
    else:
        comments.insert(draw(st.integers(0, 1)), remark)
    return [*others[:index], *live, *others[index:]], user_data(*comments) + draw(st.binary(max_size=6))


@settings(fuzz, max_examples=300)
@given(rules_of_the_living(), families)
def test_a_name_is_read_or_the_rule_is_unreadable(rule: tuple[list[bytes], bytes], family: int) -> None:
    with suppress(MalformedError):
        spec = spec_of(content(*rule, family))
        assert spec.unreadable or LIVE in names(spec) or any(LIVE in each for each in spec.comments)


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
    st.tuples(st.sampled_from(REGISTERS), st.sampled_from(REGISTERS)).map(
        lambda f: (slots(f[1], 4), lookup(b"m", f[0], f[1]))
    ),
)


@settings(fuzz, max_examples=300)
@given(st.sampled_from(REGISTERS), st.lists(fillers, max_size=3), st.booleans())
def test_what_fills_other_registers_does_not_hide_a_name(
    register: int, between: list[tuple[set[int], bytes]], padded: bool
) -> None:
    """What comes between a name's load and its comparison may fill any register that is not compared."""
    name = LIVE.encode().ljust(16 if padded else len(LIVE) + 1, b"\0")
    compared = slots(register, len(name))
    harmless = [each for filled, each in between if not filled & compared]
    spec = read(load(IIFNAME, register), *harmless, compare(name, 0, register))
    assert spec.unreadable or LIVE in names(spec)


def test_a_name_that_is_written_over_in_part_is_not_read_as_a_name() -> None:
    for over in (payload(1, 12, 4, 9), expression(b"ct", number(1, 9), number(2, 0)), put(b"\0\0\0\1", 11)):
        spec = read(load(IIFNAME, 1), over, compare(b"hmdead\0"))
        assert spec.unreadable
    # From its beginning on it is gone, and the comparison is another.
    spec = read(load(IIFNAME, 1), payload(2, 2, 2, 1), compare(b"\0\x16"))
    assert (spec.in_interface, spec.unreadable) == (None, None)


@pytest.mark.parametrize(
    "over",
    [
        pytest.param(
            expression(b"exthdr", number(1, 1), number(2, 30), number(3, 0), number(4, 32), number(6, 1)),
            id="32 bytes of a header",
        ),
        pytest.param(bitwise(4, 1, b"\xff" * 32), id="mask"),
        pytest.param(
            expression(b"byteorder", number(1, 4), number(2, 1), number(4, 32), number(5, 4)), id="byte order"
        ),
    ],
)
def test_a_name_that_may_be_written_over_from_a_register_before_it_is_not_read_as_a_name(over: bytes) -> None:
    name = compare(b"hmdead\0", 0, 2)
    spec = read(load(IIFNAME, 2), over, name)
    assert spec.unreadable
    assert spec.in_interface is None
    # Before the name is there it does nothing to it.
    spec = read(over, load(IIFNAME, 2), name)
    assert (spec.in_interface, spec.unreadable) == (Interface("hmdead"), None)


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lookup(b"bridges"), id="set"),
        pytest.param(lookup(b"verdicts", 1, 0), id="verdict map"),
        pytest.param(lookup(b"marks", 1, 2), id="map"),
        pytest.param(expression(b"dynset", attribute(1, b"s\0"), number(4, 1)), id="set that grows"),
        pytest.param(expression(b"dynset", attribute(1, b"s\0"), number(4, 4), number(5, 1)), id="map that grows"),
        pytest.param(expression(b"objref", number(3, 1), attribute(4, b"m\0")), id="map of objects"),
        pytest.param(bitwise(1, 2, b"\xff" * 16), id="mask"),
        pytest.param(expression(b"bitwise", number(1, 4), number(8, 1), number(2, 4), number(6, 3)), id="two sources"),
        pytest.param(expression(b"byteorder", number(1, 1), number(2, 2)), id="byte order"),
        pytest.param(expression(b"hash", number(1, 1), number(2, 2)), id="hash"),
        pytest.param(expression(b"range", number(1, 1), number(2, 0)), id="range"),
        pytest.param(compare(b"hm", 2), id="less than"),
        pytest.param(compare(b"", 0), id="nothing"),
        pytest.param(compare(b"hm\0x"), id="more than a name"),
        pytest.param(compare(b"m1", 0, 9), id="a part of it"),
        pytest.param(compare(b"hm1".ljust(20, b"\0")), id="more than it"),
        pytest.param(expression(b"ct", number(2, 3), number(4, 1)), id="into the connection"),
        pytest.param(expression(b"meta", number(2, 3), number(3, 1)), id="into the mark"),
        pytest.param(
            expression(b"payload", number(5, 1), number(2, 1), number(3, 0), number(4, 4)), id="into the packet"
        ),
        pytest.param(expression(b"queue", number(4, 1)), id="into the queue's number"),
        pytest.param(expression(b"nat", number(1, 1), number(2, 2), number(3, 1)), id="into an address"),
        pytest.param(expression(b"fwd", number(1, 1)), id="as a device"),
        pytest.param(lookup(b"s", 8), id="set, from the same register by its other name"),
    ],
)
def test_a_name_that_anything_else_is_done_to_is_unreadable(use: bytes) -> None:
    assert read(load(IIFNAME), use).unreadable
    # The same with what is free of interfaces in the register.
    if b"fwd" not in use:
        assert read(payload(1, 12, 16), use).unreadable is None


def test_a_set_of_several_things_with_a_name_among_them_is_unreadable() -> None:
    assert read(payload(2, 2, 2, 8), load(IIFNAME, 9), lookup(b"__set1", 8)).unreadable == "matches interfaces by a set"
    assert read(*INPUT_DEAD, payload(2, 2, 2, 8), payload(1, 12, 4, 9), lookup(b"__set1", 8)).unreadable is None


@pytest.mark.parametrize("forbidden", FORBIDDEN)
@pytest.mark.parametrize("after", [False, True])
def test_what_is_not_known_to_be_free_of_interfaces_is_unreadable_and_an_effect(forbidden: bytes, after: bool) -> None:
    rule = (*INPUT_DEAD, forbidden) if after else (forbidden, *INPUT_DEAD)
    spec = read(*rule)
    assert spec.unreadable
    assert spec.in_interface == Interface("hmdead", after_effect=not after)


@pytest.mark.parametrize("key", range(35))
def test_every_key_of_meta_is_a_name_or_free_or_unreadable(key: int) -> None:
    spec = read(load(key), compare(b"\0\0\0\1"))
    interfaces_ = {4, 5, 8, 9, 17, 18, 21, 22, 26, 27, 28, 29, 33, 34}
    # An empty name is not one that can be read.
    assert (spec.unreadable is not None) == (key in interfaces_ | {IIFNAME, OIFNAME})


@pytest.mark.parametrize(
    ("result", "flags", "free"), [(1, 1, False), (2, 1, False), (1, 1 | 32, True), (2, 1 | 32, True), (3, 8, True)]
)
def test_a_route_s_interface_is_unreadable_and_whether_there_is_one_is_not(result: int, flags: int, free: bool) -> None:
    spec = read(expression(b"fib", number(1, 1), number(2, result), number(3, flags)), compare(b"\0"), *INPUT_DEAD)
    assert (spec.unreadable is None) == free
    assert spec.in_interface == Interface("hmdead")


def test_the_first_reason_is_given() -> None:
    assert read(load(21), load(4)).unreadable == "matches interfaces by group"
    assert read(load(4), load(21)).unreadable == "matches interfaces by number"


def test_the_first_match_of_each_direction_counts_and_the_second_is_told() -> None:
    spec = read(*INPUT_DEAD, load(IIFNAME), compare(b"hm11fe\0", 1))
    assert spec.in_interface == Interface("hmdead")
    assert "more than once" in (spec.unreadable or "")
    spec = read(*INPUT_DEAD, load(OIFNAME), compare(b"hm11fe\0", 1))
    assert (spec.out_interface, spec.unreadable) == (Interface("hm11fe", negated=True), None)


# Effects.


@pytest.mark.parametrize(
    ("before", "effect"),
    [
        (COUNTER, True),
        (verdict(ACCEPT), True),
        (verdict(JUMP, b"JOBS"), True),
        (put(b"\0\0\0\1", 2), False),
        (lookup(b"__set1", 2), False),
        (lookup(b"__map1", 2, 3), False),
        (lookup(b"__map1", 2, 0), True),
        # Elements of a set may count, limit or have a quota.
        (lookup(b"named", 2), True),
        (lookup(b"__setx", 2), True),
        (lookup(b"named", 2, 3), True),
        (expression(b"ct", number(1, 2), number(2, 0)), False),
        (expression(b"ct", number(4, 2), number(2, 3)), True),
        (load(L4PROTO, 2), False),
        (expression(b"meta", number(3, 2), number(2, 3)), True),
        (payload(1, 9, 1, 2), False),
        (expression(b"payload", number(5, 2), number(2, 1), number(3, 0), number(4, 4)), True),
        (expression(b"exthdr", number(1, 2), number(2, 2), number(6, 1)), False),
        (expression(b"exthdr", number(7, 2), number(2, 2), number(6, 1)), True),
        (expression(b"exthdr", number(2, 2), number(6, 1)), True),
        (expression(b"numgen", number(1, 2), number(2, 2), number(3, 0)), True),
        (expression(b"numgen", number(1, 2), number(2, 2), number(3, 1)), False),
        (extension(b"match", b"conntrack", bytes(160), 3), False),
        (extension(b"match", b"limit", bytes(40)), True),
        (extension(b"match", b"recent", bytes(240), 1), True),
        (extension(b"match", b"statistic", bytes(32)), True),
        (comment(b"x"), False),
        (physdev(b"x"), False),
        (extension(b"target", b"MARK", bytes(8), 2), True),
        (extension(b"target", b"TEE", bytes(40), 1), True),
        (expression(b"dup", number(1, 2)), True),
        *((expression(name), True) for name in (b"log", b"limit", b"quota", b"connlimit", b"last", b"notrack")),
    ],
)
def test_a_match_says_whether_an_effect_stands_before_it(before: bytes, effect: bool) -> None:
    spec = read(before, load(OIFNAME), compare(b"hm*", 1), *INPUT_DEAD)
    assert spec.out_interface == Interface("hm*", True, True, effect)
    assert spec.in_interface == Interface("hmdead", after_effect=effect)
    assert read(*INPUT_DEAD, before).in_interface == Interface("hmdead")


def test_every_expression_on_the_list_has_its_reason() -> None:
    assert all(form.free for form in codec.EXPRESSIONS.values())
    assert not {b"flow_offload", b"inner"} & set(codec.EXPRESSIONS)


# Devices, comments, addresses, targets.


def test_the_device_of_a_copy_is_the_constant_in_its_register() -> None:
    index = struct.pack("=I", 7)
    dup, fwd = expression(b"dup", number(1, 1), number(2, 2)), expression(b"fwd", number(1, 2))
    for send in (dup, fwd):
        assert read(put(index, 2), send).device_indexes == (7,)
        assert read(put(index, 2), send).unreadable is None
        for unclear in (lookup(b"devices", 1, 2), load(3, 2), put(b"\1\2", 2), put(index, 12)):
            spec = read(put(index, 2), unclear, send) if unclear != put(index, 12) else read(put(index, 3), send)
            assert (spec.device_indexes, bool(spec.unreadable)) == ((), True)
    assert read(put(b"\n\0\0\1", 1), expression(b"dup", number(1, 1))).unreadable is None


def test_comments_are_kept_apart_in_their_order_and_once() -> None:
    spec = read(comment(b"b a"), COUNTER, comment(b"c"), userdata=user_data(b"c", b"", b"b\xff", b"b a"))
    assert spec.comments == ("b a", "c", "", "b\udcff")


@pytest.mark.parametrize("tail", [b"\0", b"\0\5ab", b"\7\2a", b"\1"])
def test_user_data_that_is_cut_off_is_unreadable_and_what_there_is_is_read(tail: bytes) -> None:
    spec = read(userdata=user_data(b"hm1") + tail)
    assert spec.comments[0] == "hm1"
    assert spec.unreadable
    assert ("ab" in spec.comments) == (tail == b"\0\5ab")


def test_other_user_data_is_not_a_comment() -> None:
    assert read(userdata=b"\1\4hm1\0" + user_data(b"x")) == Spec(comments=("x",))


SOURCE_4 = (payload(1, 12, 4), compare(bytes([10, 0, 0, 1])))
SOURCE_6 = (payload(1, 8, 16), compare(bytes(15) + b"\1"))


@pytest.mark.parametrize(
    ("family", "expressions", "source"),
    [
        (IPV4, SOURCE_4, "10.0.0.1/32"),
        (IPV4, SOURCE_6, None),
        (IPV6, SOURCE_6, "::1/128"),
        (IPV6, SOURCE_4, None),
        (INET, SOURCE_4, None),
        (INET, (load(NFPROTO), compare(b"\2"), *SOURCE_4), "10.0.0.1/32"),
        (INET, (load(NFPROTO), compare(b"\x0a"), *SOURCE_6), "::1/128"),
        (INET, (load(1), compare(b"\x08\0"), *SOURCE_4), "10.0.0.1/32"),
        (INET, (load(1), compare(b"\x86\xdd"), *SOURCE_6), "::1/128"),
        (INET, (load(NFPROTO), compare(b"\2"), *SOURCE_6), None),
        (INET, (load(NFPROTO), compare(b"\2", 1), *SOURCE_4), None),
        (IPV4, (load(NFPROTO), compare(b"\x0a"), *SOURCE_4), "10.0.0.1/32"),
        (IPV4, (payload(1, 12, 2), compare(b"\x0a\x01", 1)), "!10.1.0.0/16"),
        (IPV6, (payload(1, 8, 4), compare(b"\x20\1\x0d\xb8", 1)), "!2001:db8::/32"),
        (IPV4, (payload(1, 12, 4), bitwise(1, 1, b"\xff\xfe\0\0"), compare(b"\x0a\2\0\0")), "10.2.0.0/15"),
        (IPV4, (payload(1, 12, 4), bitwise(1, 1, b"\xff\0\0\xff"), compare(b"\x0a\0\0\1")), "10.0.0.1/255.0.0.255"),
        (IPV6, (payload(1, 8, 16), bitwise(1, 1, b"\xff" * 2 + bytes(14)), compare(bytes(16))), "::/16"),
        (IPV4, (payload(1, 12, 8), compare(bytes(8))), None),
        (IPV4, (payload(1, 12, 4), compare(bytes(4), 2)), None),
        (IPV4, (payload(2, 12, 4), compare(bytes(4))), None),
        (
            IPV4,
            (payload(1, 12, 4), bitwise(1, 1, b"\xff\xff\0\0"), bitwise(1, 1, b"\xff\0\xff\0"), compare(b"\n\0\0\0")),
            "10.0.0.0/8",
        ),
    ],
)
def test_addresses_are_those_of_the_protocol(family: int, expressions: tuple[bytes, ...], source: str | None) -> None:
    spec = read(*expressions, family=family)
    assert (spec.source, spec.destination, spec.unreadable) == (source, None, None)


@pytest.mark.parametrize(
    ("expressions", "target"),
    [
        ((verdict(DROP),), "DROP"),
        ((verdict(-5),), "RETURN"),
        ((verdict(-1),), None),
        ((verdict(JUMP, b"JOBS"),), "JOBS"),
        ((verdict(GOTO, b"JOBS"),), "JOBS"),
        ((expression(b"log"), verdict(ACCEPT)), "ACCEPT"),
        ((expression(b"log"),), "LOG"),
        ((expression(b"log", number(1, 3)),), "NFLOG"),
        ((verdict(DROP), expression(b"log")), "DROP"),
        ((expression(b"nat", number(1, 0)),), "SNAT"),
        ((expression(b"nat", number(1, 1)),), "DNAT"),
        ((expression(b"masq"),), "MASQUERADE"),
        ((extension(b"target", b"MARK", bytes(8), 2),), "MARK"),
        ((), None),
    ],
)
def test_targets_are_named_as_iptables_names_them(expressions: tuple[bytes, ...], target: str | None) -> None:
    spec = read(*expressions)
    assert (spec.target, spec.unreadable) == (target, None)


# Protocols, ports, other matches.

LTE, GTE = 3, 5
FIRST, LAST, PORT_22 = b"\0\0", b"\xff\xff", b"\0\x16"
SPORT, DPORT, BOTH_PORTS = payload(2, 0, 2), payload(2, 2, 2), payload(2, 0, 4)
ONLY_IPV4, ONLY_IPV6 = (load(NFPROTO), compare(b"\2")), (load(NFPROTO), compare(b"\x0a"))
TCP = (load(L4PROTO), compare(b"\6"))


def between(first: bytes, last: bytes, operator: int = 0) -> bytes:
    return expression(b"range", number(1, 1), number(2, operator), constant(3, first), constant(4, last))


NAMES = {1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp", 253: "253"}
WAYS: dict[int, list[tuple[bytes, ...]]] = {
    IPV4: [(load(L4PROTO),), (payload(1, 9, 1),)],
    IPV6: [(load(L4PROTO),), (payload(1, 6, 1),)],
    INET: [(load(L4PROTO),), (*ONLY_IPV4, payload(1, 9, 1)), (*ONLY_IPV6, payload(1, 6, 1))],
}


@pytest.mark.parametrize("family", WAYS)
@pytest.mark.parametrize("operator", [0, 1])
@pytest.mark.parametrize("protocol", NAMES)
def test_a_protocol_is_matched_in_several_ways(family: int, operator: int, protocol: int) -> None:
    for way in WAYS[family]:
        spec = read(*way, compare(bytes([protocol]), operator), family=family)
        assert spec == Spec(protocol="!" * operator + NAMES[protocol])


PORTS = [
    pytest.param((DPORT, compare(PORT_22)), True, False, id="one"),
    pytest.param((SPORT, compare(PORT_22)), True, True, id="of the source"),
    pytest.param((BOTH_PORTS, compare(PORT_22 + PORT_22)), True, True, id="both"),
    pytest.param((DPORT, compare(PORT_22, 1)), False, True, id="negated"),
    pytest.param((DPORT, between(PORT_22, LAST)), True, True, id="range"),
    pytest.param((DPORT, between(PORT_22, LAST, 1)), False, True, id="negated range"),
    pytest.param((DPORT, between(FIRST, LAST)), False, True, id="whole range"),
    pytest.param((DPORT, compare(PORT_22, GTE), compare(LAST, LTE)), True, True, id="from here on"),
    pytest.param((DPORT, compare(FIRST, GTE), compare(PORT_22, LTE)), True, True, id="up to here"),
    pytest.param((DPORT, compare(FIRST, GTE), compare(LAST, LTE)), False, True, id="all"),
    pytest.param((DPORT, compare(PORT_22, 2)), True, True, id="less"),
    pytest.param((DPORT, compare(PORT_22, 1), SPORT, compare(PORT_22)), True, True, id="one negated, one not"),
    pytest.param((SPORT, compare(PORT_22), DPORT, compare(PORT_22, 1)), True, True, id="one not negated, one is"),
    pytest.param((DPORT, compare(PORT_22), DPORT, compare(PORT_22, 1)), True, True, id="one, and not the other"),
]


@pytest.mark.parametrize("family", [IPV4, IPV6, INET])
@pytest.mark.parametrize(("expressions", "ports", "more"), PORTS)
def test_ports_are_those_that_are_not_negated(
    family: int, expressions: tuple[bytes, ...], ports: bool, more: bool
) -> None:
    """And other than one port of the destination is more."""
    for protocol, name in ((TCP, "tcp"), ((), "ports")):
        spec = read(*protocol, *expressions, family=family)
        matches = ("more of " + name, name) if more else (name,)
        assert spec == Spec(protocol="tcp" if protocol else None, ports=ports, matches=tuple(sorted(matches)))


STATE = (expression(b"ct", number(1, 1), number(2, 0)), bitwise(1, 1, b"\x0a\0\0\0"), compare(bytes(4), 1))
TO_JOBS, GOTO_JOBS = verdict(JUMP, b"JOBS"), verdict(GOTO, b"JOBS")


@pytest.mark.parametrize(
    ("expressions", "matches"),
    [
        # What iptables-nft writes for matches of iptables.
        ((extension(b"match", b"conntrack", bytes(160), 3),), ("conntrack",)),
        ((extension(b"match", b"addrtype", bytes(12), 1), comment(b"x")), ("addrtype",)),
        ((extension(b"match", b"udp", struct.pack("=4HB", 0, 65535, 53, 53, 0)),), ("udp",)),
        ((load(3), compare(b"\5\0\0\0")), ("mark",)),
        ((expression(b"limit", number(1, 3)),), ("limit",)),
        ((*TCP, payload(2, 13, 1), bitwise(1, 1, b"\6"), compare(b"\2")), ("more of tcp", "tcp")),
        ((extension(b"match", b"tcp", struct.pack("=8x4B", 0, 6, 2, 0)),), ("more of tcp", "tcp")),
        ((extension(b"match", b"tcp", struct.pack("=4H4B", 0, 65535, 22, 22, 0, 0, 0, 0)),), ("tcp",)),
        ((payload(1, 6, 2), bitwise(1, 1, b"\x1f\xff"), compare(b"\0\0", 1)), ("-f",)),
        # What nft calls otherwise.
        (STATE, ("conntrack",)),
        ((expression(b"fib", number(1, 1), number(2, 3), number(3, 1)), compare(b"\2\0\0\0")), ("addrtype",)),
        ((expression(b"connlimit", number(1, 3)),), ("connlimit",)),
        ((*STATE, *TCP, DPORT, compare(PORT_22), expression(b"quota")), ("conntrack", "quota", "tcp")),
        # What has no name in iptables is never left out.
        ((payload(2, 13, 1), compare(b"\2")), ("payload",)),
        ((load(L4PROTO), compare(b"\x11"), payload(2, 13, 1), compare(b"\2")), ("payload",)),
        ((payload(1, 6, 2), bitwise(1, 1, b"\x1f\xff"), compare(b"\0\0")), ("payload",)),
        ((payload(1, 8, 1), compare(b"\x40")), ("payload",)),
        ((payload(0, 6, 6), compare(b"\2\0\0\0\0\1")), ("payload",)),
        ((payload(1, 12, 8), compare(bytes(8))), ("payload",)),
        ((payload(1, 12, 4), compare(bytes(4), GTE)), ("payload",)),
        ((payload(1, 12, 4), between(bytes(4), b"\n\0\0\1")), ("payload",)),
        ((load(L4PROTO), between(b"\1", b"\6")), ("range",)),
        ((payload(1, 12, 4), lookup(b"__set1")), ("lookup",)),
        ((payload(1, 12, 4), expression(b"byteorder", number(1, 1), number(2, 1)), compare(bytes(4))), ("bitwise",)),
        ((payload(1, 12, 4), bitwise(1, 1, b"\xff"), compare(b"\n")), ("bitwise",)),
        ((*TCP, DPORT, bitwise(1, 1, b"\0\xff"), compare(PORT_22)), ("bitwise",)),
        ((load(L4PROTO), bitwise(1, 1, b"\x0f"), compare(b"\6")), ("bitwise",)),
        ((payload(1, 9, 1), bitwise(1, 1, b"\x0f"), compare(b"\6")), ("payload",)),
        ((load(L4PROTO), compare(b"\6", GTE)), ("protocol",)),
        ((load(L4PROTO), compare(b"\0")), ("protocol",)),
        ((payload(1, 9, 1), compare(b"\0")), ("protocol",)),
        ((*TCP, load(L4PROTO), compare(b"\x11")), ("protocol",)),
        ((*TCP, *TCP), ()),
        ((load(NFPROTO), compare(b"\2")), ()),
        ((load(NFPROTO), compare(b"\2", 1)), ("meta",)),
        ((load(NFPROTO), compare(b"\x0a")), ("meta",)),
        ((load(1), compare(b"\x08\6")), ("meta",)),
        ((load(14), compare(bytes(4))), ("meta",)),
        ((expression(b"meta", number(2, 3), number(3, 1)),), ("meta",)),
        ((expression(b"exthdr", number(1, 1), number(2, 43), number(6, 0)), compare(b"\1")), ("exthdr",)),
        ((expression(b"objref", number(1, 1), attribute(2, b"x\0")),), ("objref",)),
        ((expression(b"of a later kernel"),), ("of a later kernel",)),
        # Jumps and second targets.
        ((GOTO_JOBS,), ("-g",)),
        ((TO_JOBS,), ()),
        ((COUNTER, verdict(ACCEPT)), ()),
        ((expression(b"log"), verdict(ACCEPT)), ("and ACCEPT",)),
        ((extension(b"target", b"MARK", bytes(8), 2), TO_JOBS), ("and JOBS",)),
    ],
)
def test_what_a_rule_holds_besides_is_told_by_name(expressions: tuple[bytes, ...], matches: tuple[str, ...]) -> None:
    assert read(*expressions).matches == matches


def operation(*data: bytes) -> bytes:
    return expression(b"bitwise", number(1, 1), number(2, 1), number(3, 4), *data)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(operation(constant(4, b"\xff" * 4), constant(5, b"\0\0\0\1")), id="a bit turned"),
        pytest.param(operation(number(6, 1), constant(7, b"\0\0\0\4")), id="shifted"),
        pytest.param(operation(number(6, 4), number(8, 2)), id="with another register"),
    ],
)
def test_an_address_that_is_changed_is_none(change: bytes) -> None:
    spec = read(payload(1, 12, 4), change, compare(bytes([10, 0, 0, 1])))
    assert (spec.source, spec.matches) == (None, ("bitwise",))


def test_a_second_address_is_told_and_the_first_one_counts() -> None:
    other = (payload(1, 12, 4), compare(bytes([10, 0, 0, 9]), 1))
    assert read(*SOURCE_4, *SOURCE_4) == Spec(source="10.0.0.1/32")
    assert read(*SOURCE_4, *other) == Spec(source="10.0.0.1/32", matches=("payload",))
    assert read(*other, *SOURCE_4) == Spec(source="!10.0.0.9/32", matches=("payload",))


def test_in_inet_the_packet_s_protocol_tells_what_its_header_says() -> None:
    rule = (payload(1, 12, 4), compare(bytes([10, 0, 0, 1])), payload(1, 9, 1), compare(b"\6"))
    assert read(*ONLY_IPV4, *rule, family=INET) == Spec(source="10.0.0.1/32", protocol="tcp")
    assert read(*ONLY_IPV6, *rule, family=INET) == Spec(matches=("payload",))
    assert read(*rule, family=INET) == Spec(matches=("payload",))
    # It cannot be both.
    assert read(*ONLY_IPV4, *ONLY_IPV6, *rule, family=INET).matches == ("meta",)


@st.composite
def described(draw: st.DrawFn) -> tuple[int, list[bytes], Spec]:
    """A rule of a family with some of all that it can say, and what that is."""
    family = draw(st.sampled_from([IPV4, IPV6, INET]))
    header = draw(st.sampled_from([IPV4, IPV6])) if family == INET else family
    register = draw(st.sampled_from([1, 2, 9, 20]))
    steps: list[list[bytes]] = []
    said: dict[str, object] = {}
    matches: set[str] = set()
    size, at = (4, {"source": 12, "destination": 16}) if header == IPV4 else (16, {"source": 8, "destination": 24})
    for where in draw(st.sets(st.sampled_from(["source", "destination"]))):
        address, negated = draw(st.binary(min_size=size, max_size=size)), draw(st.integers(0, 1))
        said[where] = f"{'!' * negated}{socket.inet_ntop(header, address)}/{8 * size}"
        steps.append([payload(1, at[where], size, register), compare(address, negated, register)])
    protocol = draw(st.sampled_from(["tcp", "udp", "!tcp", None]))
    if protocol:
        loaded = draw(st.sampled_from([load(L4PROTO, register), payload(1, 9 if header == IPV4 else 6, 1, register)]))
        known = {"tcp": b"\6", "udp": b"\x11"}[protocol.lstrip("!")]
        said["protocol"] = protocol
        steps.append([loaded, compare(known, int(protocol.startswith("!")), register)])
    nfproto = [load(NFPROTO, register), compare(bytes([header]), 0, register)] if family == INET else []
    rule = [*nfproto, *itertools.chain.from_iterable(draw(st.permutations(steps)))]
    if draw(st.booleans()):
        negated = draw(st.integers(0, 1))
        said["ports"] = not negated
        name, at_port = protocol or "ports", draw(st.sampled_from([0, 2]))
        matches.update([name] if at_port == 2 and not negated else [name, f"more of {name}"])
        rule += [payload(2, at_port, 2, register), compare(b"\0\x16", negated, register)]
    if draw(st.booleans()):
        matches.add("conntrack")
        rule.insert(0, extension(b"match", b"conntrack", bytes(160), 3))
    if draw(st.booleans()):
        matches.add("-g")
        said["target"] = "JOBS"
        rule.append(GOTO_JOBS)
    return family, rule, Spec(matches=tuple(sorted(matches)), **said)  # type: ignore[arg-type]


@fuzz
@given(described())
def test_a_rule_is_read_as_it_was_written_in_every_family(rule: tuple[int, list[bytes], Spec]) -> None:
    family, expressions, expected = rule
    assert read(*expressions, family=family) == expected


# Interfaces by number, and in sets.


def numbered(index: int) -> bytes:
    return compare(struct.pack("=I", index))


@pytest.mark.parametrize(
    ("expressions", "numbers"),
    [
        ((load(4), numbered(7)), (7,)),
        ((load(5), numbered(2**31)), (2**31,)),
        ((load(4), numbered(7), load(5), numbered(1)), (7, 1)),
        ((load(4), numbered(7), load(4), numbered(7)), (7, 7)),
        ((load(4), compare(struct.pack("=I", 7), 1)), ()),
        ((load(4), lookup(b"__set1")), ()),
        ((load(21), numbered(7)), ()),
        ((load(3), numbered(7)), ()),
    ],
)
@pytest.mark.parametrize("family", [IPV4, IPV6, INET])
def test_interfaces_by_number(family: int, expressions: tuple[bytes, ...], numbers: tuple[int, ...]) -> None:
    spec = read(*expressions, load(OIFNAME), compare(b"hm1\0"), family=family)
    assert (spec.by_number, spec.out_interface) == (numbers, Interface("hm1"))
    assert bool(spec.unreadable) == (expressions[0] != load(3))


@pytest.mark.parametrize(
    ("expressions", "by_set"),
    [
        ((load(IIFNAME), lookup(b"named")), True),
        ((load(OIFNAME), lookup(b"__set1")), True),
        ((load(IIFNAME), lookup(b"__map1", 1, 0)), True),
        ((load(IIFNAME), lookup(b"named", 1, 2)), True),
        ((load(4), lookup(b"__set1")), True),
        ((load(5), lookup(b"__map1", 1, 0)), True),
        ((payload(2, 2, 2, 8), load(IIFNAME, 9), lookup(b"__set1", 8)), True),
        ((load(IIFNAME), expression(b"objref", number(3, 1), attribute(4, b"m\0"))), True),
        ((load(IIFNAME), expression(b"hash", number(1, 1), number(2, 2))), False),
        ((load(IIFNAME), bitwise(1, 2, b"\xff" * 16)), False),
        ((load(IIFNAME), compare(b"hm1\0")), False),
        ((*INPUT_DEAD, DPORT, lookup(b"__set1")), False),
        ((load(4), numbered(7), payload(1, 12, 4), lookup(b"__set1")), False),
    ],
)
@pytest.mark.parametrize("family", [IPV4, IPV6, INET])
def test_interfaces_in_a_set(family: int, expressions: tuple[bytes, ...], by_set: bool) -> None:
    spec = read(*expressions, family=family)
    assert spec.by_set == by_set
    assert spec.unreadable or not by_set


# Undo.


@fuzz
@given(parts, st.integers(0, 2**64 - 1), st.integers(0, 6))
def test_an_identity_leaves_counts_out_and_tells_all_else_apart(some: list[bytes], count: int, at: int) -> None:
    def undo(*between: bytes) -> bytes | None:
        with suppress(MalformedError):
            return undo_of(message([*some[:at], *between, *some[at:]])).identity
        return None

    if (known := undo(COUNTER)) is not None:
        assert undo(counter(count, count)) == known
        assert undo(COUNTER, expression(b"notrack")) != known
        assert undo() != known


def test_counts_are_at_zero_in_what_is_kept() -> None:
    quota = expression(b"quota", attribute(1, struct.pack(">Q", 9)), attribute(4, struct.pack(">Q", 5)), number(2, 1))
    last = expression(b"last", number(1, 1), attribute(2, struct.pack(">Q", 5)))
    padded = expression(b"counter", attribute(3, b""), attribute(1, struct.pack(">Q", 5)))
    found = dict(netlink.attributes(rule_attributes(undo_of(message([padded, quota, last, *INPUT_DEAD])).raw)))
    kept = [codec.split_expression(each) for _, each in netlink.attributes(found[4])]
    assert kept[:3] == [
        (b"counter", {}),
        (b"quota", {1: struct.pack(">Q", 9), 2: struct.pack(">I", 1)}),
        (b"last", {}),
    ]
    assert kept[3:] == [codec.split_expression(each) for each in INPUT_DEAD]


def dynset(name: bytes, timeout: int) -> bytes:
    return expression(b"dynset", attribute(1, name + b"\0"), number(4, 1), attribute(6, struct.pack(">Q", timeout)))


def test_a_timeout_is_kept_where_there_is_one() -> None:
    """The kernel shows one of 0 for a set without timeouts, and does not take it back."""
    for timeout in (0, 5000):
        found = dict(netlink.attributes(rule_attributes(undo_of(message([dynset(b"s", timeout)])).raw)))
        ((_, kept),) = netlink.attributes(found[4])
        assert (6 in codec.split_expression(kept)[1]) == bool(timeout)


def test_sets_are_lost_but_for_those_that_stay() -> None:
    data = message(
        [lookup(b"a"), dynset(b"b", 0), expression(b"objref", number(3, 1), attribute(4, b"c\0")), lookup(b"a")]
    )
    assert undo_of(data, ("a", "b", "c")).lost is None
    for missing in "abc":
        assert f"set {missing}," in (undo_of(data, set("abc") - {missing}).lost or "")
    assert undo_of(data).lost
    assert undo_of(message([COUNTER, expression(b"objref", number(1, 1), attribute(2, b"x\0"))])).lost is None


def test_a_chain_of_the_rule_s_own_is_lost() -> None:
    own, other = undo_of(message([verdict(JUMP, b"__chain12")])), undo_of(message([verdict(GOTO, b"JOBS")]))
    assert (own.jump, bool(own.lost)) == ("__chain12", True)
    assert (other.jump, other.lost) == ("JOBS", None)


def test_sets_of_ipset_are_told_by_number_or_lost() -> None:
    known = extension(b"match", b"set", struct.pack("=H14x", 7), 4)
    assert undo_of(message([known, extension(b"target", b"SET", struct.pack("=H2xH26x", 8, 9), 2)])).sets == (7, 8, 9)
    assert undo_of(message([known])).lost is None
    assert undo_of(message([extension(b"match", b"set", bytes(16), 9), known])).lost


@pytest.mark.parametrize(
    ("expressions", "compat"),
    [
        ((payload(1, 9, 1), compare(b"\6")), (6, 0)),
        ((load(L4PROTO), compare(b"\x11", 1)), (17, 2)),
        ((load(3), compare(b"\6")), None),
        ((load(L4PROTO), COUNTER, compare(b"\6")), None),
    ],
)
def test_the_protocol_that_extensions_are_checked_against_is_kept(
    expressions: tuple[bytes, ...], compat: tuple[int, int] | None
) -> None:
    found = dict(netlink.attributes(rule_attributes(undo_of(message(expressions)).raw)))
    if compat is None:
        assert 5 not in found
    else:
        protocol, flags = (int.from_bytes(each, "big") for _, each in netlink.attributes(found[5]))
        assert (protocol, flags) == compat
