"""A radix tree over token sequences with one payload per position: what has been computed, and where it lies.

Knows token ids and integers only. It is used twice: by the meter (no payload) to know what a request has pushed, and by
an engine's prefix cache, whose payload is the KV slot of every position.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from alignstar.types import Ids


class Node:
    """An edge of the tree: `tokens` below `parent`, with one `slots` entry per token.

    `refs` counts the pins on this node and everything below it, `uses` how often its owner needed it.
    """

    __slots__ = ("children", "last_used", "notes", "parent", "refs", "slots", "start", "tokens", "uses")

    def __init__(self, tokens: Ids, slots: list[int], parent: Node | None) -> None:
        self.tokens = tokens
        self.slots = slots
        self.notes: dict[int, object] = {}  # index into tokens -> whatever the owner remembers of that position
        self.children: dict[int, Node] = {}
        self.parent = parent
        self.start: int = 0 if parent is None else parent.end
        self.refs = 0
        self.uses = 0
        self.last_used = 0

    @property
    def end(self) -> int:
        """Positions from the root to the end of this edge."""
        return self.start + len(self.tokens)

    def path(self) -> Iterator[Node]:
        """This node and its ancestors, root last (root excluded)."""
        node: Node = self
        while node.parent is not None:
            yield node
            node = node.parent


def _common(a: Ids, start: int, b: Ids) -> int:
    """Length of the common prefix of a[start:] and b."""
    n = min(len(a) - start, len(b))
    if a[start : start + n] == b[:n]:
        return n
    i = 0
    while a[start + i] == b[i]:
        i += 1
    return i


def common(a: Ids, b: Ids) -> int:
    """Length of the longest common beginning."""
    return _common(a, 0, b)


class RadixTree:
    """Longest-prefix look-up and insertion, O(length) with slices compared in C."""

    def __init__(self) -> None:
        self.root = Node((), [], None)
        self.size = 0  # positions held

    def match(self, ids: Ids, limit: int | None = None) -> tuple[Node, int, int]:
        """The node where the longest known prefix of `ids[:limit]` ends: (node, tokens used of its edge, length)."""
        end = len(ids) if limit is None else min(limit, len(ids))
        node, used, length = self.root, 0, 0
        while length < end:
            child = node.children.get(ids[length])
            if child is None:
                break
            node, tokens = child, child.tokens
            # Where many texts have left a path, it is made of edges of one token, of which nothing is left to compare.
            used = 1 if len(tokens) == 1 else min(_common(ids, length, tokens), end - length)
            length += used
            if used < len(tokens):
                break
        return node, used, length

    def known(self, ids: Ids) -> int:
        """How many leading positions of `ids` are in the tree."""
        return self.match(ids)[2]

    def split(self, node: Node, at: int) -> Node:
        """Cut an edge after `at` of its tokens; returns the upper part. Pins on `node` stay on the lower part."""
        if at == len(node.tokens):
            return node
        assert node.parent is not None
        assert 0 < at < len(node.tokens)
        upper = Node(node.tokens[:at], node.slots[:at], node.parent)
        upper.refs, upper.uses, upper.last_used = node.refs, node.uses, node.last_used
        upper.notes = {i: note for i, note in node.notes.items() if i < at}
        upper.children = {node.tokens[at]: node}
        node.parent.children[node.tokens[0]] = upper
        node.notes = {i - at: note for i, note in node.notes.items() if i >= at}
        node.tokens, node.slots = node.tokens[at:], node.slots[at:]
        node.parent, node.start = upper, upper.end
        return upper

    def insert(self, ids: Ids, slots: Sequence[int] | None = None) -> tuple[Node, int]:
        """Make `ids` known; returns the node at its end and how many leading positions were known already.

        `slots`, where given, has one entry per position of `ids`; entries of known positions are ignored.
        """
        node, used, length = self.match(ids)
        if node is not self.root:
            node = self.split(node, used)
        if length < len(ids):
            if slots is None and node is not self.root and not node.children:
                # Without a payload an edge is only its tokens: what grows token by token stays one edge.
                node.tokens += ids[length:]
                self.size += len(ids) - length
                return node, length
            payload = list(slots[length:]) if slots is not None else []
            child = Node(ids[length:], payload, node)
            node.children[ids[length]] = child
            self.size += len(child.tokens)
            node = child
        return node, length

    def remove(self, leaf: Node) -> None:
        """Forget a leaf."""
        assert not leaf.children
        assert leaf.parent is not None
        del leaf.parent.children[leaf.tokens[0]]
        self.size -= len(leaf.tokens)

    def leaves(self) -> Iterator[Node]:
        """Every node without children, in no particular order."""
        stack = [self.root]
        while stack:
            node = stack.pop()
            if node.children:
                stack.extend(node.children.values())
            elif node is not self.root:
                yield node
