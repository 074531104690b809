"""The action and the workflow that uses it, run step by step as GitHub's runner runs them.

The runner is not here. Its part is to evaluate the expressions, to run each script with the shell and the variables
that it documents, and to read the files that the script writes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import yaml

import netsweep
from tests.namespace import NOBODY, Namespace, flocked, leaks, of_bridge, unchanged, write_leases

ROOT = Path(__file__).parents[2]
ACTION = ROOT / ".github" / "actions" / "sweep"

SOURCE = Path(netsweep.__file__).parent.parent

Context = Mapping[str, Any]

NOTHING: Mapping[str, str] = MappingProxyType({})


class Done(NamedTuple):
    """What became of an action or a job: its steps' log, exit status, outputs and summary."""

    log: str
    status: int
    outputs: dict[str, str]
    summary: str

    def annotations(self) -> list[str]:
        return re.findall(r"^::(?:notice|warning|error) .*", self.log, re.MULTILINE)


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def value(expression: str, context: Context) -> Any:
    """What the few expressions are that the action and the workflow have."""
    if expression == "always()":
        return True
    if match := re.fullmatch(r"(.*) == ''", expression):
        return value(match[1], context) == ""
    if match := re.fullmatch(r"toJSON\((.*)\)", expression):
        return json.dumps(value(match[1], context))
    found: Any = context
    for name in expression.split("."):
        found = found.get(name, {})
    return found or ""


def filled_in(text: Any, context: Context) -> str:
    """``text`` with its expressions evaluated; the runner takes true and numbers for text, too."""
    text = json.dumps(text) if isinstance(text, bool) else str(text)
    return re.sub(r"\$\{\{ *(.*?) *\}\}", lambda match: str(value(match[1], context)), text)


class Runner:
    """A self-hosted runner in a network namespace, with an account that may use sudo, or as root.

    Programs on it find directories of its own at /run, /opt and /usr/local/sbin, and see that all packages are
    installed. Lock and lease file are in TMPDIR.
    """

    def __init__(self, ns: Namespace, process: subprocess.Popen[str], user: str) -> None:
        self.ns = ns
        self.user = user
        self.path = "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
        self.variables = {"TMPDIR": str(ns.directory), "GITHUB_ACTIONS": "true", "CI": "true"}
        self._process = process
        self._steps = 0
        self.netsweep = ns.directory / "netsweep"
        program(self.netsweep, f'PYTHONPATH="{SOURCE}" exec "{sys.executable}" -m netsweep "$@"')

    def command(self, *arguments: str) -> list[str]:
        """The command line that runs ``arguments`` on the runner, as root."""
        return ["nsenter", f"--target={self._process.pid}", "--mount", "--net", *arguments]

    def action(self, inputs: Mapping[str, Any] = NOTHING, path: Path = ACTION) -> Done:
        """Use an action."""
        action = load(path / "action.yml")
        unknown = inputs.keys() - action["inputs"].keys()
        assert not unknown, "the runner warns of these only"
        given = {name: inputs.get(name, each["default"]) for name, each in action["inputs"].items()}
        context = {"inputs": {name: filled_in(each, {}) for name, each in given.items()}}
        done = self.steps(action["runs"]["steps"], context, {"GITHUB_ACTION_PATH": str(path)})
        outputs = {name: filled_in(each["value"], context) for name, each in action["outputs"].items()}
        return done._replace(outputs=outputs)

    def steps(self, steps: Sequence[Any], context: dict[str, Any], variables: Mapping[str, str] = NOTHING) -> Done:
        """Run steps; their outputs are added to ``context``."""
        results = context.setdefault("steps", {})
        log, summary, status = "", "", 0
        for step in steps:
            condition = step.get("if")
            if (status and condition != "always()") or (condition and not value(condition, context)):
                continue
            if "uses" in step and not step["uses"].startswith("./"):
                continue  # the checkout
            if "uses" in step:
                inputs = {name: filled_in(each, context) for name, each in step.get("with", {}).items()}
                done = self.action(inputs, ROOT / step["uses"])
            else:
                environment = {name: filled_in(each, context) for name, each in step.get("env", {}).items()}
                assert "${{" not in step["run"], "what an expression gives would be part of the script"
                done = self.script(step["run"], {**variables, **environment})
            if "id" in step:
                results[step["id"]] = {"outputs": done.outputs}
            log, summary = log + done.log, summary + done.summary
            status = status or (0 if step.get("continue-on-error") else done.status)
        return Done(log, status, {}, summary)

    def script(self, script: str, variables: Mapping[str, str]) -> Done:
        """Run the script of one step with "shell: bash"."""
        self._steps += 1
        directory = self.ns.directory / f"step-{self._steps}"
        directory.mkdir()
        file, output, summary = (directory / name for name in ("script.sh", "output", "summary"))
        file.write_text(script)
        owner = NOBODY if self.user == "user" else 0
        for each in (output, summary):
            each.touch()
            os.chown(each, owner, owner)
        environment = {"PATH": self.path, **self.variables, **variables}
        environment |= {"GITHUB_OUTPUT": str(output), "GITHUB_STEP_SUMMARY": str(summary)}
        account = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"] if owner else []
        done = subprocess.run(
            self.command(*account, "bash", "--noprofile", "--norc", "-e", "-o", "pipefail", str(file)),
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            cwd=ROOT if owner == 0 else "/",
            timeout=120,
        )
        assert (output.stat().st_uid, summary.stat().st_uid) == (owner, owner)
        lines = output.read_text().splitlines()
        outputs = dict(line.split("=", 1) for line in lines)
        assert len(outputs) == len(lines), "an output is written twice"
        return Done(done.stdout, done.returncode, outputs, summary.read_text())


