"""An imitation of the test harness: jobs that lease a subnet, make a network of it, use it and tear it down.

``python -m tests.networks NAMESPACE DIRECTORY FLAVOUR`` keeps eleven of them at work until its stdin ends, and kills a
third of them; tests/soak.py starts it. A process of its own, as it forks. Each job is a process too, as its lease names
one. What they see goes to the file ``events`` in the directory.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from pyroute2.netlink import NETLINK_ROUTE, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST
from pyroute2.netlink.rtnl import RTM_DELLINK, RTM_NEWADDR, RTM_NEWLINK

from netsweep.host.netlink import attribute, error_code, open_socket, receive, request
from tests import schema
from tests.namespace import FAMILIES, NETSWEEP, Namespace, flocked, leak
from tests.soak import EVENTS, QUIETLY, TAG, WRITERS, Host

POOL = [(f"hm0ac8{number:02x}", f"10.200.{number}.0/24") for number in range(8)]
"""All test subnets that there are, with the bridge of each: fewer than jobs, so that a name comes back at once."""

IDLE_MAX = 3.0
"""Seconds that a bridge may wait for its first port. More than the age at which a bridge without a lease is leaked."""

KILLED = 1 / 3
"""The share of jobs, and of teardowns, that are killed."""

PATIENCE = 30.0
"""Seconds in which a subnet has to come free."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_IFLA_IFNAME, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_INFO_KIND = 3, 10, 18, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFF_UP = 1
_SIOCGIFADDR = 0x8915
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x2, 0x1000

_libc = ctypes.CDLL(None, use_errno=True)


class Kernel:
    """Makes and deletes links, by netlink."""

    def __init__(self) -> None:
        self._socket = open_socket(NETLINK_ROUTE)

    def make_bridge(self, name: str) -> int:
        """Make a bridge; return its index."""
        info = attribute(_IFLA_INFO_KIND, b"bridge\0")
        extra = attribute(_IFLA_IFNAME, name.encode() + b"\0") + attribute(_IFLA_LINKINFO, info)
        self._do(RTM_NEWLINK, _link() + extra, NLM_F_CREATE | NLM_F_EXCL)
        return socket.if_nametoindex(name)

    def add_address(self, index: int, address: str) -> None:
        packed = socket.inet_aton(address)
        body = struct.pack("=BBBBI", socket.AF_INET, 24, 0, 0, index)
        extra = attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)
        self._do(RTM_NEWADDR, body + extra, NLM_F_CREATE | NLM_F_EXCL)

    def set_up(self, index: int) -> None:
        self._do(RTM_NEWLINK, _link(index, _IFF_UP))

    def set_master(self, index: int, master: int) -> None:
        self._do(RTM_NEWLINK, _link(index, _IFF_UP) + attribute(_IFLA_MASTER, struct.pack("=I", master)))

    def delete(self, index: int) -> None:
        self._do(RTM_DELLINK, _link(index))

    def _do(self, kind: int, body: bytes, flags: int = 0) -> None:
        self._socket.send(request(kind, NLM_F_REQUEST | NLM_F_ACK | flags, body))
        answer = receive(self._socket)
        if code := error_code(answer, 0, len(answer)):
            raise OSError(code, os.strerror(code))


def _link(index: int = 0, flags: int = 0) -> bytes:
    return struct.pack("=BxHiII", 0, 0, index, flags, flags)


def index_of(name: str) -> int | None:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return None


def exists(index: int) -> bool:
    try:
        return bool(socket.if_indextoname(index))
    except OSError:
        return False


def address_of(name: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        try:
            answer = fcntl.ioctl(opened, _SIOCGIFADDR, struct.pack("16s24x", name.encode()))
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])


