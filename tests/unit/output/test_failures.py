from __future__ import annotations

import errno
import os
import sys

import pytest

from netsweep.errors import BusyError
from netsweep.output.failures import complain, explain
from netsweep.output.stdout import StdoutError


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (MemoryError(), 1, "out of memory"),
        (SystemError("error return without exception set"), 1, "out of memory"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), 1, "out of memory"),
        (ImportError("libnl.so: failed to map segment from shared object"), 1, "out of memory"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/proc"), 1, "too many open files: raise the limit"),
        (ImportError("libnl.so: cannot open shared object file: Too many open files"), 1, "too many open files"),
        (ModuleNotFoundError("No module named 'iptc'"), 69, "No module named 'iptc': install netsweep-firewall again"),
        (PermissionError(errno.EACCES, "Permission denied", "/proc/x"), 77, "'/proc/x'; run as root"),
        (OSError(errno.EIO, "Input/output error", "/x\n"), 1, r"a system call failed: Input/output error: '/x\n'"),
        (OSError("odd"), 1, "a system call failed: odd"),
        (StdoutError(errno.ENOSPC, "No space left on device"), 1, "could not write to stdout: No space left on device"),
        (ZeroDivisionError("by zero"), 1, "unexpected ZeroDivisionError: by zero; please report this as a bug"),
        (BusyError("the lock is held"), 75, "the lock is held"),
    ],
    ids=repr,
)
def test_an_error_is_told_as_what_it_is_and_only_stdout_as_stdout(error: Exception, status: int, said: str) -> None:
    failure = explain(error)
    assert failure.exit_status == status
    assert said in str(failure)
    assert ("stdout" in str(failure)) == isinstance(error, StdoutError)
    assert ("bug" in str(failure)) == isinstance(error, ZeroDivisionError)


def test_a_complaint_is_one_safe_line(capsys: pytest.CaptureFixture[str]) -> None:
    complain("cannot\nopen \x1b[31m")
    assert capsys.readouterr().err == "netsweep: cannot\\nopen \\x1b[31m\n"


def test_a_stderr_that_takes_nothing_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w", encoding="ascii") as full:
        monkeypatch.setattr(sys, "stderr", full)
        complain("lost")
        # What is buffered would fail again when the file is closed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())
