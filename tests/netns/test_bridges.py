"""Leaked bridges on the real kernel: exactly those go, and their leases and rules with them."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import schema
from tests.namespace import (
    FLAVOURS,
    NETSWEEP,
    NOBODY,
    Namespace,
    as_nobody,
    complaint,
    flocked,
    leaks,
    new_namespace,
    report_of,
    unchanged,
    wait_until_queued,
)
from tests.netns.test_leases import job_in_a_container

DEAD = 2**22
"""A PID that no process ever has."""

YEAR = 365 * 86400

MIN_AGE = 3.0
"""Seconds. What is young is made right before each look, which has to begin within this."""

BRIDGES = ("--bridges", "--format", "json")

Opened = list[socket.socket]


def ip(ns: Namespace, *lines: str) -> None:
    """Run commands of ip(8) in one go."""
    ns.run("ip", "-batch", "-", input="".join(f"{line}\n" for line in lines))


def links(ns: Namespace) -> dict[str, dict[str, Any]]:
    """The links by name, as ip(8) shows them."""
    return {each["ifname"]: each for each in json.loads(ns.run("ip", "-json", "link").stdout)}


def addresses(ns: Namespace) -> dict[str, list[str]]:
    """The addresses of every link."""
    shown = json.loads(ns.run("ip", "-json", "address").stdout)
    return {each["ifname"]: [address["local"] for address in each.get("addr_info", ())] for each in shown}


def rules_of(ns: Namespace) -> dict[str, list[str]]:
    """The rules of both flavours, without counters: the kernel's own packets pass the chains."""
    return {flavour: [re.sub(r"\[\d+:\d+\]", "", line).strip() for line in ns.save(flavour)] for flavour in FLAVOURS}


def lease(name: str, pid: int, created: float = 1781049600, **more: object) -> dict[str, object]:
    return {"test_name": "TestX", "bridge_name": name, "pid": pid, "created_at_unix": int(created), **more}


def write(ns: Namespace, leases: dict[str, dict[str, object]], **more: object) -> bytes:
    """Write the lease file as the test harness does: under a name of its own, then renamed. Returns its content."""
    new = ns.directory / "leases.new"
    new.write_text(json.dumps({**more, "leases": leases}))
    new.rename(ns.lease_file)
    return ns.lease_file.read_bytes()


def written(ns: Namespace) -> dict[str, Any]:
    """What the lease file holds, by subnet."""
    document: dict[str, Any] = json.loads(ns.lease_file.read_text())
    leases: dict[str, Any] = document["leases"]
    return leases


def make_dead(ns: Namespace, *names: str) -> None:
    """Make bridges with an address each, and leases of a process that is gone."""
    write(ns, {f"10.200.{number}.0/24": lease(name, DEAD) for number, name in enumerate(names, 1)})
    lines = []
    for number, name in enumerate(names, 1):
        lines += [f"link add {name} type bridge", f"address add 10.200.{number}.1/24 dev {name}"]
    ip(ns, *lines)


def deleted(report: dict[str, Any]) -> set[str]:
    return {bridge["name"] for bridge in report["bridges"] if bridge["deleted"]}


# --- Situations ---


def listening(address: str, *, kind: int = socket.SOCK_STREAM, protocol: int = 0, device: str = "") -> Opened:
    """A socket that waits at an address, or at every one."""
    opened = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind, protocol)
    if device:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    if opened.family == socket.AF_INET6:
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    opened.bind((address, 0))
    if kind == socket.SOCK_STREAM:
        opened.listen()
    return [opened]


def connecting(address: str) -> Opened:
    """A socket that talks to a neighbour, from the address that the kernel picked for it."""
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.connect((address.removesuffix("1") + "2", 9))
    assert opened.getsockname()[0] == address
    return [opened]


def connected(address: str) -> Opened:
    """A connection to an address; who listens is gone, and listened on every address."""
    with socket.create_server(("0.0.0.0", 0)) as server:
        client = socket.create_connection((address, server.getsockname()[1]))
        return [client, server.accept()[0]]


def closed(address: str) -> Opened:
    """A connection that is over and waits for its last packets (TIME_WAIT)."""
    for end in connected(address):
        end.close()
    (number,) = re.findall(r"\d+", address)[2:3]
    table = Path("/proc/thread-self/net/tcp").read_text()
    assert re.search(rf" 01{int(number):02X}C80A:\w+ \w+:\w+ 06 ", table), table
    return []


def reading(name: str) -> Opened:
    """A socket that reads the packets of an interface."""
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    opened.bind((name, 3))
    return [opened]


class Situation(NamedTuple):
    """A link, how it is made, and what has to come of it.

    ``kept`` are the words that the reason holds, ``None`` where it leaked. ``{b}`` in commands and words stands for its
    name, ``{n}`` for a number of its own; its subnet is ``10.200.{n}.0/24``. ``young`` are commands that run right
    before each look. ``leases`` are the processes of its leases, ``created`` is when these say they were made.
    ``opens`` is called with its name and address. ``first`` is its first name, ``leased_as`` the one in its leases.
    """

    about: str
    kept: str | None
    commands: Sequence[str] = ("link add {b} type bridge", "address add 10.200.{n}.1/24 dev {b}")
    young: Sequence[str] = ()
    leases: Sequence[str] = ()
    created: float = 1781049600
    opens: Callable[[str, str], Opened] | None = None
    first: str = "{b}"
    leased_as: str = "{b}"
    verdict: str = ""


MADE = "link add {b} type bridge"
OWN = "address add 10.200.{n}.1/24 dev {b}"
AGAIN = ("address del 10.200.{n}.1/24 dev {b}", OWN)
ANEW = ("link del {b}", MADE, OWN)
UP = "link set {b} up"
YOUNG = "old, and not leased"
UNKNOWN = "age unknown"
NOT_OURS = "not a name of ours"
SIX = "address add fd00:{n}::1/64 dev {b} nodad"
IN_USE = "a process uses its address 10.200.{n}.1"
BOUND = "a socket is bound to it"

