"""Tables: what is in them, and that they fit."""

from __future__ import annotations

import io
import re

import pytest

from netsweep.model import Family, Verdict
from netsweep.output.terminal import write_tables
from netsweep.output.text import ROWS_MAX
from netsweep.report import BackendReport, Report
from tests.unit.output.reports import bridge, finding, leaked, listed, negated, swept, torn_down

STYLE = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(autouse=True)
def columns(monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, 80)


def at(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))


def shown(report: Report, *, verbose: bool = False, coloured: bool = True) -> str:
    out = io.StringIO()
    write_tables(report, out, verbose=verbose, coloured=coloured)
    return out.getvalue()


def lines(report: Report, *, verbose: bool = False) -> list[str]:
    """Without styles, and without the spaces that fill a table up."""
    return [line.rstrip() for line in STYLE.sub("", shown(report, verbose=verbose)).splitlines()]


def everything() -> Report:
    """A report with all that there is, and the longest names that there may be."""
    name, other = "hm0123456789abc", "hmfedcba9876543"
    report = listed(
        [
            finding(name, 1),
            finding(name, 12345, backend="nft", family=Family.IPV6, chain="CNI-FORWARD", comment=f"hypeman-fwd-{name}"),
            *[finding(name, n, backend="nft", table="mangle", chain=f"CHAIN-{n}") for n in range(10)],
            finding(other, 2, live_traffic="MASQUERADE", reason="it names a bridge that is gone in a negated match"),
        ]
    )
    report.backends = [BackendReport(b, f, 10**6, 1) for b in ("legacy", "nft") for f in (Family.IPV4, Family.IPV6)]
    report.bridges = [
        bridge(name, reason="its lease names PID 4194303, which is gone, and so does another that is older"),
        bridge(other, subnet="2001:db8:1234:5678:9abc:def0:1234:1/112"),
        bridge("hmace", verdict=Verdict.LEASED, reason="leased: a running process (PID 7) holds a lease for hmace"),
    ]
    report.kept = [
        finding(f"hm{n}", n, family=Family.IPV6, verdict=verdict, reason=f"because of {n}", comment="one two " * 20)
        for n, verdict in enumerate((Verdict.LIVE, Verdict.LIVE, Verdict.PROTECTED, Verdict.UNDECIDABLE))
    ]
    report.negated = negated(3)
    report.overlooked = [f"nft inet table{n}" for n in range(5)]
    return report


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 120])
def test_no_line_is_wider_than_the_terminal_and_no_word_is_broken(
    monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    report = everything()
    at(monkeypatch, 1000)
    words = set(" ".join(lines(report, verbose=True)).split())
    at(monkeypatch, columns)
    for line in lines(report, verbose=True):
        assert len(line) <= columns or len(line.split()) == 1, "only a word that is too long itself may be"
        assert len(line) <= max(columns, 45)
        assert {word for word in line.split() if not re.fullmatch("[a-z]+:|─+", word)} <= words


def test_a_terminal_too_narrow_for_a_table_has_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    report = listed([finding("hm1"), finding("hm1", 2, backend="nft"), finding("hm1", 1, backend="nft", table="nat")])
    at(monkeypatch, 40)
    assert lines(report)[:8] == [
        "orphan: 3 rules of 1 bridge",
        "hm1",
        "  rules: 3",
        "  backend: legacy",
        "  chains: filter/FORWARD 1",
        "  backend: nft",
        "  chains: filter/FORWARD 1,",
        "    nat/FORWARD 1",  # a chain keeps its number
    ]
    for columns in (1, 20):  # not a size that anybody works with, and no reason to fail
        at(monkeypatch, columns)
        assert "hm1" in shown(report)


def test_a_bridge_is_one_row_with_its_rules_summed() -> None:
    report = listed([*leaked(2), finding("hm0001", 9, backend="nft", family=Family.IPV6)])
    assert lines(report)[:6] == [
        "orphan: 7 rules of 2 bridges",
        "BRIDGE  RULES  BACKEND   CHAINS",
        "─" * 60,
        "hm0000      3  legacy    filter/FORWARD 2, nat/POSTROUTING 1",
        "hm0001      4  legacy    filter/FORWARD 2, nat/POSTROUTING 1",
        "               nft ipv6  filter/FORWARD 1",
    ]


def test_many_bridges_are_a_page_and_each_bridge_is_counted_once() -> None:
    found = lines(listed(leaked(300)))
    assert f"... {900 - 3 * ROWS_MAX} more rules of {300 - ROWS_MAX} more bridges (-v lists every rule)" in found
    assert len([line for line in found if line.startswith("hm")]) == ROWS_MAX
    assert not [line for line in lines(listed(leaked(ROWS_MAX))) if line.startswith("...")]
    all_of_them = lines(listed(leaked(300)), verbose=True)
    assert len([line for line in all_of_them if line.startswith("hm")]) == 300
    assert len([line for line in all_of_them if " -i hm" in line]) == 900


def test_leaked_bridges_come_first_with_the_reason() -> None:
    report = listed([])
    report.bridges = [bridge(f"hm{number:x}") for number in range(ROWS_MAX + 1)]
    found = lines(report)
    assert found[0] == "leaked: 16 bridges"
    assert found[3] == "hm0     10.200.1.0/24  not leased, and 2 hours old"
    assert "... 1 more leaked bridge (-v lists all)" in found
    assert found.index("") == found.index("... 1 more leaked bridge (-v lists all)") + 1


def test_what_stays_is_grouped_by_verdict_with_counts_and_a_common_reason_once() -> None:
    report = listed([])
    report.kept = [
        finding("hm1", 1, verdict=Verdict.LIVE, reason="hm1 exists"),
        finding("hmvpn", 2, verdict=Verdict.FOREIGN, reason="hmvpn is not a name of ours"),
        finding("hm1", 3, verdict=Verdict.LIVE, reason="hm1 exists"),
        finding("hm2", 4, verdict=Verdict.FOREIGN, reason="its comment does not have a form of ours", comment="to hm2"),
    ]
    report.bridges = [bridge("hm1", verdict=Verdict.LEASED, reason="leased: by somebody")]
    found = lines(report)
    assert found == [
        "Kept, and why:",
        "",
        "live: 2 rules -- hm1 exists",
        "  legacy filter/FORWARD 1  -i hm1 -j ACCEPT",
        "  legacy filter/FORWARD 3  -i hm1 -j ACCEPT",
        "",
        "leased: 1 bridge -- by somebody",
        "  bridge hm1  10.200.1.0/24",
        "",
        "foreign: 2 rules",
        "  hmvpn is not a name of ours:",
        "    legacy filter/FORWARD 2  -i hmvpn -j ACCEPT",
        "  its comment does not have a form of ours:",
        '    legacy filter/FORWARD 4  -i hm2 -j ACCEPT "to hm2"',
        "",
        "Nothing to sweep: no orphaned rules, 1,203 rules read in filter/FORWARD,",
        "nat/POSTROUTING (2.54 s).",
    ]


def test_rules_that_match_live_traffic_are_told_once() -> None:
    report = listed([])
    report.negated = negated(ROWS_MAX + 1)
    report.kept = list(report.negated)
    found = lines(report)
    assert found[0].startswith("16 rules that match everything but a bridge that is gone")
    assert "... 1 more rule (-v lists every rule)" in found
    assert "They stay. Where the profile has no forms for such rules, --include-negated" in found
    assert found[-3] == ""
    assert "negated: 16 rules" not in "\n".join(found)


def test_a_teardown_says_nothing_of_verdicts() -> None:
    found = "\n".join(lines(torn_down()))
    assert "hm0     10.200.1.0/24" in found
    assert "leaked" not in found
    assert "orphan" not in found
    assert found.endswith("\n\nDeleted 1 bridge, 1 lease and 3 rules in 2.54 s.")


HOSTILE = (
    "[red]x[/red] :smile: [link=http://x]y[/link] \x1b[31m \x1b]8;;http://x\x07 \u202e\u6f22\U0001f600 https://x 12"
)


def test_nothing_of_the_host_is_markup_emoji_a_link_or_a_control_sequence() -> None:
    report = listed([finding("hm1", chain=HOSTILE)])
    report.kept = [finding("hm2", comment=HOSTILE, verdict=Verdict.FOREIGN, reason=HOSTILE)]
    report.bridges = [bridge("hm[b]", reason=HOSTILE)]
    report.overlooked = [HOSTILE]
    text = shown(report, verbose=True)
    rest = STYLE.sub("", text)
    assert rest.replace("─", "-").isascii()
    assert rest.replace("\n", "").isprintable()
    words = re.sub(r"\s+", " ", rest)
    assert words.count(r"[red]x[/red] :smile: [link=http://x]y[/link] \x1b[31m \x1b]8;;http://x\x07") >= 4
    assert "hm[b] " in words
    # A number or an address is not coloured either.
    assert set(STYLE.findall(text)) == {f"\x1b[{code}m" for code in ("0", "1", "1;31", "1;39")}


@pytest.mark.parametrize("form", [listed, swept])
def test_verdicts_and_outcomes_are_coloured_where_that_is_wanted(form: type) -> None:
    report = form([finding()])
    report.kept = [finding("hm1", verdict=verdict) for verdict in Verdict if verdict is not Verdict.NEGATED]
    text = shown(report)
    assert "\x1b[1;31morphan\x1b[0m: 1 rule" in text
    assert "\x1b[1;32mlive\x1b[0m: 1 rule" in text
    assert ("\x1b[1;31mFound\x1b[0m " in text) == (form is listed)
    assert ("\x1b[1;32mDeleted\x1b[0m " in text) == (form is swept)
    # Yellow cannot be read on white, nor blue on black.
    assert not {code for style in STYLE.findall(text) for code in re.findall(r"\d+", style)} & {"33", "34", "2", "90"}
    plain = shown(report, coloured=False)
    assert "\x1b" not in plain
    assert plain == STYLE.sub("", text)


def test_the_line_under_the_head_is_left_out_where_a_terminal_could_not_show_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("locale.getpreferredencoding", lambda _: "ISO-8859-1")
    assert shown(listed(leaked(3)), verbose=True).isascii()


def test_a_time_keeps_its_unit_and_a_path_is_left_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    report = listed([])
    report.duration_ms = 12.0
    for columns in range(30, 90):
        at(monkeypatch, columns)
        assert "(12 ms)" in shown(report)
    assert report.leases
    report.leases.exists, report.leases.path = False, f"/tmp/{'x' * 100}"
    assert report.leases.path in shown(report)
