"""Where the jobs look, what they say of the rest, and how often they look."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from netsweep.errors import ContentionError, NetsweepError, UsageError
from netsweep.jobs.sweep import find_orphans, sweep
from netsweep.model import BackendName, Chain, Family, Interface, Rule, Spec, Table, Verdict
from netsweep.profiles.options import Options
from netsweep.report import Report
from tests.unit.jobs.host import FORWARD, POSTROUTING, Firewall, Host, fail, on_call, spec


def chain(table: str, name: str, family: Family = Family.IPV4) -> Chain:
    return Chain(Table("nft", family, table), name)


FORWARD6, FORWARD_INET = chain("filter", "FORWARD", Family.IPV6), chain("filter", "FORWARD", Family.INET)
PREROUTING, JOBS = chain("raw", "PREROUTING"), chain("matchlock_fc-1", "jobs")
BRIDGE = chain("filter", "FORWARD", Family.BRIDGE)
EVERYWHERE = [FORWARD, FORWARD6, FORWARD_INET, POSTROUTING, PREROUTING, JOBS]


@pytest.fixture
def wide(host: Host) -> Firewall:
    """A firewall with an orphan in every chain, one of a family that is never looked at among them."""
    firewall = host.firewall(chains=[*EVERYWHERE, BRIDGE])
    for each in (*EVERYWHERE, BRIDGE):
        firewall.leak("hmdead", chain=each)
    return firewall


WHERE: list[tuple[dict[str, Any], list[Chain]]] = [
    ({}, [FORWARD, FORWARD6, FORWARD_INET, POSTROUTING]),
    ({"family": "ipv4"}, [FORWARD, FORWARD_INET, POSTROUTING]),
    ({"family": "ipv6"}, [FORWARD6, FORWARD_INET]),
    ({"chain": "ip6:filter/*"}, [FORWARD6]),
    ({"chain": "inet:*/*"}, [FORWARD_INET]),
    ({"chain": ["raw/*", "matchlock_fc-1/jobs"]}, [PREROUTING, JOBS]),
    ({"chain": "*/*"}, EVERYWHERE),
    ({"all_chains": True}, EVERYWHERE),
    ({"all_chains": True, "family": "ipv6"}, [FORWARD6, FORWARD_INET]),
]


@pytest.mark.parametrize(("given", "selected"), WHERE)
def test_a_sweep_is_of_the_selected_chains_and_reads_no_others(
    host: Host, wide: Firewall, given: dict[str, Any], selected: list[Chain]
) -> None:
    report = host.sweep(**given)
    assert {each for each in (*EVERYWHERE, BRIDGE) if not wide.rules(each)} == set(selected)
    assert set(wide.looked_at) == set(selected)
    assert (report.deleted, report.scanned, report.elsewhere) == (len(selected), len(selected), 0)
    assert {each.family: each.deleted for each in report.backends} == {
        each.table.family: [other.table.family for other in selected].count(each.table.family) for each in selected
    }
    tables = {each.table for each in selected}
    assert report.overlooked == [str(table) for table in wide.tables() if table not in tables]


@pytest.mark.parametrize(("given", "selected"), WHERE)
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_list_and_a_dry_run_count_the_orphans_of_all_other_chains(
    host: Host, wide: Firewall, given: dict[str, Any], selected: list[Chain], dry_run: bool
) -> None:
    report = find_orphans(host.options(**given), command="sweep" if dry_run else "list", dry_run=dry_run)
    assert [finding.rule.chain for finding in report.orphans] == selected
    assert report.elsewhere == len(EVERYWHERE) - len(selected)
    assert report.scanned == sum(each.scanned for each in report.backends) == len(selected)
    assert {each.family for each in report.backends} == {each.table.family for each in selected}
    # Only what holds nothing that could be an orphan was not looked at.
    assert report.overlooked == ["nft bridge filter"]
    assert BRIDGE not in wide.looked_at


def test_what_is_alive_elsewhere_is_not_counted(host: Host, wide: Firewall) -> None:
    host.alive = {"hmdead"}
    assert find_orphans(host.options()).elsewhere == 0
    host.alive = set()
    wide.leak("hmbee", "docker0", "ha1", chain=JOBS)
    assert find_orphans(host.options()).elsewhere == 3


def test_rules_elsewhere_are_neither_kept_nor_negated(host: Host, wide: Firewall) -> None:
    host.alive = {"hmdead"}
    wide.append(JOBS, Spec(in_interface=Interface("hmbee", negated=True)))
    report = find_orphans(host.options(), keep=True)
    assert {finding.rule.chain for finding in report.kept} == {FORWARD, FORWARD6, FORWARD_INET, POSTROUTING}
    assert report.negated == []


# Chains that do not exist.


@pytest.mark.parametrize("profile", ["docker", "libvirt", "lxc", "lxd"])
def test_a_chain_of_a_profile_that_does_not_exist_is_not_missed(host: Host, profile: str) -> None:
    host.firewall("hm1", chains=[FORWARD])
    for report in (find_orphans(Options(profile=profile)), sweep(Options(profile=profile))):
        assert report.warnings == []
        assert report.chains == list(Options(profile=profile).chains)


def test_a_chain_that_was_given_is_missed_with_any_profile(host: Host) -> None:
    host.firewall("hm1", chains=[FORWARD])
    options = Options(profile="docker", chain=["filter/FORWARD", "filter/DOCKER*", "ipv6:filter/X"])
    assert find_orphans(options).warnings == ["there is no chain filter/DOCKER*", "there is no chain ipv6:filter/X"]
    with pytest.raises(UsageError, match=r"there is no chain \*/X or inet:firewalld/\*: 'iptables-save' and 'nft list"):
        find_orphans(host.options(chain=["*/X", "inet:firewalld/*"]))


def test_all_chains_of_a_host_without_any_are_not_missed(host: Host) -> None:
    assert find_orphans(host.options(all_chains=True)).warnings == []


# Profiles.

NET = "172.18.0.0/16"
BRIDGE_NAME = "br-0123456789ab"


def docker(firewall: Firewall, name: str) -> list[Rule]:
    """Some of the rules that Docker makes for a network, and one that an administrator made for it."""
    at, away = Interface(name), Interface(name, negated=True)
    return [
        firewall.append(firewall.of(where), said)
        for where, said in (
            (FORWARD, Spec(out_interface=at, matches=("conntrack",), target="ACCEPT")),
            (FORWARD, Spec(in_interface=at, out_interface=away, target="ACCEPT")),
            (POSTROUTING, Spec(source=NET, out_interface=away, target="MASQUERADE")),
            (chain("filter", "DOCKER"), Spec(out_interface=at, target="DROP", matches=("limit",))),
            (FORWARD, Spec(in_interface=at, source="192.0.2.1/32", target="ACCEPT")),
            (chain("filter", "DOCKER-USER"), Spec(in_interface=at, target="DROP")),
        )
    ]


DOCKERS = [FORWARD, POSTROUTING, chain("filter", "DOCKER"), chain("filter", "DOCKER-USER")]


@pytest.mark.parametrize("given", [{}, {"all_chains": True}, {"include_negated": True}])
def test_the_rules_of_a_dead_network_go_and_those_of_others_stay(host: Host, given: dict[str, Any]) -> None:
    firewall = host.firewall("hmdead", chains=DOCKERS)
    dead = docker(firewall, BRIDGE_NAME)
    alive = docker(firewall, "docker0")
    host.alive = {"docker0"}
    report = sweep(Options(profile="docker", settle=0, **given))
    assert {finding.rule.handle for finding in report.orphans} == {rule.handle for rule in dead[:4]}
    assert [f.live_traffic for f in report.orphans if f.live_traffic] == ["MASQUERADE"]
    left = {rule.handle for each in DOCKERS for rule in firewall.rules(each)}
    assert left >= {rule.handle for rule in (*dead[4:], *alive)}
    assert firewall.bridges()[0] == "hmdead"
    assert chain("filter", "DOCKER-USER") not in firewall.looked_at


def test_a_name_that_is_given_is_one_of_the_profiles(host: Host) -> None:
    firewall = host.firewall(chains=DOCKERS)
    docker(firewall, "mybr0")
    assert sweep(Options(profile="docker", settle=0)).deleted == 0
    assert sweep(Options(profile="docker", settle=0, name="mybr0")).deleted == 4


def test_the_default_profile_leaves_networks_of_others_alone(host: Host) -> None:
    firewall = host.firewall(chains=DOCKERS)
    docker(firewall, BRIDGE_NAME)
    report = host.sweep(all_chains=True, include_negated=True)
    assert (report.deleted, firewall.rules(FORWARD)[0].spec.out_interface) == (0, Interface(BRIDGE_NAME))


@pytest.mark.parametrize("name", ["legacy", "nft"])
def test_where_a_profile_has_no_lock_and_no_leases_none_are_used(host: Host, name: BackendName) -> None:
    docker(host.firewall(chains=DOCKERS, name=name), "docker0")
    report = sweep(Options(profile="docker", settle=0))
    assert (report.deleted, report.subnet_lock, report.leases) == (4, None, None)
    assert f"commit {name}" in host.events
    assert f"lock {name}" in host.events
    assert not {"lock subnet", "leases"} & set(host.events)
    assert list(host.directory.iterdir()) == []


def test_a_lock_and_leases_that_are_given_are_used_with_any_profile(host: Host) -> None:
    docker(host.firewall(chains=DOCKERS), "docker0")
    host.lease("docker0", os.getpid())
    options = Options(profile="docker", settle=0, lock_file=host.lock_file, lease_file=host.lease_file)
    report = sweep(options)
    assert (report.deleted, report.leases and report.leases.running) == (0, 1)
    host.lease_file.unlink()
    assert sweep(options).deleted == 4
    assert "lock subnet" in host.events


# Rules that match live traffic, and rules by number.


def test_negated_matches_are_listed_always_and_go_where_it_is_asked_for(host: Host) -> None:
    firewall = host.firewall("hm1")
    host.alive = {"hm1"}
    harm = Spec(in_interface=Interface("hmdead", negated=True), destination="192.0.2.1/32", target="DROP")
    guard = Spec(in_interface=Interface("hmdead", negated=True), target="DROP")
    for each in (harm, guard):
        firewall.append(FORWARD, each)
    for report in (find_orphans(host.options()), find_orphans(host.options(), command="sweep", dry_run=True)):
        assert [(f.rule.position, f.live_traffic) for f in report.negated] == [(2, "DROP"), (3, "DROP")]
        assert (report.orphans, report.kept) == ([], [])
    assert host.sweep().deleted == 0
    kept = find_orphans(host.options(include_negated=True), keep=True)
    assert [(f.rule.position, f.verdict) for f in kept.kept] == [(1, Verdict.LIVE), (3, Verdict.NEGATED)]
    report = host.sweep(include_negated=True)
    assert [(f.rule.spec, f.live_traffic) for f in report.orphans] == [(harm, "DROP")]
    assert [rule.spec for rule in firewall.rules(FORWARD)] == [spec("hm1"), guard]


def test_a_rule_by_number_is_shown_with_what_is_known_of_the_number(host: Host) -> None:
    firewall = host.firewall()
    host.devices = {3: ("eth0",)}
    for number in (3, 10):
        firewall.append(FORWARD, Spec(by_number=(number,), unreadable="by number"))
    report = find_orphans(host.options(), keep=True)
    assert [(f.verdict, f.reason) for f in report.kept] == [
        (Verdict.UNDECIDABLE, "matches interface number 3, which is eth0"),
        (Verdict.UNDECIDABLE, "matches interface number 10, which does not exist"),
    ]


# Time to settle.


class Clock:
    """What was slept, and what happened meanwhile."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.slept: list[float] = []
        self.meanwhile: Callable[[], object] = lambda: None

    def sleep(self, seconds: float) -> None:
        self._host.events.append("sleep")
        self.slept.append(seconds)
        self.meanwhile()


