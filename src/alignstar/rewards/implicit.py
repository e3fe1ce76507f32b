"""The implicit reward of a DPO model against its reference (Rafailov et al. 2023).

r(x, y) = beta log( pi_dpo(y | x) / pi_ref(y | x) ), which is the reward that the model was aligned to, up to a constant
of the prompt (beta log Z(x)). Partial replies score the sum so far. Both models read the same token ids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from alignstar.errors import OptionError, RewardError
from alignstar.meter import current_meter, together
from alignstar.models import TokenModel
from alignstar.types import Prompt, Reply


class ImplicitReward:
    """beta times the log-ratio [nats] of two models over the reply's tokens, its end-of-sequence token included."""

    def __init__(self, aligned: TokenModel, reference: TokenModel, *, beta: float = 0.1) -> None:
        if not (math.isfinite(beta) and beta > 0):
            raise OptionError(f"beta={beta} must be above 0: it is the strength that the model was aligned with.")
        self.name = f"implicit({aligned.name} / {reference.name})"
        self.range: tuple[float, float] | None = None
        self._aligned = aligned
        self._reference = reference
        self._beta = beta

    async def score(self, prompt: Prompt, replies: Sequence[Reply]) -> list[float]:
        """One log-ratio per reply; NaN where both models give a reply probability 0.

        Raises RewardError for a reply that has text but no token ids.
        """
        current_meter().add("rm_calls", len(replies))
        return await together([self._one(prompt, reply) for reply in replies])

    async def _one(self, prompt: Prompt, reply: Reply) -> float:
        if not reply.ids:
            if reply.text:
                raise RewardError(
                    f"Reward {self.name!r} was given text without token ids; use a model that tells the tokens it drew."
                )
            return 0.0
        aligned, reference = await together(
            [model.logprobs(prompt.ids, reply.ids) for model in (self._aligned, self._reference)]
        )
        return self._beta * (float(aligned.sum()) - float(reference.sum()))
