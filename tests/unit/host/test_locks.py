from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from netsweep.errors import BusyError, NetsweepError
from netsweep.host import locks
from netsweep.host.locks import held, xtables_lock_path
from netsweep.report import LockTimes
from tests.namespace import flocked, is_free, wait_until_queued


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "lock"
    path.touch()
    return path


@contextmanager
def take(path: Path, timeout: float) -> Iterator[LockTimes]:
    times = LockTimes(str(path))
    with held(times, timeout, mode=0o666, what="subnet lock", option="--lock-timeout"):
        yield times


def refuse(path: Path, timeout: float, kind: type[NetsweepError] = BusyError) -> str:
    """The message of the error that taking the lock ends with."""
    with pytest.raises(kind) as raised, take(path, timeout):
        raise AssertionError("took a lock that is held")
    assert type(raised.value) is kind
    return str(raised.value)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def waiter_that_gave_up(path: Path) -> Iterator[threading.Thread]:
    """Hold the lock on ``path`` while one waits for it in vain; give the thread that still waits."""
    with flocked(path):
        refuse(path, 0.01)
        (thread,) = [thread for thread in threading.enumerate() if thread.name == "netsweep-flock"]
        yield thread


def test_the_lock_is_held_inside_and_free_afterwards(lock: Path) -> None:
    with take(lock, 0) as times:
        assert not is_free(lock)
        time.sleep(0.002)
    assert is_free(lock)
    first = times.held_ms
    assert times.longest_ms == first >= 2
    with held(times, 0, mode=0o666, what="subnet lock", option="--lock-timeout"):
        pass
    assert times.longest_ms == first < times.held_ms


def test_a_missing_file_is_made_and_left(tmp_path: Path) -> None:
    with take(tmp_path / "new", 0):
        assert not is_free(tmp_path / "new")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o666


@pytest.mark.parametrize("timeout", [0, 0.05])
def test_a_lock_that_is_held_is_busy_and_its_holder_named(lock: Path, timeout: float) -> None:
    with flocked(lock):
        message = refuse(lock, timeout)
    state = "was busy for 0.05 s" if timeout else "is in use"
    assert re.fullmatch(
        rf"subnet lock '{lock}' {state} \(held by process {os.getpid()} \([^()]+\)\); retry, or raise --lock-timeout",
        message,
    )


def test_who_waits_gets_the_lock_when_it_is_given_back(lock: Path) -> None:
    with flocked(lock):
        done = threading.Event()

        def wait() -> None:
            with take(lock, 20):
                done.set()

        thread = threading.Thread(target=wait)
        thread.start()
        wait_until_queued(os.getpid(), lock)
        assert not done.is_set()
    thread.join(20)
    assert done.is_set()
    assert is_free(lock)


def test_who_gave_up_does_not_keep_the_lock(lock: Path) -> None:
    before = descriptors()
    with waiter_that_gave_up(lock) as thread:
        assert thread.is_alive()
    thread.join(20)
    assert is_free(lock)
    assert descriptors() <= before  # fewer, where what other tests left is collected meanwhile


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_that_was_forked_meanwhile_does_not_keep_it_either(lock: Path) -> None:
    leave = multiprocessing.get_context("fork").Event()
    child = multiprocessing.get_context("fork").Process(target=leave.wait, args=(60,))
    with waiter_that_gave_up(lock) as thread:
        child.start()
        # What the child has of the holder's descriptor is not under test.
        fcntl.flock(next(iter(held_descriptors(lock))), fcntl.LOCK_UN)
        thread.join(20)
        assert not thread.is_alive()
        free = is_free(lock)
        leave.set()
    child.join(20)
    assert free


def held_descriptors(path: Path) -> list[int]:
    """This process's descriptors that hold a lock on ``path``."""
    return [
        int(descriptor.name)
        for descriptor in Path("/proc/self/fdinfo").iterdir()
        if descriptor.exists() and re.search(rf"FLOCK.*:{path.stat().st_ino} ", descriptor.read_text())
    ]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_that_was_forked_under_the_lock_does_not_keep_it(lock: Path) -> None:
    leave = multiprocessing.get_context("fork").Event()
    child = multiprocessing.get_context("fork").Process(target=leave.wait, args=(60,))
    with take(lock, 0):
        child.start()
    free = is_free(lock)
    leave.set()
    child.join(20)
    assert free


