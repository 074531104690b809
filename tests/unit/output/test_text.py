from __future__ import annotations

import re

import pytest

from netsweep.model import Chain, Family, Finding, Interface, Rule, Spec, Table, Verdict
from netsweep.output.text import ROWS_MAX, TABLES_MAX, summary, text_lines
from netsweep.report import BackendReport, LeaseFile, Report
from tests.unit.output.reports import finding, leaked, listed, swept


def text(report: Report, *, verbose: bool = False) -> list[str]:
    return list(text_lines(report, verbose=verbose))


def test_900_rules_are_a_page_that_says_what_it_left_out() -> None:
    lines = text(listed(leaked(300)))
    assert len(lines) == ROWS_MAX + 4
    assert lines[0].split() == ["BRIDGE", "BACKEND", "TABLE/CHAIN", "RULES"]
    rows = [line.split() for line in lines[1 : ROWS_MAX + 1]]
    assert rows[:2] == [["hm0000", "legacy", "filter/FORWARD", "2"], ["hm0000", "legacy", "nat/POSTROUTING", "1"]]
    left_out = 900 - sum(int(row[3]) for row in rows)
    bridges = 300 - len({row[0] for row in rows})
    assert lines[ROWS_MAX + 1] == f"... {left_out} more rules and {bridges} more bridges (-v lists every rule)"
    assert lines[-2] == ""
    assert len({len(line) for line in lines[: ROWS_MAX + 1]}) == 1, "the columns are not aligned"


def test_what_fits_leaves_nothing_out() -> None:
    chains = [finding(f"hm{number:x}") for number in range(ROWS_MAX)]
    assert len(text(listed(chains))) == ROWS_MAX + 3
    one_more = text(listed([*chains, finding("hmffff")]))
    assert one_more[ROWS_MAX + 1] == "... 1 more rule and 1 more bridge (-v lists every rule)"
    # Of a bridge that is shown already.
    second = text(listed([*chains, finding(f"hm{ROWS_MAX - 1:x}", table="nat")]))
    assert second[ROWS_MAX + 1] == "... 1 more rule (-v lists every rule)"


def test_verbose_lists_every_group_and_every_rule() -> None:
    lines = text(listed(leaked(300)), verbose=True)
    assert not [line for line in lines if line.startswith("...")]
    rules = [line for line in lines if line.startswith("legacy ")]
    assert len(rules) == 900
    assert rules[2] == "legacy nat/POSTROUTING 3: -i hm0000 -j ACCEPT -- orphan: bridge is gone"
    assert len([line for line in lines if line.startswith("hm")]) == 600


def test_a_rule_is_shown_with_all_that_tells_it_from_others() -> None:
    spec = Spec(
        in_interface=Interface("hm1", negated=True),
        out_interface=Interface("eth", wildcard=True),
        source="10.200.1.0/24",
        destination="192.0.2.1/32",
        target="MASQUERADE",
        comments=("hypeman-nat-hm1", "two"),
    )
    rule = Rule(Chain(Table("nft", Family.IPV4, "nat"), "POSTROUTING"), 7, 42, spec)
    report = Report("list", kept=[Finding(rule, Verdict.WILDCARD, "hm1", "matches interfaces by wildcard eth+")])
    assert text(report)[:3] == [
        "Kept, and why:",
        "nft nat/POSTROUTING 7: -s 10.200.1.0/24 -d 192.0.2.1/32 ! -i hm1 -o eth+ -j MASQUERADE "
        '"hypeman-nat-hm1 two" -- wildcard: matches interfaces by wildcard eth+',
        "",
    ]


def test_a_family_other_than_ipv4_is_named() -> None:
    report = listed([finding(backend="nft", family=Family.INET, table="firewalld", chain="fwd")])
    report.backends = [BackendReport("nft", Family.INET, 7, 1)]
    lines = text(report, verbose=True)
    assert lines[1] == "hmdead  nft inet  firewalld/fwd      1"
    assert lines[3].startswith("nft inet firewalld/fwd 1: ")
    assert "(nft inet: 1 of 7 rules)" in lines[-1]


def test_kept_rules_come_with_the_reason_after_the_orphans() -> None:
    report = listed([finding()])
    report.kept = [finding("hm1", verdict=Verdict.LIVE, reason="hm1 exists")]
    lines = text(report)
    assert lines.index("Kept, and why:") > lines.index("hmdead  legacy   filter/FORWARD      1")
    assert "legacy filter/FORWARD 1: -i hm1 -j ACCEPT -- live: hm1 exists" in lines
    assert lines[-1].startswith("Found 1 orphaned rule of 1 bridge")


