"""Rules, live names and ownership in; verdicts out. No I/O."""

from __future__ import annotations

import enum
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple

from netsweep.errors import UsageError
from netsweep.rules import Interface, Rule

INTERFACE_NAME_MAX = 15
"""IFNAMSIZ (linux/if.h) without the closing NUL."""

COMMENT_MAX = 255
"""Bytes of the longest comment (XT_MAX_COMMENT_LEN, linux/netfilter/xt_comment.h). iptables cuts longer
ones off without a word."""

CLAIMS_MAX = 20_000
"""How many claims are kept for the next time: more than most sweeps delete, in 3 MB."""

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
    the name to report; ``names`` are all bridges of ours that the rule mentions anywhere; ``beginning``
    is one of them that may have been longer before the comment was cut off.
    """

    bridge: str | None
    names: tuple[str, ...] = ()
    settled: Verdict | None = None
    reason: str = ""
    beginning: str | None = None


class Live(NamedTuple):
    """Names of interfaces that exist; ``complete`` where there are no others than these."""

    names: Collection[str] = ()
    complete: bool = True


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
        self._protected_mention = re.compile(rf"(?:{_word_begins(protected)})[^\W_]*" if protected else r"(?!)").search

    @property
    def hints(self) -> tuple[bytes, ...]:
        """Byte strings one of which is in every rule that :meth:`claim` has an opinion on.

        Wildcards shorter than a prefix (``h+``) are the exception: they are in no list and stay.
        """
        return tuple(name.encode() for name in (*self.prefixes, *self.protected))

    def claim(self, rule: Rule) -> Claim | None:
        """Say what ``rule`` claims; ``None`` where it has nothing to do with us."""
        return self._claim(rule.in_interface, rule.out_interface, rule.ports, rule.comment or "", rule.opaque)

    def _claim(
        self,
        in_interface: Interface | None,
        out_interface: Interface | None,
        ports: tuple[Interface, ...],
        comment: str,
        opaque: str | None,
    ) -> Claim | None:
        interfaces = [i for i in (in_interface, out_interface, *ports) if i]
        bridges = [i for i in interfaces if self._is_bridge(i)]
        named = [i for i in bridges if i not in ports] if ports else bridges
        mentions = self._names_in(comment)
        own_mention = _own_mention(mentions)
        own_comment = own_mention.group() if own_mention else None
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
        names = tuple(dict.fromkeys([i.name for i in bridges] + [mention.group() for mention in mentions]))
        if own_comment is None and all(i.negated for i in named):
            return Claim(
                bridge,
                names,
                Verdict.NEGATED,
                f"names {bridge} only in a negated match, so it still matches live traffic",
            )
        if own_mention and _is_cut_off(own_mention):
            return Claim(bridge, names, beginning=own_comment)
        return _claim_of(bridge, names)

    def owns(self, rule: Rule) -> bool:
        """Say whether ``rule`` names a bridge of ours, as ``-i``, ``-o`` or at the end of its comment."""
        matched = any(i and self._is_bridge(i) for i in (rule.in_interface, rule.out_interface))
        return matched or _own_mention(self._names_in(rule.comment or "")) is not None

    def _names_in(self, comment: str) -> list[re.Match[str]]:
        return [mention for mention in self._mentions(comment) if len(mention.group()) <= INTERFACE_NAME_MAX]

    def _is_bridge(self, interface: Interface) -> bool:
        name, wildcard, _ = interface
        return self._is_name(name) is not None and not wildcard and len(name) <= INTERFACE_NAME_MAX

    def _overlaps(self, wildcard: str) -> bool:
        return any(p.startswith(wildcard) or wildcard.startswith(p) for p in (*self.prefixes, *self.protected))

    def _near_miss(self, interfaces: Iterable[Interface], comment: str) -> Claim | None:
        """Name the reason where a person who looks for a prefix would find this rule."""
        for i in interfaces:
            if self._is_bridge(i):
                reason = f"names {i.name} only as a port of a bridge, and has no comment of ours"
                return Claim(None, settled=Verdict.FOREIGN, reason=reason)
            if any(p in i.name for p in self.prefixes):
                return Claim(
                    None,
                    settled=Verdict.FOREIGN,
                    reason=f"{i.name} is no bridge of ours: ours are a prefix and hex digits",
                )
        if any(p in comment for p in self.prefixes):
            reason = "its comment does not end with the name of a bridge of ours, after something else"
            return Claim(None, settled=Verdict.FOREIGN, reason=reason)
        return None


@lru_cache(maxsize=1024)  # the rules of one bridge are alike, and there may be very many
def _claim_of(bridge: str, names: tuple[str, ...]) -> Claim:
    return Claim(bridge, names)


_BOUNDS = ("", "\0")
"""What is before the first and behind the last character of each of a rule's comments."""


