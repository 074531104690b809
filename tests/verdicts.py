"""Verdicts on rules in one call, for tests of what leads to them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from netsweep.orphans import Case, Finding, Live, Ownership
from netsweep.rules import Rule


def decide(
    rules: Iterable[Rule],
    ownership: Ownership,
    live_names: Callable[[Collection[str], bool], Live],
    leased: Collection[str],
) -> list[Finding]:
    """Give every rule that has to do with us its verdict, in the order of ``rules``.

    ``live_names`` is asked, at most once and after all of ``rules`` have been taken in, for
    :attr:`Case.names` and :attr:`Case.all_names`.
    """
    case = Case(list(rules), ownership)
    return case.decide(live_names(case.names, case.all_names) if case.names else Live(), leased)
