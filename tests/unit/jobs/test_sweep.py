"""The main path, above a firewall in memory: what it does in which order, and when it stops."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netsweep.errors import (
    BusyError,
    ContentionError,
    NetsweepError,
    NotPermittedError,
    TableError,
    UsageError,
)
from netsweep.host import observer, priority
from netsweep.jobs import look
from netsweep.jobs import sweep as sweep_job
from netsweep.jobs.sweep import find_orphans
from netsweep.model import Chain, Family, Table
from netsweep.profiles.options import Options
from tests.unit.jobs.host import FORWARD, POSTROUTING, Host, ended_process, fail, gone, on_call, spec


def test_what_is_dead_goes_and_what_is_alive_stays(host: Host) -> None:
    host.alive = {"hm1"}
    firewall = host.firewall("hmdead", "hm1", "docker0", "hmbee")
    firewall.leak("hmdead", chain=POSTROUTING)
    report = host.sweep()
    assert (firewall.bridges(), firewall.bridges(POSTROUTING)) == (["hm1", "docker0"], [])
    assert gone(report.orphans) == [("hmdead", "FORWARD", 1), ("hmbee", "FORWARD", 4), ("hmdead", "POSTROUTING", 1)]
    assert (report.scanned, report.deleted, report.changed, report.errors) == (5, 3, True, [])
    assert host.lock_is_free()
    assert firewall.closed == 1


@pytest.mark.parametrize(("orphans", "calm"), [(3, False), (4, True)])
def test_a_long_deletion_does_not_keep_its_raised_priority(
    host: Host, monkeypatch: pytest.MonkeyPatch, orphans: int, calm: bool
) -> None:
    monkeypatch.setattr(sweep_job, "MANY", 3)
    monkeypatch.setattr(priority, "calm_down", lambda: host.events.append("calm"))
    host.firewall(*[f"hm{number}" for number in range(orphans)])
    assert host.sweep().deleted == orphans
    assert ("calm" in host.events) is calm
    if calm:
        assert host.events.index("calm") < host.events.index("lock subnet")


def test_where_there_is_no_orphan_no_lock_is_taken(host: Host) -> None:
    host.alive = {"hm1"}
    host.firewall("hm1", "docker0")
    report = host.sweep()
    assert report.subnet_lock is report.xtables_lock is None
    # Rules first, then interfaces: a bridge is made before its rules.
    assert host.events == ["read legacy", "read nft", "leases", "interfaces"]
    assert list(host.directory.iterdir()) == []


def test_looking_takes_no_lock_even_where_there_are_orphans(host: Host) -> None:
    firewall = host.firewall("hmdead")
    for report in (find_orphans(host.options()), find_orphans(host.options(), command="sweep", dry_run=True)):
        assert gone(report.orphans) == [("hmdead", "FORWARD", 1)]
        assert (report.changed, report.subnet_lock) == (False, None)
    assert firewall.bridges() == ["hmdead"]
    assert not [event for event in host.events if "lock" in event]
    assert list(host.directory.iterdir()) == []


def test_everything_is_looked_at_again_and_interfaces_last(host: Host) -> None:
    for name in ("legacy", "nft"):
        host.firewall("hmdead", name=name)
    report = host.sweep()
    for name in ("legacy", "nft"):
        at = host.events.index(f"lock {name}")
        assert host.events[at - 1 : at + 7] == [
            *("lock subnet", f"lock {name}", f"read {name} again", "leases", "interfaces"),
            *(f"commit {name}", f"release {name}", "release subnet"),
        ]
        # Who is alive was asked before the lock too, so that little is left to do under it.
        assert host.events[at - 3 : at - 1] == ["leases", "interfaces"]
    assert report.subnet_lock
    assert report.subnet_lock.path == str(host.lock_file)
    assert [(b.name, b.scanned, b.orphans, b.deleted) for b in report.backends] == [
        ("legacy", 1, 1, 1),
        ("nft", 1, 1, 1),
    ]


# A host that changes.


@pytest.mark.parametrize("call", [2, 3])
def test_a_bridge_that_comes_alive_between_decision_and_commit_keeps_its_rules(host: Host, call: int) -> None:
    """The second look at the interfaces is before the lock, the third right before the commit."""
    firewall = host.firewall("hmdead", "hmbee")
    host.before_asking = on_call(call, lambda: host.alive.add("hmdead"))
    report = host.sweep()
    assert firewall.bridges() == ["hmdead"]
    assert gone(report.orphans) == [("hmbee", "FORWARD", 2)]


def test_each_batch_asks_for_its_interfaces(host: Host) -> None:
    firewall = host.firewall("hm1", "hm2", "hm3", batch=1)
    firewall.before_commit = on_call(2, lambda: host.alive.add("hm3"))
    assert [bridge for bridge, _, _ in gone(host.sweep().orphans)] == ["hm1", "hm2"]
    assert firewall.bridges() == ["hm3"]


def test_an_interface_that_does_not_matter_stops_nothing(host: Host) -> None:
    firewall = host.firewall("hmdead")
    host.before_asking = on_call(3, lambda: host.alive.update({"hmfeed", "eth1"}))
    assert host.sweep(wait=0).deleted == 1
    assert firewall.bridges() == []


def test_where_all_came_alive_nothing_is_changed(host: Host) -> None:
    firewall = host.firewall("hmdead")
    host.before_asking = on_call(2, lambda: host.alive.add("hmdead"))
    report = host.sweep()
    assert firewall.bridges() == ["hmdead"]
    assert (report.orphans, report.changed, report.deleted) == ([], False, 0)
    assert "commit nft" not in host.events


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_lease_that_appears_keeps_its_bridge(host: Host, call: int) -> None:
    """Before the first look, before the second, and under the lock. A lease is written before its bridge is made."""
    firewall = host.firewall("hmdead", "hmbee")
    host.before_leases = on_call(call, lambda: host.lease("hmdead", os.getpid()))
    assert gone(host.sweep().orphans) == [("hmbee", "FORWARD", 2)]
    assert firewall.bridges() == ["hmdead"]


def test_a_large_lease_file_that_changes_under_the_lock_is_read_without_it(host: Host) -> None:
    firewall = host.firewall("hmdead", "hmbee")

    def write() -> None:
        lease = {"bridge_name": "hmdead", "pid": os.getpid(), "test_name": "x" * look.PARSE_MAX}
        host.lease_file.write_text(json.dumps({"leases": {"10.200.1.0/24": lease}}))

    host.before_leases = on_call(3, write)
    assert host.sweep().deleted == 1
    assert firewall.bridges() == ["hmdead"]
    locked = host.events.index("lock subnet")
    # Given up, and decided again from the start.
    assert host.events[locked : locked + 6] == [
        "lock subnet",
        "lock nft",
        "read nft again",
        "leases",
        "leases",
        "interfaces",
    ]


def test_a_lease_of_a_process_that_is_gone_keeps_nothing(host: Host) -> None:
    host.lease("hmdead", ended_process())
    firewall = host.firewall("hmdead")
    report = host.sweep()
    assert firewall.bridges() == []
    assert report.leases
    assert (report.leases.path, report.leases.exists) == (str(host.lease_file), True)
    assert (report.leases.leases, report.leases.running) == (1, 0)


def test_a_rule_that_was_replaced_under_its_handle_is_decided_on_as_what_it_is_now(host: Host) -> None:
    host.alive = {"hm1"}
    firewall = host.firewall("hmdead", "hmbee", "hmfeed")
    rules = firewall.rules(FORWARD)

    def replace() -> None:
        firewall.replace(rules[0], spec("hm1"))
        firewall.replace(rules[1], spec("docker0"))

    firewall.before_transaction = on_call(1, replace)
    assert gone(host.sweep().orphans) == [("hmfeed", "FORWARD", 3)]
    assert firewall.bridges() == ["hm1", "docker0"]


def test_a_rule_that_became_one_of_a_name_nobody_asked_about_stays(host: Host) -> None:
    firewall = host.firewall("hmdead")
    (rule,) = firewall.rules(FORWARD)
    firewall.before_transaction = on_call(1, lambda: firewall.replace(rule, spec("hmcafe")))
    assert host.sweep().deleted == 0
    assert firewall.bridges() == ["hmcafe"]


@pytest.mark.parametrize("journal", [False, True])
@pytest.mark.parametrize("hook", ["before_transaction", "before_commit"])
def test_a_table_that_was_made_anew_loses_nothing_but_orphans(host: Host, hook: str, journal: bool) -> None:
    """Its handles are those of the orphans that stood there before."""
    host.alive = {"hm1"}
    firewall = host.firewall("hmdead", "hmbee")

    def remake() -> None:
        firewall.remake(FORWARD.table)
        firewall.leak("docker0", "hm1", "hmdead")

    setattr(firewall, hook, on_call(1, remake))
    host.sweep(journal=host.directory / "journal" if journal else None)
    assert firewall.bridges()[:2] == ["docker0", "hm1"]


def test_what_others_commit_in_between_is_met_by_deciding_again(host: Host) -> None:
    firewall = host.firewall("hmdead", "hmbee")
    firewall.leak("hmdead", chain=POSTROUTING)
    commits: list[None] = []

    def interfere() -> None:
        commits.append(None)
        if len(commits) < 3:
            firewall.leak("docker0")
            host.alive = {"hmbee"}

    firewall.before_commit = interfere
    report = host.sweep()
    assert firewall.bridges() == ["hmbee", "docker0", "docker0"]
    assert firewall.bridges(POSTROUTING) == []
    assert (report.deleted, report.scanned, report.errors) == (2, 3, [])
    # The lock is given back in between.
    assert host.events.count("lock subnet") == 4


# Bounds.


def test_contention_that_does_not_end_is_busy_with_nothing_changed(host: Host) -> None:
    firewall = host.firewall("hmdead")
    firewall.before_commit = lambda: firewall.leak("docker0")
    error, report = host.failed(BusyError, r"^timed out after 0 s: .*--wait; nothing was changed$", wait=0)
    assert error.exit_status == 75
    assert (report.changed, report.deleted) == (False, 0)
    assert gone(report.orphans) == [("hmdead", "FORWARD", 1)]
    assert firewall.bridges()[0] == "hmdead"


def test_somebody_who_leaks_as_fast_as_we_sweep_keeps_no_sweep_from_ending(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every commit that works is followed by a new orphan, and every other one fails; time is not the tests'."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    firewall = host.firewall(*[f"hm{number:x}" for number in range(50)], batch=1)
    commits: list[None] = []

    def leak() -> None:
        commits.append(None)
        clock[0] += 0.05
        if len(commits) % 2:
            firewall.leak(f"hm{1000 + len(commits):x}")

    firewall.before_commit = leak
    _, report = host.failed(NetsweepError, r"timed out after 1 s.*; before that, it deleted \d+ rules$", wait=1)
    assert 0 < report.deleted < 50
    assert len(commits) <= 2 * (1 / 0.05 + 1)


def test_orphans_that_come_during_a_sweep_are_left_to_the_next(host: Host) -> None:
    firewall = host.firewall("hm1", "hm2", "hm3", batch=1)
    firewall.before_transaction = lambda: firewall.leak("hmfeed")
    assert host.sweep(wait=0).deleted == 3
    assert firewall.bridges() == ["hmfeed"] * 3


def test_a_chain_that_cannot_be_read_is_read_again_until_time_is_up(host: Host) -> None:
    firewall = host.firewall("hmdead")
    firewall.before_read = on_call(1, fail(ContentionError("reading filter")))
    assert host.sweep().deleted == 1
    firewall = host.firewall("hmdead")
    firewall.before_read = fail(ContentionError("reading filter"))
    error, report = host.failed(BusyError, "reading filter", wait=0)
    assert error.exit_status == 75
    assert report.subnet_lock is None


def test_a_busy_subnet_lock_names_the_lock_and_the_option(host: Host) -> None:
    firewall = host.firewall("hmdead")
    with host.lock_file.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BusyError, match=r"subnet lock .*/lock.*--lock-timeout.*; nothing was changed") as raised:
            host.sweep(lock_timeout=0)
    assert raised.value.report
    assert raised.value.report.subnet_lock is None
    assert firewall.bridges() == ["hmdead"]


def test_running_out_of_time_half_way_does_not_claim_that_nothing_changed(host: Host) -> None:
    firewall = host.firewall("hmdead", "hmbee", batch=1)
    firewall.before_commit = on_call(2, fail(ContentionError("the table was changed")), every=True)
    error, report = host.failed(NetsweepError, "the table was changed.*; before that, it deleted 1 rule$", wait=0)
    assert error.exit_status == 1
    assert report.deleted == 1
    assert firewall.bridges() == ["hmbee"]


# Failures.


def test_a_failure_in_the_second_table_says_what_went_from_the_first(host: Host) -> None:
    firewall = host.firewall("hmdead", "hmbee")
    firewall.leak("hmdead", chain=POSTROUTING)
    firewall.before_commit = on_call(2, fail(NetsweepError("no memory")))
    error, report = host.failed(NetsweepError, "^no memory$")
    assert error.exit_status == 1
    assert (report.deleted, report.changed, report.scanned) == (2, True, 3)
    assert gone(report.orphans) == [("hmdead", "FORWARD", 1), ("hmbee", "FORWARD", 2), ("hmdead", "POSTROUTING", 1)]
    assert (firewall.bridges(), firewall.bridges(POSTROUTING)) == ([], ["hmdead"])
    assert report.subnet_lock


def test_a_table_that_refuses_does_not_keep_the_others_from_being_swept(host: Host) -> None:
    firewall = host.firewall("hmdead", "hmbee", batch=1)
    firewall.leak("hmdead", chain=POSTROUTING)
    firewall.before_transaction = on_call(1, fail(TableError("filter is another's")))
    error, report = host.failed(TableError, "^filter is another's$")
    assert error.exit_status == 1
    assert (firewall.bridges(), firewall.bridges(POSTROUTING)) == (["hmdead", "hmbee"], [])
    assert (report.deleted, len(report.orphans)) == (1, 3)


def test_contention_half_way_counts_no_rule_twice(host: Host) -> None:
    firewall = host.firewall("hm1", "hm2", "docker0", "hm3", "hm4", "hm5", batch=2)
    commits: list[None] = []

    def fail_every_other() -> None:
        commits.append(None)
        if len(commits) % 2 == 0:
            raise ContentionError("changed")

    firewall.before_commit = fail_every_other
    report = host.sweep()
    assert firewall.bridges() == ["docker0"]
    assert gone(report.orphans) == [(f"hm{n}", "FORWARD", at) for n, at in enumerate([1, 2, 4, 5, 6], 1)]
    assert (report.scanned, report.deleted, report.backends[0].orphans) == (6, 5, 5)


def test_without_the_capability_nothing_is_opened(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    firewall = host.firewall("hmdead")
    monkeypatch.setattr(look, "require_net_admin", fail(NotPermittedError("CAP_NET_ADMIN is missing")))
    with pytest.raises(NotPermittedError) as raised:
        host.sweep()
    assert raised.value.report
    assert raised.value.report.errors == ["CAP_NET_ADMIN is missing"]
    assert (host.events, firewall.closed) == ([], 0)


def test_a_lease_file_that_is_not_understood_stops_before_any_lock(host: Host) -> None:
    firewall = host.firewall("hmdead")
    host.lease_file.write_text("no leases")
    host.failed(NetsweepError, "cannot understand lease file")
    assert firewall.bridges() == ["hmdead"]
    assert not [event for event in host.events if "lock" in event]


# All of them, and nothing else.


@pytest.mark.parametrize("batch", [1, 2, 3, 1000])
def test_every_copy_of_a_rule_goes(host: Host, batch: int) -> None:
    host.alive = {"hm1"}
    firewall = host.firewall("hmdead", "hmdead", "hm1", "hmdead", "hmbee", "hmdead", batch=batch)
    report = host.sweep()
    assert firewall.bridges() == ["hm1"]
    assert [position for _, _, position in gone(report.orphans)] == [1, 2, 4, 5, 6]
    assert host.events.count("commit nft") == -(-5 // batch)


names = st.sampled_from(["hm1", "hm2", "hmdead", "hmbee", "docker0", "ha1"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(names, max_size=20),
    st.lists(names, max_size=12),
    st.integers(1, 7),
    st.sets(names, max_size=3),
    st.sets(st.integers(1, 6), max_size=3),
    st.booleans(),
)
def test_orphans_go_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    forward: list[str],
    postrouting: list[str],
    batch: int,
    alive: set[str],
    failures: set[int],
    journal: bool,
) -> None:
    host = Host(tmp_path)
    host.alive = alive
    firewall = host.firewall(*forward, batch=batch)
    firewall.leak(*postrouting, chain=POSTROUTING)
    commits: list[None] = []

    def fail_some() -> None:
        commits.append(None)
        if len(commits) in failures:
            raise ContentionError("changed")

    firewall.before_commit = fail_some

    def dead(name: str) -> bool:
        return name.startswith("hm") and name not in alive

    path = tmp_path / "journal"
    path.unlink(missing_ok=True)
    with monkeypatch.context() as patch:
        host.install(patch)
        report = host.sweep(journal=path if journal else None)
    for chain, before in ((FORWARD, forward), (POSTROUTING, postrouting)):
        assert firewall.bridges(chain) == [name for name in before if not dead(name)]
        expected = [(name, chain.name, n) for n, name in enumerate(before, 1) if dead(name)]
        assert [each for each in gone(report.orphans) if each[1] == chain.name] == expected
    assert report.scanned == len(forward) + len(postrouting)
    assert report.deleted == len(report.orphans) == report.backends[0].orphans
    assert report.changed == (report.subnet_lock is not None)
    assert path.exists() == (journal and report.changed)


# What was looked at, and what was not.


def test_what_stays_is_reported_on_demand_only(host: Host) -> None:
    host.alive = {"hm1"}
    host.firewall("hm1", "ha1", "docker0", "hmdead")
    assert find_orphans(host.options()).kept == []
    kept = find_orphans(host.options(), keep=True).kept
    assert [(f.bridge, f.verdict.value) for f in kept] == [("hm1", "live"), ("ha1", "protected")]


def test_a_backend_that_was_not_asked_for_is_not_opened(host: Host) -> None:
    legacy, nft = host.firewall("hmdead", name="legacy"), host.firewall("hmdead", name="nft")
    assert host.sweep(backend="nft").deleted == 1
    assert (legacy.bridges(), nft.bridges(), legacy.closed) == (["hmdead"], [], 0)


def test_a_look_that_may_have_missed_rules_says_so(host: Host) -> None:
    host.firewall("hm1").complete = False
    for report in (host.sweep(wait=0), find_orphans(host.options(wait=0))):
        assert report.warnings == ["the rules changed each time they were read; some may have been missed"]


@pytest.mark.parametrize(
    ("asked", "warnings"),
    [
        (["filter/FORWARD", "filter/TYPO"], ["there is no chain filter/TYPO"]),
        (["filter/TYPO", "filter/FORWARD", "mangle/OTHER"], ["filter/TYPO", "mangle/OTHER"]),
        # iptables makes these when they are first used.
        (["filter/FORWARD", "filter/INPUT", "nat/PREROUTING", "raw/OUTPUT", "mangle/INPUT", "security/OUTPUT"], []),
        (["nat/POSTROUTING"], []),
    ],
)
def test_a_chain_that_exists_nowhere_is_warned_of(host: Host, asked: list[str], warnings: list[str]) -> None:
    host.firewall("hm1", chains=[FORWARD])
    report = find_orphans(host.options(chain=asked))
    assert [expected in warning for expected, warning in zip(warnings, report.warnings, strict=True)] == [
        True for _ in warnings
    ]
    assert report.chains == asked


def test_where_none_of_the_chains_exists_it_is_wrong_usage(host: Host) -> None:
    host.firewall("hmdead", chains=[FORWARD])
    error, _ = host.failed(UsageError, "there is no chain filter/TYPO or nat/JOBS", chain=["filter/TYPO", "nat/JOBS"])
    assert error.exit_status == 2


def test_a_chain_that_one_backend_has_is_not_missing(host: Host) -> None:
    host.firewall("hm1", name="legacy", chains=[FORWARD])
    jobs = Chain(FORWARD.table, "JOBS")
    host.firewall(name="nft", chains=[jobs]).leak("hmdead", chain=jobs)
    report = host.sweep(chain="filter/JOBS")
    assert (report.warnings, report.deleted) == ([], 1)


def test_tables_that_were_not_looked_at_are_named(host: Host) -> None:
    inet = Chain(Table("nft", Family.INET, "firewalld"), "FORWARD")
    ipv6 = Chain(Table("nft", Family.IPV6, "filter"), "FORWARD")
    raw = Chain(Table("nft", Family.IPV4, "raw"), "PREROUTING")
    firewall = host.firewall("hm1", chains=[FORWARD, inet, ipv6, raw])
    host.alive = {"hm1"}
    for chain in (inet, ipv6, raw):
        firewall.leak("hmdead", chain=chain)
    report = host.sweep()
    assert report.overlooked == ["nft inet firewalld", "nft ipv4 raw"]
    assert (report.scanned, report.deleted) == (2, 1)
    assert [(backend.family, backend.scanned, backend.deleted) for backend in report.backends] == [
        (Family.IPV4, 1, 0),
        (Family.IPV6, 1, 1),
    ]


def test_the_lease_file_that_was_used_is_told_where_there_is_none(host: Host) -> None:
    host.firewall("hm1")
    leases = host.sweep().leases
    assert leases
    assert (leases.path, leases.exists, leases.leases) == (str(host.lease_file), False, 0)
    assert Options().lease_file != str(host.lease_file)


@pytest.mark.parametrize(
    ("bridges", "said"), [(["hmdead"], "deleted 0 of 1 rule"), (["hmdead", "hmbee"], "deleted 0 of 2 rules")]
)
def test_progress_counts_one_rule_as_one(
    host: Host, bridges: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Recorder(observer.Observer):
        def working(self, text: str) -> None:
            told.append(text)

    told: list[str] = []
    host.firewall(*bridges)
    monkeypatch.setattr(observer, "current", Recorder())
    host.sweep()
    assert said in told
