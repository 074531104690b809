"""``netsweep schema``."""

from __future__ import annotations

from importlib import resources

import click

from netsweep.cli.outcome import guarded


@click.command("schema")
def command() -> int:
    """Print the JSON Schema of what --format json writes.

    It describes every field, of every command. Fields are only ever added: ignore those that you do not know.

    \b
    Examples:
      netsweep schema
      netsweep schema | jq '."$defs".rule.properties'
    """

    def job() -> int:
        click.echo(resources.files("netsweep.output").joinpath("schema.json").read_text("ascii"), nl=False)
        return 0

    return guarded(job)
