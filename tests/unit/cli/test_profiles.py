"""``netsweep profiles``: which there are, and one as TOML, checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from netsweep import profiles
from netsweep.cli import run


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(["profiles", *arguments]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    return said.out


def test_every_profile_is_listed_with_what_it_is_for_and_what_it_was_checked_with(
    capsys: pytest.CaptureFixture[str],
) -> None:
    listed = shown(capsys)
    for name in profiles.available():
        profile = profiles.load(name)
        default = " (default)" if name == profiles.DEFAULT else ""
        assert f"{name:<7}  {profile.about}{default}\n" in listed
        assert f"         checked with: {'; '.join(profile.checked_with)}\n" in listed
    assert listed.count("(default)") == 1
    assert listed.isascii()
    assert max(map(len, listed.splitlines())) <= 100


@pytest.mark.parametrize("name", profiles.available())
def test_a_profile_is_printed_as_it_stands_so_that_it_can_be_copied(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    text = shown(capsys, name)
    assert text == profiles.source(name)
    copy = tmp_path / "mine.toml"
    copy.write_text(text)
    assert shown(capsys, str(copy)) == text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('names = ["br-*"]\nprivate = ["raw/["]\n', "'[' has a bracket that is not closed"),
        ('names = ["br-*"]\nnever = 1\n', "never has to be a list of texts, not 1"),
        ("names = [br-*]\n", "is not TOML"),
        ("\x1b[31m", "is not TOML"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_one_of_ones_own_is_checked(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: str | None,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("x.toml").write_text(content)
    assert run(["profiles", "./x.toml"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("netsweep: profile './x.toml'")
    assert said in captured.err
    assert captured.err.removesuffix("\n").isprintable()


def test_a_profile_that_is_not_there_is_told_with_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profiles", "dcoker"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("netsweep: there is no profile 'dcoker': give hypeman, docker, ")
    assert said.err.count("\n") == 1
