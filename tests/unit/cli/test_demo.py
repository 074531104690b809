"""``netsweep demo`` is given what it needs of the command line; what it does is tested on a kernel."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from netsweep.cli import run
from netsweep.errors import NoBackendError


def demo_that(does: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netsweep.jobs.demo.demo", does)


def test_the_demo_runs_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    demo_that(lambda run, _: run(["--version"]) + run(["no-such-command"]), monkeypatch)
    assert run(["demo"]) == 2
    said = capsys.readouterr()
    assert said.out.startswith("netsweep, version ")
    assert "no-such-command" in said.err


def test_what_the_demo_guards_is_told_and_has_an_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> int:
        raise NoBackendError("no iptables")

    demo_that(lambda _, guarded: guarded(fails) + guarded(lambda: 1), monkeypatch)
    assert run(["demo"]) == 70
    demo_that(lambda *_: fails(), monkeypatch)
    assert run(["demo"]) == 69
    assert capsys.readouterr().err == "netsweep: no iptables\n" * 2
