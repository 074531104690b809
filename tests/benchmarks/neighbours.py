"""What other jobs on the host feel: eleven of them add and delete a rule of their own without a pause."""

from __future__ import annotations

import fcntl
import json
import os
import select
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.synchronize import Event
from typing import NamedTuple

from tests.benchmarks.contents import FORK, LIVE, Apart, BenchmarkError, Contents
from tests.namespace import flocked, leak

RAMP_UP = 0.3
"""Seconds until all neighbours are at work."""


class Call(NamedTuple):
    """One call of iptables: when it began and ended (``time.monotonic``), and whether it worked.

    ``waited_ms``: how long the job waited for the subnet lock before, where it takes that.
    """

    began: float
    ended: float
    worked: bool
    waited_ms: float = 0.0


class Slice(NamedTuple):
    """What happened beside the neighbours for a while: how long that took, and their calls meanwhile.

    ``finished`` is False where the sweep was cut off.
    """

    seconds: float
    finished: bool
    calls: list[Call]


class LockWaits(NamedTuple):
    """How long the xtables lock was waited for, in ms."""

    netsweep: list[float]
    flock: list[float]


@contextmanager
def neighbours(contents: Contents, *, leasing: bool = False) -> Iterator[list[Call]]:
    """Keep one neighbour for each live bridge at work; afterwards the list holds their calls.

    ``leasing``: each reads the leases under the subnet lock before each call, as a job that looks for a subnet.
    """
    calls: list[Call] = []
    stop = FORK.Event()
    parent = os.getpid()
    workers = [Apart(partial(_work, contents, bridge, stop, parent, leasing)) for bridge in LIVE]
    try:
        time.sleep(RAMP_UP)
        yield calls
    finally:
        stop.set()
        for worker in workers:
            calls += worker.result()


def feel(contents: Contents, leaked: int, sweep: Sequence[str] | None, seconds: float) -> Slice:
    """Load ``leaked`` rules and run ``sweep`` beside the neighbours, or nothing for ``seconds``.

    A sweep that takes longer than ``seconds`` is cut off. The calls are those that were under way at
    any moment of it.
    """
    contents.load(leaked)
    return run_beside(contents, sweep, seconds)


def run_beside(contents: Contents, sweep: Sequence[str] | None, seconds: float, *, leasing: bool = False) -> Slice:
    """What happens beside the neighbours to what is there; see :func:`feel` and :func:`neighbours`."""
    with neighbours(contents, leasing=leasing) as calls:
        began = time.monotonic()
        finished = _run_for(contents, sweep, seconds) if sweep else _pause(seconds)
        ended = time.monotonic()
    return Slice(ended - began, finished, overlapping(calls, began, ended))


def overlapping(calls: Sequence[Call], began: float, ended: float) -> list[Call]:
    """Those of ``calls`` that were under way at any moment of a while."""
    return [call for call in calls if call.ended > began and call.began < ended]


def wait_for_lock(contents: Contents, samples: int) -> LockWaits:
    """Let netsweep and a plain blocking ``flock`` wait for the xtables lock in turn, beside the neighbours."""
    contents.load(0)
    contents.add_staying()
    with neighbours(contents):
        return Apart(partial(_wait_for_lock, contents, samples)).result()


def _work(contents: Contents, bridge: str, stop: Event, parent: int, leasing: bool) -> list[Call]:
    # Another uplink than that of the rules which are there: a rule of this job's own.
    rule = leak(bridge, uplink="eth1")["filter"][0].split()[1:]
    add = [contents.tool(), "-w", "5", "-A", *rule]
    delete = [contents.tool(), "-w", "5", "-D", *rule]
    silence = [(os.POSIX_SPAWN_OPEN, descriptor, os.devnull, os.O_RDWR, 0) for descriptor in (1, 2)]
    calls = []
    command = add
    while not stop.is_set() and os.getppid() == parent:
        waited_ms = _read_leases(contents) if leasing else 0.0
        began = time.monotonic()
        pid = os.posix_spawn(command[0], command, contents.environment, file_actions=silence)
        _, status = os.waitpid(pid, 0)
        calls.append(Call(began, time.monotonic(), status == 0, waited_ms))
        if status == 0:
            command = delete if command is add else add
    return calls


def _read_leases(contents: Contents) -> float:
    """Read the leases under the subnet lock; return how long it was waited for, in ms."""
    began = time.monotonic()
    with flocked(contents.lock_file):
        waited_ms = (time.monotonic() - began) * 1000
        json.loads(contents.lease_file.read_text())
    return waited_ms


def _pause(seconds: float) -> bool:
    time.sleep(seconds)
    return True


def _run_for(contents: Contents, command: Sequence[str], seconds: float) -> bool:
    process = contents.start_measured(command)
    descriptor = os.pidfd_open(process.pid)
    try:
        ended, _, _ = select.select([descriptor], [], [], seconds)
    finally:
        os.close(descriptor)
    if not ended:
        # The call of iptables that is under way ends by itself.
        process.kill()
        process.wait()
        return False
    process.wait()
    contents.require_success(process)
    return True


def _wait_for_lock(contents: Contents, samples: int) -> LockWaits:
    import netsweep

    backend: netsweep.BackendChoice = "nft" if contents.flavour == "nft" else "legacy"
    os.environ.update(contents.environment)
    waits = LockWaits([], [])
    for _ in range(samples):
        contents.leak_more()
        report = netsweep.sweep(backend=backend)
        if not report.xtables_lock or report.deleted == 0:
            raise BenchmarkError("netsweep deleted nothing beside the neighbours")
        waits.netsweep.append(report.xtables_lock.waited_ms)
        with open(report.xtables_lock.path) as lock:
            began = time.monotonic()
            fcntl.flock(lock, fcntl.LOCK_EX)
            waits.flock.append((time.monotonic() - began) * 1000)
    return waits
