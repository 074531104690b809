"""What is decided about a rule, by its text and by who is alive."""

from __future__ import annotations

import string
from collections.abc import Mapping
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netsweep.model import COMMENT_MAX, Chain, Family, Finding, Interface, Life, Rule, Spec, Table, Verdict
from netsweep.policy.forms import form_of
from netsweep.policy.names import Names
from netsweep.policy.patterns import chain_pattern
from netsweep.policy.verdicts import Claims, Policy

OURS = Names(["hm"], ["ha"], ["hypeman-{role}-{name}"])
CHAIN = Chain(Table("nft", Family.IPV4, "filter"), "FORWARD")
ALIVE = frozenset({"hm1", "hm2", "eth0", "lo", "ha1"})
LEASED = {"hm5": "a running process (PID 1) holds a lease for hm5"}
DEVICES: Mapping[int, tuple[str, ...]] = {1: ("lo",), 3: ("hm1", "uplink"), 4: ("altname", "ha1"), 9: ()}

CUT = "x" * (COMMENT_MAX - 7)


def match(text: str | None) -> Interface | None:
    """An interface match as iptables writes it: ``hm1``, ``hm+``, ``!hm1``; ``~hm1`` stands behind an effect."""
    if text is None:
        return None
    name = text.lstrip("!~")
    signs = text.removesuffix(name)
    return Interface(name.rstrip("+"), name.endswith("+"), "!" in signs, "~" in signs)


def rule(
    i: str | None = None,
    o: str | None = None,
    *comments: str,
    port: str | None = None,
    to: str | int | None = None,
    unreadable: bool = False,
    chain: Chain = CHAIN,
    **more: Any,
) -> Rule:
    spec = Spec(
        in_interface=match(i),
        out_interface=match(o),
        comments=comments,
        physdev=(found,) if (found := match(port)) else (),
        devices=(to,) if isinstance(to, str) else (),
        device_indexes=(to,) if isinstance(to, int) else (),
        unreadable="matches interfaces by a set" if unreadable else None,
        **more,
    )
    return Rule(chain, 1, None, spec)


def judge(subject: Rule, policy: Policy | None = None) -> Finding | None:
    """The verdict where exactly the interfaces in ``ALIVE`` exist; all ways to ask have to agree."""
    policy = policy or Policy(OURS)
    asked, indexes = policy.asked([subject])
    life = Life(asked - ALIVE, {index: DEVICES.get(index, ()) for index in indexes}, LEASED)
    findings = policy.judge([subject], life)
    orphans = [finding for finding in findings if finding.verdict is Verdict.ORPHAN]
    assert policy.orphans([subject], life) == [finding.rule for finding in orphans]
    assert [(f.rule, f.reason, f.live_traffic) for f in policy.found(policy.orphans([subject], life))] == [
        (f.rule, f.reason, f.live_traffic) for f in orphans
    ]
    return findings[0] if findings else None


