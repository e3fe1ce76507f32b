"""From rollouts to values: TQ*(s, z) by direct transfer (Eq. 10) or by indirect transfer (Eq. 16, App. F).

Asks the rewards, and for importance weights the models; the estimators themselves are in `values`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from alignstar.errors import NeedsError, OptionError
from alignstar.meter import together
from alignstar.methods.rollouts import RolloutRule
from alignstar.methods.values import Value, clipped, direct, global_normaliser, shrunk, snis, unnormalised
from alignstar.models import Continuation, TokenModel
from alignstar.rewards import Scorer
from alignstar.sampling import Array, logsumexp
from alignstar.types import Ids, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Indirect:
    """What indirect transfer needs beside the reward.

    The target law of a rollout is `law`(tau) exp(numerator / beta): with the baseline's reward, `law` is the baseline
    and the numerator r - r_BL; without (`baseline_reward` None) it is implicit, `law` is the SFT model and the
    numerator r.
    """

    law: TokenModel
    baseline_reward: Scorer | None
    mode: str
    beta: float
    log_weight_clip: float | None
    ess_floor: float
    normaliser_rollouts: int

    @classmethod
    def of(
        cls,
        transfer: str,
        model: Callable[[str], TokenModel],
        baseline_reward: Scorer | None,
        implicit: bool,
        *,
        mode: str,
        beta: float,
        log_weight_clip: float | None,
        ess_floor: float,
        normaliser_rollouts: int,
    ) -> Indirect | None:
        """From the options of these names; None is direct transfer. Raises NeedsError and OptionError."""
        known = implicit or baseline_reward is not None
        if transfer == "direct" and implicit:
            raise OptionError(
                "implicit_baseline_reward=true has no use in direct transfer; leave it out or set transfer=indirect."
            )
        if transfer == "indirect" and not known:
            raise NeedsError(
                "method='transfer-q' with transfer=indirect needs the reward that the baseline was aligned to; "
                "give one with --baseline-reward, or set implicit_baseline_reward=true beside an sft model."
            )
        if transfer == "direct" or not known:
            return None
        return cls(
            law=model("sft" if implicit else "baseline"),
            baseline_reward=None if implicit else baseline_reward,
            mode=mode,
            beta=beta,
            log_weight_clip=log_weight_clip,
            ess_floor=ess_floor,
            normaliser_rollouts=normaliser_rollouts,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Valued:
    """One candidate's estimate and the rewards of its rollouts, one each."""

    value: Value
    rewards: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferRule:
    """How a candidate is valued: by `reward` after `norm`, directly or (`indirect` given) by reweighted rollouts."""

    reward: Scorer
    verbatim: bool
    norm: Callable[[Array], Array]
    rollouts: RolloutRule
    indirect: Indirect | None

    async def log_z(self, prompt: Prompt, room: int) -> float:
        """The prompt's log Z [nats], estimated by rollouts, for the "global" mode; 0 for every other."""
        how = self.indirect
        if how is None or how.mode != "global":
            return 0.0
        n = 1 if self.rollouts.sampling.greedy else how.normaliser_rollouts
        drawn = await self.rollouts.from_prompt(prompt.ids, n, room)
        _, log_weights = await self._measured(prompt, [((), rollout) for rollout in drawn])
        told = log_weights[~np.isnan(log_weights)]
        return logsumexp(told) - float(np.log(len(told))) if len(told) else 0.0

    async def values(
        self,
        prompt: Prompt,
        response: Ids,
        candidates: Sequence[int],
        futures: Sequence[Sequence[Continuation]],
        log_z: float,
    ) -> list[Valued]:
        """TQ*(s, z) of every candidate, from the rewards of [s, z] followed by each of its rollouts."""
        rows = [((*response, z), rollout) for z, drawn in zip(candidates, futures, strict=True) for rollout in drawn]
        rewards, log_weights = await self._measured(prompt, rows)
        ends = np.cumsum([len(drawn) for drawn in futures])[:-1]
        return [
            Valued(value=direct(r) if self.indirect is None else _estimate(self.indirect, r, w, log_z), rewards=r)
            for r, w in zip(np.split(rewards, ends), np.split(log_weights, ends), strict=True)
        ]

    async def scored(self, prompt: Prompt, responses: Sequence[Ids]) -> Array:
        """Normalised rewards of responses, in order."""
        return await self._scored(self.reward, prompt, responses)

    async def _measured(self, prompt: Prompt, rows: Sequence[tuple[Ids, Continuation]]) -> tuple[Array, Array]:
        """Rewards and log [rho_r(tau|s,z) M(s,z) / q(tau|s,z)] [nats] of (response so far, rollout) rows.

        A log-weight is NaN where a reward could not be told; for direct transfer all are 0.
        """
        responses = [response + rollout.ids for response, rollout in rows]
        how = self.indirect
        if how is None:
            return await self.scored(prompt, responses), np.zeros(len(rows))
        scorers = [self.reward] if how.baseline_reward is None else [self.reward, how.baseline_reward]
        scores = await together([self._scored(scorer, prompt, responses) for scorer in scorers])
        ratios = await together([self._log_ratio(how.law, prompt.ids + done, rollout) for done, rollout in rows])
        if how.baseline_reward is None:
            return scores[0], clipped(_told(scores[0]) / how.beta + np.array(ratios), how.log_weight_clip)
        delta = _told(scores[0]) - _told(scores[1])
        return scores[0], clipped(delta / how.beta, how.log_weight_clip) + np.array(ratios)

    async def _scored(self, scorer: Scorer, prompt: Prompt, responses: Sequence[Ids]) -> Array:
        score = scorer.verbatim if self.verbatim else scorer
        return self.norm(await score(prompt, responses))

    async def _log_ratio(self, law: TokenModel, prefix: Ids, rollout: Continuation) -> float:
        """The log-ratio P(tau) / q(tau): the law of the target over the law that the rollout was drawn from [nats]."""
        if not rollout.ids:
            return 0.0
        if law is self.rollouts.model:
            return float(rollout.logps.sum()) - self.rollouts.log_q(rollout)
        return float((await law.logprobs(prefix, rollout.ids)).sum()) - self.rollouts.log_q(rollout)


def _told(numbers: Array) -> Array:
    return np.where(np.isfinite(numbers), numbers, np.nan)


def _estimate(how: Indirect, rewards: Array, log_weights: Array, log_z: float) -> Value:
    log_weights = shrunk(log_weights, how.ess_floor)
    if how.mode == "snis":
        return snis(rewards, log_weights)
    if how.mode == "unnormalised":
        return unnormalised(rewards, log_weights)
    return global_normaliser(rewards, log_weights, log_z=log_z)
