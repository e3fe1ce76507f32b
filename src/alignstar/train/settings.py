"""How long and how fast a model is trained: what the trainers of trl are told, whatever the loss. Knows no library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Length, pace and seed of a training.

    `max_steps` None: by `epochs`. A step is `batch_size * accumulate` rows. `checkpoint_every` is in steps, or below 1
    a share of all steps, and None for no checkpoints; held-out rows are looked at as often. `patience` is how many
    looks without a better held-out loss end the training, with the best weights; None: never. `log_every` is in steps.
    """

    learning_rate: float
    epochs: float = 1.0
    max_steps: int | None = None
    batch_size: int = 16
    accumulate: int = 1
    seed: int = 0
    checkpoint_every: float | None = None
    patience: int | None = None
    log_every: int = 50
    device: str = "cpu"


OnProgress: TypeAlias = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and of how much."""


def untold(doing: str, done: int, total: int) -> None:
    """Nobody follows."""


class Watcher(Protocol):
    """Follows a training."""

    def begin(self, *, total: int, done: int) -> None:
        """It is known how many steps there are, and how many of them an earlier run has made."""
        ...

    def stepped(self, step: int, values: Mapping[str, float]) -> None:
        """So many steps are done; `values` are what was logged for the last ones, mostly empty."""
        ...

    def looked(self, step: int, values: Mapping[str, float]) -> None:
        """The held-out rows were looked at."""
        ...
