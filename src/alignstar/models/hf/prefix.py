"""The prefix cache: which token sequences have their KV in the pool, who needs them, and what may be thrown away.

Knows slots and token ids, no tensors' contents. Positions are *private* to a running row, or in the *tree*; tree
positions under a pin are needed by somebody, the others are kept as long as there is room and evicted from the leaves,
least recently used first. Of what a row has left at its end and nobody came back to (most rollouts are tried and lost)
only the latest is kept: the rest would take memory, and the place of what is come back to.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable

from alignstar.models.hf.paged import Pool
from alignstar.radix import Node, RadixTree
from alignstar.types import Ids

TRIED = 8192
"""Positions that nobody came back to: at least so many are kept, where there is room."""


class Lease:
    """One row's claim: a pinned path of the tree, and after it slots of its own."""

    __slots__ = ("node", "own", "slots")

    def __init__(self, node: Node, slots: array[int]) -> None:
        self.node = node
        self.slots = slots  # one per position, in order
        self.own = 0  # how many of the last ones are private


class PrefixCache:
    """Longest-prefix look-up over everything alive in one model's pool."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.tree = RadixTree()
        self.pinned = 0  # tree positions that a pin protects
        self.private = 0
        self.most = 0  # positions ever needed at once, or computed by one request
        self.clock = 0
        self._tried = OrderedDict[Node, int]()  # what nobody came back to, the oldest first, and its positions
        self._tried_size = 0

    @property
    def in_use(self) -> int:
        """Positions that running requests need: pinned and private ones."""
        return self.pinned + self.private

    @property
    def held(self) -> int:
        """Positions whose KV is in memory."""
        return self.tree.size + self.private

    def room(self) -> int:
        """Positions that could be taken after evicting whatever nobody needs."""
        return self.pool.capacity - self.in_use

    def lease(self, ids: Ids, limit: int | None = None) -> Lease:
        """Pin the longest known prefix of `ids[:limit]`."""
        node, used, _ = self.tree.match(ids, limit)
        if node is not self.tree.root:
            node = self.tree.split(node, used)
        self._pin(node)
        slots = array("q")
        for edge in reversed(list(node.path())):
            slots.extend(edge.slots)
        return Lease(node, slots)

    def fork(self, lease: Lease) -> Lease:
        """A second claim on the same path; the first must have no private slots."""
        assert lease.own == 0
        self._pin(lease.node)
        return Lease(lease.node, lease.slots[:])

    def extend(self, lease: Lease, count: int) -> None:
        """Give the row `count` more private slots, evicting if needed. The caller has reserved the room."""
        short = count - (self.pool.capacity - self.held)
        if short > 0:
            self._evict(short, self.pool.capacity // 16)
        lease.slots.extend(self.pool.take(count))
        lease.own += count
        self.private += count
        self.most = max(self.most, self.in_use)

    def drop_last(self, lease: Lease, count: int = 1) -> None:
        """Return the last `count` private slots."""
        assert count <= lease.own
        self.pool.give_back(lease.slots[len(lease.slots) - count :])
        del lease.slots[len(lease.slots) - count :]
        lease.own -= count
        self.private -= count

    def publish(self, lease: Lease, ids: Ids) -> None:
        """Put the row's private positions (ids: all of its positions) into the tree, and pin there instead.

        Where another row published the same tokens first, its slots stay and this row's are returned.
        """
        assert len(ids) == len(lease.slots)
        node, known = self.tree.insert(ids, lease.slots)
        shared = len(ids) - lease.own
        self.pool.give_back(lease.slots[shared:known] if known > shared else [])
        self.private -= lease.own
        lease.own = 0
        self._pin(node)
        self._unpin(lease.node)
        lease.node = node
        if known > shared:
            lease.slots = array("q")
            for edge in reversed(list(node.path())):
                lease.slots.extend(edge.slots)

    def release(self, lease: Lease) -> None:
        """End the claim; private slots are returned, the pinned path becomes evictable."""
        if lease.own:
            self.pool.give_back(lease.slots[len(lease.slots) - lease.own :])
            self.private -= lease.own
            lease.own = 0
        self._unpin(lease.node)
        if lease.node.uses == 1:
            self._tried[lease.node] = len(lease.node.tokens)
            self._tried_size += len(lease.node.tokens)
            self._forget_tried()
        lease.slots = array("q")

    def remember(self, lease: Lease, notes: dict[int, object]) -> None:
        """Attach something to published positions: position -> note."""
        first = min(notes, default=lease.node.end)
        for node in lease.node.path():
            if node.end <= first:
                return
            start, end = node.start, node.end
            for position in [p for p in notes if start <= p < end]:
                node.notes[position - start] = notes[position]

    def follow(self, ids: Ids, choose: Callable[[object], int | None]) -> Ids:
        """Continue `ids` through known positions: `choose` reads a position's note and names the next token.

        Ends where a position is not in the tree, has no note, or `choose` gives None. Returns the tokens chosen; the
        note of the last position reached has been read, also when that position is the end of `ids`.
        """
        node, used, length = self.tree.match(ids)
        chosen: list[int] = []
        if length < len(ids) or length == 0:
            return ()
        while (note := node.notes.get(used - 1)) is not None:
            if node.uses == 1:
                self._come_back_to(node)
            token = choose(note)
            if token is None:
                break
            chosen.append(token)
            if used < len(node.tokens):
                if node.tokens[used] != token:
                    break
                used += 1
            else:
                child = node.children.get(token)
                if child is None:
                    break
                node, used = child, 1
        return tuple(chosen)

    def _pin(self, node: Node) -> None:
        self.clock += 1
        for edge in node.path():
            edge.last_used = self.clock
            if edge.uses == 1:
                self._come_back_to(edge)
            else:
                edge.uses += 1
            if edge.refs == 0:
                self.pinned += len(edge.tokens)
            edge.refs += 1

    def _unpin(self, node: Node) -> None:
        for edge in node.path():
            edge.refs -= 1
            if edge.refs == 0:
                self.pinned -= len(edge.tokens)

    def _evict(self, count: int, wanted: int = 0) -> None:
        """Forget at least `count` positions nobody needs, and more up to `wanted`: finding them is what takes time."""
        forgotten = 0
        while forgotten < count:
            leaves = sorted((n for n in self.tree.leaves() if n.refs == 0), key=lambda n: n.last_used)
            assert leaves, "room was promised that is not there"
            for leaf in leaves:
                self._forget(leaf)
                forgotten += len(leaf.tokens)
                if forgotten >= max(count, wanted):
                    break

    def _come_back_to(self, edge: Node) -> None:
        edge.uses += 1
        self._tried_size -= self._tried.pop(edge, 0)
        for rest in edge.children.values():  # of an edge that was cut for it, what lies below
            if rest in self._tried:
                self._tried_size -= self._tried[rest] - len(rest.tokens)
                self._tried[rest] = len(rest.tokens)

    def _forget_tried(self) -> None:
        """The oldest of what was tried, beyond as much as was ever needed at once: some of that may be come back to."""
        while self._tried_size > max(TRIED, self.pool.capacity // 8, self.most):
            self._forget(next(iter(self._tried)))

    def _forget(self, leaf: Node) -> None:
        self.pool.give_back(leaf.slots)
        self.tree.remove(leaf)
        self._tried_size -= self._tried.pop(leaf, 0)

    def clear(self) -> None:
        """Forget everything that nobody needs."""
        self._evict(self.tree.size - self.pinned)
