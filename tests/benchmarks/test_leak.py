"""The picture of the leak shows what the metrics say."""

from __future__ import annotations

from tests.benchmarks.leak import STEP, measure, threshold
from tests.namespace import Namespace


def test_the_leak_grows_until_it_is_swept(ns: Namespace) -> None:
    readings = measure(ns, 2, 1)
    assert [round(days * 24 / STEP) for days, _ in readings] == [0, 1, 2, 2, 3, 3]
    assert [rules for _, rules in readings] == [0, 21, 42, 0, 21, 0]
    assert threshold() > 21
