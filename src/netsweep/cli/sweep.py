"""``netsweep sweep``."""

from __future__ import annotations

from typing import Any

import click

from netsweep.cli.options import bridge_options, metrics_option, option, options_of, output_options, where_options
from netsweep.cli.outcome import Output, show
from netsweep.report import Report


@click.command("sweep")
@where_options
@bridge_options
@option("--dry-run", is_flag=True, help="Only show what would be deleted; take no lock.")
@option(
    "--journal",
    metavar="PATH",
    help="Write the rules to the new file PATH before they are deleted; 'netsweep restore PATH' puts them back. "
    "In a directory, each sweep gets a file of its own. No file is created where nothing is deleted. Bridges are "
    "written down too, but are not brought back.",
)
@option(
    "--max-deletes",
    metavar="N",
    type=int,
    help="Change nothing, and exit with 1, where more than N rules and bridges would go.",
)
@option("--best-effort", is_flag=True, help="Report failures, but exit with 0: for a post-step.")
@metrics_option
@output_options
def command(dry_run: bool, best_effort: bool, output: Output, **settings: Any) -> int:
    """Delete orphaned rules (and leaked bridges).

    Looks without any lock first, and is done where there are no orphans. Otherwise it takes the
    subnet lock (and the xtables lock for x_tables), decides again, deletes, and releases the locks: a
    few milliseconds for hundreds of rules. Safe to run at any time, beside running tests and beside
    itself.

    \b
    Examples:
      sudo netsweep sweep
      sudo netsweep sweep --dry-run -v
      sudo netsweep sweep --journal /root/swept   undo with: restore /root/swept
      sudo netsweep sweep --lock-timeout 0        do not wait for tests
      sudo netsweep sweep --prefix hm --prefix vmt
      sudo netsweep sweep --bridges               bridges and leases too
      sudo netsweep sweep --profile docker        dead networks of Docker

    \b
    As the last step of a workflow, with if: always():
      sudo netsweep sweep --best-effort --format github
    """

    def job() -> Report:
        options = options_of(settings)
        from netsweep.jobs.sweep import find_orphans, sweep

        return find_orphans(options, command="sweep", dry_run=True) if dry_run else sweep(options)

    return show("sweep", job, output, best_effort=best_effort)
