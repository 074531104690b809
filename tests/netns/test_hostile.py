"""Hostile files, hostile rules, a hostile environment: netsweep runs as root among them."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.namespace import FLAVOURS, PLACES, Namespace, complaint, leaks, program, report_of, unchanged

SCRIPT = str(Path(sys.executable).with_name("netsweep"))
"""The console script, as people run it: unlike ``python -m`` it does not import from the current directory."""

RUNNER = 1000
"""Some other user, as the one whose tests made the files."""

WITHOUT_FILE_CAPABILITIES = (
    "setpriv",
    "--bounding-set=-dac_override,-dac_read_search,-fowner",
    "--inh-caps=-all",
)


def state_of(path: Path) -> dict[str, object]:
    """All there is to change in a tree, without reading what is not a regular file."""
    found: dict[str, object] = {}
    for each in [path, *path.rglob("*")]:
        status = each.lstat()
        content: str | bytes | None = None
        if stat.S_ISREG(status.st_mode) and status.st_size < 2**20:
            content = each.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(each)
        found[str(each)] = (
            *(status.st_ino, status.st_mode, status.st_uid, status.st_gid, status.st_size, status.st_mtime_ns),
            content,
        )
    return found


@contextmanager
def untouched(*paths: Path) -> Iterator[None]:
    """Check that nothing below ``paths`` changes: no byte, no mode, no owner, no name."""
    before = [state_of(path) for path in paths]
    yield
    assert [state_of(path) for path in paths] == before


def link_to_file(path: Path) -> None:
    target = path.with_name("target")
    target.write_text('{"leases": {}}')
    target.chmod(0o644)
    path.symlink_to(target)


def link_to_root_only_file(path: Path) -> None:
    link_to_file(path)
    path.with_name("target").chmod(0o600)
    path.parent.chmod(0o1777)
    os.lchown(path, RUNNER, RUNNER)


def dangling_link(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def zero(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))


IRREGULAR: dict[str, Callable[[Path], None]] = {
    "a link to a file": link_to_file,
    "a link to a file of root's": link_to_root_only_file,
    "a dangling link": dangling_link,
    "a directory": Path.mkdir,
    "a FIFO": os.mkfifo,
    "a socket": unix_socket,
    "/dev/zero": zero,
}

irregular = pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in IRREGULAR.items()])

SOME = ("a link to a file", "a dangling link", "a FIFO", "/dev/zero")
some_irregular = pytest.mark.parametrize("make", [pytest.param(IRREGULAR[name], id=name) for name in SOME])
"""Enough where the file is opened by the same function as the lock and the lease file."""


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A path for something hostile, in a directory that holds nothing else."""
    directory = tmp_path / "hostile"
    directory.mkdir()
    return directory / "file"


def bounded(ns: Namespace, *arguments: str) -> str:
    """Run a netsweep that has to fail soon; the line that it says."""
    return complaint(ns.run("timeout", "20", SCRIPT, *arguments, check=False), 1)


@irregular
@pytest.mark.parametrize("option", ["--lock-file", "--lease-file"])
def test_lock_and_lease_file_have_to_be_regular_and_doctor_foresees_it(
    ns: Namespace, trap: Path, option: str, make: Callable[[Path], None]
) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    make(trap)
    with unchanged(ns), untouched(trap.parent):
        line = bounded(ns, "sweep", option, str(trap))
        assert bounded(ns, "doctor", option, str(trap)) == line
    assert ascii(str(trap)) in line
    assert "refused" in line
    assert {"--lock-file": "subnet lock", "--lease-file": "lease file"}[option] in line


def test_doctor_warns_of_a_lock_that_only_a_sweep_with_more_to_do_would_refuse(ns: Namespace, trap: Path) -> None:
    dangling_link(trap)
    (warning,) = report_of(ns.netsweep("doctor", "--lock-file", str(trap), "--format", "json"))["warnings"]
    assert "refused" in warning
    assert ns.netsweep("sweep", "--lock-file", str(trap)).returncode == 0
    ns.restore("nft", leaks(["hmdead"]))
    line = complaint(ns.netsweep("doctor", "--lock-file", str(trap)), 1)
    assert line.removeprefix("netsweep: ") == warning


