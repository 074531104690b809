"""Dumps of a chain, and what they prove: that no rule was missed, though others change the chain meanwhile."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence

from netsweep.firewall.nftables import messages as nft
from netsweep.host import netlink
from netsweep.host.netlink import NLM_F_DUMP, NLM_F_REQUEST
from netsweep.model import Chain, Rule

_HEAD, _END = None, 0
"""What stands for the beginning and the end of a chain among handles, which begin at 1 (nf_tables_alloc_handle)."""

Run = set[int | None]
"""Rules of a chain, by handle, between which no other stood."""


class Gathered:
    """What the dumps of one chain showed: ``rules`` of ours by handle, and how many were ``read`` in the last.

    It is ``complete`` where every rule was seen that stood there from the beginning of the first dump to the
    end of the last. Such rules never change places. So what stood between two of them is known where a run
    of any dump has both, and runs of two dumps that share a rule are one: of rules that are deleted and made
    anew meanwhile it says nothing.
    """

    def __init__(self) -> None:
        self.rules: dict[int, Rule] = {}
        self.read = 0
        self._runs: list[Run] = []
        self._last: int | None = _END

    @property
    def complete(self) -> bool:
        return any({_HEAD, self._last} <= run for run in self._runs)

    def add(self, runs: Sequence[Run], last: int | None = None) -> None:
        """Add what a dump showed without gaps; ``last``: the last rule that was wanted of it, else it is all."""
        self._last = _END if last is None else last
        if self._runs and {_HEAD, _END} <= runs[0]:
            self.rules = {handle: rule for handle, rule in self.rules.items() if handle in runs[0]}
        for run in runs:
            apart, joined = [], set(run)
            for known in self._runs:
                if known.isdisjoint(joined):
                    apart.append(known)
                else:
                    joined |= known
            self._runs = [*apart, joined]


class Dump:
    """The rules of a chain: handle, content and message of each; ``runs`` are those that no other stood between.

    Each rule of a dump carries the handle of the rule before it, so where that is a rule that was dumped
    before, none was skipped, whatever the kernel says of changes meanwhile. It may say nothing: rules leave
    a chain after the generation was counted up, and a dump goes on by the number of rules in front
    (nf_tables_dump_rules), so one that begins in between skips some (six of 1,077 deletions of 200 rules did
    that to a dump beside them).

    What the handles do not prove is that nothing was skipped behind the last rule: a deletion in front hides
    as many of the last ones. Who knows that there was none says so by :meth:`end`. ``changed_at_end`` tells of
    most: whether there was a commit between the last two answers. ``last`` is the rule that was read last.
    """

    def __init__(self, sock: socket.socket, chain: Chain) -> None:
        self.runs: list[Run] = [{_HEAD}]
        self.changed_at_end = False
        self.last: int | None = None
        self._sock = sock
        self._chain = chain

    def end(self) -> None:
        """Note that the last rule is the last of the chain."""
        self.runs[-1].add(_END)

    def __iter__(self) -> Iterator[tuple[int, bytes, bytes]]:
        chain, taken_apart = self._chain, nft.reader(self._chain)
        question = nft.request(
            nft.GETRULE,
            NLM_F_REQUEST | NLM_F_DUMP,
            chain.table,
            nft.names(nft.RULE_TABLE, nft.RULE_CHAIN, chain),
        )
        run, last = self.runs[-1], _HEAD
        try:
            for buffer, offset, end in netlink.dump(self._sock, question, f"reading {chain}"):
                handle, before, rest = taken_apart(buffer, offset, end)
                if before != last and before not in run:
                    run = {before}
                    self.runs.append(run)
                self.last = last = handle
                if handle in run:
                    continue  # rules that were put in ahead of the cursor make the dump repeat some
                run.add(handle)
                yield handle, buffer[rest:end], buffer[offset:end]
        except netlink.InterruptedDumpError as interrupted:
            self.changed_at_end = interrupted.at_end