def program(path: Path, script: str) -> None:
    """Write a program."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@contextmanager
def runner_in(ns: Namespace, user: str) -> Iterator[Runner]:
    """A runner, until the end of the block."""
    fakes = ns.directory / "fakes"
    fakes.mkdir()
    program(fakes / "dpkg-query", "echo installed")
    (fakes / "sudoers").write_text("nobody ALL=(ALL:ALL) NOPASSWD: ALL\n")
    (fakes / "sudoers").chmod(0o440)
    mounts = (
        "for each in /opt /run /usr/local/sbin /etc/sudoers.d; do mount -t tmpfs -o mode=755 tmpfs $each; done; "
        "mkdir /run/netns; "
        f"install -m 440 {fakes}/sudoers /etc/sudoers.d/runner; "
        f"mount --bind {fakes}/dpkg-query /usr/bin/dpkg-query; "
        "echo ready; exec cat"
    )
    with subprocess.Popen(
        ns.command("unshare", "--mount", "--propagation", "private", "sh", "-ec", mounts),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        yield Runner(ns, process, user)
        assert process.stdin
        process.stdin.close()


@pytest.fixture(params=["root", "user"])
def runner(public_ns: Namespace, request: pytest.FixtureRequest) -> Iterator[Runner]:
    with runner_in(public_ns, request.param) as made:
        yield made


@pytest.fixture
def root_runner(public_ns: Namespace) -> Iterator[Runner]:
    with runner_in(public_ns, "root") as made:
        yield made


def test_the_action_sweeps_and_says_what_it_did(runner: Runner, flavour: str) -> None:
    ns = runner.ns
    ns.restore(flavour, leaks(["hmdead", "hm1", "hm1ea5ed"]))
    ns.add_bridges("hm1")
    write_leases(ns, {"hm1ea5ed": os.getpid()})  # in TMPDIR, which sudo does not pass on
    inputs = {"netsweep": runner.netsweep}
    looked = runner.action({**inputs, "dry-run": True})
    numbers = {"orphans": "3", "status": "0", "netsweep": str(runner.netsweep)}
    assert (looked.status, looked.outputs) == (0, {"deleted": "0", "changed": "false", **numbers})
    assert of_bridge(ns, flavour, "hmdead") == 3
    swept = runner.action(inputs)
    assert (swept.status, swept.outputs) == (0, {"deleted": "3", "changed": "true", **numbers})
    assert [of_bridge(ns, flavour, name) for name in ("hmdead", "hm1", "hm1ea5ed")] == [0, 3, 3]
    (annotation,) = swept.annotations()
    assert annotation.startswith("::notice title=netsweep::Deleted 3 orphaned rules of 1 bridge")
    assert f"| hmdead | gone | 3 | {flavour} filter/FORWARD: 2, {flavour} nat/POSTROUTING: 1 |\n" in swept.summary
    assert "| subnet | " in swept.summary
    assert ns.lock_file.exists()
    again = runner.action(inputs)
    assert (again.status, again.outputs["status"], again.outputs["deleted"]) == (0, "0", "0")
    assert again.annotations() == []
    assert "Nothing to sweep" in again.log


def test_a_sweep_that_fails_fails_the_job_only_where_that_is_asked_for(runner: Runner) -> None:
    ns = runner.ns
    ns.restore("nft", leaks(["hmdead"]))
    inputs = {"netsweep": runner.netsweep, "lock-timeout": 0}
    with unchanged(ns), flocked(ns.lock_file):
        tolerated = runner.action(inputs)
        failed = runner.action({**inputs, "best-effort": False})
    assert (tolerated.status, failed.status) == (0, 75)
    for done, level in ((tolerated, "warning"), (failed, "error")):
        (annotation,) = done.annotations()
        assert annotation.startswith(f"::{level} title=netsweep::")
        assert (done.outputs["status"], done.outputs["changed"]) == ("75", "false")
        assert "### netsweep" in done.summary


def recorder(runner: Runner) -> Path:
    """A netsweep that notes its arguments and variables, a line each, and does nothing."""
    path = runner.ns.directory / "recorder"
    program(
        path,
        f"for each; do echo \"$each\"; done >'{path}.arguments'; env >'{path}.variables'; "
        'printf "deleted=0\\norphans=0\\nchanged=false\\nstatus=0\\n" >>"$GITHUB_OUTPUT"',
    )
    return path


ALWAYS = ["sweep", "--format=github", "--best-effort"]


@pytest.mark.parametrize(
    ("inputs", "arguments"),
    [
        ({"bridges": True, "best-effort": False}, ["--bridges"]),
        ({"profile": "docker", "max-deletes": 7}, ["--profile=docker", "--max-deletes=7"]),
        ({"prefix": "hm vmt,x\ny", "lock-timeout": 2.5}, [f"--prefix={each}" for each in ("hm", "vmt", "x", "y")]),
        (
            {"journal": "/a b", "lock-file": "/l", "lease-file": "/$(touch x)"},
            ["--journal=/a b", "--lock-file=/l", "--lease-file=/$(touch x)"],
        ),
        (
            {"profile": "docker", "arguments": "--name 'virbr[0-9]*'  --chain raw/*\n--min-age \"1 h\" '' ;`id` $HOME"},
            ["--profile=docker", "--name", "virbr[0-9]*", "--chain", "raw/*", "--min-age", "1 h", "", ";`id`", "$HOME"],
        ),
        ({"profile": "-v\n::error::x"}, ["--profile=-v", "::error::x"]),
    ],
    ids=str,
)
def test_inputs_are_options_of_a_sweep_and_nothing_else(
    root_runner: Runner, inputs: dict[str, Any], arguments: list[str]
) -> None:
    done = root_runner.action({"netsweep": recorder(root_runner), **inputs})
    assert (done.status, done.outputs["status"]) == (0, "0")
    given = (root_runner.ns.directory / "recorder.arguments").read_text().splitlines()
    options = [each for each in given if not each.startswith((f"--lock-file={root_runner.ns.directory}", "--format"))]
    options = [each for each in options if not each.startswith(f"--lease-file={root_runner.ns.directory}")]
    assert given[:2] == ALWAYS[:2]
    assert ("--best-effort" in options) == inputs.get("best-effort", True)
    assert options[1 + ("--best-effort" in options) :][: len(arguments)] == arguments
    assert not done.annotations()


def test_the_lock_and_lease_file_are_those_of_the_jobs_tmpdir(root_runner: Runner) -> None:
    path = recorder(root_runner)
    files = ["hypeman-test-network.lock", "hypeman-test-network-leases.json"]
    for inputs, variables, expected in (
        ({}, {}, [f"{root_runner.ns.directory}/{name}" for name in files]),
        ({"profile": "hypeman"}, {}, [f"{root_runner.ns.directory}/{name}" for name in files]),
        ({"lock-file": "/mine"}, {}, ["/mine", f"{root_runner.ns.directory}/{files[1]}"]),
        ({"profile": "docker"}, {}, []),
        ({}, {"TMPDIR": ""}, []),
    ):
        root_runner.variables |= variables
        assert root_runner.action({"netsweep": path, **inputs}).status == 0
        given = path.with_suffix(".arguments").read_text().splitlines()
        assert [each.split("=")[1] for each in given if re.match("--l(ock|ease)-file=", each)] == expected


def test_sudo_passes_on_three_variables_and_no_setting(public_ns: Namespace) -> None:
    with runner_in(public_ns, "user") as runner:
        path = recorder(runner)
        runner.variables |= {"NETSWEEP_PREFIX": "eth", "GITHUB_TOKEN": "x", "PYTHONPATH": "/nowhere", "SECRET": "x"}
        assert runner.action({"netsweep": path}).status == 0
        names = {line.partition("=")[0] for line in path.with_suffix(".variables").read_text().splitlines()}
    assert {name for name in names if name.startswith("GITHUB_")} == {
        "GITHUB_ACTIONS",
        "GITHUB_OUTPUT",
        "GITHUB_STEP_SUMMARY",
    }
    assert not names & {"NETSWEEP_PREFIX", "PYTHONPATH", "SECRET", "TMPDIR"}


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"bridges": "yes"}, "the input bridges has to be true or false"),
        ({"dry-run": "True\n::error::x"}, "the input dry-run has to be true or false"),
        ({"best-effort": "1"}, "the input best-effort has to be true or false"),
        ({"arguments": "--name 'x"}, "the input arguments has a quote without its match"),
        ({"arguments": "--nosuch"}, "No such option '--nosuch'"),
        ({"lock-timeout": "soon"}, "'soon' is not a valid float"),
        ({"prefix": "ham"}, "prefix 'ham' is protected by 'ha'"),
    ],
    ids=str,
)
def test_wrong_inputs_fail_the_job_whatever_its_best_effort(
    root_runner: Runner, inputs: dict[str, Any], says: str
) -> None:
    with unchanged(root_runner.ns):
        done = root_runner.action({"netsweep": root_runner.netsweep, **inputs})
    assert (done.status, done.outputs["status"]) == (2, "2")
    (annotation,) = done.annotations()
    assert annotation.startswith("::error title=netsweep::")
    assert says in annotation


@pytest.mark.parametrize(
    ("script", "status"),
    [(None, 127), ("exit 0", 1), ("exit 69", 69), ("kill -TERM $$", 143)],
    ids=["missing", "silent", "broken", "stopped"],
)
def test_a_netsweep_that_ends_without_a_report_is_no_all_clear(
    root_runner: Runner, script: str | None, status: int
) -> None:
    path = root_runner.ns.directory / "other"
    if script:
        program(path, script)
    tolerated = root_runner.action({"netsweep": path})
    failed = root_runner.action({"netsweep": path, "best-effort": False})
    assert (tolerated.status, failed.status) == (0, status)
    for done, level in ((tolerated, "warning"), (failed, "error")):
        assert (done.outputs["status"], done.outputs["changed"]) == (str(status), "false")
        assert done.annotations() == [f"::{level} title=netsweep::netsweep ended without a report: see the log"]


def test_a_path_cannot_set_outputs(root_runner: Runner) -> None:
    done = root_runner.action({"netsweep": "/nowhere\nstatus=0\ndeleted=9"})
    assert (done.outputs["status"], done.outputs["deleted"]) == ("127", "0")


class Installer:
    """What the action installs netsweep with, on a runner: a Python that notes what it makes."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.made = runner.ns.directory / "made"
        self.python = runner.ns.directory / "python"
        self.made.touch()
        self.works()

    def works(self) -> None:
        # $4 is the directory of the virtual environment; of pip the source is the last argument.
        netsweep = f"'#!/bin/sh' 'exec \"{self.runner.netsweep}\" \"$@\"'"
        pip = (
            f"for each; do :; done; [ -f $each/pyproject.toml ] && [ ! -e $each/.git ] || exit 5; echo >>{self.made}; "
            f"printf '%s\\n' {netsweep} >$directory/netsweep; chmod 755 $directory/netsweep"
        )
        program(
            self.python,
            f'[ "$*" = "-m venv --system-site-packages $4" ] || exit 5\nmkdir -p $4/bin\ncat >$4/bin/pip <<\'END\'\n'
            f"#!/bin/sh\ndirectory=${{0%/*}}\n{pip}\nEND\nchmod 755 $4/bin/pip",
        )

    def breaks(self) -> None:
        program(self.python, "echo 'no network'; exit 1")

    def times(self) -> int:
        """How many times netsweep was installed."""
        return len(self.made.read_text().splitlines())


