from __future__ import annotations

import html
import os
import re
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsweep.errors import NetsweepError
from netsweep.model import Verdict
from netsweep.output.escape import escape
from netsweep.output.github import github_lines, write_step_summary
from netsweep.output.text import summary
from netsweep.report import LeaseFile, Report
from tests.unit.output.reports import bridge, finding, leaked, listed, negated, swept, torn_down
from tests.unit.output.test_escape import host_text


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


def test_every_warning_is_an_annotation() -> None:
    report = listed([])
    report.warnings = ["there is no chain filter/X", "100% \x1b"]
    assert list(github_lines(report))[-3:-1] == [
        "::warning title=netsweep::there is no chain filter/X",
        r"::warning title=netsweep::100%25 \x1b",
    ]


def test_an_all_clear_says_what_was_not_looked_at() -> None:
    report = listed([])
    report.overlooked = ["nft inet firewalld"]
    report.leases = LeaseFile("/tmp/nowhere", False)
    assert "not looked at: nft inet firewalld; lease file /tmp/nowhere does not exist" in list(github_lines(report))[-1]
    report.elsewhere = 15
    assert "15 more orphaned rules in chains that were not looked at" in list(github_lines(report))[-1]


def test_rules_that_match_live_traffic_are_in_the_details_and_what_they_did_in_the_annotation() -> None:
    report = listed([finding(live_traffic="DROP")])
    report.negated = negated(2)
    lines = list(github_lines(report))
    assert "2 rules that match everything but a bridge that is gone still match live traffic:" in lines
    assert "; matched live traffic: 1 DROP" in lines[-1]


@given(
    st.lists(host_text, min_size=1, max_size=4),
    st.lists(host_text, max_size=2),
    st.lists(host_text, max_size=2),
    st.booleans(),
)
def test_no_text_of_the_host_is_a_workflow_command(
    texts: list[str], errors: list[str], warnings: list[str], verbose: bool
) -> None:
    hostile = [
        finding(name, table=name, comment=name, chain=name, reason=f"{name} exists", live_traffic=name)
        for name in texts
    ]
    report = listed(hostile)
    report.kept = report.negated = hostile
    report.chains = texts
    report.errors, report.warnings = errors, warnings
    report.overlooked = texts
    report.leases = LeaseFile(texts[0], verbose)
    lines = list(github_lines(report, verbose=verbose))
    assert all(line.isascii() and (line == "" or line.isprintable()) for line in lines)
    expected = ["group", "endgroup", *["warning"] * len(warnings), "error" if errors else "warning"]
    assert Runner(lines).commands == expected


@pytest.mark.parametrize("error", ["%0A::error::x", "%0D", "100%", "%25"])
def test_an_annotation_shows_percent_signs_as_they_are(error: str) -> None:
    last = list(github_lines(Report("sweep", errors=[error])))[-1]
    shown = last.split("::", 2)[2].replace("%25", "\0")
    assert "%" not in shown
    assert error in shown.replace("\0", "%")


def test_a_step_summary_is_a_table_a_sentence_and_the_warnings(tmp_path: Path) -> None:
    path = tmp_path / "summary"
    report = swept(leaked(300))
    report.warnings = ["there is no chain filter/X"]
    write_step_summary(report, str(path))
    lines = path.read_text().splitlines()
    assert lines[0] == "### netsweep"
    assert lines[2:5] == [
        "| backend | family | rules read | orphaned | deleted |",
        "| --- | --- | ---: | ---: | ---: |",
        "| legacy | ipv4 | 1203 | 900 | 900 |",
    ]
    assert html.unescape(lines[6]) == summary(report)
    assert lines[7:] == ["- warning: there is no chain filter/X", ""]


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


@pytest.mark.parametrize("kind", ["link", "FIFO", "directory"])
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


def test_a_step_summary_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(NetsweepError, match=r"step summary .*: No such file or directory"):
        write_step_summary(listed([]), str(tmp_path / "nowhere" / "summary"))


PLAIN = set(string.ascii_letters + string.digits + " &;#.,'\"%$/:=?@^{}+-")


@given(host_text, st.sampled_from(["errors", "warnings"]))
def test_errors_and_warnings_are_plain_words_to_markdown_and_html(
    tmp_path_factory: pytest.TempPathFactory, text: str, kind: str
) -> None:
    path = tmp_path_factory.mktemp("summary") / "file"
    report = Report("sweep")
    getattr(report, kind).append(text)
    write_step_summary(report, str(path))
    (line,) = [line for line in path.read_text().splitlines() if line.startswith("- ")]
    entity = re.compile(r"&#\d+;")
    assert set(line) <= PLAIN
    assert not set("&#") & set(entity.sub("", line)), "no other character reference, no heading"
    assert html.unescape(line) == f"- {'warning: ' if kind == 'warnings' else ''}{escape(text)}"


@pytest.mark.parametrize(("deleted", "level"), [(False, "warning"), (True, "notice")])
def test_leaked_bridges_are_as_loud_as_orphans(deleted: bool, level: str) -> None:
    report = swept([]) if deleted else listed([])
    report.bridges = [bridge(deleted=deleted)]
    assert list(github_lines(report))[-1].startswith(f"::{level} title=netsweep::")


def test_bridges_that_stay_are_no_warning() -> None:
    report = listed([])
    report.bridges = [bridge(verdict=Verdict.LIVE, reason="has port ::error::x\n::error::y")]
    lines = list(github_lines(report, verbose=True))
    assert Runner(lines).commands == ["group", "endgroup", "notice"]


def test_a_teardown_is_told_in_a_log_and_in_the_summary(tmp_path: Path) -> None:
    lines = list(github_lines(torn_down()))
    assert Runner(lines).commands == ["group", "endgroup", "notice"]
    assert lines[1] == "bridge hm0 10.200.1.0/24"
    assert lines[-1] == "::notice title=netsweep::Deleted 1 bridge, 1 lease and 3 rules in 2.54 s."
    write_step_summary(torn_down(), str(tmp_path / "summary"))
    assert "Deleted 1 bridge, 1 lease and 3 rules in" in (tmp_path / "summary").read_text()
