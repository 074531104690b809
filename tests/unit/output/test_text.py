from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from netsweep.model import BackendName, Chain, Family, Finding, Interface, Rule, Spec, Table, Verdict
from netsweep.output.text import NAMES_MAX, ROWS_MAX, summary, text_lines
from netsweep.report import BackendReport, LeaseFile, Report
from tests.unit.output.reports import bridge, finding, leaked, listed, negated, swept, torn_down


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


def test_families_and_backends_are_told_apart_wherever_they_are_named() -> None:
    families: list[tuple[BackendName, Family]] = [
        ("legacy", Family.IPV4),
        ("legacy", Family.IPV6),
        ("nft", Family.IPV4),
        ("nft", Family.IPV6),
    ]
    orphans = [finding(backend=backend, family=family) for backend, family in families]
    report = listed(orphans)
    report.backends = [BackendReport(backend, family, 10, 1) for backend, family in families]
    lines = text(report, verbose=True)
    labels = ["legacy", "legacy ipv6", "nft", "nft ipv6"]
    assert [line.split("  ")[1].strip() for line in lines[1:5]] == labels
    assert [line.split(" filter/")[0] for line in lines[6:10]] == labels
    assert f"({', '.join(f'{label}: 1 of 10 rules' for label in labels)})" in lines[-1]


# Rules that match live traffic.


def test_rules_that_match_live_traffic_have_a_paragraph_with_their_number() -> None:
    report = listed([finding()])
    report.negated = negated(2)
    lines = text(report)
    begin = lines.index("2 rules that match everything but a bridge that is gone still match live traffic:")
    assert lines[begin - 1] == ""
    assert lines[begin + 1 : begin + 3] == [
        "legacy filter/FORWARD 1: ! -i hm1 -j DROP -- negated: only negated (DROP)",
        "legacy filter/FORWARD 2: ! -i hm2 -j DROP -- negated: only negated (DROP)",
    ]
    assert lines[begin + 3].startswith("They stay.")
    assert "--include-negated sweeps those that also restrict source, destination or ports" in lines[begin + 3]
    assert lines[begin + 4] == ""
    # They are no orphans.
    assert lines[-1].startswith("Found 1 orphaned rule of 1 bridge")
    assert "live traffic" not in lines[-1]


def test_one_rule_that_matches_live_traffic_is_in_the_singular_and_there_without_orphans() -> None:
    report = listed([])
    report.negated = negated(1)
    lines = text(report)
    assert lines[0] == "1 rule that matches everything but a bridge that is gone still matches live traffic:"
    assert lines[2].startswith("It stays.")
    assert lines[-1].startswith("Nothing to sweep")


def test_many_rules_that_match_live_traffic_are_a_page() -> None:
    report = listed([])
    report.negated = negated(ROWS_MAX + 3)
    lines = text(report)
    assert lines[0].startswith(f"{ROWS_MAX + 3} rules that match")
    assert lines[ROWS_MAX + 1] == "... 3 more rules (-v lists every rule)"
    report.negated = negated(ROWS_MAX)
    assert not [line for line in text(report) if line.startswith("...")]


def test_nothing_is_said_of_live_traffic_where_there_is_none() -> None:
    assert not [line for line in text(listed([finding()]), verbose=True) if "live traffic" in line or "negated" in line]


