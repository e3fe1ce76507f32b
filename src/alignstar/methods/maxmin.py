"""MaxMin at decoding time: every token chosen for the group of people that is worst off.

MaxMin-RLHF, Chakraborty et al. 2024, arXiv:2402.08925, with the values of Transfer Q* (its Eq. 10) for every group:
TQ_u(s, z) = E[r_u] over rollouts of the model that decodes. `aggregate=game` is RMOD, Son et al. 2025,
arXiv:2503.08796: in each state min over w of log sum_z pi(z|s) exp(sum_u w_u TQ_u(s, z) / alpha), then
score(z) = log pi(z|s) + sum_u w_u TQ_u(s, z) / alpha. `value_min`: log pi(z|s) + min_u TQ_u(s, z) / alpha.

Differs: 1) no policy is trained; 2) the game is played over candidate tokens, not over drawn blocks, with rollouts in
the place of value heads; 3) the weights are solved for to a duality gap of 1e-12 of the values' range, not by a few
gradient steps; 4) the policy that answers them is the game's own (log pi is added), the published one takes the best
weighted value.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

import numpy as np

from alignstar.errors import OptionError
from alignstar.meter import current_meter
from alignstar.methods import parameters as p
from alignstar.methods.candidates import CandidateRule
from alignstar.methods.roles import one_model
from alignstar.methods.rollouts import RolloutRule, rollout_sampling
from alignstar.methods.selection import choose, weighted
from alignstar.models import TokenModel
from alignstar.rewards import Scorer
from alignstar.rewards.game import worst_weights
from alignstar.rewards.groups import by_group, scores_by_group
from alignstar.sampling import Array, Noise
from alignstar.types import Candidate, FinishReason, Ids, Prompt, Step


def maxmin(
    prompt: Prompt,
    *,
    sft: TokenModel | None = None,
    baseline: TokenModel | None = None,
    reward: Scorer,
    model: p.Model = None,
    aggregate: p.Aggregate = "game",
    k: p.K = 10,
    alpha: p.Alpha = 1.0,
    candidate_rule: p.CandidateRule = "topk",
    candidate_top_p: p.CandidateTopP = 0.9,
    num_rollouts: p.NumRollouts = 1,
    rollout_len: p.GroupRolloutLen = 20,
    rollout_strategy: p.RolloutStrategy = "greedy",
    rollout_temperature: p.Temperature = 1.0,
    rollout_top_p: p.TopP = 1.0,
    selection: p.Selection = "greedy",
    selection_temperature: p.Temperature = 1.0,
    max_new_tokens: p.MaxNewTokens = 128,
    seed: p.Seed = 0,
) -> AsyncGenerator[Step, None]:
    """One Step per token. The groups are those of the reward; with a single one this is direct Transfer Q*.

    A candidate that some group cannot judge has no value. Raises NeedsError without the model, OptionError for several
    rollouts that would all be the same.
    """
    base = one_model(model, sft, baseline, "maxmin")
    sampling = rollout_sampling(rollout_strategy, rollout_temperature, rollout_top_p, base.default_sampling)
    if sampling.greedy and num_rollouts > 1:
        raise OptionError(
            f"num_rollouts={num_rollouts} with greedy rollouts gives the same rollout {num_rollouts} times; "
            "use rollout_strategy=sample."
        )
    proposals = CandidateRule(sources=[base], base=base, rule=candidate_rule, k=k, top_p=candidate_top_p, seed=seed)
    rollouts = RolloutRule(
        model=base, n=num_rollouts, length=rollout_len, sampling=sampling, past_max=False, stop_on_eos=True, seed=seed
    )
    return _decode(
        prompt, base=base, groups=by_group(reward), proposals=proposals, rollouts=rollouts, aggregate=aggregate,
        alpha=alpha, temperature=selection_temperature if selection == "sample" else None,
        max_new_tokens=max_new_tokens, seed=seed,
    )  # fmt: skip


async def _decode(
    prompt: Prompt,
    *,
    base: TokenModel,
    groups: Sequence[Scorer],
    proposals: CandidateRule,
    rollouts: RolloutRule,
    aggregate: p.Aggregate,
    alpha: float,
    temperature: float | None,
    max_new_tokens: int,
    seed: int,
) -> AsyncGenerator[Step, None]:
    response: Ids = ()
    for t in range(max_new_tokens):
        state = prompt.ids + response
        candidates = await proposals.at(state, t)
        futures = await rollouts.after(state, candidates.ids, t, max_new_tokens - t - 1)
        texts = [(*response, z, *r.ids) for z, drawn in zip(candidates.ids, futures, strict=True) for r in drawn]
        rewards = await scores_by_group(groups, prompt, texts)  # [texts, U]
        ends = np.cumsum([len(drawn) for drawn in futures])[:-1]
        tq = np.stack([np.mean(r, axis=0) for r in np.split(rewards, ends)])  # [c, U]
        values = fair(candidates.logps, tq, aggregate, alpha)
        scores = candidates.logps + weighted(values, 1.0 / alpha)  # [c] nats
        choice = choose(
            scores,
            candidates.logps,
            candidates.ids,
            noise=Noise(seed=seed, purpose="select", step=t),
            temperature=temperature,
            tolerance=base.tie_tolerance * (1.0 + 1.0 / alpha),
            base_tolerance=base.tie_tolerance,
        )
        z = candidates.ids[choice.index]
        response += (z,)
        near_ties = candidates.near_ties + sum(r.near_ties for drawn in futures for r in drawn) + choice.near_tie
        current_meter().add("near_ties", near_ties)
        current_meter().add("candidates", len(candidates.ids))
        finish: FinishReason | None = "stop" if z in base.eos_ids else "length" if t + 1 == max_new_tokens else None
        yield Step(
            index=t,
            emitted=(z,),
            considered=tuple(
                Candidate(ids=(c,), logp=float(logp), score=float(score), value=float(value), future=drawn[0].ids)
                for c, logp, score, value, drawn in zip(
                    candidates.ids, candidates.logps, scores, values, futures, strict=True
                )
            ),
            chosen=choice.index,
            near_ties=near_ties,
            finish=finish,
        )
        if finish is not None:
            return


def fair(logps: Array, values: Array, aggregate: p.Aggregate, alpha: float) -> Array:
    """One value per candidate [c] of the groups' `values` [c, U]; -inf where a group has none.

    "game": sum_u w_u values_u with the weights that leave the policy exp(logps + value / alpha) the least; "value_min":
    the smallest.
    """
    usable = np.all(np.isfinite(values), axis=1)
    if aggregate == "value_min" or not usable.any():
        return np.min(values, axis=1)
    weights = worst_weights(logps[usable], values[usable], alpha).weights
    summed = np.full(len(values), -np.inf)
    summed[usable] = values[usable] @ weights
    return summed
