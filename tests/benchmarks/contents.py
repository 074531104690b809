"""The network namespace in which everything is measured, and the rules in it."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from tests.namespace import CLONE_NEWNET, FAMILIES, Namespace, in_family, leaks, program, restore_input

T = TypeVar("T")

BACKENDS = {"legacy": "x_tables", "nft": "nf_tables"}
"""What netsweep and iptables call a backend, and what the kernel calls it."""

LIVE = [f"hm{number:x}" for number in range(11)]
"""Bridges that exist, one for each neighbour; their rules stay."""

DEAD = "hm[0-9a-f]{4}"
"""What the names of all leaked bridges match, and of no live one."""

RULES_PER_BRIDGE = 3

NO_PID = 2**22
"""The PID after the last one that Linux gives (PID_MAX_LIMIT, linux/threads.h)."""

OTHERS = (
    '-s 10.{chain}.{rule}.0/24 -d 192.0.2.{rule} -p tcp -m tcp --dport 80 -m comment --comment "web {rule}" -j ACCEPT',
    "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    "-p tcp -m multiport --dports {rule},80,443,8000:8100 -j RETURN",
    '-s 10.{chain}.{rule}.5 -m comment --comment "default/web" -m statistic --mode random --probability 0.25 -j RETURN',
    "-i br-{chain}-{rule} ! -o br-{chain}-{rule} -j RETURN",
    "-m mark ! --mark 0x4000/0x4000 -j RETURN",
    '-m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix "[UFW BLOCK] "',
)
"""What rules of others are made of, as Kubernetes, Docker and ufw write them."""

CHAINS = 300

FORK = multiprocessing.get_context("fork")


class BenchmarkError(Exception):
    """Something measured did not do its work, so that its time means nothing."""


class Cost(NamedTuple):
    """What one program took, with those it started. Peak memory is that of the largest of them."""

    wall_ms: float
    cpu_ms: float
    peak_mb: float


class Apart(Generic[T]):
    """Calls ``function`` in a process of its own.

    That also keeps large things out of this process: Linux lets the peak memory of a new program
    begin at that of the process that starts it.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        self._receiver, sender = FORK.Pipe(duplex=False)

        def call() -> None:
            # Ctrl-C reaches the whole group; the process that waits for this one ends it.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            try:
                sender.send(function())
            except Exception as error:
                sender.send(BenchmarkError(f"{type(error).__name__}: {error}"))

        self._process = FORK.Process(target=call)
        self._process.start()
        sender.close()

    def result(self) -> T:
        """Wait for what the function returns."""
        try:
            result: T | BenchmarkError = self._receiver.recv()
        except EOFError:
            raise BenchmarkError("a process of the benchmark was killed") from None
        self._process.join()
        if isinstance(result, BenchmarkError):
            raise result
        return result


