"""What people, programs and GitHub's runner get to read."""

from __future__ import annotations

import html
import io
import json
import os
import re
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsweep import __version__
from netsweep.errors import NetsweepError
from netsweep.locks import LockTimes
from netsweep.orphans import Finding, Verdict
from netsweep.report import (
    ROWS_MAX,
    BackendReport,
    Report,
    escape,
    github_lines,
    summary,
    text_lines,
    write_json,
    write_step_summary,
)
from netsweep.rules import Interface, Rule


def finding(
    bridge: str | None = "hmdead",
    position: int = 1,
    *,
    table: str = "filter",
    chain: str = "FORWARD",
    comment: str | None = None,
    verdict: Verdict = Verdict.ORPHAN,
    reason: str = "bridge is gone",
) -> Finding:
    rule = Rule(
        "legacy",
        table,
        chain,
        position,
        in_interface=Interface(bridge) if bridge else None,
        target="ACCEPT",
        comment=comment,
    )
    return Finding(rule, verdict, bridge, reason)


def listed(orphans: list[Finding], scanned: int = 1203) -> Report:
    return Report(
        "list",
        orphans=orphans,
        backends=[BackendReport("legacy", "ipv4", scanned, len(orphans))],
        duration_ms=2540.54,
    )


def swept(orphans: list[Finding], scanned: int = 1203) -> Report:
    report = listed(orphans, scanned)
    report.command = "sweep"
    report.backends[0].deleted = len(orphans)
    report.subnet_lock = LockTimes("/tmp/lock", 0.12345, 9.87654)
    return report


def leaked(bridges: int) -> list[Finding]:
    """Three rules of each bridge, in two chains."""
    return [
        finding(f"hm{number:04x}", number * 3 + nth + 1, table=table, chain=chain)
        for number in range(bridges)
        for nth, (table, chain) in enumerate([("filter", "FORWARD")] * 2 + [("nat", "POSTROUTING")])
    ]


def text(report: Report, *, verbose: bool = False) -> list[str]:
    return list(text_lines(report, verbose=verbose))


def test_900_rules_are_a_page_that_says_what_it_left_out() -> None:
    lines = text(listed(leaked(300)))
    assert len(lines) == ROWS_MAX + 4
    assert lines[0].split() == ["BRIDGE", "BACKEND", "TABLE/CHAIN", "RULES"]
    rows = [line.split() for line in lines[1 : ROWS_MAX + 1]]
    assert rows[:2] == [["hm0000", "legacy", "filter/FORWARD", "2"], ["hm0000", "legacy", "nat/POSTROUTING", "1"]]
    left_out = 900 - sum(int(row[3]) for row in rows)
    # The bridge whose second row no longer found room counts among the others.
    assert lines[ROWS_MAX + 1] == f"... and {left_out} more rules of 293 bridges (-v lists every rule)"
    assert lines[-2] == ""
    assert len({len(line) for line in lines[: ROWS_MAX + 1]}) == 1, "the columns are not aligned"


def test_what_fits_leaves_nothing_out() -> None:
    chains = [finding(f"hm{number:x}") for number in range(ROWS_MAX)]
    assert len(text(listed(chains))) == ROWS_MAX + 3
    one_more = text(listed([*chains, finding("hmffff")]))
    assert one_more[ROWS_MAX + 1] == "... and 1 more rule of 1 bridge (-v lists every rule)"


def test_verbose_lists_every_group_and_every_rule() -> None:
    lines = text(listed(leaked(300)), verbose=True)
    assert not [line for line in lines if line.startswith("...")]
    rules = [line for line in lines if line.startswith("legacy ")]
    assert len(rules) == 900
    assert rules[2] == "legacy nat/POSTROUTING 3: -i hm0000 -j ACCEPT -- orphan: bridge is gone"
    assert len([line for line in lines if line.startswith("hm")]) == 600


def test_a_rule_is_shown_with_all_that_tells_it_from_others() -> None:
    rule = Rule(
        *("nft", "nat", "POSTROUTING", 7, 42),
        in_interface=Interface("hm1", negated=True),
        out_interface=Interface("eth", wildcard=True),
        source="10.200.1.0/24",
        destination="192.0.2.1/32",
        target="MASQUERADE",
        comment="hypeman-nat-hm1",
    )
    report = Report("list", kept=[Finding(rule, Verdict.WILDCARD, "hm1", "matches interfaces by wildcard eth+")])
    assert text(report)[:3] == [
        "Kept, and why:",
        "nft nat/POSTROUTING 7: -s 10.200.1.0/24 -d 192.0.2.1/32 ! -i hm1 -o eth+ -j MASQUERADE "
        '"hypeman-nat-hm1" -- wildcard: matches interfaces by wildcard eth+',
        "",
    ]


