"""The reader of x_tables' entries, given anything at all.

It runs as root on bytes that others had a hand in. Whatever those are, it gives a spec or one of
netsweep's own exceptions; and no bytes around an interface's name hide it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netsweep.firewall.xtables.codec import LAYOUTS, Layout, MalformedEntryError, decode, parts
from netsweep.firewall.xtables.undo import undo_of
from netsweep.model import Family, Interface, Spec

LIVE = b"hm11fe"

# How long an example takes is the machine's business.
fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

EXTENSION = struct.Struct("=H29sB")


class Kind(NamedTuple):
    """What entries of one family look like, with a network of that family."""

    family: Family
    header: struct.Struct
    target_offset: int
    goto: int
    network: bytes
    mask: bytes
    text: str

    @property
    def layout(self) -> Layout:
        return LAYOUTS[self.family]

    @property
    def size(self) -> int:
        return self.header.size

    @property
    def names(self) -> tuple[int, int]:
        """Where the names of the in- and the out-interface are; their masks are 32 bytes behind."""
        return 4 * len(self.mask), 4 * len(self.mask) + 16


IPV4 = Kind(
    Family.IPV4,
    # struct ipt_entry in linux/netfilter_ipv4/ip_tables.h
    struct.Struct("=4s4s4s4s16s16s16s16sHBBIHHIQQ"),
    88,
    0x02,
    bytes([10, 200, 1, 0]),
    b"\xff\xff\xff\0",
    "10.200.1.0/24",
)
IPV6 = Kind(
    Family.IPV6,
    # struct ip6t_entry in linux/netfilter_ipv6/ip6_tables.h
    struct.Struct("=16s16s16s16s16s16s16s16sHxBB3xIHHI4xQQ"),
    140,
    0x04,
    b"\xfd\0\2" + bytes(13),
    b"\xff" * 6 + bytes(10),
    "fd00:200::/48",
)
each_kind = pytest.mark.parametrize("kind", [IPV4, IPV6], ids=["ipv4", "ipv6"])
kinds = st.sampled_from([IPV4, IPV6])


class Match(NamedTuple):
    """What an entry says of one interface: the name's bytes, its mask, and whether it is inverted."""

    name: bytes
    mask: bytes
    inverted: bool = False


ANY = Match(b"", b"")


def exactly(name: bytes) -> Match:
    """As iptables writes a whole name: the mask covers the closing NUL."""
    return Match(name, b"\xff" * (len(name) + 1))


def extension(name: bytes, info: bytes, revision: int = 0) -> bytes:
    info += bytes(-len(info) % 8)
    return EXTENSION.pack(EXTENSION.size + len(info), name, revision) + info


def xt_comment(text: bytes) -> bytes:
    return extension(b"comment", text.ljust(256, b"\0"))


def physdev(i: Match, o: Match, mode: int = 1) -> bytes:
    """The data of a ``physdev`` match (linux/netfilter/xt_physdev.h)."""
    inverted = i.inverted | o.inverted << 1
    return struct.pack("=16s16s16s16sBB6x", i.name, i.mask, o.name, o.mask, inverted, mode)


def verdict(code: int) -> bytes:
    return extension(b"", struct.pack("=i", code))


ACCEPT = verdict(-2)
MASQUERADE = extension(b"MASQUERADE", bytes(24))
CONNTRACK = extension(b"conntrack", bytes(range(160)), 3)
TEE = extension(b"TEE", struct.pack("=16s16s8x", bytes(4), b"hm11fe"), 1)


def tcp(source: tuple[int, int] = (0, 65535), destination: tuple[int, int] = (0, 65535), inverted: int = 0) -> bytes:
    return extension(b"tcp", struct.pack("=4H3xB", *source, *destination, inverted))


def udp(source: tuple[int, int] = (0, 65535), destination: tuple[int, int] = (0, 65535), inverted: int = 0) -> bytes:
    return extension(b"udp", struct.pack("=4HB", *source, *destination, inverted))


