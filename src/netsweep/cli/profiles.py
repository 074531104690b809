"""``netsweep profiles``."""

from __future__ import annotations

import click

from netsweep import profiles
from netsweep.cli.options import completed
from netsweep.cli.outcome import guarded


@click.command("profiles", short_help="Show the profiles, or one of them as TOML.")
@click.argument("name", required=False, metavar="[NAME|PATH]", shell_complete=completed)
def command(name: str | None) -> int:
    """Show the profiles, or one of them as TOML with the reason of each line.

    A profile says what one kind of software names its interfaces, and where its rules stand. To make
    your own, copy one and give its path to --profile; shown by its path, it is checked.

    \b
    Examples:
      netsweep profiles
      netsweep profiles docker
      netsweep profiles docker > mine.toml
      sudo netsweep list --profile ./mine.toml
    """

    def job() -> int:
        if name is not None:
            profiles.load(name)
            click.echo(profiles.source(name), nl=False)
            return 0
        found = list(map(profiles.load, profiles.available()))
        width = max(len(profile.name) for profile in found)
        for profile in found:
            default = " (default)" if profile.name == profiles.DEFAULT else ""
            click.echo(f"{profile.name:<{width}}  {profile.about}{default}")
            click.echo(f"{'':<{width}}  checked with: {'; '.join(profile.checked_with)}")
        click.echo("\n'netsweep profiles NAME' shows one, and what it cannot sweep.")
        return 0

    return guarded(job)
