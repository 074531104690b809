from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsweep.errors import UsageError
from netsweep.orphans import Finding, Live, Ownership, Verdict
from netsweep.rules import Interface, Rule
from tests.verdicts import decide

OURS = Ownership(["hm"], ["ha"])
LIVE = {"hm1", "hm2", "hmab12", "eth0", "lo", "ha1"}
LEASED = {"hm5"}


def match(text: str | None) -> Interface | None:
    """An interface match as iptables writes it: ``hm1``, ``hm+``, ``!hm1``."""
    if text is None:
        return None
    name = text.lstrip("!")
    return Interface(name.rstrip("+"), name.endswith("+"), text.startswith("!"))


def rule(
    i: str | None = None,
    o: str | None = None,
    comment: str | None = None,
    opaque: str | None = None,
    port: str | None = None,
) -> Rule:
    return Rule(
        *("fake", "filter", "FORWARD", 1),
        in_interface=match(i),
        out_interface=match(o),
        comment=comment,
        ports=(found,) if (found := match(port)) else (),
        opaque=opaque,
    )


def judge(subject: Rule, ownership: Ownership = OURS) -> Finding | None:
    findings = decide([subject], ownership, lambda *_: Live(LIVE), LEASED)
    return findings[0] if findings else None


def verdict(subject: Rule, ownership: Ownership = OURS) -> str | None:
    finding = judge(subject, ownership)
    return finding.verdict.value if finding else None


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        # what the test harness leaves behind
        (rule("hmdead", "eth0", "hypeman-fwd-out-hmdead"), "orphan"),
        (rule("eth0", "hmdead", "hypeman-fwd-in-hmdead"), "orphan"),
        (rule(None, "eth0", "hypeman-nat-hmdead"), "orphan"),
        (rule("hmdead", None, "hypeman-gateway-hmdead"), "orphan"),
        (rule(None, None, "hypeman-input-hmdead"), "orphan"),
        (rule("hmdead", "eth0"), "orphan"),
        (rule("eth0", "hmdead"), "orphan"),
        # both bridges have to be gone
        (rule("hmdead", "hmbee"), "orphan"),
        (rule("hm1", "hmdead"), "live"),
        (rule("hmdead", "hm1"), "live"),
        (rule("hmdead", "eth0", "hypeman-fwd-out-hm1"), "live"),
        (rule("hm1", "eth0", "hypeman-fwd-out-hmdead"), "live"),
        (rule("hmdead", "eth0", "hm1 was here, hypeman-fwd-out-hmdead"), "live"),
        (rule("hmdead", "!hm1"), "live"),
        (rule("hm5", "eth0"), "leased"),
        (rule("hmdead", "hm5"), "leased"),
        (rule("hm1", "hm5"), "live"),
        (rule(None, "eth0", "hypeman-nat-hm5"), "leased"),
        # whole names of prefix and hex digits only
        (rule("hmvpn0", "eth0"), "foreign"),
        (rule("xhm12", "eth0"), "foreign"),
        (rule("hm", "eth0"), "foreign"),
        (rule("hmDEAD", "eth0"), "foreign"),
        (rule("hmdead\n", "eth0"), "foreign"),
        (rule("hm\N{FULLWIDTH DIGIT ONE}", "eth0"), "foreign"),
        (rule("docker0", "eth0"), None),
        (rule(), None),
        # the name stands at the end of the comment, behind no letter and no digit
        (rule(comment="hypeman-nat-hmdead"), "orphan"),
        (rule(comment="hypeman nat hmdead"), "orphan"),
        (rule(comment="_hmdead"), "orphan"),
        (rule(comment="\nhmdead"), "orphan"),
        (rule(comment="hypeman-nat-xhmdead"), "foreign"),
        (rule(comment="hypeman-nat-9hmdead"), "foreign"),
        (rule(comment="hypeman-nat-\xe9hmdead"), "foreign"),
        (rule(comment="hypeman-nat-\udce9hmdead"), "foreign"),
        (rule(comment="\udcff-hmdead"), "orphan"),
        (rule(comment="hypeman-nat-hmdead "), "foreign"),
        (rule(comment="hypeman-nat-hmdead\n"), "foreign"),
        (rule(comment="hypeman-nat-hmdead-old"), "foreign"),
        (rule(comment="hypeman-nat-hmvpn0"), "foreign"),
        (rule(comment="hypeman-nat-hmDEAD"), "foreign"),
        (rule(comment="hypeman-nat-hm"), "foreign"),
        (rule(comment="hmdead"), "foreign"),
        (rule(comment=""), None),
        (rule(comment="nothing to see"), None),
        # no interface has a name of 16 letters
        (rule("hm0123456789abcd", "eth0"), "foreign"),
        (rule(comment="hypeman-nat-hm0123456789abc"), "orphan"),
        (rule(comment="hypeman-nat-hm0123456789abcd"), "foreign"),
        # each of several comments is judged by itself
        (rule(comment="first\0hypeman-nat-hmdead"), "orphan"),
        (rule(comment="hypeman-nat-hmdead\0last"), "orphan"),
        (rule(comment="first\0hmdead"), "foreign"),
        (rule(comment="hypeman-nat-hmdead\0hypeman-nat-hm1"), "live"),
        # a comment that fills its field may have been cut off, and the name with it
        (rule(comment=f"{'x' * 248}-hmdead"), "orphan"),
        (rule(comment=f"{'x' * 251}-hm1"), "live"),
        (rule(comment=f"{'x' * 252}-hm"), "foreign"),
        (rule(comment=f"{'x' * 248}-hmab1"), "orphan"),
        (rule(comment=f"{'x' * 249}-hmab1"), "live"),
        (rule(comment="\udcff" * 249 + "-hmab1"), "live"),
        (rule(comment="\xe9" * 124 + "x-hmab1"), "live"),
        # bridge ports are named too, but are nobody's own
        (rule(port="hmdead"), "foreign"),
        (rule("hmdead", port="hm1"), "live"),
        (rule("hmdead", port="hm5"), "leased"),
        (rule("hmdead", port="veth0"), "orphan"),
        (rule("hmdead", port="ha1"), "protected"),
        (rule("hmdead", port="hm+"), "wildcard"),
        (rule(comment="hypeman-nat-hmdead", port="hm1"), "live"),
        # protected names, in a match or in the comment
        (rule("ha1", "eth0"), "protected"),
        (rule("hmdead", "ha99"), "protected"),
        (rule("hmdead", "!ha99"), "protected"),
        (rule("ha-uplink", "hmdead"), "protected"),
        (rule("hmdead", "eth0", "hypeman-fwd-out-ha12"), "protected"),
        (rule("hmdead", "eth0", "ha12 hypeman-fwd-out-hmdead"), "protected"),
        (rule(comment="hypeman-nat-ha12"), "protected"),
        (rule("hmdead", "eth0", "haproxy0, hypeman-fwd-out-hmdead"), "protected"),
        (rule("hmdead", "eth0", "shared-hmdead"), "orphan"),
        # wildcards
        (rule("hm+"), "wildcard"),
        (rule("h+"), "wildcard"),
        (rule("hmdea+"), "wildcard"),
        (rule("!hm+"), "wildcard"),
        (rule("hmdead", "eth+"), "wildcard"),
        (rule("hm+", None, "hypeman-nat-hmdead"), "wildcard"),
        (rule("eth+"), None),
        # negated matches
        (rule(None, "!hmdead"), "negated"),
        (rule("!hmdead", "eth0"), "negated"),
        (rule("!hmdead", "!hmbee"), "negated"),
        (rule(None, "!hmdead", "some other remark"), "negated"),
        (rule(None, "!hmdead", "hypeman-nat-hmdead"), "orphan"),
        (rule("hmbee", "!hmdead"), "orphan"),
        (rule(None, "!hm1"), "live"),
        # what cannot be told from the rule's text
        (rule("hmdead", opaque="uses a set"), "wildcard"),
        (rule(comment="hypeman-nat-hmdead", opaque="uses a set"), "wildcard"),
        (rule(opaque="uses a set"), None),
    ],
)
def test_verdicts(subject: Rule, expected: str | None) -> None:
    assert verdict(subject) == expected