def sctp(
    source: tuple[int, int] = (0, 0), destination: tuple[int, int] = (0, 0), others: int = 0, inverted: int = 0
) -> bytes:
    """``struct xt_sctp_info``: the ports, and what is matched (source, destination, others) and what inverted."""
    matched = any(source) | any(destination) << 1 | others
    return extension(b"sctp", struct.pack("=4H276xII", *destination, *source, matched, inverted))


def multiport(ports: tuple[int, ...], ranges: tuple[int, ...] = (), inverted: int = 0, revision: int = 1) -> bytes:
    """``struct xt_multiport_v1``."""
    padded = (*ports, *[0] * (15 - len(ports)), *ranges, *[0] * (15 - len(ranges)))
    return extension(b"multiport", struct.pack("=BB15H15BB", 1, len(ports), *padded, inverted), revision)


TCP_SYN, TCP_OPTION = (
    extension(b"tcp", struct.pack("=4H4B", 0, 65535, 0, 65535, *rest)) for rest in ((0, 0x17, 0x02, 0), (8, 0, 0, 0))
)
"""``--syn`` and ``--tcp-option 8``."""


def entry(
    kind: Kind,
    matches: Sequence[bytes],
    target: bytes,
    i: Match = ANY,
    o: Match = ANY,
    *,
    network: tuple[bytes, bytes] | None = None,
    protocol: int = 0,
    flags: int = 0,
    inverted: int = 0,
) -> bytes:
    """An entry with a source, which is the kind's network where ``network`` is no address and mask."""
    target_offset = kind.size + sum(map(len, matches))
    source, mask = network or (kind.network, kind.mask)
    header = kind.header.pack(
        *(source, bytes(4), mask, bytes(4)),
        *(i.name, o.name, i.mask, o.mask),
        *(protocol, flags, i.inverted | o.inverted << 1 | inverted),
        *(0, target_offset, target_offset + len(target), 0, 12, 345),
    )
    return header + b"".join(matches) + target


class Entry(NamedTuple):
    kind: Kind
    raw: bytes


# Damage.

edits = st.lists(
    st.tuples(st.integers(0, 2**16), st.sampled_from([0, 1, 2, 4, 31, 32, 112, 127, 128, 255]) | st.integers(0, 255)),
    max_size=8,
)


def edited(data: bytes, changes: Sequence[tuple[int, int]], keep: Sequence[range] = ()) -> bytes:
    """``data`` with some bytes changed, none of them in the ranges to ``keep``."""
    free = [at for at in range(len(data)) if not any(at in each for each in keep)]
    changed = bytearray(data)
    for at, byte in changes:
        if free:
            changed[free[at % len(free)]] = byte
    return bytes(changed)


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[Entry]) -> Entry:
    """Bytes changed, cut off or added; some of them in the sizes."""
    kind, data = draw(whole)
    data = edited(data, draw(edits))
    headers = (kind.target_offset, kind.target_offset + 2, kind.size)
    for at, value in draw(st.lists(st.tuples(st.sampled_from(headers), st.integers(0, 2**16 - 1)), max_size=2)):
        if at + 2 <= len(data):
            data = data[:at] + struct.pack("=H", value) + data[at + 2 :]
    if draw(st.booleans()):
        data = data[: draw(st.integers(0, len(data)))]
    return Entry(kind, data + draw(st.binary(max_size=8)))


extensions = st.one_of(
    st.sampled_from([xt_comment(b"hypeman-nat-hmdead"), xt_comment(b"\xff" * 256), CONNTRACK, extension(b"set", b"")]),
    st.sampled_from([tcp(), tcp((1, 2)), udp(inverted=3), multiport((22, 80)), sctp(others=4), TCP_SYN]),
    st.builds(extension, st.binary(max_size=29), st.binary(max_size=300), st.integers(0, 255)),
    st.builds(
        extension,
        st.sampled_from([b"set", b"SET", b"comment", b"physdev", b"devgroup", b"TEE", b"tcp", b"udp", b"multiport"]),
        st.binary(max_size=80),
        st.integers(0, 4),
    ),
)
whole_targets = st.sampled_from([ACCEPT, MASQUERADE, TEE, extension(b"SET", bytes(8), 2)])
targets = whole_targets | extensions | st.just(extension(b"", b""))
masks = st.integers(0, 16).map(lambda covered: b"\xff" * covered) | st.binary(max_size=16)
interface_matches = st.builds(Match, st.sampled_from([b"", b"hmdead", b"hm+", b"x" * 16]), masks, st.booleans())
protocols = st.sampled_from([0, 6, 17, 58, 253, 65535])


