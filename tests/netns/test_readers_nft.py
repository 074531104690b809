"""Rules that real programs made in nf_tables, as the kernel shows them, read by the codec."""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Iterator, Sequence

import pytest

from netsweep.firewall.nftables.codec import read_rule, spec_of
from netsweep.firewall.nftables.undo import rule_attributes, undo_of
from netsweep.host import netlink
from netsweep.model import Interface, Spec
from tests.extensions import EXTENSIONS, IPV6, NAT, REMARKS
from tests.namespace import Namespace, restore_input

NFPROTO = {"inet": 1, "ip": 2, "netdev": 5, "ip6": 10}
FAMILIES = ("ip", "ip6", "inet")
TABLE, CHAIN = "filter", "FORWARD"
LONGEST = "hm0123456789abc"
COMMENT = 'comment "hypeman-x-hmdead"'


def spec_in(message: bytes) -> Spec:
    return spec_of(read_rule(message)[2])


NETLINK_NETFILTER = 12
NEWRULE, GETRULE, GETSET, DONE, ERROR = 6, 7, 10, 3, 2
REQUEST, ACK, DUMP, CREATE, APPEND = 1, 4, 0x300, 0x400, 0x800
ANONYMOUS = 1


def message(kind: int, flags: int, family: int, attributes: bytes, resource: int = 0) -> bytes:
    header = struct.pack("=IHHIIBBH", 20 + len(attributes), kind, flags, 1, 0, family, 0, socket.htons(resource))
    return header + attributes


def where(table: str, chain: str) -> bytes:
    return netlink.attribute(1, table.encode() + b"\0") + netlink.attribute(2, chain.encode() + b"\0")


def ask(request: bytes, kind: int) -> list[bytes]:
    """Send ``request``, and give the messages of the answer; ``kind`` is that of its end."""
    answer: list[bytes] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock:
        sock.send(request)
        while True:
            buffer = sock.recv(1 << 18)
            for offset, end, found, _ in netlink.messages(buffer):
                if found == ERROR and (code := struct.unpack_from("=i", buffer, offset + 16)[0]):
                    raise OSError(-code, os.strerror(-code))
                if found == kind:
                    return answer
                answer.append(buffer[offset:end])


def dump(ns: Namespace, family: str = "ip", table: str = TABLE, chain: str = CHAIN, kind: int = GETRULE) -> list[bytes]:
    request = message(10 << 8 | kind, REQUEST | DUMP, NFPROTO[family], where(table, chain) if kind == GETRULE else b"")
    return ns.inside(lambda: ask(request, DONE))


def put_back(ns: Namespace, family: str, raw: bytes) -> None:
    """Make a rule of what was kept of it, at the chain's end."""
    rule = message(
        10 << 8 | NEWRULE,
        REQUEST | ACK | CREATE | APPEND,
        NFPROTO[family],
        where(TABLE, CHAIN) + rule_attributes(raw),
    )
    edges = [message(kind, REQUEST, 0, b"", 10) for kind in (0x10, 0x11)]
    ns.inside(lambda: ask(edges[0] + rule + edges[1], ERROR))


class Native:
    """A table of ``nft``'s own, with something of each kind that rules refer to."""

    def __init__(self, ns: Namespace, family: str) -> None:
        self.ns = ns
        self.family = family
        self.index = int(ns.run("cat", "/sys/class/net/hm11fe/ifindex").stdout)
        table = f"{family} {TABLE}"
        address = "ipv6_addr" if family == "ip6" else "ipv4_addr"
        ns.run("nft", f"add table {table}; add chain {table} {CHAIN}; add chain {table} JOBS")
        ns.run("nft", f"add set {table} bridges {{ type ifname; elements = {{ hmdead }}; }}")
        ns.run("nft", f"add map {table} verdicts {{ type ifname : verdict; elements = {{ hmdead : drop }}; }}")
        ns.run("nft", f"add set {table} seen {{ type {address}; flags dynamic; }}")
        ns.run("nft", f"add set {table} aged {{ type {address}; flags dynamic,timeout; timeout 1m; }}")
        ns.run("nft", f"add map {table} ports {{ type inet_service : verdict; elements = {{ 22 : accept }}; }}")
        ns.run("nft", f"add counter {table} total")

    @property
    def address(self) -> str:
        return "ip6" if self.family == "ip6" else "ip"

    def add(self, *lines: str) -> list[bytes]:
        commands = [f"add rule {self.family} {TABLE} {CHAIN} {line}\n" for line in lines]
        self.ns.run("nft", "-f", "-", input="".join(commands))
        return dump(self.ns, self.family)[-len(lines) :]

    def read(self, *lines: str) -> list[Spec]:
        return [spec_in(each) for each in self.add(*lines)]


