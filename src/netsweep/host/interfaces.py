"""Which interfaces this network namespace has, by name, alternative name and index.

Layouts and constants are those of ``linux/rtnetlink.h`` and ``linux/if_link.h``.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Collection, Iterator, Mapping, Sequence

from netsweep.errors import ContentionError, NetsweepError
from netsweep.host.netlink import (
    HEADER,
    IFINFOMSG,
    NETLINK_ROUTE,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    RTM_GETLINK,
    SEQUENCES,
    SKIP_STATS,
    InterruptedDumpError,
    attribute,
    attributes,
    dump,
    error_code,
    open_socket,
    receive,
    refused,
    request,
)

_IFLA_IFNAME, _IFLA_PROP_LIST, _IFLA_ALT_IFNAME = 3, 52, 53
_IFNAMSIZ = 16

_ABSENT = {_IFLA_IFNAME: {errno.ENODEV}, _IFLA_ALT_IFNAME: {errno.ENODEV, errno.ERANGE, errno.EINVAL}}
"""What the kernel answers where no interface has the name. To an alternative name: ERANGE where it is
longer than any may be (ALTIFNAMSIZ), EINVAL before Linux 5.5, which knows none."""

_AT_ONCE = int(socket.MSG_DONTWAIT)

_QUESTION_TAKES = 6e-6
"""Seconds that asking for one name takes."""

_DUMP_TAKES = 1e-3
"""Seconds that a dump takes on a quiet host with some hundred interfaces."""

_MISSED_TAKES = 0.1
"""Seconds that a dump counts for that was interrupted: many thousand names are not asked for one by one."""

_DUMP_SHARE = 0.05
"""Of the time since the last dump, what another may take: one that was slow once is tried again. Beside eleven busy
jobs, a dump that took 27 ms left a sweep with answers that took 4 ms instead of 0.7, and starved it."""

_QUESTIONS = 50
"""Questions to send at once: the kernel takes its lock for each, which is much faster in one go where
others want it too; the answers have to fit in the socket's buffer."""


