from __future__ import annotations

import io
from typing import Any

import pytest

from netsweep import __version__
from netsweep.model import Chain, Family, Finding, Interface, Lease, Rule, Spec, Table, Verdict
from netsweep.output.json import write_json
from netsweep.report import BackendReport, Report
from tests import schema
from tests.unit.output.reports import bridge, finding, listed, negated, swept, torn_down


def written(report: Report) -> str:
    out = io.StringIO()
    write_json(report, out)
    return out.getvalue()


def said(report: Report) -> Any:
    return schema.read(written(report))


@pytest.mark.parametrize("number", [0, 1, 99, 100, 101, 200, 250])
def test_json_is_one_line_that_reads_back_as_the_object(number: int) -> None:
    report = swept([finding(f"hm{n:x}", n + 1, comment="a\n\udcff\N{SNOWMAN}") for n in range(number)])
    report.kept = [finding("hm1", n + 1, verdict=Verdict.LIVE) for n in range(number // 2)]
    report.errors = ["line\nbreak"]
    text = written(report)
    assert text.count("\n") == 1
    assert text.endswith("}\n")
    assert text.isascii()
    read = schema.read(text)
    assert (len(read["orphans"]), len(read["kept"])) == (number, number // 2)


def test_json_has_every_key_of_the_contract_in_its_order() -> None:
    report = swept([finding(comment="hypeman-fwd-out-hmdead")])
    report.overlooked = ["nft inet firewalld"]
    report.warnings = ["there is no chain filter/X"]
    read = schema.read(written(report))
    expected = {
        "schema": 1,
        "version": __version__,
        "command": "sweep",
        "dry_run": False,
        "changed": True,
        "scanned": 1203,
        "deleted": 1,
        "orphans": [
            {
                "backend": "legacy",
                "family": "ipv4",
                "table": "filter",
                "chain": "FORWARD",
                "position": 1,
                "handle": None,
                "bridge": "hmdead",
                "in": "hmdead",
                "out": None,
                "source": None,
                "destination": None,
                "target": "ACCEPT",
                "comment": "hypeman-fwd-out-hmdead",
                "verdict": "orphan",
                "reason": "bridge is gone",
                "live_traffic": None,
            }
        ],
        "negated": [],
        "kept": [],
        "bridges": [],
        "bridges_scanned": None,
        "bridges_live": None,
        "bridges_deleted": 0,
        "stale_leases": 0,
        "leases_removed": 0,
        "backends": [{"name": "legacy", "family": "ipv4", "scanned": 1203, "orphans": 1, "deleted": 1}],
        "chains": ["filter/FORWARD", "nat/POSTROUTING"],
        "overlooked": ["nft inet firewalld"],
        "elsewhere": 0,
        "leases": {"path": "/tmp/leases", "exists": True, "leases": 3, "running": 1},
        "locks": {
            "subnet": {"path": "/tmp/lock", "waited_ms": 0.123, "held_ms": 9.877, "longest_ms": 5.432},
            "xtables": None,
        },
        "returning": [],
        "journal": None,
        "duration_ms": 2540.5,
        "warnings": ["there is no chain filter/X"],
        "errors": [],
    }
    assert read == expected
    assert list(read) == list(expected)
    assert list(read["orphans"][0]) == list(expected["orphans"][0])  # type: ignore[index]


def test_what_a_list_says_of_live_traffic_and_of_other_chains_is_there_too() -> None:
    report = listed([finding(live_traffic="MASQUERADE")])
    report.negated = negated(120)
    report.elsewhere = 15
    read = said(report)
    assert read["elsewhere"] == 15
    assert read["orphans"][0]["live_traffic"] == "MASQUERADE"
    assert [each["position"] for each in read["negated"]] == list(range(1, 121))
    assert (read["negated"][0]["verdict"], read["negated"][0]["live_traffic"]) == ("negated", "DROP")
    assert read["negated"][0]["in"] == "!hm1"


def test_leases_that_were_not_read_are_null() -> None:
    assert said(Report("list"))["leases"] is None


def test_only_a_restore_tells_what_was_restored() -> None:
    backends = [BackendReport("nft", Family.IPV4, restored=2)]
    assert said(Report("restore", backends=backends))["backends"][0]["restored"] == 2
    assert "restored" not in said(Report("sweep", backends=backends))["backends"][0]


@pytest.mark.parametrize("family", [Family.IPV4, Family.IPV6, Family.INET])
def test_the_family_is_that_of_the_table(family: Family) -> None:
    report = Report("list", orphans=[finding(family=family)], backends=[BackendReport("nft", family)])
    read = schema.read(written(report))
    assert read["orphans"][0]["family"] == read["backends"][0]["family"] == family.value


def test_json_gives_interfaces_as_iptables_writes_them() -> None:
    spec = Spec(Interface("hm", wildcard=True), Interface("hm1", negated=True))
    rule = Rule(Chain(Table("nft", Family.IPV4, "filter"), "FORWARD"), 1, 9, spec)
    shown = said(Report("list", kept=[Finding(rule, Verdict.WILDCARD, "hm+", "")]))["kept"][0]
    assert (shown["in"], shown["out"], shown["handle"]) == ("hm+", "!hm1", 9)


def test_json_has_every_key_of_a_bridge_in_its_order() -> None:
    report = listed([])
    lease = Lease("10.200.1.0/24", "hmdead", 4711)
    report.bridges = [bridge(lease=lease, deleted=True), bridge("hm1", subnet=None, ports=("tap1", "tap2"))]
    report.bridges_scanned, report.stale_leases, report.leases_removed = 9, 3, 2
    expected = {
        "name": "hmdead",
        "ifindex": 7,
        "subnet": "10.200.1.0/24",
        "age_seconds": 7200.25,
        "lease": {"subnet": "10.200.1.0/24", "pid": 4711},
        "ports": [],
        "verdict": "leaked",
        "reason": "not leased, and 2 hours old",
        "deleted": True,
    }
    read = said(report)
    first, second = read["bridges"]
    assert first == expected
    assert list(first) == list(expected)
    assert (second["subnet"], second["age_seconds"], second["lease"]) == (None, None, None)
    assert (second["ports"], second["deleted"]) == (["tap1", "tap2"], False)
    assert (read["bridges_scanned"], read["bridges_deleted"], read["changed"]) == (9, 1, True)
    assert (read["stale_leases"], read["leases_removed"]) == (3, 2)


@pytest.mark.parametrize("number", [0, 1, 99, 100, 101, 250])
def test_any_number_of_bridges_reads_back(number: int) -> None:
    report = listed([])
    report.bridges = [bridge(f"hm{n:x}", verdict=Verdict.LIVE, reason="\udcff\n") for n in range(number)]
    text = written(report)
    assert text.count("\n") == 1
    assert text.isascii()
    assert [each["name"] for each in schema.read(text)["bridges"]] == [f"hm{n:x}" for n in range(number)]


def test_a_teardown_has_the_same_keys_as_a_sweep() -> None:
    read = said(torn_down())
    assert read.keys() == said(swept([])).keys()
    assert (read["command"], read["deleted"], read["bridges_deleted"]) == ("teardown", 3, 1)


def test_a_lease_alone_is_a_change() -> None:
    assert said(torn_down(0, 0, 1))["changed"] is True
    assert said(torn_down(0, 0, 0))["changed"] is False
