"""What a journal holds, and what is made of one that is damaged, cut off or somebody else's."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netsweep.errors import NetsweepError, NotPermittedError
from netsweep.firewall.memory import MemoryBackend
from netsweep.jobs import journal
from netsweep.jobs.journal import Journal
from netsweep.model import Address, Bridge, Chain, Rule, Undo
from tests.unit.jobs.host import FORWARD, POSTROUTING, spec


def write(path: Path, *batches: list[str], confirmed: bool = True) -> list[Rule]:
    """A journal with an entry for each of ``batches``; the rules that are in it."""
    backend = MemoryBackend([FORWARD, POSTROUTING])
    for bridge in ("docker0", *(bridge for batch in batches for bridge in batch), "eth0"):
        backend.append(FORWARD, spec(bridge))
    written: list[Rule] = []
    with Journal(str(path)) as made:
        for batch in batches:
            rules = [rule for rule in backend.rules(FORWARD) if str(rule.spec.in_interface) in batch]
            with backend.transaction([FORWARD], rules, orders=True) as transaction:
                transaction.delete(transaction.rules)
                made.record(transaction.rules, transaction)
                transaction.commit()
            if confirmed:
                made.confirm()
            written += rules
    return written


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    rules = write(path, ["hm1", "hm2"], ["hm3"])
    entries, bridges, namespace = journal.read(str(path))
    assert (namespace, bridges) == (journal.namespace(), [])
    assert [len(entry) for entry in entries] == [2, 1]
    saved = [each for entry in entries for each in entry]
    assert [(each.chain, each.undo, each.handle) for each in saved] == [(r.chain, r.undo, r.handle) for r in rules]
    assert path.stat().st_mode & 0o7777 == 0o600


def test_a_journal_says_what_went_in_words_too(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write(path, ["hm1"])
    header, entry, done = map(json.loads, path.read_text().splitlines())
    assert header["netsweep_journal"] == journal.FORMAT
    assert (entry["backend"], entry["family"], entry["table"]) == ("nft", "ipv4", "filter")
    assert (entry["rules"][0]["chain"], entry["rules"][0]["position"]) == ("FORWARD", 2)
    assert done["done"] == entry["entry"] == 1


@pytest.mark.parametrize("cut", range(7))
def test_cut_off_behind_any_line_what_was_done_counts_and_the_last_that_may_have_been(tmp_path: Path, cut: int) -> None:
    """A header, and three entries with a line each that says that they were done."""
    path = tmp_path / "journal"
    write(path, ["hm1"], ["hm2"], ["hm3"])
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 7
    path.write_bytes(b"".join(lines[:cut]))
    if cut == 0:
        with pytest.raises(NetsweepError, match="not a journal of netsweep, or it is damaged"):
            journal.read(str(path))
    else:
        assert len(journal.read(str(path))[0]) == cut // 2


def test_cut_off_anywhere_in_its_last_line_the_rest_counts(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write(path, ["hm1"], ["hm2"], confirmed=False)
    whole = path.read_bytes()
    last = len(whole) - len(whole.splitlines(keepends=True)[-1])
    for size in range(last, len(whole)):
        path.write_bytes(whole[:size])
        assert len(journal.read(str(path))[0]) == 1, size
    path.write_bytes(whole)
    # Of two entries without a word that they were done only the last may have been.
    assert [saved.undo.raw for saved in journal.read(str(path))[0][0]] == [repr(spec("hm2")).encode()]


def substituted(old: str, new: str) -> Callable[[bytes], bytes]:
    def change(text: bytes) -> bytes:
        assert old.encode() in text
        return text.replace(old.encode(), new.encode(), 1)

    return change


def resealed(change: Callable[[dict[str, Any]], object], line: int = 1) -> Callable[[bytes], bytes]:
    """A change by somebody who makes the digest fit."""

    def changed(text: bytes) -> bytes:
        lines = text.splitlines()
        content = json.loads(lines[line])
        del content["digest"]
        change(content)
        lines[line] = json.dumps({**content, "digest": journal._digest(content)}).encode()
        return b"\n".join(lines) + b"\n"

    return changed


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(substituted('"position": 2', '"position": 3'), id="a digit"),
        pytest.param(substituted('"chain": "FORWARD"', '"chain": "INPUT"'), id="other chain"),
        pytest.param(substituted('"digest"', '"digest2"'), id="no digest"),
        pytest.param(substituted("\n", "\n\n"), id="empty line"),
        pytest.param(lambda text: text[:40] + text[41:], id="a byte less"),
        pytest.param(lambda text: text.splitlines(keepends=True)[1], id="no header"),
        pytest.param(lambda _: b"", id="empty"),
        pytest.param(lambda _: b"{}\n", id="no fields"),
        pytest.param(lambda _: b"[]\n", id="a list"),
        pytest.param(lambda _: b"\0\xff" * 5000 + b"\n", id="binary"),
        pytest.param(lambda _: b"[" * 100_000 + b"\n", id="deep"),
        pytest.param(resealed(lambda line: line.update(netsweep_journal=1), 0), id="other format"),
        pytest.param(resealed(lambda line: line.pop("namespace"), 0), id="no namespace"),
        pytest.param(resealed(lambda line: line.update(backend="ebtables")), id="other backend"),
        pytest.param(resealed(lambda line: line.update(family="ipx")), id="other family"),
        pytest.param(resealed(lambda line: line.update(entry=[])), id="entry no number"),
        pytest.param(resealed(lambda line: line.update(rules=[[]])), id="rule no object"),
        pytest.param(resealed(lambda line: line["rules"][0].update(raw="!")), id="no base64"),
        pytest.param(resealed(lambda line: line["rules"][0].update(identity="zz")), id="no identity"),
        pytest.param(resealed(lambda line: line["rules"][0].update(after=[["zz"]])), id="no neighbour"),
        pytest.param(resealed(lambda line: line["rules"][0].update(sets=3)), id="no sets"),
        pytest.param(resealed(lambda line: line["rules"][0].update(left="many")), id="no number"),
    ],
)
def test_a_damaged_journal_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "journal"
    write(path, ["hm1"])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(NetsweepError, match="is not a journal of netsweep, or it is damaged"):
        journal.read(str(path))


def test_every_byte_of_a_journal_counts(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write(path, ["hm1"])
    whole = path.read_bytes()
    before = journal.read(str(path))
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            assert journal.read(str(path)) == before
        except NetsweepError:
            continue
        # The one that ends the last line makes it one that was cut off, and that entry is the last anyway.
        assert at == len(whole) - 1 or whole[at : at + 1].isspace()


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_journal_that_others_can_write_to_is_not_permitted(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "journal"
    write(path, ["hm1"])
    path.chmod(mode)
    with pytest.raises(NotPermittedError, match="can be written by other users"):
        journal.read(str(path))


def test_a_journal_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_text("somebody's")
    (rule,) = write(tmp_path / "other", ["hm1"])
    backend = MemoryBackend([FORWARD])
    with backend.transaction([FORWARD], [], orders=True) as transaction:
        ways: list[Callable[[Journal], None]] = [
            lambda made: made.check([rule]),
            lambda made: made.check([]),
            lambda made: made.record([rule], transaction),
            lambda made: made.note(Bridge("hm1", 7)),
        ]
        for writes in ways:
            with Journal(str(path)) as made, pytest.raises(NetsweepError, match="exists already: nothing was deleted"):
                writes(made)
    assert path.read_text() == "somebody's"


def test_a_journal_is_created_when_something_is_to_go(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(str(path)) as made:
        assert not path.exists()
        made.check([])
        assert path.read_bytes().count(b"\n") == 1
        assert path.stat().st_mode & 0o7777 == 0o600


def test_where_it_is_is_known_in_a_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, gone = f"{tmp_path}/gone/../journal", tmp_path / "gone"
    gone.mkdir()
    with Journal(path) as made:
        made.note(Bridge("hm1", 1))
        monkeypatch.chdir(gone)
        gone.rmdir()
        assert made.path == path
    monkeypatch.chdir(tmp_path)


def test_bridges_are_written_down_for_the_record(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    addresses = (Address("10.200.1.1/24", 3.5), Address("fd00::1/64", None))
    with Journal(str(path)) as made:
        made.note(Bridge("hm1", 7, addresses=addresses, mtu=1400, mac="02:00:00:00:00:01"))
        made.note(Bridge("hm2", 8))
    _, first, _ = map(json.loads, path.read_text().splitlines())
    del first["digest"]
    assert first == {
        "bridge": "hm1",
        "addresses": ["10.200.1.1/24", "fd00::1/64"],
        "mtu": 1400,
        "mac": "02:00:00:00:00:01",
    }
    assert journal.read(str(path)) == ([], ["hm1", "hm2"], journal.namespace())


def test_bridges_stand_beside_rules_and_count_as_none(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(str(path)) as made:
        made.note(Bridge("hm1", 7))
    noted = path.read_bytes().splitlines(keepends=True)[1]
    write(tmp_path / "rules", ["hm1"], ["hm2"])
    header, *entries = (tmp_path / "rules").read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([header, noted, *entries, noted]))
    found, bridges, _ = journal.read(str(path))
    assert ([len(entry) for entry in found], bridges) == ([1, 1], ["hm1", "hm1"])


def test_a_journal_without_entries_is_removed_and_no_other_file_is(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(str(path)) as made:
        made.check([])
        assert path.exists()
    assert not path.exists()
    with Journal(str(path)) as made:
        made.check([])
        path.rename(tmp_path / "moved")
        path.write_text("somebody else's")
    assert path.read_text() == "somebody else's"
    assert (tmp_path / "moved").exists()


def test_a_link_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write(path, ["hm1"])
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(NetsweepError, match="link"):
        journal.read(str(tmp_path / "link"))
    with pytest.raises(NetsweepError, match="there is no journal"):
        journal.read(str(tmp_path / "missing"))


@pytest.mark.parametrize(
    ("undo", "match"),
    [
        (Undo(b"x", b"x", lost="uses the set __set0, which is deleted with the rule"), "uses the set __set0"),
        (Undo(b"x", b"x", sets=(65000,)), "uses ipset's set number 65000"),
        (None, "not read with what a restore needs"),
    ],
)
def test_what_could_not_be_put_back_is_known_before_anything_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undo: Undo | None, match: str
) -> None:
    monkeypatch.setattr(journal, "set_name", lambda number: None)
    path = tmp_path / "journal"
    rule = Rule(FORWARD, 1, 1, spec("hmdead"), undo)
    with Journal(str(path)) as made, pytest.raises(NetsweepError, match=match):
        made.check([rule])
    assert not path.exists()


def test_the_names_of_ipset_s_sets_are_kept_beside_their_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def set_name(number: int) -> str:
        asked.append(number)
        return f"set{number}"

    monkeypatch.setattr(journal, "set_name", set_name)
    backend = MemoryBackend([FORWARD])
    rule = backend.append(FORWARD, spec("hmdead"))
    assert rule.undo
    rule = rule._replace(undo=rule.undo._replace(sets=(3, 7)))
    path = tmp_path / "journal"
    with Journal(str(path)) as made, backend.transaction([FORWARD], [rule], orders=True) as transaction:
        made.check([rule, rule])
        made.record([rule], transaction)
    assert asked == [3, 7], "asked once each, and not under the lock again"
    assert journal.read(str(path))[0][0][0].sets == {"set3": 3, "set7": 7}


def test_chains_of_one_table_are_in_one_entry(tmp_path: Path) -> None:
    jobs = Chain(FORWARD.table, "JOBS")
    backend = MemoryBackend([FORWARD, jobs])
    rules = [backend.append(chain, spec(bridge)) for chain in (FORWARD, jobs) for bridge in ("hm1", "hm2")]
    path = tmp_path / "journal"
    with (
        Journal(str(path)) as made,
        backend.transaction([FORWARD, jobs], rules, orders=True) as transaction,
    ):
        made.record(transaction.rules, transaction)
    ((*saved,),) = journal.read(str(path))[0]
    assert [each.chain for each in saved] == [FORWARD, FORWARD, jobs, jobs]


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    if not os.path.exists("/dev/full"):
        raise AssertionError("this kernel has no /dev/full")
    path = tmp_path / "journal"
    with Journal(str(path)) as made:
        made.check([])
        full = os.open("/dev/full", os.O_WRONLY)
        assert made._file is not None
        os.dup2(full, made._file)
        os.close(full)
        with pytest.raises(NetsweepError, match=f"cannot write journal '{path}': No space left on device"):
            made.confirm()
