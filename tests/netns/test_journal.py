"""Undo on the real kernel: what a sweep wrote down comes back as it was, or not at all."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import sys
import time
from pathlib import Path

import pytest

import netsweep
from tests.extensions import COMMENT, EXTENSIONS, IPV6, NAT, accepted
from tests.namespace import (
    FAMILIES,
    FLAVOURS,
    NETSWEEP,
    NOBODY,
    PLACES,
    Namespace,
    complaint,
    flocked,
    in_process,
    leaks,
    new_namespace,
    of_bridge,
    program,
    restore_input,
    unchanged,
)

SWEEP = (sys.executable, "-m", "netsweep", "sweep")


def rules_of(ns: Namespace, flavour: str, family: str = "ipv4") -> list[str]:
    """``iptables-save``, or ``nft list ruleset`` for inet, less the counters."""
    return [re.sub(r"\[\d+:\d+\]|packets \d+ bytes \d+", "", line).strip() for line in ns.save(flavour, family)]


def bystanders(ns: Namespace, flavour: str, family: str) -> list[str]:
    """The rules that are no orphans, with their counters."""
    return [line for line in ns.save(flavour, family) if "hmdead" not in line]


def order_of(ns: Namespace, flavour: str, family: str = "ipv4") -> list[str]:
    """The names of all rules, in order; see :func:`named`."""
    found = [re.search(r'comment "?(?:hypeman-)?([^\s"-][^\s"]*)', line) for line in ns.save(flavour, family)]
    return [match.group(1) for match in found if match]


def named(*names: str, chain: str = "FORWARD") -> list[str]:
    """Rules that are told apart by their comments; orphans are those called ``…-hmdead``."""
    comments = [f"hypeman-{name}" if name.endswith("-hmdead") else name for name in names]
    return [f"-A {chain} -p tcp -m comment --comment {comment} -j ACCEPT" for comment in comments]


def deletion(ns: Namespace, flavour: str, family: str, name: str) -> list[str]:
    """The command that deletes a rule of FORWARD that :func:`named` made."""
    if family != "inet":
        return [program(flavour, family), "-w", "5", *named(name)[0].replace("-A", "-D").split()]
    listed = ns.run("nft", "-a", "list", "chain", "inet", "filter", "FORWARD").stdout
    (handle,) = re.findall(rf'comment "{name}" # handle (\d+)', listed)
    return ["nft", "delete", "rule", "inet", "filter", "FORWARD", "handle", handle]


def swept(ns: Namespace, *options: str) -> Path:
    """Sweep with a journal that is new."""
    journal = ns.directory / f"journal-{len(list(ns.directory.iterdir()))}"
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


NATIVE = [
    'iifname "hmdead" oifname != "eth0" meta nfproto ipv6 drop',
    'iifname "hmdead" ip saddr 10.200.0.0/16 ip daddr != 192.0.2.1 accept',
    'iifname "hmdead" ip6 saddr fd00:1::/64 ip6 daddr != 2001:db8::1 accept',
    'iifname "hmdead" tcp dport 22 tcp flags & (syn | rst) == syn counter accept',
    'iifname "hmdead" udp sport 1000-2000 drop',
    'iifname "hmdead" meta l4proto ipv6-icmp icmpv6 type echo-request accept',
    'iifname "hmdead" ct state established,related accept',
    'iifname "hmdead" ct mark and 0xf0 == 0x20 meta mark set 0x7',
    'iifname "hmdead" ct status dnat ct direction original accept',
    'iifname "hmdead" limit rate over 9/second burst 20 packets drop',
    'iifname "hmdead" quota over 25 mbytes drop',
    'iifname "hmdead" ip saddr @blocked drop',
    'iifname "hmdead" update @seen { ip saddr timeout 1m } accept',
    'iifname "hmdead" counter name "hits" accept',
    'iifname "hmdead" fib saddr type local drop',
    'iifname "hmdead" fib saddr . iif oif missing drop',
    'iifname "hmdead" meta pkttype multicast meta length 100-200 drop',
    'iifname "hmdead" numgen random mod 4 0 drop',
    'iifname "hmdead" jhash ip saddr mod 2 1 drop',
    'iifname "hmdead" rt ip nexthop 192.0.2.1 accept',
    'iifname "hmdead" socket transparent 1 accept',
    'iifname "hmdead" exthdr frag exists drop',
    'iifname "hmdead" tcp option maxseg size set 1400',
    'iifname "hmdead" reset tcp option sack-perm',
    'iifname "hmdead" osf name "Linux" drop',
    'iifname "hmdead" log prefix "swept: " level info flags all',
    'iifname "hmdead" log group 7 drop',
    'iifname "hmdead" queue flags bypass to 4',
    'iifname "hmdead" reject with icmpx admin-prohibited',
    'iifname "hmdead" jump USERS',
    'iifname "hmdead" goto USERS',
    'ct state new accept comment "hypeman-fwd-out-hmdead"',
    'counter comment "hypeman-fwd-out-hmdead"',
]
"""Orphans in the words of nft; the least a kernel has to know of them is tested for."""

NATIVE_NAT = [
    'ip saddr 10.200.1.0/24 oifname "eth0" masquerade random comment "hypeman-nat-hmdead"',
    'oifname "hmdead" meta l4proto tcp masquerade to :1024-2048',
    'oifname "hmdead" snat ip to 192.0.2.1-192.0.2.9 persistent',
    'oifname "hmdead" snat ip6 to 2001:db8::1',
]


def among_others(rules: list[str], other: str) -> list[str]:
    """``rules``, and before every third one ``other`` with a number of its own."""
    mixed = list(rules)
    for number in range(len(rules) // 3 + 1):
        mixed.insert(number * 4, other.format(number + 1))
    return mixed


@pytest.fixture
def rich(ns: Namespace, place: tuple[str, str]) -> Namespace:
    """Orphans of as many kinds as this host can make, among rules of others."""
    flavour, family = place
    if family == "inet":
        fill_natively(ns)
        return ns
    of_family = ("family", "inet6") if family == "ipv6" else ()
    ns.run("ipset", "create", "blocked", "hash:ip,port", *of_family, "timeout", "0")
    table = accepted(ns, flavour, "filter", "FORWARD", EXTENSIONS + IPV6, family)
    nat = accepted(ns, flavour, "nat", "POSTROUTING", NAT, family)
    assert len(table) >= 30
    assert len(nat) >= 5
    other = "-p tcp -m tcp --dport {0} -c {0} 84 -j ACCEPT"
    mixed, copies = (among_others(rules, f"-A FORWARD {other}") for rules in (table, table[:3]))
    tables = {
        "filter": [":USERS - [0:0]", "-F", *mixed, "-A USERS -j RETURN", *copies],
        "nat": ["-F", *among_others(nat, f"-A POSTROUTING {other}")],
    }
    ns.restore(flavour, restore_input(tables), family)
    return ns


def fill_natively(ns: Namespace) -> None:
    sets = "set blocked { type ipv4_addr; }; set seen { type ipv4_addr; flags dynamic, timeout; }; counter hits { };"
    ns.run("nft", f"table inet filter {{ {sets} chain FORWARD {{ }}; chain USERS {{ }}; }}")
    ns.run("nft", "table inet nat { chain POSTROUTING { type nat hook postrouting priority 100; }; }")
    total = 0
    for chain, bodies in (("filter FORWARD", NATIVE), ("nat POSTROUTING", NATIVE_NAT)):
        rules = [f"add rule inet {chain} {body}" for body in bodies]
        known = [rule for rule in rules if ns.run("nft", rule, check=False).returncode == 0]
        total += len(known)
        ns.run("nft", f"flush chain inet {chain}")
        other = f"add rule inet {chain} tcp dport {{0}} counter packets {{0}} bytes 84 accept"
        ns.run("nft", "-f", "-", input="\n".join([*among_others(known, other), *known[:3]]))
    assert total >= 25


def test_a_round_trip_gives_back_the_same_rules(rich: Namespace, place: tuple[str, str]) -> None:
    ns = rich
    before, others = rules_of(ns, *place), bystanders(ns, *place)
    orphans = [line for line in before if "hmdead" in line]
    assert len(orphans) >= 25

    journal = swept(ns)
    assert rules_of(ns, *place) == [line for line in before if "hmdead" not in line]
    assert restored(ns, journal) == len(orphans)
    assert rules_of(ns, *place) == before

    assert "exists already" in refused(ns, journal)
    second = swept(ns)
    assert restored(ns, second) == len(orphans)
    assert rules_of(ns, *place) == before
    assert bystanders(ns, *place) == others


def test_restored_rules_work(ns: Namespace, place: tuple[str, str]) -> None:
    """A jump leads to its chain again and a match looks at packets again."""
    flavour, family = place
    match = "udp --dport 9" if family == "inet" else "multiport --dports 7,9"
    rules = [
        ":USERS - [0:0]",
        "-A USERS -p udp -m udp --dport 9 -j DROP",
        f"-A OUTPUT -p udp -m {match} {COMMENT} -j USERS",
    ]
    ns.restore(flavour, restore_input({"filter": rules}), family)
    assert restored(ns, swept(ns, "--chain", "filter/OUTPUT")) == 1
    ns.run("ip", "link", "set", "lo", "up")
    # The receiver is not there, and sending says so or not.
    address = "::1" if family == "ipv6" else "127.0.0.1"
    ns.run("bash", "-c", f"echo x >/dev/udp/{address}/9", check=False)
    about = [line for line in ns.save(flavour, family) if "udp" in line]
    assert len(about) == 2
    assert all(re.search(r"^\[1:|packets 1 ", line) for line in about), about


def test_rules_come_back_to_their_places_whatever_changed_elsewhere(ns: Namespace, place: tuple[str, str]) -> None:
    flavour, family = place
    names = ("a", "one-hmdead", "b", "two-hmdead", "three-hmdead", "c", "four-hmdead", "d")
    ns.restore(flavour, restore_input({"filter": named(*names)}), family)
    journal = swept(ns)
    assert order_of(ns, *place) == ["a", "b", "c", "d"]
    first, last = named("first")[0].replace("-A", "-I"), named("last")[0]
    ns.restore(flavour, restore_input({"filter": [first, last, "-A INPUT -j ACCEPT"]}), family)
    ns.run(*deletion(ns, flavour, family, "b"))
    assert restored(ns, journal) == 4
    expected = ["first", "a", "one-hmdead", "two-hmdead", "three-hmdead", "c", "four-hmdead", "d", "last"]
    assert order_of(ns, *place) == expected


def test_copies_and_twins_of_neighbours_do_not_confuse_places(ns: Namespace, place: tuple[str, str]) -> None:
    flavour, family = place
    order = ["a", "x-hmdead", "a", "x-hmdead", "x-hmdead", "b", "a", "y-hmdead", "a"]
    ns.restore(flavour, restore_input({"filter": named(*order)}), family)
    journal = swept(ns)
    assert order_of(ns, *place) == ["a", "a", "b", "a", "a"]
    assert restored(ns, journal) == 4
    assert order_of(ns, *place) == order


def test_a_chain_that_held_nothing_else_gets_its_rules_back(ns: Namespace, place: tuple[str, str]) -> None:
    flavour, family = place
    ns.restore(flavour, leaks(["hmdead", "hmbee"]), family)
    before = rules_of(ns, *place)
    assert restored(ns, swept(ns)) == 6
    assert rules_of(ns, *place) == before


def test_all_families_of_both_backends_come_back_from_one_journal(ns: Namespace) -> None:
    for flavour, family in PLACES:
        ns.restore(flavour, leaks(["hmdead", "hmbee"]), family)
    before = [rules_of(ns, *each) for each in PLACES]
    journal = swept(ns)
    assert not [line for each in PLACES for line in ns.save(*each) if "hypeman" in line]
    assert restored(ns, journal) == 6 * len(PLACES)
    assert [rules_of(ns, *each) for each in PLACES] == before


def test_more_rules_than_one_transaction_takes_come_back(ns: Namespace, place: tuple[str, str]) -> None:
    flavour, family = place
    head, tail = (restore_input({"filter": named(name)}) for name in ("head", "tail"))
    ns.restore(flavour, head + leaks(f"hm{number:x}" for number in range(700)) + tail, family)
    before = rules_of(ns, *place)
    assert restored(ns, swept(ns)) == 2100
    assert rules_of(ns, *place) == before


CHAIN_GONE = ["-F JOBS", "-X JOBS"]
TARGET_GONE = ["-X USERS"]


@pytest.mark.parametrize("spoiling", [CHAIN_GONE, TARGET_GONE], ids=["chain", "target"])
def test_what_no_longer_fits_is_refused_and_no_table_is_changed(
    ns: Namespace, place: tuple[str, str], spoiling: list[str]
) -> None:
    flavour, family = place
    tables = {
        # The table that still fits comes first, so that it would be changed if anything were.
        "nat": [*named("x", "one-hmdead", "y", chain="POSTROUTING")],
        "filter": [
            ":JOBS - [0:0]",
            ":USERS - [0:0]",
            *named("a", "one-hmdead", "two-hmdead", "b", "c"),
            *named("j", "three-hmdead", chain="JOBS"),
            f"-A FORWARD {COMMENT} -j USERS",
        ],
    }
    ns.restore(flavour, restore_input(tables), family)
    chains = ("nat/POSTROUTING", "filter/JOBS", "filter/FORWARD")
    journal = swept(ns, *(part for chain in chains for part in ("--chain", chain)))
    assert not [line for line in ns.save(*place) if "hmdead" in line]
    ns.restore(flavour, restore_input({"filter": spoiling}), family)
    refused(ns, journal)


def test_a_rule_never_comes_back_for_another_set(ns: Namespace, flavour: str) -> None:
    """In the kernel a rule holds its set's number, which is given out again."""
    ns.run("ipset", "create", "blocked", "hash:ip")
    ns.restore(
        flavour, restore_input({"filter": [f"-A FORWARD -i hmdead {COMMENT} -m set --match-set blocked src -j ACCEPT"]})
    )
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