@st.composite
def entries_with(draw: st.DrawFn, some: st.SearchStrategy[bytes]) -> Entry:
    kind, matches = draw(kinds), draw(st.lists(extensions, max_size=3))
    interfaces = draw(interface_matches), draw(interface_matches)
    flags, inverted = draw(st.integers(0, 7)), draw(st.integers(0, 127))
    return Entry(
        kind, entry(kind, matches, draw(some), *interfaces, protocol=draw(protocols), flags=flags, inverted=inverted)
    )


entries, whole_entries = entries_with(targets), entries_with(whole_targets)
chain_names = st.none() | st.sampled_from([b"", b"ACCEPT", b"JOBS", b"\xff" * 28])


# Anything at all.


@fuzz
@given(
    st.builds(Entry, kinds, st.binary(max_size=400)) | entries | damaged(entries),
    chain_names,
    st.booleans(),
)
def test_an_entry_is_read_or_malformed(each: Entry, target: bytes | None, jumps: bool) -> None:
    layout, raw = each.kind.layout, each.raw
    try:
        spec = decode(raw, layout, target, jumps=jumps)
    except MalformedEntryError:
        with pytest.raises(MalformedEntryError):
            undo_of(raw, layout, target, jumps=jumps)
        return
    undo = undo_of(raw, layout, target, jumps=jumps)
    assert undo.jump == (spec.target if jumps and target else None)
    assert all(0 <= each < 0xFFFF for each in undo.sets)


TARGET_AT, SIZE_AT, MATCH, TARGET = "target's offset", "entry's size", "match's size", "target's size"


@each_kind
@pytest.mark.parametrize(
    ("at", "value"),
    [
        pytest.param(TARGET_AT, lambda header: header - 8, id="target within the header"),
        pytest.param(TARGET_AT, lambda _: 2**16 - 8, id="target behind the entry"),
        pytest.param(TARGET_AT, lambda header: header + 8, id="less than a match before the target"),
        pytest.param(SIZE_AT, lambda _: 0, id="entry of no size"),
        pytest.param(SIZE_AT, lambda header: header + 288 + 8, id="target cut off"),
        pytest.param(SIZE_AT, lambda _: 2**16 - 8, id="entry larger than its bytes"),
        pytest.param(MATCH, lambda _: 0, id="match of no size"),
        pytest.param(MATCH, lambda _: 24, id="match smaller than its header"),
        pytest.param(MATCH, lambda _: 288 - 8, id="rest of a match"),
        pytest.param(MATCH, lambda _: 288 + 8, id="match that reaches into the target"),
        pytest.param(MATCH, lambda _: 2**16 - 8, id="match larger than the entry"),
        pytest.param(TARGET, lambda _: 2**16 - 8, id="target larger than the entry"),
        pytest.param(TARGET, lambda _: 8, id="target smaller than its header"),
    ],
)
def test_sizes_and_offsets_that_contradict_each_other_are_malformed(
    kind: Kind, at: str, value: Callable[[int], int]
) -> None:
    where = {
        TARGET_AT: kind.target_offset,
        SIZE_AT: kind.target_offset + 2,
        MATCH: kind.size,
        TARGET: kind.size + 288,
    }[at]
    raw = entry(kind, [xt_comment(b"hypeman-nat-hmdead")], ACCEPT)
    assert decode(raw, kind.layout).comment == "hypeman-nat-hmdead"
    with pytest.raises(MalformedEntryError):
        decode(raw[:where] + struct.pack("=H", value(kind.size)) + raw[where + 2 :], kind.layout)


