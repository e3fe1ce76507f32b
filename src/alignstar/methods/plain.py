"""Plain decoding: greedy and sampling, token by token. No reward.

Sampling is the Gumbel-max form with noise keyed by absolute position, so the response to a seed does not depend on how
many tokens are asked for at a time.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from alignstar.meter import current_meter
from alignstar.methods import parameters as p
from alignstar.methods.roles import one_model
from alignstar.models import Sampler
from alignstar.sampling import GREEDY, Noise, Sampling
from alignstar.types import Candidate, FinishReason, Ids, Prompt, Step


def greedy(
    prompt: Prompt,
    *,
    sft: Sampler | None = None,
    baseline: Sampler | None = None,
    model: p.Model = None,
    max_new_tokens: p.MaxNewTokens = 128,
    seed: p.Seed = 0,
) -> AsyncGenerator[Step, None]:
    """The most probable token at every step; `seed` changes nothing. Raises NeedsError without the model."""
    return _decode(prompt, one_model(model, sft, baseline, "greedy"), GREEDY, max_new_tokens, seed)


def sample(
    prompt: Prompt,
    *,
    sft: Sampler | None = None,
    baseline: Sampler | None = None,
    model: p.Model = None,
    temperature: p.Temperature = 1.0,
    top_k: p.TopK = None,
    top_p: p.TopP = 1.0,
    max_new_tokens: p.MaxNewTokens = 128,
    seed: p.Seed = 0,
) -> AsyncGenerator[Step, None]:
    """Draws from the model, reshaped in this order: temperature, top_k, top_p. Raises NeedsError without the model."""
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    return _decode(prompt, one_model(model, sft, baseline, "sample"), sampling, max_new_tokens, seed)


async def _decode(
    prompt: Prompt, model: Sampler, sampling: Sampling, max_new_tokens: int, seed: int
) -> AsyncGenerator[Step, None]:
    response: Ids = ()
    noise = Noise(seed=seed, purpose="sample")
    for t in range(max_new_tokens):
        drawn = await model.continue_(prompt.ids + response, max_new_tokens=1, sampling=sampling, noise=noise)
        token = drawn[0]
        response += token.ids
        current_meter().add("near_ties", token.near_ties)
        logp = float(token.logps[0])
        finish: FinishReason | None = "stop" if token.ended else "length" if t + 1 == max_new_tokens else None
        yield Step(
            index=t,
            emitted=token.ids,
            considered=(Candidate(ids=token.ids, logp=logp, score=logp),),
            near_ties=token.near_ties,
            finish=finish,
        )
        if finish is not None:
            return
