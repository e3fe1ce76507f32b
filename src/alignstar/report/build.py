"""`write_report`: a run's page and the files beside it. Knows the order of work and the files' names."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignstar.evaluate.judgements import Judgements
from alignstar.evaluate.summary import Summary, summarise
from alignstar.evaluate.units import Run, Unit, unit_to_json
from alignstar.files import replacing
from alignstar.report.browser import embedded
from alignstar.report.compose import all_intervals, compose, tables
from alignstar.report.render import render
from alignstar.report.survey import Chosen, Survey, begun, choose, counting, payload
from alignstar.report.tables import latex


def write_report(run: Run, page: Path, *, baseline: str | None = None, judged: Judgements | None = None) -> list[Path]:
    """Write the page and, beside it under its name, .json, .csv, .tex and .replies.jsonl; returns the files.

    The JSON has every figure as it was computed, the CSV one line per figure with n and interval, the LaTeX file the
    page's tables, the last one every unit without its trace. Units are read one by one, twice. `baseline` is the
    method that others are compared with (None: the recipe's), `judged` what a judge said of the run. Raises
    OptionError for a run without units and for an unknown method.
    """
    counted = begun(run)
    replies = page.with_name(f"{page.stem}.replies.jsonl")
    with _copying(replies) as copied:
        summary = summarise(replace(run, units=counting(copied(run.units), counted)), baseline=baseline)
    chosen = choose(counted)
    data = embedded(payload(run.units, counted, chosen, judged))
    made = compose(run, summary, counted, chosen, beside=replies.name, judged=judged)
    files = {
        page: render(made, data),
        page.with_suffix(".json"): _json(run, summary, counted, chosen, judged),
        page.with_suffix(".tex"): latex(tables(made)),
    }
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    _write_csv(page.with_suffix(".csv"), summary, judged)
    return [*files, page.with_suffix(".csv"), replies]


@contextmanager
def _copying(target: Path) -> Generator[Callable[[Iterable[Unit]], Iterator[Unit]]]:
    """Units that go through are written to `target`, without traces and ids, which the run's folder has.

    The file is there after the block, unless the block fails.
    """

    def copied(units: Iterable[Unit]) -> Iterator[Unit]:
        for unit in units:
            file.write(unit_to_json(replace(unit, steps=(), response_ids=())) + "\n")
            yield unit

    with replacing(target) as working, working.open("w", encoding="utf-8") as file:
        yield copied


def _json(run: Run, summary: Summary, counted: Survey, chosen: Chosen, judged: Judgements | None) -> str:
    whole: dict[str, Any] = {
        "recipe": run.recipe,
        "environment": run.environment,
        "summary": summary.as_json(),
        "failures": [
            {"method": method, "prompt_index": prompt, "seed": seed, "error": error}
            for method, prompt, seed, error in counted.failures
        ],
        "judged": None if judged is None else judged.as_json(),
        "failed": sum(counted.failed.values()),
        "browser": {"prompts": list(chosen.prompts), "of": len(counted.prompts), "traced": sorted(chosen.traced)},
    }
    return json.dumps(whole, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def _write_csv(path: Path, summary: Summary, judged: Judgements | None) -> None:
    tests = {(one.method, f"difference:{one.reward}"): one for one in summary.comparisons}
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["table", "method", "other", "metric", "estimate", "low", "high", "n", "p", "p_adjusted"])
        for table, method, other, metric, value in all_intervals(summary, judged):
            test = tests.get((method, metric)) if table == "comparison" else None
            p = ("", "") if test is None else (test.p, test.p_adjusted)
            # An undefined figure is an empty cell: "nan" is a text to most programs.
            numbers = ["" if one != one else one for one in (value.mean, value.low, value.high)]
            writer.writerow([table, method, other, metric, *numbers, value.n, *p])
