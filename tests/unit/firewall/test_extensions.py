"""What is read of xt matches and targets."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsweep.firewall.extensions import (
    MATCHES,
    PROTOCOLS,
    STATEFUL,
    TARGETS,
    Extension,
    interface,
    network,
    protocol,
    read_match,
    read_target,
    set_numbers,
    text,
)
from netsweep.model import COMMENT_MAX, Interface


def physdev(i: bytes = b"", o: bytes = b"", inverted: int = 0, *, whole: bool = True) -> bytes:
    """The data of a ``physdev`` match (linux/netfilter/xt_physdev.h)."""
    masks = [b"\xff" * (len(name) + whole) if name else b"" for name in (i, o)]
    return struct.pack("=16s16s16s16sBB6x", i, masks[0], o, masks[1], inverted, 1)


def tee(device: bytes) -> bytes:
    """The data of a ``TEE`` target (linux/netfilter/xt_TEE.h)."""
    return struct.pack("=16s16s8x", bytes(4), device)


@pytest.mark.parametrize(
    ("data", "ports"),
    [
        (physdev(b"hm1"), (Interface("hm1"),)),
        (physdev(o=b"hm1"), (Interface("hm1"),)),
        (physdev(b"hm1", b"ha1", 2), (Interface("hm1"), Interface("ha1", negated=True))),
        (physdev(b"hm1", b"ha1", 1), (Interface("hm1", negated=True), Interface("ha1"))),
        (physdev(b"hm", whole=False), (Interface("hm", wildcard=True),)),
        (physdev(b"hm\xff"), (Interface("hm\udcff"),)),
        (physdev(), ()),
    ],
)
def test_both_ports_of_a_physdev_match_are_read(data: bytes, ports: tuple[Interface, ...]) -> None:
    found = read_match("physdev", 0, data)
    assert (found.physdev, found.unreadable, found.effect) == (ports, None, False)


def test_the_device_of_a_tee_target_is_read() -> None:
    assert read_target("TEE", 1, tee(b"hm11fe")).devices == ("hm11fe",)
    assert read_target("TEE", 1, tee(b"")).devices == ()
    assert read_target("TEE", 1, tee(b"hm11fe")).unreadable is None


def test_a_comment_is_read_to_its_end_and_no_further() -> None:
    longest = "x" * COMMENT_MAX
    for remark, data in (
        ("a b", b"a b\0c"),
        ("", bytes(256)),
        (longest, longest.encode() + b"\0"),
        ("\udcff", b"\xff"),
    ):
        assert read_match("comment", 0, data).comments == (remark,)


@pytest.mark.parametrize(
    ("name", "revision", "data"),
    [
        ("physdev", 0, physdev(b"hm1")[:60]),
        ("physdev", 1, physdev(b"hm1")),
        ("comment", 1, b"hm1"),
        ("set", 4, bytes(16)),
        ("bpf", 1, bytes(64)),
        ("devgroup", 0, bytes(24)),
        ("of a later kernel", 0, b""),
        ("", 0, b""),
    ],
)
def test_a_match_that_is_not_known_to_be_free_of_interfaces_is_unreadable(
    name: str, revision: int, data: bytes
) -> None:
    assert read_match(name, revision, data).unreadable


@pytest.mark.parametrize(
    ("name", "revision", "data"),
    [
        ("TEE", 1, tee(b"hm11fe")[:30]),
        ("TEE", 2, tee(b"hm11fe")),
        ("SET", 3, bytes(32)),
        ("CLUSTERIP", 0, bytes(64)),
        ("of a later kernel", 0, b""),
        ("", 0, b""),
    ],
)
def test_a_target_that_is_not_known_to_be_free_of_interfaces_is_unreadable(
    name: str, revision: int, data: bytes
) -> None:
    found = read_target(name, revision, data)
    assert found.unreadable
    assert found.devices == ()


def test_what_is_unreadable_can_be_printed() -> None:
    reason = read_match("\x1b[31m\n\udcff" + "x" * 300, 0, b"").unreadable or ""
    assert reason.isascii()
    assert reason.isprintable()
    assert len(reason) < 120


def test_what_is_free_of_interfaces_says_nothing_of_them() -> None:
    for name in MATCHES:
        found = read_match(name, 0, b"\xff" * 300)
        assert found == Extension(more=found.more, effect=name in STATEFUL)
        assert not found.more or name in ("multiport", "sctp", "tcp", "udp")
    for name in TARGETS:
        assert read_target(name, 0, b"\xff" * 300) == Extension(effect=True)
    assert set(MATCHES) >= STATEFUL
    assert not {"set", "bpf", "devgroup", "comment", "physdev"} & set(MATCHES)
    assert not {"SET", "TEE", "CLUSTERIP"} & set(TARGETS)


@pytest.mark.parametrize(
    ("name", "mask", "negated", "expected"),
    [
        (b"hm1", b"\xff" * 4, 0, Interface("hm1")),
        (b"hm1", b"\xff" * 3, 0, Interface("hm1", wildcard=True)),
        (b"hm1", b"\xff" * 2, 1, Interface("hm", wildcard=True, negated=True)),
        (b"hm1+", b"\xff" * 5, 0, Interface("hm1+")),
        (b"", b"", 0, None),
        (b"hm1", bytes(16), 0, None),
        (b"", b"", 1, Interface("", wildcard=True, negated=True)),
        (b"x" * 16, b"\xff" * 16, 0, Interface("x" * 16, wildcard=True)),
    ],
)
def test_a_name_goes_on_where_its_mask_ends(name: bytes, mask: bytes, negated: int, expected: Interface | None) -> None:
    assert interface(name.ljust(16, b"\0"), mask.ljust(16, b"\0"), negated) == expected


@pytest.mark.parametrize(
    ("kind", "name", "revision", "data", "numbers"),
    [
        ("match", "set", 4, struct.pack("=H14x", 7), (7,)),
        ("target", "SET", 3, struct.pack("=H2xH2xH22x", 7, 0xFFFF, 9), (7, 9)),
        ("target", "SET", 0, struct.pack("=H30xH30x", 3, 4), (3, 4)),
        ("target", "SET", 4, bytes(64), None),
        ("match", "set", 9, bytes(64), None),
        ("match", "set", 4, b"\1", None),
        ("match", "SET", 3, b"", ()),
        ("match", "tcp", 0, b"", ()),
    ],
)
def test_sets_are_told_by_number(
    kind: str, name: str, revision: int, data: bytes, numbers: tuple[int, ...] | None
) -> None:
    assert set_numbers(kind, name, revision, data) == numbers


@given(st.sampled_from([4, 16]), st.data(), st.booleans())
def test_a_network_is_written_so_that_it_can_be_read_again(size: int, data: st.DataObject, negated: bool) -> None:
    address = data.draw(st.binary(min_size=size, max_size=size))
    length = data.draw(st.integers(0, 8 * size))
    mask = ((1 << 8 * size) - (1 << 8 * size - length)).to_bytes(size, "big")
    written = network(address, mask, negated=negated)
    assert written.startswith("!") == negated
    read = ipaddress.ip_interface(written.removeprefix("!"))
    assert (read.ip.packed, read.network.prefixlen) == (address, length)


@given(st.sampled_from([4, 16]), st.data())
def test_a_mask_with_gaps_is_written_as_an_address(size: int, data: st.DataObject) -> None:
    address, mask = (data.draw(st.binary(min_size=size, max_size=size)) for _ in range(2))
    bits = f"{int.from_bytes(mask, 'big'):0{8 * size}b}"
    text, _, suffix = network(address, mask).partition("/")
    assert ipaddress.ip_address(text).packed == address
    if "01" in bits:
        assert ipaddress.ip_address(suffix).packed == mask
    else:
        assert int(suffix) == bits.count("1")


@pytest.mark.parametrize(
    ("number", "negated", "expected"),
    [
        (6, 0, "tcp"),
        (6, 0x40, "!tcp"),
        (17, 0, "udp"),
        (58, 0, "ipv6-icmp"),
        (2, 0, "2"),
        (253, 1, "!253"),
        (0, 0, None),
        (0, 0x40, None),
    ],
)
def test_a_protocol_is_a_name_where_iptables_has_one(number: int, negated: int, expected: str | None) -> None:
    assert protocol(number, negated) == expected


def test_protocols_have_the_numbers_of_the_kernel() -> None:
    known = {
        "icmp": socket.IPPROTO_ICMP,
        "tcp": socket.IPPROTO_TCP,
        "udp": socket.IPPROTO_UDP,
        "esp": socket.IPPROTO_ESP,
        "ah": socket.IPPROTO_AH,
        "ipv6-icmp": socket.IPPROTO_ICMPV6,
        "sctp": socket.IPPROTO_SCTP,
        "dccp": 33,
        "udplite": socket.IPPROTO_UDPLITE,
    }
    assert {name: number for number, name in PROTOCOLS.items()} == known


@given(st.binary(max_size=40))
def test_text_can_be_turned_back_into_its_bytes(field: bytes) -> None:
    assert text(field).encode("utf-8", "surrogateescape") == field.split(b"\0")[0]


@given(st.sampled_from(["comment", "physdev", "tcp", "set"]), st.integers(0, 255), st.binary(max_size=300))
def test_a_name_in_a_port_is_read_or_the_match_is_unreadable(name: str, revision: int, data: bytes) -> None:
    found = read_match(name, revision, data)
    if name in ("comment", "physdev"):
        assert found.unreadable or revision == 0
        assert found.unreadable or name == "comment" or len(data) >= 66
    assert all(0 <= number < 0xFFFF for number in set_numbers("match", name, revision, data) or ())


def tcp(source: tuple[int, int], destination: tuple[int, int], *rest: int) -> bytes:
    return struct.pack("=4H4B", *source, *destination, *(rest or (0, 0, 0, 0)))


ALL = (0, 65535)


def multiport(ports: list[int], ranges: Sequence[int] = (), inverted: int = 0) -> bytes:
    begins = [*ranges, *([0] * (15 - len(ranges)))]
    return struct.pack("=BB15H15BB", 1, len(ports), *ports, *([0] * (15 - len(ports))), *begins, inverted)


@pytest.mark.parametrize(
    ("name", "revision", "data", "ports", "more"),
    [
        ("tcp", 0, tcp(ALL, ALL), False, False),
        ("tcp", 0, tcp(ALL, (80, 80)), True, False),
        ("tcp", 0, tcp(ALL, (80, 81)), True, True),
        ("tcp", 0, tcp((80, 80), ALL), True, True),
        ("tcp", 0, tcp((80, 80), (80, 80)), True, True),
        ("tcp", 0, tcp(ALL, (80, 80), 0, 0, 0, 2), False, True),
        ("tcp", 0, tcp(ALL, (80, 80), 0, 2, 2, 0), True, True),
        ("tcp", 0, tcp(ALL, ALL, 8, 0, 0, 0), False, True),
        ("tcp", 1, tcp(ALL, (80, 80)), False, True),
        ("udp", 0, struct.pack("=4HB", *ALL, 53, 53, 0), True, False),
        ("udp", 0, struct.pack("=4HB", *ALL, 53, 53, 1), True, True),
        ("sctp", 0, struct.pack("=4H276xII", 9, 9, *ALL, 2, 0), True, False),
        ("sctp", 0, struct.pack("=4H276xII", *ALL, *ALL, 2, 0), False, False),
        ("sctp", 0, struct.pack("=4H276xII", 9, 9, *ALL, 2, 2), False, True),
        ("sctp", 0, struct.pack("=4H276xII", 9, 9, *ALL, 6, 0), True, True),
        ("multiport", 1, multiport([80, 443]), True, False),
        ("multiport", 1, multiport([80, 443], inverted=1), False, False),
        ("multiport", 1, multiport([0, 65535], [1]), False, False),
        ("multiport", 1, multiport([0, 32767, 32768, 65535], [1, 0, 1]), False, False),
        ("multiport", 0, multiport([80]), False, True),
    ],
)
def test_ports_narrow_a_rule_where_they_are_some_and_not_negated(
    name: str, revision: int, data: bytes, ports: bool, more: bool
) -> None:
    found = read_match(name, revision, data)
    assert (found.ports, found.more, found.unreadable) == (ports, more, None)
