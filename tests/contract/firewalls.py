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
from netsweep.model import BackendName, Chain, Family, Interface, Rule, Spec, Table
from netsweep.report import LockTimes
from tests.namespace import Namespace, program, read, restore_input, unchanged

HINTS = (b"hm",)
"""Backends may leave out rules that hold none of these."""

TABLE, CHAIN, OTHER = "filter", "FORWARD", "JOBS"

MATCHES = {
    "addrtype": ("-m addrtype --src-type LOCAL", "fib saddr type local"),
    "conntrack": ("-m conntrack --ctstate NEW", "ct state new"),
    "limit": ("-m limit --limit 3/min", "limit rate 3/minute"),
    "mark": ("-m mark --mark 0x5", "meta mark 5"),
    "tcp": ("-m tcp --dport 22", "tcp dport 22"),
    "udp": ("-m udp ! --dport 53", "udp dport != 53"),
    "more of udp": ("", ""),
    "-g": ("", ""),
}
"""What rules to make may have of matches, in the words of iptables and of nft; of some, others say it."""


def spec(
    comment: str,
    i: str | None = None,
    o: str | None = None,
    *,
    source: str | None = None,
    destination: str | None = None,
    protocol: str | None = None,
    ports: bool = False,
    matches: tuple[str, ...] = (),
    target: str | None = "ACCEPT",
) -> Spec:
    """A rule to make; interfaces as iptables writes them: ``hm1``, ``hm+``, ``!hm1``."""
    return Spec(
        in_interface=match(i),
        out_interface=match(o),
        source=source,
        destination=destination,
        protocol=protocol,
        ports=ports,
        matches=matches,
        target=target,
        comments=(comment,),
    )


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

    ``notices`` are the names of the methods whose changes a transaction has to notice. ``odd_names`` are
    names that chains can have.
    """

    name: BackendName
    notices: Collection[str] = ("remove", "replace", "remake")
    odd_names: Sequence[str] = ("\udcff\udcfe", "br\u00fccke-\u20ac", "a/b:c@d.e", "*", "[!x]%s$(x)", "x" * 28)

    def __init__(self, directory: Path, family: Family) -> None:
        self.family = family
        # Not the lock that iptables takes: who interferes in these tests heeds no lock.
        self.lock = directory / "unheeded.lock"

    @property
    def table(self) -> Table:
        return Table(self.name, self.family, TABLE)

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
    def add_chains(self, *names: str) -> None:
        """Make more chains in the table."""

    @abstractmethod
    def beside(self) -> Firewall:
        """The firewall of another family in the same place, prepared."""

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
        self, backend: Backend, rules: Sequence[Rule] = (), *, chains: Sequence[Chain] = (), orders: bool = False
    ) -> Iterator[Transaction]:
        """A transaction on these chains, or on both."""
        with (
            backend.locked(LockTimes(str(self.lock)), 5),
            backend.transaction(chains or [self.chain, self.other], rules, orders=orders) as transaction,
        ):
            yield transaction

    def order(self, backend: Backend) -> list[bytes]:
        """The identities of the chain's rules."""
        with self.transaction(backend, orders=True) as transaction:
            return [each.identity for each in transaction.orders[self.chain]]

    def kept(self, backend: Backend, *comments: str) -> list[bytes]:
        """What the backend keeps of the chain's rules that have these comments."""
        rules = chosen(read(backend, self.chain).rules, *comments)
        return [each.undo.raw for each in rules if each.undo]


class IptablesFirewall(Firewall):
    """x_tables or nf_tables in a network namespace, changed with iptables."""

    def __init__(self, ns: Namespace, flavour: BackendName, family: Family) -> None:
        super().__init__(ns.directory, family)
        self.ns = ns
        self.name = flavour
        if flavour == "legacy":
            # Others are kept away by a lock; the kernel notices only that the number of rules has changed.
            self.notices = ("remove",)

    def prepare(self) -> None:
        self.add_chains(OTHER)

    def add_chains(self, *names: str) -> None:
        self._restore(*(f":{name} - [0:0]" for name in names))

    def beside(self) -> Firewall:
        family = Family.IPV6 if self.family is Family.IPV4 else Family.IPV4
        other = IptablesFirewall(self.ns, self.name, family)
        other.prepare()
        return other

    def open(self, *, undo: bool = False, writes: bool = True) -> Backend:
        return open_backend(self.name, HINTS, undo=undo, writes=writes)

    def make(self, *specs: Spec, chain: str = CHAIN) -> None:
        # Each with counters of its own, to see that they stay.
        lines = [f"[{number}:{number}00] -A {chain}{_options(each)}" for number, each in enumerate(specs, 1)]
        self._restore(*lines)

    def remove(self, comment: str = "hm-a") -> None:
        self._iptables("-D", CHAIN, self._position(comment))

    def replace(self, comment: str = "hm-a", by: str = "hm-new") -> None:
        self._iptables("-R", CHAIN, self._position(comment), *_options(spec(by)).split())

    def remake(self, *comments: str) -> None:
        lines = [f":{OTHER} - [0:0]", *(f"-A {CHAIN}{_options(spec(each))}" for each in comments)]
        self.ns.run(self._program("-restore"), "-w", "5", input=restore_input({TABLE: lines}))

    def shown(self, chain: str = CHAIN) -> list[tuple[str, str]]:
        lines = [line for line in self.ns.save(self.name, self.family) if f" -A {chain} " in line]
        found = [(re.search(r"--comment \"?([^\s\"]+)", line), line) for line in lines]
        return [(match.group(1) if match else "", line) for match, line in found]

    def unchanged(self) -> AbstractContextManager[None]:
        return unchanged(self.ns)

    def inside(self, function: Callable[[], None]) -> None:
        self.ns.inside(function)

    def _position(self, comment: str) -> str:
        return str(self.standing().index(comment) + 1)

    def _program(self, suffix: str = "") -> str:
        return program(self.name, self.family, suffix)

    def _iptables(self, *arguments: str) -> None:
        self.ns.run(self._program(), "-w", "5", *arguments)

    def _restore(self, *lines: str) -> None:
        options = ("--noflush", "--counters", "-w", "5")
        self.ns.run(self._program("-restore"), *options, input=restore_input({TABLE: list(lines)}))


