"""netsweep in any process: inside asyncio, threads and forked children, short of memory or files, and beside
a process that owns a table."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import netsweep
from tests.namespace import (
    FLAVOURS,
    NETSWEEP,
    Namespace,
    complaint,
    flocked,
    in_process,
    is_free,
    leaks,
    new_namespace,
    of_bridge,
    unchanged,
)

Done = subprocess.CompletedProcess[str]


def left(ns: Namespace, bridge: str = "hmdead") -> list[int]:
    """How many rules of ``bridge`` each firewall holds."""
    return [of_bridge(ns, flavour, bridge) for flavour in FLAVOURS]


def in_python(ns: Namespace, script: str, *arguments: str) -> Done:
    """Run ``script`` in a process of its own, where every warning is an error."""
    return ns.run(sys.executable, "-W", "error", "-c", script, *arguments, check=False)


@contextmanager
def owned(ns: Namespace, table: str, rules: str) -> Iterator[None]:
    """A table that belongs to a process, as long as that runs (nft(8), flags owner)."""
    with subprocess.Popen(
        ns.command("nft", "--interactive"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ns.environment,
    ) as owner:
        assert owner.stdin
        assert owner.stdout
        # It answers when it has done what stands before.
        owner.stdin.write(f"add table ip {table} {{ flags owner; }}\n{rules}\nlist tables\n")
        owner.stdin.flush()
        for line in owner.stdout:
            assert "Error" not in line, line
            if re.search(rf"\btable ip {table}$", line.rstrip()):
                break
        yield


FORWARD = """add chain ip filter FORWARD { type filter hook forward priority 0; }
add rule ip filter FORWARD iifname "hmdead" accept"""

POSTROUTING = """add chain ip nat POSTROUTING { type nat hook postrouting priority 100; }
add rule ip nat POSTROUTING oifname "hmdead" accept"""

TABLES = {"filter": ("nat", FORWARD), "nat": ("filter", POSTROUTING)}
"""For each table the other one, and how to fill it. One of the two is swept first, whichever it is."""


@pytest.mark.parametrize("journal", [False, True], ids=["", "journal"])
@pytest.mark.parametrize("table", TABLES)
def test_a_table_of_another_process_is_an_error_and_all_others_are_swept(
    ns: Namespace, table: str, journal: bool
) -> None:
    other, rules = TABLES[table]
    ns.restore("legacy", leaks(["hmdead"]))
    number = {"filter": 2, "nat": 1}[other]
    with owned(ns, table, rules):
        chain = {"filter": "FORWARD", "nat": "POSTROUTING"}[other]
        for _ in range(number):
            ns.run("iptables-nft", "-t", other, "-A", chain, "-o", "hmdead", "-j", "ACCEPT")
        assert ns.netsweep("list").stderr == ""
        options = ("--journal", str(ns.directory / "journal")) if journal else ()
        done = ns.netsweep("sweep", "--format", "json", *options)
        line = complaint(done, 1)
        assert f"nft ipv4 {table}" in line
        assert "flags owner" in line
        assert "CAP_NET_ADMIN" not in line
        assert left(ns) == [0, 1]
        report = json.loads(done.stdout)
        assert [f"netsweep: {error}" for error in report["errors"]] == [line]
        assert (report["changed"], report["deleted"], len(report["orphans"])) == (True, 3 + number, 4 + number)
        assert [(b["name"], b["orphans"], b["deleted"]) for b in report["backends"]] == [
            ("legacy", 3, 3),
            ("nft", 1 + number, number),
        ]
        # What was deleted comes first.
        assert (report["orphans"][-1]["backend"], report["orphans"][-1]["table"]) == ("nft", table)
        with unchanged(ns):
            again = ns.netsweep("sweep")
            assert complaint(again, 1) == line
            assert again.stdout == ""
            assert complaint(ns.netsweep("sweep", "--best-effort"), 0) == line
        if journal:
            assert ns.netsweep("restore", str(ns.directory / "journal")).returncode == 0
            assert left(ns) == [3, 1 + number]
    # The owner has gone, and the table with it.
    assert ns.netsweep("sweep").returncode == 0
    assert left(ns) == [0, 0]


def test_people_are_told_what_was_deleted_beside_a_table_of_another_process(ns: Namespace) -> None:
    ns.restore("legacy", leaks(["hmdead"]))
    with owned(ns, "filter", FORWARD):
        done = ns.netsweep("sweep")
    complaint(done, 1)
    assert re.fullmatch(r"Failed after .*; deleted 3 rules, 1 left: run it again\.", done.stdout.splitlines()[-1])


IN_A_LOOP = """
import asyncio, sys, netsweep

