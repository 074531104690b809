from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsweep import leases
from netsweep.errors import NetsweepError
from netsweep.leases import Lease


def content(**lease: object) -> bytes:
    return json.dumps({"leases": {"10.200.1.0/24": lease}}).encode()


def test_the_harness_own_format_is_read() -> None:
    text = content(
        test_name="TestX", bridge_name="hm3fa2001", subnet_cidr="10.200.1.0/24", pid=4711, created_at_unix=1781049600
    )
    assert leases.parse(text) == [Lease("hm3fa2001", 4711)]


@pytest.mark.parametrize("text", [b"", b" \n", b'{"leases": {}}', b'{"leases": null}'])
def test_nothing_in_it_means_no_leases(text: bytes) -> None:
    assert leases.parse(text) == []


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
def test_what_cannot_be_understood_is_an_error(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        leases.parse(text)


@given(st.binary(max_size=200))
def test_random_bytes_are_read_or_refused(text: bytes) -> None:
    try:
        found = leases.parse(text)
    except ValueError:
        return
    assert all(isinstance(lease, Lease) for lease in found)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
lease_like = st.fixed_dictionaries({}, optional={"bridge_name": scalars, "pid": scalars, "test_name": json_values})


@given(st.one_of(json_values, st.fixed_dictionaries({"leases": st.dictionaries(st.text(max_size=5), lease_like)})))
def test_json_of_any_shape_is_read_or_refused(value: object) -> None:
    try:
        found = leases.parse(json.dumps(value).encode())
    except ValueError:
        return
    assert all(isinstance(lease.bridge, str) and 0 < lease.pid <= leases.PID_MAX for lease in found)


def test_only_running_processes_hold_their_lease() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    held = [Lease("hm1", os.getpid()), Lease("hm2", gone.pid), Lease("hm3", 1)]
    assert leases.leased_bridges(held) == {"hm1", "hm3"}


def test_a_process_that_nobody_has_waited_for_yet_has_ended() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not leases.is_running(process.pid)


def test_a_process_whose_first_thread_has_ended_runs_on() -> None:
    code = (
        "import ctypes, sys, threading; threading.Thread(target=sys.stdin.read).start(); "
        "ctypes.CDLL(None).pthread_exit(None)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + 10
        while b") Z" not in Path(f"/proc/{process.pid}/stat").read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert leases.is_running(process.pid)
        process.kill()


def test_a_missing_file_means_no_leases(tmp_path: Path) -> None:
    assert leases.read(str(tmp_path / "none")) == []


def test_errors_name_the_file_and_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "leases.json"
    path.write_text('{"leases": 7}')
    with pytest.raises(NetsweepError, match=r"leases\.json.*\"leases\" is no object"):
        leases.read(str(path))


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "leases.json"
    with path.open("wb") as file:
        file.truncate(leases.SIZE_MAX + 1)
    with pytest.raises(NetsweepError, match="larger than 16 MiB"):
        leases.read(str(path))
