from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from netsweep.errors import NetsweepError
from netsweep.safefile import create_regular, open_regular


def test_a_regular_file_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("text")
    descriptor = open_regular(str(path), os.O_RDONLY, what="file")
    assert os.read(descriptor, 10) == b"text"
    os.close(descriptor)


@pytest.mark.parametrize("kind", ["link", "dangling link", "folder", "FIFO", "socket", "device"])
def test_what_is_no_regular_file_is_refused_unopened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    if kind == "link":
        (tmp_path / "target").write_text("untouched")
        path.symlink_to(tmp_path / "target")
    elif kind == "dangling link":
        path.symlink_to(tmp_path / "nowhere")
    elif kind == "folder":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    else:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 3))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(NetsweepError, match=rf"is a {kind.split()[-1]}: refused"):
        open_regular(str(path), os.O_RDWR, what="file")
    with pytest.raises(FileExistsError):
        create_regular(str(path), os.O_RDWR, 0o600, what="file")
    assert sorted(tmp_path.iterdir()) == before


def test_a_missing_file_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_regular(str(tmp_path / "none"), os.O_RDONLY, what="file")


def test_the_mode_of_a_new_file_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        os.close(create_regular(str(tmp_path / "file"), os.O_RDONLY, 0o666, what="file"))
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666


@pytest.mark.parametrize("name", ["x" * 300, "file/below", "nul\0byte"])
def test_paths_that_cannot_be_are_one_clear_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NetsweepError, match="cannot open file"):
        open_regular(str(tmp_path / name), os.O_RDONLY, what="file")
