"""Forms of whole rules: what they say, which rules have them, and what cannot be one."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsweep.model import Interface, Spec
from netsweep.policy.forms import Form, form_of

BRIDGES = ("br-1", "br-2")
NAME = Interface("br-1")
NOT_NAME = Interface("br-1", negated=True)


def owns(name: str) -> bool:
    return name in BRIDGES


def name_in(form: str, spec: Spec) -> str | None:
    return form_of(form).name_in(spec, owns)


HAVE: dict[str, Spec] = {
    "-i {name} -j ACCEPT": Spec(in_interface=NAME, target="ACCEPT"),
    "-o {name} -j DOCKER": Spec(out_interface=NAME, target="DOCKER"),
    "-i {name} ! -o {name} -j ACCEPT": Spec(in_interface=NAME, out_interface=NOT_NAME, target="ACCEPT"),
    "-i lo -o {name} -j DROP": Spec(in_interface=Interface("lo"), out_interface=NAME, target="DROP"),
    "-o {name} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT": Spec(
        out_interface=NAME, matches=("conntrack",), target="ACCEPT"
    ),
    "-s {net} ! -o {name} -j MASQUERADE": Spec(source="172.18.0.0/16", out_interface=NOT_NAME, target="MASQUERADE"),
    "-d {ip} ! -i {name} -j DROP": Spec(destination="172.18.0.2/32", in_interface=NOT_NAME, target="DROP"),
    "! -s {net} -d {ip} -i {name} -j DROP": Spec(
        source="!fe80::/10", destination="fd00::2/128", in_interface=NAME, target="DROP"
    ),
    "! -i {name} -p {proto} -m {proto} --dport {port} -j DNAT --to-destination {ip}:{port}": Spec(
        in_interface=NOT_NAME, protocol="tcp", ports=True, matches=("tcp",), target="DNAT"
    ),
    "-i {name} -p icmpv6 -j ACCEPT": Spec(in_interface=NAME, protocol="ipv6-icmp", target="ACCEPT"),
    "-i {name} -f -m comment --comment 'it is {name}' -g JOBS": Spec(
        in_interface=NAME, matches=("-f", "-g"), comments=("whatever",), target="JOBS"
    ),
    "-m physdev --physdev-in {name} -g FI-{name}": Spec(physdev=(NAME,), matches=("physdev", "-g"), target="FI-br-1"),
    "-m physdev --physdev-in {name} --physdev-out vnet0 -j ACCEPT": Spec(
        physdev=(NAME, Interface("vnet0")), matches=("physdev",), target="ACCEPT"
    ),
    "-d {ip} -m physdev ! --physdev-in {name} -j DROP": Spec(
        destination="192.0.2.1/32", physdev=(NOT_NAME,), matches=("physdev",), target="DROP"
    ),
}
"""Forms, each with a rule that has it."""


@pytest.mark.parametrize(("form", "spec"), HAVE.items(), ids=HAVE)
def test_a_rule_that_has_the_form_is_of_the_interface_in_the_place_of_the_name(form: str, spec: Spec) -> None:
    assert name_in(form, spec) == "br-1"


@pytest.mark.parametrize("spec", HAVE.values(), ids=HAVE)
def test_a_rule_has_no_form_but_its_own(spec: Spec) -> None:
    (form,) = [form for form in HAVE if name_in(form, spec)]
    assert HAVE[form] is spec


VARIED: dict[str, list[Any]] = {
    "in_interface": [None, NAME, NOT_NAME, Interface("eth1"), Interface("br-1", after_effect=True)],
    "out_interface": [None, NAME, NOT_NAME, Interface("eth1"), Interface("br-1", wildcard=True)],
    "source": [None, "192.0.2.0/24", "!192.0.2.0/24", "192.0.2.7/32"],
    "destination": [None, "192.0.2.0/24", "192.0.2.7/32", "!192.0.2.7/32", "fd00::/64", "fd00::7/128"],
    "protocol": [None, "tcp", "udp", "!tcp", "!udp"],
    "ports": [False, True],
    "matches": [(), ("tcp",), ("conntrack",), ("addrtype",), ("-g",), ("-f",), ("physdev",)],
    "target": [None, "ACCEPT", "DROP", "DOCKER", "FI-br-2", "FI-{name}"],
    "comments": [(), ("br-1",)],
    "physdev": [(), (NAME,), (NOT_NAME,), (NAME, NAME), (Interface("br-1", wildcard=True),), (Interface("vnet0"),)],
    "devices": [("eth0",)],
    "device_indexes": [(3,)],
    "by_number": [(3,)],
    "by_set": [True],
    "unreadable": ["holds what is not known"],
}


def kind(field: str, value: Any) -> object:
    """What these forms say of a field: of networks and comments not which; their destinations are single addresses."""
    if field == "comments" or value is None:
        return bool(value)
    if field in ("source", "destination"):
        return value[0] == "!", field == "source" or value.endswith(("/32", "/128"))
    return value


@pytest.mark.parametrize("field", VARIED)
@pytest.mark.parametrize("form", HAVE)
def test_a_rule_that_differs_in_one_field_has_not_the_form(form: str, field: str) -> None:
    original = getattr(HAVE[form], field)
    more = [(*original, "limit"), original[1:]] if field == "matches" else []
    for value in [*VARIED[field], *more]:
        same = kind(field, value) == kind(field, original)
        found = name_in(form, HAVE[form]._replace(**{field: value}))
        assert found == ("br-1" if same else None), value


def test_every_field_of_a_spec_is_varied() -> None:
    assert VARIED.keys() == set(Spec._fields)


BR_2, ETH0 = Interface("br-2"), Interface("eth0")


@pytest.mark.parametrize(
    ("form", "spec", "name"),
    [
        ("-i {name} -j ACCEPT", Spec(BR_2, target="ACCEPT"), "br-2"),
        ("-i {name} -j ACCEPT", Spec(ETH0, target="ACCEPT"), None),
        # The same name in every place; another one only where the form says so.
        ("-i {name} -o {name} -j ACCEPT", Spec(NAME, NAME, target="ACCEPT"), "br-1"),
        ("-i {name} -o {name} -j ACCEPT", Spec(NAME, BR_2, target="ACCEPT"), None),
        ("-i {name} -o {name} -j ACCEPT", Spec(NAME, ETH0, target="ACCEPT"), None),
        ("-i {name} -o {other} -j ACCEPT", Spec(NAME, ETH0, target="ACCEPT"), "br-1"),
        ("-i {name} -o {other} -j ACCEPT", Spec(NAME, BR_2, target="ACCEPT"), "br-1"),
        ("-i {name} -o {other} -j ACCEPT", Spec(NAME, NAME, target="ACCEPT"), "br-1"),
        ("-i {name} -o {other} -j ACCEPT", Spec(ETH0, NAME, target="ACCEPT"), None),
        ("-i {name} -o {other} -j ACCEPT", Spec(NAME, NOT_NAME, target="ACCEPT"), None),
        ("-i {name} -o {other} -j ACCEPT", Spec(NAME, Interface("eth", wildcard=True), target="ACCEPT"), None),
        ("-i {name} -o {other} -j ACCEPT", Spec(NAME, target="ACCEPT"), None),
        ("-i {name} ! -o {other} -j ACCEPT", Spec(NAME, Interface("eth0", negated=True), target="ACCEPT"), "br-1"),
        # The name in the target is that of the match.
        ("-i {name} -g FI-{name}", Spec(BR_2, matches=("-g",), target="FI-br-2"), "br-2"),
        ("-i {name} -g FI-{name}", Spec(BR_2, matches=("-g",), target="FI-br-1"), None),
        ("-i {name} -g FI-{name}", Spec(BR_2, target="FI-br-2"), None),
        ("-i {name} -j FI-{name}", Spec(BR_2, matches=("-g",), target="FI-br-2"), None),
        # An address is a single one, a network any.
        ("-s {ip} -i {name} -j X", Spec(NAME, source="192.0.2.1/32", target="X"), "br-1"),
        ("-s {ip} -i {name} -j X", Spec(NAME, source="192.0.2.0/31", target="X"), None),
        ("! -s {ip} -i {name} -j X", Spec(NAME, source="!192.0.2.1/32", target="X"), "br-1"),
        ("! -s {ip} -i {name} -j X", Spec(NAME, source="!192.0.2.0/31", target="X"), None),
        ("-s {net} -i {name} -j X", Spec(NAME, source="192.0.2.1/32", target="X"), "br-1"),
        ("-s {net} -i {name} -j X", Spec(NAME, source="fd00::/64", target="X"), "br-1"),
        # Any protocol, and its own extension.
        ("-p {proto} -i {name} -j ACCEPT", Spec(NAME, protocol="sctp", target="ACCEPT"), "br-1"),
        ("-p {proto} -i {name} -j ACCEPT", Spec(NAME, protocol="!sctp", target="ACCEPT"), None),
        ("-p {proto} -m {proto} -i {name} -j X", Spec(NAME, protocol="udp", matches=("udp",), target="X"), "br-1"),
        ("-p {proto} -m {proto} -i {name} -j X", Spec(NAME, protocol="udp", matches=("tcp",), target="X"), None),
        ("-p {proto} -m {proto} -i {name} -j X", Spec(NAME, protocol="udp", target="X"), None),
        ("! -p tcp -i {name} -j ACCEPT", Spec(NAME, protocol="!tcp", target="ACCEPT"), "br-1"),
        ("! -p tcp -i {name} -j ACCEPT", Spec(NAME, protocol="tcp", target="ACCEPT"), None),
        # The order of extensions does not matter.
        ("-i {name} -m mark -m limit -j X", Spec(NAME, matches=("limit", "mark"), target="X"), "br-1"),
        # Both names of a port have to be those of the form.
        (
            "-m physdev --physdev-in {name} --physdev-out {name} -j X",
            Spec(physdev=(NAME, NAME), matches=("physdev",), target="X"),
            "br-1",
        ),
        (
            "-m physdev --physdev-in {name} --physdev-out {name} -j X",
            Spec(physdev=(NAME, BR_2), matches=("physdev",), target="X"),
            None,
        ),
        (
            "-m physdev --physdev-in {name} --physdev-out eth0 -j X",
            Spec(physdev=(NAME, BR_2), matches=("physdev",), target="X"),
            None,
        ),
        (
            "-m physdev --physdev-in {name} --physdev-out {other} -j X",
            Spec(physdev=(NAME, ETH0), matches=("physdev",), target="X"),
            "br-1",
        ),
    ],
)
def test_a_name_is_the_same_everywhere_and_another_only_where_the_form_says_so(
    form: str, spec: Spec, name: str | None
) -> None:
    assert name_in(form, spec) == name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "-s {net} -d {ip} -i {name} ! -o eth0 -p tcp -m tcp --dport 80:90 -m comment --comment 'a b' -j X --y z",
            {
                "source": "{net}",
                "destination": "{ip}",
                "in_interface": "{name}",
                "out_interface": "!eth0",
                "protocol": "tcp",
                "ports": True,
                "matches": frozenset({"tcp"}),
                "comment": True,
                "target": "X",
            },
        ),
        (
            "--source {net} --dst {ip} ! --in-interface {name} --out-interface {other} --protocol udp --match mark "
            "--fragment --goto X",
            {
                "source": "{net}",
                "destination": "{ip}",
                "in_interface": "!{name}",
                "out_interface": "{other}",
                "protocol": "udp",
                "matches": frozenset({"mark", "-f", "-g"}),
                "target": "X",
            },
        ),
        ("-i {name} --jump ACCEPT --src {net}", {"in_interface": "{name}", "target": "ACCEPT", "source": "{net}"}),
        (
            "-i {name} -p tcp -m multiport --sports 1,2 -j X",
            {
                "in_interface": "{name}",
                "protocol": "tcp",
                "ports": True,
                "matches": frozenset({"multiport"}),
                "target": "X",
            },
        ),
        (
            "-i {name} -p tcp -m set ! --match-set y src -j X",
            {"in_interface": "{name}", "protocol": "tcp", "matches": frozenset({"set"}), "target": "X"},
        ),
        (
            "-m physdev ! --physdev-is-bridged ! --physdev-in {other} --physdev-out {name} -j X",
            {"physdev": ("!{other}", "{name}"), "matches": frozenset({"physdev"}), "target": "X"},
        ),
    ],
)
def test_a_form_is_read_as_iptables_reads_a_rule(text: str, expected: dict[str, Any]) -> None:
    assert form_of(text) == Form(text, **expected)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no interface in it is {name}"),
        ("-i br-1 -j ACCEPT", "no interface in it is {name}"),
        ("-i {Name} -j ACCEPT", "no interface in it is {name}"),
        ("-i br-{name} -j ACCEPT", "no interface in it is {name}"),
        ("-o {other} -j {name}", "no interface in it is {name}"),
        ("-i {name}", "it has no target"),
        ("-i {name} -m conntrack --ctstate NEW", "it has no target"),
        ("-i {name} -j", "nothing follows -j"),
        ("-j ACCEPT -i", "nothing follows -i"),
        ("-i -j ACCEPT", "nothing follows -i"),
        ("-i ! {name} -j ACCEPT", "nothing follows -i"),
        ("-i {name} -j ''", "nothing follows -j"),
        ("-i {name} -m -j ACCEPT", "nothing follows -m"),
        ("-m physdev --physdev-in -j ACCEPT", "nothing follows --physdev-in"),
        ("-i {name} -i {name} -j ACCEPT", "'{name}' is the second in-interface"),
        ("-i {name} --in-interface eth0 -j ACCEPT", "'eth0' is the second in-interface"),
        ("-i {name} -j ACCEPT -j DROP", "'DROP' is the second target"),
        ("-i {name} -j ACCEPT -g JOBS", "'JOBS' is the second target"),
        ("-s {net} -s {net} -i {name} -j ACCEPT", "'{net}' is the second source"),
        ("-i {name} ! -j ACCEPT", "'!' cannot come before -j"),
        ("-i {name} ! -m mark -j ACCEPT", "'!' cannot come before -m"),
        ("-i {name} ! -f -j ACCEPT", "'!' cannot come before -f"),
        ("-i {name} -j ACCEPT !", "nothing follows '!'"),
        ("! ! -i {name} -j ACCEPT", "'!' is not known, or not allowed there"),
        ("-A FORWARD -i {name} -j ACCEPT", "'-A' is not known, or not allowed there"),
        ("-t nat -i {name} -j ACCEPT", "'-t' is not known, or not allowed there"),
        ("-i {name} --dport 80 -j ACCEPT", "'--dport' is not known, or not allowed there"),
        ("FORWARD -i {name} -j ACCEPT", "'FORWARD' is not known, or not allowed there"),
        ("-i {name} -j ACCEPT ! x", "'x' is not known, or not allowed there"),
        ("-i {name} -j ACCEPT -x", "'-x' is not known, or not allowed there"),
        ("-i {name} -m comment --comment 'a -j ACCEPT", "No closing quotation"),
        ("-i {name} -p tcp -m tcp --sport 80 -j ACCEPT", "a form can only have '--dport {port}'"),
        ("-i {name} -p tcp -m tcp ! --dport 80 -j ACCEPT", "a form can only have '--dport {port}'"),
        ("-i {name} -p tcp -m tcp --dport 80 --syn -j ACCEPT", "a form can only have '--dport {port}'"),
        # A rule that matches everything but one interface, and nothing narrower, is an administrator's guard.
        ("! -i {name} -j DROP", "a rule whose only match of the name is negated matches live traffic"),
        ("-i {other} ! -o {name} -j DROP", "matches live traffic"),
        ("! -s {net} ! -i {name} -j DROP", "matches live traffic"),
        ("! -d {net} ! -i {name} -j DROP", "matches live traffic"),
        ("! -i {name} -p tcp -j DROP", "matches live traffic"),
        ("! -i {name} -p tcp -m conntrack ! --ctstate NEW -j DROP", "matches live traffic"),
        ("! -i {name} -m mark --mark 1 -j DROP", "matches live traffic"),
        ("-m physdev ! --physdev-in {name} -j DROP", "matches live traffic"),
    ],
)
def test_what_cannot_be_a_form_is_told_in_one_line(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as raised:
        form_of(text)
    assert str(raised.value).startswith(f"{text!a} is not the form of a rule: ")
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("text", "negated"),
    [
        ("-i {name} -j X", False),
        ("-i {name} ! -o {name} -j X", False),
        ("-m physdev --physdev-in {name} -j X", False),
        ("-s {net} ! -o {name} -j X", True),
        ("-d {net} ! -o {name} -j X", True),
        ("! -o {name} -p {proto} -m {proto} --dport 1 -j X", True),
        ("-s {net} -i {other} ! -o {name} -j X", True),
        ("-s {net} -m physdev ! --physdev-in {name} -j X", True),
    ],
)
def test_a_form_is_negated_where_every_match_of_the_name_is(text: str, negated: bool) -> None:
    assert form_of(text).negated is negated


interfaces = st.none() | st.builds(Interface, st.sampled_from([*BRIDGES, "eth0"]), st.booleans(), st.booleans())
specs = st.builds(
    Spec,
    in_interface=interfaces,
    out_interface=interfaces,
    source=st.sampled_from([None, "192.0.2.0/24", "!192.0.2.0/24"]),
    target=st.sampled_from([None, "ACCEPT", "DROP"]),
    comments=st.sampled_from([(), ("x",)]),
    physdev=st.lists(interfaces.filter(bool), max_size=2).map(tuple),
)


@given(st.sampled_from(list(HAVE)), specs)
def test_whatever_a_rule_is_the_name_in_it_is_of_ours_and_matched(form: str, spec: Spec) -> None:
    name = name_in(form, spec)
    if name is not None:
        assert owns(name)
        assert name in {each.name for each in (spec.in_interface, spec.out_interface, *spec.physdev) if each}
        assert form_of(form).negated != (Interface(name) in (spec.in_interface, spec.out_interface, *spec.physdev)), (
            "a rule has a negated form where it matches the name negated only"
        )


words = st.sampled_from(
    ["-i", "-o", "-s", "-p", "-m", "-j", "-g", "-f", "!", "{name}", "{other}", "tcp", "--dport", "X", "'"]
)


@given(st.lists(words, max_size=10).map(" ".join))
def test_any_text_is_a_form_or_refused(text: str) -> None:
    try:
        form = form_of(text)
    except ValueError:
        return
    assert form.target
    assert not form.negated or form.ports or form.source or form.destination


@pytest.mark.parametrize(
    ("network", "has"),
    [
        ("10.1.1.1/32", True),
        ("fd00::1/128", True),
        ("10.1.0.0/16", False),
        ("fd00::/64", False),
        ("!10.1.1.1/32", False),
    ],
)
def test_a_single_address_is_no_network(network: str, has: bool) -> None:
    spec = Spec(in_interface=Interface("br-1", negated=True), destination=network, target="DROP")
    assert (form_of("-d {ip} ! -i {name} -j DROP").name_in(spec, "br-1".__eq__) == "br-1") == has
    assert (form_of("-d {net} ! -i {name} -j DROP").name_in(spec, "br-1".__eq__) == "br-1") == (network[0] != "!")
