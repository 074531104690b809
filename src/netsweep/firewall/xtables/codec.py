"""Read x_tables entries: bytes in, specs out. No I/O.

Layouts are those of ``linux/netfilter_ipv4/ip_tables.h`` and ``linux/netfilter/x_tables.h``.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator

from netsweep.errors import NetsweepError
from netsweep.firewall import extensions
from netsweep.model import Spec

ENTRY = struct.Struct("=4s4s4s4s16s16s16s16sHBB4xHH")
"""``struct ipt_entry`` up to ``next_offset``: source, destination, their masks, in- and out-interface,
their masks, protocol, flags, inverted flags, offset of the target, offset of the next entry (which is
this one's size)."""

ENTRY_SIZE = 112
"""Bytes of ``struct ipt_entry``, counters included; the matches follow, then the target."""

SIZE_OFFSET = 90
NFCACHE_OFFSET = 84
"""Behind the part that the rule's text decides: ``nfcache``, offsets, ``comefrom``, counters."""

COUNTERS_OFFSET = 96

EXTENSION = struct.Struct("=H29sB")
"""``struct xt_entry_match`` and ``xt_entry_target``: size with data, name, revision."""

EXTENSION_SIZE = 32
NAME_OFFSET, NAME_SIZE = 2, 29

_INVERT_IN, _INVERT_OUT, _INVERT_SOURCE, _INVERT_DESTINATION = 0x01, 0x02, 0x08, 0x10
"""IPT_INV_VIA_IN, IPT_INV_VIA_OUT, IPT_INV_SRCIP, IPT_INV_DSTIP."""

_VERDICTS = {-1: "DROP", -2: "ACCEPT", -4: "QUEUE", -5: "RETURN"}
"""A standard target's verdict is ``-NF_VERDICT - 1``; RETURN is XT_RETURN."""


class MalformedEntryError(NetsweepError):
    """An entry's offsets or sizes contradict each other."""


def parts(raw: bytes) -> Iterator[tuple[int, int, str, int]]:
    """Offset, size, name and revision of each match of an entry, and then of its target.

    Raises :class:`MalformedEntryError` where sizes or offsets lead outside of ``raw``.
    """
    if len(raw) < ENTRY_SIZE:
        raise MalformedEntryError("a rule is cut off")
    target_offset, size = struct.unpack_from("=HH", raw, SIZE_OFFSET - 2)
    if not ENTRY_SIZE <= target_offset <= size - EXTENSION_SIZE or size > len(raw):
        raise MalformedEntryError("a rule has wrong offsets")
    offset = ENTRY_SIZE
    while offset <= target_offset:
        end = size if offset == target_offset else target_offset
        if end - offset < EXTENSION_SIZE:
            raise MalformedEntryError("a rule has a match that is cut off")
        length, name, revision = EXTENSION.unpack_from(raw, offset)
        if not EXTENSION_SIZE <= length <= end - offset:
            raise MalformedEntryError("a rule has a match or a target of a wrong size")
        yield offset, length, extensions.text(name), revision
        offset += length


def decode(raw: bytes, target: bytes | None = None, *, jumps: bool = False) -> Spec:
    """Read one ``struct ipt_entry`` with its matches and target.

    ``target`` is what libiptc calls the entry's target, and ``jumps`` whether that is a chain: the entry
    itself holds an offset there. Raises :class:`MalformedEntryError`.
    """
    *matches, (target_at, target_size, target_name, target_revision) = parts(raw)
    fields = ENTRY.unpack_from(raw)
    source, destination, source_mask, destination_mask, in_name, out_name, in_mask, out_mask = fields[:8]
    inverted = fields[10]
    found = [
        extensions.read_match(name, revision, raw[offset + EXTENSION_SIZE : offset + length])
        for offset, length, name, revision in matches
    ]
    if target_name and not jumps:
        info = raw[target_at + EXTENSION_SIZE : target_at + target_size]
        found.append(extensions.read_target(target_name, target_revision, info))
    return Spec(
        in_interface=extensions.interface(in_name, in_mask, inverted & _INVERT_IN),
        out_interface=extensions.interface(out_name, out_mask, inverted & _INVERT_OUT),
        source=_network(source, source_mask, inverted & _INVERT_SOURCE),
        destination=_network(destination, destination_mask, inverted & _INVERT_DESTINATION),
        target=_target(raw, target_at, target_size, target_name if target is None else extensions.text(target)),
        comments=tuple(dict.fromkeys(text for each in found for text in each.comments)),
        physdev=tuple(port for each in found for port in each.physdev),
        devices=tuple(device for each in found for device in each.devices),
        unreadable=next((each.unreadable for each in found if each.unreadable), None),
    )


def _network(address: bytes, mask: bytes, negated: int) -> str | None:
    if mask == b"\0\0\0\0":
        return None
    bits = int.from_bytes(mask, "big")
    length = bits.bit_count()
    contiguous = bits == 0xFFFFFFFF << (32 - length) & 0xFFFFFFFF
    suffix = str(length) if contiguous else ".".join(map(str, mask))
    return f"{'!' if negated else ''}{'.'.join(map(str, address))}/{suffix}"


def _target(raw: bytes, offset: int, size: int, name: str) -> str | None:
    if not name and size >= EXTENSION_SIZE + 4:
        return _VERDICTS.get(struct.unpack_from("=i", raw, offset + EXTENSION_SIZE)[0])
    # There are very many rules and few targets.
    return sys.intern(name) or None
