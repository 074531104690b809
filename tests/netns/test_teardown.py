"""``netsweep teardown`` on real networks: all of one goes, nothing else does, and it may be killed anywhere."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import pytest

import netsweep
from netsweep.errors import NetsweepError, UsageError
from tests.namespace import (
    FAMILIES,
    FLAVOURS,
    NETSWEEP,
    Namespace,
    complaint,
    flocked,
    in_process,
    leak,
    new_namespace,
    report_of,
    restore_input,
    unchanged,
    wait_until_queued,
)
from tests.unit.jobs.host import ended_process

RULES = 15
"""How many rules a network has in each family."""

KILLS = 6


def subnet_of(bridge: str) -> str:
    return f"10.200.{int(bridge[2:], 16)}.0/24"


def host_of(bridge: str, number: int = 1) -> str:
    return subnet_of(bridge).replace("0/24", str(number))


def rules_of(bridge: str) -> dict[str, list[str]]:
    """The rules of a network: by match and by comment, in built-in chains and in one of its own, some several times."""
    by_table = leak(bridge, subnet_of(bridge))
    comment = "-m comment --comment hypeman"
    return {
        "filter": [
            # It would be emptied if two networks had it, and were made one after the other.
            f":JOB{bridge[2:]} - [0:0]",
            *by_table["filter"],
            *by_table["filter"],
            f"-A FORWARD -s {subnet_of(bridge)} {comment}-fwd-back-{bridge} -j ACCEPT",
            f"-A INPUT -i {bridge} -p udp --dport 53 -j ACCEPT",
            f"-A INPUT -d {host_of(bridge)} {comment}-gateway-{bridge} -j ACCEPT",
            f"-A OUTPUT -o {bridge} -j ACCEPT",
            f"-A JOB{bridge[2:]} -i {bridge} -j DROP",
        ],
        "nat": [
            *by_table["nat"],
            *by_table["nat"],
            f"-A PREROUTING -i {bridge} -p tcp --dport 80 -j REDIRECT --to-ports 8080",
        ],
        "raw": [f"-A PREROUTING -i {bridge} -j ACCEPT", f"-A OUTPUT -o {bridge} -j ACCEPT"],
        "mangle": [f"-A FORWARD -o {bridge} -j ACCEPT"],
    }


def add_rules(ns: Namespace, flavour: str, *bridges: str) -> None:
    tables: dict[str, list[str]] = {}
    for bridge in bridges:
        for table, rules in rules_of(bridge).items():
            tables.setdefault(table, []).extend(rules)
    for family in FAMILIES[flavour]:
        ns.restore(flavour, restore_input(tables), family)


def add_links(ns: Namespace, *bridges: str) -> None:
    """Bridges with addresses, extra routes, and a port each."""
    batch = ""
    for bridge in bridges:
        batch += (
            f"link add {bridge} type bridge\naddr add {host_of(bridge)}/24 dev {bridge}\n"
            f"addr add fd00:{bridge[2:]}::1/64 dev {bridge} nodad\nlink set {bridge} up\n"
            f"link add p{bridge} type veth peer name q{bridge}\nlink set p{bridge} master {bridge}\n"
            f"route add {host_of(bridge, 128)}/25 dev {bridge}\n"
            f"route add 192.0.2.{int(bridge[2:], 16)} via {host_of(bridge, 2)}\n"
        )
    ns.run("ip", "-batch", "-", input=batch)


def add_leases(ns: Namespace, pids: Mapping[str, int]) -> None:
    leases = {
        subnet_of(bridge): {"test_name": "TestX", "bridge_name": bridge, "pid": pid, "more": [1, None]}
        for bridge, pid in pids.items()
    }
    ns.lease_file.write_text(json.dumps({"leases": leases, "version": 2}))


def add_networks(ns: Namespace, flavour: str, pids: Mapping[str, int]) -> None:
    add_links(ns, *pids)
    add_rules(ns, flavour, *pids)
    add_leases(ns, pids)


def leased(ns: Namespace) -> list[str]:
    document = json.loads(ns.lease_file.read_text())
    return [lease["bridge_name"] for lease in document["leases"].values()]


def links(ns: Namespace) -> list[str]:
    return re.findall(r"^(\w+)[@ ]", ns.run("ip", "-brief", "link").stdout, re.MULTILINE)


_BY_ITSELF = re.compile(
    r" valid_lft \w+| preferred_lft \w+|\bstate (?:UP|DOWN|UNKNOWN|LOWERLAYERDOWN)\b|<[^>]*>|qdisc \w+"
    r"|\blinkdown\b|\[\d+:\d+\]|packets \d+ bytes \d+"
)
"""What changes of a host where nobody changes it."""


_SHOW = "; ".join(
    [
        # nft does not show the comments of rules that iptables made.
        *(f"{tool}-{flavour}-save" for flavour in FLAVOURS for tool in ("iptables", "ip6tables")),
        "nft list ruleset inet",
        *("ip -o link", "ip -o addr", "ip route show table all", "ip -6 route show table all"),
    ]
)


def everything(ns: Namespace) -> list[str]:
    """Every line on links, addresses, routes, rules and leases."""
    shown = ns.run("sh", "-c", _SHOW).stdout
    leases = ns.lease_file.read_text() if ns.lease_file.exists() else ""
    lines = [*shown.splitlines(), *re.findall(r'"10[^}]*}', leases)]
    shortened = (" ".join(_BY_ITSELF.sub("", line).split()) for line in lines)
    return [line for line in shortened if not re.search(r"^# |\bfe80:|\bff00:|anycast", line)]


def of_network(lines: Sequence[str], bridge: str) -> list[str]:
    """Those that name a bridge, but for the guards of an administrator."""
    named = re.compile(rf"\b{bridge}\b(?![+*])")
    return [line for line in lines if named.search(line) and not re.search("guard|! -|!=", line)]


def teardown(ns: Namespace, *arguments: str) -> subprocess.CompletedProcess[str]:
    return ns.netsweep("teardown", *arguments)


@contextmanager
def running() -> Iterator[int]:
    """The PID of a process that runs, and is no ancestor of netsweep."""
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def test_all_of_a_network_goes_and_nothing_else(ns: Namespace, flavour: str) -> None:
    own = os.getpid()
    add_networks(ns, flavour, {"hm1": own, "hm2": own, "hm11": own})
    guards = [
        "-A INPUT -s 10.200.1.0/24 ! -i hm1 -m comment --comment guard -j DROP",
        "-A FORWARD -d 10.200.1.0/24 ! -o hm1 -m comment --comment guard -j DROP",
        "-A FORWARD -i hm1+ -m comment --comment guard -j DROP",
        "-A FORWARD -s 10.200.1.0/24 -j ACCEPT",
        "-A FORWARD -i ha1 -m comment --comment hypeman-fwd-ha1 -j ACCEPT",
        '-A FORWARD -i eth0 -m comment --comment "guard of hm1" -j ACCEPT',
    ]
    for family in FAMILIES[flavour]:
        ns.restore(flavour, restore_input({"filter": guards}), family)
    before = everything(ns)
    others = [line for line in before if line not in of_network([line], "hm1")]
    done = teardown(ns, "hm1")
    assert (done.returncode, done.stderr) == (0, "")
    rules = RULES * len(FAMILIES[flavour])
    assert f"Deleted 1 bridge, 1 lease and {rules} rules in" in done.stdout
    after = everything(ns)
    assert of_network(after, "hm1") == []
    # Its port stays, and is nobody's.
    assert [line for line in after if "hm1@" not in line] == [line for line in others if "hm1@" not in line]
    assert "phm1" in links(ns)
    assert json.loads(ns.lease_file.read_text())["version"] == 2
    assert leased(ns) == ["hm2", "hm11"]
    again = teardown(ns, "hm1")
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.startswith("Nothing to tear down (")
    assert everything(ns) == after


def test_json_tells_what_went(ns: Namespace, flavour: str) -> None:
    add_networks(ns, flavour, {"hm1": os.getpid()})
    said = report_of(teardown(ns, "hm1", "--format", "json"))
    assert (said["command"], said["changed"], said["errors"]) == ("teardown", True, [])
    (bridge,) = said["bridges"]
    assert (bridge["name"], bridge["subnet"], bridge["deleted"]) == ("hm1", "10.200.1.0/24", True)
    assert (said["bridges_deleted"], said["leases_removed"]) == (1, 1)
    assert said["deleted"] == len(said["orphans"]) == RULES * len(FAMILIES[flavour])
    assert said["locks"]["subnet"]["held_ms"] > 0
    again = report_of(teardown(ns, "hm1", "--format", "json"))
    assert (again["changed"], again["bridges"], again["orphans"], again["deleted"]) == (False, [], [], 0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["eth9"], "'eth9' is not a name of ours: a prefix and hex digits"),
        (["ha12"], "'ha12' is protected"),
        (["hmxyz"], "'hmxyz' is not a name of ours"),
        (["hm*"], "'hm*' is not a name of ours"),
        (["hm1", "ha12"], "'ha12' is protected"),
        (["hm1", ""], "'' is not a name of ours"),
        (["--force", "hm1", "eth9"], "'eth9' is not a name of ours"),
        (["hm1", "hm2", "--subnet", "10.200.1.0/24"], "--subnet is for one network"),
        (["hm1", "--subnet", "10.200.1"], "--subnet '10.200.1' is not a subnet as 10.200.1.0/24"),
        (["hm1", "--subnet", "hm1"], "--subnet 'hm1' is not a subnet"),
        (["--protect", "hm1", "hm1"], "'hm1' is protected"),
        ([], "Missing argument 'NAME...'"),
    ],
)
def test_wrong_usage_touches_nothing(shared: tuple[Namespace, list[str]], arguments: list[str], says: str) -> None:
    ns, before = shared
    assert says in complaint(teardown(ns, *arguments), 2)
    assert everything(ns) == before


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Namespace, list[str]]]:
    """A host that nothing is to change, and all that is on it: a network, and links with names that are not ours."""
    with new_namespace(tmp_path_factory.mktemp("shared")) as ns:
        add_networks(ns, "nft", {"hm1": os.getpid()})
        ns.run("ip", "-batch", "-", input="link add eth9 type bridge\nlink add ha12 type bridge\n")
        yield ns, everything(ns)


def test_what_another_running_process_leases_is_left_alone_but_by_force(ns: Namespace, flavour: str) -> None:
    with running() as pid:
        add_networks(ns, flavour, {"hm1": pid, "hm2": pid})
        before = everything(ns)
        line = complaint(teardown(ns, "hm1"), 1)
        assert f"hm1 was left alone: a running process (PID {pid}) holds a lease for hm1; --force" in line
        assert everything(ns) == before
        done = teardown(ns, "hm1", "--force")
        assert (done.returncode, done.stderr) == (0, "")
        assert of_network(everything(ns), "hm1") == []
        assert of_network(everything(ns), "hm2") == of_network(before, "hm2")


def test_one_lease_of_several_that_is_another_s_is_enough(ns: Namespace) -> None:
    add_links(ns, "hm1")
    with running() as pid:
        leases = {
            subnet: {"bridge_name": "hm1", "pid": each}
            for subnet, each in (("a", os.getpid()), ("b", pid), ("c", ended_process()))
        }
        ns.lease_file.write_text(json.dumps({"leases": leases}))
        assert "was left alone" in complaint(teardown(ns, "hm1"), 1)
        assert "hm1" in links(ns)
        assert leased(ns) == ["hm1"] * 3
        assert teardown(ns, "hm1", "--force").returncode == 0
    assert "hm1" not in links(ns)
    assert leased(ns) == []


@pytest.mark.parametrize("whose", ["the caller", "nobody", "a dead process"])
def test_what_nobody_else_leases_goes(ns: Namespace, whose: str) -> None:
    add_links(ns, "hm1")
    add_rules(ns, "nft", "hm1")
    add_leases(ns, {"nobody": {}, "the caller": {"hm1": os.getpid()}}.get(whose, {"hm1": ended_process()}))
    assert teardown(ns, "hm1").returncode == 0
    assert of_network(everything(ns), "hm1") == []


def test_a_process_in_between_is_an_owner_too(ns: Namespace) -> None:
    """A shell leases it, and calls netsweep through another."""
    add_links(ns, "hm1")
    lease = json.dumps({"leases": {"10.200.1.0/24": {"bridge_name": "hm1", "pid": 4111222}}})
    script = f"printf %s '{lease}' | sed s/4111222/$$/ > {ns.lease_file}; sh -c '\"$@\"; exit $?' sh \"$@\"; exit $?"
    done = ns.run("sh", "-c", script, "sh", *("env", *NETSWEEP, "teardown", "hm1"), check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "hm1" not in links(ns)
    assert leased(ns) == []


def test_of_several_one_is_refused_and_the_rest_is_done(ns: Namespace, flavour: str) -> None:
    own = os.getpid()
    with running() as pid:
        add_networks(ns, flavour, {"hm1": own, "hm2": pid, "hm3": own, "hm4": pid})
        before = everything(ns)
        line = complaint(teardown(ns, "hm1", "hm2", "hm3", "hm4", "hm2"), 1)
        after = everything(ns)
    for bridge in ("hm2", "hm4"):
        assert line.count(f"{bridge} was left alone: a running process (PID {pid}) holds") == 1
        assert of_network(after, bridge) == of_network(before, bridge)
    for bridge in ("hm1", "hm3"):
        assert of_network(after, bridge) == []
        assert f"{bridge} was" not in line


@pytest.mark.parametrize("flavour", ["nft"])
def test_links_of_another_kind_and_alternative_names_are_left_alone(ns: Namespace, flavour: str) -> None:
    add_rules(ns, flavour, "hm1", "hm2", "hm3", "hm4")
    ns.run(
        *("ip", "-batch", "-"),
        input="link add hm1 type veth peer name peer0\nlink add br0 type bridge\n"
        "link property add dev br0 altname hm2\nlink add hm3 type bridge\nlink property add dev hm3 altname mine\n"
        "link add hm5 type bridge\nlink property add dev hm5 altname hm4\n",
    )
    before = everything(ns)
    line = complaint(teardown(ns, "hm1", "hm2", "hm3", "hm4"), 1)
    assert "hm1 was left alone: it is not a bridge, but veth" in line
    assert "hm2 was left alone: it is an alternative name of br0" in line
    assert "hm4 was left alone: it is an alternative name of hm5" in line
    after = everything(ns)
    for name in ("hm1", "hm2", "hm4", "br0", "hm5"):
        assert of_network(after, name) == of_network(before, name)
    assert of_network(after, "hm3") == []


def test_other_names_of_a_bridge_are_looked_at(ns: Namespace) -> None:
    names = {"hm1": "ha5", "hm2": "hm22", "hm3": "mine"}
    ns.add_bridges(*names)
    for name, alias in names.items():
        ns.run("ip", "link", "property", "add", "dev", name, "altname", alias)
    with subprocess.Popen(["sleep", "60"]) as owner:
        add_leases(ns, {"hm22": owner.pid})
        line = complaint(teardown(ns, *names), 1)
        owner.kill()
    assert "hm1 was left alone: its alternative name ha5 is protected" in line
    assert f"hm2 was left alone: a running process (PID {owner.pid}) holds a lease for hm22" in line
    assert {"hm1", "hm2"} <= set(links(ns))
    assert "hm3" not in links(ns)


def test_a_pid_that_a_process_of_a_container_has_too_is_not_the_callers(ns: Namespace) -> None:
    """The caller has the PID of the lease, but in another PID namespace than its owner may have it."""
    ns.add_bridges("hm1")
    code = "import os, subprocess, sys; print(os.getpid()); sys.exit(subprocess.run(sys.argv[1:]).returncode)"
    inside = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    add_leases(ns, {"hm1": 2})
    done = ns.run(
        *inside,
        "sh",
        "-c",
        '"$@"; exit $?',
        "sh",
        sys.executable,
        "-c",
        code,
        *NETSWEEP,
        "teardown",
        "hm1",
        check=False,
    )
    assert done.stdout.splitlines()[0] == "2"
    assert "hm1 was left alone: " in complaint(done, 1)
    assert "hm1" in links(ns)


def test_a_rule_that_another_live_network_matches_stays(ns: Namespace) -> None:
    """A sweep keeps it: hm2 exists."""
    ns.add_bridges("hm1", "hm2")
    ns.iptables("nft", "-A", "FORWARD", "-i", "hm2", "-m", "comment", "--comment", "hypeman-fwd-in-hm1", "-j", "ACCEPT")
    teardown(ns, "hm1")
    assert of_network(ns.save("nft"), "hm2")


def test_only_what_has_the_very_name_goes(ns: Namespace) -> None:
    """Names may hold what stands for others in globs."""
    ns.add_bridges("vm*", "vm1", "vm[1]", "vmx")
    for bridge in ("vm1", "vmx"):
        ns.iptables("nft", "-A", "FORWARD", "-i", bridge, "-j", "ACCEPT")
    with unchanged(ns):
        assert teardown(ns, "--name", "vm*", "vm*", "vm[1]").returncode == 0
    assert {"vm1", "vmx"} < set(re.findall(r"^(\S+)", ns.run("ip", "-brief", "link").stdout, re.MULTILINE))
    assert "vm*" not in ns.run("ip", "link").stdout
    assert "vm[1]" not in ns.run("ip", "link").stdout


def test_whatever_part_of_a_network_is_left_goes(ns: Namespace, flavour: str) -> None:
    """Rules of hm1, a lease of hm2, both of hm3, a bridge of hm4."""
    add_rules(ns, flavour, "hm1", "hm3")
    add_leases(ns, {"hm2": os.getpid(), "hm3": ended_process()})
    ns.add_bridges("hm4")
    for bridge, deleted in (
        ("hm1", f"Deleted {RULES * len(FAMILIES[flavour])} rules in"),
        ("hm2", "Deleted 1 lease in"),
        ("hm3", f"Deleted 1 lease and {RULES * len(FAMILIES[flavour])} rules in"),
        ("hm4", "Deleted 1 bridge in"),
    ):
        done = teardown(ns, bridge)
        assert (done.returncode, done.stderr) == (0, "")
        assert deleted in done.stdout
        assert of_network(everything(ns), bridge) == []
    assert leased(ns) == []


def test_a_host_without_lock_and_lease_file_will_do(ns: Namespace) -> None:
    add_links(ns, "hm1")
    assert teardown(ns, "hm1").returncode == 0
    assert "hm1" not in links(ns)
    assert not ns.lease_file.exists()


def test_the_subnet_may_be_given(ns: Namespace, flavour: str) -> None:
    ns.run(
        *("ip", "-batch", "-"),
        input="link add hm1 type bridge\nlink set hm1 up\nroute add 10.200.1.0/24 dev hm1\nlink add br0 type bridge\n"
        "link set br0 up\nroute add 10.200.1.0/24 dev br0 metric 7\n",
    )
    add_rules(ns, flavour, "hm1")
    assert teardown(ns, "hm1", "--subnet", "10.200.1.0/24").returncode == 0
    assert of_network(everything(ns), "hm1") == []
    assert "10.200.1.0/24 dev br0" in ns.run("ip", "route").stdout, "that of another link"
    assert teardown(ns, "hm1", "--subnet", "10.200.1.0/24").returncode == 0


def test_it_waits_for_the_subnet_lock(ns: Namespace, flavour: str) -> None:
    add_networks(ns, flavour, {"hm1": os.getpid()})
    before = everything(ns)
    with flocked(ns.lock_file):
        line = complaint(teardown(ns, "hm1", "hm2", "--lock-timeout", "0"), 75)
        assert line.endswith("; nothing was changed")
        assert line.count("subnet lock") == 1
        process = ns.start(*NETSWEEP, "teardown", "hm1")
        wait_until_queued(process.pid, ns.lock_file)
        assert everything(ns) == before
    assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == 0
    assert of_network(everything(ns), "hm1") == []


def test_what_failed_is_done_when_it_is_run_again(ns: Namespace) -> None:
    """The xtables lock is held: the bridge and the lease go, and the rules do not."""
    add_networks(ns, "legacy", {"hm1": os.getpid()})
    ns.xtables_lock.touch()
    with flocked(ns.xtables_lock):
        line = complaint(teardown(ns, "hm1", "--wait", "0"), 1)
    assert "xtables lock" in line
    assert "before that, it deleted 1 bridge and 1 lease" in line
    assert "hm1" not in links(ns)
    assert leased(ns) == []
    assert len(of_network(everything(ns), "hm1")) >= RULES
    assert teardown(ns, "hm1").returncode == 0
    assert of_network(everything(ns), "hm1") == []


def test_a_lease_file_that_cannot_be_understood_leaves_everything(ns: Namespace) -> None:
    add_networks(ns, "nft", {"hm1": os.getpid()})
    ns.lease_file.write_text("{")
    before = everything(ns)
    assert "cannot understand lease file" in complaint(teardown(ns, "hm1", "--force"), 1)
    assert everything(ns) == before


def test_a_bridge_that_is_up_has_not_changed_because_its_timers_run(ns: Namespace) -> None:
    for _ in range(3):
        ns.run("ip", "-batch", "-", input="link add hm1 type bridge\nlink set hm1 up\n")
        done = teardown(ns, "hm1", "--wait", "0")
        assert (done.returncode, done.stderr) == (0, "")


def test_killed_at_any_moment_and_run_again_it_is_done(ns: Namespace) -> None:
    """The lease is there as long as anything else of its network is."""
    names = [f"hm{number}" for number in range(1, 4)]
    leases = dict.fromkeys(["hma", *names], os.getpid())
    add_links(ns, "hma")
    for flavour in FLAVOURS:
        add_rules(ns, flavour, "hma")
    add_leases(ns, {"hma": os.getpid()})
    other = of_network(everything(ns), "hma")
    chance = random.Random(12)
    kills = ends = 0
    while kills < KILLS or not ends:
        if set(names).isdisjoint(links(ns)):
            ports = [f"p{name}" for name in names]
            ns.run("ip", "-batch", "-", input="".join(f"link del {port}\n" for port in ports if port in links(ns)))
            add_links(ns, *names)
            add_rules(ns, FLAVOURS[kills % 2], *names)
            add_leases(ns, leases)
        process = ns.start(*NETSWEEP, "teardown", *names)
        if kills < KILLS:
            time.sleep(chance.uniform(0.2, 0.7))
            process.kill()
        _, complaints = process.communicate(timeout=60)
        after = everything(ns)
        assert of_network(after, "hma") == other
        for name in names:
            assert name in leased(ns) or of_network(after, name) == [], "the lease went before the rest"
        if process.returncode == -signal.SIGKILL:
            kills += 1
            continue
        assert (process.returncode, complaints) == (0, "")
        assert [line for name in names for line in of_network(after, name)] == []
        ends += 1


def test_two_at_the_same_time_are_both_done(ns: Namespace, flavour: str) -> None:
    own = os.getpid()
    add_networks(ns, flavour, {"hm1": own, "hm2": own, "hm3": own, "hm4": own})
    before = everything(ns)
    names = ("hm1", "hm2", "hm3")
    processes = [ns.start(*NETSWEEP, "teardown", *given) for given in (names, names, names[::-1])]
    for process in processes:
        assert (process.communicate(timeout=60)[1], process.returncode) == ("", 0)
    after = everything(ns)
    assert [line for name in names for line in of_network(after, name)] == []
    assert of_network(after, "hm4") == of_network(before, "hm4")


def test_beside_sweeps_it_is_done_and_networks_that_live_stay(ns: Namespace, flavour: str) -> None:
    own, names = os.getpid(), [f"hm{number}" for number in range(1, 4)]
    add_networks(ns, flavour, dict.fromkeys([*names, "hma"], own))
    before = everything(ns)
    script = 'while :; do "$@" || exit; done'
    sweeping = ("env", *NETSWEEP, "sweep", "--bridges", "--min-age", "0s", "--all-chains", "--format", "json")
    with ns.start("sh", "-c", script, "sh", *sweeping) as sweeps:
        assert sweeps.stdout
        try:
            sweeps.stdout.readline()
            for name in names:
                done = teardown(ns, name)
                assert (done.returncode, done.stderr) == (0, "")
                assert of_network(everything(ns), name) == []
            assert sweeps.stdout.readline(), "a sweep failed"
            assert sweeps.poll() is None, "a sweep failed"
        finally:
            sweeps.kill()
    assert of_network(everything(ns), "hma") == of_network(before, "hma")


def test_in_a_program_of_python(ns: Namespace, flavour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    in_process(ns, monkeypatch)
    with running() as pid:
        add_networks(ns, flavour, {"hm1": os.getpid(), "hm2": pid, "hm3": os.getpid()})
        report = ns.inside(lambda: netsweep.teardown("hm1"))
        assert (report.bridges_deleted, report.leases_removed) == (1, 1)
        assert report.deleted == RULES * len(FAMILIES[flavour])
        assert report.bridges[0].bridge.names == ("hm1",)
        with pytest.raises(NetsweepError, match="hm2 was left alone") as raised:
            ns.inside(lambda: netsweep.teardown(["hm2", "hm3"]))
        assert raised.value.report
        assert [each.bridge.name for each in raised.value.report.bridges] == ["hm3"]
        with pytest.raises(UsageError, match="'ha1' is protected"):
            ns.inside(lambda: netsweep.teardown("ha1"))
        assert "hm2" in links(ns)
        ns.inside(lambda: netsweep.teardown("hm2", subnet="10.200.2.0/24", force=True))
    assert not {"hm1", "hm2", "hm3"} & set(links(ns))
    assert leased(ns) == []
