"""``netsweep doctor``."""

from __future__ import annotations

from typing import Any

import click

from netsweep import profiles
from netsweep.cli.options import bridge_options, format_option, option, options_of, where_options
from netsweep.cli.outcome import guarded
from netsweep.output.failures import complain
from netsweep.version import __version__

_SUBNETS = profiles.load().subnets


@click.command("doctor", short_help="Show what this host has, and whether a sweep could run.")
@where_options
@bridge_options
@option(
    "--subnets",
    metavar="FIRST-LAST",
    shown=_SUBNETS,
    help="The subnets of tests, each a /24, of which is counted how many are in use, leaked and free.",
)
@format_option("text", "json")
def command(form: str, subnets: str | None, **settings: Any) -> int:
    """Show what this host has, and whether a sweep could run here; change nothing.

    Tables of every family and backend, whether a sweep covers what iptables writes, capabilities, the
    processes that hold the locks, the lease file, how many of the test subnets are in use, leaked and
    free, effective settings, and versions. Takes the options
    of sweep. Exits with the status that a sweep would end with now.

    \b
    Examples:
      sudo netsweep doctor
      sudo netsweep doctor --format json | jq .locks.subnet.held_by
    """

    def job() -> int:
        options = options_of(settings)
        import json

        from netsweep.jobs.doctor import diagnose
        from netsweep.output.doctor import doctor_lines
        from netsweep.output.json import SCHEMA

        found = diagnose(options, subnets)
        for error in found.errors:
            complain(error)
        content = {"schema": SCHEMA, "version": __version__, "command": "doctor", **vars(found)}
        click.echo(json.dumps(content) if form == "json" else "\n".join(doctor_lines(content)))
        return found.status

    return guarded(job)