SITUATIONS = [
    # Age.
    Situation("no lease and old", None),
    Situation("no lease and young", YOUNG, young=ANEW),
    Situation("an address that was taken away and added again", YOUNG, young=AGAIN),
    Situation(
        "two addresses of different age",
        YOUNG,
        commands=(MADE, OWN, "address add 10.200.{n}.7/24 dev {b}"),
        young=("address del 10.200.{n}.7/24 dev {b}", "address add 10.200.{n}.7/24 dev {b}"),
    ),
    Situation("two old addresses", None, commands=(MADE, OWN, "address add 10.200.{n}.7/24 dev {b}")),
    Situation("IPv6 only and old", None, commands=(MADE, UP, SIX)),
    Situation(
        "IPv6 only and young",
        YOUNG,
        commands=(MADE, UP, SIX),
        young=("address del fd00:{n}::1/64 dev {b}", SIX),
    ),
    Situation(
        "IPv4 old and IPv6 young",
        YOUNG,
        commands=(MADE, UP, OWN, SIX),
        young=("address del fd00:{n}::1/64 dev {b}", SIX),
    ),
    Situation("link-local made anew", YOUNG, commands=(MADE, UP, OWN), young=("link set {b} down", UP)),
    Situation("no address", UNKNOWN, commands=(MADE,)),
    Situation("no address and a dead lease", None, commands=(MADE,), leases=("dead",)),
    Situation("link-local only", UNKNOWN, commands=(MADE, UP)),
    Situation("link-local only and a dead lease", None, commands=(MADE, UP), leases=("dead",)),
    # Leases.
    Situation("live lease", "a running process (PID {own}) holds a lease for {b}", leases=("own",)),
    Situation("live lease and young", "a running process (PID {own})", young=ANEW, leases=("own",)),
    Situation("dead lease", None, leases=("dead",)),
    Situation("dead lease and young", None, young=ANEW, leases=("dead",)),
    Situation("recycled PID", None, leases=("late",)),
    Situation("recycled PID, and an age that is not known", "a running process", commands=(MADE,), leases=("late",)),
    Situation("recycled PID or not: the address is younger", "a running process", young=AGAIN, leases=("late",)),
    Situation("two leases of which one lives", "a running process (PID {own})", leases=("dead", "own")),
    Situation("two leases of which the other one lives", "a running process (PID {own})", leases=("own", "dead")),
    Situation("two dead leases", None, leases=("dead", "late")),
    Situation("lease of a job in a container", "may be of another PID namespace", leases=("container",)),
    Situation("dead lease of the future", None, leases=("dead",), created=time.time() + YEAR, young=ANEW),
    Situation("dead lease of last year", None, leases=("dead",), created=time.time() - YEAR),
    Situation("live lease of last year", "a running process", leases=("own",), created=time.time() - YEAR),
    Situation("live lease of the future", "a running process", leases=("own",), created=time.time() + YEAR),
    Situation("recycled PID, and a lease of the future", None, leases=("late",), created=time.time() + YEAR),
    # Ports, and what is on top.
    Situation(
        "port that is a TAP",
        "has port tap12",
        commands=(MADE, OWN, "tuntap add dev tap12 mode tap", "link set tap12 master {b}"),
        leases=("dead",),
    ),
    Situation(
        "port that is a veth",
        "has port p{n}",
        commands=(MADE, OWN, "link add p{n} type veth peer name q{n}", "link set p{n} master {b}"),
    ),
    Situation(
        "two ports",
        "has port q{n}, has port p{n}",
        commands=(
            MADE,
            OWN,
            "link add p{n} type veth peer name q{n}",
            "link set p{n} master {b}",
            "link set q{n} master {b}",
        ),
    ),
    Situation(
        "port that it lost",
        None,
        commands=(MADE, OWN, "link add p{n} type veth peer name q{n}", "link set p{n} master {b}", "link del p{n}"),
    ),
    Situation("macvlan", "mv{n} is on top of it", commands=(MADE, OWN, "link add link {b} name mv{n} type macvlan")),
    Situation(
        "macvlan, and a dead lease",
        "mv{n} is on top of it",
        commands=(MADE, OWN, "link add link {b} name mv{n} type macvlan"),
        leases=("dead",),
    ),
    Situation(
        "macvlan in another network namespace",
        "mv{n} of another network namespace is on top of it",
        commands=(MADE, OWN, "link add link {b} name mv{n} type macvlan", "link set mv{n} netns {other}"),
        leases=("dead",),
    ),
    Situation(
        "macvlan that was made right in another network namespace",
        "mv{n} of another network namespace is on top of it",
        commands=(MADE, OWN, "link add link {b} name mv{n} netns {other} type macvlan"),
    ),
    Situation("macvtap", "mv{n} is on top of it", commands=(MADE, OWN, "link add link {b} name mv{n} type macvtap")),
    Situation(
        "vxlan",
        "vx{n} is on top of it",
        commands=(MADE, OWN, "link add vx{n} type vxlan id {n} dstport 4789 remote 10.200.{n}.9 dev {b}"),
    ),
    # Up and down.
    Situation("up, with carrier and without a port", None, commands=(MADE, OWN, UP)),
    Situation("up and down again", None, commands=(MADE, OWN, UP, "link set {b} down")),
    Situation("something reads all packets", "reads all", commands=(MADE, OWN, "link set {b} promisc on")),
    Situation("all multicast", "reads all", commands=(MADE, OWN, "link set {b} allmulticast on"), leases=("dead",)),
    # Sockets.
    Situation("TCP listener", IN_USE, opens=lambda _, address: listening(address)),
    Situation("TCP listener, and a dead lease", IN_USE, opens=lambda _, address: listening(address), leases=("dead",)),
    Situation("UDP socket", IN_USE, opens=lambda _, address: listening(address, kind=socket.SOCK_DGRAM)),
    Situation("UDP socket that is connected", IN_USE, commands=(MADE, OWN, UP), opens=lambda _, a: connecting(a)),
    Situation("TCP connection", IN_USE, opens=lambda _, address: connected(address)),
    Situation("connection that is over", None, opens=lambda _, address: closed(address)),
    Situation("IPv4 listener of an IPv6 socket", IN_USE, opens=lambda _, address: listening(f"::ffff:{address}")),
    Situation(
        "IPv6 listener",
        "a process uses its address fd00:{n}::1",
        commands=(MADE, OWN, UP, SIX),
        opens=lambda name, address: listening(f"fd00:{address.split('.')[2]}::1"),
    ),
    Situation(
        "raw socket",
        IN_USE,
        opens=lambda _, address: listening(address, kind=socket.SOCK_RAW, protocol=socket.IPPROTO_ICMP),
    ),
    Situation(
        "ping socket",
        IN_USE,
        opens=lambda _, address: listening(address, kind=socket.SOCK_DGRAM, protocol=socket.IPPROTO_ICMP),
    ),
    Situation(
        "listener at its second address",
        "a process uses its address 10.200.{n}.7",
        commands=(MADE, OWN, "address add 10.200.{n}.7/24 dev {b}"),
        opens=lambda _, address: listening(address.removesuffix("1") + "7"),
    ),
    Situation("listener at every address", None, opens=lambda *_: [*listening("0.0.0.0"), *listening("::")]),
    Situation("bound TCP listener", BOUND, opens=lambda name, _: listening("0.0.0.0", device=name)),
    Situation(
        "bound UDP socket", BOUND, opens=lambda name, _: listening("0.0.0.0", kind=socket.SOCK_DGRAM, device=name)
    ),
    Situation("packet socket", BOUND, opens=lambda name, _: reading(name), leases=("dead",)),
    # Names.
    Situation("second name that is ours", None, commands=(MADE, OWN, "link property add dev {b} altname {b}a")),
    Situation(
        "second name that is leased",
        "holds a lease for {b}a",
        commands=(MADE, OWN, "link property add dev {b} altname {b}a"),
        leases=("own",),
        leased_as="{b}a",
    ),
    Situation(
        "second name with a dead lease",
        None,
        commands=(MADE, OWN, "link property add dev {b} altname {b}a"),
        leases=("dead",),
        leased_as="{b}a",
    ),
    Situation(
        "second name that is not ours",
        "other{n} is not a name of ours",
        commands=(MADE, OWN, "link property add dev {b} altname other{n}"),
        leases=("dead",),
        verdict="foreign",
    ),
    Situation(
        "second name that is protected",
        "ha{n} is protected",
        commands=(MADE, OWN, "link property add dev {b} altname ha{n}"),
        leases=("dead",),
        verdict="protected",
    ),
    Situation(
        "first name that is not ours",
        "br{n} is not a name of ours",
        commands=(
            "link add br{n} type bridge",
            "address add 10.200.{n}.1/24 dev br{n}",
            "link property add dev br{n} altname {b}",
        ),
        leases=("dead",),
        first="br{n}",
        verdict="foreign",
    ),
    # Other kinds of link.
    Situation(
        "veth",
        "it is a veth, not a bridge",
        commands=("link add {b} type veth peer name q{n}", OWN),
        leases=("dead",),
        verdict="foreign",
    ),
    Situation(
        "macvlan of that name",
        "it is a macvlan, not a bridge",
        commands=("link add base{n} type bridge", "link add link base{n} name {b} type macvlan", OWN),
        leases=("dead",),
        verdict="foreign",
    ),
    Situation(
        "TAP of that name",
        "it is a tun, not a bridge",
        commands=("tuntap add dev {b} mode tap", OWN),
        leases=("dead",),
        verdict="foreign",
    ),
    Situation("ifb", "it is a ifb, not a bridge", ("link add {b} type ifb", OWN), leases=("dead",), verdict="foreign"),
    Situation(
        "vxlan of that name",
        "it is a vxlan, not a bridge",
        commands=("link add {b} type vxlan id 1{n} dstport 4790 remote 192.0.2.1", OWN),
        verdict="foreign",
    ),
]

