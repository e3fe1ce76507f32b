"""What a run leaves behind: one Unit per (method, prompt, seed), and the Run that holds them.

A run's folder holds `run.sqlite`, the truth while it lasts and after, and beside it, once it has finished, `run.json`
and `units.jsonl`, the same for reading by other programs; a folder with these two alone is read as well. Knows neither
models nor how units are made.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from alignstar.errors import OptionError
from alignstar.evaluate.jsonl import json_line

DATABASE, DESCRIPTION, EXPORT = "run.sqlite", "run.json", "units.jsonl"
"""The files of a run's folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One response, or the error that came instead of one.

    `key` is the hash of everything that determines the unit. `method` is the label of the recipe's method entry, unique
    within the run, with what a sweep varies ("transfer-q alpha=0.5"); `options` are the method's options as they were
    used, `max_new_tokens` among them. `prompt` is the text shown to a reader. `rewards` has one score per reward of the
    recipe, by its name: None where the score is no finite number. `kl` is log pi_Alg(y) - log pi_sft(y) [nats], for a
    deterministic method -log pi_sft(y), and `kl_rao_blackwell` its form of less variance (`alignstar.evaluate.kl`);
    None where the method's law is not known in closed form (best-of-n, searches by whole responses) or there is no SFT
    model that tells log-probabilities. `usage` are the counts of `alignstar.types.Usage`, by name. `steps` is the
    trace, `alignstar.types.Step` as mappings, each candidate with its `text` beside its ids; empty for prompts that the
    recipe does not trace. Of a failed unit `error` is the message, `response` empty, `finish_reason` "error".
    """

    key: str
    method: str
    options: Mapping[str, Any]
    prompt_index: int
    prompt: str
    seed: int
    response: str
    response_ids: tuple[int, ...]
    finish_reason: str
    rewards: Mapping[str, float | None]
    kl: float | None
    usage: Mapping[str, float]
    steps: tuple[Mapping[str, Any], ...]
    error: str | None
    kl_rao_blackwell: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run's folder, opened for reading.

    `recipe` is the resolved recipe: `recipe["methods"]` lists the entries in the order of the recipe, sweeps expanded,
    as {"label", "method", "options"}; `recipe["rewards"]` maps a reward's name to {"source", "role", ...} with role
    "reward" (optimised), "baseline_reward" or "gold" (held out); `recipe["baseline"]` is the label of the method that
    others are compared with. `environment` holds versions, machine and commit. `units` are in the recipe's order (by
    method, prompt, seed), read anew each time they are iterated: a run that is not finished has fewer.
    """

    recipe: Mapping[str, Any]
    environment: Mapping[str, Any]
    units: Iterable[Unit]


def unit_to_json(unit: Unit) -> str:
    """The unit as one line of strict JSON; numbers that are not finite become null."""
    return json_line({field.name: getattr(unit, field.name) for field in fields(unit)})


def unit_from_json(line: str) -> Unit:
    """The unit that `unit_to_json` wrote."""
    row: dict[str, Any] = json.loads(line)
    row["response_ids"], row["steps"] = tuple(row["response_ids"]), tuple(row["steps"])
    return Unit(**row)


@dataclass(frozen=True, slots=True)
class _Lines:
    """The units of an export."""

    path: Path

    def __iter__(self) -> Iterator[Unit]:
        with self.path.open(encoding="utf-8") as lines:
            yield from map(unit_from_json, lines)


def open_run(path: str | Path) -> Run:
    """Read a run's folder. Raises OptionError where it is none."""
    folder = Path(path)
    if (folder / DATABASE).exists():
        from alignstar.evaluate.store import read_run

        return read_run(folder / DATABASE)
    if (folder / DESCRIPTION).exists() and (folder / EXPORT).exists():
        described: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        return Run(recipe=described["recipe"], environment=described["environment"], units=_Lines(folder / EXPORT))
    raise OptionError(f"{str(path)!r} holds no run; give the folder that `alignstar eval RECIPE --out FOLDER` wrote.")
