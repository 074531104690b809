"""The firewalls that the contract is tested on, and what a test does to them besides through a backend."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from netsweep.firewall import Backend, Transaction
from netsweep.firewall.memory import MemoryBackend
from netsweep.firewall.opening import open_backend
from netsweep.model import Chain, Family, Interface, Rule, Spec, Table
from netsweep.report import LockTimes
from tests.namespace import Namespace, restore_input, unchanged

HINTS = (b"hm",)
"""Backends may leave out rules that hold none of these."""

TABLE, CHAIN, OTHER = "filter", "FORWARD", "JOBS"


def spec(
    comment: str,
    i: str | None = None,
    o: str | None = None,
    *,
    source: str | None = None,
    destination: str | None = None,
    target: str | None = "ACCEPT",
) -> Spec:
    """A rule to make; interfaces as iptables writes them: ``hm1``, ``hm+``, ``!hm1``."""
    return Spec(match(i), match(o), source, destination, target, (comment,))


def match(text: str | None) -> Interface | None:
    if text is None:
        return None
    return Interface(text.lstrip("!").rstrip("+"), text.endswith("+"), text.startswith("!"))


def comments(rules: Sequence[Rule]) -> list[str]:
    """The comments of those rules that every backend has to show."""
    return [each.spec.comment for each in rules if each.spec.comment and each.spec.comment.startswith("hm")]


def chosen(rules: Sequence[Rule], *comments: str) -> list[Rule]:
    return [each for each in rules if each.spec.comment in comments]


class Firewall(ABC):
    """A firewall that has a table with two chains once it is prepared.

    ``notices`` are the names of the methods whose changes a transaction has to notice.
    """

    name: str
    notices: Collection[str] = ("remove", "replace", "remake")

    def __init__(self, directory: Path) -> None:
        # Not the lock that iptables takes: who interferes in these tests heeds no lock.
        self.lock = directory / "unheeded.lock"

    @property
    def table(self) -> Table:
        return Table(self.name, Family.IPV4, TABLE)

    @property
    def chain(self) -> Chain:
        return Chain(self.table, CHAIN)

    @property
    def other(self) -> Chain:
        return Chain(self.table, OTHER)

    @abstractmethod
    def prepare(self) -> None:
        """Make the table with both chains, empty."""

    @abstractmethod
    def open(self, *, undo: bool = False, writes: bool = True) -> Backend:
        """A backend; ``writes``: what it reads is to be changed then."""

    @abstractmethod
    def make(self, *specs: Spec, chain: str = CHAIN) -> None:
        """Put rules at the end of a chain."""

    @abstractmethod
    def remove(self, comment: str = "hm-a") -> None:
        """Delete the first rule of the chain that has this comment."""

    @abstractmethod
    def replace(self, comment: str = "hm-a", by: str = "hm-new") -> None:
        """Put another rule in the place of the first that has this comment, under its handle."""

    @abstractmethod
    def remake(self, *comments: str) -> None:
        """Make the table anew, with other rules in the chain; handles start again."""

    def append(self) -> None:
        self.make(spec("hm-new"))

    def append_elsewhere(self) -> None:
        self.make(spec("other"), chain=OTHER)

    @abstractmethod
    def shown(self, chain: str = CHAIN) -> list[tuple[str, str]]:
        """The comment of each rule and all that another program shows of it, in order."""

    def standing(self, chain: str = CHAIN) -> list[str]:
        return [comment for comment, _ in self.shown(chain)]

    @abstractmethod
    def unchanged(self) -> AbstractContextManager[None]:
        """Check that all rules are the same afterwards, and no table is new."""

    @abstractmethod
    def inside(self, function: Callable[[], None]) -> None:
        """Call ``function`` where the firewall is."""

    @contextmanager
    def transaction(
        self, backend: Backend, rules: Sequence[Rule] = (), *, orders: bool = False
    ) -> Iterator[Transaction]:
        """A transaction on both chains."""
        with (
            backend.locked(LockTimes(str(self.lock)), 5),
            backend.transaction([self.chain, self.other], rules, orders=orders) as transaction,
        ):
            yield transaction

    def order(self, backend: Backend) -> list[bytes]:
        """The identities of the chain's rules."""
        with self.transaction(backend, orders=True) as transaction:
            return [each.identity for each in transaction.orders[self.chain]]

    def kept(self, backend: Backend, *comments: str) -> list[bytes]:
        """What the backend keeps of the chain's rules that have these comments."""
        rules = chosen(backend.read([self.chain]).rules, *comments)
        return [each.undo.raw for each in rules if each.undo]