def test_kept_rules_come_with_the_reason_after_the_orphans() -> None:
    report = listed([finding()])
    report.kept = [finding("hm1", verdict=Verdict.LIVE, reason="hm1 exists")]
    lines = text(report)
    assert lines.index("Kept, and why:") > lines.index("hmdead  legacy   filter/FORWARD      1")
    assert "legacy filter/FORWARD 1: -i hm1 -j ACCEPT -- live: hm1 exists" in lines
    assert lines[-1].startswith("Found 1 orphaned rule of 1 bridge")


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (
            listed([]),
            "Nothing to sweep: no orphaned rules, 1,203 rules read in 2.54 s.",
        ),
        (listed([], scanned=1), "Nothing to sweep: no orphaned rules, 1 rule read in 2.54 s."),
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


def test_a_host_without_tables_is_told_apart_from_one_without_rules() -> None:
    assert "no iptables tables" in summary(Report("list"))
    assert "0 rules read" in summary(listed([], scanned=0))


def test_a_failure_says_how_far_it_came() -> None:
    report = swept([finding(), finding("hmbee", 2)])
    report.errors = ["no space"]
    report.backends[0].deleted = 1
    assert summary(report) == "Failed after 2.54 s; deleted 1 rule, 1 left: run it again."
    report.backends[0].deleted = 0
    assert summary(report) == "Failed after 2.54 s; nothing was changed."


def test_a_restore_says_how_much_came_back_and_where() -> None:
    backends = [BackendReport("legacy", "ipv4", restored=2), BackendReport("nft", "ipv4", restored=1)]
    report = Report("restore", backends=backends, duration_ms=1040)
    assert report.changed
    assert text(report) == ["Restored 3 rules in 1.04 s (legacy: 2, nft: 1)."]
    backends[0].restored = 0
    report.errors = ["gone"]
    assert summary(report) == "Failed after 1.04 s; restored 1 rule."


def written(report: Report) -> str:
    out = io.StringIO()
    write_json(report, out)
    return out.getvalue()