def verdict(subject: Rule, policy: Policy | None = None) -> str | None:
    finding = judge(subject, policy)
    return finding.verdict.value if finding else None


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        # What the test harness leaves behind.
        (rule("hmdead", "eth0", "hypeman-fwd-out-hmdead"), "orphan"),
        (rule("eth0", "hmdead", "hypeman-fwd-in-hmdead"), "orphan"),
        (rule(None, "eth0", "hypeman-nat-hmdead"), "orphan"),
        (rule("hmdead", None, "hypeman-gateway-hmdead"), "orphan"),
        (rule(None, None, "hypeman-input-hmdead"), "orphan"),
        (rule("hmdead", "eth0"), "orphan"),
        (rule("eth0", "hmdead"), "orphan"),
        (rule("hmdead", "eth0", "any remark"), "orphan"),
        # It can match nothing as soon as one of its interfaces is gone.
        (rule("hmdead", "hmbee"), "orphan"),
        (rule("hm1", "hmdead"), "orphan"),
        (rule("hmdead", "hm1"), "orphan"),
        (rule("hmdead", "hm5"), "orphan"),
        (rule("hmdead", "!hm1"), "orphan"),
        (rule("hmdead", "!hmbee"), "orphan"),
        (rule("hm1", "hm2"), "live"),
        (rule("hm1", "hm5"), "live"),
        (rule("hm1", "!hmdead"), "live"),
        (rule("hm5", "eth0"), "leased"),
        (rule(None, "eth0", "hypeman-nat-hm5"), "leased"),
        (rule(None, "eth0", "hypeman-nat-hm1"), "live"),
        # An owned name anywhere in a comment that is alive keeps the rule.
        (rule("hmdead", "eth0", "hypeman-fwd-out-hm1"), "live"),
        (rule("hmdead", "eth0", "hm1 was here"), "live"),
        (rule("hmdead", "eth0", "moved to hm5, ask me"), "leased"),
        (rule("hmdead", "hm1", "hm2"), "live"),
        (rule("hmdead", "eth0", "hmbee was here"), "orphan"),
        (rule(None, None, "hypeman-nat-hmdead", "hypeman-nat-hm1"), "live"),
        (rule(None, None, "hypeman-nat-hmdead", "see hm1"), "live"),
        (rule(None, None, "hypeman-hm1-hmdead"), "live"),
        (rule("hm1", "eth0", "hypeman-fwd-out-hmdead"), "live"),
        # A comment is a tie only as a whole.
        (rule(None, None, "first", "hypeman-nat-hmdead"), "orphan"),
        (rule(None, None, "hypeman-nat-hmdead", "last"), "orphan"),
        (rule(None, "eth0", "keep guests off hmdead"), "foreign"),
        (rule(None, None, "hypeman nat hmdead"), "foreign"),
        (rule(None, None, "_hmdead"), "foreign"),
        (rule(None, None, "hmdead"), "foreign"),
        (rule(None, None, "hypeman-nat-hmdead "), "foreign"),
        (rule(None, None, "hypeman-nat-hmdead-old"), "foreign"),
        (rule(None, None, "first", "hmdead"), "foreign"),
        (rule(None, None, "on hm1"), "live"),
        # Whole names of prefix and hex digits only.
        (rule("hmvpn0", "eth0"), "foreign"),
        (rule("xhm12", "eth0"), "foreign"),
        (rule("hm", "eth0"), "foreign"),
        (rule("hmDEAD", "eth0"), "foreign"),
        (rule("hmdead\n", "eth0"), "foreign"),
        (rule("hm0123456789abcd", "eth0"), "foreign"),
        (rule(None, None, "hypeman-nat-hm0123456789abc"), "orphan"),
        (rule(None, None, "hypeman-nat-hm0123456789abcd"), "foreign"),
        (rule("docker0", "eth0"), None),
        (rule(), None),
        (rule(None, None, ""), None),
        (rule(None, None, "nothing to see"), None),
        (rule(unreadable=True), None),
        # Protected names, in a match, a target or a form.
        (rule("ha1", "eth0"), "protected"),
        (rule("hmdead", "ha99"), "protected"),
        (rule("hmdead", "!ha99"), "protected"),
        (rule("ha-uplink", "hmdead"), "protected"),
        (rule("hmdead", port="ha1"), "protected"),
        (rule("hmdead", to="ha1"), "protected"),
        (rule("hmdead", "eth0", "hypeman-fwd-out-ha12"), "protected"),
        (rule(None, None, "hypeman-nat-ha12"), "protected"),
        (rule(None, None, "hypeman-nat-hmdead", "hypeman-nat-ha12"), "protected"),
        (rule("hm1", "ha1"), "protected"),
        # English words are no names.
        (rule("hmdead", "eth0", "web tier has moved"), "orphan"),
        (rule("hmdead", "eth0", "traffic to haproxy"), "orphan"),
        (rule("hmdead", "eth0", "ha12 was here"), "orphan"),
        (rule(None, None, "has moved"), None),
        # Wildcards.
        (rule("hm+"), "wildcard"),
        (rule("h+"), "wildcard"),
        (rule("+"), "wildcard"),
        (rule("hmdea+"), "wildcard"),
        (rule("!hm+"), "wildcard"),
        (rule("hmdead", "eth+"), "wildcard"),
        (rule("hm+", None, "hypeman-nat-hmdead"), "wildcard"),
        (rule("hmdead", port="hm+"), "wildcard"),
        (rule("eth+", None, "hypeman-nat-hmdead"), "wildcard"),
        (rule("ha+"), "wildcard"),
        (rule("eth+"), None),
        # A negated match, whatever the comment.
        (rule(None, "!hmdead"), "negated"),
        (rule("!hmdead", "eth0"), "negated"),
        (rule("!hmdead", "!hmbee"), "negated"),
        (rule("!hmdead", None, "some other remark"), "negated"),
        (rule("!hmdead", None, "hypeman-nat-hmdead"), "negated"),
        (rule("!hmdead", None, "admin UI only over hmdead"), "negated"),
        (rule("!hmdead", unreadable=True), "negated"),
        (rule(None, "!hm1"), "live"),
        (rule(None, "!hm5"), "leased"),
        (rule("!hmdead", None, "hypeman-nat-hm1"), "live"),
        # Ports of bridges veto; they tie nothing and hide no tie.
        (rule(port="hmdead"), "foreign"),
        (rule(port="hm1"), "live"),
        (rule("hmdead", port="hmdead"), "orphan"),
        (rule("hmdead", port="hmbee"), "orphan"),
        (rule("hmdead", port="!hmbee"), "orphan"),
        (rule("hmdead", port="veth0"), "orphan"),
        (rule("hmdead", port="hm1"), "live"),
        (rule("hmdead", port="!hm1"), "live"),
        (rule("hmdead", port="hm5"), "leased"),
        (rule("hm1", port="hmdead"), "live"),
        (rule(None, None, "hypeman-nat-hmdead", port="hm1"), "live"),
        (rule(None, None, "hypeman-nat-hmdead", port="hmbee"), "orphan"),
        # What it sends packets to.
        (rule("hmdead", to="eth0"), "orphan"),
        (rule("hmdead", to="hmbee"), "orphan"),
        (rule("hmdead", to="hm1"), "live"),
        (rule("hmdead", to="hm5"), "leased"),
        (rule("hmdead", to=1), "orphan"),
        (rule("hmdead", to=9), "orphan"),
        (rule("hmdead", to=3), "live"),
        (rule("hmdead", to=4), "protected"),
        (rule(None, None, "hypeman-nat-hmdead", to="hm1"), "live"),
        (rule(None, None, "hypeman-nat-hmdead", to=3), "live"),
        (rule("docker0", to="hmdead"), None),
        # What cannot be read matters where only the comment ties.
        (rule("hmdead", unreadable=True), "orphan"),
        (rule(None, None, "hypeman-nat-hmdead", unreadable=True), "undecidable"),
        (rule("docker0", "eth0", "hypeman-nat-hmdead", unreadable=True), "undecidable"),
        (rule(None, None, "hypeman-nat-hm1", unreadable=True), "live"),
        (rule("docker0", None, "on hmdead", unreadable=True), "foreign"),
        # A match gates only what stands behind it.
        (rule("~hmdead"), "undecidable"),
        (rule("~hmdead", None, "hypeman-nat-hmdead"), "undecidable"),
        (rule("~hmdead", "hmbee"), "orphan"),
        (rule("~hmdead", "~hmbee"), "undecidable"),
        (rule("~hmdead", "hm1"), "live"),
        (rule("hmdead", "~hm1"), "orphan"),
        (rule("~hm1"), "live"),
        (rule("hmdead", "~eth0"), "orphan"),
        # A comment that may be cut off, wherever it stands.
        (rule("hmdead", "eth0", f"{CUT}-hmdead"), "undecidable"),
        (rule("hmdead", "eth0", f"{CUT} remark"), "undecidable"),
        (rule("hmdead", "eth0", f"{CUT[1:]} remark"), "orphan"),
        (rule("hmdead", None, "\udcff" * COMMENT_MAX), "undecidable"),
        (rule("hmdead", None, "\xe9" * 127 + "x"), "undecidable"),
        (rule("hmdead", None, "\u20ac" * 85), "undecidable"),
        (rule("hmdead", None, "\N{GRINNING FACE}" * 63 + "\udcf0\udc9f\udc98"), "undecidable"),
        (rule("hmdead", None, "\xe9" * 127), "orphan"),
        (rule(None, None, "hypeman-nat-hmdead", f"{CUT} remark"), "undecidable"),
        (rule("hm1", None, f"{CUT} remark"), "live"),
        (rule("hmdead", None, f"{CUT[4:]} hm1 remark"), "live"),
        (rule("docker0", None, f"{CUT}-hmdead"), "foreign"),
        (rule("docker0", None, f"{CUT} remark"), None),
    ],
)
def test_verdicts(subject: Rule, expected: str | None) -> None:
    finding = judge(subject)
    assert (finding and finding.verdict.value) == expected
    if finding:
        assert finding.reason
        assert finding.rule is subject


