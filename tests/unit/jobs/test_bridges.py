"""What a sweep of bridges makes of failures on its way: on a host in memory, where each can be had."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

import pytest

from netsweep.errors import BusyError, ContentionError, NetsweepError, NotPermittedError, TableError
from netsweep.host import leases
from netsweep.host.links import Link
from netsweep.jobs import bridges
from netsweep.jobs.bridges import PORTION
from netsweep.jobs.sweep import find_orphans
from netsweep.model import Address, Verdict
from netsweep.report import Report
from tests.namespace import flocked
from tests.unit.jobs.host import Host, ended_process, fail, on_call
from tests.unit.jobs.test_teardown import Network, add_lease, fail_with, lease, leased, refuse


@pytest.fixture
def network(host: Host, monkeypatch: pytest.MonkeyPatch) -> Network:
    """Three bridges that a process leased that is gone, and a rule of each."""
    made = Network(host)
    monkeypatch.setattr(bridges, "Links", lambda: made)
    monkeypatch.setattr(bridges, "find_at_once", made.find_under_lock)
    monkeypatch.setattr(bridges, "SocketsInUse", lambda: SimpleNamespace(addresses={}, devices=made.devices))
    made.make("hm1", "hm2", "hm3")
    lease(host, "hm1", "hm2", "hm3", pid=ended_process())
    host.firewall("hm1", "hm2", "hm3")
    return made


@pytest.fixture
def younger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process that runs is younger than the bridges."""
    monkeypatch.setattr(bridges, "process_clock", lambda: 1.0)
    monkeypatch.setattr(bridges, "ages", lambda pids, _: dict.fromkeys(pids, 10.0))


def verdicts(report: Report) -> Mapping[str, tuple[Verdict, bool]]:
    return {each.bridge.name: (each.verdict, each.deleted) for each in report.bridges}


GONE, KEPT = (Verdict.LEAKED, True), (Verdict.LEAKED, False)


def test_leaked_networks_go(host: Host, network: Network) -> None:
    report = host.sweep(bridges=True)
    assert network.deleted == ["hm1", "hm2", "hm3"]
    assert verdicts(report) == dict.fromkeys(network.deleted, GONE)
    assert (report.bridges_deleted, report.deleted, report.leases_removed, leased(host)) == (3, 3, 3, [])
    assert host.lock_is_free()


def test_a_bridge_that_cannot_be_deleted_stops_nothing_else(host: Host, network: Network) -> None:
    network.before_delete = refuse("hm2", NetsweepError("the kernel said no"))
    _, report = host.failed(TableError, "^hm2: the kernel said no$", bridges=True)
    assert verdicts(report) == {"hm1": GONE, "hm2": KEPT, "hm3": GONE}
    assert (report.deleted, leased(host)) == (2, ["hm2"])
    assert host.firewalls["nft"].bridges() == ["hm2"]


@pytest.mark.parametrize("error", [NotPermittedError("not permitted"), BusyError("busy")])
def test_what_would_fail_for_each_ends_the_run(host: Host, network: Network, error: NetsweepError) -> None:
    tried: list[str] = []

    def before(name: str) -> None:
        tried.append(name)
        raise error

    network.before_delete = before
    host.failed(type(error), f"^{error}", bridges=True)
    assert tried == ["hm1"]
    assert len(host.firewalls["nft"].bridges()) == 3


def test_a_lock_that_is_held_changes_nothing(host: Host, network: Network) -> None:
    with flocked(host.lock_file), pytest.raises(BusyError, match=r"subnet lock.*; nothing was changed$"):
        host.sweep(bridges=True, lock_timeout=0)
    assert (network.deleted, leased(host)) == ([], ["hm1", "hm2", "hm3"])


def test_what_is_transient_is_tried_again(host: Host, network: Network) -> None:
    action = on_call(1, fail(ContentionError("links changed")))
    network.before_delete = lambda _: action()
    assert host.sweep(bridges=True).bridges_deleted == 3


def test_what_does_not_end_is_given_up(host: Host, network: Network) -> None:
    network.before_delete = fail_with(ContentionError("links changed"))
    _, report = host.failed(BusyError, "^timed out after 0 s: links changed", bridges=True, wait=0)
    assert not report.changed


def test_one_that_gets_a_port_before_its_turn_stays(host: Host, network: Network) -> None:
    def plug(name: str) -> None:
        if name == "hm1":
            network.links["tap2"] = Link(500, "tap2", master=network.links["hm2"].ifindex)

    network.before_delete = plug
    report = host.sweep(bridges=True)
    assert network.deleted == ["hm1", "hm3"]
    assert verdicts(report)["hm2"] == (Verdict.UNDECIDABLE, False)
    assert leased(host) == ["hm2"]
    assert host.firewalls["nft"].bridges() == ["hm2"]


