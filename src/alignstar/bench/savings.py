"""What the approximations of Transfer Q* lose in reward and save in tokens, beside smaller k and shorter rollouts.

Two works: `toy`, random tables whose reward pays for pairs of tokens four apart, one world per prompt; `demo`,
the embedded models and their true reward. Every row decodes the same prompts from the same seeds, so that its reward
is compared with that of plain Transfer Q* prompt by prompt. Knows options by name; measures, and prints nothing.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from alignstar.aligner import Aligner
from alignstar.evaluate.statistics import Interval, mean_interval, paired_difference
from alignstar.models.toy import ToyCodec, ToyModel, ToyReward
from alignstar.sampling import Noise
from alignstar.types import Prompt, Response

PLAIN = "transfer-q"
"""The row of every family that the others are compared with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Ways of decoding that differ from the first one by what they leave out.

    `rows` have options each; a share of `k`, `rollout_len` or `num_rollouts` is taken of the work's own. `lines` name
    rows that only make a number smaller, from all of it to nothing: what any user could do without an approximation.
    """

    rows: Mapping[str, Mapping[str, Any]]
    lines: Sequence[Sequence[str]]


FAMILIES: Mapping[str, Family] = {
    "greedy": Family(
        rows={
            PLAIN: {"acceleration": "off"},
            "exact acceleration": {"window": 1},
            "block=2": {"block": 2},
            "block=4": {"block": 4},
            "block=8": {"block": 8},
            "halving=2": {"halving": 2},
            "halving=3": {"halving": 3},
            "gate=0.9": {"gate": 0.9},
            "gate=0.7": {"gate": 0.7},
            "gate=0.5": {"gate": 0.5},
            "block=4 halving=3 gate=0.9": {"block": 4, "halving": 3, "gate": 0.9},
            "half of k": {"acceleration": "off", "k": 0.5},
            "quarter of k": {"acceleration": "off", "k": 0.25},
            "half of rollout_len": {"acceleration": "off", "rollout_len": 0.5},
            "quarter of rollout_len": {"acceleration": "off", "rollout_len": 0.25},
            "greedy decoding": {"gate": 0.0},
        },
        lines=[[PLAIN, f"half of {name}", f"quarter of {name}", "greedy decoding"] for name in ("k", "rollout_len")],
    ),
    "sampled": Family(
        rows={
            PLAIN: {},
            "adaptive_rollouts=0.05": {"adaptive_rollouts": 0.05},
            "half of num_rollouts": {"num_rollouts": 0.5},
            "quarter of num_rollouts": {"num_rollouts": 0.25},
        },
        lines=[[PLAIN, "half of num_rollouts", "quarter of num_rollouts"]],
    ),
}
"""By the kind of rollouts: a greedy one per candidate, or several that are drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is decoded: `cases` of (models, prompt), the options of all rows, and the true reward where there is one.

    `draws` is the number of rollouts where they are sampled.
    """

    name: str
    cases: Sequence[tuple[Aligner, str]]
    options: Mapping[str, Any]
    draws: int
    true: Callable[[str, Response], float] | None = None

    def common(self, rollouts: str) -> dict[str, Any]:
        """The options of all rows of a family."""
        drawn = {"rollout_strategy": "sample", "num_rollouts": self.draws}
        return {**self.options, **(drawn if rollouts == "sampled" else {})}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way of decoding. `rewards` and `true` have one value per prompt; counts are per emitted token.

    `loss` is how far the reward is below that of plain Transfer Q*, prompt by prompt; `share` is the part of its tokens
    that is computed. `beyond` is how far the reward is above that of the family's lines at as many tokens, the better
    of them; None for the rows on these lines.
    """

    name: str
    rollouts: str
    rewards: tuple[float, ...]
    true: tuple[float, ...]
    loss: Interval
    true_loss: Interval | None
    lm_tokens: float
    rm_tokens: float
    sequential_steps: float
    share: float = 1.0
    beyond: Interval | None = None
    true_beyond: Interval | None = None

    @property
    def reward(self) -> Interval:
        """Mean reward with its interval."""
        return mean_interval(self.rewards)

    @property
    def tokens(self) -> float:
        """What both models compute."""
        return self.lm_tokens + self.rm_tokens

    def as_json(self) -> dict[str, Any]:
        """Everything measured."""
        return {**asdict(self), "reward": self.reward.mean, "tokens": self.tokens}


def work(name: str, prompts: int, *, threads: int | None = None) -> Work:
    """The work of that name ("toy" or "demo") with so many prompts. `threads` of torch (None: its own choice)."""
    return toy_work(prompts) if name == "toy" else demo_work(prompts, threads=threads)


def savings(made: Work, rollouts: str, *, on_row: Callable[[str], None] = lambda name: None) -> list[Row]:
    """Every row of a family ("greedy" or "sampled"); `on_row` is told each before it starts."""
    family, common = FAMILIES[rollouts], made.common(rollouts)
    measured: dict[str, list[Response]] = {}
    for name, options in family.rows.items():
        on_row(name)
        measured[name] = asyncio.run(_decoded(made, {**common, **_of(common, options)}))
    rows = {name: _row(name, rollouts, responses, measured[PLAIN], made) for name, responses in measured.items()}
    return [_compared(row, rows, family) for row in rows.values()]