@pytest.mark.parametrize("number", [0, 1, 99, 100, 101, 200, 250])
def test_json_is_one_line_that_reads_back_as_the_object(number: int) -> None:
    report = swept([finding(f"hm{n:x}", n + 1, comment="a\n\udcff\N{SNOWMAN}") for n in range(number)])
    report.kept = [finding("hm1", n, verdict=Verdict.LIVE) for n in range(number // 2)]
    report.errors = ["line\nbreak"]
    text = written(report)
    assert text.count("\n") == 1
    assert text.endswith("}\n")
    assert text.isascii()
    read = json.loads(text)
    assert read == report.to_dict()
    assert (len(read["orphans"]), len(read["kept"])) == (number, number // 2)


def test_json_has_every_key_of_the_contract() -> None:
    report = swept([finding(comment="hypeman-fwd-out-hmdead")])
    report.subnet_lock = LockTimes("/tmp/lock", 0.12345, 9.87654)
    assert json.loads(written(report)) == {
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
            }
        ],
        "kept": [],
        "backends": [{"name": "legacy", "family": "ipv4", "scanned": 1203, "orphans": 1, "deleted": 1}],
        "locks": {"subnet": {"path": "/tmp/lock", "waited_ms": 0.123, "held_ms": 9.877}, "xtables": None},
        "duration_ms": 2540.5,
        "errors": [],
    }


def test_only_a_restore_tells_what_was_restored() -> None:
    backends = [BackendReport("nft", "ipv4", restored=2)]
    assert Report("restore", backends=backends).to_dict()["backends"][0]["restored"] == 2
    assert "restored" not in Report("sweep", backends=backends).to_dict()["backends"][0]


def test_json_gives_interfaces_as_iptables_writes_them() -> None:
    rule = Rule("nft", "filter", "FORWARD", 1, 9, Interface("hm", wildcard=True), Interface("hm1", negated=True))
    shown = Report("list", kept=[Finding(rule, Verdict.WILDCARD, "hm+", "")]).to_dict()["kept"][0]
    assert (shown["in"], shown["out"], shown["handle"]) == ("hm+", "!hm1", 9)


def test_totals_are_those_of_all_backends() -> None:
    report = Report("sweep", backends=[BackendReport("legacy", "ipv4", 10, 3, 3), BackendReport("nft", "ipv4", 5, 2)])
    assert (report.scanned, report.deleted, report.changed) == (15, 3, True)
    assert "(legacy: 3 of 10 rules, nft: 0 of 5 rules)" in summary(swept_with(report, 3))


def swept_with(report: Report, number: int) -> Report:
    report.orphans = [finding(position=n) for n in range(number)]
    return report


# Runs of what the runner looks for are unlikely to come up by chance.
host_text = st.lists(
    st.sampled_from(["##[", "##[error]", "::", "::error::", "#", "[", ":", "\n", "\r", "%0A", "\\", "`", "|", "<b>"])
    | st.text(max_size=3)
    | st.text(st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp"]), max_size=2),
    max_size=8,
).map("".join)


@given(host_text)
def test_escaped_text_is_printable_and_commands_nobody(text: str) -> None:
    escaped = escape(text)
    assert escaped.isascii()
    assert escaped == "" or escaped.isprintable()
    assert "##[" not in escaped


def unescaped(text: str) -> str:
    """The text that :func:`escape` was given, where it held no byte that was no UTF-8."""
    names = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
    return re.sub(
        r"\\(?:x(..)|u(.{4})|U(.{8})|(.))",
        lambda m: names[m[4]] if m[4] else chr(int(m[1] or m[2] or m[3], 16)),
        text,
    )


@given(host_text.map(lambda text: re.sub("[\udc80-\udcff]", "", text)))
def test_no_two_texts_look_the_same(text: str) -> None:
    assert unescaped(escape(text)) == text


control_characters = st.text(st.characters(categories=["Cc"]), max_size=4)


@given(control_characters, control_characters)
def test_texts_that_differ_by_control_characters_only_look_different(one: str, other: str) -> None:
    assert (escape(f"a{one}b") == escape(f"a{other}b")) == (one == other)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hypeman-nat-hm1", "hypeman-nat-hm1"),
        ("a\nb\tc\rd", r"a\nb\tc\rd"),
        ("\0\x1b[31m\x7f", r"\x00\x1b[31m\x7f"),
        (r"\n", r"\\n"),
        ("\N{SNOWMAN}\N{PILE OF POO}", r"\u2603\U0001f4a9"),
        ("\N{RIGHT-TO-LEFT OVERRIDE}\N{LINE SEPARATOR}\N{NO-BREAK SPACE}", r"\u202e\u2028\u00a0"),
        ("\ud800", r"\ud800"),
        ("##[error]", r"#\x23[error]"),
        ("###[error]", r"##\x23[error]"),
        ("##[##[", r"#\x23[#\x23["),
    ],
)
def test_escapes_are_those_of_a_string_literal(text: str, expected: str) -> None:
    assert escape(text) == expected


def test_bytes_that_are_no_utf_8_are_shown_as_such() -> None:
    for byte in range(0x80, 0x100):
        assert escape(bytes([byte]).decode("utf-8", "surrogateescape")) == f"\\x{byte:02x}"


class Runner:
    """What GitHub's runner makes of a log (actions/runner, ActionCommand.cs): its commands."""

    def __init__(self, lines: list[str]) -> None:
        self.commands: list[str] = []
        for line in "\n".join(lines).splitlines():
            if match := re.fullmatch(r"\s*::([^\s:]+)(?: [^:]*)?::(.*)", line):
                self.commands.append(match[1])
            elif "::" in line and line.lstrip().startswith("::"):
                self.commands.append("odd")
            self.commands += ["old"] * line.count("##[")


@pytest.mark.parametrize("verbose", [False, True])
def test_a_workflow_gets_one_folded_group_and_one_annotation(verbose: bool) -> None:
    lines = list(github_lines(listed(leaked(300)), verbose=verbose))
    assert Runner(lines).commands == ["group", "endgroup", "warning"]
    assert lines[0] == "::group::netsweep: details"
    assert lines[-2] == "::endgroup::"
    assert lines[-1] == f"::warning title=netsweep::{summary(listed(leaked(300)))}"
    assert len(lines) > 900 if verbose else len(lines) < 25