@pytest.fixture(params=FAMILIES)
def native(request: pytest.FixtureRequest, ns: Namespace) -> Native:
    # Not one that needs a kernel module: the machine may have none.
    ns.add_bridges("hm11fe", "ha12")
    return Native(ns, request.param)


NAMES: dict[str, tuple[Interface | None, Interface | None]] = {
    'iifname "hmdead"': (Interface("hmdead"), None),
    f'iifname "{LONGEST}"': (Interface(LONGEST), None),
    'iifname != "hmdead" oifname "eth0"': (Interface("hmdead", negated=True), Interface("eth0")),
    'iifname "hm*"': (Interface("hm", wildcard=True), None),
    'iifname != "hm*"': (Interface("hm", wildcard=True, negated=True), None),
    f'oifname "{LONGEST[:14]}*"': (None, Interface(LONGEST[:14], wildcard=True)),
    'oifname "hm\\*"': (None, Interface("hm*")),
    'oifname "hmdead" tcp dport 22 ct state new': (None, Interface("hmdead")),
    'ct state new meta l4proto tcp iifname "hmdead" oifname "hmbee"': (Interface("hmdead"), Interface("hmbee")),
    'iifname "hmdead" tcp dport { 22, 23 }': (Interface("hmdead"), None),
    "tcp dport 22": (None, None),
}


def test_names_are_read(native: Native) -> None:
    specs = native.read(*(f"{line} counter accept" for line in NAMES))
    found = ((each.in_interface, each.out_interface) for each in specs)
    assert dict(zip(NAMES, found, strict=True)) == NAMES
    assert {(each.unreadable, each.target) for each in specs} == {(None, "ACCEPT")}


UNREADABLE = {
    'iifname { "hmdead", "hmbee" } drop': "by a set",
    'iifname != { "hmdead", "hmbee" } drop': "by a set",
    'iifname { "hm1*", "hm2*" } drop': "by a set",
    "iifname @bridges drop": "by a set",
    "iifname @bridges oifname hmdead drop": "by a set",
    'iifname vmap { "hmdead" : drop, "hm11fe" : accept }': "by a set",
    "iifname vmap @verdicts": "by a set",
    'iifname . oifname { "hmdead" . "eth0", "hm11fe" . "eth0" } drop': "by a set",
    'tcp dport . iifname { 22 . "hmdead" } drop': "by a set",
    "add @bridges { iifname }": "by a set",
    'iif "hm11fe" drop': "by number",
    'iif != "lo" oifname "hmdead" drop': "by number",
    'oif { "lo", "hm11fe" } drop': "by number",
    'oifname "hmdead" oif "hm11fe" drop': "by number",
    "iifgroup 7 drop": "by group",
    'oifgroup != 0 iifname "hmdead" drop': "by group",
    "iifgroup { 1, 2 } drop": "by group",
    'meta iifkind "bridge" drop': "by kind",
    'iifname "hmdead" meta oifkind "bridge" drop': "by kind",
    "meta iiftype ether drop": "by type",
    "meta oiftype ether drop": "by type",
    "meta sdifname hm11fe drop": "by their VRF",
    "meta sdif hm11fe drop": "by number",
    'fib daddr oifname "hm11fe" drop': "by a route",
    "fib daddr oif hm11fe drop": "by a route",
    "iifname >= hmdead drop": "cannot be read",
    "iifname hmdead iifname hm11fe drop": "more than once",
    "oifname hmdead oifname != hm11fe drop": "more than once",
}


