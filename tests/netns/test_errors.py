"""The exit statuses of the contract, each on a real host that is short of something."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import netsweep
from tests.namespace import Namespace, complaint, flocked, leaks, new_namespace, unchanged, wait_until_queued

NETSWEEP = (sys.executable, "-m", "netsweep")

NO_NET_ADMIN = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-all")
ONLY_NET_ADMIN = ("setpriv", "--bounding-set=-all,+net_admin", "--inh-caps=-all")

NOBODY = 65534


@pytest.fixture
def public_ns() -> Iterator[Namespace]:
    """A namespace whose folder any user can get at, as /tmp is."""
    with tempfile.TemporaryDirectory(prefix="netsweep-test-") as folder:
        os.chmod(folder, 0o1777)
        with new_namespace(Path(folder)) as namespace:
            yield namespace


def owned_rules(ns: Namespace, flavour: str) -> list[str]:
    return [line for line in ns.save(flavour) if "hmdead" in line]


def is_free(ns: Namespace, lock: Path) -> bool:
    return ns.run("flock", "-n", str(lock), "true", check=False).returncode == 0


@pytest.mark.parametrize("arguments", [["list"], ["sweep"], ["sweep", "--dry-run"], ["restore", "file"]])
def test_root_without_cap_net_admin_is_not_permitted(ns: Namespace, flavour: str, arguments: list[str]) -> None:
    ns.restore(flavour, leaks(["hmdead"]))
    with unchanged(ns):
        done = ns.run(*NO_NET_ADMIN, *NETSWEEP, *arguments, check=False)
    assert "CAP_NET_ADMIN is missing" in complaint(done, 77)
    assert not done.stdout


def test_root_with_cap_net_admin_alone_sweeps_nf_tables(ns: Namespace) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    done = ns.run(*ONLY_NET_ADMIN, *NETSWEEP, "sweep", "--backend", "nft")
    assert "Deleted 3 orphaned rules" in done.stdout
    assert owned_rules(ns, "nft") == []


def as_nobody(ns: Namespace, capabilities: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run netsweep as a user with nothing but ``capabilities``.

    Python and netsweep may be installed where only root gets to, so they are mounted where anybody does.
    """
    mounts = {
        "python": sys.base_prefix,
        "site": sysconfig.get_path("purelib"),
        "source": str(Path(netsweep.__file__).parent.parent),
    }
    binds = []
    for name, source in mounts.items():
        (ns.folder / name).mkdir(exist_ok=True)
        binds.append(f"mount --bind '{source}' '{ns.folder / name}'")
    script = " && ".join([*binds, 'exec "$@"'])
    sets = ",".join(f"+{capability}" for capability in capabilities)
    return ns.run(
        *("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"),
        *("env", f"PYTHONPATH={ns.folder}/source:{ns.folder}/site", f"LD_LIBRARY_PATH={ns.folder}/python/lib"),
        *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"),
        *(f"--inh-caps=-all,{sets}", f"--ambient-caps=-all,{sets}", f"--bounding-set=-all,{sets}"),
        *(f"{ns.folder}/python/bin/python{sys.version_info.major}.{sys.version_info.minor}", "-m", "netsweep"),
        *arguments,
        check=False,
    )


def test_cap_net_admin_is_all_that_a_user_needs_for_nf_tables(public_ns: Namespace) -> None:
    ns = public_ns
    ns.restore("nft", leaks(["hmdead"]))
    ns.restore("legacy", leaks(["hmdead"]))
    done = as_nobody(ns, ["net_admin"], "sweep", "--backend", "nft")
    assert done.stderr == ""
    assert done.returncode == 0
    assert owned_rules(ns, "nft") == []
    assert len(owned_rules(ns, "legacy")) == 3


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
    assert owned_rules(ns, "legacy") == owned_rules(ns, "nft") == []


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


def library_path(name: str) -> str:
    """Where the dynamic linker finds a library of iptables-legacy."""
    program = shutil.which("iptables-legacy")
    assert program
    for line in subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout.splitlines():
        soname, _, path = line.strip().partition(" => ")
        if soname.startswith(name):
            return path.split()[0]
    raise AssertionError(f"iptables-legacy does not use {name}")


@pytest.mark.parametrize("library", ["libip4tc", "libxtables"])
def test_a_missing_library_matters_only_where_there_are_x_tables_rules(
    ns: Namespace, tmp_path: Path, library: str
) -> None:
    (tmp_path / "empty").touch()
    script = f"mount --bind '{tmp_path / 'empty'}' '{library_path(library)}' && exec \"$@\""
    without_library = ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *NETSWEEP)

    ns.restore("nft", leaks(["hmdead"]))
    done = ns.run(*without_library, "sweep", check=False)
    assert done.stderr == ""
    assert done.returncode == 0
    assert owned_rules(ns, "nft") == []

    ns.restore("legacy", leaks(["hmdead"]))
    ns.restore("nft", leaks(["hmdead"]))
    with unchanged(ns):
        for command in ("list", "sweep"):
            line = complaint(ns.run(*without_library, command, check=False), 69)
            assert library in line
            assert "install iptables" in line
    ns.run(*without_library, "sweep", "--backend", "nft")
    assert owned_rules(ns, "nft") == []
    assert len(owned_rules(ns, "legacy")) == 3