@each_kind
@pytest.mark.parametrize("size", [-168, -112, -1, 0, 288])
def test_an_entry_that_is_cut_off_is_malformed(kind: Kind, size: int) -> None:
    raw = entry(kind, [xt_comment(b"hypeman-nat-hmdead")], ACCEPT)
    with pytest.raises(MalformedEntryError):
        decode(raw[: max(0, kind.size + size)], kind.layout)


def test_an_entry_of_one_family_is_malformed_in_the_other() -> None:
    for kind, other in ((IPV4, IPV6), (IPV6, IPV4)):
        with pytest.raises(MalformedEntryError):
            decode(entry(kind, [xt_comment(b"x")], ACCEPT), other.layout)


@pytest.mark.parametrize(("kind", "at"), [(IPV4, 112), (IPV6, 168)])
def test_the_parts_of_an_entry_are_its_matches_and_its_target(kind: Kind, at: int) -> None:
    raw = entry(kind, [CONNTRACK, xt_comment(b"x")], MASQUERADE)
    assert list(parts(raw, kind.layout)) == [
        (at, 192, "conntrack", 3),
        (at + 192, 288, "comment", 0),
        (at + 480, 56, "MASQUERADE", 0),
    ]


# What was written is what is read.

names = st.binary(min_size=1, max_size=15).map(lambda raw: raw.replace(b"\0", b"n")) | st.sampled_from(
    [b"hm1", b"hm+", b"+", b"!", b"hm0123456789abc", b"\xff\xfe"]
)
interfaces = st.none() | st.builds(
    Interface,
    names.map(lambda raw: raw.decode("utf-8", "surrogateescape")),
    st.booleans(),
    st.booleans(),
    after_effect=st.just(False),
)
remarks = st.lists(st.binary(max_size=255).map(lambda raw: raw.replace(b"\0", b"n")), max_size=2, unique=True)


def as_match(interface: Interface | None, plus: bool) -> Match:
    if interface is None:
        return ANY
    name = interface.name.encode("utf-8", "surrogateescape")
    if interface.wildcard:
        # iptables leaves the + behind the part that the mask covers.
        return Match(name + b"+" * plus, b"\xff" * len(name), interface.negated)
    return exactly(name)._replace(inverted=interface.negated)


