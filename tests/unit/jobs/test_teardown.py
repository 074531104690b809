"""What a teardown makes of failures on its way: on a host in memory, where each can be had."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from ipaddress import ip_network
from typing import Any

import pytest

from netsweep.errors import BusyError, ContentionError, NetsweepError, NotPermittedError, TableError
from netsweep.host import leases
from netsweep.host.links import Link, Route
from netsweep.jobs import teardown as job
from netsweep.jobs.look import PARSE_MAX
from netsweep.jobs.teardown import teardown
from netsweep.model import Address, Lease
from netsweep.profiles.options import Options
from netsweep.report import Report
from tests.namespace import flocked
from tests.unit.jobs.host import POSTROUTING, Firewall, Host, ended_process, fail, on_call


class Network:
    """The links of a host; what is done to each by name is noted, after ``before`` was called."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.links: dict[str, Link] = {}
        self.deleted: list[str] = []
        self.before_delete: Callable[[str], None] = lambda name: None
        self.before_find: Callable[[], None] = lambda: None
        self.devices: set[int] = set()
        self.elsewhere_too: list[Link] = []
        self.complete = True
        self.gateways: list[Route] = []
        self.deleted_routes: list[Route] = []

    def make(self, *names: str, **fields: Any) -> None:
        for name in names:
            index = 100 + len(self.links) + len(self.deleted)
            self.links[name] = Link(index, name, **{"kind": "bridge", **fields})
            self.host.alive.add(name)

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def find(self, *, ifindex: int = 0, name: str = "") -> Link | None:
        self.before_find()
        found = [each for each in self.links.values() if name in (each.name, *each.aliases) or each.ifindex == ifindex]
        return found[0] if found else None

    def addresses(self) -> dict[int, list[Address]]:
        return {each.ifindex: [Address("10.200.1.1/24", 7200.0)] for each in self.links.values()}

    def find_at_once(self, *, ifindex: int = 0, name: str = "") -> Link | None:
        return self.find(ifindex=ifindex, name=name)

    def find_under_lock(self, *, ifindex: int = 0, name: str = "") -> Link | None:
        assert not self.host.lock_is_free()
        return self.find(ifindex=ifindex, name=name)

    def routes(self) -> list[Route]:
        return self.gateways

    def delete_route(self, route: Route) -> None:
        self.deleted_routes.append(route)

    def all(self) -> list[Link]:
        return list(self.links.values())

    def ports(self, ifindex: int) -> list[str]:
        return [each.name for each in self.links.values() if each.master == ifindex]

    def elsewhere(self) -> tuple[list[Link], bool]:
        return self.elsewhere_too, self.complete

    def wait_until_quiet(self, ifindex: int) -> None:
        pass

    def delete(self, ifindex: int) -> Callable[[], bool]:
        """It is gone at once; that it could not be deleted is said in the end, as by the kernel."""
        assert not self.host.lock_is_free()
        (name,) = [each.name for each in self.links.values() if each.ifindex == ifindex]
        try:
            self.before_delete(name)
        except NetsweepError as error:
            return partial(_raise, error)
        del self.links[name]
        self.host.alive.discard(name)
        self.deleted.append(name)
        self.host.events.append(f"delete {name}")
        return lambda: True


def _raise(error: NetsweepError) -> bool:
    raise error


@pytest.fixture
def network(host: Host, monkeypatch: pytest.MonkeyPatch) -> Network:
    made = Network(host)
    monkeypatch.setattr(job, "Links", lambda: made)
    monkeypatch.setattr(job, "find_at_once", made.find_at_once)
    return made


def lease(host: Host, *names: str, pid: int | None = None) -> None:
    entries = {f"10.200.{n}.0/24": {"bridge_name": name, "pid": pid or os.getpid()} for n, name in enumerate(names)}
    host.lease_file.write_text(json.dumps({"leases": entries}))


def leased(host: Host) -> list[str]:
    return [each["bridge_name"] for each in json.loads(host.lease_file.read_text())["leases"].values()]


