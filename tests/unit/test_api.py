"""What a program that imports netsweep gets: names, types, and no exception but ours."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import netsweep
from netsweep.errors import NetsweepError, UsageError
from netsweep.model import BACKENDS
from netsweep.profiles.options import BACKEND, CHOICES, FAMILIES, Options
from netsweep.report import Report

PUBLIC = {
    "functions": {"find_orphans", "sweep", "teardown", "restore"},
    "results": {"Report", "BackendReport", "LeaseFile", "LockTimes", "Finding", "Verdict"},
    "networks": {"Bridge", "BridgeFinding", "Address", "Lease"},
    "rules": {"Rule", "Spec", "Interface", "Chain", "Table", "Family", "Undo"},
    "choices": {"BackendChoice", "BackendName", "Command", "FamilyChoice"},
    "version": {"__version__"},
    "errors": {"NetsweepError", "UsageError", "NoBackendError", "BusyError", "NotPermittedError", "TableError"},
}


def test_what_is_exported_is_there_and_documented() -> None:
    assert set(netsweep.__all__) == set().union(*PUBLIC.values())
    for name in set(netsweep.__all__) - PUBLIC["choices"]:
        assert inspect.getdoc(getattr(netsweep, name)), name


def test_every_field_of_a_result_is_documented_with_the_class_where_help_shows_it() -> None:
    for name in PUBLIC["results"] | PUBLIC["networks"] | PUBLIC["rules"]:
        result = getattr(netsweep, name)
        fields = getattr(result, "_fields", getattr(result, "__dataclass_fields__", ()))
        names = list(result.__members__ if name == "Verdict" else fields)
        described = re.findall(r"^    (\w+): [^\s`].{8}", inspect.getdoc(result) or "", re.MULTILINE)
        assert described == names or name == "Family", name


def test_choices_are_those_that_the_options_take() -> None:
    assert get_args(netsweep.BackendChoice) == CHOICES == (BACKEND, *BACKENDS)
    assert get_args(netsweep.FamilyChoice) == tuple(FAMILIES)
    hints = get_type_hints(netsweep.sweep)
    assert (hints["backend"], hints["family"]) == (netsweep.BackendChoice | None, netsweep.FamilyChoice | None)


def test_every_type_in_a_report_is_exported() -> None:
    """What a report holds can be named by who reads it."""
    exported = {getattr(netsweep, name) for name in netsweep.__all__}
    for module in ("netsweep.report", "netsweep.model"):
        tree = ast.parse(Path(str(importlib.import_module(module).__file__)).read_text())
        fields = [node.annotation for node in ast.walk(tree) if isinstance(node, ast.AnnAssign)]
        names = {each.id for field in fields for each in ast.walk(field) if isinstance(each, ast.Name)}
        ours = {getattr(importlib.import_module(module), name, None) for name in names}
        types = {each for each in ours if inspect.isclass(each) and each.__module__.startswith("netsweep")}
        assert types <= exported


def test_every_exit_status_has_its_error() -> None:
    errors = [getattr(netsweep, name) for name in PUBLIC["errors"]]
    assert all(issubclass(error, NetsweepError) for error in errors)
    assert {error.exit_status for error in errors} == {1, 2, 69, 75, 77}


def test_importing_it_is_cheap() -> None:
    """The libraries are loaded when they are needed."""
    code = "import sys, netsweep; print(*sorted({'click', 'pyroute2', 'iptc', 'rich'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What the jobs were called with; they do nothing."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def note(name: str) -> Any:
        def job(options: Any, *arguments: Any, **named: Any) -> Report:
            calls.append((name, {"options": options, "more": arguments, **named}))
            return Report("sweep")

        return job

    for name in ("sweep.sweep", "sweep.find_orphans", "teardown.teardown", "restore.restore"):
        monkeypatch.setattr(f"netsweep.jobs.{name}", note(name.rpartition(".")[2]))
    return calls


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"lock_file": Path("/tmp/none/x")}, None),
        ({"lease_file": Path("/nonexistent/y")}, None),
        ({"journal": Path("/nonexistent/y")}, None),
        ({"wait": "5"}, UsageError),
        ({"wait": None}, None),
        ({"prefix": None}, None),
        ({"prefix": [b"hm"]}, UsageError),
        ({"prefix": (each for each in ["vm"])}, None),
        ({"protect": None}, None),
        ({"protect": [None]}, UsageError),
        ({"protect": iter([])}, None),
        ({"chain": [("filter", "FORWARD")]}, UsageError),
        ({"backend": None}, None),
        ({"backend": ["nft"]}, UsageError),
        ({"lock_file": b"/tmp/x"}, UsageError),
        ({"lock_timeout": True}, UsageError),
        ({"prefix": 3}, UsageError),
        ({"profile": "docker"}, None),
        ({"profile": Path("/nonexistent/mine.toml")}, UsageError),
        ({"profile": 3}, UsageError),
        ({"name": iter(["wgcorp"])}, None),
        ({"name": "w*"}, UsageError),
        ({"name": {"wgcorp": 1}}, None),
        ({"all_chains": True}, None),
        ({"all_chains": True, "chain": ["raw/*"]}, UsageError),
        ({"family": "ipv6"}, None),
        ({"family": ["ipv6"]}, UsageError),
        ({"family": {}}, UsageError),
        ({"include_negated": True}, None),
        ({"settle": 0.5}, None),
        ({"settle": float("inf")}, UsageError),
        ({"max_deletes": 3}, None),
        ({"max_deletes": 3.0}, UsageError),
        ({"journal": object()}, UsageError),
        ({"bridges": True}, None),
        ({"min_age": "1h30m"}, None),
        ({"min_age": 90}, None),
        ({"min_age": "soon"}, UsageError),
        ({"min_age": b"1h"}, UsageError),
    ],
)
def test_whatever_a_value_is_it_is_taken_or_wrong_usage(
    jobs: list[tuple[str, dict[str, Any]]], given: dict[str, Any], error: type[Exception] | None
) -> None:
    if error:
        with pytest.raises(error):
            netsweep.sweep(**given)
        assert jobs == []
    else:
        assert netsweep.sweep(**given).command == "sweep"


def test_options_reach_the_job(jobs: list[tuple[str, dict[str, Any]]]) -> None:
    netsweep.sweep(prefix="vm", wait=1, journal="/x", include_negated=True, max_deletes=9)
    netsweep.sweep(prefix="vm", dry_run=True)
    netsweep.find_orphans(
        profile="docker", name="mybr0", protect=["xx"], all_chains=True, family="ipv6", settle=1, include_kept=True
    )
    netsweep.restore("/x", wait=2, force=True)
    (sweep, first), (dry, second), (find, third), (restore, fourth) = jobs
    assert (sweep, dry, find, restore) == ("sweep", "find_orphans", "find_orphans", "restore")
    assert (first["options"].prefixes, first["options"].wait, first["options"].journal) == (("vm",), 1.0, "/x")
    assert (first["options"].include_negated, first["options"].max_deletes) == (True, 9)
    assert (second["command"], second["dry_run"]) == ("sweep", True)
    assert (third["options"].protected, third["keep"]) == (("xx",), True)
    assert (third["options"].profile.name, third["options"].globs[-1]) == ("docker", "mybr0")
    assert (third["options"].chains, third["options"].family, third["options"].settle) == (("*/*",), "ipv6", 1.0)
    assert (fourth["options"], fourth["more"], fourth["force"]) == ("/x", (2,), True)


GIVEN: dict[str, Any] = {
    "profile": "docker",
    "prefix": "vm",
    "name": "wgcorp",
    "protect": "xx",
    "chain": "raw/*",
    "all_chains": True,
    "family": "ipv6",
    "include_negated": True,
    "settle": 7,
    "backend": "nft",
    "lock_file": "/x",
    "lease_file": "/y",
    "lock_timeout": 8,
    "wait": 9,
    "max_deletes": 10,
    "bridges": True,
    "min_age": "20m",
    "journal": "/z",
}


@pytest.mark.parametrize("function", [netsweep.sweep, netsweep.find_orphans])
def test_every_option_that_a_function_has_reaches_its_job(
    jobs: list[tuple[str, dict[str, Any]]], function: Callable[..., Report]
) -> None:
    assert inspect.signature(Options).parameters.keys() == GIVEN.keys()
    not_options = {"dry_run", "include_kept"}
    for name in inspect.signature(function).parameters.keys() - not_options:
        function(**{name: GIVEN[name]})
        _, called = jobs.pop()
        assert called["options"] == Options(**{name: GIVEN[name]}) != Options(), name


def test_every_option_of_a_teardown_reaches_its_job(jobs: list[tuple[str, dict[str, Any]]]) -> None:
    own = {"name": "own"}
    not_options = {"name", "subnet", "force"}
    for name in inspect.signature(netsweep.teardown).parameters.keys() - not_options:
        option = next((each for each, ours in own.items() if ours == name), name)
        netsweep.teardown("hm1", **{name: GIVEN[option]})
        _, called = jobs.pop()
        assert called["options"] == Options(**{option: GIVEN[option]}) != Options(), name


def test_a_teardown_takes_one_name_or_several(jobs: list[tuple[str, dict[str, Any]]]) -> None:
    netsweep.teardown("hm12", subnet="10.200.1.0/24", force=True)
    netsweep.teardown(each for each in ("hm1", "hm2"))
    (_, first), (_, second) = jobs
    assert (first["more"], first["force"]) == ((["hm12"], "10.200.1.0/24"), True)
    assert (second["more"], second["force"]) == ((["hm1", "hm2"], None), False)


def test_the_defaults_stand_once_and_not_in_signatures() -> None:
    for function in (netsweep.sweep, netsweep.find_orphans, netsweep.teardown, netsweep.restore):
        for name, parameter in inspect.signature(function).parameters.items():
            assert parameter.default in (None, False, inspect.Parameter.empty), name


def mypy(tmp_path: Path, code: str) -> tuple[int, str]:
    """The exit status and the output of ``mypy --strict`` on a program."""
    program = tmp_path / "program.py"
    program.write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", f"--cache-dir={tmp_path}", str(program)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    return done.returncode, done.stdout


def test_types_are_checked_where_it_is_installed(tmp_path: Path) -> None:
    right = "\n".join(
        [
            "from pathlib import Path",
            f"from netsweep import {', '.join(sorted(netsweep.__all__))}",
            "report: Report = sweep(prefix=iter(['hm']), lock_file=Path('x'), wait=1)",
            "finding: Finding = report.orphans[0]",
            "where: tuple[Family, str, Verdict] = (finding.rule.chain.table.family, finding.reason, finding.verdict)",
            "restore(Path('journal'), force=True)",
            "again: Report = find_orphans(chain='filter/INPUT', include_kept=True)",
            "docker: Report = sweep(profile=Path('x.toml'), name=('a', 'b'), family='ipv6', settle=2, max_deletes=9)",
            "harm: str | None = docker.negated[0].live_traffic",
            "elsewhere: int = docker.elsewhere",
            "bridges: Report = sweep(bridges=True, min_age='1h30m')",
            "backend: BackendChoice = 'nft'",
            "family: FamilyChoice = 'all'",
            "chosen: Report = find_orphans(backend=backend, family=family)",
            "name: BackendName = chosen.backends[0].name",
            "table: BackendName = chosen.orphans[0].rule.chain.table.backend",
            "ran: Command = chosen.command",
            "lease: Lease | None = bridges.bridges[0].lease",
            "age: float | None = bridges.leaked[0].bridge.age",
            "down: Report = teardown(['hm1', 'hm2'], subnet='10.200.1.0/24', own='x*', lock_file=Path('x'))",
        ]
    )
    wrong = [
        "from netsweep import Nonsense",
        "import netsweep",
        "netsweep.sweep(prefix=3)",
        "netsweep.sweep(nonsense=1)",
        "netsweep.find_orphans(max_deletes=1)",
        "netsweep.teardown()",
        "netsweep.teardown('hm1', chain='filter/INPUT')",
        "netsweep.sweep(backend='ebtables')",
        "netsweep.teardown('hm1', backend='iptables')",
        "netsweep.find_orphans(family='ipv5')",
        "assert netsweep.sweep().command == 'swep'",
    ]
    assert mypy(tmp_path, right) == (0, "Success: no issues found in 1 source file\n")
    status, said = mypy(tmp_path, "\n".join(wrong))
    assert status == 1
    assert 'Module "netsweep" has no attribute "Nonsense"' in said
    assert {line.split(":")[1] for line in said.splitlines() if ": error:" in line} == {
        *("1", "3", "4", "5", "6", "7", "8", "9", "10", "11")
    }
