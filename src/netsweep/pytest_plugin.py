"""A plugin for pytest: sweeps when a test run has ended, and says so in one line. PYTEST_DONT_REWRITE

``pytest -p netsweep.pytest_plugin`` sweeps. Where netsweep is installed, pytest knows the plugin without ``-p``; then
it sweeps only where it is asked to, by ``--netsweep`` or by ``netsweep = true`` in pytest's configuration.
"""

from __future__ import annotations

import inspect
import socket
import sys
import uuid
import warnings
from contextlib import suppress
from typing import Any

import pytest

LOCK_TIMEOUT = 5.0
"""Seconds to wait for the subnet lock: who looks at the results of tests waits for this."""

_STATUSES_SKIPPED = (69, 75, 77)
"""No backend, busy, not permitted: what a host that cannot be swept, or not now, ends with."""


_ONLY_SHOWN = ("collectonly", "setupplan", "showfixtures", "show_fixtures_per_test", "cacheshow")
"""Options with which pytest runs no test, and yet has a session that ends."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options, once for both ways to load the plugin."""
    with suppress(ValueError):  # they are there already
        parser.getgroup("netsweep").addoption(
            "--netsweep", action="store_true", help="Sweep what dead test jobs left behind when the tests have ended."
        )
        parser.addini("netsweep", "Sweep as --netsweep does.", type="bool", default=False)
        parser.addini("netsweep_options", "Options of 'netsweep sweep' for that.", type="args", default=[])


def pytest_configure(config: pytest.Config) -> None:
    """Sweep at the end of the run, where it runs tests."""
    if not any(config.getoption(name, False) for name in _ONLY_SHOWN):
        config.pluginmanager.register(Sweeper(config), "netsweep.sweeper")


class EntryPoint:
    """What pytest loads wherever netsweep is installed: the options, and the plugin where it is asked for."""

    def pytest_addoption(self, parser: pytest.Parser) -> None:
        """Add the options."""
        pytest_addoption(parser)

    def pytest_configure(self, config: pytest.Config) -> None:
        """Load the plugin where it is asked for and not loaded yet."""
        name = __name__
        asked = config.getoption("netsweep") or config.getini("netsweep")
        if asked and not config.pluginmanager.has_plugin(name):
            config.pluginmanager.register(sys.modules[name], name)


entry_point = EntryPoint()


class Sweeper:
    """Sweeps when the session ends, once in each network namespace that processes of the run are in.

    That is once per host, not once for each worker of pytest-xdist: of all processes in a namespace the first one to
    bind a name of the run there sweeps, which is the controller where that is in it. What workers on other hosts did
    is told by the controller.
    """

    def __init__(self, config: pytest.Config) -> None:
        """Find out whether this process is the one to sweep here."""
        worker: dict[str, Any] | None = getattr(config, "workerinput", None)
        self._config = config
        self._output: dict[str, Any] | None = getattr(config, "workeroutput", None)
        self._run: str = uuid.uuid4().hex if worker is None else worker.get("netsweep_run", "")
        self._lines: list[str] = []
        self._claim: socket.socket | None = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._claim.bind(f"\0netsweep-pytest-{self._run}")  # an abstract address; goes when the process ends
        except OSError:
            self._release()
        self._sweeps = worker is None or (bool(self._run) and self._claim is not None)

    def _release(self) -> None:
        if self._claim:
            self._claim.close()
        self._claim = None

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker which run it belongs to."""
        node.workerinput["netsweep_run"] = self._run

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take what a worker on another host says."""
        line = getattr(node, "workeroutput", {}).get("netsweep")
        if line:
            self._lines.append(f"{line} (on {node.gateway.spec})")

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """Sweep; the fixtures of the session are torn down by now."""
        if not self._sweeps:
            return
        line = f"netsweep: {_swept(self._config)}"
        if self._output is None:
            self._lines.insert(0, line)
        else:
            self._output["netsweep"] = line

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say what came of it."""
        for line in self._lines:
            terminalreporter.write_line(line)

    def pytest_unconfigure(self) -> None:
        """Let go of the name of the run."""
        self._release()


def _swept(config: pytest.Config) -> str:
    """Sweep, and say in one line what came of it, whatever that is: the tests decide how the run ends."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of the tests may be errors
            return _sweep(config.getini("netsweep_options"))
    except KeyboardInterrupt:
        return "sweep interrupted"
    except BaseException as error:
        with suppress(Exception):
            return _told(error)
        return f"sweep failed: {type(error).__name__}"


def _sweep(arguments: list[str]) -> str:
    import netsweep
    from netsweep.cli.sweep import command
    from netsweep.output.text import summary

    with command.make_context("netsweep_options", list(arguments)) as context:
        given = context.params
    known = inspect.signature(netsweep.sweep).parameters
    options: dict[str, Any] = {name: None if value == () else value for name, value in given.items() if name in known}
    if options["lock_timeout"] is None:
        options["lock_timeout"] = LOCK_TIMEOUT
    return summary(netsweep.sweep(**options))


def _told(error: BaseException) -> str:
    import click

    from netsweep.output.escape import escape
    from netsweep.output.failures import explain
    from netsweep.output.text import changes

    if isinstance(error, click.ClickException):
        return f"sweep failed: netsweep_options: {escape(error.format_message())}"
    if not isinstance(error, Exception):
        return f"sweep failed: {type(error).__name__}"
    failure = explain(error)
    done = changes(failure.report) if failure.report else ""
    if not done and failure.exit_status in _STATUSES_SKIPPED:
        return f"sweep skipped: {escape(str(failure))}"
    return f"sweep failed: {escape(str(failure))}" + (f"; it {done}" if done else "")
