"""What to look for, where, and how long to wait: defaults and checks, each once."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

from netsweep import profiles
from netsweep.errors import UsageError
from netsweep.model import BACKENDS, BackendChoice, BackendName, Chain, Family, FamilyChoice, Table
from netsweep.policy.patterns import (
    ALL_CHAINS,
    ANY_CHAIN,
    ChainPattern,
    chain_pattern,
    check_names,
    literal_beginning,
)

LOCK_TIMEOUT = 30.0
"""Seconds. Tests hold the subnet lock for milliseconds, but dozens of them may queue for it."""

WAIT = 5.0
"""Seconds, as in ``iptables -w 5``, which the test harness uses."""

BACKEND: BackendChoice = "auto"
CHOICES: tuple[BackendChoice, ...] = get_args(BackendChoice)

FAMILY: FamilyChoice = "all"
FAMILIES: dict[FamilyChoice, frozenset[Family]] = {
    "ipv4": frozenset({Family.IPV4, Family.INET}),
    "ipv6": frozenset({Family.IPV6, Family.INET}),
    "all": frozenset({Family.IPV4, Family.IPV6, Family.INET}),
}
"""The families of tables that each choice stands for: tables of nf_tables' family inet see both."""


@dataclass(frozen=True, init=False)
class Options:
    """The options of a run, checked and frozen when they are made.

    An option that is missing or ``None`` has the profile's value. ``name`` adds to the names of the
    profile; all others replace what it says. Several values come as any iterable, which is read once; a
    single string is one value. ``lock_timeout``, ``wait`` and ``settle`` are seconds; ``min_age`` too, or a text
    as ``1h30m``; ``max_deletes`` is a number of rules and bridges. Raises :class:`UsageError` for values that
    cannot be used.
    """

    profile: profiles.Profile
    prefixes: tuple[str, ...]
    globs: tuple[str, ...]
    protected: tuple[str, ...]
    chains: tuple[str, ...]
    chains_given: bool
    patterns: tuple[ChainPattern, ...]
    family: FamilyChoice
    include_negated: bool
    settle: float
    backend: BackendChoice
    lock_file: str | None
    lease_file: str | None
    lock_timeout: float
    wait: float
    max_deletes: int | None
    bridges: bool
    min_age: float | None
    journal: str | None

    def __init__(
        self,
        *,
        profile: str | os.PathLike[str] | None = None,
        prefix: str | Iterable[str] | None = None,
        name: str | Iterable[str] | None = None,
        protect: str | Iterable[str] | None = None,
        chain: str | Iterable[str] | None = None,
        all_chains: bool = False,
        family: FamilyChoice | None = None,
        include_negated: bool = False,
        settle: float | None = None,
        backend: BackendChoice | None = None,
        lock_file: str | os.PathLike[str] | None = None,
        lease_file: str | os.PathLike[str] | None = None,
        lock_timeout: float | None = None,
        wait: float | None = None,
        max_deletes: int | None = None,
        bridges: bool = False,
        min_age: float | str | None = None,
        journal: str | os.PathLike[str] | None = None,
    ) -> None:
        base = profiles.load(profiles.DEFAULT if profile is None else _profile_name(profile))
        if all_chains and chain:
            raise UsageError("--all-chains means every chain: do not give --chain too")
        chains = (ALL_CHAINS,) if all_chains else _several("chain", chain, base.chains)
        vars(self).update(
            profile=base,
            prefixes=_several("prefix", prefix, base.prefixes),
            globs=tuple(dict.fromkeys((*base.names, *_several("name", name, ())))),
            protected=_several("protect", protect, base.protected),
            chains=chains,
            chains_given=bool(chain),
            patterns=tuple(_pattern(text) for text in chains),
            family=FAMILY if family is None else family,
            include_negated=bool(include_negated),
            settle=base.settle if settle is None else seconds("settle", settle, profiles.SETTLE_MAX),
            backend=BACKEND if backend is None else backend,
            lock_file=_in_tmpdir(base.lock_file) if lock_file is None else path("lock-file", lock_file),
            lease_file=_in_tmpdir(base.lease_file) if lease_file is None else path("lease-file", lease_file),
            lock_timeout=LOCK_TIMEOUT if lock_timeout is None else seconds("lock-timeout", lock_timeout),
            wait=WAIT if wait is None else seconds("wait", wait),
            max_deletes=None if max_deletes is None else _number("max-deletes", max_deletes),
            bridges=bool(bridges),
            min_age=_min_age(base, min_age),
            journal=None if journal is None else path("journal", journal),
        )
        self._check()

    @property
    def backends(self) -> tuple[BackendName, ...]:
        """The names of the backends to look at."""
        return BACKENDS if self.backend == "auto" else (self.backend,)

    @property
    def families(self) -> frozenset[Family]:
        """The families of the tables to look at."""
        return FAMILIES[self.family]

    def everywhere(self) -> Options:
        """These options for every chain, and without a settle time."""
        widened = copy.copy(self)
        vars(widened).update(chains=(ALL_CHAINS,), chains_given=False, patterns=(ANY_CHAIN,), settle=0.0)
        return widened

    def selects(self, chain: Chain) -> bool:
        """Whether ``chain`` is one to look at."""
        return chain.table.family in self.families and any(pattern.matches(chain) for pattern in self.patterns)

    def allows(self, chain: Chain) -> bool:
        """Whether the rules of ``chain`` may ever be touched under this profile."""
        return not any(pattern.matches(chain) for pattern in self.profile.never)

    def _check(self) -> None:
        if self.bridges and self.profile.min_age is None:
            raise UsageError(
                f"profile {self.profile.name!a} has no min_age: its bridges may be idle for any time, so "
                "nothing proves that one leaked"
            )
        if self.backend not in CHOICES:
            raise UsageError(f"there is no backend {self.backend!a}: give {', '.join(CHOICES[:-1])} or {CHOICES[-1]}")
        if self.family not in tuple(FAMILIES):  # which need not be hashable
            raise UsageError(f"there is no family {self.family!a}: give {', '.join(FAMILIES)}")
        for text, pattern in zip(self.chains, self.patterns, strict=True) if self.chains_given else ():
            families = self.families & {pattern.family} if pattern.family else self.families
            if not families:
                raise UsageError(f"chain {text!a} is not of family {self.family}: change --chain or --family")
            if not any(self.allows(Chain(Table("nft", each, pattern.table), pattern.chain)) for each in families):
                raise UsageError(f"profile {self.profile.name!a} never touches chain {text!a}")
        try:
            check_names(self.prefixes, self.protected, self.globs)
        except ValueError as error:
            raise UsageError(str(error)) from error
        owned = [("prefix", each, each) for each in self.prefixes]
        owned += [("name", each, literal_beginning(each)) for each in self.globs]
        covered = [(kind, shown, by) for kind, shown, begins in owned for by in self.protected if begins.startswith(by)]
        for kind, shown, by in covered:
            # One of many names of a profile may be protected.
            if shown not in self.profile.names or {each for _, each, _ in covered} == {each for _, each, _ in owned}:
                raise UsageError(
                    f"{kind} {shown!r} is protected by {by!r}, so nothing would ever be "
                    f"swept: change --{kind} or --protect"
                )


