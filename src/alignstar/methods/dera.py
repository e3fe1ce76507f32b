"""DeRa and GenARM: decoding from a weighted product of two models' next-token laws. No reward, no rollout.

pi(z|s) is proportional to pi_1(z|s)^w_1 pi_2(z|s)^w_2.
DeRa, decoding-time realignment: Liu et al. 2024, arXiv:2402.02992; w = (1 - lambda, lambda).
GenARM: Xu et al. 2024, arXiv:2410.08193; w = (1, 1/beta), the second model an autoregressive reward model.

Differs: 1) log-probabilities in the place of logits, which is the same law; 2) a token that one of the two excludes is
excluded, whatever the sign of its weight; where they have none in common the first model's law stands; 3) a model of
weight 0 is not asked; 4) an end-of-sequence token of either ends the response.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

import numpy as np

from alignstar.meter import current_meter, together
from alignstar.methods import parameters as p
from alignstar.models import TokenModel
from alignstar.sampling import GREEDY, Array, Noise, Sampling, drawn_scores, log_softmax, near_tie
from alignstar.types import Candidate, FinishReason, Ids, Prompt, Step


def dera(
    prompt: Prompt,
    *,
    sft: TokenModel,
    baseline: TokenModel,
    weight: p.RealignWeight = 0.5,
    selection: p.ProductSelection = "sample",
    temperature: p.Temperature = 1.0,
    top_k: p.TopK = None,
    top_p: p.TopP = 1.0,
    max_new_tokens: p.MaxNewTokens = 128,
    seed: p.Seed = 0,
) -> AsyncGenerator[Step, None]:
    """The model between (or beyond) SFT model and baseline: strength beta/lambda if the baseline was trained with beta.

    `weight` is lambda. At 0 and 1 the response is that of `greedy` or `sample` with the one model, for every seed.
    """
    sampling = _sampling(selection, temperature, top_k, top_p)
    return _decode(prompt, (sft, baseline), (1.0 - weight, weight), sampling, max_new_tokens, seed)


def genarm(
    prompt: Prompt,
    *,
    sft: TokenModel,
    baseline: TokenModel,
    beta: p.ArmBeta = 1.0,
    selection: p.ProductSelection = "sample",
    temperature: p.Temperature = 1.0,
    top_k: p.TopK = None,
    top_p: p.TopP = 1.0,
    max_new_tokens: p.MaxNewTokens = 128,
    seed: p.Seed = 0,
) -> AsyncGenerator[Step, None]:
    """The SFT model guided by `baseline`, a model whose log-probabilities are token rewards."""
    sampling = _sampling(selection, temperature, top_k, top_p)
    return _decode(prompt, (sft, baseline), (1.0, 1.0 / beta), sampling, max_new_tokens, seed)


def product(laws: Sequence[Array], weights: Sequence[float]) -> Array:
    """Log-probabilities [V] of the law proportional to the product of exp(law)^weight.

    A token that any law excludes is excluded; where that leaves none, the first law.
    """
    shared = np.all(np.isfinite(laws), axis=0)
    if not shared.any():
        return laws[0]
    total = np.full(len(shared), -np.inf)
    total[shared] = sum(weight * law[shared] for law, weight in zip(laws, weights, strict=True))
    return log_softmax(total)


def _sampling(selection: str, temperature: float, top_k: int | None, top_p: float) -> Sampling:
    return GREEDY if selection == "greedy" else Sampling(temperature=temperature, top_k=top_k, top_p=top_p)


async def _decode(
    prompt: Prompt,
    models: Sequence[TokenModel],
    weights: Sequence[float],
    sampling: Sampling,
    max_new_tokens: int,
    seed: int,
) -> AsyncGenerator[Step, None]:
    """One Step per token. The noise is that of `sample`, so a product that is one model draws what the model draws."""
    asked = [(model, weight) for model, weight in zip(models, weights, strict=True) if weight != 0.0]
    powers = [weight for _, weight in asked]
    vocabulary = np.arange(max(model.vocab_size for model, _ in asked))
    eos_ids = frozenset[int]().union(*(model.eos_ids for model, _ in asked))
    tolerance = sum(abs(weight) * model.tie_tolerance for model, weight in asked)
    noise = Noise(seed=seed, purpose="sample")
    response: Ids = ()
    for t in range(max_new_tokens):
        state = prompt.ids + response
        laws = await together([model.next_logprobs(state, vocabulary) for model, _ in asked])
        law = product(laws, powers)  # log pi(z|s), [V] nats
        scores, doubt = law, tolerance
        if not sampling.greedy:
            scores = drawn_scores(law, sampling, noise, len(state))
            doubt = tolerance / sampling.temperature
        z = int(np.argmax(scores))
        near = near_tie(np.partition(scores, -2)[-2:], doubt)

        response += (z,)
        current_meter().add("near_ties", int(near))
        finish: FinishReason | None = "stop" if z in eos_ids else "length" if t + 1 == max_new_tokens else None
        yield Step(
            index=t,
            emitted=(z,),
            considered=(Candidate(ids=(z,), logp=float(law[z]), score=float(law[z])),),
            near_ties=int(near),
            finish=finish,
        )
        if finish is not None:
            return
