"""``--metrics-file`` on a firewall that is really there, and what its reader sees."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.namespace import (
    FLAVOURS,
    NETSWEEP,
    NO_NET_ADMIN,
    Namespace,
    complaint,
    flocked,
    leaks,
    wait_until_queued,
    write_leases,
)

DEAD = 4194304
"""A PID that no process has: more than the kernel gives out."""


def read(path: Path) -> dict[tuple[str, ...], float]:
    """The samples of a metrics file, by name and the labels that differ within it."""
    return {
        (sample.name, *(value for name, value in sample.labels.items() if name in ("state", "lock"))): sample.value
        for family in text_string_to_metric_families(path.read_text("ascii"))
        for sample in family.samples
    }


@pytest.fixture
def path(ns: Namespace) -> Path:
    return ns.directory / "netsweep.prom"


def test_list_and_sweep_write_what_they_found_and_did(ns: Namespace, path: Path) -> None:
    ns.add_bridges("hm1a", "hm1b", "hm2a")
    write_leases(ns, {"hm1a": os.getpid(), "hm2a": DEAD})
    for flavour in FLAVOURS:
        ns.restore(flavour, leaks(["hmdead", "hmbee", "hm1a"]))
    options = ("--bridges", "--metrics-file", str(path))
    assert ns.netsweep("list", "--exit-code", *options).returncode == 3
    listed = read(path)
    found = {("netsweep_rules",): 18, ("netsweep_orphaned_rules",): 12, ("netsweep_bridges", "leaked"): 1}
    found[("netsweep_bridges", "live")] = 2  # one is leased, and nobody can tell of the other, which is young
    assert listed.items() >= found.items()
    assert (listed[("netsweep_deleted_rules",)], listed[("netsweep_deleted_bridges",)]) == (0, 0)
    assert listed[("netsweep_exit_status",)] == 3
    assert listed[("netsweep_lock_hold_seconds", "subnet")] == 0
    assert ns.netsweep("sweep", *options).returncode == 0
    swept = read(path)
    assert swept.items() >= found.items()
    assert (swept[("netsweep_deleted_rules",)], swept[("netsweep_deleted_bridges",)]) == (12, 1)
    assert swept[("netsweep_exit_status",)] == 0
    for lock in ("subnet", "xtables"):
        assert 0 < swept[("netsweep_lock_hold_seconds", lock)] < swept[("netsweep_duration_seconds",)] < 60
    times = [each[("netsweep_last_success_timestamp_seconds",)] for each in (listed, swept)]
    assert times == sorted(times)


def test_a_run_that_fails_writes_why_and_keeps_the_last_success(ns: Namespace, path: Path) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    sweep = ("sweep", "--metrics-file", str(path), "--lock-timeout", "0")
    options = ("list", "--metrics-file", str(path))
    assert ns.netsweep(*options).returncode == 0
    success = read(path)[("netsweep_last_success_timestamp_seconds",)]
    with flocked(ns.lock_file):
        complaint(ns.netsweep(*sweep), 75)
        busy = read(path)
        ns.netsweep(*sweep, "--best-effort")
        assert read(path)[("netsweep_exit_status",)] == 75
    assert (busy[("netsweep_orphaned_rules",)], busy[("netsweep_deleted_rules",)]) == (3, 0)
    assert ("netsweep_lock_wait_seconds", "subnet") not in busy
    done = ns.run(*NO_NET_ADMIN, *NETSWEEP, *options, check=False)
    complaint(done, 77)
    refused = read(path)
    assert refused[("netsweep_exit_status",)] == 77
    assert ("netsweep_orphaned_rules",) not in refused
    for samples in (busy, refused):
        assert samples[("netsweep_last_success_timestamp_seconds",)] == success
        assert samples[("netsweep_last_run_timestamp_seconds",)] > success


def test_they_are_written_where_stdout_is_full_and_where_a_signal_ends_the_wait(ns: Namespace, path: Path) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    command = (*NETSWEEP, "list", "--metrics-file", str(path))
    ns.run("sh", "-c", '"$@" >/dev/full', "sh", *command, check=False)
    full = read(path)
    assert (full[("netsweep_exit_status",)], full[("netsweep_orphaned_rules",)]) == (1, 3)
    with flocked(ns.lock_file):
        process = ns.start(*NETSWEEP, "sweep", "--metrics-file", str(path))
        wait_until_queued(process.pid, ns.lock_file)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    stopped = read(path)
    assert stopped[("netsweep_exit_status",)] == 128 + signal.SIGTERM
    assert (stopped[("netsweep_orphaned_rules",)], stopped[("netsweep_deleted_rules",)]) == (3, 0)
    assert ("netsweep_lock_wait_seconds", "subnet") not in stopped


def test_a_reader_never_sees_half_a_file(ns: Namespace, path: Path) -> None:
    """Not even where several runs write at once."""
    ns.restore("nft", leaks(["hmdead"]))
    command = ("list", "--metrics-file", str(path), "--bridges")
    ns.netsweep(*command)
    whole = read(path).keys()
    seen = list[str]()
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            text = path.read_text("ascii")
            if not seen or text != seen[-1]:
                seen.append(text)

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for _ in range(4):
            runs = [ns.start(*NETSWEEP, *command) for _ in range(3)]
            for each in runs:
                each.communicate(timeout=60)
                assert each.returncode == 0
    finally:
        ended.set()
        reader.join()
    assert len(seen) > 4
    for text in seen:
        path.write_text(text)
        assert read(path).keys() == whole
    assert list(ns.directory.glob(".netsweep*")) == []


def test_what_others_put_in_its_place_is_neither_followed_nor_replaced(public_ns: Namespace) -> None:
    """In a directory that everybody may write to."""
    path, other = public_ns.directory / "netsweep.prom", public_ns.directory / "other"
    other.write_text("precious")
    for name in ("/dev/null", str(path)):
        path.unlink(missing_ok=True)
        path.symlink_to(other)
        line = complaint(public_ns.netsweep("sweep", "--metrics-file", name), 1)
        assert ": refused, it has to be a regular file" in line
    assert other.read_text() == "precious"
    assert Path("/dev/null").is_char_device()
    assert path.is_symlink()