NAMES = {situation.about: f"hm{0xA00 + number:x}" for number, situation in enumerate(SITUATIONS, 1)}

SECOND = [f"{NAMES[f'second name {rest}']}a" for rest in ("that is ours", "that is leased", "with a dead lease")]
"""The second names of bridges that have rules for these too: the first and the last have leaked."""

FOREIGN = {
    "hmvpn0": ("foreign", NOT_OURS),
    "hm12G": ("foreign", NOT_OURS),
    "hm": ("foreign", NOT_OURS),
    "hm12.5": ("foreign", NOT_OURS),
    "xhm12": ("foreign", NOT_OURS),
    "ha3fa": ("protected", "ha3fa is protected"),
    "hahm12": ("protected", "hahm12 is protected"),
}
"""Old bridges with other names, each with a lease of a dead process, and what is said of them."""

UNCONCERNED = ("HM12", "docker0", "br-0123")
"""Old bridges with other names, of which nothing is said."""


class World(NamedTuple):
    """The namespace with all situations, the processes that leases name, and what was found and done."""

    ns: Namespace
    pids: dict[str, int]
    before: dict[str, dict[str, Any]]
    listed: dict[str, dict[str, Any]]
    swept: dict[str, Any]
    after: dict[str, dict[str, Any]]
    rules: tuple[dict[str, list[str]], dict[str, list[str]]]
    leases: tuple[dict[str, Any], dict[str, Any]]
    addresses: tuple[dict[str, list[str]], dict[str, list[str]]]


def filled(situation: Situation, text: str, **more: object) -> str:
    """A command of a situation, or words."""
    return text.format(b=NAMES[situation.about], n=number_of(situation.about), **more)


def number_of(about: str) -> int:
    return list(NAMES).index(about) + 1


def verdict_of(situation: Situation) -> str:
    """The verdict on a bridge that is kept."""
    if situation.verdict:
        return situation.verdict
    if situation.kept in (YOUNG, UNKNOWN):
        return "undecidable"
    return "leased" if {"own", "late", "container"} & {*situation.leases} else "live"