@some_irregular
def test_the_xtables_lock_has_to_be_regular(ns: Namespace, trap: Path, make: Callable[[Path], None]) -> None:
    ns.restore("legacy", leaks(["hmdead"]))
    make(trap)
    ns.environment["XTABLES_LOCKFILE"] = str(trap)
    with unchanged(ns), untouched(trap.parent):
        line = bounded(ns, "sweep")
    assert "xtables lock" in line
    assert "refused" in line


@some_irregular
def test_a_journal_goes_to_a_new_file_only(ns: Namespace, trap: Path, make: Callable[[Path], None]) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    make(trap)
    with unchanged(ns), untouched(trap.parent):
        assert "exists already" in bounded(ns, "sweep", "--journal", str(trap))
        assert "journal" in bounded(ns, "restore", str(trap))


@some_irregular
def test_the_step_summary_has_to_be_regular(ns: Namespace, trap: Path, make: Callable[[Path], None]) -> None:
    make(trap)
    ns.environment["GITHUB_STEP_SUMMARY"] = str(trap)
    with untouched(trap.parent):
        line = bounded(ns, "sweep", "--format", "github")
    assert "step summary" in line
    assert "refused" in line


@pytest.mark.parametrize("path", ["/dev/null", "/"])
def test_the_systems_own_files_are_refused(ns: Namespace, path: str) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    before = os.stat(path).st_mode
    with unchanged(ns):
        # A journal may go to a directory.
        for option in ("--lock-file", "--lease-file", *(["--journal"] if path != "/" else [])):
            bounded(ns, "sweep", option, path)
    assert os.stat(path).st_mode == before


@pytest.mark.parametrize("name", ["/".join(["x" * 200] * 30), "loop/below", "file\n::error::/below"])
def test_paths_that_lead_nowhere_are_one_clear_error(ns: Namespace, trap: Path, name: str) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    trap.with_name("file\n::error::").write_text("another")
    trap.with_name("loop").symlink_to("loop")
    with unchanged(ns), untouched(trap.parent):
        for option in ("--lock-file", "--lease-file", "--journal"):
            assert "cannot" in bounded(ns, "sweep", option, str(trap.parent / name))
        ns.environment["GITHUB_STEP_SUMMARY"] = str(trap.parent / name)
        assert "step summary" in bounded(ns, "list", "--format", "github")


def test_names_with_newlines_are_names_like_others(ns: Namespace) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    lock, journal = ns.directory / "a\nlock", ns.directory / "a\n\x1b[31mjournal"
    options = ("--lock-file", str(lock), "--journal", str(journal))
    assert ns.netsweep("sweep", *options).returncode == 0
    assert lock.read_bytes() == b""
    assert journal.stat().st_size > 0
    ns.restore("nft", leaks(["hmdead"]))
    assert "exists already" in complaint(ns.netsweep("sweep", *options), 1)


@pytest.mark.parametrize("option", ["--lock-file", "--lease-file"])
def test_a_file_that_may_not_be_read_is_not_permitted(ns: Namespace, trap: Path, option: str) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    trap.touch(0o600)
    os.chown(trap, RUNNER, RUNNER)
    with unchanged(ns), untouched(trap.parent):
        done = ns.run(*WITHOUT_FILE_CAPABILITIES, SCRIPT, "sweep", option, str(trap), check=False)
    assert ascii(str(trap)) in complaint(done, 77)


def test_a_huge_lease_file_is_refused_without_being_read(ns: Namespace) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    with ns.lease_file.open("wb") as file:
        file.truncate(2**30)
    with unchanged(ns):
        done = ns.run("timeout", "20", "prlimit", f"--as={2**29}", SCRIPT, "sweep", check=False)
    assert "larger than 16 MiB" in complaint(done, 1)
    assert ns.lease_file.stat().st_blocks == 0


