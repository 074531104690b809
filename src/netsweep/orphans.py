"""Rules, live names and ownership in; verdicts out. No I/O."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Collection, Iterable
from functools import lru_cache
from typing import NamedTuple

from netsweep.errors import UsageError
from netsweep.rules import Interface, Rule

INTERFACE_NAME_MAX = 15
"""IFNAMSIZ (linux/if.h) without the closing NUL."""

CLAIMS_MAX = 10_000
"""How many claims are remembered: more than most sweeps delete, in 3 MB."""

_PREFIX = re.compile(rf"[A-Za-z0-9._-]{{1,{INTERFACE_NAME_MAX - 1}}}")

# A letter or digit of any script. A byte that is no UTF-8 (a surrogate escape) may have been a
# letter in the encoding it was written in, so it counts as one: in doubt the rule is not ours.
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


class Claim(NamedTuple):
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
        self._is_name = re.compile(rf"(?:{'|'.join(map(re.escape, prefixes))})[0-9a-f]+").fullmatch
        self._mentions = re.compile(rf"(?:{_word_begins(prefixes)})[0-9a-f]+{_NO_WORD_AFTER}").finditer
        self._protected_mention = re.compile(
            rf"(?:{_word_begins(protected)})(?:[0-9a-f]*{_NO_WORD_AFTER}|[^\W_]*\Z)" if protected else r"(?!)"
        ).search
        self._known_claim = lru_cache(maxsize=CLAIMS_MAX)(self._claim)

    @property
    def hints(self) -> tuple[bytes, ...]:
        """Byte strings one of which is in every rule that :meth:`claim` has an opinion on.

        Wildcards shorter than a prefix (``h+``) are the exception: they are in no list and stay.
        """
        return tuple(name.encode() for name in (*self.prefixes, *self.protected))

    def claim(self, rule: Rule, *, remember: bool = False) -> Claim | None:
        """Say what ``rule`` claims; ``None`` where it has nothing to do with us.

        ``remember``: for the next time, as a sweep decides without the lock, and again under it.
        """
        claim = self._known_claim if remember else self._claim
        return claim(rule.in_interface, rule.out_interface, rule.comment or "", rule.opaque)

    def _claim(
        self, in_interface: Interface | None, out_interface: Interface | None, comment: str, opaque: str | None
    ) -> Claim | None:
        interfaces = [i for i in (in_interface, out_interface) if i]
        named = [i for i in interfaces if not i.wildcard and self._is_name(i.name)]
        mentions = list(self._mentions(comment))
        # A separator has to stand before the name: a comment that is nothing but a name is not ours.
        at_end = mentions and mentions[-1].end() == len(comment) and mentions[-1].start() > 0
        own_comment = mentions[-1].group() if at_end else None
        matched = next((i.name for i in named if not i.negated), None)
        bridge = matched or own_comment or (named[0].name if named else None)

        for i in interfaces:
            if not i.wildcard and i.name.startswith(self.protected or ("\0",)):
                return Claim(i.name, settled=Verdict.PROTECTED, reason=f"names {i.name}, which is protected")
        if mention := self._protected_mention(comment):
            name = mention.group()
            return Claim(name, settled=Verdict.PROTECTED, reason=f"its comment names {name}, which is protected")
        for i in interfaces:
            if i.wildcard and (bridge or self._overlaps(i.name)):
                return Claim(str(i).lstrip("!"), settled=Verdict.WILDCARD, reason=f"matches interfaces by wildcard {i}")
        if bridge is None:
            return self._near_miss(interfaces, comment)
        if opaque:
            return Claim(bridge, settled=Verdict.WILDCARD, reason=opaque)
        names = tuple(dict.fromkeys([i.name for i in named] + [mention.group() for mention in mentions]))
        if own_comment is None and all(i.negated for i in named):
            return Claim(
                bridge,
                names,
                Verdict.NEGATED,
                f"names {bridge} only in a negated match, so it still matches live traffic",
            )
        return Claim(bridge, names)

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


def _word_begins(names: Iterable[str]) -> str:
    """A pattern for any of ``names`` that no letter or digit stands before.

    What stands before is looked at last: a search for the names themselves is many times faster.
    """
    escaped = map(re.escape, names)
    return "|".join(rf"{name}(?<![^\W_]{name})(?<![\udc80-\udcff]{name})" for name in escaped)


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
    rules = list(rules)
    few = len(rules) <= CLAIMS_MAX
    live: Collection[str] | None = None
    findings = []
    for rule in rules:
        claim = ownership.claim(rule, remember=few)
        if claim is None:
            continue
        if live is None and claim.names:
            live = live_names()
        findings.append(_judge(rule, claim, live or (), leased))
    return findings


def _judge(rule: Rule, claim: Claim, live: Collection[str], leased: Collection[str]) -> Finding:
    bridge, names, settled, reason = claim
    for name in names:
        if name in live:
            return Finding(rule, Verdict.LIVE, name, f"{name} exists")
    for name in names:
        if name in leased:
            return Finding(rule, Verdict.LEASED, name, f"a running process holds a lease for {name}")
    if settled:
        return Finding(rule, settled, bridge, reason)
    return Finding(rule, Verdict.ORPHAN, bridge, _GONE if len(names) == 1 else _ALL_GONE)


_GONE = "bridge is gone"
_ALL_GONE = "all bridges it names are gone"
