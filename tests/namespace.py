"""Network namespaces of the tests' own, with the real iptables in them."""

from __future__ import annotations

import ctypes
import fcntl
import ipaddress
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import pytest

import netsweep
from netsweep.firewall import Backend, Scan
from netsweep.model import Chain
from tests import schema

T = TypeVar("T")

FLAVOURS = ("legacy", "nft")
FAMILIES = {"legacy": ("ipv4", "ipv6"), "nft": ("ipv4", "ipv6", "inet")}
"""The families of tables that each flavour has; those of inet are written by nft alone."""

NATIVE_NAMES = {"ipv4": "ip", "ipv6": "ip6", "inet": "inet"}
"""What nft calls the families."""

PLACES = [(flavour, family) for flavour in FLAVOURS for family in FAMILIES[flavour]]
CLONE_NEWNET = 0x40000000

NETSWEEP = (sys.executable, "-m", "netsweep")

NO_NET_ADMIN = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-all")
"""Runs a program as root without CAP_NET_ADMIN."""

NOBODY = 65534

_CALLERS = ("NETSWEEP_", "GITHUB_", "COVERAGE_", "COLUMNS")
"""How variables begin that change what netsweep does or shows; pytest-xdist sets ``COLUMNS``. Coverage is measured in
the process of the tests only: the started ones take more than twice as long with it."""

