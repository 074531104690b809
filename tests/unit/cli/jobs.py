"""Jobs that are not done, so that what the command line makes of them can be tested without root."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from netsweep.report import Command, Report


class Jobs:
    """What the jobs were called with, and what they do instead."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.does: Callable[[Command], Report] = Report

    def job(self, name: Any) -> Callable[..., Report]:
        def job(*arguments: Any, **named: Any) -> Report:
            self.calls.append((name, arguments, named))
            return self.does(name)

        return job


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Jobs:
    """Replace the jobs of list, sweep, teardown and restore."""
    replaced = Jobs()
    for name in ("sweep.find_orphans", "sweep.sweep", "teardown.teardown", "restore.restore"):
        monkeypatch.setattr(f"netsweep.jobs.{name}", replaced.job(name.rpartition(".")[2]))
    return replaced


def raises(error: BaseException) -> Callable[[str], Report]:
    """A job that fails."""

    def does(_: str) -> Report:
        raise error

    return does
