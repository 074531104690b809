from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from netsweep.errors import NetsweepError
from netsweep.host import processes
from netsweep.host.processes import (
    Process,
    ages,
    all_pids,
    ancestors,
    held_by,
    holders,
    is_running,
    sees_all,
    waiting,
)
from tests.namespace import flocked, wait_until_queued


@contextmanager
def zombie() -> Iterator[int]:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        yield process.pid


def test_a_process_runs_until_it_has_ended() -> None:
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    assert is_running(process.pid)
    process.communicate()
    assert not is_running(process.pid)


def test_a_process_that_nobody_has_waited_for_yet_has_ended() -> None:
    with zombie() as pid:
        assert not is_running(pid)


def test_a_process_whose_first_thread_has_ended_runs_on() -> None:
    code = (
        "import ctypes, sys, threading; threading.Thread(target=sys.stdin.read).start(); "
        "ctypes.CDLL(None).pthread_exit(None)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + 10
        while b") Z" not in Path(f"/proc/{process.pid}/stat").read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert is_running(process.pid)
        process.kill()


def test_a_process_of_which_nothing_more_can_be_read_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(path: str) -> bytes:
        raise PermissionError(path)

    monkeypatch.setattr(processes, "_read", unreadable)
    assert is_running(os.getpid())


@pytest.fixture
def initial(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process were in the initial PID namespace, in a container too."""
    monkeypatch.setattr(processes, "_INITIAL_PID_NAMESPACE", os.stat("/proc/self/ns/pid").st_ino)


@pytest.fixture
def statuses(monkeypatch: pytest.MonkeyPatch) -> dict[int, bytes]:
    """What /proc holds, by PID, in place of the machine's own."""
    found: dict[int, bytes] = {}

    def read(path: str) -> bytes:
        pid = int(path.split("/")[2])
        if pid not in found:
            raise FileNotFoundError(path)
        return found[pid]

    monkeypatch.setattr(processes, "_read", read)
    monkeypatch.setattr(processes, "listed_pids", lambda: {*found, 99})
    return found


@pytest.mark.usefixtures("initial")
def test_all_pids_of_all_running_processes_are_known(statuses: dict[int, bytes]) -> None:
    statuses[10] = b"Name:\tfirst\nState:\tS (sleeping)\nThreads:\t1\nNSpid:\t10\n"
    statuses[11] = b"Name:\t\\nNSpid:\t5\nState:\tR (running)\nThreads:\t3\nNSpid:\t11\t37\t2\n"
    statuses[12] = b"Name:\tended\nState:\tZ (zombie)\nThreads:\t1\nNSpid:\t12\t40\n"
    assert all_pids() == {10, 11, 37, 2}


@pytest.mark.usefixtures("initial")
def test_the_machine_s_own_processes_are_among_them() -> None:
    with zombie() as ended:
        found = all_pids()
    assert found is not None
    assert {os.getpid(), 1} <= found
    assert ended not in found


def test_nothing_is_known_in_another_pid_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_INITIAL_PID_NAMESPACE", os.stat("/proc/self/ns/pid").st_ino + 1)
    assert all_pids() is None


@pytest.mark.usefixtures("initial")
@pytest.mark.parametrize("status", [b"Name:\tx\nState:\tS\nThreads:\t1\n", b"", b"State:\tS\nThreads:\t1\nNSpid:\t?"])
def test_nothing_is_known_where_a_process_does_not_tell(statuses: dict[int, bytes], status: bytes) -> None:
    statuses[10] = status
    assert all_pids() is None


@pytest.mark.usefixtures("initial")
def test_nothing_is_known_where_proc_hides_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(path: str) -> bytes:
        raise PermissionError(path)

    monkeypatch.setattr(processes, "_read", unreadable)
    assert all_pids() is None  # hidepid=1
    monkeypatch.undo()
    monkeypatch.setattr(processes, "_INITIAL_PID_NAMESPACE", os.stat("/proc/self/ns/pid").st_ino)
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: path != "/proc/1" and exists(path))
    assert all_pids() is None  # hidepid=2


def test_without_proc_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: str) -> list[str]:
        raise FileNotFoundError(2, "No such file or directory", path)

    monkeypatch.setattr(os, "listdir", missing)
    with pytest.raises(NetsweepError, match="cannot read /proc: No such file or directory; mount it"):
        processes.listed_pids()


