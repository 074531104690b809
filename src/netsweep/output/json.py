"""A report as one JSON object."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any, TextIO

from netsweep.model import BridgeFinding, Finding, Rule
from netsweep.report import BackendReport, LockTimes, Report
from netsweep.version import __version__

SCHEMA = 1
"""Version of the JSON; grows when a field changes its meaning, not when one is added."""

_RULE_LISTS = ("orphans", "negated", "kept", "bridges", "returning")


def write_json(report: Report, out: TextIO) -> None:
    """Write the report as one line; the rules by the hundred, as there may be very many."""
    separator = "{"
    for name, value in _fields(report):
        out.write(f"{separator}{json.dumps(name)}: ")
        separator = ", "
        if name in _RULE_LISTS:
            out.write("[")
            written = 0
            while rules := list(islice(value, 100)):
                out.write(", " * bool(written) + json.dumps(rules)[1:-1])
                written += len(rules)
            out.write("]")
        else:
            out.write(json.dumps(value))
    out.write("}\n")


def _fields(report: Report) -> Iterator[tuple[str, Any]]:
    yield "schema", SCHEMA
    yield "version", __version__
    yield "command", report.command
    yield "dry_run", report.dry_run
    yield "changed", report.changed
    yield "scanned", report.scanned
    yield "deleted", report.deleted
    yield "orphans", map(_rule_dict, report.orphans)
    yield "negated", map(_rule_dict, report.negated)
    yield "kept", map(_rule_dict, report.kept)
    yield "bridges", map(_bridge_dict, report.bridges)
    yield "bridges_scanned", report.bridges_scanned
    yield "bridges_live", report.bridges_live
    yield "bridges_deleted", report.bridges_deleted
    yield "stale_leases", report.stale_leases
    yield "leases_removed", report.leases_removed
    yield "backends", [_backend_dict(backend, report.command) for backend in report.backends]
    yield "chains", report.chains
    yield "overlooked", report.overlooked
    yield "elsewhere", report.elsewhere
    yield "leases", report.leases and asdict(report.leases)
    yield "locks", {"subnet": _lock_dict(report.subnet_lock), "xtables": _lock_dict(report.xtables_lock)}
    yield "returning", map(_undecided_dict, report.returning)
    yield "journal", report.journal
    yield "duration_ms", round(report.duration_ms, 1)
    yield "warnings", report.warnings
    yield "errors", report.errors


def _rule_dict(finding: Finding) -> dict[str, Any]:
    decided = {"verdict": finding.verdict.value, "reason": finding.reason, "live_traffic": finding.live_traffic}
    return {**_undecided_dict(finding.rule), "bridge": finding.bridge, **decided}


def _undecided_dict(rule: Rule) -> dict[str, Any]:
    spec = rule.spec
    return {
        "backend": rule.chain.table.backend,
        "family": rule.chain.table.family.value,
        "table": rule.chain.table.name,
        "chain": rule.chain.name,
        "position": rule.position,
        "handle": rule.handle,
        "bridge": None,
        "in": spec.in_interface and str(spec.in_interface),
        "out": spec.out_interface and str(spec.out_interface),
        "source": spec.source,
        "destination": spec.destination,
        "target": spec.target,
        "comment": spec.comment,
        "verdict": None,
        "reason": None,
        "live_traffic": None,
    }


def _bridge_dict(finding: BridgeFinding) -> dict[str, Any]:
    bridge, lease = finding.bridge, finding.lease
    return {
        "name": bridge.name,
        "ifindex": bridge.ifindex,
        "subnet": bridge.subnet,
        "age_seconds": bridge.age,
        "lease": lease and {"subnet": lease.subnet, "pid": lease.pid},
        "ports": bridge.ports,
        "verdict": finding.verdict.value,
        "reason": finding.reason,
        "deleted": finding.deleted,
    }


def _backend_dict(backend: BackendReport, command: str) -> dict[str, Any]:
    shown = {**vars(backend), "family": backend.family.value}
    if command != "restore":
        del shown["restored"]
    return shown


def _lock_dict(times: LockTimes | None) -> dict[str, Any] | None:
    if times is None:
        return None
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in vars(times).items()}
