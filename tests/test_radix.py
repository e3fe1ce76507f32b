"""The radix tree against the plain definition: the set of all prefixes that were inserted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from alignstar.radix import RadixTree

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple), max_size=12)


@given(SEQUENCES, st.lists(st.integers(0, 2), max_size=8).map(tuple))
def test_known_is_the_longest_inserted_prefix(inserted: list[tuple[int, ...]], asked: tuple[int, ...]) -> None:
    tree = RadixTree()
    prefixes: set[tuple[int, ...]] = set()
    for ids in inserted:
        expected = max((n for n in range(len(ids) + 1) if n == 0 or ids[:n] in prefixes), default=0)
        node, known = tree.insert(ids)
        assert known == expected
        assert node.end == len(ids)
        prefixes.update(ids[:n] for n in range(1, len(ids) + 1))
    assert tree.size == len(prefixes)
    assert tree.known(asked) == max(n for n in range(len(asked) + 1) if n == 0 or asked[:n] in prefixes)
    assert sum(1 for _ in tree.leaves()) == sum(
        1 for p in prefixes if not any(q[: len(p)] == p for q in prefixes if len(q) > len(p))
    )


def test_slots_and_notes_keep_to_their_positions_when_an_edge_is_cut() -> None:
    tree = RadixTree()
    node, _ = tree.insert((5, 6, 7, 8), [50, 60, 70, 80])
    node.notes.update({0: "five", 3: "eight"})
    tree.insert((5, 6, 9), [1, 2, 90])
    upper, used, length = tree.match((5, 6))
    assert (upper.slots, used, length) == ([50, 60], 2, 2)
    assert upper.notes == {0: "five"}
    assert upper.children[7].notes == {1: "eight"}
    assert upper.children[9].slots == [90]
    assert [n.tokens for n in upper.children[9].path()] == [(9,), (5, 6)]


def test_a_removed_leaf_is_forgotten() -> None:
    tree = RadixTree()
    tree.insert((1, 2, 3))
    leaf, _ = tree.insert((1, 2, 4, 5))
    tree.remove(leaf)
    assert tree.size == 3
    assert tree.known((1, 2, 4, 5)) == 2


def test_an_edge_without_payload_grows() -> None:
    """What a meter inserts token by token is one edge; what branches off it stays known."""
    tree = RadixTree()
    ids = tuple(range(50))
    for at in range(1, 31):
        tree.insert(ids[:at])
    assert len(tree.root.children) == 1
    assert tree.root.children[0].tokens == ids[:30]
    tree.insert((*ids[:10], 99, 98))
    tree.insert(ids)
    tree.insert((*ids[:10], 99, 98, 97))
    assert tree.size == 50 + 3
    assert tree.known(ids) == 50
    assert tree.known((*ids[:10], 99, 98, 97, 96)) == 13
    assert tree.known((*ids[:10], 98)) == 10