@pytest.mark.parametrize(
    ("report", "best_effort", "level"),
    [
        (listed([]), False, "notice"),
        (swept([finding()]), False, "notice"),
        (listed([finding()]), False, "warning"),
        (Report("sweep", errors=["lock busy"]), False, "error"),
        (Report("sweep", errors=["lock busy"]), True, "warning"),
        (listed([]), True, "notice"),
    ],
)
def test_the_annotation_is_as_loud_as_the_matter(report: Report, best_effort: bool, level: str) -> None:
    last = list(github_lines(report, best_effort=best_effort))[-1]
    assert last.startswith(f"::{level} title=netsweep::")
    for error in report.errors:
        assert error in last


@given(st.lists(host_text, min_size=1, max_size=4), st.lists(host_text, max_size=2), st.booleans())
def test_no_text_of_the_host_is_a_workflow_command(texts: list[str], errors: list[str], verbose: bool) -> None:
    hostile = [finding(name, comment=name, chain="FORWARD", reason=f"{name} exists") for name in texts]
    report = listed(hostile)
    report.kept = hostile
    report.errors = errors
    lines = list(github_lines(report, verbose=verbose))
    assert all(line.isascii() and (line == "" or line.isprintable()) for line in lines)
    assert Runner(lines).commands == ["group", "endgroup", "error" if errors else "warning"]


@pytest.mark.parametrize("error", ["%0A::error::x", "%0D", "100%", "%25"])
def test_an_annotation_shows_percent_signs_as_they_are(error: str) -> None:
    last = list(github_lines(Report("sweep", errors=[error])))[-1]
    shown = last.split("::", 2)[2].replace("%25", "\0")
    assert "%" not in shown
    assert error in shown.replace("\0", "%")


def test_a_step_summary_is_a_table_and_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "summary"
    report = swept(leaked(300))
    write_step_summary(report, str(path))
    lines = path.read_text().splitlines()
    assert lines[0] == "### netsweep"
    assert lines[2:5] == [
        "| backend | rules read | orphaned | deleted |",
        "| --- | ---: | ---: | ---: |",
        "| legacy | 1203 | 900 | 900 |",
    ]
    assert html.unescape(lines[6]) == summary(report)


def test_a_step_summary_is_appended_to_what_other_steps_wrote(tmp_path: Path) -> None:
    path = tmp_path / "summary"
    path.write_text("## tests\n")
    for _ in range(2):
        write_step_summary(listed([]), str(path))
    text = path.read_text()
    assert text.startswith("## tests\n### netsweep\n")
    assert text.count("### netsweep\n") == 2
    assert text.endswith("\n\n")


def test_a_step_summary_of_a_host_without_tables_has_no_empty_table(tmp_path: Path) -> None:
    path = tmp_path / "summary"
    write_step_summary(Report("list"), str(path))
    assert "|" not in path.read_text()


@pytest.mark.parametrize("kind", ["link", "FIFO", "folder"])
def test_a_step_summary_goes_to_a_regular_file_only(tmp_path: Path, kind: str) -> None:
    path, other = tmp_path / "summary", tmp_path / "other"
    other.write_text("untouched")
    if kind == "link":
        path.symlink_to(other)
    elif kind == "FIFO":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(NetsweepError, match=rf"step summary .* is a {kind}: refused"):
        write_step_summary(listed([]), str(path))
    assert other.read_text() == "untouched"


def test_a_step_summary_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(NetsweepError, match=r"cannot create step summary .*: No such file or directory"):
        write_step_summary(listed([]), str(tmp_path / "nowhere" / "summary"))


PLAIN = set(string.ascii_letters + string.digits + " &;#.,'\"%$/:=?@^{}+-")


@given(host_text)
def test_errors_are_plain_words_to_markdown_and_html(tmp_path_factory: pytest.TempPathFactory, error: str) -> None:
    path = tmp_path_factory.mktemp("summary") / "file"
    write_step_summary(Report("sweep", errors=[error]), str(path))
    (line,) = [line for line in path.read_text().splitlines() if line.startswith("- ")]
    entity = re.compile(r"&#\d+;")
    assert set(line) <= PLAIN
    assert not set("&#") & set(entity.sub("", line)), "no other character reference, no heading"
    assert html.unescape(line) == f"- {escape(error)}"
