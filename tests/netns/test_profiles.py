"""Profiles, names, chains and families on the real kernel: what is asked for goes, with real packets too."""

from __future__ import annotations

import itertools
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from netsweep import NetsweepError, Report, profiles
from netsweep.jobs import look
from netsweep.output.text import summary
from tests.namespace import (
    Namespace,
    complaint,
    in_process,
    leaks,
    new_namespace,
    of_bridge,
    report_of,
    unchanged,
)
from tests.rulesets import GOES, found, gone, gone_rules, load, load_native, restored, snapshot, swept, to_go

TOOLS = ("iptables", "ip6tables")
SUBNETS = {"iptables": "10.200.1.0/24", "ip6tables": "fd00:1::/64"}
ADDRESSES = {"iptables": "10.200.1.2/32", "ip6tables": "fd00:1::2/128"}


@pytest.fixture(autouse=True)
def here(ns: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    in_process(ns, monkeypatch)


# Packets


NUMBERS = itertools.count(1)
"""Of pingers: connections are told apart by them."""


class Pinger:
    """Sends echo requests from a namespace to an address."""

    def __init__(self, ns: Namespace, address: str) -> None:
        self._socket = ns.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
        # It hears nobody else.
        self._socket.connect((address, 0))
        self._number = next(NUMBERS)
        self._sent = 0

    def send(self) -> None:
        self._sent += 1
        # Type 8, code 0; all words together make 0xFFFF.
        self._socket.send(struct.pack("!4H", 0x0800, 0xF7FF - self._number - self._sent, self._number, self._sent))

    def answered(self, timeout: float) -> bool:
        """Whether the last one is answered within ``timeout`` seconds."""
        end = time.monotonic() + timeout
        while True:
            self._socket.settimeout(max(0.0, end - time.monotonic()))
            try:
                packet = self._socket.recv(1500)
            except (BlockingIOError, TimeoutError):
                return False
            answer = packet[(packet[0] & 15) * 4 :]
            if answer[0] == 0 and struct.unpack_from("!HH", answer, 4) == (self._number, self._sent):
                return True

    def gets_through(self) -> bool:
        self.send()
        return self.answered(10)

    def close(self) -> None:
        self._socket.close()


@contextmanager
def pinger(ns: Namespace, address: str) -> Iterator[Pinger]:
    found = Pinger(ns, address)
    try:
        yield found
    finally:
        found.close()


@contextmanager
def answered_throughout(ns: Namespace, address: str) -> Iterator[None]:
    """Check that ``address`` answers everything that it is sent, before, meanwhile and afterwards."""
    answers, stop = [0], threading.Event()
    lost: list[int] = []

    def ping() -> None:
        with pinger(ns, address) as sender:
            while not stop.wait(0.001) and not lost:
                if sender.gets_through():
                    answers[0] += 1
                else:
                    lost.append(answers[0])

    def more() -> None:
        seen = answers[0]
        eventually(lambda: answers[0] > seen + 1 or bool(lost))

    thread = threading.Thread(target=ping)
    thread.start()
    try:
        more()
        yield
        more()
    finally:
        stop.set()
        thread.join()
    assert not lost, f"one was lost after {lost[0]} answers"


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.001)


class Networks(NamedTuple):
    """A host with two networks, each with a container, and somebody outside."""

    host: Namespace
    outside: Namespace
    new: Namespace
    other: Namespace


DEAD, NEW, OTHER = "br-dead00000000", "br-0e0e0e0e0e0e", "br-0a0b0c0d0e0f"
"""Bridges: of a network that died, of one that got its subnet, and of another."""

HOST = "198.51.100.1"
OUTSIDE = "198.51.100.2"
IN_NEW, IN_OTHER = "172.20.0.2", "172.18.0.2"


