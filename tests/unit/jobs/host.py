"""A host in memory: firewalls, interfaces, leases and locks for the jobs, without root."""

from __future__ import annotations

import fcntl
import io
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from netsweep.errors import NetsweepError
from netsweep.firewall import Scan, Transaction
from netsweep.firewall.memory import MemoryBackend
from netsweep.host import interfaces, leases, locks
from netsweep.jobs import look, restore
from netsweep.jobs.sweep import sweep
from netsweep.model import BackendName, Chain, Family, Finding, Interface, Lease, Rule, Spec, Table
from netsweep.output.json import write_json
from netsweep.profiles.options import Options
from netsweep.report import LockTimes, Report
from tests import schema

FILTER = Table("nft", Family.IPV4, "filter")
FORWARD = Chain(FILTER, "FORWARD")
POSTROUTING = Chain(Table("nft", Family.IPV4, "nat"), "POSTROUTING")


def spec(bridge: str, *comments: str) -> Spec:
    return Spec(in_interface=Interface(bridge), target="ACCEPT", comments=comments)


class Firewall(MemoryBackend):
    """Notes what is done to it."""

    def __init__(self, note: Callable[[str], None], name: BackendName, chains: Collection[Chain], batch: int) -> None:
        super().__init__([chain._replace(table=chain.table._replace(backend=name)) for chain in chains], name=name)
        self.batch = batch
        self.complete = True
        self.closed = 0
        self.looked_at: list[Chain] = []
        self.before_transaction: Callable[[], None] = lambda: None
        self._note = note

    def leak(self, *bridges: str, chain: Chain = FORWARD) -> None:
        for bridge in bridges:
            self.append(self.of(chain), spec(bridge))

    def of(self, chain: Chain) -> Chain:
        """The chain of that name in this firewall."""
        return chain._replace(table=chain.table._replace(backend=self.name))

    def bridges(self, chain: Chain = FORWARD) -> list[str]:
        """The interface that each rule of ``chain`` names, in order."""
        return [str(rule.spec.in_interface) for rule in self.rules(self.of(chain))]

    def identities(self, chain: Chain = FORWARD) -> list[bytes]:
        return [rule.undo.identity for rule in self.rules(self.of(chain)) if rule.undo]

    def read(
        self,
        tables: Collection[Table],
        wanted: Callable[[Chain], bool],
        limit: int | None = None,
        *,
        again: bool = False,
    ) -> Scan:
        self._note(f"read {self.name}")
        scan = super().read(tables, wanted, limit)
        scan.complete = self.complete
        self.looked_at += scan.chains
        return scan

    @contextmanager
    def locked(self, times: LockTimes, timeout: float) -> Iterator[None]:
        self._note(f"lock {self.name}")
        yield
        self._note(f"release {self.name}")

    @contextmanager
    def transaction(
        self, chains: Sequence[Chain], rules: Sequence[Rule] = (), *, orders: bool = False
    ) -> Iterator[Transaction]:
        self.before_transaction()
        with super().transaction(chains, rules, orders=orders) as transaction:
            self._note(f"read {self.name} again")
            yield transaction

    def commit(self, *arguments: Any) -> int:
        self._note(f"commit {self.name}")
        return super().commit(*arguments)

    def close(self) -> None:
        self.closed += 1