def test_every_copy_of_a_duplicate_is_an_orphan() -> None:
    copies = [rule("hmdead", "eth0")] * 3
    assert [f.verdict for f in decide(copies, OURS, lambda *_: Live(LIVE), ())] == [Verdict.ORPHAN] * 3


def test_every_finding_names_a_reason() -> None:
    for subject in (
        rule("hm1"),
        rule("hm5"),
        rule("hmdead"),
        rule("ha1"),
        rule("hm+"),
        rule("!hmdead"),
        rule("hmvpn0"),
    ):
        finding = judge(subject)
        assert finding
        assert finding.reason


def test_a_comment_that_may_be_cut_off_counts_for_nothing_where_interfaces_cannot_be_listed() -> None:
    cut = rule(comment=f"{'x' * 248}-hmdead")
    assert decide([cut], OURS, lambda *_: Live((), complete=True), ())[0].verdict is Verdict.ORPHAN
    assert decide([cut], OURS, lambda *_: Live((), complete=False), ())[0].verdict is Verdict.LIVE
    assert decide([cut], OURS, lambda *_: Live(), ["hmdead1"])[0].verdict is Verdict.LIVE


def test_more_than_one_prefix_and_prefixes_with_dots_and_dashes() -> None:
    several = Ownership(["hm", "br-", "v.m"], [])
    assert verdict(rule("br-3fa", "eth0"), several) == "orphan"
    assert verdict(rule(comment="x-br-3fa"), several) == "orphan"
    assert verdict(rule("v.m1"), several) == "orphan"
    assert verdict(rule("vxm1"), several) is None
    assert verdict(rule("ha1"), several) is None


