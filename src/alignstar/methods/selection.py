"""How a scored candidate is chosen: arg-max or a keyed draw. Shared by the token-level methods; knows arrays only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from alignstar.sampling import Array, Noise, near_tie, stable_argmax


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What was chosen, and whether the runner-up was within tolerance."""

    index: int
    near_tie: bool


def weighted(values: Array, weight: float) -> Array:
    """Multiply, where -inf stays -inf at weight 0 too."""
    return np.where(np.isneginf(values), -np.inf, weight * np.where(np.isneginf(values), 0.0, values))


def perturbed(scores: Array, ids: Sequence[int], *, noise: Noise, temperature: float | None) -> Array:
    """What a selection maximises [c]: `scores`, or at a temperature scores / temperature plus Gumbel noise.

    The noise is keyed by each candidate's token id, so it does not depend on which other candidates there are.
    """
    if temperature is None:
        return scores
    gumbel = np.array([replace(noise, candidate=z).gumbel(0, 1)[0] for z in ids])
    return scores / temperature + gumbel


def choose(
    scores: Array,
    logps: Array,
    ids: Sequence[int],
    *,
    noise: Noise,
    temperature: float | None,
    tolerance: float,
    base_tolerance: float,
) -> Choice:
    """Arg-max of `scores` (`temperature` None), or a draw from softmax(scores / temperature) over the candidates.

    Ties go to the higher `logps`, then to the lower id. Where every score is -inf (no usable reward) the most probable
    candidate is taken. The draw is the arg-max of `perturbed`. `tolerance` and `base_tolerance` are those of scores and
    of `logps`.
    """
    if np.all(np.isneginf(scores)):
        return Choice(index=stable_argmax(logps, logps, ids), near_tie=near_tie(logps, base_tolerance))
    maximised = perturbed(scores, ids, noise=noise, temperature=temperature)
    if temperature is not None:
        tolerance /= temperature
    return Choice(index=stable_argmax(maximised, logps, ids), near_tie=near_tie(maximised, tolerance))
