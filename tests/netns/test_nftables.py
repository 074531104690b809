"""What only nf_tables has: generations, batches that adapt, handles that begin again, owners."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
from pyroute2.netlink import NLM_F_CREATE, NLM_F_REQUEST

import netsweep
from netsweep.errors import ContentionError, NetsweepError, TableError
from netsweep.firewall import Addition, Backend
from netsweep.firewall.nftables import messages
from netsweep.firewall.nftables.commits import Commits, TooLateError
from netsweep.firewall.nftables.transport import NftablesBackend
from netsweep.firewall.opening import open_backend
from netsweep.host import netlink
from netsweep.model import Chain, Family, Table
from tests.namespace import Namespace, in_process, leaks, read, restore_input, unchanged

FILTER = Table("nft", Family.IPV4, "filter")
FORWARD = Chain(FILTER, "FORWARD")
JOBS = Chain(FILTER, "JOBS")


@pytest.fixture
def table(ns: Namespace) -> Namespace:
    rules = [f"-A FORWARD -m comment --comment {name} -j ACCEPT" for name in ("hm-a", "other", "hm-b", "hm-c")]
    ns.restore("nft", restore_input({"filter": [":JOBS - [0:0]", *rules]}))
    return ns


def within(ns: Namespace, use: Callable[[Backend], None], *, undo: bool = False, writes: bool = True) -> None:
    """Call ``use`` with a backend in the namespace."""

    def call() -> None:
        with closing(open_backend("nft", (b"hm",), undo=undo, writes=writes)) as backend:
            use(backend)

    ns.inside(call)


def comments(ns: Namespace) -> list[str]:
    lines = ns.save("nft")
    return [line.split("--comment ")[1].split()[0].strip('"') for line in lines if "-A FORWARD" in line]


@pytest.mark.parametrize("undo", [False, True])
@pytest.mark.parametrize(
    ("change", "shown", "left"),
    [
        (("nft", "replace", "rule", "ip", "filter", "FORWARD", "handle", "{handle}", "drop"), ["hm-b", "hm-c"], 1),
        (("iptables-nft", "-R", "FORWARD", "1", "-i", "eth0", "-j", "DROP"), ["hm-b", "hm-c"], 1),
    ],
)
def test_a_rule_that_was_replaced_under_its_handle_by_either_program_is_shown_as_what_it_is(
    table: Namespace, change: tuple[str, ...], shown: list[str], left: int, undo: bool
) -> None:
    def sweep(backend: Backend) -> None:
        rules = read(backend, FORWARD).rules
        table.run(*(part.format(handle=rules[0].handle) for part in change))
        with backend.transaction([FORWARD], rules, orders=undo) as transaction:
            assert [rule.spec.comment for rule in transaction.rules if rule.spec.comment] == shown
            transaction.delete([rule for rule in transaction.rules if rule.spec.comment])
            transaction.commit()

    within(table, sweep, undo=undo)
    lines = [line for line in table.save("nft") if "-A FORWARD" in line]
    assert len(lines) == 1 + left
    assert "DROP" in lines[0]


@pytest.mark.parametrize("undo", [False, True])
@pytest.mark.parametrize("program", ["iptables-nft-restore", "nft"])
def test_a_table_that_was_made_anew_shows_no_rule_of_before(table: Namespace, program: str, undo: bool) -> None:
    """The handles are the same, and the rules are others."""

    def remake() -> None:
        if program == "nft":
            rules = "".join(f'add rule ip filter FORWARD accept comment "{name}"\n' for name in ("live-1", "live-2"))
            chain = "add chain ip filter FORWARD { type filter hook forward priority 0; }\n"
            table.run("nft", "-f", "-", input=f"flush ruleset\nadd table ip filter\n{chain}{rules}")
        else:
            lines = [f"-A FORWARD -m comment --comment {name} -j ACCEPT" for name in ("live-1", "live-2", "live-3")]
            table.run("iptables-nft-restore", input=restore_input({"filter": [":JOBS - [0:0]", *lines]}))

    def sweep(backend: Backend) -> None:
        rules = read(backend, FORWARD).rules
        remake()
        with backend.transaction([FORWARD], rules, orders=undo) as transaction:
            assert not [rule for rule in transaction.rules if (rule.spec.comment or "").startswith("hm")]
            with unchanged(table):
                transaction.delete([])
                transaction.check()

    within(table, sweep, undo=undo)


def test_what_others_commit_elsewhere_stops_nothing(table: Namespace) -> None:
    """On a busy host somebody commits all the time."""

    def sweep(backend: Backend) -> None:
        rules = read(backend, FORWARD).rules
        with backend.transaction([FORWARD], rules) as transaction:
            transaction.delete(transaction.rules)
            table.run("nft", "add", "table", "inet", "elsewhere")
            table.iptables("nft", "-A", "FORWARD", "-m", "comment", "--comment", "hm-new", "-j", "ACCEPT")
            transaction.commit()

    within(table, sweep)
    assert comments(table) == ["other", "hm-new"]


@pytest.mark.parametrize("undo", [False, True])
def test_a_table_that_was_made_anew_can_be_swept_in_the_same_run(table: Namespace, undo: bool) -> None:
    def sweep(backend: Backend) -> None:
        rules = read(backend, FORWARD).rules
        lines = [f"-A FORWARD -m comment --comment {name} -j ACCEPT" for name in ("live", "hm-a", "hm-b")]
        table.run("iptables-nft-restore", input=restore_input({"filter": lines}))
        for _ in range(2):
            with suppress(ContentionError), backend.transaction([FORWARD], rules, orders=undo) as transaction:
                transaction.delete([rule for rule in transaction.rules if rule.spec.comment == "hm-a"])
                transaction.commit()
            rules = read(backend, FORWARD).rules

    within(table, sweep, undo=undo)
    assert comments(table) == ["live", "hm-b"]


def test_where_there_is_nothing_to_read_nf_tables_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel may have none, and a sweep of x_tables has to work there."""

    def opened(protocol: int) -> None:
        raise AssertionError(f"a socket of protocol {protocol}")

    monkeypatch.setattr(netlink, "open_socket", opened)
    with closing(NftablesBackend([b"hm"], writes=True)) as backend:
        scan = backend.read([], lambda _: True)
        assert (scan.chains, scan.rules, scan.complete) == ([], [], True)