def test_a_journal_of_another_user_is_not_permitted(ns: Namespace) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    journal = swept(ns)
    os.chown(journal, 1000, 1000)
    assert "can be written by other users" in refused(ns, journal, 77)


def test_a_link_to_a_journal_and_no_journal_are_refused(ns: Namespace) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    journal = swept(ns)
    link = ns.directory / "link"
    link.symlink_to(journal)
    assert "is a link" in refused(ns, link)
    assert "there is no journal" in refused(ns, ns.directory / "missing")


@pytest.mark.parametrize(
    ("table", "rule"),
    [
        ("ip filter", 'FORWARD iifname "hmdead" ip saddr { 192.0.2.1, 192.0.2.2 } drop'),
        ("ip filter", 'FORWARD iifname "hmdead" tcp dport vmap { 22 : accept, 23 : drop }'),
        ("ip filter", 'FORWARD iifname "hmdead" tcp dport 22 jump { counter; drop; }'),
        ("ip nat", 'POSTROUTING ip saddr { 192.0.2.1, 192.0.2.2 } masquerade comment "hypeman-nat-hmdead"'),
        ("inet filter", 'FORWARD iifname "hmdead" ip6 saddr { fd00::1, fd00::2 } drop'),
    ],
)
def test_a_rule_that_cannot_be_put_back_stops_a_sweep_before_anything_is_deleted(
    ns: Namespace, table: str, rule: str
) -> None:
    for flavour in FLAVOURS:
        ns.restore(flavour, leaks(["hmdead"]))
    ns.run("nft", f"add table {table}; add chain {table} {rule.split()[0]}; add rule {table} {rule}")
    with unchanged(ns):
        line = complaint(ns.netsweep("sweep", "--journal", str(ns.directory / "journal")), 1)
    assert "is deleted with the rule: it could not be put back, so it was not deleted" in line
    assert "without --journal" in line
    assert ns.netsweep("sweep").returncode == 0
    assert "hmdead" not in ns.ruleset()