@pytest.mark.parametrize(
    ("subject", "bridge", "reason"),
    [
        (rule("hmdead"), "hmdead", "it matches an interface that is gone"),
        (rule("hm1", "hmdead"), "hmdead", "it matches an interface that is gone"),
        (rule(None, None, "hypeman-nat-hmdead"), "hmdead", "the interface that its comment belongs to is gone"),
        (rule("hm1"), "hm1", "hm1 exists"),
        (rule("hmdead", None, "see hm2"), "hm2", "hm2 exists"),
        (rule("hmdead", port="hm1"), "hm1", "hm1 exists"),
        (rule("hmdead", to=3), "hm1", "it sends packets to hm1, which exists"),
        (rule("hm5"), "hm5", LEASED["hm5"]),
        (rule("ha1"), "ha1", "it names ha1, which is protected"),
        (rule("hmdead", None, "hypeman-nat-ha12"), "ha12", "its comment belongs to ha12, which is protected"),
        (rule("!hm+"), "hm+", "it matches interfaces by wildcard !hm+"),
        (rule("!hmdead"), "hmdead", "it names hmdead only in a negated match, so it still matches live traffic"),
        (
            rule("!hmdead", None, "hypeman-nat-hmbee"),
            "hmdead",
            "it names hmdead only in a negated match, so it still matches live traffic",
        ),
        (rule("~hmdead"), "hmdead", "a statement with an effect comes before its match of hmdead"),
        (rule(None, None, "hypeman-nat-hmdead", unreadable=True), "hmdead", "matches interfaces by a set"),
        (rule("hmvpn0"), None, "hmvpn0 is not a name of ours: a prefix and hex digits"),
        (rule(port="hmdead"), None, "it names hmdead only as a port of a bridge"),
        (rule(None, None, "on hmdead"), None, "its comment does not have, as a whole, a form of ours"),
    ],
)
def test_a_finding_names_what_decided_it(subject: Rule, bridge: str | None, reason: str) -> None:
    finding = judge(subject)
    assert finding
    assert (finding.bridge, finding.reason) == (bridge, reason)


def test_the_interface_that_a_comment_belongs_to_counts_where_it_is_no_word_of_its_own() -> None:
    glued = Policy(Names(["hm"], [], ["net{name}"]))
    assert [verdict(rule(None, None, text), glued) for text in ("nethm1", "nethm5", "nethmdead")] == [
        "live",
        "leased",
        "orphan",
    ]


def test_a_name_that_was_not_asked_about_may_be_alive() -> None:
    policy = Policy(OURS)
    for subject in (rule("hmdead"), rule(None, None, "hypeman-nat-hmdead"), rule("hmbee", None, "hmdead")):
        assert policy.judge([subject], Life(gone=frozenset({"hmbee"})))[0].verdict is Verdict.LIVE


def test_every_copy_of_a_rule_is_an_orphan() -> None:
    copies = [rule("hmdead", "eth0")._replace(position=number) for number in (1, 2, 3)]
    assert Policy(OURS).orphans(copies, Life(gone=frozenset({"hmdead"}))) == copies


def test_what_is_remembered_of_a_rule_is_not_taken_for_another() -> None:
    """A policy keeps what specs tie by their identity, which Python gives out again."""
    policy = Policy(OURS)
    life = Life(gone=frozenset({"hmdead"}))
    for _ in range(100):
        assert policy.orphans([rule("hmdead")], life)
        assert not policy.orphans([rule("hm1")], life)


def test_only_names_that_matter_are_asked_about() -> None:
    rules = [rule("docker0"), rule("ha1"), rule("hmvpn0"), rule("eth+"), rule(None, "!ha1", "hypeman-nat-ha2")]
    assert Policy(OURS).asked(rules) == (frozenset(), frozenset())
    rules += [rule("hm1", "hm2", "on hm3", port="hm4", to="hm5"), rule("hm6", to=7)]
    assert Policy(OURS).asked(rules) == (frozenset(f"hm{number}" for number in range(1, 7)), frozenset({7}))


def test_rules_of_ours_are_counted_dead_or_alive() -> None:
    ours = [rule("hmdead"), rule("hm1"), rule(None, None, "hypeman-nat-hm1"), rule("!hm1"), rule("~hm1")]
    others = [rule("docker0"), rule("ha1"), rule("hm+"), rule("hmvpn0"), rule(None, None, "on hm1")]
    assert Policy(OURS).owned([*ours, *others]) == len(ours)


def test_another_profile_has_other_names_and_forms() -> None:
    other = Policy(Names(["br-"], [], ["docker {name}"]))
    assert verdict(rule("br-3fa", "eth0"), other) == "orphan"
    assert verdict(rule(None, None, "docker br-3fa"), other) == "orphan"
    assert verdict(rule(None, None, "hypeman-nat-hmdead"), other) is None
    assert verdict(rule("br-3fa", "ha1"), other) == "orphan"