@contextmanager
def a_process() -> Iterator[int]:
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            yield process.pid
        finally:
            process.kill()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Make all situations, list them, and sweep once."""
    directory = tmp_path_factory.mktemp("bridges")
    with (
        new_namespace(directory) as ns,
        new_namespace(directory) as other,
        job_in_a_container() as container,
        ExitStack() as sockets,
    ):
        pids = {"dead": DEAD, "own": os.getpid(), "container": container}

        def of_all(pick: Callable[[Situation], Sequence[str]]) -> list[str]:
            return [filled(each, line, other=other.name) for each in SITUATIONS for line in pick(each)]

        # The kernel tells of sockets once the modules for it are loaded, as ss(8) has them loaded.
        ns.run("ss", "--tcp", "--udp", "--raw")
        ns.run("sysctl", "-q", "net.ipv4.ping_group_range=0 0")
        ip(ns, "link set lo up", *of_all(lambda each: each.commands))
        for number, name in enumerate([*FOREIGN, *UNCONCERNED], 1):
            ip(ns, f"link add {name} type bridge", f"address add 10.201.{number}.1/24 dev {name}")
        made = time.monotonic()
        ns.inside(lambda: [sockets.enter_context(each) for each in _open_all()])
        everybody = [*NAMES.values(), *SECOND, "hmdead1", "hmdead2", *FOREIGN]
        for flavour in FLAVOURS:
            ns.restore(flavour, leaks(everybody))
        time.sleep(max(0.0, made + MIN_AGE + 0.1 - time.monotonic()))
        with a_process() as late:
            pids["late"] = late
            write(ns, _leases(pids))
            young = of_all(lambda each: each.young)
            ip(ns, *young)
            before, held, rules = links(ns), written(ns), rules_of(ns)
            listed = report_of(ns.netsweep("list", "--all", *BRIDGES, "--min-age", f"{MIN_AGE:g}"))
            assert (links(ns), written(ns), rules_of(ns)) == (before, held, rules)
            assert not ns.lock_file.exists()
            ip(ns, *young)
            before, known = links(ns), addresses(ns)
            swept = report_of(ns.netsweep("sweep", *BRIDGES, "--min-age", f"{MIN_AGE:g}"))
            after = links(ns)
            yield World(
                ns,
                pids,
                before,
                {bridge["name"]: bridge for bridge in listed["bridges"]},
                swept,
                after,
                (rules, rules_of(ns)),
                (held, written(ns)),
                (known, addresses(ns)),
            )


def _open_all() -> Iterator[socket.socket]:
    # One that reads the packets of every interface keeps none.
    yield socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3)
    for number, situation in enumerate(SITUATIONS, 1):
        if situation.opens:
            yield from situation.opens(NAMES[situation.about], f"10.200.{number}.1")


def _leases(pids: dict[str, int]) -> dict[str, dict[str, object]]:
    found = {}
    for number, each in enumerate(SITUATIONS, 1):
        for place, whose in enumerate(each.leases):
            name = filled(each, each.leased_as)
            found[f"10.{200 + 10 * place}.{number}.0/24"] = lease(name, pids[whose], each.created)
    for number, name in enumerate(FOREIGN, 1):
        found[f"10.201.{number}.0/24"] = lease(name, DEAD)
    found["10.202.1.0/24"] = lease("hmdead1", DEAD)
    found["10.202.2.0/24"] = lease("hmdead2", pids["own"])
    found["10.202.3.0/24"] = lease("docker7", DEAD)
    return found


def gone_names() -> set[str]:
    return {NAMES[each.about] for each in SITUATIONS if each.kept is None}


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda each: each.about.replace(" ", "-"))
def test_a_bridge_goes_only_on_proof(world: World, situation: Situation) -> None:
    name = NAMES[situation.about]
    first = filled(situation, situation.first)
    found = world.listed[first]
    if situation.kept is None:
        assert found["verdict"] == "leaked", found
        assert first in world.before
        assert first not in world.after
        (done,) = [each for each in world.swept["bridges"] if each["name"] == first]
        assert (done["verdict"], done["deleted"]) == ("leaked", True)
    else:
        words = filled(situation, situation.kept, **world.pids)
        assert words in found["reason"], found
        assert found["verdict"] == verdict_of(situation)
        assert first in world.before
        assert world.after[first] == world.before[first]
        assert world.addresses[0][first] == world.addresses[1][first]
    for flavour in FLAVOURS:
        before, after = (_of(rules[flavour], name) for rules in world.rules)
        assert len(before) == 3
        assert after == (before if situation.kept else [])


def _of(lines: list[str], name: str) -> list[str]:
    return [line for line in lines if re.search(rf"\b{name}\b", line)]


def test_nothing_but_leaked_bridges_goes(world: World) -> None:
    gone = gone_names()
    assert world.after == {name: link for name, link in world.before.items() if name not in gone}
    assert deleted(world.swept) == gone
    assert world.swept["bridges_deleted"] == len(gone)
    assert world.swept["bridges_scanned"] == len(SITUATIONS) + len(FOREIGN)
    assert world.swept["errors"] == world.swept["warnings"] == []


def test_each_rule_of_a_leaked_bridge_goes_and_no_other(world: World) -> None:
    gone = [*gone_names(), SECOND[0], SECOND[2], "hmdead1"]
    before, after = world.rules
    for flavour in FLAVOURS:
        assert after[flavour] == [line for line in before[flavour] if not any(_of([line], name) for name in gone)]
    assert world.swept["deleted"] == 3 * len(gone) * len(FLAVOURS)


@pytest.mark.parametrize("name", FOREIGN)
def test_names_of_others_are_kept_and_said_why(world: World, name: str) -> None:
    verdict, words = FOREIGN[name]
    assert world.listed[name]["verdict"] == verdict
    assert words in world.listed[name]["reason"]


def test_of_names_that_are_not_like_ours_nothing_is_said(world: World) -> None:
    assert not world.listed.keys() & set(UNCONCERNED)
    assert len(world.listed) == len(SITUATIONS) + len(FOREIGN)


def test_the_lease_of_a_bridge_goes_with_it_and_so_does_one_without_a_bridge(world: World) -> None:
    before, after = world.leases
    gone = {*gone_names(), SECOND[2], "hmdead1"}
    assert after == {subnet: each for subnet, each in before.items() if each["bridge_name"] not in gone}
    assert world.swept["leases_removed"] == len(before) - len(after)
    assert world.swept["stale_leases"] == len(before) - len(after)


def test_the_json_names_lease_subnet_age_and_ports(world: World) -> None:
    number = number_of("dead lease")
    found = world.listed[NAMES["dead lease"]]
    assert found["lease"] == {"subnet": f"10.200.{number}.0/24", "pid": DEAD}
    assert found["subnet"] == f"10.200.{number}.0/24"
    assert found["age_seconds"] >= MIN_AGE
    assert found["ifindex"] == world.before[found["name"]]["ifindex"]
    assert (found["ports"], found["deleted"]) == ([], False)
    assert world.listed[NAMES["port that is a TAP"]]["ports"] == ["tap12"]
    assert world.listed[NAMES["no address"]]["age_seconds"] is None
    assert world.listed[NAMES["no address"]]["subnet"] is None
    assert world.listed[NAMES["no lease and old"]]["lease"] is None
    assert world.listed[NAMES["recycled PID"]]["reason"].endswith("which started after its address was made")
    assert world.listed[NAMES["dead lease"]]["reason"].endswith("which is gone")


def test_the_json_names_the_lock(world: World) -> None:
    lock = world.swept["locks"]["subnet"]
    assert lock["path"] == str(world.ns.lock_file)
    assert 0 < lock["longest_ms"] <= lock["held_ms"]


# --- Other network namespaces ---


def test_a_macvlan_in_the_namespace_of_a_process_keeps_the_bridge(ns: Namespace) -> None:
    make_dead(ns, "hm1", "hm2")
    ip(ns, "link add link hm1 name mv1 type macvlan")
    with subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep 600"], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        ip(ns, f"link set mv1 netns {process.pid}")
        report = report_of(ns.netsweep("sweep", *BRIDGES))
        process.kill()
    assert deleted(report) == {"hm2"}


def test_a_macvlan_in_a_namespace_that_may_not_be_entered_keeps_the_bridge(ns: Namespace) -> None:
    make_dead(ns, "hm1")
    with new_namespace(ns.directory) as other:
        ip(ns, f"link add link hm1 name mv1 netns {other.name} type macvlan")
        without_sys_admin = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all")
        ns.run(*without_sys_admin, *NETSWEEP, "sweep", *BRIDGES, check=False)
        assert "mv1" in links(other)


def test_a_macvlan_in_a_namespace_whose_path_has_a_space_keeps_the_bridge(ns: Namespace) -> None:
    make_dead(ns, "hm1")
    path = ns.directory / "a name"
    path.touch()
    subprocess.run(["unshare", f"--net={path}", "true"], check=True)
    try:
        ip(ns, "link add link hm1 name mv1 type macvlan")
        with subprocess.Popen(
            ["nsenter", f"--net={path}", "sh", "-c", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout
            process.stdout.readline()
            ip(ns, f"link set mv1 netns {process.pid}")
            process.communicate()
        assert not deleted(report_of(ns.netsweep("sweep", *BRIDGES)))
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize("how", ["dev hm1 remote 10.200.1.9", "local 10.200.1.1"])
def test_a_vxlan_that_was_moved_to_another_namespace_keeps_the_bridge(ns: Namespace, how: str) -> None:
    make_dead(ns, "hm1")
    with new_namespace(ns.directory) as other:
        ip(ns, f"link add vx0 type vxlan id 7 dstport 4789 {how}", f"link set vx0 netns {other.name}")
        assert not deleted(report_of(ns.netsweep("sweep", *BRIDGES)))
        assert "vx0" in links(other)


ONE_THREAD_ELSEWHERE = """
import ctypes, sys, threading
there, done = threading.Event(), threading.Event()
def elsewhere():
    ctypes.CDLL(None).unshare(0x40000000)
    print(threading.get_native_id(), flush=True)
    done.wait()
