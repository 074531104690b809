"""``netsweep list``."""

from __future__ import annotations

from typing import Any

import click

from netsweep.cli.options import bridge_options, look_options, metrics_option, option, options_of, output_options
from netsweep.cli.outcome import Output, show
from netsweep.errors import ORPHANS_FOUND
from netsweep.report import Report


@click.command("list")
@look_options
@bridge_options
@option("--all", "all_rules", is_flag=True, help="Also show the rules and bridges that stay, each with the reason.")
@option("--exit-code", is_flag=True, help=f"Exit with {ORPHANS_FOUND} where there are orphans or leaked bridges.")
@metrics_option
@output_options
def command(all_rules: bool, exit_code: bool, output: Output, **settings: Any) -> int:
    """Show orphaned rules (and leaked bridges); change nothing.

    Takes no lock, creates no file but that of --metrics-file, loads no kernel module. Needs
    CAP_NET_ADMIN, as reading the kernel's tables does.

    \b
    Examples:
      sudo netsweep list
      sudo netsweep list --all         the rules that stay too, and why
      sudo netsweep list --bridges     leaked bridges too, and their rules
      sudo netsweep list --exit-code   for monitoring: 3 means orphans
      sudo netsweep list --metrics-file /var/lib/node_exporter/netsweep.prom
      sudo netsweep list --format json | jq '.orphans | length'
      sudo netsweep list --chain filter/FORWARD --chain filter/INPUT
    """

    def job() -> Report:
        options = options_of(settings)
        from netsweep.jobs.sweep import find_orphans

        return find_orphans(options, keep=all_rules)

    return show("list", job, output._replace(verbose=output.verbose or all_rules), exit_code=exit_code)
