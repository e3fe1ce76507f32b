"""`write_report`: a run's page and the files beside it. Knows the order of work and the files' names."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignstar.evaluate.summary import Summary, summarise
from alignstar.evaluate.units import Run, Unit, unit_to_json
from alignstar.report.browser import embedded
from alignstar.report.compose import all_intervals, compose, tables
from alignstar.report.render import render
from alignstar.report.survey import Chosen, Survey, choose, payload, survey
from alignstar.report.tables import latex


def write_report(run: Run, page: Path, *, baseline: str | None = None) -> list[Path]:
    """Write the page and, beside it under its name, .json, .csv, .tex and .replies.jsonl; returns the files.

    The JSON has every figure as it was computed, the CSV one line per figure with n and interval, the LaTeX file the
    page's tables, the last one every unit without its trace. Units are read one by one, three times. `baseline` is the
    method that others are compared with (None: the recipe's). Raises OptionError for a run without units and for an
    unknown method.
    """
    summary = summarise(run, baseline=baseline)
    counted = survey(run)
    chosen = choose(counted)
    replies = page.with_name(f"{page.stem}.replies.jsonl")
    data = embedded(payload(_copied(run.units, replies), counted, chosen))
    made = compose(run, summary, counted, chosen, beside=replies.name)
    files = {
        page: render(made, data),
        page.with_suffix(".json"): _json(run, summary, counted, chosen),
        page.with_suffix(".tex"): latex(tables(made)),
    }
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    _write_csv(page.with_suffix(".csv"), summary)
    return [*files, page.with_suffix(".csv"), replies]


def _copied(units: Iterable[Unit], target: Path) -> Iterable[Unit]:
    """The units, each written to `target` as it goes by, without its trace and ids, which the run's folder has."""
    working = target.with_name(target.name + ".partial")
    with working.open("w", encoding="utf-8") as file:
        for unit in units:
            file.write(unit_to_json(replace(unit, steps=(), response_ids=())) + "\n")
            yield unit
    os.replace(working, target)


def _json(run: Run, summary: Summary, counted: Survey, chosen: Chosen) -> str:
    whole: dict[str, Any] = {
        "recipe": run.recipe,
        "environment": run.environment,
        "summary": summary.as_json(),
        "failures": [
            {"method": method, "prompt_index": prompt, "seed": seed, "error": error}
            for method, prompt, seed, error in counted.failures
        ],
        "failed": sum(counted.failed.values()),
        "browser": {"prompts": list(chosen.prompts), "of": len(counted.prompts), "traced": sorted(chosen.traced)},
    }
    return json.dumps(whole, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def _write_csv(path: Path, summary: Summary) -> None:
    tests = {(one.method, f"difference:{one.reward}"): one for one in summary.comparisons}
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["table", "method", "other", "metric", "estimate", "low", "high", "n", "p", "p_adjusted"])
        for table, method, other, metric, value in all_intervals(summary):
            test = tests.get((method, metric)) if table == "comparison" else None
            p = ("", "") if test is None else (test.p, test.p_adjusted)
            # An undefined figure is an empty cell: "nan" is a text to most programs.
            numbers = ["" if one != one else one for one in (value.mean, value.low, value.high)]
            writer.writerow([table, method, other, metric, *numbers, value.n, *p])
