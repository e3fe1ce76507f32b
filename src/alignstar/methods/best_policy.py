"""Max over policies of the min over groups: of the models at hand, the one whose worst group is best off.

MaxMin-RLHF, Chakraborty et al. 2024, arXiv:2402.08925: max over pi of min over u of E_pi[r_u], here over the policies
{SFT model, baseline}, for every prompt: argmax_j min_u mean of r_u over n responses drawn from pi_j.

Differs: 1) the policies are those that are there, none is trained; 2) expectations are means of n draws (with n = 1 two
responses are compared); 3) what is returned is the chosen policy's first draw, as any draw of it would do: the best one
for the worst group would be another policy's.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

import numpy as np
from numpy.typing import NDArray

from alignstar.meter import current_meter, together
from alignstar.methods import parameters as p
from alignstar.models import Sampler
from alignstar.rewards import Scorer
from alignstar.rewards.groups import by_group, scores_by_group
from alignstar.sampling import Array, Noise, Sampling, near_tie
from alignstar.types import Candidate, Prompt, Step


async def best_policy(
    prompt: Prompt,
    *,
    sft: Sampler,
    baseline: Sampler,
    reward: Scorer,
    n: p.Draws = 16,
    temperature: p.Temperature = 1.0,
    top_k: p.TopK = None,
    top_p: p.TopP = 1.0,
    max_new_tokens: p.MaxNewTokens = 128,
    seed: p.Seed = 0,
) -> AsyncGenerator[Step, None]:
    """One Step at the end: what `sample` draws for this seed from the policy of choice.

    `considered` holds all draws, the SFT model's first; score: the policy's mean for its worst group, value: the draw's
    own worst reward. Draws that some group cannot judge are left out, of the mean and of the choice; on ties, and where
    none is left, the policy is the SFT model. Both draw with the same noise, so that it counts less between them.
    """
    policies = (sft, baseline)
    drawn = await together(
        [
            policy.continue_(
                prompt.ids,
                max_new_tokens=max_new_tokens,
                n=n,
                sampling=Sampling(temperature=temperature, top_k=top_k, top_p=top_p),
                noise=Noise(seed=seed, purpose="sample"),
            )
            for policy in policies
        ]
    )
    draws = [draw for several in drawn for draw in several]
    told = await scores_by_group(by_group(reward), prompt, [draw.ids for draw in draws])  # [2n, U]
    usable: NDArray[np.bool_] = np.all(np.isfinite(told), axis=1)
    worst = [fairness(told[i : i + n][usable[i : i + n]]) for i in (0, n)]
    first = int(np.argmax(worst)) * n
    chosen = first + int(np.argmax(usable[first : first + n]))  # the first one where none is usable
    apart = [draw.ids for draw in drawn[0]] != [draw.ids for draw in drawn[1]]
    doubt = apart and near_tie(worst, max(policy.tie_tolerance for policy in policies))
    near_ties = sum(draw.near_ties for draw in draws) + doubt
    current_meter().add("near_ties", near_ties)
    yield Step(
        index=0,
        emitted=draws[chosen].ids,
        considered=tuple(
            Candidate(ids=draw.ids, logp=float(draw.logps.sum()), score=worst[i // n], value=float(rewards.min()))
            for i, (draw, rewards) in enumerate(zip(draws, told, strict=True))
        ),
        chosen=chosen,
        near_ties=near_ties,
        finish="stop" if draws[chosen].ended else "length",
    )


def fairness(rewards: Array) -> float:
    """The smallest of the groups' mean rewards; `rewards` [m, U] of m draws of a policy, -inf where there is none."""
    return float(rewards.mean(axis=0).min()) if len(rewards) else -np.inf
