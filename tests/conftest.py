from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.namespace import FLAVOURS, PLACES, Namespace, new_namespace

NEED_KERNEL = (Path(__file__).parent / "netns", Path(__file__).parent / "benchmarks")


def pytest_configure(config: pytest.Config) -> None:
    # A workflow, in which the tests may run, sets them.
    for name in [*os.environ]:
        if name in ("NO_COLOR", "FORCE_COLOR") or name.startswith(("GITHUB_", "NETSWEEP_")):
            del os.environ[name]
    config.addinivalue_line("markers", "kernel: needs root, for network namespaces with rules in them")
    config.addinivalue_line("markers", "alone: keeps the machine busy, or measures time: no other test runs meanwhile")


def needs_kernel(item: pytest.Item) -> bool:
    """By directory; where only some parameters of a test need it, these have the marker."""
    return bool(item.get_closest_marker("kernel")) or any(each in item.path.parents for each in NEED_KERNEL)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if os.geteuid() and needs_kernel(item):
        pytest.skip("needs root, for network namespaces with rules in them")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let a test that is to be alone wait for those of the other pytest-xdist workers, and these for it."""
    how = fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH
    # Files that are there anyway.
    with open(__file__) as queue, open(Path(__file__).parents[1] / "pyproject.toml") as lock:
        fcntl.flock(queue, fcntl.LOCK_EX)  # who waits for the lock comes before those that come later
        fcntl.flock(lock, how)
        fcntl.flock(queue, fcntl.LOCK_UN)
        try:
            return (yield)
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # closing is not enough where a child was forked that still runs


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and needs_kernel(item) and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and CI has to run it: {report.longrepr}"
    return report


@pytest.fixture
def ns(tmp_path: Path) -> Iterator[Namespace]:
    with new_namespace(tmp_path) as namespace:
        yield namespace


@pytest.fixture
def public_ns() -> Iterator[Namespace]:
    """A namespace whose directory any user can get at, as /tmp is."""
    with tempfile.TemporaryDirectory(prefix="netsweep-test-") as directory:
        os.chmod(directory, 0o1777)
        with new_namespace(Path(directory)) as namespace:
            yield namespace


@pytest.fixture(params=FLAVOURS)
def flavour(request: pytest.FixtureRequest) -> str:
    """Both kernels' firewalls, one after the other."""
    return str(request.param)


@pytest.fixture(params=PLACES, ids="-".join)
def place(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Flavour and family: all that rules can be of, one after the other."""
    flavour, family = request.param
    return flavour, family
