from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.namespace import FLAVOURS, Namespace, new_namespace


@pytest.fixture
def ns(tmp_path: Path) -> Iterator[Namespace]:
    with new_namespace(tmp_path) as namespace:
        yield namespace


@pytest.fixture(params=FLAVOURS)
def flavour(request: pytest.FixtureRequest) -> str:
    """Both kernels' firewalls, one after the other."""
    return str(request.param)
