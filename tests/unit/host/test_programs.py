from __future__ import annotations

from pathlib import Path

import pytest

from netsweep.host import programs


def test_only_what_can_be_run_in_the_system_s_directories_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, other = tmp_path / "first", tmp_path / "second", tmp_path / "other"
    for directory in (first, second, other):
        directory.mkdir()
    (first / "tool").touch(0o600)
    (second / "tool").touch(0o700)
    (other / "stray").touch(0o700)
    monkeypatch.setattr(programs, "DIRECTORIES", (str(first), str(second)))
    monkeypatch.setenv("PATH", str(other))
    assert programs.find_program("tool") == str(second / "tool")
    assert programs.find_program("stray") is None
