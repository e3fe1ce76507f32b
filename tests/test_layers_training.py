"""Layers of tiny random models: what their states are, what is cut and frozen, and the commands that use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from alignstar.cli import main
from alignstar.errors import FailedError, ModelError, OptionError, PromptError
from alignstar.layers.choice import band_of
from alignstar.layers.cut import prepare
from alignstar.layers.states import Pool, layer_variabilities, open_backbone
from alignstar.layers.variability import star_of, variability
from alignstar.models.hf.branch import truncated
from alignstar.models.hf.value import load_head
from alignstar.train.encode import EncodedPair
from alignstar.train.layered import layered
from alignstar.train.recipes import RewardRecipe, ValueRecipe, read_training_recipe
from alignstar.train.rollouts import Seen
from alignstar.train.run import train
from alignstar.train.value_training import train_value
from checkpoints import classifier, language_model, tokenizer
from tiny import CONFIGS, causal_lm

SPECIAL = (0, 1)
NESTED = "opt"


def texts(count: int = 12) -> list[tuple[int, ...]]:
    """Random texts of different lengths, with special tokens among them."""
    rng = np.random.Generator(np.random.Philox(3))
    return [(0, *(int(z) for z in rng.integers(0, 61, 3 + at % 5)), 9) for at in range(count)]


def state_by_hand(model: Any, layer: int, text: tuple[int, ...], pool: Pool) -> Any:
    """One text alone through a model without the layers above."""
    with torch.inference_mode():
        states = truncated(model, layer, name="")(input_ids=torch.tensor([text]), use_cache=False).last_hidden_state[0]
    rows = [len(text) - 1] if pool == "last" else [i for i, z in enumerate(text) if z not in SPECIAL]
    return states[rows].mean(0).numpy()


@pytest.mark.parametrize("pool", ["mean", "last"])
@pytest.mark.parametrize("family", [name for name in CONFIGS if name != NESTED])
def test_a_layers_state_is_what_a_head_on_the_cut_model_would_read(family: str, pool: Pool):
    model, some = causal_lm(family), texts()
    labels = [at % 3 for at in range(len(some))]
    told = layer_variabilities(model, some, labels, special=SPECIAL, pool=pool)
    for layer in range(1, 5):
        states = np.array([state_by_hand(model, layer, text, pool) for text in some])
        assert told[layer - 1] == pytest.approx(variability(states, labels), rel=1e-3), layer


def test_states_that_cannot_be_had_are_refused():
    with pytest.raises(PromptError, match="Text 2 has no token"):
        layer_variabilities(causal_lm(), [(5, 6), (0, 1)], [0, 1], special=SPECIAL)
    with pytest.raises(ModelError, match="no plain list"):
        layer_variabilities(causal_lm(NESTED), texts(), [0, 1] * 6, special=SPECIAL)
    broken = causal_lm()
    broken.model.layers[2].mlp.down_proj.weight.data[:] = np.nan
    with pytest.raises(FailedError, match=r"Layer 3: .*not finite"):
        layer_variabilities(broken, texts(), [0, 1] * 6, special=SPECIAL)


def opened(folder: Path, **changes: Any) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(
        classifier(folder, seed=1, num_hidden_layers=5, **changes), dtype=torch.float32
    )


@pytest.mark.parametrize(
    ("choice", "trained", "kept"),
    [
        ("full", range(5), 5),
        ("star", range(3), 3),
        ("star_k(2)", (1, 2), 3),
        ("star_tuned_head_top(1)", (2,), 5),
        ("top_k(2)", (3, 4), 5),
        ("2..4", (1, 2, 3), 4),
        ("head", (), 5),
    ],
)
def test_what_is_trained_and_what_is_kept(choice: str, trained: Any, kept: int, tmp_path: Path):
    made = prepare(opened(tmp_path / "base"), band_of(choice, layers=5, star=3))
    names = {n: p for n, p in made.model.named_parameters()}
    free = {n for n, p in names.items() if p.requires_grad}
    layers = tuple(f"model.layers.{layer}." for layer in trained)
    everything = ("model.",) if choice == "full" else ()
    assert free == {n for n in names if n.startswith((*layers, *everything, "score."))}
    assert made.layers == kept == made.model.config.num_hidden_layers == len(made.model.model.layers)
    assert made.trained == sum(names[n].numel() for n in free)
    assert made.total == sum(p.numel() for p in names.values())


def test_a_cut_model_is_a_plain_checkpoint(tmp_path: Path):
    whole = opened(tmp_path / "base").eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        wanted = whole.score(truncated(whole, 3, name="")(input_ids=ids).last_hidden_state[:, -1])
    prepare(whole, band_of("star", layers=5, star=3)).model.save_pretrained(tmp_path / "cut")
    assert json.loads((tmp_path / "cut" / "config.json").read_text())["num_hidden_layers"] == 3
    again, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "cut", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.inference_mode():
        assert torch.allclose(again.eval()(input_ids=ids).logits, wanted, atol=1e-6)


def test_a_nested_model_can_only_be_trained_whole():
    model = causal_lm(NESTED)
    assert prepare(model, band_of("full", layers=4)).trained == sum(p.numel() for p in model.parameters())
    for choice in ("top_k(1)", "1..2"):
        with pytest.raises(ModelError, match="layers"):
            prepare(causal_lm(NESTED), band_of(choice, layers=4))


def pairs(count: int = 24) -> list[EncodedPair]:
    """The preferred text holds more of one letter."""
    rng = np.random.Generator(np.random.Philox(4))
    bodies = [tuple(int(z) for z in rng.integers(3, 259, 6)) for _ in range(count)]
    return [EncodedPair(chosen=(0, *body, 70, 71), rejected=(0, *body, 80)) for body in bodies]


@pytest.mark.parametrize("pool", ["mean", "last"])
def test_the_star_is_measured_on_the_pairs_and_only_where_it_is_needed(pool: Pool, tmp_path: Path):
    reader, some = tokenizer(), pairs()
    made = layered(opened(tmp_path / "base"), "star", some, tokenizer=reader, pool=pool)
    fresh = opened(tmp_path / "base")
    both = [ids for pair in some for ids in (pair.rejected, pair.chosen)]
    nu = layer_variabilities(fresh, both, [0, 1] * len(some), special=reader.all_special_ids, pool=pool)
    assert made.nu == tuple(nu)
    assert made.band.head == star_of(nu)
    assert layered(fresh, "top_k(1)", some, tokenizer=reader).nu == ()


def preferences(folder: Path, count: int = 24) -> Path:
    """Preferences in a file: the friendlier answer is preferred."""
    rows = [
        {"prompt": f"Is lamp {at} in stock?", "chosen": f"Yes, gladly, {at}.", "rejected": f"No idea {at}."}
        for at in range(count)
    ]
    file = folder / "preferences.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def reward_recipe(folder: Path, **changes: Any) -> Path:
    """A recipe for a few steps on a model of five layers."""
    base = language_model(folder / "base", seed=2, num_hidden_layers=5)
    told = {
        "model": str(base), "data": str(preferences(folder)), "out": str(folder / "out"), "max_steps": 2,
        "batch_size": 4, "learning_rate": 1e-3, "device": "cpu", **changes,
    }  # fmt: skip
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(told))
    return file


@pytest.mark.parametrize("lora", [None, {"rank": 2, "merge": True}])
def test_a_reward_of_some_layers_is_trained_cut_and_saved(lora: Any, tmp_path: Path):
    recipe = read_training_recipe(reward_recipe(tmp_path, layers="2..3", lora=lora), RewardRecipe)
    train("reward", recipe)
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    assert saved.config.num_hidden_layers == len(saved.model.layers) == 3
    before = dict(base.model.named_parameters())
    moved = {n for n, p in saved.model.named_parameters() if not torch.equal(p, before[n])}
    assert {n.split(".")[1] for n in moved} == {"1", "2"}
    notes = json.loads((tmp_path / "out" / "alignstar.json").read_text())["layers"]
    assert (notes["choice"], notes["bottom"], notes["top"], notes["head"], notes["of"]) == ("2..3", 2, 3, 3, 5)


class Stops:
    """A watcher in whose way something came after two steps."""

    def begin(self, *, total: int, done: int) -> None:
        pass

    def stepped(self, step: int, values: Any) -> None:
        if step == 2:
            raise KeyboardInterrupt

    def looked(self, step: int, values: Any) -> None:
        pass


def test_a_reward_of_some_layers_goes_on_after_a_stop(tmp_path: Path):
    told = {"layers": "star_k(2)", "max_steps": 4, "checkpoint_every": 1}
    file = reward_recipe(tmp_path, **told)
    whole = read_training_recipe(file, RewardRecipe, out=str(tmp_path / "whole"))
    stopped = read_training_recipe(file, RewardRecipe, out=str(tmp_path / "stopped"))
    train("reward", whole)
    with pytest.raises(KeyboardInterrupt):
        train("reward", stopped, watcher=Stops())
    assert train("reward", stopped, resume=True).resumed is not None
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_the_command_trains_a_reward_at_the_star(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = reward_recipe(tmp_path, lora={"rank": 2, "merge": True})
    with pytest.raises(SystemExit) as ended:
        main(["train", "reward", str(file), "--layers", "star"])
    assert ended.value.code == 0, capsys.readouterr().err
    notes = json.loads((tmp_path / "out" / "alignstar.json").read_text())["layers"]
    assert notes["head"] == notes["top"] == star_of(notes["nu"])
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert saved.config.num_hidden_layers == notes["head"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layers": "half"}, "Known: full"),
        ({"layers": "star", "lora": {"rank": 2}}, "lora.merge: true"),
        ({"layers": "head", "lora": {"rank": 2}}, "leave lora out"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(changes: dict[str, Any], said: str, tmp_path: Path):
    with pytest.raises(OptionError, match=said):
        read_training_recipe(reward_recipe(tmp_path, **changes), RewardRecipe)


def test_layers_are_refused_for_other_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["train", "sft", str(reward_recipe(tmp_path)), "--layers", "star"])
    assert ended.value.code == 2
    assert "layers='star' is for reward and value, not for sft" in capsys.readouterr().err


@pytest.mark.parametrize("rank", [0, 4])
def test_a_value_head_goes_where_states_tell_rewards_apart(rank: int, tmp_path: Path):
    model = causal_lm(dtype=torch.float32)
    rng = np.random.Generator(np.random.Philox(5))
    bodies = [tuple(int(z) for z in rng.integers(3, 61, 5)) for _ in range(32)]
    seen = [
        Seen(state=body[:4], token=body[4], reward=float(at), ended=True, prompt=at) for at, body in enumerate(bodies)
    ]
    train_value(model, seen, base=".", out=tmp_path / "head", loss="fudge", layer="star", rank=rank, epochs=1)
    read = [s.state if rank else s.reached for s in seen]
    quarters = [at // 8 for at in range(32)]
    nu = layer_variabilities(model, read, quarters, special=(), pool="last")
    assert load_head(str(tmp_path / "head")).head.config.layer == star_of(nu)
    train_value(model, seen, base=".", out=tmp_path / "other", loss="fudge", layer="1..3", rank=rank, epochs=1)
    assert load_head(str(tmp_path / "other")).head.config.layer == 3


def test_a_value_recipe_takes_a_number_or_words(tmp_path: Path):
    file = tmp_path / "recipe.yaml"
    for given, wanted in (("layer: 2", 2), ("layer: star", "star"), ("", None)):
        file.write_text(f"model: m\nprompts: p\nreward: r\nout: o\n{given}\n")
        assert read_training_recipe(file, ValueRecipe).layer == wanted
    assert read_training_recipe(file, ValueRecipe, layer="top_k(1)").layer == "top_k(1)"


def run_layers(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """`alignstar layers`: exit status, standard output and error."""
    with pytest.raises(SystemExit) as ended:
        main(["layers", *arguments, "--device", "cpu"])
    told = capsys.readouterr()
    return int(str(ended.value.code)), told.out, told.err


def test_the_command_tells_nu_by_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    base, data = str(language_model(tmp_path / "base", seed=2, num_hidden_layers=5)), str(preferences(tmp_path))
    status, out, _ = run_layers(capsys, base, "--data", data, "--json", "--svg", str(tmp_path / "nu.svg"))
    told = json.loads(out)
    assert status == 0
    assert told["texts"] == {"rejected": 24, "chosen": 24}
    assert len(told["nu"]) == 5
    assert told["star"] == star_of(told["nu"])
    assert told["choices"]["star_k(2)"][2] == told["star"]
    assert f"l* = {told['star']}" in (tmp_path / "nu.svg").read_text()
    status, out, _ = run_layers(capsys, base, "--data", data, "--rows", "10")
    assert status == 0
    assert "10 rejected, 10 chosen" in out


def test_the_command_reads_labelled_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    base, data = str(language_model(tmp_path / "base", seed=2)), tmp_path / "labels.jsonl"
    rows: list[dict[str, Any]] = [{"text": f"word {at} {at * at}", "label": at % 3} for at in range(12)]
    data.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": "long " * 40, "label": 1}]))
    status, out, _ = run_layers(capsys, base, "--data", str(data), "--json", "--pool", "last")
    told = json.loads(out)
    assert status == 0
    assert told["texts"] == {"0": 4, "1": 4, "2": 4}
    assert told["too_long"] == 1
    assert told["pool"] == "last"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "word", "label": "one"}, "gives 1 kind"),
        ({"text": 7, "label": "one"}, "line 1: a labelled row"),
        ({"prompt": "Hello?"}, "line 1: has not two answers"),
    ],
)
def test_data_without_two_classes_are_refused(
    row: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    base, data = str(language_model(tmp_path / "base", seed=2)), tmp_path / "rows.jsonl"
    data.write_text(json.dumps(row) + "\n")
    status, _, error = run_layers(capsys, base, "--data", str(data))
    assert status == 2
    assert said in error


def test_only_whole_checkpoints_have_layers(tmp_path: Path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="is an adapter"):
        open_backbone(str(adapter), device="cpu", dtype="auto")
    with pytest.raises(ModelError, match="does not exist"):
        open_backbone("./nowhere", device="cpu", dtype="auto")
