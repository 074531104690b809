"""Prefixes and globs for the names of interfaces, globs for those of chains. Pure."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple

from netsweep.model import INTERFACE_NAME_MAX, Chain, Family

LITERALS_MIN = 2
"""How many literal characters a glob for interfaces has to have before its first wildcard: rules are
searched for these, and a shorter glob would own what others named."""

STARS_MAX = 3
"""How many stars a glob may have: the time to match grows with the name's length to that power, and the names of
nf_tables' tables and chains may have 255 characters."""

_FAMILIES = {
    "ip": Family.IPV4,
    "ipv4": Family.IPV4,
    "ip6": Family.IPV6,
    "ipv6": Family.IPV6,
    "inet": Family.INET,
}
"""The names of families, as nft and as reports write them."""

_WILD = re.compile(r"[*?\[\]]")
_SET = r"\[!?.[^\]]*\]"
_NAME_CHARACTER = r"[^\s/:]"
"""What an interface's name may hold (dev_valid_name in net/core/dev.c)."""

_PREFIX_CHARACTERS = frozenset(f"{string.ascii_letters}{string.digits}._-")
_PREFIX_SHAPE = f"give 1 to {INTERFACE_NAME_MAX - 1} letters, digits, dots, dashes or underscores, as hm"

_EXPRESSION = frozenset("{}()^$|\\+")
"""Characters of regular expressions that no name has."""

_REPEATED = r"(\[[^\]]*\]|[^\]])\{(\d{1,2})\}"

_USUAL = ("bond", "br", "eth", "vlan", "wlan")
"""What administrators and systemd call interfaces, with a number behind."""


def literal_beginning(glob: str) -> str:
    """What every name that ``glob`` matches begins with."""
    return _WILD.split(glob, maxsplit=1)[0]


def expression_of(glob: str, character: str = _NAME_CHARACTER) -> str:
    """The regular expression for ``glob``: ``*``, ``?`` and ``[…]``, whose wildcards stand for ``character``.

    A set may be negated with ``!``. Raises :class:`ValueError` where a bracket is not closed, a set is empty, or
    there are too many stars.
    """
    parts, rest = [], re.sub(r"\*+", "*", glob)
    if rest.count("*") > STARS_MAX:
        raise ValueError(f"{glob!a} has more than {STARS_MAX} stars")
    while rest:
        letter, rest = rest[0], rest[1:]
        if letter == "[":
            end = rest.find("]", 2 if rest.startswith("!") else 1)
            if end < 0:
                raise ValueError(f"{glob!a} has a bracket that is not closed")
            negated = rest.startswith("!")
            inside = re.sub(r"(.)-(.)|.", _in_set, rest[negated:end], flags=re.DOTALL)
            parts.append(f"(?={character})[{'^' if negated else ''}{inside}]")
            rest = rest[end + 1 :]
        elif letter in "*?":
            parts.append(character + ("*" if letter == "*" else ""))
        else:
            parts.append(re.escape(letter))
    try:
        re.compile("".join(parts))
    except re.error as error:
        raise ValueError(f"{glob!a} is not a glob: {error.msg}") from error
    return "".join(parts)


def _in_set(found: re.Match[str]) -> str:
    """A character or a range of a set, as a regular expression has it."""
    return "-".join(map(re.escape, (found[1], found[2]) if found[1] else found[0]))


def _check_glob(glob: str) -> None:
    """Raise :class:`ValueError` where ``glob`` cannot be given as a name of interfaces of ours."""
    expression_of(glob)
    beginning = literal_beginning(glob)
    if not re.fullmatch(rf"(?:{_NAME_CHARACTER})+", glob) or not glob.isprintable():
        raise ValueError(f"{glob!a} cannot be the name of an interface")
    if len(beginning) < LITERALS_MIN:
        raise ValueError(
            f"name {glob!a} is too wide: at least {LITERALS_MIN} characters have to come before the first wildcard"
        )
    if len(re.sub(_SET, "?", glob).replace("*", "")) > INTERFACE_NAME_MAX:
        raise ValueError(f"name {glob!a} is longer than the {INTERFACE_NAME_MAX} characters of an interface's name")


