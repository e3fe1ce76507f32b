"""The embedded world: a small shop's support desk, its true rewards and its trained models.

Light: imports neither torch nor any model. Knows where the shipped models lie; does not know how to load them.
"""

from __future__ import annotations

import random
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from alignstar.demo.customers import SPLITS, message
from alignstar.demo.truth import BOUNDS, REWARDS, true_reward

if TYPE_CHECKING:
    from alignstar.aligner import Aligner

MODELS = ("sft", "baseline", "reward_source", "reward_target")

_SIZES = {"tuning": 48, "demo": 200, "evaluation": 400}

__all__ = ["BOUNDS", "MODELS", "REWARDS", "SPLITS", "model_dir", "prompts", "true_reward"]


@cache
def _held_out(split: str) -> tuple[str, ...]:
    rng = random.Random(f"alignstar demo {split}")
    texts: dict[str, None] = {}
    while len(texts) < _SIZES[split]:
        texts.setdefault(message(rng, split=split).text)
    return tuple(texts)


def prompts(split: str) -> list[str]:
    """The customers' messages of a held-out split, distinct and always in the same order.

    "tuning" has 48, "demo" 200, "evaluation" 400. Raises ValueError for another name.
    """
    if split not in _SIZES:
        raise ValueError(f"split {split!r} is unknown. Known: {', '.join(_SIZES)}.")
    return list(_held_out(split))


def model_dir(name: str) -> Path:
    """The folder of a shipped model, in transformers format. Raises ValueError for an unknown name."""
    if name not in MODELS:
        raise ValueError(f"demo model {name!r} is unknown. Known: {', '.join(MODELS)}.")
    return Path(__file__).parent / "models" / name


class _Callable(ModuleType):
    """This package as a module that can be called: `alignstar.demo()` opens the embedded models."""

    def __call__(self, setting: str = "direct", *, device: str = "auto") -> Aligner:
        """The embedded models in the roles of a setting ("direct" or "indirect"). Raises OptionError for another."""
        from alignstar.demo.settings import open_setting

        return open_setting(setting, device=device)


sys.modules[__name__].__class__ = _Callable
