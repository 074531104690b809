"""What is told of a run that takes long: on a terminal, and elsewhere."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from netsweep.host import observer
from netsweep.output import status
from netsweep.output.status import Status


class Terminal:
    """A terminal of 80 columns that stderr goes to."""

    def __init__(self, reader: int) -> None:
        self._reader = reader
        self.said = ""

    def until(self, condition: Callable[[str], bool]) -> str:
        """Read until ``condition`` holds of all that was said, and return it."""
        deadline = time.monotonic() + 5
        while not condition(self.said):
            assert select.select([self._reader], [], [], max(0, deadline - time.monotonic()))[0], self.said
            self.said += os.read(self._reader, 10_000).decode()
        return self.said


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with os.fdopen(writer, "w") as stream, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", stream)
        patched.setenv("TERM", "xterm")
        yield Terminal(reader)
    os.close(reader)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "_EVERY", 0.01)


def test_elsewhere_each_wait_is_one_line_and_progress_none(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (lambda: "waiting for\x1b a"), (lambda: "waiting for b")
    with Status():
        told = observer.current
        told.working("deleting")
        for describe in (first, first, None, second, None, first, None, lambda: ""):
            told.waiting(describe)
    lines = capsys.readouterr().err.splitlines()
    assert sorted(lines) == ["netsweep: waiting for b", "netsweep: waiting for\\x1b a"]


def test_nobody_is_told_anything_outside(capsys: pytest.CaptureFixture[str]) -> None:
    with Status():
        pass
    assert type(observer.current) is observer.Observer
    observer.current.waiting(lambda: "x")
    observer.current.working("x")
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_what_is_done_and_waited_for_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = iter(range(1000))
    with terminal(monkeypatch) as screen:
        with Status() as told:
            told.working("deleted 1 of 3 rules")
            screen.until(lambda said: said == "\r\x1b[Jnetsweep: deleted 1 of 3 rules")
            told.working("deleted 2 of 3 rules")
            screen.until(lambda said: said.endswith("\r\x1b[Jnetsweep: deleted 2 of 3 rules"))
            told.waiting(lambda: f"waiting {next(numbers)}")
            screen.until(lambda said: "\r\x1b[Jnetsweep: waiting 0\r\x1b[Jnetsweep: waiting 1\r" in said)
            told.waiting(None)
            screen.until(lambda said: said.endswith("\r\x1b[Jnetsweep: deleted 2 of 3 rules"))
        assert screen.until(lambda said: said.endswith("\r\x1b[J")).count("deleted 2 of 3") >= 2


@pytest.mark.parametrize(("length", "up"), [(80, ""), (81, "\x1b[1A"), (161, "\x1b[2A")])
def test_a_line_that_is_longer_than_the_terminal_is_cleared_as_a_whole(
    monkeypatch: pytest.MonkeyPatch, length: int, up: str
) -> None:
    text = "x" * (length - len("netsweep: "))
    with terminal(monkeypatch) as screen:
        with Status() as told:
            told.working(text)
            screen.until(lambda said: said.endswith(text))
        assert screen.until(lambda said: said.endswith("\x1b[J") and text in said) == (
            f"\r\x1b[Jnetsweep: {text}\r{up}\x1b[J"
        )


def test_what_takes_no_second_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "_EVERY", 30)
    with terminal(monkeypatch) as screen:
        with Status() as told:
            told.working("deleting")
        print("end", file=sys.stderr, flush=True)
        assert screen.until(lambda said: "end" in said) == "end\r\n"


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as screen:
        monkeypatch.setenv("TERM", "dumb")
        with Status() as told:
            told.working("deleting")
            told.waiting(lambda: "waiting")
        assert screen.until(lambda said: said.endswith("\n")) == "netsweep: waiting\r\n"


def test_a_terminal_that_was_stopped_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "_LAST_WRITE", 0.05)
    with terminal(monkeypatch) as screen:
        termios.tcflow(sys.stderr.fileno(), termios.TCOOFF)
        began = time.monotonic()
        with Status() as told:
            for number in range(10):
                told.working(f"deleted {number}")
                told.waiting(lambda: "waiting")
                time.sleep(0.005)
        assert time.monotonic() - began < 5
        termios.tcflow(sys.stderr.fileno(), termios.TCOON)
        screen.until(lambda said: said.endswith("\r\x1b[J"))
