"""The manual page: what is in the repository is what the commands say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest

from tests.manpage import PAGE, page
from tests.unit.cli.test_options import COMMANDS, OPTIONS, variable


@pytest.fixture(scope="module")
def shown() -> str:
    """The page as ``man`` shows it on 80 columns."""
    if os.geteuid() != 0 and not shutil.which("mandoc"):
        pytest.skip("mandoc is not installed")
    command = ("mandoc", "-T", "ascii", "-O", "width=78", PAGE)
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.sub(".\x08", "", text)


def test_the_page_is_up_to_date() -> None:
    if os.environ.get("UPDATE_DOCS"):
        PAGE.write_text(page(), encoding="ascii")
    assert PAGE.read_text(encoding="ascii") == page(), "'make man' writes it anew"


def test_it_has_every_command_option_and_variable_in_one_piece(shown: str) -> None:
    commands = re.search(r"^COMMANDS$.*?^OPTIONS$", shown, re.MULTILINE | re.DOTALL)
    assert commands
    assert re.findall(r"^   (\S+)$", commands[0], re.MULTILINE) == [*COMMANDS]
    for name in {name for options in OPTIONS.values() for name in options}:
        assert re.search(rf"^ +(-\w, )?--{name}( |$)", shown, re.MULTILINE)
        assert re.search(rf"env var: {variable(name)}\b", shown)
    for default in {default for options in OPTIONS.values() for default in options.values() if default}:
        assert default in re.sub(r"\s+", " ", shown)
    assert max(map(len, shown.splitlines())) <= 84  # examples are not wrapped


def test_it_has_every_exit_status_and_its_meaning(shown: str) -> None:
    statuses = re.search(r"^EXIT STATUS$.*?^ENVIRONMENT$", shown, re.MULTILINE | re.DOTALL)
    assert statuses
    assert re.findall(r"^ {7}(\S+) +\S", statuses[0], re.MULTILINE) == ["0", "1", "2", "3", "69", "75", "77", "128+N"]


def test_nothing_is_wrong_with_its_markup(shown: str) -> None:
    done = subprocess.run(("mandoc", "-T", "lint", "-W", "warning", PAGE), capture_output=True, text=True, check=False)
    assert [line for line in done.stdout.splitlines() if "missing date" not in line] == []
