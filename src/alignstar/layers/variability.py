"""nu, the variability of hidden states within classes relative to that between them (Xie et al. 2022, Eq. 1 to 3).

Knows states [N, d] and labels; what they are states of, and of which layer, is the caller's business. Reads the states
twice, block by block, in float64, and holds class means and at most C - 1 directions: `states` may lie in a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from alignstar.errors import FailedError, OptionError
from alignstar.sampling import Array, IntArray

BLOCK = 1024
"""Rows read at a time."""

RANK = 1e-9
"""Directions between the class means that are shorter than this share of the longest one are rounding."""

SAME = 1e-12
"""Class means that differ by less than this share of the largest number are the same."""


def variability(states: NDArray[np.floating], labels: Sequence[int] | IntArray) -> float:
    """1/C trace(S_w S_b^+) of states [N, d] in C classes; low where the classes are apart, +inf where they are not.

    S_w is the mean over classes of the covariance within a class, S_b the covariance of the C class means about their
    own mean, so that no class weighs more for having more samples; + is the Moore-Penrose inverse. With the singular
    values s_j and right vectors v_j of the centred class means [C, d], S_b has the eigenvalues s_j^2 / C along v_j,
    whence 1/C sum_j v_j' S_w v_j / (s_j^2 / C): no d x d matrix is made, and directions that are zero stay out.
    One class, or class means that coincide, give +inf. Raises OptionError on no states, FailedError on states that
    are not finite.
    """
    names, classes = np.unique(np.asarray(labels), return_inverse=True)
    if len(states) == 0 or len(states) != len(classes):
        raise OptionError(f"{len(states)} states and {len(classes)} labels: give one label per state, one at least.")
    counts = np.bincount(classes).astype(np.float64)  # [C]
    origin = np.asarray(states[0], dtype=np.float64)  # sums about a state lose nothing to a far-away origin
    sums = np.zeros((len(names), states.shape[1]))
    largest = 0.0
    for block, at in _blocks(states, classes):
        if not np.isfinite(block).all():
            raise FailedError("Hidden states are not finite; load the model in float32.")
        np.add.at(sums, at, block - origin)
        largest = max(largest, float(np.abs(block - origin).max()))
    means = sums / counts[:, None]  # [C, d], about the origin
    apart = means - means.mean(axis=0)
    _, lengths, directions = np.linalg.svd(apart, full_matrices=False)
    if len(names) == 1 or lengths[0] <= SAME * largest:
        return float("inf")
    kept = lengths > RANK * lengths[0]
    between = lengths[kept] ** 2 / len(names)  # [J] eigenvalues of S_b
    squares = np.zeros((len(names), int(kept.sum())))
    for block, at in _blocks(states, classes):
        np.add.at(squares, at, ((block - origin - means[at]) @ directions[kept].T) ** 2)
    within = (squares / counts[:, None]).mean(axis=0)  # [J] v_j' S_w v_j
    return float((within / between).sum() / len(names))


def star_of(nu: Sequence[float] | Array) -> int:
    """l*, the layer of least variability, counted from 1; ties go to the lower layer, which is the cheaper one.

    Raises OptionError where no layer tells the classes apart.
    """
    values = np.asarray(nu, dtype=np.float64)
    if not np.isfinite(values).any():
        raise OptionError(
            "No layer tells the classes apart (nu is infinite everywhere); give data with two labels or more that "
            "differ in their texts."
        )
    return int(np.argmin(values)) + 1


def _blocks(states: NDArray[np.floating], classes: IntArray) -> Iterator[tuple[Array, IntArray]]:
    for start in range(0, len(states), BLOCK):
        rows = slice(start, start + BLOCK)
        yield np.asarray(states[rows], dtype=np.float64), classes[rows]
