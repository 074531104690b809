"""Who is told what a run is doing while it takes long: nobody, unless the command line asked for it.

There is one for the process, as what waits is far below the code that knows where to tell it, and a command line is one
run. Callers of the Python API set none, so they hear nothing.
"""

from __future__ import annotations

from collections.abc import Callable

TOLD_AFTER = 1.0
"""Seconds that a wait may take before it is told."""


class Observer:
    """What is told here may come while a lock is held, so no method may block. This class ignores everything."""

    def waiting(self, describe: Callable[[], str] | None) -> None:
        """The run waits, and has done so for :data:`TOLD_AFTER`; with ``None``, it goes on.

        ``describe`` says what for, in one line that need not be safe to print, or nothing where the wait is over. It
        may take long, and may be called from another thread and again later.
        """

    def working(self, text: str) -> None:
        """The run is doing what ``text`` says."""


current = Observer()
"""The one to tell."""
