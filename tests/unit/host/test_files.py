from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from netsweep.errors import BusyError, ContentionError, NetsweepError, NotPermittedError
from netsweep.host.files import (
    check_creatable,
    create_regular,
    describe,
    open_or_create_regular,
    open_regular,
    put_regular,
    read_regular,
    replace_regular,
)


@contextmanager
def file_lease(path: Path) -> Iterator[None]:
    """Have a file lease on ``path``, which the kernel asks to be given back where somebody opens it."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield
    finally:
        os.close(descriptor)
        signal.signal(signal.SIGIO, before)


def test_a_regular_file_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("text")
    descriptor = open_regular(str(path), os.O_RDONLY, what="file")
    assert os.read(descriptor, 10) == b"text"
    os.close(descriptor)


@pytest.mark.parametrize("kind", ["link", "dangling link", "directory", "FIFO", "socket", "device"])
def test_what_is_no_regular_file_is_refused_unopened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    if kind == "link":
        (tmp_path / "target").write_text("untouched")
        path.symlink_to(tmp_path / "target")
    elif kind == "dangling link":
        path.symlink_to(tmp_path / "nowhere")
    elif kind == "directory":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    elif os.geteuid():
        pytest.skip("only root makes devices")
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
    assert read_regular(str(tmp_path / "none"), "file", 10) is None


def test_without_proc_a_file_is_not_taken_for_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("text")
    real = os.open

    def without_proc(name: str, flags: int) -> int:
        return real(name.replace("/proc/", "/nowhere/"), flags)

    monkeypatch.setattr(os, "open", without_proc)
    with pytest.raises(NetsweepError, match="/proc is not mounted"):
        read_regular(str(path), "file", 10)


def test_the_mode_of_a_new_file_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        os.close(open_or_create_regular(str(tmp_path / "file"), os.O_RDONLY, 0o666, what="file"))
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666


@pytest.mark.parametrize("name", ["x" * 300, "file/below", "nul\0byte"])
def test_paths_that_cannot_be_are_one_clear_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NetsweepError, match="cannot open file"):
        open_regular(str(tmp_path / name), os.O_RDONLY, what="file")


@pytest.mark.parametrize("path", ["{}/none/file", "{}/other/file", "/proc/file", "/sys/file"])
def test_what_cannot_be_created_is_known_before(tmp_path: Path, path: str) -> None:
    (tmp_path / "other").write_text("")
    path = path.format(tmp_path)
    with pytest.raises(NetsweepError) as foreseen:
        check_creatable(path, what="file")
    with pytest.raises(NetsweepError) as failed:
        create_regular(path, os.O_WRONLY, 0o600, what="file")
    assert (type(foreseen.value), str(foreseen.value)) == (type(failed.value), str(failed.value))


def test_what_can_be_created_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("file", str(tmp_path / "file")):
        check_creatable(path, what="file")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_missing_is_named_as_the_reason(tmp_path: Path) -> None:
    with pytest.raises(NetsweepError, match=r"cannot create file .*: No such file or directory"):
        open_or_create_regular(str(tmp_path / "none" / "file"), os.O_RDONLY, 0o666, what="file")


@pytest.mark.parametrize("size", [0, 1, 70_000, 100_000])
def test_files_are_read_whole_up_to_the_limit(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    assert read_regular(str(tmp_path / "file"), "file", 100_000) == content


def test_files_without_a_size_are_read_whole() -> None:
    """What /proc holds changes, but not its kind."""
    content = read_regular("/proc/self/mountinfo", "file", 1 << 20)
    assert content
    assert content.endswith(b"\n")


@pytest.mark.parametrize("sparse", [2**20 + 1, 2**40])
def test_a_file_that_is_too_large_is_refused(tmp_path: Path, sparse: int) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(sparse)
    with pytest.raises(NetsweepError, match="larger than 1 MiB"):
        read_regular(str(tmp_path / "file"), "file", 2**20)


def test_a_file_with_nothing_to_read_now_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As /proc/kmsg is; reading that would take the kernel's messages from others."""
    (tmp_path / "file").touch()

    def nothing_now(*_: object) -> bytes:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "read", nothing_now)
    with pytest.raises(NetsweepError, match=r"cannot read lease file .*: it has no data to read now"):
        read_regular(str(tmp_path / "file"), "lease file", 10)


