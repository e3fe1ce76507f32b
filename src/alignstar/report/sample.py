"""Which prompts the page holds when it cannot hold all: a sample stratified by reward, the same every time.

Knows weights and ranks, no texts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence


def spread(ranked: Sequence[int], weights: Mapping[int, int], budget: int) -> list[int]:
    """As many of `ranked` as weigh no more than `budget` together, evenly spaced in their order, sorted by number.

    Evenly spaced along an order by reward is a proportionally stratified sample: every part of the range has its share.
    """
    total = sum(weights[item] for item in ranked)
    if total <= budget:
        return sorted(ranked)
    count = max(1, len(ranked) * budget // total)
    while count:
        chosen = [ranked[(2 * place + 1) * len(ranked) // (2 * count)] for place in range(count)]
        excess = sum(weights[item] for item in chosen) - budget
        if excess <= 0:
            return sorted(chosen)
        count = min(count - 1, count * budget // (budget + excess))
    return []


def stratified(
    ranked: Sequence[int], weights: Mapping[int, int], budget: int, *, first: Collection[int] = ()
) -> list[int]:
    """`spread`, with up to a quarter of the budget for those of `first`, which a reader will look for."""
    if sum(weights[item] for item in ranked) <= budget:
        return sorted(ranked)
    wanted = spread([item for item in ranked if item in first], weights, budget // 4)
    left = budget - sum(weights[item] for item in wanted)
    taken = set(wanted)
    return sorted(wanted + spread([item for item in ranked if item not in taken], weights, left))