WHERE = "filter/FORWARD, nat/POSTROUTING"


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (listed([]), f"Nothing to sweep: no orphaned rules, 1,203 rules read in {WHERE} (2.54 s)."),
        (listed([], scanned=1), f"Nothing to sweep: no orphaned rules, 1 rule read in {WHERE} (2.54 s)."),
        (listed([], scanned=0), f"Nothing to sweep: no rules in {WHERE} (2.54 s)."),
        (
            listed(leaked(300)),
            "Found 900 orphaned rules of 300 bridges in 2.54 s (legacy: 900 of 1,203 rules); nothing was changed. "
            "'netsweep sweep' deletes them.",
        ),
        (
            listed([finding()]),
            "Found 1 orphaned rule of 1 bridge in 2.54 s (legacy: 1 of 1,203 rules); nothing was changed. "
            "'netsweep sweep' deletes them.",
        ),
        (swept(leaked(300)), "Deleted 900 orphaned rules of 300 bridges in 2.54 s (legacy: 900 of 1,203 rules)."),
        (swept([finding()]), "Deleted 1 orphaned rule of 1 bridge in 2.54 s (legacy: 1 of 1,203 rules)."),
        (swept(leaked(400)), "Deleted 1,200 orphaned rules of 400 bridges in 2.54 s (legacy: 1,200 of 1,203 rules)."),
    ],
)
def test_the_last_line_says_what_was_done_and_in_what_time(report: Report, expected: str) -> None:
    assert text(report)[-1] == summary(report) == expected


def test_a_dry_run_does_not_advise_what_was_just_tried() -> None:
    report = listed([finding()])
    report.command, report.dry_run = "sweep", True
    assert text(report)[-1].endswith("; nothing was changed.")


OTHERS = ["nft inet firewalld", "legacy ipv6 filter"]


@pytest.mark.parametrize("report", [listed([], 0), listed([]), listed([finding()]), swept([finding()])])
def test_what_was_not_looked_at_is_never_kept_back(report: Report) -> None:
    report.overlooked = list(OTHERS)
    line = text(report)[-1]
    assert "; not looked at: nft inet firewalld, legacy ipv6 filter." in line


def test_many_tables_that_were_not_looked_at_are_counted_and_named_where_asked_for() -> None:
    report = listed([])
    report.overlooked = [f"nft inet t{number}" for number in range(TABLES_MAX + 3)]
    assert summary(report).endswith(f"t{TABLES_MAX - 1} and 3 more.")
    assert summary(report, verbose=True).endswith(f"t{TABLES_MAX + 1}, nft inet t{TABLES_MAX + 2}.")


def test_tables_are_never_said_to_be_missing_where_there_are_some() -> None:
    only_ipv6 = Report("list", chains=["filter/FORWARD"], overlooked=["legacy ipv6 filter"])
    assert summary(only_ipv6) == (
        "Nothing to sweep: no rules in filter/FORWARD (0.0 ms); not looked at: legacy ipv6 filter."
    )


@pytest.mark.parametrize("report", [listed([], 0), listed([]), listed([finding()]), swept([finding()])])
def test_a_lease_file_that_does_not_exist_is_told(report: Report) -> None:
    report.leases = LeaseFile("/tmp/nowhere", False)
    assert "; lease file /tmp/nowhere does not exist." in text(report)[-1]
    report.leases = LeaseFile("/tmp/there", True, 2, 1)
    assert "lease" not in text(report)[-1]
    assert "Lease file /tmp/there: 2 leases, 1 in force." in text(report, verbose=True)


def test_names_of_the_host_are_escaped_in_the_summary() -> None:
    report = listed([])
    report.overlooked = ["nft inet \x1b[31m\n##[error]"]
    report.leases = LeaseFile("/tmp/\n", False)
    assert r"not looked at: nft inet \x1b[31m\n#\x23[error]; lease file /tmp/\n does not exist." in summary(report)


def test_a_failure_says_how_far_it_came() -> None:
    report = swept([finding(), finding("hmbee", 2)])
    report.errors = ["no space"]
    report.backends[0].deleted = 1
    assert summary(report) == "Failed after 2.54 s; deleted 1 rule, 1 left: run it again."
    report.backends[0].deleted = 0
    assert summary(report) == "Failed after 2.54 s; nothing was changed."


def test_a_restore_says_how_much_came_back_and_where() -> None:
    backends = [BackendReport("legacy", Family.IPV4, restored=2), BackendReport("nft", Family.IPV4, restored=1)]
    report = Report("restore", backends=backends, duration_ms=1040)
    assert text(report) == ["Restored 3 rules in 1.04 s (legacy: 2, nft: 1)."]
    backends[0].restored = 0
    report.errors = ["gone"]
    assert summary(report) == "Failed after 1.04 s; restored 1 rule."


def test_every_backend_has_its_share_in_the_summary() -> None:
    report = swept([finding(position=n) for n in range(3)])
    report.backends = [BackendReport("legacy", Family.IPV4, 10, 3, 3), BackendReport("nft", Family.IPV4, 5)]
    assert "(legacy: 3 of 10 rules, nft: 0 of 5 rules)" in summary(report)


@pytest.mark.parametrize(("ms", "shown"), [(0.04, "0.0 ms"), (9.94, "9.9 ms"), (12.3, "12 ms"), (1000, "1.00 s")])
def test_times_have_as_many_digits_as_matter(ms: float, shown: str) -> None:
    report = listed([])
    report.duration_ms = ms
    assert re.search(rf"\({shown}\)", summary(report))
