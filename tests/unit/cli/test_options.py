"""Options: help, defaults, environment, and what reaches the jobs."""

from __future__ import annotations

import re
from typing import Any

import click
import pytest

from netsweep import profiles
from netsweep.cli import cli, run
from netsweep.profiles.options import Options
from tests.unit.cli.jobs import Jobs, jobs

__all__ = ["jobs"]

COMMANDS = ("list", "sweep", "teardown", "restore", "profiles", "doctor", "schema", "completion", "demo")

CHAINS = ("chain", "all-chains", "family", "include-negated", "settle")
WHERE = {
    "profile": "hypeman",
    "prefix": "hm",
    "name": None,
    "protect": "ha",
    "chain": "filter/FORWARD, nat/POSTROUTING",
    "all-chains": None,
    "family": "all",
    "include-negated": None,
    "settle": "0",
    "backend": "auto",
    "lock-file": "$TMPDIR/hypeman-test-network.lock",
    "lease-file": "$TMPDIR/hypeman-test-network-leases.json",
    "lock-timeout": "30",
    "wait": "5",
}
SWEEP = {"dry-run": None, "journal": None, "max-deletes": None, "best-effort": None}
BRIDGES = {"bridges": None, "min-age": "1h"}
LOOK = {name: value for name, value in WHERE.items() if name not in ("lock-file", "lock-timeout")}
WHOSE = {name: value for name, value in WHERE.items() if name not in CHAINS}
RESULT = {"format": "text", "quiet": None, "color": "auto"}
OUTPUT = {**RESULT, "verbose": None}
OPTIONS: dict[str, dict[str, str | None]] = {
    "list": {**LOOK, **BRIDGES, **OUTPUT, "metrics-file": None, "all": None, "exit-code": None},
    "sweep": {
        **WHERE,
        **BRIDGES,
        **OUTPUT,
        **SWEEP,
        "metrics-file": None,
    },
    "teardown": {**WHOSE, **OUTPUT, "subnet": None, "force": None},
    "restore": {**RESULT, "wait": "5", "dry-run": None, "force": None},
    "profiles": {},
    "doctor": {
        **WHERE,
        **BRIDGES,
        **SWEEP,
        "subnets": "10.200.0.0-10.249.255.255",
        "report": None,
        "format": "text",
    },
    "schema": {},
    "demo": {},
    "completion": {},
}
"""The options of each command and their defaults."""

VARIABLES = {("teardown", "force"): "NETSWEEP_TEARDOWN_FORCE"}
"""Variables that are not called as their options."""


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for command in OPTIONS.values():
        for name in command:
            monkeypatch.delenv(variable(name), raising=False)


def variable(name: str) -> str:
    return f"NETSWEEP_{name.replace('-', '_').upper()}"


def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str, columns: int) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert run(arguments) == 0
    said = capsys.readouterr()
    assert said.err == ""
    return said.out


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_there_under_both_names_with_examples_and_fits_100_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    arguments = [command] if command else []
    text = shown(monkeypatch, capsys, *arguments, "--help", columns=300)
    assert shown(monkeypatch, capsys, *arguments, "-h", columns=300) == text
    assert text.startswith(f"Usage: netsweep {command}".rstrip())
    assert re.search(rf"^  Examples?:\n(?: .*\n)*?    (?:sudo )?netsweep {command}", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 100
    assert text.isascii()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("columns", [80, 100])
def test_help_describes_every_option_with_default_and_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, columns: int
) -> None:
    text = shown(monkeypatch, capsys, command, "--help", columns=columns)
    described = dict(re.findall(r"^  (?:-\w, )?--([a-z-]+) *(.*(?:\n {10,}.*)*)", text, re.MULTILINE))
    assert described.keys() - {"help"} == OPTIONS[command].keys()
    for name, default in OPTIONS[command].items():
        words = re.sub(r"\s+", " ", described[name])
        assert VARIABLES.get((command, name), variable(name)) in words
        assert len(re.sub(r"\[.*?\]", "", words).split()) >= 4, f"--{name} is not described"
        if default is not None:
            assert f"default: {default}]" in words


