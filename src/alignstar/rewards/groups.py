"""Rewards of several groups of people, and what is made of them for one response: the worst, or a soft worst.

MaxMin-RLHF (Chakraborty et al. 2024, arXiv:2402.08925) at decoding time. A `GroupRewards` is a Reward like any other; a
method that wants the groups one by one asks `by_group`. With a `Game` the groups are weighted once per prompt, by
`weighted_for`, and the weighted sum is what the method decodes with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alignstar.errors import OptionError
from alignstar.meter import together
from alignstar.models import Sampler
from alignstar.rewards import Reward, Scorer
from alignstar.rewards.combine import Range, WeightedSum
from alignstar.rewards.game import worst_weights
from alignstar.sampling import Array, Noise, Sampling
from alignstar.types import Ids, Prompt, Reply


@dataclass(frozen=True, slots=True, kw_only=True)
class Game:
    """The game of a prompt: `beta` weighs its KL term (in the rewards' unit), so many `draws` estimate it."""

    beta: float
    draws: int = 32


class GroupRewards:
    """-(1 / kappa) log sum_u prior_u exp(-kappa r_u) of the groups' rewards r_u; at kappa = inf their minimum.

    NaN where any group's reward is NaN. `prior` are positive weights of the groups (None: equal), normalised here. With
    a `game` this number only judges finished responses; see `weighted_for`. Raises OptionError for values out of range.
    """

    def __init__(
        self,
        parts: Sequence[Reward],
        *,
        kappa: float = math.inf,
        prior: Sequence[float] | None = None,
        game: Game | None = None,
    ) -> None:
        if not parts:
            raise OptionError("The groups have no reward; give at least one.")
        given = [1.0] * len(parts) if prior is None else list(prior)
        if len(given) != len(parts) or not all(math.isfinite(p) and p > 0 for p in given):
            raise OptionError(f"prior={given} must hold one finite number above 0 for each of {len(parts)} groups.")
        if not kappa > 0:
            raise OptionError(f"kappa={kappa} must be above 0; inf is the plain minimum.")
        if game is not None and not (math.isfinite(game.beta) and game.beta > 0 and game.draws >= 1):
            raise OptionError(f"{game} needs a finite beta above 0 and at least one draw.")
        self.parts = tuple(parts)
        self.prior = tuple(p / sum(given) for p in given)
        self.kappa = kappa
        self.game = game

    @property
    def name(self) -> str:
        """The groups' names under what is made of them."""
        what = "min" if math.isinf(self.kappa) else f"soft_min[{self.kappa:g}]"
        if self.game is not None:
            what = f"game[{self.game.beta:g}]"
        return f"{what}({'; '.join(part.name for part in self.parts)})"

    @property
    def range(self) -> Range | None:
        """What it makes of the groups' lower bounds, and of their upper ones: it never falls as a reward rises."""
        bounds = [part.range for part in self.parts]
        known = [b for b in bounds if b is not None]
        if len(known) < len(bounds):
            return None
        return self._folded([low for low, _ in known]), self._folded([high for _, high in known])

    async def score(self, prompt: Prompt, replies: Sequence[Reply]) -> list[float]:
        """One number per reply, inside the range; the groups are asked concurrently."""
        low, high = self.range or (-math.inf, math.inf)
        columns = await together([part.score(prompt, replies) for part in self.parts])
        folded = [self._folded(row) for row in zip(*columns, strict=True)]
        return [x if math.isnan(x) else min(max(x, low), high) for x in folded]

    def _folded(self, row: Sequence[float]) -> float:
        if any(math.isnan(r) for r in row):
            return math.nan
        worst = min(row)
        if math.isinf(worst) or math.isinf(self.kappa):
            return worst
        above = sum(p * math.expm1(-self.kappa * (r - worst)) for p, r in zip(self.prior, row, strict=True))
        return worst - math.log1p(above) / self.kappa


def pointwise_min(parts: Sequence[Reward]) -> GroupRewards:
    """min_u r_u(x, y): what the published code of MaxMin-RLHF gives to its policy optimisation."""
    return GroupRewards(parts)


def soft_min(parts: Sequence[Reward], kappa: float, prior: Sequence[float] | None = None) -> GroupRewards:
    """Between the mean under `prior` (kappa -> 0) and the minimum (kappa -> inf).

    At most log(1 / prior_u) / kappa above the minimum, u the worst group.
    """
    return GroupRewards(parts, kappa=kappa, prior=prior)


def game(parts: Sequence[Reward], beta: float, draws: int = 32) -> GroupRewards:
    """The groups weighted, for every prompt, so that the best policy's worst group is as well off as can be."""
    return GroupRewards(parts, game=Game(beta=beta, draws=draws))


def has_game(reward: Reward) -> bool:
    """Whether `weighted_for` has something to do."""
    return isinstance(reward, GroupRewards) and reward.game is not None


def by_group(reward: Scorer) -> list[Scorer]:
    """A scorer for each group, or `reward` alone where it has no groups."""
    groups = reward.reward
    parts = groups.parts if isinstance(groups, GroupRewards) else (groups,)
    return [Scorer(part, reward.codec, reward.stops) for part in parts]


async def scores_by_group(scorers: Sequence[Scorer], prompt: Prompt, responses: Sequence[Ids]) -> Array:
    """Rewards [len(responses), len(scorers)]; a NaN as its own group's scorer makes of it."""
    columns = await together([scorer(prompt, responses) for scorer in scorers])
    return np.stack(columns, axis=1)


async def weighted_for(prompt: Prompt, reward: Scorer, model: Sampler, *, max_new_tokens: int, seed: int) -> Scorer:
    """What to decode `prompt` with: of a game sum_u w_u r_u with the prompt's weights, of any other reward itself.

    The weights minimise beta log E[exp(sum_u w_u r_u / beta)], E over responses drawn from `model` (so the policy that
    answers them is a self-normalised reweighting of the draws). A draw that a group cannot judge is left out; where
    none is left the weights are equal. A pure function of prompt and seed; the draws are charged to the request.
    """
    groups = reward.reward
    if not isinstance(groups, GroupRewards) or groups.game is None:
        return reward
    drawn = await model.continue_(
        prompt.ids,
        max_new_tokens=max_new_tokens,
        n=groups.game.draws,
        sampling=Sampling(),
        noise=Noise(seed=seed, purpose="game"),
    )
    rewards = await scores_by_group(by_group(reward), prompt, [draw.ids for draw in drawn])
    usable = rewards[np.all(np.isfinite(rewards), axis=1)]
    weights = np.full(len(groups.parts), 1.0 / len(groups.parts))
    if len(usable):
        weights = worst_weights(np.zeros(len(usable)), usable, groups.game.beta).weights
    parts = [(float(w), part) for w, part in zip(weights, groups.parts, strict=True)]
    return Scorer(WeightedSum(parts), reward.codec, reward.stops)
