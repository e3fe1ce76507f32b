"""Transfer Q*. Chakraborty et al. 2024, arXiv:2405.20495: Algorithm 1, Eq. 10-12 (direct), Eq. 13-17 (indirect).

pi_Alg(z|s) = pi_BL(z|s) exp(TQ*(s, z) / alpha) / C(s) over the candidates; indirect: times M(s, z).

Differs: 1) candidates are the k most probable tokens, not k draws, and the best one is taken, as the published code
does; 2) a rollout has a length limit; 3) Eq. 16 is self-normalised per candidate and Eq. 17's pi_r is formed from the
same rollouts; 4) at the length limit the text is scored as it stands. Options undo 1 to 3; more in docs/papers.md.
Others (`savings.py`) approximate further, and do nothing unless they are asked to.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from functools import partial
from typing import TypedDict

from alignstar.errors import OptionError
from alignstar.meter import current_meter
from alignstar.methods import parameters as p
from alignstar.methods.candidates import CandidateRule
from alignstar.methods.decision import BestSeen, Decision, considered
from alignstar.methods.distilled import HeadRule, Prefilter
from alignstar.methods.lazy import Lazy, applies
from alignstar.methods.roles import required
from alignstar.methods.rollouts import RolloutRule, rollout_sampling
from alignstar.methods.savings import Approximate, Savings
from alignstar.methods.transfer import Indirect, TransferRule
from alignstar.methods.values import norm_range
from alignstar.methods.values import reward_norm as norm_of
from alignstar.models import TokenModel
from alignstar.models.value import ValueModel
from alignstar.rewards import Scorer
from alignstar.types import FinishReason, Ids, Prompt, Step


async def algorithm_1(
    prompt: Prompt,
    *,
    proposals: CandidateRule,
    rollouts: RolloutRule,
    transfer: TransferRule | HeadRule,
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


class Rules(TypedDict):
    """A prompt, and what Algorithm 1 leaves to choose: how to propose, continue, value and decide, and how long."""

    prompt: Prompt
    proposals: CandidateRule
    rollouts: RolloutRule
    transfer: TransferRule
    decision: Decision
    max_new_tokens: int


def transfer_q(
    prompt: Prompt, *, sft: TokenModel | None = None, baseline: TokenModel | None = None,
    reward: Scorer, baseline_reward: Scorer | None = None, value: ValueModel | None = None,
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
    window: p.Window = 8, wave: p.Wave = None, block: p.Block = 1, halving: p.Halving = 1, gate: p.Gate = 1.0,
    adaptive_rollouts: p.AdaptiveRollouts = 0.0,
    values: p.Values = "rollouts", value_top: p.ValueTop = None, max_new_tokens: p.MaxNewTokens = 128, seed: p.Seed = 0,
) -> AsyncGenerator[Step, None]:  # fmt: skip
    """Transfer Q* from its options. Raises OptionError and NeedsError for what does not go together."""
    model = partial(_needed, {"sft": sft, "baseline": baseline})
    indirect = Indirect.of(
        transfer, model, baseline_reward, implicit_baseline_reward, mode=indirect_mode, beta=beta,
        log_weight_clip=log_weight_clip, ess_floor=ess_floor, normaliser_rollouts=normaliser_rollouts,
    )  # fmt: skip
    base, with_m = _base(base_policy, model, indirect)
    if rollout_len == "auto":
        rollout_len = None if winner_protection else 5 if indirect else 20
    rolling, sources = model(rollout_model), {"union": ("baseline", "sft")}.get(candidate_source, (candidate_source,))
    sampling = rollout_sampling(rollout_strategy, rollout_temperature, rollout_top_p, rolling.default_sampling)
    rollouts = RolloutRule(
        model=rolling, n=num_rollouts, length=rollout_len, sampling=sampling, past_max=rollout_past_max,
        stop_on_eos=stop_on_eos, seed=seed, corrected=indirect is not None,
    )  # fmt: skip
    rules = Rules(
        prompt=prompt, max_new_tokens=max_new_tokens, rollouts=rollouts,
        proposals=CandidateRule(sources=[model(role) for role in sources], base=base, rule=candidate_rule, k=k,
                                top_p=candidate_top_p, seed=seed),
        transfer=TransferRule(reward=reward, verbatim=reward_text == "verbatim", norm=norm_of(reward_norm),
                              rollouts=rollouts, indirect=indirect),
        decision=Decision(weight=1.0 / alpha if weight is None else weight, with_m=with_m, beta=beta,
                          temperature=None if selection == "greedy" else selection_temperature,
                          zscore=reward_norm == "candidate_zscore", tolerance=base.tie_tolerance, seed=seed),
    )  # fmt: skip
    savings = Savings(block=block, halving=halving, gate=gate, adaptive_rollouts=adaptive_rollouts)
    if values == "head":
        plain = savings.none and value_top is None and not (winner_protection or return_best_rollout or indirect)
        return _by_head(rules, required(value, "value", "transfer-q"), plain)
    if value_top is not None:
        by = Prefilter(head=required(value, "value", "transfer-q"), top=value_top, decision=rules["decision"])
        rules["proposals"] = replace(rules["proposals"], prefilter=by)
    _check_rollouts(rollouts, savings, winner_protection, return_best_rollout)
    bounds, whole = norm_range(reward_norm, reward.range), winner_protection or return_best_rollout
    if not savings.none:
        return Approximate(**rules, bounds=bounds, savings=savings).steps()
    if (
        acceleration == "auto"
        and not whole
        and applies(rules["proposals"], rollouts, rules["transfer"], rules["decision"])
    ):
        return Lazy(**rules, bounds=bounds if skip else None, window=window, wave=wave).steps()
    best_seen = BestSeen(max_new_tokens, rolling.eos_ids) if return_best_rollout else None
    return algorithm_1(**rules, winner_protection=winner_protection, best_seen=best_seen)


def _by_head(rules: Rules, head: ValueModel, plain: bool) -> AsyncGenerator[Step, None]:
    """Algorithm 1 with a head's values and no rollouts; `plain` says that no other option asks for one."""
    if not plain:
        raise OptionError(
            "values=head makes no rollouts and knows direct transfer alone; leave out value_top, block, halving, gate, "
            "adaptive_rollouts, winner_protection and return_best_rollout, and set transfer=direct."
        )
    return algorithm_1(
        prompt=rules["prompt"], proposals=rules["proposals"], rollouts=replace(rules["rollouts"], length=0),
        transfer=HeadRule(head=head), decision=rules["decision"], winner_protection=False, best_seen=None,
        max_new_tokens=rules["max_new_tokens"],
    )  # fmt: skip


