"""Where the process begins: ``netsweep`` and ``python -m netsweep``."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import signal
import sys
from types import FrameType
from typing import NoReturn


class Signalled(SystemExit):
    """A signal asked the process to end; raised wherever it is, so that every lock is released.

    Of all exceptions it is SystemExit that asyncio, which pyroute2 uses, and click both let through.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.exit_status = 128 + number
        self.signal_name = signal.Signals(number).name


def _on_signal(number: int, _: FrameType | None) -> None:
    _ignore_signals()
    raise Signalled(number)


def _ignore_signals() -> None:
    # The way out takes milliseconds; nothing must cut it short or take the exit status away.
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _open_streams() -> None:
    """Let what was closed lead nowhere, so that no lock or socket gets the number that output goes to."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # The kernel gives out the lowest number that is free.
            os.open(os.devnull, os.O_RDONLY if number == 1 else os.O_RDWR)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


def _lighten_pyroute2() -> None:
    """Let modules of pyroute2 be imported without all the others, in half the time.

    Python runs a package's ``__init__`` before any module of it, and that of pyroute2 imports
    everything. The package is made here and not run. Its modules cannot depend on names of it, as it
    imports them before it has any, but other code may: so only in a process of our own, and only for
    releases that this was tested with.
    """
    spec = importlib.util.find_spec("pyroute2")
    if spec is None or not spec.origin:
        return
    site = os.path.dirname(os.path.dirname(spec.origin))
    if any(name.startswith("pyroute2-0.9.") and name.endswith(".dist-info") for name in os.listdir(site)):
        sys.modules["pyroute2"] = importlib.util.module_from_spec(spec)


def main() -> NoReturn:
    """Run the command line and exit with its status."""
    # A short life with many small objects and no cycles among them: collecting takes a fifth of it.
    gc.disable()
    # Before anything else is imported, which takes most of the time and would end in a traceback.
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup, or a shell's background job
            signal.signal(number, _on_signal)
    _open_streams()
    try:
        from netsweep.cli import run

        _lighten_pyroute2()
        status = run(sys.argv[1:])
        _ignore_signals()
    except Signalled as stopped:
        with contextlib.suppress(OSError):
            print(
                f"netsweep: stopped by {stopped.signal_name}: every table is whole and no lock is held", file=sys.stderr
            )
        status = stopped.exit_status
    except ImportError as error:  # of click: everything else is imported later
        print(f"netsweep: {error}: install netsweep again", file=sys.stderr)
        status = 69
    with contextlib.suppress(OSError, ValueError):  # what was shown is flushed and checked before
        sys.stdout.flush()
        sys.stderr.flush()
    # Taking the interpreter down piece by piece is a fifth of the whole run; the kernel does it at once.
    os._exit(status)


if __name__ == "__main__":
    main()
