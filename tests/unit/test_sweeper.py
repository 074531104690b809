"""The one path of a sweep, above a firewall in memory: what it does in which order, and when it stops."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netsweep import interfaces, leases, locks, sweeper
from netsweep.backends import Scan, Transaction
from netsweep.backends.fake import FakeBackend
from netsweep.errors import BusyError, ContentionError, NetsweepError, NotPermittedError, UsageError
from netsweep.locks import LockTimes
from netsweep.orphans import Live
from netsweep.report import Report
from netsweep.rules import ChainRef, Interface, Rule
from netsweep.sweeper import Options, find_orphans, sweep

FORWARD = ChainRef("filter", "FORWARD")
POSTROUTING = ChainRef("nat", "POSTROUTING")


def rule(bridge: str, chain: ChainRef = FORWARD) -> Rule:
    return Rule("fake", *chain, 0, in_interface=Interface(bridge), target="ACCEPT")


class Firewall(FakeBackend):
    """Says what is done to it. Called legacy, it reads again inside a transaction, as that one does."""

    def __init__(self, note: Callable[[str], None], name: str, chains: Sequence[ChainRef], batch: int | None) -> None:
        super().__init__(chains, batch)
        self.name = name
        self.closed = 0
        self.before_scan: Callable[[], None] = lambda: None
        self._note = note

    def append(self, rule: Rule) -> None:
        super().append(rule._replace(backend=self.name))

    def scan(self, table: str, chains: Sequence[str], limit: int | None = None) -> Scan:
        self._note(f"read {self.name} {table}")
        self.before_scan()
        return super().scan(table, chains, limit)

    @contextmanager
    def writing(self, times: LockTimes, timeout: float) -> Iterator[None]:
        self._note(f"lock {self.name}")
        yield
        self._note(f"release {self.name}")

    @contextmanager
    def transaction(self, scan: Scan) -> Iterator[Transaction]:
        newest = self.scan(scan.table, scan.chains) if self.name == "legacy" else scan
        with super().transaction(newest) as opened:
            yield Noted(opened, lambda: self._note(f"delete {self.name} {scan.table}"))

    def close(self) -> None:
        self.closed += 1


class Noted:
    def __init__(self, transaction: Transaction, note: Callable[[], None]) -> None:
        self.scan, self.batch, self.insert = transaction.scan, transaction.batch, transaction.insert
        self._transaction, self._note = transaction, note

    def delete(self, rules: Sequence[Rule]) -> None:
        self._note()
        self._transaction.delete(rules)


class Host:
    """A host in memory. ``alive``: the interfaces at each look; the last list stands for all later ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock_file = folder / "lock"
        self.lease_file = folder / "leases.json"
        self.events: list[str] = []
        self.alive: list[set[str]] = [set()]
        self.firewalls: dict[str, Firewall] = {}

    def firewall(
        self, *chains: ChainRef, batch: int | None = None, name: str = "nft", rules: Sequence[Rule] = ()
    ) -> Firewall:
        """Give the host a firewall with ``rules`` in ``chains``, or in those two that are swept by default."""
        made = Firewall(self.events.append, name, chains or (FORWARD, POSTROUTING), batch)
        for each in rules:
            made.append(each)
        self.firewalls[name] = made
        return made

    def open_backend(self, name: str, hints: Sequence[bytes], *, keep_undo: bool) -> Firewall:
        return self.firewalls.get(name) or Firewall(self.events.append, name, (), None)

    def live(self) -> Live:
        self.events.append("interfaces")
        return Live(self.alive.pop(0) if len(self.alive) > 1 else self.alive[0])

    def lease(self, bridge: str, pid: int) -> None:
        self.lease_file.write_text(json.dumps({"leases": {"10.200.1.0/24": {"bridge_name": bridge, "pid": pid}}}))

    def options(self, **options: Any) -> Options:
        return Options(lock_file=str(self.lock_file), lease_file=str(self.lease_file), **options)

    def sweep(self, **options: Any) -> Report:
        return sweep(self.options(**options))

    def failed_sweep(self, error: type[NetsweepError], match: str, **options: Any) -> tuple[NetsweepError, Report]:
        with pytest.raises(error, match=match) as raised:
            self.sweep(**options)
        report = raised.value.report
        assert report
        assert report.errors == [str(raised.value)]
        assert self.lock_is_free()
        assert all(firewall.closed == 1 for firewall in self.firewalls.values())
        return raised.value, report

    def lock_is_free(self) -> bool:
        if not self.lock_file.exists():
            return True
        with self.lock_file.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host(tmp_path)
    install(made, monkeypatch)
    return made