@pytest.fixture
def firewall(host: Host, network: Network) -> Firewall:
    """Of three networks that this process leases, with two rules each."""
    network.make("hm1", "hm2", "hm3")
    made = host.firewall("hm1", "hm2", "hm3")
    made.leak("hm1", "hm2", "hm3", chain=POSTROUTING)
    lease(host, "hm1", "hm2", "hm3")
    return made


def down(host: Host, *names: str, subnet: str | None = None, force: bool = False, **options: Any) -> Report:
    return teardown(host.options(**options), names, subnet, force=force)


def failed(
    host: Host, error: type[NetsweepError], match: str, *names: str, **options: Any
) -> tuple[NetsweepError, Report]:
    with pytest.raises(error, match=match) as raised:
        down(host, *names, **options)
    assert type(raised.value) is error
    assert raised.value.report
    assert raised.value.report.errors == [str(raised.value)]
    assert host.lock_is_free()
    assert {each.closed for each in host.firewalls.values()} == {1}
    return raised.value, raised.value.report


def refuse(name: str, error: NetsweepError) -> Callable[[str], None]:
    def refused(given: str) -> None:
        if given == name:
            raise error

    return refused


def test_everything_goes(host: Host, network: Network, firewall: Firewall) -> None:
    report = down(host, "hm1", "hm3", "hm1")
    assert network.deleted == ["hm1", "hm3"]
    assert (firewall.bridges(), firewall.bridges(POSTROUTING), leased(host)) == (["hm2"], ["hm2"], ["hm2"])
    assert (report.bridges_deleted, report.deleted, report.leases_removed) == (2, 4, 2)
    assert report.bridges[0].bridge.subnet == "10.200.1.0/24"
    assert host.lock_is_free()
    assert firewall.closed == 1


def test_a_bridge_that_cannot_be_deleted_stops_no_other(host: Host, network: Network, firewall: Firewall) -> None:
    network.before_delete = refuse("hm2", NetsweepError("the kernel said no"))
    _, report = failed(host, NetsweepError, "^the kernel said no$", "hm1", "hm2", "hm3")
    assert network.deleted == ["hm1", "hm3"]
    assert (report.bridges_deleted, report.deleted, report.leases_removed) == (2, 4, 2)
    # What is left of it is whole.
    assert (firewall.bridges(), leased(host)) == (["hm2"], ["hm2"])


def test_the_status_is_that_of_all_failures_where_they_agree(host: Host, network: Network, firewall: Firewall) -> None:
    network.before_delete = fail_with(NotPermittedError("not permitted"))
    error, _ = failed(host, NotPermittedError, "^not permitted$", "hm1", "hm2")
    assert error.exit_status == 77


def test_failures_of_several_kinds_are_told_in_one_line(host: Host, network: Network, firewall: Firewall) -> None:
    network.before_delete = refuse("hm1", NotPermittedError("not permitted"))
    firewall.before_commit = fail(TableError("the table refuses"))
    error, report = failed(host, NetsweepError, "^not permitted; the table refuses; ", "hm1", "hm2")
    assert error.exit_status == 1
    assert (report.bridges_deleted, report.deleted) == (1, 0)


def fail_with(error: Exception) -> Callable[[str], None]:
    def failing(_: str) -> None:
        raise error

    return failing


def test_what_is_transient_is_tried_again(host: Host, network: Network, firewall: Firewall) -> None:
    action = on_call(1, fail(ContentionError("links changed")))
    network.before_delete = lambda _: action()
    firewall.before_commit = on_call(1, fail(ContentionError("rules changed")))
    firewall.before_read = on_call(1, fail(ContentionError("read again")))
    assert down(host, "hm1").bridges_deleted == 1
    assert firewall.bridges() == ["hm2", "hm3"]


def test_what_does_not_end_is_given_up(host: Host, network: Network, firewall: Firewall) -> None:
    network.before_delete = fail_with(ContentionError("links changed"))
    error, report = failed(
        host, BusyError, "^timed out after 0 s: links changed; .*; nothing was changed$", "hm1", wait=0
    )
    assert error.exit_status == 75
    assert not report.changed
    assert leased(host) == ["hm1", "hm2", "hm3"]