@pytest.mark.parametrize("mode", [0o644, 0o000])
def test_a_lock_file_of_another_user_in_a_sticky_directory_is_used_as_it_is(
    ns: Namespace, trap: Path, mode: int
) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    trap.parent.chmod(0o1777)
    trap.write_text("whatever the tests keep here")
    trap.chmod(mode)
    os.chown(trap, RUNNER, RUNNER)
    with untouched(trap.parent):
        done = ns.netsweep("sweep", "--lock-file", str(trap))
        assert done.stderr == ""
        assert "Deleted 3 orphaned rules" in done.stdout


@pytest.mark.parametrize("umask", ["000", "777"])
def test_a_missing_lock_file_is_made_for_everybody_whatever_the_umask(ns: Namespace, umask: str) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    ns.directory.chmod(0o1777)
    ns.run("sh", "-c", f'umask {umask} && exec "$@"', "sh", SCRIPT, "sweep")
    status = ns.lock_file.stat()
    assert stat.S_IMODE(status.st_mode) == 0o666
    assert status.st_size == 0


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("[" * 100_000, id="deep"),
        pytest.param('{"leases": {"s": {"bridge_name": "hmdead", "pid": 1, "pid": 4194304}}}', id="a name twice"),
        pytest.param(f'{{"leases": {{"s": {{"bridge_name": "hmdead", "pid": {"9" * 5000}}}}}}}', id="a huge pid"),
        pytest.param('{"leases": {"\\u001b]0;x\\u0007\\n::error::": 1}}', id="escapes"),
    ],
)
def test_a_lease_file_that_cannot_be_understood_is_one_clear_error(ns: Namespace, content: str) -> None:
    """Whatever is wrong with it; tests/unit/host has many more."""
    ns.restore("nft", leaks(["hmdead"]))
    ns.lease_file.write_text(content)
    with unchanged(ns):
        line = bounded(ns, "sweep")
    assert f"cannot understand lease file {str(ns.lease_file)!a}" in line
    assert ns.lease_file.read_text() == content


@pytest.mark.parametrize(
    "bridge", ["\\u0068mdead", 'hmdead", "created_at_unix": 1e400, "test_name": "\\ud800\\u202e\\u001b[2J']
)
def test_a_lease_counts_however_it_is_written(ns: Namespace, bridge: str) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    ns.lease_file.write_text(f'{{"leases": {{"s": {{"bridge_name": "{bridge}", "pid": {os.getpid()}}}}}}}')
    with unchanged(ns):
        done = ns.netsweep("sweep")
    assert (done.returncode, done.stderr) == (0, "")


def test_leases_of_bridges_with_hostile_names_hurt_nobody(ns: Namespace) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    names = ["\ud800", "\0", "\x1b[2J", "../hm1", "x" * 100_000, "hmdead\n", " hmdead", "HMDEAD"]
    leases = {str(n): {"bridge_name": name, "pid": os.getpid()} for n, name in enumerate(names)}
    ns.lease_file.write_text(json.dumps({"leases": leases}))
    done = ns.netsweep("sweep")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Deleted 3 orphaned rules" in done.stdout


def test_a_lease_file_cannot_speak_to_the_runner(ns: Namespace) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    summary = ns.directory / "summary"
    summary.touch()
    ns.environment["GITHUB_STEP_SUMMARY"] = str(summary)
    key = "##[error]x\n::error::x`<b>[x](http://x)"
    ns.lease_file.write_text(json.dumps({"leases": {key: 1}}))
    with unchanged(ns):
        done = ns.netsweep("sweep", "--format", "github")
    # The runner reads both streams.
    assert "##[" not in complaint(done, 1)
    assert workflow_commands(done.stdout) == ["error"]
    assert not re.search(r"[<`]|\]\(", summary.read_text())


