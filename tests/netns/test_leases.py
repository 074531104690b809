"""Leases that name a PID of another PID namespace, with the kernel's real namespaces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from netsweep.host import leases, processes

JOB = """
import os, sys
# A container's PID that no process of the host has.
while True:
    pid = os.fork()
    if not pid:
        if os.getpid() >= 20 and not os.path.exists(f"/proc/{os.getpid()}"):
            print(os.getpid(), flush=True)
            sys.stdin.read()
        os._exit(0)
    status = os.waitpid(pid, 0)
    if pid >= 20 and not os.path.exists(f"/proc/{pid}"):
        break
"""


@contextmanager
def job_in_a_container() -> Iterator[int]:
    """Run a job in a PID namespace of its own; give the PID that it has there, and no process has here."""
    with subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", JOB],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        yield int(process.stdout.readline())
        process.communicate()


@pytest.fixture(autouse=True)
def initial(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process were in the initial PID namespace, in a container too."""
    monkeypatch.setattr(processes, "_INITIAL_PID_NAMESPACE", os.stat("/proc/self/ns/pid").st_ino)


def write(path: Path, pid: int) -> leases.Leases:
    path.write_text(json.dumps({"leases": {"10.200.1.0/24": {"bridge_name": "hm1", "pid": pid}}}))
    return leases.read(str(path))


def test_a_lease_of_a_job_in_a_container_counts_until_the_job_ends(tmp_path: Path) -> None:
    with job_in_a_container() as pid:
        held = write(tmp_path / "leases.json", pid)
        assert not processes.is_running(pid)
        dead = leases.dead([pid])
        assert dead == set()
        assert leases.living(held, ["hm1"], dead) == {
            "hm1": f"the lease for hm1 names PID {pid}, which may be of another PID namespace"
        }
    dead = leases.dead([pid])
    assert dead == {pid}
    assert leases.living(held, ["hm1"], dead) == {}


def test_from_inside_a_container_no_lease_is_judged_dead() -> None:
    code = "from netsweep.host import leases; print(leases.dead([4000000]))"
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "set()\n"
