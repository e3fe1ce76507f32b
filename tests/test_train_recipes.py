"""`alignstar train sft | reward | dpo`: an ended training goes on, its folder loads, bad data is named by line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import checkpoints
from alignstar.errors import FailedError, ModelError, OptionError, PromptError
from alignstar.train.data import choose, split
from alignstar.train.folder import TrainingFolder, last_checkpoint
from alignstar.train.recipes import DPORecipe, RewardRecipe, SFTRecipe, TrainingRecipe, read_training_recipe

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

RECIPES: dict[str, type[TrainingRecipe]] = {"sft": SFTRecipe, "reward": RewardRecipe, "dpo": DPORecipe}
WORDS = ("sun", "moon", "sea", "rain", "wind", "snow", "leaf", "star")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.language_model(tmp_path_factory.mktemp("base"), seed=3)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [
        {"prompt": f"{a} {b}?", "chosen": f" yes {b}", "rejected": f" no {a}" + "!" * (i % 3)}
        for i, a in enumerate(WORDS) for b in WORDS[:3] if a != b
    ]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def recipe(kind: str, base: Path, pairs: Path, out: Path, **changes: Any) -> TrainingRecipe:
    given = {
        "model": str(base), "data": str(pairs), "out": str(out), "max_steps": 6, "batch_size": 2,
        "learning_rate": 0.01, "checkpoint_every": 2, "log_every": 1, "device": "cpu", **changes,
    }  # fmt: skip
    return RECIPES[kind].model_validate(given)


class Stopped(Exception):
    """Stands for the end of the process."""


class Seen:
    """A watcher that keeps what it is told, and ends the training before step `until` is done."""

    def __init__(self, until: int | None = None) -> None:
        self.begun: list[tuple[int, int]] = []
        self.steps: list[int] = []
        self.looks: list[int] = []
        self._until = until

    def begin(self, *, total: int, done: int) -> None:
        self.begun.append((total, done))

    def stepped(self, step: int, values: Mapping[str, float]) -> None:
        if step == self._until:
            raise Stopped
        if not values:
            self.steps.append(step)

    def looked(self, step: int, values: Mapping[str, float]) -> None:
        assert values["loss"] > 0
        self.looks.append(step)


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


LORA = {"rank": 2, "dropout": 0.2}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("sft", {}),
        ("reward", {"lora": LORA}),
        ("dpo", {"lora": LORA}),
        ("dpo", {"patience": 5}),
        ("reward", {"accumulate": 2}),
    ],
)
def test_a_training_that_was_ended_goes_on_and_ends_with_the_same_weights(
    kind: str, changes: dict[str, Any], base: Path, pairs: Path, tmp_path: Path
):
    from alignstar.train.run import train

    whole = train(kind, recipe(kind, base, pairs, tmp_path / "whole", **changes), watcher=Seen())
    broken = recipe(kind, base, pairs, tmp_path / "broken", **changes)
    with pytest.raises(Stopped):
        train(kind, broken, watcher=Seen(until=5))
    assert not (tmp_path / "broken" / "alignstar.json").exists()
    seen = Seen()
    made = train(kind, broken, resume=True, watcher=seen)
    assert made.resumed == 4
    assert (seen.begun, seen.steps, seen.looks) == ([(6, 4)], [5, 6], [6])
    mine, theirs = weights(tmp_path / "broken"), weights(tmp_path / "whole")
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert [row["step"] for row in made.fitted.log if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in made.fitted.log if "loss" in row] == [
        row["loss"] for row in whole.fitted.log if "loss" in row
    ]
    assert made.fitted.held_out == whole.fitted.held_out


def test_a_checkpoint_that_was_not_written_whole_is_passed_over(tmp_path: Path):
    for step, state in ((2, '{"global_step": 2}'), (4, '{"global_step": 4}'), (6, '{"global_st'), (8, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"x")
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    assert last_checkpoint(tmp_path / "none") is None


def test_a_changed_recipe_changed_data_and_a_finished_folder_are_refused(base: Path, pairs: Path, tmp_path: Path):
    from alignstar.train.run import train

    asked = recipe("sft", base, pairs, tmp_path / "out")
    with pytest.raises(Stopped):
        train("sft", asked, watcher=Seen(until=3))
    with pytest.raises(OptionError, match="--resume, or --overwrite"):
        train("sft", asked)
    other = recipe("sft", base, pairs, tmp_path / "out", learning_rate=0.5, batch_size=1)
    with pytest.raises(OptionError, match=r"batch_size: 2 -> 1; learning_rate: 0.01 -> 0.5"):
        train("sft", other, resume=True)
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("".join(pairs.read_text().splitlines(keepends=True)[:-1]))
    (tmp_path / "same").symlink_to(pairs)
    with pytest.raises(OptionError, match=r"rows.training: 19 rows, .* -> 18 rows"):
        train("sft", recipe("sft", base, fewer, tmp_path / "out"), resume=True)
    made = train("sft", recipe("sft", base, pairs, tmp_path / "out", log_every=3), resume=True)
    assert made.resumed == 2
    for resume in (False, True):
        with pytest.raises(OptionError, match="holds a finished training"):
            train("sft", asked, resume=resume)
    again = train("sft", other, overwrite=True)
    assert again.resumed is None
    assert json.loads((tmp_path / "out" / "alignstar.json").read_text())["recipe"]["learning_rate"] == 0.5


def test_a_folder_with_a_strangers_files_or_in_use_is_left_alone(base: Path, pairs: Path, tmp_path: Path):
    from alignstar.train.run import train

    (tmp_path / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(OptionError, match="files that no training wrote"):
            train("sft", recipe("sft", base, pairs, tmp_path), overwrite=overwrite)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    torn = tmp_path / "torn"  # what a process leaves that was killed before run.json was whole
    torn.mkdir()
    for name in ("run.lock", "run.lock-journal", "run.json.partial"):
        (torn / name).write_text("")
    with TrainingFolder(torn) as folder:
        folder.admit(resume=False, overwrite=False)
    with TrainingFolder(tmp_path / "out"), pytest.raises(OptionError, match="is being trained in"):
        TrainingFolder(tmp_path / "out")
    assert not (tmp_path / "out").exists()


async def test_a_trained_reward_scores_in_decoding_as_it_did_in_training(base: Path, pairs: Path, tmp_path: Path):
    import alignstar
    from alignstar.train.run import train
    from alignstar.types import Prompt, Reply

    asked = recipe("reward", base, pairs, tmp_path / "reward", held_out=0.3)
    made = train("reward", asked)
    notes = json.loads((tmp_path / "reward" / "alignstar.json").read_text())
    assert made.quality is not None
    with alignstar.load(sft=str(base), reward=str(tmp_path / "reward")) as aligner:
        scores = [
            (await aligner.rewards["reward"].score(Prompt(messages=e.prompt, text="", ids=()), [
                Reply(text=e.chosen or "", complete=True), Reply(text=e.rejected or "", complete=True)
            ]))
            for e in made.chosen.held_out
        ]  # fmt: skip
    assert sum(a > b for a, b in scores) / len(scores) == pytest.approx(made.quality.accuracy.mean)
    flat = torch.tensor(scores)
    assert notes["mean"] == pytest.approx(flat.mean().item(), abs=1e-4)
    assert notes["low"] == pytest.approx(flat.min().item(), abs=1e-4)


@pytest.mark.parametrize(
    ("kind", "lora"),
    [("sft", None), ("dpo", {"rank": 2}), ("sft", {"rank": 2, "merge": True}), ("reward", {"rank": 2})],
)
def test_what_was_trained_loads_here_and_in_plain_transformers(
    kind: str, lora: dict[str, Any] | None, base: Path, pairs: Path, tmp_path: Path
):
    import alignstar
    from alignstar.train.run import train

    folder = tmp_path / kind
    train(kind, recipe(kind, base, pairs, folder, max_steps=1, lora=lora))
    assert {p.name for p in folder.iterdir()} >= {"metrics.json", "loss.svg", "alignstar.json", "run.json"}
    assert {p.suffix for p in folder.iterdir()} <= {".json", ".svg", ".safetensors", ".jinja"}
    assert (folder / "loss.svg").read_text().startswith("<svg")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["data"] == {"rows": 21, "training": 19, "held_out": 2, "left_out": {}}
    role = {"reward": "reward"}.get(kind, "baseline")
    models = {"sft": str(base), role: str(folder)}
    with alignstar.load(**models) as aligner:
        method = {"method": "best-of-n", "n": 2, "model": "sft"} if kind == "reward" else {"method": "greedy"}
        assert aligner.generate("sun moon?", max_new_tokens=3, **method).ids
    if lora is None or "merge" in lora:
        from transformers import AutoModelForCausalLM

        AutoModelForCausalLM.from_pretrained(folder)
    else:
        from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification

        opening = AutoPeftModelForSequenceClassification if kind == "reward" else AutoPeftModelForCausalLM
        opening.from_pretrained(folder, **({"num_labels": 1} if kind == "reward" else {}))


def test_rows_that_are_too_long_are_left_out_and_counted(base: Path, pairs: Path, tmp_path: Path):
    from alignstar.train.run import train

    long = tmp_path / "long.jsonl"
    rows = [
        {"prompt": "p" * n, "chosen": "good", "rejected": "poor" * m} for n, m in ((5, 1), (91, 1), (20, 30), (6, 1))
    ]
    long.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # A row of 91 + 4 bytes and the beginning and end of a text is as long as the model reads, and fits.
    made = train("reward", recipe("reward", base, long, tmp_path / "a", max_steps=1, held_out=0))
    assert (len(made.chosen.training), dict(made.chosen.left_out)) == (3, {"are longer than 96 tokens": 1})
    made = train("reward", recipe("reward", base, long, tmp_path / "b", max_steps=1, held_out=0, max_length=50))
    assert (len(made.chosen.training), dict(made.chosen.left_out)) == (2, {"are longer than 50 tokens": 2})
    assert json.loads((tmp_path / "b" / "metrics.json").read_text())["data"]["left_out"] == dict(made.chosen.left_out)
    with pytest.raises(OptionError, match="No row is left to learn from: of 4, 4 are longer than 3 tokens"):
        train("reward", recipe("reward", base, long, tmp_path / "c", held_out=0, max_length=3))
    assert not (tmp_path / "c").exists()


def test_patience_ends_a_training_with_its_best_weights(base: Path, pairs: Path, tmp_path: Path):
    from alignstar.train.run import train

    # A rate so high that the first look is the best.
    asked = recipe(
        "sft", base, pairs, tmp_path / "out", max_steps=12, patience=1, learning_rate=1.0, checkpoint_every=2
    )
    made = train("sft", asked)
    looks = {row["step"]: row["eval_loss"] for row in made.fitted.log if "eval_loss" in row}
    best = min(looks, key=lambda step: looks[step])
    assert made.fitted.steps < 12
    assert made.fitted.best_step == best
    assert made.fitted.held_out["loss"] == looks[best]


BAD: dict[str, tuple[str, str, type[Exception], str]] = {
    "not json": ("reward", '{"prompt": "a", "chosen"', PromptError, r"bad.jsonl, line 2: not JSON"),
    "one answer": ("reward", '{"prompt": "a", "completion": "b"}', PromptError, r"line 2: has not two answers"),
    "no answer": ("sft", '{"prompt": "a"}', PromptError, r"line 2: has no answer to learn"),
    "no form": ("dpo", '{"question": "a"}', PromptError, r"line 2: its keys \(question\)"),
    "several turns": (
        "sft", '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, '
        '{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}', PromptError,
        r"line 2: is a conversation of 3 messages and .* has no chat template",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_refused_with_file_and_line_before_training(case: str, base: Path, tmp_path: Path):
    from alignstar.train.run import train

    kind, line, error, message = BAD[case]
    file = tmp_path / "bad.jsonl"
    file.write_text('{"prompt": "q", "chosen": "good", "rejected": "poor"}\n' + line + "\n")
    with pytest.raises(error, match=message):
        train(kind, recipe(kind, base, file, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_layers_to_adapt_that_the_model_has_not_are_refused(base: Path, pairs: Path, tmp_path: Path):
    from alignstar.train.run import train

    for name in ("q_pro", "lm_head"):
        asked = recipe("dpo", base, pairs, tmp_path / "out", lora={"targets": ["self_attn.q_proj", name]})
        with pytest.raises(OptionError, match=f"lora.targets names '{name}', .* known: down_proj, gate_proj"):
            train("dpo", asked)
    assert not (tmp_path / "out").exists()


def test_an_adapter_and_a_folder_without_a_model_are_refused(base: Path, pairs: Path, tmp_path: Path):
    from alignstar.train.run import train

    train("sft", recipe("sft", base, pairs, tmp_path / "adapter", max_steps=1, lora={"rank": 2}))
    with pytest.raises(ModelError, match="is an adapter"):
        train("sft", recipe("sft", tmp_path / "adapter", pairs, tmp_path / "out"))
    with pytest.raises(ModelError, match="does not exist"):
        train("sft", recipe("sft", tmp_path / "nothing", pairs, tmp_path / "out"))


def test_no_prompt_is_on_both_sides(tmp_path: Path, pairs: Path):
    file = tmp_path / "twice.jsonl"
    lines = pairs.read_text().splitlines(keepends=True)
    equal = json.dumps({"prompt": "same", "chosen": "x", "rejected": "x"}) + "\n"
    file.write_text("".join(lines + [line.replace("yes", "sure") for line in lines]) + equal)
    given = {"model": "m", "data": str(file), "out": "o", "held_out": 0.3}
    chosen = choose(RewardRecipe.model_validate(given), need="pair")
    apart = {e.prompt for e in chosen.held_out}
    assert len(apart) == 6
    assert (len(chosen.training), len(chosen.held_out)) == (30, 12)
    assert not apart & {e.prompt for e in chosen.training}
    assert chosen.left_out == {"have two equal answers": 1}
    # Other rows that are held out take their prompts with them.
    held = {**given, "held_out": None, "held_out_data": {"source": str(pairs), "rows": 4}}
    chosen = choose(RewardRecipe.model_validate(held), need="pair")
    assert (len(chosen.held_out), len(chosen.training)) == (4, 42 - 8)
    assert chosen.left_out["have a prompt that is held out"] == 8
    everything = [*chosen.training, *chosen.held_out]
    assert split(everything, share=0.3, seed=1)[1] != split(everything, share=0.3, seed=2)[1]
    assert split(everything, share=0.0, seed=1)[1] == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("learning_rat: 0.1", r"recipe.yaml: 'learning_rat' is unknown; did you mean learning_rate\?"),
        ("lora: {rnk: 3}", r"'lora.rnk' is unknown; did you mean rank\?"),
        ("data: {source: x, rws: 3}", r"'data.rws' is unknown; did you mean rows\?"),
        ("max_steps: 0", r"max_steps=0 must be greater than or equal to 1"),
        ("device: gpu", r"device='gpu' must be 'auto', 'cpu', 'cuda' or 'mps'"),
        ("{held_out: 0.1, held_out_data: x}", r"exclude each other"),
        ("{held_out: 0, patience: 2}", r"patience=2 needs held-out rows"),
        ("checkpoint_every: 2.5", r"checkpoint_every=2.5 must be whole steps"),
    ],
)
def test_a_recipe_that_is_wrong_is_refused_with_its_key(line: str, message: str, tmp_path: Path):
    file = tmp_path / "recipe.yaml"
    given = "model: m\ndata: d.jsonl\nout: o\n"
    extra = line.strip("{}").replace(", ", "\n") if line.startswith("{") else line
    first = extra.partition(":")[0]
    file.write_text("".join(f"{row}\n" for row in given.splitlines() if not row.startswith(f"{first}:")) + extra + "\n")
    with pytest.raises(OptionError, match=message):
        read_training_recipe(file, RewardRecipe)


def test_defaults_depend_on_the_kind_and_on_adapters():
    given = {"model": "m", "data": "d.jsonl", "out": "o"}
    rates = {kind: (schema.model_validate(given).rate, schema.model_validate({**given, "lora": {}}).rate)
             for kind, schema in RECIPES.items()}  # fmt: skip
    assert rates == {
        "sft": (2e-5, pytest.approx(2e-4)), "reward": (1e-5, pytest.approx(1e-4)), "dpo": (1e-6, pytest.approx(1e-5))
    }  # fmt: skip


def test_a_loss_that_is_no_number_ends_the_training(base: Path, pairs: Path, tmp_path: Path):
    from transformers import LlamaForCausalLM

    from alignstar.train.run import train

    broken = LlamaForCausalLM.from_pretrained(base)
    broken.lm_head.weight.data.fill_(float("inf"))
    broken.save_pretrained(tmp_path / "broken")
    checkpoints.tokenizer().save_pretrained(tmp_path / "broken")
    with pytest.raises(FailedError, match=r"The training loss is nan at step 1; lower learning_rate=0.01"):
        train("sft", recipe("sft", tmp_path / "broken", pairs, tmp_path / "out"))


def test_the_padding_token_ends_no_text():
    from alignstar.train.encode import pad_for

    tokenizer = checkpoints.tokenizer()
    assert pad_for(tokenizer, [(5, 1), (7,)]) == 2
    tokenizer.pad_token = tokenizer.eos_token
    # A classifier would read such a text's last token but one.
    assert pad_for(tokenizer, [(5, 1), (7,)]) == tokenizer.pad_token_id == 0
    assert tokenizer.pad_token == "<s>"
    with pytest.raises(OptionError, match="give it a pad_token of its own"):
        pad_for(tokenizer, [(5, 1), (7, 0)])


def test_the_command_says_what_came_out_and_what_to_do_after_a_stop(
    base: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    import alignstar.train.run
    from alignstar.cli.train import train

    file = tmp_path / "recipe.yaml"
    asked = recipe("reward", base, pairs, tmp_path / "out", held_out=0.3)
    file.write_text(
        json.dumps(asked.model_dump(mode="json", exclude_none=True, exclude={"data"}) | {"data": str(pairs)})
    )
    train("reward", str(file))
    said = capsys.readouterr()
    assert "6 of 6 steps" in said.out
    assert "Rows: 15 to learn from, 6 held out." in said.out
    assert "accuracy where" in said.out
    assert f"Use it with --reward {tmp_path / 'out'}." in said.out
    assert [line.partition(":")[0] for line in said.err.splitlines()] == [f"step {n} of 6" for n in (2, 4, 6)]

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(alignstar.train.run, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train("reward", str(file), resume=True)
    assert "with --resume" in capsys.readouterr().err
    with pytest.raises(OptionError, match="give one of them"):
        train("reward", str(file), resume=True, overwrite=True)


@pytest.mark.parametrize("kind", RECIPES)
def test_the_shipped_recipes_are_in_order(kind: str):
    file = Path(__file__).parents[1] / "recipes" / "train" / f"{kind}.yaml"
    asked = read_training_recipe(file, RECIPES[kind])
    chosen = choose(asked, need="answer" if kind == "sft" else "pair")
    assert asked.data.rows is not None
    assert len(chosen.training) > 0.95 * asked.data.rows
    assert len(chosen.held_out) >= 180