def test_a_rule_that_cannot_be_put_back_is_found_behind_many_others(ns: Namespace) -> None:
    ns.restore("nft", leaks(f"hm{number:x}" for number in range(700)))
    ns.run("nft", 'add rule ip filter FORWARD iifname "hmdead" ip saddr { 192.0.2.1, 192.0.2.2 } drop')
    with unchanged(ns):
        assert "is deleted with the rule" in complaint(
            ns.netsweep("sweep", "--journal", str(ns.directory / "journal")), 1
        )


def full_disk(ns: Namespace, room: int) -> tuple[str, ...]:
    """Runs what follows it with a journal directory that takes ``room`` more bytes."""
    directory = ns.directory / "full"
    directory.mkdir()
    script = (
        f"mount -t tmpfs -o size=64k netsweep '{directory}' && "
        f"head -c {65536 - 4096 * -(-room // 4096)} /dev/zero >'{directory}/filling' && exec \"$@\""
    )
    return ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh")


@pytest.mark.parametrize("room", [0, 50, 300])
def test_nothing_is_deleted_where_the_journal_cannot_grow(ns: Namespace, flavour: str, room: int) -> None:
    ns.restore(flavour, leaks(["hmdead"]))
    journal = ns.directory / "journal"
    with unchanged(ns):
        done = ns.run("prlimit", f"--fsize={room}", *SWEEP, "--journal", str(journal), check=False)
    assert "cannot write journal" in complaint(done, 1)


