"""Where the process begins: ``netsweep`` and ``python -m netsweep``."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

from netsweep.host import priority

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signalled(SystemExit):
    """A signal asked the process to end; raised wherever it is, so that every lock is released.

    SystemExit is the one kind of exception that asyncio, which pyroute2 uses, and click both let through.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.exit_status = 128 + number
        self.signal_name = signal.Signals(number).name


def main() -> NoReturn:
    """Run the command line and exit with its status."""
    if sys.argv[1:2] == ["sweep"]:
        priority.hurry()
    # A short life with many small objects and no cycles among them: a quarter of the time for 90,000 orphans.
    gc.disable()
    # First of all: importing takes most of the time, and a signal would end it with a traceback.
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup, or a shell's background job
            signal.signal(number, _on_signal)
    sys.unraisablehook = _not_raised
    try:
        status = _run(sys.argv[1:])
        _ignore_signals()
    except Signalled as stopped:
        # Where a sweep was stopped, it says so.
        journal = getattr(stopped, "journal", None)
        undo = f"; what was deleted is in the journal {journal!a}" if journal else ""
        _say(f"stopped by {stopped.signal_name}: no table is half-changed and all locks are released{undo}")
        status = stopped.exit_status
    except SystemExit as ended:  # click's, for shell completion
        status = ended.code if isinstance(ended.code, int) else 1
    except Exception as error:  # even what tells failures could not be loaded, or could not go on
        _say("out of memory: no table is half-changed" if isinstance(error, MemoryError) else f"failed: {error}")
        status = 0 if _is_best_effort(sys.argv[1:]) else 1
    with contextlib.suppress(OSError, ValueError):  # what was shown is flushed and checked before
        sys.stdout.flush()
        sys.stderr.flush()
    # As a program that SIGPIPE ends; another status tells more.
    if status == 0 and getattr(sys.stdout, "reader_gone", False) and not _is_best_effort(sys.argv[1:]):
        status = 128 + signal.SIGPIPE
    # Taking the interpreter down piece by piece takes 13 % of a run; the kernel does it at once.
    os._exit(status)


def _run(arguments: list[str]) -> int:
    _open_streams()
    from netsweep.output.failures import complain, explain
    from netsweep.output.stdout import replace_stdout

    replace_stdout()
    try:
        from netsweep.cli import run

        return run(arguments)
    except Exception as error:
        failure = explain(error)
        complain(str(failure))
        return 0 if _is_best_effort(arguments) else failure.exit_status


def _is_best_effort(arguments: list[str]) -> bool:
    """Whether a post-step asked never to fail; for failures where click cannot be asked."""
    variable = os.environ.get("NETSWEEP_BEST_EFFORT", "").lower()
    return arguments[:1] == ["sweep"] and (
        "--best-effort" in arguments or variable in ("1", "true", "t", "yes", "y", "on")
    )


def _on_signal(number: int, _: FrameType | None) -> None:
    _ignore_signals()
    raise Signalled(number)


def _not_raised(unraisable: sys.UnraisableHookArgs) -> None:
    """Raise :class:`Signalled` once more where Python could not: in a callback of a weak reference, for one."""
    if not isinstance(unraisable.exc_value, Signalled):
        sys.__unraisablehook__(unraisable)
        return
    stopped = unraisable.exc_value

    def again(_: int, __: FrameType | None) -> None:
        raise stopped

    signal.signal(signal.SIGALRM, again)
    signal.setitimer(signal.ITIMER_REAL, 0.001)


def _ignore_signals() -> None:
    # The way out takes milliseconds; another signal would cut it short or take the exit status away.
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(f"netsweep: {text}", file=sys.stderr)


def _open_streams() -> None:
    """Open closed streams on /dev/null, so that no lock or socket gets the number that output goes to."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # The kernel gives out the lowest number that is free. A write to a closed stdout has to fail.
            os.open(os.devnull, os.O_RDONLY if number == 1 else os.O_RDWR)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


if __name__ == "__main__":
    main()