@pytest.mark.parametrize("timeout", ["0", "0.2"])
def test_a_busy_subnet_lock_ends_the_sweep_with_nothing_changed(ns: Namespace, flavour: str, timeout: str) -> None:
    ns.restore(flavour, leaks(["hmdead"]))
    with flocked(ns.lock_file), unchanged(ns):
        started = time.monotonic()
        line = complaint(ns.netsweep("sweep", "--lock-timeout", timeout), 75)
        assert time.monotonic() - started >= float(timeout)
    for part in ("subnet lock", str(ns.lock_file), "--lock-timeout", "nothing was changed"):
        assert part in line
    assert ns.netsweep("sweep").returncode == 0
    assert owned_rules(ns, flavour) == []


def test_a_busy_xtables_lock_ends_the_sweep_with_nothing_changed(ns: Namespace) -> None:
    ns.restore("legacy", leaks(["hmdead"]))
    ns.restore("nft", leaks(["hmdead"]))
    xtables_lock = ns.folder / "xtables.lock"
    with flocked(xtables_lock):
        with unchanged(ns):
            for timeout in ("0", "0.2"):
                line = complaint(ns.netsweep("sweep", "--wait", timeout), 75)
                for part in ("xtables lock", str(xtables_lock), "--wait", "nothing was changed"):
                    assert part in line
        assert is_free(ns, ns.lock_file)
        assert ns.netsweep("list", "--exit-code").returncode == 3
        assert ns.netsweep("sweep", "--backend", "nft", "--wait", "0").returncode == 0
    assert owned_rules(ns, "nft") == []
    assert ns.netsweep("sweep").returncode == 0
    assert owned_rules(ns, "legacy") == []


@pytest.mark.parametrize("command", ["list", "sweep"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [(b'{"leases": {', "not JSON"), (b"[]", 'no "leases" in it'), (b"\xff\xfe\xfd", "not JSON")],
)
def test_a_lease_file_that_is_not_understood_stops_everything(
    ns: Namespace, flavour: str, command: str, content: bytes, reason: str
) -> None:
    ns.restore(flavour, leaks(["hmdead"]))
    ns.lease_file.write_bytes(content)
    with unchanged(ns):
        line = complaint(ns.netsweep(command), 1)
    assert str(ns.lease_file) in line
    assert reason in line
    assert ns.lease_file.read_bytes() == content


@pytest.mark.parametrize("content", [None, b"", b"\n", b'{"leases": {}}', b'{"leases": null}'])
def test_no_lease_file_and_an_empty_one_mean_no_leases(ns: Namespace, flavour: str, content: bytes | None) -> None:
    ns.restore(flavour, leaks(["hmdead"]))
    if content is not None:
        ns.lease_file.write_bytes(content)
    done = ns.netsweep("sweep")
    assert done.stderr == ""
    assert done.returncode == 0
    assert owned_rules(ns, flavour) == []


@pytest.mark.parametrize(
    "options",
    [
        ["--chain", "FORWARD"],
        ["--chain", "filter/FOR WARD"],
        ["--chain", "filter/\x1b[31m\n"],
        ["--chain", "nosuch/FORWARD"],
        ["--chain", ""],
        ["--prefix", ""],
        ["--prefix", "hm+"],
        ["--prefix", "ham"],
        ["--prefix", "h\nm"],
        ["--protect", "a/b"],
        ["--backend", "ebtables"],
        ["--wait", "-1"],
        ["--wait", "nan"],
        ["--wait", "soon"],
        ["--lock-timeout", "-0.1"],
        ["--lock-file", ""],
        ["--no-such-option"],
        ["too", "many"],
    ],
)
def test_wrong_usage_is_told_and_nothing_is_touched(ns: Namespace, options: list[str]) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    with unchanged(ns):
        for command in ("list", "sweep"):
            complaint(ns.netsweep(command, *options), 2)
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
        assert "FORWARD" in complaint(ns.netsweep("sweep", "--best-effort", "--chain", "FORWARD"), 0)


def test_json_holds_the_error_that_stderr_tells(ns: Namespace) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    with flocked(ns.lock_file):
        done = ns.netsweep("sweep", "--lock-timeout", "0", "--format", "json")
    line = complaint(done, 75)
    report = json.loads(done.stdout)
    assert [f"netsweep: {error}" for error in report["errors"]] == [line]
    assert (report["changed"], report["deleted"]) == (False, 0)
    assert report["locks"] == {"subnet": None, "xtables": None}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("lock", ["subnet", "xtables"])
def test_a_signal_in_the_middle_leaves_tables_whole_and_locks_free(
    ns: Namespace, lock: str, number: signal.Signals
) -> None:
    ns.restore("legacy", leaks(["hmdead"]))
    ns.restore("nft", leaks(["hmdead"]))
    path = ns.lock_file if lock == "subnet" else ns.folder / "xtables.lock"
    with unchanged(ns), flocked(path):
        process = ns.start(*NETSWEEP, "sweep")
        wait_until_queued(process.pid, path)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=10)
    line = complaint(subprocess.CompletedProcess([], process.returncode, stdout, stderr), 128 + number)
    assert number.name in line
    assert is_free(ns, ns.lock_file)
    assert is_free(ns, ns.folder / "xtables.lock")
    assert ns.netsweep("sweep").returncode == 0
    assert owned_rules(ns, "legacy") == owned_rules(ns, "nft") == []
