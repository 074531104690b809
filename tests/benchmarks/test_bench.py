"""The benchmark's short form, so that it does not rot; what it measures is nobody's test."""

from __future__ import annotations

import subprocess
import sys

TABLES = (
    "Sweeping, medians",
    "What eleven neighbours feel",
    "Waiting for the xtables lock",
    "Targets",
)


def test_the_short_form_measures_everything() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.bench", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for title in TABLES:
        assert f"### {title}" in done.stdout
    for firewall in ("x_tables", "nf_tables"):
        assert f"| {firewall} | 900 | netsweep |" in done.stdout
