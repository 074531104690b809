"""The manual page, made from the commands and their options: ``python -m tests.manpage``."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click

from netsweep.cli import cli
from netsweep.host.locks import XTABLES_LOCK
from netsweep.profiles import load
from netsweep.version import __version__

PAGE = Path(__file__).parents[1] / "docs" / "netsweep.1"

ENVIRONMENT = {
    "NETSWEEP_*": "Every option is also read from the environment, from the variable that its description names. An "
    "option on the command line wins.",
    "TMPDIR": "Where the lock file and the lease file of the tests are; /tmp where it is not set.",
    "XTABLES_LOCKFILE": f"The xtables lock, as iptables uses it; {XTABLES_LOCK} where it is not set.",
}

SEE_ALSO = ("ip-link(8)", "iptables(8)", "nft(8)")


def page() -> str:
    """The page in the man(7) language."""
    root = click.Context(cli, info_name="netsweep", **cli.context_settings)
    contexts = {
        name: click.Context(command, info_name=name, parent=root)
        for name in cli.list_commands(root)
        if (command := cli.get_command(root, name))
    }
    options = {name: list(_options(context)) for name, context in contexts.items()}
    times = Counter(option for each in options.values() for option in each)
    common = [option for option in times if times[option] > 1]
    general = {option.tag: option.text for option in (*_options(root), *common)}
    about, *description = _paragraphs(cli.help or "")
    lines = [
        '.\\" Made from the commands by "make man".',
        f'.TH NETSWEEP 1 "" "netsweep {__version__}" "User Commands"',
        ".nh",  # no word is broken, and no line is stretched
        ".ad l",
        ".SH NAME",
        f"netsweep \\- {_text(about[0].lower() + about[1:].rstrip('.'))}",
        ".SH SYNOPSIS",
        *_usage(root),
        ".SH DESCRIPTION",
        *_prose([about, *(each for each in description if not each.startswith("\b"))]),
        ".SH COMMANDS",
    ]
    for name, context in contexts.items():
        lines += [f".SS {_text(name)}", *_usage(context), ".PP", *_prose(_paragraphs(context.command.help or ""))]
        lines += _list({option.tag: option.text for option in options[name] if option not in common})
        also = ", ".join(option.name for option in options[name] if option in common)
        lines += [".PP", *_wrapped(f"It also takes, as described under OPTIONS: {also}.")]
    statuses = re.findall(r"^ +(\S+)  +(.+(?:\n {5,}.*)*)", cli.epilog or "", re.MULTILINE)
    profile = load()
    files = {
        profile.lock_file or "": "The lock that tests hold while they change the network: the subnet lock.",
        profile.lease_file or "": "The leases of the tests.",
        XTABLES_LOCK: "The lock of iptables, for x_tables.",
    }
    examples = [each for each in description if each.startswith("\b")]
    lines += [
        ".SH OPTIONS",
        *_wrapped("Those of netsweep itself, and those that several commands have:"),
        *_list(general),
    ]
    lines += [".SH EXIT STATUS", *_list({status: re.sub(r"\s+", " ", text) for status, text in statuses})]
    lines += [".SH ENVIRONMENT", *_list(ENVIRONMENT), ".SH FILES", *_list(files)]
    lines += [".SH EXAMPLES", *_block(examples[0].splitlines()[2:])]
    see = [f".BR {_text(name)} {section}" for name, section in (re.split(r"(?=\()", each) for each in SEE_ALSO)]
    lines += [".SH SEE ALSO", *(f"{each} ," for each in see[:-1]), see[-1]]
    return "\n".join(lines) + "\n"


class Option(NamedTuple):
    """An option: its longest name, how it is written, and what it does."""

    name: str
    tag: str
    text: str


def _options(context: click.Context) -> Iterator[Option]:
    for parameter in context.command.get_params(context):
        if isinstance(parameter, click.Option) and (record := parameter.get_help_record(context)):
            yield Option(max(parameter.opts, key=len), *record)


def _paragraphs(text: str) -> list[str]:
    """Those of a help text; each is one line, or begins with ``\\b`` and keeps its lines."""
    parts = [part.strip() for part in re.split(r"\n\s*\n", inspect.cleandoc(text))]
    return [part if part.startswith("\b") else " ".join(part.split()) for part in parts]


def _usage(context: click.Context) -> list[str]:
    return [f".B {_text(context.command_path)}", _text(" ".join(context.command.collect_usage_pieces(context)))]


def _prose(paragraphs: list[str]) -> Iterator[str]:
    for number, each in enumerate(paragraphs):
        if number:
            yield ".PP"
        if each.startswith("\b"):
            _, heading, *lines = each.splitlines()
            yield _text(heading)
            yield from _block(lines)
        else:
            yield from _wrapped(each)


def _block(lines: list[str]) -> list[str]:
    return [".RS 2", ".nf", *map(_text, textwrap.dedent("\n".join(lines)).splitlines()), ".fi", ".RE"]


def _list(entries: dict[str, str]) -> Iterator[str]:
    for tag, text in entries.items():
        yield ".TP"
        yield f".B {_text(tag)}"
        yield from _wrapped(text)


def _wrapped(text: str) -> list[str]:
    return [_text(line) for line in textwrap.wrap(text, 76, break_on_hyphens=False, break_long_words=False)]


def _text(text: str) -> str:
    """``text`` as a line in which nothing is a request or an escape."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("\u00a0", "\\ ")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="ascii")
