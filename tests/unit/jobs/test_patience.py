"""Retrying, and telling of it where it takes long."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from netsweep.errors import BusyError, ContentionError
from netsweep.host import observer
from netsweep.jobs.patience import Patience
from netsweep.report import Report


class Recorder(observer.Observer):
    """Notes what is told, each thing once."""

    def __init__(self) -> None:
        self.told: list[str | None] = []

    def waiting(self, describe: Callable[[], str] | None) -> None:
        told = describe() if describe else None
        if told not in self.told[-1:]:
            self.told.append(told)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    recorder = Recorder()
    monkeypatch.setattr(observer, "current", recorder)
    return recorder.told


def interfered() -> None:
    raise ContentionError("the rules changed")


def test_contention_is_told_after_a_second_and_again_that_it_is_over(told: list[str | None]) -> None:
    patience, began = Patience(1.2, Report("sweep")), time.monotonic()
    seen: list[float] = []

    def attempt() -> None:
        if not told:
            seen.append(time.monotonic())
        interfered()

    with pytest.raises(BusyError, match=r"timed out after 1\.2 s: the rules changed"):
        patience.retry(attempt)
    assert 0.9 < seen[-1] - began < 1.2
    assert told == ["the rules changed; trying again for 1 s", None]


def test_what_is_over_before_is_not_told(told: list[str | None]) -> None:
    with pytest.raises(BusyError):
        Patience(0.02, Report("sweep")).retry(interfered)
    assert Patience(5, Report("sweep")).retry(lambda: 7) == 7
    assert told == []
