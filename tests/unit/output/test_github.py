from __future__ import annotations

import html
import os
import re
import string
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsweep.errors import NetsweepError
from netsweep.model import Family, Verdict
from netsweep.output.escape import escape
from netsweep.output.github import ROWS_MAX, github_lines, write_outputs, write_step_summary
from netsweep.output.text import summary
from netsweep.report import BackendReport, Command, LeaseFile, LockTimes, Report
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
        (swept([finding()]), False, "notice"),
        (swept([finding()]), True, "notice"),
        (listed([finding()]), False, "warning"),
        (Report("sweep", errors=["lock busy"]), False, "error"),
        (Report("sweep", errors=["lock busy"]), True, "warning"),
    ],
)
def test_the_annotation_is_as_loud_as_the_matter(report: Report, best_effort: bool, level: str) -> None:
    last = list(github_lines(report, best_effort=best_effort))[-1]
    assert last.startswith(f"::{level} title=netsweep::")
    for error in report.errors:
        assert error in last


@pytest.mark.parametrize("command", ["list", "sweep", "teardown"])
def test_where_nothing_was_to_be_done_there_is_one_plain_line(command: Command) -> None:
    report = listed([])
    report.command = command
    assert list(github_lines(report)) == [summary(report)]
    details = list(github_lines(report, verbose=True))
    assert Runner(details).commands in ([], ["group", "endgroup"])
    assert details[-1] == summary(report, verbose=True)
    assert "Lease file /tmp/leases: 3 leases, 1 in force." in details


def test_a_failure_says_once_that_nothing_was_changed() -> None:
    report = Report("sweep", errors=["timed out; nothing was changed"])
    assert list(github_lines(report)) == ["::error title=netsweep::timed out; nothing was changed"]


def test_a_failure_that_changed_something_says_what() -> None:
    report = swept([finding(), finding("hmbee", 2)])
    report.backends[0].deleted = 1
    report.errors = ["no space"]
    assert list(github_lines(report))[-1] == f"::error title=netsweep::no space ({summary(report).rstrip('.')})"


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


def written(tmp_path: Path, report: Report) -> list[str]:
    """The lines of the step summary, as they are shown."""
    path = tmp_path / "summary"
    write_step_summary(report, str(path))
    return html.unescape(path.read_text()).splitlines()


def test_a_step_summary_is_a_sentence_the_warnings_and_tables(tmp_path: Path) -> None:
    report = swept(leaked(2))
    report.warnings = ["there is no chain filter/X"]
    assert written(tmp_path, report) == [
        "### netsweep",
        "",
        summary(report),
        "",
        "- warning: there is no chain filter/X",
        "",
        "| bridge | state | orphaned rules | by backend and chain |",
        "| --- | --- | ---: | --- |",
        "| hm0000 | gone | 3 | legacy filter/FORWARD: 2, legacy nat/POSTROUTING: 1 |",
        "| hm0001 | gone | 3 | legacy filter/FORWARD: 2, legacy nat/POSTROUTING: 1 |",
        "",
        "| backend | family | rules read | orphaned | deleted |",
        "| --- | --- | ---: | ---: | ---: |",
        "| legacy | ipv4 | 1,203 | 6 | 6 |",
        "",
        "| lock | waited | held | longest hold |",
        "| --- | ---: | ---: | ---: |",
        "| subnet | 0.1 ms | 9.9 ms | 5.4 ms |",
        "",
    ]


def test_a_step_summary_of_a_failure_says_once_that_nothing_was_changed(tmp_path: Path) -> None:
    report = Report("sweep", errors=["timed out; nothing was changed"])
    assert written(tmp_path, report)[2:] == ["Failed:", "", "- timed out; nothing was changed", ""]


def test_a_step_summary_has_both_locks_or_says_that_none_was_taken(tmp_path: Path) -> None:
    report = listed([])
    assert written(tmp_path, report)[:4] == ["### netsweep", "", summary(report), ""]
    assert written(tmp_path, report)[-2:] == ["No lock was taken.", ""]
    report.xtables_lock = LockTimes("/run/xtables.lock", 1500, 2, 2)
    assert written(tmp_path, report)[-2] == "| xtables | 1500.0 ms | 2.0 ms | 2.0 ms |"


def test_a_step_summary_has_a_row_for_each_leaked_bridge_and_its_rules(tmp_path: Path) -> None:
    report = listed([finding("hm1"), finding("hm1", family=Family.IPV6), finding(None), finding("hm2", backend="nft")])
    report.bridges = [bridge("hm1", deleted=True), bridge("hm3"), bridge("hm4", verdict=Verdict.LIVE)]
    rows = [line for line in written(tmp_path, report) if re.match(r"\| (hm.*|) \|", line)]
    assert rows == [
        "|  | gone | 1 | legacy filter/FORWARD: 1 |",
        "| hm1 | deleted | 2 | legacy filter/FORWARD: 1, legacy ipv6 filter/FORWARD: 1 |",
        "| hm2 | gone | 1 | nft filter/FORWARD: 1 |",
        "| hm3 | leaked | 0 |  |",
    ]


def test_a_step_summary_of_a_restore_counts_what_is_back(tmp_path: Path) -> None:
    report = Report("restore", backends=[BackendReport("nft", Family.IPV4, restored=6)])
    assert [line for line in written(tmp_path, report) if line.startswith("|")] == [
        "| backend | family | restored |",
        "| --- | --- | ---: |",
        "| nft | ipv4 | 6 |",
    ]


