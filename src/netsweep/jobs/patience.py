"""The one way to retry, and the one bound on it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TypeVar

from netsweep.errors import BusyError, ContentionError
from netsweep.host import observer
from netsweep.report import Report

T = TypeVar("T")

_PAUSE = 0.002
"""Seconds before a retry: longer than the transaction that got in between, shorter than anybody notices."""


class Patience:
    """Retries what others interfere with, for ``seconds`` in all, however often it is asked, and tells of it.

    What counts is the time of attempts that failed. Waiting for locks, which ``report`` tells of, has
    bounds of its own.
    """

    def __init__(self, seconds: float, report: Report) -> None:
        self.seconds = seconds
        self._left = seconds
        self._report = report

    @property
    def exhausted(self) -> bool:
        """Whether the next failure is the last."""
        return self._left <= 0

    def retry(self, attempt: Callable[[], T]) -> T:
        """Call ``attempt`` until it does not raise :class:`ContentionError`, and return what it returns.

        Raises :class:`BusyError` when time is up.
        """
        told, why = False, ""

        def describe() -> str:
            end = f"; trying again for {math.ceil(self._left)} s" if math.isfinite(self._left) else ""
            return "" if self.exhausted else f"{why}{end}"

        try:
            while True:
                began = time.monotonic() - self._waited()
                try:
                    return attempt()
                except ContentionError as error:
                    time.sleep(min(_PAUSE, max(self._left, 0)))
                    self._left -= time.monotonic() - self._waited() - began
                    why = str(error)
                    if self.exhausted:
                        raise BusyError(
                            f"timed out after {self.seconds:g} s: {error}; try again, or raise --wait"
                        ) from None
                if self.seconds - self._left >= observer.TOLD_AFTER:
                    told = True
                    # Each time, as a wait for a lock may have been told of meanwhile.
                    observer.current.waiting(describe)
        finally:
            if told:
                observer.current.waiting(None)

    def _waited(self) -> float:
        taken = (self._report.subnet_lock, self._report.xtables_lock)
        return sum(lock.waited_ms for lock in taken if lock) / 1000