HOSTILE = [
    "\x1b[2J\x1b[31mred\x07",
    "\x1b]0;title\x07",
    "line\nnetsweep: all is well",
    "\n::error::pwned",
    "::set-output name=x::y",
    "\r::stop-commands::token",
    "  ::add-mask::a",
    "##[add-path]/tmp",
    "x ##[group]",
    "%0A::error::x%0D",
    "<script>alert(1)</script>",
    "| a | `b` | [c](javascript:d) | ![e](f)",
    "</details>\n# heading",
    "\u202emoc.live\u2066\u200f\u2028::error::x\x85y",
    "\\x1b \\n \\ \" ' $(id) ${x} `id`",
    "\udcff\udcfe\udc80",
    "\u00e9\U0001f4a9\x7f\x9b31m",
    "x" * 240,
]
"""Comments; the escapes in the middle are for terminals, logs and shells of all kinds."""


@pytest.fixture
def hostile_ns(ns: Namespace, flavour: str) -> Namespace:
    """Hostile comments in orphans, in live and in foreign rules, and hostile names of interfaces and chains."""
    ns.add_bridges("hm11fe")
    # In one go, as there are many.
    for rest in (
        "-A FORWARD -i hmdead -j DROP -m comment --comment",
        "-A FORWARD -i hm11fe -j DROP -m comment --comment",
        "-t nat -A POSTROUTING -m comment --comment",
    ):
        ending = "-hmdead" if "nat" in rest else ""
        script = f'for comment; do iptables-{flavour} -w 5 {rest} "$comment" || exit 1; done'
        ns.run("sh", "-c", script, "sh", *(f"{comment}{ending}" for comment in HOSTILE))
    chain = "::error::\x1b[31m##[group]"
    ns.iptables(flavour, "-N", chain)
    ns.iptables(flavour, "-A", "FORWARD", "-i", "hmdead", "-j", chain)
    ns.iptables(flavour, "-A", "FORWARD", "-i", "ha::x\x1b[m##[x]", "-j", "DROP")
    return ns


ORPHANS = len(HOSTILE) + 1
KEPT = 2 * len(HOSTILE) + 1


def workflow_commands(text: str) -> list[str]:
    """The commands that GitHub's runner finds in a log (actions/runner, ActionCommand.cs).

    The newer kind begins a line, behind any white space; the older stands anywhere in one.
    """
    found = []
    for line in re.split(r"[\r\n]", text):
        if command := re.match(r"\s*::([\w-]+)", line):
            found.append(command.group(1))
        elif "##[" in line:
            found.append(line)
    return found


