"""Every option that more than one command has, and what all options have in common."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click
from click.core import ParameterSource

from netsweep import profiles
from netsweep.cli.outcome import FORMATS, Output, default_form
from netsweep.errors import UsageError
from netsweep.profiles.options import BACKEND, CHOICES, FAMILIES, FAMILY, LOCK_TIMEOUT, WAIT, Options, path

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

F = TypeVar("F", bound=Callable[..., Any])

_PROFILE = profiles.load()


class _Option(click.Option):
    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        # Of several values click drops those that are blank: a list of nothing would protect nothing.
        value = super().resolve_envvar_value(ctx)
        if value is None or ctx.resilient_parsing:
            return value
        if not (value.replace(",", " ") if self.multiple else value).strip():
            raise click.UsageError(f"{self.envvar} is blank: unset it, or give it a value", ctx)
        return value

    def value_from_envvar(self, ctx: click.Context) -> Any:
        # click splits several values at blanks. A list with commas would be one name, and protect nothing.
        value = super().value_from_envvar(ctx)
        if not self.multiple or value is None:
            return value
        return [each for text in value for each in text.split(",") if each]


def completed(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What a shell offers for the value of ``parameter``, by its metavar."""
    from netsweep.cli.complete import offers  # only a shell asks

    return offers(context, parameter.metavar or "", incomplete)


def option(
    *names: str, help: str, shown: str | None = None, variable: str | None = None, **settings: Any
) -> Callable[[F], F]:
    """An option that is also read from the environment.

    ``shown`` is the default that the help shows. An option that is not given is ``None``: its default
    is in the profile. ``variable``: the name of its environment variable, where it is not made from its own name.
    """
    variable = variable or "NETSWEEP_" + names[0].lstrip("-").replace("-", "_").upper()
    default = "" if shown is None else f"; default: {shown}"
    several = ", comma-separated" if settings.get("multiple") else ""
    text = f"{help}  [env\u00a0var:\u00a0{variable}{several}{default}]"
    if "metavar" in settings:
        settings.setdefault("shell_complete", completed)
    return click.option(*names, cls=_Option, envvar=variable, help=text, **settings)


class _Form(click.Choice[str]):
    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        # The environment is the same for all commands, and not all have all formats.
        if value in FORMATS and ctx and ctx.get_parameter_source("form") is not ParameterSource.COMMANDLINE:
            value = value if value in self.choices else "text"
        return super().convert(value, param, ctx)


def format_option(*forms: str) -> Callable[[F], F]:
    """``--format``, with those of :data:`FORMATS` that a command has; text for those that the environment asks for."""
    return option(
        "--format",
        "form",
        type=_Form(forms),
        default=default_form,
        shown="text",
        help=", ".join(FORMATS[form] for form in forms) + ".",
    )