async def main():
    assert len(netsweep.find_orphans().orphans) == 6
    journal = sys.argv[1:]
    swept = netsweep.sweep(journal=journal[0] if journal else None)
    assert swept.deleted == 6, swept
    if journal:
        assert netsweep.restore(journal[0]).restored == 6
        assert netsweep.sweep().deleted == 6
    # The loop still works, and so does a sweep in one of its threads.
    assert (await asyncio.to_thread(netsweep.find_orphans)).orphans == []
    await asyncio.sleep(0)
    return "done"

print(asyncio.run(main()))
"""


@pytest.mark.parametrize("journal", [False, True], ids=["", "journal"])
def test_it_works_inside_a_running_event_loop(ns: Namespace, journal: bool) -> None:
    for flavour in FLAVOURS:
        ns.restore(flavour, leaks(["hmdead"]))
    done = in_python(ns, IN_A_LOOP, *([str(ns.directory / "journal")] if journal else []))
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
    assert left(ns) == [0, 0]


def test_threads_sweep_namespaces_of_their_own_at_the_same_time(
    ns: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_process(ns, monkeypatch)
    directory = tmp_path / "other"
    directory.mkdir()
    with new_namespace(directory) as other:
        both = (ns, other)
        deleted = {}
        for number, each in enumerate(both):
            each.add_bridges(("hmbee", "hmdead")[number])
            for flavour in FLAVOURS:
                each.restore(flavour, leaks(["hmdead", "hmbee"]))
        together = threading.Barrier(2, timeout=30)

        def sweep(each: Namespace) -> netsweep.Report:
            together.wait()
            return netsweep.sweep(lock_file=each.directory / "lock", lease_file=each.directory / "leases")

        def run(each: Namespace) -> None:
            deleted[each.name] = {finding.bridge for finding in each.inside(lambda: sweep(each)).orphans}

        threads = [threading.Thread(target=run, args=(each,)) for each in both]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert deleted == {ns.name: {"hmdead"}, other.name: {"hmbee"}}
        assert (left(ns, "hmdead"), left(ns, "hmbee")) == ([0, 0], [3, 3])
        assert (left(other, "hmdead"), left(other, "hmbee")) == ([3, 3], [0, 0])


AT_ONCE = """
import os, sys, threading, netsweep

loads_last, loads_too, ended = threading.Event(), threading.Event(), threading.Event()

def meet(event, arguments):
    # The first thread waits before it loads the last module of python-iptables, and the second one, which
    # begins then, before it loads the first. Where something keeps them apart, they wait in vain and go on.
    path = str(arguments[0]) if event == "open" else ""
    if os.sep + "iptc" + os.sep in path:
        name, thread = os.path.basename(path), threading.current_thread().name
        if name.startswith("ip4tc.") and thread == "first":
            loads_last.set()
            loads_too.wait(2)
        if name.startswith("xtables.") and thread == "second":
            loads_too.set()
            ended.wait(2)

sys.addaudithook(meet)

def look():
    try:
        os.write(1, b"%d\\n" % len(netsweep.find_orphans().orphans))
    finally:
        loads_last.set()
        ended.set()

first, second = (threading.Thread(target=look, name=name) for name in ("first", "second"))
first.start()
loads_last.wait(60)
second.start()
first.join()
second.join()
"""


def test_two_threads_can_load_python_iptables_at_the_same_time(ns: Namespace) -> None:
    ns.restore("legacy", leaks(["hmdead"]))
    done = in_python(ns, AT_ONCE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n3\n", "")


FORKING = """
import os, signal, sys, threading, netsweep
from netsweep.jobs.look import Judge

inside, go_on = threading.Event(), threading.Event()
confirm = Judge.confirm

def pause(*arguments):
    # Both locks are held, and the deletion is prepared.
    inside.set()
    assert go_on.wait(60)
    return confirm(*arguments)

Judge.confirm = pause
swept = []
thread = threading.Thread(target=lambda: swept.append(netsweep.sweep(backend=sys.argv[1])))
thread.start()
assert inside.wait(60)
(read, write), (told, tell) = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    signal.alarm(60)
    os.close(write)
    try:
        found = len(netsweep.find_orphans().orphans)
        try:
            netsweep.sweep(lock_timeout=0)
        except netsweep.BusyError:
            found += 100
        os.write(tell, b"x")
        os.read(read, 1)  # until the parent is done: it keeps all that it inherited
    except BaseException as error:
        print(error, file=sys.stderr)
        os._exit(1)
    os._exit(found)
os.close(read)
os.close(tell)
os.read(told, 1)
go_on.set()
thread.join()
print(swept[0].deleted, flush=True)
for name in ("hypeman-test-network.lock", "xtables.lock"):
    # Somebody else gets the locks though the child that was forked under them lives.
    path = os.path.join(os.environ["TMPDIR"], name)
    print(name, os.system(f"flock -n {path} true"), flush=True)