# For some names only.


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        (rule("hmbee", "eth0"), "orphan"),
        (rule("eth0", "hmbee", "any remark"), "orphan"),
        (rule(None, None, "hypeman-input-hmbee"), "orphan"),
        (rule(None, "eth0", "first", "hypeman-nat-hmbee"), "orphan"),
        # One interface that is gone is enough, and it may be either.
        (rule("hmbee", "hm2"), "orphan"),
        (rule("hm2", "hmbee"), "orphan"),
        (rule("hmbee", "hmdead"), "orphan"),
        (rule("hmdead", "hmbee"), "orphan"),
        # The names of others that live keep a rule.
        (rule("hmbee", "eth0", "hypeman-fwd-out-hm1"), "live"),
        (rule("hmbee", "eth0", "moved to hm5, ask me"), "leased"),
        (rule(None, None, "hypeman-nat-hmbee", "see hm2"), "live"),
        (rule("!hmbee", "eth0"), "negated"),
        (rule("hmbee", "eth0", to="hm1"), "live"),
        # What matches another network is that network's, whatever its comment says.
        (rule("hm2", "eth0", "hypeman-fwd-in-hmbee"), None),
        (rule("hmdead", "eth0", "hypeman-fwd-in-hmbee"), None),
        (rule("hmdead", "eth0", "hmbee was here"), None),
        (rule("hmdead", "eth0"), None),
        (rule("hm1", "eth0"), None),
        (rule(None, None, "hypeman-input-hmdead"), None),
        (rule("!hmdead", "eth0"), None),
        (rule("hmbeef", "eth0"), None),
        (rule("ha1", "eth0"), None),
        (rule("hm+", "eth0"), None),
        (rule("hmvpn0", "eth0"), None),
        (rule(None, None, "keep guests off hmbee"), None),
        (rule(None, None, by_number=(3,)), None),
        (rule("eth0"), None),
    ],
)
def test_verdicts_for_some_names_only(subject: Rule, expected: str | None) -> None:
    assert verdict(subject, Policy(OURS, only=["hmbee"])) == expected
    assert verdict(subject, Policy(OURS, only=["hmbee", "hmface"])) == expected
    assert verdict(subject, Policy(OURS, only=[])) is None


def test_for_some_names_only_nobody_asks_about_rules_of_others() -> None:
    policy = Policy(OURS, only={"hmbee"})
    others = [rule("hm2", "eth0", "hypeman-fwd-in-hmbee"), rule("hmdead", "eth0", to=3)]
    assert policy.asked(others) == (frozenset(), frozenset())
    assert policy.owned([*others, rule("hmbee", "hm2")]) == 1
    assert policy.asked([rule("hmbee", "hm2")])[0] == {"hmbee", "hm2"}


def test_a_name_that_looks_like_a_glob_is_only_itself() -> None:
    policy = Policy(Names([], [], [], ["vm*", "vm[[]1]"]), only=["vm*", "vm[1]"])
    assert [verdict(rule(name), policy) for name in ("vm*", "vm[1]", "vm1", "vmx")] == ["orphan", "orphan", None, None]


# Private and shared chains.

