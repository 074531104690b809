"""The commands as people and scripts run them: doctor, demo, the GitHub format, and streams that are closed or full.

Help, options and their variables are in tests/unit/cli.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from typing import Any

import pytest

from netsweep import __version__
from tests.namespace import (
    FLAVOURS,
    NETSWEEP,
    NO_NET_ADMIN,
    NOBODY,
    Namespace,
    as_nobody,
    complaint,
    flocked,
    holder,
    leaks,
    report_of,
    unchanged,
    wait_until_queued,
    without_library,
    write_leases,
)

HARMLESS = ["net_bind_service"]
"""A capability that netsweep has no use for."""


def doctor(ns: Namespace, *options: str, status: int = 0) -> dict[str, Any]:
    """What doctor says as JSON, for programs."""
    done = ns.netsweep("doctor", "--format", "json", *options)
    assert done.returncode == status
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["status"] == status
    assert [f"netsweep: {error}" for error in found["errors"]] == done.stderr.splitlines()
    return found


def lines_of(ns: Namespace, *options: str) -> dict[str, str]:
    """What doctor says as text, by the first words of its lines, those of settings apart, and the verdict."""
    shown, verdict = ns.netsweep("doctor", *options).stdout.split("\n\n")
    joined = re.sub(r"\n {15}(?![a-z-]+: )", " ", re.sub(r"\n {17}", " ", shown))
    pairs = [line.removeprefix("settings:").strip().split(":", 1) for line in joined.splitlines()]
    return {**{name: text.strip() for name, text in pairs}, "verdict": " ".join(verdict.split())}


def test_doctor_finds_an_empty_host_fit_for_a_sweep(ns: Namespace) -> None:
    found = doctor(ns)
    assert found["command"] == "doctor"
    empty = {"family": "ipv4", "tables": [], "other_tables": [], "scanned": 0, "owned": 0}
    assert found["backends"] == [{"name": name, **empty} for name in FLAVOURS]
    assert (found["orphans"], found["waits_for"], found["warnings"]) == (0, [], [])
    nobody = {"exists": False, "held": None, "held_by": None, "holder": None, "waiting": 0, "error": None}
    assert found["locks"] == {
        "subnet": {"path": str(ns.lock_file), **nobody},
        "xtables": {"path": str(ns.xtables_lock), **nobody},
    }
    assert found["leases"] == {"path": str(ns.lease_file), "exists": False, "leases": 0, "running": 0}
    assert set(found["capabilities"].values()) == {True}
    assert found["versions"].keys() >= {"netsweep", "python", "kernel", "pyroute2", "python-iptables", "filelock"}
    assert None not in found["versions"].values()

    text = lines_of(ns)
    assert text["legacy"] == "x_tables: no ipv4 tables here"
    assert text["nft"] == "nf_tables: no ipv4 tables here"
    assert text["verdict"] == "A sweep could run here. It would find nothing to delete."
    assert text["subnet lock"] == f"{ns.lock_file}: does not exist yet"
    assert text["lease file"] == f"{ns.lease_file}: does not exist: no leases"
    assert __version__ in text["versions"]
    assert not list(ns.directory.iterdir())


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
        assert text[flavour].endswith(
            f": ipv4 tables filter, nat; 6 rules in the chains looked at, {owned} name bridges of ours"
        )
    assert text["verdict"] == "A sweep could run here. It would delete 9 rules."


def test_doctor_shows_the_settings_that_are_in_effect(ns: Namespace) -> None:
    ns.environment.update(NETSWEEP_PREFIX="vm br-", NETSWEEP_WAIT="1.5")
    options = ("--chain", "filter/INPUT", "--protect", "kube", "--lock-file", "/nowhere", "--lock-timeout", "0")
    found = doctor(ns, *options)
    assert found["settings"] == {
        "profile": "hypeman",
        "names": [],
        "prefixes": ["vm", "br-"],
        "protected": ["kube"],
        "chains": ["filter/INPUT"],
        "family": "all",
        "include_negated": False,
        "settle": 0,
        "backend": "auto",
        "lock_file": "/nowhere",
        "lease_file": str(ns.lease_file),
        "lock_timeout": 0,
        "wait": 1.5,
        "max_deletes": None,
        "bridges": False,
        "min_age": 3600,
        "journal": None,
        "xtables_lock_file": str(ns.xtables_lock),
        "subnets": "10.200.0.0-10.249.255.255",
        "dry_run": False,
        "best_effort": False,
    }
    shown = {
        "prefix": ("vm, br-", "NETSWEEP_PREFIX"),
        "protect": ("kube", "--protect"),
        "chain": ("filter/INPUT", "--chain"),
        "family": ("all", "default"),
        "settle": ("0 s", "profile hypeman"),
        "lock-file": ("/nowhere", "--lock-file"),
        "lease-file": (str(ns.lease_file), "profile hypeman and TMPDIR"),
        "lock-timeout": ("0 s", "--lock-timeout"),
        "wait": ("1.5 s", "NETSWEEP_WAIT"),
        "xtables-lock-file": (str(ns.xtables_lock), "XTABLES_LOCKFILE"),
    }
    lines = lines_of(ns, *options)
    assert {name: lines[name] for name in shown} == {name: f"{value} ({of})" for name, (value, of) in shown.items()}
    assert found["sources"].keys() == found["settings"].keys()


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
    for name, path, seconds in (("subnet", ns.lock_file, 30), ("xtables", ns.xtables_lock, 5)):
        with holder(ns, path, "flock", str(path), "cat") as process:
            found = doctor(ns)
            lock = found["locks"][name]
            # cat has inherited the lock; flock, which took it, comes first.
            command = f"process {process.pid} ({lock['holder']})"
            assert (lock["held_by"], lock["holder"].split()[0], lock["waiting"]) == (process.pid, "flock", 0)
            assert found["waits_for"] == [name]
            text = lines_of(ns)
            assert text[f"{name} lock"] == f"{path}: held by {command}"
            assert text["verdict"] == (
                f"A sweep could run here, once {command} releases the {name} lock. "
                f"It would delete 3 rules. It would wait for the {name} lock for {seconds} s, and then fail."
            )
        assert doctor(ns)["locks"][name]["held_by"] is None
        assert lines_of(ns)[f"{name} lock"] == f"{path}: free, as far as /proc shows"


def test_doctor_names_the_child_that_kept_a_lock_and_not_the_process_that_took_it(ns: Namespace) -> None:
    """The kernel's own list of locks goes on naming the one that took it."""
    ns.restore("nft", leaks(["hmdead"]))
    script = 'exec 3<&0 9>>"$1" && flock 9 && { cat <&3 >/dev/null & }'
    with holder(ns, ns.lock_file, "sh", "-c", script, "sh", str(ns.lock_file)) as taker:
        taker.wait(30)
        lock = doctor(ns)["locks"]["subnet"]
        assert lock["holder"] == "cat"
        assert lock["held_by"] != taker.pid
        line = complaint(ns.netsweep("sweep", "--lock-timeout", "0"), 75)
        assert f"process {lock['held_by']} (cat)" in line


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