def test_interfaces_that_are_not_told_by_plain_names_are_unreadable(native: Native) -> None:
    specs = native.read(*(f"{line} {COMMENT}" for line in UNREADABLE))
    for (line, reason), spec in zip(UNREADABLE.items(), specs, strict=True):
        assert reason in (spec.unreadable or ""), line
        assert spec.comments == ("hypeman-x-hmdead",)


BY_NUMBER = {
    'iif "hm11fe" drop': ["hm11fe"],
    'iif "lo" oif "hm11fe" drop': ["lo", "hm11fe"],
    'oif "hm11fe" iif "lo" iif "hm11fe" drop': ["hm11fe", "lo", "hm11fe"],
    'iif != "lo" oifname "hmdead" drop': [],
    'iif { "lo", "hm11fe" } drop': [],
    "iifname hmdead meta mark 1 drop": [],
    "iifgroup 1 drop": [],
}


def test_interfaces_by_number_are_told(native: Native) -> None:
    numbers = {"lo": 1, "hm11fe": native.index}
    found = dict(zip(BY_NUMBER, (each.by_number for each in native.read(*BY_NUMBER)), strict=True))
    assert found == {line: tuple(numbers[name] for name in names) for line, names in BY_NUMBER.items()}


BY_SET = {
    'iifname { "hmdead", "hmbee" } drop': True,
    'iifname != { "hmdead", "hmbee" } drop': True,
    "oifname @bridges drop": True,
    'iifname vmap { "hmdead" : drop, "hm11fe" : accept }': True,
    "oifname vmap @verdicts": True,
    'meta mark set iifname map { "hmdead" : 1 }': True,
    'iif { "lo", "hm11fe" } drop': True,
    'iif . oif { "lo" . "hm11fe" } drop': True,
    'tcp dport . iifname { 22 . "hmdead" } drop': True,
    "iifname hmdead tcp dport { 22, 23 } drop": False,
    "iif lo tcp dport vmap @ports": False,
    "iifname hmdead ADDRESS saddr @seen drop": False,
    "iifgroup { 1, 2 } drop": False,
}


def test_interfaces_in_sets_are_told(native: Native) -> None:
    specs = native.read(*(line.replace("ADDRESS", native.address) for line in BY_SET))
    assert dict(zip(BY_SET, (each.by_set for each in specs), strict=True)) == BY_SET


def test_what_follows_a_match_that_is_unreadable_is_still_read(native: Native) -> None:
    (spec,) = native.read('iif "hm11fe" oifname "hmdead" drop')
    assert spec.out_interface == Interface("hmdead")


PURE = [
    "ct state new,established",
    "meta mark 5 meta l4proto tcp",
    "tcp dport { 22, 23 }",
    "tcp dport 22-30",
    "tcp dport != 22 tcp flags syn / syn,ack",
    "numgen random mod 2 0",
    "fib saddr . iif oif exists",
    "fib daddr type local",
    "socket transparent 1",
    'meta hour "10:00"-"12:00"',
    "meta skuid 0",
    "ip saddr 10.0.0.0/8 ip ttl 64",
    "rt mtu 1400",
    "tcp option maxseg size 1400",
]
EFFECTS = [
    "counter",
    "counter name total",
    'log prefix "x"',
    "limit rate 1/second",
    "quota over 10 mbytes",
    "ct count over 5",
    "last",
    "meta mark set 1",
    "ct mark set 1",
    "tcp dport set 22",
    "tcp option maxseg size set 1400",
    "numgen inc mod 2 0",
    "tcp dport vmap { 22 : accept }",
    "tcp dport vmap @ports",
    "add @seen { ADDRESS saddr }",
    "ADDRESS saddr @seen",
    "meter flood { ADDRESS saddr limit rate 10/second }",
    "ct state new counter",
]


