"""``netsweep teardown``."""

from __future__ import annotations

import os
from typing import Any

import click

from netsweep.cli.options import completed, option, options_of, output_options, whose_options
from netsweep.cli.outcome import Output, show
from netsweep.errors import UsageError
from netsweep.report import Report


@click.command("teardown")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=completed)
@option("--subnet", metavar="CIDR", help="The network's subnet, where neither its lease nor its bridge says.")
@option(
    "--force",
    is_flag=True,
    variable="NETSWEEP_TEARDOWN_FORCE",  # what is set for restore must not take down networks
    help="Take a network down even where another running process leases it.",
)
@whose_options
@output_options
def command(names: tuple[str, ...], subnet: str | None, force: bool, output: Output, **settings: Any) -> int:
    """Delete whole networks by the NAMEs of their bridges.

    The clean-up of a test: deletes the routes of the subnet on the bridge, the bridge, its rules in every chain of
    every family, and its lease last, so that no other test gets the subnet while it is taken down. What is gone already
    counts as done, so it can be run again. Exits with 0 only where nothing of the network is left.

    Refuses names that are not owned or are protected, and networks that another running process leases. The calling
    process and its ancestors may take down what they lease.

    \b
    Examples:
      sudo netsweep teardown hm3fa2001
      sudo netsweep teardown hm3fa2001 --subnet 10.200.1.0/24
    """

    def job() -> Report:
        if os.environ.get("NETSWEEP_DRY_RUN", "").lower() not in ("", "0", "false", "f", "no", "n", "off"):
            raise UsageError("NETSWEEP_DRY_RUN is set, and teardown has no dry run: unset it to delete networks")
        options = options_of(settings)
        from netsweep.jobs.teardown import teardown

        return teardown(options, names, subnet, force=force)

    return show("teardown", job, output)
