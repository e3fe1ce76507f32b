"""One reward for everybody against rewards of groups, as the minority among the annotators shrinks.

For every ratio of majority to minority, annotators choose between replies, rewards are learnt from their choices, and
responses are made with those rewards: by best-of-n among the same draws, and by policies trained on them. A response is
judged by what each group truly thinks of it, and wins against the SFT model's own replies to the prompt, ties half.
Several seeds of a prompt are averaged first; intervals are over prompts. Knows rewards and replies, no model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from alignstar.bench.maxmin_world import (
    GROUPS,
    MAJORITY,
    MINORITY,
    Learned,
    Replies,
    World,
    judged,
    learn,
    vote,
)  # fmt: skip
from alignstar.demo.people import Reply
from alignstar.evaluate.statistics import Bootstrap, Interval
from alignstar.rewards.game import worst_weights
from alignstar.sampling import Array, IntArray

GAME_BETA = 0.5
"""Of the game that weights a prompt's groups, in standard deviations of a group's reward."""

DECODING = ("pooled", "min", "game")
TRAINING = ("pooled", "maxmin", "pointwise")
"""What is decoded with and trained on; the first one of each is what the others are compared with."""

Trained: TypeAlias = Callable[[Learned, str, int], Sequence[Sequence[Reply]]]
"""(rewards, objective, seed) -> replies of the policy trained so, several for each prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Responses made in one way: per group and prompt, the share of comparisons won and the mean true reward."""

    way: str
    reward: str
    wins: Mapping[str, Array]
    true: Mapping[str, Array]

    def means(self) -> Bootstrap:
        """Columns ("wins", group) and ("true", group), and the mean over groups ("wins", "mean")."""
        columns: dict[Hashable, Array] = {("wins", group): values for group, values in self.wins.items()}
        columns |= {("true", group): values for group, values in self.true.items()}
        columns["wins", "mean"] = sum(self.wins.values(), np.zeros(1)) / len(self.wins)
        return Bootstrap(columns)

    def as_json(self) -> dict[str, Any]:
        """Keys: way, reward; win_rate and true_reward by group with intervals; `values` prompt by prompt."""
        means = self.means()
        return {
            "way": self.way,
            "reward": self.reward,
            "win_rate": {g: interval_json(means.interval(("wins", g))) for g in (*GROUPS, "mean")},
            "true_reward": {g: interval_json(means.interval(("true", g))) for g in GROUPS},
            "values": {
                "win_rate": {g: self.wins[g].tolist() for g in GROUPS},
                "true_reward": {g: self.true[g].tolist() for g in GROUPS},
            },
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was found at one ratio. `accuracy`: see `accuracies`; `recovered`: the mean over seeds, see Learned."""

    ratio: int
    seeds: int
    accuracy: Mapping[str, Interval]
    recovered: float
    rows: tuple[Row, ...]
    seconds: float

    def row(self, way: str, reward: str) -> Row:
        """The row of this name."""
        return next(row for row in self.rows if (row.way, row.reward) == (way, reward))

    def gains(self) -> list[Gain]:
        """Every fair row against the pooled one of the same way."""
        return [
            gain(self.row(row.way, "pooled"), row) for row in self.rows if row.reward != "pooled"
        ]  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        """Keys: ratio, seeds, recovered, accuracy (with intervals), rows (`Row`), gains (`Gain`), wall_s."""
        return {
            "ratio": self.ratio,
            "seeds": self.seeds,
            "recovered": self.recovered,
            "accuracy": {name: interval_json(value) for name, value in self.accuracy.items()},
            "rows": [row.as_json() for row in self.rows],
            "gains": [found.as_json() for found in self.gains()],
            "wall_s": self.seconds,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """What groups win by a fair reward, paired by prompt: differences of win rates, and relative to the pooled one's.

    Keys of `wins` and `relative` are the groups and "mean", the mean over groups.
    """

    way: str
    reward: str
    wins: Mapping[str, Interval]
    relative: Mapping[str, Interval]

    def as_json(self) -> dict[str, Any]:
        """Intervals by group."""
        return {
            "way": self.way,
            "reward": self.reward,
            "win_rate": {name: interval_json(value) for name, value in self.wins.items()},
            "relative": {name: interval_json(value) for name, value in self.relative.items()},
        }


def interval_json(interval: Interval) -> dict[str, float]:
    """A mean and the ends of its 95 % interval."""
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


def gain(pooled: Row, fair: Row) -> Gain:
    """The fair row less the pooled one."""
    columns: dict[Hashable, Array] = {}
    for name, row in (("pooled", pooled), ("fair", fair)):
        columns |= {(name, group): values for group, values in row.wins.items()}
        columns[name, "mean"] = sum(row.wins.values(), np.zeros(1)) / len(row.wins)
    means, prompts = Bootstrap(columns), len(columns["fair", "mean"])
    told = {g: (means.means(("fair", g)), means.means(("pooled", g))) for g in (*GROUPS, "mean")}
    with np.errstate(divide="ignore", invalid="ignore"):
        return Gain(
            way=fair.way,
            reward=fair.reward,
            wins={g: means.of(ours - theirs, n=prompts) for g, (ours, theirs) in told.items()},
            relative={g: means.of(ours / theirs - 1.0, n=prompts) for g, (ours, theirs) in told.items()},
        )


def wins(values: Array, references: Array) -> Array:
    """The share of pairs [prompts] in which one of `values` [prompts, k] beats one of `references` [prompts, m]."""
    gaps = values[:, :, None] - references[:, None, :]
    return np.mean((gaps > 0) + 0.5 * (gaps == 0), axis=(1, 2))


def picks(features: Array, learned: Learned, reward: str) -> IntArray:
    """Which of a prompt's replies [prompts] a reward likes best; of equal ones the first. Features [prompts, n, d]."""
    if reward == "pooled":
        return np.argmax(features @ learned.pooled, axis=1)
    by_group = features @ learned.groups.T  # [prompts, n, U]
    if reward == "min":
        return np.argmax(np.min(by_group, axis=2), axis=1)
    weights = [worst_weights(np.zeros(len(r)), r, GAME_BETA).weights for r in by_group]
    return np.argmax(np.einsum("pnu,pu->pn", by_group, np.stack(weights)), axis=1)


def accuracies(pool: Replies, learned: Learned) -> dict[str, Array]:
    """How often a reward orders a prompt's replies, two by two, as a group truly does: shares [prompts].

    `pooled, GROUP`; `own, GROUP`: the better of the mixture's rewards for that group; and both `where they differ`, in
    pairs that the two groups order in opposite ways. NaN for a prompt without such a pair.
    """
    first, second = np.triu_indices(pool.features.shape[1], k=1)
    truly = {g: (t := pool.truth(g))[:, first] - t[:, second] for g in GROUPS}
    differ = truly[MAJORITY] * truly[MINORITY] < 0

    def told(reward: Array, group: str, among: NDArray[np.bool_]) -> Array:
        scores = pool.features @ reward
        right = ((scores[:, first] - scores[:, second] > 0) == (truly[group] > 0)) & among
        with np.errstate(invalid="ignore"):
            return right.sum(axis=1) / among.sum(axis=1)

    found: dict[str, Array] = {}
    for suffix, among in (("", None), (" where they differ", differ)):
        for group in GROUPS:
            counted = truly[group] != 0 if among is None else among
            found[f"pooled, {group}{suffix}"] = told(learned.pooled, group, counted)
            own = [told(reward, group, counted) for reward in learned.groups]
            found[f"own, {group}{suffix}"] = max(own, key=lambda shares: float(np.nanmean(shares)))
    return found


def measure(
    world: World,
    *,
    ratio: int,
    seeds: int,
    trained: Trained | None,
    on_part: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Everything at one ratio; without policies where `trained` is None."""
    began = time.perf_counter()
    pool = world.pool
    best = f"best of {pool.features.shape[1]}"
    true = {g: pool.truth(g) for g in GROUPS}
    made: dict[tuple[str, str], list[dict[str, Array]]] = {}
    accuracy: dict[str, list[Array]] = {}
    recovered: list[float] = []
    for seed in range(seeds):
        learned = learn(world.annotated, vote(world.annotated, ratio=ratio, seed=seed), seed=seed)
        recovered.append(learned.recovered)
        for name, shares in accuracies(pool, learned).items():
            accuracy.setdefault(name, []).append(shares)
        for reward in DECODING:
            on_part(f"{ratio}:1 seed {seed} {best}, {reward}")
            at = picks(pool.features, learned, reward)[:, None]
            made.setdefault((best, reward), []).append({g: np.take_along_axis(t, at, axis=1) for g, t in true.items()})
        if trained is None:
            continue
        for objective in TRAINING:
            on_part(f"{ratio}:1 seed {seed} trained, {objective}")
            replies = trained(learned, objective, seed)
            made.setdefault(("trained", objective), []).append({g: judged(pool.messages, replies, g) for g in GROUPS})
    references = {g: world.references.truth(g) for g in GROUPS}
    return Outcome(
        ratio=ratio,
        seeds=seeds,
        accuracy={name: _mean_interval(shares) for name, shares in accuracy.items()},
        recovered=float(np.mean(recovered)),
        rows=tuple(_row(*name, values, references) for name, values in made.items()),
        seconds=time.perf_counter() - began,
    )


def _mean_interval(shares: Sequence[Array]) -> Interval:
    return Bootstrap({"": np.mean(np.stack(shares), axis=0)}).interval("")


def _row(way: str, reward: str, seeds: Sequence[Mapping[str, Array]], references: Mapping[str, Array]) -> Row:
    """The mean over seeds, prompt by prompt."""
    return Row(
        way=way,
        reward=reward,
        wins={g: np.mean([wins(true[g], references[g]) for true in seeds], axis=0) for g in GROUPS},
        true={g: np.mean([true[g].mean(axis=1) for true in seeds], axis=0) for g in GROUPS},
    )