class Contents(Namespace):
    """A network namespace without a name that this process moves into, so that no figure holds the way in.

    It goes when the last process in it has ended. One flavour of iptables is used here: the other
    backend holds no tables.
    """

    def __init__(self, directory: Path, flavour: str) -> None:
        super().__init__("", directory)
        self.flavour = flavour
        self.output = directory / "stdout"
        # Unbuffered output or missing bytecode is not how netsweep runs elsewhere.
        self.environment = {k: v for k, v in self.environment.items() if not k.startswith("PYTHON")}
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
            raise BenchmarkError(f"cannot make a network namespace: {os.strerror(ctypes.get_errno())}; run as root")
        self.add_bridges(*LIVE)
        self.load(0)
        self._staying = Counter(self._rules())

    def command(self, *arguments: str) -> list[str]:
        return list(arguments)

    def tool(self, suffix: str = "", family: str = "ipv4") -> str:
        """The full path of this flavour's iptables: no search of PATH is in any figure."""
        return self._path(program(self.flavour, family, suffix))

    def save_all(self) -> list[str]:
        """The command that writes out all rules of this flavour, of IPv4 and of IPv6."""
        if self.flavour == "nft":
            return [self._path("nft"), "list", "ruleset"]
        return ["sh", "-c", f"{self.tool('-save')} && {self.tool('-save', 'ipv6')}"]

    def _path(self, name: str) -> str:
        if path := shutil.which(name):
            return path
        raise BenchmarkError(f"{name} is not installed")

    def load(self, leaked: int, family: str = "ipv4") -> None:
        """Replace all rules of ``family``: ``leaked`` ones of dead bridges, between those of live ones."""

        def tables() -> str:
            flush = restore_input({"filter": ["-F"], "nat": ["-F"]})
            text = flush + leaks(LIVE[:6]) + leaks(_dead_bridges(leaked)) + leaks(LIVE[6:])
            return self.native(text) if family == "inet" else "".join(in_family([text], family))

        self._restore_file(self._file(f"load-{leaked}-{family}", tables), family)

    def leak_networks(self, bridges: int) -> None:
        """Leak whole networks: bridges with an address that are up, the leases of a dead process, and their rules."""
        self.load(RULES_PER_BRIDGE * bridges)
        self.run("ip", "-batch", self._file(f"networks-{bridges}", partial(_networks, bridges)))
        leases = {
            subnet: {"bridge_name": name, "subnet_cidr": subnet, "pid": NO_PID}
            for name, subnet in zip(_dead_bridges(RULES_PER_BRIDGE * bridges), _subnets(bridges), strict=True)
        }
        self.lease_file.write_text(json.dumps({"leases": leases}))

    def delete_bridges(self, bridges: int) -> str:
        """A shell script that deletes each leaked bridge with a process of its own, and neither rules nor leases."""
        ip = self._path("ip")
        lines = [f"{ip} link del {name}" for name in _dead_bridges(RULES_PER_BRIDGE * bridges)]
        return self._file(f"delete-bridges-{bridges}", lambda: "\n".join(["set -e", *lines]))

    def leak_more(self, leaked: int = RULES_PER_BRIDGE) -> None:
        """Leak so many rules beside what is there."""
        self._restore_file(self._file(f"leak-{leaked}", lambda: leaks(_dead_bridges(leaked))))

    def add_staying(self) -> None:
        """Add some 900 rules of live bridges, so that iptables is busy with the table while it holds the lock."""
        self._restore_file(self._file("staying", lambda: leaks(LIVE * 27)))

    def crowd(self, rules: int) -> None:
        """Add ``rules`` of others in :data:`CHAINS` chains of their own, half of them of IPv6."""
        texts = [_others(rules // 2)]
        for family in ("ipv4", "ipv6"):
            self._restore_file(self._file(f"others-{family}", partial("".join, in_family(texts, family))), family)

    def deletions(self, leaked: int) -> str:
        """A file of ``iptables-restore`` input that deletes the leaked rules one by one."""
        return self._file(f"delete-{leaked}", lambda: leaks(_dead_bridges(leaked)).replace("\n-A ", "\n-D "))

    def script(self, leaked: int) -> str:
        """A shell script that deletes each leaked rule with a process of its own."""

        def commands() -> str:
            table, lines = "", ["set -e"]
            for line in leaks(_dead_bridges(leaked)).splitlines():
                if line.startswith("*"):
                    table = line[1:]
                elif line.startswith("-A "):
                    lines.append(f"{self.tool()} -w -t {table} -D {line[3:]}")
            return "\n".join(lines)

        return self._file(f"script-{leaked}", commands)

    def start_measured(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start ``command`` with its output going to :attr:`output`."""
        with self.output.open("wb") as output, (self.directory / "stderr").open("wb") as complaints:
            return subprocess.Popen(command, stdout=output, stderr=complaints, env=self.environment)

    def measure(self, command: Sequence[str]) -> Cost:
        """Run ``command`` and say what it took; raises :class:`BenchmarkError` where it fails."""
        began = time.perf_counter()
        process = self.start_measured(command)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        self.require_success(process)
        cpu = usage.ru_utime + usage.ru_stime
        return Cost(wall * 1000, cpu * 1000, usage.ru_maxrss * 1024 / 1e6)

    def require_success(self, process: subprocess.Popen[bytes]) -> None:
        """Raise :class:`BenchmarkError` where a program that was started here failed."""
        if process.returncode:
            said = (self.directory / "stderr").read_text(errors="replace").strip()
            raise BenchmarkError(f"{process.args!a} exited {process.returncode}: {said[-500:]}")

    def check(self, who: str) -> None:
        """Raise :class:`BenchmarkError` unless ``who`` left no orphan and every rule that stays."""
        rules = self._rules()
        orphans = sum(bool(re.search(DEAD, rule)) for rule in rules)
        if orphans:
            raise BenchmarkError(f"{who} left {orphans} orphaned rules in {BACKENDS[self.flavour]}")
        if lost := self._staying - Counter(rules):
            raise BenchmarkError(f"{who} deleted {lost.total()} rules of live bridges in {BACKENDS[self.flavour]}")

    def check_bridges(self, who: str) -> None:
        """Raise :class:`BenchmarkError` unless ``who`` left no leaked bridge and each live one."""
        links = json.loads(self.run("ip", "-j", "link", "show", "type", "bridge").stdout)
        names = {link["ifname"] for link in links}
        if names != set(LIVE):
            raise BenchmarkError(f"{who} left {len(names.difference(LIVE))} leaked bridges and {len(names)} in all")

    def _restore_file(self, path: str, family: str = "ipv4") -> None:
        if family == "inet":
            self.run(self._path("nft"), "-f", path)
        else:
            self.run(self.tool("-restore", family), "--noflush", "-w", "30", path)

    def _rules(self) -> list[str]:
        """Every rule, those of iptables without their counters."""
        lines = [line for family in FAMILIES[self.flavour] for line in self.save(self.flavour, family)]
        return [line.partition("] ")[2] or line for line in lines if line.startswith(("[", "\t\t"))]

    def _file(self, name: str, text: Callable[[], str]) -> str:
        path = self.directory / f"{self.flavour}-{name}"
        if not path.exists():
            Apart(lambda: path.write_text(text())).result()
        return str(path)


def _others(rules: int) -> str:
    """``iptables-restore`` input with ``rules`` in half of :data:`CHAINS`."""
    tables: dict[str, list[str]] = {"filter": [], "nat": []}
    chains = CHAINS // 2
    for chain in range(chains):
        of_table = tables["filter" if chain % 2 else "nat"]
        of_table.insert(0, f":OTHERS-{chain} - [0:0]")
        for rule in range(rules // chains):
            body = OTHERS[(chain + rule) % len(OTHERS)].format(chain=chain, rule=rule + 1)
            of_table.append(f"-A OTHERS-{chain} {body}")
    return restore_input(tables)


def _networks(bridges: int) -> str:
    """Commands of ``ip`` that make the bridges of leaked networks."""
    lines = []
    for name, subnet in zip(_dead_bridges(RULES_PER_BRIDGE * bridges), _subnets(bridges), strict=True):
        address = subnet.replace(".0/24", ".1/24")
        lines += [f"link add {name} type bridge", f"addr add {address} dev {name}", f"link set {name} up"]
    return "\n".join(lines) + "\n"


def _subnets(bridges: int) -> list[str]:
    return [f"10.{200 + number // 256}.{number % 256}.0/24" for number in range(bridges)]


def _dead_bridges(rules: int) -> list[str]:
    return [f"hm{0x1000 + number:x}" for number in range(rules // RULES_PER_BRIDGE)]