def _options(made: Spec) -> str:
    line = ""
    for flag, value in (
        ("-i", made.in_interface),
        ("-o", made.out_interface),
        ("-s", made.source),
        ("-d", made.destination),
        ("-p", made.protocol),
    ):
        if value is not None:
            line += f"{' !' if str(value).startswith('!') else ''} {flag} {str(value).lstrip('!')}"
    goes = "-g" if "-g" in made.matches else "-j"
    line += "".join(f" {MATCHES[each][0]}" for each in made.matches)
    line += f" -m comment --comment {made.comment}"
    return line + (f" {goes} {made.target}" if made.target else "")


class NativeFirewall(IptablesFirewall):
    """A table of nf_tables that nft made, in a family that iptables knows nothing of."""

    # nft takes fewer names than the kernel, and longer ones than iptables.
    odd_names = ("a/b.c-d_e", "x" * 100)

    def __init__(self, ns: Namespace) -> None:
        super().__init__(ns, "nft", Family.INET)

    def prepare(self) -> None:
        self._nft(f"add table inet {TABLE}", *self._chains())

    def add_chains(self, *names: str) -> None:
        self._nft(*(f"add chain inet {TABLE} {name}" for name in names))

    def make(self, *specs: Spec, chain: str = CHAIN) -> None:
        self._nft(*(f"add rule inet {TABLE} {chain} {_words(each, number)}" for number, each in enumerate(specs, 1)))

    def remove(self, comment: str = "hm-a") -> None:
        self._nft(f"delete rule inet {TABLE} {CHAIN} handle {self._handle(comment)}")

    def replace(self, comment: str = "hm-a", by: str = "hm-new") -> None:
        self._nft(f"replace rule inet {TABLE} {CHAIN} handle {self._handle(comment)} {_words(spec(by))}")

    def remake(self, *comments: str) -> None:
        made = (f"add rule inet {TABLE} {CHAIN} {_words(spec(each))}" for each in comments)
        self._nft(f"delete table inet {TABLE}", f"add table inet {TABLE}", *self._chains(), *made)

    def shown(self, chain: str = CHAIN) -> list[tuple[str, str]]:
        return [(comment, line) for comment, line, _ in self._listed(chain)]

    def _chains(self) -> tuple[str, str]:
        hooked = f"add chain inet {TABLE} {CHAIN} {{ type filter hook forward priority 0; }}"
        return hooked, f"add chain inet {TABLE} {OTHER}"

    def _handle(self, comment: str) -> str:
        return next(handle for each, _, handle in self._listed(CHAIN) if each == comment)

    def _listed(self, chain: str) -> list[tuple[str, str, str]]:
        """The comment of each rule, all of it, and its handle."""
        listed = self.ns.run("nft", "-a", "list", "chain", "inet", TABLE, chain).stdout
        return re.findall(r'^\t\t(?=.*comment "([^"]*)")(.*) # handle (\d+)$', listed, re.MULTILINE)

    def _nft(self, *commands: str) -> None:
        self.ns.run("nft", "-f", "-", input="".join(f"{each}\n" for each in commands))


_NATIVE_TARGETS = {each: each.lower() for each in ("ACCEPT", "DROP", "RETURN", "REJECT", "LOG")}


def _words(made: Spec, count: int = 0) -> str:
    words = []
    for key, interface in (("iifname", made.in_interface), ("oifname", made.out_interface)):
        if interface:
            words.append(f'{key} {"!=" * interface.negated} "{interface.name}{"*" * interface.wildcard}"')
    for key, network in (("saddr", made.source), ("daddr", made.destination)):
        if network:
            address, mask = network.removeprefix("!").split("/")
            operator = "!=" if network.startswith("!") else "=="
            words.append(f"{'ip6' if ':' in network else 'ip'} {key}")
            words.append(f"{operator} {address}/{mask}" if mask.isdigit() else f"& {mask} {operator} {address}")
    if made.protocol:
        words.append(f"meta l4proto {made.protocol.replace('!', '!= ')}")
    words += [MATCHES[each][1] for each in made.matches]
    words.append(f"counter packets {count} bytes {count}00")
    if made.target:
        goes = "goto" if "-g" in made.matches else "jump"
        words.append(_NATIVE_TARGETS.get(made.target, f"{goes} {made.target}"))
    return f'{" ".join(words)} comment "{made.comment}"'


class MemoryFirewall(Firewall):
    """The firewall in memory."""

    name = "nft"

    def __init__(self, directory: Path, family: Family) -> None:
        super().__init__(directory, family)
        self.backend = MemoryBackend(name=self.name)

    def prepare(self) -> None:
        self.add_chains()

    def add_chains(self, *names: str) -> None:
        chains = [self.chain, self.other, *(Chain(self.table, name) for name in names)]
        self.backend = MemoryBackend(chains, name=self.name)

    def beside(self) -> Firewall:
        other = MemoryFirewall(self.lock.parent, Family.IPV6 if self.family is Family.IPV4 else Family.IPV4)
        self.backend = MemoryBackend([self.chain, self.other, other.chain, other.other], name=self.name)
        other.backend = self.backend
        return other

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
