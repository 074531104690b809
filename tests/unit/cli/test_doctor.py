"""``netsweep doctor``: it says what a sweep would end with, on real lock and lease files."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from netsweep import profiles
from netsweep.cli import run
from netsweep.errors import NetsweepError, NoBackendError, NotPermittedError
from netsweep.jobs.look import BackendSurvey
from netsweep.model import Chain, Family, Table
from netsweep.report import Report
from tests import schema
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

    def hold(
        self,
        name: str,
        *tables: Table,
        owned: int = 0,
        chains: Sequence[Chain] = (),
        error: NetsweepError | None = None,
    ) -> None:
        """Let a backend hold tables, with 7 rules in each."""
        families = {table.family for table in tables}
        scanned, ours = dict.fromkeys(families, 7), dict.fromkeys(families, owned)
        self.backends.append(BackendSurvey(name, None if error else tables, scanned, ours, chains, error))

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


def doctor(
    capsys: pytest.CaptureFixture[str], *options: str, status: int = 0, failed: bool | None = None
) -> dict[str, Any]:
    failed = status != 0 if failed is None else failed
    assert run(["doctor", "--format", "json", *options]) == status
    said = capsys.readouterr()
    found = schema.read(said.out)
    assert found["status"] == status
    assert [f"netsweep: {error}" for error in found["errors"]] == said.err.splitlines()
    assert failed == (found["errors"] != [])
    return found


def verdict(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    run(["doctor", *options])
    return " ".join(capsys.readouterr().out.partition("\n\n")[2].split())


def test_a_host_that_holds_nothing(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.hold("legacy")
    host.hold("nft")
    found = doctor(capsys)
    assert (found["schema"], found["command"], found["orphans"], found["elsewhere"]) == (1, "doctor", 0, 0)
    nothing = {"family": "ipv4", "tables": [], "other_tables": [], "scanned": 0, "owned": 0}
    assert found["backends"] == [{"name": "legacy", **nothing}, {"name": "nft", **nothing}]
    free = {"exists": False, "held": None, "held_by": None, "holder": None, "waiting": 0, "error": None}
    assert found["locks"] == {
        "subnet": {"path": str(host.lock_file), **free},
        "xtables": {"path": str(host.xtables_lock), **free},
    }
    assert found["leases"] == {"path": str(host.lease_file), "exists": False, "leases": 0, "running": 0}
    assert found["versions"].keys() >= {"netsweep", "python", "kernel", "pyroute2", "python-iptables", "filelock"}
    assert not host.lock_file.exists()
    assert verdict(capsys) == "A sweep could run here. It would find nothing to delete."


@pytest.mark.parametrize("variable", [("NETSWEEP_FORMAT", "github"), ("GITHUB_ACTIONS", "true")])
def test_a_format_of_other_commands_is_text_where_the_environment_has_it(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: tuple[str, str]
) -> None:
    monkeypatch.setenv(*variable)
    assert run(["doctor"]) == 0
    assert "A sweep could run here. It would find nothing to delete." in capsys.readouterr().out
    assert run(["doctor", "--format", "github"]) == 2
    assert "'github' is not one of 'text', 'json'" in capsys.readouterr().err
    monkeypatch.setenv("NETSWEEP_FORMAT", "json")
    assert run(["doctor"]) == 0
    assert json.loads(capsys.readouterr().out)["command"] == "doctor"
    monkeypatch.setenv("NETSWEEP_FORMAT", "xml")
    assert run(["doctor"]) == 2
    assert "'xml' is not one of" in capsys.readouterr().err


def test_settings_are_the_effective_ones(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    found = doctor(capsys, "--prefix", "vm", "--wait", "1", "--lease-file", "/nowhere/leases")
    assert found["settings"] == {
        "profile": "hypeman",
        "names": [],
        "prefixes": ["vm"],
        "protected": ["ha"],
        "chains": ["filter/FORWARD", "nat/POSTROUTING"],
        "family": "all",
        "include_negated": False,
        "settle": 0.0,
        "backend": "auto",
        "lock_file": str(host.lock_file),
        "lease_file": "/nowhere/leases",
        "lock_timeout": 30.0,
        "wait": 1.0,
        "max_deletes": None,
        "bridges": False,
        "min_age": 3600.0,
        "journal": None,
        "xtables_lock_file": str(host.xtables_lock),
        "subnets": "10.200.0.0-10.249.255.255",
        "dry_run": False,
        "best_effort": False,
    }
    assert found["sources"] == {
        **dict.fromkeys(found["settings"], "default"),
        **dict.fromkeys(("names", "protected", "chains", "settle", "min_age", "subnets"), "profile hypeman"),
        "prefixes": "option --prefix",
        "wait": "option --wait",
        "lease_file": "option --lease-file",
        "lock_file": "profile hypeman and environment TMPDIR",
        "xtables_lock_file": "environment XTABLES_LOCKFILE",
    }


def test_the_source_of_a_setting_is_the_option_the_variable_or_the_profile(
    host: Host, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"WAIT": "2", "PREFIX": "vm,tap", "ALL_CHAINS": "1", "MAX_DELETES": "7", "DRY_RUN": "0"}.items():
        monkeypatch.setenv(f"NETSWEEP_{name}", value)
    monkeypatch.delenv("TMPDIR")
    options = ("--profile", "docker", "--name", "mybr0", "--prefix", "br-")
    found = doctor(capsys, *options)
    assert found["sources"] == {
        **dict.fromkeys(found["settings"], "profile docker"),
        **dict.fromkeys(
            ("family", "include_negated", "backend", "lock_timeout", "bridges", "journal", "best_effort"), "default"
        ),
        "profile": "option --profile",
        "names": "profile docker and option --name",
        "prefixes": "option --prefix",
        "chains": "environment NETSWEEP_ALL_CHAINS",
        "wait": "environment NETSWEEP_WAIT",
        "max_deletes": "environment NETSWEEP_MAX_DELETES",
        "dry_run": "environment NETSWEEP_DRY_RUN",
        "xtables_lock_file": "environment XTABLES_LOCKFILE",
    }
    assert (found["settings"]["prefixes"], found["settings"]["max_deletes"]) == (["br-"], 7)
    run(["doctor", *options])
    said = capsys.readouterr().out
    for line in (
        "settings:      profile: docker (--profile)",
        "               prefix: br- (--prefix)",
        "               chain: */* (NETSWEEP_ALL_CHAINS)",
        "               wait: 2 s (NETSWEEP_WAIT)",
        "               lock-file: none (profile docker)",
        "               dry-run: no (NETSWEEP_DRY_RUN)",
    ):
        assert f"{line}\n" in said


def test_of_options_that_exclude_each_other_the_source_is_the_one_that_counts(
    host: Host, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETSWEEP_ALL_CHAINS", "0")
    assert doctor(capsys)["sources"]["chains"] == "profile hypeman"
    monkeypatch.setenv("NETSWEEP_CHAIN", "filter/INPUT")
    assert doctor(capsys)["sources"]["chains"] == "environment NETSWEEP_CHAIN"
    assert doctor(capsys, "--all-chains")["sources"]["chains"] == "option --all-chains"
    monkeypatch.setenv("NETSWEEP_ALL_CHAINS", "1")
    assert doctor(capsys, "--chain", "filter/OUTPUT")["sources"]["chains"] == "option --chain"


def test_a_variable_that_nothing_reads_is_told(
    host: Host, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETSWEEP_PROTECTED", "ha")
    monkeypatch.setenv("NETSWEEP_TEARDOWN_FORCE", "0")  # another command's
    assert doctor(capsys)["warnings"] == ["NETSWEEP_PROTECTED is set, but no option reads it"]


def test_settings_are_those_of_the_profile(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    found = doctor(capsys, "--profile", "docker", "--name", "mybr0", "--family", "ipv6", "--include-negated")
    profile = profiles.load("docker")
    expected = {
        "profile": "docker",
        "names": [*profile.names, "mybr0"],
        "prefixes": [],
        "protected": [],
        "chains": list(profile.chains),
        "family": "ipv6",
        "include_negated": True,
        "settle": 2.0,
        "lock_file": None,
        "lease_file": None,
    }
    assert {key: found["settings"][key] for key in expected} == expected
    # Docker has no lock that a sweep would wait for, and no leases.
    assert (found["locks"].keys(), found["leases"]) == ({"xtables"}, None)
    run(["doctor", "--profile", "docker"])
    said = capsys.readouterr().out
    assert "subnet lock:" not in said
    assert "lease file:" not in said
    assert "xtables lock:" in said


def test_each_family_of_a_backend_has_a_line_and_tables_that_hold_none_are_named(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = [
        Table("nft", family, name)
        for family, name in (
            (Family.BRIDGE, "filter"),
            (Family.INET, "firewalld"),
            (Family.IPV6, "nat"),
            (Family.IPV4, "nat"),
            (Family.ARP, "filter"),
            (Family.IPV4, "filter"),
        )
    ]
    host.hold("nft", *tables, owned=2)
    shown = [(each["family"], each["tables"], each["other_tables"]) for each in doctor(capsys)["backends"]]
    assert shown == [
        ("ipv4", ["filter", "nat"], ["arp filter", "bridge filter"]),
        ("ipv6", ["nat"], []),
        ("inet", ["firewalld"], []),
    ]
    assert {(each["scanned"], each["owned"]) for each in doctor(capsys)["backends"]} == {(7, 2)}
    run(["doctor"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("nft:")]
    assert [line.split(";")[0].split(": ")[-1] for line in lines] == [
        "ipv4 tables filter, nat",
        "ipv6 table nat",
        "inet table firewalld",
    ]


def test_a_backend_with_tables_of_no_family_that_can_be_swept_has_one_line(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    host.hold("nft", Table("nft", Family.BRIDGE, "filter"))
    (found,) = doctor(capsys)["backends"]
    assert (found["tables"], found["other_tables"], found["scanned"]) == ([], ["bridge filter"], 0)


def test_orphans_elsewhere_are_told_with_what_to_do(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.report.elsewhere = 15
    assert doctor(capsys)["elsewhere"] == 15
    assert verdict(capsys).endswith("15 more orphaned rules in chains that were not looked at: --all-chains.")


@pytest.mark.parametrize(
    ("table", "chain", "said"),
    [
        ((Family.IPV4, "nat"), "CNI-HOSTPORT-DNAT", "CNI"),
        ((Family.IPV6, "nat"), "CNI-0123456789abcdef01234567", "CNI"),
        ((Family.INET, "cni_hostport"), "hostports", "CNI"),
        ((Family.IPV4, "nat"), "NETAVARK-1D8721804F16F", "netavark"),
        ((Family.IPV4, "filter"), "NETAVARK_FORWARD", "netavark"),
        ((Family.INET, "netavark"), "FORWARD", "netavark"),
        ((Family.IPV4, "filter"), "DOCKER", None),
        ((Family.IPV4, "filter"), "MY-CNI-X", None),
    ],
)
def test_rules_that_no_interface_tells_are_said_to_be_somebody_elses_business(
    host: Host, capsys: pytest.CaptureFixture[str], table: tuple[Family, str], chain: str, said: str | None
) -> None:
    held = Table("nft", *table)
    host.hold("legacy")
    host.hold("nft", held, chains=[Chain(held, chain)])
    notes = doctor(capsys)["notes"]
    assert [said is not None and said in note for note in notes] == [True] * (said is not None)
    run(["doctor"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note:")]
    assert len(lines) == len(notes)
    for note in notes:
        assert "netsweep leaves them" in note
        assert ("cnitool gc" if said == "CNI" else "podman network reload") in note


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
    with open("/proc/self/cmdline", encoding="utf-8") as command:
        program = os.path.basename(command.read().split("\0")[0])
    assert (lock["held_by"], lock["holder"].split()[0]) == (os.getpid(), program)
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
        best_effort = doctor(capsys, *options, "--best-effort", failed=status != 0)
    assert best_effort["errors"] == found["errors"]
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
    assert (found["errors"], found["warnings"]) == ([str(error)], [])
    assert (found["orphans"], found["elsewhere"]) == (None, None)
    assert found["backends"][0]["tables"] is None
    assert verdict(capsys) == f"A sweep would fail here with exit status {status}: {error}"


def test_wrong_options_are_wrong_usage(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--chain", "FORWARD"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