def _needed(models: dict[str, TokenModel | None], role: str) -> TokenModel:
    return required(models[role], role, "transfer-q")


def _base(policy: str, model: Callable[[str], TokenModel], indirect: Indirect | None) -> tuple[TokenModel, bool]:
    """The model of the base policy, and whether log M is added to make it pi_r."""
    if policy == "auto":
        policy = "pi_r" if indirect and indirect.mode != "unnormalised" else "baseline"
    if policy != "pi_r":
        return model(policy), False
    if indirect is None:
        raise OptionError("base_policy='pi_r' exists for indirect transfer only; use base_policy=baseline.")
    return indirect.law, True


def _check_rollouts(
    rollouts: RolloutRule, savings: Savings, winner_protection: bool, return_best_rollout: bool
) -> None:
    n, greedy = rollouts.n, rollouts.sampling.greedy
    if greedy and n > 1:
        raise OptionError(
            f"num_rollouts={n} with greedy rollouts gives the same rollout {n} times; use rollout_strategy=sample."
        )
    if winner_protection and not (greedy and rollouts.length is None and not rollouts.open_ended):
        raise OptionError(
            "winner_protection=true holds for complete greedy rollouts only; "
            "use rollout_strategy=greedy, rollout_len=none and stop_on_eos=true."
        )
    if return_best_rollout and rollouts.open_ended:
        raise OptionError(
            "return_best_rollout=true needs rollouts that end where a response ends; "
            "use rollout_past_max=false and stop_on_eos=true."
        )
    if (winner_protection or return_best_rollout) and not savings.none:
        raise OptionError(
            "winner_protection=true and return_best_rollout=true look at every candidate's rollouts; "
            "leave out block, halving, gate and adaptive_rollouts."
        )
