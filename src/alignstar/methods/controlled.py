"""Controlled Decoding. Mudgal et al. 2024, arXiv:2310.17022; its prefix scorer also FUDGE, Yang and Klein 2021.

Token-wise: pi(z|s) = p(z|s) exp(lambda V(s, z)) / C(s) over the k most probable tokens. Block-wise: K blocks of M
tokens are drawn from p, the one of the highest value is kept, until a kept block ends the response.

Differs: 1) V is a head on a frozen model; 2) a value head that tells Q(s, z) of every next token stands for V(s, z), so
that one forward serves all candidates; 3) the best token can be taken instead of a drawn one; 4) lambda = 0, and one
block, are `sample` draw for draw, blocks as long as the response are best-of-n by V.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

import numpy as np

from alignstar.meter import current_meter
from alignstar.methods import parameters as p
from alignstar.methods.roles import one_model
from alignstar.models import Sampler, TokenModel
from alignstar.models.value import PrefixScorer, ValueModel
from alignstar.sampling import Noise, Sampling, near_tie, stable_argmax
from alignstar.types import Candidate, FinishReason, Ids, Prompt, Step


def controlled_decoding(
    prompt: Prompt,
    *,
    sft: TokenModel | None = None,
    baseline: TokenModel | None = None,
    value: ValueModel,
    model: p.Model = None,
    mode: p.ControlMode = "tokenwise",
    k: p.K = 10,
    alpha: p.Alpha = 1.0,
    weight: p.OtherWeight = None,
    selection: p.ProductSelection = "sample",
    blocks: p.Blocks = 16,
    block_len: p.BlockLen = 32,
    max_new_tokens: p.MaxNewTokens = 128,
    seed: p.Seed = 0,
) -> AsyncGenerator[Step, None]:
    """A Step per token, or per block. lambda is `weight`, or 1/`alpha`. Raises NeedsError without the model."""
    base = one_model(model, sft, baseline, "controlled-decoding")
    noise = Noise(seed=seed, purpose="sample")
    if mode == "blockwise":
        return _blockwise(prompt, base, value, noise, blocks, block_len, max_new_tokens)
    drawn = None if selection == "greedy" else noise
    return _tokenwise(prompt, base, value, k, 1.0 / alpha if weight is None else weight, drawn, max_new_tokens)


async def _tokenwise(
    prompt: Prompt, base: TokenModel, value: ValueModel, k: int, weight: float, noise: Noise | None, max_new_tokens: int
) -> AsyncGenerator[Step, None]:
    """One Step per token; without `noise` the token of the best score is taken."""
    response: Ids = ()
    for t in range(max_new_tokens):
        state = prompt.ids + response
        top = await base.top_next(state, k)
        values = await value.next_values(state, top.ids)  # V(s, z), [k]
        scores = top.logps + weight * values  # log pi(z|s) + log C(s), [k] nats
        # With the noise that `sample` draws this very token with: without values it draws the same one.
        maximised = scores if noise is None else scores + noise.gumbel(len(state), base.vocab_size)[top.ids]
        ids = [int(z) for z in top.ids]
        chosen = stable_argmax(maximised, top.logps, ids)
        near_ties = top.near_tie + near_tie(maximised, base.tie_tolerance * (1.0 + weight))

        z = ids[chosen]
        response += (z,)
        current_meter().add("near_ties", near_ties)
        current_meter().add("candidates", len(ids))
        finish: FinishReason | None = "stop" if z in base.eos_ids else "length" if t + 1 == max_new_tokens else None
        yield Step(
            index=t,
            emitted=(z,),
            considered=tuple(
                Candidate(ids=(z,), logp=float(logp), score=float(score), value=float(v))
                for z, logp, score, v in zip(ids, top.logps, scores, values, strict=True)
            ),
            chosen=chosen,
            near_ties=near_ties,
            finish=finish,
        )
        if finish is not None:
            return


async def _blockwise(
    prompt: Prompt,
    base: Sampler,
    value: PrefixScorer,
    noise: Noise,
    blocks: int,
    block_len: int,
    max_new_tokens: int,
) -> AsyncGenerator[Step, None]:
    """One Step per kept block; ties go to the first one drawn."""
    response: Ids = ()
    index = 0
    finish: FinishReason | None = None
    while finish is None:
        state, room = prompt.ids + response, max_new_tokens - len(response)
        drawn = await base.continue_(
            state, max_new_tokens=min(block_len, room), n=blocks, sampling=Sampling(), noise=noise
        )
        values = await value.prefix_values([state + block.ids for block in drawn])
        best = stable_argmax(values, np.zeros(blocks), range(blocks))
        rivals = [v for block, v in zip(drawn, values, strict=True) if block.ids != drawn[best].ids]
        near_ties = sum(block.near_ties for block in drawn) + near_tie([values[best], *rivals], base.tie_tolerance)

        response += drawn[best].ids
        current_meter().add("near_ties", near_ties)
        finish = "stop" if drawn[best].ended else "length" if len(response) == max_new_tokens else None
        yield Step(
            index=index,
            emitted=drawn[best].ids,
            considered=tuple(
                Candidate(ids=block.ids, logp=float(block.logps.sum()), score=float(v), value=float(v))
                for block, v in zip(drawn, values, strict=True)
            ),
            chosen=best,
            near_ties=near_ties,
            finish=finish,
        )
        index += 1
