"""What a shell offers for options and their values. Changes nothing and takes no lock."""

from __future__ import annotations

import re
import socket
from contextlib import suppress

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
)

from netsweep import profiles
from netsweep.errors import NetsweepError
from netsweep.jobs.look import Judge, chain_names
from netsweep.profiles.options import Options

_PLAIN = re.compile(r"[\w./:@+-]+", re.ASCII)
"""What a shell may insert as it is: bash does not quote it."""


class _WholeWords(ShellComplete):
    """Completes ``--option=VALUE`` to that, not to ``VALUE``."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        found = super().get_completions(args, incomplete)
        option, equals, _ = incomplete.partition("=")
        if equals and option.startswith("--"):
            for item in found:
                item.value = f"{option}={item.value}"
        return found


class Bash(_WholeWords, BashComplete):
    """Completion for bash."""

    def source(self) -> str:
        """The script; click would run the bash of ``PATH`` to ask for its version."""
        return self.source_template % self.source_vars()

    def get_completion_args(self) -> tuple[list[str], str]:
        """What was typed; bash mostly makes ``=`` a word of its own."""
        arguments, incomplete = super().get_completion_args()
        return [each for each in arguments if each != "="], incomplete


class Zsh(_WholeWords, ZshComplete):
    """Completion for zsh."""


class Fish(_WholeWords, FishComplete):
    """Completion for fish."""


SHELLS: dict[str, type[ShellComplete]] = {"bash": Bash, "zsh": Zsh, "fish": Fish}

for name, shell in SHELLS.items():
    add_completion_class(shell, name)


def offers(context: click.Context, metavar: str, incomplete: str) -> list[CompletionItem]:
    """What a shell offers where a value as ``metavar`` says is ``incomplete``."""
    kinds = metavar.strip("[].").split("|")
    found = list[str]()
    with suppress(NetsweepError, OSError):
        if "TABLE/CHAIN" in kinds:
            found = chain_names(_options(context))
        elif context.command.name == "teardown" and metavar.startswith("NAME..."):
            owns = Judge(_options(context)).policy.names.owns
            found = [name for _, name in socket.if_nameindex() if owns(name)]
        elif kinds == ["NAME", "PATH"]:
            found = profiles.available()
    matching = [CompletionItem(each) for each in sorted(filter(_PLAIN.fullmatch, found)) if each.startswith(incomplete)]
    if not matching and not {"PATH", "FILE"}.isdisjoint(kinds):
        return [CompletionItem(incomplete, type="file")]
    return matching


def _options(context: click.Context) -> Options:
    given = context.params
    try:
        return Options(profile=given.get("profile"), prefix=given.get("prefix") or None, name=given.get("name") or None)
    except NetsweepError:  # what was typed before is wrong
        return Options()
