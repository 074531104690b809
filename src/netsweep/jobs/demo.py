"""The main job, shown in a temporary network namespace: the host is not touched."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable

from netsweep.errors import NoBackendError, NotPermittedError
from netsweep.host.programs import find_program
from netsweep.model import Family

Run = Callable[[list[str]], int]
"""Runs netsweep's command line and returns its exit status."""

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
"""linux/sched.h."""

LEAKED = [f"hm3fa2{number:03x}" for number in range(100)]
LIVE = ["hm1a", "hm2b", "hm3c"]
LEASED = "hm4d"

_FLAVOURS = {"legacy": "x_tables", "nft": "nf_tables"}

_OTHERS = {
    "filter": [
        "-A FORWARD -i docker0 ! -o docker0 -j ACCEPT",
        "-A FORWARD -i ha77 -o eth0 -m comment --comment hypeman-fwd-out-ha77 -j ACCEPT",
        "-A FORWARD -i hm+ -p tcp -m tcp --dport 22 -j DROP",
        "-A FORWARD -i hmvpn0 -j ACCEPT",
        f'-A FORWARD -s 192.0.2.0/24 -m comment --comment "keep guests off {LEAKED[0]}" -j DROP',
        f"-A FORWARD ! -o {LEAKED[1]} -j RETURN",
    ],
    "nat": ["-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE"],
}
"""Rules that a sweep must not touch, whatever they look like."""


def demo(run: Run, guarded: Callable[[Callable[[], int]], int]) -> int:
    """Build the namespace, sweep it, print what happened, and return the exit status.

    ``run`` runs the commands that are shown; ``guarded`` calls a function and returns what it returns,
    or tells its failure and returns the exit status of that. Works as root, and without where user
    namespaces are allowed. Raises :class:`~netsweep.errors.NetsweepError` where they are not.
    """
    programs = {flavour: find_program(f"iptables-{flavour}-restore") for flavour in _FLAVOURS}
    if not any(programs.values()):
        raise NoBackendError("the demo needs iptables: install it (Debian: apt-get install iptables)")
    with tempfile.TemporaryDirectory(prefix="netsweep-demo-") as directory:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            # The parent cleans up and exits; nothing of that must happen here.
            os._exit(_child(directory, run, guarded))
        try:
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        except BaseException:
            # Its network namespace goes with it; without its directory it could not go on.
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise
    return status if status >= 0 else 128 - status


def _child(directory: str, run: Run, guarded: Callable[[Callable[[], int]], int]) -> int:
    def show() -> int:
        _enter_new_namespace()
        os.environ.update(TMPDIR=directory, XTABLES_LOCKFILE=os.path.join(directory, "xtables.lock"))
        for name in [name for name in os.environ if name.startswith(("NETSWEEP_", "GITHUB_"))]:
            del os.environ[name]
        status = _show(directory, run)
        sys.stdout.flush()
        # Only this process knows, and the other one ends with the same status.
        return 128 + signal.SIGPIPE if status == 0 and getattr(sys.stdout, "reader_gone", False) else status

    try:
        return guarded(show)
    except BaseException as stopped:
        return getattr(stopped, "exit_status", 1)


def _enter_new_namespace() -> None:
    uid, gid = os.geteuid(), os.getegid()
    if uid:
        # This user is root in the new user namespace (user_namespaces(7)), which the network namespace
        # has to belong to. Groups have to be given up first.
        _unshare(CLONE_NEWUSER)
        for name, content in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            try:
                with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                    file.write(content)
            except OSError as error:
                raise _no_namespace(str(error)) from error
    _unshare(CLONE_NEWNET)


def _unshare(kind: int) -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(kind):
        raise _no_namespace(os.strerror(ctypes.get_errno()))


def _no_namespace(reason: str) -> NotPermittedError:
    return NotPermittedError(
        f"could not create a namespace: {reason}; run as root, or let users create user namespaces"
    )