def test_one_that_is_leased_before_its_turn_stays(host: Host, network: Network) -> None:
    def again(name: str) -> None:
        if name == "hm1":
            lease(host, "hm2", pid=1)

    network.before_delete = again
    report = host.sweep(bridges=True)
    assert "hm2" not in network.deleted
    assert verdicts(report)["hm2"][1] is False
    assert leased(host) == ["hm2"]


def test_one_that_somebody_else_deletes_counts_as_deleted(host: Host, network: Network) -> None:
    def other(name: str) -> None:
        if name == "hm1":
            network.links.pop("hm2")
            host.alive.discard("hm2")

    network.before_delete = other
    report = host.sweep(bridges=True)
    assert network.deleted == ["hm1", "hm3"]
    assert verdicts(report)["hm2"] == GONE
    assert (report.leases_removed, leased(host)) == (3, []), "its process is gone, so nobody wrote it since"
    assert host.firewalls["nft"].bridges() == []


def test_a_bridge_that_is_gone_at_the_lock_costs_no_lease_that_was_written_since(
    host: Host, network: Network, younger: None
) -> None:
    """A process that is younger than the bridge was leases the name in the middle of a look."""

    def other() -> None:
        network.links.pop("hm1")
        host.alive.discard("hm1")
        lease(host, "hm1")

    host.before_leases = on_call(1, other)
    report = host.sweep(bridges=True)
    assert network.deleted == ["hm2", "hm3"]
    assert verdicts(report)["hm1"] == GONE
    assert (report.leases_removed, leased(host)) == (0, ["hm1"])
    assert host.firewalls["nft"].bridges() == ["hm1"]


def test_a_lease_that_is_written_anew_stays(host: Host, network: Network) -> None:
    """Once the bridge is gone, its name may be leased by a process with the PID of the one before."""
    (dead,) = {each["pid"] for each in json.loads(host.lease_file.read_text())["leases"].values()}

    def again() -> None:
        document = json.loads(host.lease_file.read_text())
        document["leases"]["10.200.1.0/24"]["created_at_unix"] = 9
        host.lease_file.write_text(json.dumps(document))

    host.firewalls["nft"].before_commit = on_call(1, again)
    report = host.sweep(bridges=True)
    assert (report.bridges_deleted, report.leases_removed, leased(host)) == (3, 2, ["hm2"])
    assert json.loads(host.lease_file.read_text())["leases"]["10.200.1.0/24"]["pid"] == dead


def test_leases_are_removed_after_the_rules(host: Host, network: Network) -> None:
    """As long as they stand, nobody leases the names of networks whose rules are left."""
    host.sweep(bridges=True)
    assert host.changes() == ["delete hm1", "delete hm2", "delete hm3", "commit nft", "remove leases"]


def test_leases_that_stand_until_the_end_keep_no_rule(host: Host, network: Network, younger: None) -> None:
    """The PID that they name was given out again."""
    lease(host, "hm1", "hm2", "hm3")
    report = host.sweep(bridges=True)
    assert (report.bridges_deleted, report.deleted, report.leases_removed) == (3, 3, 3)


def test_leases_of_deleted_bridges_go_where_a_table_refuses(host: Host, network: Network) -> None:
    host.firewalls["nft"].before_commit = fail(TableError("the table refuses"))
    _, report = host.failed(TableError, "^the table refuses", bridges=True)
    assert (report.bridges_deleted, report.deleted, report.leases_removed, leased(host)) == (3, 0, 3, [])


@pytest.mark.parametrize("error", [BusyError("busy"), NotPermittedError("not permitted"), NetsweepError("no memory")])
def test_leases_of_deleted_bridges_stay_where_sweeping_the_rules_fails(
    host: Host, network: Network, error: NetsweepError
) -> None:
    """As long as the rules are left, nobody else leases the names."""
    host.firewalls["nft"].before_commit = fail(error)
    _, report = host.failed(NetsweepError, f"^{error}", bridges=True)
    assert (report.bridges_deleted, report.deleted, report.leases_removed) == (3, 0, 0)
    assert leased(host) == ["hm1", "hm2", "hm3"]
    assert "remove leases" not in host.changes()


def test_a_lease_that_is_written_while_leases_are_removed_stays(host: Host, network: Network) -> None:
    host.before_replace = on_call(1, lambda: add_lease(host, "hm4", 1))
    report = host.sweep(bridges=True)
    assert (report.leases_removed, leased(host)) == (3, ["hm4"])
    assert host.changes()[-2:] == ["remove leases", "remove leases"], "the first time it had changed"