NET = "10.200.1.0/24"
PRIVATE = CHAIN._replace(name="JOBS")
POSTROUTING = Chain(CHAIN.table._replace(name="nat"), "POSTROUTING")
INPUT = CHAIN._replace(name="INPUT")
FORMS = {
    "filter/FORWARD": [
        "-i {name} -j ACCEPT",
        "-i {name} ! -o {name} -j ACCEPT",
        "-i {name} -o {other} -j DROP",
        "-m physdev --physdev-in {name} -j ACCEPT",
        "-m physdev --physdev-in {name} ! -o {other} -j DROP",
        "-i {name} -m comment --comment x -j RETURN",
    ],
    "nat/POSTROUTING": ["-s {net} ! -o {name} -j MASQUERADE", "-d {net} -i {other} ! -o {name} -j SNAT"],
}
CLAIMS = Claims(
    (chain_pattern("filter/JOB*"), chain_pattern("inet:jobs/*")),
    tuple((chain_pattern(chain), tuple(map(form_of, forms))) for chain, forms in FORMS.items()),
)
WITHOUT_NEGATED = Claims(CLAIMS.private, CLAIMS.forms[:1])
PORT: dict[str, Any] = {"matches": ("physdev",), "target": "ACCEPT"}


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        # Nobody else writes to a private chain.
        (rule("hmdead", chain=PRIVATE), "orphan"),
        (rule("hmdead", chain=PRIVATE, source=NET, matches=("limit",), target="LOG"), "orphan"),
        (rule("hm1", "hmdead", chain=PRIVATE), "orphan"),
        (rule("hm1", chain=PRIVATE), "live"),
        (rule(None, None, "hypeman-nat-hmdead", chain=PRIVATE), "orphan"),
        (rule(None, "!hmdead", chain=PRIVATE, source=NET), "negated"),
        (rule(port="hmdead", chain=PRIVATE, **PORT), "foreign"),
        (rule("hmdead", chain=Chain(Table("nft", Family.INET, "jobs"), "any")), "orphan"),
        (rule("hmdead", chain=Chain(Table("nft", Family.IPV4, "jobs"), "any")), "foreign"),
        # In a shared one the whole rule has to have a form.
        (rule("hmdead", target="ACCEPT"), "orphan"),
        (rule("hmdead", "!hmdead", target="ACCEPT"), "orphan"),
        (rule("hmdead", "hm1", target="DROP"), "orphan"),
        (rule("hm1", "hmdead", target="DROP"), "orphan"),
        (rule("hmdead", None, "any remark", target="RETURN"), "orphan"),
        (rule("hm1", target="ACCEPT"), "live"),
        (rule("hm5", target="ACCEPT"), "leased"),
        (rule("hmdead", target="DROP"), "foreign"),
        (rule("hmdead"), "foreign"),
        (rule("hmdead", "!hm1", target="ACCEPT"), "foreign"),
        (rule("hmdead", "hmbee", target="ACCEPT"), "foreign"),
        (rule("hmdead", target="ACCEPT", source=NET), "foreign"),
        (rule("hmdead", target="ACCEPT", protocol="tcp"), "foreign"),
        (rule("hmdead", target="ACCEPT", ports=True), "foreign"),
        (rule("hmdead", target="ACCEPT", matches=("limit",)), "foreign"),
        (rule("hmdead", target="ACCEPT", matches=("-g",)), "foreign"),
        (rule("hmdead", None, "any remark", target="ACCEPT"), "foreign"),
        (rule("hmdead", target="ACCEPT", unreadable=True), "foreign"),
        (rule("~hmdead", target="ACCEPT"), "foreign"),
        (rule("hmdead", target="ACCEPT", port="hmbee"), "foreign"),
        (rule("hmdead", target="ACCEPT", to="eth0"), "foreign"),
        (rule("hmdead", target="ACCEPT", by_number=(9,)), "foreign"),
        (rule("eth0", "hmdead", target="ACCEPT"), "foreign"),
        # A form is of its chain only.
        (rule("hmdead", target="ACCEPT", chain=INPUT), "foreign"),
        (rule("hmdead", target="ACCEPT", chain=POSTROUTING), "foreign"),
        # Life is only ever added by doubt, in rules of others too.
        (rule("hm1", target="DROP"), "live"),
        (rule("hmdead", None, "see hm1", target="RETURN"), "live"),
        (rule("hmdead", None, "see hm5", target="RETURN"), "leased"),
        # A comment of a form of ours is as good.
        (rule("hmdead", None, "hypeman-x-hmdead", target="DROP"), "orphan"),
        (rule("hmdead", None, "hypeman-x-hmdead", target="DROP", chain=INPUT), "orphan"),
        (rule(None, None, "hypeman-x-hmdead", target="DROP", chain=INPUT), "orphan"),
        (rule("hmdead", None, "hypeman-x-hm1", target="DROP", chain=INPUT), "live"),
        (rule(None, None, "on hmdead", chain=INPUT), "foreign"),
        # What stays whatever has a form.
        (rule("hmdead", "ha1", target="DROP"), "protected"),
        (rule("hmdead", None, "hypeman-x-ha1", target="RETURN"), "protected"),
        (rule("hmdead", "eth+", target="DROP"), "wildcard"),
        (rule("hm+", target="ACCEPT"), "wildcard"),
        (rule("hmdead", None, f"{CUT} remark", target="RETURN"), "undecidable"),
        # Ports of bridges.
        (rule(port="hmdead", **PORT), "orphan"),
        (rule(port="hm1", **PORT), "live"),
        (rule(port="hm5", **PORT), "leased"),
        (rule(port="!hmdead", **PORT), "foreign"),
        (rule(port="hmdead", matches=("physdev",), target="DROP"), "foreign"),
        (rule(port="hmdead", chain=INPUT, **PORT), "foreign"),
        (rule(None, "!hm1", port="hmdead", matches=("physdev",), target="DROP"), "orphan"),
        (rule(None, "!hmdead", port="hm1", matches=("physdev",), target="DROP"), "live"),
        # Negated matches that have a form.
        (rule(None, "!hmdead", source=NET, target="MASQUERADE", chain=POSTROUTING), "orphan"),
        (rule("eth0", "!hmdead", destination=NET, target="SNAT", chain=POSTROUTING), "orphan"),
        (rule("hmbee", "!hmdead", destination=NET, target="SNAT", chain=POSTROUTING), "orphan"),
        (rule("hm1", "!hmdead", destination=NET, target="SNAT", chain=POSTROUTING), "live"),
        (rule(None, "!hm1", source=NET, target="MASQUERADE", chain=POSTROUTING), "live"),
        (rule(None, "!hm5", source=NET, target="MASQUERADE", chain=POSTROUTING), "leased"),
        (rule(None, "!hmdead", source=NET, target="ACCEPT", chain=POSTROUTING), "negated"),
        (rule(None, "!hmdead", target="MASQUERADE", chain=POSTROUTING), "negated"),
        (rule(None, "!hmdead", source=f"!{NET}", target="MASQUERADE", chain=POSTROUTING), "negated"),
        (rule(None, "!hmdead", "hypeman-nat-hmdead", source=NET, target="MASQUERADE", chain=POSTROUTING), "negated"),
        (rule(None, "!hmdead", source=NET, target="MASQUERADE"), "negated"),
        (rule(None, "!ha1", source=NET, target="MASQUERADE", chain=POSTROUTING), "protected"),
        (rule(None, "!~hmdead", source=NET, target="MASQUERADE", chain=POSTROUTING), "negated"),
    ],
)
@pytest.mark.parametrize("include_negated", [False, True])
def test_verdicts_where_chains_are_private_or_shared(
    subject: Rule, expected: str | None, include_negated: bool
) -> None:
    """The forms for negated matches are all that goes of these, whatever is asked for."""
    assert verdict(subject, Policy(OURS, CLAIMS, include_negated=include_negated)) == expected


def test_where_nothing_is_claimed_only_comments_tie() -> None:
    nothing = Policy(OURS, Claims((), ()))
    assert verdict(rule("hmdead"), nothing) == "foreign"
    assert verdict(rule("hmdead", None, "hypeman-x-hmdead"), nothing) == "orphan"


@pytest.mark.parametrize(
    ("subject", "bridge", "reason"),
    [
        (rule("hmdead", target="ACCEPT"), "hmdead", "it matches an interface that is gone"),
        (rule(port="hmdead", **PORT), "hmdead", "it matches an interface that is gone"),
        (
            rule(None, "!hmdead", source=NET, target="MASQUERADE", chain=POSTROUTING),
            "hmdead",
            "it names hmdead only in a negated match, and that is gone: it matched live traffic",
        ),
        (
            rule("hmdead", target="DROP"),
            "hmdead",
            "it names hmdead, but it has none of the forms that the profile has for this chain",
        ),
        (rule(port="hmdead", chain=INPUT), None, "it names hmdead only as a port of a bridge"),
    ],
)
def test_a_finding_in_a_shared_chain_says_what_it_lacks(subject: Rule, bridge: str | None, reason: str) -> None:
    finding = judge(subject, Policy(OURS, CLAIMS))
    assert finding
    assert (finding.bridge, finding.reason) == (bridge, reason)


# Negated matches.

RESTRICTED: list[dict[str, Any]] = [
    {"source": NET},
    {"destination": NET},
    {"ports": True, "protocol": "tcp", "matches": ("tcp",)},
    {"source": f"!{NET}", "destination": NET},
]
BARE: list[dict[str, Any]] = [
    {},
    {"source": f"!{NET}"},
    {"destination": f"!{NET}"},
    {"protocol": "tcp"},
    {"matches": ("conntrack",)},
    {"comments": ("hypeman-nat-hmdead",)},
]


def negated(i: str | None, o: str | None, **more: Any) -> Rule:
    return rule(i, o, *more.pop("comments", ()), target="DROP", **more)


