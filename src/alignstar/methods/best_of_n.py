"""Best-of-N: draw N whole responses, keep the one with the highest reward. Stiennon et al. 2020, arXiv:2009.01325.

Other rules for which one is kept: soft (Verdun et al. 2025, arXiv:2505.03156), regularised (Jinnai et al. 2024,
arXiv:2404.01054, its RBoN with KL), majority (Wang et al. 2022, arXiv:2203.11171), weighted (Li et al. 2022,
arXiv:2206.02336).

Differs: 1) ties go to the draw of higher reward, then to the first one; 2) a response cut at the length limit is scored
as it stands; 3) a weighted vote is exp(reward / beta), not the reward: a reward has no natural zero; 4) of the draws
that give the winning answer the one with the highest reward is returned.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

import numpy as np

from alignstar.meter import current_meter
from alignstar.methods import parameters as p
from alignstar.methods.ballot import Answer, answer_of, counts, log_votes
from alignstar.methods.roles import one_model
from alignstar.methods.selection import perturbed
from alignstar.models import Continuation, Sampler
from alignstar.rewards import Scorer
from alignstar.sampling import Array, Noise, Sampling, stable_argmax
from alignstar.types import Candidate, Prompt, Step


async def best_of_n(
    prompt: Prompt,
    *,
    sft: Sampler | None = None,
    baseline: Sampler | None = None,
    reward: Scorer,
    model: p.Model = None,
    n: p.Draws = 16,
    selection: p.DrawSelection = "best",
    beta: p.SelectionStrength = 1.0,
    key: p.AnswerKey = "text",
    temperature: p.Temperature = 1.0,
    top_k: p.TopK = None,
    top_p: p.TopP = 1.0,
    max_new_tokens: p.MaxNewTokens = 128,
    seed: p.Seed = 0,
) -> AsyncGenerator[Step, None]:
    """One Step at the end; `considered` holds the N draws. The first draw is what `sample` gives for the same seed.

    Draws whose reward is NaN lose (their answers still count in a majority); where all are, the first one is kept.
    Raises NeedsError without the model, OptionError for a `key` that names no function.
    """
    base = one_model(model, sft, baseline, "best-of-n")
    answer = answer_of(key)
    draws = await base.continue_(
        prompt.ids,
        max_new_tokens=max_new_tokens,
        n=n,
        sampling=Sampling(temperature=temperature, top_k=top_k, top_p=top_p),
        noise=Noise(seed=seed, purpose="sample"),
    )
    rewards = await reward(prompt, [draw.ids for draw in draws])
    logps = np.array([float(draw.logps.sum()) for draw in draws])
    answers: Sequence[Answer] = range(n)  # every draw its own
    if selection in ("weighted", "majority"):
        answers = [answer(reward.reply(draw.ids).text) for draw in draws]
    noise = Noise(seed=seed, purpose="select")
    scores = _scores(selection, rewards, logps, answers, beta, noise)
    best = stable_argmax(scores, rewards, range(n))
    doubt = _doubt(selection, draws, scores, rewards, answers, best, base.tie_tolerance, beta)
    near_ties = sum(draw.near_ties for draw in draws) + doubt
    current_meter().add("near_ties", near_ties)
    yield Step(
        index=0,
        emitted=draws[best].ids,
        considered=tuple(
            Candidate(ids=draw.ids, logp=float(logp), score=float(score), value=float(r))
            for draw, logp, score, r in zip(draws, logps, scores, rewards, strict=True)
        ),
        chosen=best,
        near_ties=near_ties,
        finish="stop" if draws[best].ended else "length",
    )


def _scores(
    selection: p.DrawSelection, rewards: Array, logps: Array, answers: Sequence[Answer], beta: float, noise: Noise
) -> Array:
    """What is maximised [n]; ties go to the higher reward."""
    match selection:
        case "best":
            return rewards
        case "soft":  # a draw from softmax(rewards / beta), in the Gumbel-max form
            return perturbed(rewards, range(len(rewards)), noise=noise, temperature=beta)
        case "regularised":  # the KL divergence of a point mass from the model is -logp
            return rewards + beta * logps
        case "weighted":
            return log_votes(answers, rewards, beta)
        case "majority":
            return counts(answers)


def _doubt(
    selection: p.DrawSelection,
    draws: Sequence[Continuation],
    scores: Array,
    rewards: Array,
    answers: Sequence[Answer],
    best: int,
    tolerance: float,
    beta: float,
) -> bool:
    """Whether another response than the one kept comes within tolerance of it; equal draws are no doubt."""
    longest = max(len(draw.ids) for draw in draws)
    widened = tolerance * {"best": 1.0, "majority": 1.0, "regularised": 1.0 + beta * longest}.get(selection, 1.0 / beta)
    for i, draw in enumerate(draws):
        if draw.ids == draws[best].ids:
            continue
        # Between draws with as many votes the rewards have decided.
        voted = answers[i] == answers[best] or (selection == "majority" and scores[i] == scores[best])
        level = rewards if voted else scores
        gap = float(level[best]) - float(level[i])  # NaN between two unusable ones
        if gap <= (tolerance if voted else widened):
            return True
    return False