PROTOCOLS = {0: None, 1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp", 132: "sctp", 253: "253"}
ALL_PORTS = (0, 65535)
port_ranges = (
    st.just(ALL_PORTS)
    | st.tuples(st.integers(0, 65535), st.integers(0, 65535))
    | st.integers(0, 65535).map(lambda port: (port, port))
)


@fuzz
@given(
    kinds,
    interfaces,
    interfaces,
    remarks,
    st.booleans(),
    st.sampled_from([*PROTOCOLS]),
    st.booleans(),
    st.sampled_from([b"tcp", b"udp"]),
    port_ranges,
    port_ranges,
    st.integers(0, 3),
    st.booleans(),
)
def test_an_entry_is_read_as_it_was_written(
    kind: Kind,
    i: Interface | None,
    o: Interface | None,
    remarks: list[bytes],
    plus: bool,
    protocol: int,
    negated: bool,
    transport: bytes,
    source_ports: tuple[int, int],
    destination_ports: tuple[int, int],
    inverted: int,
    goes: bool,
) -> None:
    ports = {b"tcp": tcp, b"udp": udp}[transport](source_ports, destination_ports, inverted)
    raw = entry(
        kind,
        [CONNTRACK, *map(xt_comment, remarks), ports],
        ACCEPT,
        as_match(i, plus),
        as_match(o, plus),
        protocol=protocol,
        flags=kind.goto * goes,
        inverted=0x40 * negated,
    )
    matches = {"conntrack", transport.decode(), *(["-g"] if goes else [])}
    is_one = source_ports == ALL_PORTS and destination_ports[0] == destination_ports[1] and not inverted
    if not is_one and (source_ports, destination_ports) != (ALL_PORTS, ALL_PORTS):
        matches.add(f"more of {transport.decode()}")
    expected = Spec(
        in_interface=i,
        out_interface=o,
        source=kind.text,
        protocol=f"!{PROTOCOLS[protocol]}" if protocol and negated else PROTOCOLS[protocol],
        ports=any(
            each != ALL_PORTS and not inverted & bit for each, bit in ((source_ports, 1), (destination_ports, 2))
        ),
        matches=tuple(sorted(matches)),
        target="ACCEPT",
        comments=tuple(remark.decode("utf-8", "surrogateescape") for remark in remarks),
    )
    assert decode(raw, kind.layout) == decode(raw, kind.layout, b"ACCEPT") == expected


@each_kind
@pytest.mark.parametrize(
    ("match", "ports", "more"),
    [
        (tcp(), False, False),
        (tcp(destination=(22, 22)), True, False),
        (tcp(destination=(22, 30)), True, True),
        (tcp(source=(22, 22)), True, True),
        (tcp(source=(1024, 65535)), True, True),
        (tcp(source=(0, 65534)), True, True),
        (tcp(destination=(22, 22), inverted=2), False, True),
        (tcp(source=(22, 22), inverted=1), False, True),
        (tcp((22, 22), (80, 80), 1), True, True),
        (tcp((22, 22), (80, 80), 2), True, True),
        (tcp((22, 22), (80, 80), 3), False, True),
        # Inverted where there is nothing to invert, it restricts nothing that can be told.
        (tcp(inverted=2), False, False),
        (udp(), False, False),
        (udp(destination=(53, 53)), True, False),
        (udp(destination=(53, 53), inverted=2), False, True),
        (multiport((22, 80)), True, False),
        (multiport((22, 80), inverted=1), False, False),
        (multiport((1024, 2048), ranges=(1, 0)), True, False),
        (multiport((0, 65535), ranges=(1, 0)), False, False),
        (multiport((0, 65000), ranges=(1, 0)), True, False),
        (multiport((22,), revision=0), False, True),
        (sctp(destination=(5, 5)), True, False),
        (sctp(destination=(5, 7)), True, True),
        (sctp(source=(5, 5)), True, True),
        (sctp(destination=(5, 5), inverted=2), False, True),
        (sctp((5, 5), (7, 7), inverted=1), True, True),
        (sctp((5, 5), (7, 7), inverted=3), False, True),
        (sctp(others=4), False, True),
        (sctp(), False, False),
        (TCP_SYN, False, True),
        (TCP_OPTION, False, True),
        (extension(b"tcp", struct.pack("=4H3xB", 22, 22, 0, 65535, 0), 1), False, True),
        (extension(b"tcp", b"\1"), False, True),
        (extension(b"multiport", b"\1\1", 1), False, True),
        (CONNTRACK, False, False),
    ],
)
def test_ports_are_those_that_are_not_negated(kind: Kind, match: bytes, ports: bool, more: bool) -> None:
    """And other than one port of the destination is more."""
    spec = decode(entry(kind, [match], ACCEPT, protocol=6), kind.layout)
    name = match[2:31].split(b"\0")[0].decode()
    assert (spec.ports, spec.unreadable) == (ports, None)
    assert spec.matches == tuple(sorted([name, f"more of {name}"] if more else [name]))


@pytest.mark.parametrize(
    ("kind", "flags", "inverted", "matches"),
    [
        (IPV4, 0x01, 0, ("-f", "tcp")),
        (IPV4, 0x01, 0x20, ("! -f", "tcp")),
        (IPV4, 0x02, 0, ("-g", "tcp")),
        (IPV4, 0x03, 0, ("-f", "-g", "tcp")),
        (IPV4, 0, 0x20, ("tcp",)),
        (IPV6, 0x04, 0, ("-g", "tcp")),
        # IP6T_F_PROTO, which tells that a protocol is given, and IP6T_F_TOS.
        (IPV6, 0x01, 0, ("tcp",)),
        (IPV6, 0x02, 0, ("tcp",)),
    ],
)
def test_options_that_are_flags(kind: Kind, flags: int, inverted: int, matches: tuple[str, ...]) -> None:
    raw = entry(kind, [tcp(), xt_comment(b"x")], ACCEPT, flags=flags, inverted=inverted)
    assert decode(raw, kind.layout).matches == matches


@pytest.mark.parametrize(
    ("kind", "source", "mask", "inverted", "expected"),
    [
        (IPV4, bytes([10, 200, 1, 0]), b"\xff\xff\xff\0", 0, "10.200.1.0/24"),
        (IPV4, bytes([10, 200, 1, 7]), b"\xff" * 4, 0x08, "!10.200.1.7/32"),
        (IPV4, bytes([10, 0, 0, 9]), b"\xff\0\0\xff", 0, "10.0.0.9/255.0.0.255"),
        (IPV4, bytes(4), bytes(4), 0, None),
        (IPV6, b"\xfd" + bytes(15), b"\xff" + bytes(15), 0, "fd00::/8"),
        (IPV6, bytes(15) + b"\1", b"\xff" * 16, 0x08, "!::1/128"),
        (IPV6, b"\xfd" + bytes(14) + b"\2", b"\xff" + bytes(14) + b"\xff", 0, "fd00::2/ff00::ff"),
        (IPV6, bytes(16), bytes(16), 0, None),
        (IPV6, bytes(16), bytes(16), 0x08, "!::/0"),
    ],
)
def test_networks(kind: Kind, source: bytes, mask: bytes, inverted: int, expected: str | None) -> None:
    raw = entry(kind, [], ACCEPT, network=(source, mask), inverted=inverted)
    assert decode(raw, kind.layout) == Spec(source=expected, target="ACCEPT")


@each_kind
@pytest.mark.parametrize(
    ("target", "name", "jumps", "expected"),
    [
        (verdict(-1), None, False, "DROP"),
        (verdict(-2), None, False, "ACCEPT"),
        (verdict(-4), None, False, "QUEUE"),
        (verdict(-5), None, False, "RETURN"),
        (verdict(-99), None, False, None),
        (verdict(152), b"JOBS", True, "JOBS"),
        (MASQUERADE, None, False, "MASQUERADE"),
        (extension(b"", b""), None, False, None),
    ],
)
def test_targets(kind: Kind, target: bytes, name: bytes | None, jumps: bool, expected: str | None) -> None:
    raw = entry(kind, [], target)
    assert decode(raw, kind.layout, name, jumps=jumps).target == expected
    if jumps and name:
        assert undo_of(raw, kind.layout, name, jumps=True).jump == name.decode()


@each_kind
def test_a_chain_is_not_taken_for_a_target_of_its_name(kind: Kind) -> None:
    """``-j TEE`` to a chain of that name: its bytes are an offset, and no interface."""
    raw = entry(kind, [], verdict(152))
    assert decode(raw, kind.layout, b"TEE", jumps=True) == Spec(source=kind.text, target="TEE")


@each_kind
@pytest.mark.parametrize(
    ("matches", "target", "field", "expected"),
    [
        ([extension(b"physdev", physdev(exactly(LIVE), ANY))], ACCEPT, "physdev", (Interface("hm11fe"),)),
        ([extension(b"physdev", physdev(ANY, Match(b"hm", b"\xff\xff", True)))], ACCEPT, "physdev", "!hm+"),
        ([], TEE, "devices", ("hm11fe",)),
        ([xt_comment(b"a"), xt_comment(b"b"), xt_comment(b"a")], ACCEPT, "comments", ("a", "b")),
        ([CONNTRACK, xt_comment(b"a"), tcp(), CONNTRACK], ACCEPT, "matches", ("conntrack", "tcp")),
        ([TCP_SYN, tcp(), CONNTRACK], ACCEPT, "matches", ("conntrack", "more of tcp", "tcp")),
        ([xt_comment(b"a"), extension(b"", b"")], ACCEPT, "matches", ("",)),
        ([], MASQUERADE, "matches", ()),
        ([extension(b"set", bytes(8), 4)], ACCEPT, "unreadable", "'set'"),
        ([extension(b"bpf", bytes(8))], ACCEPT, "unreadable", "'bpf'"),
        ([extension(b"devgroup", bytes(24))], ACCEPT, "unreadable", "group"),
        ([CONNTRACK], extension(b"NEWTARGET", bytes(8)), "unreadable", "'NEWTARGET'"),
        ([CONNTRACK], MASQUERADE, "unreadable", None),
    ],
)
def test_what_matches_and_targets_say(
    kind: Kind, matches: list[bytes], target: bytes, field: str, expected: object
) -> None:
    found = getattr(decode(entry(kind, matches, target), kind.layout), field)
    if isinstance(expected, str):
        assert expected in (found if isinstance(found, str) else str(found[0]))
    else:
        assert found == expected


# Never without the name.

LIVE_REMARKS = (b"hypeman-nat-" + LIVE, LIVE, b"hypeman-x-hmdead, before that " + LIVE + b"\n", b"\xff " + LIVE)


@st.composite
def matches_of_the_living(draw: st.DrawFn) -> tuple[Match, int]:
    """A match of the live name, and how many bytes of the mask it takes: under one of zeros it names nobody."""
    mask = draw(masks)
    if not any(mask):
        mask = b"\xff"
    return Match(LIVE, mask, draw(st.booleans())), len(mask) - len(mask.lstrip(b"\0")) + 1


def named_at(name_at: int, mask_at: int, mask_size: int) -> list[range]:
    return [range(name_at, name_at + len(LIVE) + 1), range(mask_at + mask_size - 1, mask_at + mask_size)]


@st.composite
def entries_of_the_living(draw: st.DrawFn) -> Entry:
    """An entry that names a live bridge once, in bytes that stay as they are, and dead ones around it.

    What stays besides the name is what leads to it: of a match its own header, the sizes of the
    matches before it and the offset of the target. Without these the entry has no such match.
    """
    kind, where = draw(kinds), draw(st.sampled_from(["in", "out", "port in", "port out", "comment"]))
    live, mask_size = draw(matches_of_the_living())
    text = draw(st.sampled_from(LIVE_REMARKS))
    others = [*draw(st.lists(extensions, max_size=2)), xt_comment(b"hypeman-fwd-hmdead")]
    i, o = (draw(interface_matches | st.just(exactly(b"hmdead"))) for _ in range(2))
    if where in ("in", "out"):
        raw = entry(kind, others, draw(targets), *((live, o) if where == "in" else (i, live)))
        name_at = kind.names[where == "out"]
        return Entry(kind, edited(raw, draw(edits), named_at(name_at, name_at + 32, mask_size)))
    index = draw(st.integers(0, len(others)))
    starts = [kind.size + sum(map(len, others[:n])) for n in range(index + 1)]
    info_at = starts[-1] + EXTENSION.size
    keep = [range(kind.target_offset, kind.target_offset + 2), *(range(start, start + 2) for start in starts)]
    # The revision too: of another one nobody knows what it says.
    keep += [range(starts[-1] + 31, starts[-1] + 32)]
    if where == "comment":
        match = xt_comment(text)
        keep += [range(starts[-1], starts[-1] + 2 + len(b"comment\0")), range(info_at, info_at + len(text) + 1)]
    else:
        match = extension(b"physdev", physdev(*((live, ANY) if where == "port in" else (ANY, live))))
        keep += [range(starts[-1], starts[-1] + 2 + len(b"physdev\0"))]
        keep += named_at(info_at + 32 * (where == "port out"), info_at + 16 + 32 * (where == "port out"), mask_size)
    raw = entry(kind, [*others[:index], match, *others[index:]], draw(targets), i, o)
    return Entry(kind, edited(raw, draw(edits), keep))


@settings(fuzz, max_examples=200)
@given(entries_of_the_living())
def test_a_name_is_read_whatever_stands_around_it(each: Entry) -> None:
    with suppress(MalformedEntryError):
        spec = decode(each.raw, each.kind.layout)
        interfaces = [*filter(None, (spec.in_interface, spec.out_interface)), *spec.physdev]
        by_match = any(
            each.name == "hm11fe" or (each.wildcard and "hm11fe".startswith(each.name)) for each in interfaces
        )
        assert by_match or any("hm11fe" in comment for comment in spec.comments)


@each_kind
@pytest.mark.parametrize("revision", [1, 255])
@pytest.mark.parametrize("name", [b"comment", b"physdev"])
def test_a_revision_that_is_not_known_is_unreadable(kind: Kind, name: bytes, revision: int) -> None:
    assert decode(entry(kind, [extension(name, bytes(256), revision)], ACCEPT), kind.layout).unreadable


# What is kept of an entry.


@fuzz
@given(whole_entries, st.sampled_from([b"ACCEPT", b"JOBS"]))
def test_an_entry_that_is_kept_reads_as_the_one_it_was_made_of(each: Entry, target: bytes) -> None:
    layout = each.kind.layout
    undo = undo_of(each.raw, layout, target)
    # libiptc is given a standard target by its name.
    assert decode(undo.raw, layout, target, jumps=True) == decode(each.raw, layout, target, jumps=True)
    assert undo_of(undo.raw, layout, target) == undo
    assert len(undo.raw) == len(each.raw)


@fuzz
@given(
    kinds,
    st.lists(extensions, max_size=3),
    targets,
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=4, max_size=4),
)
def test_an_identity_leaves_out_what_the_kernel_changes_by_itself(
    kind: Kind, matches: list[bytes], target: bytes, counters: bytes, other: bytes
) -> None:
    raw = entry(kind, matches, target, exactly(b"hmdead"))
    later = bytearray(raw)
    later[kind.target_offset - 4 : kind.target_offset] = other  # nfcache
    later[kind.target_offset + 4 : kind.target_offset + 8] = other  # comefrom
    later[kind.size - 16 : kind.size] = counters
    # Behind the NUL of an extension's name the kernel leaves what was in its memory.
    name = slice(len(raw) - len(target) + 2, len(raw) - len(target) + 31)
    if (nul := raw[name].find(b"\0")) >= 0:
        later[name.start + nul + 1 : name.stop] = b"\xee" * (28 - nul)
    first, second = (undo_of(bytes(each), kind.layout, b"ACCEPT") for each in (raw, later))
    assert first._replace(raw=b"") == second._replace(raw=b"")
    assert second.raw[kind.size - 16 : kind.size] == bytes(16)