@pytest.mark.parametrize("room", [0, 4096])
def test_nothing_is_deleted_where_the_disk_is_full(ns: Namespace, flavour: str, room: int) -> None:
    ns.restore(flavour, leaks(f"hm{number:x}" for number in range(20)))
    with unchanged(ns):
        done = ns.run(*full_disk(ns, room), *SWEEP, "--journal", str(ns.directory / "full" / "journal"), check=False)
    line = complaint(done, 1)
    assert "journal" in line
    assert "No space left" in line


def test_what_was_deleted_before_the_journal_broke_off_can_be_put_back(ns: Namespace, flavour: str) -> None:
    ns.restore(flavour, leaks(["hmdead"]))
    before = rules_of(ns, flavour)
    whole = swept(ns)
    restored(ns, whole)
    # Room for the header, the first table and the beginning of the second.
    size = sum(map(len, whole.read_bytes().splitlines(keepends=True)[:3])) + 10
    journal = ns.directory / "journal"
    done = ns.run("prlimit", f"--fsize={size}", *SWEEP, "--journal", str(journal), check=False)
    assert "cannot write journal" in complaint(done, 1)
    went = len(before) - len(rules_of(ns, flavour))
    assert 0 < went < 3
    assert "Failed" in done.stdout
    assert re.search(rf"deleted {went} rules?\b", done.stdout)
    assert restored(ns, journal) == went
    assert rules_of(ns, flavour) == before


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
    journal = ns.directory / "journal"
    ns.run("sh", "-c", f'umask {umask} && exec "$@"', "sh", *SWEEP, "--journal", str(journal))
    assert journal.stat().st_mode & 0o7777 == 0o600
    assert restored(ns, journal) == 3