def leases_in_a_directory(ns: Namespace) -> None:
    ns.lease_file.mkdir()


def lock_is_a_link(ns: Namespace) -> None:
    ns.lock_file.symlink_to(ns.directory / "other")


def no_directory_for_the_lock(ns: Namespace) -> None:
    ns.environment["NETSWEEP_LOCK_FILE"] = str(ns.directory / "nowhere" / "lock")


@pytest.mark.parametrize("spoil", [junk_leases, leases_in_a_directory, lock_is_a_link, no_directory_for_the_lock])
def test_doctor_ends_with_the_status_of_a_sweep(ns: Namespace, spoil: Any) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    spoil(ns)
    with unchanged(ns):
        line = complaint(ns.netsweep("sweep"), 1)
        (error,) = doctor(ns, status=1)["errors"]
        assert lines_of(ns)["verdict"] == f"A sweep would fail here with exit status 1: {error}"
    path = ns.lease_file if "lease" in spoil.__name__ else ns.environment.get("NETSWEEP_LOCK_FILE", str(ns.lock_file))
    assert str(path) in line
    assert str(path) in error


@pytest.mark.parametrize(("lock", "option"), [("subnet", "--lock-timeout"), ("xtables", "--wait")])
def test_doctor_foresees_that_a_sweep_would_not_wait(ns: Namespace, lock: str, option: str) -> None:
    """That depends on the lock, the option, and on whether there is anything to take the lock for."""
    path = {"subnet": ns.lock_file, "xtables": ns.xtables_lock}[lock]
    with flocked(path):
        warned = doctor(ns, option, "0")
        assert warned["locks"][lock]["held_by"] == os.getpid()
        assert len(warned["warnings"]) == 1
        assert ns.netsweep("sweep", option, "0").returncode == 0
        # Only x_tables has the xtables lock.
        ns.restore("nft", leaks(["hmdead"]))
        status = ns.netsweep("sweep", option, "0").returncode
        assert status == (75 if lock == "subnet" else 0)
        ns.restore("nft", leaks(["hmdead"]))
        doctor(ns, option, "0", status=status)
    ns.restore("legacy", leaks(["hmdead"]))
    with flocked(path), unchanged(ns):
        line = complaint(ns.netsweep("sweep", option, "0"), 75)
        (error,) = doctor(ns, option, "0", status=75)["errors"]
        assert f"{lock} lock {str(path)!a}" in line
        assert f"{lock} lock {str(path)!a}" in error
        assert lines_of(ns, option, "0")["verdict"] == f"A sweep would fail here with exit status 75: {error}"
        assert doctor(ns)["errors"] == []