def test_a_file_lease_of_another_process_is_busy(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with file_lease(path), pytest.raises(BusyError, match="another process has a file lease on it"):
        open_or_create_regular(str(path), os.O_RDONLY, 0o666, what="file")


def test_a_file_that_comes_and_goes_all_the_time_is_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def contrary(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            raise FileExistsError
        return real(path, flags)

    monkeypatch.setattr(os, "open", contrary)
    with pytest.raises(BusyError, match="keeps being created and removed"):
        open_or_create_regular(str(tmp_path / "file"), os.O_RDONLY, 0o666, what="file")


@pytest.mark.parametrize(
    ("code", "kind"),
    [(errno.EACCES, NotPermittedError), (errno.EPERM, NotPermittedError), (errno.EMFILE, NetsweepError)],
)
def test_the_real_reason_is_told(code: int, kind: type[Exception]) -> None:
    error = describe(OSError(code, os.strerror(code)), "cannot open it")
    assert type(error) is kind
    assert os.strerror(code) in str(error)


# Replacing.


def replace(path: Path, known: bytes = b"old", content: bytes = b"new content") -> None:
    replace_regular(str(path), known, content, what="file")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A file to replace, alone in its directory."""
    path = tmp_path / "alone" / "file"
    path.parent.mkdir()
    path.write_bytes(b"old")
    return path


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o666, 0o000])
def test_a_replaced_file_keeps_its_mode_whatever_the_umask(old: Path, mode: int) -> None:
    if mode == 0 and os.geteuid():
        pytest.skip("only root reads it")
    old.chmod(mode)
    before = old.stat()
    mask = os.umask(0o077)
    try:
        replace(old)
    finally:
        os.umask(mask)
    after = old.stat()
    assert (old.read_bytes(), after.st_mode) == (b"new content", before.st_mode)
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    assert after.st_ino != before.st_ino
    assert list(old.parent.iterdir()) == [old]


def test_a_replaced_file_keeps_its_owner(old: Path) -> None:
    if os.geteuid():
        pytest.skip("only root gives files away")
    os.chown(old, 65534, 4711)
    replace(old)
    assert (old.stat().st_uid, old.stat().st_gid) == (65534, 4711)


def test_a_replaced_file_gets_no_special_bits(old: Path) -> None:
    old.chmod(0o6755)
    replace(old)
    assert old.stat().st_mode & 0o7777 == 0o755


def test_who_has_it_open_reads_the_old_file_to_its_end(old: Path) -> None:
    with old.open("rb") as reader:
        replace(old)
        assert reader.read() == b"old"


@pytest.mark.parametrize("left", ["file", "link", "dangling link", "FIFO"])
def test_what_a_run_that_was_killed_left_is_removed_and_not_followed(old: Path, tmp_path: Path, left: str) -> None:
    new, target = old.with_name("file.netsweep"), tmp_path / "target"
    target.write_bytes(b"somebody's")
    if left == "file":
        new.write_bytes(b"half")
    elif left == "FIFO":
        os.mkfifo(new)
    else:
        new.symlink_to(target if left == "link" else tmp_path / "nowhere")
    replace(old)
    assert old.read_bytes() == b"new content"
    assert not old.is_symlink()
    assert target.read_bytes() == b"somebody's"
    assert list(old.parent.iterdir()) == [old]


def test_a_directory_in_the_way_is_told(old: Path) -> None:
    old.with_name("file.netsweep").mkdir()
    with pytest.raises(NetsweepError, match=r"cannot replace file '.*/file'"):
        replace(old)
    assert old.read_bytes() == b"old"


def test_what_somebody_puts_in_the_way_meanwhile_is_told(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = old.with_name("file.netsweep")

    def nothing(path: str) -> None:
        new.write_bytes(b"somebody's")

    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", nothing)
        with pytest.raises(NetsweepError, match=r"cannot replace file .*: '.*file\.netsweep' exists"):
            replace(old)
    assert (old.read_bytes(), new.read_bytes()) == (b"old", b"somebody's")


@pytest.mark.parametrize("known", [b"", b"ol", b"older", b"OLD"])
def test_a_file_that_changed_is_contention_and_stays(old: Path, known: bytes) -> None:
    with pytest.raises(ContentionError, match=r"file '.*/file' changed"):
        replace(old, known)
    assert old.read_bytes() == b"old"
    assert list(old.parent.iterdir()) == [old]


def test_a_file_that_was_removed_is_contention_and_is_not_made_again(old: Path) -> None:
    old.unlink()
    with pytest.raises(ContentionError, match=r"file '.*/file' was removed"):
        replace(old)
    assert list(old.parent.iterdir()) == []


@pytest.mark.parametrize("kind", ["link", "directory", "FIFO"])
def test_only_a_regular_file_is_replaced(old: Path, tmp_path: Path, kind: str) -> None:
    old.rename(tmp_path / "target")
    if kind == "link":
        old.symlink_to(tmp_path / "target")
    elif kind == "directory":
        old.mkdir()
    else:
        os.mkfifo(old)
    with pytest.raises(NetsweepError, match=rf"is a {kind}: refused"):
        replace(old)
    assert (tmp_path / "target").read_bytes() == b"old"
    assert list(old.parent.iterdir()) == [old]


def test_a_directory_that_nobody_may_write_to_is_not_permitted(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write anywhere, so the system says no in its stead."""
    opened = os.open

    def refuse(path: str, flags: int, *rest: Any, **named: Any) -> int:
        if flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return opened(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(NotPermittedError, match="not permitted"):
        replace(old)
    assert old.read_bytes() == b"old"


@pytest.mark.parametrize("call", ["fsync", "rename", "fchown"])
def test_a_failure_on_the_way_leaves_the_old_file_and_nothing_else(
    old: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(NetsweepError, match=r"cannot replace file '.*/file': No space left on device"):
        replace(old)
    assert old.read_bytes() == b"old"
    assert list(old.parent.iterdir()) == [old]


def test_a_file_is_put_in_its_place_with_its_mode_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "file"
    before = os.umask(0o777)
    try:
        for content, mode in ((b"old", 0o600), (b"new", 0o644)):
            put_regular(str(path), content, mode, what="file")
            assert (path.read_bytes(), path.stat().st_mode & 0o7777) == (content, mode)
    finally:
        os.umask(before)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_of_the_working_directory_is_put_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put_regular("file", b"new", 0o644, what="file")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("call", ["rename", "fchmod"])
def test_what_cannot_be_put_in_its_place_leaves_the_old_file_and_nothing_else(
    old: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(NetsweepError, match=r"cannot write file '.*/file': No space left on device"):
        put_regular(str(old), b"new", 0o644, what="file")
    assert old.read_bytes() == b"old"
    assert list(old.parent.iterdir()) == [old]


@pytest.mark.parametrize("name", ["missing/file", "file/under", "\0", "x" * 300])
def test_a_path_where_no_file_can_be_is_told_by_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NetsweepError, match=r"^cannot write file '.*': .") as raised:
        put_regular(f"{tmp_path}/{name}", b"new", 0o644, what="file")
    assert ".netsweep-" not in str(raised.value)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
