"""What a table, a chain, a rule and a verdict are, the same for every backend. Data only."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

BackendName = Literal["legacy", "nft"]
"""A backend of the kernel: x_tables or nf_tables."""

BackendChoice = Literal["auto", "legacy", "nft"]
"""Which backends to look at; ``auto``: every one that holds tables in this network namespace."""

FamilyChoice = Literal["ipv4", "ipv6", "all"]
"""Which tables to look at, by the packets that they see; those of nf_tables' family inet see both."""

BACKENDS: tuple[BackendName, ...] = get_args(BackendName)
"""The backends, in the order in which they are swept."""

BACKEND_OF_FLAVOUR = {"legacy": "legacy", "nf_tables": "nft"}
"""The backend of each flavour of iptables, as ``iptables -V`` names these."""

INTERFACE_NAME_MAX = 15
"""IFNAMSIZ (linux/if.h) without the closing NUL."""

COMMENT_MAX = 255
"""Bytes of the longest comment (XT_MAX_COMMENT_LEN, linux/netfilter/xt_comment.h, less the NUL)."""


class Family(str, enum.Enum):
    """The packets that a table sees.

    ``INET`` is nf_tables' family for both IPv4 and IPv6. ``ARP``, ``BRIDGE`` and ``NETDEV`` hold no rules
    that netsweep decides on; tables of theirs are named where a report says what was not looked at.
    """

    IPV4 = "ipv4"
    IPV6 = "ipv6"
    INET = "inet"
    ARP = "arp"
    BRIDGE = "bridge"
    NETDEV = "netdev"

    # That of an enumeration is a function in Python, and chains are keys of dictionaries.
    __hash__ = str.__hash__

    def __str__(self) -> str:
        return self.value


class Table(NamedTuple):
    """A table's identity: two tables of one name in two families are two tables.

    Attributes:
        backend: The backend that holds it.
        family: Its family.
        name: Its name, as ``filter``.
    """

    backend: BackendName
    family: Family
    name: str

    def __str__(self) -> str:
        return f"{self.backend} {self.family} {self.name}"


class Chain(NamedTuple):
    """A chain's identity.

    Attributes:
        table: The table that it is in.
        name: Its name, as ``FORWARD``.
    """

    table: Table
    name: str

    def __str__(self) -> str:
        return f"{self.table}/{self.name}"


class Interface(NamedTuple):
    """One interface match of a rule (``-i``, ``-o``, or a port of a bridge).

    Attributes:
        name: The name, without the ``+`` of a wildcard.
        wildcard: Whether it matches every interface whose name begins so.
        negated: Whether it matches all other interfaces.
        after_effect: Whether a statement with an effect comes before it, which packets of other interfaces reach.
    """

    name: str
    wildcard: bool = False
    negated: bool = False
    after_effect: bool = False

    def __str__(self) -> str:
        return f"{'!' if self.negated else ''}{self.name}{'+' if self.wildcard else ''}"


class Spec(NamedTuple):
    """What a rule says, wherever it stands (iptables(8): the rule specification).

    Attributes:
        in_interface: The interface that ``-i`` names; ``None`` where it has no ``-i``.
        out_interface: The same for ``-o``.
        source: Source address or network; begins with ``!`` where it is negated.
        destination: The same for the destination.
        protocol: The name where iptables has one, else a number; begins with ``!`` where it is negated.
        ports: Whether it matches ports, not negated.
        matches: The names of its match extensions, sorted and without ``comment``, and ``-f`` and ``-g`` where it
            has these options; whatever else it holds is in it under a name that no extension has.
        target: What it does, as ``ACCEPT``, or the chain that it jumps to.
        comments: Its comments; bytes that are not UTF-8 are surrogate escapes (PEP 383).
        physdev: The interfaces of ``physdev`` matches.
        devices: Interfaces that its target or statements send packets to, by name.
        device_indexes: The same by number.
        by_number: The numbers by which it matches interfaces.
        by_set: Whether it looks interfaces up in a set or a map.
        unreadable: Why it may name interfaces in a way that its text does not tell, where that is so.
    """

    in_interface: Interface | None = None
    out_interface: Interface | None = None
    source: str | None = None
    destination: str | None = None
    protocol: str | None = None
    ports: bool = False
    matches: tuple[str, ...] = ()
    target: str | None = None
    comments: tuple[str, ...] = ()
    physdev: tuple[Interface, ...] = ()
    devices: tuple[str, ...] = ()
    device_indexes: tuple[int, ...] = ()
    by_number: tuple[int, ...] = ()
    by_set: bool = False
    unreadable: str | None = None

    @property
    def comment(self) -> str | None:
        """All comments as one text; ``None`` where there is none."""
        return " ".join(self.comments) if self.comments else None


# What follows from a spec is cached by it, and rules with equal bytes share one object: hashing by identity is
# cheaper. Equal specs may hash differently.
Spec.__hash__ = object.__hash__  # type: ignore[method-assign]


class Undo(NamedTuple):
    """What it takes to put a rule back.

    Attributes:
        raw: The rule, for the backend that read it.
        identity: The same for rules that differ in nothing but counters and place.
        jump: The chain that it jumps to.
        sets: The numbers of the ipset sets that it names.
        lost: What of it could not be put back, where that is so.
    """

    raw: bytes
    identity: bytes
    jump: str | None = None
    sets: tuple[int, ...] = ()
    lost: str | None = None


