"""The recipes of docs/recipes, each run as its caller runs it: by a user with sudo, by systemd, by cron, by Ansible.

The servers of GitHub, GitLab, Jenkins and Buildkite are not here. Their part is to take the script out of the recipe,
and to run it with the shell, the options and the variables that they document.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType

import pytest
import yaml

import netsweep
from tests.namespace import FLAVOURS, Namespace, flocked, leaks, new_namespace, unchanged, without, write_leases

RECIPES = Path(__file__).parents[2] / "docs" / "recipes"

CI_USER = 61234
"""The UID of the user "ci" of the sudoers file."""

PLACES = [(flavour, family) for flavour in FLAVOURS for family in ("ipv4", "ipv6")]

MINIMAL = MappingProxyType({"PATH": "/usr/bin:/bin"})

DEAD = 2**22 - 1
"""The largest PID that there may be; no process has it."""

NO_NET_ADMIN = ("--bounding-set=-net_admin",)
"""What setpriv takes away from everybody, root included."""


class Host:
    """A namespace that programs take for a whole host: netsweep is installed on it, and the user "ci" may use sudo.

    They find directories of the test's own at /tmp, /run, /opt, /usr/local/sbin and /etc/sudoers.d: neither the locks
    nor the leases of the machine are theirs. What is set up from outside is set up through ``ns``.
    """

    def __init__(self, name: str, directory: Path) -> None:
        self.tmp, self.run_directory, self.opt, self.sbin, self.sudoers = made = [
            directory / each for each in ("tmp", "run", "opt", "sbin", "sudoers.d")
        ]
        for path in made:
            path.mkdir()
            path.chmod(0o755)
        self.tmp.chmod(0o1777)
        self.ns = Namespace(name, self.tmp)
        install(self.sudoers / "netsweep", (RECIPES / "sudoers").read_text(), 0o440)
        accounts = f"{Path('/etc/passwd').read_text()}ci:*:{CI_USER}:{CI_USER}::/nonexistent:/bin/sh\n"
        install(directory / "passwd", accounts, 0o644)
        # Python and netsweep may be where a service with ProtectHome does not see them.
        parts = {
            "python": Path(sys.base_prefix),
            "site": Path(sysconfig.get_path("purelib")),
            "source": Path(netsweep.__file__).parent.parent,
        }
        for part in ("bin", *parts):
            (self.opt / "netsweep" / part).mkdir(parents=True)
        python = f"/opt/netsweep/python/bin/python{sys.version_info.major}.{sys.version_info.minor}"
        variables = "PYTHONPATH=/opt/netsweep/source:/opt/netsweep/site LD_LIBRARY_PATH=/opt/netsweep/python/lib"
        install(self.opt / "netsweep/bin/python", f'#!/bin/sh\n{variables} exec {python} "$@"\n')
        install(self.opt / "netsweep/bin/netsweep", '#!/bin/sh\nexec /opt/netsweep/bin/python -m netsweep "$@"\n')
        (self.sbin / "netsweep").symlink_to("/opt/netsweep/bin/netsweep")
        binds = {source: self.opt / "netsweep" / part for part, source in parts.items()} | {
            directory / "passwd": Path("/etc/passwd"),
            self.sudoers: Path("/etc/sudoers.d"),
            self.sbin: Path("/usr/local/sbin"),
            self.run_directory: Path("/run"),
            self.opt: Path("/opt"),
            self.tmp: Path("/tmp"),
        }
        mounts = [f"mount --rbind '{outside}' '{inside}'" for outside, inside in binds.items()]
        script = " && ".join([*mounts, 'exec "$@"'])
        command = self.ns.command("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh")
        self.entrance = directory / "enter"
        """A program that runs its arguments on this host."""
        install(self.entrance, f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')

    def run(self, *arguments: str, environment: Mapping[str, str] = MINIMAL) -> subprocess.CompletedProcess[str]:
        """Run a program here as root, with ``environment`` only, and without a terminal."""
        return self._run(("env", "-i", *assignments(environment), *arguments))

    def run_as_ci(
        self, *arguments: str, environment: Mapping[str, str] = MINIMAL, less: Sequence[str] = ()
    ) -> subprocess.CompletedProcess[str]:
        """The same as the user "ci"; ``less`` are options of setpriv."""
        user = ("setpriv", f"--reuid={CI_USER}", f"--regid={CI_USER}", "--clear-groups", "--inh-caps=-all", *less)
        return self._run((*user, "env", "-i", *assignments(environment), *arguments))

    def _run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            (self.entrance, *command),
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,  # the log of a job holds both
            text=True,
            timeout=60,
            start_new_session=True,
        )

    def leak(self, *bridges: str) -> None:
        """Add the rules of ``bridges``: three for each, in each flavour and family of iptables."""
        for place in PLACES:
            self.ns.restore(place[0], leaks(bridges), place[1])

    def rules(self) -> list[str]:
        return [line for place in PLACES for line in self.ns.save(*place)]

    @contextmanager
    def swept(self) -> Iterator[None]:
        """Check that rules of a dead job go meanwhile, and that those of a live and of a leased bridge stay."""
        self.ns.add_bridges("hm2")
        write_leases(self.ns, {"hm1dead": DEAD, "hm3": os.getpid()})
        os.chown(self.ns.lease_file, CI_USER, CI_USER)
        self.leak("hm1dead", "hm2", "hm3")
        before = self.rules()
        yield
        assert self.rules() == without(before, "hm1dead")
        assert len(before) - len(self.rules()) == 12


def install(path: Path, content: str, mode: int = 0o755) -> None:
    path.write_text(content)
    path.chmod(mode)


def assignments(environment: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in environment.items()]


@pytest.fixture
def host(tmp_path: Path, ns: Namespace) -> Host:
    return Host(ns.name, tmp_path)


# GitHub, GitLab, Jenkins, Buildkite


def of_github() -> str:
    return (RECIPES / "github-runner-hook.sh").read_text()


def of_gitlab() -> str:
    jobs = yaml.safe_load((RECIPES / "gitlab-ci.yml").read_text())
    assert jobs["integration-tests"]["extends"] == ".netsweep"
    return "\n".join(jobs[".netsweep"]["after_script"])


def of_jenkins() -> str:
    found = re.search(r"\bpost \{.*\bcleanup \{.*?\bsh '''(.*?)'''", (RECIPES / "Jenkinsfile").read_text(), re.DOTALL)
    assert found
    # In Groovy a backslash at the end of a line joins it with the next one, as it does in the shell.
    script = found[1].replace("\\\n", "")
    assert "\\" not in script
    return script


def of_buildkite() -> str:
    return (RECIPES / "buildkite-pre-exit").read_text()


CI = {
    "github": (of_github, ("bash", "-e"), {"GITHUB_ACTIONS": "true", "RUNNER_TEMP": "/tmp/_temp"}),
    "gitlab": (of_gitlab, ("bash", "-eo", "pipefail"), {"GITLAB_CI": "true"}),
    "jenkins": (of_jenkins, ("sh", "-xe"), {"JENKINS_URL": "http://localhost/", "WORKSPACE": "/tmp"}),
    # The agent's own script sources the hook.
    "buildkite": (of_buildkite, ("bash", "-c", 'set -e; . "$0"; echo "the agent goes on"'), {"BUILDKITE": "true"}),
}
"""Each script, the shell that its caller runs it with, and some of the variables that it has there."""


@pytest.fixture(params=CI)
def caller(request: pytest.FixtureRequest, host: Host) -> tuple[str, Sequence[str], Mapping[str, str]]:
    """A caller's name, its command line on ``host``, and its environment."""
    script, shell, variables = CI[request.param]
    install(host.sbin / "recipe.sh", script())
    return request.param, (*shell, "/usr/local/sbin/recipe.sh"), {**MINIMAL, "CI": "true", **variables}