def test_a_signal_ends_the_wait_and_the_lock_does_not_come_later(lock: Path) -> None:
    class Interruption(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interruption

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with flocked(lock):

            def send() -> None:
                wait_until_queued(os.getpid(), lock)
                os.kill(os.getpid(), signal.SIGUSR1)

            sender = threading.Thread(target=send)
            sender.start()
            with pytest.raises(Interruption), take(lock, 20):
                raise AssertionError("took a lock that is held")
            sender.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    wait_until(lambda: is_free(lock))


def test_a_file_that_is_replaced_all_the_time_is_busy(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced = []

    def replace(*_: object) -> bool:
        replaced.append(lock)
        return False

    monkeypatch.setattr(locks, "_is_still_there", replace)
    before = descriptors()
    assert "was busy for 0.05 s" in refuse(lock, 0.05)
    assert len(replaced) > 1
    assert descriptors() <= before  # fewer, where what other tests left is collected meanwhile
    assert is_free(lock)


@pytest.mark.parametrize("removed", [False, True])
def test_a_file_that_was_replaced_while_waiting_is_locked_anew(lock: Path, removed: bool) -> None:
    entered, leave = threading.Event(), threading.Event()

    def wait() -> None:
        with take(lock, 20):
            entered.set()
            leave.wait(20)

    thread = threading.Thread(target=wait)
    with flocked(lock):
        thread.start()
        wait_until_queued(os.getpid(), lock)
        if removed:
            lock.unlink()
        else:
            lock.with_name("new").touch()
            lock.with_name("new").replace(lock)
    assert entered.wait(20)
    assert not is_free(lock)
    leave.set()
    thread.join()


def test_a_file_with_a_file_lease_on_it_is_busy_until_it_is_given_back(lock: Path) -> None:
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    leased = os.open(lock, os.O_RDWR)
    try:
        fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        assert f"held by process {os.getpid()}" in refuse(lock, 0.01)
        thread = threading.Timer(0.05, lambda: fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_UNLCK))
        thread.start()
        with take(lock, 20):
            assert not is_free(lock)
        thread.join()
    finally:
        os.close(leased)
        signal.signal(signal.SIGIO, before)


def test_where_no_thread_can_be_started_the_error_says_so(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with flocked(lock):
        before = descriptors()
        monkeypatch.setattr(threading.Thread, "start", none)
        message = refuse(lock, 5, NetsweepError)
        assert descriptors() == before
    assert message.startswith(f"cannot wait for subnet lock '{lock}': can't start new thread; retry")
    assert is_free(lock)


@pytest.mark.parametrize("waiting", [False, True])
def test_a_filesystem_that_cannot_lock_is_told(lock: Path, monkeypatch: pytest.MonkeyPatch, waiting: bool) -> None:
    def unable(_: int, operation: int) -> None:
        if operation & fcntl.LOCK_UN:
            return
        if waiting and operation & fcntl.LOCK_NB:
            raise BlockingIOError(errno.EAGAIN, "held")
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    before = descriptors()
    monkeypatch.setattr(fcntl, "flock", unable)
    assert "cannot lock subnet lock" in refuse(lock, 5, NetsweepError)
    assert descriptors() <= before  # fewer, where what other tests left is collected meanwhile


def test_a_holder_of_which_only_a_child_is_left_is_named(lock: Path) -> None:
    with lock.open() as file:
        assert (
            subprocess.run(["flock", "-n", str(file.fileno())], pass_fds=[file.fileno()], check=False).returncode == 0
        )
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[file.fileno()])
    assert f"(held by process {child.pid} (cat))" in refuse(lock, 0)
    child.communicate()


def test_the_xtables_lock_is_where_iptables_looks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XTABLES_LOCKFILE", "/elsewhere")
    assert xtables_lock_path() == "/elsewhere"
    monkeypatch.setenv("XTABLES_LOCKFILE", "")
    assert xtables_lock_path() == "/run/xtables.lock"


def test_a_search_for_the_holder_that_does_not_end_holds_nobody_up(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    def endless(_: os.stat_result) -> str:
        ended.wait(30)
        return "held by nobody"

    monkeypatch.setattr(locks, "held_by", endless)
    began = time.monotonic()
    with flocked(lock):
        assert "is in use (held by another process)" in refuse(lock, 0)
    assert time.monotonic() - began < 10
    ended.set()


def test_loading_leaves_the_callers_logging_as_it_was() -> None:
    script = (
        "import logging, sys; from netsweep.host import locks; locks.load(); assert 'filelock' in sys.modules; "
        "assert (logging.root.handlers, logging.root.manager.disable) == ([], 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
