"""Network namespaces of the tests' own, with the real iptables in them."""

from __future__ import annotations

import ctypes
import fcntl
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

FLAVOURS = ("legacy", "nft")
CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """One network namespace, entered by every program that is run through it.

    Lock and lease file are its own, so that tests do not wait for each other: ``folder`` is the
    TMPDIR of everything run here, and the xtables lock is in it too.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("NETSWEEP_", "GITHUB_"))},
            "TMPDIR": str(folder),
            "XTABLES_LOCKFILE": str(folder / "xtables.lock"),
        }
        self.lock_file = folder / "hypeman-test-network.lock"
        self.lease_file = folder / "hypeman-test-network-leases.json"

    def command(self, *arguments: str) -> list[str]:
        """The command line that runs ``arguments`` in the namespace."""
        return ["ip", "netns", "exec", self.name, *arguments]

    def run(self, *arguments: str, check: bool = True, input: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a program here and wait for it."""
        done = subprocess.run(
            self.command(*arguments),
            check=False,
            input=input,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            env=self.environment,
            timeout=120,
        )
        if check and done.returncode:
            raise AssertionError(f"{arguments} exited {done.returncode}: {done.stderr}")
        return done

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a program here and do not wait for it."""
        return subprocess.Popen(
            self.command(*arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
        )

    def netsweep(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run netsweep here, whatever it exits with."""
        return self.run(sys.executable, "-m", "netsweep", *arguments, check=False)

    def iptables(self, flavour: str, *arguments: str) -> None:
        self.run(f"iptables-{flavour}", "-w", "5", *arguments)

    def restore(self, flavour: str, tables: str) -> None:
        """Load ``iptables-restore`` input, beside what is there."""
        self.run(f"iptables-{flavour}-restore", "--noflush", "-w", "5", input=tables)

    def save(self, flavour: str) -> list[str]:
        """What ``iptables-save -c`` says, line by line, without its comments, which hold the time."""
        lines = self.run(f"iptables-{flavour}-save", "-c").stdout.splitlines()
        return [line for line in lines if not line.startswith("#")]

    def ruleset(self) -> str:
        """What ``nft`` says of the whole namespace, handles included."""
        return self.run("nft", "-a", "list", "ruleset").stdout

    def snapshot(self) -> list[str]:
        """Every rule of both flavours with its counters, and for nf_tables its handle."""
        return [*self.save("legacy"), *self.ruleset().splitlines()]

    def add_bridges(self, *names: str) -> None:
        batch = "".join(f"link add {name} type bridge\n" for name in names)
        self.run("ip", "-batch", "-", input=batch)

    def enter(self) -> None:
        """Move the calling thread into the namespace, for good."""
        with open(f"/run/netns/{self.name}") as namespace:
            if _libc.setns(namespace.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")

    def inside(self, function: Callable[[], T]) -> T:
        """Call ``function`` in this process, in a thread that has entered the namespace."""
        result: list[T] = []
        failure: list[BaseException] = []

        def call() -> None:
            try:
                self.enter()
                result.append(function())
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return result[0]


def complaint(done: subprocess.CompletedProcess[str], status: int) -> str:
    """The one line on stderr of a netsweep that ended with ``status``."""
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("netsweep: ")
    assert done.stderr.isascii()
    line = done.stderr.removesuffix("\n")
    assert line.isprintable(), f"not one clean line: {line!a}"
    return line


@contextmanager
def unchanged(ns: Namespace) -> Iterator[None]:
    """Check that the rules are the same afterwards, to the counter and the handle."""
    before = ns.snapshot()
    yield
    assert ns.snapshot() == before


@contextmanager
def flocked(path: Path) -> Iterator[None]:
    """Hold the lock on the file at ``path``, as the other users of that lock do."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def wait_until_queued(pid: int, path: Path) -> None:
    """Wait until the process ``pid`` stands in the kernel's queue for the lock on ``path``."""
    inode = f":{path.stat().st_ino} "
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for line in Path("/proc/locks").read_text().splitlines():
            if " -> " in line and inode in line and f" {pid} " in line:
                return
        time.sleep(0.001)
    raise AssertionError("it never waited for the lock")


@contextmanager
def new_namespace(folder: Path) -> Iterator[Namespace]:
    """Make a namespace with a name of its own, and remove it in the end."""
    name = f"netsweep-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        yield Namespace(name, folder)
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def leak(bridge: str, subnet: str = "10.200.1.0/24", uplink: str = "eth0") -> dict[str, list[str]]:
    """The rules that the test harness leaves behind for one bridge, by table, as for iptables-restore."""
    comment = "-m comment --comment hypeman"
    conntrack = "-m conntrack --ctstate"
    return {
        "filter": [
            f"-A FORWARD -i {bridge} -o {uplink} {conntrack} NEW,RELATED,ESTABLISHED "
            f"{comment}-fwd-out-{bridge} -j ACCEPT",
            f"-A FORWARD -i {uplink} -o {bridge} {conntrack} RELATED,ESTABLISHED {comment}-fwd-in-{bridge} -j ACCEPT",
        ],
        "nat": [f"-A POSTROUTING -s {subnet} -o {uplink} {comment}-nat-{bridge} -j MASQUERADE"],
    }


def leaks(bridges: Iterable[str]) -> str:
    """``iptables-restore`` input with the leaked rules of all ``bridges``, each with a subnet of its own."""
    tables: dict[str, list[str]] = {"filter": [], "nat": []}
    for number, bridge in enumerate(bridges):
        subnet = f"10.{200 + number // 256 % 50}.{number % 256}.0/24"
        for table, rules in leak(bridge, subnet).items():
            tables[table] += rules
    return restore_input(tables)


def restore_input(tables: dict[str, list[str]]) -> str:
    """Rules by table as ``iptables-restore`` reads them."""
    return "".join(
        f"*{table}\n" + "".join(f"{rule}\n" for rule in rules) + "COMMIT\n" for table, rules in tables.items()
    )


def without(lines: list[str], *gone: str) -> list[str]:
    """``lines`` less those that name one of the bridges in ``gone`` as a whole word."""
    names = set(gone)
    return [line for line in lines if names.isdisjoint(line.replace("-", " ").split())]
