"""Which interfaces exist, asked of a kernel in which they come and go."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from netsweep.interfaces import Interfaces
from netsweep.netlink import InterruptedDumpError
from netsweep.orphans import Live
from tests.namespace import Namespace

MANY = [f"hm{number:x}" for number in range(100)]
"""More than one answer of the kernel holds, so that a list can change while it is read."""


def live(ns: Namespace, *asked: str, all_names: bool = False) -> Live:
    def look() -> Live:
        with Interfaces() as interfaces:
            return interfaces.live(lambda: asked, all_names=all_names)

    return ns.inside(look)


@contextmanager
def coming_and_going(ns: Namespace) -> Iterator[None]:
    """Make and remove bridges without a pause."""
    stop = threading.Event()
    batch = "link add zz0 type bridge\nlink del zz0\n" * 20

    def churn() -> None:
        while not stop.is_set():
            ns.run("ip", "-batch", "-", input=batch)

    threads = [threading.Thread(target=churn)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_all_interfaces_are_listed(ns: Namespace) -> None:
    ns.add_bridges(*MANY)
    assert live(ns, "hm1", all_names=True) == Live({"lo", *MANY})
    many = [f"hmdead{number:x}" for number in range(500)]
    assert live(ns, "hm1", *many) == Live({"lo", *MANY})


@pytest.mark.parametrize("dead_bridges", [50, 500])
def test_a_bridge_that_exists_is_never_missing_however_fast_others_come_and_go(
    ns: Namespace, dead_bridges: int
) -> None:
    ns.add_bridges(*MANY)
    dead = {f"hmdead{number:x}" for number in range(dead_bridges)}

    def look() -> list[Live]:
        with Interfaces() as interfaces:
            return [interfaces.live(lambda: {*MANY, *dead}) for _ in range(10)]

    with coming_and_going(ns):
        looks = ns.inside(look)
    for found in looks:
        assert set(MANY) <= set(found.names)
        assert not dead & set(found.names)


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every list changes while it is read, and lacks all that is there."""

    def dump(*_: object) -> Iterator[tuple[bytes, int, int]]:
        yield from ()
        raise InterruptedDumpError("changed while being read")

    monkeypatch.setattr("netsweep.interfaces.dump", dump)


@pytest.mark.usefixtures("interrupted")
def test_where_no_list_is_to_be_had_each_name_is_asked_for(ns: Namespace) -> None:
    ns.add_bridges("hm1", "hm0123456789abc")
    asked = ("hm1", "hmdead", "hm0123456789abc", "hm0123456789abd", "lo", *(f"hmdead{n:x}" for n in range(500)))
    assert live(ns, *asked, all_names=True) == Live({"hm1", "hm0123456789abc", "lo"}, complete=False)


@pytest.mark.usefixtures("interrupted")
def test_an_alternative_name_is_no_name(ns: Namespace) -> None:
    ns.add_bridges("hm1")
    ns.run("ip", "link", "property", "add", "dev", "hm1", "altname", "hm2")
    assert set(live(ns, "hm1", "hm2").names) == {"hm1"}


def test_names_may_be_any_bytes(ns: Namespace) -> None:
    ns.run("sh", "-c", r"""ip link add "$(printf 'hm\377\033[2J')" type bridge""")
    assert "hm\udcff\x1b[2J" in live(ns, "hm\udcff\x1b[2J").names
