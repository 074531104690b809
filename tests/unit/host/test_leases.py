from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsweep.errors import ContentionError, NetsweepError
from netsweep.host import leases
from netsweep.host.leases import Leases
from netsweep.model import Lease
from netsweep.report import LeaseFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "leases.json"


@pytest.fixture
def gone() -> int:
    """The PID of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The PIDs that processes have in any PID namespace, as far as the test says."""
    pids: set[int] = set()
    monkeypatch.setattr(leases, "all_pids", lambda: pids)
    return pids


def content(**lease: object) -> bytes:
    return json.dumps({"leases": {"10.200.1.0/24": lease}}).encode()


def held(*pairs: tuple[str, int]) -> Leases:
    return leases.of("leases.json", b"some", [Lease(f"{n}", name, pid) for n, (name, pid) in enumerate(pairs)])


def test_the_harness_own_format_is_read(path: Path) -> None:
    entry = {
        "test_name": "TestX",
        "bridge_name": "hm3fa2001",
        "subnet_cidr": "10.200.1.0/24",
        "pid": 4711,
        "created_at_unix": 1781049600,
    }
    path.write_bytes(content(**entry))
    lease = Lease("10.200.1.0/24", "hm3fa2001", 4711, json.dumps(entry))
    assert leases.read(str(path)) == Leases(str(path), content(**entry), {"hm3fa2001": (lease,)})


def test_a_lease_that_is_written_anew_is_another_one(path: Path) -> None:
    """The same subnet, bridge and PID, but a later test."""

    def read(**more: object) -> Lease:
        path.write_bytes(content(bridge_name="hm1", pid=4711, **more))
        (lease,) = leases.read(str(path)).all
        return lease

    first = read(created_at_unix=5)
    assert read(created_at_unix=5) == first
    for other in (read(created_at_unix=6), read(), read(created_at_unix=5, test_name="TestX")):
        assert other[:3] == first[:3]
        assert other != first


def test_a_bridge_may_be_leased_several_times(path: Path) -> None:
    both = {"a": {"bridge_name": "hm1", "pid": 2}, "b": {"bridge_name": "hm1", "pid": 1}}
    path.write_text(json.dumps({"leases": both}))
    found = leases.read(str(path))
    first, second = (Lease(subnet, "hm1", pid, json.dumps(both[subnet])) for subnet, pid in (("a", 2), ("b", 1)))
    assert (found.by_name, found.all, found.pids) == ({"hm1": (first, second)}, [first, second], {1, 2})


@pytest.mark.parametrize("text", [b"", b" \n", b'{"leases": {}}', b'{"leases": null}'])
def test_nothing_in_it_means_no_leases(path: Path, text: bytes) -> None:
    path.write_bytes(text)
    assert leases.read(str(path)) == Leases(str(path), text)


