from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsweep.errors import ContentionError, NetsweepError
from netsweep.host import leases
from netsweep.host.leases import Leases
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
    by_name: dict[str, tuple[int, ...]] = {}
    for name, pid in pairs:
        by_name[name] = (*by_name.get(name, ()), pid)
    return Leases("leases.json", b"some", by_name, len(pairs))


def test_the_harness_own_format_is_read(path: Path) -> None:
    text = content(
        test_name="TestX", bridge_name="hm3fa2001", subnet_cidr="10.200.1.0/24", pid=4711, created_at_unix=1781049600
    )
    path.write_bytes(text)
    assert leases.read(str(path)) == Leases(str(path), text, {"hm3fa2001": (4711,)}, 1)


def test_a_bridge_may_be_leased_several_times(path: Path) -> None:
    both = {"a": {"bridge_name": "hm1", "pid": 2}, "b": {"bridge_name": "hm1", "pid": 1}}
    path.write_text(json.dumps({"leases": both}))
    found = leases.read(str(path))
    assert (found.by_name, found.count) == ({"hm1": (2, 1)}, 2)


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
        b'{"leases": {"a": {"bridge_name": "hm1", "pid": ' + b"9" * 10_000 + b"}}}",
    ],
)
def test_what_cannot_be_understood_is_an_error(path: Path, text: bytes) -> None:
    path.write_bytes(text)
    with pytest.raises(NetsweepError, match=r"cannot understand lease file .*leases\.json.*: .*\w.*; repair it"):
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
    assert all(isinstance(name, str) and 0 < pid <= leases.PID_MAX for name, pid in found)


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
    assert leases.read(str(path), known, len(changed)).by_name == {"hm2": (2,)}
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