def test_a_job_sweeps_at_its_end(host: Host, caller: tuple[str, Sequence[str], Mapping[str, str]]) -> None:
    _, command, environment = caller
    with host.swept():
        done = host.run_as_ci(*command, environment=environment)
    assert done.returncode == 0
    assert "Deleted 12 orphaned rules of 1 bridge" in done.stdout
    again = host.run_as_ci("sh", "-c", 'exec "$@" <&-', "sh", *command, environment=environment)  # and without stdin
    assert again.returncode == 0
    assert "Nothing to sweep" in again.stdout


def test_a_sweep_that_fails_does_not_fail_the_job(
    host: Host, caller: tuple[str, Sequence[str], Mapping[str, str]]
) -> None:
    name, command, environment = caller

    def log(**settings: Sequence[str]) -> str:
        done = host.run_as_ci(*command, environment=environment, **settings)
        assert done.returncode == 0, done.stdout
        assert ("the agent goes on" in done.stdout) == (name == "buildkite")
        return done.stdout

    host.leak("hm1dead")
    with unchanged(host.ns):
        assert "CAP_NET_ADMIN is missing" in log(less=NO_NET_ADMIN)
        host.ns.lease_file.write_text("{")
        assert "lease file '/tmp/hypeman-test-network-leases.json'" in log()
        # Without its line in sudoers.
        (host.sudoers / "netsweep").write_text("")
        assert "did not run (status 1)" in log()