def install(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    read, held = leases.read, locks.held

    class Script:
        def __enter__(self) -> Script:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def live(self, asked: Collection[str], *, all_names: bool = False) -> Live:
            return host.live()

    @contextmanager
    def noted_held(times: LockTimes, timeout: float, *, mode: int, what: str, option: str) -> Iterator[None]:
        with held(times, timeout, mode=mode, what=what, option=option):
            host.events.append("lock subnet")
            yield
        host.events.append("release subnet")

    def noted_read(path: str) -> list[leases.Lease]:
        host.events.append("leases")
        return read(path)

    monkeypatch.setattr(sweeper, "require_net_admin", lambda: None)
    monkeypatch.setattr(sweeper, "open_backend", host.open_backend)
    monkeypatch.setattr(interfaces, "Interfaces", Script)
    monkeypatch.setattr(locks, "held", noted_held)
    monkeypatch.setattr(leases, "read", noted_read)


def bridges(firewall: FakeBackend, chain: ChainRef = FORWARD) -> list[str]:
    """The interface that each rule of ``chain`` names, in order."""
    return [str(r.in_interface) for r in firewall.rules(chain)]


def gone(report: Report) -> list[tuple[str, str, int]]:
    return [(str(f.rule.in_interface), f.rule.chain, f.rule.position) for f in report.orphans]


def once(*failures: Exception) -> Callable[[], None]:
    """Raise ``failures``, one at each call, then nothing."""
    left = list(failures)

    def fail() -> None:
        if left:
            raise left.pop(0)

    return fail


def test_what_is_dead_goes_and_what_is_alive_stays(host: Host) -> None:
    host.alive = [{"hm1"}]
    firewall = host.firewall(rules=[*map(rule, ["hmdead", "hm1", "docker0", "hmbee"]), rule("hmdead", POSTROUTING)])
    report = host.sweep()
    assert bridges(firewall) == ["hm1", "docker0"]
    assert bridges(firewall, POSTROUTING) == []
    assert gone(report) == [("hmdead", "FORWARD", 1), ("hmbee", "FORWARD", 4), ("hmdead", "POSTROUTING", 1)]
    assert (report.scanned, report.deleted, report.changed, report.errors) == (5, 3, True, [])
    assert host.lock_is_free()
    assert firewall.closed == 1


def test_where_there_is_no_orphan_no_lock_is_taken(host: Host) -> None:
    host.alive = [{"hm1"}]
    host.firewall(rules=[rule("hm1"), rule("docker0")])
    report = host.sweep()
    assert report.subnet_lock is report.xtables_lock is None
    assert host.events == ["leases", "read nft filter", "read nft nat", "interfaces"]
    assert list(host.folder.iterdir()) == []


def test_looking_takes_no_lock_even_where_there_are_orphans(host: Host) -> None:
    firewall = host.firewall(rules=[rule("hmdead")])
    for report in (find_orphans(host.options()), find_orphans(host.options(), command="sweep", dry_run=True)):
        assert gone(report) == [("hmdead", "FORWARD", 1)]
        assert (report.changed, report.subnet_lock) == (False, None)
    assert bridges(firewall) == ["hmdead"]
    assert not [event for event in host.events if "lock" in event]
    assert list(host.folder.iterdir()) == []


def test_under_the_lock_everything_is_read_again_rules_before_interfaces(host: Host) -> None:
    for name in ("legacy", "nft"):
        host.firewall(name=name, rules=[rule("hmdead"), rule("hmdead", POSTROUTING)])
    report = host.sweep()
    looked = host.events.index("lock subnet")
    assert host.events[:looked].count("interfaces") == 1
    assert host.events[looked:] == [
        "lock subnet",
        "leases",
        *("lock legacy", "read legacy filter", "read legacy nat", "interfaces"),
        *("delete legacy filter", "delete legacy nat", "release legacy"),
        # Handles name rules for good, so what was read before the lock will do.
        *("lock nft", "interfaces", "delete nft filter", "delete nft nat", "release nft"),
        "release subnet",
    ]
    assert report.subnet_lock
    assert report.subnet_lock.path == str(host.lock_file)
    assert [(b.name, b.scanned, b.orphans, b.deleted) for b in report.backends] == [
        ("legacy", 2, 2, 2),
        ("nft", 2, 2, 2),
    ]


def test_a_rule_whose_bridge_comes_alive_before_the_lock_stays(host: Host) -> None:
    host.alive = [set(), {"hmdead"}]
    firewall = host.firewall(rules=[rule("hmdead"), rule("hmbee")])
    report = host.sweep()
    assert bridges(firewall) == ["hmdead"]
    assert gone(report) == [("hmbee", "FORWARD", 2)]


def test_where_all_came_alive_before_the_lock_nothing_is_changed(host: Host) -> None:
    host.alive = [set(), {"hmdead"}]
    firewall = host.firewall(rules=[rule("hmdead")])
    report = host.sweep()
    assert bridges(firewall) == ["hmdead"]
    assert (report.orphans, report.changed) == ([], False)
    assert "delete nft filter" not in host.events


def test_a_lease_that_comes_before_the_lock_protects_its_bridge(host: Host) -> None:
    firewall = host.firewall(rules=[rule("hmdead"), rule("hmbee")])
    # The harness writes the lease before it makes the bridge.
    firewall.before_scan = lambda: host.lease("hmdead", os.getpid())
    report = host.sweep()
    assert bridges(firewall) == ["hmdead"]
    assert report.deleted == 1


def test_a_rule_that_comes_before_the_lock_is_seen_under_it(host: Host) -> None:
    firewall = host.firewall(name="legacy", rules=[rule("hmdead")])
    looked: list[None] = []

    def add() -> None:
        looked.append(None)
        if len(looked) == 3:  # the first look has read both tables
            firewall.append(rule("hmbee"))

    firewall.before_scan = add
    assert gone(host.sweep()) == [("hmdead", "FORWARD", 1), ("hmbee", "FORWARD", 2)]


@pytest.mark.parametrize("batch", [None, 1, 2, 3, 100])
def test_every_copy_of_a_rule_goes(host: Host, batch: int | None) -> None:
    names = ["hmdead", "hmdead", "hm1", "hmdead", "hmbee", "hmdead"]
    host.alive = [{"hm1"}]
    firewall = host.firewall(batch=batch, rules=[*map(rule, names)])
    report = host.sweep()
    assert bridges(firewall) == ["hm1"]
    assert [position for _, _, position in gone(report)] == [1, 2, 4, 5, 6]
    assert host.events.count("delete nft filter") == -(-5 // (batch or 5))


def test_contention_is_met_by_reading_again_and_deciding_again(host: Host) -> None:
    firewall = host.firewall(rules=[rule("hmdead"), rule("hmbee"), rule("hmdead", POSTROUTING)])
    firewall.before_delete = once(ContentionError("changed"), ContentionError("changed"))
    host.alive = [set(), set(), set(), {"hmbee"}]
    report = host.sweep()
    assert bridges(firewall) == ["hmbee"]
    assert bridges(firewall, POSTROUTING) == []
    assert (report.deleted, report.scanned, report.errors) == (2, 3, [])
    assert host.events.count("lock subnet") == host.events.count("release subnet") + 2 == 3


def test_contention_that_does_not_end_is_busy_with_nothing_changed(host: Host) -> None:
    firewall = host.firewall(rules=[rule("hmdead")])
    firewall.before_delete = once(*[ContentionError("the table was changed")] * 1000)
    error, report = host.failed_sweep(
        BusyError, "the table was changed, for 0 s; .*--wait; nothing was changed", wait=0
    )
    assert error.exit_status == 75
    assert (report.changed, report.deleted) == (False, 0)
    assert gone(report) == [("hmdead", "FORWARD", 1)]
    assert bridges(firewall) == ["hmdead"]


def test_a_chain_that_cannot_be_read_for_all_the_changes_is_busy(host: Host) -> None:
    firewall = host.firewall(rules=[rule("hmdead")])
    firewall.before_scan = once(*[ContentionError("reading filter")] * 1000)
    error, report = host.failed_sweep(BusyError, "reading filter, for 0 s", wait=0)
    assert error.exit_status == 75
    assert report.subnet_lock is None


def test_a_chain_that_settles_is_read(host: Host) -> None:
    firewall = host.firewall(rules=[rule("hmdead")])
    firewall.before_scan = once(ContentionError("reading"), ContentionError("reading"))
    assert host.sweep().deleted == 1


def test_a_busy_subnet_lock_names_the_lock_and_the_option(host: Host) -> None:
    firewall = host.firewall(rules=[rule("hmdead")])
    with host.lock_file.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BusyError, match=r"subnet lock .*/lock.*--lock-timeout.*; nothing was changed") as raised:
            host.sweep(lock_timeout=0)
    assert raised.value.report
    assert raised.value.report.subnet_lock is None
    assert bridges(firewall) == ["hmdead"]


def test_a_failure_in_the_second_table_says_what_went_from_the_first(host: Host) -> None:
    firewall = host.firewall(rules=[rule("hmdead"), rule("hmbee"), rule("hmdead", POSTROUTING)])
    calls: list[None] = []

    def fail_second() -> None:
        calls.append(None)
        if len(calls) == 2:
            raise NetsweepError("no memory")

    firewall.before_delete = fail_second
    error, report = host.failed_sweep(NetsweepError, "^no memory$")
    assert error.exit_status == 1
    assert (report.deleted, report.changed, report.scanned) == (2, True, 3)
    assert gone(report) == [("hmdead", "FORWARD", 1), ("hmbee", "FORWARD", 2), ("hmdead", "POSTROUTING", 1)]
    assert bridges(firewall) == []
    assert bridges(firewall, POSTROUTING) == ["hmdead"]
    assert report.subnet_lock


def test_running_out_of_time_half_way_does_not_claim_that_nothing_changed(host: Host) -> None:
    firewall = host.firewall(batch=1, rules=[rule("hmdead"), rule("hmbee")])
    calls: list[None] = []

    def fail_from_second() -> None:
        calls.append(None)
        if len(calls) > 1:
            raise ContentionError("the table was changed")

    firewall.before_delete = fail_from_second
    error, report = host.failed_sweep(NetsweepError, "the table was changed.* 1 were deleted before", wait=0)
    # The status of a lock that was not to be had promises that nothing was changed.
    assert error.exit_status == 1
    assert report.deleted == 1
    assert bridges(firewall) == ["hmbee"]


def test_contention_half_way_counts_no_rule_twice(host: Host) -> None:
    names = ["hm1", "hm2", "docker0", "hm3", "hm4", "hm5"]
    firewall = host.firewall(batch=2, rules=[*map(rule, names)])
    calls: list[None] = []

    def fail_every_other() -> None:
        calls.append(None)
        if len(calls) % 2 == 0:
            raise ContentionError("changed")

    firewall.before_delete = fail_every_other
    report = host.sweep()
    assert bridges(firewall) == ["docker0"]
    assert gone(report) == [(f"hm{n}", "FORWARD", position) for n, position in enumerate([1, 2, 4, 5, 6], 1)]
    assert (report.scanned, report.deleted, report.backends[0].orphans) == (6, 5, 5)


@pytest.mark.parametrize(("name", "several"), [("legacy", False), ("nft", True)])
def test_a_chain_that_is_longer_than_a_look_is_swept_whole(
    host: Host, monkeypatch: pytest.MonkeyPatch, name: str, several: bool
) -> None:
    monkeypatch.setattr(sweeper, "LOOK_MAX", 10)
    names = ["docker0" if number % 5 == 0 else f"hm{number:x}" for number in range(1, 48)]
    firewall = host.firewall(name=name, batch=3, rules=[*map(rule, names)])
    report = host.sweep()
    assert set(bridges(firewall)) == {"docker0"}
    assert [position for _, _, position in gone(report)] == [n for n in range(1, 48) if n % 5]
    assert (report.scanned, report.deleted) == (47, 38)
    assert (host.events.count("lock subnet") > 1) is several


@pytest.mark.parametrize("wait", [0, 5])
def test_orphans_behind_more_rules_that_stay_than_a_look_takes_are_found(
    host: Host, monkeypatch: pytest.MonkeyPatch, wait: float
) -> None:
    monkeypatch.setattr(sweeper, "LOOK_MAX", 10)
    host.alive = [{"hm1"}]
    firewall = host.firewall(rules=[*[rule("hm1")] * 25, rule("hmdead"), rule("hm1")])
    report = host.sweep(wait=wait)
    assert bridges(firewall) == ["hm1"] * 26
    assert gone(report) == [("hmdead", "FORWARD", 26)]
    assert (report.scanned, report.warnings) == (27, [])


class Changing(Firewall):
    """Never settles while it is read."""

    def scan(self, table: str, chains: Sequence[str], limit: int | None = None) -> Scan:
        scan = super().scan(table, chains, limit)
        scan.complete = False
        return scan


def test_a_look_that_may_have_missed_rules_says_so(host: Host) -> None:
    host.firewalls["nft"] = Changing(host.events.append, "nft", [FORWARD], None)
    for report in (host.sweep(wait=0), find_orphans(host.options(wait=0))):
        assert ["missed" in warning for warning in report.warnings] == [True]


names = st.sampled_from(["hm1", "hm2", "hmdead", "hmbee", "docker0", "ha1"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(names, max_size=30),
    st.lists(names, max_size=12),
    st.none() | st.integers(1, 7),
    st.integers(1, 12),
    st.sets(names, max_size=3),
    st.sampled_from(["legacy", "nft"]),
)
def test_orphans_go_and_nothing_else_whatever_the_limits(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    forward: list[str],
    postrouting: list[str],
    batch: int | None,
    limit: int,
    alive: set[str],
    name: str,
) -> None:
    host = Host(tmp_path)
    host.alive = [alive]
    firewall = host.firewall(
        name=name, batch=batch, rules=[rule(n) for n in forward] + [rule(n, POSTROUTING) for n in postrouting]
    )

    def dead(name: str) -> bool:
        return name.startswith("hm") and name not in alive

    with monkeypatch.context() as patch:
        install(host, patch)
        patch.setattr(sweeper, "LOOK_MAX", limit)
        report = host.sweep()
    for chain, before in ((FORWARD, forward), (POSTROUTING, postrouting)):
        assert bridges(firewall, chain) == [name for name in before if not dead(name)]
        expected = [(name, chain.chain, n) for n, name in enumerate(before, 1) if dead(name)]
        assert [entry for entry in gone(report) if entry[1] == chain.chain] == expected
    assert report.scanned == len(forward) + len(postrouting)
    assert report.deleted == len(report.orphans) == report.backends[0].orphans
    assert report.changed == (report.subnet_lock is not None)


def test_what_stays_is_reported_on_demand_only(host: Host) -> None:
    host.alive = [{"hm1"}]
    host.firewall(rules=[*map(rule, ["hm1", "ha1", "docker0", "hmdead"])])
    assert find_orphans(host.options()).kept == []
    kept = find_orphans(host.options(), keep=True).kept
    assert [(f.bridge, f.verdict.value) for f in kept] == [("hm1", "live"), ("ha1", "protected")]


def test_backends_without_tables_are_left_out_unless_they_were_asked_for(host: Host) -> None:
    host.firewall(name="nft", rules=[rule("hmdead")])
    assert [b.name for b in find_orphans(host.options()).backends] == ["nft"]
    assert [b.name for b in find_orphans(host.options(backend="legacy")).backends] == ["legacy"]


def test_a_backend_that_was_not_asked_for_is_not_opened(host: Host) -> None:
    legacy = host.firewall(name="legacy", rules=[rule("hmdead")])
    nft = host.firewall(name="nft", rules=[rule("hmdead")])
    assert host.sweep(backend="nft").deleted == 1
    assert (bridges(legacy), bridges(nft)) == (["hmdead"], [])
    assert legacy.closed == 0


def test_tables_that_do_not_exist_are_not_read(host: Host) -> None:
    host.firewall(FORWARD, rules=[rule("hmdead")])
    assert host.sweep(chain=["filter/FORWARD", "nat/POSTROUTING"]).deleted == 1
    assert not [event for event in host.events if "nat" in event]


def test_a_chain_that_exists_nowhere_is_warned_of_once(host: Host) -> None:
    host.firewall(FORWARD, rules=[rule("hmdead")])
    report = host.sweep(chain=["filter/FORWARD", "filter/TYPO"])
    assert report.warnings == ["there is no chain filter/TYPO"]
    assert report.deleted == 1


def test_chains_of_iptables_own_may_be_missing(host: Host) -> None:
    host.firewall(FORWARD)
    assert find_orphans(host.options(chain=["filter/FORWARD", "filter/INPUT"])).warnings == []


def test_a_chain_that_one_backend_has_is_not_missing(host: Host) -> None:
    jobs = ChainRef("filter", "JOBS")
    host.firewall(FORWARD, name="legacy")
    host.firewall(jobs, name="nft", rules=[rule("hmdead", jobs)])
    report = host.sweep(chain=["filter/JOBS"])
    assert (report.warnings, report.deleted) == ([], 1)


def test_a_lease_file_that_is_not_understood_stops_before_any_rule_is_read(host: Host) -> None:
    host.firewall(rules=[rule("hmdead")])
    host.lease_file.write_text("no leases")
    host.failed_sweep(NetsweepError, "cannot understand lease file")
    assert host.events == ["leases"]


def test_a_lease_of_a_process_that_is_gone_protects_nothing(host: Host) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    host.lease("hmdead", child)
    firewall = host.firewall(rules=[rule("hmdead")])
    assert host.sweep().deleted == 1
    assert bridges(firewall) == []


def test_without_the_capability_nothing_is_opened(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise NotPermittedError("CAP_NET_ADMIN is missing")

    firewall = host.firewall(rules=[rule("hmdead")])
    monkeypatch.setattr(sweeper, "require_net_admin", refuse)
    with pytest.raises(NotPermittedError) as raised:
        host.sweep()
    assert raised.value.report
    assert raised.value.report.errors == ["CAP_NET_ADMIN is missing"]
    assert host.events == []
    assert firewall.closed == 0


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"prefix": []}, "no prefix given"),
        ({"prefix": "hm+"}, "is no prefix"),
        ({"protect": [""]}, "is no protected prefix"),
        ({"prefix": ["ham"], "protect": ["ha"]}, "is protected by 'ha'"),
        ({"chain": []}, "no chain given"),
        ({"chain": ["FORWARD"]}, "'FORWARD' is no chain: give TABLE/CHAIN"),
        ({"chain": "broute/FORWARD"}, "is no chain"),
        ({"chain": ["filter/"]}, "is no chain"),
        ({"chain": ["filter/" + "x" * 29]}, "is no chain"),
        ({"backend": "ebtables"}, "'ebtables' is no backend: give auto, legacy or nft"),
        ({"wait": -1}, "--wait has to be 0 seconds or more"),
        ({"wait": float("nan")}, "--wait has to be 0 seconds or more"),
        ({"lock_timeout": -0.5}, "--lock-timeout has to be 0 seconds or more"),
        ({"lock_file": ""}, "--lock-file '' is no path"),
        ({"lease_file": "a\0b"}, "--lease-file .* is no path"),
        ({"journal": ""}, "--journal '' is no path"),
    ],
)
def test_options_that_mean_nothing_are_refused_before_anything_is_done(
    host: Host, options: dict[str, Any], match: str
) -> None:
    host.firewall(rules=[rule("hmdead")])
    bad = Options(**options)
    for run in (bad.check, lambda: sweep(bad), lambda: find_orphans(bad)):
        with pytest.raises(UsageError, match=match) as raised:
            run()
        assert raised.value.exit_status == 2
    assert host.events == []


def test_options_that_mean_something_are_taken() -> None:
    Options().check()
    Options(wait=0, lock_timeout=float("inf"), protect=[]).check()
    both: list[str | ChainRef] = ["filter/FORWARD", "filter/INPUT", "filter/FORWARD", ChainRef("nat", "x" * 28)]
    assert Options(chain=both).chains() == {"filter": ["FORWARD", "INPUT"], "nat": ["x" * 28]}
    assert Options(chain="filter/INPUT", prefix="vm").chains() == {"filter": ["INPUT"]}
    assert Options(prefix="vm").ownership().prefixes == ("vm",)


def test_default_paths_are_those_of_the_test_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, folder in (("/var/tmp", "/var/tmp"), ("", "/tmp"), (None, "/tmp")):
        if value is None:
            monkeypatch.delenv("TMPDIR")
        else:
            monkeypatch.setenv("TMPDIR", value)
        assert Options().lock_path == f"{folder}/hypeman-test-network.lock"
        assert Options().lease_path == f"{folder}/hypeman-test-network-leases.json"
