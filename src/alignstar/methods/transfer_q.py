"""Transfer Q*. Chakraborty et al. 2024, arXiv:2405.20495: Algorithm 1, Eq. 10-12 (direct), Eq. 13-17 (indirect).

pi_Alg(z|s) = pi_BL(z|s) exp(TQ*(s, z) / alpha) / C(s) over the candidates; indirect: times M(s, z).

Differs: 1) candidates are the k most probable tokens, not k draws, and the best one is taken, as the published code
does; 2) a rollout has a length limit; 3) Eq. 16 is self-normalised per candidate and Eq. 17's pi_r is formed from the
same rollouts; 4) at the length limit the text is scored as it stands. Options undo 1 to 3; more in docs/papers.md.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial

from alignstar.errors import NeedsError, OptionError
from alignstar.meter import current_meter
from alignstar.methods import parameters as p
from alignstar.methods.candidates import CandidateRule
from alignstar.methods.decision import BestSeen, Decision, considered
from alignstar.methods.lazy import Lazy, applies
from alignstar.methods.roles import required
from alignstar.methods.rollouts import RolloutRule, rollout_sampling
from alignstar.methods.transfer import Indirect, TransferRule
from alignstar.methods.values import norm_range
from alignstar.methods.values import reward_norm as norm_of
from alignstar.models import TokenModel
from alignstar.rewards import Scorer
from alignstar.sampling import Sampling
from alignstar.types import FinishReason, Ids, Prompt, Step


async def algorithm_1(
    prompt: Prompt,
    *,
    proposals: CandidateRule,
    rollouts: RolloutRule,
    transfer: TransferRule,
    decision: Decision,
    winner_protection: bool,
    best_seen: BestSeen | None,
    max_new_tokens: int,
) -> AsyncGenerator[Step, None]:
    """Algorithm 1, one Step per token; with `best_seen` a last one may put a better response in the place of all."""
    response: Ids = ()
    protected: Ids = ()
    log_z = await transfer.log_z(prompt, max_new_tokens)
    for t in range(max_new_tokens):
        state = prompt.ids + response
        candidates = await proposals.at(state, t, protected)  # C, with log pi_base(z|s)
        futures = await rollouts.after(state, candidates.ids, t, max_new_tokens - t - 1)  # tau ~ rho_BL(.|s, z)
        valued = await transfer.values(prompt, response, candidates.ids, futures, log_z)  # TQ*(s, z), Eq. 10 or 16
        scores = decision.scores(candidates, valued, protected)  # log pi_Alg(z|s) + log C(s), [c] nats
        choice = decision.choice(scores, candidates, t)

        if best_seen is not None:
            best_seen.see(response, candidates.ids, futures, valued)
        z, rewards = candidates.ids[choice.index], valued[choice.index].rewards
        response += (z,)
        protected = futures[choice.index][0].ids[:1] if winner_protection else ()
        near_ties = candidates.near_ties + sum(r.near_ties for drawn in futures for r in drawn) + choice.near_tie
        current_meter().add("near_ties", near_ties)
        current_meter().add("candidates", len(candidates.ids))
        finish: FinishReason | None = None
        if rollouts.stop_on_eos and z in rollouts.model.eos_ids:
            finish = "stop"
        elif t + 1 == max_new_tokens:
            finish = "length"
        replaced = finish is not None and best_seen is not None and best_seen.reward > rewards[0]
        yield Step(
            index=t,
            emitted=(z,),
            considered=considered(candidates, scores, valued, futures),
            chosen=choice.index,
            near_ties=near_ties,
            finish=None if replaced else finish,
        )
        if replaced and best_seen is not None:
            ended = best_seen.ids[-1] in best_seen.eos_ids
            yield Step(index=t + 1, emitted=best_seen.ids, replaces=True, finish="stop" if ended else "length")
        if finish is not None:
            return


def transfer_q(
    prompt: Prompt, *, sft: TokenModel | None = None, baseline: TokenModel | None = None,
    reward: Scorer, baseline_reward: Scorer | None = None,
    k: p.K = 10, alpha: p.Alpha = 1.0, weight: p.OtherWeight = None,
    candidate_source: p.CandidateSource = "baseline", candidate_rule: p.CandidateRule = "topk",
    candidate_top_p: p.CandidateTopP = 0.9, base_policy: p.BasePolicy = "auto",
    num_rollouts: p.NumRollouts = 1, rollout_len: p.RolloutLen = "auto",
    rollout_strategy: p.RolloutStrategy = "greedy", rollout_temperature: p.Temperature = 1.0,
    rollout_top_p: p.TopP = 1.0, rollout_model: p.RolloutModel = "baseline", rollout_past_max: p.RolloutPastMax = False,
    selection: p.Selection = "greedy", selection_temperature: p.Temperature = 1.0,
    reward_norm: p.RewardNorm = "none", reward_text: p.RewardText = "reply",
    transfer: p.Transfer = "auto", indirect_mode: p.IndirectMode = "snis", beta: p.Beta = 2.0,
    log_weight_clip: p.LogWeightClip = 20.0, ess_floor: p.EssFloor = 0.0,
    implicit_baseline_reward: p.ImplicitBaselineReward = False, normaliser_rollouts: p.NormaliserRollouts = 16,
    stop_on_eos: p.StopOnEos = True, return_best_rollout: p.ReturnBestRollout = False,
    winner_protection: p.WinnerProtection = False, acceleration: p.Acceleration = "auto", skip: p.Skip = True,
    window: p.Window = 8, wave: p.Wave = None, max_new_tokens: p.MaxNewTokens = 128, seed: p.Seed = 0,
) -> AsyncGenerator[Step, None]:  # fmt: skip
    """Transfer Q* from its options. Raises OptionError and NeedsError for what does not go together."""
    given_or_implicit = baseline_reward is not None or implicit_baseline_reward
    indirect = transfer == "indirect" or (transfer == "auto" and given_or_implicit)
    if base_policy == "auto":
        base_policy = "pi_r" if indirect and indirect_mode != "unnormalised" else "baseline"
    if rollout_len == "auto":
        rollout_len = None if winner_protection else 5 if indirect else 20
    _check_transfer(indirect, given_or_implicit, implicit_baseline_reward, base_policy)
    model = partial(_needed, {"sft": sft, "baseline": baseline})
    law = "sft" if implicit_baseline_reward else "baseline"
    base, rolling = model(law if base_policy == "pi_r" else base_policy), model(rollout_model)
    sampling = rollout_sampling(rollout_strategy, rollout_temperature, rollout_top_p, rolling.default_sampling)
    open_ended = rollout_past_max or not stop_on_eos
    complete = rollout_len is None and not open_ended
    _check_rollouts(sampling, num_rollouts, complete, open_ended, winner_protection, return_best_rollout)
    rollouts = RolloutRule(
        model=rolling, n=num_rollouts, length=rollout_len, sampling=sampling, past_max=rollout_past_max,
        stop_on_eos=stop_on_eos, seed=seed, full_laws=indirect and not sampling.greedy and sampling != Sampling(),
    )  # fmt: skip
    reweighted = Indirect(
        law=model(law), baseline_reward=None if implicit_baseline_reward else baseline_reward, mode=indirect_mode,
        beta=beta, log_weight_clip=log_weight_clip, ess_floor=ess_floor, normaliser_rollouts=normaliser_rollouts,
    ) if indirect else None  # fmt: skip
    sources = [model(role) for role in (("baseline", "sft") if candidate_source == "union" else (candidate_source,))]
    proposals = CandidateRule(
        sources=sources, base=base, rule=candidate_rule, k=k, top_p=candidate_top_p, seed=seed
    )  # fmt: skip
    valuing = TransferRule(
        reward=reward, verbatim=reward_text == "verbatim", norm=norm_of(reward_norm),
        rollouts=rollouts, indirect=reweighted,
    )  # fmt: skip
    decision = Decision(
        weight=1.0 / alpha if weight is None else weight, with_m=base_policy == "pi_r", beta=beta,
        temperature=None if selection == "greedy" else selection_temperature,
        zscore=reward_norm == "candidate_zscore", tolerance=base.tie_tolerance, seed=seed,
    )  # fmt: skip
    plain = acceleration == "off" or winner_protection or return_best_rollout
    if not plain and applies(proposals, rollouts, valuing, decision):
        return Lazy(
            prompt=prompt, proposals=proposals, rollouts=rollouts, transfer=valuing, decision=decision,
            bounds=norm_range(reward_norm, reward.range) if skip else None,
            window=window, wave=wave, max_new_tokens=max_new_tokens,
        ).steps()  # fmt: skip
    return algorithm_1(
        prompt, proposals=proposals, rollouts=rollouts, transfer=valuing, decision=decision,
        winner_protection=winner_protection,
        best_seen=BestSeen(max_new_tokens, rolling.eos_ids) if return_best_rollout else None,
        max_new_tokens=max_new_tokens,
    )  # fmt: skip


def _needed(models: dict[str, TokenModel | None], role: str) -> TokenModel:
    return required(models[role], role, "transfer-q")


def _check_rollouts(
    sampling: Sampling, n: int, complete: bool, open_ended: bool, winner_protection: bool, return_best_rollout: bool
) -> None:
    if sampling.greedy and n > 1:
        raise OptionError(
            f"num_rollouts={n} with greedy rollouts gives the same rollout {n} times; use rollout_strategy=sample."
        )
    if winner_protection and not (sampling.greedy and complete):
        raise OptionError(
            "winner_protection=true holds for complete greedy rollouts only; "
            "use rollout_strategy=greedy, rollout_len=none and stop_on_eos=true."
        )
    if return_best_rollout and open_ended:
        raise OptionError(
            "return_best_rollout=true needs rollouts that end where a response ends; "
            "use rollout_past_max=false and stop_on_eos=true."
        )


def _check_transfer(indirect: bool, given_or_implicit: bool, implicit: bool, base_policy: str) -> None:
    if indirect and not given_or_implicit:
        raise NeedsError(
            "method='transfer-q' with transfer=indirect needs the reward that the baseline was aligned to; "
            "give one with --baseline-reward, or set implicit_baseline_reward=true beside an sft model."
        )
    if implicit and not indirect:
        raise OptionError(
            "implicit_baseline_reward=true has no use in direct transfer; leave it out or set transfer=indirect."
        )
    if base_policy == "pi_r" and not indirect:
        raise OptionError("base_policy='pi_r' exists for indirect transfer only; use base_policy=baseline.")
