"""Where the process begins: ``netsweep`` and ``python -m netsweep``."""

from __future__ import annotations

import gc
import signal
import sys
from types import FrameType


class Signalled(BaseException):
    """A signal asked the process to end; raised wherever it is, so that every lock is released."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_status = 128 + number


def _on_signal(number: int, _: FrameType | None) -> None:
    # The way out takes milliseconds; a second signal must not cut it short.
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise Signalled(number)


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> None:
    """Run the command line and exit with its status."""
    # A short life with many small objects and no cycles among them: collecting takes a fifth of it.
    gc.disable()
    # Before anything else is imported, which takes most of the time and would end in a traceback.
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup, or a shell's background job
            signal.signal(number, _on_signal)
    try:
        from netsweep.cli import run

        status = run(sys.argv[1:])
    except Signalled as stopped:
        print(
            f"netsweep: {stopped}: every table is whole and no lock is held; run it again to finish",
            file=sys.stderr,
        )
        status = stopped.exit_status
    sys.exit(status)


if __name__ == "__main__":
    main()