@pytest.mark.parametrize("library", ["libip4tc", "libxtables"])
def test_doctor_foresees_that_a_library_is_missing(ns: Namespace, library: str) -> None:
    command = (*without_library(ns, library), *NETSWEEP)
    ns.restore("nft", leaks(["hmdead"]))
    assert json.loads(ns.run(*command, "doctor", "--format", "json").stdout)["status"] == 0
    ns.restore("legacy", leaks(["hmdead"]))
    with unchanged(ns):
        line = complaint(ns.run(*command, "sweep", check=False), 69)
        examined = ns.run(*command, "doctor", check=False)
        assert complaint(examined, 69) == line
        left_out = report_of(ns.run(*command, "doctor", "--backend", "nft", "--format", "json"))
    assert "legacy:        x_tables: could not be read\n" in examined.stdout
    assert "nft:           nf_tables: ipv4 tables filter, nat; " in examined.stdout
    verdict = f"A sweep would fail here with exit status 69: {line.removeprefix('netsweep: ')}"
    assert " ".join(examined.stdout.split("\n\n")[1].split()) == verdict
    assert (left_out["status"], left_out["orphans"]) == (0, 3)


def test_doctor_counts_leases_and_those_of_running_processes(ns: Namespace) -> None:
    write_leases(ns, {"hm1": os.getpid(), "hm2": 2**22})
    assert doctor(ns)["leases"] == {"path": str(ns.lease_file), "exists": True, "leases": 2, "running": 1}
    assert lines_of(ns)["lease file"] == f"{ns.lease_file}: 2 leases, 1 of running processes"


def test_doctor_tells_all_that_it_can_without_the_capability(ns: Namespace) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    done = ns.run(*NO_NET_ADMIN, *NETSWEEP, "doctor", check=False)
    assert "CAP_NET_ADMIN is missing" in complaint(done, 77)
    assert "CAP_NET_ADMIN no, CAP_NET_RAW yes" in done.stdout
    assert "nf_tables: could not be read" in done.stdout
    assert "A sweep would fail here with exit status 77: CAP_NET_ADMIN is missing" in done.stdout
    assert str(ns.lease_file) in done.stdout


