"""The command line: options in, report out, exit status. No logic."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from importlib import import_module

import click

from netsweep.cli.outcome import COMPLETE_VARIABLE, invoke
from netsweep.version import __version__

_EXIT_STATUSES = """\b
Exit status:
  0   done, nothing left to do
  1   failed; stderr says what
  2   wrong usage
  3   'list --exit-code' found orphans
  69  no usable backend (library or kernel support missing)
  75  timed out waiting for a lock, or re-reading rules that kept changing;
      nothing was changed
  77  not permitted (CAP_NET_ADMIN missing, file not readable)
  128+N  stopped by signal N; no table is half-changed, all locks are released"""


_COMMANDS = ("list", "sweep", "teardown", "restore", "profiles", "doctor", "schema", "completion", "demo")

_DASH = "\u2011"
_SPACE = "\u00a0"


class _Formatter(click.HelpFormatter):
    """Breaks lines at spaces only: click would also break options and paths, at their dashes or anywhere.

    A no-break space is shown as a space.
    """

    def write_text(self, text: str) -> None:
        super().write_text(text.replace("-", _DASH))

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        rows = [(first, second.replace("-", _DASH)) for first, second in rows]
        longest = max((len(word) for _, second in rows for word in second.split(" ")), default=0)
        # The second column is as wide as its longest word. What is wider than the first is in a line of its own.
        super().write_dl(rows, max(1, min(col_max, self.width - 2 * col_spacing - longest)), col_spacing)

    def getvalue(self) -> str:
        return super().getvalue().replace(_DASH, "-").replace(_SPACE, " ")


class _Context(click.Context):
    formatter_class = _Formatter


class _Commands(click.Group):
    """Imports the module of a command when that is called: most runs need one of them."""

    context_class = _Context

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_COMMANDS]  # 'list' is a module of this package

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = import_module(f"netsweep.cli.{cmd_name}").command
        command.context_class = _Context
        return command


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EXIT_STATUSES,
)
@click.version_option(__version__, "-V", "--version", prog_name="netsweep")
def cli() -> None:
    """Find iptables rules that dead test jobs left behind, and delete them.

    A rule is an orphan when a bridge of ours that it needs is gone: no interface has that name, and
    no running process holds a lease for it. netsweep deletes orphans and never touches any other
    rule. Profiles say what is ours: networks of hypeman's tests, or of Docker, libvirt, LXD or LXC.

    \b
    Examples:
      sudo netsweep list              what is left behind? (changes nothing)
      sudo netsweep list --all        why does the rest stay?
      sudo netsweep sweep --dry-run   what would a sweep do?
      sudo netsweep sweep             delete the orphans
      sudo netsweep sweep --bridges   leaked bridges and their leases too
      sudo netsweep list --profile docker   what did Docker leave behind?
      sudo netsweep doctor            could a sweep run here?
      netsweep demo                   see it work in a temporary namespace

    Needs root, or CAP_NET_ADMIN (for x_tables two more, see docs/safety.md). 'netsweep COMMAND --help'
    shows the options; every option is also read from the environment.
    """


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit status.

    Commands tell their failures themselves; what is raised comes from showing help, or ends the process.
    """
    if COMPLETE_VARIABLE in os.environ:
        from netsweep.cli import complete  # noqa: F401 - registers what is ours
    return invoke(cli, arguments)