def test_where_nothing_goes_there_is_no_journal(ns: Namespace, flavour: str) -> None:
    ns.restore(flavour, restore_input({"filter": named("a")}))
    journal = ns.directory / "journal"
    assert ns.netsweep("sweep", "--journal", str(journal)).returncode == 0
    ns.restore(flavour, leaks(["hmdead"]))
    assert ns.netsweep("sweep", "--dry-run", "--journal", str(journal)).returncode == 0
    assert not journal.exists()


def killed_at(ns: Namespace, transaction: int, journal: Path, command: str = "sweep") -> None:
    """Sweep or restore, and die when the given transaction is about to be sent, its entry being in the journal."""
    arguments = ["restore", str(journal)] if command == "restore" else ["sweep", "--journal", str(journal)]
    code = f"""
import os, signal, sys
from netsweep.__main__ import main
from netsweep.firewall.nftables import transport as nft
from netsweep.firewall.xtables import transport as legacy

count = 0

def dying(commit):
    def wrapped(self, *arguments, **named):
        global count
        count += 1
        if count == {transaction}:
            os.kill(os.getpid(), signal.SIGKILL)
        commit(self, *arguments, **named)
    return wrapped

for module in (legacy, nft):
    module._Transaction.commit = dying(module._Transaction.commit)
sys.argv = ["netsweep", *{arguments!r}]
main()
"""
    assert ns.run(sys.executable, "-c", code, check=False).returncode == -9


def test_killed_before_the_first_transaction_there_is_nothing_to_put_back(
    ns: Namespace, place: tuple[str, str]
) -> None:
    flavour, family = place
    ns.restore(flavour, leaks(["hmdead"]), family)
    before = rules_of(ns, *place)
    journal = ns.directory / "journal"
    with unchanged(ns):
        killed_at(ns, 1, journal)
    assert "exists already" in refused(ns, journal)
    known = len(json.loads(journal.read_text().splitlines()[1])["rules"])
    second = swept(ns)
    assert restored(ns, journal) == known
    assert restored(ns, second) == 3 - known
    assert rules_of(ns, *place) == before


@pytest.mark.parametrize("cut", [0, 20])
def test_killed_between_two_transactions_only_what_went_comes_back(
    ns: Namespace, place: tuple[str, str], cut: int
) -> None:
    """The second entry is whole, or cut off as it was written."""
    flavour, family = place
    ns.restore(flavour, leaks(["hmdead"]), family)
    before = rules_of(ns, *place)
    journal = ns.directory / "journal"
    killed_at(ns, 2, journal)
    went = len(before) - len(rules_of(ns, *place))
    assert 0 < went < 3
    content = journal.read_bytes()
    journal.write_bytes(content[: len(content) - cut])
    assert restored(ns, journal) == went
    assert rules_of(ns, *place) == before
    assert "exists already" in refused(ns, journal)


