"""The benchmark's short form, so that it does not rot; what it measures is nobody's test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import netsweep

pytestmark = pytest.mark.alone

TABLES = (
    "Sweeping, medians",
    "How long eleven neighbours take for `iptables -w 5 -A` and `-D`",
    "A sweep of 900 leaked rules, alone and beside",
    "How long eleven neighbours take while a bridge leaks each second",
    "Waiting for the xtables lock",
    "`list` beside rules of others",
    "Sweeping 900 leaked rules of one family",
    "Deleting 5 leaked bridges with 15 rules",
    "How long eleven neighbours that take the subnet lock take",
    "Targets",
)


def bench(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.benchmarks.bench", "--quick", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_the_short_form_measures_everything() -> None:
    done = bench()
    assert done.returncode == 0, done.stderr
    for title in TABLES:
        assert f"\n## {title}" in done.stdout
    for firewall in ("x_tables", "nf_tables"):
        assert f"| {firewall} | 900 | netsweep |" in done.stdout
        assert f"| {firewall} | netsweep | eleven neighbours |" in done.stdout
    for firewall, family in (("x_tables", "ipv6"), ("nf_tables", "ipv6"), ("nf_tables", "inet")):
        assert f"| {firewall} | {family} | 1 |" in done.stdout


def test_two_checkouts_are_measured_side_by_side(tmp_path: Path) -> None:
    """This one against itself, under another path."""
    (tmp_path / "src").symlink_to(Path(netsweep.__file__).parents[1])
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / ".venv/bin/python").chmod(0o755)
    done = bench("--against", str(tmp_path))
    assert done.returncode == 0, done.stderr
    for firewall in ("x_tables", "nf_tables"):
        for what in (
            "nothing to sweep, wall",
            "900 orphans, subnet lock held",
            "beside eleven jobs, longest single hold of the subnet lock",
        ):
            (row,) = [line for line in done.stdout.splitlines() if line.startswith(f"| {firewall} | {what} |")]
            ours, theirs, times = row.split(" | ")[4:7]
            assert ours.split()[1] == theirs.split()[1]
            assert times.split()[1] == "x"


def test_a_checkout_that_is_none_is_refused(tmp_path: Path) -> None:
    done = bench("--against", str(tmp_path))
    assert done.returncode == 1
    assert f"cannot import netsweep from {tmp_path}" in done.stderr