thread = threading.Thread(target=elsewhere)
thread.start()
sys.stdin.read()
done.set()
"""


def test_a_macvlan_in_a_namespace_that_only_a_thread_is_in_keeps_the_bridge(ns: Namespace) -> None:
    make_dead(ns, "hm1")
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", ONE_THREAD_ELSEWHERE], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout
        thread = int(process.stdout.readline())
        ip(ns, f"link add link hm1 name mv1 netns {thread} type macvlan")
        assert not deleted(report_of(ns.netsweep("sweep", *BRIDGES)))
        process.communicate()


# --- What changes while the sweep waits for the subnet lock ---


@contextmanager
def waiting(ns: Namespace, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A sweep that has looked and waits for the subnet lock, which it gets in the end."""
    with flocked(ns.lock_file):
        process = ns.start(*NETSWEEP, "sweep", *BRIDGES, *arguments)
        try:
            wait_until_queued(process.pid, ns.lock_file)
            yield process
        except BaseException:
            process.kill()
            process.communicate()
            raise


def outcome(process: subprocess.Popen[str], status: int = 0) -> dict[str, Any]:
    """The report of a sweep that was waited for."""
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (status, "")
    return schema.read(stdout)


class Race(NamedTuple):
    """What is done to a bridge, ``{b}``, with the index ``{i}``, and under which name it stands then.

    ``leases`` are the processes of its leases then, where these change.
    """

    about: str
    commands: Sequence[str]
    stands: str | None
    leases: Sequence[str] | None = None


RACES = [
    Race("renamed", ["link set {b} name {b}f"], "{b}f"),
    Race("got a name that is not ours", ["link set {b} name br{i}"], "br{i}"),
    Race("got a second name", ["link property add dev {b} altname other{i}"], "{b}"),
    Race("made again", ["link del {b}", MADE], "{b}"),
    Race("made again with its index", ["link del {b}", "link add {b} index {i} type bridge"], "{b}"),
    Race("got a port", ["link add p{i} type veth peer name q{i}", "link set p{i} master {b}"], "{b}"),
    Race("leased", [], "{b}", ["own"]),
    Race("leased twice", [], "{b}", ["dead", "own"]),
    Race("deleted", ["link del {b}"], None),
    Race("left as it was", [], None),
]
"""No more than are deleted before a sweep looks at all of them again."""


@pytest.mark.parametrize("leased", [True, False], ids=["dead-lease", "no-lease"])
def test_what_changes_while_the_sweep_waits_for_the_lock_stays(ns: Namespace, leased: bool) -> None:
    names = {race.about: f"hm{0xB0 + number:x}" for number, race in enumerate(RACES)}
    for flavour in FLAVOURS:
        ns.restore(flavour, leaks(names.values()))
    make_dead(ns, *names.values())
    # A bridge without an address of its own takes that of a port, and would tell of it so.
    ip(ns, *(f"link set {name} address 02:00:00:00:00:{number:02x}" for number, name in enumerate(names.values(), 1)))
    known = written(ns)
    if not leased:
        ns.lease_file.unlink()
        known = {}
    indexes = {name: link["ifindex"] for name, link in links(ns).items()}
    pids = {"dead": DEAD, "own": os.getpid()}
    with waiting(ns, "--min-age", "0") as process:
        commands, leases = list[str](), dict(known)
        for number, race in enumerate(RACES, 1):
            name = names[race.about]
            commands += [command.format(b=name, i=indexes[name]) for command in race.commands]
            for place, whose in enumerate(race.leases or ()):
                leases[f"10.{200 + 10 * place}.{number}.0/24"] = lease(name, pids[whose])
        ip(ns, *commands)
        write(ns, leases)
    report = outcome(process)
    stand = {
        race.stands.format(b=names[race.about], i=indexes[names[race.about]]): names[race.about]
        for race in RACES
        if race.stands
    }
    found = links(ns)
    assert stand.keys() == {name for name in found if re.match(r"hm|br", name)}
    # That one is not there any more counts as success; one that was made again is another one.
    assert deleted(report) == {names["made again"], names["deleted"], names["left as it was"]}
    verdicts = {each["ifindex"]: each["verdict"] for each in report["bridges"] if not each["deleted"]}
    assert verdicts.keys() == {indexes[name] for about, name in names.items() if name not in deleted(report)}
    assert "leaked" not in verdicts.values()
    assert verdicts[indexes[names["leased"]]] == "leased"
    changed = set(names.values()) - deleted(report)
    kept = {lease["bridge_name"] for lease in written(ns).values()}
    assert kept == ({names["leased"], names["leased twice"]} | (changed if leased else set()))
    # A rule stays where its bridge stands or is leased.
    for flavour in FLAVOURS:
        rules = rules_of(ns)[flavour]
        assert {name for name in names.values() if _of(rules, name)} == {
            name for name in names.values() if name in found or name in kept & {names["leased"], names["leased twice"]}
        }


@pytest.mark.parametrize("again", [False, True], ids=["others", "the-same"])
def test_a_lease_file_that_is_replaced_meanwhile_is_read_again(ns: Namespace, again: bool) -> None:
    make_dead(ns, "hm1", "hm2", "hm3")
    leases = written(ns)
    with waiting(ns) as process:
        if not again:
            leases["10.200.7.0/24"] = lease("hm7", os.getpid(), made_by={"job": 7})
            leases["10.200.2.0/24"]["note"] = "\u00e4"
            del leases["10.200.3.0/24"]
        write(ns, leases, version=2, more=[1.5, None])
    report = outcome(process)
    # What was leased at the look and is not any more has changed: the next sweep decides.
    assert links(ns).keys() == ({"lo"} if again else {"lo", "hm3"})
    assert report["leases_removed"] == (3 if again else 2)
    left = json.loads(ns.lease_file.read_text())
    assert (left["version"], left["more"]) == (2, [1.5, None])
    assert left["leases"] == {name: leases[name] for name in ([] if again else ["10.200.7.0/24"])}


