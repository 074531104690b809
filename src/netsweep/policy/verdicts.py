"""Specs and who is alive in, verdicts out.

A rule makes a tie, which depends on its text alone; the verdict on a tie depends on who is alive.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from netsweep.model import COMMENT_MAX, Finding, Interface, Life, Rule, Spec, Verdict
from netsweep.policy.names import Names

MATCHES_NOTHING = "it matches an interface that is gone"
COMMENT_GONE = "the interface that its comment belongs to is gone"
_NEGATED = "it names {} only in a negated match, so it still matches live traffic"
_CUT_OFF = "a comment of it may be cut off, and may have named another interface"
_AFTER_EFFECT = "a statement with an effect stands before its match of {}"


class Tie(NamedTuple):
    """What a rule says about interfaces of ours, whichever of them exist.

    ``bridge`` is the name to report. The rule can match nothing once one of ``needed`` is gone; that
    any of ``named`` is alive keeps it. ``settled`` is the verdict where no name decides it alone, with
    its ``reason``. ``indexes`` are interfaces that it sends packets to, by number.
    """

    bridge: str | None
    needed: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    settled: Verdict | None = None
    reason: str = COMMENT_GONE
    indexes: tuple[int, ...] = ()


class Policy:
    """Gives verdicts on rules, for one set of names."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self._ties: dict[Spec, Tie | None] = {}

    def forget(self) -> None:
        """Give back the memory of what is known of rules."""
        self._ties.clear()

    def asked(self, rules: Iterable[Rule]) -> tuple[frozenset[str], frozenset[int]]:
        """The names, and the numbers, of interfaces that verdicts on ``rules`` depend on."""
        names: set[str] = set()
        indexes: set[int] = set()
        for rule in rules:
            if tie := self._tie_of(rule.spec):
                names.update(tie.needed, tie.named)
                indexes.update(tie.indexes)
        return frozenset(names), frozenset(indexes)

    def judge(self, rules: Iterable[Rule], life: Life) -> list[Finding]:
        """The verdict on every rule that has a tie or nearly has one, in the order of ``rules``."""
        dead = life.gone.difference(life.leases)
        found = ((rule, self._tie_of(rule.spec)) for rule in rules)
        return [Finding(rule, *self._judge(tie, dead, life)) for rule, tie in found if tie]

    def orphans(self, rules: Iterable[Rule], life: Life) -> list[Rule]:
        """Those of ``rules`` that are orphans, in their order."""
        dead = life.gone.difference(life.leases)
        return [rule for rule in rules if self._is_orphan(self._tie_of(rule.spec), dead, life)]

    def why(self, rule: Rule) -> tuple[str | None, str]:
        """The interface that made ``rule`` an orphan, and the reason."""
        tie = self._tie_of(rule.spec)
        return (tie.bridge, tie.reason) if tie else (None, "")

    def owned(self, rules: Iterable[Rule]) -> int:
        """How many of ``rules`` name an interface of ours in a match or in a comment of a form of ours."""
        ties = (self._tie_of(rule.spec) for rule in rules)
        others = (Verdict.FOREIGN, Verdict.PROTECTED, Verdict.WILDCARD)
        return sum(tie is not None and tie.settled not in others for tie in ties)

    def _tie_of(self, spec: Spec) -> Tie | None:
        try:
            return self._ties[spec]
        except KeyError:
            tie = self._ties[spec] = tie_of(spec, self.names)
            return tie

    def _is_orphan(self, tie: Tie | None, dead: frozenset[str], life: Life) -> bool:
        if tie is None or tie.settled or not dead.issuperset(tie.named):
            return False
        if tie.needed and dead.isdisjoint(tie.needed):
            return False
        return not (tie.indexes and self._receiver(tie, life))

    def _judge(self, tie: Tie, dead: frozenset[str], life: Life) -> tuple[Verdict, str | None, str]:
        bridge, needed, named, settled, reason, _ = tie
        if self._is_orphan(tie, dead, life):
            return Verdict.ORPHAN, next((name for name in needed if name in dead), bridge), reason
        if settled is Verdict.PROTECTED:
            return settled, bridge, reason
        kept = self._receiver(tie, life) or _alive(named, life)
        if not kept and dead.isdisjoint(needed):
            kept = _alive(needed, life)
        return kept or (settled or Verdict.UNDECIDABLE, bridge, reason)

    def _receiver(self, tie: Tie, life: Life) -> tuple[Verdict, str | None, str] | None:
        """Why an interface keeps the tie that its rule sends packets to by number."""
        if not life.devices.keys() >= set(tie.indexes):  # the rule changed since it was asked who is alive
            return Verdict.UNDECIDABLE, tie.bridge, "it sends packets to an interface that is not known"
        for name in [name for index in tie.indexes for name in life.devices.get(index, ())]:
            if self.names.protects(name):
                return Verdict.PROTECTED, name, f"it sends packets to {name}, which is protected"
            if self.names.owns(name):
                return Verdict.LIVE, name, f"it sends packets to {name}, which exists"
        return None