def test_a_hook_gives_up_on_a_lock_in_time(host: Host) -> None:
    install(host.sbin / "recipe.sh", of_github())
    host.ns.restore("legacy", leaks(["hm1dead"]))
    with unchanged(host.ns), flocked(host.run_directory / "xtables.lock"):
        done = host.run_as_ci("bash", "-e", "/usr/local/sbin/recipe.sh")
    assert done.returncode == 0
    assert re.search("^::warning .*xtables lock '/run/xtables.lock'", done.stdout, re.MULTILINE), done.stdout


def test_sudoers_allows_the_recipes_only(host: Host) -> None:
    checked = host.run("/usr/sbin/visudo", "-c", "-s", "-f", "/etc/sudoers.d/netsweep")
    assert checked.returncode == 0, checked.stdout
    host.leak("hm1dead")
    paths = (
        *("--lock-file", "/tmp/hypeman-test-network.lock"),
        *("--lease-file", "/tmp/hypeman-test-network-leases.json"),
    )
    sweep = ("sudo", "-n", "/usr/local/sbin/netsweep", "sweep", "--best-effort")
    with unchanged(host.ns):
        for more in ([*paths, "--prefix", "eth"], ["--prefix", "eth", *paths], ["--journal", "/tmp/j", *paths], []):
            assert host.run_as_ci(*sweep, *more).returncode == 1
    assert host.run_as_ci(*sweep, *paths).returncode == 0
    assert not any("hm1dead" in rule for rule in host.rules())


def test_a_tmpdir_has_to_be_in_sudoers_too(host: Host) -> None:
    install(host.sbin / "recipe.sh", of_github())
    elsewhere = host.tmp / "ci"
    elsewhere.mkdir()
    command, environment = ("bash", "-e", "/usr/local/sbin/recipe.sh"), {**MINIMAL, "TMPDIR": "/tmp/ci"}
    with host.swept():
        with unchanged(host.ns):
            done = host.run_as_ci(*command, environment=environment)
            assert (done.returncode, "did not run (status 1)" in done.stdout) == (0, True)
            assert "sudo: a password is required" in done.stdout
        host.ns.lease_file.rename(elsewhere / host.ns.lease_file.name)
        install(host.sudoers / "netsweep", (RECIPES / "sudoers").read_text().replace("/tmp/", "/tmp/ci/"), 0o440)
        assert "Deleted 12 orphaned rules" in host.run_as_ci(*command, environment=environment).stdout


# systemd

UNITS = ("netsweep.service", "netsweep.timer")

BOOT = r"""
cgroup=/sys/fs/cgroup/netsweep-test-$$
mount -t cgroup2 cgroup2 /sys/fs/cgroup && mkdir $cgroup || exit
sh -ec '
  echo $$ >"$0/cgroup.procs"
  mkdir -p /run/systemd/system /run/systemd/inaccessible/dir  # which it expects from the systemd of the machine
  : >/run/systemd/inaccessible/reg
  chmod 0 /run/systemd/inaccessible/*
  export XDG_RUNTIME_DIR=/run/manager SYSTEMD_LOG_TARGET=null
  exec timeout --kill-after=5 30 /lib/systemd/systemd --user --unit="$1"
' $cgroup "$1"
status=$?
find $cgroup -depth -type d -exec rmdir {} +
exit $status
"""
"""Runs a systemd on a host, in a control group of its own, until the unit $1 exits."""


def boot(host: Host, unit: str, **dropins: str) -> tuple[int, str]:
    """Start ``unit`` in a systemd on ``host``; return the exit status of the sweep, and what it wrote.

    ``dropins`` are added to the service and the timer.
    """
    units = host.run_directory / "manager" / "systemd" / "user"
    units.mkdir(parents=True, exist_ok=True)
    for each in UNITS:
        shutil.copy(RECIPES / each, units)
    out = host.tmp / "out"
    added = {
        "timer": "[Unit]\nDefaultDependencies=no\n[Timer]\n",  # none of the machine's own units is started
        "service": "[Unit]\nDefaultDependencies=no\nSuccessAction=exit-force\nFailureAction=exit-force\n"
        "[Service]\nStandardOutput=append:/tmp/out\nStandardError=append:/tmp/out\n",
    }
    for name, content in added.items():
        dropin = units / f"netsweep.{name}.d" / "test.conf"
        dropin.parent.mkdir(exist_ok=True)
        dropin.write_text(content + dropins.get(name, ""))
    done = host.run("sh", "-c", BOOT, "sh", unit)
    return done.returncode, out.read_text() if out.exists() else done.stdout