def test_a_lock_that_is_held_changes_nothing(host: Host, network: Network, firewall: Firewall) -> None:
    with flocked(host.lock_file), pytest.raises(BusyError, match=r"subnet lock.*; nothing was changed$") as raised:
        down(host, "hm1", "hm2", lock_timeout=0)
    assert str(raised.value).count("subnet lock") == 1
    assert raised.value.report
    assert raised.value.report.subnet_lock is None
    assert (network.deleted, firewall.bridges(), leased(host)) == ([], ["hm1", "hm2", "hm3"], ["hm1", "hm2", "hm3"])


def test_a_lock_that_is_taken_half_way_says_what_went(host: Host, network: Network, firewall: Firewall) -> None:
    firewall.before_transaction = fail(BusyError("the lock is held"))
    error, report = failed(host, NetsweepError, "^the lock is held.*; before that, it deleted 1 bridge", "hm1")
    assert error.exit_status == 1
    assert (report.bridges_deleted, report.deleted) == (1, 0)
    assert firewall.bridges() == ["hm1", "hm2", "hm3"]


def test_a_table_that_refuses_stops_no_other(host: Host, network: Network, firewall: Firewall) -> None:
    firewall.before_commit = on_call(1, fail(TableError("filter refuses")))
    _, report = failed(host, NetsweepError, r"^filter refuses; rule 1 of nft ipv4 filter/FORWARD is left: ", "hm1")
    assert (firewall.bridges(), firewall.bridges(POSTROUTING)) == (["hm1", "hm2", "hm3"], ["hm2", "hm3"])
    assert report.deleted == 1


def test_the_lease_goes_last(host: Host, network: Network, firewall: Firewall) -> None:
    """Nobody else gets the subnet while it is taken down."""
    down(host, "hm1", "hm2")
    assert host.changes() == ["delete hm1", "delete hm2", "commit nft", "commit nft", "remove leases"]


def test_the_lease_goes_even_where_rules_are_left(host: Host, network: Network, firewall: Firewall) -> None:
    firewall.before_commit = fail(TableError("the table refuses"))
    error, report = failed(host, NetsweepError, r"^the table refuses; .*rule 1 of .* is left: ", "hm1")
    assert error.exit_status == 1
    assert (report.bridges_deleted, report.deleted, report.leases_removed) == (1, 0, 1)
    assert leased(host) == ["hm2", "hm3"]


def test_a_backend_that_fails_stops_no_other(host: Host, network: Network) -> None:
    network.make("hm1")
    lease(host, "hm1")
    legacy, nft = (host.firewall("hm1", "hm2", name=name) for name in ("legacy", "nft"))
    legacy.before_read = fail(NetsweepError("cannot read the tables"))
    error, report = failed(host, NetsweepError, "^cannot read the tables$", "hm1")
    assert error.exit_status == 1
    assert (legacy.bridges(), nft.bridges(), leased(host)) == (["hm1", "hm2"], ["hm2"], [])
    assert (report.bridges_deleted, report.deleted, report.leases_removed) == (1, 1, 1)


def test_routes_are_deleted_where_the_bridge_cannot_be(host: Host, network: Network, firewall: Firewall) -> None:
    """They go with a bridge that is deleted."""
    own, other = network.links["hm1"].ifindex, network.links["hm2"].ifindex
    within, beside = ip_network("10.200.1.128/25"), ip_network("192.0.2.0/24")
    network.gateways = [Route(within, own, b"a"), Route(beside, own, b"b"), Route(within, other, b"c")]
    network.before_delete = refuse("hm1", NetsweepError("the kernel said no"))
    failed(host, NetsweepError, "^the kernel said no$", "hm1")
    assert network.deleted_routes == network.gateways[:1]
    network.before_delete = lambda _: None
    network.deleted_routes.clear()
    assert down(host, "hm1").bridges_deleted == 1
    assert network.deleted_routes == []


def test_rules_that_somebody_adds_meanwhile_are_told(host: Host, network: Network, firewall: Firewall) -> None:
    firewall.before_transaction = on_call(1, lambda: firewall.leak("hm1", "hm1", "hm1"))
    _, report = failed(host, NetsweepError, r"^rule 3 of nft ipv4 filter/FORWARD is left: .*; 2 more rules ", "hm1")
    assert report.deleted == 2


