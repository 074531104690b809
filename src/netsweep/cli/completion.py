"""``netsweep completion``."""

from __future__ import annotations

import click

from netsweep.cli.outcome import COMPLETE_VARIABLE


@click.command("completion", short_help="Print the script that completes netsweep in a shell.")
@click.argument("shell", metavar="bash|zsh|fish", type=click.Choice(("bash", "zsh", "fish")), required=False)
@click.pass_context
def command(context: click.Context, shell: str | None) -> int:
    """Print the script that makes a shell complete netsweep's commands, options and values.

    \b
    For this shell only:
      source <(netsweep completion bash)
      source <(netsweep completion zsh)     after compinit
      netsweep completion fish | source

    \b
    For good, as root:
      netsweep completion bash > /etc/bash_completion.d/netsweep
      netsweep completion zsh > /usr/local/share/zsh/site-functions/_netsweep
      netsweep completion fish > /etc/fish/completions/netsweep.fish

    \b
    Example:
      netsweep completion bash
    """
    if shell is None:
        raise click.UsageError("no shell given: bash, zsh or fish", context)
    from netsweep.cli.complete import SHELLS

    completion = SHELLS[shell](context.find_root().command, {}, "netsweep", COMPLETE_VARIABLE)
    click.echo(completion.source(), nl=False)
    return 0