class Interfaces:
    """Finds out which interfaces exist. A context manager; holds one socket.

    Raises :class:`~netsweep.errors.NetsweepError` where there is no socket to be opened.
    """

    def __init__(self) -> None:
        try:
            self._socket = open_socket(NETLINK_ROUTE)
        except OSError as error:
            raise NetsweepError(f"cannot open a netlink socket to read interfaces: {error.strerror}") from error
        self._dump_takes = _DUMP_TAKES
        self._dumped = time.monotonic()

    def __enter__(self) -> Interfaces:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def find(
        self, names: Collection[str], indexes: Collection[int] = ()
    ) -> tuple[frozenset[str], dict[int, tuple[str, ...]]]:
        """The ``names`` that no interface has, not as an alternative name either; and all names of those
        interfaces that have one of ``indexes``, () where there is none.

        Names hold bytes that are not UTF-8 as surrogate escapes. Raises
        :class:`~netsweep.errors.ContentionError` where an answer was lost, and what
        :func:`netsweep.host.netlink.refused` says.
        """
        unseen = set(names)
        # On a busy host the kernel waits in the middle of a dump for those who make and remove
        # interfaces: 300 ms, where asking for 300 names takes 2.
        spare = _DUMP_SHARE * (time.monotonic() - self._dumped)
        takes = max(self._dump_takes - spare, min(self._dump_takes, _DUMP_TAKES))
        complete = len(unseen) * _QUESTION_TAKES > takes and self._discard_seen(unseen)
        gone = unseen if complete else self._absent(unseen)
        return frozenset(gone), self._names_of(indexes)

    def _discard_seen(self, names: set[str]) -> bool:
        """Take those out of ``names`` that a dump shows; say whether it showed all interfaces there are."""
        began = time.monotonic()
        everything = request(RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, _question())
        complete = True
        try:
            for buffer, offset, end in dump(self._socket, everything, "reading interfaces"):
                names.difference_update(_names(buffer, offset, end))
        except InterruptedDumpError:
            complete = False
        self._dumped = time.monotonic()
        took = self._dumped - began
        # One that missed something cost its time and every question too: again only for very many names.
        self._dump_takes = took if complete else max(took, _MISSED_TAKES)
        return complete

    def _absent(self, names: Collection[str]) -> set[str]:
        """Those of ``names`` that no interface has, asked for one by one."""
        encoded = [name.encode("utf-8", "surrogateescape") + b"\0" for name in names]
        # The kernel finds alternative names by IFLA_IFNAME too, but refuses long ones there.
        kinds = [_IFLA_IFNAME if len(name) <= _IFNAMSIZ else _IFLA_ALT_IFNAME for name in encoded]
        doing = "asking for interfaces by name"
        answers = self._ask([_question(attribute(*asked)) for asked in zip(kinds, encoded, strict=True)], doing)
        gone = set()
        for name, kind, answer in zip(names, kinds, answers, strict=True):
            if isinstance(answer, int):
                if answer not in _ABSENT[kind]:
                    raise refused(answer, doing)
                gone.add(name)
        return gone

    def _names_of(self, indexes: Collection[int]) -> dict[int, tuple[str, ...]]:
        found: dict[int, tuple[str, ...]] = dict.fromkeys(indexes, ())
        # Other numbers are no index, and the kernel takes 0 for "none given".
        valid = [index for index in found if 0 < index < 2**31]
        doing = "asking for interfaces by index"
        for index, answer in zip(valid, self._ask([_question(index=i) for i in valid], doing), strict=True):
            if not isinstance(answer, int):
                found[index] = tuple(_names(answer, 0, len(answer)))
            elif answer != errno.ENODEV:
                raise refused(answer, doing)
        return found

    def _ask(self, questions: Sequence[bytes], doing: str) -> list[bytes | int]:
        """The answer to each question: a message, or an errno."""
        answers: dict[int, bytes | int] = {}
        # What did not fit in the socket's buffer is asked for again alone: one answer always fits
        # (netlink_attachskb in net/netlink/af_netlink.c).
        for size in (_QUESTIONS, 1):
            left = [place for place in range(len(questions)) if place not in answers]
            for start in range(0, len(left), size):
                places = left[start : start + size]
                try:
                    answers.update(self._exchange({place: questions[place] for place in places}))
                except OSError as error:
                    raise refused(error.errno or errno.EIO, doing) from error
        if len(answers) < len(questions):
            raise ContentionError(f"{doing}: an answer was lost")
        return [answers[place] for place in range(len(questions))]

    def _exchange(self, questions: Mapping[int, bytes]) -> Iterator[tuple[int, bytes | int]]:
        """Send ``questions`` in one go; yield the key and the answer of each whose answer did not get lost."""
        asked = {next(SEQUENCES): key for key in questions}
        self._socket.send(
            b"".join(request(RTM_GETLINK, NLM_F_REQUEST, questions[key], number) for number, key in asked.items())
        )
        while asked:
            try:
                # The kernel has answered when send() returns.
                buffer = receive(self._socket, _AT_ONCE)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                continue
            _, kind, _, number, _ = HEADER.unpack_from(buffer)
            key = asked.pop(number, None)
            if key is not None:
                yield key, error_code(buffer, 0, len(buffer)) if kind == NLMSG_ERROR else buffer


def _question(extra: bytes = b"", *, index: int = 0) -> bytes:
    return IFINFOMSG.pack(0, 0, index, 0, 0) + SKIP_STATS + extra


def _names(buffer: bytes, offset: int, end: int) -> Iterator[str]:
    """The name and the alternative names in one message."""
    for kind, data in attributes(buffer, offset + HEADER.size + IFINFOMSG.size, end):
        if kind == _IFLA_PROP_LIST:
            names = [name for inner, name in attributes(data) if inner == _IFLA_ALT_IFNAME]
        elif kind == _IFLA_IFNAME:
            names = [data]
        else:
            continue
        for name in names:
            yield name.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
