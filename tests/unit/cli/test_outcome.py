"""What the commands make of what their jobs return and raise."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from netsweep.cli import run
from netsweep.errors import BusyError, NetsweepError, NoBackendError, NotPermittedError, UsageError
from netsweep.report import Report
from tests import schema
from tests.unit.cli.jobs import Jobs, jobs, raises
from tests.unit.output.reports import finding, listed, swept

__all__ = ["jobs"]

FAILURES = [
    (NetsweepError("no"), 1),
    (NoBackendError("no"), 69),
    (BusyError("no"), 75),
    (NotPermittedError("no"), 77),
    (MemoryError(), 1),
    (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), 1),
    (ModuleNotFoundError("No module named 'iptc'"), 69),
    (ImportError("failed to map segment"), 1),
    (RuntimeError("odd"), 1),
]


@pytest.mark.parametrize(("error", "status"), FAILURES, ids=repr)
@pytest.mark.parametrize("form", ["text", "json", "github"])
def test_best_effort_tells_every_failure_and_exits_with_0(
    jobs: Jobs, capsys: pytest.CaptureFixture[str], error: Exception, status: int, form: str
) -> None:
    jobs.does = raises(error)
    assert run(["sweep", "--format", form]) == status
    strict = capsys.readouterr()
    assert run(["sweep", "--format", form, "--best-effort"]) == 0
    lenient = capsys.readouterr()
    for said in (strict, lenient):
        assert said.err.startswith("netsweep: ")
        assert said.err.count("\n") == 1
        assert "stdout" not in said.err
        if form == "json":
            assert schema.read(said.out)["errors"] == [said.err.removeprefix("netsweep: ").rstrip("\n")]
    assert ("::error " in strict.out, "::warning " in lenient.out) == (form == "github",) * 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["--wait", "soon"],
        ["--wait", "-1"],
        ["--lock-timeout", "nan"],
        ["--prefix", ""],
        ["--prefix", "ham"],
        ["--prefix", "br-*"],
        ["--profile", "nosuch"],
        ["--profile", "./nosuch.toml"],
        ["--name", "h*"],
        ["--name", "hm[0"],
        ["--family", "ipx"],
        ["--settle", "-1"],
        ["--settle", "inf"],
        ["--chain", "ip6/filter/FORWARD"],
        ["--all-chains", "--chain", "raw/*"],
        ["--protect", " "],
        ["--chain", "FORWARD"],
        ["--lock-file", ""],
        ["--backend", "ebtables"],
        ["--no-such-option"],
        ["too", "many"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2_even_with_best_effort(
    jobs: Jobs, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    for command in (["list"], ["sweep"], ["sweep", "--best-effort"]):
        assert run([*command, *arguments]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert jobs.calls == []


def test_usage_that_only_the_job_finds_wrong_exits_with_2_too(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    jobs.does = raises(UsageError("there is no chain filter/X"))
    for form in ("text", "github"):
        assert run(["sweep", "--best-effort", "--format", form]) == 2
        said = capsys.readouterr()
        assert said.err == "netsweep: there is no chain filter/X\n"
        assert said.out == ("::error title=netsweep::there is no chain filter/X\n" if form == "github" else "")


@pytest.mark.parametrize("form", ["text", "json", "github"])
def test_what_was_deleted_before_a_failure_is_reported(
    jobs: Jobs, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    report = swept([finding(), finding("hmbee", 2)])
    report.backends[0].deleted = 1
    report.errors = ["no space"]
    error = NetsweepError("no space")
    error.report = report
    jobs.does = raises(error)
    assert run(["sweep", "--format", form]) == 1
    said = capsys.readouterr()
    assert said.err == "netsweep: no space\n"
    if form == "json":
        assert schema.read(said.out)["deleted"] == 1
    else:
        assert "deleted 1 rule, 1 left: run it again" in said.out


def test_a_failure_that_changed_nothing_leaves_stdout_empty(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    jobs.does = raises(NetsweepError("no"))
    assert run(["sweep"]) == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError()], ids=repr)
@pytest.mark.parametrize("form", ["text", "json", "github"])
def test_a_report_that_cannot_be_written_is_a_failure_that_says_what_was_deleted(
    jobs: Jobs,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    form: str,
) -> None:
    def write(_: str) -> int:
        raise error

    jobs.does = lambda _: swept([finding(), finding("hmbee", 2)])
    for options, status in (([], 1), (["--best-effort"], 0)):
        with monkeypatch.context() as patched:
            patched.setattr(sys.stdout, "write", write)
            patched.setattr(sys.stdout, "writelines", lambda lines: [write(line) for line in lines])
            assert run(["sweep", "--format", form, *options]) == status
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert said.endswith("; the sweep deleted 2 rules\n")


@pytest.mark.parametrize("form", ["text", "json", "github"])
def test_warnings_are_told_in_every_form(jobs: Jobs, capsys: pytest.CaptureFixture[str], form: str) -> None:
    report = listed([])
    report.warnings = ["there is no chain filter/X"]
    jobs.does = lambda _: report
    assert run(["list", "--format", form]) == 0
    said = capsys.readouterr()
    assert said.err == "netsweep: warning: there is no chain filter/X\n"
    if form == "json":
        assert schema.read(said.out)["warnings"] == report.warnings
    elif form == "github":
        assert "::warning title=netsweep::there is no chain filter/X\n" in said.out


def test_the_step_summary_is_written_and_its_failure_is_told(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    jobs.does = lambda _: swept([finding()])
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary"))
    assert run(["sweep", "--format", "github"]) == 0
    assert "| legacy | ipv4 | 1,203 | 1 | 1 |" in (tmp_path / "summary").read_text()
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    capsys.readouterr()
    assert run(["sweep", "--format", "github"]) == 1
    said = capsys.readouterr()
    assert "is a directory: refused" in said.err
    assert "::notice title=netsweep::Deleted 1 orphaned rule" in said.out


def test_a_run_in_a_workflow_is_told_to_the_workflow(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    jobs.does = lambda _: swept([finding()])
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    for command in (["list"], ["sweep"], ["teardown", "hm1"], ["restore", "x"]):
        assert run(command) == 0
        assert "::notice title=netsweep::" in capsys.readouterr().out
    for arguments, variable in ((["--format", "text"], "json"), ([], "text")):
        monkeypatch.setenv("NETSWEEP_FORMAT", variable)
        assert run(["sweep", *arguments]) == 0
        assert "::" not in capsys.readouterr().out
    monkeypatch.delenv("NETSWEEP_FORMAT")
    monkeypatch.setenv("GITHUB_ACTIONS", "false")
    assert run(["sweep"]) == 0
    assert "::" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("does", "arguments", "status", "outputs"),
    [
        (lambda _: swept([finding()]), ["sweep"], 0, "deleted=1\norphans=1\nchanged=true\nstatus=0\n"),
        (lambda _: listed([finding()]), ["list"], 0, "deleted=0\norphans=1\nchanged=false\nstatus=0\n"),
        (
            lambda _: listed([finding()]),
            ["list", "--exit-code"],
            3,
            "deleted=0\norphans=1\nchanged=false\nstatus=3\n",
        ),
        (raises(BusyError("no")), ["sweep"], 75, "deleted=0\norphans=0\nchanged=false\nstatus=75\n"),
        (
            raises(BusyError("no")),
            ["sweep", "--best-effort"],
            0,
            "deleted=0\norphans=0\nchanged=false\nstatus=75\n",
        ),
        (
            raises(UsageError("no")),
            ["sweep", "--best-effort"],
            2,
            "deleted=0\norphans=0\nchanged=false\nstatus=2\n",
        ),
        (
            lambda _: swept([finding()]),
            ["sweep", "--best-effort", "--metrics-file", "/proc/nowhere"],
            0,
            "deleted=1\norphans=1\nchanged=true\nstatus=1\n",
        ),
    ],
)
def test_outputs_have_the_status_that_best_effort_hides(
    jobs: Jobs,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    does: Callable[[str], Report],
    arguments: list[str],
    status: int,
    outputs: str,
) -> None:
    jobs.does = does
    monkeypatch.setenv("GITHUB_OUTPUT", str(tmp_path / "output"))
    assert run(arguments) == status
    assert not (tmp_path / "output").exists()
    assert run([*arguments, "--format", "github"]) == status
    assert (tmp_path / "output").read_text() == outputs


def test_outputs_have_the_status_of_a_summary_that_cannot_be_written(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    jobs.does = lambda _: swept([finding()])
    monkeypatch.setenv("GITHUB_OUTPUT", str(tmp_path / "output"))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    assert run(["sweep", "--best-effort", "--format", "github"]) == 0
    assert (tmp_path / "output").read_text() == "deleted=1\norphans=1\nchanged=true\nstatus=1\n"


def test_outputs_have_the_status_of_a_signal(jobs: Jobs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    jobs.does = raises(SystemExit(143))
    monkeypatch.setenv("GITHUB_OUTPUT", str(tmp_path / "output"))
    with pytest.raises(SystemExit):
        run(["sweep", "--format", "github"])
    assert (tmp_path / "output").read_text() == "deleted=0\norphans=0\nchanged=false\nstatus=143\n"
    (tmp_path / "output").unlink()
    stopped = SystemExit(143)
    vars(stopped)["report"] = swept([finding()])
    jobs.does = raises(stopped)
    with pytest.raises(SystemExit):
        run(["sweep", "--format", "github"])
    assert (tmp_path / "output").read_text() == "deleted=1\norphans=1\nchanged=true\nstatus=143\n"


@pytest.mark.parametrize(
    "arguments",
    [
        *(["sweep", "--nosuch"], ["sweep", "--wait", "soon"], ["nosuch"], ["restore"], ["list", "--format", "nosuch"]),
        *(["doctor", "--nosuch"], ["doctor", "--prefix", "ham"], ["profiles", "nosuch"]),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize(
    ("told", "variables", "annotated"),
    [
        (["--format", "github"], {}, True),
        (["--format=github"], {}, True),
        ([], {"NETSWEEP_FORMAT": "github"}, True),
        ([], {"GITHUB_ACTIONS": "true"}, True),
        ([], {"GITHUB_ACTIONS": "true", "NETSWEEP_FORMAT": "nosuch"}, True),
        ([], {}, False),
        (["--format", "json"], {"GITHUB_ACTIONS": "true"}, False),
        (["--format=text"], {"NETSWEEP_FORMAT": "github"}, False),
        ([], {"GITHUB_ACTIONS": "true", "NETSWEEP_FORMAT": "json"}, False),
    ],
)
def test_wrong_usage_is_an_annotation_too(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    told: list[str],
    variables: dict[str, str],
    annotated: bool,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GITHUB_OUTPUT", str(tmp_path / "output"))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary"))
    assert run([arguments[0], *told, *arguments[1:]]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("netsweep: ")
    assert said.err.count("\n") == 1
    if annotated:
        assert said.out == f"::error title=netsweep::{said.err.removeprefix('netsweep: ')}"
        assert (tmp_path / "output").read_text().endswith("status=2\n")
        assert "### netsweep" in (tmp_path / "summary").read_text()
    else:
        assert said.out == ""
        assert not list(tmp_path.iterdir())


def test_wrong_usage_that_cannot_be_annotated_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("GITHUB_OUTPUT", str(tmp_path))
    assert run(["sweep", "--nosuch", "--format", "github"]) == 2
    assert f"netsweep: step output '{tmp_path}' is a directory: refused" in capsys.readouterr().err


def test_only_list_with_exit_code_answers_with_3(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    jobs.does = lambda _: listed([finding()])
    assert (run(["list"]), run(["list", "--exit-code"]), run(["sweep", "--dry-run"])) == (0, 3, 0)
    jobs.does = lambda _: listed([])
    assert run(["list", "--exit-code"]) == 0
    error = BusyError("no")
    error.report = listed([finding()])
    jobs.does = raises(error)
    assert run(["list", "--exit-code"]) == 75
    assert "Found 1 orphaned rule" in capsys.readouterr().out


def test_a_signal_is_not_a_failure_that_best_effort_hides(jobs: Jobs) -> None:
    jobs.does = raises(SystemExit(143))
    with pytest.raises(SystemExit):
        run(["sweep", "--best-effort"])


# Who gets tables, and in colour; what -q leaves out.

PLAIN, TABLES, COLOURED = "plain", "tables", "coloured"


def looks(out: str) -> str:
    return COLOURED if "\x1b[" in out else TABLES if "orphan: 1 rule" in out else PLAIN


@pytest.mark.parametrize(
    ("terminal", "arguments", "environment", "expected"),
    [
        (False, [], {}, PLAIN),
        (False, ["--color", "auto"], {}, PLAIN),
        (False, ["--color", "never"], {}, PLAIN),
        (False, ["--color", "always"], {}, COLOURED),
        (False, [], {"NETSWEEP_COLOR": "always"}, COLOURED),
        (False, [], {"FORCE_COLOR": "1"}, COLOURED),
        (False, [], {"FORCE_COLOR": ""}, PLAIN),
        (False, [], {"FORCE_COLOR": "1", "NO_COLOR": "1"}, PLAIN),
        (False, ["--color", "never"], {"FORCE_COLOR": "1"}, PLAIN),
        (False, ["--color", "always"], {"NO_COLOR": "1"}, COLOURED),
        (True, [], {}, COLOURED),
        (True, ["--color", "auto"], {}, COLOURED),
        (True, ["--color", "never"], {}, TABLES),
        (True, ["--color", "never"], {"FORCE_COLOR": "1"}, TABLES),
        (True, [], {"NETSWEEP_COLOR": "never"}, TABLES),
        (True, ["--color", "auto"], {"NETSWEEP_COLOR": "never"}, COLOURED),
        (True, [], {"NO_COLOR": "1"}, TABLES),
        (True, [], {"NO_COLOR": "0"}, TABLES),
        (True, [], {"NO_COLOR": ""}, COLOURED),
        (True, [], {"NO_COLOR": "1", "FORCE_COLOR": "1"}, TABLES),
        (True, ["--color", "always"], {"NO_COLOR": "1"}, COLOURED),
        (True, [], {"TERM": "dumb"}, TABLES),
        (True, [], {"TERM": "dumb", "FORCE_COLOR": "1"}, COLOURED),
        (True, ["--color", "always"], {"TERM": "dumb"}, COLOURED),
    ],
)
def test_tables_and_colours(
    jobs: Jobs,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    terminal: bool,
    arguments: list[str],
    environment: dict[str, str],
    expected: str,
) -> None:
    jobs.does = lambda _: listed([finding()])
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for command in (["list"], ["sweep"], ["sweep", "--dry-run"], ["teardown", "hm1"], ["restore", "journal"]):
        assert run([*command, *arguments]) == 0
        out = capsys.readouterr().out
        assert looks(out) == expected
        for form in ("json", "github"):
            assert run([*command, *arguments, "--format", form]) == 0
            assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("terminal", [False, True])
def test_quiet_prints_nothing_on_success_and_keeps_warnings_and_the_status(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    report = listed([finding()])
    report.warnings = ["there is no chain filter/X"]
    jobs.does = lambda _: report
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    for quiet in ("-q", "--quiet", "-vq"):
        for command, status in ((["list", "--exit-code"], 3), (["sweep"], 0), (["teardown", "hm1"], 0)):
            assert run([*command, quiet]) == status
            said = capsys.readouterr()
            assert (said.out, said.err) == ("", "netsweep: warning: there is no chain filter/X\n")
    monkeypatch.setenv("NETSWEEP_QUIET", "1")
    assert run(["restore", "journal"]) == 0
    assert capsys.readouterr().out == ""


def test_quiet_does_not_hide_a_failure_nor_what_was_deleted_before_it(
    jobs: Jobs, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs.does = raises(BusyError("no"))
    assert run(["sweep", "-q"]) == 75
    assert capsys.readouterr() == ("", "netsweep: no\n")
    error = NetsweepError("no space")
    error.report = swept([finding()])
    error.report.errors = ["no space"]
    jobs.does = raises(error)
    assert run(["sweep", "-q"]) == 1
    said = capsys.readouterr()
    assert said.err == "netsweep: no space\n"
    assert "deleted 1 rule" in said.out


@pytest.mark.parametrize("form", ["json", "github"])
def test_quiet_is_about_text(jobs: Jobs, capsys: pytest.CaptureFixture[str], form: str) -> None:
    jobs.does = lambda _: listed([finding()])
    assert run(["list", "--format", form, "-q"]) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("color", ["yes", "", "ALWAYS "])
def test_another_color_is_wrong_usage(jobs: Jobs, capsys: pytest.CaptureFixture[str], color: str) -> None:
    assert run(["list", "--color", color]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert jobs.calls == []