def _together(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


bridge_options = _together(
    option(
        "--bridges",
        is_flag=True,
        help="Leaked bridges too, with their leases: those whose lease names a process that is gone, and those that "
        "have no lease and are older than --min-age. A bridge that is in use stays.",
    ),
    option(
        "--min-age",
        metavar="DURATION",
        shown=f"{(_PROFILE.min_age or 0) / 3600:g}h",
        help="How old a bridge without a lease has to be, as 90s, 20m or 1h30m, by the kernel's record of its address.",
    ),
)

wait_option = option(
    "--wait",
    metavar="SECONDS",
    type=float,
    shown=f"{WAIT:g}",
    help="How long to wait for the xtables lock and to retry on contention, as iptables -w.",
)

_names = (
    option(
        "--profile",
        metavar="NAME|PATH",
        shown=profiles.DEFAULT,
        help="What to look for: defaults for the options below. 'netsweep profiles' lists them; a PATH, as "
        "./mine.toml, is a file of your own. The defaults shown here are those of the default profile.",
    ),
    option(
        "--prefix",
        metavar="NAME",
        multiple=True,
        shown=", ".join(_PROFILE.prefixes),
        help="Bridges of ours are called NAME and hex digits, as hm3fa2001. Repeatable.",
    ),
    option(
        "--name",
        metavar="GLOB",
        multiple=True,
        help="Interfaces with such names are ours too, as 'virbr[0-9]*' or wgcorp. One that does not exist just now, "
        "but comes back later, counts as gone. Repeatable.",
    ),
    option(
        "--protect",
        metavar="NAME",
        multiple=True,
        shown=", ".join(_PROFILE.protected),
        help="Interfaces whose names begin with NAME are never touched. Repeatable.",
    ),
)

_chains = (
    option(
        "--chain",
        metavar="TABLE/CHAIN",
        multiple=True,
        shown=", ".join(_PROFILE.chains),
        help="Where to look; globs, and a family in front, as 'raw/*' or 'inet:firewalld/*'. Repeatable.",
    ),
    option("--all-chains", is_flag=True, help="Look in every chain of every table."),
    option("--family", type=click.Choice(tuple(FAMILIES)), shown=FAMILY, help="inet tables belong to both."),
    option(
        "--include-negated",
        is_flag=True,
        help="Also sweep rules that match everything but a bridge that is gone ('! -o hm12'), where they also "
        "restrict source, destination or ports. They match live traffic. A profile with forms for "
        "such rules sweeps these, and no others.",
    ),
    option(
        "--settle",
        metavar="SECONDS",
        type=float,
        shown=f"{_PROFILE.settle:g}",
        help="A name counts as gone only where two looks this far apart do not find it. A run without orphans does "
        "not wait.",
    ),
)

_means = (
    option(
        "--backend",
        type=click.Choice(CHOICES),
        shown=BACKEND,
        help="legacy is x_tables (iptables-legacy), nft is nf_tables (iptables-nft, nft); "
        "auto is every one that holds tables in this network namespace.",
    ),
    option(
        "--lease-file",
        metavar="PATH",
        shown=_PROFILE.lease_file,
        help="Leases of the test harness; a missing or empty file means none. "
        "TMPDIR is /tmp where it is not set; sudo does not pass it on.",
    ),
    wait_option,
)


def _lock_options(*, hidden: bool = False) -> tuple[Callable[[F], F], ...]:
    return (
        option(
            "--lock-file",
            metavar="PATH",
            shown=_PROFILE.lock_file,
            help="Subnet lock of the test harness, taken only to delete. A profile may have none.",
            hidden=hidden,
        ),
        option(
            "--lock-timeout",
            metavar="SECONDS",
            type=float,
            shown=f"{LOCK_TIMEOUT:g}",
            help="How long to wait for the subnet lock, where it is taken; 0: do not wait.",
            hidden=hidden,
        ),
    )


where_options = _together(*_names, *_chains, *_means, *_lock_options())

look_options = _together(*_names, *_chains, *_means, *_lock_options(hidden=True))
"""Those of :data:`where_options`, of which the help leaves out what only a sweep uses."""

whose_options = _together(*_names, *_means, *_lock_options())


def _metrics_file(context: click.Context, _: click.Parameter, value: str | None) -> str | None:
    try:
        return None if value is None else path("metrics-file", value)
    except UsageError as error:
        raise click.UsageError(str(error), context) from error


metrics_option = option(
    "--metrics-file",
    metavar="PATH",
    callback=_metrics_file,
    help="Write metrics of the run to PATH too, as Prometheus text for node_exporter's textfile collector, which reads "
    "files whose names end in .prom. The file is replaced in one step, also where the run fails.",
)


def _output(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Options that say how a report is shown; the command gets them together, as ``output``."""

    def decorate(function: F) -> F:
        @wraps(function)
        def command(
            form: str,
            quiet: bool,
            color: str,
            verbose: bool = False,
            metrics_file: str | None = None,
            **rest: Any,
        ) -> Any:
            profile = rest.get("profile") or profiles.DEFAULT
            return function(output=Output(form, verbose, quiet, color, metrics_file, profile), **rest)

        return _together(*decorators)(cast(F, command))

    return decorate


_looks = (
    option(
        "--quiet",
        "-q",
        is_flag=True,
        help="Print nothing on success, for cron. Warnings and failures still go to stderr, and json and github are "
        "still written.",
    ),
    option(
        "--color",
        type=click.Choice(("auto", "always", "never")),
        default="auto",
        shown="auto",
        help="auto: coloured tables on a terminal, plain text elsewhere; NO_COLOR and FORCE_COLOR are honoured. "
        "always: coloured tables everywhere, as wide as COLUMNS says (80). never: no colours.",
    ),
)

_verbose = option("--verbose", "-v", is_flag=True, help="List every orphaned rule, not only groups of them.")

result_options = _output(format_option(*FORMATS), *_looks)

output_options = _output(format_option(*FORMATS), _verbose, *_looks)


def options_of(settings: dict[str, Any]) -> Options:
    """The options that a command was given; raises :class:`~netsweep.errors.UsageError`.

    To be called before a job is imported: wrong usage comes before a missing library.
    """
    given: dict[str, Any] = {name: None if value == () else value for name, value in settings.items()}
    # Of two options that exclude each other, the one of the command line counts, and not that of the environment.
    sources = sources_of(click.get_current_context(silent=True))
    of_line = [name for name in ("chain", "all_chains") if sources.get(name, "").startswith("option ")]
    if len(of_line) == 1:
        given["all_chains" if of_line == ["chain"] else "chain"] = None
    return Options(**given)


def sources_of(context: click.Context | None) -> dict[str, str]:
    """Where the options that were given come from, as ``option --wait`` or ``environment NETSWEEP_WAIT``, by name."""
    found = {}
    for each in context.command.params if context else ():
        source = context and each.name and context.get_parameter_source(each.name)
        if source is ParameterSource.COMMANDLINE:
            found[each.name or ""] = f"option {each.opts[0]}"
        elif source is ParameterSource.ENVIRONMENT:
            found[each.name or ""] = f"environment {each.envvar}"
    return found