def _own_mention(mentions: Sequence[re.Match[str]]) -> re.Match[str] | None:
    return next((mention for mention in reversed(mentions) if _ends_comment(mention)), None)


def _ends_comment(mention: re.Match[str]) -> bool:
    # A separator has to stand before the name: a comment that is nothing but a name is not ours.
    start, end, comment = mention.start(), mention.end(), mention.string
    return comment[end : end + 1] in _BOUNDS and start > 0 and comment[start - 1] != "\0"


def _is_cut_off(mention: re.Match[str]) -> bool:
    if mention.end() < COMMENT_MAX // 4:  # UTF-8 takes four bytes for a character at the most
        return False
    start = mention.string.rfind("\0", 0, mention.start()) + 1
    return len(mention.string[start : mention.end()].encode("utf-8", "surrogateescape")) >= COMMENT_MAX


def _word_begins(names: Iterable[str]) -> str:
    """A pattern for any of ``names`` that no letter or digit stands before.

    What stands before is looked at last: a search for the names themselves is many times faster.
    """
    escaped = map(re.escape, names)
    return "|".join(rf"{name}(?<![^\W_]{name})(?<![\udc80-\udcff]{name})" for name in escaped)


class Case:
    """Some rules, and what they say about our bridges; the verdicts depend on who is alive.

    ``all_names`` says whether that takes a list of all interfaces. Rules first, then interfaces: a
    bridge is older than its rules, so who is alive has to be found out after the rules were read.
    """

    def __init__(self, rules: Sequence[Rule], ownership: Ownership) -> None:
        self._rules = rules
        self._ownership = ownership
        self._few = len(rules) <= CLAIMS_MAX
        self._claims = list(map(ownership.claim, rules)) if self._few else None
        self.all_names = not self._few or any(claim and claim.beginning for claim in self._claims or ())
        self._last: tuple[tuple[frozenset[str], ...], list[Finding]] | None = None

    @cached_property
    def names(self) -> frozenset[str]:
        """All bridges that the verdicts depend on."""
        return frozenset(name for _, claim in self._claimed() for name in claim.names)

    def decide(self, live: Live, leased: Collection[str]) -> list[Finding]:
        """The verdict on every rule that has to do with us, in the order of the rules.

        ``live``: which of :attr:`names` exist, or of all where :attr:`all_names` says so; ``leased``: the
        bridges whose lease names a running process.
        """
        if self.all_names:
            return [_judge(rule, claim, live, leased) for rule, claim in self._claimed()]
        # A sweep asks twice, without the lock and under it, and the answer is nearly always the same.
        known = (self.names.intersection(live.names), self.names.intersection(leased))
        if self._last is None or self._last[0] != known:
            self._last = known, [_judge(rule, claim, live, leased) for rule, claim in self._claimed()]
        return self._last[1]

    def _claimed(self) -> Iterator[tuple[Rule, Claim]]:
        claims = map(self._ownership.claim, self._rules) if self._claims is None else self._claims
        return ((rule, claim) for rule, claim in zip(self._rules, claims, strict=True) if claim)


def _judge(rule: Rule, claim: Claim, live: Live, leased: Collection[str]) -> Finding:
    bridge, names, settled, reason, beginning = claim
    for name in names:
        if name in live.names:
            return Finding(rule, Verdict.LIVE, name, f"{name} exists")
    for name in names:
        if name in leased:
            return Finding(rule, Verdict.LEASED, name, f"a running process holds a lease for {name}")
    if settled:
        return Finding(rule, settled, bridge, reason)
    if beginning and (unclear := _longer_name(beginning, live, leased)):
        return Finding(rule, Verdict.LIVE, bridge, unclear)
    return Finding(rule, Verdict.ORPHAN, bridge, _GONE if len(names) == 1 else _ALL_GONE)


def _longer_name(beginning: str, live: Live, leased: Collection[str]) -> str | None:
    for name in (*live.names, *leased):
        if name.startswith(beginning):
            return f"its comment may be cut off and have named {name}, which is alive"
    return None if live.complete else "its comment may be cut off, and interfaces came and went while they were listed"


_GONE = "bridge is gone"
_ALL_GONE = "all bridges it names are gone"