@contextmanager
def tap(name: str) -> Iterator[int]:
    """A TAP that goes with this process, as that of a virtual machine does; yields its index."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
        yield socket.if_nametoindex(name)
    finally:
        os.close(descriptor)


class Network(NamedTuple):
    """What belongs to a job."""

    bridge: str
    subnet: str
    lease: dict[str, Any]

    @property
    def address(self) -> str:
        return self.subnet.replace(".0/24", ".1")


class Job:
    """A test job: a lease, a bridge, rules, a machine on it; and the other way round."""

    def __init__(self, host: Host, flavour: str, serial: int) -> None:
        self._host = host
        self._flavour = flavour
        self._family = random.choice(FAMILIES[flavour])
        self._serial = serial
        self._kernel = Kernel()
        self._index = 0
        # What deletes each of the rules again.
        self._rules: dict[str, list[str]] = {}

    def work(self) -> None:
        self._stage("waits for a subnet")
        network = self._lease()
        self._stage("is leased")
        time.sleep(random.uniform(0, 0.1))
        stale = sum(network.bridge in line for line in self._host.save(self._flavour, self._family))
        self.say("rules that were there before their network", stale)
        self._index = self._kernel.make_bridge(network.bridge)
        self._stage("has no address")
        time.sleep(random.choice((0, 0.1)))
        self._kernel.add_address(self._index, network.address)
        self._check(network)
        self._kernel.set_up(self._index)
        self._stage("has no rules")
        self._check(network)
        self._add_rules(network)
        self._stage("is idle")
        self._wait(network, random.uniform(0, IDLE_MAX))
        with ExitStack() as used:
            if random.random() < 0.5:
                self._listen(used, network)
                self._wait(network, random.uniform(0, 0.3))
            self._kernel.set_master(used.enter_context(tap(f"tap{self._serial}")), self._index)
            self._stage("is in use")
            self._listen(used, network)
            self._wait(network, random.uniform(0, 0.3))
        self._stage("is idle again")
        self._wait(network, random.uniform(0, 0.3))
        if random.random() < 0.5:
            self._stage("is torn down by netsweep")
            self._tear_down(network)
        else:
            self._stage("is torn down in the old way")
            self._tear_down_in_the_old_way(network)

    def say(self, kind: str, value: str | float) -> None:
        """Write down what happened; nobody else's line comes between, and a kill leaves none half done."""
        line = json.dumps([self._serial, kind, value]) + "\n"
        with closing(_Descriptor(self._host.directory / EVENTS)) as events:
            os.write(events.number, line.encode())

    def _stage(self, name: str) -> None:
        self.say("stage", name)

    @contextmanager
    def _locked(self) -> Iterator[dict[str, Any]]:
        """What the lease file says, under the subnet lock."""
        began = time.monotonic()
        with flocked(self._host.lock_file):
            self.say("waited", (time.monotonic() - began) * 1000)
            yield self._read()

    def _read(self) -> dict[str, Any]:
        file = self._host.lease_file
        found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"version": 1, "leases": {}}
        return found

    def _write(self, document: dict[str, Any]) -> None:
        new = self._host.lease_file.with_suffix(".new")
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as output:
            json.dump(document, output)
        new.rename(self._host.lease_file)

    def _lease(self) -> Network:
        began = time.monotonic()
        while True:
            with self._locked() as document:
                leases = document["leases"]
                free = [each for each in POOL if each[1] not in leases and index_of(each[0]) is None]
                if free:
                    bridge, subnet = random.choice(free)
                    leases[subnet] = {
                        "test_name": f"TestJob{self._serial}",
                        "bridge_name": bridge,
                        "subnet_cidr": subnet,
                        "pid": os.getpid(),
                        "created_at_unix": int(time.time()),
                        "harness": {"serial": self._serial},
                    }
                    self._write(document)
                    self.say("got a subnet", (time.monotonic() - began) * 1000)
                    return Network(bridge, subnet, leases[subnet])
            self.say("no subnet", 1)
            if time.monotonic() - began > PATIENCE:
                raise RuntimeError(f"no subnet came free in {PATIENCE:.0f} s")
            time.sleep(random.uniform(0.02, 0.1))

    def _add_rules(self, network: Network) -> None:
        number = 0
        for table, rules in leak(network.bridge, network.subnet).items():
            for rule in rules:
                number += 1
                tag = f"n{self._serial}r{number}"
                words = rule.split()[1:]
                place = words.index("-j")
                if self._family == "inet":
                    # A rule of nft has one comment.
                    words[words.index("comment") + 2] = tag
                    words = [network.bridge if word == "eth0" and table == "nat" else word for word in words]
                else:
                    words[place:place] = ["-m", "comment", "--comment", tag]
                done, deletion = self._host.add(self._flavour, self._family, table, words)
                if done.returncode:
                    self.say("failed", f"adding a rule: {done.stderr.strip()}")
                else:
                    self._rules[tag] = deletion

    def _listen(self, used: ExitStack, network: Network) -> None:
        listener = used.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        listener.bind((network.address, 0))
        listener.listen()

    def _wait(self, network: Network, seconds: float) -> None:
        """Wait with the network as it is, and look now and then whether all of it is there."""
        deadline = time.monotonic() + seconds
        while True:
            self._check(network)
            left = deadline - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, random.uniform(0.1, 0.6)))

    def _check(self, network: Network) -> None:
        index, address = index_of(network.bridge), address_of(network.bridge)
        self._expect(index == self._index, f"{network.bridge} had index {self._index}, now {index}")
        self._expect(address == network.address, f"{network.bridge} had address {network.address}, now {address}")
        document = self._read()
        lease = document["leases"].get(network.subnet)
        self._expect(lease == network.lease, f"the lease was {network.lease}, now {lease}")
        self._expect(document.get("version") == 1, "what is not understood in the lease file was lost")
        if self._rules:
            # iptables-nft-save may miss rules beside a commit; what is lost is missing the next time too.
            missing = self._missing() and self._missing()
            self._expect(not missing, f"{len(missing)} of {len(self._rules)} rules of {network.bridge} are gone")

    def _missing(self) -> set[str]:
        return self._rules.keys() - self._standing()

    def _standing(self) -> set[str]:
        text = "\n".join(self._host.save(self._flavour, self._family))
        return self._rules.keys() & TAG.findall(text)

    def _expect(self, kept: bool, loss: str) -> None:
        if not kept:
            self.say("lost", loss)

    def _tear_down(self, network: Network) -> None:
        """Let netsweep do it; where it is killed, as often as it takes."""
        while True:
            process = self._host.start(*NETSWEEP, "teardown", network.bridge, *QUIETLY)
            if random.random() < KILLED:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(random.uniform(0, 0.8))
                process.kill()
            stdout, stderr = process.communicate(timeout=120)
            if process.returncode == -signal.SIGKILL:
                self.say("killed a teardown", 1)
                if self._read()["leases"].get(network.subnet) == network.lease:
                    continue
                # Its lease goes last: all was done.
            elif process.returncode or stderr:
                self.say("failed", f"netsweep teardown exited {process.returncode}: {stderr.strip()}")
            else:
                self.say("teardowns", 1)
                if lock := schema.read(stdout)["locks"]["subnet"]:
                    self.say("teardown held", lock["longest_ms"])
            break
        self._expect(not exists(self._index), f"{network.bridge} is there after its teardown")
        self._expect(not self._standing(), f"rules of {network.bridge} are there after its teardown")
        lease = self._read()["leases"].get(network.subnet)
        self._expect(lease != network.lease, f"the lease of {network.bridge} is there after its teardown")

    def _tear_down_in_the_old_way(self, network: Network) -> None:
        with self._locked() as document:
            if document["leases"].get(network.subnet) == network.lease:
                del document["leases"][network.subnet]
                self._write(document)
        time.sleep(random.choice((0, 0.5)))
        # From here on a sweep may be quicker, and somebody else may have the name.
        for deletion in self._rules.values():
            self._host.run(*deletion, check=False)
        try:
            self._kernel.delete(self._index)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise


class _Descriptor:
    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        os.close(self.number)


class Crew:
    """Eleven jobs at once, each in a process of its own, of which some are killed."""

    def __init__(self, host: Host, flavour: str) -> None:
        self._host = host
        self._flavour = flavour
        self._serial = 0
        # When each is killed.
        self._running: dict[int, float] = {}

    def work(self) -> None:
        """Keep jobs at work until stdin ends, and wait for the last of them and what they started."""
        # What a killed job started comes here.
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        stopped = False
        while self._running or not stopped:
            stopped = stopped or bool(select.select([sys.stdin], [], [], 0.005)[0])
            if stopped:
                time.sleep(0.005)
            while not stopped and len(self._running) < WRITERS:
                self._start()
            for pid, due in self._running.items():
                if time.monotonic() > due:
                    os.kill(pid, signal.SIGKILL)
            self._reap(os.WNOHANG)
        self._reap(0)

    def _start(self) -> None:
        self._serial += 1
        parent = os.getpid()
        pid = os.fork()
        if pid:
            # Teardowns last long, and are to be hit too.
            due = time.monotonic() + random.uniform(0, IDLE_MAX + 1.5) if random.random() < KILLED else float("inf")
            self._running[pid] = due
            return
        try:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() == parent:
                random.seed()
                job = Job(self._host, self._flavour, self._serial)
                try:
                    job.work()
                except Exception:
                    job.say("failed", traceback.format_exc())
                job.say("ended", 1)
        finally:
            os._exit(0)

    def _reap(self, flags: int) -> None:
        with suppress(ChildProcessError):
            while (pid := os.waitpid(-1, flags)[0]) > 0:
                self._running.pop(pid, None)


def main() -> None:
    name, directory, flavour = sys.argv[1:]
    Crew(Host(Namespace(name, Path(directory))), flavour).work()


if __name__ == "__main__":
    main()