def test_systemd_takes_the_units(host: Host) -> None:
    for each in UNITS:
        shutil.copy(RECIPES / each, host.tmp)
    verified = host.run("systemd-analyze", "verify", *(f"/tmp/{each}" for each in UNITS))
    assert (verified.returncode, verified.stdout) == (0, "")
    # 0 to 100; a service without restrictions has 96.
    rated = host.run("systemd-analyze", "security", "--offline=yes", "--threshold=30", "/tmp/netsweep.service")
    assert rated.returncode == 0, rated.stdout


def test_the_hardened_service_sweeps(host: Host) -> None:
    with host.swept():
        status, out = boot(host, "netsweep.service")
        assert (status, "Deleted 12 orphaned rules" in out) == (0, True), out
    assert (host.run_directory / "xtables.lock").stat().st_mode & 0o777 == 0o600


def test_the_timer_starts_the_service(host: Host) -> None:
    with host.swept():
        status, out = boot(host, "netsweep.timer", timer="OnBootSec=0\nRandomizedDelaySec=0\nAccuracySec=1us\n")
        assert (status, "Deleted 12 orphaned rules" in out) == (0, True), out


def test_the_service_finds_a_tmpdir_that_it_is_told(host: Host) -> None:
    elsewhere = host.opt / "ci"
    elsewhere.mkdir()
    with host.swept():
        host.ns.lease_file.rename(elsewhere / host.ns.lease_file.name)
        told = "ReadWritePaths=\nReadWritePaths=/opt/ci\nEnvironment=TMPDIR=/opt/ci\n"
        status, out = boot(host, "netsweep.service", service=told)
        assert (status, "Deleted 12 orphaned rules" in out) == (0, True), out
    assert (elsewhere / host.ns.lock_file.name).exists()


def test_the_service_deletes_bridges_where_it_is_let(host: Host) -> None:
    host.ns.add_bridges("hm1dead", "hm2")
    for bridge in ("hm1dead", "hm2"):
        host.ns.run("ip", "addr", "add", "10.200.0.1/24", "dev", bridge)
    host.leak("hm1dead")
    write_leases(host.ns, {"hm1dead": DEAD, "hm2": os.getpid()})
    os.chown(host.ns.lease_file, CI_USER, CI_USER)
    status, out = boot(host, "netsweep.service", service=(RECIPES / "netsweep-bridges.conf").read_text())
    assert status == 0, out
    assert "Deleted 1 leaked bridge, 1 stale lease and 12 orphaned rules of 1 bridge" in out
    left = host.ns.lease_file
    assert (left.stat().st_uid, left.stat().st_mode & 0o777) == (CI_USER, 0o600)
    assert list(json.loads(left.read_text())["leases"]) == ["10.200.1.0/24"]


@pytest.mark.parametrize(
    ("setting", "loss"),
    [
        ("CapabilityBoundingSet=~CAP_NET_ADMIN", "CAP_NET_ADMIN is missing"),
        ("CapabilityBoundingSet=~CAP_NET_RAW", "CAP_NET_RAW are needed"),
        ("CapabilityBoundingSet=~CAP_DAC_READ_SEARCH", "cannot open lease file"),
        ("RestrictAddressFamilies=~AF_NETLINK", "nf_tables"),
        ("RestrictAddressFamilies=~AF_INET", "Address family not supported"),
        ("RestrictAddressFamilies=~AF_INET6", "Address family not supported"),
        ("ReadWritePaths=", "cannot create subnet lock"),
        ("ExecStartPre=", "cannot create xtables lock"),
    ],
)
def test_the_service_needs_each_right_that_it_has(host: Host, setting: str, loss: str) -> None:
    host.leak("hm1dead")
    write_leases(host.ns, {"hm3": os.getpid()})
    os.chown(host.ns.lease_file, CI_USER, CI_USER)
    status, out = boot(host, "netsweep.service", service=setting)
    assert status in (1, 69, 77)
    assert loss in out


def test_a_private_tmp_hides_the_leases(host: Host) -> None:
    with pytest.raises(AssertionError), host.swept():
        status, out = boot(host, "netsweep.service", service="PrivateTmp=yes")
    assert (status, "lease file /tmp/hypeman-test-network-leases.json does not exist" in out) == (0, True), out
    assert not any("hm3" in rule for rule in host.rules())