class Rule(NamedTuple):
    """A rule as it stood in its chain when it was read.

    Attributes:
        chain: The chain that it is in.
        position: Its place there, counted from 1 as ``iptables -L --line-numbers`` does.
        handle: nf_tables' number of the rule; ``None`` in x_tables.
        spec: What it says.
        undo: What it takes to put it back, where the backend was asked for it.
    """

    chain: Chain
    position: int
    handle: int | None
    spec: Spec
    undo: Undo | None = None

    def __str__(self) -> str:
        return f"rule {self.position} of {self.chain}"


class Verdict(str, enum.Enum):
    """What was decided about a rule or a bridge. Only rules that are ``ORPHAN`` and bridges that are ``LEAKED`` go.

    Attributes:
        ORPHAN: A rule of an interface of ours that is gone.
        LEAKED: A bridge whose owner is dead.
        LIVE: Its interface exists, or the bridge is in use.
        LEASED: A running process leases its interface or bridge.
        PROTECTED: It names an interface with a protected prefix.
        WILDCARD: It matches interfaces by wildcard.
        UNDECIDABLE: Nothing proves that it is dead.
        NEGATED: It names an interface of ours only in a negated match, so it matches live traffic.
        FOREIGN: It looks like ours but is not.
    """

    ORPHAN = "orphan"
    LEAKED = "leaked"
    LIVE = "live"
    LEASED = "leased"
    PROTECTED = "protected"
    WILDCARD = "wildcard"
    UNDECIDABLE = "undecidable"
    NEGATED = "negated"
    FOREIGN = "foreign"


class Finding(NamedTuple):
    """A rule, and what was decided about it.

    Attributes:
        rule: The rule.
        verdict: What was decided.
        bridge: The interface name that decided it.
        reason: Why, in words.
        live_traffic: The target of a rule whose only match of ``bridge`` is negated and that has gone or may go: what
            the rule did to packets of every other interface.
    """

    rule: Rule
    verdict: Verdict
    bridge: str | None
    reason: str
    live_traffic: str | None = None


class Address(NamedTuple):
    """An address of an interface.

    Attributes:
        text: The address and the length of its prefix, as ``10.200.1.1/24``.
        age: Its age in seconds; ``None`` where that is not known.
    """

    text: str
    age: float | None


class Lease(NamedTuple):
    """A lease of the test harness.

    Attributes:
        subnet: The subnet that it is for, as ``10.200.1.0/24``.
        bridge: The bridge that it names.
        pid: The process that it names.
        text: The whole lease, as JSON.
    """

    subnet: str
    bridge: str
    pid: int
    text: str = ""


class Bridge(NamedTuple):
    """An interface with a name that is ours or nearly so, as it was when it was looked at.

    Attributes:
        name: Its name.
        ifindex: Its number.
        kind: The kernel's word for what it is; ``None`` for hardware.
        aliases: Its alternative names.
        addresses: Its addresses.
        ports: The names of its ports.
        uses: What else uses it, in words.
        mtu: Its MTU in bytes.
        mac: Its link-layer address.
    """

    name: str
    ifindex: int
    kind: str | None = "bridge"
    aliases: tuple[str, ...] = ()
    addresses: tuple[Address, ...] = ()
    ports: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    mtu: int = 0
    mac: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Its name and its alternative names."""
        return (self.name, *self.aliases)

    @property
    def subnet(self) -> str | None:
        """The subnet of its first address that is not link-local."""
        from ipaddress import ip_interface  # most runs need none

        return str(ip_interface(self._own[0].text).network) if self._own else None

    @property
    def age(self) -> float | None:
        """The age of its youngest address, in seconds; ``None`` where that of none or not of all is known.

        Link-local IPv6 addresses are made by the kernel whenever the interface goes up, so they make it younger only.
        """
        ages = [address.age for address in self.addresses if address.age is not None]
        return min(ages) if self._own and len(ages) == len(self.addresses) else None

    @property
    def _own(self) -> list[Address]:
        return [address for address in self.addresses if not address.text.startswith("fe80:")]


class BridgeFinding(NamedTuple):
    """A bridge, and what was decided about it.

    Attributes:
        bridge: The bridge.
        verdict: What was decided.
        reason: Why, in words.
        lease: The lease that names it, if there is one.
        deleted: Whether it was deleted.
    """

    bridge: Bridge
    verdict: Verdict
    reason: str
    lease: Lease | None = None
    deleted: bool = False


class Life(NamedTuple):
    """What is known of who is alive.

    ``gone`` are the names that no interface has, neither as its name nor as an alternative name; a name
    that is not in it may be alive. ``devices`` holds the names of interfaces by number; the number of
    an interface that does not exist has none. ``leases`` are the names that are leased, each with the
    reason why the lease counts.
    """

    gone: frozenset[str] = frozenset()
    devices: Mapping[int, tuple[str, ...]] = MappingProxyType({})
    leases: Mapping[str, str] = MappingProxyType({})
