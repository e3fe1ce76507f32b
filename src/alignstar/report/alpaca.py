"""AlpacaEval's `model_outputs.json`, one per method. Knows Units and that format (github.com/tatsu-lab/alpaca_eval)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from alignstar.evaluate.units import Run


def write_alpaca(run: Run, folder: Path) -> Iterator[tuple[Path, int]]:
    """Write folder/METHOD/model_outputs.json; yields each file and how many failed units it leaves out.

    AlpacaEval reads one output per instruction: of several seeds the recipe's first is taken.
    """
    seed = run.recipe["seeds"][0]
    taken: set[str] = set()
    for method, units in groupby(run.units, key=lambda unit: unit.method):
        target = folder / _named(method, taken) / "model_outputs.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        left_out = 0
        with target.open("w", encoding="utf-8") as file:
            separator = "["
            for unit in units:
                if unit.seed != seed:
                    continue
                if unit.error is not None:
                    left_out += 1
                    continue
                row = {"instruction": unit.prompt, "output": unit.response, "generator": method}
                file.write(f"{separator}\n{json.dumps(row, ensure_ascii=False)}")
                separator = ","
            file.write("\n]\n" if separator == "," else "[]\n")
        yield target, left_out


def _named(method: str, taken: set[str]) -> str:
    """The label as a folder's name that is not taken yet."""
    name = re.sub(r"[^\w.=+-]+", "-", method).strip(".-") or "method"
    while name in taken:
        name += "_"
    taken.add(name)
    return name
