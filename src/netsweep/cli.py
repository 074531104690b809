"""The command line: options in, report out, exit status. No logic."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from netsweep import __version__
from netsweep.errors import ORPHANS_FOUND, NetsweepError, NoBackendError
from netsweep.report import Report, escape, github_lines, text_lines, write_json, write_step_summary

F = TypeVar("F", bound=Callable[..., Any])

_EXIT_STATUSES = """\b
Exit status:
  0   done, nothing left to do
  1   failed; stderr says what
  2   wrong usage
  3   'list --exit-code' found orphans
  69  no usable backend (library or kernel support missing)
  75  busy: a lock was not to be had in time; nothing was changed
  77  not permitted (CAP_NET_ADMIN missing, file not readable)
  128+N  stopped by signal N; tables are whole, locks are free"""


def _variable(option: str) -> str:
    return "NETSWEEP_" + option.lstrip("-").replace("-", "_").upper()


def _option(*names: str, **settings: Any) -> Callable[[F], F]:
    return click.option(*names, envvar=_variable(names[0]), **{"show_envvar": True, **settings})


def _path_option(name: str, default: str, text: str) -> Callable[[F], F]:
    # A paragraph that is not wrapped: click would break the path at its dashes.
    tail = f"\n\n\b\n[env var: {_variable(name)};\ndefault: {default}]"
    return _option(name, metavar="PATH", show_envvar=False, help=text + tail)


def _together(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


_wait_option = _option(
    "--wait",
    metavar="SECONDS",
    type=float,
    default=5,
    show_default=True,
    help="How long to wait for the xtables lock and to retry on contention, as iptables -w.",
)

_where_options = _together(
    _option(
        "--prefix",
        metavar="NAME",
        multiple=True,
        default=["hm"],
        show_default=True,
        help="Bridges of ours are called NAME and hex digits, as hm3fa2001. Repeatable.",
    ),
    _option(
        "--protect",
        metavar="NAME",
        multiple=True,
        default=["ha"],
        show_default=True,
        help="Interface names that begin with NAME are never touched. Repeatable.",
    ),
    _option(
        "--chain",
        metavar="TABLE/CHAIN",
        multiple=True,
        default=["filter/FORWARD", "nat/POSTROUTING"],
        show_default=True,
        help="Where to look. Repeatable.",
    ),
    _option(
        "--backend",
        type=click.Choice(["auto", "legacy", "nft"]),
        default="auto",
        show_default=True,
        help="legacy is x_tables (iptables-legacy), nft is nf_tables (iptables-nft, nft); "
        "auto is every one that holds tables in this network namespace.",
    ),
    _path_option(
        "--lock-file",
        "$TMPDIR/hypeman-test-network.lock",
        "Subnet lock of the test harness; only a sweep takes it. Where TMPDIR is not set it is /tmp.",
    ),
    _path_option(
        "--lease-file",
        "$TMPDIR/hypeman-test-network-leases.json",
        "Leases of the test harness; a missing or empty file means none.",
    ),
    _option(
        "--lock-timeout",
        metavar="SECONDS",
        type=float,
        default=30,
        show_default=True,
        help="How long a sweep waits for the subnet lock; 0: not at all.",
    ),
    _wait_option,
)

_format_option = _option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "github"]),
    default="text",
    show_default=True,
    help="text for people, json for programs, github for a workflow's log and step summary.",
)

_output_options = _together(
    _format_option,
    _option("--verbose", "-v", is_flag=True, help="List every orphaned rule, not only groups of them."),
)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EXIT_STATUSES,
)
@click.version_option(__version__, prog_name="netsweep")
def cli() -> None:
    """Find iptables rules that dead test jobs left behind, and remove them.

    A rule is an orphan when every bridge of ours that it names is gone: no interface of that name
    exists, and no running process holds a lease for it. netsweep removes orphans in one atomic step
    for each table and never touches any other rule.

    \b
    Examples:
      sudo netsweep list              what is left behind? (changes nothing)
      sudo netsweep list --all        why does the rest stay?
      sudo netsweep sweep --dry-run   what would a sweep do?
      sudo netsweep sweep             remove the orphans
      sudo netsweep doctor            what has this host, and could a sweep run?
      netsweep demo                   see it work in a throwaway network namespace

    Needs root, or CAP_NET_ADMIN (for x_tables two more, see the README). 'netsweep COMMAND --help' has
    the options; every option is also read from the environment.
    """


@cli.command("list")
@_where_options
@_option("--all", "all_rules", is_flag=True, help="Show the rules that stay too, each with the reason.")
@_option("--exit-code", is_flag=True, help=f"Exit {ORPHANS_FOUND} where there are orphans.")
@_output_options
def list_command(all_rules: bool, exit_code: bool, **settings: Any) -> int:
    """Show orphaned rules; change nothing.

    Takes no lock, creates no file, loads no kernel module. Needs CAP_NET_ADMIN, as reading the
    kernel's tables does.

    \b
    Examples:
      sudo netsweep list
      sudo netsweep list --all          also what stays, each rule with the reason
      sudo netsweep list --exit-code    for monitoring: 3 means there are orphans
      sudo netsweep list --format json | jq '.orphans | length'
      sudo netsweep list --chain filter/FORWARD --chain filter/INPUT
    """
    from netsweep.sweeper import find_orphans

    output = _Output(settings)
    if all_rules:
        output.verbose = True
    status = output.show("list", lambda: find_orphans(_options(settings), keep=all_rules))
    return ORPHANS_FOUND if status == 0 and exit_code and output.found else status


@cli.command("sweep")
@_where_options
@_option("--dry-run", is_flag=True, help="Only show what would be deleted; take no lock.")
@_option(
    "--journal",
    metavar="FILE",
    help="Write what is about to go to the new FILE first, so that 'netsweep restore FILE' can put it back. "
    "No file is made where nothing goes.",
)
@_option("--best-effort", is_flag=True, help="Report failures, but exit 0: for a post-step.")
@_output_options
def sweep_command(dry_run: bool, best_effort: bool, **settings: Any) -> int:
    """Delete orphaned rules.

    Looks without any lock first, and is done where there are no orphans. Otherwise it takes the
    subnet lock (and the xtables lock for x_tables), looks again, deletes in one atomic step for each
    table, and lets go: a few milliseconds for hundreds of rules. Safe to run at any time, beside
    running tests and beside itself.

    \b
    Examples:
      sudo netsweep sweep
      sudo netsweep sweep --dry-run -v
      sudo netsweep sweep --journal /root/swept   undo with: restore /root/swept
      sudo netsweep sweep --lock-timeout 0        give up if a test holds the lock
      sudo netsweep sweep --prefix hm --prefix vmt

    \b
    As the last step of a workflow, with if: always():
      sudo netsweep sweep --best-effort --format github
    """
    from netsweep.sweeper import find_orphans, sweep

    output = _Output(settings, best_effort=best_effort)
    if dry_run:
        return output.show("sweep", lambda: find_orphans(_options(settings), command="sweep", dry_run=True))
    return output.show("sweep", lambda: sweep(_options(settings)))


@cli.command("restore")
@click.argument("file", metavar="FILE")
@_wait_option
@_format_option
def restore_command(file: str, **settings: Any) -> int:
    """Put back the rules that 'sweep --journal FILE' deleted.

    Each rule goes back to its place between its old neighbours, whatever else came or went since.
    Where a rule no longer fits (its neighbours have gone, or it stands again already), nothing is
    changed. Rules of a bridge that is still gone are orphans, so the next sweep deletes them again.

    \b
    Examples:
      sudo netsweep sweep --journal /root/swept
      sudo netsweep restore /root/swept
    """
    from netsweep.sweeper import restore

    return _Output(settings).show("restore", lambda: restore(file, settings["wait"]))


@cli.command("doctor", short_help="Tell what this host has, and whether a sweep could run.")
@_where_options
@_option(
    "--format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="text for people, json for programs.",
)
def doctor_command(form: str, **settings: Any) -> int:
    """Tell what this host has, and whether a sweep could run here; change nothing.

    Which firewalls hold tables and how many rules, whether iptables belongs to one that is swept,
    capabilities, who holds the locks, the lease file, and versions. Takes the options of sweep and
    exits with 0 if it could run, else with the status it would end with.

    \b
    Examples:
      sudo netsweep doctor
      sudo netsweep doctor --format json | jq .locks.subnet.held_by
    """
    import json

    from netsweep.doctor import diagnose, text_lines

    found = diagnose(_options(settings))
    for error in found.errors:
        complain(error)
    click.echo(json.dumps(found.to_dict()) if form == "json" else "\n".join(text_lines(found)))
    return found.status


@cli.command("demo", short_help="See the main job done in a throwaway network namespace.")
def demo_command() -> int:
    """See the main job done, in a network namespace that is thrown away.

    Fills a new namespace with what a hundred dead test jobs leave behind, in x_tables and in
    nf_tables, beside bridges that are alive and rules of others, and runs list, sweep and list on it.
    The rules of this host are not touched. Works as root, and without where users may have
    namespaces of their own.

    \b
    Example:
      netsweep demo
    """
    from netsweep.demo import demo

    return demo()


def _options(settings: dict[str, Any]) -> Any:
    from netsweep.sweeper import Options

    return Options(**settings)


class _Output:
    """Shows a report in the form that was asked for."""

    def __init__(self, settings: dict[str, Any], *, best_effort: bool = False) -> None:
        self.form: str = settings.pop("form")
        self.verbose: bool = settings.pop("verbose", False)
        self.best_effort = best_effort
        self.found = False

    def show(self, command: str, run: Callable[[], Report]) -> int:
        """Run, show what came of it, and return the exit status."""
        status = 0
        try:
            report = run()
        except NetsweepError as error:
            status = error.exit_status
            complain(str(error))
            report = error.report or Report(command, errors=[str(error)])
        self.found = bool(report.orphans)
        for warning in report.warnings:
            complain(f"warning: {warning}")
        try:
            self._write(report)
        except NetsweepError as error:
            status = status or error.exit_status
            complain(str(error))
        return 0 if self.best_effort else status

    def _write(self, report: Report) -> None:
        try:
            if self.form == "json":
                write_json(report, sys.stdout)
            elif self.form == "github":
                lines = github_lines(report, verbose=self.verbose, best_effort=self.best_effort)
                sys.stdout.writelines(f"{line}\n" for line in lines)
            elif not report.errors or report.changed:
                sys.stdout.writelines(f"{line}\n" for line in text_lines(report, verbose=self.verbose))
            sys.stdout.flush()
        except OSError as error:
            # Whatever is still buffered would fail again when the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            done = f"; {report.deleted} rules were deleted" if report.changed else ""
            raise NetsweepError(f"cannot write the report: {error.strerror}{done}") from error
        if self.form == "github" and (path := os.environ.get("GITHUB_STEP_SUMMARY")):
            write_step_summary(report, path)


def complain(text: str) -> None:
    """One line on stderr, whatever the text holds."""
    # Where nobody can hear it, the report and the exit status still count.
    with contextlib.suppress(OSError):
        print(f"netsweep: {escape(text)}", file=sys.stderr, flush=True)


def run(arguments: list[str]) -> int:
    """Run the command line and return the exit status. Never lets a traceback out."""
    try:
        status = cli.main(arguments, prog_name="netsweep", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.UsageError as error:
        context = f" {error.ctx.info_name}" if error.ctx and error.ctx.parent else ""
        complain(f"{error.format_message().rstrip('.')} (see: netsweep{context} --help)")
        return 0 if _is_best_effort(arguments) else error.exit_code
    except click.ClickException as error:
        complain(error.format_message())
        return error.exit_code
    except NetsweepError as error:
        complain(str(error))
        return error.exit_status
    except ImportError as error:
        complain(f"{error}: netsweep is not installed as it should be; install it again")
        return 0 if _is_best_effort(arguments) else NoBackendError.exit_status
    except OSError as error:
        # Of click's own output; files and sockets are looked after where they are used.
        complain(f"cannot write to stdout: {error.strerror}")
        return 0 if _is_best_effort(arguments) else 1
    except MemoryError:
        complain("out of memory; tables are whole")
        return 1
    except Exception as error:
        # A bug of ours, or a system that behaves in a way nobody thought of.
        complain(f"unexpected {type(error).__name__}: {error}; please report this as a bug")
        return 0 if _is_best_effort(arguments) else 1


def _is_best_effort(arguments: list[str]) -> bool:
    """Whether a post-step asked never to fail, even where its other options cannot be read."""
    variable = os.environ.get("NETSWEEP_BEST_EFFORT", "").lower()
    return arguments[:1] == ["sweep"] and (
        "--best-effort" in arguments or variable in ("1", "true", "t", "yes", "y", "on")
    )