def _pattern(text: str) -> ChainPattern:
    try:
        return chain_pattern(text)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _profile_name(value: object) -> str:
    if isinstance(value, os.PathLike):
        text = path("profile", value)
        return text if "/" in text else f"./{text}"
    return path("profile", value)


def seconds(option: str, value: object, most: float = math.inf) -> float:
    """``value`` as the seconds that ``--option`` takes; raises :class:`UsageError`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:  # NaN is neither
        allowed = "0 seconds or more" if most == math.inf else f"0 to {most:g} seconds"
        raise UsageError(f"--{option} has to be {allowed}, not {value!a}")
    return float(value)


def _min_age(base: profiles.Profile, given: object) -> float | None:
    if given is None:
        return base.min_age
    try:
        return seconds("min-age", profiles.duration(given) if isinstance(given, str) else given)
    except ValueError as error:
        raise UsageError(f"--min-age has to be a time as 90s, 20m, 1h30m or 2d, not {given!a}") from error


def subnets(text: str) -> range:
    """The /24 subnets that ``--subnets`` stands for, by the first three bytes of their addresses as a number.

    Raises :class:`UsageError`.
    """
    from ipaddress import IPv4Address, IPv4Network

    first, dash, last = text.replace("\u2013", "-").partition("-")
    try:
        if dash:
            ends = int(IPv4Address(first.strip())), int(IPv4Address(last.strip()))
        else:
            network = IPv4Network(first.strip())
            ends = int(network[0]), int(network[-1])
        if ends[0] % 256 or ends[1] % 256 != 255 or ends[0] > ends[1]:
            raise ValueError("it has to be whole /24 subnets")
    except ValueError as error:
        raise UsageError(f"--subnets {text!a} is not FIRST-LAST, as 10.200.0.0-10.249.255.255: {error}") from error
    return range(ends[0] >> 8, (ends[1] >> 8) + 1)


def _number(option: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UsageError(f"--{option} has to be a number, 0 or more, not {value!a}")
    return value


def path(option: str, value: object) -> str:
    """``value`` as the path that ``--option`` takes; raises :class:`UsageError`."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise UsageError(f"--{option} {value!a} is not a path")
    return text


def _several(option: str, given: object, default: tuple[str, ...]) -> tuple[str, ...]:
    if given is None:
        return default
    values = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else (given,)
    if wrong := [value for value in values if not isinstance(value, str) or not value.strip()]:
        raise UsageError(f"--{option} {wrong[0]!a} is not a text: give one that is not blank")
    if not values and option not in ("protect", "name"):
        raise UsageError(f"no {option} given")
    return tuple(dict.fromkeys(values))


def _in_tmpdir(name: str | None) -> str | None:
    return name and name.replace("$TMPDIR", os.environ.get("TMPDIR") or "/tmp", 1)
