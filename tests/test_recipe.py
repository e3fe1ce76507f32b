"""Recipes: what is filled in and expanded, what is refused and how that is said, and the ones that are shipped."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from alignstar.errors import NeedsError, OptionError
from alignstar.evaluate.recipe import read_recipe, resolve
from alignstar.methods.presets import PRESETS
from alignstar.rewards.spec import parse_reward

RECIPES = Path(__file__).parents[1] / "recipes"
SHIPPED = sorted(file for file in RECIPES.rglob("*.yaml") if file.parent.name != "train")

MODELS = {"sft": "a", "baseline": {"source": "b", "parameters": 7e9}}
REWARDS = {"wanted": {"source": "rule:length?max_words=5", "role": "reward"}, "held out": "rule:length?max_words=9"}


def recipe(**changes: Any) -> dict[str, Any]:
    whole = {"name": "x", "models": MODELS, "rewards": REWARDS, "methods": [{"method": "greedy"}], "data": "p.jsonl"}
    return {**whole, **changes}


def test_lists_are_swept_and_everything_is_filled_in():
    swept = {"alpha": [0.5, 1], "k": 2, "selection": ["greedy", "sample"]}
    resolved = resolve(recipe(methods=[{"method": "greedy"}, {"method": "transfer-q", "options": swept}]))
    assert [entry.label for entry in resolved.entries] == [
        "greedy",
        "transfer-q alpha=0.5 selection=greedy",
        "transfer-q alpha=0.5 selection=sample",
        "transfer-q alpha=1 selection=greedy",
        "transfer-q alpha=1 selection=sample",
    ]
    options = resolved.entries[3].options
    assert (options["alpha"], options["k"], options["num_rollouts"], options["max_new_tokens"]) == (1.0, 2, 1, 128)
    assert "seed" not in options
    stored = resolved.as_json()
    assert stored["baseline"] == "greedy"
    assert stored["rewards"]["held out"] == {
        "source": ["rule:length?max_words=9"], "role": "gold", "parameters": None,
    }  # fmt: skip
    assert stored["methods"][0]["label"] == "greedy"


def test_a_preset_is_its_method_with_its_options_and_its_way_with_chat_templates():
    (one, two) = resolve(
        recipe(methods=[{"preset": "official-direct"}, {"preset": "cd-minus", "label": "CD", "options": {"k": 3}}])
    ).entries
    assert (one.label, one.method, one.chat) == ("official-direct", "transfer-q", False)
    assert {**one.options, **PRESETS["official-direct"].options} == one.options
    assert (two.label, two.options["k"], two.options["rollout_model"], two.chat) == ("CD", 3, "sft", None)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"max_new_token": 3}, "did you mean max_new_tokens"),
    ({"models": {"sfft": "x"}}, "'models.sfft' is unknown; did you mean sft"),
    ({"rewards": {"r": {"source": "x", "rolle": "gold"}}}, "did you mean role"),
    ({"methods": [{"method": "greedy", "option": {}}]}, "'methods.0.option' is unknown; did you mean options"),
    ({"data": {"source": "x", "promts": 3}}, "did you mean prompts"),
    ({"metrics": {"normalised": {"lowst": "x"}}}, "did you mean lowest"),
    ({"max_new_tokens": 0}, "max_new_tokens=0 must be greater than or equal to 1"),
    ({"max_new_tokens": "3"}, "max_new_tokens='3' must be a valid integer"),
    ({"seeds": [1, -1]}, "seeds.1=-1 must be greater"),
    ({"seeds": []}, "at least 1"),
    ({"methods": []}, "at least 1"),
    ({"methods": [{"options": {}}]}, "neither method nor preset"),
    ({"methods": [{"method": "greedyy"}]}, "method='greedyy' is unknown. Known: greedy"),
    ({"methods": [{"preset": "cd-"}]}, "preset='cd-' is unknown"),
    ({"methods": [{"preset": "cd-minus", "method": "args"}]}, "belongs to method='transfer-q'"),
    ({"methods": [{"method": "transfer-q", "options": {"alhpa": 1}}]}, "did you mean alpha"),
    ({"methods": [{"method": "transfer-q", "options": {"alpha": [1, 0]}}]}, "alpha=0 must be a finite number > 0"),
    ({"methods": [{"method": "greedy", "options": {"seed": 3}}]}, "'seed' is the whole recipe's"),
    ({"methods": [{"method": "greedy", "options": {"model": []}}]}, "model of greedy is an empty list"),
    ({"methods": [{"method": "greedy"}, {"method": "greedy"}]}, "Two methods are called 'greedy'"),
    ({"baseline": "gredy"}, "No method is called 'gredy'; known: greedy"),
    ({"metrics": {"normalised": {"lowest": "sft"}}}, "No method is called 'sft'"),
    ({"rewards": {"r": "rule:lenght"}}, "rule 'lenght'"),
    ({"rewards": {n: {"source": "implicit", "role": "reward"} for n in "ab"}}, "rewards a, b have the role reward"),
    ({"models": {}}, "names no model"),
    ({"models": {"sft": "a", "open": "python:m:f"}}, "models.open opens all models itself"),
    ({"models": {"sft": {"parameters": 3.0}}}, "'models.sft.source' is missing"),
    ({"models": {"sft": {"source": "a", "parameters": -1.0}}}, "models.sft.parameters=-1.0 must be greater than 0"),
]


@pytest.mark.parametrize(("changes", "said"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_wrong_is_said_in_one_sentence(changes: dict[str, Any], said: str):
    with pytest.raises(OptionError) as raised:
        resolve(recipe(**changes), name="my.yaml")
    message = str(raised.value)
    assert message.startswith("my.yaml: ")
    assert said in message
    assert "\n" not in message
    assert message.endswith(".")


def test_a_method_that_lacks_a_model_is_named_before_anything_is_opened():
    with pytest.raises(NeedsError, match="'tree-bon' needs the baseline, which the recipe has not; add it to models"):
        resolve(recipe(models={"sft": "a"}, methods=[{"method": "tree-bon"}]))
    with pytest.raises(NeedsError, match=r"'args' needs the reward.*add it to rewards, with that role"):
        resolve(recipe(rewards={}, methods=[{"method": "args"}]))
    resolve(recipe(models={"open": "python:m:f"}, rewards={}, methods=[{"method": "args"}]))


def test_scalars_are_those_of_yaml_1_2(tmp_path: Path):
    file = tmp_path / "r.yaml"
    file.write_text(
        "name: off\nabout: no\nmodels: {sft: a, baseline: {source: b, parameters: 7e9}}\n"
        "rewards: {r: {source: implicit, role: reward}}\n"
        "methods: [{method: transfer-q, options: {acceleration: off, alpha: 1e-3, return_best_rollout: true}}]\n"
        "data: 'null'\n"
    )
    resolved = read_recipe(file)
    assert (resolved.recipe.name, resolved.recipe.about, resolved.recipe.data.source) == ("off", "no", "null")
    assert resolved.recipe.models.given["baseline"].parameters == 7e9
    options = resolved.entries[0].options
    assert (options["acceleration"], options["alpha"], options["return_best_rollout"]) == ("off", 0.001, True)


def test_toml_says_the_same(tmp_path: Path):
    yaml, toml = tmp_path / "r.yaml", tmp_path / "r.toml"
    yaml.write_text("name: x\nmodels: {sft: a}\nmethods: [{method: greedy}]\ndata: {source: p.jsonl, prompts: 3}\n")
    toml.write_text(
        'name = "x"\nmethods = [{method = "greedy"}]\n[models]\nsft = "a"\n[data]\nsource = "p.jsonl"\nprompts = 3\n'
    )
    assert read_recipe(yaml) == read_recipe(toml)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("r.yaml", "name: x\nmodels: {sft: a}\nname: y\n", "line 3 gives 'name' a second time"),
        ("r.yaml", "name: x\nmodels: {sft: a\n", "is no YAML"),
        ("r.yaml", "name: x\nrewards: {true: implicit}\n", "line 2: the key true is no text; put it in quotes"),
        ("r.yaml", "- name\n", "a recipe is keys with values"),
        ("r.toml", "name: x\n", "this is no TOML"),
        ("r.json", "{}", "must end in .yaml, .yml or .toml"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, name: str, text: str, said: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(OptionError, match=re.escape(said)):
        read_recipe(tmp_path / name)
    with pytest.raises(OptionError, match="cannot be read"):
        read_recipe(tmp_path / "other.yaml")


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_recipes_are_in_order(file: Path):
    resolved = read_recipe(file)
    if file.parent.name == "paper":
        assert resolved.recipe.unknown
        assert resolved.baseline == "TQ*"
        assert all(model.parameters for model in resolved.recipe.models.given.values())
        assert all(reward.parameters for reward in resolved.recipe.rewards.values())
    else:
        assert not resolved.recipe.unknown


def test_every_hub_id_in_a_recipe_says_who_names_it():
    lines = [line for file in SHIPPED for line in file.read_text().splitlines()]
    named = [line for line in lines if re.match(r"\s*source: [\w.-]+/[\w.-]+", line)]
    assert len(named) >= 10
    for line in named:
        assert re.search(r"# .*published program", line), line
    assert len(SHIPPED) >= 11


EXPERIMENTS = ("synthetic-transfer-1", "synthetic-transfer-2", "real-transfer")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_transfer_experiments_ask_for_another_reward_than_the_baseline_s(name: str):
    recipe = read_recipe(RECIPES / f"{name}.yaml").recipe
    wanted, learned = (recipe.rewards[str(recipe.reward_in(role))].source for role in ("reward", "baseline_reward"))
    assert wanted != learned
    assert [entry.label for entry in recipe.methods] == ["ARGS-SFT", "DPO", "ARGS-DPO", "CD--", "DT", "TQ*"]
    (tq,) = (entry for entry in recipe.methods if entry.label == "TQ*")
    assert tq.options["transfer"] == "indirect"


def test_the_synthetic_targets_are_the_source_s_with_a_sparser_last_layer():
    for name in EXPERIMENTS[:2]:
        rewards = read_recipe(RECIPES / f"{name}.yaml").recipe.rewards
        (source,) = rewards["source"].source or ()
        lines = [
            line for reward in rewards.values() if reward.role != "baseline_reward" for line in reward.source or ()
        ]
        specs = [parse_reward(line) for line in lines]
        assert {spec.target for spec in specs} == {source}
        assert sorted(spec.options["sparsify"] for spec in specs) == [0.1, 0.3, 0.5, 0.7, 0.9]
        assert {spec.options["sparsify_seed"] for spec in specs} == {0}
