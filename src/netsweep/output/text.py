"""A report for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from netsweep.model import BridgeFinding, Family, Finding, Rule, Spec, Verdict
from netsweep.output.escape import escape, shell_word
from netsweep.policy.patterns import ALL_CHAINS
from netsweep.report import Report

ROWS_MAX = 15
"""How many groups a report lists before it sums up the rest."""

NAMES_MAX = 6
"""How many chains that were looked at, and tables that were not, a summary names before it counts the rest."""


def text_lines(report: Report, *, verbose: bool = False) -> Iterator[str]:
    """The report in lines: groups, then every rule where ``verbose``, then what was done."""
    if leaked := report.leaked:
        limit = None if verbose else ROWS_MAX
        yield from map(_torn_down if report.command == "teardown" else _bridge_line, leaked[:limit])
        if limit is not None and len(leaked) > limit:
            yield f"... {count(len(leaked) - limit, 'more leaked bridge')} (-v lists all)"
        yield ""
    if report.orphans:
        yield from _grouped(report.orphans, None if verbose else ROWS_MAX)
        yield ""
    if verbose and report.orphans:
        yield from map(_rule_line, report.orphans)
        yield ""
    if report.negated:
        yield from _negated(report, None if verbose else ROWS_MAX)
        yield ""
    bridges, kept = kept_of(report)
    if kept or bridges:
        yield "Kept, and why:"
        yield from map(_bridge_line, bridges)
        yield from map(_rule_line, kept)
        yield ""
    if report.returning:
        yield from returning_lines(report)
        yield ""
    yield from last_lines(report, verbose=verbose)


def returning_lines(report: Report) -> Iterator[str]:
    """The rules that a restore would put back, where they would stand; safe to print."""
    return map(_rule_in_place, report.returning)


def last_lines(report: Report, *, verbose: bool = False) -> Iterator[str]:
    """What ends a report: the leases where ``verbose``, and what was found and done; safe to print."""
    if verbose and (leases := report.leases) and leases.exists:
        yield f"Lease file {escape(leases.path)}: {count(leases.leases, 'lease')}, {leases.running} in force."
    yield summary(report, verbose=verbose)
    if undo := undo_line(report):
        yield undo


def undo_line(report: Report) -> str | None:
    """How the rules that a sweep deleted come back, where it wrote them down; safe to print."""
    return f"Undo: netsweep restore {shell_word(report.journal)}" if report.journal and report.deleted else None


def kept_of(report: Report) -> tuple[list[BridgeFinding], list[Finding]]:
    """The bridges and the rules that stay; without the rules that a report shows with what they do to live traffic."""
    bridges = [finding for finding in report.bridges if finding.verdict is not Verdict.LEAKED]
    return bridges, [each for each in report.kept if each.verdict is not Verdict.NEGATED or not report.negated]


def _grouped(findings: Iterable[Finding], limit: int | None) -> Iterator[str]:
    groups = Counter((f.bridge or "", *place(f)) for f in findings)
    ordered = sorted(groups)
    rows = [("BRIDGE", "BACKEND", "TABLE/CHAIN", "RULES")]
    rows += [
        (escape(bridge), backend, escape(chain), str(groups[bridge, backend, chain]))
        for bridge, backend, chain in ordered[:limit]
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        bridge, backend, chain, number = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"{bridge}  {backend}  {chain}  {number.strip():>{widths[3]}}"
    if limit is not None and (rest := ordered[limit:]):
        rules = count(sum(groups[key] for key in rest), "more rule")
        bridges = {key[0] for key in rest} - {key[0] for key in ordered[:limit]}
        more = f" and {count(len(bridges), 'more bridge')}" if bridges else ""
        yield f"... {rules}{more} (-v lists every rule)"


def _negated(report: Report, limit: int | None) -> Iterator[str]:
    """Rules that stay though their bridge is gone, and may be why a host misbehaves."""
    number = len(report.negated)
    yield negated_heading(number)
    yield from map(_rule_line, report.negated[:limit])
    if limit is not None and number > limit:
        yield f"... {count(number - limit, 'more rule')} (-v lists every rule)"
    yield negated_advice(number)


def negated_heading(number: int) -> str:
    """What is said of ``number`` rules that stay though their bridge is gone."""
    match = "matches" if number == 1 else "match"
    return f"{count(number, 'rule')} that {match} everything but a bridge that is gone still {match} live traffic:"


def negated_advice(number: int) -> str:
    """What can be done about ``number`` rules that stay though their bridge is gone."""
    return (
        f"{'It stays' if number == 1 else 'They stay'}. Where the profile has no forms for such rules, "
        "--include-negated sweeps those that also restrict source, destination or ports."
    )


def _bridge_line(finding: BridgeFinding) -> str:
    bridge = finding.bridge
    where = f" {bridge.subnet}" if bridge.subnet else ""
    return f"bridge {escape(bridge.name)}{where} -- {finding.verdict.value}: {reason_of(finding)}"


def _torn_down(finding: BridgeFinding) -> str:
    return _bridge_line(finding).partition(" -- ")[0]


def reason_of(finding: Finding | BridgeFinding) -> str:
    """Why a rule or a bridge has its verdict; safe to print."""
    reason = escape(finding.reason.removeprefix(f"{finding.verdict.value}: "))
    target = finding.live_traffic if isinstance(finding, Finding) else None
    return f"{reason} ({escape(target)})" if target else reason


def place(finding: Finding) -> tuple[str, str]:
    """Backend and family, and table and chain, of a rule."""
    return _place_of(finding.rule)


def _place_of(rule: Rule) -> tuple[str, str]:
    table = rule.chain.table
    return _label(table.backend, table.family), f"{table.name}/{rule.chain.name}"


def _label(backend: str, family: Family) -> str:
    return backend if family is Family.IPV4 else f"{backend} {family}"


def _rule_line(finding: Finding) -> str:
    return f"{_rule_in_place(finding.rule)} -- {finding.verdict.value}: {reason_of(finding)}"


def _rule_in_place(rule: Rule) -> str:
    where = f"{' '.join(map(escape, _place_of(rule)))} {rule.position}:"
    return " ".join([where, *rule_parts(rule.spec)])


def rule_parts(spec: Spec) -> Iterator[str]:
    """A rule as iptables writes it: each option with its value, then the comment in quotes; safe to print."""
    for option, value in (
        ("-s", spec.source),
        ("-d", spec.destination),
        ("-i", spec.in_interface),
        ("-o", spec.out_interface),
        ("-p", spec.protocol),
        ("-j", spec.target),
    ):
        if value:
            text = str(value)
            inverted = "! " if text.startswith("!") else ""
            yield f"{inverted}{option} {escape(text.removeprefix('!'))}"
    if spec.comment is not None:
        yield f'"{escape(spec.comment)}"'


def summary(report: Report, *, verbose: bool = False) -> str:
    """What was found and done, in what time, and what was not looked at; safe to print.

    ``verbose``: name every table that was not looked at.
    """
    took = _duration(report.duration_ms)
    if report.errors:
        done = changes(report) or "nothing was changed"
        left = len(report.orphans) - report.deleted + len(report.leaked) - report.bridges_deleted
        rest = f", {left:,} left: run it again" if done.startswith("deleted") and left else ""
        return f"Failed after {took}; {done}{rest}."
    if report.command == "restore":
        if report.dry_run:
            numbers = Counter(_place_of(rule)[0] for rule in report.returning)
            where = ", ".join(f"{label}: {number:,}" for label, number in numbers.items())
            return f"Would restore {count(len(report.returning), 'rule')} ({where}); nothing was changed."
        restored = ", ".join(f"{_label(b.name, b.family)}: {b.restored:,}" for b in report.backends)
        return f"Restored {count(report.restored, 'rule')} in {took} ({restored})."
    if report.command == "teardown":
        done = changes(report)
        return f"{done.capitalize()} in {took}." if done else f"Nothing to tear down ({took})."
    limit = None if verbose else NAMES_MAX
    notes = "".join(f"; {note}" for note in _not_seen(report, limit)) + "."
    acted = report.command == "sweep" and not report.dry_run
    leaked = report.bridges_deleted if acted else len(report.leaked)
    leases = report.leases_removed if acted else report.stale_leases
    if not (report.orphans or leaked or leases):
        found = f"no orphaned rules, {count(report.scanned, 'rule')} read" if report.scanned else "no rules"
        if report.bridges_scanned is not None:
            found = f"no leaked bridges, {report.bridges_scanned:,} looked at; {found}"
        return f"Nothing to sweep: {found} in {escape(_shortened(report.chains, limit))} ({took}){notes}"
    networks = len({finding.bridge for finding in report.orphans})
    rules = count(len(report.orphans), "orphaned rule") + (f" of {count(networks, 'bridge')}" if networks else "")
    parts = [count(leaked, "leaked bridge")] if leaked else []
    parts += [count(leases, "stale lease")] if leases else []
    found = f"{listed([*parts, rules])} in {took}"
    where = ", ".join(
        f"{_label(b.name, b.family)}: {b.deleted if acted else b.orphans:,} of {count(b.scanned, 'rule')}"
        for b in report.backends
    )
    if acted:
        return f"Deleted {found} ({where}){notes}"
    hint = "" if report.dry_run else " 'netsweep sweep' with the same options deletes them."
    return f"Found {found} ({where}); nothing was changed{notes}{hint}"


def _not_seen(report: Report, limit: int | None) -> Iterator[str]:
    """What a reader of the summary may believe was looked at and was not."""
    if harm := _harm(report):
        yield f"matched live traffic: {harm}"
    if report.elsewhere:
        yield elsewhere(report.elsewhere, report.chains)
    if report.overlooked:
        yield f"not looked at: {escape(_shortened(report.overlooked, limit))}"
    if report.leases and not report.leases.exists:
        yield f"lease file {escape(report.leases.path)} does not exist"


def elsewhere(number: int, chains: Sequence[str]) -> str:
    """How many orphans are in chains that were not looked at, and the option that looks there."""
    option = "--family all" if ALL_CHAINS in chains else "--all-chains"
    return f"{count(number, 'more orphaned rule')} in chains that were not looked at: {option}"


def _harm(report: Report) -> str:
    targets = Counter(finding.live_traffic for finding in report.orphans if finding.live_traffic is not None)
    return ", ".join(f"{number:,} {escape(target)}" for target, number in sorted(targets.items()))


def changes(report: Report) -> str:
    """What was changed, as ``deleted 2 bridges and 6 rules``; nothing where nothing was."""
    if report.command == "restore":
        return f"restored {count(report.restored, 'rule')}" if report.restored else ""
    numbers = ((report.bridges_deleted, "bridge"), (report.leases_removed, "lease"), (report.deleted, "rule"))
    done = [count(number, noun) for number, noun in numbers if number]
    return f"deleted {listed(done)}" if done else ""


def listed(texts: Sequence[str]) -> str:
    """``texts`` in a sentence."""
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


def _shortened(texts: Sequence[str], limit: int | None) -> str:
    rest = 0 if limit is None else len(texts[limit:])
    return ", ".join(texts[:limit]) + (f" and {rest} more" if rest else "")


def _duration(ms: float) -> str:
    return f"{ms / 1000:.2f} s" if ms >= 1000 else f"{ms:.0f} ms" if ms >= 10 else f"{ms:.1f} ms"


def count(number: int, noun: str) -> str:
    """``number`` and ``noun``, in the plural where it takes it."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