@pytest.mark.parametrize("family", FAMILIES["nft"])
def test_killed_between_two_transactions_of_one_chain_only_what_went_comes_back(ns: Namespace, family: str) -> None:
    ns.restore("nft", leaks(f"hm{number:x}" for number in range(700)), family)
    before = rules_of(ns, "nft", family)
    journal = ns.directory / "journal"
    killed_at(ns, 2, journal)
    went = len(before) - len(rules_of(ns, "nft", family))
    assert 0 < went < 1400
    assert restored(ns, journal) == went
    assert rules_of(ns, "nft", family) == before


def test_a_journal_of_another_namespace_is_refused_unless_forced(ns: Namespace, flavour: str, tmp_path: Path) -> None:
    ns.restore(flavour, leaks(["hmdead"]))
    before = rules_of(ns, flavour)
    journal = swept(ns)
    with new_namespace(tmp_path) as other:
        other.restore(flavour, restore_input({"filter": named("a"), "nat": named("a", chain="POSTROUTING")}))
        assert "another network namespace" in refused(other, journal)
        done = other.netsweep("restore", str(journal), "--force")
        assert (done.returncode, done.stderr) == (0, "")
        there = rules_of(other, flavour)
    assert [line for line in there if "hmdead" in line] == [line for line in before if "hmdead" in line]


def test_a_restore_goes_on_where_one_was_killed(ns: Namespace, place: tuple[str, str]) -> None:
    flavour, family = place
    ns.restore(flavour, leaks(f"hm{number:x}" for number in range(700)), family)
    before = rules_of(ns, *place)
    journal = swept(ns)
    killed_at(ns, 2, journal, command="restore")
    back = len([line for line in rules_of(ns, *place) if "hypeman" in line])
    assert 0 < back < 2100
    assert restored(ns, journal) == 2100 - back
    assert rules_of(ns, *place) == before


@pytest.mark.parametrize("family", FAMILIES["nft"])
def test_a_neighbour_that_goes_between_plan_and_check_lets_a_restore_plan_again(ns: Namespace, family: str) -> None:
    ns.restore("nft", restore_input({"filter": named("a", "b", "one-hmdead", "c")}), family)
    journal = swept(ns)
    code = f"""
import subprocess, sys
from netsweep.__main__ import main
from netsweep.firewall.nftables.transport import _Transaction

check = _Transaction.check

def after_others(self):
    _Transaction.check = check
    subprocess.run({deletion(ns, "nft", family, "b")!r}, check=True)
    check(self)

_Transaction.check = after_others
sys.argv = ["netsweep", "restore", {str(journal)!r}]
main()
"""
    done = ns.run(sys.executable, "-c", code, check=False)
    assert done.returncode == 0, done.stderr
    assert order_of(ns, "nft", family) == ["a", "one-hmdead", "c"]


def test_two_restores_at_once_put_nothing_back_twice(ns: Namespace) -> None:
    """The second one comes between the first one's plan and its commit, and finds the journal in use."""
    ns.restore("nft", restore_input({"filter": named("a", "one-hmdead", "b", "two-hmdead", "c")}))
    before = rules_of(ns, "nft")
    journal = swept(ns)
    code = f"""
import subprocess, sys
from netsweep.__main__ import main
from netsweep.firewall.nftables.transport import _Transaction

restore = ["restore", {str(journal)!r}]
commit = _Transaction.commit

def second_first(self, *arguments, **named):
    _Transaction.commit = commit
    second = subprocess.run([sys.executable, "-m", "netsweep", *restore, "--wait", "0"])
    assert second.returncode == 75, second
    commit(self, *arguments, **named)

_Transaction.commit = second_first
sys.argv = ["netsweep", *restore]
main()
"""
    done = ns.run(sys.executable, "-c", code, check=False)
    assert done.returncode == 0, done.stderr
    assert rules_of(ns, "nft") == before


def contents(ns: Namespace) -> list[str]:
    """The rules of all firewalls, less counters and handles."""
    return [
        *rules_of(ns, "legacy"),
        *rules_of(ns, "legacy", "ipv6"),
        *rules_of(ns, "nft"),
        *rules_of(ns, "nft", "ipv6"),
    ]