def test_doctor_prints_a_block_for_a_bug_report(ns: Namespace, flavour: str) -> None:
    ns.restore(flavour, leaks(["hmdead"]))
    write_leases(ns, {"hm1": os.getpid()})
    (ns.directory / "build.example").mkdir()
    command = ("unshare", "--uts", "sh", "-c", 'hostname build.example && exec "$@"', "sh", *NETSWEEP, "doctor")
    lock = str(ns.directory / "build.example" / "lock")
    with flocked(ns.lock_file):
        options = ("--lock-timeout", "0", "--wait", "2")
        done = ns.run(*command, *options, "--report")
        lines = lines_of(ns, *options)
    assert done.stderr == ""
    assert "Exit status of doctor: 75\n```\n\n</details>\n" in done.stdout
    assert f"{flavour}:" in done.stdout
    for line in ("wait: 2 s (--wait)", f"xtables lock:  {ns.xtables_lock}", lines["libraries"].split(",")[0]):
        assert line in done.stdout
    renamed = ns.run(*command, "--lock-file", lock, "--report").stdout
    assert "HOST/lock" in renamed
    for private in ("build.example", "TestX", "hypeman-fwd-out", "10.200."):
        assert private not in done.stdout + renamed
    assert max(len(line) for line in renamed.splitlines() if str(ns.directory) not in line) <= 80
    assert "--report is text" in complaint(ns.netsweep("doctor", "--report", "--format", "json"), 2)
    ns.environment["NETSWEEP_FORMAT"] = "json"
    assert ns.netsweep("doctor", "--report").stdout.startswith("<!-- ")


@pytest.mark.parametrize(("columns", "most"), [(60, 60), (90, 90), (300, 100)])
def test_doctor_fits_the_terminal(ns: Namespace, columns: int, most: int) -> None:
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {name: value for name, value in ns.environment.items() if name not in ("COLUMNS", "LINES")}
    command = ns.command(*NETSWEEP, "doctor", "--lock-file", "/l", "--lease-file", "/l")
    environment["XTABLES_LOCKFILE"] = "/x"
    with subprocess.Popen(command, stdout=terminal, env=environment):
        os.close(terminal)
        said = b""
        with contextlib.suppress(OSError):  # the end
            while read := os.read(main, 1 << 16):
                said += read
    os.close(main)
    longest = max(map(len, said.decode().splitlines()))
    assert most - 15 < longest <= most


def test_doctor_changes_nothing(ns: Namespace, flavour: str) -> None:
    ns.restore(flavour, leaks(["hmdead"]))
    ns.lease_file.write_text('{"leases": {}}')

    def files() -> dict[str, int]:
        return {path.name: path.stat().st_ctime_ns for path in ns.directory.iterdir()}

    with unchanged(ns):
        before = files()
        doctor(ns)
        assert files() == before


def test_doctor_creates_no_table_and_loads_none(ns: Namespace) -> None:
    doctor(ns)
    # Asking iptables-legacy would make the table.
    assert ns.run("cat", "/proc/net/ip_tables_names", "/proc/net/ip6_tables_names").stdout == ""
    assert ns.ruleset() == ""


def test_doctor_tells_a_user_what_is_missing(public_ns: Namespace) -> None:
    public_ns.restore("nft", leaks(["hmdead"]))
    done = as_nobody(public_ns, HARMLESS, "doctor")
    complaint(done, 77)
    said = " ".join(done.stdout.split())
    assert "CAP_NET_ADMIN no, CAP_NET_RAW no, CAP_DAC_READ_SEARCH no" in said
    assert "not root" in said


BOTH_DONE = [
    "x_tables: 319 rules before, 19 after:",
    "  the leaked ones are gone, all others are unchanged.",
    "nf_tables: 319 rules before, 19 after:",
    "  the leaked ones are gone, all others are unchanged.",
]