def test_a_step_summary_of_many_bridges_is_short_and_says_how_many_more(tmp_path: Path) -> None:
    report = swept(leaked(3000))
    rows = [line for line in written(tmp_path, report) if line.startswith("| hm")]
    assert len(rows) == ROWS_MAX
    assert f"| ... {3000 - ROWS_MAX:,} more bridges | | | |" in written(tmp_path, report)


def test_a_step_summary_is_never_as_large_as_github_refuses_it(tmp_path: Path) -> None:
    hostile = "\x07" * 255
    report = swept(
        [
            finding(f"hm{number}", table=hostile, chain=f"{hostile}{chain}")
            for number in range(120)
            for chain in range(100)
        ]
    )
    report.warnings = [hostile + str(number) for number in range(10_000)]
    report.errors = ["\x07" * 100_000]
    text = "\n".join(written(tmp_path, report))
    assert (tmp_path / "summary").stat().st_size < 2**20
    assert "more messages" in text
    assert "more bridges |" in text
    assert " and 88 more chains |" in text


@pytest.mark.parametrize(
    ("report", "status", "outputs"),
    [
        (listed([finding(), finding("hmbee", 2)]), 3, "deleted=0\norphans=2\nchanged=false\nstatus=3\n"),
        (swept(leaked(2)), 0, "deleted=6\norphans=6\nchanged=true\nstatus=0\n"),
        (Report("sweep", errors=["lock busy"]), 75, "deleted=0\norphans=0\nchanged=false\nstatus=75\n"),
    ],
)
def test_outputs_are_appended_one_a_line(tmp_path: Path, report: Report, status: int, outputs: str) -> None:
    path = tmp_path / "output"
    path.write_text("mine=1\n")
    write_outputs(report, status, str(path))
    assert path.read_text() == f"mine=1\n{outputs}"


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


def write_output_of_nothing(path: str) -> None:
    write_outputs(listed([]), 0, path)


def write_summary_of_nothing(path: str) -> None:
    write_step_summary(listed([]), path)


WRITERS = [("step summary", write_summary_of_nothing), ("step output", write_output_of_nothing)]


@pytest.mark.parametrize("kind", ["link", "FIFO", "directory"])
@pytest.mark.parametrize(("what", "write"), WRITERS)
def test_summary_and_outputs_go_to_a_regular_file_only(
    tmp_path: Path, kind: str, what: str, write: Callable[[str], None]
) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    other.write_text("untouched")
    if kind == "link":
        path.symlink_to(other)
    elif kind == "FIFO":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(NetsweepError, match=rf"{what} .* is a {kind}: refused"):
        write(str(path))
    assert other.read_text() == "untouched"


@pytest.mark.parametrize(("what", "write"), WRITERS)
def test_summary_and_outputs_that_cannot_be_written_are_one_clear_error(
    tmp_path: Path, what: str, write: Callable[[str], None]
) -> None:
    with pytest.raises(NetsweepError, match=rf"{what} .*: No such file or directory"):
        write(str(tmp_path / "nowhere" / "file"))


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


@given(st.lists(host_text, min_size=1, max_size=3))
def test_names_of_the_host_are_plain_words_in_a_cell_of_their_own(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    path = tmp_path_factory.mktemp("summary") / "file"
    report = listed([finding(text, table=text, chain=text) for text in texts])
    report.bridges = [bridge(text) for text in texts]
    write_step_summary(report, str(path))
    lines = path.read_text().splitlines()
    rows = lines[lines.index("| --- | --- | ---: | --- |") + 1 :][: len(set(texts))]
    for row, text in zip(rows, sorted(set(texts)), strict=True):
        cells = row.split("|")[1:-1]
        assert len(cells) == 4
        assert html.unescape(cells[0]) == f" {escape(text)} "
        assert escape(text) in html.unescape(cells[3])
        assert all(set(cell) <= PLAIN for cell in cells)


@pytest.mark.parametrize(("deleted", "level"), [(False, "warning"), (True, "notice")])
def test_leaked_bridges_are_as_loud_as_orphans(deleted: bool, level: str) -> None:
    report = swept([]) if deleted else listed([])
    report.bridges = [bridge(deleted=deleted)]
    assert list(github_lines(report))[-1].startswith(f"::{level} title=netsweep::")


def test_bridges_that_stay_are_no_warning() -> None:
    report = listed([])
    report.bridges = [bridge(verdict=Verdict.LIVE, reason="has port ::error::x\n::error::y")]
    lines = list(github_lines(report, verbose=True))
    assert Runner(lines).commands == ["group", "endgroup"]


def test_a_teardown_is_told_in_a_log_and_in_the_summary(tmp_path: Path) -> None:
    lines = list(github_lines(torn_down()))
    assert Runner(lines).commands == ["group", "endgroup", "notice"]
    assert lines[1] == "bridge hm0 10.200.1.0/24"
    assert lines[-1] == "::notice title=netsweep::Deleted 1 bridge, 1 lease and 3 rules in 2.54 s."
    write_step_summary(torn_down(), str(tmp_path / "summary"))
    assert "Deleted 1 bridge, 1 lease and 3 rules in" in (tmp_path / "summary").read_text()
