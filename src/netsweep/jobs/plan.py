"""Where deleted rules belong in a chain that has changed since. No I/O.

A rule goes back between its old neighbours. Entries are planned from the last to the first, as an
entry's neighbours are those that its own deletion left: a neighbour that went later is planned by then.
Copies are counted, not looked up: where more of a kind stand than the journal left, that many are back
already, so a restore can be run again to go on.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby

from netsweep.errors import NetsweepError
from netsweep.firewall import Addition, Standing
from netsweep.jobs.journal import NEIGHBOURS, Anchor, Saved
from netsweep.model import Chain


class _Node:
    """A rule of the chain as it will be, in a linked list. ``at``: how many present rules there are up to here."""

    __slots__ = ("at", "before", "behind", "handle", "identity", "raw")

    def __init__(self, identity: bytes, handle: int | None, raw: bytes | None, at: int) -> None:
        self.identity = identity
        self.handle = handle
        self.raw = raw
        self.at = at
        self.before: _Node = self
        self.behind: _Node = self


class _Line:
    """A chain as a ring of nodes: the node ``end`` is before the first rule and behind the last."""

    def __init__(self, order: Sequence[Standing], entries: Sequence[Sequence[Saved]]) -> None:
        self.end = _Node(b"", None, None, 0)
        self._by_identity: dict[bytes, list[_Node]] = defaultdict(list)
        self._by_handle: dict[int, _Node] = {}
        for at, (identity, handle) in enumerate(order, 1):
            self._add(_Node(identity, handle, None, at), self.end.before)
        # The last entry that names a kind says how many of it were left.
        left = {saved.undo.identity: saved.left for entry in entries for saved in entry}
        standing = Counter(identity for identity, _ in order)
        self._back = Counter({identity: standing[identity] - number for identity, number in left.items()})

    def put(self, saved: Sequence[Saved], chain: Chain) -> None:
        """Put back rules that stood behind each other, between the neighbours of the first.

        Raises :class:`NetsweepError` where they no longer fit.
        """
        after, before = saved[0].after, saved[0].before
        node = self._place(after, before)
        if node is None:
            raise NetsweepError(
                f"the rules around a place in {chain} are gone or in another order: nothing was restored, "
                "the journal no longer fits"
            )
        for each in saved:
            identity = each.undo.identity
            there = self._standing(each, node)
            if there and self._back[identity] > 0:
                self._back[identity] -= 1
                self._name(there, each.handle)
                node = there
                continue
            made = _Node(identity, each.handle, each.undo.raw, node.at)
            self._add(made, node)
            node = made

    def additions(self, chain: Chain) -> Iterator[Addition]:
        """What has to be inserted so that the chain becomes this line."""
        self._leave_out_copies()
        node = self.end.behind
        while node is not self.end:
            place, rules = node.at, []
            while node is not self.end and node.raw is not None:
                rules.append(node.raw)
                node = node.behind
            if rules:
                yield Addition(chain, place, rules)
            else:
                node = node.behind

    def _leave_out_copies(self) -> None:
        """Leave out what stands again, though not where it was."""
        node = self.end.before
        while node is not self.end:
            if node.raw is not None and self._back[node.identity] > 0:
                self._back[node.identity] -= 1
                node.before.behind, node.behind.before = node.behind, node.before
            node = node.before

    def _standing(self, saved: Saved, node: _Node) -> _Node | None:
        """The rule itself where it never went, or what stands again in its place, right behind ``node``."""
        itself = self._by_handle.get(saved.handle) if saved.handle is not None else None
        for found in (itself, node.behind):
            if found and found is not self.end and found.raw is None and found.identity == saved.undo.identity:
                return found
        return None

    def _add(self, node: _Node, after: _Node) -> None:
        node.before, node.behind = after, after.behind
        after.behind.before = node
        after.behind = node
        self._by_identity[node.identity].append(node)
        self._name(node, node.handle)

    def _name(self, node: _Node, handle: int | None) -> None:
        if handle is not None:
            self._by_handle[handle] = node

    def _place(self, after: Sequence[Anchor], before: Sequence[Anchor]) -> _Node | None:
        """The node to put rules behind that belong between their neighbours; ``None`` where there is no place."""
        behind, ahead = self._nearest(after), self._nearest(before)
        first, last = self._one(behind, after), self._one(ahead, before)
        those_ahead = set(ahead)
        together = [node for node in behind if node.behind in those_ahead]
        if len(together) == 1 and first in (None, together[0]) and last in (None, together[0].behind):
            return together[0]
        if together and not (first and last):
            return None  # copies that came or went leave more than one place
        if first is self.end:
            # Whatever stands before the old head of the chain now was put there since. Of a chain that nothing
            # was left of, all that is there came behind.
            return last.before if last and last is not self.end else self._behind_planned(first) if after else first
        if first is None:
            return last.before if last and last is not self.end else None
        if last and last is not self.end and first.at > last.at:
            return None
        # Where its own neighbour is gone, what stood before that one comes before it still.
        return first if self._found(after[0]) else self._behind_planned(first, last)

    def _behind_planned(self, node: _Node, last: _Node | None = None) -> _Node:
        """The last of the rules that are inserted right after ``node``, ahead of ``last``."""
        while node.behind.raw is not None and node.behind is not last:
            node = node.behind
        return node

    def _nearest(self, anchors: Sequence[Anchor]) -> list[_Node]:
        """The nodes that may be the nearest of the neighbours that are still there, or the chain's own end."""
        for anchor in anchors:
            if found := self._found(anchor):
                return found
        return [self.end] if len(anchors) < NEIGHBOURS else []

    def _found(self, anchor: Anchor) -> list[_Node]:
        """The one node that has the anchor's handle; where there are no handles, all of its kind."""
        if anchor.handle is None:
            return self._by_identity.get(anchor.identity, [])
        node = self._by_handle.get(anchor.handle)
        return [node] if node is not None and node.identity == anchor.identity else []

    def _one(self, nodes: Sequence[_Node], anchors: Sequence[Anchor]) -> _Node | None:
        """The one of ``nodes`` that is meant; of several copies only where none came or went."""
        if len(nodes) == 1:
            return nodes[0]
        by_place = {node.at: node for node in nodes}  # of two that are planned for one place, none is known as first
        for anchor in anchors:
            if nodes and nodes[0].identity == anchor.identity:
                known = len(by_place) == len(nodes) == anchor.copies
                return by_place[sorted(by_place)[anchor.number]] if known else None
        return None


def plan(
    entries: Sequence[Sequence[Saved]], chain: Chain, order: Sequence[Standing], incarnation: int | None
) -> list[Addition]:
    """What to insert where, so that the rules of ``entries`` (oldest first) stand again as they did.

    ``order``: every rule of the chain as it stands now; ``incarnation``: that of its table. Raises
    :class:`NetsweepError` where the rules no longer fit.
    """
    line = _Line(order, entries)
    for entry in reversed(entries):
        if entry[0].incarnation != incarnation:
            entry = [_without_handles(saved) for saved in entry]
        for _, together in groupby(entry, key=lambda saved: (saved.after, saved.before)):
            line.put(list(together), chain)
    return list(line.additions(chain))


def _without_handles(saved: Saved) -> Saved:
    """``saved`` for a table that was created again, whose handles name other rules."""
    after, before = (tuple(anchor._replace(handle=None) for anchor in side) for side in (saved.after, saved.before))
    return saved._replace(handle=None, after=after, before=before)
