"""What a run is doing or waiting for, told on stderr while it takes longer than a second."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable

from netsweep.host import observer
from netsweep.output.escape import escape

_EVERY = 1.0
"""Seconds between two updates on a terminal, and before the first."""

_LAST_WRITE = 1.0
"""Seconds to wait in the end for what is being written."""


class Status(observer.Observer):
    """Tells what a run waits for: on a terminal in a line that is updated in place, elsewhere once for each wait.

    A terminal shows what else the run is doing too. A context manager: in the end the line is cleared.

    All is written by other threads. A terminal that was stopped with Ctrl-S, or a pipe that nobody reads, must not stop
    a process that holds a lock; and finding out who holds one takes longer than a lock should be held.
    """

    def __init__(self) -> None:
        self._stream = sys.stderr
        self._in_place = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._news = threading.Event()
        self._ended = False
        self._text = ""
        self._describe: Callable[[], str] | None = None
        self._told = set[Callable[[], str]]()
        self._writers: list[threading.Thread] = []
        self._shown = ""
        self._before = observer.current

    def __enter__(self) -> Status:
        observer.current = self
        if self._in_place:
            self._start(self._update)
        return self

    def __exit__(self, *_: object) -> None:
        observer.current = self._before
        self._ended = True
        self._news.set()
        for writer in self._writers:
            writer.join(_LAST_WRITE)

    def waiting(self, describe: Callable[[], str] | None) -> None:
        if self._in_place:
            if describe != self._describe:
                self._describe = describe
                self._news.set()
        elif describe and describe not in self._told:
            self._told.add(describe)
            self._start(lambda: self._tell(describe))

    def working(self, text: str) -> None:
        self._text = text

    def _start(self, write: Callable[[], None]) -> None:
        writer = threading.Thread(target=write, name="netsweep-status", daemon=True)
        # A run that cannot start a thread can still do its work.
        with contextlib.suppress(RuntimeError):
            writer.start()
            self._writers.append(writer)

    def _tell(self, describe: Callable[[], str]) -> None:
        if text := _said(describe):
            self._write(f"{text}\n")

    def _update(self) -> None:
        while not self._ended:
            self._news.wait(_EVERY)
            self._news.clear()
            describe = self._describe
            text = (_said(describe) if describe else "") or (self._text and _line(self._text))
            if not self._ended:
                self._show(text)
        self._show("")

    def _show(self, text: str) -> None:
        if text == self._shown:
            return
        # A line that is longer than the terminal is wide stands in several rows.
        rows_up = (len(self._shown) - 1) // self._columns() if self._shown else 0
        self._write("\r" + (f"\x1b[{rows_up}A" if rows_up else "") + f"\x1b[J{text}")
        self._shown = text

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except OSError:
            return 80

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
            self._stream.flush()


def _said(describe: Callable[[], str]) -> str:
    """What ``describe`` says as a line, or nothing."""
    try:
        return _line(text) if (text := describe()) else ""
    except Exception:  # what cannot be found out is not worth ending a run
        return ""


def _line(text: str) -> str:
    return f"netsweep: {escape(text)}"
