"""What to look for, where, and how long to wait: defaults and checks, each once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

from netsweep import profiles
from netsweep.errors import UsageError
from netsweep.model import BACKENDS, INTERFACE_NAME_MAX

LOCK_TIMEOUT = 30.0
"""Seconds. Tests hold the subnet lock for milliseconds, but dozens of them may queue for it."""

WAIT = 5.0
"""Seconds, as in ``iptables -w 5``, which the test harness uses."""

BACKEND = "auto"
CHOICES = ("auto", *BACKENDS)

TABLES = ("filter", "nat", "mangle", "raw", "security")
"""The tables that iptables has (iptables(8), TABLES)."""

CHAIN_NAME_MAX = 28
"""Longest chain name that every backend takes (XT_EXTENSION_MAXNAMELEN, linux/netfilter/x_tables.h)."""

_CHAIN = re.compile(rf"({'|'.join(TABLES)})/[A-Za-z0-9_.:@+=-]{{1,{CHAIN_NAME_MAX}}}")
_PREFIX = re.compile(rf"[A-Za-z0-9._-]{{1,{INTERFACE_NAME_MAX - 1}}}")


@dataclass(frozen=True, init=False)
class Options:
    """The options of a run, checked and frozen when they are made.

    An option that is missing or ``None`` has the profile's value. Several values come as any iterable, which
    is read once; a single string is one value. ``lock_timeout`` and ``wait`` are seconds. Raises
    :class:`UsageError` for values that cannot be used.
    """

    prefixes: tuple[str, ...]
    protected: tuple[str, ...]
    comments: tuple[str, ...]
    chains: tuple[str, ...]
    backend: str
    lock_file: str
    lease_file: str
    lock_timeout: float
    wait: float
    journal: str | None

    def __init__(
        self,
        *,
        prefix: str | Iterable[str] | None = None,
        protect: str | Iterable[str] | None = None,
        chain: str | Iterable[str] | None = None,
        backend: str | None = None,
        lock_file: str | os.PathLike[str] | None = None,
        lease_file: str | os.PathLike[str] | None = None,
        lock_timeout: float | None = None,
        wait: float | None = None,
        journal: str | os.PathLike[str] | None = None,
    ) -> None:
        profile = profiles.load()
        vars(self).update(
            prefixes=_several("prefix", prefix, profile.prefixes),
            protected=_several("protect", protect, profile.protected),
            comments=profile.comments,
            chains=_several("chain", chain, profile.chains),
            backend=BACKEND if backend is None else backend,
            lock_file=_in_tmpdir(profile.lock_file) if lock_file is None else path("lock-file", lock_file),
            lease_file=_in_tmpdir(profile.lease_file) if lease_file is None else path("lease-file", lease_file),
            lock_timeout=LOCK_TIMEOUT if lock_timeout is None else seconds("lock-timeout", lock_timeout),
            wait=WAIT if wait is None else seconds("wait", wait),
            journal=None if journal is None else path("journal", journal),
        )
        self._check()

    @property
    def backends(self) -> tuple[str, ...]:
        """The names of the backends to look at."""
        return BACKENDS if self.backend == BACKEND else (self.backend,)

    def _check(self) -> None:
        if self.backend not in CHOICES:
            raise UsageError(f"there is no backend {self.backend!a}: give {', '.join(CHOICES[:-1])} or {CHOICES[-1]}")
        for kind, names in (("prefix", self.prefixes), ("protected prefix", self.protected)):
            for name in names:
                if not _PREFIX.fullmatch(name):
                    raise UsageError(
                        f"{name!a} cannot be a {kind}: give 1 to {INTERFACE_NAME_MAX - 1} "
                        "letters, digits, dots, dashes or underscores, as hm"
                    )
        for prefix in self.prefixes:
            if covering := [name for name in self.protected if prefix.startswith(name)]:
                raise UsageError(
                    f"prefix {prefix!r} is protected by {covering[0]!r}, so nothing would ever be "
                    "swept: change --prefix or --protect"
                )
        for text in self.chains:
            if not _CHAIN.fullmatch(text):
                raise UsageError(
                    f"there can be no chain {text!a}: give TABLE/CHAIN, as filter/FORWARD; "
                    f"tables are {', '.join(TABLES)}"
                )


def seconds(option: str, value: object) -> float:
    """``value`` as the seconds that ``--option`` takes; raises :class:`UsageError`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:  # NaN is not >= 0
        raise UsageError(f"--{option} has to be 0 seconds or more, not {value!a}")
    return float(value)


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
    if not values and option != "protect":
        raise UsageError(f"no {option} given")
    return tuple(dict.fromkeys(values))


def _in_tmpdir(name: str) -> str:
    return name.replace("$TMPDIR", os.environ.get("TMPDIR") or "/tmp", 1)
