"""Which network namespaces there are, as far as /proc tells without root."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from netsweep.host import namespaces
from netsweep.host.capabilities import CAP_SYS_PTRACE
from netsweep.host.namespaces import other_namespaces


@pytest.fixture
def thread() -> Iterator[int]:
    """The ID of another thread of this process."""
    done, started = threading.Event(), threading.Event()

    def run() -> None:
        started.set()
        done.wait()

    other = threading.Thread(target=run)
    other.start()
    started.wait()
    assert other.native_id
    yield other.native_id
    done.set()
    other.join()


@pytest.mark.parametrize("sees_all", [True, False])
@pytest.mark.parametrize("capabilities", [0, 1 << CAP_SYS_PTRACE, ~(1 << CAP_SYS_PTRACE), ~0])
def test_all_are_known_where_every_process_may_be_looked_into(
    monkeypatch: pytest.MonkeyPatch, sees_all: bool, capabilities: int
) -> None:
    monkeypatch.setattr(namespaces, "sees_all", lambda: sees_all)
    monkeypatch.setattr(namespaces, "effective_capabilities", lambda: capabilities & (2**64 - 1))
    _, complete = other_namespaces()
    assert complete is (sees_all and capabilities in (1 << CAP_SYS_PTRACE, ~0))


def test_the_own_one_is_no_other(monkeypatch: pytest.MonkeyPatch, thread: int) -> None:
    own = os.stat(namespaces.OWN).st_ino
    monkeypatch.setattr(namespaces, "listed_pids", lambda: {os.getpid()})
    paths, _ = other_namespaces()
    assert own not in [os.stat(path).st_ino for path in paths]
    assert not [path for path in paths if path.startswith(f"/proc/{os.getpid()}/")]


def test_one_that_only_a_thread_is_in_is_found_and_what_ended_is_left_out(
    monkeypatch: pytest.MonkeyPatch, thread: int
) -> None:
    path, stat = f"/proc/{os.getpid()}/task/{thread}/ns/net", os.stat
    # The inode of any other file stands for another namespace.
    monkeypatch.setattr(namespaces, "listed_pids", lambda: {os.getpid(), 2**22 + 1})
    with monkeypatch.context() as another:
        another.setattr(os, "stat", lambda asked, **how: stat("/" if asked == path else asked, **how))
        paths, _ = other_namespaces()
    assert path in paths
