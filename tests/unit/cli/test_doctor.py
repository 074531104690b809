"""``netsweep doctor``: it says what a sweep would end with, on real lock and lease files."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from netsweep.cli import run
from netsweep.errors import NetsweepError, NoBackendError, NotPermittedError
from netsweep.jobs.look import BackendSurvey
from netsweep.model import Family, Table
from netsweep.report import Report
from tests.unit.output.reports import finding

IPV4_FILTER = Table("legacy", Family.IPV4, "filter")


class Host:
    """What the firewall of this host holds, and where its files are."""

    def __init__(self, directory: Path) -> None:
        self.lock_file = directory / "hypeman-test-network.lock"
        self.lease_file = directory / "hypeman-test-network-leases.json"
        self.xtables_lock = directory / "xtables.lock"
        self.report = Report("doctor")
        self.backends: list[BackendSurvey] = []
        self.failure: NetsweepError | None = None

    def hold(self, name: str, *tables: Table, owned: int = 0, error: NetsweepError | None = None) -> None:
        """Let a backend hold tables."""
        self.backends.append(BackendSurvey(name, None if error else tables, 7, owned, error))

    def find_orphans(self, *_: object, **__: object) -> Report:
        if self.failure:
            raise self.failure
        return self.report


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    for name in [name for name in os.environ if name.startswith("NETSWEEP_")]:
        monkeypatch.delenv(name)
    host = Host(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("XTABLES_LOCKFILE", str(host.xtables_lock))
    monkeypatch.setattr("netsweep.jobs.doctor.find_orphans", host.find_orphans)
    monkeypatch.setattr("netsweep.jobs.doctor.survey", lambda _: host.backends)
    return host


@contextmanager
def held(path: Path) -> Iterator[None]:
    with open(path, "w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def doctor(capsys: pytest.CaptureFixture[str], *options: str, status: int = 0) -> dict[str, Any]:
    assert run(["doctor", "--format", "json", *options]) == status
    said = capsys.readouterr()
    found: dict[str, Any] = json.loads(said.out)
    assert found["status"] == status
    assert [f"netsweep: {error}" for error in found["errors"]] == said.err.splitlines()
    assert (status == 0) == (found["errors"] == [])
    return found


def verdict(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    run(["doctor", *options])
    return capsys.readouterr().out.splitlines()[-1]


def test_a_host_that_holds_nothing(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.hold("legacy")
    host.hold("nft")
    found = doctor(capsys)
    assert (found["schema"], found["command"], found["orphans"]) == (1, "doctor", 0)
    nothing = {"family": "ipv4", "tables": [], "other_tables": [], "scanned": 7, "owned": 0}
    assert found["backends"] == [{"name": "legacy", **nothing}, {"name": "nft", **nothing}]
    free = {"exists": False, "held_by": None, "holder": None, "waiting": 0}
    assert found["locks"] == {
        "subnet": {"path": str(host.lock_file), **free},
        "xtables": {"path": str(host.xtables_lock), **free},
    }
    assert found["leases"] == {"path": str(host.lease_file), "exists": False, "leases": 0, "running": 0}
    assert found["versions"].keys() >= {"netsweep", "python", "kernel", "pyroute2", "python-iptables", "filelock"}
    assert not host.lock_file.exists()
    assert verdict(capsys) == "A sweep could run here. It would find nothing to delete."


def test_settings_are_the_effective_ones(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    found = doctor(capsys, "--prefix", "vm", "--wait", "1", "--lease-file", "/nowhere/leases")
    assert found["settings"] == {
        "prefixes": ["vm"],
        "protected": ["ha"],
        "chains": ["filter/FORWARD", "nat/POSTROUTING"],
        "backend": "auto",
        "lock_file": str(host.lock_file),
        "lease_file": "/nowhere/leases",
        "lock_timeout": 30.0,
        "wait": 1.0,
    }


def test_tables_of_other_families_are_told_apart(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.hold("nft", Table("nft", Family.INET, "firewalld"), Table("nft", Family.IPV4, "nat"), owned=2)
    (found,) = doctor(capsys)["backends"]
    assert (found["tables"], found["other_tables"], found["owned"]) == (["nat"], ["inet firewalld"], 2)


def test_leases_are_counted_and_those_in_force_too(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    leases = {f"10.200.{n}.0/24": {"bridge_name": f"hm{n}", "pid": os.getpid()} for n in range(2)}
    host.lease_file.write_text(json.dumps({"leases": leases}))
    assert doctor(capsys)["leases"] == {"path": str(host.lease_file), "exists": True, "leases": 2, "running": 2}


def test_a_broken_lease_file_is_told_even_where_nothing_depends_on_it(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    host.lease_file.write_text("no leases")
    found = doctor(capsys)
    assert found["leases"] == {"path": str(host.lease_file), "exists": True, "leases": None, "running": None}
    assert [str(host.lease_file) in warning for warning in found["warnings"]] == [True]
    # Where something does, looking for orphans says so.
    host.failure = NetsweepError(found["warnings"][0])
    again = doctor(capsys, status=1)
    assert (again["errors"], again["warnings"]) == (found["warnings"], [])


@pytest.mark.parametrize("name", ["subnet", "xtables"])
def test_the_process_that_holds_a_lock_is_named(host: Host, capsys: pytest.CaptureFixture[str], name: str) -> None:
    path = host.lock_file if name == "subnet" else host.xtables_lock
    with held(path):
        lock = doctor(capsys)["locks"][name]
    with open("/proc/self/comm", encoding="ascii") as comm:
        assert (lock["held_by"], lock["holder"]) == (os.getpid(), comm.read().rstrip("\n"))
    assert doctor(capsys)["locks"][name]["held_by"] is None


def test_a_lock_is_held_by_the_process_that_has_it_though_another_took_it(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    # /proc/locks names the process that called flock(2), which has ended by then.
    with open(host.lock_file, "w", encoding="ascii") as file:
        subprocess.run(["flock", "--exclusive", str(file.fileno())], pass_fds=[file.fileno()], check=True)
        assert doctor(capsys)["locks"]["subnet"]["held_by"] == os.getpid()


@pytest.mark.parametrize(
    ("lock", "options", "backend", "status"),
    [
        ("subnet", ["--lock-timeout", "0"], "legacy", 75),
        ("subnet", ["--lock-timeout", "0"], "nft", 75),
        ("subnet", ["--lock-timeout", "0"], None, 0),
        ("subnet", ["--wait", "0"], "nft", 0),
        ("xtables", ["--wait", "0"], "legacy", 75),
        ("xtables", ["--wait", "0"], "nft", 0),
        ("xtables", ["--wait", "0"], None, 0),
        ("xtables", ["--lock-timeout", "0"], "legacy", 0),
    ],
)
def test_a_held_lock_that_a_sweep_would_not_wait_for_is_foreseen(
    host: Host, capsys: pytest.CaptureFixture[str], lock: str, options: list[str], backend: str | None, status: int
) -> None:
    host.report.orphans = [finding(backend=backend)] if backend else []
    with held(host.lock_file if lock == "subnet" else host.xtables_lock):
        found = doctor(capsys, *options, status=status)
        said = verdict(capsys, *options)
    if status:
        assert f"{lock} lock" in found["errors"][0]
        assert f"process {os.getpid()}" in found["errors"][0]
        assert said == f"A sweep would fail here with exit status 75: {found['errors'][0]}"
    else:
        assert said.startswith("A sweep could run here")
        assert (f"process {os.getpid()}" in said) == bool(found["waits_for"])
        waits = backend is not None and (lock == "subnet" or backend == "legacy")
        assert found["waits_for"] == ([lock] if waits else [])


@pytest.mark.parametrize("spoil", ["directory missing", "link"])
def test_a_lock_that_cannot_be_used_matters_where_there_are_orphans(
    host: Host, capsys: pytest.CaptureFixture[str], spoil: str, tmp_path: Path
) -> None:
    options = []
    if spoil == "link":
        host.lock_file.symlink_to(tmp_path / "other")
    else:
        options = ["--lock-file", str(tmp_path / "nowhere" / "lock")]
    found = doctor(capsys, *options)
    assert ["subnet lock" in warning for warning in found["warnings"]] == [True]
    host.report.orphans = [finding()]
    again = doctor(capsys, *options, status=1)
    assert (again["errors"], again["warnings"]) == (found["warnings"], [])


@pytest.mark.parametrize(("error", "status"), [(NoBackendError("no libip4tc"), 69), (NotPermittedError("no"), 77)])
def test_what_looking_for_orphans_fails_with_is_what_a_sweep_fails_with(
    host: Host, capsys: pytest.CaptureFixture[str], error: NetsweepError, status: int
) -> None:
    host.failure = error
    host.hold("legacy", IPV4_FILTER, error=error)
    found = doctor(capsys, status=status)
    assert (found["errors"], found["warnings"], found["orphans"]) == ([str(error)], [], None)
    assert found["backends"][0]["tables"] is None
    assert verdict(capsys) == f"A sweep would fail here with exit status {status}: {error}"


def test_wrong_options_are_wrong_usage(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--chain", "FORWARD"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
