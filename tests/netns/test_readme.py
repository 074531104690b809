"""The commands that README.md and docs/ show, run on the hosts that they describe, say what the pages say.

A block is run where a line of it begins with ``$``. The comment ``<!-- scene: NAME -->`` before it names one of
``SCENES``; without a comment, the host is left as the block before left it. A line ``...`` stands for any lines. With
``UPDATE_DOCS=1`` outputs that differ are written into the pages, where they hold no ``...``.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.namespace import Namespace, holder, leak, new_namespace, restore_input, write_leases
from tests.netns.test_bridges import DEAD
from tests.pages import PAGES, UPDATE, Block, blocks, name_of

LIVE = "hm3fa2000"


class Step(NamedTuple):
    """A command of a block, the lines that it is to say, and the number of the first of these in the page."""

    command: str
    says: list[str]
    line: int


def shown(page: Path) -> list[Block]:
    """The blocks of a page that hold commands."""
    return [block for block in blocks(page) if any(line.startswith("$ ") for line in block.lines)]


def steps(block: Block) -> Iterator[Step]:
    lines = enumerate(block.lines, block.line + 1)
    step = None
    for number, line in lines:
        if line.startswith("$ "):
            if step:
                yield step
            while line.endswith("\\"):
                number, more = next(lines)
                line = line.removesuffix("\\") + more.strip()
            step = Step(line.removeprefix("$ "), [], number + 1)
        else:
            assert step, f"{name_of(block.page)}:{number}: before the first command"
            step.says.append(line)
    if step:
        yield step


# --- Hosts ---


def rules(ns: Namespace, *dead: str) -> None:
    """Rules of one live bridge, of dead ones and of others."""
    tables = leak(LIVE, "10.200.0.0/24")
    for number, bridge in enumerate(dead, 1):
        for table, lines in leak(bridge, f"10.200.{number}.0/24").items():
            tables[table] += lines
    tables["filter"] += [
        "-A FORWARD -i ha12 -o eth0 -m comment --comment hypeman-fwd-out-ha12 -j ACCEPT",
        "-A FORWARD -i hm+ -j ACCEPT",
        '-A FORWARD -s 192.0.2.0/24 -m comment --comment "keep guests off hm3fa2001" -j DROP',
        "-A FORWARD -s 10.200.1.0/24 -m set --match-set guests src "
        "-m comment --comment hypeman-guests-hm3fa2001 -j DROP",
    ]
    ns.run("ipset", "create", "guests", "hash:net")
    ns.restore("nft", restore_input(tables))
    ns.add_bridges(LIVE)
    ns.run("ip", "address", "add", "10.200.0.1/24", "dev", LIVE)


@contextmanager
def leaked_rules(ns: Namespace) -> Iterator[None]:
    rules(ns, "hm3fa2001", "hm3fa2002")
    write_leases(ns, {LIVE: os.getpid()})
    yield


@contextmanager
def no_leases(ns: Namespace) -> Iterator[None]:
    rules(ns, "hm3fa2001", "hm3fa2002")
    yield


@contextmanager
def lock_held(ns: Namespace) -> Iterator[None]:
    with leaked_rules(ns), holder(ns, ns.lock_file, "flock", str(ns.lock_file), "cat"):
        yield


@contextmanager
def leaked_networks(ns: Namespace) -> Iterator[None]:
    rules(ns, "hm3fa2001")
    write_leases(ns, {LIVE: os.getpid(), "hm3fa2001": DEAD})
    ns.add_bridges("hm3fa2001", "hm3fa2004", "hm3fa2005")
    commands = [f"address add 10.200.{number}.1/24 dev hm3fa200{number}" for number in (1, 4, 5)]
    commands += ["tuntap add dev tap12 mode tap", "link set tap12 master hm3fa2004"]
    ns.run("ip", "-batch", "-", input="".join(f"{command}\n" for command in commands))
    yield


SCENES: dict[str, Callable[[Namespace], AbstractContextManager[None]]] = {
    "": leaked_rules,
    "rules": leaked_rules,
    "no leases": no_leases,
    "lock held": lock_held,
    "networks": leaked_networks,
}


class Host:
    """A host of one of the ``SCENES``, as far as the pages describe it: one firewall, ``/root`` and ``/tmp``."""

    def __init__(self, ns: Namespace) -> None:
        self._ns = ns
        self._directories = {"/root": str(ns.directory / "root"), "/tmp": str(ns.directory)}
        programs = ns.directory / "bin"
        for directory in (programs, ns.directory / "root"):
            directory.mkdir()
        for name, script in {"netsweep": f'"{sys.executable}" -m netsweep "$@"', "sudo": '"$@"'}.items():
            (programs / name).write_text(f"#!/bin/sh\nexec {script}\n")
            (programs / name).chmod(0o755)
        self._environment = {"PATH": f"{programs}:{os.environ['PATH']}", "FORCE_COLOR": ""}

    def says(self, *command: str) -> list[str]:
        """Run a program; return what it says, on stdout and stderr, and whatever it exits with."""
        here = [
            re.sub(r"(?<![\w/])/(?:root|tmp)\b", lambda match: self._directories[match[0]], word) for word in command
        ]
        done = self._ns.run("bash", "-c", 'exec 2>&1 "$@"', "bash", *here, check=False, environment=self._environment)
        said = done.stdout
        for path, directory in self._directories.items():
            said = said.replace(directory, path)
        return said.splitlines()


@contextmanager
def host(scene: str, directory: Path) -> Iterator[Host]:
    with new_namespace(directory) as ns, SCENES[scene](ns):
        yield Host(ns)


# --- Comparing ---


def alike(line: str) -> str:
    """A line without what differs from run to run: times, ages, process IDs and command lines."""
    line = re.sub(r"\b[\d.,]+ (?:ms|s)\b", "0 ms", line)
    line = re.sub(r"\b\d+ (?:second|minute|hour)s? old", "0 seconds old", line)
    return re.sub(r"\b(PID|process) \d+(?: \([^()]*\))?", r"\1 0", line)


def fits(says: list[str], said: list[str]) -> bool:
    pattern = "".join(r"(?:.*\n)*" if line == "..." else re.escape(alike(line)) + r"\n" for line in says)
    return bool(re.fullmatch(pattern, "".join(f"{alike(line)}\n" for line in said)))


@pytest.mark.parametrize("page", [page for page in PAGES if shown(page)], ids=name_of)
def test_commands_say_what_the_page_says(page: Path, tmp_path: Path) -> None:
    differing = list[tuple[Step, list[str]]]()
    with ExitStack() as stack:
        there: Host | None = None
        for number, block in enumerate(shown(page)):
            if there is None or block.scene:
                stack.close()
                directory = tmp_path / str(number)
                directory.mkdir()
                there = stack.enter_context(host(block.scene, directory))
            for step in steps(block):
                said = there.says("bash", "-c", step.command)
                if not fits(step.says, said):
                    differing.append((step, said))
    if UPDATE:
        lines = page.read_text().splitlines()
        for step, said in reversed(differing):
            if "..." not in step.says:
                lines[step.line - 1 : step.line - 1 + len(step.says)] = said
        page.write_text("".join(f"{line}\n" for line in lines))
    texts = [f"{name_of(page)}:{step.line - 1}: $ {step.command}\n" + "\n".join(said) for step, said in differing]
    assert not texts, "\n\n".join(["commands say something else:", *texts])
