"""``netsweep demo``."""

from __future__ import annotations

import click

from netsweep.cli.outcome import guarded, invoke


@click.command("demo", short_help="See it work in a temporary network namespace.")
@click.pass_context
def command(context: click.Context) -> int:
    """See it work in a temporary network namespace.

    Fills a new namespace with what a hundred dead test jobs leave behind, in x_tables and in
    nf_tables, beside bridges that are alive and rules of others, and runs list, sweep and list on it.
    The rules of this host are not touched. Needs root only where users may not create namespaces.

    \b
    Example:
      netsweep demo
    """

    def job() -> int:
        from netsweep.jobs.demo import demo

        return demo(lambda arguments: invoke(context.find_root().command, arguments), guarded)

    return guarded(job)
