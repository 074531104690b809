"""``netsweep doctor``."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Any

import click

from netsweep import profiles
from netsweep.cli.options import bridge_options, format_option, option, options_of, sources_of, where_options
from netsweep.cli.outcome import guarded
from netsweep.cli.sweep import command as sweep
from netsweep.errors import UsageError
from netsweep.output.failures import complain
from netsweep.version import __version__

_SUBNETS = profiles.load().subnets

_OF_SWEEP = ("dry_run", "journal", "max_deletes", "best_effort")

_WIDTH_MIN, _WIDTH_MAX = 40, 100
"""Columns on a terminal: longer lines are hard to read, and shorter ones hold few words beside the names."""


@click.command(
    "doctor",
    short_help="Show what this host has, and whether a sweep could run.",
    params=[each for each in sweep.params if each.name in _OF_SWEEP],
)
@where_options
@bridge_options
@option(
    "--subnets",
    metavar="FIRST-LAST",
    shown=_SUBNETS,
    help="Count how many of these /24 subnets, which tests use, are in use, leaked and free.",
)
@option(
    "--report",
    is_flag=True,
    help="Print a block to paste into a bug report, without private data; read it before you post it. "
    "Exits with 0: the block shows the status.",
)
@format_option("text", "json")
@click.pass_context
def command(
    context: click.Context,
    /,
    form: str,
    subnets: str | None,
    report: bool,
    dry_run: bool,
    best_effort: bool,
    **settings: Any,
) -> int:
    """Show what this host has, and whether a sweep could run here; change nothing.

    Tables of every family and backend, whether a sweep covers what iptables writes, capabilities, the
    processes that hold the locks, the lease file, how many of the test subnets are in use, leaked and
    free, the settings in effect and where each comes from, and versions. Takes the options that say what a sweep
    does, and exits with the status that a sweep with the same options would end with now.

    \b
    Examples:
      sudo netsweep doctor
      sudo netsweep doctor --report               for a bug report
      sudo netsweep doctor --format json | jq .locks.subnet.held_by
    """

    def job() -> int:
        options = options_of(settings)
        given = sources_of(context)
        if report and form == "json" and "form" in given and given["form"].startswith("option "):
            raise UsageError("--report is text: give it without --format json")
        import json

        from netsweep.jobs.doctor import diagnose
        from netsweep.output.doctor import WIDTH, doctor_lines, report_lines
        from netsweep.output.json import SCHEMA

        found = diagnose(options, subnets, dry_run=dry_run, best_effort=best_effort, given=given)
        found.warnings += _unread(context)
        content = {"schema": SCHEMA, "version": __version__, "command": "doctor", **vars(found)}
        if report:
            click.echo("\n".join(report_lines(content)))
            return 0
        for error in found.errors:
            complain(error)
        width = min(max(shutil.get_terminal_size().columns, _WIDTH_MIN), _WIDTH_MAX) if sys.stdout.isatty() else WIDTH
        click.echo(json.dumps(content) if form == "json" else "\n".join(doctor_lines(content, width)))
        return found.status

    return guarded(job)


def _unread(context: click.Context) -> list[str]:
    """Warnings of variables that nothing reads, as misspelled ones are."""
    group = context.find_root().command
    commands = [group.get_command(context, name) for name in group.list_commands(context)]  # type: ignore[attr-defined]
    known = {parameter.envvar for each in commands if each for parameter in each.params}
    unread = sorted(name for name in os.environ if name.startswith("NETSWEEP_") and name not in known)
    return [f"{name} is set, but no option reads it" for name in unread]
