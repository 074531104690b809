"""The examples of docs/python.md, run as they are there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import netsweep
from tests.namespace import Namespace, leaks

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_examples_run_one_after_the_other(ns: Namespace) -> None:
    """In one program, in a namespace of its own, with a journal and leases that are in its directory."""
    ns.restore("nft", leaks(["hm3fa2001", "hm3fa2002"]))
    ns.add_bridges("hm3fa2000")
    program = re.sub('"/(root|tmp)/', f'"{ns.directory}/', "\n".join(blocks("python")))
    done = ns.run(sys.executable, "-W", "error", "-c", program)
    assert done.stderr == ""
    assert len(re.findall(r"^rule \d+ of nft ipv4 \w+/\w+ hm3fa200[12] ", done.stdout, re.MULTILINE)) == 6
    assert re.search(r"^6 of \d+ rules deleted in \d+ ms$", done.stdout, re.MULTILINE)
    assert re.search(r"^longest hold of the subnet lock: [\d.]+ ms$", done.stdout, re.MULTILINE)
    assert "hm3fa2001" not in ns.ruleset()


def test_pytest_is_set_up_as_the_page_says(ns: Namespace) -> None:
    ns.restore("nft", leaks(["hm3fa2001"]))
    (settings,) = blocks("ini")
    (command,) = blocks("sh")
    (ns.directory / "pytest.ini").write_text(settings)
    (ns.directory / "test_one.py").write_text("def test(): pass\n")
    path = str(Path(netsweep.__file__).parents[1])
    command = command.replace("pytest ", f"{sys.executable} -m pytest -q ", 1)
    done = ns.run("sh", "-ec", f"cd '{ns.directory}'; {command}", environment={"PYTHONPATH": path})
    assert re.search(r"^netsweep: Deleted 3 orphaned rules of 1 bridge in [\d.]+ m?s", done.stdout, re.MULTILINE)
