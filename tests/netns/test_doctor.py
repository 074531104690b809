"""``netsweep doctor`` ends as the sweep that follows it with the same options, in whatever state the host is."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from netsweep.output.doctor import doctor_lines
from tests.namespace import (
    NETSWEEP,
    NO_NET_ADMIN,
    Namespace,
    as_nobody,
    complaint,
    flocked,
    leaks,
    without_library,
    write_leases,
)

DEAD = 2**22
"""A PID that no process ever has."""


class State(NamedTuple):
    """A state of a host, and how netsweep is called there.

    ``make`` makes it, and returns what keeps it. ``statuses`` are those of a sweep of orphans of x_tables, of those of
    nf_tables, and of one that finds none. ``prefix`` is what the command line begins with.
    """

    statuses: tuple[int, int, int]
    options: tuple[str, ...] = ()
    make: Callable[[Namespace], AbstractContextManager[Any] | None] = lambda _: None
    prefix: Callable[[Namespace], tuple[str, ...]] = lambda _: ()
    environment: Mapping[str, str] = {}


def held(*names: str) -> Callable[[Namespace], AbstractContextManager[Any]]:
    """Locks that a process holds."""

    @contextmanager
    def make(ns: Namespace) -> Iterator[None]:
        with ExitStack() as stack:
            for name in names:
                stack.enter_context(flocked(getattr(ns, name)))
            yield

    return make


def in_place_of(name: str, make: Callable[[Path], object]) -> Callable[[Namespace], None]:
    """Something else where a file of the namespace should be."""

    def made(ns: Namespace) -> None:
        path: Path = getattr(ns, name)
        path.unlink(missing_ok=True)
        make(path)

    return made


def link(path: Path) -> None:
    path.symlink_to(path.parent / "other")


def junk(path: Path) -> None:
    path.write_text("no leases")


def read_only(ns: Namespace) -> tuple[str, ...]:
    script = f"mkdir -p '{ns.directory}/ro' && mount -t tmpfs -o ro none '{ns.directory}/ro' && exec \"$@\""
    return ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh")


def without_module(name: str) -> Callable[[Namespace], tuple[str, ...]]:
    """Python without a library that is installed."""

    def prefix(ns: Namespace) -> tuple[str, ...]:
        directory = ns.directory / "broken"
        (directory / name).mkdir(parents=True, exist_ok=True)
        (directory / name / "__init__.py").write_text(f"raise ModuleNotFoundError(\"No module named '{name}'\")")
        return ("env", f"PYTHONPATH={directory}:{os.environ.get('PYTHONPATH', '')}")

    return prefix


@contextmanager
def owned_table(ns: Namespace) -> Iterator[None]:
    """A table with an orphan that belongs to a process that runs; others cannot change it."""
    with subprocess.Popen(
        ns.command("nft", "--interactive"), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as nft:
        assert nft.stdin
        nft.stdin.write(
            "table ip theirs { flags owner; chain FORWARD { iifname hmdead accept; }; }\nlist ruleset\n",
        )
        nft.stdin.flush()
        deadline = time.monotonic() + 10
        while "theirs" not in ns.run("nft", "list", "tables").stdout:
            assert time.monotonic() < deadline, "there is no such table"
        yield
        nft.stdin.close()


def ipv6_rules(ns: Namespace) -> None:
    ns.restore("legacy", leaks(["hm07e4"]), "ipv6")


def stale_lease(ns: Namespace) -> None:
    write_leases(ns, {"hm57a1e": DEAD})


def leaked_bridge(ns: Namespace) -> None:
    ns.add_bridges("hm1eac")
    write_leases(ns, {"hm1eac": DEAD})


def leaked_bridge_with(*names: str) -> Callable[[Namespace], AbstractContextManager[Any]]:
    def make(ns: Namespace) -> AbstractContextManager[Any]:
        leaked_bridge(ns)
        return held(*names)(ns)

    return make


def stale_lease_with(*names: str) -> Callable[[Namespace], AbstractContextManager[Any]]:
    def make(ns: Namespace) -> AbstractContextManager[Any]:
        stale_lease(ns)
        return held(*names)(ns)

    return make


def existing_journal(ns: Namespace) -> None:
    (ns.directory / "journal").touch()


LOCKED = ("--lock-timeout", "0")
NO_WAIT = ("--wait", "0")
STATES = {
    "nothing is wrong": State((0, 0, 0)),
    "subnet lock held": State((75, 75, 0), LOCKED, held("lock_file")),
    "subnet lock held, best effort": State((0, 0, 0), (*LOCKED, "--best-effort"), held("lock_file")),
    "subnet lock held, dry run": State((0, 0, 0), (*LOCKED, "--dry-run"), held("lock_file")),
    "subnet lock held, no lock file": State((0, 0, 0), (*LOCKED, "--profile", "./mine.toml"), held("lock_file")),
    "xtables lock held": State((75, 0, 0), NO_WAIT, held("xtables_lock")),
    "xtables lock held, legacy left out": State((0, 0, 0), (*NO_WAIT, "--backend", "nft"), held("xtables_lock")),
    "both locks held": State((75, 75, 0), (*LOCKED, *NO_WAIT), held("lock_file", "xtables_lock")),
    "subnet lock is a link": State((1, 1, 0), (), in_place_of("lock_file", link)),
    "subnet lock is a FIFO": State((1, 1, 0), (), in_place_of("lock_file", os.mkfifo)),
    "subnet lock is a directory": State((1, 1, 0), (), in_place_of("lock_file", os.mkdir)),
    "xtables lock is a FIFO": State((1, 0, 0), (), in_place_of("xtables_lock", os.mkfifo)),
    "xtables lock is a link, subnet lock held": State(
        (75, 75, 0), LOCKED, lambda ns: in_place_of("xtables_lock", link)(ns) or held("lock_file")(ns)
    ),
    "no directory for the subnet lock": State((1, 1, 0), ("--lock-file", "/nowhere/at/all/lock")),
    "a file where the directory should be": State((1, 1, 0), ("--lock-file", "/etc/passwd/lock")),
    "no directory for the xtables lock": State((1, 0, 0), environment={"XTABLES_LOCKFILE": "/nowhere/lock"}),
    "read-only directory": State((1, 1, 0), ("--lock-file", "ro/lock"), prefix=read_only),
    "no directory for files": State((1, 1, 0), ("--lock-file", "/proc/lock")),
    "no directory for files of anybody": State((77, 77, 0), ("--lock-file", "/sys/lock")),
    "junk leases": State((1, 1, 1), (), in_place_of("lease_file", junk)),
    "leases are a directory": State((1, 1, 1), (), in_place_of("lease_file", os.mkdir)),
    "no filelock": State((69, 69, 0), prefix=without_module("filelock")),
    "no pyroute2": State((0, 0, 0), prefix=without_module("pyroute2")),
    "no python-iptables": State((69, 0, 0), prefix=without_module("iptc")),
    "no python-iptables, legacy left out": State((0, 0, 0), ("--backend", "nft"), prefix=without_module("iptc")),
    "no libip4tc": State((69, 0, 0), prefix=lambda ns: without_library(ns, "libip4tc")),
    "no libip6tc": State((0, 0, 0), prefix=lambda ns: without_library(ns, "libip6tc")),
    "no libip6tc, IPv6 rules": State((69, 69, 69), (), ipv6_rules, lambda ns: without_library(ns, "libip6tc")),
    "no libip6tc, IPv6 rules left out": State(
        (0, 0, 0), ("--family", "ipv4"), ipv6_rules, lambda ns: without_library(ns, "libip6tc")
    ),
    "no CAP_NET_ADMIN": State((77, 77, 77), prefix=lambda _: NO_NET_ADMIN),
    "more than --max-deletes": State((1, 1, 0), ("--max-deletes", "2")),
    "as many as --max-deletes": State((0, 0, 0), ("--max-deletes", "3")),
    "more than NETSWEEP_MAX_DELETES": State((1, 1, 0), environment={"NETSWEEP_MAX_DELETES": "2"}),
    "more than --max-deletes, dry run": State((1, 1, 0), ("--max-deletes", "2", "--dry-run")),
    "a journal": State((0, 0, 0), ("--journal", "journal")),
    "journal exists": State((1, 1, 0), ("--journal", "journal"), existing_journal),
    "no directory for the journal": State((1, 1, 0), ("--journal", "/nowhere/journal")),
    "no such chain": State((2, 2, 2), ("--chain", "filter/nosuch")),
    "no such chain, best effort": State((2, 2, 2), ("--chain", "filter/nosuch", "--best-effort")),
    "bad environment": State((2, 2, 2), environment={"NETSWEEP_WAIT": "soon"}),
    "table of another process": State((1, 1, 1), ("--all-chains",), owned_table),
    "table of another process, not selected": State((0, 0, 0), (), owned_table),
    "leaked bridge": State((0, 0, 0), ("--bridges",), leaked_bridge),
    "leaked bridge, not asked for": State((0, 0, 0), (), leaked_bridge),
    "leaked bridge, subnet lock held": State((75, 75, 75), ("--bridges", *LOCKED), leaked_bridge_with("lock_file")),
    "leaked bridge, xtables lock held": State((1, 0, 0), ("--bridges", *NO_WAIT), leaked_bridge_with("xtables_lock")),
    "leaked bridge, too many": State((1, 1, 1), ("--bridges", "--max-deletes", "0"), leaked_bridge),
    "stale lease": State((0, 0, 0), ("--bridges",), stale_lease),
    "stale lease, subnet lock held": State((75, 75, 75), ("--bridges", *LOCKED), stale_lease_with("lock_file")),
    "stale lease, lock may not be created": State((77, 77, 1), ("--bridges", "--lock-file", "/sys/lock"), stale_lease),
    "stale lease, lock cannot be created": State((1, 1, 1), ("--bridges", "--lock-file", "/nowhere/lock"), stale_lease),
}

PROFILE = """prefixes = ["hm"]
comments = ["hypeman-{role}-{name}"]
chains = ["filter/FORWARD", "nat/POSTROUTING"]
private = ["*/*"]
"""


CASES = [
    (name, orphans)
    for name, state in STATES.items()
    for orphans in ("legacy", "nft", None)
    if orphans or state.statuses[2] or "held" in name or name == "nothing is wrong"
]


@pytest.mark.parametrize(("state", "orphans"), CASES)
def test_doctor_ends_as_the_sweep_after_it(ns: Namespace, state: str, orphans: str | None) -> None:
    statuses, options, make, prefix, environment = STATES[state]
    (ns.directory / "mine.toml").write_text(PROFILE)
    if orphans:
        ns.restore(orphans, leaks(["hmdead"]))
    ns.environment.update(environment)
    script = f"cd '{ns.directory}' && exec \"$@\""
    command = ("sh", "-c", script, "sh", *prefix(ns), *NETSWEEP)

    def run(name: str) -> subprocess.CompletedProcess[str]:
        return ns.run(*command, name, "--format", "json", *options, check=False)

    with make(ns) or nullcontext():
        examined, swept = run("doctor"), run("sweep")
    expected = statuses[["legacy", "nft", None].index(orphans)]
    assert swept.returncode == expected, swept.stderr
    assert examined.returncode == expected, examined.stderr
    assert "Traceback" not in f"{examined.stderr}{swept.stderr}"
    if expected == 2 and not examined.stdout:  # wrong usage, found before anything is looked at
        return
    found, report = json.loads(examined.stdout), json.loads(swept.stdout)
    lines = list(doctor_lines(found))
    assert [line for line in lines if len(line) > 80 and str(ns.directory) not in line] == []
    verdict = " ".join(lines[lines.index("") + 1 :])
    if report["errors"]:
        assert verdict.startswith(f"A sweep would fail here with exit status {expected}")
    else:
        assert verdict.startswith("A sweep could run here. ")
        assert report["deleted"] == (0 if "--dry-run" in options else found["orphans"])
        assert (found["bridges"] or 0) == len(report["bridges"])
        if "--dry-run" not in options:
            assert ("nothing to delete" in verdict) == (not report["changed"])


def test_doctor_knows_that_a_user_may_not_replace_the_lease_file(public_ns: Namespace) -> None:
    ns = public_ns
    stale_lease(ns)
    ns.lease_file.chmod(0o644)
    arguments = ("--bridges", "--backend", "nft")
    examined, swept = (
        as_nobody(ns, ["net_admin", "sys_admin", "sys_ptrace"], command, *arguments) for command in ("doctor", "sweep")
    )
    for done in (examined, swept):
        assert "cannot replace lease file" in complaint(done, 1)


@pytest.mark.parametrize("option", ["--lock-timeout", "--wait"])
def test_doctor_knows_of_a_lock_whose_holder_a_user_does_not_see(public_ns: Namespace, option: str) -> None:
    ns = public_ns
    ns.restore("legacy", leaks(["hmdead"]))
    path = ns.lock_file if option == "--lock-timeout" else ns.xtables_lock
    path.touch()
    path.chmod(0o666)
    with flocked(path):
        arguments = (["net_admin", "net_raw", "dac_read_search"], "doctor", option, "0")
        examined = as_nobody(ns, *arguments)
        swept = as_nobody(ns, arguments[0], "sweep", option, "0")
    assert "is held by a process that is not visible here" in complaint(examined, 75)
    complaint(swept, 75)
    assert "held by a process that is not visible here" in " ".join(examined.stdout.split())


@pytest.mark.parametrize("orphans", ["legacy", "nft", None])
@pytest.mark.parametrize(
    ("capabilities", "directory_mode"),
    [
        (["net_admin"], 0o1777),
        (["net_admin", "net_raw"], 0o1777),
        (["net_admin", "net_raw", "dac_read_search"], 0o1777),
        (["net_admin", "net_raw", "dac_read_search"], 0o755),
        ([], 0o1777),
    ],
    ids=str,
)
def test_doctor_ends_as_the_sweep_of_a_user(
    public_ns: Namespace, orphans: str | None, capabilities: list[str], directory_mode: int
) -> None:
    ns = public_ns
    if orphans:
        ns.restore(orphans, leaks(["hmdead"]))
    as_nobody(ns, [], "--version")  # makes its directories
    ns.directory.chmod(directory_mode)
    examined, swept = (as_nobody(ns, capabilities or ["kill"], command) for command in ("doctor", "sweep"))
    assert examined.returncode == swept.returncode, (examined.stderr, swept.stderr)
    assert "Traceback" not in examined.stderr
    if swept.returncode:
        reason = complaint(swept, swept.returncode)
        assert reason.split(": ")[:2] == complaint(examined, swept.returncode).split(": ")[:2]
    if directory_mode == 0o755 and orphans:
        assert swept.returncode == 77
        assert "does not exist, and cannot be created" in " ".join(examined.stdout.split())
