"""`alignstar train mixture`: from people's preferences to rewards that decoding uses, over any stop."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig

import alignstar
import checkpoints
from alignstar.cli import main
from alignstar.demo.opinions import opinions
from alignstar.demo.people import TASTES
from alignstar.errors import ModelError, OptionError
from alignstar.loading import load_judged
from alignstar.meter import Meter, metering
from alignstar.rewards import Reward
from alignstar.rewards.groups import GroupRewards
from alignstar.rewards.spec import parse_reward
from alignstar.train.backbone import BODY, open_backbone, read_states
from alignstar.train.mixture_run import MixtureRecipe, train_mixture
from alignstar.train.recipes import read_training_recipe
from alignstar.train.search import Trial
from alignstar.types import Prompt, Reply

WORDS = ("red", "blue", "green", "hot", "cold", "wet", "dry", "tall")


def votes(users: int = 8, pairs: int = 14) -> list[dict[str, Any]]:
    """Users who like long replies and users who like short ones, by turns."""
    rng = random.Random(0)
    rows: list[dict[str, Any]] = []
    for user in range(users):
        for _ in range(pairs):
            short, long = (" ".join(rng.choices(WORDS, k=k)) for k in (1, 5))
            chosen, rejected = (long, short) if user % 2 else (short, long)
            rows.append({"prompt": "Say it", "chosen": chosen, "rejected": rejected, "user": f"user {user}"})
    return rows


def written(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> str:
    """A recipe on these rows; its path."""
    (folder / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "model": "model", "data": "votes.jsonl", "out": "out", "groups": [1, 2], "l2": [0.1, 0.03], "restarts": 2,
        "device": "cpu", **changes,
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return "recipe.yaml"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(base)
    return tmp_path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.language_model(tmp_path_factory.mktemp("base") / "model", seed=0)


def learned(folder: Path, **changes: Any):
    path = written(folder, votes(), **changes)
    return train_mixture(read_training_recipe(Path(path), MixtureRecipe)).learned


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["train", "mixture", *words])
    return int(ended.value.code or 0)


async def scored(reward: Reward, prompt: Prompt, replies: list[Reply]) -> list[float]:
    with metering(Meter()):
        return list(await reward.score(prompt, replies))


def test_from_preferences_to_decoding(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "group": "long" if row["chosen"].count(" ") else "short"} for row in votes()]
    assert run(written(folder, rows)) == 0
    told = capsys.readouterr()
    assert told.err == ""
    for text in ("96 votes of 8 users to learn from, 16 held out.", "likelihood by iteration: l2 0.1:",
                 "Agreement with the file's own groups: 100.0% of the users.", "by one reward for all"):  # fmt: skip
        assert text in told.out
    mixture = json.loads((folder / "out/mixture.json").read_text())
    assert mixture["groups"] == 2
    assert mixture["weights"] == [0.5, 0.5]
    assert [mixture["assignments"][f"user {u}"] for u in range(8)] == [0, 1] * 4
    assert all(np.diff(stage["objectives"]).min(initial=0.0) > -1e-9 for stage in mixture["path"])
    assert {(row["groups"], row["l2"]) for row in mixture["tried"]} == {(1, 0.1), (1, 0.03), (2, 0.1), (2, 0.03)}
    assert (folder / "out/likelihood.svg").read_text().startswith("<svg")
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        "alignstar.json", "group-0", "group-1", "likelihood.svg", "metrics.json", "mixture.json", "rewards", "run.json",
    ]  # fmt: skip
    command = told.out[told.out.index("alignstar generate") :]
    assert mixture["lines"]["min"] in command
    searched = {"k": 2, "rollout_len": 2}
    for kind, method, how in (("min", "maxmin", searched), ("soft_min", "args", {}), ("game", "transfer-q", searched)):
        with alignstar.load(baseline="model", reward=mixture["lines"][kind], device="cpu") as aligner:
            assert aligner.generate("Say it", method=method, max_new_tokens=3, **how).ids


def test_every_reward_opens_as_a_plain_classifier_and_says_the_same(folder: Path) -> None:
    made = learned(folder)
    model, _ = open_backbone("model", device="cpu")
    texts = [(5, 6, 7), (9, 8), tuple(range(3, 30))]
    states = read_states(model, texts, lambda _: None)
    opened: Any = AutoModelForSequenceClassification.from_pretrained(made.joint)
    heads = opened.score.weight.detach().double().numpy()
    assert opened.config.num_labels == 2
    for text, expected in zip(texts, states @ heads.T, strict=True):
        said = opened(input_ids=torch.tensor([text])).logits[0].detach().double().numpy()
        assert said == pytest.approx(expected, abs=1e-5)
    for u, path in enumerate(made.folders):
        one, info = AutoModelForSequenceClassification.from_pretrained(path, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert one.config.num_labels == 1
        assert one.score.weight[0].detach().numpy() == pytest.approx(heads[u], abs=1e-6)
        assert (Path(path) / BODY).stat().st_ino == (Path(made.joint) / BODY).stat().st_ino, (
            "the weights lie there once"
        )
    for name, tensor in AutoModelForCausalLM.from_pretrained("model").model.state_dict().items():
        assert torch.equal(opened.model.state_dict()[name], tensor), "the model itself is frozen"


def test_scales_bring_the_groups_to_one_unit(folder: Path) -> None:
    made = learned(folder)
    rows = votes()
    aligner, judges = load_judged({"groups": made.line("min")}, sft="model", device="cpu")
    groups = judges["groups"]
    assert isinstance(groups, GroupRewards)
    with aligner:
        prompt = aligner.codec.prompt("Say it")
        replies = [Reply(text=row[k], complete=True) for k in ("chosen", "rejected") for row in rows]
        for part in groups.parts:
            scores = np.array(asyncio.run(scored(part, prompt, replies)))
            assert (np.mean(scores), np.std(scores)) == (pytest.approx(0.0, abs=1e-3), pytest.approx(1.0, abs=1e-3))
    spec = parse_reward(made.line("soft_min"))
    assert spec.numbers == (1.0, 0.5, 0.5)
    assert [part.options["output"] for part in spec.parts] == [0, 1]


def test_a_groups_reward_tells_its_own_votes(folder: Path) -> None:
    made = learned(folder)
    for group in made.groups:
        assert (group.users, group.votes, group.share) == (4, 56, 0.5)
        assert group.own.n == 8
        assert group.own.mean > 0.8
        assert group.pooled is not None
        assert group.pooled.mean < group.own.mean
    assert made.agreement is None


def test_a_classifier_and_soft_groups(folder: Path) -> None:
    checkpoints.classifier(folder / "scorer", seed=3)
    made = learned(folder, model="scorer", mode="soft", groups=2, l2=0.1, out="soft")
    mixture = json.loads((folder / "soft/mixture.json").read_text())
    assert sum(made.shares) == pytest.approx(1.0)
    if "memberships" in mixture:
        assert all(sum(row) == pytest.approx(1.0) for row in mixture["memberships"].values())
    assert made.groups[0].pooled is None, "no mixture of one was asked for"


KILLED = """
import os, signal
from pathlib import Path
from alignstar.train.mixture_run import MixtureRecipe, train_mixture
from alignstar.train.recipes import read_training_recipe
seen = []
def tried(done, total, trial, state):
    seen.append(trial)
    if len(seen) == {after}:
        os.kill(os.getpid(), signal.SIGKILL)
