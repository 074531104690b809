"""Putting back what a journal says, over firewalls in memory."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from netsweep.errors import BusyError, ContentionError, NetsweepError, UsageError
from netsweep.jobs import journal, restore
from netsweep.model import Chain
from tests.unit.jobs.host import FORWARD, POSTROUTING, Firewall, Host, fail, on_call, spec


class KilledError(BaseException):
    """The process ends here."""


@pytest.fixture
def path(host: Host) -> Path:
    return host.directory / "journal"


def both(firewall: Firewall) -> list[list[bytes]]:
    return [firewall.identities(FORWARD), firewall.identities(POSTROUTING)]


BRIDGES = ["docker0", "hm1", "hm2", "eth0", "hm3", "hm1", "docker0", "hm4", "hm1"]


@pytest.fixture
def firewall(host: Host) -> Firewall:
    """Orphans with copies among rules of others with copies, swept three at a time."""
    made = host.firewall(*BRIDGES, batch=3)
    made.leak("hm1", "hm2", chain=POSTROUTING)
    return made


def test_a_round_trip_gives_back_the_same_rules(host: Host, path: Path, firewall: Firewall) -> None:
    before = both(firewall)
    assert host.sweep(journal=path).deleted == 8
    assert firewall.bridges() == ["docker0", "eth0", "docker0"]
    report = restore.restore(path)
    assert (report.restored, report.changed, report.errors) == (8, True, [])
    assert both(firewall) == before
    with pytest.raises(NetsweepError, match="every rule of the journal exists already: nothing was restored"):
        restore.restore(path)
    assert both(firewall) == before


def test_rules_of_several_places_go_back_in_one_step_where_there_is_room(host: Host, path: Path) -> None:
    host.firewall(*BRIDGES)
    host.sweep(journal=path)
    host.events.clear()
    restore.restore(path)
    assert host.events.count("commit nft") == 1


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_restore_goes_in_batches_of_the_backend(host: Host, path: Path, firewall: Firewall, batch: int) -> None:
    before = both(firewall)
    host.sweep(journal=path)
    firewall.batch = batch
    host.events.clear()
    restore.restore(path)
    assert both(firewall) == before
    assert host.events.count("commit nft") == -(-6 // batch) + -(-2 // batch)


@pytest.mark.parametrize("stopped", [1, 2, 3])
def test_a_sweep_that_was_killed_anywhere_is_put_back_as_far_as_it_went(
    host: Host, path: Path, firewall: Firewall, stopped: int
) -> None:
    """Its last entry is written, and not sent."""
    before = both(firewall)
    firewall.before_commit = on_call(stopped, fail(KilledError()))
    with pytest.raises(KilledError):
        host.sweep(journal=path)
    went = sum(map(len, before)) - sum(map(len, both(firewall)))
    assert went == [0, 3, 6][stopped - 1]
    firewall.before_commit = lambda: None
    if went:
        assert restore.restore(path).restored == went
    else:
        with pytest.raises(NetsweepError, match="exists already"):
            restore.restore(path)
    assert both(firewall) == before


def test_a_journal_cut_off_behind_any_line_gives_back_what_it_knows(host: Host, path: Path, firewall: Firewall) -> None:
    before = both(firewall)
    host.sweep(journal=path)
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 7
    entries = [3, 3, 2]
    for cut in range(1, 7):
        path.write_bytes(b"".join(lines[:cut]) + lines[cut][:-20])
        known = sum(entries[: cut // 2])
        if known:
            assert restore.restore(path).restored == known
            assert sum(map(len, both(firewall))) == sum(map(len, before)) - 8 + known
            # Away with them again: the whole journal still is the journal of what went.
            host.sweep()
        else:
            with pytest.raises(NetsweepError, match="nothing was restored"):
                restore.restore(path)
    path.write_bytes(b"".join(lines))
    restore.restore(path)
    assert [Counter(chain) for chain in both(firewall)] == [Counter(chain) for chain in before]


@pytest.mark.parametrize("stopped", [1, 2, 3, 4])
def test_a_restore_that_was_killed_goes_on_when_it_is_run_again(
    host: Host, path: Path, firewall: Firewall, stopped: int
) -> None:
    before = both(firewall)
    host.sweep(journal=path)
    firewall.batch = 2
    firewall.before_commit = on_call(stopped, fail(KilledError()))
    with pytest.raises(KilledError):
        restore.restore(path)
    back = 2 * (stopped - 1)
    firewall.before_commit = lambda: None
    assert restore.restore(path).restored == 8 - back
    assert both(firewall) == before


def test_copies_that_others_made_again_are_not_doubled(host: Host, path: Path, firewall: Firewall) -> None:
    before = Counter(firewall.identities())
    host.sweep(journal=path)
    firewall.leak("hm1", "hm4")
    assert restore.restore(path).restored == 6
    assert Counter(firewall.identities()) == before


@pytest.mark.parametrize(("index", "expected"), [(0, "new a x y b"), (1, "a x y b"), (2, "a x y b new")])
def test_places_are_kept_whatever_others_insert(host: Host, path: Path, index: int, expected: str) -> None:
    names = {"a": "docker0", "x": "hm1", "y": "hm2", "b": "eth0", "new": "eth7"}
    firewall = host.firewall(*(names[each] for each in "axyb"))
    before = firewall.identities()
    host.sweep(journal=path)
    firewall.place(FORWARD, index, spec("eth7"))
    restore.restore(path)
    new = repr(spec("eth7")).encode()
    after = firewall.identities()
    assert [each for each in after if each != new] == before
    if index != 1:
        assert after.index(new) == expected.split().index("new")


def test_a_table_that_was_made_anew_gets_its_rules_back(host: Host, path: Path) -> None:
    firewall = host.firewall("docker0", "hm1", "eth0", "hm2", "docker1")
    before = firewall.identities()
    host.sweep(journal=path)
    firewall.remake(FORWARD.table)
    # The first handles are now those of other rules.
    firewall.leak("wlan0", "docker0", "eth0", "docker1")
    assert restore.restore(path).restored == 2
    assert firewall.identities()[1:] == before


def test_where_no_place_is_left_nothing_is_restored_anywhere(host: Host, path: Path) -> None:
    firewall = host.firewall(*(f"eth{number}" for number in range(20)), "hm1", *(f"br{n}" for n in range(20)))
    firewall.leak("hm1", chain=POSTROUTING)
    host.sweep(journal=path)
    firewall.remake(FORWARD.table)
    firewall.leak("wlan0", "wlan1")
    now = both(firewall)
    with pytest.raises(NetsweepError, match=r"place in nft ipv4 filter/FORWARD .*nothing was restored") as raised:
        restore.restore(path)
    assert both(firewall) == now
    assert raised.value.report
    assert raised.value.report.changed is False


@pytest.mark.parametrize("missing", ["table", "chain"])
def test_where_a_table_or_a_chain_is_gone_nothing_is_restored(host: Host, path: Path, missing: str) -> None:
    jobs = Chain(FORWARD.table, "JOBS")
    firewall = host.firewall("hm1", chains=[FORWARD, jobs, POSTROUTING])
    firewall.leak("hm2", chain=jobs)
    firewall.leak("hm3", chain=POSTROUTING)
    host.sweep(journal=path, chain=["filter/FORWARD", "filter/JOBS", "nat/POSTROUTING"])
    host.firewall(chains=[FORWARD, jobs] if missing == "table" else [FORWARD, POSTROUTING])
    gone = "table nft ipv4 nat" if missing == "table" else "chain nft ipv4 filter/JOBS"
    with pytest.raises(NetsweepError, match=f"{gone} is gone: nothing was restored"):
        restore.restore(path)
    assert host.firewalls["nft"].bridges() == []


def test_both_backends_come_back_from_one_journal(host: Host, path: Path) -> None:
    firewalls = [host.firewall("docker0", "hm1", "hm2", name=name) for name in ("legacy", "nft")]
    before = [firewall.identities() for firewall in firewalls]
    assert host.sweep(journal=path).deleted == 4
    report = restore.restore(path)
    assert [firewall.identities() for firewall in firewalls] == before
    assert [(backend.name, backend.restored) for backend in report.backends] == [("legacy", 2), ("nft", 2)]


def test_a_journal_of_another_network_namespace_needs_force(
    host: Host, path: Path, firewall: Firewall, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = both(firewall)
    host.sweep(journal=path)
    now = both(firewall)
    monkeypatch.setattr(journal, "namespace", lambda: ["another boot", 1])
    with pytest.raises(NetsweepError, match=r"another network namespace, .*nothing was restored.*--force"):
        restore.restore(path)
    assert both(firewall) == now
    assert restore.restore(path, force=True).restored == 8
    assert both(firewall) == before


def test_contention_is_met_by_planning_again(host: Host, path: Path, firewall: Firewall) -> None:
    before = both(firewall)
    host.sweep(journal=path)
    firewall.batch = 2
    firewall.before_commit = on_call(2, lambda: firewall.place(FORWARD, 0, spec("eth9")))
    assert restore.restore(path).restored == 8
    assert [both(firewall)[0][1:], both(firewall)[1]] == before


@pytest.mark.parametrize(("failing", "status"), [(1, 75), (2, 1)])
def test_contention_that_does_not_end_tells_whether_anything_was_changed(
    host: Host, path: Path, firewall: Firewall, failing: int, status: int
) -> None:
    host.sweep(journal=path)
    firewall.batch = 2
    firewall.before_commit = on_call(failing, fail(ContentionError("changed")), every=True)
    with pytest.raises(NetsweepError, match="timed out after 0 s: changed") as raised:
        restore.restore(path, 0)
    assert isinstance(raised.value, BusyError) is (status == 75)
    assert raised.value.exit_status == status
    assert raised.value.report
    assert raised.value.report.restored == 2 * (failing - 1)


def test_a_rule_never_comes_back_for_another_set(
    host: Host, path: Path, monkeypatch: pytest.MonkeyPatch, firewall: Firewall
) -> None:
    """In the kernel a rule holds its set's number, which is given out again."""
    names: dict[int, str] = {7: "blocked"}
    for module in (journal, restore):
        monkeypatch.setattr(module, "set_name", names.get)
    for chain in (FORWARD, POSTROUTING):
        firewall._chains[chain] = [
            rule._replace(undo=rule.undo and rule.undo._replace(sets=(7,))) for rule in firewall._chains[chain]
        ]
    host.sweep(journal=path)
    now = both(firewall)
    names[7] = "trusted"
    with pytest.raises(NetsweepError, match="ipset's set 'blocked' has changed: nothing was restored"):
        restore.restore(path)
    assert both(firewall) == now


@pytest.mark.parametrize(("journal", "wait"), [("", None), ("x\0y", None), ("x", -1), ("x", float("nan"))])
def test_values_that_cannot_be_used_are_wrong_usage(host: Host, journal: str, wait: float | None) -> None:
    with pytest.raises(UsageError):
        restore.restore(journal, wait)
    assert host.events == []