def test_a_sweep_ends_with_the_command_that_undoes_it(ns: Namespace, flavour: str) -> None:
    ns.restore(flavour, leaks(["hmdead"]))
    before = contents(ns)
    journal = ns.directory / "it's swept"
    done = ns.netsweep("sweep", "--journal", os.path.relpath(journal))
    *_, summary, undo = done.stdout.splitlines()
    assert summary.startswith("Deleted 3 orphaned rules")
    command = undo.removeprefix("Undo: netsweep ")
    assert command != undo
    # Whatever the current directory is.
    ns.run("sh", "-ec", f'cd /; "$@" {command}', "sh", *NETSWEEP)
    assert contents(ns) == before
    ns.restore(flavour, leaks(["hmbee"]))
    report = json.loads(ns.netsweep("sweep", "--journal", str(ns.directory / "second"), "--format", "json").stdout)
    assert report["journal"] == str(ns.directory / "second")


@pytest.mark.parametrize("name", ["ge\u00f6ffnet", "a\nb", "back\\slash", "##[group]x"])
def test_the_command_that_undoes_a_sweep_is_plain_text_and_right_whatever_the_path_is(ns: Namespace, name: str) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    done = ns.netsweep("sweep", "--journal", str(ns.directory / name))
    undo = done.stdout.splitlines()[-1]
    assert undo.isascii()
    assert undo.isprintable()
    assert "##[" not in undo
    arguments = ns.run("bash", "-c", f"printf '%s\\0' {undo}").stdout.split("\0")
    assert arguments[:-1] == ["Undo:", "netsweep", "restore", str(ns.directory / name)]


def test_nothing_is_to_be_undone_where_nothing_was_deleted(ns: Namespace) -> None:
    journal = ns.directory / "journal"
    ns.restore("nft", leaks(["hmdead"]))
    for options in (["--dry-run"], ["--max-deletes", "1"]):
        done = ns.netsweep("sweep", "--journal", str(journal), *options)
        assert "Undo" not in done.stdout
    assert "Undo" not in ns.netsweep("sweep").stdout
    assert "Undo" not in ns.netsweep("sweep", "--journal", str(journal)).stdout
    assert not journal.exists()


def test_in_a_directory_each_sweep_gets_a_journal_of_its_own(ns: Namespace) -> None:
    directory = ns.directory / "journals"
    directory.mkdir()
    assert "Undo" not in ns.netsweep("sweep", "--journal", str(directory)).stdout
    assert list(directory.iterdir()) == []
    ns.restore("nft", leaks(["hm7"]))
    assert f"Undo: netsweep restore {directory}/netsweep-" in ns.netsweep("sweep", "--journal", f"{directory}/").stdout
    found = []
    for name in ("hmf1", "hmf2", "hmf3"):
        ns.restore("nft", leaks([name]))
        undo = ns.netsweep("sweep", "--journal", str(directory)).stdout.splitlines()[-1]
        found.append(Path(undo.split()[-1]))
    names = [each.name for each in found]
    assert all(re.fullmatch(r"netsweep-\d{8}T\d{6}Z-\d+\.journal", each) for each in names)
    assert [stat.S_IMODE(each.stat().st_mode) for each in found] == [0o600] * 3
    assert len(list(directory.iterdir())) == 4
    planted = directory / "netsweep-20991231T235959Z-1.journal"
    planted.touch()
    os.chown(planted, NOBODY, NOBODY)
    line = complaint(ns.netsweep("restore", str(directory)), 1)
    assert line.startswith(
        f"netsweep: {str(directory)!a} is a directory; its newest journal is {str(found[2])!a}, "
        f"before that {str(found[1])!a}, {str(found[0])!a} and 1 more"
    )
    assert restored(ns, found[1]) == 3
    assert of_bridge(ns, "nft", "hmf2") == 3
    assert "is a directory without journals" in complaint(ns.netsweep("restore", str(ns.directory)), 1)


