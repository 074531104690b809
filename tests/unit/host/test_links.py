"""What is asked about links under a lock: on links in memory, which may answer late or not at all."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from netsweep.errors import ContentionError, NetsweepError
from netsweep.host import links
from netsweep.host.links import Link, find_at_once


def answering(monkeypatch: pytest.MonkeyPatch, answer: Callable[[int, str], Link | None]) -> None:
    class Links:
        def __enter__(self) -> Links:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def find(self, *, ifindex: int = 0, name: str = "") -> Link | None:
            return answer(ifindex, name)

    monkeypatch.setattr(links, "Links", Links)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However late a thread is here, it is not late."""
    monkeypatch.setattr(links, "_AT_ONCE", 60)


def test_a_link_is_found_by_index_or_name(monkeypatch: pytest.MonkeyPatch, patient: None) -> None:
    link = Link(7, "hm1")
    answering(monkeypatch, lambda ifindex, name: link if (ifindex, name) in ((7, ""), (0, "hm1")) else None)
    assert find_at_once(ifindex=7) is link
    assert find_at_once(name="hm1") is link
    assert find_at_once(ifindex=8) is None
    assert find_at_once(name="hm2") is None


def test_what_fails_fails_in_the_caller(monkeypatch: pytest.MonkeyPatch, patient: None) -> None:
    error = NetsweepError("the kernel said no")

    def refused(ifindex: int, name: str) -> Link | None:
        raise error

    answering(monkeypatch, refused)
    with pytest.raises(NetsweepError, match=r"^the kernel said no$") as raised:
        find_at_once(name="hm1")
    assert raised.value is error


def test_an_answer_that_does_not_come_at_once_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where others hold the RTNL lock. The thread that asked must not keep the process from its end."""
    released, asked = threading.Event(), list[threading.Thread]()

    def late(ifindex: int, name: str) -> Link | None:
        asked.append(threading.current_thread())
        released.wait()
        return Link(7, "hm1")

    answering(monkeypatch, late)
    try:
        with pytest.raises(ContentionError, match="others kept the kernel from changing links"):
            find_at_once(ifindex=7)
    finally:
        released.set()
    assert all(thread.daemon for thread in asked)
