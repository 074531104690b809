"""Hosts that users of other software reported, as small rule sets, and what netsweep does for each."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest

import netsweep
from netsweep.output.text import summary
from tests.namespace import Namespace, complaint, in_process, report_of, unchanged
from tests.rulesets import found, gone_rules, load, load_native, restored, snapshot, swept, to_go


@pytest.fixture(autouse=True)
def here(ns: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    in_process(ns, monkeypatch)


def reasons(ns: Namespace, **options: Any) -> list[tuple[str, str]]:
    """Verdict and reason of all that stays."""
    return [(finding.verdict.value, finding.reason) for finding in found(ns, **options).kept]


# A network of Docker 28 that died, and one that lives. Rules of published ports stay when a network is deleted.
SHOP, WEB = "br-5b0c2f9a77e1", "br-0e4d9a1b2c3f"
DOCKER_28 = f"""
*raw
:PREROUTING ACCEPT [0:0]
-A PREROUTING -d 172.21.0.2/32 ! -i {WEB} -p tcp -m tcp --dport 80 -j DROP
-A PREROUTING -d 172.22.0.2/32 ! -i {SHOP} -p tcp -m tcp --dport 80 -j DROP # goes
-A PREROUTING -d 172.22.0.3/32 ! -i {SHOP} -j DROP # goes
-A PREROUTING -d 172.22.0.3/32 ! -i {SHOP} -p sctp -m sctp --dport 2905 -j DROP # goes
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.21.0.0/16 ! -o {WEB} -j MASQUERADE
-A POSTROUTING -s 172.22.0.0/16 ! -o {SHOP} -j MASQUERADE # goes
-A POSTROUTING -s 172.22.0.2/32 -d 172.22.0.2/32 -p tcp -m tcp --dport 80 -j MASQUERADE
-A DOCKER ! -i {WEB} -p tcp -m tcp --dport 8021 -j DNAT --to-destination 172.21.0.2:80
-A DOCKER ! -i {SHOP} -p tcp -m tcp --dport 8022 -j DNAT --to-destination 172.22.0.2:80 # goes
COMMIT
*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-BRIDGE - [0:0]
:DOCKER-CT - [0:0]
:DOCKER-FORWARD - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A FORWARD -i {SHOP} -p tcp -m tcp --dport 5432 -j ACCEPT
-A DOCKER -d 172.22.0.2/32 ! -i {SHOP} -o {SHOP} -p tcp -m tcp --dport 80 -j ACCEPT # goes
-A DOCKER -d 172.21.0.2/32 ! -i {WEB} -o {WEB} -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER ! -i {WEB} -o {WEB} -j DROP
-A DOCKER ! -i docker_gwbridge -o docker_gwbridge -j DROP
-A DOCKER ! -i {SHOP} -o {SHOP} -j DROP # goes
-A DOCKER-BRIDGE -o {WEB} -j DOCKER
-A DOCKER-BRIDGE -o {SHOP} -j DOCKER # goes
-A DOCKER-CT -o {SHOP} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT # goes
-A DOCKER-CT -o {WEB} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -m set --match-set ext-bridges dst -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -i {SHOP} -j ACCEPT # goes
-A DOCKER-FORWARD -i docker_gwbridge ! -o docker_gwbridge -j ACCEPT
-A DOCKER-FORWARD -i {WEB} -j ACCEPT
-A DOCKER-USER -s 198.51.100.0/24 -i eth0 -o {SHOP} -m comment --comment "partners may reach the shop" -j ACCEPT
COMMIT
"""


@pytest.mark.parametrize("chains", [{}, {"chain": "*/*"}, {"all_chains": True}], ids=["", "*/*", "all chains"])
def test_a_dead_network_of_docker_28_goes_and_what_its_operator_wrote_stays(
    ns: Namespace, flavour: str, tmp_path: Path, chains: dict[str, Any]
) -> None:
    ns.add_bridges("eth0", "docker_gwbridge", WEB)
    ns.run("ipset", "create", "ext-bridges", "hash:net")
    load(ns, flavour, DOCKER_28)
    before = snapshot(ns)
    report = swept(ns, profile="docker", settle=0, journal=tmp_path / "journal", **chains)
    assert gone_rules(before, snapshot(ns)) == to_go(DOCKER_28)
    assert sorted(finding.live_traffic for finding in report.orphans if finding.live_traffic) == [
        *("DNAT", "DROP", "DROP", "DROP", "MASQUERADE")
    ]
    assert restored(ns, tmp_path / "journal") == report.deleted
    assert snapshot(ns).without_counters == before.without_counters


def test_an_operators_own_rule_for_a_network_of_docker_goes_where_he_asks_for_it(ns: Namespace, flavour: str) -> None:
    ns.add_bridges("eth0", "docker_gwbridge", WEB)
    ns.run("ipset", "create", "ext-bridges", "hash:net")
    load(ns, flavour, DOCKER_28)
    before = snapshot(ns)
    swept(ns, name=SHOP, chain="filter/DOCKER-USER")
    (line,) = gone_rules(before, snapshot(ns))
    assert "partners may reach the shop" in line


# firewalld keeps an interface in its zone when a container takes it away.
ZONES = """
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:FWD_public - [0:0]
:FORWARD_ZONES - [0:0]
:INPUT_ZONES - [0:0]
:IN_public - [0:0]
-A INPUT -j INPUT_ZONES
-A FORWARD -j FORWARD_ZONES
-A FORWARD_ZONES -i veth1a2b3c4 -g FWD_public
-A FORWARD_ZONES -i vethdeadbee -g FWD_public # goes
-A FORWARD_ZONES -o vethdeadbee -g FWD_public # goes
-A FORWARD_ZONES -i eth0 -g FWD_public
-A INPUT_ZONES -i vethdeadbee -g IN_public # goes
-A INPUT_ZONES -i vethfeedbee -g IN_public # goes
-A INPUT_ZONES -i veth1a2b3c4 -g IN_public
-A INPUT_ZONES -i eth0 -g IN_public
-A INPUT_ZONES -j IN_public
COMMIT
"""


def test_dead_veths_in_zones_of_firewalld_go_where_its_chains_are_given(ns: Namespace, flavour: str) -> None:
    ns.add_bridges("eth0", "veth1a2b3c4")
    load(ns, flavour, ZONES)
    before = snapshot(ns)
    report = found(ns, prefix="veth")
    assert (len(report.orphans), report.elsewhere) == (0, len(to_go(ZONES)))
    assert "4 more orphaned rules in chains that were not looked at: --all-chains" in summary(report)
    assert swept(ns, prefix="veth").deleted == 0
    # Whoever asks for Docker's does not ask for firewalld's.
    assert swept(ns, profile="docker", name="veth*", settle=0, all_chains=True).deleted == 0
    assert snapshot(ns) == before
    swept(ns, prefix="veth", chain="filter/*_ZONES")
    assert gone_rules(before, snapshot(ns)) == to_go(ZONES)


def test_of_all_pairs_of_veths_in_firewalld_those_go_that_hold_a_dead_one(ns: Namespace) -> None:
    veths = [f"veth{number:08x}" for number in range(42)]
    live = veths[20:22]
    ns.run("ip", "link", "add", live[0], "type", "veth", "peer", "name", live[1])
    rules = [
        f'iifname "{one}" oifname "{other}" {does}'
        for one, other in itertools.product(veths, veths)
        for does in ("jump filter_FWD_public", "reject with icmpx admin-prohibited")
    ]
    load_native(
        ns,
        "table inet firewalld {\n chain filter_FWD_public {\n accept\n }\n chain filter_FORWARD_POLICIES {\n"
        + "\n".join([*rules, "}", "}", ""]),
    )
    before = snapshot(ns)
    assert found(ns, prefix="veth").elsewhere == 3520
    assert swept(ns, prefix="veth").deleted == swept(ns, prefix="veth", chain="ip:*/*", wait=0).deleted == 0
    report = swept(ns, prefix="veth", chain="inet:firewalld/*")
    assert (report.deleted, report.scanned) == (3520, 3529)
    left = [rule for rule in rules if set(re.findall(r"veth\w+", rule)) <= set(live)]
    assert gone_rules(before, snapshot(ns)) == sorted(set(rules) - set(left))
    assert len(left) == 8


LIBVIRT = """
*mangle
:LIBVIRT_PRT - [0:0]
-A LIBVIRT_PRT -o virbr0 -p udp -m udp --dport 68 -j CHECKSUM --checksum-fill # goes
COMMIT
*nat
:LIBVIRT_PRT - [0:0]
-A LIBVIRT_PRT -s 192.168.122.0/24 ! -d 192.168.122.0/24 -j MASQUERADE
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:FI-vnet3 - [0:0]
:FI-vnet12 - [0:0]
:FO-vnet12 - [0:0]
:LIBVIRT_FWI - [0:0]
:LIBVIRT_FWO - [0:0]
:LIBVIRT_FWX - [0:0]
:LIBVIRT_INP - [0:0]
:libvirt-in - [0:0]
:libvirt-in-post - [0:0]
:libvirt-out - [0:0]
-A INPUT -j LIBVIRT_INP
-A INPUT -i virbr0 -p udp -m udp --dport 53 -j ACCEPT
-A FORWARD -j LIBVIRT_FWX
-A FORWARD -j LIBVIRT_FWI
-A FORWARD -j LIBVIRT_FWO
-A FORWARD -d 192.168.122.0/24 -o virbr0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i virbr0 -j REJECT --reject-with icmp-port-unreachable
-A FORWARD -i cni0 -j ACCEPT
-A LIBVIRT_FWI -d 192.168.122.0/24 -o virbr0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT # goes
-A LIBVIRT_FWI -o virbr0 -j REJECT --reject-with icmp-port-unreachable # goes
-A LIBVIRT_FWI -o virbr1 -j REJECT --reject-with icmp-port-unreachable
-A LIBVIRT_FWO -s 192.168.122.0/24 -i virbr0 -j ACCEPT # goes
-A LIBVIRT_FWX -i virbr0 -o virbr0 -j ACCEPT # goes
-A LIBVIRT_FWX -i virbr1 -o virbr1 -j ACCEPT
-A LIBVIRT_INP -i virbr1 -p udp -m udp --dport 53 -j ACCEPT
-A LIBVIRT_INP -i virbr0 -p udp -m udp --dport 53 -j ACCEPT # goes
-A libvirt-in -m physdev --physdev-in vnet12 -g FI-vnet12 # goes
-A libvirt-in -m physdev --physdev-in vnet3 -g FI-vnet3
-A libvirt-in -m physdev --physdev-in vnet12 -g FI-vnet3
-A libvirt-in-post -m physdev --physdev-in vnet3 -j ACCEPT
-A libvirt-in-post -m physdev --physdev-in vnet12 -j ACCEPT # goes
-A libvirt-in-post -m physdev --physdev-in vnet12 -j DROP
-A libvirt-out -m physdev --physdev-out vnet12 --physdev-is-bridged -g FO-vnet12 # goes
COMMIT
"""


def test_a_dead_network_of_libvirt_goes_from_its_own_chains_and_from_others_by_name(
    ns: Namespace, flavour: str
) -> None:
    ns.add_bridges("eth0", "virbr1", "vnet3")
    load(ns, flavour, LIBVIRT)
    before = snapshot(ns)
    swept(ns, profile="libvirt", settle=0)
    after = snapshot(ns)
    assert gone_rules(before, after) == to_go(LIBVIRT)
    # libvirt before 5.1 wrote to built-in chains, as k3s does: nothing tells whose rules these are.
    swept(ns, prefix="virbr", name="cni*", all_chains=True)
    in_built_in_chains = [line for line in LIBVIRT.splitlines() if re.match("-A (INPUT|FORWARD) .*-[io] ", line)]
    assert gone_rules(after, snapshot(ns)) == sorted(in_built_in_chains)
    assert len(in_built_in_chains) == 4


def test_a_rule_that_names_a_tap_as_a_port_of_a_bridge_too_goes_and_one_that_does_only_so_stays(
    ns: Namespace, flavour: str
) -> None:
    rules = """
