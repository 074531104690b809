from __future__ import annotations

import errno
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest
from pyroute2 import netlink as theirs
from pyroute2.netlink import nfnetlink, rtnl

from netsweep.errors import ContentionError, NetsweepError, NotPermittedError
from netsweep.host import netlink
from netsweep.host.netlink import (
    HEADER,
    NLM_F_DUMP_INTR,
    NLMSG_DONE,
    NLMSG_ERROR,
    GoneError,
    InterruptedDumpError,
    MalformedError,
    attribute,
    attributes,
    dump,
    messages,
    receive,
    refused,
    request,
)

KIND = 99
DONE = struct.pack("=i", 0)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two sockets that keep datagrams apart, as netlink does; the second one plays the kernel."""
    ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, kernel:
        yield ours, kernel


def test_a_default_timeout_of_the_caller_does_not_reach_our_sockets() -> None:
    """On a socket with a timeout Python waits for what is asked for at once."""
    socket.setdefaulttimeout(2)
    try:
        with netlink.open_socket(netlink.NETLINK_ROUTE) as opened, pytest.raises(BlockingIOError):
            receive(opened, socket.MSG_DONTWAIT)
    finally:
        socket.setdefaulttimeout(None)


def dumped(pair: tuple[socket.socket, socket.socket], answer: Callable[[int], list[bytes]]) -> Iterator[bytes]:
    """What ``dump`` yields where the kernel answers with the datagrams of ``answer(sequence)``."""
    ours, kernel = pair
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 20, 0))

    def play() -> None:
        asked = kernel.recv(1000)
        for datagram in answer(HEADER.unpack_from(asked)[3]):
            kernel.send(datagram)

    thread = threading.Thread(target=play)
    thread.start()
    try:
        for buffer, offset, end in dump(ours, request(KIND, 0, b"question"), "reading things"):
            yield buffer[offset + HEADER.size : end]
    finally:
        thread.join()


@pytest.mark.parametrize("size", [16, 65_535, 65_536, 150_000])
def test_a_datagram_of_any_size_is_received(pair: tuple[socket.socket, socket.socket], size: int) -> None:
    ours, kernel = pair
    kernel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    sent = bytes(range(256)) * (size // 256) + bytes(size % 256)
    kernel.send(sent)
    kernel.send(b"next")
    assert receive(ours) == sent
    assert receive(ours) == b"next"
    with pytest.raises(BlockingIOError):
        receive(ours, socket.MSG_DONTWAIT)


def test_a_dump_ends_with_its_last_message(pair: tuple[socket.socket, socket.socket]) -> None:
    def answer(sequence: int) -> list[bytes]:
        first = request(KIND, 0, b"1234", sequence) + request(KIND, 0, b"5678", sequence)
        return [first, request(KIND, 0, b"more", sequence), request(NLMSG_DONE, 0, DONE, sequence)]

    assert list(dumped(pair, answer)) == [b"1234", b"5678", b"more"]


def test_what_an_earlier_dump_left_unread_is_not_taken_for_an_answer(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    def answer(sequence: int) -> list[bytes]:
        return [
            request(KIND, 0, b"late", sequence - 1),
            request(NLMSG_DONE, 0, DONE, sequence - 1),
            request(KIND, 0, b"1234", sequence),
            request(NLMSG_DONE, 0, DONE, sequence),
        ]

    assert list(dumped(pair, answer)) == [b"1234"]


@pytest.mark.parametrize(("first", "last"), [(True, False), (False, True), (True, True)])
def test_an_interrupted_dump_says_whether_that_was_noticed_at_its_end(
    pair: tuple[socket.socket, socket.socket], first: bool, last: bool
) -> None:
    def answer(sequence: int) -> list[bytes]:
        return [
            request(KIND, NLM_F_DUMP_INTR * first, b"1234", sequence),
            request(NLMSG_DONE, NLM_F_DUMP_INTR * last, DONE, sequence),
        ]

    found: list[bytes] = []
    with pytest.raises(InterruptedDumpError) as raised:
        found.extend(dumped(pair, answer))
    assert raised.value.at_end is last


@pytest.mark.parametrize("kind", [NLMSG_ERROR, NLMSG_DONE])
def test_an_error_ends_a_dump(pair: tuple[socket.socket, socket.socket], kind: int) -> None:
    def answer(sequence: int) -> list[bytes]:
        return [request(kind, 0, struct.pack("=i", -errno.EBUSY), sequence)]

    with pytest.raises(ContentionError, match="reading things: Device or resource busy"):
        list(dumped(pair, answer))


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.EPERM, NotPermittedError),
        (errno.ENOENT, GoneError),
        (errno.ENOBUFS, ContentionError),
        (errno.EINVAL, NetsweepError),
    ],
)
def test_each_errno_has_its_exception(code: int, kind: type[Exception]) -> None:
    assert type(refused(code, "asking")) is kind


@pytest.mark.parametrize("buffer", [b"12345", HEADER.pack(15, KIND, 0, 0, 0), HEADER.pack(17, KIND, 0, 0, 0)])
def test_messages_that_contradict_their_headers_are_refused(buffer: bytes) -> None:
    with pytest.raises(MalformedError):
        list(messages(buffer))


def test_attributes_are_read_as_they_were_written() -> None:
    written = attribute(1, b"") + attribute(2 | 0x8000, b"12345") + attribute(3, b"1234")
    assert attributes(written) == [(1, b""), (2, b"12345"), (3, b"1234")]
    with pytest.raises(MalformedError):
        attributes(struct.pack("=HH", 9, 1) + b"1234")


def test_constants_are_those_of_pyroute2() -> None:
    known = {**vars(theirs), **vars(rtnl), **vars(nfnetlink)}
    ours = {
        name: value for name, value in vars(netlink).items() if name.startswith(("NETLINK_", "NL", "RTM_", "NFNL_"))
    }
    assert len(ours) == 19
    assert ours == {name: known[name] for name in ours}
