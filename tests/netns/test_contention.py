"""What holds beside others who write the same rules, take the same locks and end at any moment.

The scenarios are those of tests/soak.py, in seconds instead of minutes.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType

import pytest

from netsweep.errors import BusyError
from netsweep.host.locks import held
from netsweep.report import LockTimes
from tests.namespace import (
    NETSWEEP,
    Namespace,
    complaint,
    flocked,
    holder,
    is_free,
    leak,
    leaks,
    restore_input,
    unchanged,
    wait_until_queued,
)
from tests.soak import (
    WRITERS,
    Host,
    Tally,
    abandoned_waiters,
    busy,
    crowd,
    engines,
    exclusion,
    jobs,
    journals,
    kills,
    networks,
    reloads,
    replacements,
    returns,
    summary,
    writers,
)

pytestmark = pytest.mark.alone


@pytest.fixture
def host(ns: Namespace) -> Host:
    return Host(ns)


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "lock"
    path.touch()
    return path


def harmless(tally: Tally) -> Tally:
    assert not tally.losses, "\n".join(summary(tally))
    assert not tally.failures, "\n".join(summary(tally))
    return tally


def test_no_rule_of_eleven_writers_is_lost_or_doubled(host: Host, flavour: str) -> None:
    tally = harmless(host.inside(lambda: writers(host, flavour, 4)))
    assert tally.operations > 100
    assert tally.sweeps > 3
    assert tally.deleted > 0
    assert max(tally.orphan_ages) < 10


def test_a_sweep_of_900_orphans_beside_eleven_busy_writers_is_not_starved(host: Host, flavour: str) -> None:
    tally = harmless(host.inside(lambda: busy(host, flavour, 0)))
    assert tally.deleted == 900 * tally.sweeps > 0
    assert tally.operations > WRITERS


def test_killed_anywhere_each_table_is_whole_and_the_locks_are_free(host: Host, flavour: str) -> None:
    tally = harmless(host.inside(lambda: kills(host, flavour, 0, at_least=24)))
    assert tally.kills > 5
    assert len(tally.seen) > 1, "every kill came at the same stage"


def test_no_rule_of_a_bridge_that_is_alive_or_leased_disappears(host: Host, flavour: str) -> None:
    tally = harmless(host.inside(lambda: jobs(host, flavour, 4)))
    assert tally.sweeps > 3
    assert tally.seen["leased with stale twins"] > 0


def test_a_table_that_is_loaded_anew_beside_sweeps_keeps_its_live_rules(host: Host, flavour: str) -> None:
    tally = harmless(host.inside(lambda: reloads(host, flavour, 4)))
    assert tally.sweeps > 3
    assert tally.deleted > 0
    assert tally.seen["reloads"] > 3


def test_a_rule_that_is_put_in_the_place_of_a_stale_one_beside_sweeps_stays(host: Host, flavour: str) -> None:
    tally = harmless(host.inside(lambda: replacements(host, flavour, 4)))
    assert tally.sweeps > 3
    assert tally.deleted > 0
    assert tally.seen["replaced by number"] > 0
    assert (tally.seen["replaced by handle"] > 0) == (flavour == "nft")


def test_rules_of_a_name_that_came_back_stay_while_it_is_there(host: Host, flavour: str) -> None:
    tally = harmless(host.inside(lambda: returns(host, flavour, 4)))
    assert tally.sweeps > 3
    assert tally.deleted > 0
    for way in ("as a bridge", "as another name", "by renaming"):
        assert tally.seen[way] > 0


def test_no_rule_of_a_network_of_docker_that_lives_disappears(host: Host, flavour: str) -> None:
    tally = harmless(host.inside(lambda: engines(host, flavour, 3)))
    assert tally.sweeps > 1
    assert tally.operations > 10


def test_what_is_put_back_beside_writers_stands_once_and_theirs_is_not_lost(host: Host, flavour: str) -> None:
    tally = harmless(host.inside(lambda: journals(host, flavour, 4)))
    assert tally.operations > 50
    assert tally.seen["put back"] > 0


def test_no_network_of_a_job_that_lives_is_harmed_and_no_subnet_stays_lost(host: Host) -> None:
    # The soak runs it on both firewalls.
    tally = harmless(host.inside(lambda: networks(host, "nft", 2, at_least=2)))
    assert tally.seen["bridges swept"] > 1
    assert tally.seen["leases swept"] > 1
    assert tally.seen["jobs that ended"] > 3
    assert tally.kills > 1


def test_of_eleven_sweeps_at_once_each_orphan_is_counted_by_one(host: Host, flavour: str) -> None:
    tally = harmless(host.inside(lambda: crowd(host, flavour, 0)))
    assert tally.sweeps == 2 * WRITERS


def test_no_addition_under_the_lock_is_lost_beside_flock_and_waiters_that_give_up(host: Host) -> None:
    tally = harmless(host.inside(lambda: exclusion(host, host.lock_file, 3)))
    for what in ("counted with flock", "counted with netsweep", "gave up waiting"):
        assert tally.seen[what] > 10


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.001)


def end(process: subprocess.Popen[str], status: int) -> str:
    """Wait for ``process`` to end with ``status``; return what it wrote to stdout."""
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == status, stderr
    return stdout


def test_netsweep_waits_while_flock_holds_the_subnet_lock(ns: Namespace, flavour: str) -> None:
    ns.restore(flavour, leaks(["hmdead"]))
    with holder(ns, ns.lock_file, "flock", str(ns.lock_file), "cat"):
        sweep = ns.start(*NETSWEEP, "sweep")
        with unchanged(ns):
            wait_until_queued(sweep.pid, ns.lock_file)
    assert "Deleted 3 orphaned rules" in end(sweep, 0)


def test_a_sweep_is_not_kept_waiting_for_a_cpu_and_keeps_its_place_among_others(ns: Namespace) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    sweep = ns.start("nice", "-n", "15", *NETSWEEP, "sweep", "--settle", "1")
    deadline = time.monotonic() + 10
    while os.getpriority(os.PRIO_PROCESS, sweep.pid) != 5:
        assert time.monotonic() < deadline, "it never hurried"
    end(sweep, 0)


def test_flock_waits_while_netsweep_holds_the_subnet_lock(ns: Namespace) -> None:
    # Each table is swept under a hold of its own.
    ns.restore("legacy", restore_input({"filter": leak("hmdead")["filter"]}))
    xtables_lock = ns.directory / "xtables.lock"
    # Waiting for the second lock, netsweep holds the first.
    with flocked(xtables_lock):
        sweep = ns.start(*NETSWEEP, "sweep")
        wait_until_queued(sweep.pid, xtables_lock)
        assert ns.run("flock", "-n", str(ns.lock_file), "true", check=False).returncode == 1
        job = ns.start("flock", str(ns.lock_file), "iptables-legacy-save")
        wait_until_queued(job.pid, ns.lock_file)
    seen = end(job, 0)
    assert "*filter" in seen
    assert "hmdead" not in seen
    end(sweep, 0)
    ns.run("flock", "-n", str(ns.lock_file), "true")


def test_netsweep_waits_while_iptables_holds_the_xtables_lock(ns: Namespace) -> None:
    ns.restore("legacy", leaks(["hmdead"]))
    path = ns.directory / "xtables.lock"
    # iptables-restore takes the lock where a table begins, and keeps it until COMMIT.
    restore = ("iptables-legacy-restore", "--noflush", "-w", "5")
    with holder(ns, path, *restore, says="*filter\n") as iptables:
        sweep = ns.start(*NETSWEEP, "sweep")
        with unchanged(ns):
            wait_until_queued(sweep.pid, path)
        iptables.communicate("-A FORWARD -s 192.0.2.1/32 -j DROP\nCOMMIT\n", timeout=30)
    end(sweep, 0)
    rules = [line for line in ns.save("legacy") if line.startswith("[")]
    assert rules == ["[0:0] -A FORWARD -s 192.0.2.1/32 -j DROP"]


def test_iptables_waits_while_netsweep_holds_the_xtables_lock(ns: Namespace) -> None:
    rule = ("-A", "FORWARD", "-s", "192.0.2.1/32", "-j", "DROP")
    path = ns.directory / "xtables.lock"
    with take(path, 0):
        with unchanged(ns):
            assert ns.run("iptables-legacy", "-w", "1", *rule, check=False).returncode == 4
        patient = ns.start("iptables-legacy", "-w", "20", *rule)
        wait_until_queued(patient.pid, path)
    end(patient, 0)
    assert "[0:0] -A FORWARD -s 192.0.2.1/32 -j DROP" in ns.save("legacy")


@contextmanager
def take(path: Path, timeout: float) -> Iterator[None]:
    with held(LockTimes(str(path)), timeout, mode=0o666, what="lock", option="--wait"):
        yield


@pytest.mark.parametrize("timeout", [0, 0.05, 0.3])
def test_a_timeout_is_honoured_within_50_ms(lock: Path, timeout: float) -> None:
    waits = []
    with flocked(lock):
        for _ in range(5):
            began = time.monotonic()
            with pytest.raises(BusyError), take(lock, timeout):
                raise AssertionError("took a lock that is held")
            waits.append(time.monotonic() - began)
    assert min(waits) >= timeout
    # A busy machine may delay some of them, but not all.
    assert min(waits) <= timeout + 0.05


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["hypeman-test-network.lock", "xtables.lock"])
def test_a_signal_ends_the_wait_for_a_lock_at_once(ns: Namespace, name: str, number: signal.Signals) -> None:
    ns.restore("legacy", leaks(["hmdead"]))
    with flocked(ns.directory / name):
        sweep = ns.start(*NETSWEEP, "sweep")
        wait_until_queued(sweep.pid, ns.directory / name)
        began = time.monotonic()
        sweep.send_signal(number)
        stdout, stderr = sweep.communicate(timeout=30)
        took = time.monotonic() - began
        # With the process its place in the queue is gone.
        assert f":{(ns.directory / name).stat().st_ino} " not in queued_locks()
    assert number.name in complaint(subprocess.CompletedProcess([], sweep.returncode, stdout, stderr), 128 + number)
    assert took < 1
    assert is_free(ns.lock_file)
    assert is_free(ns.directory / name)


def queued_locks() -> str:
    """The kernel's list of those who wait for a lock."""
    return "\n".join(line for line in Path("/proc/locks").read_text().splitlines() if " -> " in line)


