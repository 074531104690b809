"""What the pages of the documentation say of options, exit statuses, verdicts and each other."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import netsweep
from netsweep.cli import cli
from netsweep.model import Verdict
from netsweep.version import __version__
from tests.pages import PAGES, ROOT, UPDATE, anchors, blocks, links, name_of, prose, table

DOCS = ROOT / "docs"

each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


@each_page
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT), f"{link} leads out of the repository"
        assert target.exists(), f"{link} does not exist"
        if target.suffix == ".md":
            assert not anchor or anchor in anchors(target), f"{link}: no such heading"


def test_every_page_picture_and_recipe_can_be_reached_from_the_readme() -> None:
    waiting, reached = [ROOT / "README.md"], set[Path]()
    while waiting:
        page = waiting.pop()
        reached.add(page)
        if page.suffix == ".md":
            found = {(page.parent / link.partition("#")[0]).resolve() for link in links(page) if ":" not in link}
            waiting += found - reached
    assert {name_of(path) for path in {*DOCS.glob("**/*.*")} - reached} == set()


def test_the_readme_is_one_page() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def commands() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command
        yield name, command


def options(command: click.Command) -> set[str]:
    return {
        opt
        for param in command.params
        if isinstance(param, click.Option)
        for opt in (*param.opts, *param.secondary_opts)
    }


def variables() -> dict[str, list[str]]:
    """The environment variable of every option, and the commands that have the option."""
    found = defaultdict(list)
    for name, command in commands():
        for param in command.params:
            if isinstance(param.envvar, str):
                found[param.envvar].append(name)
    return dict(sorted(found.items()))


def test_every_environment_variable_is_listed_with_its_commands() -> None:
    page = DOCS / "environment.md"
    rows = [f"| `{variable}` | {', '.join(f'`{name}`' for name in names)} |" for variable, names in variables().items()]
    text = page.read_text()
    ours = r"(?<=\| variable \| an option of \|\n\| --- \| --- \|\n)(?:\|.*\n)+"
    if UPDATE:
        page.write_text(re.sub(ours, "".join(f"{row}\n" for row in rows), text))
    found = re.search(ours, page.read_text())
    assert found
    assert found[0].splitlines() == rows


def test_the_page_of_exit_statuses_says_what_the_help_says() -> None:
    assert cli.epilog
    epilog = re.sub(r"\n {6,}", " ", cli.epilog.replace("\b", ""))
    said = dict(re.findall(r"^  (\S+) +(.*)$", epilog, re.MULTILINE))
    assert "75" in said
    assert {row[0]: row[1].replace("`", "'") for row in table(DOCS / "exit-statuses.md", "status")} == said


def test_every_verdict_on_a_rule_is_described() -> None:
    described = {row[0].strip("`") for row in table(DOCS / "decisions.md", "verdict")}
    assert described == {verdict.value for verdict in Verdict} - {Verdict.LEAKED.value}


def told(page: Path) -> Iterator[str]:
    """The command lines of netsweep that a page shows, in blocks and in the text."""
    for block in blocks(page):
        for line in re.sub(r"\\\n *", "", "\n".join(block.lines)).splitlines():
            if command := re.search(r"(?:^|[\s/'\"])(netsweep [^|;<>&]*)", line):
                yield command[1]
    yield from re.findall(r"`(?:sudo )?(netsweep [^`]*)`", prose(page))


@each_page
def test_options_and_commands_that_are_shown_exist(page: Path) -> None:
    known = dict(commands())
    for line in told(page):
        words = re.sub(r"\$\{\{.*?\}\}|['\"]", "", line).split()[1:]
        if not re.fullmatch(r"[a-z]+|--?\w.*", words[0]):
            continue
        if page.name != "CHANGELOG.md" and not words[0].startswith("-"):
            assert words[0] in known, line
        having = known.get(words[0], cli)
        for word in words:
            if option := re.match(r"--[a-z][a-z-]*", word):
                assert option[0] in {*options(having), "--help", "--version"}, line


def test_the_changelog_keeps_to_the_form() -> None:
    lines = (ROOT / "CHANGELOG.md").read_text().splitlines()
    versions = [line for line in lines if line.startswith("## ")]
    assert versions[0] in ("## [Unreleased]", f"## [{__version__}]") or versions[0].startswith(f"## [{__version__}] - ")
    for version in versions[1:]:
        assert re.fullmatch(r"## \[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", version)
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert {line.removeprefix("### ") for line in lines if line.startswith("### ")} <= kinds


def test_every_exception_is_listed_with_its_status() -> None:
    listed = {row[0].strip("`"): int(row[1]) for row in table(DOCS / "python.md", "class")}
    exported = {name: getattr(netsweep, name) for name in netsweep.__all__ if name.endswith("Error")}
    assert listed == {name: error.exit_status for name, error in exported.items()}


def test_the_architecture_names_every_file() -> None:
    package = ROOT / "src" / "netsweep"
    listed = dict(table(DOCS / "architecture.md", "directory"))
    for path in [*package.rglob("*.py"), *package.rglob("*.json")]:
        directory = path.parent.relative_to(package.parent if path.parent == package else package)
        if path.name != "__init__.py":
            assert f"`{path.name}`" in listed[f"`{directory}/`"], path
