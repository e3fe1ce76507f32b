"""The strengths of the demo's methods: one grid, the same tuning prompts, chosen by mean learned reward alone.

The sweep is stored beside this file, with what it was made from; it never sees a true reward or a demo prompt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignstar.demo import MODELS, model_dir, prompts
from alignstar.demo.run import decode
from alignstar.demo.settings import (
    ALPHAS,
    MAX_NEW_TOKENS,
    ROLLOUTS,
    SEED,
    SETTINGS,
    Plan,
    open_setting,
    plans,
    sweep_file,
)

PROMPTS = 48
"""Tuning prompts used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One method of one setting at every strength of the grid: mean learned rewards, in ALPHAS' order."""

    setting: str
    method: str
    learned_rewards: tuple[float, ...]

    @property
    def alpha(self) -> float:
        """The strength with the highest mean learned reward; the weakest of equals."""
        return ALPHAS[self.learned_rewards.index(max(self.learned_rewards))]


def models_digest() -> str:
    """SHA-256 of the embedded weights: a sweep belongs to the models it was made with."""
    digest = hashlib.sha256()
    for name in MODELS:
        for file in sorted(model_dir(name).glob("*.safetensors")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def stored() -> dict[tuple[str, str], Tried]:
    """The sweep in the package, by setting and method."""
    rows: list[dict[str, Any]] = json.loads(sweep_file().read_text())["sweep"]
    tried = [
        Tried(setting=row["setting"], method=row["method"], learned_rewards=tuple(row["learned_rewards"]))
        for row in rows
    ]
    return {(row.setting, row.method): row for row in tried}


def alpha_of(plan: Plan, setting: str, sweep: Mapping[tuple[str, str], Tried]) -> float | None:
    """The strength that a plan gets; None for a method without one."""
    return sweep[setting, plan.label].alpha if plan.tuned else None


async def tune(*, device: str = "auto", on_point: Callable[[str, str, float], None]) -> list[Tried]:
    """Run the whole grid. `on_point` is called with setting, method and alpha before each point."""
    messages = prompts("tuning")[:PROMPTS]
    tried: list[Tried] = []
    for setting in SETTINGS:
        aligner = open_setting(setting, device=device)
        for plan in (plan for plan in plans(setting) if plan.tuned):
            rewards: list[float] = []
            for alpha in ALPHAS:
                on_point(setting, plan.label, alpha)
                row = await decode(aligner, setting, plan, messages=messages, alpha=alpha, on_reply=lambda: None)
                rewards.append(round(row.learned_mean, 4))
            tried.append(Tried(setting=setting, method=plan.label, learned_rewards=tuple(rewards)))
    return tried


def points() -> int:
    """How many points `tune` runs."""
    return len(ALPHAS) * sum(plan.tuned for setting in SETTINGS for plan in plans(setting))


def store(tried: Sequence[Tried]) -> None:
    """Write the sweep into the package."""
    sweep_file().write_text(json.dumps(as_json(tried), indent=1) + "\n")


def as_json(tried: Sequence[Tried]) -> dict[str, Any]:
    """The sweep with everything that it depends on."""
    return {
        "models_sha256": models_digest(),
        "split": "tuning",
        "prompts": PROMPTS,
        "seed": SEED,
        "max_new_tokens": MAX_NEW_TOKENS,
        "rollouts": dict(ROLLOUTS),
        "alphas": list(ALPHAS),
        "sweep": [
            {
                "setting": row.setting,
                "method": row.method,
                "alpha": row.alpha,
                "learned_rewards": list(row.learned_rewards),
            }
            for row in tried
        ],
    }