class Host:
    """``alive`` are the interfaces that exist, ``devices`` those that have a number.

    ``before_asking`` is called before they are asked for. ``locked``: a job holds the subnet lock.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lock_file = directory / "lock"
        self.lease_file = directory / "leases.json"
        self.events: list[str] = []
        self.locked = False
        self.alive: set[str] = set()
        self.devices: dict[int, tuple[str, ...]] = {}
        self.before_asking: Callable[[], None] = lambda: None
        self.before_leases: Callable[[], None] = lambda: None
        self.before_replace: Callable[[], None] = lambda: None
        self.firewalls: dict[str, Firewall] = {}

    def firewall(
        self,
        *bridges: str,
        chains: Collection[Chain] = (FORWARD, POSTROUTING),
        batch: int = 1000,
        name: BackendName = "nft",
    ) -> Firewall:
        """Give the host a firewall with a rule for each of ``bridges``."""
        made = Firewall(self.events.append, name, chains, batch)
        made.leak(*bridges)
        self.firewalls[name] = made
        return made

    def open_backend(self, name: BackendName, prefilter: Sequence[bytes], **_: bool) -> Firewall:
        return self.firewalls.get(name) or Firewall(self.events.append, name, (), 1000)

    def lease(self, bridge: str, pid: int) -> None:
        self.lease_file.write_text(json.dumps({"leases": {"10.200.1.0/24": {"bridge_name": bridge, "pid": pid}}}))

    def options(self, **options: Any) -> Options:
        return Options(lock_file=self.lock_file, lease_file=self.lease_file, **options)

    def sweep(self, **options: Any) -> Report:
        return sweep(self.options(**options))

    def failed(self, error: type[NetsweepError], match: str, **options: Any) -> tuple[NetsweepError, Report]:
        """A sweep that has to fail, with a report, and with everything given back."""
        with pytest.raises(error, match=match) as raised:
            self.sweep(**options)
        report = raised.value.report
        assert report
        assert report.errors == [str(raised.value)]
        assert self.lock_is_free()
        assert {firewall.closed for firewall in self.firewalls.values()} <= {1}
        return raised.value, report

    def changes(self) -> list[str]:
        """What was changed, in order."""
        return [event for event in self.events if event.startswith(("delete", "commit", "remove"))]

    def lock_is_free(self) -> bool:
        if not self.lock_file.exists():
            return True
        with self.lock_file.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the jobs see this host, and no other."""
        host, held, read = self, locks.held, leases.read
        without, replace = leases.Leases.without, leases.Rewritten.replace

        class Known:
            def __enter__(self) -> Known:
                return self

            def __exit__(self, *_: object) -> None:
                pass

            def find(
                self, names: Collection[str], indexes: Collection[int] = ()
            ) -> tuple[frozenset[str], Mapping[int, tuple[str, ...]]]:
                host.before_asking()
                host.events.append("interfaces")
                return frozenset(names) - host.alive, {index: host.devices.get(index, ()) for index in indexes}

        @contextmanager
        def noted(times: LockTimes, timeout: float, **options: Any) -> Iterator[None]:
            with held(times, timeout, **options):
                host.events.append("lock subnet")
                host.locked = True
                try:
                    yield
                finally:
                    host.locked = False
            host.events.append("release subnet")

        def noted_read(*arguments: Any) -> leases.Leases:
            host.before_leases()
            host.events.append("leases")
            return read(*arguments)

        def checked_without(known: leases.Leases, unwanted: Callable[[Lease], bool]) -> leases.Rewritten:
            assert not host.locked, "it takes long"
            return without(known, unwanted)

        def noted_replace(rewritten: leases.Rewritten) -> None:
            assert host.locked
            host.before_replace()
            host.events.append("remove leases")
            replace(rewritten)

        @contextmanager
        def checked(report: Report) -> Iterator[None]:
            try:
                with look.reporting(report):
                    yield
            finally:
                if report.command != "doctor":  # which writes an object of its own
                    written = io.StringIO()
                    write_json(report, written)
                    schema.read(written.getvalue())

        for job in ("restore", "sweep", "teardown"):
            monkeypatch.setattr(f"netsweep.jobs.{job}.reporting", checked)
        for module in (look, restore):
            monkeypatch.setattr(module, "require_net_admin", lambda: None)
            monkeypatch.setattr(module, "open_backend", self.open_backend)
        monkeypatch.setattr(interfaces, "Interfaces", Known)
        monkeypatch.setattr(locks, "held", noted)
        monkeypatch.setattr(leases, "read", noted_read)
        monkeypatch.setattr(leases.Leases, "without", checked_without)
        monkeypatch.setattr(leases.Rewritten, "replace", noted_replace)


def gone(findings: Sequence[Finding]) -> list[tuple[str, str, int]]:
    return [(str(f.rule.spec.in_interface), f.rule.chain.name, f.rule.position) for f in findings]


def on_call(number: int, action: Callable[[], object], *, every: bool = False) -> Callable[[], None]:
    """Do ``action`` at that call (counted from one), or with ``every`` at that one and all later ones."""
    calls = 0

    def called() -> None:
        nonlocal calls
        calls += 1
        if calls == number or (every and calls > number):
            action()

    return called


def fail(error: BaseException) -> Callable[[], None]:
    def raised() -> None:
        raise error

    return raised


def ended_process() -> int:
    """The PID of a process that has ended."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child
