"""What judging a run leaves in its folder: who judged, by which rules, every comparison. Knows files and no judge."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from alignstar.evaluate.judge import Judged, Judgement, Orders, Scores
from alignstar.evaluate.statistics import Interval
from alignstar.evaluate.summary import jsonable
from alignstar.files import replace_text

FILE = "judge.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgements:
    """Methods against one rival, by one judge; `spent` counts requests, tokens and answers from the cache."""

    url: str
    model: str
    orders: Orders
    seed: int
    temperature: float
    spent: Mapping[str, int]
    judgements: tuple[Judgement, ...]

    def scores(self) -> dict[tuple[str, int, int], Scores]:
        """By method, prompt and seed the reply's mean score and its rival's, where the judge gave any."""
        return {
            (one.first, pair.index, pair.seed): pair.scores
            for one in self.judgements
            for pair in one.pairs
            if pair.scores is not None
        }

    def as_json(self) -> dict[str, Any]:
        """The whole as JSON values: NaN, which JSON has not, becomes null."""
        return jsonable(asdict(self))


def write_judgements(judged: Judgements, folder: Path) -> None:
    """Keep them in a run's folder; what was there is replaced, a reader sees the old file or the new one."""
    replace_text(folder / FILE, json.dumps(judged.as_json(), ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def read_judgements(folder: Path) -> Judgements | None:
    """Those of a run's folder; None where it was not judged."""
    if not (folder / FILE).exists():
        return None
    told: dict[str, Any] = json.loads((folder / FILE).read_text("utf-8"))
    told["judgements"] = tuple(_judgement(row) for row in told["judgements"])
    return Judgements(**told)


def _judgement(row: dict[str, Any]) -> Judgement:
    for name, value in row.items():
        if isinstance(value, dict):
            row[name] = _interval(cast("dict[str, Any]", value))
    row["pairs"] = tuple(_judged(pair) for pair in row["pairs"])
    return Judgement(**row)


def _judged(row: dict[str, Any]) -> Judged:
    row["scores"] = None if row["scores"] is None else tuple(row["scores"])
    row["shown"] = tuple(tuple(one) for one in row["shown"])
    return Judged(**row)


def _interval(row: dict[str, Any]) -> Interval:
    known: dict[str, Any] = {name: math.nan if value is None else value for name, value in row.items()}
    return Interval(**known)
