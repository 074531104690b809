"""Open files in folders that everybody may write to, as root, without being led astray."""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from netsweep.errors import NetsweepError, NotPermittedError

_KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: str, flags: int, *, what: str) -> int:
    """Open the existing regular file at ``path`` and return its descriptor.

    ``flags`` are those of :func:`os.open`, without any that create; ``what`` names the file in
    messages ("lease file"). The last part of ``path`` is never followed if it is a link, and a file
    that is not regular is not even opened: opening a FIFO wakes who waits on it, opening a device
    may do anything. Raises :class:`FileNotFoundError`, :class:`NotPermittedError` or
    :class:`NetsweepError`.
    """
    try:
        # O_PATH finds out what stands there without opening it. The second open goes through the
        # descriptor, so nobody can put something else in its place in between (open(2), O_PATH).
        found = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            kind = stat.S_IFMT(os.fstat(found).st_mode)
            if kind != stat.S_IFREG:
                raise NetsweepError(
                    f"{what} {path!a} is {_KINDS.get(kind, 'no regular file')}: refused, it has to be a regular file"
                )
            # O_NONBLOCK: another process's lease (fcntl(2), F_SETLEASE) would let the open hang.
            return os.open(f"/proc/self/fd/{found}", flags | os.O_CLOEXEC | os.O_NONBLOCK)
        finally:
            os.close(found)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise describe(error, f"cannot open {what} {path!a}") from error


def create_regular(path: str, flags: int, mode: int, *, what: str) -> int:
    """Create the file at ``path`` with exactly ``mode``, whatever the umask; return its descriptor.

    Raises :class:`FileExistsError` where anything stands there already, a dangling link included,
    else as :func:`open_regular`.
    """
    try:
        created = os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    except FileExistsError:
        raise
    except (OSError, ValueError) as error:
        raise describe(error, f"cannot create {what} {path!a}") from error
    os.fchmod(created, mode)
    return created


def open_or_create_regular(path: str, flags: int, mode: int, *, what: str) -> int:
    """Open the regular file at ``path``, or create it where nothing stands there; return its descriptor.

    ``mode`` is for a new file. Raises :class:`NotPermittedError` or :class:`NetsweepError`.
    """
    # Between the two opens the file may come or go. Who keeps doing that wants us to spin.
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError):
            return open_regular(path, flags, what=what)
        with contextlib.suppress(FileExistsError):
            return create_regular(path, flags, mode, what=what)
    raise NetsweepError(f"{what} {path!a} keeps being replaced: nothing was changed")


def describe(error: OSError | ValueError, failed: str) -> NetsweepError:
    """Turn what the system said into the error of the matching exit status."""
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM):
        return NotPermittedError(f"{failed}: not permitted; run as root, or choose another path")
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return NetsweepError(f"{failed}: {reason}")