def test_a_bridge_that_is_made_again_meanwhile_is_told_and_keeps_its_lease(
    host: Host, network: Network, firewall: Firewall
) -> None:
    host.before_asking = on_call(1, lambda: network.links.update(hm1=Link(500, "hm1", kind="bridge")))
    failed(host, NetsweepError, "^hm1 was created again meanwhile$", "hm1")
    assert leased(host) == ["hm1", "hm2", "hm3"]


def test_a_bridge_that_is_made_again_before_the_lock_is_looked_at_again(
    host: Host, network: Network, firewall: Firewall
) -> None:
    network.before_find = on_call(2, lambda: network.links.update(hm1=Link(500, "hm1", kind="bridge")))
    assert down(host, "hm1").bridges[0].bridge.ifindex == 500


def test_a_bridge_that_is_gone_before_the_lock_is_done(host: Host, network: Network, firewall: Firewall) -> None:
    def vanish() -> None:
        network.links.pop("hm1")
        host.alive.discard("hm1")

    network.before_find = on_call(2, vanish)
    report = down(host, "hm1")
    assert (report.bridges_deleted, report.deleted, report.leases_removed) == (0, 2, 1)


def test_who_leases_it_while_it_is_torn_down_keeps_the_lease(host: Host, network: Network, firewall: Firewall) -> None:
    """The process that runs as 1 got the name."""

    network.before_delete = lambda _: lease(host, "hm1", "hm2", pid=1)
    _, report = failed(host, NetsweepError, r" is left: a running process \(PID 1\) holds a lease for hm1", "hm1")
    assert leased(host) == ["hm1", "hm2"]
    assert (report.bridges_deleted, report.deleted, report.leases_removed) == (1, 0, 0)
    assert firewall.bridges() == ["hm1", "hm2", "hm3"]


def test_who_leases_it_in_the_end_keeps_all_leases_of_the_name(
    host: Host, network: Network, firewall: Firewall
) -> None:
    """Also one that is of this process: nobody knows which of both is made next."""
    firewall.before_commit = on_call(2, lambda: add_lease(host, "hm1", 1))
    report = down(host, "hm1", "hm2")
    assert (report.bridges_deleted, report.leases_removed) == (2, 1)
    assert leased(host) == ["hm1", "hm3", "hm1"]


def test_a_lease_that_is_written_while_leases_are_removed_stays(
    host: Host, network: Network, firewall: Firewall
) -> None:
    host.before_replace = on_call(1, lambda: add_lease(host, "hm4", 1))
    assert down(host, "hm1").leases_removed == 1
    assert leased(host) == ["hm2", "hm3", "hm4"]
    assert host.changes()[-2:] == ["remove leases", "remove leases"], "the first time it had changed"


def test_who_leases_it_while_leases_are_removed_keeps_them(host: Host, network: Network, firewall: Firewall) -> None:
    host.before_replace = on_call(1, lambda: add_lease(host, "hm1", 1))
    assert down(host, "hm1").leases_removed == 0
    assert leased(host) == ["hm1", "hm2", "hm3", "hm1"]


def add_lease(host: Host, name: str, pid: int, **more: object) -> None:
    document = json.loads(host.lease_file.read_text())
    document["leases"][f"10.249.{len(document['leases'])}.0/24"] = {"bridge_name": name, "pid": pid, **more}
    host.lease_file.write_text(json.dumps(document))