@pytest.mark.parametrize("more", RESTRICTED)
def test_a_negated_match_goes_where_it_is_asked_for_and_restricts(more: dict[str, Any]) -> None:
    asked_for = Policy(OURS, include_negated=True)
    for subject in (negated("!hmdead", None, **more), negated("eth0", "!hmdead", **more)):
        assert verdict(subject) == "negated"
        finding = judge(subject, asked_for)
        assert finding
        assert (finding.verdict.value, finding.bridge, finding.live_traffic) == ("orphan", "hmdead", "DROP")
    remarked = negated("!hmdead", None, comments=("hypeman-nat-hmdead",), **more)
    assert verdict(remarked, asked_for) == "orphan"


@pytest.mark.parametrize("more", BARE)
def test_a_guard_of_an_interface_stays_whatever_is_asked_for(more: dict[str, Any]) -> None:
    finding = judge(negated("!hmdead", None, **more), Policy(OURS, include_negated=True))
    assert finding
    assert (finding.verdict.value, finding.live_traffic) == ("negated", "DROP")


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        (negated("!hm1", None, source=NET), "live"),
        (negated("!hm5", None, source=NET), "leased"),
        (negated("!ha1", None, source=NET), "protected"),
        (negated("!hm+", None, source=NET), "wildcard"),
        (negated("!hmdead", "eth+", source=NET), "wildcard"),
        (negated("!hmvpn0", None, source=NET), "foreign"),
        (negated("!eth0", None, source=NET), None),
        # All names in negated matches have to be gone.
        (negated("!hmdead", "!hmbee", source=NET), "orphan"),
        (negated("!hmdead", "!hm1", source=NET), "live"),
        (negated("!hm1", "!hmdead", source=NET), "live"),
        (negated("!hmdead", "!hm5", source=NET), "leased"),
        # A positive match decides alone.
        (negated("hm1", "!hmdead", source=NET), "live"),
        (negated("hm5", "!hmdead", source=NET), "leased"),
        (negated("hmbee", "!hm1", source=NET), "orphan"),
        # Doubt is as everywhere.
        (negated("!hmdead", None, source=NET, unreadable=True), "undecidable"),
        (negated("!hmdead", None, source=NET, unreadable=True, by_number=(9,)), "undecidable"),
        (negated("!~hmdead", None, source=NET), "undecidable"),
        (negated("!~hm1", None, source=NET), "live"),
        (negated("!hmdead", "!~hmbee", source=NET), "undecidable"),
        (negated("!hmdead", "~hmbee", source=NET), "undecidable"),
        (negated("!hmdead", None, source=NET, comments=(f"{CUT} remark",)), "undecidable"),
        (negated("!hmdead", None, source=NET, comments=("see hm1",)), "live"),
        (negated("!hmdead", None, source=NET, comments=("see hmbee",)), "orphan"),
        (negated("!hmdead", None, source=NET, port="hm1"), "live"),
        (negated("!hmdead", None, source=NET, to="hm1"), "live"),
        (negated("!hmdead", None, source=NET, to=3), "live"),
        (negated("!hmdead", None, source=NET, to=9), "orphan"),
    ],
)
def test_verdicts_where_negated_matches_are_asked_for(subject: Rule, expected: str | None) -> None:
    assert verdict(subject, Policy(OURS, include_negated=True)) == expected


def test_negated_matches_that_are_asked_for_go_from_private_chains_only() -> None:
    policy = Policy(OURS, WITHOUT_NEGATED, include_negated=True)
    assert verdict(negated("!hmdead", None, source=NET, chain=PRIVATE), policy) == "orphan"
    assert verdict(negated("!hmdead", None, source=NET), policy) == "negated"
    # A profile that has forms for such rules means these, and no others.
    policy = Policy(OURS, CLAIMS, include_negated=True)
    assert verdict(negated("!hmdead", None, source=NET, chain=PRIVATE), policy) == "negated"


def test_only_of_a_rule_that_matched_live_traffic_it_is_told_what_it_did() -> None:
    for policy in (Policy(OURS), Policy(OURS, include_negated=True), Policy(OURS, CLAIMS)):
        for subject in (
            rule("hmdead", target="ACCEPT"),
            rule("hmdead", "!hmdead", target="ACCEPT"),
            rule("hm1", "!hmdead", source=NET, target="ACCEPT"),
            rule("!hm1", source=NET, target="ACCEPT"),
            rule("!ha1", source=NET, target="ACCEPT"),
            rule("!~hmdead", source=NET, target="ACCEPT", unreadable=True, chain=INPUT, to="hm1"),
            rule(None, None, "hypeman-x-hmdead", target="ACCEPT"),
        ):
            finding = judge(subject, policy)
            assert finding
            assert finding.live_traffic is None


# By number, and by set.


@pytest.mark.parametrize(
    ("subject", "verdict", "reason"),
    [
        ({"by_number": (3,)}, "undecidable", "matches interface number 3, which is hm1"),
        ({"by_number": (9,)}, "undecidable", "matches interface number 9, which does not exist"),
        (
            {"by_number": (9, 1, 9)},
            "undecidable",
            "matches interface number 9, which does not exist and interface number 1, which is lo",
        ),
        ({}, "undecidable", "matches interfaces by a set"),
        (
            {"by_number": (9,), "comments": ("hypeman-x-hmdead",)},
            "undecidable",
            "matches interface number 9, which does not exist",
        ),
        ({"comments": ("hypeman-x-hmdead",)}, "undecidable", "matches interfaces by a set"),
        ({"comments": ("hypeman-x-hm1",)}, "live", "hm1 exists"),
        # It can match nothing, whatever else it matches.
        ({"by_number": (3,), "i": "hmdead"}, "orphan", "it matches an interface that is gone"),
        ({"i": "hmdead"}, "orphan", "it matches an interface that is gone"),
        ({"by_number": (3,), "i": "hm1"}, "live", "hm1 exists"),
        ({"by_number": (9,), "i": "ha1"}, "protected", "it names ha1, which is protected"),
    ],
)
def test_a_rule_by_number_or_set_is_shown_with_what_can_be_told(
    subject: dict[str, Any], verdict: str, reason: str
) -> None:
    i, said, numbers = subject.get("i"), subject.get("comments", ()), subject.get("by_number", ())
    found = judge(rule(i, None, *said, unreadable=True, by_number=numbers, by_set=not numbers))
    assert found
    assert (found.verdict.value, found.reason) == (verdict, reason)


