"""The reader of x_tables' entries, given anything at all.

It runs as root on bytes that others had a hand in. Whatever those are, it gives a spec or one of
netsweep's own exceptions; and no bytes around an interface's name hide it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netsweep.firewall.xtables.codec import MalformedEntryError, decode, parts
from netsweep.firewall.xtables.undo import undo_of
from netsweep.model import Interface, Spec

LIVE = b"hm11fe"

# How long an example takes is the machine's business.
fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# struct ipt_entry, as linux/netfilter_ipv4/ip_tables.h has it.
HEADER = struct.Struct("=4s4s4s4s16s16s16s16sHBBIHHIQQ")
EXTENSION = struct.Struct("=H29sB")
TARGET_OFFSET = 88


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


def entry(
    matches: Sequence[bytes],
    target: bytes,
    i: Match = ANY,
    o: Match = ANY,
    source: bytes = bytes([10, 200, 1, 0]),
    mask: bytes = b"\xff\xff\xff\0",
    inverted: int = 0,
) -> bytes:
    target_offset = HEADER.size + sum(map(len, matches))
    header = HEADER.pack(
        *(source, bytes(4), mask, bytes(4)),
        *(i.name, o.name, i.mask, o.mask),
        *(0, 0, i.inverted | o.inverted << 1 | inverted),
        *(0, target_offset, target_offset + len(target), 0, 12, 345),
    )
    return header + b"".join(matches) + target


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
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes], *headers: int) -> bytes:
    """Bytes changed, cut off or added; ``headers`` are offsets of fields worth changing."""
    data = edited(draw(whole), draw(edits))
    for at, value in draw(st.lists(st.tuples(st.sampled_from(headers), st.integers(0, 2**16 - 1)), max_size=2)):
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
        st.sampled_from([b"set", b"SET", b"comment", b"physdev", b"devgroup", b"TEE"]),
        st.binary(max_size=80),
        st.integers(0, 4),
    ),
)
whole_targets = st.sampled_from([ACCEPT, MASQUERADE, TEE, extension(b"SET", bytes(8), 2)])
targets = whole_targets | extensions | st.just(extension(b"", b""))
masks = st.integers(0, 16).map(lambda covered: b"\xff" * covered) | st.binary(max_size=16)
interface_matches = st.builds(Match, st.sampled_from([b"", b"hmdead", b"hm+", b"x" * 16]), masks, st.booleans())
entries, whole_entries = (
    st.builds(entry, st.lists(extensions, max_size=3), each, interface_matches, interface_matches)
    for each in (targets, whole_targets)
)
chain_names = st.none() | st.sampled_from([b"", b"ACCEPT", b"JOBS", b"\xff" * 28])


# Anything at all.


@fuzz
@given(
    st.binary(max_size=400) | entries | damaged(entries, TARGET_OFFSET, TARGET_OFFSET + 2, HEADER.size),
    chain_names,
    st.booleans(),
)
def test_an_entry_is_read_or_malformed(raw: bytes, target: bytes | None, jumps: bool) -> None:
    try:
        spec = decode(raw, target, jumps=jumps)
    except MalformedEntryError:
        with pytest.raises(MalformedEntryError):
            undo_of(raw, target, jumps=jumps)
        return
    undo = undo_of(raw, target, jumps=jumps)
    assert undo.jump == (spec.target if jumps and target else None)
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
        pytest.param(HEADER.size + 288, 2**16 - 8, id="target larger than the entry"),
        pytest.param(HEADER.size + 288, 8, id="target smaller than its header"),
    ],
)
def test_sizes_and_offsets_that_contradict_each_other_are_malformed(at: int, value: int) -> None:
    raw = entry([xt_comment(b"hypeman-nat-hmdead")], ACCEPT)
    assert decode(raw).comment == "hypeman-nat-hmdead"
    with pytest.raises(MalformedEntryError):
        decode(raw[:at] + struct.pack("=H", value) + raw[at + 2 :])


@pytest.mark.parametrize("size", [0, 1, HEADER.size - 1, HEADER.size, HEADER.size + 288])
def test_an_entry_that_is_cut_off_is_malformed(size: int) -> None:
    with pytest.raises(MalformedEntryError):
        decode(entry([xt_comment(b"hypeman-nat-hmdead")], ACCEPT)[:size])


def test_the_parts_of_an_entry_are_its_matches_and_its_target() -> None:
    raw = entry([CONNTRACK, xt_comment(b"x")], MASQUERADE)
    assert list(parts(raw)) == [
        (112, 192, "conntrack", 3),
        (304, 288, "comment", 0),
        (592, 56, "MASQUERADE", 0),
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


@fuzz
@given(interfaces, interfaces, remarks, st.booleans())
def test_an_entry_is_read_as_it_was_written(
    i: Interface | None, o: Interface | None, remarks: list[bytes], plus: bool
) -> None:
    raw = entry([CONNTRACK, *map(xt_comment, remarks)], ACCEPT, as_match(i, plus), as_match(o, plus))
    comments = tuple(remark.decode("utf-8", "surrogateescape") for remark in remarks)
    expected = Spec(i, o, "10.200.1.0/24", None, "ACCEPT", comments)
    assert decode(raw) == decode(raw, b"ACCEPT") == expected


@pytest.mark.parametrize(
    ("source", "mask", "inverted", "expected"),
    [
        (bytes([10, 200, 1, 0]), b"\xff\xff\xff\0", 0, "10.200.1.0/24"),
        (bytes([10, 200, 1, 7]), b"\xff" * 4, 0x08, "!10.200.1.7/32"),
        (bytes([10, 0, 0, 9]), b"\xff\0\0\xff", 0, "10.0.0.9/255.0.0.255"),
        (bytes(4), bytes(4), 0, None),
    ],
)
def test_networks(source: bytes, mask: bytes, inverted: int, expected: str | None) -> None:
    assert decode(entry([], ACCEPT, source=source, mask=mask, inverted=inverted)).source == expected


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
def test_targets(target: bytes, name: bytes | None, jumps: bool, expected: str | None) -> None:
    raw = entry([], target)
    assert decode(raw, name, jumps=jumps).target == expected
    if jumps and name:
        assert undo_of(raw, name, jumps=True).jump == name.decode()


def test_a_chain_is_not_taken_for_a_target_of_its_name() -> None:
    """``-j TEE`` to a chain of that name: its bytes are an offset, and no interface."""
    raw = entry([], verdict(152))
    assert decode(raw, b"TEE", jumps=True) == Spec(source="10.200.1.0/24", target="TEE")


@pytest.mark.parametrize(
    ("matches", "target", "field", "expected"),
    [
        ([extension(b"physdev", physdev(exactly(LIVE), ANY))], ACCEPT, "physdev", (Interface("hm11fe"),)),
        ([extension(b"physdev", physdev(ANY, Match(b"hm", b"\xff\xff", True)))], ACCEPT, "physdev", "!hm+"),
        ([], TEE, "devices", ("hm11fe",)),
        ([xt_comment(b"a"), xt_comment(b"b"), xt_comment(b"a")], ACCEPT, "comments", ("a", "b")),
        ([extension(b"set", bytes(8), 4)], ACCEPT, "unreadable", "'set'"),
        ([extension(b"bpf", bytes(8))], ACCEPT, "unreadable", "'bpf'"),
        ([extension(b"devgroup", bytes(24))], ACCEPT, "unreadable", "group"),
        ([CONNTRACK], extension(b"NEWTARGET", bytes(8)), "unreadable", "'NEWTARGET'"),
        ([CONNTRACK], MASQUERADE, "unreadable", None),
    ],
)
def test_matches_and_targets_that_speak_of_interfaces(
    matches: list[bytes], target: bytes, field: str, expected: object
) -> None:
    found = getattr(decode(entry(matches, target)), field)
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
    # The revision too: of another one nobody knows what it says.
    keep += [range(starts[-1] + 31, starts[-1] + 32)]
    if where == "comment":
        match = xt_comment(text)
        keep += [range(starts[-1], starts[-1] + 2 + len(b"comment\0")), range(info_at, info_at + len(text) + 1)]
    else:
        match = extension(b"physdev", physdev(*((live, ANY) if where == "port in" else (ANY, live))))
        keep += [range(starts[-1], starts[-1] + 2 + len(b"physdev\0"))]
        keep += named_at(info_at + 32 * (where == "port out"), info_at + 16 + 32 * (where == "port out"), mask_size)
    raw = entry([*others[:index], match, *others[index:]], draw(targets), i, o)
    return edited(raw, draw(edits), keep)


@settings(fuzz, max_examples=200)
@given(entries_of_the_living())
def test_a_name_is_read_whatever_stands_around_it(raw: bytes) -> None:
    with suppress(MalformedEntryError):
        spec = decode(raw)
        interfaces = [*filter(None, (spec.in_interface, spec.out_interface)), *spec.physdev]
        by_match = any(
            each.name == "hm11fe" or (each.wildcard and "hm11fe".startswith(each.name)) for each in interfaces
        )
        assert by_match or any("hm11fe" in comment for comment in spec.comments)


@pytest.mark.parametrize("revision", [1, 255])
@pytest.mark.parametrize("name", [b"comment", b"physdev"])
def test_a_revision_that_is_not_known_is_unreadable(name: bytes, revision: int) -> None:
    assert decode(entry([extension(name, bytes(256), revision)], ACCEPT)).unreadable


# What is kept of an entry.


@fuzz
@given(whole_entries, st.sampled_from([b"ACCEPT", b"JOBS"]))
def test_an_entry_that_is_kept_reads_as_the_one_it_was_made_of(raw: bytes, target: bytes) -> None:
    undo = undo_of(raw, target)
    # libiptc is given a standard target by its name.
    assert decode(undo.raw, target, jumps=True) == decode(raw, target, jumps=True)
    assert undo_of(undo.raw, target) == undo


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
    assert undo_of(later, b"ACCEPT").identity == undo_of(raw, b"ACCEPT").identity
    assert undo_of(later, b"ACCEPT").raw[96:112] == bytes(16)


@fuzz
@given(entries, st.integers(0, 83), st.integers(1, 255))
def test_an_identity_tells_rules_of_other_matches_apart(raw: bytes, at: int, change: int) -> None:
    other = bytearray(raw)
    other[at] ^= change
    assert undo_of(bytes(other), b"ACCEPT").identity != undo_of(raw, b"ACCEPT").identity


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
    matches: list[bytes], target: bytes, sets: tuple[int, ...], lost: bool
) -> None:
    undo = undo_of(entry(matches, target))
    assert undo.sets[: len(sets)] == sets
    assert bool(undo.lost) is lost
