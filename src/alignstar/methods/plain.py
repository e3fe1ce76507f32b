"""Plain decoding: greedy and sampling, token by token. No reward.

Sampling is the Gumbel-max form with noise keyed by absolute position, so the response to a seed does not depend on how
many tokens are asked for at a time.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypedDict

from alignstar.meter import current_meter
from alignstar.methods import parameters as p
from alignstar.methods.roles import one_model
from alignstar.models import Continuation, Sampler, Streaming
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


class _How(TypedDict):
    max_new_tokens: int
    sampling: Sampling
    noise: Noise


async def _decode(
    prompt: Prompt, model: Sampler, sampling: Sampling, max_new_tokens: int, seed: int
) -> AsyncGenerator[Step, None]:
    how: _How = {"max_new_tokens": max_new_tokens, "sampling": sampling, "noise": Noise(seed=seed, purpose="sample")}
    if not isinstance(model, Streaming):
        tokens = _one_by_one(model, prompt.ids, **how)
    elif current_meter().watched:
        tokens = model.stream(prompt.ids, **how)
    else:
        tokens = _at_once(model, prompt.ids, **how)
    async with aclosing(tokens) as drawn:
        t = 0
        async for token in drawn:
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
            t += 1


async def _at_once(
    model: Sampler, prefix: Ids, max_new_tokens: int, sampling: Sampling, noise: Noise
) -> AsyncGenerator[Continuation, None]:
    """What `Streaming.stream` gives, for somebody who waits for the last token: nobody is woken for the others."""
    (whole,) = await model.continue_(prefix, max_new_tokens=max_new_tokens, sampling=sampling, noise=noise)
    near = set(whole.near)
    last = len(whole.ids) - 1
    for i, token in enumerate(whole.ids):
        yield Continuation(
            ids=(token,), logps=whole.logps[i : i + 1], ended=whole.ended and i == last, near_ties=int(i in near)
        )


async def _one_by_one(
    model: Sampler, prefix: Ids, max_new_tokens: int, sampling: Sampling, noise: Noise
) -> AsyncGenerator[Continuation, None]:
    """What `Streaming.stream` gives, of a model that does not stream."""
    for _ in range(max_new_tokens):
        (token,) = await model.continue_(prefix, max_new_tokens=1, sampling=sampling, noise=noise)
        yield token
        if token.ended:
            return
        prefix += token.ids
