"""How one of N whole responses is kept: a score for each draw, and votes of equal answers. Pure maths on arrays.

Knows rewards, log-probabilities and answers as they come; asks no model and no reward.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import TypeAlias, cast

import numpy as np

from alignstar.errors import FailedError
from alignstar.rewards.function import load_function
from alignstar.sampling import Array, logsumexp

Answer: TypeAlias = Hashable | None
"""What a response says, for comparing it with others; None: nothing."""


def answer_of(key: str) -> Callable[[str], Answer]:
    """The function that `key` names: "text" is the response's text, python:MODULE:FUNCTION is called with that text.

    Raises OptionError where it cannot be imported. The function raises FailedError where the named one raises, or gives
    something that cannot be compared.
    """
    if key == "text":
        return lambda text: text
    function = cast("Callable[[str], Answer]", load_function(key.removeprefix("python:")))

    def answer(text: str) -> Answer:
        try:
            told = function(text)
            hash(told)
        except Exception as error:  # a stranger's code
            raise FailedError(f"key={key!r} raised {type(error).__name__} ({error}); correct it.") from error
        return told

    return answer


def counts(answers: Sequence[Answer]) -> Array:
    """For each draw how many have the same answer [n]; -inf for a draw that says nothing."""
    votes = Counter(answers)
    return np.array([-np.inf if answer is None else float(votes[answer]) for answer in answers])


def log_votes(answers: Sequence[Answer], rewards: Array, beta: float) -> Array:
    """For each draw the log of the sum of exp(reward / beta) over those with the same answer [n]; -inf for None."""
    total = {
        answer: logsumexp(rewards[[other == answer for other in answers]] / beta)
        for answer in set(answers)
        if answer is not None
    }
    return np.array([-np.inf if answer is None else total[answer] for answer in answers])