def known(native: Native, lines: Sequence[str]) -> Iterator[tuple[str, Spec]]:
    """Rules with these lines before a match, but for those that this nft or this family does not know."""
    for line in lines:
        rule = f"{line.replace('ADDRESS', native.address)} oifname hmdead iifname != eth0"
        done = native.ns.run("nft", f"add rule {native.family} {TABLE} {CHAIN} {rule}", check=False)
        if done.returncode == 0:
            yield line, spec_in(dump(native.ns, native.family)[-1])


def test_a_match_behind_an_effect_says_so_and_one_behind_other_matches_does_not(native: Native) -> None:
    for lines, after in ((PURE, False), (EFFECTS, True)):
        found = dict(known(native, lines))
        assert len(found) >= len(lines) - 3
        for line, spec in found.items():
            expected = (Interface("eth0", False, True, after), Interface("hmdead", False, False, after))
            assert (spec.in_interface, spec.out_interface) == expected, line
            assert spec.unreadable is None, line


def test_an_effect_between_two_matches_stands_before_the_second(native: Native) -> None:
    (spec,) = native.read("iifname hmdead counter oifname hmbee drop")
    assert spec.in_interface == Interface("hmdead")
    assert spec.out_interface == Interface("hmbee", after_effect=True)


ADDRESSES = {
    "ip saddr 10.200.1.0/24": ("10.200.1.0/24", None),
    "ip saddr 10.200.0.0/16 ip daddr != 192.0.2.1": ("10.200.0.0/16", "!192.0.2.1/32"),
    "ip saddr & 255.0.0.255 == 10.0.0.1": ("10.0.0.1/255.0.0.255", None),
    "ip daddr 10.2.0.0/15": (None, "10.2.0.0/15"),
    "ip6 saddr fe80::/10": ("fe80::/10", None),
    "ip6 saddr 2001:db8::/32 ip6 daddr != 2001:db8::1": ("2001:db8::/32", "!2001:db8::1/128"),
    "ip6 daddr & ffff::ffff == 1::1": (None, "1::1/ffff::ffff"),
    "ip ttl 64": (None, None),
    "ip6 hoplimit 64": (None, None),
    "meta l4proto tcp @nh,64,8 0x20": (None, None),
}


def test_addresses_are_those_of_the_protocol(native: Native) -> None:
    lines = {line: want for line, want in ADDRESSES.items() if native.family in ("inet", line.split()[0], "x")}
    assert len(lines) >= 4
    found = ((each.source, each.destination) for each in native.read(*lines))
    assert dict(zip(lines, found, strict=True)) == lines