def test_a_lease_file_that_is_damaged_meanwhile_keeps_every_bridge(ns: Namespace) -> None:
    make_dead(ns, "hm1", "hm2")
    before = links(ns)
    with waiting(ns) as process:
        ns.lease_file.write_text('{"leases": {"10.200.1.0/24": {"bridge_name": "hm1"')
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "cannot understand lease file" in stderr
    assert schema.read(stdout)["changed"] is False
    assert links(ns) == before


def test_a_lease_file_that_is_removed_meanwhile_proves_nothing(ns: Namespace) -> None:
    make_dead(ns, "hm1")
    with waiting(ns) as process:
        ns.lease_file.unlink()
    assert not deleted(outcome(process))
    assert "hm1" in links(ns)
    assert not ns.lease_file.exists()


def test_a_sweep_that_waits_too_long_for_the_lock_changes_nothing(ns: Namespace) -> None:
    make_dead(ns, "hm1")
    for flavour in FLAVOURS:
        ns.restore(flavour, leaks(["hm1", "hm9"]))
    content, before = ns.lease_file.read_bytes(), links(ns)
    with flocked(ns.lock_file), unchanged(ns):
        done = ns.netsweep("sweep", *BRIDGES, "--lock-timeout", "0.1")
    assert "subnet lock" in complaint(done, 75)
    assert json.loads(done.stdout)["changed"] is False
    assert (links(ns), ns.lease_file.read_bytes()) == (before, content)


# --- The lease file ---


def test_the_lease_file_is_replaced_and_keeps_owner_mode_and_all_that_is_not_understood(public_ns: Namespace) -> None:
    ns = public_ns
    make_dead(ns, "hm1")
    leases = {
        **written(ns),
        "10.200.7.0/24": lease("hm7", os.getpid(), labels={"a": [1, 2.50, None, True]}, text="\u00e4\n"),
        "10.200.8.0/24": lease("hm8", DEAD),
        "10.200.9.0/24": lease("docker9", DEAD),
        "any text": lease("ha9", DEAD),
    }
    write(ns, leases, version={"major": 3}, comment="\u00e4", empty=None)
    # Another user's file, in a directory with the sticky bit.
    os.chown(ns.lease_file, NOBODY, NOBODY)
    ns.lease_file.chmod(0o640)
    before, beside = ns.lease_file.stat(), set(ns.directory.iterdir())
    opened = ns.lease_file.open()
    report = report_of(ns.netsweep("sweep", *BRIDGES))
    with opened:  # which holds the inode, so that it is not given out again
        after = ns.lease_file.stat()
        assert json.load(opened)["leases"] == leases
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
    assert after.st_ino != before.st_ino
    assert set(ns.directory.iterdir()) - beside <= {ns.lock_file, ns.xtables_lock}
    left = json.loads(ns.lease_file.read_text())
    gone = {"10.200.1.0/24", "10.200.8.0/24"}
    assert left == {
        "version": {"major": 3},
        "comment": "\u00e4",
        "empty": None,
        "leases": {name: each for name, each in leases.items() if name not in gone},
    }
    assert report["leases_removed"] == 2
    assert report["changed"] is True


def test_stale_leases_alone_are_removed_too(ns: Namespace) -> None:
    write(ns, {"10.200.1.0/24": lease("hm1", DEAD), "10.200.2.0/24": lease("hm2", os.getpid())})
    listed = report_of(ns.netsweep("list", *BRIDGES))
    assert (listed["leases"]["leases"], listed["leases"]["running"], listed["stale_leases"]) == (2, 1, 1)
    report = report_of(ns.netsweep("sweep", *BRIDGES))
    assert (report["leases_removed"], report["bridges_deleted"], report["changed"]) == (1, 0, True)
    assert written(ns) == {"10.200.2.0/24": lease("hm2", os.getpid())}


def test_a_lease_of_the_dead_stays_where_its_bridge_is_in_use(ns: Namespace) -> None:
    make_dead(ns, "hm1")
    ip(ns, "link add p1 type veth peer name q1", "link set p1 master hm1")
    content = ns.lease_file.read_bytes()
    report = report_of(ns.netsweep("sweep", *BRIDGES))
    assert (report["leases_removed"], report["changed"]) == (0, False)
    assert ns.lease_file.read_bytes() == content


def test_where_nothing_is_stale_nothing_is_written_and_no_lock_is_taken(ns: Namespace) -> None:
    ip(ns, "link add hm1 type bridge")
    content = write(ns, {"10.200.1.0/24": lease("hm1", os.getpid()), "10.200.2.0/24": lease("hm2", os.getpid())})
    before = ns.lease_file.stat()
    report = report_of(ns.netsweep("sweep", *BRIDGES))
    assert (ns.lease_file.stat(), ns.lease_file.read_bytes()) == (before, content)
    assert (report["changed"], report["locks"]["subnet"]) == (False, None)
    assert not ns.lock_file.exists()


@pytest.mark.parametrize("command", [["list"], ["list", "--all"], ["sweep", "--dry-run"]], ids=" ".join)
def test_a_look_changes_nothing(ns: Namespace, command: list[str]) -> None:
    make_dead(ns, "hm1", "hm2")
    for flavour in FLAVOURS:
        ns.restore(flavour, leaks(["hm1", "hm9"]))
    before = (links(ns), ns.lease_file.read_bytes(), ns.lease_file.stat(), set(ns.directory.iterdir()))
    with unchanged(ns):
        report = report_of(ns.netsweep(*command, *BRIDGES))
    assert (links(ns), ns.lease_file.read_bytes(), ns.lease_file.stat(), set(ns.directory.iterdir())) == before
    assert {each["name"] for each in report["bridges"] if each["verdict"] == "leaked"} == {"hm1", "hm2"}
    # The rules that would go with a bridge are orphans already.
    assert {rule["bridge"] for rule in report["orphans"]} == {"hm1", "hm9"}
    assert {rule["reason"] for rule in report["orphans"] if rule["bridge"] == "hm1"} == {
        "its bridge is leaked, and is deleted first"
    }
    assert (report["changed"], report["bridges_deleted"], report["stale_leases"]) == (False, 0, 2)


@pytest.mark.parametrize("lease_file", ["missing", "empty", "null"])
def test_no_leases_are_no_proof_and_no_obstacle(ns: Namespace, lease_file: str) -> None:
    ip(ns, MADE.format(b="hm1"), "address add 10.200.1.1/24 dev hm1", MADE.format(b="hm2"))
    if lease_file != "missing":
        ns.lease_file.write_text("" if lease_file == "empty" else '{"leases": null}')
    assert not deleted(report_of(ns.netsweep("sweep", *BRIDGES)))
    assert deleted(report_of(ns.netsweep("sweep", *BRIDGES, "--min-age", "0"))) == {"hm1"}
    assert ns.lease_file.exists() is (lease_file != "missing")