@contextmanager
def waiter(path: Path) -> Iterator[threading.Event]:
    """Wait for the lock on ``path`` in another thread; the event says that it is held. Afterwards it is let go."""
    entered, leave = threading.Event(), threading.Event()

    def wait() -> None:
        with take(path, 20):
            entered.set()
            leave.wait(20)

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait)
        wait_until_queued(os.getpid(), path)
        try:
            yield entered
        finally:
            leave.set()
        waiting.result()


@pytest.mark.parametrize("somebody_has_it", [False, True])
def test_who_waited_for_a_lock_file_that_was_replaced_locks_the_new_one(lock: Path, somebody_has_it: bool) -> None:
    new = lock.with_name("new")
    new.touch()
    old_owner = flocked(lock)
    old_owner.__enter__()
    with waiter(lock) as entered:
        with flocked(new) if somebody_has_it else nullcontext():
            new.replace(lock)
            old_owner.__exit__(None, None, None)
            if somebody_has_it:
                wait_until_queued(os.getpid(), lock)
                assert not entered.is_set()
        assert entered.wait(10)
        assert not is_free(lock)
    assert is_free(lock)


def test_who_waited_for_a_lock_file_that_was_removed_makes_a_new_one(lock: Path) -> None:
    old_owner = flocked(lock)
    old_owner.__enter__()
    with waiter(lock) as entered:
        lock.unlink()
        old_owner.__exit__(None, None, None)
        assert entered.wait(10)
        assert lock.stat().st_mode & 0o777 == 0o666
        assert not is_free(lock)
    assert is_free(lock)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_who_gave_up_waiting_never_owns_the_lock(lock: Path) -> None:
    before = open_files()
    with flocked(lock):
        for timeout in range(20):
            with pytest.raises(BusyError), take(lock, timeout / 1000):
                raise AssertionError("took a lock that is held")
        # On a busy machine the time may be over before anybody waits.
        assert abandoned_waiters() > 0
    with take(lock, 10):
        assert not is_free(lock)
    eventually(lambda: abandoned_waiters() == 0)
    assert is_free(lock)
    assert open_files() == before


