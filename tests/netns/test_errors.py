"""The exit statuses of the contract, each on a real host that is short of something."""

from __future__ import annotations

import json
import signal
import subprocess
import time

import pytest

from tests.namespace import (
    FLAVOURS,
    NETSWEEP,
    NO_NET_ADMIN,
    Namespace,
    as_nobody,
    complaint,
    flocked,
    is_free,
    leaks,
    of_bridge,
    report_of,
    unchanged,
    wait_until_queued,
    without_library,
)

ONLY_NET_ADMIN = ("setpriv", "--bounding-set=-all,+net_admin", "--inh-caps=-all")


@pytest.mark.parametrize("arguments", [["list"], ["sweep"], ["restore", "file"]], ids=" ".join)
def test_root_without_cap_net_admin_is_not_permitted(ns: Namespace, arguments: list[str]) -> None:
    for flavour in FLAVOURS:
        ns.restore(flavour, leaks(["hmdead"]))
    with unchanged(ns):
        done = ns.run(*NO_NET_ADMIN, *NETSWEEP, *arguments, check=False)
    assert "CAP_NET_ADMIN is missing" in complaint(done, 77)
    assert not done.stdout


def test_root_with_cap_net_admin_alone_sweeps_nf_tables(ns: Namespace) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    done = ns.run(*ONLY_NET_ADMIN, *NETSWEEP, "sweep", "--backend", "nft")
    assert "Deleted 3 orphaned rules" in done.stdout
    assert of_bridge(ns, "nft", "hmdead") == 0


def test_cap_net_admin_is_all_that_a_user_needs_for_nf_tables(public_ns: Namespace) -> None:
    ns = public_ns
    ns.restore("nft", leaks(["hmdead"]))
    ns.restore("legacy", leaks(["hmdead"]))
    done = as_nobody(ns, ["net_admin"], "sweep", "--backend", "nft")
    assert done.stderr == ""
    assert done.returncode == 0
    assert of_bridge(ns, "nft", "hmdead") == 0
    assert of_bridge(ns, "legacy", "hmdead") == 3


def test_a_user_needs_two_more_capabilities_for_x_tables(public_ns: Namespace) -> None:
    ns = public_ns
    ns.restore("legacy", leaks(["hmdead"]))
    ns.restore("nft", leaks(["hmdead"]))
    with unchanged(ns):
        without_search = as_nobody(ns, ["net_admin", "net_raw"], "sweep")
        without_raw = as_nobody(ns, ["net_admin", "dac_read_search"], "sweep")
    assert "CAP_DAC_READ_SEARCH" in complaint(without_search, 77)
    assert "CAP_NET_RAW" in complaint(without_raw, 77)

    done = as_nobody(ns, ["net_admin", "net_raw", "dac_read_search"], "sweep")
    assert done.stderr == ""
    assert done.returncode == 0
    assert [of_bridge(ns, flavour, "hmdead") for flavour in FLAVOURS] == [0, 0]


def test_a_user_cannot_read_the_lease_file_of_another_without_the_capability(public_ns: Namespace) -> None:
    ns = public_ns
    ns.restore("nft", leaks(["hmdead"]))
    ns.lease_file.write_text("{}")
    ns.lease_file.chmod(0o600)
    with unchanged(ns):
        done = as_nobody(ns, ["net_admin"], "sweep", "--backend", "nft")
    line = complaint(done, 77)
    assert "cannot open lease file" in line
    assert str(ns.lease_file) in line


@pytest.mark.parametrize(
    ("library", "family"), [("libip4tc", "ipv4"), ("libxtables", "ipv4"), ("libip6tc", "ipv6"), ("libxtables", "ipv6")]
)
def test_a_missing_library_matters_only_where_there_are_x_tables_rules(
    ns: Namespace, library: str, family: str
) -> None:
    command = (*without_library(ns, library), *NETSWEEP)
    ns.restore("nft", leaks(["hmdead"]))
    if library == "libip6tc":
        ns.restore("legacy", leaks(["hmbee"]))
    done = ns.run(*command, "sweep", check=False)
    assert done.stderr == ""
    assert done.returncode == 0
    assert of_bridge(ns, "nft", "hmdead") == 0

    assert of_bridge(ns, "legacy", "hmbee") == 0

    ns.restore("legacy", leaks(["hmdead"]), family)
    ns.restore("nft", leaks(["hmdead"]))
    with unchanged(ns):
        for job in ("list", "sweep"):
            line = complaint(ns.run(*command, job, check=False), 69)
            assert library in line
            assert "install iptables" in line
    ns.run(*command, "sweep", "--backend", "nft")
    assert of_bridge(ns, "nft", "hmdead") == 0
    assert of_bridge(ns, "legacy", "hmdead", family) == 3


def test_a_busy_subnet_lock_ends_the_sweep_with_nothing_changed(ns: Namespace, flavour: str) -> None:
    ns.restore(flavour, leaks(["hmdead"]))
    with flocked(ns.lock_file), unchanged(ns):
        for timeout in ("0", "0.2"):
            started = time.monotonic()
            line = complaint(ns.netsweep("sweep", "--lock-timeout", timeout), 75)
            assert time.monotonic() - started >= float(timeout)
            for part in ("subnet lock", str(ns.lock_file), "--lock-timeout", "nothing was changed"):
                assert part in line
    assert ns.netsweep("sweep").returncode == 0
    assert of_bridge(ns, flavour, "hmdead") == 0