def test_the_holder_of_a_lock_is_found_and_those_who_wait_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    (tmp_path / "other").touch()
    assert (holders(str(path)), waiting(str(path))) == ([], 0)
    with flocked(path), flocked(tmp_path / "other"):
        assert [process.pid for process in holders(str(path))] == [os.getpid()]
        jobs = [subprocess.Popen(["flock", str(path), "true"]) for _ in range(2)]
        for job in jobs:
            wait_until_queued(job.pid, path)
        assert [process.pid for process in holders(str(path))] == [os.getpid()]
        assert waiting(str(path)) == 2
    assert [job.wait(20) for job in jobs] == [0, 0]
    assert (holders(str(path)), waiting(str(path))) == ([], 0)


def test_a_child_that_kept_a_lock_is_its_holder(tmp_path: Path) -> None:
    """The process that took the lock, which /proc/locks names, has ended."""
    path = tmp_path / "lock"
    with path.open("w") as file:
        taker = subprocess.Popen(["flock", "-n", str(file.fileno())], pass_fds=[file.fileno()])
        assert taker.wait(20) == 0
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[file.fileno()])
    assert holders(str(path)) == [Process(child.pid, "cat")]
    descriptor = os.open(path, os.O_RDONLY)
    assert holders(descriptor) == [Process(child.pid, "cat")]
    os.close(descriptor)
    child.communicate()


def test_who_took_a_lock_comes_before_children_that_have_it_too(tmp_path: Path) -> None:
    """Their PIDs may be lower."""
    path = tmp_path / "lock"
    with path.open("w") as file:
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[file.fileno()])
        # What locks through another descriptor of the same open file is the one that took it.
        code = "import fcntl, sys; fcntl.flock(int(sys.argv[1]), fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
        pipe = subprocess.PIPE
        arguments = [sys.executable, "-c", code, str(file.fileno())]
        with subprocess.Popen(arguments, stdin=pipe, stdout=pipe, pass_fds=[file.fileno()]) as taker:
            assert taker.stdout
            taker.stdout.readline()
            assert [each.pid for each in holders(str(path))] == [taker.pid, *sorted([os.getpid(), child.pid])]
            assert held_by(path.stat()) == f"held by process {taker.pid} ({os.path.basename(sys.executable)})"
            taker.communicate()
    assert held_by(path.stat()) == f"held by process {child.pid} (cat)"
    child.communicate()


def test_a_holder_that_may_not_be_looked_into_is_not_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    path.touch()
    listed = os.listdir

    def denied(directory: str) -> list[str]:
        if directory.endswith("/fdinfo"):
            raise PermissionError(13, "Permission denied", directory)
        return listed(directory)

    with flocked(path):
        monkeypatch.setattr(os, "listdir", denied)
        named = f"held by another process (PID {os.getpid()} took it)"
        assert held_by(path.stat()) in (named, "held by another process")  # by the numbers that the filesystem shows
        monkeypatch.setattr(processes, "_takers", lambda *_, **__: [2**22])
        assert held_by(path.stat()) == "held by another process"


def test_a_holder_of_another_pid_namespace_is_not_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    path.touch()
    monkeypatch.setattr(processes, "listed_pids", lambda: {os.getpid()})
    for visible, said in ((False, "is not visible here"), (True, "was not found")):
        monkeypatch.setattr(processes, "sees_all", lambda visible=visible: visible)
        assert held_by(path.stat()) == f"held by a process that {said}"


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["go", "test", "./...", "-run", "X"], "go test"),
        (["/usr/bin/python3", "-m", "pytest", "-x"], "python3 -m pytest"),
        (["bash", "/root/run.sh"], "bash run.sh"),
        (["bash", "-c", "true"], "bash"),
        (["mysql", "--password=hunter2"], "mysql"),
        (["login", "a b"], "login"),
        (["login", "x" * 25], "login"),
        (["p" * 50], "p" * 40),
        (["nginx: master process /usr/sbin/nginx"], "nginx"),
        (["sshd: alice@pts/0"], "sshd"),
        (["/x/a\n\x1b[31m"], "a\n\x1b[31m"),
        ([""], "cat"),
    ],
)
def test_a_command_is_the_program_and_an_argument_that_tells_more(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], shown: str
) -> None:
    content = {"cmdline": "".join(f"{each}\0" for each in arguments).encode(), "comm": b"cat\n"}
    monkeypatch.setattr(processes, "_read", lambda path: content[os.path.basename(path)])
    assert processes._command(7) == shown


def test_other_locks_on_the_file_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        assert holders(str(path)) == []


def test_a_name_is_shown_escaped() -> None:
    assert str(Process(7, "a\n\x1b\udcff")) == r"process 7 (a\n\x1b\udcff)"
    assert str(Process(7, None)) == "process 7"


# Ages and ancestors.