_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """One network namespace, entered by every program that is run through it.

    Lock and lease file are its own, so that tests do not wait for each other: ``directory`` is the
    TMPDIR of everything run here, and the xtables lock is in it too.
    """

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(_CALLERS)},
            "TMPDIR": str(directory),
            "XTABLES_LOCKFILE": str(directory / "xtables.lock"),
        }
        self.lock_file = directory / "hypeman-test-network.lock"
        self.lease_file = directory / "hypeman-test-network-leases.json"
        self.xtables_lock = directory / "xtables.lock"

    def command(self, *arguments: str) -> list[str]:
        """The command line that runs ``arguments`` in the namespace."""
        return ["ip", "netns", "exec", self.name, *arguments]

    def run(
        self,
        *arguments: str,
        check: bool = True,
        input: str | None = None,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> subprocess.CompletedProcess[str]:
        """Run a program here and wait for it; ``environment`` is added to that of the namespace.

        A report of netsweep has to be as its schema says.
        """
        done = subprocess.run(
            self.command(*arguments),
            check=False,
            input=input,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            env={**self.environment, **environment},
            timeout=120,
        )
        if check and done.returncode:
            raise AssertionError(f"{arguments} exited {done.returncode}: {done.stderr}")
        if done.stdout.startswith('{"schema": '):
            schema.read(done.stdout)
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
        return self.run(*NETSWEEP, *arguments, check=False)

    def iptables(self, flavour: str, *arguments: str, family: str = "ipv4") -> None:
        self.run(program(flavour, family), "-w", "5", *in_family(arguments, family))

    def restore(
        self, flavour: str, tables: str, family: str = "ipv4", *, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Load ``iptables-restore`` input, beside what is there: of inet as the same rules in the words of nft."""
        if family == "inet":
            return self.run("nft", "-f", "-", input=self.native(tables), check=check)
        command = (program(flavour, family, "-restore"), "--noflush", "-w", "5")
        return self.run(*command, input="".join(in_family([tables], family)), check=check)

    def native(self, tables: str) -> str:
        """``iptables-restore`` input as commands of nft for tables of inet, with the hooks of iptables' own chains."""
        hooked = re.sub(r"^(\*.*\n)((?:[^*].*\n)*)", _with_built_in_chains, tables, flags=re.MULTILINE)
        commands = self.run("iptables-restore-translate", "-f", "/dev/stdin", input=hooked).stdout
        return re.sub(r"^(\w+ (?:table|chain|rule)) ip ", r"\1 inet ", commands, flags=re.MULTILINE)

    def save(self, flavour: str, family: str = "ipv4") -> list[str]:
        """What ``iptables-save -c`` says, line by line, without its comments, which hold the time; or nft of inet."""
        if family == "inet":
            return self.run("nft", "list", "ruleset", "inet").stdout.splitlines()
        lines = self.run(program(flavour, family, "-save"), "-c").stdout.splitlines()
        return [line for line in lines if not line.startswith("#")]

    def ruleset(self) -> str:
        """What ``nft`` says of the whole namespace, handles included."""
        return self.run("nft", "-a", "list", "ruleset").stdout

    def snapshot(self) -> list[str]:
        """Every rule of both flavours with its counters, and for nf_tables its handle."""
        return [*self.save("legacy"), *self.save("legacy", "ipv6"), *self.ruleset().splitlines()]

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


def as_nobody(ns: Namespace, capabilities: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run netsweep as a user with nothing but ``capabilities``.

    Python and netsweep may be installed where only root gets to, so they are mounted where anybody does.
    """
    mounts = {
        "python": sys.base_prefix,
        "site": sysconfig.get_path("purelib"),
        "source": str(Path(netsweep.__file__).parent.parent),
    }
    binds = []
    for name, source in mounts.items():
        (ns.directory / name).mkdir(exist_ok=True)
        binds.append(f"mount --bind '{source}' '{ns.directory / name}'")
    script = " && ".join([*binds, 'exec "$@"'])
    sets = ",".join(f"+{capability}" for capability in capabilities)
    return ns.run(
        *("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"),
        *("env", f"PYTHONPATH={ns.directory}/source:{ns.directory}/site", f"LD_LIBRARY_PATH={ns.directory}/python/lib"),
        *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"),
        *(f"--inh-caps=-all,{sets}", f"--ambient-caps=-all,{sets}", f"--bounding-set=-all,{sets}"),
        *(f"{ns.directory}/python/bin/python{sys.version_info.major}.{sys.version_info.minor}", "-m", "netsweep"),
        *arguments,
        check=False,
    )


def without_library(ns: Namespace, name: str) -> tuple[str, ...]:
    """The beginning of a command line that hides a library of iptables-legacy from the program behind it."""
    program = shutil.which("iptables-legacy")
    assert program
    found = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout.splitlines()
    (path,) = [line.split()[2] for line in found if line.split()[0].startswith(f"{name}.so")]
    # An empty file, as nothing else can be put over a file; the dynamic linker says that it is too short.
    empty = ns.directory / "empty"
    empty.touch()
    script = f"mount --bind '{empty}' '{path}' && exec \"$@\""
    return ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh")


def complaint(done: subprocess.CompletedProcess[str], status: int) -> str:
    """The one line on stderr of a netsweep that ended with ``status``."""
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("netsweep: ")
    assert done.stderr.isascii()
    line = done.stderr.removesuffix("\n")
    assert line.isprintable(), f"not one clean line: {line!a}"
    return line


def report_of(done: subprocess.CompletedProcess[str], status: int = 0) -> dict[str, Any]:
    """The JSON of a netsweep that has to end with ``status``, without a word on stderr."""
    assert (done.returncode, done.stderr) == (status, "")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


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


def is_free(path: Path) -> bool:
    """Whether nobody holds the lock on the file at ``path``."""
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@contextmanager
def holder(ns: Namespace, path: Path, *arguments: str, says: str = "") -> Iterator[subprocess.Popen[str]]:
    """Run a program that takes the lock on ``path`` once it has read ``says``, and keeps it until its stdin ends."""
    path.touch()
    pipe = subprocess.PIPE
    with subprocess.Popen(ns.command(*arguments), stdin=pipe, stdout=pipe, text=True, env=ns.environment) as process:
        assert process.stdin
        process.stdin.write(says)
        process.stdin.flush()
        deadline = time.monotonic() + 10
        while is_free(path):
            assert time.monotonic() < deadline, "it never took the lock"
            time.sleep(0.001)
        yield process


def in_process(ns: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let netsweep find the namespace's own locks and leases in this process too."""
    for name in ("TMPDIR", "XTABLES_LOCKFILE"):
        monkeypatch.setenv(name, ns.environment[name])


def write_leases(ns: Namespace, pids: dict[str, int]) -> None:
    """Write the lease file as the test harness does: under a name of its own, then renamed."""
    content = {
        f"10.200.{number}.0/24": {
            "test_name": "TestX",
            "bridge_name": bridge,
            "subnet_cidr": f"10.200.{number}.0/24",
            "pid": pid,
            "created_at_unix": 1781049600,
        }
        for number, (bridge, pid) in enumerate(pids.items())
    }
    new = ns.directory / "leases.new"
    new.write_text(json.dumps({"leases": content}))
    new.chmod(0o600)
    new.rename(ns.lease_file)


def of_bridge(ns: Namespace, flavour: str, bridge: str, family: str = "ipv4") -> int:
    """How many rules name ``bridge``."""
    return sum(bool(re.search(rf"\b{bridge}\b", line)) for line in ns.save(flavour, family))


def read(backend: Backend, *chains: Chain, limit: int | None = None) -> Scan:
    """Read those of ``chains`` that exist."""
    tables = [table for table in backend.tables() if any(chain.table == table for chain in chains)]
    return backend.read(tables, chains.__contains__, limit)


@contextmanager
def new_namespace(directory: Path) -> Iterator[Namespace]:
    """Make a namespace with a name of its own, and remove it in the end."""
    name = f"netsweep-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        yield Namespace(name, directory)
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


def program(flavour: str, family: str, suffix: str = "") -> str:
    """The iptables of a family."""
    return f"{'ip6tables' if family == 'ipv6' else 'iptables'}-{flavour}{suffix}"


def _with_built_in_chains(table: re.Match[str]) -> str:
    used = dict.fromkeys(re.findall(r"^-[AI] (INPUT|OUTPUT|FORWARD|PREROUTING|POSTROUTING) ", table[2], re.MULTILINE))
    return table[1] + "".join(f":{chain} ACCEPT [0:0]\n" for chain in used) + table[2]


_ADDRESS = re.compile(r"\b(\d{1,3}(?:\.\d{1,3}){3})(?:/(\d{1,2}))?\b")


def in_family(texts: Iterable[str], family: str) -> list[str]:
    """``texts`` with addresses of IPv6 in the place of those of IPv4, where ``family`` is that."""
    if family != "ipv6":
        return list(texts)

    def address(found: re.Match[str]) -> str:
        number = int(ipaddress.IPv6Address("fd00::")) + int(ipaddress.IPv4Address(found[1]))
        return f"{ipaddress.IPv6Address(number)}{f'/{96 + int(found[2])}' if found[2] else ''}"

    return [_ADDRESS.sub(address, text) for text in texts]


def restore_input(tables: dict[str, list[str]]) -> str:
    """Rules by table as ``iptables-restore`` reads them."""
    return "".join(
        f"*{table}\n" + "".join(f"{rule}\n" for rule in rules) + "COMMIT\n" for table, rules in tables.items()
    )


def without(lines: list[str], *gone: str) -> list[str]:
    """``lines`` less those that name one of the bridges in ``gone`` as a whole word."""
    names = set(gone)
    return [line for line in lines if names.isdisjoint(re.split(r'[- "]', line))]