def test_a_lock_granted_just_as_time_runs_out_is_either_held_or_given_back(lock: Path) -> None:
    before = open_files()
    outcomes = []

    def attempt() -> str:
        try:
            with take(lock, 0.003):
                return "held" if not is_free(lock) else "thought to be held"
        except BusyError:
            return "given up"

    with ThreadPoolExecutor(1) as pool:
        for _ in range(200):
            with flocked(lock):
                attempted = pool.submit(attempt)
                time.sleep(random.uniform(0.002, 0.005))
            outcomes.append(attempted.result())
            eventually(lambda: is_free(lock))
    assert set(outcomes) == {"held", "given up"}
    eventually(lambda: abandoned_waiters() == 0)
    assert open_files() == before


def test_a_signal_handler_that_raises_ends_the_wait_and_leaves_nobody_in_the_queue_for_good(lock: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(_: int, __: FrameType | None) -> None:
        raise StoppedError

    before = open_files()
    handler = signal.signal(signal.SIGALRM, stop)
    try:
        with flocked(lock):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            began = time.monotonic()
            with pytest.raises(StoppedError), take(lock, 30):
                raise AssertionError("took a lock that is held")
            assert time.monotonic() - began < 10
    finally:
        signal.signal(signal.SIGALRM, handler)
    eventually(lambda: abandoned_waiters() == 0)
    assert is_free(lock)
    assert open_files() == before