SAID: dict[str, Spec] = {
    "tcp dport 22": Spec(protocol="tcp", ports=True, matches=("tcp",)),
    "tcp dport 22-30": Spec(protocol="tcp", ports=True, matches=("more of tcp", "tcp")),
    "tcp dport > 1023": Spec(protocol="tcp", ports=True, matches=("more of tcp", "tcp")),
    "tcp dport 0-65535": Spec(protocol="tcp", matches=("more of tcp", "tcp")),
    "tcp sport 22": Spec(protocol="tcp", ports=True, matches=("more of tcp", "tcp")),
    "udp sport != 53": Spec(protocol="udp", matches=("more of udp", "udp")),
    "udp sport != 53-54": Spec(protocol="udp", matches=("more of udp", "udp")),
    "udp sport != 53 udp dport 67": Spec(protocol="udp", ports=True, matches=("more of udp", "udp")),
    "sctp dport 5": Spec(protocol="sctp", ports=True, matches=("sctp",)),
    "tcp dport { 22, 23 }": Spec(protocol="tcp", matches=("lookup",)),
    "tcp dport & 255 == 5": Spec(protocol="tcp", matches=("bitwise",)),
    "meta l4proto { tcp, udp } th dport 53": Spec(ports=True, matches=("lookup", "ports")),
    "meta l4proto udp": Spec(protocol="udp"),
    "meta l4proto != tcp": Spec(protocol="!tcp"),
    "meta l4proto 253": Spec(protocol="253"),
    "meta l4proto ipv6-icmp": Spec(protocol="ipv6-icmp"),
    "meta l4proto > 6": Spec(matches=("protocol",)),
    "meta l4proto 0": Spec(matches=("protocol",)),
    "ip protocol icmp": Spec(protocol="icmp"),
    "ip protocol != tcp": Spec(protocol="!tcp"),
    "ip6 nexthdr udp": Spec(protocol="udp"),
    "ip protocol tcp ip saddr 10.0.0.1": Spec(protocol="tcp", source="10.0.0.1/32"),
    "ip6 saddr fe80::/10 ip6 nexthdr tcp": Spec(protocol="tcp", source="fe80::/10"),
    "ip saddr 10.0.0.1-10.0.0.9": Spec(matches=("payload",)),
    "ip saddr != 10.0.0.1-10.0.0.9": Spec(matches=("payload",)),
    "ip6 daddr > fe80::1": Spec(matches=("payload",)),
    "ip saddr { 10.0.0.1, 10.0.0.2 }": Spec(matches=("lookup",)),
    "ip saddr 10.0.0.0/8 ip saddr != 10.1.0.0/16": Spec(source="10.0.0.0/8", matches=("payload",)),
    "ip saddr | 1 == 10.0.0.1": Spec(matches=("bitwise",)),
    "ip dscp 5": Spec(matches=("payload",)),
    "ct state established,related": Spec(matches=("conntrack",)),
    "ct state new tcp dport 22 limit rate 1/second": Spec(
        protocol="tcp", ports=True, matches=("conntrack", "limit", "tcp")
    ),
    "fib daddr type local": Spec(matches=("addrtype",)),
    "meta mark & 0xff == 1": Spec(matches=("mark",)),
    "meta skuid 0": Spec(matches=("meta",)),
    "counter quota over 10 mbytes": Spec(matches=("quota",)),
    "jump JOBS": Spec(target="JOBS"),
    "goto JOBS": Spec(target="JOBS", matches=("-g",)),
    'log prefix "x" drop': Spec(target="DROP", matches=("and DROP",)),
    'log prefix "x"': Spec(target="LOG"),
}
"""What rules say besides interfaces. Those of one protocol only stand where that is."""


def test_what_rules_say_is_read(native: Native) -> None:
    def said(line: str) -> bool:
        families = {"ip6" if part == "ip6" else "ip" for part in line.split() if part in ("ip", "ip6")}
        return native.family == "inet" or families <= {native.family}

    lines = [line for line in SAID if said(line)]
    assert len(lines) > 25
    assert dict(zip(lines, native.read(*lines), strict=True)) == {line: SAID[line] for line in lines}


def test_in_inet_a_rule_may_be_of_one_protocol(ns: Namespace) -> None:
    ns.add_bridges("hm11fe")
    native = Native(ns, "inet")
    found = native.read(
        "meta nfproto ipv4 iifname hmdead drop",
        "meta nfproto ipv6 ip6 nexthdr udp drop",
        "meta nfproto != ipv4 iifname hmdead drop",
        "meta protocol arp drop",
    )
    assert found == [
        Spec(in_interface=Interface("hmdead"), target="DROP"),
        Spec(protocol="udp", target="DROP"),
        Spec(in_interface=Interface("hmdead"), matches=("meta",), target="DROP"),
        Spec(matches=("meta",), target="DROP"),
    ]