def since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def test_a_process_is_as_old_as_it_is() -> None:
    began = since_boot()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        made, own = since_boot(), os.getpid()
        known = ages({process.pid, own, 2**22}, made + 7)
        assert known.keys() == {process.pid, own}
        # Stamps are in hundredths of a second.
        assert 6.98 <= known[process.pid] <= made - began + 7.02
        assert known[own] > known[process.pid]
        assert ages({process.pid}, began - 1)[process.pid] < -0.9, "it started later"
    assert ages([], since_boot()) == {}


def test_a_process_that_has_ended_has_no_age() -> None:
    with zombie() as pid:
        assert ages({pid}, since_boot()) == {}


def test_a_name_may_hold_anything() -> None:
    code = "import sys; open('/proc/self/comm', 'w').write(') Z 1 (x'); print(flush=True); sys.stdin.read()"
    pipe, before = subprocess.PIPE, since_boot()
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as process:
        assert process.stdout
        process.stdout.readline()
        now = since_boot()
        assert 0 <= ages({process.pid}, now)[process.pid] <= now - before + 0.02
        process.communicate()


def test_of_several_that_have_a_pid_the_oldest_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PID of a container may be that of another process here."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        own = os.getpid()
        for order in ([own, process.pid], [process.pid, own]):
            namesakes = {77: order, 78: [process.pid]}
            monkeypatch.setattr(processes, "_namesakes", lambda found=namesakes: found)
            known = ages({77, 78}, since_boot())
            assert known[77] > known[78]


def test_an_age_that_cannot_be_told_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.getpid()
    monkeypatch.setattr(processes, "_namesakes", lambda: None)
    assert ages({own}, since_boot()) == {}
    # One of two that have it ended meanwhile, so which is the older one is not known.
    monkeypatch.setattr(processes, "_namesakes", lambda: {own: [own, 2**22 + 1]})
    assert ages({own}, since_boot()) == {}


def test_ancestors_are_this_process_and_those_that_it_descends_from() -> None:
    code = "from netsweep.host.processes import ancestors; print(*ancestors())"
    script = 'echo $$; "$@"; exit $?'
    done = subprocess.run(["sh", "-c", script, "sh", sys.executable, "-c", code], capture_output=True, text=True)
    shell, found = done.stdout.splitlines()
    assert {int(shell), *ancestors()} < set(map(int, found.split()))
    assert {os.getpid(), os.getppid()} - {1} <= ancestors()


def test_the_first_process_is_nobody_s_own() -> None:
    """A container's tests may all descend from it."""
    assert 1 not in ancestors()


def test_no_child_is_an_ancestor() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        assert process.pid not in ancestors()


@pytest.mark.usefixtures("initial")
def test_a_pid_that_a_process_of_a_container_has_too_is_no_ancestor(
    statuses: dict[int, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lease with it may be of that one."""
    status = "State:\tS (sleeping)\nThreads:\t1\nPPid:\t{}\nNSpid:\t{}\n"
    for pid, parent, known in ((1, 0, "1"), (20, 1, "20"), (30, 20, "30"), (50, 30, "50"), (60, 1, "60\t7")):
        statuses[pid] = status.format(parent, known).encode()
    monkeypatch.setattr(os, "getpid", lambda: 50)
    assert ancestors() == {20, 30, 50}
    statuses[60] = status.format(1, "60\t30").encode()
    assert ancestors() == {20, 50}
    statuses[60] = status.format(1, "60\t50").encode()
    assert ancestors() == {20, 30}
    # One that ended is nobody's any more.
    statuses[60] = status.format(1, "60\t50").replace("S (sleeping)", "Z (zombie)").encode()
    assert ancestors() == {20, 30, 50}


def test_in_another_pid_namespace_there_are_no_ancestors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_INITIAL_PID_NAMESPACE", os.stat("/proc/self/ns/pid").st_ino + 1)
    assert ancestors() == set()


@pytest.mark.usefixtures("initial")
def test_all_processes_are_seen_in_the_initial_pid_namespace_unless_some_are_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert sees_all()
    exists = os.path.exists
    with monkeypatch.context() as hidden:
        hidden.setattr(os.path, "exists", lambda path: path != "/proc/1" and exists(path))
        assert not sees_all()
    monkeypatch.setattr(processes, "_INITIAL_PID_NAMESPACE", os.stat("/proc/self/ns/pid").st_ino + 1)
    assert not sees_all()


def test_where_proc_cannot_be_read_there_are_no_ancestors(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(path: str) -> bytes:
        raise PermissionError(path)

    monkeypatch.setattr(processes, "_read", unreadable)
    assert ancestors() == set()