def test_a_batch_that_was_refused_while_changes_were_lost_is_not_sent_again(
    table: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of these may have put another rule under the handle of one that is to go."""
    enlarge, follow = netlink.enlarge, Commits.follow
    monkeypatch.setattr(
        netlink, "enlarge", lambda sock, *, receive=0, send=0: enlarge(sock, receive=receive and 2**16, send=send)
    )
    refused: list[bool] = []
    lost: list[bool] = []

    def followed(commits: Commits) -> None:
        due = bool(refused) and not lost
        if due:
            many = "add rule ip many c accept\n" * 3000
            table.run("nft", "-f", "-", input=f"add table ip many\nadd chain ip many c\n{many}{replacement}")
        try:
            follow(commits)
        finally:
            if due:
                lost.append(commits.losses > 0)
                table.run("nft", "add", "table", "inet", "next")  # and this one tells the generation again

    def make_it_too_late() -> None:
        if not refused:
            refused.append(True)
            table.run("nft", "add", "table", "inet", "elsewhere")

    monkeypatch.setattr(Commits, "follow", followed)
    replacement = ""

    def sweep(backend: Backend) -> None:
        nonlocal replacement
        rules = read(backend, FORWARD).rules
        replacement = f"replace rule ip filter FORWARD handle {rules[0].handle} counter drop"
        with backend.transaction([FORWARD], rules) as transaction:
            transaction.delete(transaction.rules)
            with pytest.raises(ContentionError) as raised:
                transaction.commit(make_it_too_late)
            assert not isinstance(raised.value, TooLateError)

    within(table, sweep)
    assert lost == [True]
    lines = [line for line in table.save("nft") if "-A FORWARD" in line]
    assert len(lines) == 4, "what was not read again went"
    assert "DROP" in lines[0]


def test_what_others_commit_right_behind_a_batch_does_not_hide_what_they_commit_next(
    table: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A generation that is told along with our own commit is not counted twice."""
    follow, sending = Commits.follow, [False]

    def followed(commits: Commits) -> None:
        if sending[0]:
            sending[0] = False
            table.run("nft", "add", "table", "inet", "elsewhere")
        follow(commits)

    monkeypatch.setattr(Commits, "follow", followed)

    def sweep(backend: Backend) -> None:
        first, second, *_ = read(backend, FORWARD).rules
        with backend.transaction([FORWARD], [first]) as transaction:
            transaction.delete(transaction.rules)
            transaction.commit(lambda: sending.__setitem__(0, True))

        def replace() -> None:
            table.run("nft", f"replace rule ip filter FORWARD handle {second.handle} counter drop")

        with backend.transaction([FORWARD], [second]) as transaction:
            transaction.delete(transaction.rules)
            with pytest.raises(ContentionError):
                transaction.commit(replace)

    within(table, sweep)
    assert sum("DROP" in line for line in table.save("nft")) == 1


def test_a_batch_whose_answer_is_lost_is_not_taken_for_one_that_changed_nothing(
    table: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow = Commits.follow

    def followed(commits: Commits) -> None:
        follow(commits)
        commits._answers.clear()

    monkeypatch.setattr(Commits, "follow", followed)

    def sweep(backend: Backend) -> None:
        with backend.transaction([FORWARD], read(backend, FORWARD).rules) as transaction:
            transaction.delete(transaction.rules)
            with pytest.raises(NetsweepError, match="not known whether") as raised:
                transaction.commit()
            assert not isinstance(raised.value, ContentionError)

    within(table, sweep)


def test_after_changes_were_lost_a_transaction_commits_no_more(
    table: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it read may have changed, though the generation is told again."""
    follow, sending = Commits.follow, [False]

    def followed(commits: Commits) -> None:
        follow(commits)
        if sending[0]:
            sending[0] = False
            commits.losses += 1
            raise ContentionError("lost")

    monkeypatch.setattr(Commits, "follow", followed)

    def sweep(backend: Backend) -> None:
        first, second, *_ = read(backend, FORWARD).rules
        with backend.transaction([FORWARD], [first, second]) as transaction:
            transaction.delete([first])
            transaction.commit(lambda: sending.__setitem__(0, True))
            transaction.delete([second])
            with pytest.raises(ContentionError):
                transaction.commit()

    within(table, sweep)
    assert comments(table) == ["other", "hm-b", "hm-c"]


@pytest.mark.parametrize("undo", [False, True])
@pytest.mark.parametrize("ahead", [[], ["hmbee"]])
@pytest.mark.parametrize("now", ["hmdead", "hm1a"])
def test_a_rule_of_more_than_a_page_that_was_touched_is_read_again(
    ns: Namespace, now: str, ahead: list[str], undo: bool
) -> None:
    """The kernel refuses to tell it by its handle."""
    long = " ".join(f"ip saddr != 10.0.0.{number}" for number in range(60))
    ns.run("nft", "add table ip filter; add chain ip filter FORWARD")
    for name in ahead:
        ns.run("nft", f"add rule ip filter FORWARD iifname {name} accept")
    ns.run("nft", f"add rule ip filter FORWARD iifname hmdead {long} accept")

    def sweep(backend: Backend) -> None:
        rules = read(backend, FORWARD).rules
        ns.run("nft", f"replace rule ip filter FORWARD handle {rules[-1].handle} iifname {now} {long} accept")
        with backend.transaction([FORWARD], rules, orders=undo) as transaction:
            assert [str(rule.spec.in_interface) for rule in transaction.rules] == [*ahead, now]
            transaction.delete(transaction.rules[-1:])
            transaction.commit()

    within(ns, sweep, undo=undo)
    assert ns.ruleset().count("iifname") == len(ahead)


def checked(backend: Backend, raw: bytes) -> None:
    with backend.transaction([FORWARD, JOBS], orders=True) as transaction:
        transaction.insert([Addition(JOBS, 0, [raw])])
        transaction.check()


def test_a_check_refuses_what_the_kernel_would_refuse_and_changes_nothing(table: Namespace) -> None:
    def look(backend: Backend) -> None:
        (first, *_) = read(backend, FORWARD).rules
        assert first.undo
        for raw in (first.undo.raw[:-8], first.undo.raw.replace(b"comment\0", b"nosuch_\0")):
            with unchanged(table), pytest.raises(NetsweepError):
                checked(backend, raw)
        with unchanged(table):
            checked(backend, first.undo.raw)

    within(table, look, undo=True)


def test_a_jump_to_a_chain_that_has_gone_is_refused(table: Namespace) -> None:
    table.iptables("nft", "-A", "FORWARD", "-i", "hm1", "-j", "JOBS")

    def look(backend: Backend) -> None:
        rule = read(backend, FORWARD).rules[-1]
        assert rule.undo
        assert rule.undo.jump == "JOBS"
        table.iptables("nft", "-D", "FORWARD", "5")
        table.iptables("nft", "-X", "JOBS")
        with backend.transaction([FORWARD], orders=True) as transaction, unchanged(table):
            transaction.insert([Addition(FORWARD, 0, [rule.undo.raw])])
            with pytest.raises(NetsweepError):
                transaction.check()

    within(table, look, undo=True)


def test_a_table_that_goes_between_the_list_and_the_reading_is_as_if_it_had_not_been(table: Namespace) -> None:
    def look(backend: Backend) -> None:
        assert FILTER in backend.tables()
        table.run("nft", "delete", "table", "ip", "filter")
        try:
            scan = read(backend, FORWARD)
        except ContentionError:
            return
        assert (scan.chains, scan.rules) == ([], [])

    within(table, look)


def test_tables_of_every_family_are_named_apart(ns: Namespace) -> None:
    families = {"ip": "ipv4", "ip6": "ipv6", "inet": "inet", "arp": "arp", "bridge": "bridge", "netdev": "netdev"}
    for family in families:
        ns.run("nft", "add", "table", family, "filter")

    def look(backend: Backend) -> None:
        assert sorted(backend.tables()) == sorted(Table("nft", Family(each), "filter") for each in families.values())

    within(ns, look)


BY_OTHER_MEANS = [
    "iif 1 drop",
    "oif 7 drop",
    "iif != 1 oif 7 drop",
    "iif { 1, 7 } drop",
    "iifname { a, b } drop",
    "iifname vmap { a : drop }",
    "iifname @named drop",
    "tcp dport { 22, 80 } drop",
]


@pytest.mark.parametrize("family", ["ip", "ip6", "inet"])
def test_who_only_looks_is_shown_what_matches_interfaces_otherwise_than_by_name(ns: Namespace, family: str) -> None:
    lines = [*BY_OTHER_MEANS, "tcp dport 22 drop", "iifname a drop", "iifname hm1 drop", "iifgroup 7 drop"]
    made = [f"add rule {family} t c {line}\n" for line in lines]
    named = f"add set {family} t named {{ type ifname; }}\n"
    ns.run("nft", "-f", "-", input=f"add table {family} t\nadd chain {family} t c\n{named}{''.join(made)}")

    def look(backend: Backend) -> None:
        scan = backend.read(backend.tables(), lambda _: True)
        assert scan.scanned.total() == len(lines)
        shown.append([lines[rule.position - 1] for rule in scan.rules])

    shown: list[list[str]] = []
    for writes in (False, True):
        within(ns, look, writes=writes)
    assert shown == [[*BY_OTHER_MEANS, "iifname hm1 drop"], ["iifname hm1 drop"]]


def test_a_chain_that_belongs_to_a_rule_is_not_read(ns: Namespace) -> None:
    """It goes with its rule, and the kernel changes nothing in it."""
    ns.run("nft", "add table ip filter; add chain ip filter __chain7; add rule ip filter __chain7 iifname hm1 drop")
    ns.run("nft", "add chain ip filter FORWARD; add rule ip filter FORWARD iifname hm2 jump { iifname hm3 drop; }")

    def look(backend: Backend) -> None:
        scan = backend.read([FILTER], lambda _: True)
        assert [str(rule.spec.in_interface) for rule in scan.rules] == ["hm1", "hm2"]
        assert scan.chains == [Chain(FILTER, "__chain7"), FORWARD]

    assert ns.ruleset().count("hm3") == 1
    within(ns, look)


NEWCHAIN = 3
"""NFT_MSG_NEWCHAIN (linux/netfilter/nf_tables.h)."""


def test_chains_that_no_program_would_name_so_are_chains_as_any_other(table: Namespace) -> None:
    chains = [Chain(FILTER, name) for name in ("a \"b' \n;{}", "-\udcff", "\u20ac" * 80, " ", "FORWARD ")]
    names = [messages.names(messages.CHAIN_TABLE, messages.CHAIN_NAME, chain) for chain in chains]
    flags = NLM_F_REQUEST | NLM_F_CREATE

    def sweep(backend: Backend) -> None:
        with closing(Commits()) as commits:  # of generation 0, which is any
            made = [messages.request(NEWCHAIN, flags, FILTER, each) for each in names]
            commits.send(commits.prepare(made), "making chains")
        (first, *_) = read(backend, FORWARD).rules
        assert first.undo
        with backend.transaction(chains, orders=True) as transaction:
            transaction.insert([Addition(chain, 0, [first.undo.raw]) for chain in chains])
            transaction.commit()
        scan = read(backend, *chains)
        assert {rule.chain: rule.spec for rule in scan.rules} == dict.fromkeys(chains, first.spec)
        with backend.transaction(chains, scan.rules) as transaction:
            assert len(transaction.rules) == len(chains)
            transaction.delete(transaction.rules)
            transaction.commit()
        assert read(backend, *chains).scanned == dict.fromkeys(chains, 0)

    within(table, sweep, undo=True)
    assert comments(table) == ["hm-a", "other", "hm-b", "hm-c"]


def test_a_table_of_another_process_is_an_error_of_that_table(ns: Namespace) -> None:
    code = """
import socket, struct, sys
TABLE, OWNED = b"filter\\0\\0", struct.pack(">I", 2)

def message(kind, flags, family, body, resource=0):
    return struct.pack("=IHHII", 20 + len(body), kind, flags, 1, 0) + struct.pack(">BBH", family, 0, resource) + body

name, owned = struct.pack("=HH", 11, 1) + TABLE, struct.pack("=HH", 8, 2) + OWNED
edges = message(0x10, 1, 0, b"", 10), message(0x11, 1, 0, b"", 10)
with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as sock:
    sock.send(edges[0] + message(0xA00, 0x401, 2, name + owned) + edges[1])
    print(sock.getsockname()[0], flush=True)
    sys.stdin.read()
"""
    owner = subprocess.Popen(
        ns.command(sys.executable, "-c", code), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdin
    assert owner.stdout
    port = owner.stdout.readline().strip()

    def look(backend: Backend) -> None:
        assert list(backend.tables()) == [FILTER]
        with (
            pytest.raises(TableError, match=f"can only be changed by the process that made it .*{port}"),
            backend.transaction([FORWARD]),
        ):
            raise AssertionError("a transaction on a table of somebody else's")

    with owner:
        within(ns, look)
        owner.stdin.close()


def test_handles_tell_twins_apart_and_a_twin_made_anew_is_another_rule(table: Namespace) -> None:
    def sweep(backend: Backend) -> None:
        rules = read(backend, FORWARD).rules
        table.iptables("nft", "-D", "FORWARD", "4")
        table.iptables("nft", "-A", "FORWARD", "-m", "comment", "--comment", "hm-c", "-j", "ACCEPT")
        with backend.transaction([FORWARD], rules) as transaction:
            assert [rule.spec.comment for rule in transaction.rules] == ["hm-a", "hm-b"]
            transaction.delete(transaction.rules)
            transaction.commit()

    within(table, sweep)
    assert comments(table) == ["other", "hm-c"]


@pytest.mark.parametrize("gone", [1, 700], ids=["some-between", "all-behind"])
def test_a_dump_that_skipped_rules_is_not_complete_though_the_kernel_says_nothing_and_the_next_fills_the_gap(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch, gone: int
) -> None:
    """Rules leave their chain after the generation was counted up, so a dump that begins in between is not told."""
    ns.restore("nft", restore_input({"filter": [f"-A FORWARD -i hm{number} -j ACCEPT" for number in range(800)]}))
    whole, changes = netlink.dump, [restore_input({"filter": ["-D FORWARD 1"] * gone})]

    def told_nothing(sock: socket.socket, request: bytes, doing: str) -> Iterator[tuple[bytes, int, int]]:
        with suppress(netlink.InterruptedDumpError):
            for number, message in enumerate(whole(sock, request, doing)):
                if number == 1 and doing == f"reading {FORWARD}" and changes:
                    ns.restore("nft", changes.pop())
                yield message

    monkeypatch.setattr(netlink, "_AT_ONCE_MAX", 1)
    monkeypatch.setattr(netlink, "dump", told_nothing)

    def look(backend: Backend) -> None:
        tables = [table for table in backend.tables() if table == FILTER]
        scan = backend.read(tables, lambda chain: chain == FORWARD)
        assert not scan.complete
        assert len(scan.rules) < 800
        scan = backend.read(tables, lambda chain: chain == FORWARD, again=True)
        assert scan.complete
        assert {f"hm{number}" for number in range(gone, 800)} <= {str(rule.spec.in_interface) for rule in scan.rules}
        assert [rule.position for rule in scan.rules] == sorted(rule.position for rule in scan.rules)

    within(ns, look)


def test_a_rule_that_is_replaced_between_two_dumps_of_a_reading_is_shown_no_more(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    ns.restore("nft", restore_input({"filter": [f"-A FORWARD -i hm{number} -j ACCEPT" for number in range(800)]}))
    whole, changes = netlink.dump, ["-D FORWARD 9", "-R FORWARD 1 -i eth0 -j DROP"]

    def meanwhile(sock: socket.socket, request: bytes, doing: str) -> Iterator[tuple[bytes, int, int]]:
        for number, message in enumerate(whole(sock, request, doing)):
            if number == 1 and doing == f"reading {FORWARD}" and changes:
                ns.restore("nft", restore_input({"filter": changes}))
                changes.clear()
            yield message

    monkeypatch.setattr(netlink, "_AT_ONCE_MAX", 1)
    monkeypatch.setattr(netlink, "dump", meanwhile)

    def look(backend: Backend) -> None:
        first = backend.read([FILTER], lambda chain: chain == FORWARD)
        assert "hm0" in {str(rule.spec.in_interface) for rule in first.rules}
        assert not first.complete
        again = backend.read([FILTER], lambda chain: chain == FORWARD, again=True)
        assert "hm0" not in {str(rule.spec.in_interface) for rule in again.rules}
        assert again.complete

    within(ns, look)


def during_first_dump(monkeypatch: pytest.MonkeyPatch, chain: Chain, act: Callable[[], object]) -> None:
    """Call ``act`` once, when the first rules of ``chain`` were dumped and the rest was not."""
    whole, due = netlink.dump, [True]

    def meanwhile(sock: socket.socket, request: bytes, doing: str) -> Iterator[tuple[bytes, int, int]]:
        for number, message in enumerate(whole(sock, request, doing)):
            if number == 1 and doing == f"reading {chain}" and due:
                due.clear()
                act()
            yield message

    monkeypatch.setattr(netlink, "_AT_ONCE_MAX", 1)
    monkeypatch.setattr(netlink, "dump", meanwhile)


def long_chain(ns: Namespace, *, reverse: bool = False) -> None:
    """900 rules of others in a chain of a user's, and 20 orphans behind them, or with ``reverse`` in front."""
    others = [f"-A JOBS -s 10.0.{number // 250}.{number % 250} -j ACCEPT" for number in range(900)]
    orphans = [f"-A JOBS -i hmdead{number} -j ACCEPT" for number in range(20)]
    rules = orphans + others if reverse else others + orphans
    ns.restore("nft", restore_input({"filter": [":JOBS - [0:0]", *rules]}))


def sweep_all(ns: Namespace, **options: Any) -> netsweep.Report:
    return ns.inside(lambda: netsweep.sweep(all_chains=True, backend="nft", **options))


def test_a_chain_that_is_renamed_while_it_is_dumped_is_swept_under_its_new_name(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_chain(ns)
    in_process(ns, monkeypatch)
    during_first_dump(monkeypatch, JOBS, lambda: ns.iptables("nft", "-E", "JOBS", "OTHER"))
    report = sweep_all(ns)
    assert (report.deleted, report.warnings) == (20, [])
    assert "hmdead" not in ns.ruleset()


def test_what_its_owner_deletes_between_two_dumps_counts_no_more(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_chain(ns, reverse=True)
    in_process(ns, monkeypatch)
    gone = ["-D JOBS 1"] * 12
    during_first_dump(monkeypatch, JOBS, lambda: ns.restore("nft", restore_input({"filter": gone})))
    assert sweep_all(ns, max_deletes=8).deleted == 8


def test_more_commits_than_can_be_followed_do_not_keep_a_sweep_reading(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_chain(ns)
    ns.run("nft", "add table ip other; add chain ip other c")
    in_process(ns, monkeypatch)
    enlarge = netlink.enlarge
    monkeypatch.setattr(
        netlink, "enlarge", lambda sock, *, receive=0, send=0: enlarge(sock, receive=receive and 2**16, send=send)
    )
    burst = "add rule ip other c accept\n" * 3000
    during_first_dump(monkeypatch, JOBS, lambda: ns.run("nft", "-f", "-", input=burst))
    report = sweep_all(ns)
    assert (report.deleted, report.warnings) == (20, [])


def test_where_nobody_interferes_everything_is_dumped_once(ns: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    for family in ("ipv4", "ipv6"):
        ns.restore("nft", leaks(["hmdead", "hmbeef"]), family)
    in_process(ns, monkeypatch)
    dump, dumped = netlink.dump, Counter[str]()

    def noted(sock: socket.socket, request: bytes, doing: str) -> Iterator[tuple[bytes, int, int]]:
        dumped[doing] += 1
        return dump(sock, request, doing)

    monkeypatch.setattr(netlink, "dump", noted)
    assert ns.inside(lambda: netsweep.sweep(backend="nft")).deleted == 12
    assert dumped.pop("reading nf_tables") == 2, "tables, and chains"
    assert len(dumped) == 4
    assert set(dumped.values()) == {1}


def test_who_only_looks_joins_no_group_and_keeps_nobody_waiting(table: Namespace) -> None:
    def look(backend: Backend) -> None:
        assert len(read(backend, FORWARD).rules) == 3
        assert isinstance(backend, NftablesBackend)
        assert backend._commits is None

    within(table, look, writes=False)


def test_waiting_for_a_commit_that_is_under_way_changes_nothing(table: Namespace) -> None:
    def wait() -> None:
        with closing(Commits()) as commits, closing(Commits()) as other, unchanged(table):
            commits.settle()
            other.follow()
            assert (other.generation, other.changed) == (0, set()), "a generation was made"

    table.inside(wait)
