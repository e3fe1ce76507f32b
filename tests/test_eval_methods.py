"""Every method runs from a recipe: with models, a value head and rewards that it names by their folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import alignstar
import checkpoints
from alignstar.errors import NeedsError
from alignstar.evaluate import runner
from alignstar.evaluate.recipe import read_recipe
from alignstar.evaluate.units import Unit, open_run
from alignstar.methods import METHODS
from test_runner import Watching

OPTIONS: dict[str, dict[str, Any]] = {
    "best-of-n": {"n": 2},
    "speculative-rejection": {"budget": 40},
    "transfer-q": {"k": 2, "rollout_len": 2},
    "maxmin": {"k": 2, "rollout_len": 2},
    "deal": {"k": 2, "rollout_len": 2},
    "tree-bon": {"n": 4},
}
"""What keeps the costly ones small."""

WITH_HEAD = [
    {"label": "blocks", "method": "controlled-decoding", "options": {"mode": "blockwise", "block_len": 2, "blocks": 2}},
    {"label": "head", "method": "transfer-q", "options": {"values": "head", "k": 2}},
    {"label": "head first", "method": "transfer-q", "options": {"value_top": 2, "k": 4, "rollout_len": 2}},
]
LENGTH = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("sft", "baseline")):
        checkpoints.language_model(root / name, seed=seed)
    for seed, name in enumerate(("one", "other"), start=5):
        checkpoints.classifier(root / name, seed=seed)
    checkpoints.value_head(root / "value", base="../sft", layer=2, rank=4)
    (root / "prompts.jsonl").write_text('{"prompt": "Where is it?"}\n{"prompt": "When?"}\n')
    return root


def groups(folder: Path) -> str:
    return f"min({folder / 'one'}; {folder / 'other'})"


def recipe(folder: Path, methods: list[dict[str, Any]], **changes: Any) -> Path:
    written = {
        "name": "all",
        "models": {**{role: str(folder / role) for role in ("sft", "baseline", "value")}, "device": "cpu"},
        "rewards": {"worst": {"source": groups(folder), "role": "reward"}, "one": str(folder / "one")},
        "methods": methods,
        "data": str(folder / "prompts.jsonl"),
        "max_new_tokens": LENGTH,
        **changes,
    }
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(written))
    return file


def made(folder: Path, methods: list[dict[str, Any]], out: Path) -> list[Unit]:
    resolved = read_recipe(recipe(folder, methods))
    runner.run(resolved, out, resume=False, workers=1, watcher=Watching())
    return list(open_run(out).units)


def test_every_method_answers_from_a_recipe_as_it_does_from_python(folder: Path, tmp_path: Path):
    methods = [{"method": name, "options": OPTIONS.get(name, {})} for name in METHODS] + WITH_HEAD
    units = made(folder, methods, tmp_path)
    assert {unit.error for unit in units} == {None}
    assert len(units) == 2 * (len(METHODS) + len(WITH_HEAD))
    models = {role: str(folder / role) for role in ("sft", "baseline", "value")}
    with alignstar.load(**models, reward=groups(folder), device="cpu") as aligner:
        for unit in units:
            name = (
                unit.method
                if unit.method in METHODS
                else next(str(one["method"]) for one in WITH_HEAD if one["label"] == unit.method)
            )
            alone = aligner.generate(unit.prompt, method=name, seed=unit.seed, **unit.options)
            assert (unit.response_ids, unit.rewards["worst"]) == (alone.ids, pytest.approx(alone.reward, abs=1e-5))


@pytest.mark.parametrize("entry", [{"method": "controlled-decoding"}, *WITH_HEAD[1:]], ids=str)
def test_a_method_that_reads_a_value_head_asks_for_it(folder: Path, entry: dict[str, Any]):
    models = {role: str(folder / role) for role in ("sft", "baseline")}
    with pytest.raises(NeedsError, match=r"needs the value, which the recipe has not; add it to models"):
        read_recipe(recipe(folder, [entry], models=models))
