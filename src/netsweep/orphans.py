"""Rules, live names and ownership in; verdicts out. No I/O."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from netsweep.errors import UsageError
from netsweep.rules import Interface, Rule

INTERFACE_NAME_MAX = 15
"""IFNAMSIZ (linux/if.h) without the closing NUL."""

_PREFIX = re.compile(rf"[A-Za-z0-9._-]{{1,{INTERFACE_NAME_MAX - 1}}}")

# A letter or digit of any script. A byte that is no UTF-8 (a surrogate escape) may have been a
# letter in the encoding it was written in, so it counts as one: in doubt the rule is not ours.
_NO_WORD_BEFORE = r"(?<![^\W_])(?<![\udc80-\udcff])"
_NO_WORD_AFTER = r"(?![^\W_])(?![\udc80-\udcff])"


class Verdict(str, enum.Enum):
    """What was decided about a rule. Only ``ORPHAN`` is ever deleted."""

    ORPHAN = "orphan"
    LIVE = "live"
    LEASED = "leased"
    PROTECTED = "protected"
    WILDCARD = "wildcard"
    NEGATED = "negated"
    FOREIGN = "foreign"


class Finding(NamedTuple):
    """A rule, what was decided about it, and why. ``bridge`` is the name that decided it."""

    rule: Rule
    verdict: Verdict
    bridge: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Claim:
    """What a rule says about our bridges, whoever is alive.

    ``settled`` is the verdict that no list of live names can change, with its reason; ``bridge`` is
    the name to report; ``names`` are all bridges of ours that the rule mentions anywhere.
    """

    bridge: str | None
    names: tuple[str, ...] = ()
    settled: Verdict | None = None
    reason: str = ""


class Ownership:
    """Which interface names are ours, and which must never be touched.

    ``prefixes``: a name is ours if it is one of these and hex digits, and nothing else.
    ``protected``: whatever begins with one of these stays.
    Raises :class:`UsageError` for prefixes that no interface name can have.
    """

    def __init__(self, prefixes: Collection[str], protected: Collection[str]) -> None:
        for kind, names in (("prefix", prefixes), ("protected prefix", protected)):
            for name in names:
                if not _PREFIX.fullmatch(name):
                    raise UsageError(
                        f"{name!a} is no {kind}: give 1 to {INTERFACE_NAME_MAX - 1} "
                        "letters, digits, dots, dashes or underscores, as hm"
                    )
        if not prefixes:
            raise UsageError("no prefix given: without one no rule is ours")
        for prefix in prefixes:
            if covering := [name for name in protected if prefix.startswith(name)]:
                raise UsageError(
                    f"prefix {prefix!r} is protected by {covering[0]!r}, so nothing would ever be "
                    "swept: change --prefix or --protect"
                )
        self.prefixes = tuple(prefixes)
        self.protected = tuple(protected)
        ours = rf"(?:{_any_of(prefixes)})[0-9a-f]+"
        self._name = re.compile(ours)
        # A separator has to stand before the name: a comment that is nothing but a name is not ours.
        self._at_end = re.compile(rf"(?s:(?<=.)){_NO_WORD_BEFORE}({ours})\Z")
        self._mentioned = re.compile(rf"{_NO_WORD_BEFORE}{ours}{_NO_WORD_AFTER}")
        self._protected_mention = re.compile(
            rf"{_NO_WORD_BEFORE}(?:{_any_of(protected)})(?:[0-9a-f]*{_NO_WORD_AFTER}|[^\W_]*\Z)"
            if protected
            else r"(?!)"
        )
        # Most rules name one bridge and nothing else: those of one bridge share their claim.
        self._plain: dict[str, Claim] = {}

    @property
    def hints(self) -> tuple[bytes, ...]:
        """Byte strings one of which is in every rule that :meth:`claim` has an opinion on.

        Wildcards shorter than a prefix (``h+``) are the exception: they are in no list and stay.
        """
        return tuple(name.encode() for name in (*self.prefixes, *self.protected))

    def claim(self, rule: Rule) -> Claim | None:
        """Say what ``rule`` claims; ``None`` where it has nothing to do with us."""
        interfaces = [i for i in (rule.in_interface, rule.out_interface) if i]
        comment = rule.comment or ""
        named = [i for i in interfaces if not i.wildcard and self._name.fullmatch(i.name)]
        at_end = self._at_end.search(comment)
        own_comment = at_end.group(1) if at_end else None
        matched = next((i.name for i in named if not i.negated), None)
        bridge = matched or own_comment or (named[0].name if named else None)

        for i in interfaces:
            if not i.wildcard and i.name.startswith(self.protected or ("\0",)):
                return Claim(i.name, settled=Verdict.PROTECTED, reason=f"names {i.name}, which is protected")
        if mention := self._protected_mention.search(comment):
            name = mention.group()
            return Claim(name, settled=Verdict.PROTECTED, reason=f"its comment names {name}, which is protected")
        for i in interfaces:
            if i.wildcard and (bridge or self._overlaps(i.name)):
                return Claim(str(i).lstrip("!"), settled=Verdict.WILDCARD, reason=f"matches interfaces by wildcard {i}")
        if bridge is None:
            return self._near_miss(interfaces, comment)
        if rule.opaque:
            return Claim(bridge, settled=Verdict.WILDCARD, reason=rule.opaque)
        names = tuple(dict.fromkeys([i.name for i in named] + self._mentioned.findall(comment)))
        if own_comment is None and all(i.negated for i in named):
            return Claim(
                bridge,
                names,
                Verdict.NEGATED,
                f"names {bridge} only in a negated match, so it still matches live traffic",
            )
        if names != (bridge,):
            return Claim(bridge, names)
        try:
            return self._plain[bridge]
        except KeyError:
            claim = self._plain[bridge] = Claim(bridge, names)
            return claim

    def _overlaps(self, wildcard: str) -> bool:
        return any(p.startswith(wildcard) or wildcard.startswith(p) for p in (*self.prefixes, *self.protected))

    def _near_miss(self, interfaces: Iterable[Interface], comment: str) -> Claim | None:
        """Name the reason where a person who looks for a prefix would find this rule."""
        for i in interfaces:
            if any(p in i.name for p in self.prefixes):
                return Claim(
                    None,
                    settled=Verdict.FOREIGN,
                    reason=f"{i.name} is no bridge of ours: ours are a prefix and hex digits",
                )
        if any(p in comment for p in self.prefixes):
            return Claim(
                None, settled=Verdict.FOREIGN, reason="its comment does not end with the name of a bridge of ours"
            )
        return None


def _any_of(names: Iterable[str]) -> str:
    return "|".join(map(re.escape, names))


def decide(
    rules: Iterable[Rule],
    ownership: Ownership,
    live_names: Callable[[], Collection[str]],
    leased: Collection[str],
) -> list[Finding]:
    """Give every rule that has to do with us its verdict, in the order of ``rules``.

    ``live_names`` returns the names of the interfaces that exist. It is called at most once, and
    only after all of ``rules`` have been taken in: rules first, then interfaces, because a bridge is
    older than its rules. ``leased`` are the bridges whose lease names a running process.
    """
    claimed = [(rule, claim) for rule in rules if (claim := ownership.claim(rule))]
    live: Collection[str] = ()
    if any(claim.settled in (None, Verdict.NEGATED) for _, claim in claimed):
        live = live_names()
    return [_judge(rule, claim, live, leased) for rule, claim in claimed]


def _judge(rule: Rule, claim: Claim, live: Collection[str], leased: Collection[str]) -> Finding:
    for name in claim.names:
        if name in live:
            return Finding(rule, Verdict.LIVE, name, f"{name} exists")
    for name in claim.names:
        if name in leased:
            return Finding(rule, Verdict.LEASED, name, f"a running process holds a lease for {name}")
    if claim.settled:
        return Finding(rule, claim.settled, claim.bridge, claim.reason)
    reason = "bridge is gone" if len(claim.names) == 1 else "all bridges it names are gone"
    return Finding(rule, Verdict.ORPHAN, claim.bridge, reason)
