"""Best-of-N: draw N whole responses, keep the one with the highest reward. Stiennon et al. 2020, arXiv:2009.01325.

Differs: 1) ties go to the first draw; 2) a response cut at the length limit is scored as it stands.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

import numpy as np

from alignstar.meter import current_meter
from alignstar.methods import parameters as p
from alignstar.methods.roles import one_model
from alignstar.models import Sampler
from alignstar.rewards import Scorer
from alignstar.sampling import Noise, Sampling, near_tie, stable_argmax
from alignstar.types import Candidate, Prompt, Step


async def best_of_n(
    prompt: Prompt,
    *,
    sft: Sampler | None = None,
    baseline: Sampler | None = None,
    reward: Scorer,
    model: p.Model = None,
    n: p.Draws = 16,
    temperature: p.Temperature = 1.0,
    top_k: p.TopK = None,
    top_p: p.TopP = 1.0,
    max_new_tokens: p.MaxNewTokens = 128,
    seed: p.Seed = 0,
) -> AsyncGenerator[Step, None]:
    """One Step at the end; `considered` holds the N draws. The first draw is what `sample` gives for the same seed.

    Draws whose reward is NaN lose; where all are, the first one is kept. Raises NeedsError without the model.
    """
    base = one_model(model, sft, baseline, "best-of-n")
    draws = await base.continue_(
        prompt.ids,
        max_new_tokens=max_new_tokens,
        n=n,
        sampling=Sampling(temperature=temperature, top_k=top_k, top_p=top_p),
        noise=Noise(seed=seed, purpose="sample"),
    )
    rewards = await reward(prompt, [draw.ids for draw in draws])
    best = stable_argmax(rewards, np.zeros(n), range(n))
    # Equal rewards of equal draws are no doubt about what is returned.
    rivals = [r for draw, r in zip(draws, rewards, strict=True) if draw.ids != draws[best].ids]
    near_ties = sum(draw.near_ties for draw in draws) + near_tie([rewards[best], *rivals], base.tie_tolerance)
    current_meter().add("near_ties", near_ties)
    yield Step(
        index=0,
        emitted=draws[best].ids,
        considered=tuple(
            Candidate(ids=draw.ids, logp=float(draw.logps.sum()), score=float(r), value=float(r))
            for draw, r in zip(draws, rewards, strict=True)
        ),
        chosen=best,
        near_ties=near_ties,
        finish="stop" if draws[best].ended else "length",
    )
