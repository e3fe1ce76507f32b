"""The two settings of the paper on the embedded models, and the methods that the demo compares in each.

`direct`: the reward is the one that the baseline was aligned to. `indirect`: it is another one, and Transfer Q* knows
both. Knows options and roles; opens no model before it is asked to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignstar.demo import model_dir
from alignstar.errors import OptionError
from alignstar.methods.presets import preset

if TYPE_CHECKING:
    from alignstar.aligner import Aligner

REWARDS = {"direct": "source", "indirect": "target"}
"""Setting -> the true reward that is wanted there; the baseline was aligned to "source"."""

SETTINGS = tuple(REWARDS)

MAX_NEW_TOKENS = 64
SEED = 0
CONCURRENCY = 32
"""Prompts decoded together: a rollout's forwards follow one another, so that company costs little."""

ROLLOUTS: Mapping[str, Any] = {"k": 10, "rollout_len": None}
"""What every method that rolls out shares, beside MAX_NEW_TOKENS: candidates, and rollouts to the response's end."""

ALPHAS = (16.0, 8.0, 4.0)
"""The grid from which every method with a strength gets its own; ARGS names it weight = 1/alpha.

It ends where decoding weighs the reward half as much as the baseline's training did (its beta is 2): the stronger the
search, the more it finds what the learned rewards are wrong about, and the less it matters whose rollouts they are.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One row of the demo: a method with options. `tuned` says that its alpha comes from the sweep.

    `draws` is N for a best-of-N row, whose KL has a closed upper bound, and None for a deterministic one.
    """

    label: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tuned: bool = False
    draws: int | None = None

    def at(self, alpha: float | None) -> dict[str, Any]:
        """The method's options with this strength (None: it has none)."""
        if alpha is None:
            return dict(self.options)
        return {**self.options, **({"weight": 1.0 / alpha} if self.method == "args" else {"alpha": alpha})}


def plans(setting: str) -> tuple[Plan, ...]:
    """The rows of a setting, in the order shown. Raises OptionError for an unknown setting."""
    _check(setting)
    cd_minus = {**preset("cd-minus").options, **ROLLOUTS}
    rows = (
        Plan(label="sft-greedy", method="greedy", options={"model": "sft"}),
        Plan(label="baseline-greedy", method="greedy", options={"model": "baseline"}),
        Plan(label="best-of-n", method="best-of-n", options={"model": "sft", "n": 16}, draws=16),
        Plan(label="args", method="args", options={"model": "sft", "k": ROLLOUTS["k"]}, tuned=True),
        Plan(label="cd-minus", method="transfer-q", options=cd_minus, tuned=True),
    )
    direct = Plan(
        label="transfer-q" if setting == "direct" else "transfer-q-direct",
        method="transfer-q",
        options={**ROLLOUTS, "transfer": "direct"},
        tuned=True,
    )
    if setting == "direct":
        return (*rows, direct)
    indirect = {**ROLLOUTS, "transfer": "indirect", "indirect_mode": "snis", "beta": baseline_beta()}
    return (*rows, direct, Plan(label="transfer-q", method="transfer-q", options=indirect, tuned=True))


def open_setting(setting: str, *, device: str = "auto") -> Aligner:
    """The embedded models in the roles of a setting. Raises OptionError for an unknown setting."""
    _check(setting)
    from alignstar.loading import load

    return load(
        sft=str(model_dir("sft")),
        baseline=str(model_dir("baseline")),
        reward=reward_line(REWARDS[setting]),
        baseline_reward=None if setting == "direct" else reward_line("source"),
        device=device,
    )


def reward_line(name: str) -> str:
    """The learned reward `name`, clipped to the range of its scores on held-out replies: a known range saves work."""
    folder = model_dir(f"reward_{name}")
    notes = json.loads((folder / "alignstar.json").read_text())
    return f"{folder}|clip:{notes['low']},{notes['high']}"


@cache
def baseline_beta() -> float:
    """The KL strength that the embedded baseline was trained with, on the scale of the shipped rewards."""
    return float(json.loads((model_dir("baseline") / "alignstar.json").read_text())["beta"])


def sweep_file() -> Path:
    """Where the stored sweep lies in the package."""
    return Path(__file__).parent / "sweep.json"


def _check(setting: str) -> None:
    if setting not in SETTINGS:
        raise OptionError(f"setting={setting!r} is unknown. Known: {', '.join(SETTINGS)}.")