def test_two_sweeps_of_one_process_in_one_second_have_two_journals(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_process(ns, monkeypatch)
    monkeypatch.setattr(time, "strftime", lambda *_: "20261127T013000Z")
    found = []
    for bridge in ("hm1", "hm2", "hm3"):
        ns.restore("nft", leaks([bridge]))
        found.append(ns.inside(lambda: netsweep.sweep(journal=ns.directory)).journal)
    stem = f"{ns.directory}/netsweep-20261127T013000Z-{os.getpid()}"
    assert found == [f"{stem}.journal", f"{stem}-2.journal", f"{stem}-3.journal"]


def test_a_directory_where_a_journal_is_at_anybodys_mercy_is_refused(ns: Namespace) -> None:
    ns.restore("nft", leaks(["hmdead"]))
    directory, link = ns.directory / "open", ns.directory / "link"
    directory.mkdir()
    link.symlink_to(directory)
    directory.chmod(0o777)
    with unchanged(ns):
        for command in ("sweep", "doctor"):
            assert "every user can remove" in complaint(ns.netsweep(command, "--journal", str(directory)), 1)
        assert ns.netsweep("doctor", "--journal", str(ns.directory)).returncode == 0
        missing = complaint(ns.netsweep("sweep", "--journal", f"{ns.directory}/none/"), 1)
        assert "cannot create journal" in missing
        os.chown(link, NOBODY, NOBODY, follow_symlinks=False)
        directory.chmod(0o1777)
        for path in (str(link), f"{link}/"):
            assert "another user's link" in complaint(ns.netsweep("sweep", "--journal", path), 1)
        theirs = directory / "journal"  # as /tmp/journal, where a new file was meant
        theirs.mkdir(mode=0o755)
        os.chown(theirs, NOBODY, NOBODY)
        for command in ("sweep", "doctor"):
            assert "another user's directory" in complaint(ns.netsweep(command, "--journal", str(theirs)), 1)
        theirs.rmdir()
    assert list(directory.iterdir()) == []
    os.chown(link, 0, 0, follow_symlinks=False)
    assert "Undo: netsweep restore" in ns.netsweep("sweep", "--journal", str(link)).stdout
    assert len(list(directory.iterdir())) == 1


def test_a_sweep_that_is_stopped_names_its_journal(ns: Namespace) -> None:
    names = [f"hm{number:x}" for number in range(40)]
    ns.add_bridges(*names)
    ns.run("ip", "-batch", "-", input="".join(f"address add 10.200.{at}.1/24 dev hm{at:x}\n" for at in range(40)))
    journal = ns.directory / "journal"
    sweep = ns.start(*NETSWEEP, "sweep", "--bridges", "--min-age", "0s", "--journal", str(journal))
    deadline = time.monotonic() + 30
    while not (journal.exists() and b'"bridge"' in journal.read_bytes()):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    sweep.send_signal(signal.SIGTERM)
    _, said = sweep.communicate(timeout=30)
    assert sweep.returncode == 128 + signal.SIGTERM
    assert said.splitlines()[-1].endswith(f"; what was deleted is in the journal {str(journal)!a}")


def test_a_dry_run_of_a_restore_shows_the_rules_in_their_places_and_changes_nothing(
    ns: Namespace, place: tuple[str, str]
) -> None:
    flavour, family = place
    names = ["a", "one-hmdead", "two-hmdead", "b", "three-hmdead"]
    ns.restore(flavour, restore_input({"filter": named(*names)}), family)
    journal = swept(ns)
    options = ("restore", "--dry-run", str(journal))
    files = sorted(ns.directory.iterdir())
    with unchanged(ns), flocked(ns.lock_file), flocked(ns.xtables_lock), flocked(journal):
        done = ns.netsweep(*options, "--wait", "0")
        report = json.loads(ns.netsweep(*options, "--wait", "0", "--format", "json").stdout)
    assert sorted(ns.directory.iterdir()) == sorted({*files, ns.lock_file, ns.xtables_lock})
    assert (done.returncode, done.stderr) == (0, "")
    label = flavour if family == "ipv4" else f"{flavour} {family}"
    assert done.stdout.splitlines() == [
        *(
            f'{label} filter/FORWARD {position}: -p tcp -j ACCEPT "hypeman-{name}-hmdead"'
            for position, name in ((2, "one"), (3, "two"), (5, "three"))
        ),
        "",
        f"Would restore 3 rules ({label}: 3); nothing was changed.",
    ]
    assert (report["dry_run"], report["changed"], report["errors"]) == (True, False, [])
    shown = [(each["family"], each["position"], each["comment"]) for each in report["returning"]]
    assert shown == [(family, at, f"hypeman-{name}-hmdead") for at, name in ((2, "one"), (3, "two"), (5, "three"))]
    assert restored(ns, journal) == 3
    assert order_of(ns, flavour, family) == names
    with unchanged(ns):
        assert "exists already" in complaint(ns.netsweep(*options), 1)


def test_a_dry_run_of_a_restore_refuses_what_a_restore_does(ns: Namespace, flavour: str) -> None:
    ns.restore(flavour, restore_input({"filter": [":X - [0:0]", *named("x-hmdead", chain="X")]}))
    journal = swept(ns, "--chain", "filter/X")
    ns.run(program(flavour, "ipv4"), "-X", "X")
    line = refused(ns, journal)
    with unchanged(ns):
        assert complaint(ns.netsweep("restore", "--dry-run", str(journal)), 1) == line