@fuzz
@given(entries, st.integers(0, 2**16), st.integers(1, 255))
def test_an_identity_tells_rules_of_other_matches_apart(each: Entry, at: int, change: int) -> None:
    kind, raw = each
    other = bytearray(raw)
    other[at % (kind.target_offset - 4)] ^= change
    assert undo_of(bytes(other), kind.layout, b"ACCEPT").identity != undo_of(raw, kind.layout, b"ACCEPT").identity


@each_kind
@pytest.mark.parametrize(
    ("matches", "target", "sets", "lost"),
    [
        ([extension(b"set", struct.pack("=H6x", 7), 4)], extension(b"SET", struct.pack("=H6x", 9), 2), (7, 9), False),
        ([extension(b"set", b"", 99)], ACCEPT, (), True),
        ([], extension(b"SET", struct.pack("=H30x", 9), 99), (), True),
        ([CONNTRACK], MASQUERADE, (), False),
    ],
)
def test_sets_are_told_by_number_or_the_rule_is_lost(
    kind: Kind, matches: list[bytes], target: bytes, sets: tuple[int, ...], lost: bool
) -> None:
    undo = undo_of(entry(kind, matches, target), kind.layout)
    assert undo.sets[: len(sets)] == sets
    assert bool(undo.lost) is lost