@pytest.mark.parametrize(
    ("family", "line"),
    [
        ("ip", "ip saddr 10.0.0.0/8 dup to 10.9.9.9 device hm11fe"),
        ("ip6", "ip6 saddr fe80::/10 dup to fe80::9 device hm11fe"),
    ],
)
def test_the_device_of_a_copy_is_told_by_number(ns: Namespace, family: str, line: str) -> None:
    ns.add_bridges("ha12", "hm11fe")
    native = Native(ns, family)
    (spec,) = native.read(f"{line} {COMMENT}")
    assert (spec.device_indexes, spec.devices, spec.unreadable) == ((native.index,), (), None)
    (spec,) = native.read("dup to 10.9.9.9" if family == "ip" else "dup to fe80::9")
    assert (spec.device_indexes, spec.unreadable) == ((), None)


def test_the_device_of_a_copy_that_comes_from_a_map_is_not_told(ns: Namespace) -> None:
    ns.add_bridges("hm11fe")
    (spec,) = Native(ns, "ip").read("dup to 10.9.9.9 device ip saddr map { 10.0.0.1 : hm11fe }")
    assert (spec.device_indexes, "cannot be read" in (spec.unreadable or "")) == ((), True)


def test_devices_of_packets_that_are_passed_on(ns: Namespace) -> None:
    ns.add_bridges("ha12", "hm11fe")
    index = int(ns.run("cat", "/sys/class/net/hm11fe/ifindex").stdout)
    ns.run("nft", f"add table netdev {TABLE}; add chain netdev {TABLE} {CHAIN}")
    for line in ("fwd to hm11fe", "dup to hm11fe", "fwd to ip saddr map { 10.0.0.1 : hm11fe }"):
        ns.run("nft", f"add rule netdev {TABLE} {CHAIN} {line}")
    *told, from_map = (spec_in(each) for each in dump(ns, "netdev"))
    assert [(each.device_indexes, each.unreadable) for each in told] == [((index,), None)] * 2
    assert "cannot be read" in (from_map.unreadable or "")


def test_comments_of_native_rules_are_read_byte_for_byte(native: Native) -> None:
    # nft takes 128 bytes and has no way to write a quote.
    remarks = [remark for remark in REMARKS if len(os.fsencode(remark)) <= 128 and remark and '"' not in remark]
    remarks += ["x" * 121 + "-hmdead", "\udcff" * 128]
    specs = native.read(*(f'iifname "hmdead" drop comment "{remark}"' for remark in remarks))
    assert len(remarks) > 10
    assert [each.comments for each in specs] == [(remark,) for remark in remarks]


def accept_all(ns: Namespace, program: str, bodies: Sequence[str], table: str = TABLE, chain: str = CHAIN) -> list[str]:
    """Put these rules into the chain, but for those that this kernel or this program does not know."""
    family = "inet6" if program.startswith("ip6") else "inet"
    ns.run("ipset", "create", "blocked", "hash:ip,port", "family", family, "timeout", "0", check=False)
    accepted = []
    ns.run(f"{program}-restore", "--noflush", input=restore_input({table: [":USERS - [0:0]"]}))
    for body in bodies:
        rules = restore_input({table: [f"-A {chain} {body}"]})
        if ns.run(f"{program}-restore", "--noflush", check=False, input=rules).returncode == 0:
            accepted.append(body)
    return accepted


def test_a_position_is_the_handle_of_the_rule_before(native: Native) -> None:
    native.add("iifname a", "iifname b", "iifname c", "iifname d")
    native.ns.run("nft", f"insert rule {native.family} {TABLE} {CHAIN} iifname z")
    rules = [read_rule(each) for each in dump(native.ns, native.family)]
    handles = [handle for handle, _, _ in rules]
    assert [position for _, position, _ in rules] == [None, *handles[:-1]]
    assert [spec_of(content).in_interface for _, _, content in rules] == [Interface(name) for name in "zabcd"]


# What is kept of a rule makes the same rule again.

