"""What the approximations of Transfer Q* lose in reward and save in tokens, beside smaller k and shorter rollouts.

Two works: `toy`, random tables whose reward pays for pairs of tokens four apart, one world per prompt; `demo`,
the embedded models and their true reward. Every row decodes the same prompts from the same seeds, so that its reward
is compared with that of plain Transfer Q* prompt by prompt. Knows options by name; measures, and prints nothing.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from alignstar.aligner import Aligner
from alignstar.evaluate.statistics import Interval, mean_interval, paired_difference
from alignstar.models.toy import ToyCodec, ToyModel, ToyReward
from alignstar.sampling import Noise
from alignstar.types import Prompt, Response

GREEDY: Mapping[str, Mapping[str, Any]] = {
    "transfer-q": {"acceleration": "off"},
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
}
"""Rows with greedy rollouts; a share of `k` or `rollout_len` is taken of the work's own."""

SAMPLED: Mapping[str, Mapping[str, Any]] = {
    "16 sampled rollouts": {},
    "adaptive_rollouts=0.05": {"adaptive_rollouts": 0.05},
    "adaptive_rollouts=0.5": {"adaptive_rollouts": 0.5},
    "4 sampled rollouts": {"num_rollouts": 4},
    "1 sampled rollout": {"num_rollouts": 1},
}
"""Rows with sampled rollouts, the first of which is what the others are compared with."""

DRAWN: Mapping[str, Any] = {"rollout_strategy": "sample", "num_rollouts": 16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is decoded: `cases` of (models, prompt), the options of all rows, and the true reward where there is one."""

    name: str
    cases: Sequence[tuple[Aligner, str]]
    options: Mapping[str, Any]
    true: Callable[[str, Response], float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way of decoding. `rewards` and `true` have one value per prompt; counts are per emitted token.

    `loss` is what the reward is below that of `against`, prompt by prompt.
    """

    name: str
    against: str
    rewards: tuple[float, ...]
    true: tuple[float, ...]
    loss: Interval
    true_loss: Interval | None
    lm_tokens: float
    rm_tokens: float
    sequential_steps: float
    share: float

    @property
    def reward(self) -> Interval:
        """Mean reward with its interval."""
        return mean_interval(self.rewards)

    def as_json(self) -> dict[str, Any]:
        """Everything measured."""
        return {**asdict(self), "reward": self.reward.mean}


def savings(work: str = "toy", prompts: int = 100, *, on_row: Callable[[str], None] = lambda name: None) -> list[Row]:
    """Every row on `prompts` prompts of a work ("toy" or "demo"); `on_row` is told each before it starts."""
    made = toy_work(prompts) if work == "toy" else demo_work(prompts)
    rows: list[Row] = []
    for common, variants in (({}, {"greedy decoding": {"gate": 0.0}, **GREEDY}), (DRAWN, SAMPLED)):
        plain = "transfer-q" if common == {} else next(iter(SAMPLED))
        measured: dict[str, list[Response]] = {}
        for name, options in variants.items():
            on_row(name)
            measured[name] = asyncio.run(_decoded(made, {**made.options, **common, **_of(made, options)}))
        rows += [_row(name, responses, plain, measured[plain], made) for name, responses in measured.items()]
    return rows


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
    return Work(name="toy", cases=cases, options={"k": 8, "rollout_len": 8, "alpha": 0.02, "max_new_tokens": 24})


class Pairs(ToyReward):
    """In [0, 1]: a squashed sum of random worths, each in [-1, 1], of a text's pairs of letters four apart."""

    def value(self, prompt: Prompt, text: str, complete: bool) -> float:
        """See ToyReward. Four tokens pass before a token is paid for: without rollouts nothing is known of it."""
        pairs = zip(text, text[4:], strict=False)
        return 0.5 + 0.5 * math.tanh(sum(_worth(self.seed, pair) for pair in pairs) / 16)


@cache
def _worth(seed: int, pair: tuple[str, str]) -> float:
    return 2 * float(Noise(seed=seed, purpose=f"worth {pair}").uniform(0, 1)[0]) - 1


def demo_work(prompts: int) -> Work:
    """The embedded models on held-out prompts, by the reward that the baseline was aligned to."""
    from alignstar.demo import prompts as messages
    from alignstar.demo import true_reward
    from alignstar.demo.settings import MAX_NEW_TOKENS, open_setting

    def true(message: str, response: Response) -> float:
        return true_reward("source", message=message, reply=response.text, complete=response.finish_reason == "stop")

    aligner = open_setting("direct")
    options = {
        "k": 10, "rollout_len": 20, "alpha": 1.0, "reward_norm": "clip(-4,4)", "max_new_tokens": MAX_NEW_TOKENS,
        "transfer": "direct",
    }  # fmt: skip
    return Work(name="demo", cases=[(aligner, m) for m in messages("evaluation")[:prompts]], options=options, true=true)


def _of(work: Work, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with shares turned into numbers."""
    shared = {
        name: max(1, round(options[name] * work.options[name])) for name in ("k", "rollout_len") if name in options
    }
    return {**options, **shared}


async def _decoded(work: Work, options: Mapping[str, Any]) -> list[Response]:
    gate = asyncio.Semaphore(32)

    async def one(aligner: Aligner, prompt: str) -> Response:
        async with gate:
            return await aligner.agenerate(prompt, **options)

    return list(await asyncio.gather(*(one(aligner, prompt) for aligner, prompt in work.cases)))


def _row(name: str, responses: Sequence[Response], against: str, plain: Sequence[Response], work: Work) -> Row:
    def learned(of: Sequence[Response]) -> tuple[float, ...]:
        return tuple(math.nan if r.reward is None else r.reward for r in of)

    def true(of: Sequence[Response]) -> tuple[float, ...]:
        if work.true is None:
            return ()
        return tuple(work.true(message, r) for (_, message), r in zip(work.cases, of, strict=True))

    lm_tokens = _per_token(responses, "lm_tokens")
    return Row(
        name=name,
        against=against,
        rewards=learned(responses),
        true=true(responses),
        loss=paired_difference(learned(plain), learned(responses)),
        true_loss=None if work.true is None else paired_difference(true(plain), true(responses)),
        lm_tokens=lm_tokens,
        rm_tokens=_per_token(responses, "rm_tokens"),
        sequential_steps=_per_token(responses, "sequential_steps"),
        share=lm_tokens / _per_token(plain, "lm_tokens"),
    )


def _per_token(responses: Sequence[Response], field: str) -> float:
    """A Usage count per emitted token."""
    return sum(getattr(r.usage, field) for r in responses) / sum(len(r.ids) for r in responses)
