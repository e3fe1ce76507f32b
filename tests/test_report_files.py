"""What lies beside a run's page: JSON, CSV, LaTeX, all replies, AlpacaEval's files; each read back."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import recorded
from alignstar.errors import OptionError
from alignstar.evaluate.statistics import Interval
from alignstar.evaluate.summary import summarise
from alignstar.evaluate.units import unit_from_json
from alignstar.report.alpaca import write_alpaca
from alignstar.report.build import write_report
from alignstar.report.tables import Cell, Row, Table, interval_cell, latex, number


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_report(recorded.run(), tmp_path / "report.html")
    return tmp_path


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def test_the_json_has_the_whole_summary_and_is_strict(written: Path):
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    whole = json.loads((written / "report.json").read_text(), parse_constant=refuse)
    run = recorded.run()
    assert whole["summary"] == json.loads(json.dumps(summarise(run).as_json()))
    assert whole["recipe"] == run.recipe
    assert whole["environment"] == run.environment
    assert whole["browser"] == {"prompts": list(range(6)), "of": 6, "traced": []}
    assert whole["failed"] == 0


def test_the_csv_has_one_line_per_figure_with_its_interval_and_n(written: Path):
    rows = rows_of(written / "report.csv")
    summary = summarise(recorded.run())
    figures = {(r["method"], r["metric"]): r for r in rows if r["table"] == "figure"}
    assert len(figures) == sum(len(method.figures) for method in summary.methods)
    for method in summary.methods:
        for metric, value in method.figures.items():
            row = figures[method.label, metric]
            assert int(row["n"]) == value.n
            if row["estimate"]:
                assert [float(row[at]) for at in ("estimate", "low", "high")] == [value.mean, value.low, value.high]
    compared = [r for r in rows if r["table"] == "comparison"]
    assert len(compared) == 3 * len(summary.comparisons)
    tested = {(r["method"], r["metric"]): r for r in compared if r["p"]}
    for one in summary.comparisons:
        row = tested[one.method, f"difference:{one.reward}"]
        assert (float(row["p"]), float(row["p_adjusted"])) == (one.p, one.p_adjusted)
    assert len(tested) == len(summary.comparisons)
    assert len([r for r in rows if r["table"] == "win_tie"]) == len(summary.win_ties) == 12


def test_undefined_figures_are_empty_cells(tmp_path: Path):
    run = recorded.run(prompts=1)
    write_report(run, tmp_path / "report.html")
    rows = rows_of(tmp_path / "report.csv")
    assert any(row["estimate"] == "" for row in rows)
    assert not any("nan" in (row["estimate"], row["low"], row["high"]) for row in rows)


def test_all_units_are_there_without_their_traces(tmp_path: Path):
    run = recorded.run(prompts=2)
    units = list(run.units)
    units[0] = replace(units[0], steps=(recorded.step(0, "a"),))
    write_report(replace(run, units=units), tmp_path / "report.html")
    lines = (tmp_path / "report.replies.jsonl").read_text().splitlines()
    assert [unit_from_json(line) for line in lines] == [replace(one, steps=(), response_ids=()) for one in units]


def test_the_latex_tables_are_whole(written: Path):
    text = (written / "report.tex").read_text()
    opened = re.findall(r"\\begin\{(\w+)\}", text)
    assert sorted(opened) == sorted(re.findall(r"\\end\{(\w+)\}", text))
    assert opened.count("tabular") >= 8
    plain = re.sub(r"\\[{}]", "", text)
    assert plain.count("{") == plain.count("}")
    for block in text.split(r"\begin{tabular}")[1:]:
        columns = re.match(r"\{([lr]+)\}", block)
        assert columns
        head = block.split(r"\toprule")[1].split(r"\midrule")[0]
        rows = block.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
        for row in [head, *rows]:
            assert len(re.findall(r"(?<!\\)&", row)) == len(columns[1]) - 1


def test_latex_prints_what_the_cells_hold():
    cell = interval_cell(Interval(mean=-0.5, low=-1.25, high=0.0, n=7))
    row = Row(cells=[Cell(text=r"50%_a&b {\x} [c] #$~^"), cell])
    text = latex([Table(title="A & B", head=["method", "x_1"], rows=[row])])
    assert r"50\%\_a\&b \{\textbackslash{}x\} {[}c] \#\$\textasciitilde{}\textasciicircum{}" in text
    assert r"\makecell[r]{$-$0.500 \\ {\scriptsize {[}$-$1.25, 0]} \\ {\scriptsize n=7}}" in text
    assert r"\caption{A \& B}" in text
    assert r"method & x\_1 \\" in text


@pytest.mark.parametrize(
    ("value", "written"),
    [(0.0, "0"), (0.0123, "0.012"), (0.00123, "0.0012"), (4.6e-7, "5e\N{MINUS SIGN}07"),
     (-0.5, "\N{MINUS SIGN}0.500"), (1.2345, "1.23"), (12.345, "12.3"), (999.6, "1000"), (1234.5, "1,234"),
     (None, "\N{EN DASH}"), (float("nan"), "\N{EN DASH}")],
)  # fmt: skip
def test_numbers_for_readers(value: float | None, written: str):
    assert number(value) == written


def test_alpaca_eval_gets_one_list_per_method(tmp_path: Path):
    run = recorded.run(prompts=3, seeds=(5, 6))
    units = [
        recorded.failed("greedy", 1, seed=5) if (one.method, one.prompt_index, one.seed) == ("greedy", 1, 5) else one
        for one in run.units
    ]
    written = dict(write_alpaca(replace(run, units=units), tmp_path))
    assert [file.relative_to(tmp_path).as_posix() for file in written] == [
        f"{name}/model_outputs.json" for name in ("greedy", "best-of-n", "transfer-q-alpha=1", "transfer-q-alpha=0.5")
    ]
    assert list(written.values()) == [1, 0, 0, 0]
    rows = json.loads((tmp_path / "greedy" / "model_outputs.json").read_text())
    assert rows == [
        {"instruction": one.prompt, "output": one.response, "generator": "greedy"}
        for one in units
        if one.method == "greedy" and one.seed == 5 and one.error is None
    ]
    assert len(rows) == 2


def test_methods_of_like_names_keep_apart(tmp_path: Path):
    run = recorded.run(prompts=1, methods={"a b": ("greedy", {}), "a/b": ("greedy", {}), "..": ("greedy", {})})
    folders = [file.parent.name for file, _ in write_alpaca(run, tmp_path)]
    assert folders == ["a-b", "a-b_", "method"]


def test_a_method_without_a_reply_has_an_empty_list(tmp_path: Path):
    run = replace(recorded.run(prompts=1), units=[recorded.failed("greedy", 0)])
    [(file, left_out)] = write_alpaca(run, tmp_path)
    assert json.loads(file.read_text()) == []
    assert left_out == 1


def test_a_report_that_fails_leaves_nothing_behind(tmp_path: Path):
    with pytest.raises(OptionError, match="nobody"):
        write_report(recorded.run(), tmp_path / "report.html", baseline="nobody")
    assert list(tmp_path.iterdir()) == []