@pytest.mark.parametrize(("made", "verb"), [(swept, "Deleted"), (listed, "Found")])
def test_orphans_that_matched_live_traffic_are_counted_by_what_they_did(
    made: Callable[[list[Finding]], Report], verb: str
) -> None:
    orphans = [finding(live_traffic=target) for target in ("MASQUERADE", "DROP", "DROP")]
    report = made([finding("hm1"), *orphans])
    assert text(report)[-1].startswith(f"{verb} 4 orphaned rules")
    assert "; matched live traffic: 2 DROP, 1 MASQUERADE" in text(report)[-1]
    assert "legacy filter/FORWARD 1: ! -i hmdead -j DROP -- orphan: bridge is gone (DROP)" in text(report, verbose=True)


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
            "'netsweep sweep' with the same options deletes them.",
        ),
        (
            listed([finding()]),
            "Found 1 orphaned rule of 1 bridge in 2.54 s (legacy: 1 of 1,203 rules); nothing was changed. "
            "'netsweep sweep' with the same options deletes them.",
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
    report.overlooked = [f"nft inet t{number}" for number in range(NAMES_MAX + 3)]
    assert summary(report).endswith(f"t{NAMES_MAX - 1} and 3 more.")
    assert summary(report, verbose=True).endswith(f"t{NAMES_MAX + 1}, nft inet t{NAMES_MAX + 2}.")


@pytest.mark.parametrize("report", [listed([], 0), listed([]), listed([finding()])])
def test_orphans_in_chains_that_were_not_looked_at_are_counted(report: Report) -> None:
    report.elsewhere = 15
    assert "; 15 more orphaned rules in chains that were not looked at: --all-chains" in text(report)[-1]
    report.elsewhere = 1
    assert "; 1 more orphaned rule in chains that were not looked at: --all-chains" in text(report)[-1]
    report.elsewhere = 0
    assert "not looked at" not in text(report)[-1]


def test_many_chains_are_named_in_part_but_all_where_asked_for() -> None:
    report = listed([])
    report.chains = [f"filter/C{number}" for number in range(NAMES_MAX + 2)]
    some, every = ", ".join(report.chains[:NAMES_MAX]), ", ".join(report.chains)
    assert f"read in {some} and 2 more (2.54 s)." in text(report)[-1]
    assert f"read in {every} (2.54 s)." in text(report, verbose=True)[-1]
    report.chains = report.chains[:NAMES_MAX]
    assert f"read in {some} (2.54 s)." in text(report)[-1]


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
    report.chains = ["\x1b*/*"]
    assert r"1,203 rules read in \x1b*/* (2.54 s)" in summary(report)
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


# Bridges.


def test_leaked_bridges_stand_first_each_with_the_reason() -> None:
    report = listed([finding()])
    report.bridges = [bridge(), bridge("hm2", subnet=None, reason="its lease names PID 4, which is gone")]
    lines = text(report)
    assert lines[:4] == [
        "bridge hmdead 10.200.1.0/24 -- leaked: not leased, and 2 hours old",
        "bridge hm2 -- leaked: its lease names PID 4, which is gone",
        "",
        "BRIDGE  BACKEND  TABLE/CHAIN     RULES",
    ]
    assert lines[-1].startswith("Found 2 leaked bridges and 1 orphaned rule of 1 bridge in")
    assert "'netsweep sweep' with the same options deletes them" in lines[-1]


def test_of_many_leaked_bridges_some_are_shown_and_with_verbose_all() -> None:
    report = listed([])
    report.bridges = [bridge(f"hm{number:x}") for number in range(ROWS_MAX + 1)]
    lines = text(report)
    assert len([line for line in lines if line.startswith("bridge ")]) == ROWS_MAX
    assert lines[ROWS_MAX] == "... 1 more leaked bridge (-v lists all)"
    assert len([line for line in text(report, verbose=True) if line.startswith("bridge ")]) == ROWS_MAX + 1
    report.bridges.pop()
    assert not [line for line in text(report) if line.startswith("...")]


def test_bridges_that_stay_are_shown_before_rules_that_stay() -> None:
    report = listed([])
    report.kept = [finding("hm1", verdict=Verdict.LIVE, reason="hm1 exists")]
    report.bridges = [bridge("hm1", verdict=Verdict.LIVE, reason="has port tap12")]
    lines = text(report)
    assert lines[:3] == [
        "Kept, and why:",
        "bridge hm1 10.200.1.0/24 -- live: has port tap12",
        "legacy filter/FORWARD 1: -i hm1 -j ACCEPT -- live: hm1 exists",
    ]


def test_what_the_host_calls_a_bridge_is_escaped() -> None:
    report = listed([])
    report.bridges = [bridge("hm\x1b", reason="\x1b[31m is on top of it")]
    assert text(report)[0] == r"bridge hm\x1b 10.200.1.0/24 -- leaked: \x1b[31m is on top of it"


@pytest.mark.parametrize(
    ("bridges", "leases", "rules", "found"),
    [
        (1, 0, 0, "Deleted 1 leaked bridge and 0 orphaned rules in"),
        (0, 1, 0, "Deleted 1 stale lease and 0 orphaned rules in"),
        (2, 3, 1, "Deleted 2 leaked bridges, 3 stale leases and 1 orphaned rule of 1 bridge in"),
        (0, 0, 0, "Nothing to sweep: no leaked bridges, 4 looked at; no orphaned rules, 1,203 rules read in"),
    ],
)
def test_a_sweep_says_how_many_bridges_and_leases_went(bridges: int, leases: int, rules: int, found: str) -> None:
    report = swept([finding()] * rules)
    report.bridges = [bridge(f"hm{number}", deleted=True) for number in range(bridges)]
    report.leases_removed, report.bridges_scanned = leases, 4
    assert summary(report).startswith(found)


def test_a_bridge_that_was_found_and_stays_is_not_counted_as_deleted() -> None:
    report = swept([])
    report.bridges = [bridge("hm1", deleted=True), bridge("hm2"), bridge("hm3", verdict=Verdict.UNDECIDABLE)]
    assert summary(report).startswith("Deleted 1 leaked bridge and")


def test_bridges_that_were_not_asked_for_are_not_spoken_of() -> None:
    assert "bridges" not in summary(listed([]))


def test_a_list_counts_stale_leases() -> None:
    report = listed([])
    report.stale_leases = 2
    assert summary(report).startswith("Found 2 stale leases and 0 orphaned rules in")


def test_a_sweep_that_failed_says_what_went_and_what_is_left() -> None:
    report = swept([finding(), finding(position=2)])
    report.backends[0].deleted = 1
    report.bridges = [bridge("hm1", deleted=True), bridge("hm2"), bridge("hm3")]
    report.leases_removed = 1
    report.errors = ["no"]
    assert "; deleted 1 bridge, 1 lease and 1 rule, 3 left: run it again." in summary(report)


@pytest.mark.parametrize(
    ("bridges", "rules", "leases", "done"),
    [
        (1, 3, 1, "Deleted 1 bridge, 1 lease and 3 rules in 2.54 s."),
        (2, 1, 0, "Deleted 2 bridges and 1 rule in 2.54 s."),
        (0, 0, 1, "Deleted 1 lease in 2.54 s."),
        (0, 0, 0, "Nothing to tear down (2.54 s)."),
    ],
)
def test_a_teardown_says_what_went(bridges: int, rules: int, leases: int, done: str) -> None:
    assert text(torn_down(bridges, rules, leases))[-1] == done


def test_a_teardown_shows_bridges_without_a_verdict() -> None:
    """That it was leaked is not so."""
    lines = text(torn_down())
    assert lines[:2] == ["bridge hm0 10.200.1.0/24", ""]
    assert "leaked" not in "\n".join(lines)
