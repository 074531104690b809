from __future__ import annotations

import os
import pwd
import re
from typing import Any

import pytest

from netsweep.output.doctor import doctor_lines, report_lines

FREE = {"exists": True, "held": False, "held_by": None, "holder": None, "waiting": 0, "error": None}


def found(**changed: Any) -> dict[str, Any]:
    """What doctor found; ``settings`` are added to those that are there."""
    backend = {"family": "ipv4", "tables": [], "other_tables": [], "scanned": 0, "owned": 0}
    settings = {
        "profile": "hypeman",
        "names": ("wgcorp", "vif*"),
        "prefixes": ("hm",),
        "protected": (),
        "chains": ("filter/FORWARD", "nat/POSTROUTING"),
        "include_negated": False,
        "lock_file": "/tmp/lock",
        "lock_timeout": 30.0,
        "wait": 5.0,
        "max_deletes": None,
        "dry_run": False,
        **changed.pop("settings", {}),
    }
    sources = {**dict.fromkeys(settings, "default"), "wait": "environment NETSWEEP_WAIT", "names": "option --name"}
    return {
        "settings": settings,
        "sources": sources,
        "backends": [{"name": "legacy", **backend}, {"name": "nft", **backend}],
        "iptables": {"path": "/usr/sbin/iptables", "version": "1.8.9", "flavour": "nf_tables", "swept": True},
        "capabilities": {"CAP_NET_ADMIN": True, "CAP_NET_RAW": False},
        "locks": {"subnet": {"path": "/tmp/lock", **FREE}, "xtables": {"path": "/run/xtables.lock", **FREE}},
        "leases": {"path": "/tmp/leases", "exists": True, "leases": 1, "running": 1},
        "versions": {"netsweep": "1", "python": "3", "kernel": "6.1.0.1-WSL", "click": None},
        "system": {
            "distribution": "Debian GNU/Linux 12 (bookworm)",
            "machine": "x86_64",
            "virtualization": "docker",
            "root": False,
            "user_namespace": True,
            "all_processes_visible": False,
        },
        "subnets": None,
        "orphans": 0,
        "bridges": None,
        "stale_leases": None,
        "elsewhere": 0,
        "notes": [],
        "waits_for": [],
        "warnings": [],
        "errors": [],
        "status": 0,
        **changed,
    }


def lines(**changed: Any) -> dict[str, str]:
    """The lines by the words before the colon, those of settings apart, and the verdict."""
    shown, verdict = "\n".join(doctor_lines(found(**changed), 2000)).split("\n\n")
    pairs = (line.removeprefix("settings:").strip().split(":", 1) for line in shown.splitlines())
    return {**{name: text.strip() for name, text in pairs}, "verdict": " ".join(verdict.split())}


def test_a_host_with_nothing_on_it() -> None:
    shown = lines()
    assert shown["legacy"] == "x_tables: no ipv4 tables here"
    assert shown["iptables"] == "/usr/sbin/iptables 1.8.9 (nf_tables); a sweep covers its rules"
    assert shown["capabilities"] == "CAP_NET_ADMIN yes, CAP_NET_RAW no"
    assert shown["subnet lock"] == "/tmp/lock: free, as far as /proc shows"
    assert shown["lease file"] == "/tmp/leases: 1 lease, 1 of running processes"
    settings = {
        "profile": "hypeman (default)",
        "name": "wgcorp, vif* (--name)",
        "prefix": "hm (default)",
        "protect": "none (default)",
        "chain": "filter/FORWARD, nat/POSTROUTING (default)",
        "include-negated": "no (default)",
        "lock-file": "/tmp/lock (default)",
        "wait": "5 s (NETSWEEP_WAIT)",
        "max-deletes": "none (default)",
    }
    assert {name: shown[name] for name in settings} == settings
    assert shown["libraries"] == "click missing"
    assert shown["system"] == (
        "Debian GNU/Linux 12 (bookworm), x86_64, virtualization docker, not root, in a user namespace, "
        "not all processes are visible"
    )
    assert shown["verdict"] == "A sweep could run here. It would find nothing to delete."


def test_tables_of_every_family_are_shown_and_counts_are_in_the_right_number() -> None:
    one = {"name": "nft", "family": "ipv4", "tables": ["filter"], "other_tables": [], "scanned": 1, "owned": 1}
    assert lines(backends=[one])["nft"] == (
        "nf_tables: ipv4 table filter; 1 rule in the chains looked at, 1 names a bridge of ours"
    )
    assert lines(backends=[{**one, "family": "inet", "owned": 0}])["nft"] == (
        "nf_tables: inet table filter; 1 rule in the chains looked at, 0 name bridges of ours"
    )
    others = {**one, "other_tables": ["bridge filter", "arp filter"], "scanned": 1200, "owned": 2}
    assert lines(backends=[others])["nft"] == (
        "nf_tables: ipv4 table filter; 1,200 rules in the chains looked at, 2 name bridges of ours; "
        "not looked at: bridge filter, arp filter"
    )
    only_others = {**others, "tables": []}
    assert lines(backends=[only_others])["nft"] == (
        "nf_tables: no ipv4 tables here; not looked at: bridge filter, arp filter"
    )
    assert lines(backends=[{**one, "tables": None}])["nft"] == "nf_tables: could not be read"