@pytest.mark.parametrize("content", ["{", '{"leases": {"10.200.1.0/24": {"bridge_name": "hm1"}}}', "LINK"])
def test_a_lease_file_that_is_not_understood_keeps_every_bridge(ns: Namespace, content: str) -> None:
    make_dead(ns, "hm1")
    if content == "LINK":
        ns.lease_file.rename(ns.directory / "elsewhere")
        ns.lease_file.symlink_to(ns.directory / "elsewhere")
    else:
        ns.lease_file.write_text(content)
    assert "lease file" in complaint(ns.netsweep("sweep", *BRIDGES, "--min-age", "0"), 1)
    assert "hm1" in links(ns)


def test_what_a_killed_sweep_left_beside_the_lease_file_is_not_followed(ns: Namespace) -> None:
    make_dead(ns, "hm1")
    victim = ns.directory / "victim"
    victim.write_text("mine")
    new = ns.directory / f"{ns.lease_file.name}.netsweep"
    new.symlink_to(victim)
    report_of(ns.netsweep("sweep", *BRIDGES))
    assert (victim.read_text(), written(ns), new.is_symlink(), new.exists()) == ("mine", {}, False, False)
    assert not ns.lease_file.is_symlink()


def test_a_user_who_may_not_replace_the_lease_file_is_told(public_ns: Namespace) -> None:
    ns = public_ns
    make_dead(ns, "hm1")
    ns.lease_file.chmod(0o644)
    content = ns.lease_file.read_bytes()
    done = as_nobody(ns, ["net_admin", "sys_admin", "sys_ptrace"], "sweep", *BRIDGES, "--backend", "nft")
    # The bridge is gone, so the status that promises that nothing was changed would be wrong.
    assert "cannot replace lease file" in complaint(done, 1)
    assert links(ns).keys() == {"lo"}
    assert ns.lease_file.read_bytes() == content
    assert (json.loads(done.stdout)["bridges_deleted"], json.loads(done.stdout)["leases_removed"]) == (1, 0)
    assert not list(ns.directory.glob("*.netsweep"))


# --- Clocks and PID namespaces ---


def shifted(ns: Namespace, monotonic: int, boottime: int, *options: str) -> dict[str, Any]:
    """Sweep where the kernel's clocks are that many seconds ahead (time_namespaces(7))."""
    clocks = ("unshare", "--time", "--fork", "--monotonic", str(monotonic), "--boottime", str(boottime))
    return report_of(ns.run(*clocks, *NETSWEEP, "sweep", *BRIDGES, *options, check=False))


def test_clocks_of_a_time_namespace_make_no_bridge_older_and_no_process_younger(ns: Namespace) -> None:
    ip(ns, *(line.format(b=name, n=number) for number, name in enumerate(("hm1", "hm2"), 1) for line in (MADE, OWN)))
    # A look reads the ages of processes last, so one that started less than a look takes after an address counts.
    time.sleep(1.5)
    with a_process() as late:
        write(ns, {"10.200.2.0/24": lease("hm2", late, time.time() - YEAR)})
        # As after a suspend: the clock of addresses stood still, or nobody knows.
        assert not deleted(shifted(ns, 0, 3600, "--min-age", "1h"))
        assert not deleted(shifted(ns, 3600, 0, "--min-age", "1h"))
        report = shifted(ns, 90000, 90000, "--min-age", "1h")
    assert deleted(report) == {"hm2"}
    assert report["bridges"][0]["reason"].endswith("which started after its address was made")
    assert links(ns).keys() == {"lo", "hm1"}
    # That a process is gone is told without clocks.
    write(ns, {"10.200.1.0/24": lease("hm1", DEAD)})
    assert deleted(shifted(ns, 0, 3600, "--min-age", "1h")) == {"hm1"}


@pytest.mark.parametrize("ahead", [2_000_000, 3_000_000, 8_589_934, YEAR])
def test_a_time_namespace_that_is_far_ahead_makes_no_bridge_older(ns: Namespace, ahead: int) -> None:
    """So far that the kernel's timer might be taken for one of another frequency."""
    ip(ns, MADE.format(b="hm1"), "address add 10.200.1.1/24 dev hm1")
    clocks = ("unshare", "--time", "--fork", "--monotonic", str(ahead), "--boottime", str(ahead))
    listed = report_of(ns.run(*clocks, *NETSWEEP, "list", "--all", *BRIDGES, check=False))
    assert [each["age_seconds"] < 60 for each in listed["bridges"]] == [True]


def test_from_inside_a_pid_namespace_no_lease_is_judged_dead(ns: Namespace) -> None:
    make_dead(ns, "hm1", "hm2")
    ip(ns, MADE.format(b="hm3"), "address add 10.200.3.1/24 dev hm3")
    inside = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *NETSWEEP)
    listed = report_of(ns.run(*inside, "list", "--all", *BRIDGES, "--min-age", "0", check=False))
    reasons = {each["name"]: each["reason"] for each in listed["bridges"] if each["verdict"] == "leased"}
    assert reasons.keys() == {"hm1", "hm2"}
    assert all(reason.endswith("which may be of another PID namespace") for reason in reasons.values())
    # Processes of the host may be in network namespaces that have links on top of it.
    report = report_of(ns.run(*inside, "sweep", *BRIDGES, "--min-age", "0", check=False))
    assert deleted(report) == set()
    assert report["leases_removed"] == 0


# --- Options and reports ---


def test_max_deletes_counts_bridges_and_rules(ns: Namespace) -> None:
    make_dead(ns, "hm1", "hm2")
    for flavour in FLAVOURS:
        ns.restore(flavour, leaks(["hm1", "hm9"]))
    number = 2 + 2 * 3 * len(FLAVOURS)
    before, content = links(ns), ns.lease_file.read_bytes()
    for dry_run in (["--dry-run"], []):
        with unchanged(ns):
            done = ns.netsweep("sweep", *BRIDGES, "--max-deletes", str(number - 1), *dry_run)
        assert f"{number - 2} rules and 2 bridges would go, which is more than" in complaint(done, 1)
        assert (links(ns), ns.lease_file.read_bytes()) == (before, content)
    done = ns.netsweep("sweep", *BRIDGES, "--max-deletes", "0", "--best-effort")
    assert (done.returncode, links(ns)) == (0, before)
    report = report_of(ns.netsweep("sweep", *BRIDGES, "--max-deletes", str(number)))
    assert (report["deleted"], report["bridges_deleted"]) == (number - 2, 2)


