"""What it takes to put an x_tables rule back."""

from __future__ import annotations

from hashlib import blake2b

from netsweep.firewall import extensions
from netsweep.firewall.xtables.codec import EXTENSION_SIZE, NAME_OFFSET, NAME_SIZE, Layout, parts
from netsweep.model import Undo


def undo_of(raw: bytes, layout: Layout, target: bytes | None = None, *, jumps: bool = False) -> Undo:
    """An entry as libiptc wants it back, with counters at zero, and its identity.

    libiptc takes a standard target by its name and finds out the verdict, or the offset to jump to,
    anew; ``target`` and whether it is a chain come from libiptc. Behind an extension's name the kernel
    leaves what happened to be in memory. The identity leaves out what is not the rule's own:
    ``nfcache``, ``comefrom``, counters. Raises
    :class:`~netsweep.firewall.xtables.codec.MalformedEntryError`.
    """
    found = list(parts(raw, layout))
    target_at, target_size, target_name, _ = found[-1]
    entry = bytearray(raw[: target_at + target_size])
    entry[layout.counters : layout.entry] = bytes(layout.entry - layout.counters)
    sets: tuple[int, ...] = ()
    lost = None
    for number, (offset, size, name, revision) in enumerate(found, 1):
        _name(entry, offset, name.encode("utf-8", "surrogateescape"))
        kind = "target" if number == len(found) else "match"
        info = bytes(entry[offset + EXTENSION_SIZE : offset + size])
        numbers = extensions.set_numbers(kind, name, revision, info)
        sets += numbers or ()
        lost = "uses ipset in a way that is not known" if numbers is None else lost
    if not target_name:
        _name(entry, target_at, target or b"")
        entry[target_at + EXTENSION_SIZE : target_at + EXTENSION_SIZE + 4] = bytes(4)
    own = bytes(entry[: layout.nfcache] + entry[layout.size - 2 : layout.size + 2] + entry[layout.entry :])
    jump = extensions.text(target) if target and jumps else None
    return Undo(bytes(entry), blake2b(own, digest_size=16).digest(), jump, sets, lost)


def _name(entry: bytearray, offset: int, name: bytes) -> None:
    start = offset + NAME_OFFSET
    entry[start : start + NAME_SIZE] = name.ljust(NAME_SIZE, b"\0")