def _check_prefix(prefix: str) -> None:
    """Raise :class:`ValueError` where ``prefix`` cannot be given, and say what was meant where that can be told."""
    follow = "hex digits follow a prefix"
    if prefix.isprintable() and set(prefix) & (_EXPRESSION | set("*?[]")):
        raise ValueError(f"prefix {prefix!a} is a pattern, and {follow}: give --name {_suggested(prefix)!a}")
    plain = _PREFIX_CHARACTERS.issuperset(prefix)
    if plain and (len(prefix) == INTERFACE_NAME_MAX or (2 < len(prefix) < INTERFACE_NAME_MAX and prefix[-1].isdigit())):
        raise ValueError(f"prefix {prefix!a} looks like a whole name, and {follow}: give --name {prefix!a}")
    if prefix in _USUAL:
        raise ValueError(
            f"prefix {prefix!a} owns {prefix}0 and {prefix}1, as administrators name interfaces: "
            f"give a longer one, or --name {f'{prefix}-'.ljust(INTERFACE_NAME_MAX, '?')!a}"
        )
    if not _is_prefix(prefix):
        raise ValueError(f"{prefix!a} cannot be a prefix: {_PREFIX_SHAPE}")


def _is_prefix(text: str) -> bool:
    return 0 < len(text) < INTERFACE_NAME_MAX and _PREFIX_CHARACTERS.issuperset(text)


def _suggested(pattern: str) -> str:
    """A glob for what somebody gave as a glob or a regular expression."""
    glob = re.sub(_REPEATED, lambda found: found[1] * int(found[2]), pattern.strip("^$"))
    if pattern.strip("^$") != pattern:
        glob = glob.replace(".*", "*")  # eth0.* is a glob too
    beginning = re.split(r"[^A-Za-z0-9._-]", glob, maxsplit=1)[0]
    for each in (glob, f"{beginning}*"):
        with suppress(ValueError):
            _check_glob(each)
            if not set(each) & _EXPRESSION:
                return each
    return "hm*"


def check_names(prefixes: Collection[str], protected: Collection[str], globs: Collection[str]) -> None:
    """Raise :class:`ValueError` where one of these cannot be given."""
    for option, texts in (("prefix", prefixes), ("protect", protected), ("name", globs)):
        # The kernel allows commas in names, but who writes one means a list, and one name would protect nothing.
        for text in texts:
            if "," in text and "," in re.sub(_SET, "", text):
                raise ValueError(f"{text!a} is a list, not a name: give --{option} once for each")
    for prefix in prefixes:
        _check_prefix(prefix)
    for prefix in protected:
        if not _is_prefix(prefix):
            raise ValueError(f"{prefix!a} cannot be a protected prefix: {_PREFIX_SHAPE}")
    for glob in globs:
        _check_glob(glob)


class ChainPattern(NamedTuple):
    """Chains by globs of table and chain, of one family or of all (``None``)."""

    family: Family | None
    table: str
    chain: str

    def __str__(self) -> str:
        return f"{self.family}:{self.table}/{self.chain}" if self.family else f"{self.table}/{self.chain}"

    def matches(self, chain: Chain) -> bool:
        """Whether ``chain`` is one of these."""
        return (
            self.family in (None, chain.table.family)
            and bool(_matcher(self.table)(chain.table.name))
            and bool(_matcher(self.chain)(chain.name))
        )


ANY_CHAIN = ChainPattern(None, "*", "*")
ALL_CHAINS = str(ANY_CHAIN)


@lru_cache(maxsize=256)  # options are made again and again in a process that uses the Python API
def chain_pattern(text: str) -> ChainPattern:
    """The pattern that ``text`` writes as ``[FAMILY:]TABLE/CHAIN``; raises :class:`ValueError`."""
    before, colon, after = text.partition(":")
    family = _FAMILIES.get(before) if colon else None
    table, slash, chain = (after if family else text).partition("/")
    if not family and "/" in chain and table in _FAMILIES:
        raise ValueError(f"invalid chain {text!a}: a family is followed by a colon, as {table}:{chain}")
    if not (table and slash and chain) or not text.isprintable() or " " in text:
        raise ValueError(f"invalid chain {text!a}: give TABLE/CHAIN, as filter/FORWARD, 'raw/*' or 'inet:firewalld/*'")
    if colon and not family and "/" in after:
        raise ValueError(f"invalid chain {text!a}: families are ipv4, ipv6 and inet")
    pattern = ChainPattern(family, table, chain)
    for glob in (table, chain):
        _matcher(glob)
    return pattern


@lru_cache(maxsize=1024)  # few globs, many chains
def _matcher(glob: str) -> Callable[[str], object]:
    # Most patterns are names, and need no expression.
    return re.compile(expression_of(glob, "."), re.DOTALL).fullmatch if _WILD.search(glob) else glob.__eq__
