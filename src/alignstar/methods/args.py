"""ARGS: alignment as reward-guided search. Khanov et al. 2024, arXiv:2402.01694, Algorithm 1.

score(z) = log pi(z|s) + w r([s, z]): the reward reads the partial text, no rollout.

Differs: 1) log-probability instead of the raw logit, which is the same up to a constant per state; 2) the reward may
have its own tokenizer; 3) an end-of-sequence token ends the response.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from alignstar.meter import current_meter
from alignstar.methods import parameters as p
from alignstar.methods.roles import one_model
from alignstar.methods.selection import choose, weighted
from alignstar.models import TokenModel
from alignstar.rewards import Scorer
from alignstar.sampling import Noise
from alignstar.types import Candidate, FinishReason, Ids, Prompt, Step


async def args(
    prompt: Prompt,
    *,
    sft: TokenModel | None = None,
    baseline: TokenModel | None = None,
    reward: Scorer,
    model: p.Model = None,
    k: p.K = 10,
    weight: p.Weight = 1.0,
    strategy: p.ArgsStrategy = "greedy",
    temperature: p.Temperature = 0.7,
    max_new_tokens: p.MaxNewTokens = 128,
    seed: p.Seed = 0,
) -> AsyncGenerator[Step, None]:
    """One Step per token. `temperature` divides the whole score, in the stochastic strategy only.

    Raises NeedsError without the model.
    """
    base = one_model(model, sft, baseline, "args")
    response: Ids = ()
    for t in range(max_new_tokens):
        top = await base.top_next(prompt.ids + response, k)
        candidates = [int(z) for z in top.ids]
        rewards = await reward(prompt, [(*response, z) for z in candidates])
        scores = top.logps + weighted(rewards, weight)  # [k] nats
        choice = choose(
            scores,
            top.logps,
            candidates,
            noise=Noise(seed=seed, purpose="select", step=t),
            temperature=temperature if strategy == "stochastic" else None,
            tolerance=base.tie_tolerance * (1.0 + weight),
            base_tolerance=base.tie_tolerance,
        )
        z = candidates[choice.index]
        response += (z,)
        near_ties = int(top.near_tie) + choice.near_tie
        current_meter().add("near_ties", near_ties)
        finish: FinishReason | None = "stop" if z in base.eos_ids else "length" if t + 1 == max_new_tokens else None
        yield Step(
            index=t,
            emitted=(z,),
            considered=tuple(
                Candidate(ids=(z,), logp=float(logp), score=float(score), value=float(r))
                for z, logp, score, r in zip(candidates, top.logps, scores, rewards, strict=True)
            ),
            chosen=choice.index,
            near_ties=near_ties,
            finish=finish,
        )
        if finish is not None:
            return
