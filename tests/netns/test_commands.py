"""Every command as people and scripts run it: help, doctor, demo, and streams that are closed or full."""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netsweep import __version__
from tests.namespace import FLAVOURS, Namespace, complaint, flocked, leaks, new_namespace, unchanged, wait_until_queued
from tests.netns.test_contention import holder
from tests.netns.test_errors import NETSWEEP, NO_NET_ADMIN, NOBODY, as_nobody

HARMLESS = ["net_bind_service"]
"""A capability that netsweep has no use for."""

COMMANDS = ("list", "sweep", "restore", "doctor", "demo")

WHERE = {
    "prefix": "hm",
    "protect": "ha",
    "chain": "filter/FORWARD, nat/POSTROUTING",
    "backend": "auto",
    "lock-file": "$TMPDIR/hypeman-test-network.lock",
    "lease-file": "$TMPDIR/hypeman-test-network-leases.json",
    "lock-timeout": "30",
    "wait": "5",
}
OUTPUT = {"format": "text", "verbose": None}
OPTIONS: dict[str, dict[str, str | None]] = {
    "list": {**WHERE, **OUTPUT, "all": None, "exit-code": None},
    "sweep": {**WHERE, **OUTPUT, "dry-run": None, "journal": None, "best-effort": None},
    "restore": {"wait": "5", "format": "text"},
    "doctor": {**WHERE, "format": "text"},
    "demo": {},
}
"""The options of each command and their defaults."""


def netsweep(*arguments: str, columns: int = 80) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*NETSWEEP, *arguments],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": str(columns)},
        timeout=60,
    )