@pytest.fixture
def installer(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> Installer:
    made = Installer(runner)

    def script(script: str, variables: Mapping[str, str]) -> Done:
        # A service that runs jobs may leave its umask open.
        return run("umask 000\n" + script.replace("/usr/bin/python3", str(made.python)), variables)

    run = runner.script
    monkeypatch.setattr(runner, "script", script)
    return made


def test_netsweep_is_installed_once_for_each_version(installer: Installer) -> None:
    runner = installer.runner
    first = runner.action()
    assert (first.status, first.outputs["status"]) == (0, "0"), first.log
    path = first.outputs["netsweep"]
    assert re.fullmatch(r"/opt/netsweep-action/[0-9a-f]{16}/bin/netsweep", path)
    found = subprocess.run(
        runner.command("stat", "--format=%u %a", "/opt/netsweep-action", path),
        check=True,
        capture_output=True,
        text=True,
    )
    assert found.stdout == "0 755\n0 755\n"
    assert installer.times() == 1
    installer.breaks()
    second = runner.action({"best-effort": False})
    assert (second.status, second.outputs["netsweep"]) == (0, path)
    assert "Install" not in second.log


def test_jobs_that_come_at_once_install_once(installer: Installer) -> None:
    action = load(ACTION / "action.yml")
    (install,) = [step for step in action["runs"]["steps"] if step["name"] == "Install netsweep"]
    variables = {"GITHUB_ACTION_PATH": str(ACTION)}
    script = installer.runner.ns.directory / "install.sh"
    script.write_text(install["run"].replace("/usr/bin/python3", str(installer.python)))
    with ThreadPoolExecutor() as pool:
        started = [
            pool.submit(
                subprocess.run,
                installer.runner.command("bash", "-eo", "pipefail", str(script)),
                check=True,
                env={"PATH": installer.runner.path, "GITHUB_OUTPUT": f"{script}.{number}", **variables},
            )
            for number in range(4)
        ]
        for each in started:
            each.result(60)
    assert installer.times() == 1
    assert len({Path(f"{script}.{number}").read_text() for number in range(4)}) == 1


def test_an_installation_that_failed_is_tried_again_and_is_a_failure_of_the_sweep(installer: Installer) -> None:
    runner = installer.runner
    installer.breaks()
    tolerated = runner.action()
    failed = runner.action({"best-effort": False})
    assert (tolerated.status, failed.status) == (0, 69)
    for done, level in ((tolerated, "warning"), (failed, "error")):
        assert "no network" in done.log
        assert (done.outputs["status"], done.outputs["netsweep"]) == ("69", "")
        (annotation,) = done.annotations()
        assert annotation.startswith(f"::{level} title=netsweep::netsweep could not be installed")
    installer.works()
    assert runner.action({"best-effort": False}).status == 0
    assert installer.times() == 1


def test_the_workflow_of_this_repository_does_what_it_says(installer: Installer) -> None:
    (job,) = load(ROOT / ".github" / "workflows" / "post-step.yml")["jobs"].values()
    done = installer.runner.steps(job["steps"], {})
    assert done.status == 0, done.log
    assert [annotation.split(" in ")[0] for annotation in done.annotations()] == [
        "::notice title=netsweep::Deleted 6 orphaned rules of 2 bridges"
    ]
    assert done.summary.count("### netsweep\n") == 3
