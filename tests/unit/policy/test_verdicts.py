"""What is decided about a rule, by its text and by who is alive."""

from __future__ import annotations

import string
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netsweep.model import COMMENT_MAX, Chain, Family, Finding, Interface, Life, Rule, Spec, Table, Verdict
from netsweep.policy.names import Names
from netsweep.policy.verdicts import Policy

OURS = Names(["hm"], ["ha"], ["hypeman-{role}-{name}"])
CHAIN = Chain(Table("memory", Family.IPV4, "filter"), "FORWARD")
ALIVE = frozenset({"hm1", "hm2", "eth0", "lo", "ha1"})
LEASED = {"hm5": "a running process (PID 1) holds a lease for hm5"}
DEVICES: Mapping[int, tuple[str, ...]] = {1: ("lo",), 3: ("hm1", "uplink"), 4: ("altname", "ha1"), 9: ()}

CUT = "x" * (COMMENT_MAX - 7)


def match(text: str | None) -> Interface | None:
    """An interface match as iptables writes it: ``hm1``, ``hm+``, ``!hm1``; ``~hm1`` stands behind an effect."""
    if text is None:
        return None
    name = text.lstrip("!~")
    return Interface(name.rstrip("+"), name.endswith("+"), text.startswith("!"), text.startswith("~"))


def rule(
    i: str | None = None,
    o: str | None = None,
    *comments: str,
    port: str | None = None,
    to: str | int | None = None,
    unreadable: bool = False,
) -> Rule:
    spec = Spec(
        in_interface=match(i),
        out_interface=match(o),
        comments=comments,
        physdev=(found,) if (found := match(port)) else (),
        devices=(to,) if isinstance(to, str) else (),
        device_indexes=(to,) if isinstance(to, int) else (),
        unreadable="matches interfaces by a set" if unreadable else None,
    )
    return Rule(CHAIN, 1, None, spec)


def judge(subject: Rule, *, alive: frozenset[str] = ALIVE, names: Names = OURS) -> Finding | None:
    """The verdict where exactly the interfaces ``alive`` exist; both ways to ask have to agree."""
    policy = Policy(names)
    asked, indexes = policy.asked([subject])
    life = Life(asked - alive, {index: DEVICES.get(index, ()) for index in indexes}, LEASED)
    findings = policy.judge([subject], life)
    assert policy.orphans([subject], life) == [f.rule for f in findings if f.verdict is Verdict.ORPHAN]
    return findings[0] if findings else None


def verdict(subject: Rule, names: Names = OURS) -> str | None:
    finding = judge(subject, names=names)
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
        (rule("~hmdead"), "hmdead", "a statement with an effect stands before its match of hmdead"),
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
    other = Names(["br-"], [], ["docker {name}"])
    assert verdict(rule("br-3fa", "eth0"), other) == "orphan"
    assert verdict(rule(None, None, "docker br-3fa"), other) == "orphan"
    assert verdict(rule(None, None, "hypeman-nat-hmdead"), other) is None
    assert verdict(rule("br-3fa", "ha1"), other) == "orphan"


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
    comments=st.lists(comments, max_size=2).map(tuple),
    physdev=st.lists(matches.filter(bool), max_size=1).map(tuple),
    devices=st.lists(names, max_size=1).map(tuple),
    device_indexes=st.lists(st.integers(1, 3), max_size=1).map(tuple),
    unreadable=st.none() | st.just("holds what is not known"),
)


def words_of(text: str) -> set[str]:
    return set(text.replace("_", " ").replace("-", " ").replace("\n", " ").split())


def hexadecimal(name: str) -> bool:
    return name.startswith("hm") and len(name) > 2 and set(name[2:]) <= set("0123456789abcdef")


@settings(max_examples=200)
@given(
    st.lists(specs, max_size=6),
    st.frozensets(names, max_size=6),
    st.frozensets(names, max_size=3),
    st.dictionaries(st.integers(1, 3), st.lists(names, max_size=2).map(tuple)),
)
def test_nothing_that_is_alive_or_in_doubt_is_an_orphan(
    specs: list[Spec], alive: frozenset[str], leased: frozenset[str], devices: dict[int, tuple[str, ...]]
) -> None:
    policy = Policy(OURS)
    rules = [Rule(CHAIN, number, None, spec) for number, spec in enumerate(specs, 1)]
    asked, _ = policy.asked(rules)
    life = Life(asked - alive, devices, dict.fromkeys(leased, "leased"))
    findings = policy.judge(rules, life)
    orphans = [finding.rule for finding in findings if finding.verdict is Verdict.ORPHAN]
    assert policy.orphans(rules, life) == orphans
    for _, _, _, spec, _ in orphans:
        matched = [each for each in (spec.in_interface, spec.out_interface) if each]
        everywhere = [*matched, *spec.physdev]
        received = [*spec.devices, *(name for index in spec.device_indexes for name in devices.get(index, ()))]
        assert not any(each.wildcard for each in everywhere)
        assert devices.keys() >= set(spec.device_indexes), "nobody asked which interface that is"
        assert not any(name.startswith("ha") for name in [each.name for each in everywhere] + received)
        assert all(len(each.encode("utf-8", "surrogateescape")) < COMMENT_MAX for each in spec.comments)
        # Whatever else it names is not alive.
        living = alive | leased
        spoken_of = {each.name for each in spec.physdev} | set(spec.devices)
        spoken_of |= {word for comment in spec.comments for word in words_of(comment)}
        assert not {name for name in spoken_of if hexadecimal(name)} & living
        assert not any(map(hexadecimal, [name for name in received if name not in spec.devices]))
        owned = [each for each in matched if hexadecimal(each.name)]
        gates = [each.name for each in owned if not each.negated and not each.after_effect]
        if any(not each.negated for each in owned):
            assert set(gates) - living, "every interface that it needs exists"
        else:
            assert not owned, "its only match of ours is negated"
            assert spec.unreadable is None
            formed = [comment for comment in spec.comments if comment.startswith("hypeman-")]
            assert any(hexadecimal(comment.rpartition("-")[2]) for comment in formed)


@given(specs)
def test_every_rule_with_a_verdict_holds_a_hint(spec: Spec) -> None:
    """Backends leave out the rules that hold none."""
    finding = judge(Rule(CHAIN, 1, None, spec))
    if not finding or finding.verdict is Verdict.WILDCARD:
        return  # wildcards may be shorter than a prefix
    told = [*map(str, (spec.in_interface, spec.out_interface, *spec.physdev)), *spec.comments, *spec.devices]
    text = "\n".join(told).encode("utf-8", "surrogateescape")
    assert any(needle in text for needle in OURS.prefilter)