def test_a_missing_file_means_no_leases(path: Path) -> None:
    assert leases.read(str(path)) == Leases(str(path), None)


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b"null",
        b"[]",
        b"{}",
        b'{"leases": []}',
        b'{"leases": "x"}',
        b'{"leases": {"a": null}}',
        b'{"leases": {"a": []}}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"leases": {}, "leases": {}}',
        content(pid=1),
        content(bridge_name="", pid=1),
        content(bridge_name=None, pid=1),
        content(bridge_name=["hm1"], pid=1),
        content(bridge_name="hm1"),
        content(bridge_name="hm1", pid=None),
        content(bridge_name="hm1", pid=True),
        content(bridge_name="hm1", pid=0),
        content(bridge_name="hm1", pid=-1),
        content(bridge_name="hm1", pid=1.0),
        content(bridge_name="hm1", pid="1"),
        content(bridge_name="hm1", pid=2**22 + 1),
        content(bridge_name="hm1", pid=10**30),
        b'{"leases": {"a": {"bridge_name": "hm1", "pid": NaN}}}',
        b'{"leases": {"a": {"bridge_name": "hm1", "pid": 1e3}}}',
        b'{"leases": {"a": {"bridge_name": "hm1", "pid": 1, "more": [NaN]}}}',
        b'{"leases": {}, "more": Infinity}',
        b'{"leases": {}, "more": -Infinity}',
        b'{"leases": {"a": {"bridge_name": "hm1", "pid": ' + b"9" * 10_000 + b"}}}",
    ],
)
def test_what_cannot_be_understood_is_an_error(path: Path, text: bytes) -> None:
    path.write_bytes(text)
    with pytest.raises(NetsweepError, match=r"cannot understand lease file .*leases\.json.*: .*\w.*; repair it"):
        leases.read(str(path))


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_not_json_are_refused(path: Path, constant: str) -> None:
    """Python reads them, the harness does not; and nobody else could read a file that has them again."""
    path.write_text(f'{{"leases": {{}}, "more": {constant}}}')
    with pytest.raises(NetsweepError, match=f": {constant} is not JSON; repair it"):
        leases.read(str(path))


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
lease_like = st.fixed_dictionaries({}, optional={"bridge_name": scalars, "pid": scalars, "test_name": json_values})
documents = st.one_of(json_values, st.fixed_dictionaries({"leases": st.dictionaries(st.text(max_size=5), lease_like)}))


@given(st.binary(max_size=200) | documents.map(json.dumps).map(str.encode))
def test_content_of_any_shape_is_read_or_refused(text: bytes) -> None:
    try:
        found = leases._parse(text)
    except leases._NotUnderstoodError:
        return
    assert all(isinstance(each.bridge, str) and 0 < each.pid <= leases.PID_MAX for each in found)


