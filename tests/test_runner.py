"""Runs on a toy world: units are what the aligner answers, none is lost or made twice, a changed recipe is refused."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import eval_worlds
from alignstar.errors import FailedError, NeedsError, OptionError
from alignstar.evaluate import plan, runner, worlds
from alignstar.evaluate.data import Sample, read_sample
from alignstar.evaluate.recipe import Resolved, resolve
from alignstar.evaluate.runner import Outcome
from alignstar.evaluate.store import Store
from alignstar.evaluate.units import Unit, open_run, unit_from_json, unit_to_json
from alignstar.rewards.function import FunctionReward

BENCH = Path(__file__).parents[1] / "bench"


def recipe(**changes: Any) -> Resolved:
    return resolve({**eval_worlds.RECIPE, **changes})


class Stopped(Exception):
    """What ends a run in the middle."""


class Watching:
    """Remembers what a run says, and interrupts it after so many units."""

    def __init__(self, *, interrupt_after: int | None = None) -> None:
        self.total = self.done = -1
        self.units: list[Unit] = []
        self._left = interrupt_after

    def begin(self, *, total: int, done: int, sample: Sample) -> None:
        self.total, self.done = total, done

    def finished(self, unit: Unit) -> None:
        self.units.append(unit)
        if self._left is not None and len(self.units) == self._left:
            raise Stopped


def run(resolved: Resolved, folder: Path, *, resume: bool = False, workers: int = 1, watcher: Any = None) -> Outcome:
    return runner.run(resolved, folder, resume=resume, workers=workers, watcher=watcher or Watching())


def units(folder: Path) -> list[Unit]:
    """A run's units without their times."""
    return [
        replace(unit, usage={name: count for name, count in unit.usage.items() if name != "wall_s"})
        for unit in open_run(folder).units
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(recipe(), folder)
    return folder


def test_units_are_what_the_aligner_answers_in_the_recipes_order(whole: Path):
    resolved, found = recipe(), units(whole)
    shown = [e.shown for e in read_sample(resolved.recipe.data).examples]
    assert [(u.method, u.prompt, u.prompt_index, u.seed) for u in found] == [
        (entry.label, prompt, index, seed)
        for entry in resolved.entries
        for index, prompt in enumerate(shown)
        for seed in (0, 1)
    ]
    assert len({u.key for u in found}) == len(found)
    aligner = eval_worlds.models(reward=FunctionReward(eval_worlds.letters_a))
    for unit in found:
        entry = next(e for e in resolved.entries if e.label == unit.method)
        alone = aligner.generate(unit.prompt, method=entry.method, seed=unit.seed, **entry.options)
        complete = unit.finish_reason == "stop"
        assert (unit.response, unit.response_ids, unit.finish_reason) == (alone.text, alone.ids, alone.finish_reason)
        assert unit.rewards == {
            "a": eval_worlds.letters_a(unit.prompt, unit.response, complete),
            "b": eval_worlds.letters_b(unit.prompt, unit.response, complete),
        }
        assert unit.options == alone.options
        assert (unit.usage["lm_tokens"], unit.usage["rm_calls"]) == (alone.usage.lm_tokens, alone.usage.rm_calls)
        assert len(unit.steps) == (len(alone.steps) if (unit.prompt_index, unit.seed) == (0, 0) else 0)
        assert unit.error is None
        assert unit.kl is not None


def test_the_export_is_the_run(whole: Path, tmp_path: Path):
    for name in ("run.json", "units.jsonl"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    there, here = open_run(whole), open_run(tmp_path)
    assert list(here.units) == list(there.units) == list(there.units)
    assert (here.recipe, here.environment) == (there.recipe, there.environment)
    assert here.recipe["methods"][2]["label"] == "transfer-q alpha=1"
    assert here.environment["data"] == {"rows": 16, "used": 4, "skipped": {}}
    assert "numpy" in here.environment["versions"]
    with pytest.raises(OptionError, match="holds no run"):
        open_run(tmp_path / "nothing")


def test_numbers_that_are_not_finite_are_null_in_a_unit(whole: Path):
    unit = next(iter(open_run(whole).units))
    odd = replace(unit, steps=({"score": float("-inf"), "considered": [{"value": float("nan")}]},))
    assert unit_from_json(unit_to_json(odd)).steps == ({"score": None, "considered": [{"value": None}]},)
    assert unit_from_json(unit_to_json(unit)) == unit


def test_several_processes_make_the_same_units(whole: Path, tmp_path: Path):
    watcher = Watching()
    run(recipe(), tmp_path, workers=2, watcher=watcher)
    assert units(tmp_path) == units(whole)
    assert len(watcher.units) == 32


@pytest.mark.parametrize("at", [1, 9, 31])
def test_a_run_that_was_interrupted_goes_on_where_it_was(whole: Path, tmp_path: Path, at: int):
    first, second = Watching(interrupt_after=at), Watching()
    with pytest.raises(Stopped):
        run(recipe(), tmp_path, watcher=first)
    made = len(first.units)  # others may have been ready at that moment
    assert at <= made == len(units(tmp_path))
    outcome = run(recipe(), tmp_path, resume=True, watcher=second)
    assert (second.total, second.done, len(second.units)) == (32, made, 32 - made)
    assert not {u.key for u in first.units} & {u.key for u in second.units}
    assert (outcome.units, outcome.failed) == (32, 0)
    assert units(tmp_path) == units(whole)
    assert not list(tmp_path.glob("*.partial"))


def test_a_finished_run_has_nothing_left_to_do(whole: Path):
    watcher, before = Watching(), units(whole)
    run(recipe(), whole, resume=True, watcher=watcher)
    assert (watcher.done, watcher.units) == (32, [])
    assert units(whole) == before


def test_a_run_is_not_mixed_with_another(whole: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(OptionError, match="holds a run already; go on with --resume"):
        run(recipe(), whole)
    changed = [
        ({"max_new_tokens": 6}, "max_new_tokens: 5 -> 6"),
        ({"seeds": [0]}, r"seeds\.1: 1 -> nothing"),
        ({"data": {"source": "python:eval_worlds:prompts", "prompts": 5}}, r"data\.prompts: 4 -> 5"),
        ({"stop": "A"}, r"stop: \[\] -> nothing; stop\.0: nothing -> A"),
    ]
    for changes, said in changed:
        with pytest.raises(OptionError, match=f"was begun with something else .*{said}.*; restore that"):
            run(recipe(**changes), whole, resume=True)
    monkeypatch.setattr(eval_worlds, "prompts", lambda: ["AA", "BB", "CC", "DD"])
    with pytest.raises(OptionError, match="prompts: "):
        run(recipe(), whole, resume=True)


def test_what_decides_no_unit_may_change(whole: Path):
    described = {"about": "the same", "concurrency": 2, "baseline": "sample", "metrics": {"coherence": "encoder"}}
    watcher = Watching()
    run(recipe(**described), whole, resume=True, watcher=watcher)
    assert watcher.units == []
    assert open_run(whole).recipe["baseline"] == "sample"
    assert open_run(whole).recipe["metrics"]["coherence"] == "encoder"


def keys(resolved: Resolved, identity: dict[str, str] | None = None) -> list[str]:
    examples = read_sample(resolved.recipe.data).examples
    return [task.key for task in plan.tasks(resolved, identity or {"models.open": "x"}, examples)]


ENTRY = {"label": "it", "method": "transfer-q", "options": {"k": 3, "alpha": 1.0}}
OTHERS: dict[str, Callable[[], list[str]]] = {
    "an option": lambda: keys(recipe(methods=[{**ENTRY, "options": {"k": 3, "alpha": 0.5}}])),
    "a default": lambda: keys(recipe(methods=[{**ENTRY, "options": {"k": 3, "alpha": 1.0, "num_rollouts": 2}}])),
    "the length": lambda: keys(recipe(methods=[ENTRY], max_new_tokens=6)),
    "the label": lambda: keys(recipe(methods=[{**ENTRY, "label": "other"}])),
    "the prompts": lambda: keys(recipe(methods=[ENTRY], data="python:eval_worlds:longer_prompts")),
    "the seeds": lambda: keys(recipe(methods=[ENTRY], seeds=[2, 3])),
    "a stop string": lambda: keys(recipe(methods=[ENTRY], stop="A")),
    "the template": lambda: keys(recipe(methods=[ENTRY], chat=False)),
    "the cut": lambda: keys(recipe(methods=[ENTRY], truncate="left")),
    "a reward": lambda: keys(recipe(methods=[ENTRY], rewards={"a": {"source": "rule:repetition", "role": "reward"}})),
    "a model's files": lambda: keys(recipe(methods=[ENTRY]), {"models.open": "y"}),
    "the type": lambda: keys(recipe(methods=[ENTRY], models={"open": "python:eval_worlds:models", "dtype": "float64"})),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_key_is_of_everything_that_decides_a_unit(what: str):
    same = keys(recipe(methods=[ENTRY]))
    assert same == keys(recipe(methods=[ENTRY], concurrency=3, about="again"))
    assert len(set(same)) == len(same)
    assert not set(same) & set(OTHERS[what]())


def test_contents_are_told_apart_by_what_the_files_hold(tmp_path: Path):
    def identity(weights: bytes) -> str:
        (tmp_path / "model.safetensors").write_bytes(weights)
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "notes.md").write_bytes(os.urandom(8))
        model = recipe(models={"sft": str(tmp_path)}, rewards={}, methods=[{"method": "greedy"}])
        return worlds.identities(model.recipe)["models.sft"]

    assert identity(b"1") == identity(b"1") != identity(b"2")
    rewards = worlds.identities(recipe().recipe)
    assert rewards["rewards.a"] == rewards["rewards.b"] == rewards["models.open"] != ""


def test_one_bad_prompt_is_counted_and_made_again_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    rewards = {"r": {"source": "python:eval_worlds:refuses_cc", "role": "reward"}}
    fussy = recipe(rewards=rewards, data="python:eval_worlds:prompts", methods=[{"method": "greedy"}], seeds=[0])
    outcome = run(fussy, tmp_path / "out")
    assert (outcome.units, outcome.failed) == (16, 1)
    (bad,) = [unit for unit in open_run(tmp_path / "out").units if unit.error is not None]
    assert (bad.prompt, bad.response, bad.finish_reason, bad.rewards, bad.kl) == ("CC", "", "error", {"r": None}, None)
    assert bad.error is not None
    assert "no CC here" in bad.error
    (tmp_path / "cc-is-fine").touch()
    watcher = Watching()
    outcome = run(fussy, tmp_path / "out", resume=True, watcher=watcher)
    assert (outcome.units, outcome.failed, [u.prompt for u in watcher.units]) == (16, 0, ["CC"])
    assert all(unit.error is None for unit in units(tmp_path / "out"))


def test_a_fault_of_the_package_is_recorded_with_its_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async def broken(*given: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("alignstar.evaluate.answers.divergence", broken)
    assert run(recipe(), tmp_path).failed == 32
    assert {unit.error for unit in units(tmp_path)} == {"ZeroDivisionError: a bug"}


def test_a_reward_that_has_no_number_is_none(tmp_path: Path):
    rewards = {"r": {"source": "python:eval_worlds:letters_a", "role": "reward"}, "n": "python:eval_worlds:never"}
    assert run(recipe(rewards=rewards, methods=[{"method": "greedy"}]), tmp_path).failed == 0
    assert {unit.rewards["n"] for unit in units(tmp_path)} == {None}


def test_the_reward_that_the_baseline_had_is_scored_too(tmp_path: Path):
    rewards = {
        "before": {"source": "python:eval_worlds:letters_b", "role": "baseline_reward"},
        "now": {"source": "python:eval_worlds:letters_a", "role": "reward"},
    }
    method = {"method": "transfer-q", "options": {"k": 2, "rollout_len": 2, "beta": 1.0}}
    run(recipe(rewards=rewards, methods=[method]), tmp_path)
    for unit in units(tmp_path):
        complete = unit.finish_reason == "stop"
        assert list(unit.rewards) == ["before", "now"]
        assert unit.rewards["before"] == eval_worlds.letters_b(unit.prompt, unit.response, complete)
        assert unit.rewards["now"] == eval_worlds.letters_a(unit.prompt, unit.response, complete)


def test_a_reply_to_a_written_out_dialogue_ends_before_the_next_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A model that goes on with such a text writes the other side's turns too; toys have no such text but one."""
    given: dict[str, Any] = {"data": "python:eval_worlds:dialogues", "methods": [{"method": "sample"}], "seeds": [0, 1]}
    run(recipe(**given), tmp_path / "whole")
    whole = units(tmp_path / "whole")
    assert open_run(tmp_path / "whole").recipe["stop"] == ["\n\nHuman:"]
    monkeypatch.setattr("alignstar.evaluate.recipe.NEXT_TURN", "B")
    run(recipe(**given), tmp_path / "cut")
    assert [u.response for u in units(tmp_path / "cut")] == [u.response.partition("B")[0] for u in whole]
    assert any("B" in unit.response for unit in whole)
    assert all(u.rewards["b"] == 0 for u in units(tmp_path / "cut")), "it is scored as it was cut"
    run(recipe(**given, stop=[]), tmp_path / "as asked")
    assert [u.response for u in units(tmp_path / "as asked")] == [u.response for u in whole]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_method_that_cannot_run_ends_the_run_before_it_begins(tmp_path: Path, workers: int):
    with pytest.raises(NeedsError, match=r"'args': method='args' needs a reward"):
        run(recipe(rewards={}, methods=[{"method": "greedy"}, {"method": "args"}]), tmp_path, workers=workers)
    assert units(tmp_path) == []


def test_models_that_are_none(tmp_path: Path):
    with pytest.raises(OptionError, match="returned str; it must return an Aligner"):
        run(recipe(models={"open": "python:eval_worlds:not_models"}), tmp_path)
    with pytest.raises(NeedsError, match="needs models opened by their paths"):
        run(recipe(rewards={"r": str(tmp_path)}, methods=[{"method": "greedy"}]), tmp_path)
    unknown = recipe(models={"sft": {"source": None}}, rewards={"r": {"source": None}}, methods=[{"method": "greedy"}])
    with pytest.raises(OptionError, match=r"says null for models\.sft, rewards\.r: .* --dry-run"):
        run(unknown, tmp_path)


def test_a_worker_that_dies_is_told_and_what_is_finished_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    deadly = {"r": {"source": "python:eval_worlds:dies_at_cc", "role": "reward"}}
    fragile = recipe(
        rewards=deadly, data="python:eval_worlds:prompts", methods=[{"method": "greedy"}], seeds=[0], concurrency=1
    )
    with pytest.raises(FailedError, match=r"ended with status 7 .* go on with --resume"):
        run(fragile, tmp_path / "out", workers=1 + 1)
    before = units(tmp_path / "out")
    assert 0 < len(before) < 16
    (tmp_path / "cc-is-fine").touch()
    assert run(fragile, tmp_path / "out", resume=True, workers=2).failed == 0
    after = units(tmp_path / "out")
    assert len(after) == 16
    assert [unit for unit in after if unit.key in {u.key for u in before}] == before


def test_one_process_at_a_time_writes_and_nothing_is_there_twice(tmp_path: Path, whole: Path):
    unit = next(iter(open_run(whole).units))
    with Store(tmp_path) as store:
        with pytest.raises(OptionError, match="is being written by another run"):
            Store(tmp_path)
        store.add(replace(unit, error="failed"), 0)
        store.add(unit, 0)
        with pytest.raises(sqlite3.IntegrityError):
            store.add(unit, 0)
        assert store.keys() == {unit.key: False}
        with pytest.raises(OptionError, match="holds no run yet"):
            open_run(tmp_path)
    with Store(tmp_path) as store:
        assert store.keys() == {unit.key: False}
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match="cannot be written"):
        Store(tmp_path / "file")


def test_a_finished_folder_needs_no_writing_to_be_read(whole: Path):
    assert not list(whole.glob("*-wal")) + list(whole.glob("*-shm"))
    described = json.loads((whole / "run.json").read_text())
    assert set(described) == {"recipe", "environment"}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_kills_lose_and_double_nothing(workers: int):
    script = [sys.executable, str(BENCH / "kill_resume.py"), "--kills", "4", "--workers", str(workers)]
    said = subprocess.run(script, capture_output=True, text=True, check=False, timeout=300)
    assert said.returncode == 0, said.stdout + said.stderr
    assert "0 lost, 0 doubled, 0 different" in said.stdout
