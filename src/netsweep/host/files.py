"""Open files as root in directories that anyone can write to, without following links."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from netsweep.errors import BusyError, ContentionError, NetsweepError, NotPermittedError

_KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

_NO_FILES = {"/proc": errno.ENOENT, "/sys": errno.EACCES}
"""Filesystems that take no new files, whatever the modes of their directories say, and how they refuse them."""

_CHUNK = 1 << 16


def open_regular(path: str, flags: int, *, what: str) -> int:
    """Open the existing regular file at ``path`` and return its descriptor.

    ``flags`` are those of :func:`os.open`, without any that create; ``what`` names the file in
    messages ("lease file"). The last part of ``path`` is never followed if it is a link, and a file
    that is not regular is not even opened: opening a FIFO wakes the process that waits on it, opening
    a device may do anything. Raises :class:`FileNotFoundError`, :class:`BusyError` where another
    process has a file lease on it, :class:`NotPermittedError` or :class:`NetsweepError`.
    """
    try:
        # O_PATH finds out what is there without opening it. The second open goes through the
        # descriptor, so nobody can put something else in its place in between (open(2), O_PATH).
        found = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise describe(error, f"cannot open {what} {path!a}") from error
    try:
        if not stat.S_ISREG(kind := os.fstat(found).st_mode):
            raise _refused(what, path, kind)
        # O_NONBLOCK: another process's file lease (fcntl(2), F_SETLEASE) would let the open hang.
        return os.open(f"/proc/self/fd/{found}", flags | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        # Not the file, which is open: taking this for a missing lease file would mean no leases.
        raise NetsweepError(f"cannot open {what} {path!a}: /proc is not mounted") from None
    except BlockingIOError:
        raise BusyError(f"{what} {path!a} is in use: another process has a file lease on it; retry") from None
    except OSError as error:
        raise describe(error, f"cannot open {what} {path!a}") from error
    finally:
        os.close(found)


def create_regular(path: str, flags: int, mode: int, *, what: str) -> int:
    """Create the file at ``path`` with exactly ``mode``, whatever the umask; return its descriptor.

    Raises :class:`FileExistsError` where anything exists there already, a dangling link included,
    else as :func:`open_regular`.
    """
    try:
        created = os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    except FileExistsError:
        raise
    except (OSError, ValueError) as error:
        raise describe(error, f"cannot create {what} {path!a}") from error
    try:
        os.fchmod(created, mode)
    except OSError as error:
        os.close(created)
        raise describe(error, f"cannot set the mode of {what} {path!a}") from error
    return created


def check_creatable(path: str, *, what: str) -> None:
    """Raise what :func:`create_regular` would for the missing file ``path``, as far as that shows; create nothing."""
    directory, failed = os.path.dirname(path) or ".", f"cannot create {what} {path!a}"
    try:
        os.close(os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        for mount, code in _NO_FILES.items():
            if os.path.exists(mount) and os.stat(mount).st_dev == os.stat(directory).st_dev:
                raise OSError(code, os.strerror(code))
        if not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
            read_only = os.statvfs(directory).f_flag & os.ST_RDONLY
            code = errno.EROFS if read_only else errno.EACCES
            raise OSError(code, os.strerror(code))
    except OSError as error:
        raise describe(error, failed) from error


def open_or_create_regular(path: str, flags: int, mode: int, *, what: str) -> int:
    """Open the regular file at ``path``, or create it where there is none; return its descriptor.

    ``mode`` is for a new file. Raises :class:`BusyError` where the file comes and goes all the time,
    else as :func:`open_regular`, but for :class:`FileNotFoundError`.
    """
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError):
            return open_regular(path, flags, what=what)
        with contextlib.suppress(FileExistsError):
            return create_regular(path, flags, mode, what=what)
    raise BusyError(f"{what} {path!a} keeps being created and removed; retry")


def read_regular(path: str, what: str, limit: int) -> bytes | None:
    """The content of the regular file at ``path``; ``None`` where there is none.

    Raises :class:`NetsweepError` where it is larger than ``limit`` bytes, else as :func:`open_regular`.
    """
    try:
        descriptor = open_regular(path, os.O_RDONLY, what=what)
    except FileNotFoundError:
        return None
    try:
        # One more than its size, to see its end; files of /proc have size 0.
        ahead = max(_CHUNK, min(os.fstat(descriptor).st_size, limit) + 1)
        chunks: list[bytes] = []
        size = 0
        while chunk := os.read(descriptor, ahead):
            chunks.append(chunk)
            size += len(chunk)
            if size > limit:
                raise NetsweepError(f"{what} {path!a} is larger than {limit // 2**20} MiB: it was not read")
        return b"".join(chunks)
    except BlockingIOError:
        raise NetsweepError(f"cannot read {what} {path!a}: it has no data to read now; give a file on a disk") from None
    except OSError as error:
        raise describe(error, f"cannot read {what} {path!a}") from error
    finally:
        os.close(descriptor)


def replace_regular(path: str, known: bytes, content: bytes, *, what: str) -> None:
    """Put a file with ``content`` in the place of the regular file at ``path``, in one step, with its owner and mode.

    It is on the disk before it is renamed. The new file is written beside it, as ``path`` and ``.netsweep``; one
    that was left there is removed, so callers need a lock of their own. Raises :class:`ContentionError` where the file
    does not hold what is ``known``, else as :func:`open_regular`.
    """
    new, failed = f"{path}.netsweep", f"cannot replace {what} {path!a}"
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        descriptor = open_regular(path, os.O_RDONLY, what=what)
        try:
            status = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        with open(create_regular(new, os.O_WRONLY, 0o600, what=what), "wb") as file, _renamed(new, path):
            os.fchown(file.fileno(), status.st_uid, status.st_gid)
            os.fchmod(file.fileno(), stat.S_IMODE(status.st_mode) & 0o777)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if read_regular(path, what, 1 << 30) != known:
                raise ContentionError(f"{what} {path!a} changed")
        directory = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except FileNotFoundError:
        raise ContentionError(f"{what} {path!a} was removed") from None
    except FileExistsError as error:
        raise NetsweepError(f"{failed}: {new!a} exists") from error
    except OSError as error:
        raise describe(error, failed) from error


def put_regular(path: str, content: bytes, mode: int, *, what: str) -> None:
    """Put a new file with ``content`` and ``mode`` at ``path``, in one step: who reads it sees the old or the new one.

    What is written first is a file of a random name in the same directory. Only a regular file is replaced: a rename
    by root would replace a device too. Raises :class:`NetsweepError`.
    """
    failed = f"cannot write {what} {path!a}"
    new = os.path.join(os.path.dirname(path), f".netsweep-{os.urandom(8).hex()}")
    try:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(kind := os.lstat(path).st_mode):
                raise _refused(what, path, kind)
        created = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        with open(created, "wb") as file, _renamed(new, path):
            os.fchmod(created, mode)  # whatever the umask
            file.write(content)
            file.flush()
    except (OSError, ValueError) as error:
        raise describe(error, failed) from error


@contextlib.contextmanager
def _renamed(new: str, path: str) -> Iterator[None]:
    """Rename the file ``new`` to ``path`` in the end; where anything failed, remove it."""
    try:
        yield
        os.rename(new, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise


def _refused(what: str, path: str, mode: int) -> NetsweepError:
    kind = _KINDS.get(stat.S_IFMT(mode), "no regular file")
    return NetsweepError(f"{what} {path!a} is {kind}: refused, it has to be a regular file")


def describe(error: OSError | ValueError, failed: str) -> NetsweepError:
    """Turn what the system said into the error of the matching exit status; ``failed`` begins its message."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM):
        return NotPermittedError(f"{failed}: not permitted ({reason}); run as root, or choose another path")
    return NetsweepError(f"{failed}: {reason}")