@pytest.fixture
def networks(ns: Namespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Networks]:
    directory = tmp_path_factory.mktemp("guests")
    with new_namespace(directory) as outside, new_namespace(directory) as new, new_namespace(directory) as other:
        ns.add_bridges(NEW, OTHER)
        batch = [f"addr add 172.20.0.1/16 dev {NEW}", f"addr add 172.18.0.1/16 dev {OTHER}"]
        for port, guest in (("eth0", outside), ("veth0", new), ("veth1", other)):
            batch.append(f"link add {port} type veth peer name eth0 netns {guest.name}")
        batch += [f"addr add {HOST}/24 dev eth0", f"link set veth0 master {NEW}", f"link set veth1 master {OTHER}"]
        batch += [f"link set {name} up" for name in ("lo", NEW, OTHER, "eth0", "veth0", "veth1")]
        ns.run("ip", "-batch", "-", input="\n".join([*batch, ""]))
        ns.run("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
        for guest, address, gateway in (
            (outside, f"{OUTSIDE}/24", HOST),
            (new, f"{IN_NEW}/16", "172.20.0.1"),
            (other, f"{IN_OTHER}/16", "172.18.0.1"),
        ):
            commands = f"addr add {address} dev eth0\nlink set eth0 up\nroute add default via {gateway}\n"
            guest.run("ip", "-batch", "-", input=commands)
        yield Networks(ns, outside, new, other)


DOCKERS = f"""
*raw
:PREROUTING ACCEPT [0:0]
-A PREROUTING -d {IN_NEW}/32 ! -i {DEAD} -j DROP # goes
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.20.0.0/16 ! -o {DEAD} -j MASQUERADE # goes
-A POSTROUTING -s 172.18.0.0/16 ! -o {OTHER} -j MASQUERADE
-A DOCKER ! -i {DEAD} -p tcp -m tcp --dport 8080 -j DNAT --to-destination {IN_NEW}:80 # goes
COMMIT
*filter
:FORWARD ACCEPT [0:0]
-A FORWARD -i {DEAD} ! -o {DEAD} -j ACCEPT # goes
-A FORWARD -i {OTHER} ! -o {OTHER} -j ACCEPT
-A FORWARD -o {NEW} -j ACCEPT
-A FORWARD -i {NEW} -j ACCEPT
COMMIT
"""


def dropped(ns: Namespace, flavour: str) -> int:
    """How many packets the rule in table raw has dropped since it was loaded."""
    (line,) = [line for line in ns.save(flavour) if line.endswith(f"! -i {DEAD} -j DROP")]
    loaded = DOCKERS.splitlines().index(f"-A PREROUTING -d {IN_NEW}/32 ! -i {DEAD} -j DROP {GOES}")
    return int(line[1:].partition(":")[0]) - loaded


def connected(ns: Namespace, address: str, port: int) -> bool:
    """Whether somebody takes a connection; nobody refuses to answer at all."""

    def connect() -> bool:
        try:
            socket.create_connection((address, port), timeout=20).close()
        except ConnectionRefusedError:
            return False
        return True

    return ns.inside(connect)


def listening(ns: Namespace, port: int) -> socket.socket:
    return ns.inside(lambda: socket.create_server(("", port)))


def test_who_gets_the_subnet_of_a_dead_network_of_docker_is_cut_off_until_a_sweep(
    networks: Networks, flavour: str
) -> None:
    host, outside, new, _ = networks
    for guest, source in ((outside, IN_NEW), (outside, HOST)):
        # Counts who asks, seen from outside.
        guest.run("iptables-nft", "-A", "INPUT", "-s", source, "-p", "icmp", "-j", "ACCEPT")

    def seen_as() -> list[int]:
        lines = outside.run("iptables-nft-save", "-c").stdout.splitlines()
        return [int(line[1:].partition(":")[0]) for line in lines if line.startswith("[")]

    load(host, flavour, DOCKERS)
    before = snapshot(host)
    with (
        answered_throughout(outside, IN_OTHER),
        pinger(outside, IN_NEW) as to_new,
        pinger(new, OUTSIDE) as from_new,
        listening(host, 8080),
    ):
        to_new.send()
        eventually(lambda: dropped(host, flavour) == 1)
        assert not to_new.answered(0)
        # Masqueraded by a rule of a network that is none of its own, it looks like the host.
        assert from_new.gets_through()
        assert seen_as() == [0, 1]
        # The host's port belongs to a container that is gone; here nobody listens at its address.
        assert not connected(outside, HOST, 8080)

        done = host.netsweep("sweep", "--profile", "docker", "--settle", "0")
        assert (done.returncode, done.stderr) == (0, "")
        assert "Deleted 4 orphaned rules of 1 bridge" in done.stdout
        assert "matched live traffic: 1 DNAT, 1 DROP, 1 MASQUERADE" in done.stdout
        assert to_new.gets_through()
        assert connected(outside, HOST, 8080)
        # A connection that was translated stays so: a new one.
        with pinger(new, OUTSIDE) as from_new_again:
            assert from_new_again.gets_through()
        assert seen_as() == [2, 1]
    missing = gone(before.without_counters, snapshot(host).without_counters)
    assert sorted(line.partition(": ")[2] for line in missing if ": -A" in line) == to_go(DOCKERS)


# Profiles


NAMED = f"""
*filter
:FORWARD ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -i mybr0 ! -o mybr0 -j ACCEPT # goes
-A FORWARD -i mybr0 -o eth7 -j ACCEPT
-A FORWARD -i {DEAD} -p tcp -j ACCEPT
-A FORWARD -i mybr1 ! -o mybr1 -j ACCEPT
-A DOCKER ! -i mybr0 -o mybr0 -j DROP # goes
-A DOCKER ! -i {OTHER} -o {OTHER} -j DROP
-A DOCKER-USER -i mybr0 -j ACCEPT
COMMIT
*nat
:POSTROUTING ACCEPT [0:0]
-A POSTROUTING -s 172.31.0.0/16 ! -o mybr0 -j MASQUERADE # goes
-A POSTROUTING -s 172.31.0.0/16 ! -o mybr0 -d 10.0.0.0/8 -j MASQUERADE
-A POSTROUTING ! -o mybr0 -j MASQUERADE
COMMIT
"""


def test_networks_with_names_of_their_own_are_swept_by_name_beside_those_of_the_profile(
    ns: Namespace, flavour: str
) -> None:
    ns.add_bridges(OTHER, "mybr1")
    load(ns, flavour, NAMED)
    before = snapshot(ns)
    assert found(ns, profile="docker", settle=0).orphans == []
    options = ("--profile", "docker", "--settle", "0", "--name", "mybr[0-9]", "--format", "json")
    report = report_of(ns.netsweep("list", *options))
    assert {rule["bridge"] for rule in report["orphans"]} == {"mybr0"}
    assert snapshot(ns) == before
    assert report_of(ns.netsweep("sweep", *options))["orphans"] == report["orphans"]
    assert gone_rules(before, snapshot(ns)) == to_go(NAMED)


NEARLY = """
*filter
:FORWARD ACCEPT [0:0]
:DOCKER - [0:0]
-A FORWARD -i docker0 -o docker0 -j ACCEPT # goes
-A FORWARD -i docker0 -j ACCEPT
-A FORWARD -i docker0 ! -o eth0 -j ACCEPT
-A FORWARD -i docker0 -o docker_gwbridge -j ACCEPT
-A FORWARD ! -i docker0 -o docker0 -j ACCEPT
-A FORWARD -i docker0 ! -o docker0 -p tcp -j ACCEPT
-A FORWARD ! -s 10.0.0.0/8 -i docker0 -o docker0 -j ACCEPT
-A FORWARD -f -i docker0 -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -m mark --mark 0x1 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -m physdev --physdev-in vnet1 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -m comment --comment "mine" -j ACCEPT
-A FORWARD -i docker0 ! -o docker0 -j LOG
-A FORWARD -o docker0 -g DOCKER
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -m limit --limit 1/sec -j ACCEPT
COMMIT
*nat
:POSTROUTING ACCEPT [0:0]
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE # goes
-A POSTROUTING -s 172.17.0.0/16 -d 10.0.0.0/8 ! -o docker0 -j MASQUERADE
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -p tcp -j MASQUERADE --to-ports 1024-2000
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -m mark --mark 0x3 -j MASQUERADE
-A POSTROUTING -s 172.17.0.0/16 -o docker0 -j MASQUERADE
-A POSTROUTING ! -o docker0 -j MASQUERADE
COMMIT
*raw
:PREROUTING ACCEPT [0:0]
-A PREROUTING -d 172.17.0.2/32 ! -i docker0 -j DROP # goes
-A PREROUTING -d 172.17.0.2/32 ! -i docker0 -p tcp -j DROP
-A PREROUTING ! -d 172.17.0.2/32 ! -i docker0 -j DROP
-A PREROUTING -d 172.17.0.2/32 ! -i docker0 -j ACCEPT
COMMIT
"""


def test_an_administrators_rule_that_is_nearly_dockers_stays(ns: Namespace, flavour: str) -> None:
    load(ns, flavour, NEARLY)
    before = snapshot(ns)
    swept(ns, profile="docker", settle=0, include_negated=True)
    assert gone_rules(before, snapshot(ns)) == to_go(NEARLY)


MORE = (
    *("log", "limit rate 1/second", "quota 10 mbytes", "meta mark set 0x1", "meta mark 0x1", "ct mark 0x1"),
    *(
        "ip ttl 3",
        "ip dscp 3",
        "ip id 3",
        "ip length 40",
        "@nh,0,8 69",
        "meta length 100-200",
        "meta pkttype broadcast",
    ),
    *("ip saddr { 10.0.0.1, 10.0.0.2 }", "ip saddr & 255.0.0.255 == 10.0.0.1", "tcp flags syn", "th dport 3"),
    *("meta l4proto tcp", "meta iiftype ether", "ether saddr 00:00:00:00:00:01", "fib saddr type local"),
    *("meta skuid 0", "numgen random mod 2 0", "ip daddr 10.0.0.1", "iif 3", "oif 3"),
)
"""What makes a rule more than the form of one."""


def test_a_rule_in_the_words_of_nft_has_a_form_only_where_nothing_else_is_in_it(ns: Namespace) -> None:
    own = 'iifname "docker0" oifname "docker0"'
    rules = [f"{own} {more} accept" for more in MORE] + [f'{own} accept comment "mine"', f"{own} counter accept"]
    declared = "table ip filter {\n chain FORWARD {\n type filter hook forward priority 0; policy accept\n"
    load_native(ns, "\n".join([declared, *rules, f"{own} accept", "}", "}", ""]))
    assert len(snapshot(ns).listed) >= len(rules)
    report = swept(ns, profile="docker", settle=0)
    # A counter is in every rule of iptables.
    assert [finding.rule.position for finding in report.orphans] == [len(rules), len(rules) + 1]


MINE = """
about = "virtual networks of our own"
names = ["vif*.0"]
prefixes = ["tapx"]
protected = ["vif1."]
comments = ["vmm {name}"]
private = ["*/VMM*"]
never = ["mangle/*"]

[forms]
"filter/FORWARD" = ["-i {name} -s {net} -j ACCEPT"]
"raw/PREROUTING" = ["-d {ip} ! -i {name} -j DROP"]
"nat/POSTROUTING" = ["-o {name} -j MASQUERADE"]
"""

OF_MINE = """
*raw
:PREROUTING ACCEPT [0:0]
-A PREROUTING -d 10.0.0.2/32 ! -i vif2.0 -j DROP # goes
-A PREROUTING -d 10.0.0.2/32 ! -i vif3.0 -j DROP
-A PREROUTING -d 10.0.0.2/32 ! -i vif1.0 -j DROP
-A PREROUTING ! -i vif2.0 -j DROP
-A PREROUTING -i vif2.0 -j DROP
COMMIT
*mangle
:VMM - [0:0]
-A VMM -i vif2.0 -j DROP
COMMIT
*nat
:POSTROUTING ACCEPT [0:0]
-A POSTROUTING -o vif2.0 -j MASQUERADE # goes
-A POSTROUTING -m physdev --physdev-in vif2.0 -j ACCEPT
COMMIT
*filter
:FORWARD ACCEPT [0:0]
:VMM-9 - [0:0]
-A FORWARD -s 10.0.0.0/24 -i vif2.0 -j ACCEPT # goes
-A FORWARD -s 10.0.0.0/24 -i tapxff -j ACCEPT # goes
-A FORWARD -s 10.0.0.0/24 -i tapxyz -j ACCEPT
-A FORWARD -s 10.0.0.0/24 -i vif2.1 -j ACCEPT
-A FORWARD -s 10.0.0.0/24 -i vif2.0 -p tcp -j ACCEPT
-A FORWARD -i vif2.0 -j ACCEPT
-A FORWARD -s 10.0.0.0/24 -m comment --comment "vmm vif2.0" -j DROP # goes
-A FORWARD -s 10.0.0.0/24 -m comment --comment "vmm vif3.0" -j DROP
-A VMM-9 -i vif2.0 -p tcp -j ACCEPT # goes
-A VMM-9 -o vif3.0 -j ACCEPT
COMMIT
"""


def test_a_profile_of_ones_own_says_what_goes(ns: Namespace, flavour: str, tmp_path: Path) -> None:
    ns.add_bridges("vif3.0")
    load(ns, flavour, OF_MINE)
    before = snapshot(ns)
    (tmp_path / "mine.toml").write_text(MINE)
    done = ns.run("sh", "-c", f"cd {tmp_path} && exec {sys.executable} -m netsweep sweep --profile ./mine.toml")
    assert "Deleted 6 orphaned rules of 2 bridges" in done.stdout
    assert gone_rules(before, snapshot(ns)) == to_go(OF_MINE)


def test_a_copy_of_a_profile_is_as_good_as_the_profile(ns: Namespace, flavour: str, tmp_path: Path) -> None:
    ns.add_bridges(NEW, OTHER)
    load(ns, flavour, DOCKERS)
    copy = tmp_path / "mine.toml"
    copy.write_text(ns.netsweep("profiles", "docker").stdout)
    assert copy.read_text() == profiles.source("docker")
    one, other = found(ns, profile="docker", settle=0), found(ns, profile=copy, settle=0)
    assert len(one.orphans) == len(to_go(DOCKERS))
    assert (one.orphans, one.kept) == (other.orphans, other.kept)


def test_a_profile_that_is_wrong_ends_in_one_line_and_changes_nothing(ns: Namespace, tmp_path: Path) -> None:
    load(ns, "nft", DOCKERS)
    (tmp_path / "mine.toml").write_text(MINE.replace("-d {ip} ! -i {name} -j DROP", "! -i {name} -j DROP"))
    with unchanged(ns):
        line = complaint(ns.netsweep("sweep", "--profile", str(tmp_path / "mine.toml")), 2)
        assert "is negated matches live traffic" in line
        assert "there is no profile 'dokcer'" in complaint(ns.netsweep("sweep", "--profile", "dokcer"), 2)


# Two looks


class Wait:
    """What the job of looking knows of time; somebody does something while it waits."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self.slept: list[float] = []
        self.monotonic = time.monotonic
        self._meanwhile = meanwhile

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self._meanwhile()
        time.sleep(seconds)


@pytest.mark.parametrize("job", [swept, found])
def test_a_name_that_comes_or_goes_while_a_look_waits_keeps_its_rules(
    ns: Namespace, flavour: str, monkeypatch: pytest.MonkeyPatch, job: Callable[..., Report]
) -> None:
    ns.add_bridges("hm1ea7e5")
    ns.restore(flavour, leaks(["hmdead", "hmc0de", "hm1ea7e5"]))

    def meanwhile() -> None:
        ns.run("ip", "link", "add", "hmc0de", "type", "bridge")
        ns.run("ip", "link", "del", "hm1ea7e5")

    wait = Wait(meanwhile)
    monkeypatch.setattr(look, "time", wait)
    report = job(ns, settle=0.1)
    assert wait.slept == [0.1]
    assert {finding.bridge for finding in report.orphans} == {"hmdead"}
    assert len(report.orphans) == 3
    left = [of_bridge(ns, flavour, name) for name in ("hmc0de", "hm1ea7e5", "hmdead")]
    assert left == [3, 3, 0 if job is swept else 3]


def test_nothing_waits_where_there_is_no_orphan(ns: Namespace, flavour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ns.add_bridges("hm1a")
    ns.restore(flavour, leaks(["hm1a"]))
    wait = Wait(lambda: None)
    monkeypatch.setattr(look, "time", wait)
    assert swept(ns, settle=3600).deleted == 0
    assert wait.slept == []


def test_what_was_gone_in_both_looks_goes(ns: Namespace, flavour: str) -> None:
    ns.restore(flavour, leaks(["hmdead"]))
    report = report_of(ns.netsweep("sweep", "--settle", "0.5", "--format", "json"))
    assert report["deleted"] == 3
    assert report["duration_ms"] >= 500


# Chains


EVERYWHERE = {"filter": "FORWARD", "nat": "POSTROUTING", "mangle": "PREROUTING", "raw": "OUTPUT", "security": "INPUT"}
"""A built-in chain of every table."""


def everywhere(tool: str) -> str:
    """A dead rule and a live one in a built-in chain and in one of a user's own, in every table."""
    lines = []
    for table, chain in EVERYWHERE.items():
        lines += [f"*{table}", ":MINE - [0:0]", f"-A {chain} -j MINE"]
        for each in (chain, "MINE"):
            subnet = SUBNETS[tool]
            lines += [f"-A {each} -s {subnet} -m comment --comment hypeman-x-hmdead -j RETURN {GOES}"]
            lines += [f"-A {each} -s {subnet} -m comment --comment hypeman-x-hm1a -j RETURN"]
        lines += ["COMMIT"]
    return "\n".join(lines)


@pytest.mark.parametrize("tool", TOOLS)
def test_all_chains_are_those_of_users_too_in_every_table(ns: Namespace, flavour: str, tool: str) -> None:
    ns.add_bridges("hm1a")
    rules = everywhere(tool)
    load(ns, flavour, rules, tool)
    before = snapshot(ns)
    assert len(to_go(rules)) == 10
    assert found(ns).elsewhere == 8
    assert len(found(ns, chain="*/MINE").orphans) == 5
    assert found(ns, chain=["raw/*", "mangle/*"]).elsewhere == 6
    report = report_of(ns.netsweep("sweep", "--all-chains", "--format", "json"))
    assert (report["deleted"], report["elsewhere"], report["overlooked"]) == (10, 0, [])
    assert gone_rules(before, snapshot(ns)) == to_go(rules)


def test_a_list_and_doctor_count_what_stands_where_they_do_not_look_and_a_sweep_does_not(
    ns: Namespace, flavour: str
) -> None:
    for tool in TOOLS:
        load(ns, flavour, everywhere(tool), tool)
    # Both names are gone here: four rules in each chain of each family.
    report = found(ns)
    assert (len(report.orphans), report.elsewhere) == (8, 32)
    assert "; 32 more orphaned rules in chains that were not looked at: --all-chains" in summary(report)
    doctor = " ".join(ns.netsweep("doctor").stdout.split())
    assert "It would delete 8 rules. 32 more orphaned rules in chains that were not looked at: --all-chains." in doctor
    report = found(ns, family="ipv4", chain="raw/*")
    assert (len(report.orphans), report.elsewhere) == (4, 36)
    report = swept(ns)
    assert (report.deleted, report.elsewhere) == (8, 0)
    assert "--all-chains" not in summary(report)
    nothing = summary(found(ns))
    assert nothing.startswith("Nothing to sweep: no orphaned rules")
    assert "; 32 more orphaned rules" in nothing


# Negated matches


def guards(tool: str, outer: str = "hmdead") -> str:
    """Rules that match everything but one interface."""
    address, subnet = ADDRESSES[tool], SUBNETS[tool]
    target = "10.200.1.2:80" if tool == "iptables" else "[fd00:1::2]:80"
    return f"""
*filter
:FORWARD ACCEPT [0:0]
-A FORWARD -d {address} ! -i {outer} -j DROP # goes
-A FORWARD -s {subnet} ! -o {outer} -j ACCEPT # goes
-A FORWARD ! -i {outer} -p tcp -m tcp --dport 80 -j DROP # goes
-A FORWARD ! -i {outer} -p udp -m multiport --dports 53,67 -j DROP # goes
-A FORWARD ! -i {outer} -p tcp -m tcp --sport 80 -m comment --comment guard -j DROP # goes
-A FORWARD ! -i {outer} -p sctp -m sctp --dport 80 -j DROP # goes
-A FORWARD ! -i {outer} -j DROP
-A FORWARD ! -i {outer} -p tcp -j DROP
-A FORWARD ! -i {outer} -m conntrack --ctstate NEW -j DROP
-A FORWARD ! -s {subnet} ! -i {outer} -j DROP
-A FORWARD ! -i {outer} -p tcp -m tcp ! --dport 22 -j DROP
-A FORWARD ! -i {outer} -p tcp -m multiport ! --dports 22,80 -j DROP
-A FORWARD ! -i {outer} -p sctp -m sctp ! --dport 22 -j DROP
-A FORWARD ! -i {outer} -p sctp -m sctp --chunk-types any INIT -j DROP
-A FORWARD ! -i {outer} -m comment --comment "only from {subnet}" -j DROP
-A FORWARD -d {address} ! -i hm1a -j DROP
-A FORWARD -d {address} ! -i eth7 -j DROP
-A FORWARD -d {address} ! -i hm+ -j DROP
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A PREROUTING ! -i {outer} -p tcp -m tcp --dport 8080 -j DNAT --to-destination {target} # goes
-A POSTROUTING -s {subnet} ! -o {outer} -j MASQUERADE # goes
-A POSTROUTING ! -o {outer} -j MASQUERADE
COMMIT
"""


@pytest.mark.parametrize("tool", TOOLS)
def test_negated_rules_go_where_they_restrict_and_a_bare_guard_never_does(
    ns: Namespace, flavour: str, tool: str
) -> None:
    ns.add_bridges("hm1a")
    rules = guards(tool)
    load(ns, flavour, rules, tool)
    before = snapshot(ns)
    assert swept(ns, all_chains=True).deleted == 0
    assert snapshot(ns) == before
    report = swept(ns, all_chains=True, include_negated=True, journal=ns.directory / "journal")
    assert gone_rules(before, snapshot(ns)) == to_go(rules)
    harm = sorted(str(finding.live_traffic) for finding in report.orphans)
    assert harm == ["ACCEPT", "DNAT", *["DROP"] * 5, "MASQUERADE"]
    assert restored(ns, ns.directory / "journal") == len(to_go(rules))
    assert snapshot(ns).without_counters == before.without_counters


NATIVE = """
table inet mine {
  chain forward {
    type filter hook forward priority filter; policy accept
    iifname "hmdead" accept # goes
    iifname "hm1a" accept
    oifname "hmdead" ip6 daddr fd00:1::2 accept # goes
    iifname != "hmdead" ip daddr 10.200.1.2 drop # negated
    iifname != "hmdead" ip6 daddr fd00:1::2 drop # negated
    iifname != "hmdead" tcp dport 80 drop # negated
    iifname != "hmdead" drop
    iifname != "hmdead" tcp dport != 22 drop
    iifname != "hmdead" ip daddr != 10.200.1.2 drop
    iifname != "hmdead" counter packets 0 bytes 0 drop
  }
}
"""


def test_native_guards_are_told_apart_too(ns: Namespace) -> None:
    load_native(ns, NATIVE)
    ns.add_bridges("hm1a")
    before = snapshot(ns)
    swept(ns, all_chains=True)
    assert gone_rules(before, snapshot(ns)) == to_go(NATIVE)
    report = swept(ns, chain="inet:mine/*", include_negated=True)
    assert gone_rules(before, snapshot(ns)) == to_go(NATIVE.replace("# negated", GOES))
    assert [finding.live_traffic for finding in report.orphans] == ["DROP"] * 3


def test_a_list_shows_negated_rules_in_a_paragraph_of_their_own(ns: Namespace, flavour: str) -> None:
    ns.add_bridges("hm1a")
    load(ns, flavour, guards("iptables"))
    paragraphs = ns.netsweep("list").stdout.split("\n\n")
    (negated,) = [each.splitlines() for each in paragraphs if "everything but" in each]
    # In nat/PREROUTING is one more, which is not looked at.
    assert negated[0] == "17 rules that match everything but a bridge that is gone still match live traffic:"
    assert len(negated) == 18
    assert any("-d 10.200.1.2/32 ! -i hmdead -j DROP -- negated: it names hmdead only" in line for line in negated)
    assert all(line.endswith(" live traffic (DROP)") for line in negated if "-j DROP --" in line)
    assert "--include-negated sweeps those that also restrict" in negated[-1]
    assert not any("hm1a" in line for line in negated)
    report = report_of(ns.netsweep("list", "--format", "json"))
    assert (len(report["negated"]), report["orphans"]) == (17, [])


# How much


def test_more_than_max_deletes_is_an_error_and_changes_nothing(ns: Namespace, flavour: str) -> None:
    ns.restore(flavour, leaks(["hmdead", "hmc0de"]))
    with unchanged(ns):
        line = complaint(ns.netsweep("sweep", "--max-deletes", "5"), 1)
        assert line == "netsweep: 6 rules would go, which is more than --max-deletes 5"
        for more in {"dry_run": True}, {"journal": ns.directory / "journal"}:
            with pytest.raises(NetsweepError, match="6 rules would go") as raised:
                swept(ns, max_deletes=5, **more)
            assert raised.value.report
            assert len(raised.value.report.orphans) == 6
    assert not (ns.directory / "journal").exists()
    assert swept(ns, max_deletes=6).deleted == 6
    assert swept(ns, max_deletes=0).deleted == 0


# Families


class Kind(NamedTuple):
    """One backend and family: how it is loaded, and which options of ``--family`` take it."""

    backend: str
    family: str
    takes: tuple[str, ...]

    def load(self, ns: Namespace) -> str:
        """Load leaked rules of a bridge that is gone, and of one that is there; the text of what is loaded."""
        if self.family == "inet":
            rules = """
table inet filter {
  chain FORWARD {
    type filter hook forward priority filter; policy accept
    iifname "hmdead" accept comment "hypeman-fwd-out-hmdead" # goes
    iifname "hm1a" accept comment "hypeman-fwd-out-hm1a"
    oifname "hmdead" ip6 saddr fd00:1::/64 counter packets 0 bytes 0 accept # goes
  }
}
"""
            load_native(ns, rules)
            return rules
        tool = "iptables" if self.family == "ipv4" else "ip6tables"
        subnet = SUBNETS[tool]
        rules = f"""
*filter
:FORWARD ACCEPT [0:0]
-A FORWARD -i hmdead -o eth0 -m comment --comment hypeman-fwd-out-hmdead -j ACCEPT # goes
-A FORWARD -i hm1a -o eth0 -m comment --comment hypeman-fwd-out-hm1a -j ACCEPT
-A FORWARD -s {subnet} -i hmdead -j ACCEPT # goes
COMMIT
*nat
:POSTROUTING ACCEPT [0:0]
-A POSTROUTING -s {subnet} -o eth0 -m comment --comment hypeman-nat-hm1a -j MASQUERADE
-A POSTROUTING -s {subnet} -o eth0 -m comment --comment hypeman-nat-hmdead -j MASQUERADE # goes
COMMIT
"""
        load(ns, self.backend, rules, tool)
        return rules


KINDS = (
    Kind("legacy", "ipv4", ("all", "ipv4")),
    Kind("legacy", "ipv6", ("all", "ipv6")),
    Kind("nft", "ipv4", ("all", "ipv4")),
    Kind("nft", "ipv6", ("all", "ipv6")),
    Kind("nft", "inet", ("all", "ipv4", "ipv6")),
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.backend} {kind.family}")
def test_every_family_is_swept_by_default_and_comes_back(ns: Namespace, kind: Kind) -> None:
    ns.add_bridges("hm1a", "eth0")
    rules = kind.load(ns)
    before = snapshot(ns)
    journal = str(ns.directory / "journal")
    report = report_of(ns.netsweep("sweep", "--journal", journal, "--format", "json"))
    assert gone_rules(before, snapshot(ns)) == to_go(rules)
    assert {(rule["backend"], rule["family"]) for rule in report["orphans"]} == {(kind.backend, kind.family)}
    (shown,) = report["backends"]
    assert (shown["name"], shown["family"], shown["deleted"]) == (kind.backend, kind.family, len(to_go(rules)))
    report = report_of(ns.netsweep("restore", journal, "--format", "json"))
    assert [(each["name"], each["family"], each["restored"]) for each in report["backends"]] == [
        (kind.backend, kind.family, len(to_go(rules)))
    ]
    assert snapshot(ns).without_counters == before.without_counters


@pytest.mark.parametrize("family", ["all", "ipv4", "ipv6"])
def test_one_family_leaves_the_other_and_inet_belongs_to_both(ns: Namespace, family: str) -> None:
    ns.add_bridges("hm1a", "eth0")
    loaded = {kind: kind.load(ns) for kind in KINDS}
    before = snapshot(ns)
    wanted = [rule for kind, rules in loaded.items() if family in kind.takes for rule in to_go(rules)]
    report = swept(ns, family=family, journal=ns.directory / "journal")
    assert {(each.name, each.family.value) for each in report.backends if each.deleted} == {
        (kind.backend, kind.family) for kind in KINDS if family in kind.takes
    }
    assert gone_rules(before, snapshot(ns)) == sorted(wanted)
    assert restored(ns, ns.directory / "journal") == len(wanted)
    assert snapshot(ns).without_counters == before.without_counters


def made(ns: Namespace) -> dict[str, list[str]]:
    """Tables, and modules of the kernel where it has any."""
    names = {name: f"/proc/net/{name}_tables_names" for name in ("ip", "ip6")}
    tables = {name: sorted(ns.run("cat", path, check=False).stdout.split()) for name, path in names.items()}
    modules = Path("/proc/modules")
    return {
        **tables,
        "nft": ns.run("nft", "list", "tables").stdout.splitlines(),
        "modules": sorted(line.split()[0] for line in modules.read_text().splitlines()) if modules.exists() else [],
    }


@pytest.mark.parametrize("profile", [profiles.DEFAULT, "docker"])
@pytest.mark.parametrize("kind", [None, *KINDS], ids=lambda kind: f"{kind.backend} {kind.family}" if kind else "empty")
def test_no_table_of_any_family_comes_into_being_and_no_module(ns: Namespace, kind: Kind | None, profile: str) -> None:
    ns.add_bridges("hm1a", "eth0")
    if kind and kind.family == "inet":
        kind.load(ns)
    elif kind:
        # One table, so that others could be made.
        tool = "iptables" if kind.family == "ipv4" else "ip6tables"
        load(ns, kind.backend, f"*nat\n-A POSTROUTING -s {SUBNETS[tool]} ! -o {DEAD} -j MASQUERADE\nCOMMIT\n", tool)
    before = made(ns)
    assert sum(map(len, (before["ip"], before["ip6"], before["nft"]))) == (kind is not None)
    options: dict[str, Any] = {"profile": profile, "settle": 0}
    found(ns, **options, all_chains=True)
    found(ns, **options, family="ipv6")
    swept(ns, **options, all_chains=True, include_negated=True)
    assert ns.netsweep("doctor", "--profile", profile, "--settle", "0").returncode == 0
    assert made(ns) == before