def test_hostile_rules_are_escaped_in_text(hostile_ns: Namespace, flavour: str) -> None:
    for arguments in (["list"], ["list", "--all"], ["sweep", "-v"]):
        done = hostile_ns.netsweep(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert re.fullmatch("[ -~\n]*", done.stdout)
        rules = [line for line in done.stdout.splitlines() if line.startswith(f"{flavour} ")]
        assert len(rules) == {"list": 0, "list --all": ORPHANS + KEPT}.get(" ".join(arguments), ORPHANS)
        if rules:
            assert any(r"\x1b[2J\x1b[31mred\x07" in line for line in rules)
            assert any(r"\u202emoc.live\u2066" in line for line in rules)
            assert any(r"\xff\xfe\x80" in line for line in rules)


def test_hostile_rules_are_harmless_in_a_workflow(hostile_ns: Namespace) -> None:
    ns = hostile_ns
    summary = ns.directory / "summary"
    summary.write_text("what was there\n")
    ns.environment["GITHUB_STEP_SUMMARY"] = str(summary)
    for arguments, level in ((["list", "--all"], "warning"), (["sweep", "-v"], "notice")):
        done = ns.netsweep(*arguments, "--format", "github")
        assert (done.returncode, done.stderr) == (0, "")
        assert re.fullmatch("[ -~\n]*", done.stdout)
        assert workflow_commands(done.stdout) == ["group", "endgroup", level]
        assert "stop-commands" in done.stdout
    written = summary.read_text()
    assert written.startswith("what was there\n")
    assert written.count("### netsweep") == 2
    for part in ("script", "heading", "javascript", "::", "##["):
        assert part not in written


def test_hostile_rules_are_exact_in_json(hostile_ns: Namespace) -> None:
    for arguments in (["list", "--all"], ["sweep"]):
        done = hostile_ns.netsweep(*arguments, "--format", "json")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.isascii()
        report = json.loads(done.stdout)
        assert [rule["comment"] for rule in report["orphans"]] == [*HOSTILE, None]
        if arguments == ["list", "--all"]:
            forward = [rule for rule in report["kept"] if rule["table"] == "filter"]
            assert [rule["comment"] for rule in forward] == [*HOSTILE, None]
            assert forward[-1]["in"] == "ha::x\x1b[m##[x]"
            # A name at the end of free text makes no rule ours.
            nat = [(rule["comment"], rule["verdict"]) for rule in report["kept"] if rule["table"] == "nat"]
            assert nat == [(f"{comment}-hmdead", "foreign") for comment in HOSTILE]


@pytest.fixture
def poisoned(tmp_path: Path) -> Path:
    """A directory of programs, modules and libraries that leave a mark when they are run or loaded."""
    directory = tmp_path / "poisoned"
    directory.mkdir()
    mark = directory / "mark"
    programs = "sh bash env python python3 gcc cc ld objdump as uname ldconfig modprobe insmod ip tc nft"
    iptables = [program(f, family, s) for f in FLAVOURS for family in ("ipv4", "ipv6") for s in ("", "-save")]
    for name in (*programs.split(), "iptables", *iptables):
        path = directory / name
        path.write_text(f"#!/bin/sh\necho run $0 >>'{mark}'\n")
        path.chmod(0o755)
    modules = "click filelock iptc pyroute2 json ctypes re sitecustomize usercustomize netsweep encodings colorama"
    for name in modules.split():
        (directory / f"{name}.py").write_text(f"open({str(mark)!r}, 'a').write('import {name}\\n')\n")
    libraries = ("libip4tc", "libip6tc", "libxtables")
    versions = [f"{name}.so{suffix}" for name in libraries for suffix in ("", ".2", ".12")]
    for name in (*versions, "libc.so.6", "libxtwrapper.so"):
        (directory / name).write_text("no library, so loading it fails")
    return directory


def test_nothing_is_run_from_path_and_nothing_loaded_from_the_current_directory(ns: Namespace, poisoned: Path) -> None:
    poison = ("env", "-C", str(poisoned), f"PATH={poisoned}")
    summary = ns.directory / "summary"
    summary.touch()
    ns.environment["GITHUB_STEP_SUMMARY"] = str(summary)
    for flavour, family in PLACES:
        ns.restore(flavour, leaks(["hmdead"]), family)
    with untouched(poisoned):
        for arguments in (
            ["list", "--all"],
            ["sweep", "--format", "github", "--journal", str(ns.directory / "journal")],
            ["restore", str(ns.directory / "journal")],
            ["sweep"],
            ["doctor"],
            ["demo"],
            ["--help"],
        ):
            done = ns.run(*poison, SCRIPT, *arguments)
            assert done.stderr == ""
    assert not [line for place in PLACES for line in ns.save(*place) if "hmdead" in line]


def test_the_poison_works(ns: Namespace, poisoned: Path) -> None:
    poison = ("env", "-C", str(poisoned), f"PATH={poisoned}", sys.executable, "-c")
    ns.run(*poison, "import os; os.execvp('iptables', ['iptables'])")
    ns.run(*poison, "import click")
    mark = (poisoned / "mark").read_text()
    assert f"run {poisoned}/iptables" in mark
    assert "import click" in mark


def test_a_sweep_makes_no_file_but_the_locks(ns: Namespace, flavour: str) -> None:
    ns.restore(flavour, leaks(["hmdead"]))
    locks = {ns.lock_file, *ns.directory.glob("xtables.lock")}
    assert ns.netsweep("sweep").returncode == 0
    assert set(ns.directory.iterdir()) == locks
    ns.restore(flavour, leaks(["hmdead"]))
    # A directory's own time tells of files that came and went.
    with untouched(ns.directory):
        assert ns.netsweep("sweep").returncode == 0