def test_a_large_lease_file_that_changes_before_the_lock_is_read_without_it(
    host: Host, network: Network, firewall: Firewall, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse, parsed = leases._parse, list[int]()

    def noted(content: bytes) -> list[Lease]:
        assert host.lock_is_free()
        parsed.append(len(content))
        return parse(content)

    monkeypatch.setattr(leases, "_parse", noted)
    network.before_find = on_call(2, lambda: add_lease(host, "hm4", 1, more="x" * PARSE_MAX))
    assert down(host, "hm1").leases_removed == 1
    assert max(parsed) > PARSE_MAX
    assert leased(host) == ["hm2", "hm3", "hm4"]


def test_a_small_one_that_changes_before_the_lock_is_read_under_it(
    host: Host, network: Network, firewall: Firewall
) -> None:
    network.before_find = on_call(2, lambda: add_lease(host, "hm1", 1))
    failed(host, NetsweepError, r"^hm1 was left alone: a running process \(PID 1\) holds a lease for hm1", "hm1")
    assert (network.deleted, leased(host)) == ([], ["hm1", "hm2", "hm3", "hm1"])


@pytest.mark.parametrize("alias", ["hm7", "kept0", "docker0"])
@pytest.mark.parametrize("force", [False, True])
def test_a_bridge_that_has_another_name_that_is_protected_is_left_alone(
    host: Host, network: Network, firewall: Firewall, alias: str, force: bool
) -> None:
    network.links["hm1"] = network.links["hm1"]._replace(aliases=("hm5", alias))
    said = f"^hm1 was left alone: its alternative name {alias} is protected$"
    _, report = failed(host, NetsweepError, said, "hm1", "hm2", protect=["hm7", "kept", "docker"], force=force)
    assert (network.deleted, report.bridges_deleted) == (["hm2"], 1)
    assert (firewall.bridges(), leased(host)) == (["hm1", "hm3"], ["hm1", "hm3"])


def test_a_bridge_that_gets_a_name_that_is_protected_before_the_lock_is_left_alone(
    host: Host, network: Network, firewall: Firewall
) -> None:
    named = network.links["hm1"]._replace(aliases=("hm7",))
    network.before_find = on_call(2, lambda: network.links.update(hm1=named))
    failed(host, NetsweepError, "^hm1 was left alone: its alternative name hm7 is protected", "hm1", protect="hm7")
    assert network.deleted == []


def test_a_bridge_that_has_another_name_of_no_meaning_goes(host: Host, network: Network, firewall: Firewall) -> None:
    """Who gives its name says which bridge it is."""
    network.links["hm1"] = network.links["hm1"]._replace(aliases=("eth7",))
    assert down(host, "hm1").bridges_deleted == 1


def test_a_bridge_whose_other_name_another_process_leases_is_left_alone(
    host: Host, network: Network, firewall: Firewall
) -> None:
    network.links["hm1"] = network.links["hm1"]._replace(aliases=("hm5", "hm6"))
    add_lease(host, "hm6", 1)
    said = r"^hm1 was left alone: a running process \(PID 1\) holds a lease for hm6; --force "
    failed(host, NetsweepError, said, "hm1")
    assert (network.deleted, leased(host)) == ([], ["hm1", "hm2", "hm3", "hm6"])


@pytest.mark.parametrize("whose", ["ours", "dead"])
def test_a_bridge_whose_other_name_nobody_else_leases_goes(
    host: Host, network: Network, firewall: Firewall, whose: str
) -> None:
    network.links["hm1"] = network.links["hm1"]._replace(aliases=("hm6",))
    add_lease(host, "hm6", os.getpid() if whose == "ours" else ended_process())
    assert down(host, "hm1").bridges_deleted == 1


@pytest.mark.parametrize(("kind", "said"), [(None, "hardware"), ("veth", "veth")])
def test_what_is_no_bridge_is_left_alone(
    host: Host, network: Network, firewall: Firewall, kind: str | None, said: str
) -> None:
    network.make("hm2", kind=kind)
    failed(host, NetsweepError, f"^hm2 was left alone: it is not a bridge, but {said}$", "hm2", "hm1")
    assert (network.deleted, firewall.bridges()) == (["hm1"], ["hm2", "hm3"])


def test_a_lease_may_be_for_anything(host: Host, network: Network, firewall: Firewall) -> None:
    document = {"leases": {"the third": {"bridge_name": "hm1", "pid": os.getpid()}}}
    host.lease_file.write_text(json.dumps(document))
    assert down(host, "hm1", subnet="10.200.1.7/24").leases_removed == 1


def test_a_profile_without_lock_and_leases_waits_for_none(host: Host, network: Network) -> None:
    network.make("docker0")
    with flocked(host.lock_file):
        report = teardown(Options(profile="docker", lock_timeout=0), ["docker0"])
    assert (report.bridges_deleted, report.subnet_lock, report.leases) == (1, None, None)