class KernelFirewall(Firewall):
    """x_tables or nf_tables in a network namespace, changed with iptables."""

    def __init__(self, ns: Namespace, flavour: str) -> None:
        super().__init__(ns.directory)
        self.ns = ns
        self.name = flavour
        if flavour == "legacy":
            # Others are kept away by a lock; the kernel notices only that the number of rules has changed.
            self.notices = ("remove",)

    def prepare(self) -> None:
        self._restore(f":{OTHER} - [0:0]")

    def open(self, *, undo: bool = False, writes: bool = True) -> Backend:
        return open_backend(self.name, HINTS, undo=undo, writes=writes)

    def make(self, *specs: Spec, chain: str = CHAIN) -> None:
        # Each with counters of its own, to see that they stay.
        lines = [f"[{number}:{number}00] -A {chain}{_options(each)}" for number, each in enumerate(specs, 1)]
        self._restore(*lines)

    def remove(self, comment: str = "hm-a") -> None:
        self.ns.iptables(self.name, "-D", CHAIN, self._position(comment))

    def replace(self, comment: str = "hm-a", by: str = "hm-new") -> None:
        self.ns.iptables(self.name, "-R", CHAIN, self._position(comment), *_options(spec(by)).split())

    def remake(self, *comments: str) -> None:
        lines = [f":{OTHER} - [0:0]", *(f"-A {CHAIN}{_options(spec(each))}" for each in comments)]
        self.ns.run(f"iptables-{self.name}-restore", "-w", "5", input=restore_input({TABLE: lines}))

    def shown(self, chain: str = CHAIN) -> list[tuple[str, str]]:
        lines = [line for line in self.ns.save(self.name) if f" -A {chain} " in line]
        found = [(re.search(r"--comment \"?([^\s\"]+)", line), line) for line in lines]
        return [(match.group(1) if match else "", line) for match, line in found]

    def unchanged(self) -> AbstractContextManager[None]:
        return unchanged(self.ns)

    def inside(self, function: Callable[[], None]) -> None:
        self.ns.inside(function)

    def _position(self, comment: str) -> str:
        return str(self.standing().index(comment) + 1)

    def _restore(self, *lines: str) -> None:
        options = ("--noflush", "--counters", "-w", "5")
        self.ns.run(f"iptables-{self.name}-restore", *options, input=restore_input({TABLE: list(lines)}))


def _options(made: Spec) -> str:
    line = ""
    for flag, value in (
        ("-i", made.in_interface),
        ("-o", made.out_interface),
        ("-s", made.source),
        ("-d", made.destination),
    ):
        if value is not None:
            line += f"{' !' if str(value).startswith('!') else ''} {flag} {str(value).lstrip('!')}"
    line += f" -m comment --comment {made.comment}"
    return line + (f" -j {made.target}" if made.target else "")


class MemoryFirewall(Firewall):
    """The firewall in memory."""

    name = "memory"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.backend = MemoryBackend(name=self.name)

    def prepare(self) -> None:
        self.backend = MemoryBackend([self.chain, self.other], name=self.name)

    def open(self, *, undo: bool = False, writes: bool = True) -> Backend:
        return self.backend

    def make(self, *specs: Spec, chain: str = CHAIN) -> None:
        for each in specs:
            self.backend.append(Chain(self.table, chain), each)

    def remove(self, comment: str = "hm-a") -> None:
        self.backend.remove(self._first(comment))

    def replace(self, comment: str = "hm-a", by: str = "hm-new") -> None:
        self.backend.replace(self._first(comment), spec(by))

    def remake(self, *comments: str) -> None:
        self.backend.remake(self.table)
        self.make(*map(spec, comments))

    def shown(self, chain: str = CHAIN) -> list[tuple[str, str]]:
        rules = self.backend.rules(Chain(self.table, chain))
        return [(each.spec.comment or "", repr(each.spec)) for each in rules]

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        before = self._everything()
        yield
        assert self._everything() == before

    def inside(self, function: Callable[[], None]) -> None:
        function()

    def _first(self, comment: str) -> Rule:
        return chosen(self.backend.rules(self.chain), comment)[0]

    def _everything(self) -> list[list[Rule]]:
        return [self.backend.rules(Chain(each, name)) for each in self.backend.tables() for name in (CHAIN, OTHER)]