def test_a_number_that_nobody_asked_about_is_not_known() -> None:
    (found,) = Policy(OURS).judge([rule(unreadable=True, by_number=(3,))], Life())
    assert (found.bridge, found.reason) == (None, "matches interface number 3, which is not known")


def test_numbers_of_interfaces_are_asked_about_and_are_no_names_of_ours() -> None:
    rules = [rule(unreadable=True, by_number=(3, 9)), rule(unreadable=True, by_set=True)]
    assert Policy(OURS).asked(rules) == (frozenset(), frozenset({3, 9}))
    assert Policy(OURS).owned(rules) == 0


def test_rules_of_ours_are_those_with_a_form_where_chains_are_shared() -> None:
    ours = [
        rule("hmdead", target="ACCEPT"),
        rule("hm1", target="ACCEPT"),
        rule(port="hm1", **PORT),
        rule("hm1", chain=PRIVATE),
        rule(None, "!hm1", source=NET, target="MASQUERADE", chain=POSTROUTING),
        rule(None, None, "hypeman-x-hm1", chain=INPUT),
    ]
    others = [rule("hm1", target="DROP"), rule("hm1", target="ACCEPT", chain=INPUT), rule(port="hm1")]
    policy = Policy(OURS, CLAIMS)
    assert [policy.owned([each]) for each in (*ours, *others)] == [1] * len(ours) + [0] * len(others)
    assert policy.owned([*ours, *others]) == len(ours)


def test_what_a_spec_ties_depends_on_its_chain() -> None:
    shared = rule("hmdead")
    private = shared._replace(chain=PRIVATE)
    policy = Policy(OURS, CLAIMS)
    life = Life(gone=frozenset({"hmdead"}))
    for _ in range(2):
        assert policy.orphans([shared, private, shared, private], life) == [private, private]
        policy.forget()


# Anything at all.

names = st.one_of(
    st.from_regex(r"hm[0-9a-f]{1,3}", fullmatch=True),
    st.from_regex(r"ha[0-9a-f]{1,2}", fullmatch=True),
    st.sampled_from(["hm1", "hm2", "hm5", "eth0", "hmvpn0", "xhm12", "hm"]),
    st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=6),
)
matches = st.none() | st.builds(Interface, names, st.booleans(), st.booleans(), st.booleans())
comments = st.one_of(
    st.builds("hypeman-{}-{}".format, st.sampled_from(["nat", "fwd-out", "x"]), names),
    st.lists(names | st.text(max_size=3), max_size=4).flatmap(
        lambda words: st.sampled_from(["-", " ", "", "_", "\n"]).map(lambda separator: separator.join(words))
    ),
    st.just(f"{CUT}-hm1234"),
)
specs = st.builds(
    Spec,
    in_interface=matches,
    out_interface=matches,
    source=st.sampled_from([None, NET, f"!{NET}"]),
    destination=st.sampled_from([None, None, NET]),
    protocol=st.sampled_from([None, None, "tcp"]),
    ports=st.sampled_from([False, False, True]),
    matches=st.sampled_from([(), (), ("physdev",)]),
    target=st.sampled_from(["ACCEPT", "DROP", "MASQUERADE"]),
    comments=st.lists(comments, max_size=2).map(tuple),
    physdev=st.lists(matches.filter(bool), max_size=1).map(tuple),
    devices=st.lists(names, max_size=1).map(tuple),
    device_indexes=st.lists(st.integers(1, 3), max_size=1).map(tuple),
    by_number=st.sampled_from([(), (), (2,)]),
    by_set=st.sampled_from([False, False, True]),
    unreadable=st.none() | st.just("holds what is not known"),
)


few = st.sampled_from(["hm1", "hm2", "eth0"])
rarely = st.sampled_from([False] * 7 + [True])


@st.composite
def plain(draw: st.DrawFn) -> Spec:
    """A rule about few names and with little else, so that it may be an orphan."""
    i, o = (draw(st.none() | st.builds(Interface, few, st.just(False), st.booleans(), rarely)) for _ in range(2))
    port = draw(st.none() | st.builds(Interface, few, st.just(False), rarely)) if draw(rarely) or not (i or o) else None
    return Spec(
        in_interface=i,
        out_interface=i._replace(negated=True) if i and draw(rarely) else o,
        source=draw(st.sampled_from([None, NET, f"!{NET}"])),
        ports=draw(rarely),
        matches=("physdev",) if port else (),
        physdev=(port,) if port else (),
        target=draw(st.sampled_from(["ACCEPT", "DROP", "MASQUERADE"])),
        comments=draw(st.sampled_from([(), (), ("see hm1",), ("hypeman-x-hm2",)])),
        devices=("hm1",) if draw(rarely) else (),
    )


chains = st.sampled_from([CHAIN, PRIVATE, INPUT, POSTROUTING])
policies = st.sampled_from([None, CLAIMS, WITHOUT_NEGATED, Claims((), ())])


def words_of(text: str) -> set[str]:
    return set(text.replace("_", " ").replace("-", " ").replace("\n", " ").split())


def hexadecimal(name: str) -> bool:
    return name.startswith("hm") and len(name) > 2 and set(name[2:]) <= set("0123456789abcdef")


def is_private(chain: Chain, claims: Claims | None) -> bool:
    return claims is None or (claims.private != () and chain == PRIVATE)


def has_form(spec: Spec, chain: Chain, claims: Claims | None, *, negated: bool) -> bool:
    """Whether a rule has a form for its chain in which the name is matched positively, or negated only."""
    forms = [form for pattern, forms in (claims.forms if claims else ()) if pattern.matches(chain) for form in forms]
    return any(form.name_in(spec, hexadecimal) for form in forms if form.negated is negated)


