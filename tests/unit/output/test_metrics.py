from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from netsweep.cli import run
from netsweep.errors import BusyError, NetsweepError, UsageError
from netsweep.output.metrics import write_metrics
from netsweep.report import LockTimes, Report
from tests.unit.cli.jobs import Jobs, jobs, raises
from tests.unit.output.reports import bridge, finding, listed, swept

__all__ = ["jobs"]

LABELS = {"command": "sweep", "profile": "hypeman"}
LAST_SUCCESS = "netsweep_last_success_timestamp_seconds"
OF_A_RUN = {"netsweep_exit_status", "netsweep_last_run_timestamp_seconds", LAST_SUCCESS}

Samples = dict[tuple[str, ...], float]
"""Values by the name of the metric and those labels that not every metric has."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "netsweep.prom"


def read(path: Path, labels: dict[str, str] = LABELS) -> Samples:
    """The samples of a metrics file, each of which has to have ``labels``."""
    samples: Samples = {}
    for family in text_string_to_metric_families(path.read_text("utf-8")):
        assert family.type == "gauge"
        for sample in family.samples:
            assert {name: sample.labels.pop(name) for name in labels} == labels
            key = (sample.name, *sample.labels.values())
            assert key not in samples
            samples[key] = sample.value
    return samples


def written(path: Path, report: Report | None, status: int = 0) -> Samples:
    write_metrics(str(path), report, LABELS, status)
    return read(path)


def names(samples: Samples) -> set[str]:
    return {key[0] for key in samples}


def test_a_sweep_says_what_it_found_and_did(path: Path) -> None:
    report = swept([finding(), finding("hm2", 2)])
    report.xtables_lock = LockTimes("/run/xtables.lock", 1500, 2.5, 2.5)
    report.bridges = [bridge(), bridge("hm2", deleted=True)]
    report.bridges_scanned, report.bridges_live = 9, 3
    before = time.time()
    samples = written(path, report)
    last_run, last_success = samples.pop(("netsweep_last_run_timestamp_seconds",)), samples.pop((LAST_SUCCESS,))
    assert before <= last_run == last_success <= time.time()
    assert samples == {
        ("netsweep_rules",): 1203,
        ("netsweep_orphaned_rules",): 2,
        ("netsweep_deleted_rules",): 2,
        ("netsweep_bridges", "leaked"): 2,
        ("netsweep_bridges", "live"): 3,
        ("netsweep_deleted_bridges",): 1,
        ("netsweep_lock_wait_seconds", "subnet"): pytest.approx(0.00012345),
        ("netsweep_lock_wait_seconds", "xtables"): 1.5,
        ("netsweep_lock_hold_seconds", "subnet"): pytest.approx(0.00987654),
        ("netsweep_lock_hold_seconds", "xtables"): 0.0025,
        ("netsweep_duration_seconds",): pytest.approx(2.54054),
        ("netsweep_exit_status",): 0,
    }


def test_names_and_help_keep_to_the_conventions(path: Path) -> None:
    """Those that promtool checks, and the units that this has: seconds, and numbers of things."""
    report = swept([finding()])
    report.bridges_scanned = report.bridges_live = 1
    written(path, report)
    text = path.read_text("ascii")
    for family in text_string_to_metric_families(text):
        assert re.fullmatch(r"netsweep(_[a-z]+)+", family.name)
        assert not family.name.endswith(("_total", "_count", "_sum", "_bucket", "_info"))
        assert not re.search(r"milli|_ms\b|minute|gauge", family.name)
        assert re.fullmatch(r"[A-Z][^\n]*\.", family.documentation)
        # A value of its own for each sample: HELP, TYPE and samples stand together, in this order.
        block = rf"# HELP {family.name} .*\n# TYPE {family.name} gauge\n(?:{family.name}\{{.*\}} \S+\n)+"
        assert len(re.findall(block, text)) == 1
    assert text.endswith("\n")
    assert "python_" not in text
    assert "process_" not in text


def test_nothing_to_do_is_zero_and_bridges_that_were_not_looked_at_are_not(path: Path) -> None:
    samples = written(path, Report("sweep"))
    counted = ("rules", "orphaned_rules", "deleted_rules", "duration_seconds", "exit_status")
    zero: set[tuple[str, ...]] = {(f"netsweep_{name}",) for name in counted}
    zero |= {(f"netsweep_lock_{kind}_seconds", lock) for kind in ("wait", "hold") for lock in ("subnet", "xtables")}
    assert {key for key, value in samples.items() if value == 0} == zero
    assert not {"netsweep_bridges", "netsweep_deleted_bridges"} & names(samples)


def test_a_failure_is_no_all_clear(path: Path) -> None:
    """What a run that failed did not find out is not there, rather than 0."""
    ended_early = written(path, Report("sweep", errors=["no"], duration_ms=5000), 75)
    assert ended_early[("netsweep_exit_status",)] == 75
    assert names(ended_early) == OF_A_RUN | {"netsweep_deleted_rules", "netsweep_duration_seconds"}
    half_done = swept([finding(), finding("hm2", 2)])
    half_done.backends[0].deleted, half_done.errors = 1, ["no"]
    samples = written(path, half_done, 1)
    assert (samples[("netsweep_orphaned_rules",)], samples[("netsweep_deleted_rules",)]) == (2, 1)
    assert ("netsweep_lock_wait_seconds", "subnet") in samples
    assert ("netsweep_lock_wait_seconds", "xtables") not in samples
    assert names(written(path, None, 2)) == OF_A_RUN


def test_the_last_success_outlives_failures(path: Path) -> None:
    assert written(path, None, 1)[(LAST_SUCCESS,)] == 0
    succeeded = written(path, listed([]))[(LAST_SUCCESS,)]
    for status in (1, 69, 75, 77, 143):
        samples = written(path, Report("sweep", errors=["no"]), status)
        assert samples[(LAST_SUCCESS,)] == succeeded
        assert samples[("netsweep_last_run_timestamp_seconds",)] > succeeded
    # That there are orphans is an answer.
    assert written(path, listed([finding()]), 3)[(LAST_SUCCESS,)] > succeeded


HOSTILE = {
    "empty": b"",
    "not text": bytes(range(256)) * 100,
    "no number": f"{LAST_SUCCESS} soon\n".encode(),
    "nothing": f"{LAST_SUCCESS}{{}}".encode(),
    "not a number": f"{LAST_SUCCESS} NaN\n".encode(),
    "for ever": f"{LAST_SUCCESS} +Inf\n".encode(),
    "in the future": f"{LAST_SUCCESS} 9999999999\n".encode(),
    "before time": f"{LAST_SUCCESS} -1\n".encode(),
    "of another name": f"{LAST_SUCCESS}_x 5\nx_{LAST_SUCCESS} 5\n# {LAST_SUCCESS} 5\n".encode(),
    "a long number": f"{LAST_SUCCESS} {'9' * 60000}\n".encode(),
    "one long line": b"x" * 1_000_000,
    "too far behind": b"x\n" * 100_000 + f"{LAST_SUCCESS} 5\n".encode(),
    "a surrogate": f"{LAST_SUCCESS} \udcff5\n".encode("utf-8", "surrogatepass"),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_an_old_file_is_trusted_for_no_more_than_a_time_that_was(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    samples = written(path, None, 1)
    assert samples[(LAST_SUCCESS,)] == 0
    assert names(samples) == OF_A_RUN


@pytest.mark.parametrize("line", [f"{LAST_SUCCESS} 5", f'{LAST_SUCCESS}{{a="}} 7"}} 5.0', f"{LAST_SUCCESS}{{}} 5e0"])
def test_a_last_success_with_any_labels_counts(path: Path, line: str) -> None:
    path.write_bytes(b"\xff garbage\n" + line.encode() + b"\n")
    assert written(path, None, 1)[(LAST_SUCCESS,)] == 5


def test_labels_may_hold_anything(path: Path) -> None:
    labels = {"command": "list", "profile": './a"b\\c\nd\udcff\N{SNOWMAN}.toml'}
    write_metrics(str(path), Report("list"), labels, 0)
    assert read(path, {"command": "list", "profile": './a"b\\\\c\\nd\\xff\\u2603.toml'})


def test_anybody_may_read_it_whatever_the_umask(path: Path) -> None:
    before = os.umask(0o077)
    try:
        written(path, None)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(path.parent.iterdir()) == [path]


def links(path: Path) -> Iterator[str]:
    """Put what is no regular file at ``path``, one after the other."""
    path.symlink_to(path.parent / "other")
    yield "a link"
    path.unlink()
    path.mkdir()
    yield "a directory"
    path.rmdir()
    os.mkfifo(path)
    yield "a FIFO"
    path.unlink()
    if os.geteuid() == 0:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        yield "a device"


def test_only_a_regular_file_is_replaced(path: Path) -> None:
    (path.parent / "other").write_text("precious")
    for kind in links(path):
        before = path.lstat()
        for status in (0, 1):
            with pytest.raises(NetsweepError, match=f"is {kind}: refused"):
                write_metrics(str(path), None, LABELS, status)
        assert os.path.samestat(before, path.lstat())
        assert len(list(path.parent.iterdir())) == 2
    assert (path.parent / "other").read_text() == "precious"


def test_nothing_is_left_where_it_cannot_be_put_in_place(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(*_: object) -> None:
        raise SystemExit(143)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(SystemExit):
        write_metrics(str(path), None, LABELS, 0)
    assert list(path.parent.iterdir()) == []


def test_no_file_of_prometheus_own_is_written(tmp_path: Path) -> None:
    """As Gauge writes them where the environment says so."""
    script = "import sys; from netsweep.output.metrics import write_metrics; write_metrics(sys.argv[1], None, {}, 0)"
    directory = tmp_path / "multiprocess"
    directory.mkdir()
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(directory), "prometheus_multiproc_dir": str(directory)}
    command = [sys.executable, "-c", script, str(tmp_path / "x.prom")]
    subprocess.run(command, check=True, env=environment)
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("command", ["list", "sweep"])
def test_the_option_writes_them_for_the_command_and_the_profile(
    jobs: Jobs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, path: Path, command: str
) -> None:
    jobs.does = lambda _: listed([finding()])
    assert run([command, "--metrics-file", str(path), "--profile", "docker"]) == 0
    assert read(path, {"command": command, "profile": "docker"})[("netsweep_orphaned_rules",)] == 1
    monkeypatch.setenv("NETSWEEP_METRICS_FILE", str(path))
    assert run([command]) == 0
    assert read(path, {"command": command, "profile": "hypeman"})
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "fails", "status", "shown"),
    [
        (["list", "--exit-code"], None, 3, 3),
        (["list"], None, 0, 0),
        (["sweep"], BusyError("no"), 75, 75),
        (["sweep", "--best-effort"], BusyError("no"), 75, 0),
        (["sweep", "--best-effort"], RuntimeError("odd"), 1, 0),
        (["list", "--exit-code"], BusyError("no"), 75, 75),
        (["sweep", "--best-effort"], UsageError("no"), 2, 2),
        (["sweep", "--prefix", "ham"], None, 2, 2),
    ],
    ids=str,
)
def test_the_exit_status_is_what_it_is_without_best_effort(
    jobs: Jobs, path: Path, arguments: list[str], fails: Exception | None, status: int, shown: int
) -> None:
    jobs.does = raises(fails) if fails else lambda _: listed([finding()])
    assert run([*arguments, "--metrics-file", str(path)]) == shown
    assert read(path, {**LABELS, "command": arguments[0]})[("netsweep_exit_status",)] == status


def test_they_are_written_where_stdout_takes_nothing(jobs: Jobs, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise OSError(28, "No space left on device")

    jobs.does = lambda _: swept([finding()])
    with monkeypatch.context() as patched:
        patched.setattr(sys.stdout, "writelines", fail)
        assert run(["sweep", "--metrics-file", str(path)]) == 1
    samples = read(path)
    assert (samples[("netsweep_exit_status",)], samples[("netsweep_deleted_rules",)]) == (1, 1)


def test_they_are_written_where_a_signal_ends_the_run(
    jobs: Jobs, capsys: pytest.CaptureFixture[str], path: Path
) -> None:
    jobs.does = raises(SystemExit(143))
    with pytest.raises(SystemExit):
        run(["sweep", "--metrics-file", str(path)])
    assert read(path)[("netsweep_exit_status",)] == 143
    path.unlink()
    path.mkdir()
    with pytest.raises(SystemExit):
        run(["sweep", "--metrics-file", str(path)])
    assert capsys.readouterr().err.endswith("is a directory: refused, it has to be a regular file\n")


@pytest.mark.parametrize("best_effort", [False, True])
def test_a_file_that_cannot_be_written_is_a_failure_that_says_what_was_done(
    jobs: Jobs, capsys: pytest.CaptureFixture[str], tmp_path: Path, best_effort: bool
) -> None:
    jobs.does = lambda _: swept([finding()])
    path = tmp_path / "missing" / "netsweep.prom"
    options = ["--best-effort"] if best_effort else []
    assert run(["sweep", "--metrics-file", str(path), *options]) == (0 if best_effort else 1)
    said = capsys.readouterr()
    assert said.err == (
        f"netsweep: cannot write metrics file '{path}': No such file or directory; the sweep deleted 1 rule\n"
    )
    assert "Deleted 1 orphaned rule" in said.out
    jobs.does = raises(BusyError("no"))
    assert run(["list", "--metrics-file", str(path)]) == 75
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_another_name_than_the_collector_reads_is_warned_of(
    jobs: Jobs, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["list", "--metrics-file", str(tmp_path / "metrics.txt")]) == 0
    said = capsys.readouterr().err
    assert said.startswith("netsweep: warning: metrics file ")
    assert said.endswith(" does not end in .prom: node_exporter does not read it\n")
    assert read(tmp_path / "metrics.txt", {"command": "list"})


@pytest.mark.parametrize("value", ["", " "])
def test_a_blank_path_is_wrong_usage(jobs: Jobs, capsys: pytest.CaptureFixture[str], value: str) -> None:
    assert run(["sweep", "--metrics-file", value]) == 2
    assert "--metrics-file" in capsys.readouterr().err
    assert jobs.calls == []


def test_prometheus_is_imported_only_where_it_is_asked_for() -> None:
    code = (
        "import sys; from netsweep.cli import run; import netsweep.jobs.sweep as job;"
        "from netsweep.report import Report;"
        "job.find_orphans = lambda *a, **k: Report('list'); run(['list', *sys.argv[1:]]);"
        "print('prometheus_client' in sys.modules, file=sys.stderr)"
    )
    for options, imported in (((), "False"), (("--metrics-file", "/dev/null/x.prom"), "True")):
        done = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True, check=True)
        assert done.stderr.splitlines()[-1] == imported


ALERTS = Path(__file__).parents[3] / "docs" / "alerts.yml"
DOCUMENT = ALERTS.with_name("metrics.md")
README = ALERTS.parents[1] / "README.md"


def all_metrics(path: Path) -> set[str]:
    report = Report("sweep")
    report.bridges_scanned = report.bridges_live = 0
    return names(written(path, report))


def test_the_alerts_are_about_metrics_that_are_written(path: Path) -> None:
    named = re.findall(r"\bnetsweep_\w+", ALERTS.read_text())
    assert len(named) >= 4
    assert set(named) <= all_metrics(path)
    (shown,) = re.findall(r"```yaml\n- alert: (\w+)\n  expr: (.*)\n", README.read_text())
    assert f"- alert: {shown[0]}\n" in ALERTS.read_text()
    assert f" expr: {shown[1]}\n" in ALERTS.read_text()


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed (Debian: prometheus)")
@pytest.mark.parametrize("what", [["check", "rules", "docs/alerts.yml"], ["test", "rules", "tests/alerts.yml"]])
def test_the_alerts_fire_where_they_have_to(what: list[str]) -> None:
    done = subprocess.run(["promtool", *what], capture_output=True, text=True, check=False, cwd=ALERTS.parents[1])
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed (Debian: prometheus)")
def test_promtool_finds_nothing_to_object_to(path: Path) -> None:
    all_metrics(path)
    done = subprocess.run(["promtool", "check", "metrics"], input=path.read_bytes(), capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_the_document_describes_every_metric(path: Path) -> None:
    described = re.findall(r"^\| `(netsweep_\w+)", DOCUMENT.read_text(), re.MULTILINE)
    assert sorted(described) == sorted(all_metrics(path))