def _show(directory: str, run: Run) -> int:
    _make_bridges(["ha77", *LIVE])
    _lease(directory)
    before = {flavour: rules for flavour in _FLAVOURS if (rules := _fill(flavour))}
    if not before:
        raise NoBackendError("this kernel accepts no iptables rules here: run the demo as root")
    where = " and in ".join(_FLAVOURS[flavour] for flavour in before)
    print(
        f"A new network namespace, with what {len(LEAKED)} dead test jobs left behind in\n"
        f"{where}, {len(LIVE)} bridges that are alive, one that is leased,\n"
        "and rules of others. The rules of this host are not touched."
    )
    for arguments in (["list"], ["sweep"], ["list", "--all"]):
        print(f"\n$ netsweep {' '.join(arguments)}", flush=True)
        if status := run(arguments):
            return status
    print()
    return max(_compare(flavour, rules) for flavour, rules in before.items())


def _make_bridges(names: Iterable[str]) -> None:
    from pyroute2.iproute import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    with IPRoute() as ip:
        for name in names:
            try:
                ip.link("add", ifname=name, kind="bridge")
            except NetlinkError:
                # A kernel without bridges. Any interface of that name is alive.
                ip.link("add", ifname=name, kind="dummy")


def _lease(directory: str) -> None:
    lease = {"test_name": "TestDemo", "bridge_name": LEASED, "subnet_cidr": "10.249.0.0/24", "pid": os.getpid()}
    with open(os.path.join(directory, "hypeman-test-network-leases.json"), "w", encoding="ascii") as file:
        json.dump({"leases": {"10.249.0.0/24": lease}}, file)


def _fill(flavour: str) -> list[str]:
    """Load the rules, and return what ``iptables-save`` says then; nothing where that cannot be."""
    tables: dict[str, list[str]] = {table: list(rules) for table, rules in _OTHERS.items()}
    for number, bridge in enumerate([*LEAKED, *LIVE, LEASED]):
        out = f"-m comment --comment hypeman-fwd-out-{bridge} -j ACCEPT"
        back = f"-m comment --comment hypeman-fwd-in-{bridge} -j ACCEPT"
        tables["filter"] += [f"-A FORWARD -i {bridge} -o eth0 {out}", f"-A FORWARD -i eth0 -o {bridge} {back}"]
        nat = f"-m comment --comment hypeman-nat-{bridge} -j MASQUERADE"
        tables["nat"].append(f"-A POSTROUTING -s 10.200.{number}.0/24 -o eth0 {nat}")
    text = "".join(f"*{table}\n{os.linesep.join(rules)}\nCOMMIT\n" for table, rules in tables.items())
    try:
        if flavour == "legacy":
            from netsweep.firewall.xtables.bindings import libiptc

            libiptc(Family.IPV4)  # without it, nothing could be listed that is made here
        _iptables(flavour, "restore", text)
        return _save(flavour)
    except (OSError, subprocess.SubprocessError, NoBackendError) as error:
        print(f"({_FLAVOURS[flavour]} is left out: {_reason(error)})")
        return []


def _reason(error: Exception) -> str:
    said = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else ""
    return (said or str(error)).splitlines()[0]


def _iptables(flavour: str, what: str, text: str = "") -> str:
    program = find_program(f"iptables-{flavour}-{what}")
    if program is None:
        raise NoBackendError(f"iptables-{flavour}-{what} is not installed")
    done = subprocess.run([program], input=text, capture_output=True, text=True, check=True, timeout=60)  # noqa: S603
    return done.stdout


def _save(flavour: str) -> list[str]:
    return [line for line in _iptables(flavour, "save").splitlines() if line.startswith("-A")]


def _compare(flavour: str, before: list[str]) -> int:
    after = _save(flavour)
    leaked = {f"hypeman-{role}-{bridge}" for bridge in LEAKED for role in ("fwd-out", "fwd-in", "nat")}
    if after != [line for line in before if leaked.isdisjoint(line.replace('"', " ").split())]:
        print(
            f"{_FLAVOURS[flavour]}: FAILED: {len(before)} rules before, {len(after)} after,\n"
            "  and not the expected ones"
        )
        return 1
    print(
        f"{_FLAVOURS[flavour]}: {len(before)} rules before, {len(after)} after:\n"
        "  the leaked ones are gone, all others are unchanged."
    )
    return 0