def test_each_family_has_a_line_of_its_own() -> None:
    families = ("ipv4", "ipv6", "inet")
    backends = [
        {"name": "nft", "family": family, "tables": ["t"], "other_tables": [], "scanned": 0, "owned": 0}
        for family in families
    ]
    shown = [line for line in doctor_lines(found(backends=backends), 200) if line.startswith("nft:")]
    assert [line.split()[2] for line in shown] == list(families)


def test_a_profile_without_lock_and_leases_has_no_lines_for_them() -> None:
    settings = {"lock_file": None, "include_negated": True}
    shown = lines(settings=settings, leases=None, locks={"xtables": {"path": "/run/xtables.lock", **FREE}})
    assert "subnet lock" not in shown
    assert "lease file" not in shown
    assert shown["xtables lock"] == "/run/xtables.lock: free, as far as /proc shows"
    assert (shown["include-negated"], shown["lock-file"]) == ("yes (default)", "none (default)")
    assert "None" not in "".join(shown.values())


def test_notes_tell_what_is_not_its_business() -> None:
    assert lines(notes=["there are rules of CNI networks"])["note"] == "there are rules of CNI networks"


HELD = {
    "path": "/tmp/lock",
    "exists": True,
    "held": True,
    "held_by": 12,
    "holder": "flock",
    "waiting": 2,
    "error": None,
}


@pytest.mark.parametrize(
    ("lock", "said"),
    [
        (HELD, "held by process 12 (flock), 2 waiting"),
        ({**HELD, "holder": None, "waiting": 0}, "held by process 12"),
        ({**HELD, "held_by": None}, "held by a process that is not visible here, 2 waiting"),
        ({**HELD, "held_by": None, "waiting": 0}, "held by a process that is not visible here"),
        ({**HELD, "exists": False}, "does not exist yet"),
        ({**FREE, "path": "/tmp/lock", "error": "it is a link"}, "cannot be used"),
        ({**FREE, "path": "/tmp/lock", "exists": False, "error": "no"}, "does not exist, and cannot be created"),
    ],
)
def test_a_lock_is_shown_with_the_process_that_holds_it(lock: dict[str, Any], said: str) -> None:
    assert lines(locks={"subnet": lock})["subnet lock"] == f"/tmp/lock: {said}"


@pytest.mark.parametrize(
    ("leases", "said"),
    [
        ({"exists": False, "leases": 0, "running": 0}, "does not exist: no leases"),
        ({"exists": True, "leases": None, "running": None}, "could not be read or understood"),
        ({"exists": True, "leases": 3, "running": 2}, "3 leases, 2 of running processes"),
    ],
)
def test_the_lease_file_is_shown_and_whether_it_exists(leases: dict[str, Any], said: str) -> None:
    assert lines(leases={"path": "/tmp/leases", **leases})["lease file"] == f"/tmp/leases: {said}"


def test_the_verdict_is_what_a_sweep_would_end_with() -> None:
    failed = lines(status=75, errors=["subnet lock is held", "other"], orphans=3)
    assert failed["verdict"] == "A sweep would fail here with exit status 75: subnet lock is held"
    assert lines(orphans=1)["verdict"] == "A sweep could run here. It would delete 1 rule."
    elsewhere = " 15 more orphaned rules in chains that were not looked at: --all-chains."
    nothing = "A sweep could run here. It would find nothing to delete."
    assert lines(elsewhere=15)["verdict"] == nothing + elsewhere
    assert lines(orphans=1, elsewhere=15)["verdict"] == (f"A sweep could run here. It would delete 1 rule.{elsewhere}")
    waiting = lines(orphans=2, waits_for=["subnet"], locks={"subnet": HELD})
    assert waiting["verdict"] == (
        "A sweep could run here, once process 12 (flock) releases the subnet lock. It would delete 2 rules. "
        "It would wait for the subnet lock for 30 s, and then fail."
    )
    assert lines(orphans=2, settings={"dry_run": True})["verdict"] == (
        "A sweep could run here. It would show 2 rules, and delete nothing because of --dry-run."
    )
    best_effort = lines(errors=["subnet lock is held"], orphans=3)
    assert best_effort["verdict"] == (
        "A sweep would fail here with exit status 0, because of --best-effort: subnet lock is held"
    )


