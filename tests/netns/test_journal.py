"""Undo on the real kernel: what a sweep wrote down comes back as it was, or not at all."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from netsweep.sweeper import LOOK_MAX
from tests.extensions import COMMENT, EXTENSIONS, NAT, accepted
from tests.namespace import FLAVOURS, Namespace, complaint, leaks, restore_input, unchanged

SWEEP = (sys.executable, "-m", "netsweep", "sweep")


def rules_of(ns: Namespace, flavour: str) -> list[str]:
    """``iptables-save``, less the counters."""
    return [re.sub(r"\[\d+:\d+\]", "", line).strip() for line in ns.save(flavour)]


def order_of(ns: Namespace, flavour: str, chain: str = "FORWARD") -> list[str]:
    """The comments' last words in a chain, in order."""
    found = [re.search(rf"-A {chain} .*--comment \"?([^\s\"]+)", line) for line in ns.save(flavour)]
    return [match.group(1) for match in found if match]


def named(*names: str, chain: str = "FORWARD") -> list[str]:
    """Rules that are told apart by their comments; orphans are those called ``…-hmdead``."""
    return [f"-A {chain} -p tcp -m comment --comment {name} -j ACCEPT" for name in names]


def swept(ns: Namespace, *options: str) -> Path:
    """Sweep with a journal that is new."""
    journal = ns.folder / f"journal-{len(list(ns.folder.iterdir()))}"
    done = ns.netsweep("sweep", "--journal", str(journal), *options)
    assert (done.returncode, done.stderr) == (0, "")
    return journal