train_mixture(read_training_recipe(Path("recipe.yaml"), MixtureRecipe), on_trial=tried)
"""


def without_time(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("run.json", "alignstar.json")
    }


def test_a_killed_training_goes_on_and_ends_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(folder, votes())
    assert run(path) == 0
    whole = without_time(folder / "out")
    shutil.rmtree(folder / "out")
    for after in (1, 5):
        ended = subprocess.run([sys.executable, "-c", KILLED.format(after=after)], cwd=folder, check=False)
        assert ended.returncode == -signal.SIGKILL
        kept = [file.name for file in (folder / "out/checkpoints/checkpoint-1").iterdir()]
        assert {"states.npy", "trainer_state.json"} < set(kept)
        assert 2 < len(kept) <= after + 2
        assert run(path) == 2
        assert "holds a training that was begun; go on with --resume" in capsys.readouterr().err
        assert run(path, "--resume") == 0
        assert without_time(folder / "out") == whole
        assert run(path, "--resume") == 2
        assert "holds a finished training" in capsys.readouterr().err
        shutil.rmtree(folder / "out")


def test_another_recipe_does_not_go_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(folder, votes())
    subprocess.run([sys.executable, "-c", KILLED.format(after=2)], cwd=folder, check=False)
    written(folder, votes(), seed=1)
    assert run(path, "--resume") == 2
    assert "seed" in capsys.readouterr().err
    written(folder, votes()[1:])
    assert run(path, "--resume") == 2
    assert "rows" in capsys.readouterr().err


def test_what_is_stored_is_not_done_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(folder, votes())
    subprocess.run([sys.executable, "-c", KILLED.format(after=5)], cwd=folder, check=False)

    def read(*_: Any) -> Any:
        raise AssertionError("the texts are read a second time")

    monkeypatch.setattr("alignstar.train.groups.read_states", read)
    told: list[Trial] = []
    recipe = read_training_recipe(Path("recipe.yaml"), MixtureRecipe)
    train_mixture(recipe, resume=True, on_trial=lambda done, total, trial, state: told.append(trial))
    assert (told[0].groups, told[0].restart) == (2, 1), "the trials before were done"


def bad(row: dict[str, Any], **changes: Any) -> list[dict[str, Any]]:
    changed = {key: value for key, value in {**row, **changes}.items() if value is not None}
    return [*votes()[:4], changed]


ROW = votes()[0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (bad(ROW, user=None), "votes.jsonl, line 5: says not who preferred; give it a user, or name the key"),
        (bad(ROW, rejected=None), "votes.jsonl, line 5: has not two answers"),
        (bad(ROW, chosen=7), "votes.jsonl, line 5: chosen must be text, not int"),
        (bad(ROW, prompt=" "), "votes.jsonl, line 5: the prompt is empty"),
        ([{**ROW, "rejected": ROW["chosen"]}], "'votes.jsonl' has no preference between two different answers"),
        (votes(users=1, pairs=9), "groups=2 is more than the 1 users; ask for fewer"),
        (votes(users=4, pairs=1), "no user's votes one is held out"),
    ],
)
def test_bad_data_is_one_sentence(
    rows: list[dict[str, Any]], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(written(folder, rows)) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group": 2}, "'group' is unknown; did you mean groups?"),
        ({"groups": [0, 2]}, "must be greater than or equal to 1"),
        ({"groups": []}, "at least 1 item"),
        ({"mode": "firm"}, "mode='firm' must be 'hard' or 'soft'"),
        ({"l2": 0}, "must be greater than 0"),
        ({"held_out": 1.0}, "held_out=1.0 must be less than 1"),
        ({"model": "./nothing"}, "model='./nothing' does not exist"),
        ({"data": "nothing.jsonl"}, "Data file 'nothing.jsonl' cannot be read"),
    ],
)
def test_bad_recipes_are_one_sentence(
    changes: dict[str, Any], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(written(folder, votes(), **changes)) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_a_model_that_does_not_read_its_last_token_is_refused(folder: Path) -> None:
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model: Any = AutoModelForSequenceClassification.from_config(BertConfig(vocab_size=259, num_labels=1, **shape))
    model.save_pretrained("encoder")
    checkpoints.tokenizer().save_pretrained("encoder")
    with pytest.raises(ModelError, match="has no linear head 'score' on the last token; take a causal model"):
        open_backbone("encoder", device="cpu")


def test_equal_answers_and_texts_that_are_too_long_are_left_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*votes(), {**ROW, "rejected": ROW["chosen"]}, {**ROW, "chosen": "long " * 30}]
    assert run(written(folder, rows)) == 0
    assert "left out: 1 with equal answers, 1 too long." in capsys.readouterr().out


def test_the_embedded_worlds_opinions() -> None:
    rows = opinions("3:1", n=400, people=8)
    assert rows == opinions("3:1", n=400, people=8)
    assert {row["group"] for row in rows} == set(TASTES)
    users = {row["user"]: row["group"] for row in rows}
    assert sorted(users.values()) == ["brief"] * 2 + ["thorough"] * 6
    assert rows != opinions("3:1", n=400, people=8, seed=1)
    for ratio in ("", "3", "a:b", "0:0", "1:2:3"):
        with pytest.raises(OptionError, match="must be two whole numbers such as 3:1"):
            opinions(ratio)
    written_out = subprocess.run(
        [sys.executable, "-c", "import sys, runpy; sys.argv[1:] = ['0:1']; "
         "runpy.run_module('alignstar.demo.opinions', run_name='__main__')"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    first = json.loads(written_out.splitlines()[0])
    assert set(first) == {"prompt", "chosen", "rejected", "user", "group"}
    assert first["group"] == "brief"