def test_the_journal_notes_bridges_and_restore_says_that_they_stay_away(ns: Namespace) -> None:
    make_dead(ns, "hm1", "hm2")
    ip(ns, "link set hm1 mtu 1400", "link set hm1 address 02:00:00:00:00:0a", "link set hm1 up")
    ip(ns, "address add fd00:1::1/64 dev hm1 nodad")
    for flavour in FLAVOURS:
        ns.restore(flavour, leaks(["hm1"]))
    rules, macs = rules_of(ns), {name: link["address"] for name, link in links(ns).items()}
    journal = ns.directory / "journal"
    report_of(ns.netsweep("sweep", *BRIDGES, "--journal", str(journal)))
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    noted = {line.pop("bridge"): line for line in lines if "bridge" in line and line.pop("digest")}
    own = [each for each in noted["hm1"].pop("addresses") if not each.startswith("fe80:")]
    assert own == ["10.200.1.1/24", "fd00:1::1/64"]
    assert noted == {
        "hm1": {"mtu": 1400, "mac": "02:00:00:00:00:0a"},
        "hm2": {"addresses": ["10.200.2.1/24"], "mtu": 1500, "mac": macs["hm2"]},
    }
    done = ns.netsweep("restore", str(journal))
    assert done.returncode == 0
    assert done.stderr == "netsweep: warning: bridges are not brought back: hm1, hm2\n"
    assert rules_of(ns) == rules
    assert links(ns).keys() == {"lo"}


def test_a_journal_of_bridges_alone_has_nothing_to_restore(ns: Namespace) -> None:
    make_dead(ns, "hm1")
    journal = ns.directory / "journal"
    report_of(ns.netsweep("sweep", *BRIDGES, "--journal", str(journal)))
    done = ns.netsweep("restore", str(journal))
    assert done.returncode == 1
    assert "there are no rules in the journal: nothing was restored" in done.stderr
    assert "bridges are not brought back: hm1" in done.stderr
    # What it holds is somebody's only record.
    make_dead(ns, "hm2")
    content = journal.read_bytes()
    assert "exists already" in complaint(ns.netsweep("sweep", *BRIDGES, "--journal", str(journal)), 1)
    assert ("hm2" in links(ns), journal.read_bytes()) == (True, content)


def test_no_journal_is_left_where_no_bridge_goes(ns: Namespace) -> None:
    ip(ns, MADE.format(b="hm1"), "address add 10.200.1.1/24 dev hm1")
    report_of(ns.netsweep("sweep", *BRIDGES, "--journal", str(ns.directory / "journal")))
    assert not (ns.directory / "journal").exists()


def test_exit_code_tells_of_a_leaked_bridge_without_rules(ns: Namespace) -> None:
    ip(ns, MADE.format(b="hm1"), "address add 10.200.1.1/24 dev hm1")
    assert ns.netsweep("list", "--bridges", "--exit-code").returncode == 0
    assert ns.netsweep("list", "--bridges", "--exit-code", "--min-age", "0").returncode == 3
    assert ns.netsweep("list", "--exit-code", "--min-age", "0").returncode == 0  # not asked for


def test_without_the_option_no_bridge_and_no_lease_goes(ns: Namespace) -> None:
    make_dead(ns, "hm1")
    content = ns.lease_file.read_bytes()
    for flavour in FLAVOURS:
        ns.restore(flavour, leaks(["hm1", "hm9"]))
    report = report_of(ns.netsweep("sweep", "--format", "json", "--min-age", "0"))
    assert (report["bridges"], report["bridges_scanned"], report["deleted"]) == ([], None, 3 * len(FLAVOURS))
    assert "hm1" in links(ns)
    assert ns.lease_file.read_bytes() == content


def test_the_text_and_github_formats_name_the_numbers(ns: Namespace) -> None:
    make_dead(ns, "hm1", "hm2")
    for flavour in FLAVOURS:
        ns.restore(flavour, leaks(["hm1"]))
    listed = ns.netsweep("list", "--bridges").stdout
    assert f"bridge hm1 10.200.1.0/24 -- leaked: its lease names PID {DEAD}, which is gone\n" in listed
    numbers = "2 leaked bridges, 2 stale leases and 6 orphaned rules of 1 bridge"
    assert f"Found {numbers} in " in listed
    summary = ns.directory / "summary"
    github = {"GITHUB_STEP_SUMMARY": str(summary)}
    command = (*NETSWEEP, "sweep", "--bridges", "--format", "github")
    done = ns.run(*command, environment=github)
    assert f"::notice title=netsweep::Deleted {numbers} in " in done.stdout
    assert f"Deleted {numbers} in " in summary.read_text()
    assert done.stderr == ""
    again = ns.run(*command, environment=github)
    assert again.stdout.startswith("Nothing to sweep: no leaked bridges, 0 looked at")


def test_best_effort_tells_of_a_failure_and_succeeds(ns: Namespace) -> None:
    make_dead(ns, "hm1")
    ns.lease_file.write_text("{")
    done = ns.netsweep("sweep", "--bridges", "--best-effort", "--format", "github")
    assert done.returncode == 0
    assert "cannot understand lease file" in done.stderr
    assert "::warning title=netsweep::cannot understand lease file" in done.stdout
    assert "hm1" in links(ns)


def test_wrong_usage_is_told_in_one_line(ns: Namespace) -> None:
    make_dead(ns, "hm1")
    wrong = ("", "x", "-1", "1h-2m", "1m1h", "1w", "nan", "inf", "1e3", "1 h", "0x10", "1.5h")
    for value in wrong:
        assert "min-age" in complaint(ns.netsweep("sweep", "--bridges", f"--min-age={value}"), 2)
    assert "docker" in complaint(ns.netsweep("sweep", "--bridges", "--profile", "docker"), 2)
    assert "max-deletes" in complaint(ns.netsweep("sweep", "--bridges", "--max-deletes", "-1"), 2)
    assert "hm1" in links(ns)


def test_more_bridges_than_one_portion_go_in_one_run(ns: Namespace) -> None:
    names = [f"hm{number:x}" for number in range(0xC00, 0xC00 + 25)]
    make_dead(ns, *names, "hmlive")
    ip(ns, "link set hmlive name hm1f")
    write(
        ns, {**{n: each for n, each in written(ns).items() if each["bridge_name"] != "hmlive"}, "x": lease("hm1f", 1)}
    )
    for flavour in FLAVOURS:
        ns.restore(flavour, leaks([*names, "hm1f"]))
    report = report_of(ns.netsweep("sweep", *BRIDGES))
    assert deleted(report) == set(names)
    assert links(ns).keys() == {"lo", "hm1f"}
    assert written(ns) == {"x": lease("hm1f", 1)}
    assert (report["deleted"], report["leases_removed"]) == (3 * len(names) * len(FLAVOURS), len(names))
