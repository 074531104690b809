from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.namespace import FLAVOURS, Namespace, new_namespace

NEED_KERNEL = (Path(__file__).parent / "netns", Path(__file__).parent / "benchmarks")


def needs_kernel(item: pytest.Item) -> bool:
    return any(folder in item.path.parents for folder in NEED_KERNEL)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if os.geteuid() and needs_kernel(item):
        pytest.skip("needs root, for network namespaces with rules in them")


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


@pytest.fixture(params=FLAVOURS)
def flavour(request: pytest.FixtureRequest) -> str:
    """Both kernels' firewalls, one after the other."""
    return str(request.param)