os.close(write)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_child_that_was_forked_in_the_middle_of_a_sweep_works_and_keeps_no_lock(ns: Namespace, flavour: str) -> None:
    for each in FLAVOURS:
        ns.restore(each, leaks(["hmdead"]))
    done = in_python(ns, FORKING, flavour)
    # The child saw all six, as nothing was committed yet, and found the subnet lock taken.
    expected = ["3", "hypeman-test-network.lock 0", "xtables.lock 0", "106"]
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (0, expected, "")
    assert of_bridge(ns, flavour, "hmdead") == 0


FORKED_AFTERWARDS = """
import os, netsweep
assert len(netsweep.find_orphans().orphans) == 6
child = os.fork()
if child == 0:
    os._exit(netsweep.sweep().deleted)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), len(netsweep.find_orphans().orphans))
"""


def test_a_child_sweeps_after_its_parent_has_looked_and_the_parent_goes_on(ns: Namespace) -> None:
    for each in FLAVOURS:
        ns.restore(each, leaks(["hmdead"]))
    done = in_python(ns, FORKED_AFTERWARDS)
    assert (done.returncode, done.stdout, done.stderr) == (0, "6 0\n", "")


GIVING_UP = """
import os, sys, netsweep
try:
    netsweep.sweep(lock_timeout=0.1)
except netsweep.BusyError:
    pass
child = os.fork()
if child == 0:
    os.read(0, 1)  # until the test closes it
    os._exit(0)
print("gave up", flush=True)
os.read(0, 1)
os.waitpid(child, 0)
"""


def test_a_lock_that_was_given_up_is_given_up_in_forked_children_too(ns: Namespace) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    pipe = subprocess.PIPE
    command = ns.command(sys.executable, "-W", "ignore", "-c", GIVING_UP)
    with flocked(ns.lock_file):
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=ns.environment)
        assert process.stdout
        assert process.stdout.readline() == "gave up\n"
    # Both the process and its child live, and one of them is in the kernel's queue until it gets the lock.
    ns.run("flock", "--timeout", "30", str(ns.lock_file), "true")
    assert is_free(ns.lock_file)
    process.communicate(timeout=30)
    assert process.returncode == 0


BESIDE_IPTC = """
import os
before = dict(os.environ)
import netsweep
assert netsweep.sweep().deleted == 6
assert dict(os.environ) == before
import iptc
rule = iptc.Rule()
rule.protocol = "tcp"
rule.create_match("comment").comment = "mine"
rule.target = iptc.Target(rule, "ACCEPT")
iptc.Chain(iptc.Table(iptc.Table.FILTER), "FORWARD").append_rule(rule)
"""


def test_a_program_can_use_python_iptables_itself_after_a_sweep(ns: Namespace) -> None:
    for each in FLAVOURS:
        ns.restore(each, leaks(["hmdead"]))
    # python-iptables has escapes in strings that newer Pythons warn about.
    ns.run(sys.executable, "-W", "ignore", "-c", BESIDE_IPTC)
    assert [line for line in ns.save("legacy") if "--comment mine" in line]
    assert left(ns) == [0, 0]


def until_enough(ns: Namespace, option: str, limits: Iterable[int], *arguments: str) -> Iterator[Done]:
    """Sweep under every limit, from the first under which netsweep gets as far as where it can tell of a failure."""
    for limit in limits:
        run = ("prlimit", f"{option}={limit}")
        # The 2 MiB are for what differs between two runs.
        probe = "import runpy, netsweep.__main__, netsweep.cli.sweep, netsweep.output.json; bytes(2 << 20)"
        if ns.run(*run, sys.executable, "-c", probe, check=False).returncode == 0:
            yield ns.run(*run, *NETSWEEP, "sweep", *arguments, check=False)


def test_a_shortage_of_files_is_told_as_what_it_is(ns: Namespace) -> None:
    for flavour in FLAVOURS:
        ns.iptables(flavour, "-A", "FORWARD", "-i", "hmdead", "-j", "ACCEPT")
    failures = 0
    for done in until_enough(ns, "--nofile", range(4, 64)):
        for word in ("stdout", "Traceback", "bug", "install"):
            assert word not in done.stderr
        if done.returncode == 0:
            break
        assert "too many open files" in complaint(done, 1).lower()
        failures += 1
    assert failures
    assert left(ns) == [0, 0]


def test_best_effort_holds_where_memory_runs_out_and_what_was_deleted_is_told(ns: Namespace) -> None:
    rules = "".join(f"-A FORWARD -i hm{number:x} -j ACCEPT\n" for number in range(0x10000, 0x10000 + 1500))
    ns.restore("nft", f"*filter\n{rules}COMMIT\n")
    failures = 0
    for done in until_enough(ns, "--as", range(16 << 20, 256 << 20, 4 << 20), "--best-effort", "--format", "json"):
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
        deleted = 1500 - sum("-i hm" in line for line in ns.save("nft"))
        if deleted:
            assert json.loads(done.stdout)["deleted"] == deleted
            break
        assert "out of memory" in done.stderr
        failures += 1
    assert failures
    assert deleted == 1500