*filter
:FORWARD ACCEPT [0:0]
:FI-vnet12 - [0:0]
-A FORWARD -i vnet12 -m physdev --physdev-in vnet12 -j ACCEPT # goes
-A FORWARD -i vnet12 -j ACCEPT # goes
-A FORWARD -i vnet12 -m physdev --physdev-in vnet3 -j ACCEPT
-A FORWARD -m physdev --physdev-in vnet12 -g FI-vnet12
-A FORWARD -m physdev --physdev-out vnet12 --physdev-is-bridged -j ACCEPT
COMMIT
"""
    ns.add_bridges("vnet3")
    load(ns, flavour, rules)
    before = snapshot(ns)
    swept(ns, prefix="vnet")
    assert gone_rules(before, snapshot(ns)) == to_go(rules)
    as_port = ("foreign", "it names vnet12 only as a port of a bridge")
    assert reasons(ns, prefix="vnet") == [("live", "vnet3 exists"), as_port, as_port]


LIBVIRT_NATIVE = """
table ip libvirt_network {
  chain forward {
    type filter hook forward priority filter; policy accept
    counter jump guest_output
  }
  chain guest_output {
    ip saddr 10.0.2.0/24 iif 4711 counter accept
    oif "virbr0" counter reject
    iif 4711 oif "virbr0" counter reject
    iifname "virbr1" accept # goes
    iifname "virbr0" accept
  }
}
"""


def test_rules_that_match_by_number_stay_and_a_list_tells_whether_the_number_exists(ns: Namespace) -> None:
    ns.run("ip", "link", "add", "virbr0", "index", "4712", "type", "bridge")
    load_native(ns, LIBVIRT_NATIVE)
    before = snapshot(ns)
    swept(ns, profile="libvirt", settle=0, journal=ns.directory / "journal")
    assert gone_rules(before, snapshot(ns)) == to_go(LIBVIRT_NATIVE)
    assert restored(ns, ns.directory / "journal") == 1
    nobody, live = "interface number 4711, which does not exist", "interface number 4712, which is virbr0"
    undecidable = [("undecidable", f"matches {each}") for each in (nobody, live, f"{nobody} and {live}")]
    assert reasons(ns, profile="libvirt", settle=0) == [*undecidable, ("live", "virbr0 exists")]
    lines = ns.netsweep("list", "--all", "--chain", "libvirt_network/*").stdout.splitlines()
    assert [line.partition(" -- ")[2] for line in lines if " -- " in line] == [": ".join(each) for each in undecidable]


MAPS = """
table ip vms {
  map slots {
    type ifname : verdict
    elements = { "veth3a" : accept, "veth3b" : accept, "veth3c" : jump slot3c }
  }
  set bridges {
    type ifname
    elements = { "br-0123456789ab", "veth3a" }
  }
  chain slot3c {
    ip daddr 10.0.0.0/8 drop
  }
  chain forward {
    type filter hook forward priority filter; policy accept
    iifname vmap @slots
    iifname @bridges accept
    iifname { "veth3b", "veth3c" } accept
    iifname "veth3b" accept # goes
    iifname vmap { "veth3b" : accept, "veth3c" : drop }
    iifname "veth3b" oifname @bridges accept # goes
    iifname "veth3a" oifname @bridges accept
  }
}
"""


def test_names_in_sets_and_maps_are_never_taken_out_and_rules_that_use_them_are_undecidable(ns: Namespace) -> None:
    ns.run("ip", "link", "add", "veth3a", "type", "veth", "peer", "name", "eth0")
    load_native(ns, MAPS)
    before = snapshot(ns)
    options: dict[str, Any] = {"prefix": ["veth", "br-"], "chain": "vms/*"}
    swept(ns, **options)
    assert gone_rules(before, snapshot(ns)) == to_go(MAPS)
    by_set = ("undecidable", "matches interfaces by a set")
    assert reasons(ns, **options) == [by_set] * 4 + [("live", "veth3a exists")]


def test_a_rule_with_addresses_of_its_own_goes_only_without_a_journal(ns: Namespace) -> None:
    load_native(
        ns,
        "table ip vms {\n chain forward {\n type filter hook forward priority filter\n"
        '  iifname "veth3c" ip saddr { 10.1.1.1, 10.1.1.2 } accept\n }\n}\n',
    )
    options: dict[str, Any] = {"prefix": "veth", "all_chains": True}
    with (
        unchanged(ns),
        pytest.raises(netsweep.NetsweepError, match=r"uses the set __set\d+, which is deleted with the rule"),
    ):
        swept(ns, **options, journal=ns.directory / "journal")
    assert not (ns.directory / "journal").exists()
    assert swept(ns, **options).deleted == 1


IPV6_ONLY = """
*nat
:POSTROUTING ACCEPT [0:0]
:CNI-63fd59f190a7b6095f99898e - [0:0]
-A POSTROUTING -s fd00:beef::/80 ! -o br-0d708b1e1de8 -j MASQUERADE
-A POSTROUTING -s fd00:101::9/128 -j CNI-63fd59f190a7b6095f99898e
COMMIT
*filter
:FORWARD ACCEPT [0:0]
-A FORWARD -o br-0d708b1e1de8 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT # goes
-A FORWARD -i br-0d708b1e1de8 ! -o br-0d708b1e1de8 -j ACCEPT # goes
-A FORWARD -i hybr0 -j ACCEPT # goes
-A FORWARD -s fd00:beef::/80 -i br-1e1de80d708b -j ACCEPT
COMMIT
"""


def test_a_host_with_rules_for_ipv6_only_is_swept(ns: Namespace, flavour: str, tmp_path: Path) -> None:
    ns.add_bridges("br-1e1de80d708b")
    load(ns, flavour, IPV6_ONLY, "ip6tables")
    before = snapshot(ns)
    options: dict[str, Any] = {"prefix": ["br-", "hybr"]}
    assert swept(ns, **options, family="ipv4").deleted == 0
    assert snapshot(ns) == before
    report = swept(ns, **options, journal=tmp_path / "journal")
    assert gone_rules(before, snapshot(ns)) == to_go(IPV6_ONLY)
    assert [(each.name, each.family.value, each.deleted) for each in report.backends] == [(flavour, "ipv6", 3)]
    assert restored(ns, tmp_path / "journal") == 3
    assert snapshot(ns).without_counters == before.without_counters
    doctor = " ".join(ns.netsweep("doctor", "--prefix", "hybr").stdout.split())
    assert "ipv6 tables filter, nat; 6 rules in the chains looked at, 1 names a bridge of ours" in doctor
    assert "cnitool gc" in doctor
    # A form of Docker's own.
    before = snapshot(ns)
    assert swept(ns, profile="docker", settle=0).deleted == 3
    assert "-A POSTROUTING -s fd00:beef::/80 ! -o br-0d708b1e1de8 -j MASQUERADE" in gone_rules(before, snapshot(ns))


def test_both_families_of_one_network_are_swept_at_once(ns: Namespace, flavour: str) -> None:
    rules = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -i br-0d708b1e1de8 -j ACCEPT # goes\nCOMMIT\n"
    for tool in ("iptables", "ip6tables"):
        load(ns, flavour, rules, tool)
    done = ns.netsweep("sweep", "--prefix", "br-")
    assert done.returncode == 0
    first, second = f"{flavour}: 1 of 1 rule", f"{flavour} ipv6: 1 of 1 rule"
    assert re.search(rf"\(({first}, {second}|{second}, {first})\)", done.stdout)


@pytest.mark.parametrize(
    ("option", "value", "instead"),
    [
        ("--prefix", "br", "--name 'br-????????????'"),
        ("--prefix", "eth0.*", "--name 'eth0.*'"),
        ("--prefix", "br-*", "--name 'br-*'"),
        ("--prefix", "br-[0-9a-f]{3}", "--name 'br-[0-9a-f][0-9a-f][0-9a-f]'"),
        ("--prefix", "^br-.*$", "--name 'br-*'"),
        ("--prefix", "br-0123456789ab", "--name 'br-0123456789ab'"),
        ("--prefix", "docker_gwbridge", "--name 'docker_gwbridge'"),
        ("--prefix", "mpqemubr0", "--name 'mpqemubr0'"),
        ("--chain", "FORWARD", "give TABLE/CHAIN"),
        ("--chain", "ip6/filter/FORWARD", "ip6:filter/FORWARD"),
        ("--chain", "filter/NOSUCH", "'iptables-save' and 'nft list ruleset' show all"),
    ],
)
def test_what_is_tried_first_ends_in_one_line_that_says_what_to_write(
    ns: Namespace, option: str, value: str, instead: str
) -> None:
    rules = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -i br-0123456789ab -j ACCEPT\nCOMMIT\n"
    load(ns, "nft", rules)
    with unchanged(ns):
        line = complaint(ns.netsweep("sweep", option, value), 2)
    assert instead in line
    assert value in line


FIRST_TRIES = """
*filter
:FORWARD ACCEPT [0:0]
-A FORWARD -i br-0123456789ab -j ACCEPT # goes
-A FORWARD -i br-0123456789ab -m comment --comment "traffic to haproxy" -j ACCEPT # goes
-A FORWARD -i br-0123456789ab -m comment --comment "web tier has moved" -j ACCEPT # goes
-A FORWARD -i br-shop -j ACCEPT
-A FORWARD -i docker_gwbridge -j ACCEPT
COMMIT
"""


def test_words_in_comments_keep_nothing_and_a_list_says_which_names_are_none_of_ours(
    ns: Namespace, flavour: str
) -> None:
    load(ns, flavour, FIRST_TRIES)
    before = snapshot(ns)
    swept(ns, prefix="br-")
    assert gone_rules(before, snapshot(ns)) == to_go(FIRST_TRIES)
    shape = "is not a name of ours: a prefix and hex digits"
    assert reasons(ns, prefix=["br-", "docker_"]) == [
        ("foreign", f"br-shop {shape}"),
        ("foreign", f"docker_gwbridge {shape}"),
    ]
    assert swept(ns, name=["br-shop", "docker_gw*"]).deleted == 2


def test_a_chain_that_does_not_exist_beside_one_that_does_is_warned_of(ns: Namespace, flavour: str) -> None:
    load(ns, flavour, FIRST_TRIES)
    chains = ("--chain", "filter/FORWARD", "--chain", "filter/NOSUCH")
    done = ns.netsweep("list", "--prefix", "br-", *chains, "--format", "json")
    assert done.stderr == "netsweep: warning: there is no chain filter/NOSUCH\n"
    done.stderr = ""
    report = report_of(done)
    assert report["warnings"] == ["there is no chain filter/NOSUCH"]
    assert (len(report["orphans"]), report["chains"]) == (3, ["filter/FORWARD", "filter/NOSUCH"])