def test_text_of_the_host_is_escaped() -> None:
    hostile = "\x1b[31m\n##["
    backend = {
        "name": "nft",
        "family": "ipv4",
        "tables": [hostile],
        "other_tables": [hostile],
        "scanned": 1,
        "owned": 0,
    }
    shown = list(
        doctor_lines(
            found(
                backends=[backend],
                locks={"subnet": {**HELD, "path": hostile, "holder": hostile}},
                leases={"path": hostile, "exists": False, "leases": 0, "running": 0},
                warnings=[hostile],
                notes=[hostile],
                system={**found()["system"], "distribution": hostile},
                settings={"names": [hostile], "chains": [hostile], "profile": hostile},
                waits_for=["subnet"],
                orphans=1,
            )
        )
    )
    assert all(line.isascii() and (line == "" or line.isprintable()) and "##[" not in line for line in shown)
    assert sum(line.count(r"\x1b") for line in shown) == 12


def test_the_subnets_of_tests_are_counted_where_a_profile_has_some() -> None:
    assert "subnets" not in lines()
    counted = {"range": "10.200.0.0-10.249.255.255", "total": 12_800, "in_use": 11, "leaked": 1234, "free": 11_555}
    assert lines(subnets=counted)["subnets"] == (
        "10.200.0.0-10.249.255.255: 11 in use, 1,234 leaked, 11,555 free of 12,800 (/24)"
    )


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_lines_fit_the_width_and_only_a_path_is_longer(width: int) -> None:
    path = "/a/path/of/the/runner/which/is-long-and-has/dashes-in-it/and-does-not-fit/leases.json"
    long = found(
        leases={"path": path, "exists": True, "leases": 1, "running": 0},
        chains=[],
        settings={
            "chains": [f"table{number}/chain" for number in range(30)],
            "names": ["br-" + 12 * "[0-9a-f]"],  # of the profile docker
            "lock_file": path,
        },
        warnings=[f"cannot create lock {path}: " + "no " * 40],
        errors=["there are x_tables rules, but " + "libip4tc.so.2 cannot be loaded " * 5],
        status=69,
    )
    shown = list(doctor_lines(long, width))
    assert [line for line in shown if len(line) > width and path not in line] == []
    assert sum(path in line for line in shown) == 3
    assert all(line == line.rstrip() for line in shown)
    labelled = [line for line in shown[: shown.index("")] if not line.startswith(" " * 15)]
    assert all(re.fullmatch(r"[a-z_]+( lock| file)?:", line[:15].rstrip()) for line in labelled)


def test_a_bug_report_is_one_block_with_nothing_private(monkeypatch: pytest.MonkeyPatch) -> None:
    user = pwd.getpwuid(65534).pw_name
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "build-host.corp", "6", "1", "x86_64")))
    bob = pwd.struct_passwd(("bob", "x", 1001, 1001, "", "/srv/people/bob", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwall", lambda: [pwd.getpwuid(1), bob])
    monkeypatch.setenv("SUDO_UID", "65534")
    monkeypatch.setenv("HOME", "/srv/homes/alice")
    private = [
        "/home/alice/leases.json",
        "/root/swept",
        f"/tmp/{user}/lock",
        "/srv/homes/alice/x",
        "/srv/people/bob/y and /var/tmp/bob/z",
        "lease '10.200.1.0/24' has no valid pid",
        "fd00::1",
        "2001:db8::/32",
        "02:42:ac:11:00:02",
        "build-host.corp",
        "10.9.8.7, 10.9.8.6.",
    ]
    text = "\n".join(
        report_lines(
            found(
                warnings=private,
                locks={"subnet": {**HELD, "path": private[0], "holder": "``` ````"}},
                leases={"path": private[1], "exists": True, "leases": 1, "running": 0},
                errors=["inet:firewalld/a of rule 12: gone"],
                status=1,
            )
        )
    )
    for secret in ("alice", "bob", "people", "/root", user, "10.200", "10.9", "fd00", "2001", "42:ac", "build-host"):
        assert secret not in text
    head, block = text.split("<details>")
    assert "read it before you post it" in " ".join(head.split())
    assert block.startswith("\n<summary>netsweep 1 on Debian GNU/Linux 12 (bookworm)</summary>\n\n`````text\n")
    assert block.endswith("\n`````\n\n</details>")
    assert max(map(len, text.splitlines())) <= 80
    for shown in (
        "~/leases.json",
        "~/swept",
        "/tmp/USER/lock",
        "ADDRESS",
        "HOST",
        "6.1.0.1-WSL",
        "inet:firewalld/a of rule 12: gone",
        "Exit status of doctor: 1",
    ):
        assert shown in text


@pytest.mark.parametrize(
    ("orphans", "bridges", "would"),
    [
        (0, 0, "It would find nothing to delete."),
        (0, None, "It would find nothing to delete."),
        (0, 1, "It would delete 1 bridge."),
        (2, 1, "It would delete 1 bridge and 2 rules."),
        (1, 20, "It would delete 20 bridges and 1 rule."),
        (2, None, "It would delete 2 rules."),
    ],
)
def test_the_verdict_counts_bridges_where_they_were_asked_for(orphans: int, bridges: int | None, would: str) -> None:
    assert would in lines(orphans=orphans, bridges=bridges)["verdict"]
