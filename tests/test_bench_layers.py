"""`alignstar bench layers` on a tiny random model: what is compared is comparable, and what is told adds up."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from alignstar.bench.layers import CHOICES, Course, Outcome, demo_work, file_work, run
from alignstar.cli import main
from alignstar.cli.bench_layers import conclusion, sentence
from alignstar.errors import OptionError
from alignstar.evaluate.statistics import Interval
from checkpoints import language_model, tokenizer

COURSE = Course(epochs=0.5, batch_size=4, repeats=3)


def base(folder: Path) -> str:
    return str(language_model(folder / "base", seed=3, num_hidden_layers=3, max_position_embeddings=512))


def preferences(folder: Path) -> str:
    """Two pairs for each of 20 prompts."""
    rows = [
        {"prompt": f"Lamp {at // 2}?", "chosen": f"Yes, {at}.", "rejected": "No idea." + " Sorry." * (at % 8)}
        for at in range(40)
    ]
    file = folder / "preferences.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_every_choice_is_compared_with_the_first_on_the_same_pairs(tmp_path: Path):
    work = demo_work("thorough", pairs=8, held_out=6, path=base(tmp_path))
    told = run(work, COURSE)
    assert [row.choice for row in told.rows] == list(CHOICES)
    full, star, by_last, star_k, top_k, head = told.rows
    assert full.difference.mean == full.difference.low == full.difference.high == 0
    for row in told.rows:
        assert row.difference.mean == pytest.approx(row.accuracy.mean - full.accuracy.mean)
        assert row.share == row.layers / 3 == row.work / full.work
        assert len(row.rm_seconds) == len(row.reference_seconds) == COURSE.repeats
        assert row.time == statistics.median(b / a for a, b in zip(row.reference_seconds, row.rm_seconds, strict=True))
    assert star.layers == star_k.layers == told.star["mean"]
    assert by_last.layers == told.star["last"]
    assert top_k.layers == head.layers == 3
    assert full.trained == told.total > star.trained >= star_k.trained > head.trained == 16
    for low, high, said in ((-0.02, 0.01, "within"), (-0.04, -0.01, "worse"), (0.01, 0.02, "better")):
        seen = replace(head, difference=Interval(mean=(low + high) / 2, low=low, high=high, n=6))
        assert seen.verdict == said
        assert f"head: {said}" in sentence(seen, full)
        cheaper = replace(seen, choice="cut", trained=15, share=0.5)
        told_of = conclusion(replace(told, rows=(full, seen, cheaper)))
        assert told_of.endswith("none." if said == "worse" else "with: cut.")
        assert f"full ({100 * low:+.1f} to {100 * high:+.1f} points), with {16 / told.total:.0%} of" in sentence(
            seen, full
        )


def test_a_group_has_its_own_taste_and_its_own_pairs_again():
    thorough, again, brief = (demo_work(taste, pairs=20, held_out=2) for taste in ("thorough", "thorough", "brief"))
    assert thorough.training == again.training
    assert thorough.training != brief.training
    assert not {p.chosen for p in thorough.training} & {p.chosen for p in thorough.held_out}


def test_a_files_prompts_are_learnt_from_or_held_out(tmp_path: Path):
    work = file_work(preferences(tmp_path), pairs=10, held_out=6, max_tokens=60, path=base(tmp_path))
    texts = [ids for pair in (*work.training, *work.held_out) for ids in (pair.chosen, pair.rejected)]
    assert len(work.training) == 10
    assert max(len(ids) for ids in texts) <= 60
    assert len(work.held_out) == len(work.prompt) == 6
    mark = tokenizer()("?")["input_ids"][-1]
    asked, kept = ({p.chosen[: p.chosen.index(mark)] for p in pairs} for pairs in (work.training, work.held_out))
    assert not asked & kept
    with pytest.raises(OptionError, match=r"pairs=90, but .* ask for fewer"):
        file_work(preferences(tmp_path), pairs=90, held_out=6, max_tokens=60, path=base(tmp_path))


def test_the_command_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "layers.json"
    with pytest.raises(SystemExit) as ended:
        main([
            "bench", "layers", "--data", preferences(tmp_path), "--model", base(tmp_path), "--pairs", "8", "--held-out",
            "6", "--seeds", "1", "--epochs", "0.5", "--max-tokens", "200", "--out", str(out),
        ])  # fmt: skip
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    told = json.loads(out.read_text())
    assert told["bench"] == "layers"
    assert told["settings"]["pairs"] == 8
    (outcome,) = told["runs"]
    assert set(outcome) == set(Outcome.__dataclass_fields__)
    for row in outcome["rows"]:
        assert row["choice"] in printed
        assert f"{100 * row['accuracy']['mean']:.1f}%" in printed
    assert printed.count(" of full (") + printed.count(" than full (") == len(CHOICES) - 1
