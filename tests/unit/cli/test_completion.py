"""Completion, as bash, zsh and fish ask for it."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from netsweep import profiles
from netsweep.cli import run
from tests.unit.cli.test_options import COMMANDS

SHELLS = ("bash", "zsh", "fish")

BASH = """
source "$HOME/completion.bash"
compopt() { COMPREPLY=("compopt $*"); }
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_netsweep_completion netsweep
printf '%s\\n' "${COMPREPLY[@]}"
"""

FISH = """
netsweep completion fish | source
complete --do-complete "$argv" | cut --fields 1
"""

ZSH = """
autoload -Uz compinit
compinit -u -D
unsetopt zle_bracketed_paste
PROMPT='ready> '
source <(netsweep completion zsh)
"""


def needs(shell: str) -> pytest.MarkDecorator:
    """As root ``make test`` installs it."""
    return pytest.mark.skipif(os.geteuid() != 0 and not shutil.which(shell), reason=f"{shell} is not installed")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which ``netsweep`` is this one."""
    home = tmp_path_factory.mktemp("home")
    program = home / "bin" / "netsweep"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m netsweep "$@"\n')
    program.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NETSWEEP_", "COVERAGE_"))}
    ours = {**kept, "PATH": f"{program.parent}:{kept['PATH']}", "HOME": str(home)}
    script = subprocess.run(["netsweep", "completion", "bash"], env=ours, capture_output=True, check=True).stdout
    (home / "completion.bash").write_bytes(script)
    return ours


def words_of(environment: dict[str, str], *command: str) -> list[str]:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
    return done.stdout.split()


def bash(environment: dict[str, str], *words: str) -> list[str]:
    return words_of(environment, "bash", "--norc", "-c", BASH, "bash", *words)


@pytest.mark.parametrize("name", SHELLS)
def test_the_script_is_printed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", name]) == 0
    said = capsys.readouterr()
    assert "_NETSWEEP_COMPLETE" in said.out
    assert said.err == ""


def test_another_shell_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", "tcsh"]) == 2
    assert "'tcsh' is not one of 'bash', 'zsh', 'fish'" in capsys.readouterr().err
    assert run(["completion"]) == 2
    assert "no shell given: bash, zsh or fish (see: netsweep completion --help)" in capsys.readouterr().err


def test_no_program_is_run_to_print_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "bash").write_text(f"#!/bin/sh\ntouch {marker}\n")
    (tmp_path / "bash").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(["completion", "bash"]) == 0
    assert not marker.exists()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["sw"], ["sweep"]),
        ([""], [*COMMANDS]),
        (["sweep", "--all-c"], ["--all-chains"]),
        (["list", "--lock"], []),
        (["list", "--backend", ""], ["auto", "legacy", "nft"]),
        (["list", "--backend", "=", "n"], ["nft"]),
        (["list", "--family", "ipv"], ["ipv4", "ipv6"]),
        (["list", "--format", "js"], ["json"]),
        (["list", "--profile", ""], sorted(profiles.available())),
        (["list", "--profile", "./mi"], ["compopt", "-o", "default"]),
        (["profiles", "do"], ["docker"]),
        (["sweep", "--chain", "nat/P"], ["nat/POSTROUTING", "nat/PREROUTING"]),
        (["sweep", "--lock-file", ""], ["compopt", "-o", "default"]),
        (["sweep", "--lease-file", "/t"], ["compopt", "-o", "default"]),
        (["sweep", "--journal", ""], ["compopt", "-o", "default"]),
        (["restore", "/root/sw"], ["compopt", "-o", "default"]),
        (["sweep", "--wait", ""], []),
        (["completion", ""], ["bash", "zsh", "fish"]),
        (["sweep", "--profile", "nosuch", "--chain", "filter/FO"], ["filter/FORWARD"]),
    ],
    ids=lambda words: " ".join(words),
)
def test_bash_completes(environment: dict[str, str], words: list[str], offered: list[str]) -> None:
    assert bash(environment, "netsweep", *words) == offered


def test_a_wrong_environment_does_not_disturb_the_prompt(environment: dict[str, str]) -> None:
    wrong = {"NETSWEEP_PROTECT": " ", "NETSWEEP_BACKEND": "x", "NETSWEEP_LOCK_TIMEOUT": "soon"}
    assert bash({**environment, **wrong}, "netsweep", "sweep", "--chain", "nat/PO") == ["nat/POSTROUTING"]


@needs("fish")
def test_fish_completes(environment: dict[str, str], tmp_path: Path) -> None:
    journal = tmp_path / "a-journal"
    journal.touch()
    for line, offered in (
        ("netsweep sw", "sweep"),
        ("netsweep sweep --chain nat/PO", "nat/POSTROUTING"),
        ("netsweep list --backend=n", "--backend=nft"),
        ("netsweep list --profile do", "docker"),
        (f"netsweep restore {tmp_path}/a-j", str(journal)),
    ):
        assert words_of(environment, "fish", "--no-config", "-c", FISH, line) == [offered]


@needs("zsh")
def test_zsh_completes(environment: dict[str, str], tmp_path: Path) -> None:
    """On a terminal: the line that stands there after a tab."""
    (tmp_path / ".zshrc").write_text(ZSH)
    (tmp_path / "a-journal").touch()
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(tmp_path)
        os.execvpe("zsh", ["zsh", "-i"], {**environment, "ZDOTDIR": str(tmp_path), "TERM": "dumb", "COLUMNS": "200"})
    try:
        answer(terminal, b"ready> ")
        for typed, becomes in (
            ("netsweep sw", "netsweep sweep "),
            ("netsweep sweep --chain nat/PO", "netsweep sweep --chain nat/POSTROUTING "),
            ("netsweep list --backend=n", "netsweep list --backend=nft "),
            ("netsweep list --profile do", "netsweep list --profile docker "),
            ("netsweep restore a-j", "netsweep restore a-journal "),
        ):
            os.write(terminal, f"{typed}\t".encode())
            answer(terminal, becomes.encode())
            os.write(terminal, b"\x15")  # deletes the line
    finally:
        os.close(terminal)
        os.waitpid(process, 0)


def answer(terminal: int, expected: bytes) -> None:
    """Wait until the terminal shows ``expected``."""
    shown, deadline = b"", time.monotonic() + 30
    while expected not in shown:
        ready, _, _ = select.select([terminal], [], [], deadline - time.monotonic())
        assert ready, f"{expected!r} is not in {shown!r}"
        shown += os.read(terminal, 4096)
