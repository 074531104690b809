from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator

import pytest

from netsweep.host import priority
from netsweep.host.locks import held
from netsweep.report import LockTimes


def now() -> int:
    return os.getpriority(os.PRIO_PROCESS, 0)


@pytest.fixture
def kept() -> Iterator[int]:
    """The priority before, which is the priority after."""
    before = now()
    yield before
    assert now() == before


def in_a_thread(use: Callable[[], None]) -> None:
    """Call ``use`` in a thread of its own, whose priority nobody else has."""
    failures: list[BaseException] = []

    def call() -> None:
        try:
            use()
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


@pytest.mark.kernel
def test_a_thread_that_holds_a_lock_is_not_kept_waiting_for_a_cpu(tmp_path: os.PathLike[str], kept: int) -> None:
    times = LockTimes(os.path.join(tmp_path, "lock"))
    with held(times, 1, mode=0o600, what="lock", option="--wait"):
        assert now() == -10
    assert now() == kept


@pytest.mark.kernel
def test_a_priority_that_is_higher_already_stays(kept: int) -> None:
    def use() -> None:
        os.setpriority(os.PRIO_PROCESS, 0, -15)
        with priority.hurried():
            assert now() == -15
        assert now() == -15

    in_a_thread(use)


@pytest.mark.kernel
def test_who_hurries_calms_down_to_what_was_before(kept: int) -> None:
    def use() -> None:
        os.setpriority(os.PRIO_PROCESS, 0, 5)
        priority.hurry()
        assert now() == -5
        with priority.hurried():
            assert now() == -10
        assert now() == -5
        priority.calm_down()
        assert now() == 5
        priority.calm_down()
        assert now() == 5

    in_a_thread(use)


def test_who_may_not_hurry_goes_on_as_before(monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "setpriority", refuse)
    priority.hurry()
    with priority.hurried():
        assert now() == kept
    priority.calm_down()
