"""Rules that iptables made, of both flavours and families, as the backends read them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from contextlib import closing
from typing import NamedTuple

import pytest

from netsweep.firewall.opening import open_backend
from netsweep.model import BackendName, Chain, Family, Interface, Spec, Table
from tests.extensions import EXTENSIONS, IPV6, REMARKS
from tests.namespace import FLAVOURS, Namespace, in_family, program, read, restore_input


class Iptables(NamedTuple):
    """One iptables in a namespace, and what the backend reads of its rules."""

    ns: Namespace
    flavour: BackendName
    family: str

    def accepted(self, bodies: Sequence[str]) -> list[str]:
        """Put these rules into FORWARD, but for those that this kernel or this iptables does not know."""
        known = []
        kind = "inet6" if self.family == "ipv6" else "inet"
        self.ns.run("ipset", "create", "blocked", "hash:ip,port", "family", kind, "timeout", "0", check=False)
        self.restore(":USERS - [0:0]")
        for body in in_family(bodies, self.family):
            if self.restore(f"-A FORWARD {body}", check=False):
                known.append(body)
        return known

    def restore(self, line: str, *, check: bool = True) -> bool:
        done = self.ns.restore(self.flavour, restore_input({"filter": [line]}), self.family, check=check)
        return done.returncode == 0

    def specs(self) -> list[Spec]:
        """What the rules in FORWARD say."""
        forward = Chain(Table(self.flavour, Family(self.family), "filter"), "FORWARD")

        def look() -> list[Spec]:
            with closing(open_backend(self.flavour, (b"",), writes=True)) as backend:
                return [rule.spec for rule in read(backend, forward).rules]

        return self.ns.inside(look)


@pytest.fixture(params=[(flavour, family) for flavour in FLAVOURS for family in ("ipv4", "ipv6")], ids="-".join)
def iptables(request: pytest.FixtureRequest, ns: Namespace) -> Iptables:
    return Iptables(ns, *request.param)


MORE = [
    "-p tcp -m tcp --sport 22 ! --dport 80 -j ACCEPT",
    "-p tcp -m tcp --dport 0:65535 -j DROP",
    "-p tcp -m tcp ! --dport 22 -j DROP",
    "-p udp -m udp --sport 1024: -j DROP",
    "-p udp -m udp ! --dport 53:54 -j DROP",
    "-p udp -m multiport --sports 53,123 -j ACCEPT",
    "-p sctp -m multiport ! --dports 5,7 -j DROP",
    "-p sctp -m sctp --dport 5:7 -j DROP",
    "-p sctp -m sctp ! --sport 5 -j DROP",
    "-p 253 -j DROP",
    "! -p 253 -j DROP",
    "-p ipv6-icmp -j ACCEPT",
    "-p esp -j ACCEPT",
    "-m conntrack --ctstate RELATED,ESTABLISHED -m limit --limit 5/sec -m mark --mark 0x7 -j ACCEPT",
    "-m addrtype --dst-type LOCAL -j USERS",
    "-p tcp -g USERS",
    "-m devgroup --src-group 7 -j DROP",
    "-m nfacct --nfacct-name x",
]
"""Protocols and ports in all their ways, and matches of the sorts that forms of rules have."""

NOT_FREE = re.compile(r"-m (set|bpf|devgroup) |-j SET ")

_CALLED = {"state": "conntrack"}
"""Matches that iptables writes as another one."""

_FIELDS = {"-i": "in_interface", "-o": "out_interface", "-s": "source", "-d": "destination", "-p": "protocol"}


def as_typed(rule: str) -> Spec:
    """What the rule says that was typed."""
    words = shlex.split(rule)
    said: dict[str, object] = {}
    matches, ports, match = set[str](), False, ""
    for at, word in enumerate(words):
        negated, value = at > 0 and words[at - 1] == "!", words[at + 1] if at + 1 < len(words) else ""
        if word in ("-i", "-o"):
            said[_FIELDS[word]] = Interface(value.rstrip("+"), value.endswith("+"), negated)
        elif word in ("-s", "-d", "-p"):
            said[_FIELDS[word]] = "!" * negated + value
        elif word == "-m":
            match = _CALLED.get(value, value)
            matches.add(match)
        elif word in ("-j", "-g"):
            said["target"] = value
        elif re.fullmatch("--(sport|dport|port)s?", word):
            ports = ports or not (negated or value == "0:65535")
            one = word == "--dport" and not negated and (":" not in value or value == "0:65535")
            matches.update([] if one or match == "multiport" else [f"more of {match}"])
        elif word in ("--tcp-flags", "--tcp-option"):
            matches.add("more of tcp")
    matches.update({"-f", "-g"}.intersection(words))
    return Spec(ports=ports, matches=tuple(sorted(matches)), **said)  # type: ignore[arg-type]


def test_a_rule_is_read_as_it_was_typed(iptables: Iptables) -> None:
    """And its interfaces stand before every effect, and only what may hold others is unreadable."""
    bodies = [body for body in (*EXTENSIONS, *IPV6, *MORE) if "-i hmdead" not in body]
    accepted = iptables.accepted([f"-i hm1 ! -o eth+ {body}" for body in bodies])
    specs = iptables.specs()
    assert len(specs) == len(accepted) > 50
    for body, spec in zip(accepted, specs, strict=True):
        typed = as_typed(body)
        for field in (*_FIELDS.values(), "ports", "matches", "target"):
            assert getattr(spec, field) == getattr(typed, field), (body, field)
        assert (spec.unreadable is not None) == bool(NOT_FREE.search(body)), (body, spec.unreadable)
        assert (spec.by_number, spec.by_set, spec.device_indexes) == ((), False, ()), body
    doubts = " ".join(str(each.unreadable) for each in specs)
    assert {*re.findall("bpf|group|SET|'set'", doubts)} == {"bpf", "group", "SET", "'set'"}


def test_comments_are_read_byte_for_byte(iptables: Iptables) -> None:
    ns, command = iptables.ns, program(iptables.flavour, iptables.family)
    for remark in REMARKS:
        ns.run(command, "-A", "FORWARD", "-i", "hmdead", "-j", "DROP", "-m", "comment", "--comment", remark)
    assert iptables.specs() == [
        Spec(in_interface=Interface("hmdead"), target="DROP", comments=(remark,)) for remark in REMARKS
    ]


def test_several_comments_are_told_apart_and_each_once(iptables: Iptables) -> None:
    remarks = ["hypeman-x-hm1", "a b", "hypeman-x-hm1", "c"]
    iptables.restore("-A FORWARD -j DROP " + " ".join(f'-m comment --comment "{remark}"' for remark in remarks))
    assert iptables.specs() == [Spec(target="DROP", comments=("hypeman-x-hm1", "a b", "c"))]


def test_ports_of_bridges_and_devices(iptables: Iptables) -> None:
    iptables.ns.add_bridges("hm11fe")
    (gateway,) = in_family(["10.9.9.9"], iptables.family)
    tee = f"-j TEE --gateway {gateway.removesuffix('/128')}"
    lines = ["-m physdev --physdev-in hm1 ! --physdev-out ha+ -j DROP", f"{tee} --oif hm11fe", tee]
    for line in lines:
        iptables.restore(f"-A FORWARD {line}")
    physdev = (Interface("hm1"), Interface("ha", wildcard=True, negated=True))
    assert iptables.specs() == [
        Spec(physdev=physdev, matches=("physdev",), target="DROP"),
        Spec(devices=("hm11fe",), target="TEE"),
        Spec(target="TEE"),
    ]