@pytest.mark.parametrize(
    ("command", "columns"), [("", 80), *((command, columns) for command in COMMANDS for columns in (60, 80))]
)
def test_help_fits_and_breaks_lines_at_spaces_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, columns: int
) -> None:
    arguments = [command] if command else []
    lines = shown(monkeypatch, capsys, *arguments, "--help", columns=columns).splitlines()
    wide = shown(monkeypatch, capsys, *arguments, "--help", columns=100).split()
    assert max(map(len, lines)) <= max(columns, 80)  # examples are not wrapped
    assert [line for line in lines if line != line.rstrip() or line.startswith("]")] == []
    assert " ".join(lines).split() == wide


@pytest.mark.parametrize("name", ["--lock-file", "--lock-timeout"])
def test_a_list_takes_what_only_a_sweep_uses(jobs: Jobs, name: str) -> None:
    assert run(["list", name, "7"]) == run(["sweep", name, "7"]) == 0
    assert options_given(jobs) == options_given(jobs) != Options()


def test_the_defaults_in_the_help_are_those_of_the_profile() -> None:
    profile = profiles.load()
    command = cli.get_command(click.Context(cli), "list")
    assert command
    shown = {p.name: getattr(p, "help", "") for p in command.params}
    assert f"default: {', '.join(profile.prefixes)}]" in shown["prefix"]
    assert f"default: {profile.lease_file}]" in shown["lease_file"]


def test_the_main_help_tells_commands_and_exit_statuses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(monkeypatch, capsys, "--help", columns=80)
    statuses = text.split("Exit status:")[1]
    for status in (0, 1, 2, 3, 69, 75, 77):
        assert re.search(rf"^ +{status}  +\S", statuses, re.MULTILINE)
    for command in COMMANDS:
        (line,) = re.findall(rf"^  {command} .*$", text.split("Commands:")[1], re.MULTILINE)
        assert not line.endswith("..."), "cut off"


def test_a_wrong_command_is_told_where_to_look(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["swep"]) == 2
    said = capsys.readouterr().err
    assert "'swep'" in said
    assert "netsweep --help" in said
    assert run(["restore"]) == 2
    assert "netsweep restore --help" in capsys.readouterr().err


def options_given(jobs: Jobs) -> Options:
    (_, (options,), _) = jobs.calls.pop()
    assert isinstance(options, Options)
    return options


@pytest.mark.parametrize("command", ["list", "sweep"])
def test_options_that_are_not_given_are_as_the_profile_says(jobs: Jobs, command: str) -> None:
    assert run([command]) == 0
    assert options_given(jobs) == Options()


ARGUMENTS = {
    "profile": ["docker"],
    "name": ["mybr0", "vif*.[0-9]"],
    "family": ["ipv6"],
    "settle": ["2.5"],
    "max-deletes": ["7"],
    "prefix": ["vm", "br-"],
    "protect": ["br-2f", "x"],
    "chain": ["nat/POSTROUTING", "filter/INPUT"],
    "backend": ["nft"],
    "lock-file": ["/tmp/a lock"],
    "lease-file": ["/tmp/some leases"],
    "lock-timeout": ["0"],
    "wait": ["1.5"],
    "min-age": ["1h30m"],
    "journal": ["/tmp/a journal"],
}


