"""A standard output whose failures are told apart from those of other system calls.

Where the reader of a pipe has gone, as in ``netsweep list | head -1``, nothing fails: what is written then is dropped,
and the run goes on to its end, as it may have other things to write. Only the exit status tells.
"""

from __future__ import annotations

import errno
import io
import select
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

PATIENCE = 10.0
"""Seconds that a full pipe which does not block may take nothing. A pipe that blocks is waited for without end."""


class StdoutError(OSError):
    """Standard output took no more."""


class _Stdout(io.FileIO):
    _failed = False
    reader_gone = False

    def write(self, data: ReadableBuffer) -> int:
        if self._failed:  # what is still buffered would fail again at the next flush
            return memoryview(data).nbytes
        try:
            # FileIO returns None where a pipe is full and does not block, as those of Node.js may be.
            while (written := super().write(data)) is None:
                if not select.select([], [self], [], PATIENCE)[1]:
                    raise OSError(errno.EAGAIN, f"it is full, and nothing was read from it for {PATIENCE:g} s")
        except OSError as error:
            self._failed = True
            if error.errno == errno.EPIPE:
                self.reader_gone = True
                return memoryview(data).nbytes
            raise StdoutError(error.errno, error.strerror) from error
        return written


class _Text(io.TextIOWrapper):
    def __init__(self, raw: _Stdout) -> None:
        self._raw = raw
        super().__init__(
            io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=raw.isatty()
        )

    @property
    def reader_gone(self) -> bool:
        """Whether nobody reads any more what was flushed last."""
        return self._raw.reader_gone


def replace_stdout() -> None:
    """Make :data:`sys.stdout` raise :class:`StdoutError`, and wait where it is full."""
    sys.stdout = _Text(_Stdout(1, "w", closefd=False))