def test_the_demo_shows_the_job_on_both_firewalls_and_leaves_the_host_alone(ns: Namespace) -> None:
    for flavour in FLAVOURS:
        ns.restore(flavour, leaks(["hmdead"]))
    ns.environment.update(NETSWEEP_PREFIX="zz", NETSWEEP_FORMAT="json", NETSWEEP_LOCK_FILE="/nowhere/lock")
    files = sorted(ns.directory.iterdir())
    links = ns.run("ip", "-o", "link").stdout
    # Its own directory of named namespaces, as others come and go.
    script = 'mount -t tmpfs none /run/netns && "$@" && ls -A /run/netns >&2'
    with unchanged(ns):
        done = ns.run("unshare", "--mount", "sh", "-c", script, "sh", *NETSWEEP, "demo")
    assert done.stderr == ""
    for command in ("list", "sweep", "list --all"):
        assert f"\n$ netsweep {command}\n" in done.stdout
    assert "\nFound 600 orphaned rules of 100 bridges" in done.stdout
    assert "\nDeleted 600 orphaned rules of 100 bridges" in done.stdout
    for verdict in ("live", "leased", "protected", "wildcard", "negated", "foreign"):
        assert f"-- {verdict}: " in done.stdout
    assert done.stdout.splitlines()[-4:] == BOTH_DONE
    assert sorted(ns.directory.iterdir()) == files
    assert ns.run("ip", "-o", "link").stdout == links


def test_the_demo_needs_no_root_where_users_may_have_namespaces(public_ns: Namespace) -> None:
    user = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    may = subprocess.run([*user, "unshare", "--user", "--map-root-user", "--net", "true"], check=False)
    done = as_nobody(public_ns, HARMLESS, "demo")
    if may.returncode:
        assert "namespace" in complaint(done, 77)
    else:
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[-1].endswith("the leaked ones are gone, all others are unchanged.")
    assert not list(public_ns.directory.glob("netsweep-demo-*"))


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
    assert "all others are unchanged" not in stdout
    assert not list(ns.directory.glob("netsweep-demo-*"))


def test_a_workflow_gets_a_group_an_annotation_outputs_and_a_step_summary(ns: Namespace, flavour: str) -> None:
    ns.restore(flavour, leaks(["hmdead"]))
    summary, outputs = ns.directory / "summary", ns.directory / "output"
    ns.environment |= {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary), "GITHUB_OUTPUT": str(outputs)}
    for arguments, level, what, written in (
        (["list", "--exit-code"], "warning", "Found 3 orphaned rules of 1 bridge", [0, 3, "false", 3]),
        (["sweep", "-v"], "notice", "Deleted 3 orphaned rules of 1 bridge", [3, 3, "true", 0]),
    ):
        done = ns.netsweep(*arguments)
        assert (done.returncode, done.stderr) == (written[-1], "")
        lines = done.stdout.splitlines()
        commands = [line for line in lines if line.startswith("::")]
        assert commands[:2] == ["::group::netsweep: details", "::endgroup::"]
        assert commands[2].startswith(f"::{level} title=netsweep::{what}")
        assert lines[-2:] == commands[1:]
        names = ("deleted", "orphans", "changed", "status")
        assert outputs.read_text() == "".join(f"{name}={value}\n" for name, value in zip(names, written, strict=True))
        outputs.unlink()
    assert "hypeman-nat-hmdead" in done.stdout
    clean = ns.netsweep("sweep")
    assert re.fullmatch(r"Nothing to sweep: .*\n", clean.stdout)
    text = summary.read_text()
    assert text.count("### netsweep\n") == 3
    row = f"| hmdead | gone | 3 | {flavour} filter/FORWARD: 2, {flavour} nat/POSTROUTING: 1 |\n"
    assert text.count(row) == 2
    assert f"| {flavour} | ipv4 | 3 | 3 | 3 |\n" in text
    assert len(re.findall(r"\| subnet \| \d+\.\d ms \| \d+\.\d ms \| \d+\.\d ms \|", text)) == 1
    assert text.count("| xtables | ") == (flavour == "legacy")
    assert text.count("No lock was taken.") == 2