def test_leases_that_cannot_be_removed_are_told(host: Host, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "replace_regular", lambda *_, **__: fail(NetsweepError("no space left"))())
    _, report = host.failed(TableError, "^no space left$", bridges=True)
    assert (report.bridges_deleted, report.deleted, report.leases_removed) == (3, 3, 0)


def test_stale_leases_go_where_no_bridge_does(host: Host, network: Network) -> None:
    for name in ("hm1", "hm2"):
        del network.links[name]
    network.links["tap3"] = Link(500, "tap3", master=network.links["hm3"].ifindex)
    report = host.sweep(bridges=True)
    assert (report.bridges_deleted, report.leases_removed, leased(host)) == (0, 2, ["hm3"])


def test_who_holds_up_the_kernel_costs_another_look(
    host: Host, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing waits under the subnet lock."""
    busy = on_call(1, fail(ContentionError("others kept the kernel")))

    def find(**wanted: Any) -> Link | None:
        busy()
        return network.find_under_lock(**wanted)

    monkeypatch.setattr(bridges, "find_at_once", find)
    assert host.sweep(bridges=True).bridges_deleted == 3


def test_whoever_uses_a_bridge_at_a_later_look_keeps_it(host: Host, network: Network) -> None:
    """Another bridge made that look necessary."""

    def contend() -> None:
        network.devices.add(network.links["hm2"].ifindex)
        raise ContentionError("links changed")

    first = on_call(1, contend)
    network.before_delete = lambda _: first()
    report = host.sweep(bridges=True)
    assert network.deleted == ["hm1", "hm3"]
    assert verdicts(report)["hm2"] == (Verdict.LIVE, False)


@pytest.mark.parametrize("contention", [False, True])
def test_one_of_a_later_portion_that_somebody_else_deletes_counts_as_deleted(
    host: Host, network: Network, contention: bool
) -> None:
    names = ["hm1", "hm2", "hm3", *(f"hm{number:x}" for number in range(0x100, 0xFE + PORTION))]
    network.make(*names[3:])
    assert len(names) == PORTION + 1
    last = names[-1]

    contended = on_call(1, fail(ContentionError("links changed")))

    def other(name: str) -> None:
        if contention:
            contended()
        if name == "hm2":
            network.links.pop(last)
            host.alive.discard(last)

    network.before_delete = other
    report = host.sweep(bridges=True)
    assert network.deleted == names[:-1]
    assert verdicts(report) == dict.fromkeys(names, GONE)


def test_many_go_in_portions_and_each_portion_is_looked_at_again(host: Host, network: Network) -> None:
    names = [f"hm{number:x}" for number in range(0x100, 0x100 + 2 * PORTION)]
    network.make(*names)
    lease(host, *names, pid=ended_process())
    late = names[-1]

    def plug(name: str) -> None:
        if name == names[0]:
            network.links["tap1"] = Link(900, "tap1", master=network.links[late].ifindex)

    network.before_delete = plug
    report = host.sweep(bridges=True)
    assert set(names) - set(network.deleted) == {late}
    assert verdicts(report)[late] == (Verdict.LIVE, False)
    assert leased(host) == [late]


# Time.


class Hours:
    """A clock for addresses, processes and looks that goes on only where it is told to.

    Who asks is at a point of the look: ``late`` says how long it takes to get there.
    """

    def __init__(self) -> None:
        self.now = 10_000.0
        self.late: dict[str, float] = {}
        self.passed: list[str] = []

    def at(self, point: str) -> float:
        """Get to a point of a look, and tell the time there."""
        self.passed.append(point)
        self.now += self.late.get(point, 0)
        return self.now


POINTS = ["all", "addresses", "dump of addresses", "process clock", "elsewhere", "leases", "ages"]


@pytest.fixture
def hours(host: Host, network: Network, monkeypatch: pytest.MonkeyPatch) -> Hours:
    """Of a host whose bridges got their addresses at 5000, and whose processes started at 5000 less their PID."""
    hours = Hours()
    every, elsewhere = network.all, network.elsewhere

    def addresses() -> dict[int, list[Address]]:
        age = hours.at("addresses") - 5000  # Links.addresses() reads the clock first
        hours.at("dump of addresses")
        return {each.ifindex: [Address("10.200.1.1/24", age)] for each in network.links.values()}

    def ages(pids: Collection[int], now: float) -> dict[int, float]:
        hours.at("ages")
        return {pid: now - started.get(pid, 0.0) for pid in pids}

    started = {os.getpid(): 4999.98, 1: 6000.0}
    monkeypatch.setattr(network, "all", lambda: (hours.at("all"), every())[1])
    monkeypatch.setattr(network, "addresses", addresses)
    monkeypatch.setattr(network, "elsewhere", lambda: (hours.at("elsewhere"), elsewhere())[1])
    monkeypatch.setattr(bridges, "process_clock", lambda: hours.at("process clock"))
    monkeypatch.setattr(bridges, "ages", ages)
    monkeypatch.setattr(bridges, "time", SimpleNamespace(monotonic=lambda: hours.now, sleep=lambda _: None))
    host.before_leases = lambda: void(hours.at("leases"))
    return hours


def void(_: object) -> None:
    pass


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("delay", [0.0, 0.05, 3600.0])
def test_no_delay_makes_an_owner_younger_than_its_bridge(
    host: Host, network: Network, hours: Hours, point: str, delay: float
) -> None:
    """It started just before the bridge got its address, and the kernel keeps who looks waiting."""
    lease(host, "hm1", "hm2", "hm3")
    hours.late[point] = delay
    report = find_orphans(host.options(bridges=True), keep=True)
    assert verdicts(report) == dict.fromkeys(("hm1", "hm2", "hm3"), (Verdict.LEASED, False))
    assert list(dict.fromkeys(each for each in hours.passed if each != "leases")) == [
        each for each in POINTS if each != "leases"
    ]


def test_who_is_younger_than_a_bridge_is_not_its_owner(host: Host, network: Network, hours: Hours) -> None:
    lease(host, "hm1", "hm2", "hm3", pid=1)
    report = find_orphans(host.options(bridges=True), keep=True)
    assert verdicts(report) == dict.fromkeys(("hm1", "hm2", "hm3"), KEPT)


@pytest.mark.parametrize("point", POINTS[: POINTS.index("leases")])
def test_a_look_counts_from_its_end(host: Host, network: Network, hours: Hours, point: str) -> None:
    """One that takes longer than a look counts must not be repeated for ever."""
    hours.late[point] = 60
    assert host.sweep(bridges=True, wait=0).bridges_deleted == 3
    assert hours.passed.count("all") == 1


def test_where_the_lock_takes_long_all_is_looked_at_again(
    host: Host, network: Network, hours: Hours, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody bound a socket to the second bridge meanwhile."""

    def wait() -> None:
        hours.now += 2
        network.devices.add(network.links["hm2"].ifindex)

    waits = on_call(1, wait)
    monkeypatch.setattr(network, "wait_until_quiet", lambda _: waits())
    report = host.sweep(bridges=True)
    assert network.deleted == ["hm1", "hm3"]
    assert verdicts(report)["hm2"] == (Verdict.LIVE, False)
    assert hours.passed.count("all") == 2


# Other network namespaces.


def test_a_link_of_another_network_namespace_keeps_what_it_is_on_top_of(host: Host, network: Network) -> None:
    network.elsewhere_too = [Link(9, "mv0", lower=network.links["hm2"].ifindex, lower_nsid=0)]
    report = host.sweep(bridges=True)
    assert network.deleted == ["hm1", "hm3"]
    assert verdicts(report) == {"hm1": GONE, "hm3": GONE}
    (kept,) = [each for each in find_orphans(host.options(bridges=True), keep=True).bridges if not each.deleted]
    assert (kept.bridge.name, kept.verdict) == ("hm2", Verdict.LIVE)
    assert kept.reason == "mv0 of another network namespace is on top of it"


def test_a_tunnel_of_another_network_namespace_keeps_the_bridge_that_has_its_address(
    host: Host, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was made here and moved: it is on top of no link."""
    ends = {each.ifindex: f"10.200.{number}.1" for number, each in enumerate(network.all())}
    monkeypatch.setattr(
        network, "addresses", lambda: {index: [Address(f"{end}/24", 7200.0)] for index, end in ends.items()}
    )
    local = ip_address(ends[network.links["hm2"].ifindex]).packed
    network.elsewhere_too = [Link(9, "vx0", kind="vxlan", lower_nsid=0, settings=frozenset({local, b"more"}))]
    found = {each.bridge.name: each for each in find_orphans(host.options(bridges=True), keep=True).bridges}
    assert [name for name, each in found.items() if each.verdict is Verdict.LEAKED] == ["hm1", "hm3"]
    assert (found["hm2"].verdict, found["hm2"].reason) == (Verdict.LIVE, "vx0 uses an address of it")


def test_where_a_network_namespace_cannot_be_seen_nothing_goes(host: Host, network: Network) -> None:
    network.complete = False
    report = host.sweep(bridges=True)
    assert (network.deleted, report.bridges, len(leased(host))) == ([], [], 3)
    found = find_orphans(host.options(bridges=True), keep=True).bridges
    assert {(each.verdict, each.reason) for each in found} == {
        (
            Verdict.LIVE,
            "a network namespace that cannot be looked into may use it: run as root, outside of containers",
        )
    }