@settings(max_examples=200)
@given(
    st.lists(st.tuples(chains, plain() | specs), max_size=6),
    policies,
    st.booleans(),
    st.frozensets(few) | st.frozensets(names, max_size=6),
    st.just(frozenset()) | st.frozensets(names, max_size=3),
    st.dictionaries(st.integers(1, 3), st.lists(names, max_size=2).map(tuple)),
)
def test_nothing_that_is_alive_or_in_doubt_is_an_orphan(
    specs: list[tuple[Chain, Spec]],
    claims: Claims | None,
    include_negated: bool,
    alive: frozenset[str],
    leased: frozenset[str],
    devices: dict[int, tuple[str, ...]],
) -> None:
    policy = Policy(OURS, claims, include_negated=include_negated)
    rules = [Rule(chain, number, None, spec) for number, (chain, spec) in enumerate(specs, 1)]
    asked, _ = policy.asked(rules)
    life = Life(asked - alive, devices, dict.fromkeys(leased, "leased"))
    findings = policy.judge(rules, life)
    orphans = [finding.rule for finding in findings if finding.verdict is Verdict.ORPHAN]
    assert policy.orphans(rules, life) == orphans
    living = alive | leased
    for chain, _, _, spec, _ in orphans:
        matched = [each for each in (spec.in_interface, spec.out_interface) if each]
        everywhere = [*matched, *spec.physdev]
        received = [*spec.devices, *(name for index in spec.device_indexes for name in devices.get(index, ()))]
        assert not any(each.wildcard for each in everywhere)
        assert devices.keys() >= set(spec.device_indexes), "nobody asked which interface that is"
        assert not any(name.startswith("ha") for name in [each.name for each in everywhere] + received)
        assert all(len(each.encode("utf-8", "surrogateescape")) < COMMENT_MAX for each in spec.comments)
        # Whatever else it names is not alive.
        spoken_of = {each.name for each in spec.physdev} | set(spec.devices)
        spoken_of |= {word for comment in spec.comments for word in words_of(comment)}
        assert not {name for name in spoken_of if hexadecimal(name)} & living
        assert not any(map(hexadecimal, [name for name in received if name not in spec.devices]))
        owned = [each for each in matched if hexadecimal(each.name)]
        gates = [each.name for each in owned if not each.negated and not each.after_effect]
        formed = [comment for comment in spec.comments if comment.startswith("hypeman-")]
        owners = [comment for comment in formed if hexadecimal(comment.rpartition("-")[2])]
        positive = has_form(spec, chain, claims, negated=False)
        private = is_private(chain, claims)
        if any(not each.negated for each in owned):
            assert set(gates) - living, "every interface that it needs exists"
            assert private or owners or positive
        elif positive:
            assert spec.physdev, "what has a form matches a name of ours"
        elif owned:
            assert not {each.name for each in owned} & living, "a match of a name that lives is live traffic"
            assert not any(each.after_effect for each in owned)
            assert spec.unreadable is None
            assert spec.ports or any(each and each[0] != "!" for each in (spec.source, spec.destination)), "a guard"
            general = include_negated and private and claims is not CLAIMS
            assert general or has_form(spec, chain, claims, negated=True)
        else:
            assert spec.unreadable is None
            assert owners


@pytest.mark.parametrize("include_negated", [False, True])
@pytest.mark.parametrize("claims", [None, CLAIMS, WITHOUT_NEGATED, Claims((), ())])
def test_what_is_gone_goes_and_nothing_else(claims: Claims | None, include_negated: bool) -> None:
    policy = Policy(OURS, claims, include_negated=include_negated)
    interfaces = (None, "hm1", "!hm1", "!hm2", "!eth0")
    more = [*RESTRICTED[::2], *BARE[:2]]
    living = ({"hm1"}, {"hm2"}, {"hm1", "hm2"}, set[str]())
    for i, o, restricting, chain, alive in product(
        interfaces, interfaces, more, (CHAIN, PRIVATE, INPUT, POSTROUTING), living
    ):
        subject = rule(i, o, chain=chain, target="MASQUERADE", **restricting)
        positive = {each for each in (i, o) if each == "hm1"}
        negated = {each[1:] for each in (i, o) if each and each.startswith("!hm")}
        if positive:
            goes = is_private(chain, claims) and not positive & alive
        else:
            asked_for = include_negated and is_private(chain, claims) and claims is not CLAIMS
            goes = (asked_for and restricting in RESTRICTED) or has_form(subject.spec, chain, claims, negated=True)
            goes = goes and bool(negated) and not negated & alive
        life = Life(policy.asked([subject])[0] - alive)
        assert policy.orphans([subject], life) == [subject] * goes
        for finding in policy.judge([subject], life):
            shown = not positive and finding.verdict in (Verdict.ORPHAN, Verdict.NEGATED)
            assert finding.live_traffic == ("MASQUERADE" if shown else None)


@given(specs)
def test_every_rule_with_a_verdict_holds_a_hint(spec: Spec) -> None:
    """Backends leave out the rules that hold none."""
    finding = judge(Rule(CHAIN, 1, None, spec))
    if not finding or finding.verdict is Verdict.WILDCARD or spec.by_number or spec.by_set:
        return  # wildcards may be shorter than a prefix; for numbers and sets backends have hints of their own
    told = [*map(str, (spec.in_interface, spec.out_interface, *spec.physdev)), *spec.comments, *spec.devices]
    text = "\n".join(told).encode("utf-8", "surrogateescape")
    assert any(needle in text for needle in OURS.prefilter)


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from(["hm", "be-", "br-hm", "a.", "fwd-"]), min_size=1, max_size=3, unique=True),
    st.sampled_from(["hypeman-{role}-{name}", "{name} {role}", "({name})", "{name}"]),
    st.text("abehmrfwd-.1", max_size=12),
)
def test_the_interface_that_a_comment_belongs_to_keeps_its_rule_while_it_exists(
    prefixes: list[str], form: str, text: str
) -> None:
    """Whatever else is found in the comment, as be-be-1 in hypeman-x-be-be-1."""
    names = Names(prefixes, [], [form], ["wg-*", "wg-a-*"])
    for name in (f"{prefixes[0]}1", "wg-a-1"):
        comment = form.replace("{role}", "x-be").replace("{name}", text + name)
        if owner := names.owner(comment):
            subject = rule(None, None, comment)
            asked, _ = Policy(names).asked([subject])
            assert owner in asked
            assert Policy(names).orphans([subject], Life(gone=asked - {owner})) == []
