"""What is asked about links where answers are late, or missing: on links in memory."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from netsweep.errors import ContentionError, NetsweepError
from netsweep.host import links, netlink
from netsweep.host.links import Link, Links, find_at_once
from netsweep.host.netlink import HEADER, attribute


def answering(monkeypatch: pytest.MonkeyPatch, answer: Callable[[int, str], Link | None]) -> None:
    class Answers:
        def __enter__(self) -> Answers:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def find(self, *, ifindex: int = 0, name: str = "") -> Link | None:
            return answer(ifindex, name)

    monkeypatch.setattr(links, "Links", Answers)


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
        with pytest.raises(ContentionError, match="other processes kept the links of the kernel locked"):
            find_at_once(ifindex=7)
    finally:
        released.set()
    assert all(thread.daemon for thread in asked)


# What the kernel says of a link.

INDEX = 9


def told(kind: str, *, link: int | None = None, nsid: int | None = None, settings: bytes = b"") -> Link:
    """What is understood of the kernel's message on a link of that kind."""
    info = attribute(links._IFLA_INFO_KIND, kind.encode() + b"\0") + attribute(links._IFLA_INFO_DATA, settings)
    message = bytes(HEADER.size) + netlink.IFINFOMSG.pack(0, 0, INDEX, 0, 0) + attribute(links._IFLA_IFNAME, b"x0\0")
    for number, value in ((links._IFLA_LINK, link), (links._IFLA_LINK_NETNSID, nsid)):
        message += b"" if value is None else attribute(number, struct.pack("=i", value))
    message += attribute(links._IFLA_LINKINFO, info)
    return links._link(message, 0, len(message))


@pytest.mark.parametrize("nsid", [None, 0, 3])
@pytest.mark.parametrize("link", [None, INDEX, 4])
@pytest.mark.parametrize(("lower", "settings"), [(5, struct.pack("=I", 5)), (0, struct.pack("=I", 0)), (0, None)])
def test_a_vxlan_is_on_top_of_the_link_that_its_settings_name(
    nsid: int | None, link: int | None, lower: int, settings: bytes | None
) -> None:
    """As its link the kernel names itself, by an index that may be that of a bridge where it was made."""
    data = b"" if settings is None else attribute(links._IFLA_VXLAN_LINK, settings)
    found = told("vxlan", link=link, nsid=nsid, settings=attribute(4, bytes((10, 200, 1, 1))) + data)
    assert (found.ifindex, found.lower, found.lower_nsid) == (INDEX, lower, nsid)
    assert bytes((10, 200, 1, 1)) in found.settings


@pytest.mark.parametrize(
    ("link", "nsid", "lower"), [(5, None, 5), (5, 0, 5), (INDEX, 0, INDEX), (INDEX, None, 0), (None, None, 0)]
)
def test_other_links_are_on_top_of_what_the_kernel_says(link: int | None, nsid: int | None, lower: int) -> None:
    found = told("macvlan", link=link, nsid=nsid, settings=attribute(links._IFLA_VXLAN_LINK, struct.pack("=I", 7)))
    assert (found.lower, found.lower_nsid) == (lower, nsid)


# Other network namespaces.


@pytest.fixture
def numbered(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[Link]]:
    """The links of the network namespaces that have a number here; this one has the number 2 in each."""
    found: dict[int, list[Link]] = {}
    monkeypatch.setattr(Links, "_nsids", lambda _: list(found))
    monkeypatch.setattr(Links, "_links_of", lambda _, nsid: found[nsid])
    monkeypatch.setattr(Links, "_nsid", lambda *_: 2 if found else None)
    monkeypatch.setattr(links, "other_namespaces", lambda: ([], True))
    return found


def test_links_elsewhere_are_those_that_were_made_here(numbered: dict[int, list[Link]]) -> None:
    """Also two on top of one, and a tunnel, which is on top of none."""
    own = [Link(5, "mv0", lower=9, lower_nsid=2), Link(6, "vx0", kind="vxlan", lower_nsid=2)]
    numbered[0] = [own[0], Link(7, "mv1", lower=9, lower_nsid=1), own[1]]
    numbered[1] = [Link(5, "mv2", lower=9, lower_nsid=2)]
    numbered[2] = [Link(8, "mv3", lower=9, lower_nsid=2)]
    with Links() as opened:
        assert opened.elsewhere() == ([*own, *numbered[1]], True)


@pytest.mark.parametrize("complete", [True, False])
def test_what_is_not_known_of_processes_is_missing(
    numbered: dict[int, list[Link]], monkeypatch: pytest.MonkeyPatch, complete: bool
) -> None:
    monkeypatch.setattr(links, "other_namespaces", lambda: ([], complete))
    with Links() as opened:
        assert opened.elsewhere() == ([], complete)


@pytest.mark.parametrize(
    ("error", "complete"),
    [
        (PermissionError(1, "not permitted"), False),
        (OSError(24, "too many open files"), False),
        (FileNotFoundError(2, "gone"), True),
        (ProcessLookupError(3, "gone"), True),
    ],
)
def test_a_namespace_that_cannot_be_entered_may_hold_more_unless_it_is_gone(
    numbered: dict[int, list[Link]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: OSError, complete: bool
) -> None:
    path = tmp_path / "namespace"
    path.touch()

    def refused(*_: object) -> None:
        raise error

    monkeypatch.setattr(links, "other_namespaces", lambda: ([str(tmp_path / "missing"), str(path)], True))
    monkeypatch.setattr(links, "socket_in", refused)
    with Links() as opened:
        assert opened.elsewhere() == ([], complete)
