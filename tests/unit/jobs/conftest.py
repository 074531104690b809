from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.jobs.host import Host


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host(tmp_path)
    made.install(monkeypatch)
    return made
