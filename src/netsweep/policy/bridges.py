"""Bridges and their leases in, verdicts out. Pure.

A bridge goes only on proof that its owner is dead. Whatever else is known of it can only keep it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from netsweep.model import Bridge, BridgeFinding, Lease, Verdict
from netsweep.policy.names import Names

_UNITS = (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1))


class Leased(NamedTuple):
    """The leases that name a bridge. ``alive`` is the reason why one of them counts, ``dead`` why none does."""

    leases: Sequence[Lease] = ()
    alive: str | None = None
    dead: str = ""


class BridgePolicy:
    """Gives verdicts on bridges.

    ``min_age``: how old one without a lease has to be, in seconds; ``None`` where no age proves anything.
    """

    def __init__(self, names: Names, min_age: float | None) -> None:
        self.names = names
        self._min_age = min_age

    def concerns(self, names: Sequence[str]) -> bool:
        """Whether an interface with these names gets a verdict."""
        return any(self.names.protects(name) or self.names.resembles(name) or self.names.owns(name) for name in names)

    def judge(self, bridge: Bridge, leased: Leased) -> BridgeFinding:
        """The verdict on an interface that :meth:`concerns` us."""
        verdict, reason = self._verdict(bridge, leased)
        return BridgeFinding(bridge, verdict, reason, next(iter(leased.leases), None))

    def _verdict(self, bridge: Bridge, leased: Leased) -> tuple[Verdict, str]:
        for name in bridge.names:
            if self.names.protects(name):
                return Verdict.PROTECTED, f"{name} is protected"
        for name in bridge.names:
            if not self.names.owns(name):
                return Verdict.FOREIGN, f"{name} is not a name of ours{self.names.shape}"
        if bridge.kind != "bridge":
            return Verdict.FOREIGN, f"it is {_article(bridge.kind)}, not a bridge"
        if leased.alive:
            return Verdict.LEASED, f"leased: {leased.alive}"
        uses = [f"has port {port}" for port in bridge.ports] + list(bridge.uses)
        if uses:
            return Verdict.LIVE, ", ".join(uses)
        if leased.leases:
            return Verdict.LEAKED, leased.dead
        if bridge.age is None:
            return Verdict.UNDECIDABLE, "age unknown: it has no address of its own with an age in the kernel"
        if self._min_age is None or bridge.age < self._min_age:
            return Verdict.UNDECIDABLE, f"{duration(bridge.age)} old, and not leased"
        return Verdict.LEAKED, f"not leased, and {duration(bridge.age)} old"


def _article(kind: str | None) -> str:
    return f"a {kind}" if kind else "hardware"


def duration(seconds: float) -> str:
    """``seconds`` in the largest unit that it has one of: ``12 minutes``."""
    unit, length = next((each for each in _UNITS if seconds >= each[1]), _UNITS[-1])
    number = int(seconds // length)
    return f"{number} {unit}{'' if number == 1 else 's'}"