def restored(ns: Namespace, journal: Path) -> int:
    """How many rules came back."""
    done = ns.netsweep("restore", str(journal), "--format", "json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["changed"] is True
    return sum(backend["restored"] for backend in report["backends"])


def refused(ns: Namespace, journal: Path, status: int = 1) -> str:
    """What a restore says that must not change anything."""
    with unchanged(ns):
        line = complaint(ns.netsweep("restore", str(journal)), status)
        assert complaint(ns.netsweep("restore", str(journal), "--format", "json"), status) == line
    return line


@pytest.fixture
def rich(ns: Namespace, flavour: str) -> Namespace:
    """Orphans of as many kinds as this host can make, among rules of others."""
    ns.run("ipset", "create", "blocked", "hash:ip,port", "timeout", "0")
    table = accepted(ns, flavour, "filter", "FORWARD", EXTENSIONS)
    nat = accepted(ns, flavour, "nat", "POSTROUTING", NAT)
    assert len(table) >= 30
    assert len(nat) >= 5

    def among_others(rules: list[str]) -> list[str]:
        chain = rules[0].split()[1]
        between = [f"-A {chain} -p tcp -m tcp --dport {port} -j ACCEPT" for port in range(1, len(rules) // 3 + 2)]
        mixed = list(rules)
        for number, other in enumerate(between):
            mixed.insert(number * 4, other)
        return mixed

    tables = {
        "filter": [":USERS - [0:0]", "-F", *among_others(table), "-A USERS -j RETURN", *among_others(table[:3])],
        "nat": ["-F", *among_others(nat)],
    }
    ns.restore(flavour, restore_input(tables))
    return ns


def test_a_round_trip_gives_back_the_same_rules(rich: Namespace, flavour: str) -> None:
    ns = rich
    before = rules_of(ns, flavour)
    orphans = [line for line in before if "hmdead" in line]
    assert len(orphans) >= 38

    journal = swept(ns)
    assert rules_of(ns, flavour) == [line for line in before if "hmdead" not in line]
    assert restored(ns, journal) == len(orphans)
    assert rules_of(ns, flavour) == before

    assert "stand already" in refused(ns, journal)
    second = swept(ns)
    assert restored(ns, second) == len(orphans)
    assert rules_of(ns, flavour) == before


def test_restored_rules_work(ns: Namespace, flavour: str) -> None:
    """A jump leads to its chain again and a match looks at packets again."""
    rules = [
        ":USERS - [0:0]",
        "-A USERS -p udp -m udp --dport 9 -j DROP",
        f"-A OUTPUT -p udp -m multiport --dports 7,9 {COMMENT} -j USERS",
    ]
    ns.restore(flavour, restore_input({"filter": rules}))
    assert restored(ns, swept(ns, "--chain", "filter/OUTPUT")) == 1
    ns.run("ip", "link", "set", "lo", "up")
    # The receiver is not there, and sending says so or not.
    ns.run("bash", "-c", "echo x >/dev/udp/127.0.0.1/9", check=False)
    saved = ns.save(flavour)
    assert [line for line in saved if "USERS" in line and line.startswith("[1:")] == saved[-3:-1]


def test_rules_come_back_to_their_places_whatever_changed_elsewhere(ns: Namespace, flavour: str) -> None:
    ns.restore(
        flavour, restore_input({"filter": named("a", "1-hmdead", "b", "2-hmdead", "3-hmdead", "c", "4-hmdead", "d")})
    )
    journal = swept(ns)
    assert order_of(ns, flavour) == ["a", "b", "c", "d"]
    ns.iptables(flavour, *named("first")[0].replace("-A FORWARD", "-I FORWARD").split())
    ns.iptables(flavour, *named("last")[0].split())
    ns.iptables(flavour, *named("b")[0].replace("-A", "-D").split())
    ns.iptables(flavour, "-A", "INPUT", "-j", "ACCEPT")
    assert restored(ns, journal) == 4
    expected = ["first", "a", "1-hmdead", "2-hmdead", "3-hmdead", "c", "4-hmdead", "d", "last"]
    assert order_of(ns, flavour) == expected


def test_copies_and_twins_of_neighbours_do_not_confuse_places(ns: Namespace, flavour: str) -> None:
    order = ["a", "x-hmdead", "a", "x-hmdead", "x-hmdead", "b", "a", "y-hmdead", "a"]
    ns.restore(flavour, restore_input({"filter": named(*order)}))
    journal = swept(ns)
    assert order_of(ns, flavour) == ["a", "a", "b", "a", "a"]
    assert restored(ns, journal) == 4
    assert order_of(ns, flavour) == order


def test_a_chain_that_held_nothing_else_gets_its_rules_back(ns: Namespace, flavour: str) -> None:
    ns.restore(flavour, leaks(["hmdead", "hmbee"]))
    before = rules_of(ns, flavour)
    assert restored(ns, swept(ns)) == 6
    assert rules_of(ns, flavour) == before


def test_both_backends_come_back_from_one_journal(ns: Namespace) -> None:
    for flavour in FLAVOURS:
        ns.restore(flavour, leaks(["hmdead", "hmbee"]))
    before = [rules_of(ns, flavour) for flavour in FLAVOURS]
    journal = swept(ns)
    assert not [line for flavour in FLAVOURS for line in ns.save(flavour) if "hypeman" in line]
    assert restored(ns, journal) == 12
    assert [rules_of(ns, flavour) for flavour in FLAVOURS] == before


def test_more_rules_than_one_transaction_takes_come_back(ns: Namespace, flavour: str) -> None:
    ns.restore(flavour, restore_input({"filter": named("head")}))
    ns.restore(flavour, leaks(f"hm{number:x}" for number in range(700)))
    ns.restore(flavour, restore_input({"filter": named("tail")}))
    before = rules_of(ns, flavour)
    assert restored(ns, swept(ns)) == 2100
    assert rules_of(ns, flavour) == before


def neighbours_gone(ns: Namespace, flavour: str) -> None:
    for name in ("a", "b"):
        ns.iptables(flavour, *named(name)[0].replace("-A", "-D").split())


def one_is_back(ns: Namespace, flavour: str) -> None:
    ns.iptables(flavour, *named("1-hmdead")[0].split())


def chain_gone(ns: Namespace, flavour: str) -> None:
    ns.iptables(flavour, "-F", "JOBS")
    ns.iptables(flavour, "-X", "JOBS")


def target_gone(ns: Namespace, flavour: str) -> None:
    ns.iptables(flavour, "-X", "USERS")


@pytest.mark.parametrize("spoil", [neighbours_gone, one_is_back, chain_gone, target_gone])
def test_what_no_longer_fits_is_refused_and_no_table_is_changed(
    ns: Namespace, flavour: str, spoil: Callable[[Namespace, str], None]
) -> None:
    tables = {
        # The table that still fits comes first, so that it would be changed if anything were.
        "nat": [*named("x", "1-hmdead", "y", chain="POSTROUTING")],
        "filter": [
            ":JOBS - [0:0]",
            ":USERS - [0:0]",
            *named("a", "1-hmdead", "2-hmdead", "b", "c"),
            *named("j", "3-hmdead", chain="JOBS"),
            f"-A FORWARD {COMMENT} -j USERS",
        ],
    }
    ns.restore(flavour, restore_input(tables))
    chains = ("nat/POSTROUTING", "filter/JOBS", "filter/FORWARD")
    journal = swept(ns, *(part for chain in chains for part in ("--chain", chain)))
    assert not [line for line in ns.save(flavour) if "hmdead" in line]
    spoil(ns, flavour)
    refused(ns, journal)


def test_a_rule_never_comes_back_for_another_set(ns: Namespace, flavour: str) -> None:
    """In the kernel a rule holds its set's number, which is given out again."""
    ns.run("ipset", "create", "blocked", "hash:ip")
    ns.restore(flavour, restore_input({"filter": [f"-A FORWARD {COMMENT} -m set --match-set blocked src -j ACCEPT"]}))
    journal = swept(ns)
    ns.run("ipset", "destroy", "blocked")
    ns.run("ipset", "create", "trusted", "hash:ip")
    refused(ns, journal)


def test_a_table_that_has_gone_is_refused(ns: Namespace) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    journal = swept(ns)
    ns.run("nft", "delete", "table", "ip", "nat")
    assert "nat is gone" in refused(ns, journal)
    assert "hmdead" not in ns.ruleset()


def with_first_rule(journal: Path, change: Callable[[dict[str, object]], None]) -> None:
    lines = journal.read_text().splitlines()
    entry = json.loads(lines[1])
    change(entry["rules"][0])
    lines[1] = json.dumps(entry)
    journal.write_text("".join(f"{line}\n" for line in lines))


def changed_bytes(journal: Path) -> None:
    """One letter of the rule itself: the journal still reads well."""

    def change(rule: dict[str, object]) -> None:
        raw = str(rule["raw"])
        middle = len(raw) // 2
        rule["raw"] = raw[:middle] + ("B" if raw[middle] == "A" else "A") + raw[middle + 1 :]

    with_first_rule(journal, change)


def cut_bytes(journal: Path) -> None:
    def change(rule: dict[str, object]) -> None:
        rule["raw"] = str(rule["raw"])[:80]

    with_first_rule(journal, change)


def no_bytes(journal: Path) -> None:
    with_first_rule(journal, lambda rule: rule.update(raw=""))


def other_chain(journal: Path) -> None:
    with_first_rule(journal, lambda rule: rule.update(chain="NOSUCH"))


def substituted(old: str, new: str) -> Callable[[Path], None]:
    def change(journal: Path) -> None:
        text = journal.read_text()
        assert old in text
        journal.write_text(text.replace(old, new, 1))

    return change


def content(text: bytes) -> Callable[[Path], None]:
    def change(journal: Path) -> None:
        journal.write_bytes(text)

    return change


@pytest.mark.parametrize(
    "damage",
    [
        changed_bytes,
        cut_bytes,
        no_bytes,
        other_chain,
        pytest.param(substituted('"raw": "', '"raw": "!'), id="no base64"),
        pytest.param(substituted('"entry": 1', '"entry": []'), id="entry no number"),
        pytest.param(substituted('"netsweep_journal": 1', '"netsweep_journal": 2'), id="other format"),
        pytest.param(substituted('"table": "filter"', '"table": "../filter"'), id="no table"),
        pytest.param(substituted('"table": "filter"', '"table": "raw"'), id="other table"),
        pytest.param(substituted('"identity": "', '"identity": "zz'), id="no identity"),
        pytest.param(substituted('"chain": "', '"chain": 1, "x": "'), id="chain no text"),
        pytest.param(substituted('"rules": [', '"rules": [[], '), id="rule no object"),
        pytest.param(substituted("\n", "\n\n"), id="empty line"),
        pytest.param(content(b""), id="empty"),
        pytest.param(content(b"{}\n"), id="no header"),
        pytest.param(content(b"[]\n"), id="a list"),
        pytest.param(content(b"\0\xff" * 5000 + b"\n"), id="binary"),
        pytest.param(content(b"[" * 100_000 + b"\n"), id="deep"),
        pytest.param(content(b'{"netsweep_journal": 1}\n'), id="header only"),
    ],
)
def test_a_damaged_journal_is_refused(ns: Namespace, flavour: str, damage: Callable[[Path], None]) -> None:
    ns.restore(flavour, restore_input({"filter": named("a", "1-hmdead", "b", "2-hmdead", "c")}))
    journal = swept(ns)
    damage(journal)
    refused(ns, journal)


def test_a_journal_for_another_backend_is_refused(ns: Namespace, flavour: str) -> None:
    for each in FLAVOURS:
        ns.restore(each, restore_input({"filter": named("a", "1-hmdead", "b")}))
    journal = swept(ns, "--backend", flavour)
    other = FLAVOURS[1 - FLAVOURS.index(flavour)]
    substituted(f'"backend": "{flavour}"', f'"backend": "{other}"')(journal)
    refused(ns, journal)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_journal_that_others_can_write_to_is_not_permitted(ns: Namespace, mode: int) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    journal = swept(ns)
    journal.chmod(mode)
    assert "can be written by others" in refused(ns, journal, 77)


def test_a_journal_of_another_user_is_not_permitted(ns: Namespace) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    journal = swept(ns)
    os.chown(journal, 1000, 1000)
    assert "can be written by others" in refused(ns, journal, 77)


def test_a_link_to_a_journal_and_no_journal_are_refused(ns: Namespace) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    journal = swept(ns)
    link = ns.folder / "link"
    link.symlink_to(journal)
    assert "is a link" in refused(ns, link)
    assert "there is no journal" in refused(ns, ns.folder / "missing")


@pytest.mark.parametrize(
    ("table", "rule"),
    [
        ("filter", 'FORWARD iifname "hmdead" ip saddr { 192.0.2.1, 192.0.2.2 } drop'),
        ("filter", 'FORWARD iifname "hmdead" tcp dport vmap { 22 : accept, 23 : drop }'),
        ("filter", 'FORWARD iifname "hmdead" tcp dport 22 jump { counter; drop; }'),
        ("nat", 'POSTROUTING ip saddr { 192.0.2.1, 192.0.2.2 } masquerade comment "hypeman-nat-hmdead"'),
    ],
)
def test_a_rule_that_cannot_be_put_back_stops_a_sweep_before_anything_is_deleted(
    ns: Namespace, table: str, rule: str
) -> None:
    for flavour in FLAVOURS:
        ns.restore(flavour, leaks(["hmdead"]))
    ns.run("nft", f"add rule ip {table} {rule}")
    with unchanged(ns):
        line = complaint(ns.netsweep("sweep", "--journal", str(ns.folder / "journal")), 1)
    assert "anonymous" in line
    assert "nothing was deleted" in line
    assert "without --journal" in line
    assert ns.netsweep("sweep").returncode == 0
    assert "hmdead" not in ns.ruleset()


def test_a_rule_that_cannot_be_put_back_is_found_behind_many_others(ns: Namespace) -> None:
    ns.restore("nft", leaks(f"hm{number:x}" for number in range(700)))
    ns.run("nft", 'add rule ip filter FORWARD iifname "hmdead" ip saddr { 192.0.2.1, 192.0.2.2 } drop')
    with unchanged(ns):
        assert "anonymous" in complaint(ns.netsweep("sweep", "--journal", str(ns.folder / "journal")), 1)


def test_a_rule_that_cannot_be_put_back_is_found_behind_more_than_a_sweep_reads_at_first(ns: Namespace) -> None:
    rules = [f"-A FORWARD -i hm{number:x} -j DROP" for number in range(LOOK_MAX + 500)]
    ns.restore("nft", restore_input({"filter": rules}))
    ns.run("nft", 'add rule ip filter FORWARD iifname "hmdead" ip saddr { 192.0.2.1, 192.0.2.2 } drop')
    with unchanged(ns):
        assert "anonymous" in complaint(ns.netsweep("sweep", "--journal", str(ns.folder / "journal")), 1)


def full_disk(ns: Namespace, room: int) -> tuple[str, ...]:
    """Runs what follows it with a journal folder that takes ``room`` more bytes."""
    folder = ns.folder / "full"
    folder.mkdir()
    script = (
        f"mount -t tmpfs -o size=64k netsweep '{folder}' && "
        f"head -c {65536 - 4096 * -(-room // 4096)} /dev/zero >'{folder}/filling' && exec \"$@\""
    )
    return ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh")


@pytest.mark.parametrize("room", [0, 50, 300])
def test_nothing_is_deleted_where_the_journal_cannot_grow(ns: Namespace, flavour: str, room: int) -> None:
    ns.restore(flavour, leaks(["hmdead"]))
    journal = ns.folder / "journal"
    with unchanged(ns):
        done = ns.run("prlimit", f"--fsize={room}", *SWEEP, "--journal", str(journal), check=False)
    assert "cannot write journal" in complaint(done, 1)


@pytest.mark.parametrize("room", [0, 4096])
def test_nothing_is_deleted_where_the_disk_is_full(ns: Namespace, flavour: str, room: int) -> None:
    ns.restore(flavour, leaks(f"hm{number:x}" for number in range(20)))
    with unchanged(ns):
        done = ns.run(*full_disk(ns, room), *SWEEP, "--journal", str(ns.folder / "full" / "journal"), check=False)
    line = complaint(done, 1)
    assert "journal" in line
    assert "No space left" in line


def test_what_was_deleted_before_the_journal_broke_off_can_be_put_back(ns: Namespace, flavour: str) -> None:
    ns.restore(flavour, leaks(["hmdead"]))
    before = rules_of(ns, flavour)
    size = swept_and_restored_size(ns)
    journal = ns.folder / "journal"
    done = ns.run("prlimit", f"--fsize={size - 10}", *SWEEP, "--journal", str(journal), check=False)
    assert "cannot write journal" in complaint(done, 1)
    assert "Failed" in done.stdout
    assert "deleted 2 rules" in done.stdout
    assert len([line for line in rules_of(ns, flavour) if "hmdead" in line]) == 1
    assert restored(ns, journal) == 2
    assert rules_of(ns, flavour) == before


def swept_and_restored_size(ns: Namespace) -> int:
    journal = swept(ns)
    restored(ns, journal)
    return journal.stat().st_size


def test_a_journal_is_never_overwritten(ns: Namespace, flavour: str) -> None:
    ns.restore(flavour, leaks(["hmdead"]))
    journal = swept(ns)
    written = journal.read_bytes()
    ns.restore(flavour, leaks(["hmbee"]))
    with unchanged(ns):
        assert "exists already" in complaint(ns.netsweep("sweep", "--journal", str(journal)), 1)
    assert journal.read_bytes() == written
    assert restored(ns, journal) == 3


@pytest.mark.parametrize("umask", ["000", "022", "277"])
def test_a_journal_is_for_its_writer_only(ns: Namespace, umask: str) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    journal = ns.folder / "journal"
    ns.run("sh", "-c", f'umask {umask} && exec "$@"', "sh", *SWEEP, "--journal", str(journal))
    assert journal.stat().st_mode & 0o7777 == 0o600
    assert restored(ns, journal) == 3


def test_where_nothing_goes_there_is_no_journal(ns: Namespace, flavour: str) -> None:
    ns.restore(flavour, restore_input({"filter": named("a")}))
    journal = ns.folder / "journal"
    assert ns.netsweep("sweep", "--journal", str(journal)).returncode == 0
    ns.restore(flavour, leaks(["hmdead"]))
    assert ns.netsweep("sweep", "--dry-run", "--journal", str(journal)).returncode == 0
    assert not journal.exists()


def killed_at(ns: Namespace, transaction: int, journal: Path) -> None:
    """Sweep, and die when the given transaction is about to be sent, its entry being in the journal."""
    code = f"""
import os, signal, sys
from netsweep.__main__ import main
from netsweep.backends import legacy, nft

count = 0

def dying(delete):
    def wrapped(self, rules):
        global count
        count += 1
        if count == {transaction}:
            os.kill(os.getpid(), signal.SIGKILL)
        delete(self, rules)
    return wrapped

for module in (legacy, nft):
    module._Transaction.delete = dying(module._Transaction.delete)
sys.argv = ["netsweep", "sweep", "--journal", {str(journal)!r}]
main()
"""
    assert ns.run(sys.executable, "-c", code, check=False).returncode == -9


def test_killed_before_the_first_transaction_there_is_nothing_to_put_back(ns: Namespace, flavour: str) -> None:
    ns.restore(flavour, leaks(["hmdead"]))
    before = rules_of(ns, flavour)
    journal = ns.folder / "journal"
    with unchanged(ns):
        killed_at(ns, 1, journal)
    assert "stand already" in refused(ns, journal)
    assert ns.netsweep("sweep").returncode == 0
    assert rules_of(ns, flavour) != before
    assert restored(ns, journal) == 2  # all that its one entry knows of
    assert restored(ns, swept(ns)) == 2


def test_killed_between_two_transactions_only_what_went_comes_back(ns: Namespace, flavour: str) -> None:
    ns.restore(flavour, leaks(["hmdead"]))
    before = rules_of(ns, flavour)
    journal = ns.folder / "journal"
    killed_at(ns, 2, journal)
    assert len([line for line in rules_of(ns, flavour) if "hmdead" in line]) == 1
    assert restored(ns, journal) == 2
    assert rules_of(ns, flavour) == before
    assert "stand already" in refused(ns, journal)


def test_killed_between_two_transactions_of_one_chain_only_what_went_comes_back(ns: Namespace) -> None:
    ns.restore("nft", leaks(f"hm{number:x}" for number in range(700)))
    before = rules_of(ns, "nft")
    journal = ns.folder / "journal"
    killed_at(ns, 2, journal)
    went = len(before) - len(rules_of(ns, "nft"))
    assert 0 < went < 1400
    assert restored(ns, journal) == went
    assert rules_of(ns, "nft") == before


def test_killed_while_the_entry_is_written_the_cut_off_line_does_not_count(ns: Namespace, flavour: str) -> None:
    ns.restore(flavour, leaks(["hmdead"]))
    before = rules_of(ns, flavour)
    journal = ns.folder / "journal"
    killed_at(ns, 2, journal)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:-20])
    assert restored(ns, journal) == 2
    assert rules_of(ns, flavour) == before