@pytest.fixture
def clock(host: Host, monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock(host)
    monkeypatch.setattr(time, "sleep", made.sleep)
    return made


def listed(host: Host, **options: Any) -> Report:
    return find_orphans(host.options(**options))


JOBS_THAT_LOOK: list[Callable[..., Report]] = [Host.sweep, listed]


@pytest.mark.parametrize("job", JOBS_THAT_LOOK)
def test_a_name_has_to_be_gone_in_two_looks(host: Host, clock: Clock, job: Callable[..., Report]) -> None:
    host.firewall("hmdead", "hmbee", "hm1")
    host.alive = {"hm1"}
    clock.meanwhile = lambda: host.alive.symmetric_difference_update({"hmbee", "hm1"})
    # Of those two one came meanwhile, and one went, which has not been gone for long.
    report = job(host, settle=2)
    assert [finding.bridge for finding in report.orphans] == ["hmdead"]
    assert clock.slept == [2.0]
    # Rules first, then who is alive, and that again.
    assert host.events[:7] == ["read legacy", "read nft", "leases", "interfaces", "sleep", "leases", "interfaces"]


@pytest.mark.parametrize("job", JOBS_THAT_LOOK)
def test_nothing_waits_without_an_orphan_or_without_time_to_settle(
    host: Host, clock: Clock, job: Callable[..., Report]
) -> None:
    host.firewall("hm1", "docker0", "hmvpn0").append(FORWARD, Spec(Interface("hmdead", negated=True)))
    host.alive = {"hm1"}
    assert job(host, settle=2).orphans == []
    host.firewall("hmdead")
    assert len(job(host, settle=0).orphans) == 1
    assert clock.slept == []


def test_a_list_waits_for_orphans_elsewhere_too(host: Host, clock: Clock) -> None:
    firewall = host.firewall(chains=[FORWARD, JOBS])
    firewall.leak("hmdead", "hmbee", chain=JOBS)
    clock.meanwhile = lambda: host.alive.add("hmbee")
    assert find_orphans(host.options(settle=2)).elsewhere == 1
    assert clock.slept == [2.0]


def test_a_name_that_came_and_went_again_has_to_settle_again(host: Host, clock: Clock) -> None:
    """Its rules may be on their way out by their owner's own hand."""
    firewall = host.firewall("hmdead", "hmbee", batch=1)
    asked = 0

    def ask() -> None:
        # Two looks, then for each rule one before the lock and one before the commit.
        nonlocal asked
        asked += 1
        host.alive = {"hmbee"} if asked == 6 else set()

    host.before_asking = ask
    host.sweep(settle=2)
    assert asked > 6
    assert firewall.bridges() == ["hmbee"]


def test_where_all_came_back_no_lock_is_taken(host: Host, clock: Clock) -> None:
    firewall = host.firewall("hmdead")
    clock.meanwhile = lambda: host.alive.add("hmdead")
    report = host.sweep(settle=2)
    assert (report.deleted, report.subnet_lock, firewall.bridges()) == (0, None, ["hmdead"])
    assert "lock subnet" not in host.events


def test_a_lease_that_was_taken_meanwhile_keeps_its_bridge(host: Host, clock: Clock) -> None:
    firewall = host.firewall("hmdead", "hmbee")
    clock.meanwhile = lambda: host.lease("hmdead", os.getpid())
    assert host.sweep(settle=2).deleted == 1
    assert firewall.bridges() == ["hmdead"]


def test_no_lock_is_held_while_names_settle_and_later_looks_go_on_where_it_left(host: Host, clock: Clock) -> None:
    firewall = host.firewall("hmdead", "hmbee", batch=1)
    firewall.before_commit = on_call(1, fail(ContentionError("changed")))
    host.before_asking = on_call(4, lambda: host.alive.add("hmbee"))
    assert host.sweep(settle=2).deleted == 1
    assert firewall.bridges() == ["hmbee"]
    assert clock.slept.count(2.0) == 1
    assert host.events.index("sleep") < host.events.index("lock subnet")


def test_what_became_another_rule_while_names_settled_stays(host: Host, clock: Clock) -> None:
    firewall = host.firewall("hmdead", "hmbee")
    first, _ = firewall.rules(FORWARD)
    clock.meanwhile = lambda: firewall.replace(first, spec("hmcafe"))
    assert host.sweep(settle=2).deleted == 1
    assert firewall.bridges() == ["hmcafe"]


# No more than so many.


def test_more_orphans_than_may_go_change_nothing(host: Host) -> None:
    firewalls = [host.firewall("hmdead", "hmbee", name=name) for name in ("legacy", "nft")]
    firewalls[1].leak("hmdead", chain=POSTROUTING)
    error, report = host.failed(NetsweepError, "^5 rules would go, which is more than --max-deletes 4$", max_deletes=4)
    assert error.exit_status == 1
    assert (report.changed, report.subnet_lock) == (False, None)
    assert (len(report.orphans), [each.orphans for each in report.backends]) == (5, [2, 3])  # 0 would be an all-clear
    assert [firewall.bridges() for firewall in firewalls] == [["hmdead", "hmbee"]] * 2
    assert not [event for event in host.events if "lock" in event or "commit" in event]
    assert list(host.directory.iterdir()) == []


@pytest.mark.parametrize("batch", [1, 1000])
def test_as_many_orphans_as_may_go_go(host: Host, batch: int) -> None:
    host.firewall("hmdead", "hmbee", batch=batch)
    assert host.sweep(max_deletes=2).deleted == 2
    assert host.sweep(max_deletes=0).deleted == 0


def test_none_may_go_where_the_number_is_zero(host: Host) -> None:
    firewall = host.firewall("hmdead")
    host.failed(NetsweepError, "1 rule would go, which is more than --max-deletes 0", max_deletes=0)
    assert firewall.bridges() == ["hmdead"]


def test_a_dry_run_fails_as_the_sweep_would_and_a_list_does_not(host: Host) -> None:
    host.firewall("hmdead", "hmbee")
    options = host.options(max_deletes=1)
    with pytest.raises(NetsweepError, match="2 rules would go") as raised:
        find_orphans(options, command="sweep", dry_run=True)
    assert raised.value.exit_status == 1
    assert raised.value.report
    assert len(raised.value.report.orphans) == 2
    assert len(find_orphans(options).orphans) == 2


def test_what_may_go_is_all_that_is_read_and_not_a_part(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int | None] = []
    read = Firewall.read

    def noted(firewall: Firewall, tables: Any, wanted: Any, limit: int | None = None, **options: Any) -> Any:
        limits.append(limit)
        return read(firewall, tables, wanted, limit, **options)

    monkeypatch.setattr(Firewall, "read", noted)
    host.firewall("hmdead")
    host.sweep(max_deletes=1)
    assert set(limits) == {None}
    host.firewall("hmdead")
    host.sweep()
    assert limits[-1] is not None
