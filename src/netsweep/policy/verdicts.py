"""Specs and who is alive in, verdicts out.

A rule makes a tie, which depends on its text alone; the verdict on a tie depends on who is alive.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from netsweep.model import COMMENT_MAX, Chain, Finding, Interface, Life, Rule, Spec, Verdict
from netsweep.policy.names import Names
from netsweep.policy.patterns import ANY_CHAIN, ChainPattern

if TYPE_CHECKING:
    from netsweep.policy.forms import Form

MATCHES_NOTHING = "it matches an interface that is gone"
COMMENT_GONE = "the interface that its comment belongs to is gone"
_NEGATED = "it names {} only in a negated match, so it still matches live traffic"
_NEGATED_GONE = "it names {} only in a negated match, and that is gone: it matched live traffic"
_CUT_OFF = "one of its comments may be cut off, and may have named another interface"
_AFTER_EFFECT = "a statement with an effect comes before its match of {}"
_NO_FORM = "it names {}, but it has none of the forms that the profile has for this chain"


class Claims(NamedTuple):
    """What of the firewall belongs to one kind of software.

    Only that software writes to ``private`` chains: there a positive match of a name of ours is enough for a
    tie. In all others a rule has to have one of the ``forms`` for its chain, or a comment of a form of ours.
    """

    private: tuple[ChainPattern, ...] = (ANY_CHAIN,)
    forms: tuple[tuple[ChainPattern, tuple[Form, ...]], ...] = ()


class Claim(NamedTuple):
    """What :class:`Claims` say of one chain."""

    private: bool = True
    forms: tuple[Form, ...] = ()


class Tie(NamedTuple):
    """What a rule says about interfaces of ours, whichever of them exist.

    ``bridge`` is the name to report. The rule can match nothing once one of ``needed`` is gone; that
    any of ``named`` is alive keeps it. ``settled`` is the verdict where no name decides it alone, with
    its ``reason``. ``indexes`` are interfaces that it sends packets to, by number, and ``numbers`` those
    that it matches so. ``live_traffic`` as in :class:`~netsweep.model.Finding`.
    """

    bridge: str | None
    needed: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    settled: Verdict | None = None
    reason: str = COMMENT_GONE
    indexes: tuple[int, ...] = ()
    numbers: tuple[int, ...] = ()
    live_traffic: str | None = None


class Policy:
    """Gives verdicts on rules, for one set of names and claims.

    ``include_negated``: rules whose only tie is a negated match are orphans too once the name is gone, where
    they also restrict source, destination or ports; where claims have forms for such rules, only those. ``only``: names
    of interfaces; rules whose tie is to none of these get no verdict.
    """

    def __init__(
        self,
        names: Names,
        claims: Claims | None = None,
        *,
        include_negated: bool = False,
        only: Collection[str] | None = None,
    ) -> None:
        self.names = names
        self._only = None if only is None else frozenset(only)
        self._claims = claims or Claims()
        has_own = any(form.negated for _, forms in self._claims.forms for form in forms)
        self._include_negated = include_negated and not has_own
        self._by_chain: dict[Chain, Claim] = {}
        self._ties: dict[Claim, dict[Spec, Tie | None]] = {}

    def forget(self) -> None:
        """Give back the memory of what is known of rules."""
        self._ties.clear()

    def asked(self, rules: Iterable[Rule]) -> tuple[frozenset[str], frozenset[int]]:
        """The names, and the numbers, of interfaces that verdicts on ``rules`` depend on."""
        names: set[str] = set()
        indexes: set[int] = set()
        for _, tie in self._tied(rules):
            if tie:
                names.update(tie.needed, tie.named)
                indexes.update(tie.indexes, tie.numbers)
        return frozenset(names), frozenset(indexes)

    def judge(self, rules: Iterable[Rule], life: Life) -> list[Finding]:
        """The verdict on every rule that has a tie or nearly has one, in the order of ``rules``."""
        dead = life.gone.difference(life.leases)
        return [self._judge(rule, tie, dead, life) for rule, tie in self._tied(rules) if tie]

    def orphans(self, rules: Iterable[Rule], life: Life) -> list[Rule]:
        """Those of ``rules`` that are orphans, in their order."""
        dead = life.gone.difference(life.leases)
        return [rule for rule, tie in self._tied(rules) if self._is_orphan(tie, dead, life)]

    def found(self, orphans: Iterable[Rule]) -> list[Finding]:
        """The findings on rules that were orphans when they were looked at."""
        return [
            Finding(rule, Verdict.ORPHAN, tie.bridge, tie.reason, tie.live_traffic)
            for rule, tie in self._tied(orphans)
            if tie
        ]

    def owned(self, rules: Iterable[Rule]) -> int:
        """How many of ``rules`` name an interface of ours in a match or in a comment of a form of ours."""
        others = (Verdict.FOREIGN, Verdict.PROTECTED, Verdict.WILDCARD)
        return sum(
            tie is not None and tie.bridge is not None and tie.settled not in others for _, tie in self._tied(rules)
        )

    def _tied(self, rules: Iterable[Rule]) -> Iterator[tuple[Rule, Tie | None]]:
        chain: Chain | None = None
        claim, ties = Claim(), dict[Spec, Tie | None]()
        for rule in rules:
            # The rules of a chain come together.
            if rule.chain is not chain:
                chain = rule.chain
                claim = self._claim_on(chain)
                ties = self._ties.setdefault(claim, {})
            spec = rule.spec
            try:
                tie = ties[spec]
            except KeyError:
                tie = tie_of(spec, self.names, claim, include_negated=self._include_negated)
                tie = ties[spec] = tie if self._only is None or (tie and self._is_wanted(tie)) else None
            yield rule, tie

    def _is_wanted(self, tie: Tie) -> bool:
        names = tie.needed or (tie.bridge,)
        return self._only is None or not self._only.isdisjoint(names)

    def _claim_on(self, chain: Chain) -> Claim:
        if chain not in self._by_chain:
            private = any(pattern.matches(chain) for pattern in self._claims.private)
            forms = [form for pattern, forms in self._claims.forms if pattern.matches(chain) for form in forms]
            self._by_chain[chain] = Claim(private, tuple(forms))
        return self._by_chain[chain]

    def _is_orphan(self, tie: Tie | None, dead: frozenset[str], life: Life) -> bool:
        if tie is None or tie.settled or not dead.issuperset(tie.named):
            return False
        if tie.needed and dead.isdisjoint(tie.needed):
            return False
        return not (tie.indexes and self._receiver(tie, life))

    def _judge(self, rule: Rule, tie: Tie, dead: frozenset[str], life: Life) -> Finding:
        bridge, needed, named, settled, reason, _, numbers, live_traffic = tie
        if self._is_orphan(tie, dead, life):
            bridge = next((name for name in needed if name in dead), bridge)
            return Finding(rule, Verdict.ORPHAN, bridge, reason, live_traffic)
        if settled is Verdict.PROTECTED:
            return Finding(rule, settled, bridge, reason)
        kept = self._receiver(tie, life) or _alive(named, life)
        if not kept and dead.isdisjoint(needed):
            kept = _alive(needed, life)
        if kept:
            return Finding(rule, *kept)
        if numbers and settled is Verdict.UNDECIDABLE:
            reason = f"matches {' and '.join(_numbered(number, life) for number in dict.fromkeys(numbers))}"
        shown = live_traffic if settled is Verdict.NEGATED else None
        return Finding(rule, settled or Verdict.UNDECIDABLE, bridge, reason, shown)

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


def _numbered(number: int, life: Life) -> str:
    names = life.devices.get(number)
    shown = "is not known" if names is None else f"is {names[0]}" if names else "does not exist"
    return f"interface number {number}, which {shown}"


def tie_of(spec: Spec, names: Names, claim: Claim | None = None, *, include_negated: bool = False) -> Tie | None:
    """What a rule with this spec ties; ``None`` where it does not concern us."""
    claim = claim or Claim()
    matches = [each for each in (spec.in_interface, spec.out_interface) if each]
    interfaces = [*matches, *spec.physdev] if spec.physdev else matches
    if protected := _protected(spec, interfaces, names):
        return protected
    owned = [each for each in matches if not each.wildcard and names.owns(each.name)]
    needed = tuple([each.name for each in owned if not each.negated])
    negated = [each.name for each in owned if each.negated]
    owners = [owner for owner in map(names.owner, spec.comments) if owner]
    form, formed = _form_of(spec, names, claim)
    port = (formed,) if form and formed and not form.negated and not needed else ()  # a port of a bridge
    needed = needed or port
    bridge = next(iter((*needed, *negated, *owners)), None)
    goes = bool(form and form.negated) or (include_negated and claim.private and _restricts(spec))
    named = [*owners, *_named_elsewhere(spec, names)]
    if not needed:
        named += negated
    elsewhere = needed if named == list(needed) else tuple(dict.fromkeys(named))
    settled, reason = _settled(spec, interfaces, bridge, bool(needed), bool(negated) and not goes, names)
    if bridge and not settled and not (claim.private or owners or form):
        settled, reason = Verdict.FOREIGN, _NO_FORM.format(bridge)
    if settled is Verdict.WILDCARD:
        bridge = next(str(each).lstrip("!") for each in interfaces if each.wildcard)
    if not settled and (needed or negated):
        # Only a match that gates all of the rule makes it one that can match nothing.
        gates = tuple([each.name for each in owned if not each.negated and not each.after_effect]) or port
        if gates:
            needed, reason = gates, MATCHES_NOTHING
        elif any(each.after_effect for each in owned):
            settled, reason = Verdict.UNDECIDABLE, _AFTER_EFFECT.format(bridge)
        else:
            reason = _NEGATED_GONE.format(bridge)
    if not reason:
        return _by_other_means(spec)
    live_traffic = spec.target if negated and not needed else None
    return Tie(bridge, needed, elsewhere, settled, reason, spec.device_indexes, spec.by_number, live_traffic)


def _by_other_means(spec: Spec) -> Tie | None:
    """What a rule ties that names nothing of ours, but may mean it."""
    if not (spec.by_number or spec.by_set):
        return None
    return Tie(None, settled=Verdict.UNDECIDABLE, reason=spec.unreadable or "", numbers=spec.by_number)


def _form_of(spec: Spec, names: Names, claim: Claim) -> tuple[Form | None, str | None]:
    for form in claim.forms:
        if name := form.name_in(spec, names.owns):
            return form, name
    return None, None


def _restricts(spec: Spec) -> bool:
    """Whether a rule is about some source, destination or ports only, and so is no guard of an interface."""
    networks = (spec.source, spec.destination)
    return spec.ports or any(each is not None and not each.startswith("!") for each in networks)


def _named_elsewhere(spec: Spec, names: Names) -> list[str]:
    """The names of ours that a rule has elsewhere than in its ``-i`` and ``-o``."""
    named = [name for comment in spec.comments for name in names.mentioned(comment)]
    if spec.physdev:
        named += [each.name for each in spec.physdev if not each.wildcard and names.owns(each.name)]
    if spec.devices:
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
            return f"{each.name} is not a name of ours{names.shape}"
    if any(map(names.resembles, spec.comments)):
        return "its comment does not have, as a whole, a form of ours"
    return None


def _may_be_cut_off(comment: str) -> bool:
    # iptables cuts longer comments off without a word. UTF-8 takes four bytes for a character at the most.
    return len(comment) > COMMENT_MAX // 4 and len(comment.encode("utf-8", "surrogateescape")) >= COMMENT_MAX