def test_the_hardened_service_shows_a_failure(host: Host) -> None:
    host.leak("hm1dead")
    host.ns.lease_file.write_text("{")
    with unchanged(host.ns):
        status, out = boot(host, "netsweep.service")
    assert status == 1
    assert "lease file '/tmp/hypeman-test-network-leases.json'" in out


# cron


def test_cron_sends_mail_of_failures_only(host: Host) -> None:
    lines = [line for line in (RECIPES / "netsweep.cron").read_text().splitlines() if line and not line.startswith("#")]
    environment = dict(line.split("=", 1) for line in lines[:-1])
    fields = lines[-1].split(None, 6)
    assert all(re.fullmatch(r"\*(/\d+)?", field) for field in fields[:5])
    user, command = fields[5:]
    assert user == "root"
    assert "%" not in command  # which cron takes for the end of a line
    assert environment.pop("MAILTO") == "root"
    environment |= {"HOME": "/root", "LOGNAME": user}

    def mail() -> tuple[int, str]:
        done = host.run(environment["SHELL"], "-c", command, environment=environment)
        return done.returncode, done.stdout

    with host.swept():
        assert mail() == (0, "")
    assert mail() == (0, "")
    host.leak("hm1dead")
    host.ns.lease_file.write_text("{")
    status, text = mail()
    assert status == 1
    assert len(text.splitlines()) == 1


# Ansible


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[dict[str, Host]]:
    with ExitStack() as stack:
        hosts = {}
        for name in ("rules", "bridges", "clean", "broken"):
            directory = tmp_path / name
            directory.mkdir()
            hosts[name] = Host(stack.enter_context(new_namespace(directory)).name, directory)
        yield hosts


def test_ansible_sweeps_a_fleet(tmp_path: Path, fleet: dict[str, Host]) -> None:
    inventory: dict[str, dict[str, str]] = {
        name: {
            "ansible_connection": "local",
            "ansible_python_interpreter": "/opt/netsweep/bin/python",
            "ansible_become_exe": f"{host.entrance} sudo",
        }
        for name, host in fleet.items()
    }
    inventory["bridges"] |= {"netsweep_options": "--bridges", "netsweep_command": "/opt/netsweep/bin/netsweep"}
    (tmp_path / "inventory.yml").write_text(yaml.safe_dump({"all": {"hosts": inventory}}))
    fleet["bridges"].ns.add_bridges("hm1dead")
    fleet["bridges"].ns.run("ip", "addr", "add", "10.200.0.1/24", "dev", "hm1dead")
    write_leases(fleet["bridges"].ns, {"hm1dead": DEAD})
    fleet["broken"].leak("hm1dead")
    fleet["broken"].ns.lease_file.write_text("{")

    def play(*options: str) -> dict[str, int]:
        """How many tasks changed something, on each host."""
        command = Path(sysconfig.get_path("scripts")) / "ansible-playbook"
        done = subprocess.run(
            (command, "--inventory", tmp_path / "inventory.yml", RECIPES / "ansible-playbook.yml", *options),
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            env={
                **MINIMAL,
                "HOME": str(tmp_path),
                "LC_ALL": "C.UTF-8",
                "ANSIBLE_PIPELINING": "1",  # the hosts do not see the /tmp that modules would be copied to
                "ANSIBLE_BECOME_ALLOW_SAME_USER": "1",  # a host is entered through sudo
            },
        )
        recap = dict(
            re.findall(r"^([\w-]+) +: (ok=\d+ +changed=\d+ +unreachable=\d+ +failed=\d+)", done.stdout, re.MULTILINE)
        )
        counts = {host: dict(re.findall(r"(\w+)=(\d+)", text)) for host, text in recap.items()}
        assert {host: count["failed"] for host, count in counts.items()} == {
            **dict.fromkeys(fleet, "0"),
            "broken": "1",
        }, done.stdout
        assert "cannot understand lease file '/tmp/hypeman-test-network-leases.json'" in done.stdout
        assert done.returncode == 2
        return {host: int(count["changed"]) for host, count in counts.items()}

    nothing = dict.fromkeys(fleet, 0)
    with unchanged(fleet["broken"].ns), fleet["rules"].swept():
        with unchanged(fleet["rules"].ns):
            assert play("--check") == {**nothing, "rules": 1, "bridges": 1}
        assert fleet["bridges"].ns.run("ip", "link", "show", "hm1dead").stdout
        assert not any(host.ns.lock_file.exists() for host in fleet.values())
        assert play() == {**nothing, "rules": 1, "bridges": 1}
        assert play() == nothing
    assert fleet["bridges"].ns.run("ip", "link", "show", "hm1dead", check=False).returncode
