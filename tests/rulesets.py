"""Rule sets of every kind, whole: loading, and telling exactly what of them is missing afterwards."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import netsweep
from netsweep import Report
from tests.namespace import FLAVOURS, Namespace

OF_IPTABLES = re.compile(r"table ip6? (?:filter|nat|mangle|raw|security) \{")
"""Tables that iptables-nft makes; iptables-nft-save shows what is in them."""

GOES = "# goes"
"""Stands behind the rules of a text that are to go."""


class Snapshot(NamedTuple):
    """Every line on every table of a namespace, with its place in front.

    ``saved`` is what iptables' tools say, with counters; ``listed`` what nft says, with handles.
    """

    saved: list[str]
    listed: list[str]

    @property
    def without_counters(self) -> list[str]:
        """What does not depend on how often a rule matched or when it was made."""
        numbers = re.compile(r"\[\d+:\d+\] ?|packets \d+ bytes \d+ ?| # handle \d+$")
        return [numbers.sub("", line) for line in (*self.saved, *self.listed)]


def snapshot(ns: Namespace) -> Snapshot:
    """All there is now."""
    saves = "".join(
        f"echo; echo '{tool}'; {tool}-{flavour}-save -c 2>/dev/null\n"
        for flavour in FLAVOURS
        for tool in ("iptables", "ip6tables")
    )
    saved = _placed(ns.run("sh", "-c", saves).stdout, r"(ip6?tables)$", r"(\*\w+)$")
    listed = _placed(ns.ruleset(), r"(table .* \{)", r"\tchain (\S+) \{")
    return Snapshot(
        list(saved),
        # nft does not always find the same words for a rule that iptables-nft made.
        [re.sub(r"\t\t.*(?= # handle)", "\t\t", line) if OF_IPTABLES.match(line) else line for line in listed],
    )


def _placed(text: str, outer: str, inner: str) -> Iterator[str]:
    """The lines of ``text`` with the last matches of ``outer`` and ``inner`` in front, less comments."""
    place = ["", ""]
    for line in text.splitlines():
        if match := re.match(outer, line):
            place = [match.group(1), ""]
        elif match := re.match(inner, line):
            place[1] = match.group(1)
        if not line.startswith("#"):
            yield f"{' '.join(place)}: {line}"


def is_rule(line: str) -> bool:
    """Whether a line of a snapshot is a rule, and not one of a table, a chain or a set."""
    return bool(re.search(r": \[\d+:\d+\] -A |: \t\t.* # handle \d+$", line))


def gone(before: Sequence[str], after: Sequence[str]) -> list[str]:
    """The lines that are missing; what is left has to be all the others in their order."""
    left = iter([*after, None])
    waiting = next(left)
    missing = list[str]()
    for line in before:
        if line == waiting:
            waiting = next(left)
        else:
            missing.append(line)
    assert waiting is None, f"not there before, or not in its place: {waiting}"
    return missing


def gone_rules(before: Snapshot, after: Snapshot) -> list[str]:
    """The rules that are missing, each as a text without place, counters and handle, sorted.

    Nothing else may be missing, and what is left has to stand as it stood.
    """
    saved, listed = gone(before.saved, after.saved), gone(before.listed, after.listed)
    assert all(map(is_rule, (*saved, *listed)))
    texts = [line.partition("] ")[2] for line in saved]
    texts += [re.split(r"\t\t| # handle", line)[1] for line in listed if not OF_IPTABLES.match(line)]
    return sorted(texts)


def to_go(rules: str) -> list[str]:
    """The rules of a text that are marked, sorted."""
    return sorted(line.partition(GOES)[0].strip() for line in rules.splitlines() if GOES in line)


def load(ns: Namespace, flavour: str, rules: str, tool: str = "iptables") -> None:
    """Put ``rules``, as iptables saves them and with marks, in the place of those of their tables.

    Each has counters of its own.
    """
    lines = [line.partition(GOES)[0].strip() for line in rules.splitlines()]
    counted = [f"[{n}:{84 * n}] {line}" if line.startswith("-A") else line for n, line in enumerate(lines)]
    ns.run(f"{tool}-{flavour}-restore", "--counters", input="\n".join([*counted, ""]))


def load_native(ns: Namespace, rules: str) -> None:
    """Add ``rules``, in the words of nft; marks are comments there."""
    ns.run("nft", "-f", "-", input=rules)


def swept(ns: Namespace, **options: Any) -> Report:
    """Sweep in this process, which has to work; see :func:`tests.namespace.in_process`."""
    return ns.inside(lambda: netsweep.sweep(**options))


def found(ns: Namespace, **options: Any) -> Report:
    """List in this process, with the reasons of what stays."""
    return ns.inside(lambda: netsweep.find_orphans(**options, include_kept=True))


def restored(ns: Namespace, journal: Path) -> int:
    """How many rules of the journal came back."""
    return ns.inside(lambda: netsweep.restore(journal)).restored
