"""Which interfaces exist, asked of a kernel in which they come and go."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import pytest

from netsweep.errors import ContentionError
from netsweep.host import interfaces
from netsweep.host.interfaces import Interfaces
from netsweep.host.netlink import InterruptedDumpError
from tests.namespace import Namespace

Found = tuple[frozenset[str], dict[int, tuple[str, ...]]]

MANY = [f"hm{number:x}" for number in range(100)]
"""More than one answer of the kernel holds, so that a dump can change while it is read."""

DEAD = [f"hmdead{number:x}" for number in range(500)]
"""So many that a dump is quicker than asking for each."""

LONG = "hm" + "0" * 100
"""Longer than a name may be, but not than an alternative name."""


def find(ns: Namespace, names: Collection[str], indexes: Collection[int] = ()) -> Found:
    def look() -> Found:
        with Interfaces() as opened:
            return opened.find(names, indexes)

    return ns.inside(look)


def add_alternative_names(ns: Namespace, device: str, *names: str) -> None:
    # As many as there is room for.
    batch = "".join(f"link property add dev {device} altname {name}\n" for name in names)
    ns.run("ip", "-force", "-batch", "-", input=batch, check=False)


def index(ns: Namespace, name: str) -> int:
    return int(json.loads(ns.run("ip", "-json", "link", "show", name).stdout)[0]["ifindex"])


@contextmanager
def coming_and_going(ns: Namespace) -> Iterator[None]:
    """Make and remove bridges without a pause."""
    stop = threading.Event()
    batch = "link add zz0 type bridge\nlink del zz0\n" * 20

    def churn() -> None:
        while not stop.is_set():
            ns.run("ip", "-batch", "-", input=batch)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.fixture(params=["asked", "dumped", "interrupted"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Names are asked for one by one, or seen in a dump, or asked for after a dump that lacks all that is there."""

    def interrupted(*_: object) -> Iterator[tuple[bytes, int, int]]:
        yield from ()
        raise InterruptedDumpError("changed while being read")

    def unwanted(*_: object) -> Iterator[tuple[bytes, int, int]]:
        raise AssertionError("a dump")

    if request.param == "asked":
        monkeypatch.setattr(interfaces, "_DUMP_TAKES", 1e9)
        monkeypatch.setattr(interfaces, "dump", unwanted)
    else:
        monkeypatch.setattr(interfaces, "_DUMP_TAKES", 0)
    if request.param == "interrupted":
        monkeypatch.setattr(interfaces, "dump", interrupted)
    return str(request.param)


@pytest.mark.usefixtures("way")
def test_names_that_no_interface_has_are_gone(ns: Namespace) -> None:
    ns.add_bridges("hm1", "hm0123456789abc", *MANY[2:])
    gone = {"hm0", "hm0123456789abd", "", "x" * 15, "x" * 16, "x" * 127, "x" * 128, "x" * 5000, *DEAD}
    assert find(ns, {"lo", "hm1", "hm0123456789abc", *MANY[2:], *gone}) == (frozenset(gone), {})


@pytest.mark.usefixtures("way")
def test_alternative_names_are_names(ns: Namespace) -> None:
    ns.add_bridges("hm1")
    add_alternative_names(ns, "hm1", "hm2", LONG)
    assert find(ns, ["hm1", "hm2", LONG, LONG + "0", "hm3"])[0] == {LONG + "0", "hm3"}


@pytest.mark.usefixtures("way")
def test_names_may_be_any_bytes(ns: Namespace) -> None:
    ns.run("sh", "-c", r"""ip link add "$(printf 'hm\377\033[2J')" type bridge""")
    assert find(ns, ["hm\udcff\x1b[2J", "hm\udcfe"])[0] == {"hm\udcfe"}


@pytest.mark.usefixtures("way")
def test_an_interface_whose_message_is_larger_than_64_kib_is_read(ns: Namespace) -> None:
    ns.add_bridges("zz0", "hm1")
    names = [f"hm{number:03}{'x' * 122}" for number in range(490)]
    add_alternative_names(ns, "zz0", *names)
    shown = json.loads(ns.run("ip", "-json", "link", "show", "zz0").stdout)[0]["altnames"]
    assert len(shown) * 132 > 63 * 1024
    number = index(ns, "zz0")
    gone, devices = find(ns, ["hm1", "zz0", *names, *DEAD], [number])
    assert gone == {*names, *DEAD} - set(shown)
    assert sorted(devices[number]) == sorted(["zz0", *shown])


def test_indexes_are_told_by_all_names_of_their_interface(ns: Namespace) -> None:
    ns.add_bridges("hm1", "hm3")
    add_alternative_names(ns, "hm1", "hm2", LONG)
    one, three = index(ns, "hm1"), index(ns, "hm3")
    absent = {0: (), -1: (), 999: (), 2**31: (), 2**32 - 1: ()}
    gone, devices = find(ns, [], [one, three, *absent])
    assert gone == frozenset()
    assert sorted(devices.pop(one)) == sorted(["hm1", "hm2", LONG])
    assert devices == {three: ("hm3",), **absent}


def test_answers_that_do_not_fit_are_asked_for_again(ns: Namespace) -> None:
    ns.add_bridges("hm1")
    names = [f"hm{number:03}{'x' * 122}" for number in range(100)]
    add_alternative_names(ns, "hm1", *names)

    def look() -> tuple[int, Found]:
        with Interfaces() as opened:
            questions = {place: interfaces._question(index=number) for place in range(50)}
            lost = 50 - len(dict(opened._exchange(questions)))
            return lost, opened.find([*names, "hm2"])

    number = index(ns, "hm1")
    lost, found = ns.inside(look)
    assert lost > 0
    assert found == (frozenset({"hm2"}), {})


def test_an_answer_that_is_lost_twice_is_contention(ns: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Interfaces, "_exchange", lambda *_: iter(()))
    with pytest.raises(ContentionError, match="asking for interfaces by name: an answer was lost"):
        find(ns, ["hm1"])
    with pytest.raises(ContentionError, match="asking for interfaces by index: an answer was lost"):
        find(ns, [], [1])


def test_nothing_asked_for_is_nothing_found(ns: Namespace) -> None:
    assert find(ns, []) == (frozenset(), {})


@pytest.mark.parametrize("dead", [DEAD[:50], DEAD])
def test_a_bridge_that_exists_is_never_gone_however_fast_others_come_and_go(ns: Namespace, dead: list[str]) -> None:
    ns.add_bridges(*MANY)

    def look() -> list[Found]:
        with Interfaces() as opened:
            return [opened.find([*MANY, *dead]) for _ in range(10)]

    with coming_and_going(ns):
        looks = ns.inside(look)
    assert looks == [(frozenset(dead), {})] * 10


@pytest.mark.usefixtures("way")
def test_it_works_inside_a_running_event_loop(ns: Namespace) -> None:
    ns.add_bridges("hm1")

    async def look() -> Found:
        with Interfaces() as opened:
            return opened.find(["hm1", "hm2"], [1])

    assert ns.inside(lambda: asyncio.run(look())) == (frozenset({"hm2"}), {1: ("lo",)})
