"""Runs for tests of what reads them: units made up here, no model, no folder unless `folder_of` writes one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignstar.evaluate.units import DESCRIPTION, EXPORT, Run, Unit, unit_to_json
from alignstar.options import complete

METHODS = {
    "greedy": ("greedy", {}),
    "best-of-n": ("best-of-n", {"n": 4}),
    "transfer-q alpha=1": ("transfer-q", {"alpha": 1.0}),
    "transfer-q alpha=0.5": ("transfer-q", {"alpha": 0.5}),
}


def entry(label: str, method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A method of a resolved recipe."""
    return {"label": label, "method": method, "options": dict(complete(method, options)), "chat": None}


def recipe(
    methods: Mapping[str, tuple[str, Mapping[str, Any]]] = METHODS, *, seeds: Sequence[int] = (0,), **other: Any
) -> dict[str, Any]:
    """A resolved recipe with an optimised and a held-out reward."""
    return {
        "name": "a run",
        "about": "about it",
        "models": {"sft": {"source": "somewhere", "parameters": None}},
        "rewards": {
            "learned": {"source": ["rule:length"], "role": "reward", "parameters": None},
            "true": {"source": ["rule:length"], "role": "gold", "parameters": None},
        },
        "methods": [entry(label, *given) for label, given in methods.items()],
        "metrics": {"diversity_plus_one": True, "coherence": None, "normalised": {"reference": None, "lowest": None}},
        "baseline": next(iter(methods)),
        "seeds": list(seeds),
        **other,
    }


def unit(method: str, prompt: int, *, seed: int = 0, reward: float | None = 1.0, **other: Any) -> Unit:
    """A finished unit, unless `other` says that it failed."""
    words = f"Reply {prompt} by {method} has several words."
    given: dict[str, Any] = {
        "key": f"{method}|{prompt}|{seed}",
        "method": method,
        "options": {},
        "prompt_index": prompt,
        "prompt": f"Question {prompt}?",
        "seed": seed,
        "response": words,
        "response_ids": tuple(range(len(words.split()))),
        "finish_reason": "stop",
        "rewards": {"learned": reward, "true": None if reward is None else reward / 2},
        "kl": 3.0 + prompt,
        "usage": {"lm_tokens": 100.0 + prompt, "rm_tokens": 50.0, "sequential_steps": 9, "wall_s": 0.5},
        "steps": (),
        "error": None,
    }
    return Unit(**{**given, **other})


def failed(method: str, prompt: int, *, seed: int = 0, error: str = "A forward failed.") -> Unit:
    """A unit with an error instead of a response."""
    kept = unit(method, prompt, seed=seed)
    return replace(
        kept, response="", response_ids=(), finish_reason="error", rewards={"learned": None, "true": None}, kl=None,
        usage={}, error=error,
    )  # fmt: skip


def step(index: int, text: str, *, chosen: int = 0) -> dict[str, Any]:
    """A step that considered two candidates."""
    considered = [
        {"ids": [n], "logp": -1.0 - n, "score": 0.5 - n, "value": 2.0 + n, "future": [], "log_m": None, "ess": None,
         "text": f"{text}{n}"}
        for n in range(2)
    ]  # fmt: skip
    return {
        "index": index, "emitted": [chosen], "considered": considered, "chosen": chosen, "near_ties": 0,
        "finish": None, "replaces": False, "text": text,
    }  # fmt: skip


def run(prompts: int = 6, *, seeds: Sequence[int] = (0,), methods: Mapping[str, Any] = METHODS, **other: Any) -> Run:
    """Every method on every prompt; rewards grow from method to method and from prompt to prompt."""
    units = [
        unit(label, prompt, seed=seed, reward=place + prompt / 10 + seed / 100)
        for place, label in enumerate(methods)
        for prompt in range(prompts)
        for seed in seeds
    ]
    return Run(recipe=recipe(methods, seeds=seeds, **other), environment={"versions": {"python": "3"}}, units=units)


def folder_of(given: Run, folder: Path) -> Path:
    """The run as a finished evaluation exports it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTION).write_text(json.dumps({"recipe": given.recipe, "environment": given.environment}))
    (folder / EXPORT).write_text("".join(unit_to_json(one) + "\n" for one in given.units))
    return folder