@pytest.mark.parametrize("source", ["command line", "environment"])
def test_every_option_can_come_from_the_command_line_and_the_environment(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    arguments = ["sweep"]
    for name, values in ARGUMENTS.items():
        if source == "environment":
            monkeypatch.setenv(variable(name), " ".join(values))
        else:
            arguments += [word for value in values for word in (f"--{name}", value)]
    assert run(arguments) == 0
    given: dict[str, Any] = {
        name.replace("-", "_"): values if len(values) > 1 else values[0] for name, values in ARGUMENTS.items()
    }
    given.update(lock_timeout=0.0, wait=1.5, settle=2.5, max_deletes=7)
    assert options_given(jobs) == Options(**given)


def test_flags_can_come_from_the_environment(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("all", "dry-run", "force"):
        monkeypatch.setenv(variable(name), "1")
    assert (run(["list"]), run(["sweep"]), run(["restore", "/tmp/journal"])) == (0, 0, 0)
    assert [(name, named) for name, _, named in jobs.calls] == [
        ("find_orphans", {"keep": True}),
        ("find_orphans", {"command": "sweep", "dry_run": True}),
        ("restore", {"force": True, "dry_run": True}),
    ]
    assert jobs.calls[-1][1] == ("/tmp/journal", None)


def test_what_is_set_for_a_restore_does_not_force_a_teardown(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETSWEEP_FORCE", "1")
    assert run(["teardown", "hm1"]) == 0
    monkeypatch.setenv("NETSWEEP_TEARDOWN_FORCE", "1")
    assert run(["teardown", "hm1"]) == 0
    assert [named["force"] for _, _, named in jobs.calls] == [False, True]


@pytest.mark.parametrize("value", ["1", "true", "yes", "Yes please"])
def test_a_teardown_does_not_run_where_a_dry_run_was_asked_for(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    monkeypatch.setenv("NETSWEEP_DRY_RUN", value)
    assert run(["teardown", "hm1"]) == 2
    assert "NETSWEEP_DRY_RUN" in capsys.readouterr().err
    assert jobs.calls == []
    monkeypatch.setenv("NETSWEEP_DRY_RUN", "no")
    assert run(["teardown", "hm1"]) == 0


@pytest.mark.parametrize("value", ["ha,kube", "ha kube", "ha, kube", " ha ,\tkube,\n", ",ha,,kube,"])
@pytest.mark.parametrize("name", ["protect", "prefix", "name"])
def test_several_values_in_a_variable_are_separated_by_commas_or_blanks(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """As one name it would protect nothing."""
    monkeypatch.setenv(variable(name), value)
    protect = [] if name == "protect" else ["--protect", "xx"]
    assert run(["sweep", *protect]) == 0
    given: dict[str, Any] = {**({"protect": "xx"} if protect else {}), name: ["ha", "kube"]}
    assert options_given(jobs) == Options(**given)


def test_chains_in_a_variable_are_separated_by_commas_or_blanks(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETSWEEP_CHAIN", "raw/*,inet:firewalld/* nat/POSTROUTING")
    assert run(["sweep"]) == 0
    assert options_given(jobs).chains == ("raw/*", "inet:firewalld/*", "nat/POSTROUTING")


@pytest.mark.parametrize("option", ["--protect", "--prefix", "--name"])
def test_a_list_with_commas_is_no_name(jobs: Jobs, capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert run(["sweep", option, "hmx,hmy"]) == 2
    assert f"{option} once for each" in capsys.readouterr().err
    assert jobs.calls == []


def test_of_two_options_that_exclude_each_other_the_command_line_counts(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETSWEEP_CHAIN", "filter/INPUT")
    assert run(["sweep", "--all-chains"]) == 0
    assert options_given(jobs) == Options(all_chains=True)
    monkeypatch.setenv("NETSWEEP_ALL_CHAINS", "1")
    assert run(["sweep", "--chain", "filter/OUTPUT"]) == 0
    assert options_given(jobs) == Options(chain="filter/OUTPUT")
    # In one place they contradict each other.
    assert run(["sweep"]) == 2
    assert run(["sweep", "--chain", "filter/OUTPUT", "--all-chains"]) == 2
    assert jobs.calls == []


@pytest.mark.parametrize("source", ["command line", "environment"])
@pytest.mark.parametrize("command", ["list", "sweep"])
def test_flags_that_say_where_to_look_reach_the_job(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, source: str, command: str
) -> None:
    for name in ("all-chains", "include-negated", "bridges"):
        if source == "environment":
            monkeypatch.setenv(variable(name), "1")
            assert run([command]) == 0
            monkeypatch.delenv(variable(name))
        else:
            assert run([command, f"--{name}"]) == 0
        given: dict[str, Any] = {name.replace("-", "_"): True}
        assert options_given(jobs) == Options(**given) != Options()


@pytest.mark.parametrize("blank", [" ", "\t", " \n "], ids=repr)
@pytest.mark.parametrize(
    "name",
    [
        *ARGUMENTS,
        "format",
        "best-effort",
        "verbose",
        "quiet",
        "color",
        "dry-run",
        "all-chains",
        "include-negated",
        "bridges",
    ],
)
def test_a_blank_variable_is_wrong_usage(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, blank: str
) -> None:
    monkeypatch.setenv(variable(name), blank)
    assert run(["sweep", *([] if name == "best-effort" else ["--best-effort"])]) == 2
    assert f"{variable(name)} is blank" in capsys.readouterr().err
    assert jobs.calls == []


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_empty_variable_counts_as_unset_and_an_empty_option_is_wrong_usage(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(variable(name), "")
    assert run(["sweep"]) == 0
    assert options_given(jobs) == Options()
    assert run(["sweep", f"--{name}", ""]) == 2


def test_a_blank_variable_does_not_matter_where_the_option_is_given(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETSWEEP_PROTECT", " ")
    assert run(["sweep", "--protect", "xy"]) == 0
    assert options_given(jobs).protected == ("xy",)


# Teardown.


def test_a_teardown_gets_its_names_and_options(jobs: Jobs) -> None:
    arguments = ["hm1", "hm2", "--force", "--lock-timeout", "0", "--profile", "docker", "--protect", "xx"]
    assert run(["teardown", *arguments]) == 0
    ((name, (options, names, subnet), named),) = jobs.calls
    assert (name, names, subnet, named) == ("teardown", ("hm1", "hm2"), None, {"force": True})
    assert options == Options(lock_timeout=0.0, profile="docker", protect="xx")


def test_the_subnet_of_a_teardown_may_come_from_the_environment(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(["teardown", "hm1", "--subnet", "10.200.1.0/24"]) == 0
    monkeypatch.setenv("NETSWEEP_SUBNET", "10.200.2.0/24")
    assert run(["teardown", "hm1"]) == 0
    assert [call[1][1:] for call in jobs.calls] == [(("hm1",), "10.200.1.0/24"), (("hm1",), "10.200.2.0/24")]
    assert jobs.calls[0][1][0] == Options()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Missing argument 'NAME...'"),
        (["--force"], "Missing argument 'NAME...'"),
        (["hm1", "--chain", "filter/INPUT"], "No such option"),
        (["hm1", "--all-chains"], "No such option"),
        (["hm1", "--settle", "1"], "No such option"),
        (["hm1", "--dry-run"], "No such option"),
        (["hm1", "--journal", "x"], "No such option"),
        (["hm1", "--subnet"], "requires an argument"),
        (["hm1", "--format", "xml"], "'xml'"),
        (["hm1", "--profile", "nosuch"], "there is no profile 'nosuch'"),
        (["hm1", "--wait", "-1"], "--wait has to be 0 seconds or more"),
    ],
)
def test_wrong_usage_of_a_teardown(
    jobs: Jobs, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert run(["teardown", *arguments]) == 2
    assert says in capsys.readouterr().err
    assert jobs.calls == []


def test_a_blank_subnet_is_wrong_usage(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not as if none had been given."""
    monkeypatch.setenv("NETSWEEP_SUBNET", " ")
    assert run(["teardown", "hm1"]) == 2
    assert "NETSWEEP_SUBNET is blank" in capsys.readouterr().err
    assert jobs.calls == []