def _alive(names: Sequence[str], life: Life) -> tuple[Verdict, str, str] | None:
    for name in names:
        if name not in life.gone:
            return Verdict.LIVE, name, f"{name} exists"
    for name in names:
        if name in life.leases:
            return Verdict.LEASED, name, life.leases[name]
    return None


def tie_of(spec: Spec, names: Names) -> Tie | None:
    """What a rule with this spec ties; ``None`` where it does not concern us."""
    matches = [each for each in (spec.in_interface, spec.out_interface) if each]
    interfaces = [*matches, *spec.physdev] if spec.physdev else matches
    if protected := _protected(spec, interfaces, names):
        return protected
    owned = [each for each in matches if not each.wildcard and names.owns(each.name)]
    needed = tuple([each.name for each in owned if not each.negated])
    negated = [each.name for each in owned if each.negated]
    owners = [owner for owner in map(names.owner, spec.comments) if owner]
    bridge = next(iter((*needed, *negated, *owners)), None)
    named = _named_elsewhere(spec, names)
    if not needed:
        named += negated
    elsewhere = needed if named == list(needed) else tuple(dict.fromkeys(named))
    settled, reason = _settled(spec, interfaces, bridge, bool(needed), bool(negated), names)
    if settled is Verdict.WILDCARD:
        bridge = next(str(each).lstrip("!") for each in interfaces if each.wildcard)
    if needed and not settled:
        # Only a match that gates all of the rule makes it one that can match nothing.
        gates = tuple([each.name for each in owned if not each.negated and not each.after_effect])
        if gates == needed:
            reason = MATCHES_NOTHING
        elif gates:
            needed, reason = gates, MATCHES_NOTHING
        else:
            settled, reason = Verdict.UNDECIDABLE, _AFTER_EFFECT.format(needed[0])
    return Tie(bridge, needed, elsewhere, settled, reason, spec.device_indexes) if reason else None


def _named_elsewhere(spec: Spec, names: Names) -> list[str]:
    """The names of ours that stand in a rule otherwise than in its ``-i`` and ``-o``."""
    named = [name for comment in spec.comments for name in names.mentioned(comment)]
    named += [each.name for each in spec.physdev if not each.wildcard and names.owns(each.name)]
    named += filter(names.owns, spec.devices)
    return named


def _settled(
    spec: Spec, interfaces: Sequence[Interface], bridge: str | None, needed: bool, negated: bool, names: Names
) -> tuple[Verdict | None, str]:
    """The verdict that no name decides alone, and why; no reason where the rule does not concern us."""
    for each in interfaces:
        if each.wildcard and (bridge or names.overlaps(each)):
            return Verdict.WILDCARD, f"it matches interfaces by wildcard {each}"
    if bridge is None:
        reason = _near_miss(spec, interfaces, names)
        return Verdict.FOREIGN, reason or ""
    if negated and not needed:
        return Verdict.NEGATED, _NEGATED.format(bridge)
    if any(map(_may_be_cut_off, spec.comments)):
        return Verdict.UNDECIDABLE, _CUT_OFF
    if spec.unreadable and not needed:
        return Verdict.UNDECIDABLE, spec.unreadable
    return None, COMMENT_GONE


def _protected(spec: Spec, interfaces: Iterable[Interface], names: Names) -> Tie | None:
    for each in interfaces:
        if names.protects(each.name) and not each.wildcard:
            return _protected_by(each.name, "it names {}, which is protected")
    for name in spec.devices:
        if names.protects(name):
            return _protected_by(name, "it names {}, which is protected")
    for comment in spec.comments:
        if owner := names.protected_owner(comment):
            return _protected_by(owner, "its comment belongs to {}, which is protected")
    return None


def _protected_by(name: str, reason: str) -> Tie:
    return Tie(name, settled=Verdict.PROTECTED, reason=reason.format(name))


def _near_miss(spec: Spec, interfaces: Iterable[Interface], names: Names) -> str | None:
    """Why a rule that a person who looks for our prefixes would find is not ours."""
    for each in interfaces:
        if names.owns(each.name):
            return f"it names {each.name} only as a port of a bridge"
        if names.resembles(each.name):
            return f"{each.name} is not a name of ours: a prefix and hex digits"
    if any(map(names.resembles, spec.comments)):
        return "its comment does not have, as a whole, a form of ours"
    return None


def _may_be_cut_off(comment: str) -> bool:
    # iptables cuts longer comments off without a word. UTF-8 takes four bytes for a character at the most.
    return len(comment) > COMMENT_MAX // 4 and len(comment.encode("utf-8", "surrogateescape")) >= COMMENT_MAX
