"""Read x_tables entries: bytes in, specs out. No I/O.

Layouts are those of ``linux/netfilter_ipv4/ip_tables.h``, ``linux/netfilter_ipv6/ip6_tables.h`` and
``linux/netfilter/x_tables.h``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from netsweep.errors import NetsweepError
from netsweep.firewall import extensions
from netsweep.firewall.extensions import Extension
from netsweep.model import Family, Interface, Spec


class Layout(NamedTuple):
    """Where an entry holds what, in bytes.

    ``fields``: addresses of source and destination, their masks, in- and out-interface, their masks,
    protocol, flags, inverted flags. Up to ``nfcache`` goes the part that the rule's text decides; behind
    it follow ``nfcache``, the offset of the target, the ``size`` (the offset of the next entry),
    ``comefrom`` and ``counters``. ``entry``: the whole, which the matches follow, and then the target.
    ``goto`` and ``fragment`` are flags.
    """

    fields: struct.Struct
    nfcache: int
    counters: int
    entry: int
    goto: int
    fragment: int

    @property
    def size(self) -> int:
        """Where the entry's size is."""
        return self.nfcache + 6


LAYOUTS = {
    Family.IPV4: Layout(struct.Struct("=4s4s4s4s16s16s16s16sHBB"), 84, 96, 112, goto=0x02, fragment=0x01),
    Family.IPV6: Layout(struct.Struct("=16s16s16s16s16s16s16s16sHxBB"), 136, 152, 168, goto=0x04, fragment=0),
}
"""``struct ipt_entry`` and ``struct ip6t_entry``; IPT_F_GOTO, IPT_F_FRAG and IP6T_F_GOTO. What ip6t_entry has
in place of the fragments, the traffic class, is set by no option of ip6tables."""

EXTENSION = struct.Struct("=H29sB")
"""``struct xt_entry_match`` and ``xt_entry_target``: size with data, name, revision."""

EXTENSION_SIZE = 32
NAME_OFFSET, NAME_SIZE = 2, 29

_INVERT_IN, _INVERT_OUT, _INVERT_SOURCE, _INVERT_DESTINATION = 0x01, 0x02, 0x08, 0x10
_INVERT_FRAGMENT, _INVERT_PROTOCOL = 0x20, 0x40
"""IPT_INV_VIA_IN, _VIA_OUT, _SRCIP, _DSTIP, _FRAG and _PROTO; IP6T_INV_* are the same."""

_VERDICTS = {-1: "DROP", -2: "ACCEPT", -4: "QUEUE", -5: "RETURN"}
"""A standard target's verdict is ``-NF_VERDICT - 1``; RETURN is XT_RETURN."""


class MalformedEntryError(NetsweepError):
    """An entry's offsets or sizes contradict each other."""


def parts(raw: bytes, layout: Layout) -> Iterator[tuple[int, int, str, int]]:
    """Offset, size, name and revision of each match of an entry, and then of its target.

    Raises :class:`MalformedEntryError` where sizes or offsets lead outside of ``raw``.
    """
    if len(raw) < layout.entry:
        raise MalformedEntryError("a rule is cut off")
    target_offset, size = struct.unpack_from("=HH", raw, layout.size - 2)
    if not layout.entry <= target_offset <= size - EXTENSION_SIZE or size > len(raw):
        raise MalformedEntryError("a rule has wrong offsets")
    offset = layout.entry
    while offset <= target_offset:
        end = size if offset == target_offset else target_offset
        if end - offset < EXTENSION_SIZE:
            raise MalformedEntryError("a rule has a match that is cut off")
        length, name, revision = EXTENSION.unpack_from(raw, offset)
        if not EXTENSION_SIZE <= length <= end - offset:
            raise MalformedEntryError("a rule has a match or a target of a wrong size")
        yield offset, length, _name(name), revision
        offset += length


def decode(raw: bytes, layout: Layout, target: bytes | None = None, *, jumps: bool = False) -> Spec:
    """Read one ``struct ipt_entry`` or ``ip6t_entry`` with its matches and target.

    ``target`` is what libiptc calls the entry's target, and ``jumps`` whether that is a chain: the entry
    itself holds an offset there. Raises :class:`MalformedEntryError`.
    """
    *matches, (target_at, target_size, target_name, target_revision) = parts(raw, layout)
    fields = layout.fields.unpack_from(raw)
    source, destination, source_mask, destination_mask, in_name, out_name, in_mask, out_mask = fields[:8]
    protocol, flags, inverted = fields[8:]
    names, found = list[str](), list[Extension]()
    for offset, length, name, revision in matches:
        each = extensions.read_match(name, revision, raw[offset + EXTENSION_SIZE : offset + length])
        found.append(each)
        if name != "comment":
            names.append(name)
        if each.more:
            names.append(f"more of {name}")
    if flags & layout.fragment:
        names.append("! -f" if inverted & _INVERT_FRAGMENT else "-f")
    if flags & layout.goto:
        names.append("-g")
    if target_name and not jumps:
        info = raw[target_at + EXTENSION_SIZE : target_at + target_size]
        found.append(extensions.read_target(target_name, target_revision, info))
    comments, physdev, devices = tuple[str, ...](), tuple[Interface, ...](), tuple[str, ...]()
    ports, unreadable = False, None
    for each in found:
        comments += each.comments
        physdev += each.physdev
        devices += each.devices
        ports = ports or each.ports
        unreadable = unreadable or each.unreadable
    return Spec(
        in_interface=extensions.interface(in_name, in_mask, inverted & _INVERT_IN),
        out_interface=extensions.interface(out_name, out_mask, inverted & _INVERT_OUT),
        source=_network(source, source_mask, inverted & _INVERT_SOURCE),
        destination=_network(destination, destination_mask, inverted & _INVERT_DESTINATION),
        protocol=extensions.protocol(protocol, inverted & _INVERT_PROTOCOL),
        ports=ports,
        matches=_in_order(tuple(names)),
        target=_target(raw, target_at, target_size, target_name if target is None else _name(target)),
        comments=tuple(dict.fromkeys(comments)) if len(comments) > 1 else comments,
        physdev=physdev,
        devices=devices,
        unreadable=unreadable,
    )


_name = lru_cache(maxsize=256)(extensions.text)  # there are very many rules, and few extensions and targets


@lru_cache(maxsize=256)
def _in_order(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(set(names)))


def _network(address: bytes, mask: bytes, negated: int) -> str | None:
    return extensions.network(address, mask, negated=bool(negated)) if any(mask) or negated else None


def _target(raw: bytes, offset: int, size: int, name: str) -> str | None:
    if not name and size >= EXTENSION_SIZE + 4:
        return _VERDICTS.get(struct.unpack_from("=i", raw, offset + EXTENSION_SIZE)[0])
    return name or None