def test_wrong_usage_is_an_annotation_with_best_effort_too(ns: Namespace) -> None:
    ns.environment |= {"GITHUB_ACTIONS": "true", "GITHUB_OUTPUT": str(ns.directory / "output")}
    for arguments in (["--chain", "filter/TYPO"], ["--prefix", "ham"], ["--nosuch"]):
        line = complaint(ns.netsweep("sweep", "--best-effort", *arguments), 2)
    done = ns.netsweep("sweep", "--best-effort", "--nosuch")
    assert done.stdout == f"::error title=netsweep::{line.removeprefix('netsweep: ')}\n"
    assert (ns.directory / "output").read_text().count("status=2\n") == 4


def test_the_demo_shows_text_in_a_workflow_and_writes_nothing_of_its_own(ns: Namespace) -> None:
    output, summary = ns.directory / "output", ns.directory / "summary"
    variables = {"GITHUB_ACTIONS": "true", "GITHUB_OUTPUT": str(output), "GITHUB_STEP_SUMMARY": str(summary)}
    assert "::" not in ns.run(*NETSWEEP, "demo", environment=variables).stdout
    assert not output.exists()
    assert not summary.exists()


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
    ["list"],
    ["list", "--format", "json"],
    ["list", "--format", "github"],
    ["sweep"],
    ["doctor"],
    ["doctor", "--format", "json"],
    ["demo"],
]


@pytest.mark.parametrize("arguments", EVERY_OUTPUT, ids=" ".join)
@pytest.mark.parametrize("redirection", [">/dev/full", ">&-"])
def test_a_stdout_that_takes_nothing_is_one_clear_failure(
    ns: Namespace, arguments: list[str], redirection: str
) -> None:
    line = complaint(redirected(ns, redirection, *arguments), 1)
    reason = {">/dev/full": "No space left on device", ">&-": "Bad file descriptor"}[redirection]
    assert line == f"netsweep: could not write to stdout: {reason}"


@pytest.mark.parametrize("redirection", [">/dev/full", ">&-"])
def test_a_sweep_that_cannot_report_says_what_it_did(ns: Namespace, flavour: str, redirection: str) -> None:
    ns.restore(flavour, leaks(["hmdead"]))
    line = complaint(redirected(ns, redirection, "sweep"), 1)
    assert line.startswith("netsweep: could not write to stdout: ")
    assert line.endswith("; the sweep deleted 3 rules")
    assert "hmdead" not in "".join(ns.snapshot())


@pytest.mark.parametrize("arguments", EVERY_OUTPUT, ids=" ".join)
def test_a_reader_that_has_gone_ends_it_in_silence(ns: Namespace, arguments: list[str]) -> None:
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
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize(("options", "status"), [([], 128 + signal.SIGPIPE), (["--best-effort"], 0)])
def test_a_sweep_whose_reader_has_gone_is_done_as_a_whole(ns: Namespace, options: list[str], status: int) -> None:
    ns.restore("nft", leaks(f"hm{number:x}" for number in range(600)))
    summary = ns.directory / "summary"
    ns.environment["GITHUB_STEP_SUMMARY"] = str(summary)
    script = '{ "$@"; echo "status $?" >&2; } | true'
    done = ns.run("sh", "-c", script, "sh", *NETSWEEP, "sweep", "-v", "--format", "github", *options)
    assert done.stderr == f"status {status}\n"
    assert "hm" not in "".join(ns.save("nft"))
    assert "Deleted 1,800 orphaned rules" in summary.read_text()


def test_the_head_of_a_long_list_is_had_without_noise(ns: Namespace) -> None:
    ns.restore("nft", leaks(f"hm{number:x}" for number in range(300)))
    script = '{ "$@"; echo "status $?" >&2; } | head -1'
    done = ns.run("sh", "-c", script, "sh", *NETSWEEP, "list", "-v")
    assert done.stdout.split() == ["BRIDGE", "BACKEND", "TABLE/CHAIN", "RULES"]
    assert done.stderr == "status 141\n"


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
    journal = ns.directory / "journal"
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