def toy_work(worlds: int) -> Work:
    """Random models of order 2 over eight letters, and rewards of pairs of letters."""
    codec = ToyCodec(9)
    cases = [
        (
            Aligner(
                baseline=ToyModel.random(seed, 9, order=2, temperature=0.5, eos_weight=0.02),
                reward=Pairs(seed=seed, declared=True),
                codec=codec,
            ),
            "A",
        )
        for seed in range(worlds)
    ]
    options = {"k": 8, "rollout_len": 8, "alpha": 0.02, "max_new_tokens": 24}
    return Work(name="toy", cases=cases, options=options, draws=16)


class Pairs(ToyReward):
    """In [0, 1]: a squashed sum of random worths, each in [-1, 1], of a text's pairs of letters four apart."""

    def value(self, prompt: Prompt, text: str, complete: bool) -> float:
        """See ToyReward. Four tokens pass before a token is paid for: without rollouts nothing is known of it."""
        pairs = zip(text, text[4:], strict=False)
        return 0.5 + 0.5 * math.tanh(sum(_worth(self.seed, pair) for pair in pairs) / 16)


@cache
def _worth(seed: int, pair: tuple[str, str]) -> float:
    return 2 * float(Noise(seed=seed, purpose=f"worth {pair}").uniform(0, 1)[0]) - 1


def demo_work(prompts: int, *, threads: int | None = None) -> Work:
    """The embedded models on held-out prompts, by the reward that the baseline was aligned to."""
    import torch

    from alignstar.demo import prompts as messages
    from alignstar.demo import true_reward
    from alignstar.demo.settings import MAX_NEW_TOKENS, open_setting

    def true(message: str, response: Response) -> float:
        return true_reward("source", message=message, reply=response.text, complete=response.finish_reason == "stop")

    if threads is not None:
        torch.set_num_threads(threads)
    aligner = open_setting("direct")
    options = {
        # Rollouts are complete: these rewards know whole replies, and a reply cut after 20 tokens misleads the search.
        "k": 10, "rollout_len": MAX_NEW_TOKENS, "alpha": 1.0, "max_new_tokens": MAX_NEW_TOKENS, "transfer": "direct",
    }  # fmt: skip
    cases = [(aligner, message) for message in messages("evaluation")[:prompts]]
    return Work(name="demo", cases=cases, options=options, draws=4, true=true)


def _of(common: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with shares turned into numbers."""
    numbers = [name for name in ("k", "rollout_len", "num_rollouts") if name in options]
    return {**options, **{name: max(1, round(options[name] * common[name])) for name in numbers}}


async def _decoded(work: Work, options: Mapping[str, Any]) -> list[Response]:
    gate = asyncio.Semaphore(32)

    async def one(aligner: Aligner, prompt: str) -> Response:
        async with gate:
            return await aligner.agenerate(prompt, **options)

    return list(await asyncio.gather(*(one(aligner, prompt) for aligner, prompt in work.cases)))


def _row(name: str, rollouts: str, responses: Sequence[Response], plain: Sequence[Response], made: Work) -> Row:
    def learned(of: Sequence[Response]) -> tuple[float, ...]:
        return tuple(math.nan if r.reward is None else r.reward for r in of)

    def true(of: Sequence[Response]) -> tuple[float, ...]:
        if made.true is None:
            return ()
        return tuple(made.true(message, r) for (_, message), r in zip(made.cases, of, strict=True))

    return Row(
        name=name,
        rollouts=rollouts,
        rewards=learned(responses),
        true=true(responses),
        loss=paired_difference(learned(plain), learned(responses)),
        true_loss=None if made.true is None else paired_difference(true(plain), true(responses)),
        lm_tokens=_per_token(responses, "lm_tokens"),
        rm_tokens=_per_token(responses, "rm_tokens"),
        sequential_steps=_per_token(responses, "sequential_steps"),
    )


def _compared(row: Row, rows: Mapping[str, Row], family: Family) -> Row:
    """The row with its share, and with what it gets beyond the lines."""
    row = replace(row, share=row.tokens / rows[PLAIN].tokens)
    if any(row.name in line for line in family.lines):
        return row
    lines = [[rows[name] for name in line] for line in family.lines]
    return replace(
        row,
        beyond=_beyond(row, lines, lambda of: of.rewards),
        true_beyond=_beyond(row, lines, lambda of: of.true) if row.true else None,
    )


def _beyond(row: Row, lines: Sequence[Sequence[Row]], rewards: Callable[[Row], Sequence[float]]) -> Interval:
    """The row's rewards less those of the better line at the row's tokens, prompt by prompt."""
    at_cost = [_between(line, row.tokens, rewards) for line in lines]
    return paired_difference(rewards(row), max(at_cost, key=lambda values: mean_interval(values).mean))


def _between(line: Sequence[Row], tokens: float, rewards: Callable[[Row], Sequence[float]]) -> list[float]:
    """Rewards by prompt of the mixture of neighbouring rows that takes so many tokens."""
    by_cost = sorted(line, key=lambda row: row.tokens)
    costs = [row.tokens for row in by_cost]
    return [float(np.interp(tokens, costs, of)) for of in zip(*(rewards(row) for row in by_cost), strict=True)]


def _per_token(responses: Sequence[Response], field: str) -> float:
    """A Usage count per emitted token."""
    return sum(getattr(r.usage, field) for r in responses) / sum(len(r.ids) for r in responses)
