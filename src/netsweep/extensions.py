"""What is read of xt matches and targets, which both firewalls carry as bytes; the rest is never parsed.

Layouts are those of ``linux/netfilter/xt_*.h``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache

from netsweep.rules import Interface

COMMENT_SIZE = 256
"""XT_MAX_COMMENT_LEN, with the closing NUL."""

GROUPS = "matches interfaces by group"
"""Why the interfaces of a rule with a ``devgroup`` match cannot be told."""

_PHYSDEV = struct.Struct("=16s16s16s16sBB")
"""``struct xt_physdev_info``: in-interface, its mask, out-interface, its mask, what is inverted."""

_PHYSDEV_IN, _PHYSDEV_OUT = 0x01, 0x02

_NO_SET = 0xFFFF
"""IPSET_INVALID_ID (linux/netfilter/ipset/ip_set.h)."""

_SETS = {
    **{("match", revision): (0,) for revision in range(5)},
    ("target", 0): (0, 32),
    ("target", 1): (0, 4),
    ("target", 2): (0, 4),
    ("target", 3): (0, 4, 8),
}
"""Where each revision of the ``set`` match and the ``SET`` target holds its sets' numbers."""


def text(field: bytes) -> str:
    """A C string; bytes that are no UTF-8 become surrogate escapes (PEP 383)."""
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


@lru_cache(maxsize=1024)  # the rules of one bridge stand together
def interface(name: bytes, mask: bytes, negated: int) -> Interface | None:
    """The match that an interface's name under a mask makes; ``None`` where it matches all."""
    if not negated and not any(mask):
        return None
    covered = len(mask) - len(mask.lstrip(b"\xff"))
    own = name.split(b"\0", 1)[0]
    # iptables covers the name's closing NUL too, except where it may go on (xtables_parse_interface).
    wildcard = covered <= len(own)
    return Interface(text(own[:covered] if wildcard else own), wildcard, bool(negated))


def ports(info: bytes) -> Iterator[Interface]:
    """The bridge ports that a ``physdev`` match names."""
    if len(info) >= _PHYSDEV.size:
        in_name, in_mask, out_name, out_mask, inverted, _ = _PHYSDEV.unpack_from(info)
        for found in (
            interface(in_name, in_mask, inverted & _PHYSDEV_IN),
            interface(out_name, out_mask, inverted & _PHYSDEV_OUT),
        ):
            if found and (found.name or found.wildcard):
                yield found


def set_numbers(kind: str, name: str, revision: int, info: bytes) -> tuple[int, ...] | None:
    """The numbers of the ipset sets in an extension's data; ``None`` where its revision is not known.

    ``kind`` is ``match`` or ``target``. Other extensions than ipset's have none.
    """
    if name != {"match": "set", "target": "SET"}[kind]:
        return ()
    offsets = _SETS.get((kind, revision))
    if offsets is None or len(info) < offsets[-1] + 2:
        return None
    found = (struct.unpack_from("=H", info, offset)[0] for offset in offsets)
    return tuple(number for number in found if number != _NO_SET)
