"""Which units a run consists of, what each is called, and whether a stored run is the same one.

Knows recipes, prompts and identities; runs nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignstar import __version__
from alignstar.errors import OptionError
from alignstar.evaluate.recipe import Entry, Recipe, Resolved
from alignstar.evaluate.rows import Example
from alignstar.types import Message

FORMAT = 1
"""The version of what a unit is; raised when stored units would no longer mean the same."""

FREE = ("name", "about", "metrics", "pricing", "baseline", "concurrency")
"""Keys of a recipe that decide no unit: they may change under a run."""

SHOWN = 6
"""Differences told at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A unit that is to be made; `place` is where it stands in the run."""

    key: str
    place: int
    entry: Entry
    prompt_index: int
    messages: tuple[Message, ...]
    shown: str
    seed: int
    traced: bool


def fixed(resolved: Resolved, identity: Mapping[str, str], examples: Sequence[Example]) -> dict[str, Any]:
    """Everything that decides a run's units, as JSON: what a run that is taken up again must have in common."""
    recipe = {name: value for name, value in resolved.as_json().items() if name not in FREE}
    return {
        "recipe": recipe,
        "contents": dict(identity),
        "prompts": _digest([_turns(example.prompt) for example in examples]),
        "format": FORMAT,
        "alignstar": __version__,
    }


def tasks(resolved: Resolved, identity: Mapping[str, str], examples: Sequence[Example]) -> Iterator[Task]:
    """Every unit of the run, by method, prompt and seed."""
    recipe, place = resolved.recipe, 0
    common = _common(recipe, identity)
    for entry in resolved.entries:
        for index, example in enumerate(examples):
            for seed in recipe.seeds:
                yield Task(
                    key=unit_key(entry, example.prompt, seed, common),
                    place=place,
                    entry=entry,
                    prompt_index=index,
                    messages=example.prompt,
                    shown=example.shown,
                    seed=seed,
                    traced=index < recipe.trace and seed == recipe.seeds[0],
                )
                place += 1


def unit_key(entry: Entry, prompt: Sequence[Message], seed: int, common: Mapping[str, Any]) -> str:
    """The hash of everything that decides a unit; the label too, since one method under two labels is two results."""
    return _digest(
        {
            "label": entry.label,
            "method": entry.method,
            "options": entry.options,
            "chat": entry.chat,
            "prompt": _turns(prompt),
            "seed": seed,
            **common,
        }
    )


def _common(recipe: Recipe, identity: Mapping[str, str]) -> dict[str, Any]:
    """What all units of a run share."""
    return {
        "format": FORMAT,
        "alignstar": __version__,
        "models": recipe.models.model_dump(mode="json"),
        "rewards": {name: [reward.source, reward.role] for name, reward in recipe.rewards.items()},
        "contents": dict(identity),
        "stop": recipe.stop,
        "truncate": recipe.truncate,
    }


def refuse_other(stored: Mapping[str, Any], now: Mapping[str, Any], *, folder: str) -> None:
    """Raise OptionError, with what differs, unless a stored run is the one that is asked for now."""
    differences = [
        f"{name}: {_brief(before)} -> {_brief(after)}"
        for (name, before), after in _changes(dict(_leaves("", stored)), dict(_leaves("", now)))
    ]
    if differences:
        more = f"; and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        raise OptionError(
            f"The run in {folder!r} was begun with something else ({'; '.join(differences[:SHOWN])}{more}); "
            "restore that, or give another --out."
        )


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[tuple[str, Any], Any]]:
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name, "nothing"), after.get(name, "nothing")
        if old != new:
            yield (name.removeprefix("recipe."), old), new


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Every value of nested mappings and lists by its dotted name."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(f"{name}.{key}" if name else str(key), inner)
    elif isinstance(value, list) and value:
        for place, inner in enumerate(value):
            yield from _leaves(f"{name}.{place}", inner)
    else:
        yield name, value


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    return text if len(text) <= 40 else text[:37] + "..."


def _turns(messages: Sequence[Message]) -> list[list[str]]:
    return [[message.role, message.content] for message in messages]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]