TO_KEEP = [
    "iifname hmdead counter drop",
    'iifname hmdead counter log prefix "x" level debug jump JOBS',
    "tcp dport 22-30 ct state new limit rate 10/minute burst 3 packets goto JOBS",
    "ct mark set 7 meta mark set 9",
    "ADDRESS saddr @seen drop",
    "add @seen { ADDRESS saddr }",
    "add @seen { ADDRESS saddr counter }",
    "update @aged { ADDRESS saddr limit rate 10/second }",
    "update @aged { ADDRESS saddr timeout 5s }",
    "iifname @bridges drop",
    "tcp dport vmap @ports",
    "counter name total",
    "quota over 10 mbytes drop",
    "last",
    "ct count over 5 drop",
    "reject with tcp reset",
    "numgen inc mod 2 0 drop",
    "fib saddr . iif oif missing drop",
    "jhash ADDRESS saddr . tcp dport mod 2 0 drop",
    'iifname hmdead drop comment "hypeman-x-hmdead"',
    "notrack",
]


def test_native_rules_come_back_as_they_were(native: Native) -> None:
    lines = [line.replace("ADDRESS", native.address) for line in TO_KEEP]
    added = 0
    for line in lines:
        done = native.ns.run("nft", f"add rule {native.family} {TABLE} {CHAIN} {line}", check=False)
        if done.returncode:
            continue
        added += 1
        before = dump(native.ns, native.family)[-1]
        listed = native.ns.run("nft", "list", "chain", native.family, TABLE, CHAIN).stdout.splitlines()[-3]
        undo = undo_of(before, {"seen", "aged", "bridges", "ports"})
        assert undo.lost is None, line
        put_back(native.ns, native.family, undo.raw)
        assert undo_of(dump(native.ns, native.family)[-1]).raw == undo.raw
        after = native.ns.run("nft", "list", "chain", native.family, TABLE, CHAIN).stdout.splitlines()[-3]
        assert after == listed
    assert added >= len(lines) - 3


@pytest.mark.parametrize(
    ("program", "family", "bodies"),
    [("iptables-nft", "ip", EXTENSIONS), ("ip6tables-nft", "ip6", [*EXTENSIONS, *IPV6])],
)
def test_rules_of_iptables_come_back_as_they_were(ns: Namespace, program: str, family: str, bodies: list[str]) -> None:
    accepted = accept_all(ns, program, bodies)
    before = dump(ns, family)
    saved = [line for line in ns.run(f"{program}-save").stdout.splitlines() if line.startswith("-A")]
    assert len(before) == len(saved) == len(accepted) > 25
    undos = [undo_of(each) for each in before]
    for body, undo in zip(accepted, undos, strict=True):
        assert undo.lost is None, body
        put_back(ns, family, undo.raw)
    again = [line for line in ns.run(f"{program}-save").stdout.splitlines() if line.startswith("-A")]
    assert again == saved * 2
    assert [undo_of(each).identity for each in dump(ns, family)[len(before) :]] == [undo.identity for undo in undos]


def test_protocols_that_targets_are_checked_against_come_back(ns: Namespace) -> None:
    accepted = accept_all(ns, "iptables-nft", NAT, "nat", "POSTROUTING")
    for message_ in dump(ns, "ip", "nat", "POSTROUTING"):
        raw = undo_of(message_).raw
        rule = where("nat", "POSTROUTING") + rule_attributes(raw)
        batch = message(0x10, REQUEST, 0, b"", 10)
        batch += message(10 << 8 | NEWRULE, REQUEST | ACK | CREATE | APPEND, 2, rule)
        ns.inside(lambda batch=batch: ask(batch + message(0x11, REQUEST, 0, b"", 10), ERROR))  # type: ignore[misc]
    saved = [line for line in ns.run("iptables-nft-save", "-t", "nat").stdout.splitlines() if line.startswith("-A")]
    assert len(accepted) >= 5
    assert saved[len(accepted) :] == saved[: len(accepted)]


LAST = netlink.attribute(1, netlink.attribute(1, b"last\0"))
"""A rule of a ``last`` statement, which nft of Debian 12 does not know and the kernel does."""


def send_packet() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", ("127.0.0.1", 9))


