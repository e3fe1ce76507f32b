"""Bradley-Terry rewards that are linear in features, fitted exactly: the M-step of a mixture. Pure maths on arrays.

Knows the difference of the features of a chosen and a rejected reply: r(x, y) = w phi(x, y), so a constant cancels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alignstar.sampling import Array
from alignstar.train.mixture import log_sigmoid

MAX_STEPS = 100
PRECISION = 1e-12
"""The fit stops when Newton's step promises less, per vote [nats]."""


class LinearRewards:
    """A `Family`: the weights w [d] of features whose differences, chosen less rejected, are `differences` [N, d].

    The penalty is l2 N / 2 |w|^2 with N the number of votes for training, so that votes given twice change nothing. It
    makes the fit unique also where some w tells all votes.
    """

    def __init__(self, differences: Array, *, l2: float, n_votes: int) -> None:
        self.differences = differences
        self.strength = l2 * n_votes

    def start(self) -> Array:
        """Every reply is worth the same."""
        return np.zeros(self.differences.shape[1])

    def margins(self, reward: Array) -> Array:
        """See Family."""
        return self.differences @ reward

    def penalty(self, reward: Array) -> float:
        """See Family."""
        return 0.5 * self.strength * float(reward @ reward)

    def fitted(self, reward: Array, weights: Array) -> Array:
        """The maximum, by Newton's method with step halving: the objective is concave."""
        used = weights > 0.0
        x, c = self.differences[used], weights[used]  # [n, d], [n]
        w = reward
        value = self._value(x, c, w)
        for _ in range(MAX_STEPS):
            p = np.exp(log_sigmoid(-(x @ w)))  # how surprising each vote is
            gradient = x.T @ (c * p) - self.strength * w
            curvature = x.T @ (x * (c * p * (1.0 - p))[:, None])
            curvature[np.diag_indices_from(curvature)] += self.strength
            step = np.linalg.solve(curvature, gradient)
            promised = float(gradient @ step)
            if promised <= PRECISION * float(np.sum(c)):
                break
            length = 1.0
            while (after := self._value(x, c, w + length * step)) < value + 0.25 * length * promised and length > 1e-9:
                length /= 2.0
            if after <= value:
                break
            w, value = w + length * step, after
        return w

    def _value(self, x: Array, c: Array, w: Array) -> float:
        return float(c @ log_sigmoid(x @ w)) - self.penalty(w)


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The features that rewards are linear in.

    `differences` [N, k] of the votes, `back` [k, d] from weights of features to weights of states.
    """

    differences: Array
    back: Array

    def heads(self, weights: Array) -> Array:
        """From weights [U, k] of the features to weights [U, d] of the states as they come."""
        return weights @ self.back


def space_of(chosen: Array, rejected: Array, *, components: int) -> Space:
    """Standardised differences of states [N, d]; where d is larger, in the `components` directions of most of them.

    A number that never changes, and a direction in which no vote differs, has no weight.
    """
    deviation = np.std(np.concatenate([chosen, rejected]), axis=0)
    scale = np.where(deviation > 0.0, deviation, np.inf)
    differences = (chosen - rejected) / scale
    back = np.diag(1.0 / scale)
    if components < differences.shape[1]:
        _, vectors = np.linalg.eigh(differences.T @ differences)
        leading = vectors[:, ::-1][:, :components]
        differences, back = differences @ leading, leading.T @ back
    return Space(differences=differences, back=back)
