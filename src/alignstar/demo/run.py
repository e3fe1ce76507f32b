"""What the demo does: decode the same prompts with every plan of a setting and add up rewards, KL and cost.

Knows neither the terminal nor how strengths were found; it is given them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from alignstar.aligner import Aligner
from alignstar.demo import true_reward
from alignstar.demo.settings import CONCURRENCY, MAX_NEW_TOKENS, REWARDS, SEED, Plan
from alignstar.evaluate.statistics import Interval, mean_interval, paired_difference
from alignstar.models import TokenModel
from alignstar.types import Response


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One method on one setting's prompts; the tuples have one value per prompt, in order.

    `kl` is the mean of log rho_Alg(y) - log rho_sft(y) [nats]: -log rho_sft(y) for a deterministic method, and the
    bound log N - (N-1)/N for best-of-N (`kl_is_bound`). `seconds` is the row's wall time, its prompts decoded together.
    """

    setting: str
    plan: Plan
    options: Mapping[str, Any]
    replies: tuple[Response, ...]
    learned: tuple[float, ...]
    true: tuple[float, ...]
    kl: float
    kl_is_bound: bool
    seconds: float

    @property
    def true_interval(self) -> Interval:
        """Mean true reward with its 95 % interval over prompts."""
        return mean_interval(self.true)

    @property
    def learned_mean(self) -> float:
        """Mean learned reward of the setting."""
        return sum(self.learned) / len(self.learned)

    def per_reply(self, field: str) -> float:
        """Mean of a Usage count over the replies."""
        counts: list[float] = [getattr(reply.usage, field) for reply in self.replies]
        return sum(counts) / len(counts)


async def decode(
    aligner: Aligner,
    setting: str,
    plan: Plan,
    *,
    messages: Sequence[str],
    alpha: float | None,
    on_reply: Callable[[], None],
) -> Row:
    """Decode `messages` with one plan at strength `alpha` and measure. `on_reply` is called after each of them."""
    options = plan.at(alpha)
    started = time.perf_counter()
    finished: dict[int, Response] = {}
    responses = aligner.agenerate_many(
        messages, method=plan.method, seed=SEED, max_new_tokens=MAX_NEW_TOKENS, concurrency=CONCURRENCY, **options
    )
    async with aclosing(responses):
        async for index, response in responses:
            finished[index] = response
            on_reply()
    seconds = time.perf_counter() - started
    replies = tuple(finished[index] for index in range(len(messages)))
    name = REWARDS[setting]
    return Row(
        setting=setting,
        plan=plan,
        options=options,
        replies=replies,
        learned=tuple(math.nan if reply.reward is None else reply.reward for reply in replies),
        true=tuple(
            true_reward(name, message=message, reply=reply.text, complete=reply.finish_reason == "stop")
            for message, reply in zip(messages, replies, strict=True)
        ),
        kl=await _kl(aligner, plan, replies),
        kl_is_bound=plan.draws is not None,
        seconds=seconds,
    )


async def _kl(aligner: Aligner, plan: Plan, replies: Sequence[Response]) -> float:
    """Mean trajectory KL to the SFT model [nats] (Beirami et al. 2024 for best-of-N's bound)."""
    if plan.draws is not None:
        return math.log(plan.draws) - (plan.draws - 1) / plan.draws
    sft = aligner.models["sft"]
    assert isinstance(sft, TokenModel)
    surprise = [-float((await sft.logprobs(reply.prompt.ids, reply.ids)).sum()) for reply in replies]
    return sum(surprise) / len(surprise)


def as_json(row: Row, winner: Row | None) -> dict[str, Any]:
    """The row as the demo's JSON gives it; counts are per reply. `winner`: the setting's transfer-q row, if it ran."""
    interval = row.true_interval
    gain = None if winner is None or winner is row else paired_difference(winner.true, row.true)
    return {
        "setting": row.setting,
        "method": row.plan.label,
        "options": {**row.options, "max_new_tokens": MAX_NEW_TOKENS, "seed": SEED},
        "prompts": len(row.replies),
        "learned_reward": row.learned_mean,
        "true_reward": interval.mean,
        "true_reward_interval": [interval.low, interval.high],
        "transfer_q_gain": None if gain is None else gain.mean,
        "transfer_q_gain_interval": None if gain is None else [gain.low, gain.high],
        "kl": row.kl,
        "kl_is_upper_bound": row.kl_is_bound,
        "lm_tokens": row.per_reply("lm_tokens"),
        "rm_tokens": row.per_reply("rm_tokens"),
        "wall_s": row.seconds,
    }
