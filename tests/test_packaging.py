"""The wheel and the source distribution: what is in them, what the package index shows, and that they work."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Mapping
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pytest
from readme_renderer import markdown

from netsweep.version import __version__
from tests.pages import PAGES, ROOT, links, name_of

NAME = "netsweep_firewall"
WORKFLOW = {
    "GITHUB_SERVER_URL": "https://github.example",
    "GITHUB_REPOSITORY": "somebody/netsweep",
    "GITHUB_SHA": "0123456789abcdef0123456789abcdef01234567",
}


def run(*arguments: str | Path, directory: Path = ROOT, more: Mapping[str, str] = MappingProxyType({})) -> str:
    """Run a program as outside of a workflow, with ``more`` in its environment; return its stdout."""
    callers = ("GITHUB_", "COVERAGE_", "MAKE", "MFLAGS")  # the tests may run under make, in a workflow
    environment = {name: value for name, value in os.environ.items() if not name.startswith(callers)}
    done = subprocess.run(
        list(map(str, arguments)),
        check=False,
        cwd=directory,
        capture_output=True,
        text=True,
        env={**environment, **more},
        timeout=300,
    )
    assert not done.returncode, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout


class Built(NamedTuple):
    """The source distribution, unpacked too, and the wheel that was built from it."""

    sdist: Path
    source: Path
    wheel: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    directory = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", directory)
    (sdist,), (wheel,) = directory.glob("*.tar.gz"), directory.glob("*.whl")
    with tarfile.open(sdist) as archive:
        archive.extractall(directory, filter="data")
    return Built(sdist, directory / f"{NAME}-{__version__}", wheel)


def metadata_of(built: Built) -> Message:
    with zipfile.ZipFile(built.wheel) as archive:
        return message_from_bytes(archive.read(f"{NAME}-{__version__}.dist-info/METADATA"))


def test_the_package_index_takes_both(built: Built) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", built.sdist, built.wheel)


def test_the_names_are_those_of_the_project(built: Built) -> None:
    metadata = metadata_of(built)
    assert (metadata["Name"], metadata["Version"]) == ("netsweep-firewall", __version__)
    assert built.sdist.name == f"{NAME}-{__version__}.tar.gz"
    assert built.wheel.name == f"{NAME}-{__version__}-py3-none-any.whl"


def test_the_wheel_holds_the_whole_package(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name and ".data/" not in name}
    files = {path for path in (ROOT / "src").glob("**/*") if path.is_file() and path.suffix != ".pyc"}
    assert names == {str(path.relative_to(ROOT / "src")) for path in files}
    assert {"netsweep/py.typed", "netsweep/profiles/docker.toml"} <= names


def test_the_source_distribution_holds_what_its_pages_speak_of(built: Built) -> None:
    for page in PAGES:
        copy = built.source / name_of(page)
        assert copy.read_text() == page.read_text()
        for link in links(copy):
            if not re.match(r"\w+:|#", link):
                assert (copy.parent / link.partition("#")[0]).exists(), f"{name_of(page)}: {link}"
    for name in ("Makefile", "LICENSE", ".ci/run", "tests/conftest.py", "tests/real/README.md"):
        assert (built.source / name).exists()


@pytest.mark.parametrize("workflow", [{}, WORKFLOW], ids=["elsewhere", "in a workflow"])
def test_links_work_outside_of_the_repository(workflow: dict[str, str]) -> None:
    """As on the package index: in a workflow they lead to the commit, elsewhere there are none."""
    metadata = json.loads(run(sys.executable, "-m", "hatchling", "metadata", more=workflow))
    text = metadata["readme"]["text"]
    shown = markdown.render(text)
    assert shown
    found = [link for link in re.findall(r'\b(?:src|srcset|href)="([^"]+)', shown) if not link.startswith("#")]
    inside = [link for link in links(ROOT / "README.md") if not re.match(r"\w+:", link)]
    assert len(inside) > 5
    assert all(re.match(r"https?://", link) for link in found)
    for link in inside:
        kind = "raw" if link.endswith(".svg") else "blob"
        absolute = f"https://github.example/somebody/netsweep/{kind}/{WORKFLOW['GITHUB_SHA']}/{link}"
        assert (absolute in found) == bool(workflow)
        assert workflow or link.partition("#")[0] in text
    assert metadata.get("urls", {}).get("Source") == ("https://github.example/somebody/netsweep" if workflow else None)


def test_the_wheel_installs_the_command(built: Built, tmp_path: Path) -> None:
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "install", "--no-deps", "--no-index", "--ignore-installed", "--prefix", tmp_path, built.wheel)
    (package,) = tmp_path.glob("lib/python*/site-packages")
    more = {"PYTHONPATH": str(package)}
    said = run(tmp_path / "bin" / "netsweep", "--version", directory=tmp_path, more=more)
    assert said == f"netsweep, version {__version__}\n"
    run(tmp_path / "bin" / "netsweep", "profiles", directory=tmp_path, more=more)


@pytest.mark.parametrize(
    "tests",
    [
        ("tests/unit/policy/test_names.py", "tests/unit/test_docs.py"),
        pytest.param(("tests/netns/test_leases.py",), marks=pytest.mark.kernel),
    ],
    ids=["unit", "netns"],
)
def test_the_tests_run_from_the_source_distribution(built: Built, tests: tuple[str, ...]) -> None:
    options = ("-p", "no:cacheprovider", "-q", "--basetemp", str(built.source.parent / "tmp"))
    more = {"PYTHONPATH": str(built.source / "src"), "CI": ""}
    said = run(sys.executable, "-m", "pytest", *options, *tests, directory=built.source, more=more)
    assert re.search(r"\d+ passed", said)
    where = run(sys.executable, "-c", "import netsweep; print(netsweep.__file__)", directory=built.source, more=more)
    assert Path(where.strip()).is_relative_to(built.source)


@pytest.mark.kernel  # make install is for root, and the packages that it installs are there for these tests
def test_make_installs_with_links_and_only_in_a_directory_of_its_own(tmp_path: Path) -> None:
    prefix, shared = tmp_path / "opt", tmp_path / "local"
    make = ("make", "install", f"PYTHON={sys.executable}", f"PREFIX={prefix}", f"LINKS={shared}")
    # Without downloads: what is here already is found, too.
    here = {"PYTHONPATH": sysconfig.get_path("purelib")}
    offline = {**here, "PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0"}
    for _ in ("install", "update"):
        said = run(*make, more=offline)
        assert said.splitlines()[-1] == f"netsweep, version {__version__}"
    assert (shared / "sbin" / "netsweep").resolve() == prefix / "bin" / "netsweep"
    pages = [page.relative_to(prefix) for page in prefix.glob("share/man/*/netsweep*")]
    assert all((shared / page).resolve() == prefix / page for page in pages)
    (tmp_path / "usr").mkdir()
    with pytest.raises(AssertionError, match="is not a directory of netsweep; choose another PREFIX"):
        run(*make[:3], f"PREFIX={tmp_path / 'usr'}", make[4], more=offline)
    assert list((tmp_path / "usr").iterdir()) == []