def test_a_busy_xtables_lock_ends_the_sweep_with_nothing_changed(ns: Namespace) -> None:
    ns.restore("legacy", leaks(["hmdead"]))
    ns.restore("nft", leaks(["hmdead"]))
    xtables_lock = ns.xtables_lock
    with flocked(xtables_lock):
        with unchanged(ns):
            for timeout in ("0", "0.2"):
                line = complaint(ns.netsweep("sweep", "--wait", timeout), 75)
                for part in ("xtables lock", str(xtables_lock), "--wait", "nothing was changed"):
                    assert part in line
        assert is_free(ns.lock_file)
        assert ns.netsweep("list", "--exit-code").returncode == 3
        assert ns.netsweep("sweep", "--backend", "nft", "--wait", "0").returncode == 0
    assert of_bridge(ns, "nft", "hmdead") == 0
    assert ns.netsweep("sweep").returncode == 0
    assert of_bridge(ns, "legacy", "hmdead") == 0


@pytest.mark.parametrize(("content", "reason"), [(b'{"leases": {', "not JSON"), (b"[]", 'no "leases" in it')])
def test_a_lease_file_that_is_not_understood_stops_everything(ns: Namespace, content: bytes, reason: str) -> None:
    for flavour in FLAVOURS:
        ns.restore(flavour, leaks(["hmdead"]))
    ns.lease_file.write_bytes(content)
    with unchanged(ns):
        for command in ("list", "sweep"):
            line = complaint(ns.netsweep(command), 1)
            assert str(ns.lease_file) in line
            assert reason in line
    assert ns.lease_file.read_bytes() == content


@pytest.mark.parametrize("content", [None, b"\n", b'{"leases": null}'])
def test_no_lease_file_and_an_empty_one_mean_no_leases(ns: Namespace, content: bytes | None) -> None:
    for flavour in FLAVOURS:
        ns.restore(flavour, leaks(["hmdead"]))
    if content is not None:
        ns.lease_file.write_bytes(content)
    assert report_of(ns.netsweep("sweep", "--format", "json"))["deleted"] == 6
    assert [of_bridge(ns, flavour, "hmdead") for flavour in FLAVOURS] == [0, 0]


WRONG = [
    ["--chain", "filter/\x1b[31m\n"],
    ["--chain", ""],
    ["--prefix", "h\nm"],
    ["--prefix", "ham"],
    ["--backend", "ebtables"],
    ["--wait", "nan"],
    ["--lock-file", ""],
    ["--no-such-option"],
    ["too", "many"],
]


@pytest.mark.parametrize("command", [["list"], ["sweep"], ["sweep", "--best-effort"]], ids=" ".join)
def test_wrong_usage_is_told_and_nothing_is_touched(ns: Namespace, command: list[str]) -> None:
    """Every kind of wrong option is tried with a sweep; tests/unit has the values."""
    ns.restore("nft", leaks(["hmdead"]))
    with unchanged(ns):
        for options in WRONG if command == ["sweep"] else WRONG[:3]:
            complaint(ns.netsweep(*command, *options), 2)
    assert not ns.lock_file.exists()


def test_best_effort_reports_every_failure_and_exits_0(ns: Namespace) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    with unchanged(ns):
        ns.lease_file.write_text("no leases")
        assert "lease file" in complaint(ns.netsweep("sweep", "--best-effort"), 0)
        ns.lease_file.unlink()
        with flocked(ns.lock_file):
            assert "subnet lock" in complaint(ns.netsweep("sweep", "--best-effort", "--lock-timeout", "0"), 0)
        done = ns.run(*NO_NET_ADMIN, *NETSWEEP, "sweep", "--best-effort", check=False)
        assert "CAP_NET_ADMIN" in complaint(done, 0)
        # Wrong usage is the workflow's fault, not the host's: it has to be seen.
        for chain in ("FORWARD", "filter/TYPO"):
            assert chain in complaint(ns.netsweep("sweep", "--best-effort", "--chain", chain), 2)


def test_json_holds_the_error_that_stderr_tells(ns: Namespace) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    with flocked(ns.lock_file):
        done = ns.netsweep("sweep", "--lock-timeout", "0", "--format", "json")
    line = complaint(done, 75)
    report = json.loads(done.stdout)
    assert [f"netsweep: {error}" for error in report["errors"]] == [line]
    assert (report["changed"], report["deleted"]) == (False, 0)
    assert report["locks"] == {"subnet": None, "xtables": None}


@pytest.mark.parametrize(
    ("lock", "number"), [("subnet", signal.SIGINT), ("xtables", signal.SIGTERM), ("subnet", signal.SIGHUP)]
)
def test_a_signal_in_the_middle_leaves_tables_whole_and_locks_free(
    ns: Namespace, lock: str, number: signal.Signals
) -> None:
    ns.restore("legacy", leaks(["hmdead"]))
    ns.restore("nft", leaks(["hmdead"]))
    path = ns.lock_file if lock == "subnet" else ns.xtables_lock
    with unchanged(ns), flocked(path):
        process = ns.start(*NETSWEEP, "sweep")
        wait_until_queued(process.pid, path)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=10)
    line = complaint(subprocess.CompletedProcess([], process.returncode, stdout, stderr), 128 + number)
    assert line == f"netsweep: stopped by {number.name}: no table is half-changed and all locks are released"
    assert is_free(ns.lock_file)
    assert is_free(ns.xtables_lock)
    assert ns.netsweep("sweep").returncode == 0
    assert [of_bridge(ns, flavour, "hmdead") for flavour in FLAVOURS] == [0, 0]