def test_a_single_bridge_can_be_protected() -> None:
    careful = Ownership(["hm"], ["hmdead"])
    assert verdict(rule("hmdead"), careful) == "protected"
    assert verdict(rule(comment="hypeman-nat-hmdead1"), careful) == "protected"
    assert verdict(rule("hmbee"), careful) == "orphan"


@pytest.mark.parametrize(
    ("prefixes", "protected"),
    [
        ([], []),
        ([""], []),
        (["hm+"], []),
        (["h m"], []),
        (["a/b"], []),
        (["hm\n"], []),
        (["abcdefghijklmno"], []),
        (["hm"], [""]),
        (["ha"], ["ha"]),
        (["ham"], ["ha"]),
    ],
)
def test_prefixes_that_mean_nothing_are_refused(prefixes: list[str], protected: list[str]) -> None:
    with pytest.raises(UsageError, match="prefix"):
        Ownership(prefixes, protected)


def test_interfaces_are_asked_for_after_all_rules_were_taken() -> None:
    taken: list[str] = []

    def rules() -> list[Rule]:
        taken.append("rules")
        return [rule("hmdead")]

    def live(*_: object) -> Live:
        taken.append("interfaces")
        return Live()

    decide((r for r in rules()), OURS, live, ())
    assert taken == ["rules", "interfaces"]


def test_interfaces_are_not_asked_for_where_no_rule_depends_on_them() -> None:
    def never(*_: object) -> Live:
        raise AssertionError

    decide([rule("docker0"), rule("ha1"), rule("hm+"), rule("hmvpn0")], OURS, never, ())


def test_every_rule_with_a_verdict_holds_a_hint() -> None:
    for subject in (rule("hm1"), rule("ha1"), rule("hm+"), rule(comment="x-hmdead"), rule(comment="x-ha1")):
        text = f"{subject.in_interface} {subject.comment}".encode()
        assert any(hint in text for hint in OURS.hints)


names = st.one_of(
    st.from_regex(r"hm[0-9a-f]{1,3}", fullmatch=True),
    st.from_regex(r"ha[0-9a-f]{1,2}", fullmatch=True),
    st.sampled_from(["hm1", "hm2", "hm5", "eth0", "hmvpn0", "xhm12", "hm"]),
    st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=6),
)
matches = st.none() | st.builds(Interface, names, st.booleans(), st.booleans())
comments = st.none() | st.lists(names | st.text(max_size=3), max_size=4).flatmap(
    lambda words: st.sampled_from(["-", " ", "", "_", "\n"]).map(lambda sep: sep.join(words))
)
random_rules = st.builds(
    lambda i, o, comment, opaque: Rule(
        "fake", "filter", "FORWARD", 1, in_interface=i, out_interface=o, comment=comment, opaque=opaque
    ),
    matches,
    matches,
    comments,
    st.none() | st.just("unclear"),
)


@given(st.lists(random_rules, max_size=8), st.frozensets(names, max_size=6), st.frozensets(names, max_size=3))
def test_nothing_that_is_alive_or_unclear_is_ever_chosen(
    rules: list[Rule], live: frozenset[str], leased: frozenset[str]
) -> None:
    for finding in decide(rules, OURS, lambda *_: Live(live), leased):
        if finding.verdict is not Verdict.ORPHAN:
            continue
        chosen = finding.rule
        interfaces = [i for i in (chosen.in_interface, chosen.out_interface) if i]
        words = set(re.split(r"[\W_]+", chosen.comment or ""))
        spoken_of = {i.name for i in interfaces} | words
        ours = {name for name in spoken_of if re.fullmatch("hm[0-9a-f]+", name)}
        assert ours
        assert not ours & (live | leased)
        assert not any(i.wildcard for i in interfaces)
        assert not any(i.name.startswith("ha") for i in interfaces)
        assert not any(re.fullmatch("ha[0-9a-f]+", word) for word in words)
        assert chosen.opaque is None