def test_a_file_that_is_too_large_is_refused(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(leases.SIZE_MAX + 1)
    with pytest.raises(NetsweepError, match="larger than 16 MiB"):
        leases.read(str(path))


def test_what_is_known_already_is_not_parsed_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(content(bridge_name="hm1", pid=1) + b" " * 2**20)
    known = leases.read(str(path))
    monkeypatch.setattr(leases, "_parse", None)
    assert leases.read(str(path), known, 0) is known
    missing = Leases(str(path.with_name("none")))
    assert leases.read(missing.path, missing, 0) is missing


def test_a_changed_file_is_parsed_where_that_is_quick_and_else_refused(path: Path) -> None:
    path.write_bytes(content(bridge_name="hm1", pid=1))
    known = leases.read(str(path))
    changed = content(bridge_name="hm2", pid=2)
    path.write_bytes(changed)
    with pytest.raises(ContentionError, match="the lease file changed"):
        leases.read(str(path), known, len(changed) - 1)
    found = leases.read(str(path), known, len(changed))
    assert {name: [lease.pid for lease in found.by_name[name]] for name in found.by_name} == {"hm2": [2]}
    path.unlink()
    assert leases.read(str(path), known, 0).by_name == {}


def test_a_process_that_nowhere_runs_is_dead(gone: int, elsewhere: set[int]) -> None:
    assert leases.dead({os.getpid(), gone, 1}) == {gone}


def test_a_pid_that_any_process_has_in_its_own_namespace_is_not_dead(gone: int, elsewhere: set[int]) -> None:
    elsewhere.add(gone)
    assert leases.dead({gone}) == set()


def test_nothing_is_dead_where_that_cannot_be_known(gone: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "all_pids", lambda: None)
    assert leases.dead({gone}) == set()


def test_a_lease_counts_unless_its_process_is_dead(gone: int) -> None:
    own = os.getpid()
    given_leases = held(("hm1", own), ("hm2", gone), ("hm3", gone), ("hm3", own), ("hm4", own))
    assert leases.living(given_leases, ["hm1", "hm2", "hm3", "hm5"], {gone}) == {
        "hm1": f"a running process (PID {own}) holds a lease for hm1",
        "hm3": f"a running process (PID {own}) holds a lease for hm3",
    }
    assert leases.living(given_leases, ["hm2"], set()) == {
        "hm2": f"the lease for hm2 names PID {gone}, which may be of another PID namespace"
    }
    assert leases.summary(given_leases, {gone}) == LeaseFile("leases.json", True, 5, 3)
    assert leases.summary(Leases("none"), set()) == LeaseFile("none", False, 0, 0)


def test_a_pid_that_was_dead_and_runs_again_counts() -> None:
    assert set(leases.living(held(("hm1", os.getpid())), ["hm1"], {os.getpid()})) == {"hm1"}


def test_a_large_file_costs_a_few_questions_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def running(pid: int) -> bool:
        asked.append(pid)
        return False

    monkeypatch.setattr(leases, "is_running", running)
    monkeypatch.setattr(leases, "listed_pids", lambda: {7, 8})
    pids = range(1, 1000)
    everything = held(*((f"hm{number:x}", pid) for number in range(20) for pid in pids))
    assert leases.living(everything, list(everything.by_name), set(pids)) == {}
    assert asked == [7, 8]


def test_leases_that_are_ignored_do_not_count() -> None:
    own = os.getpid()
    known = held(("hm1", own), ("hm2", 1), ("hm2", own))
    assert leases.living(known, ["hm1", "hm2"], set(), lambda lease: lease.pid == own) == {
        "hm2": "a running process (PID 1) holds a lease for hm2"
    }
    assert set(leases.living(known, ["hm1", "hm2"], set(), {known.by_name["hm1"][0]}.__contains__)) == {"hm2"}
    assert leases.living(known, ["hm1", "hm2"], set(), lambda _: True) == {}


def test_leases_are_found_by_bridge_and_by_process() -> None:
    some = [Lease("a", "hm1", 3), Lease("b", "hm2", 3), Lease("c", "hm1", 4)]
    found = leases.of("x", b"content", some)
    assert (found.path, found.content) == ("x", b"content")
    assert found.by_name == {"hm1": (some[0], some[2]), "hm2": (some[1],)}
    assert found.all == [some[0], some[2], some[1]]
    assert found.pids == {3, 4}
    assert (Leases("x").all, Leases("x").pids) == ([], set())


# Removing.

THREE = {
    "10.200.1.0/24": {
        "test_name": "A\u00e9",
        "bridge_name": "hm1",
        "pid": 1,
        "created_at_unix": 5,
        "more": {"x": None},
    },
    "10.200.2.0/24": {"bridge_name": "hm2", "pid": 2},
    "10.200.3.0/24": {"bridge_name": "hm3", "pid": 2, "odd": [1.5, True]},
}


def write(path: Path, leased: object = THREE) -> None:
    """Write a file with fields that nobody knows."""
    path.write_text(json.dumps({"version": 7, "leases": leased, "behind": ["\u2603"]}, indent=1, ensure_ascii=False))


def remove(path: Path, unwanted: Callable[[Lease], bool]) -> int:
    """Remove leases as the jobs do, and return how many."""
    without = leases.read(str(path)).without(unwanted)
    if without.removed:
        without.replace()
    return without.removed


def test_what_is_unwanted_goes_and_all_else_stays(path: Path) -> None:
    write(path)
    path.chmod(0o640)
    assert remove(path, lambda lease: lease.pid == 2) == 2
    left = {"10.200.1.0/24": THREE["10.200.1.0/24"]}
    document = json.loads(path.read_bytes())
    assert document == {"version": 7, "leases": left, "behind": ["\u2603"]}
    assert list(document) == ["version", "leases", "behind"]
    assert path.stat().st_mode & 0o7777 == 0o640
    assert [lease.bridge for lease in leases.read(str(path)).all] == ["hm1"]
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_the_last_lease_leaves_none(path: Path) -> None:
    write(path)
    assert remove(path, lambda _: True) == 3
    assert json.loads(path.read_bytes())["leases"] == {}
    assert leases.read(str(path)).all == []


def test_what_is_to_be_written_is_known_before_anything_is(path: Path) -> None:
    """It takes long, so it is made before the subnet lock is taken."""
    write(path)
    before = path.read_bytes()
    known = leases.read(str(path))
    without = known.without(lambda lease: lease.bridge == "hm1")
    assert (without.known, without.removed) == (known, 1)
    assert path.read_bytes() == before
    without.replace()
    assert path.read_bytes() == without.content


NUMBERS = ("1e999", "-1e999", "-0", "-0.0", "1E2", "1e+2", "0.10", "100000000000000000000000", "0.1000000000000000055")


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_stay_as_they_are_written(path: Path, number: str) -> None:
    """As floating point numbers of Python, some of them become others, or no JSON."""
    lease = f'{{"bridge_name": "hm1", "pid": 7, "more": [{number}, {{"{number}": "{number}"}}]}}'
    gone = '"b": {"bridge_name": "hm2", "pid": 2, "more": 5}'
    path.write_text(f'{{"version": {number}, "leases": {{"a": {lease}, {gone}}}}}')
    assert remove(path, lambda lease: lease.pid == 2) == 1
    assert path.read_text() == f'{{"version": {number}, "leases": {{"a": {lease}}}}}\n'
    assert [lease.bridge for lease in leases.read(str(path)).all] == ["hm1"]


finite = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
fields = st.dictionaries(st.text(max_size=5), finite | st.lists(finite, max_size=3), max_size=3)
understood = st.builds(lambda more, pid: {**more, "bridge_name": "hm1", "pid": pid}, fields, st.integers(1, 3))


@given(fields, st.dictionaries(st.text(max_size=5), understood, max_size=4))
def test_of_any_file_only_what_is_unwanted_goes(more: dict[str, object], leased: dict[str, dict[str, object]]) -> None:
    document = {**more, "leases": leased}
    text = json.dumps(document).encode()
    without = leases.of("x", text, leases._parse(text)).without(lambda lease: lease.pid == 2)
    left = {subnet: lease for subnet, lease in leased.items() if lease["pid"] != 2}
    assert without.removed == len(leased) - len(left)
    if without.removed:
        assert json.loads(without.content) == {**document, "leases": left}


@pytest.mark.parametrize("leased", [THREE, {}, None])
def test_where_nothing_is_unwanted_none_is_removed(path: Path, leased: object) -> None:
    write(path, leased)
    assert leases.read(str(path)).without(lambda lease: lease.bridge == "hm4").removed == 0


@pytest.mark.parametrize("content", [None, b"", b" \n"])
def test_where_there_are_no_leases_none_is_removed(path: Path, content: bytes | None) -> None:
    if content is not None:
        path.write_bytes(content)
    assert leases.read(str(path)).without(lambda _: True).removed == 0


def test_of_leases_that_were_read_before_only_those_that_are_as_they_were_go(path: Path) -> None:
    """The same bridge and PID again: another test got the subnet meanwhile."""
    write(path)
    unwanted = set(leases.read(str(path)).by_name["hm2"] + leases.read(str(path)).by_name["hm3"])
    changed = {**THREE["10.200.2.0/24"], "created_at_unix": 9}
    write(path, {**THREE, "10.200.2.0/24": changed, "10.200.4.0/24": {"bridge_name": "hm3", "pid": 2}})
    assert remove(path, unwanted.__contains__) == 1
    assert list(json.loads(path.read_bytes())["leases"]) == ["10.200.1.0/24", "10.200.2.0/24", "10.200.4.0/24"]


@pytest.mark.parametrize("other", [b"other", b"", None])
def test_a_file_that_changed_since_it_was_read_is_contention(path: Path, other: bytes | None) -> None:
    write(path)
    without = leases.read(str(path)).without(lambda _: True)
    if other is None:
        path.unlink()
    else:
        path.write_bytes(other)
    with pytest.raises(ContentionError, match="changed" if other is not None else "was removed"):
        without.replace()
    assert (path.read_bytes() if path.exists() else None) == other
    assert {each.name for each in path.parent.iterdir()} <= {path.name}
