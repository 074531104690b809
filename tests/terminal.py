"""Programs at a terminal: a real one, of a given size."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

PATIENCE = 60.0
"""Seconds that a program may take."""


_CLEARED = re.compile(r"\r(?:\x1b\[\d+A)?\x1b\[J(?:netsweep: [^\r\n]*)?")


def at_terminal(command: Sequence[str], columns: int, environment: Mapping[str, str]) -> tuple[int, str]:
    """Run ``command`` with a new terminal as stdin, stdout and stderr; return its exit status and what it showed.

    Line ends are those that the program wrote, escape sequences are left in. What was cleared again, as the status of
    a run that took long, is left out.
    """
    ours, its = pty.openpty()
    try:
        fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        process = subprocess.Popen(
            command, stdin=its, stdout=its, stderr=its, env=dict(environment), start_new_session=True
        )
    finally:
        os.close(its)
    shown = b""
    deadline = time.monotonic() + PATIENCE
    try:
        with suppress(OSError):  # EIO, once nobody has the terminal open
            while select.select([ours], [], [], max(0.0, deadline - time.monotonic()))[0]:
                if not (data := os.read(ours, 65536)):
                    break
                shown += data
        return process.wait(max(0.1, deadline - time.monotonic())), _CLEARED.sub("", shown.decode()).replace(
            "\r\n", "\n"
        )
    finally:
        process.kill()
        process.wait()
        os.close(ours)
