"""``netsweep restore``."""

from __future__ import annotations

import click

from netsweep.cli.options import completed, option, result_options, wait_option
from netsweep.cli.outcome import Output, show
from netsweep.report import Report


@click.command("restore")
@click.argument("file", metavar="FILE", shell_complete=completed)
@option("--dry-run", is_flag=True, help="Only show which rules would be put back, and where; change nothing.")
@option("--force", is_flag=True, help="Restore a journal from another network namespace.")
@wait_option
@result_options
def command(file: str, dry_run: bool, force: bool, wait: float | None, output: Output) -> int:
    """Put back the rules that 'sweep --journal FILE' deleted.

    Each rule goes back to its place between those of its old neighbours that are still there, with
    counters at zero. Where a place no longer exists, nothing is changed. Rules that exist already
    are left alone, so a restore that was stopped can be run again. Rules of a bridge that is still gone
    are orphans: the next sweep deletes them again.

    \b
    Examples:
      sudo netsweep sweep --journal /root/swept
      sudo netsweep restore --dry-run /root/swept
      sudo netsweep restore /root/swept
    """

    def job() -> Report:
        from netsweep.jobs.restore import restore

        return restore(file, wait, force=force, dry_run=dry_run)

    return show("restore", job, output)
