"""Which reward of several groups a policy is trained on. Pure maths on arrays; knows neither models nor a trainer.

MaxMin-RLHF (Chakraborty et al. 2024, arXiv:2402.08925): `maxmin` is Algorithm 1, every step trains on the reward of the
group whose expected reward is smallest; `pointwise` is what the published code does, every response has the reward of
the group that likes it least; `pooled` is the usual RLHF on the prior-weighted sum. E[min] <= min E: `pointwise` is the
pessimistic one. With one group all three are the same.

Differs: 1) rewards are standardised by group first where a `Scale` is given (paper: as they come), since groups whose
rewards have other units cannot be compared; 2) the expected reward may be a running mean over batches; 3) a response
that some group has no finite reward for is left out of the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from alignstar.errors import FailedError, OptionError
from alignstar.sampling import Array

Objective: TypeAlias = Literal["maxmin", "pointwise", "pooled"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The groups' mean and standard deviation [U] on the responses of the model that training starts from."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, rewards: Array) -> Scale:
        """Of rewards [n, U]; a group whose reward never changes keeps its unit. Raises FailedError without any row."""
        usable = rewards[_usable(rewards)]
        if len(usable) == 0:
            raise FailedError("No response has a finite reward of every group; correct the rewards.")
        std = np.std(usable, axis=0)
        return cls(
            mean=tuple(np.mean(usable, axis=0).tolist()), std=tuple(np.where(std > 0.0, std, 1.0).tolist())
        )  # fmt: skip

    def __call__(self, rewards: Array) -> Array:
        """The rewards [n, U] in standard deviations above the mean."""
        return (rewards - np.array(self.mean)) / np.array(self.std)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where the groups stand after `steps` steps; all of it goes into a checkpoint.

    `means` [U]: their expected rewards, `weights` [U]: the weight that each had on average over the steps; for `maxmin`
    that is the share of steps in which it was the worst off.
    """

    means: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()
    steps: int = 0


def worst_group(means: Array) -> int:
    """The group with the smallest expected reward; of equal ones the first. Raises FailedError on NaN."""
    if np.isnan(means).any():
        raise FailedError(f"Expected rewards {means.tolist()} of the groups hold NaN; correct the rewards.")
    return int(np.argmin(means))


def combine(
    rewards: Array,
    *,
    objective: Objective,
    standing: Standing,
    prior: tuple[float, ...] | None = None,
    momentum: float = 0.0,
) -> tuple[Array, Standing]:
    """The one reward [n] that a step is taken on, of the groups' rewards [n, U], and where the groups stand then.

    The expected reward of a group is its mean over this batch; with `momentum` m it is m times the former one plus
    1 - m times that. `prior` [U] are the groups' weights in the pool (None: equal), normalised here. A response without
    a finite reward of every group gets NaN. Raises FailedError where that is every response, OptionError for a
    `momentum` outside [0, 1) or another number of weights.
    """
    if not 0.0 <= momentum < 1.0:
        raise OptionError(f"momentum={momentum} must lie in [0, 1); 0 takes each batch for itself.")
    pool = _pool(prior, rewards.shape[1])
    usable = _usable(rewards)
    if not usable.any():
        raise FailedError(f"None of {len(rewards)} responses has a finite reward of every group; correct the rewards.")
    batch = np.mean(rewards[usable], axis=0)
    means = momentum * np.array(standing.means) + (1.0 - momentum) * batch if standing.means else batch
    match objective:
        case "maxmin":
            weights = np.eye(len(means))[worst_group(means)]
            combined = rewards @ weights
        case "pointwise":
            combined = np.min(rewards, axis=1)
            weights = np.mean(np.eye(len(means))[np.argmin(rewards[usable], axis=1)], axis=0)
        case "pooled":
            weights = pool
            combined = rewards @ pool
    before = np.array(standing.weights) if standing.weights else np.zeros(len(means))
    after = Standing(
        means=tuple(means.tolist()),
        weights=tuple((before + (weights - before) / (standing.steps + 1)).tolist()),
        steps=standing.steps + 1,
    )
    return np.where(usable, combined, np.nan), after


def _usable(rewards: Array) -> NDArray[np.bool_]:
    """Which responses [n] have a finite reward of every group."""
    return np.logical_and.reduce(np.isfinite(rewards), axis=1)


def _pool(prior: tuple[float, ...] | None, groups: int) -> Array:
    weights = np.ones(groups) if prior is None else np.array(prior)
    if len(weights) != groups or not (np.isfinite(weights).all() and (weights > 0.0).all()):
        raise OptionError(f"prior={prior} must hold one finite number above 0 for each of {groups} groups.")
    return weights / np.sum(weights)
