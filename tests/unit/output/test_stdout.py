"""A stdout that is full, closed or slow, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

SCRIPT = """
import sys
from netsweep.output import stdout
from netsweep.output.failures import explain
stdout.PATIENCE = {patience}
stdout.replace_stdout()
try:
    print("x" * {size})
    sys.stdout.flush()
except Exception as error:
    print(type(error).__name__, explain(error), file=sys.stderr)
sys.stdout.flush()  # whatever is left must not fail a second time
"""


def start(stdout: int, *, size: int, patience: float) -> subprocess.Popen[str]:
    script = SCRIPT.format(size=size, patience=patience)
    return subprocess.Popen([sys.executable, "-c", script], stdout=stdout, stderr=subprocess.PIPE, text=True)


def nonblocking_pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    return reader, writer


def test_a_full_pipe_that_does_not_block_is_waited_for() -> None:
    reader, writer = nonblocking_pipe()
    process = start(writer, size=300_000, patience=30)
    os.close(writer)
    read: list[bytes] = []

    def drain() -> None:
        with open(reader, "rb") as pipe:
            while chunk := pipe.read1(50_000):
                time.sleep(0.05)
                read.append(chunk)

    thread = threading.Thread(target=drain)
    thread.start()
    _, said = process.communicate(timeout=60)
    thread.join()
    assert (process.returncode, said, b"".join(read)) == (0, "", b"x" * 300_000 + b"\n")


def test_a_full_pipe_that_nobody_reads_is_a_failure_that_is_told() -> None:
    reader, writer = nonblocking_pipe()
    process = start(writer, size=300_000, patience=0.2)
    os.close(writer)
    _, said = process.communicate(timeout=60)
    os.close(reader)
    assert said == ("StdoutError could not write to stdout: it is full, and nothing was read from it for 0.2 s\n")
    assert process.returncode == 0


def test_a_full_disk_is_told_as_a_failure_of_stdout() -> None:
    with open("/dev/full", "w", encoding="ascii") as full:
        process = start(full.fileno(), size=10, patience=30)
        _, said = process.communicate(timeout=60)
    assert said == "StdoutError could not write to stdout: No space left on device\n"
    assert process.returncode == 0
