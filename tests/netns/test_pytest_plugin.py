"""The plugin for pytest, in test runs of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import netsweep
from tests.namespace import NO_NET_ADMIN, Namespace, flocked, leaks, new_namespace, unchanged

PLUGIN = ("-p", "netsweep.pytest_plugin")
TESTS = "import pytest\n\n@pytest.mark.parametrize('number', range(4))\ndef test(number): assert number != {fails}\n"
DELETED = "netsweep: Deleted 3 orphaned rules of 1 bridge in "


@pytest.fixture
def leaking(ns: Namespace) -> Namespace:
    """A namespace with the rules of a dead bridge, and four tests in its directory."""
    ns.restore("nft", leaks(["hm1"]))
    (ns.directory / "test_four.py").write_text(TESTS.format(fails=-1))
    return ns


@pytest.fixture
def installed(leaking: Namespace) -> Namespace:
    """The same, where pytest finds the entry points that an installation has."""
    settings = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    (point,) = re.findall(r'^\[project.entry-points.pytest11\]\n(\w+) = "(.*)"$', settings, re.MULTILINE)
    metadata = leaking.directory / "installed" / "entry_points-1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: entry-points\nVersion: 1\n")
    (metadata / "RECORD").write_text("netsweep/__init__.py,,\nnetsweep/pytest_plugin.py,,\n")
    (metadata / "entry_points.txt").write_text("[pytest11]\n{} = {}\n".format(*point))
    return leaking


def run(ns: Namespace, *arguments: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run pytest in a namespace, with every warning an error."""
    path = f"{ns.directory / 'installed'}:{Path(netsweep.__file__).parents[1]}"
    # Other plugins take a second to load.
    alone = {} if (ns.directory / "installed").exists() else {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    others = [word for name in ("hypothesispytest", "pytest_cov") for word in ("-p", f"no:{name}")]
    arguments = ("-q", "-W", "error", "-p", "no:cacheprovider", "--rootdir", ".", *others, *arguments)
    command = " ".join(f"'{each}'" for each in (*before, sys.executable, "-m", "pytest", *arguments))
    return ns.run(
        "sh",
        "-c",
        f"cd '{ns.directory}' && {command}",
        check=False,
        environment={**alone, "PYTHONPATH": path},
    )


def said(done: subprocess.CompletedProcess[str], status: int = 0) -> list[str]:
    """What the plugin said in a run that ended with ``status``."""
    assert done.returncode == status, done.stdout + done.stderr
    assert done.stderr == ""
    return [line for line in done.stdout.splitlines() if "netsweep" in line]


def test_a_run_sweeps_once_and_says_so_in_one_line(leaking: Namespace) -> None:
    (line,) = said(run(leaking, *PLUGIN))
    assert line.startswith(DELETED)
    assert "hm1" not in leaking.ruleset()


def test_workers_of_xdist_do_not_sweep(leaking: Namespace) -> None:
    (line,) = said(run(leaking, *PLUGIN, "-p", "xdist", "-n", "2"))
    assert line.startswith(DELETED)


@contextmanager
def other_host(leaking: Namespace) -> Iterator[Namespace]:
    """Another network namespace with what a dead bridge left; to a sweep that is another host."""
    directory = leaking.directory / "other"
    directory.mkdir()
    with new_namespace(directory) as other:
        other.restore("nft", leaks(["hm1"]))
        yield other


def test_each_host_on_which_xdist_has_workers_is_swept_once(leaking: Namespace) -> None:
    with other_host(leaking) as other:
        elsewhere = f"popen//python=ip netns exec {other.name} {sys.executable}"
        lines = said(run(leaking, *PLUGIN, "-p", "xdist", "-d", "--tx", "popen", "--tx", elsewhere, "--tx", elsewhere))
        assert [line.startswith(DELETED) for line in lines] == [True, True]
        assert [other.name in line for line in lines] == [False, True]
        assert "hm1" not in leaking.ruleset() + other.ruleset()


def test_installed_it_is_off_until_asked_for(installed: Namespace) -> None:
    with unchanged(installed):
        assert said(run(installed)) == []
        assert said(run(installed, "-n", "2")) == []
        assert said(run(installed, "--netsweep", "-p", "no:netsweep.pytest_plugin")) == []


@pytest.mark.parametrize("option", ["--collect-only", "--setup-plan", "--fixtures", "--fixtures-per-test"])
def test_a_run_without_tests_does_not_sweep(leaking: Namespace, option: str) -> None:
    with unchanged(leaking):
        assert not [line for line in said(run(leaking, *PLUGIN, option)) if line.startswith("netsweep: ")]


@pytest.mark.parametrize(
    "asked", [("--netsweep",), ("-o", "netsweep=true"), PLUGIN, (*PLUGIN, "--netsweep", "-o", "netsweep=true")], ids=str
)
def test_installed_it_sweeps_once_where_it_is_asked_to(installed: Namespace, asked: tuple[str, ...]) -> None:
    (line,) = said(run(installed, *asked))
    assert line.startswith(DELETED)


def test_unasked_it_costs_a_run_no_library(installed: Namespace) -> None:
    (installed.directory / "test_four.py").write_text(
        "import sys\n\ndef test_modules():\n"
        "    assert 'netsweep.pytest_plugin' in sys.modules\n"
        "    assert not {'click', 'iptc', 'pyroute2', 'filelock', 'rich', 'netsweep.jobs'} & sys.modules.keys()\n"
    )
    said(run(installed, "-p", "no:xdist"))


def test_a_run_that_fails_is_swept_and_keeps_its_status(leaking: Namespace) -> None:
    (leaking.directory / "test_four.py").write_text(TESTS.format(fails=2))
    assert said(run(leaking, *PLUGIN), status=1)[-1].startswith(DELETED)


def test_a_run_without_tests_keeps_its_status(leaking: Namespace) -> None:
    assert len(said(run(leaking, *PLUGIN, "-k", "nothing"), status=5)) == 1


def test_without_the_capability_it_skips_with_the_reason(leaking: Namespace) -> None:
    with unchanged(leaking):
        (line,) = said(run(leaking, *PLUGIN, before=NO_NET_ADMIN))
    assert line.startswith("netsweep: sweep skipped: CAP_NET_ADMIN is missing")


def test_where_the_subnet_lock_is_held_it_skips_with_the_reason(leaking: Namespace) -> None:
    with flocked(leaking.lock_file), unchanged(leaking):
        (line,) = said(run(leaking, *PLUGIN, "-o", "netsweep_options=--lock-timeout 0"))
    assert line.startswith("netsweep: sweep skipped: ")
    assert str(leaking.lock_file) in line


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--dry-run", "netsweep: Found 3 orphaned rules of 1 bridge in "),
        ("--prefix vm", "netsweep: Nothing to sweep: no orphaned rules, "),
        ("--nosuch", "netsweep: sweep failed: netsweep_options: No such option '--nosuch'"),
        ("--backend none", "netsweep: sweep failed: netsweep_options: "),
        ("--protect hm", "netsweep: sweep failed: prefix 'hm' is protected by 'hm', "),
    ],
)
def test_its_options_are_those_of_sweep(leaking: Namespace, options: str, expected: str) -> None:
    with unchanged(leaking):
        (line,) = said(run(leaking, *PLUGIN, "-o", f"netsweep_options={options}"))
    assert line.startswith(expected)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        ("SystemExit(3)", "netsweep: sweep failed: SystemExit"),
        ("KeyboardInterrupt", "netsweep: sweep interrupted"),
        ("MemoryError", "netsweep: sweep failed: out of memory"),
        ("ValueError('x\\ny')", "netsweep: sweep failed: unexpected ValueError: x"),
        ("ImportError('gone')", "netsweep: sweep skipped: gone: install "),
        ("DeprecationWarning", "netsweep: sweep failed: unexpected DeprecationWarning"),
    ],
)
def test_whatever_is_raised_the_run_ends_as_its_tests_say(leaking: Namespace, raised: str, expected: str) -> None:
    (leaking.directory / "conftest.py").write_text(
        f"import netsweep, pytest\n\ndef sweep(*, lock_timeout=None): raise {raised}\n\nnetsweep.sweep = sweep\n"
    )
    (line,) = said(run(leaking, *PLUGIN))
    assert line.startswith(expected)


def test_a_user_gets_a_reason_too(public_ns: Namespace) -> None:
    (public_ns.directory / "test_four.py").write_text(TESTS.format(fails=-1))
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    (line,) = said(run(public_ns, *PLUGIN, before=nobody))
    assert line.startswith("netsweep: sweep skipped: CAP_NET_ADMIN is missing")
