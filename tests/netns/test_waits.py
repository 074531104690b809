"""What is told of waits and of long runs, with real holders of the locks."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable

import pytest

import netsweep
from tests.namespace import (
    NETSWEEP,
    Namespace,
    complaint,
    flocked,
    holder,
    in_process,
    leaks,
    unchanged,
)

KEPT_BY_A_CHILD = 'exec 3<&0 9>>"$1" && flock 9 && { cat <&3 >/dev/null & }'
"""The process that takes the lock, which the kernel's own list goes on naming, has ended."""


@pytest.mark.parametrize(("name", "ends_in"), [("subnet", 29), ("xtables", 4)])
def test_who_waits_is_told_once_and_which_process_has_the_lock(ns: Namespace, name: str, ends_in: int) -> None:
    ns.restore("legacy", leaks(["hmdead"]))
    path = {"subnet": ns.lock_file, "xtables": ns.xtables_lock}[name]
    with holder(ns, path, "sh", "-c", KEPT_BY_A_CHILD, "sh", str(path)) as taker:
        taker.wait(30)
        sweep = ns.start(*NETSWEEP, "sweep")
        assert sweep.stderr
        line = sweep.stderr.readline()
    found = re.fullmatch(
        rf"netsweep: waiting for the {name} lock, held by process (\d+) \(cat\); giving up in {ends_in} s\n", line
    )
    assert found
    assert int(found[1]) != taker.pid
    stdout, stderr = sweep.communicate(timeout=30)
    assert (sweep.returncode, stderr) == (0, "")
    assert "Deleted 3 orphaned rules" in stdout


class Screen:
    """A terminal that is netsweep's stderr."""

    def __init__(self, ns: Namespace, *arguments: str) -> None:
        self._reader, writer = pty.openpty()
        fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
        self.said = ""
        self.process = subprocess.Popen(
            ns.command(*NETSWEEP, *arguments),
            stdout=subprocess.PIPE,
            stderr=writer,
            text=True,
            env={**ns.environment, "TERM": "xterm"},
        )
        os.close(writer)

    def until(self, condition: Callable[[str], bool]) -> None:
        """Read until ``condition`` holds of all that was said."""
        deadline = time.monotonic() + 30
        while not condition(self.said):
            assert select.select([self._reader], [], [], max(0, deadline - time.monotonic()))[0], self.said
            self.said += os.read(self._reader, 10_000).decode()

    def end(self, status: int = 0) -> str:
        """Wait for the end, and return what went to stdout."""
        stdout, _ = self.process.communicate(timeout=60)
        with contextlib.suppress(OSError):  # nobody has it open any more
            self.until(lambda _: False)
        os.close(self._reader)
        assert self.process.returncode == status, self.said
        return stdout


def test_on_a_terminal_the_wait_is_updated_in_place_and_cleared(ns: Namespace) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    with holder(ns, ns.lock_file, "flock", str(ns.lock_file), "cat") as process:
        screen = Screen(ns, "sweep")
        screen.until(lambda said: "giving up in 28 s" in said)
    assert "Deleted 3 orphaned rules" in screen.end()
    told = f"\r\x1b[Jnetsweep: waiting for the subnet lock, held by process {process.pid} (flock"
    assert screen.said.count(told) == 2
    assert "\n" not in screen.said
    assert screen.said.endswith("\r\x1b[J")


def test_a_long_sweep_shows_how_far_it_is_and_a_short_one_nothing(ns: Namespace) -> None:
    ns.restore("legacy", leaks(["hmdead"]))
    screen = Screen(ns, "sweep")
    assert "Deleted 3 orphaned rules" in screen.end()
    assert screen.said == ""
    ns.add_bridges(*(f"hm{number:x}" for number in range(60)))
    batch = "".join(f"address add 10.200.{number}.1/24 dev hm{number:x}\n" for number in range(60))
    ns.run("ip", "-batch", "-", input=batch)
    screen = Screen(ns, "sweep", "--bridges", "--min-age", "0s")
    assert "Deleted 60 leaked bridges" in screen.end()
    assert re.search(r"\r\x1b\[Jnetsweep: deleted \d+ of 60 bridges\r\x1b\[J", screen.said)
    assert screen.said.endswith("\r\x1b[J")


def test_a_holder_of_another_pid_namespace_is_said_to_be_invisible(ns: Namespace) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    with flocked(ns.lock_file), unchanged(ns):
        contained = ("unshare", "--pid", "--fork", "--mount-proc", *NETSWEEP)
        line = complaint(ns.run(*contained, "sweep", "--lock-timeout", "0", check=False), 75)
    assert "(held by a process that is not visible here)" in line


def test_callers_of_the_api_are_told_nothing_but_by_the_error(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    in_process(ns, monkeypatch)
    with (
        holder(ns, ns.lock_file, "flock", str(ns.lock_file), "cat") as process,
        pytest.raises(netsweep.BusyError, match=rf"\(held by process {process.pid} \(flock"),
    ):
        ns.inside(lambda: netsweep.sweep(lock_timeout=1.1))
    assert capfd.readouterr().err == ""


def test_with_quiet_only_the_failure_is_told(ns: Namespace) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    with holder(ns, ns.lock_file, "flock", str(ns.lock_file), "cat"):
        line = complaint(ns.netsweep("sweep", "-q", "--lock-timeout", "1.2"), 75)
    assert "was busy for 1.2 s (held by process" in line