def said(*arguments: str, columns: int = 80) -> str:
    done = netsweep(*arguments, columns=columns)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_there_under_both_names_with_examples_and_fits_100_columns(command: str) -> None:
    arguments = [command] if command else []
    text = said(*arguments, "--help", columns=300)
    assert said(*arguments, "-h", columns=300) == text
    assert text.startswith(f"Usage: netsweep {command}".rstrip())
    assert re.search(rf"^  Examples?:\n(?: .*\n)*?    (?:sudo )?netsweep {command}", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 100
    assert text.isascii()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_describes_every_option_with_default_and_variable(command: str) -> None:
    text = said(command, "--help")
    described = dict(re.findall(r"^  (?:-\w, )?--([a-z-]+) *(.*(?:\n {10,}.*)*)", text, re.MULTILINE))
    assert described.keys() >= OPTIONS[command].keys()
    for name, default in OPTIONS[command].items():
        words = re.sub(r"\s+", " ", described[name])
        assert f"NETSWEEP_{name.replace('-', '_').upper()}" in words
        assert len(re.sub(r"\[.*?\]", "", words).split()) >= 4, f"--{name} is not described"
        if default is not None:
            # A path is broken at its dashes where a line ends.
            assert f"default: {default}" in words.replace("- ", "-")


def test_the_main_help_tells_commands_and_exit_statuses() -> None:
    text = said("--help")
    statuses = text.split("Exit status:")[1]
    for status in (0, 1, 2, 3, 69, 75, 77):
        assert re.search(rf"^ +{status}  +\S", statuses, re.MULTILINE)
    for command in COMMANDS:
        (line,) = re.findall(rf"^  {command} .*$", text.split("Commands:")[1], re.MULTILINE)
        assert not line.endswith("..."), "cut off"


def test_netsweep_alone_shows_the_help() -> None:
    done = netsweep()
    assert done.returncode == 2
    assert said("--help") in done.stdout + done.stderr


def test_the_program_and_the_module_are_the_same() -> None:
    program = Path(sysconfig.get_path("scripts")) / "netsweep"
    done = subprocess.run([program, "--version"], check=True, capture_output=True, text=True)
    assert done.stdout == said("--version") == f"netsweep, version {__version__}\n"


def test_a_wrong_command_is_told_where_to_look() -> None:
    line = complaint(netsweep("swep"), 2)
    assert "'swep'" in line
    assert "netsweep --help" in line
    assert "netsweep restore --help" in complaint(netsweep("restore"), 2)


def test_every_option_can_come_from_the_environment(ns: Namespace) -> None:
    ns.restore("nft", leaks(["vm1", "br-2", "br-2f", "hmdead"]))
    lease = {"leases": {"10.200.1.0/24": {"bridge_name": "br-2", "pid": os.getpid()}}}
    (ns.folder / "leases").write_text(json.dumps(lease))
    ns.environment.update(
        NETSWEEP_PREFIX="vm br-",
        NETSWEEP_PROTECT="br-2f",
        NETSWEEP_CHAIN="nat/POSTROUTING filter/INPUT",
        NETSWEEP_BACKEND="nft",
        NETSWEEP_LOCK_FILE=str(ns.folder / "lock"),
        NETSWEEP_LEASE_FILE=str(ns.folder / "leases"),
        NETSWEEP_LOCK_TIMEOUT="0",
        NETSWEEP_WAIT="1",
        NETSWEEP_ALL="1",
        NETSWEEP_EXIT_CODE="1",
        NETSWEEP_FORMAT="json",
        NETSWEEP_JOURNAL=str(ns.folder / "journal"),
    )
    looked = ns.netsweep("list")
    assert looked.returncode == 3
    report = json.loads(looked.stdout)
    assert [rule["bridge"] for rule in report["orphans"]] == ["vm1"]
    assert {rule["bridge"]: rule["verdict"] for rule in report["kept"]} == {"br-2": "leased", "br-2f": "protected"}
    with flocked(ns.folder / "lock"):
        assert str(ns.folder / "lock") in complaint(ns.netsweep("sweep"), 75)
        ns.environment["NETSWEEP_BEST_EFFORT"] = "1"
        assert ns.netsweep("sweep").returncode == 0
    (ns.folder / "journal").unlink(missing_ok=True)
    assert json.loads(ns.netsweep("sweep").stdout)["deleted"] == 1
    assert (ns.folder / "journal").exists()


def doctor(ns: Namespace, *options: str, status: int = 0) -> dict[str, Any]:
    """What doctor says as JSON, for programs."""
    done = ns.netsweep("doctor", "--format", "json", *options)
    assert done.returncode == status
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["status"] == status
    assert [f"netsweep: {error}" for error in found["errors"]] == done.stderr.splitlines()
    return found


def lines_of(ns: Namespace, *options: str) -> dict[str, str]:
    """What doctor says as text, by the first words of its lines; the last is the verdict."""
    done = ns.netsweep("doctor", *options)
    *lines, empty, verdict = done.stdout.splitlines()
    assert empty == ""
    pairs = [line.split(":", 1) for line in lines]
    return {**{name: text.strip() for name, text in pairs}, "verdict": verdict}


def test_doctor_finds_an_empty_host_fit_for_a_sweep(ns: Namespace) -> None:
    found = doctor(ns)
    assert found["command"] == "doctor"
    assert found["backends"] == [
        {"name": name, "family": "ipv4", "tables": [], "scanned": 0, "owned": 0} for name in FLAVOURS
    ]
    nobody = {"exists": False, "held_by": None, "holder": None, "waiting": 0}
    assert found["locks"] == {
        "subnet": {"path": str(ns.lock_file), **nobody},
        "xtables": {"path": str(ns.folder / "xtables.lock"), **nobody},
    }
    assert found["leases"] == {"path": str(ns.lease_file), "exists": False, "leases": 0, "running": 0}
    assert set(found["capabilities"].values()) == {True}
    assert found["versions"].keys() >= {"netsweep", "python", "kernel", "pyroute2", "python-iptables", "filelock"}
    assert None not in found["versions"].values()

    text = lines_of(ns)
    assert text["legacy"] == "x_tables: no tables here"
    assert text["nft"] == "nf_tables: no tables here"
    assert text["verdict"] == "A sweep could run here."
    assert str(ns.lock_file) in text["subnet lock"]
    assert str(ns.lease_file) in text["lease file"]
    assert __version__ in text["versions"]
    assert not list(ns.folder.iterdir())


def test_doctor_counts_what_each_firewall_holds(ns: Namespace) -> None:
    ns.restore("legacy", leaks(["hmdead", "hmbee"]))
    ns.restore("nft", leaks(["hmdead", "hmvpn0"]))
    found = doctor(ns)
    assert {b["name"]: (b["tables"], b["scanned"], b["owned"]) for b in found["backends"]} == {
        "legacy": (["filter", "nat"], 6, 6),
        "nft": (["filter", "nat"], 6, 3),
    }
    only = doctor(ns, "--backend", "nft", "--chain", "nat/POSTROUTING", "--prefix", "hmvpn")
    assert [(b["name"], b["scanned"], b["owned"]) for b in only["backends"]] == [("nft", 2, 1)]
    text = lines_of(ns)
    for flavour, owned in (("legacy", 6), ("nft", 3)):
        assert re.search(rf"filter, nat; 6 rules .* {owned} name bridges of ours", text[flavour])


def test_doctor_tells_which_firewall_iptables_writes_to(ns: Namespace, flavour: str) -> None:
    version, kind = ns.run("iptables", "-V").stdout.removeprefix("iptables v").rstrip(")\n").split(" (")
    own = {"nf_tables": "nft", "legacy": "legacy"}[kind]
    ns.restore(flavour, leaks(["hmdead"]))
    found = doctor(ns)["iptables"]
    assert found["path"].endswith("/iptables")
    assert (found["version"], found["flavour"], found["swept"]) == (version, kind, flavour == own)
    line = lines_of(ns)["iptables"]
    assert f"{version} ({kind})" in line
    assert ("a sweep covers its rules" in line) == (flavour == own)


def test_doctor_tells_who_holds_the_locks_and_waits_for_none(ns: Namespace) -> None:
    ns.restore("legacy", leaks(["hmdead"]))
    for name, path in (("subnet", ns.lock_file), ("xtables", ns.folder / "xtables.lock")):
        with holder(ns, path, "flock", str(path), "cat") as process:
            lock = doctor(ns)["locks"][name]
            assert (lock["held_by"], lock["holder"], lock["waiting"]) == (process.pid, "flock", 0)
            assert f"held by process {process.pid} (flock)" in lines_of(ns)[f"{name} lock"]
        assert doctor(ns)["locks"][name]["held_by"] is None


def test_doctor_counts_who_waits_for_a_lock(ns: Namespace) -> None:
    with flocked(ns.lock_file):
        jobs = [ns.start("flock", str(ns.lock_file), "true") for _ in range(2)]
        try:
            for job in jobs:
                wait_until_queued(job.pid, ns.lock_file)
            lock = doctor(ns)["locks"]["subnet"]
            assert (lock["held_by"], lock["waiting"]) == (os.getpid(), 2)
            assert ", 2 waiting" in lines_of(ns)["subnet lock"]
        finally:
            for job in jobs:
                job.kill()
                job.communicate()


def junk_leases(ns: Namespace) -> None:
    ns.lease_file.write_text("no leases")


def leases_in_a_folder(ns: Namespace) -> None:
    ns.lease_file.mkdir()


def lock_is_a_link(ns: Namespace) -> None:
    ns.lock_file.symlink_to(ns.folder / "other")


def no_folder_for_the_lock(ns: Namespace) -> None:
    ns.environment["NETSWEEP_LOCK_FILE"] = str(ns.folder / "nowhere" / "lock")


@pytest.mark.parametrize("spoil", [junk_leases, leases_in_a_folder, lock_is_a_link, no_folder_for_the_lock])
def test_doctor_ends_with_the_status_of_a_sweep(ns: Namespace, spoil: Any) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    spoil(ns)
    with unchanged(ns):
        line = complaint(ns.netsweep("sweep"), 1)
        assert doctor(ns, status=1)["errors"]
        assert lines_of(ns)["verdict"].startswith("A sweep would fail here with exit status 1: ")
    path = ns.lease_file if "lease" in spoil.__name__ else ns.environment.get("NETSWEEP_LOCK_FILE", str(ns.lock_file))
    assert str(path) in line
    assert str(path) in complaint(ns.netsweep("doctor"), 1)


def test_doctor_foresees_that_a_sweep_would_not_wait(ns: Namespace) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    with flocked(ns.lock_file):
        complaint(ns.netsweep("sweep", "--lock-timeout", "0"), 75)
        assert doctor(ns, "--lock-timeout", "0", status=75)["locks"]["subnet"]["held_by"] == os.getpid()
        assert doctor(ns)["errors"] == []


def test_doctor_tells_all_that_it_can_without_the_capability(ns: Namespace) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    done = ns.run(*NO_NET_ADMIN, *NETSWEEP, "doctor", check=False)
    assert "CAP_NET_ADMIN is missing" in complaint(done, 77)
    assert "CAP_NET_ADMIN no" in done.stdout
    assert "nf_tables: cannot be read" in done.stdout
    assert "A sweep would fail here with exit status 77: CAP_NET_ADMIN is missing" in done.stdout
    assert str(ns.lease_file) in done.stdout


def test_doctor_changes_nothing(ns: Namespace, flavour: str) -> None:
    ns.restore(flavour, leaks(["hmdead"]))
    ns.lease_file.write_text('{"leases": {}}')

    def files() -> dict[str, int]:
        return {path.name: path.stat().st_ctime_ns for path in ns.folder.iterdir()}

    with unchanged(ns):
        before = files()
        doctor(ns)
        assert files() == before


def test_doctor_creates_no_table_and_loads_none(ns: Namespace) -> None:
    doctor(ns)
    # Asking iptables-legacy would make the table.
    assert ns.run("cat", "/proc/net/ip_tables_names").stdout == ""
    assert ns.ruleset() == ""


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that any user can get at, as /tmp is."""
    with tempfile.TemporaryDirectory(prefix="netsweep-test-") as folder:
        os.chmod(folder, 0o1777)
        yield Path(folder)


def test_doctor_tells_a_user_what_is_missing(public_folder: Path) -> None:
    with new_namespace(public_folder) as ns:
        ns.restore("nft", leaks(["hmdead"]))
        done = as_nobody(ns, HARMLESS, "doctor")
    complaint(done, 77)
    assert "CAP_NET_ADMIN no, CAP_NET_RAW no, CAP_DAC_READ_SEARCH no" in done.stdout


BOTH_DONE = [
    "x_tables: 319 rules before, 19 after: the leaked ones are gone, all others stand as they did.",
    "nf_tables: 319 rules before, 19 after: the leaked ones are gone, all others stand as they did.",
]


def test_the_demo_shows_the_job_on_both_firewalls_and_leaves_the_host_alone(ns: Namespace) -> None:
    for flavour in FLAVOURS:
        ns.restore(flavour, leaks(["hmdead"]))
    ns.environment.update(NETSWEEP_PREFIX="zz", NETSWEEP_FORMAT="json", NETSWEEP_LOCK_FILE="/nowhere/lock")
    files = sorted(ns.folder.iterdir())
    links = ns.run("ip", "-o", "link").stdout
    # Its own folder of named namespaces, as others come and go.
    script = 'mount -t tmpfs none /run/netns && "$@" && ls -A /run/netns >&2'
    with unchanged(ns):
        done = ns.run("unshare", "--mount", "sh", "-c", script, "sh", *NETSWEEP, "demo")
    assert done.stderr == ""
    for command in ("list", "sweep", "list --all"):
        assert f"\n$ netsweep {command}\n" in done.stdout
    assert "\nFound 600 orphaned rules of 100 bridges" in done.stdout
    assert "\nDeleted 600 orphaned rules of 100 bridges" in done.stdout
    for verdict in ("live", "leased", "protected", "wildcard", "negated"):
        assert f"-- {verdict}: " in done.stdout
    assert done.stdout.splitlines()[-2:] == BOTH_DONE
    assert sorted(ns.folder.iterdir()) == files
    assert ns.run("ip", "-o", "link").stdout == links


def test_the_demo_needs_no_root_where_users_may_have_namespaces(public_folder: Path) -> None:
    user = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    may = subprocess.run([*user, "unshare", "--user", "--map-root-user", "--net", "true"], check=False)
    with new_namespace(public_folder) as ns:
        done = as_nobody(ns, HARMLESS, "demo")
    if may.returncode:
        assert "namespace" in complaint(done, 77)
    else:
        assert (done.returncode, done.stderr) == (0, "")
        assert "the leaked ones are gone, all others stand as they did." in done.stdout.splitlines()[-1]
    assert not list(public_folder.glob("netsweep-demo-*"))


def test_a_demo_that_is_stopped_stops_as_a_whole_and_cleans_up(ns: Namespace) -> None:
    with ns.start(*NETSWEEP, "demo") as process:
        assert process.stdout
        assert process.stderr
        # It has more to say than fits, so it cannot come to its end unread.
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        assert select.select([process.stdout], [], [], 60)[0]
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
        stdout, stderr = process.communicate(timeout=60)
    line = complaint(subprocess.CompletedProcess([], status, stdout, stderr), 128 + signal.SIGTERM)
    assert "SIGTERM" in line
    assert "others stand as they did" not in stdout
    assert not list(ns.folder.glob("netsweep-demo-*"))


def test_the_github_format_is_a_group_an_annotation_and_a_step_summary(ns: Namespace, flavour: str) -> None:
    ns.restore(flavour, leaks(["hmdead"]))
    summary = ns.folder / "summary"
    ns.environment["GITHUB_STEP_SUMMARY"] = str(summary)
    found = ns.netsweep("list", "--format", "github")
    swept = ns.netsweep("sweep", "--format", "github", "-v")
    clean = ns.netsweep("list", "--format", "github")
    for done, level, what in (
        (found, "warning", "Found 3 orphaned rules of 1 bridge"),
        (swept, "notice", "Deleted 3 orphaned rules of 1 bridge"),
        (clean, "notice", "Nothing to sweep"),
    ):
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        commands = [line for line in lines if line.startswith("::")]
        assert commands[:2] == ["::group::netsweep: details", "::endgroup::"]
        assert commands[2].startswith(f"::{level} title=netsweep::{what}")
        assert lines[-2:] == commands[1:]
    assert "hypeman-nat-hmdead" in swept.stdout
    assert summary.read_text().count("### netsweep\n") == 3
    assert f"| {flavour} | 3 | 3 | 3 |" in summary.read_text()


def test_an_error_is_an_annotation_too(ns: Namespace) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    junk_leases(ns)
    failed = ns.netsweep("sweep", "--format", "github")
    complaint(failed, 1)
    assert failed.stdout.splitlines()[-1].startswith("::error title=netsweep::cannot understand lease file")
    tolerated = ns.netsweep("sweep", "--format", "github", "--best-effort")
    complaint(tolerated, 0)
    assert tolerated.stdout.splitlines()[-1].startswith("::warning title=netsweep::cannot understand lease file")


def redirected(ns: Namespace, redirection: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run netsweep with a stream sent elsewhere by the shell."""
    return ns.run("sh", "-c", f'exec "$@" {redirection}', "sh", *NETSWEEP, *arguments, check=False)


EVERY_OUTPUT = [
    ["--version"],
    ["--help"],
    ["list"],
    ["list", "--format", "json"],
    ["doctor"],
    ["demo"],
]


@pytest.mark.parametrize("arguments", EVERY_OUTPUT, ids=" ".join)
@pytest.mark.parametrize("redirection", [">/dev/full", ">&-"])
def test_a_stdout_that_takes_nothing_is_one_clear_failure(
    ns: Namespace, arguments: list[str], redirection: str
) -> None:
    line = complaint(redirected(ns, redirection, *arguments), 1)
    assert "cannot write" in line
    assert "bug" not in line
    if redirection == ">/dev/full":
        assert "No space left on device" in line


@pytest.mark.parametrize("redirection", [">/dev/full", ">&-"])
def test_a_sweep_that_cannot_report_says_what_it_did(ns: Namespace, flavour: str, redirection: str) -> None:
    ns.restore(flavour, leaks(["hmdead"]))
    line = complaint(redirected(ns, redirection, "sweep"), 1)
    assert "cannot write" in line
    assert "3 rules were deleted" in line
    assert "hmdead" not in "".join(ns.snapshot())


@pytest.mark.parametrize("arguments", EVERY_OUTPUT, ids=" ".join)
def test_a_reader_that_has_gone_is_no_bug(ns: Namespace, arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            ns.command(*NETSWEEP, *arguments),
            check=False,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            env=ns.environment,
        )
    finally:
        os.close(writer)
    assert done.returncode in (1, 128 + signal.SIGPIPE)
    assert "Traceback" not in done.stderr
    assert "bug" not in done.stderr
    assert done.stderr.count("\n") <= 1


def test_the_head_of_a_long_list_is_had_without_noise(ns: Namespace) -> None:
    ns.restore("nft", leaks(f"hm{number:x}" for number in range(300)))
    script = '{ "$@"; echo "status $?" >&2; } | head -1'
    done = ns.run("sh", "-c", script, "sh", *NETSWEEP, "list", "-v")
    assert done.stdout.split() == ["BRIDGE", "BACKEND", "TABLE/CHAIN", "RULES"]
    assert "Traceback" not in done.stderr
    *complaints, status = done.stderr.splitlines()
    assert status in ("status 1", "status 141")
    assert len(complaints) <= 1


@pytest.mark.parametrize("arguments", [["list"], ["sweep"], ["doctor"], ["demo"]], ids=" ".join)
def test_a_closed_stdin_is_nothing_to_complain_of(ns: Namespace, arguments: list[str]) -> None:
    for flavour in FLAVOURS:
        ns.restore(flavour, leaks(["hmdead"]))
    done = redirected(ns, "<&-", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_where_nobody_hears_a_complaint_report_and_status_stay_the_same(ns: Namespace, redirection: str) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    with flocked(ns.lock_file), unchanged(ns):
        busy = redirected(ns, redirection, "sweep", "--lock-timeout", "0", "--format", "json")
        tolerated = redirected(ns, redirection, "sweep", "--lock-timeout", "0", "--best-effort")
    assert busy.returncode == 75
    assert len(json.loads(busy.stdout)["errors"]) == 1
    assert tolerated.returncode == 0
    # A warning that is not heard must not keep the report back.
    warned = redirected(ns, redirection, "sweep", "--chain", "nat/POSTROUTING", "--chain", "nat/TYPO")
    assert warned.returncode == 0
    assert warned.stdout.splitlines()[-1].startswith("Deleted 1 orphaned rule of 1 bridge")
    assert "warning" not in warned.stdout


def test_with_every_stream_closed_nothing_ends_up_in_the_files(ns: Namespace) -> None:
    """The first files that are opened get the numbers of the streams."""
    for flavour in FLAVOURS:
        ns.restore(flavour, leaks(["hmdead"]))
    before = [line.split("]", 1)[-1] for flavour in FLAVOURS for line in ns.save(flavour)]
    journal = ns.folder / "journal"
    done = redirected(ns, "<&- >&- 2>&-", "sweep", "--journal", str(journal))
    assert done.returncode == 1
    assert "hmdead" not in "".join(ns.snapshot())
    assert ns.lock_file.read_bytes() == b""
    assert ns.netsweep("restore", str(journal)).returncode == 0
    assert [line.split("]", 1)[-1] for flavour in FLAVOURS for line in ns.save(flavour)] == before


def test_python_has_nothing_to_warn_of(ns: Namespace) -> None:
    """In development mode it tells what is never closed, and what is used though deprecated."""
    for flavour in FLAVOURS:
        ns.restore(flavour, leaks(["hmdead"]))
    done = ns.run(sys.executable, "-X", "dev", "-m", "netsweep", "sweep", "--format", "json")
    assert done.stderr == ""
    assert json.loads(done.stdout)["deleted"] == 6