@pytest.mark.parametrize("line", ["counter", "quota 10 mbytes", "quota over 1 mbytes counter", None])
def test_what_was_counted_is_neither_kept_nor_part_of_the_identity(ns: Namespace, line: str | None) -> None:
    ns.run("ip", "link", "set", "lo", "up")
    ns.run("nft", f"add table ip {TABLE}; add chain ip {TABLE} {CHAIN} {{ type filter hook output priority 0; }}")
    if line:
        ns.run("nft", f"add rule ip {TABLE} {CHAIN} {line}")
    else:
        put_back(ns, "ip", struct.pack("=I", len(LAST)) + LAST + bytes(8))
    (before,) = dump(ns)
    ns.inside(send_packet)
    (after,) = dump(ns)
    assert read_rule(before)[2] != read_rule(after)[2]
    assert undo_of(before) == undo_of(after)
    put_back(ns, "ip", undo_of(after).raw)
    assert read_rule(dump(ns)[1])[2] == read_rule(before)[2]


@pytest.mark.parametrize("other", ["counter", "quota 10 mbytes", "quota 11 mbytes", "quota over 10 mbytes", "drop"])
def test_the_identity_tells_what_counts_apart(ns: Namespace, other: str) -> None:
    ns.add_bridges("hm11fe")
    lines = ["iifname hmdead", "iifname hmdead quota 10 mbytes counter", f"iifname hmdead {other}"]
    assert len({undo_of(each).identity for each in Native(ns, "ip").add(*lines)}) == 3


# What goes with a rule.


def anonymous_sets(ns: Namespace, family: str) -> dict[str, bool]:
    """The sets of the table, each with whether it goes with the rule that uses it."""
    sets = {}
    for each in dump(ns, family, kind=GETSET):
        found = dict(netlink.attributes(each, 20))
        sets[found[2].rstrip(b"\0").decode()] = bool(int.from_bytes(found.get(3, b""), "big") & ANONYMOUS)
    return sets


def test_a_rule_says_which_sets_it_uses_and_the_kernel_which_of_them_go_with_it(native: Native) -> None:
    seen, meter, ports, verdicts = native.add(
        f"add @seen {{ {native.address} saddr }}",
        f"meter flood {{ {native.address} saddr limit rate 10/second }}",
        "tcp dport { 22, 23 } drop",
        "tcp dport vmap { 22 : accept, 23 : drop }",
    )
    # Without knowing of sets, all that are used count as lost.
    used = [re.findall(r"the set (\S+),", undo_of(each).lost or "") for each in (seen, meter, ports, verdicts)]
    assert used[:2] == [["seen"], ["flood"]]
    sets = anonymous_sets(native.ns, native.family)
    lasting = {name for name, anonymous in sets.items() if not anonymous}
    assert [sets[name] for (name,) in used[2:]] == [True, True]
    assert {"seen", "aged", "bridges"} <= lasting
    assert undo_of(seen, lasting).lost is None
    for message_, (name,) in zip((ports, verdicts), used[2:], strict=True):
        assert name in (undo_of(message_, lasting).lost or "")
    # nft 1.1.1 and later make a meter's set one that stays.
    assert (undo_of(meter, lasting).lost is None) == (not sets["flood"])


def test_a_chain_of_a_rule_s_own_goes_with_it(native: Native) -> None:
    own, other = native.add("iifname hmdead jump { drop; }", "iifname hmdead jump JOBS")
    assert re.fullmatch(r"__chain\d+", undo_of(own).jump or "")
    assert "is deleted with the rule" in (undo_of(own).lost or "")
    assert (undo_of(other).jump, undo_of(other).lost) == ("JOBS", None)


def test_the_sets_of_ipset_are_told_by_number(ns: Namespace) -> None:
    body = "-m set --match-set blocked src -j DROP"
    assert accept_all(ns, "iptables-nft", [body, "-j DROP"]) == [body, "-j DROP"]
    matching, other = (undo_of(each) for each in dump(ns))
    assert (len(matching.sets), other.sets) == (1, ())
