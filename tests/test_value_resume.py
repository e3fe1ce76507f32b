"""`alignstar train value` over any stop: what is kept is not done again, and the head is the same to the bit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import checkpoints
from alignstar.aligner import Aligner
from alignstar.cli import main
from alignstar.cli.prompts import read_placed
from alignstar.errors import OptionError
from alignstar.models.hf.value import HeadConfig
from alignstar.train.kept import Kept
from alignstar.train.prompts import with_room
from alignstar.train.recipes import ValueRecipe
from alignstar.train.rollouts import Seen, drawn, valued
from alignstar.train.value import Examples, Fitted, fit
from alignstar.train.value_run import Outcome, train_head
from worlds import PROMPT, codec, random_world

HOW: dict[str, Any] = {"responses": 3, "max_new_tokens": 4, "seed": 1, "concurrency": 4}
PROMPTS = ("A", "BA", "AB")
VALUED: dict[str, Any] = {**HOW, "k": 4, "rollout_len": None, "selection": "sample", "along": 2}


class Stopped(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def aligner() -> Aligner:
    world = random_world(4)
    return Aligner(baseline=world.sft, reward=world.reward, codec=codec(4))


def keeping(kept: Kept) -> Callable[[int, Sequence[Seen]], None]:
    return lambda number, seen: kept.add(number, seen)


async def test_what_is_kept_is_what_was_seen(aligner: Aligner, tmp_path: Path) -> None:
    """Every number of it, to the bit, whether the process goes on or reads it anew."""
    with Kept(tmp_path / "drawn") as kept:
        told = await drawn(aligner, "baseline", PROMPTS, top_m=2, **HOW, on_response=keeping(kept))
    with Kept(tmp_path / "valued") as other:
        values = await valued(aligner, PROMPTS, **VALUED, on_response=keeping(other))
    for name, expected in (("drawn", told), ("valued", values)):
        with Kept(tmp_path / name) as again:
            seen = [s for _, several in sorted(again.responses.items()) for s in several]
        assert sorted(seen, key=lambda s: (s.prompt, s.state, s.token)) == expected
        assert len((tmp_path / name).read_bytes().splitlines()) == 9


async def test_what_is_known_is_not_decoded_again(aligner: Aligner) -> None:
    """The rest is what it would have been, whatever is known, also of prompts that are numbered from another one on."""
    everything: dict[int, Sequence[Seen]] = {}
    whole = await valued(aligner, PROMPTS, **VALUED, on_response=everything.__setitem__)
    assert sorted(everything) == list(range(9))
    for left in ({0}, {4, 8}, {1, 2, 3, 5, 6, 7}, set[int]()):
        known = {number: seen for number, seen in everything.items() if number not in left}
        new: dict[int, Sequence[Seen]] = {}
        assert await valued(aligner, PROMPTS, **VALUED, known=known, on_response=new.__setitem__) == whole
        assert new == {number: everything[number] for number in left}
    later = await valued(aligner, PROMPTS[1:], **VALUED, first=1, known={4: everything[4], 0: []})
    assert later == [s for s in whole if s.prompt >= 1]


async def test_a_torn_last_line_is_dropped(aligner: Aligner, tmp_path: Path) -> None:
    file = tmp_path / "responses.jsonl"
    with Kept(file) as kept:
        await drawn(aligner, "baseline", PROMPTS, top_m=2, **HOW, on_response=keeping(kept))
        order = list(kept.responses)
    whole = file.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    for cut in (1, 2, last // 2, last - 1):
        file.write_bytes(whole[:-cut])
        with Kept(file) as again:
            assert list(again.responses) == order[:-1]
            again.add(order[-1], kept.responses[order[-1]])
        assert file.read_bytes() == whole


def noisy(n: int = 60, d: int = 6, prompts: int = 30) -> Examples:
    """Rewards that have nothing to do with the states: a head soon learns by heart, and the best epoch is early."""
    generator = torch.Generator().manual_seed(3)
    nothing = torch.zeros(n, 1)
    return Examples(
        states=torch.randn(n, d, generator=generator), embeddings=torch.randn(5, d, generator=generator),
        at=torch.arange(n), token=torch.randint(5, (n,), generator=generator),
        rewards=torch.randn(n, generator=generator), ended=torch.ones(n, dtype=torch.bool),
        prompt=torch.arange(n) % prompts, weights=torch.ones(n), next_at=nothing.long(), next_token=nothing.long(),
        next_p=nothing,
    )  # fmt: skip


def fitted(checkpoint: Path | None = None, *, until: int | None = None, epochs: int = 12) -> Fitted:
    def on_progress(doing: str, done: int, total: int) -> None:
        assert (doing, total) == ("training", epochs)
        if done == until:
            raise Stopped

    config = HeadConfig(base="none", layer=1, state_size=6, rank=4, width=16)
    return fit(
        config, noisy(), loss="transfer-q", epochs=epochs, batch_size=8, learning_rate=0.05, seed=2,
        checkpoint=checkpoint, on_progress=on_progress,
    )  # fmt: skip


def test_a_head_that_was_stopped_after_any_epoch_is_the_same_to_the_bit(tmp_path: Path) -> None:
    """Its weights are those of the best epoch, also where that was before the stop; all losses are there."""
    whole = fitted()
    best = whole.held_out.index(min(whole.held_out)) + 1
    assert 1 < best < 8
    for until in (1, best - 1, best, 8, 12):
        file = tmp_path / f"{until}.safetensors"
        with pytest.raises(Stopped):
            fitted(file, until=until)
        made = fitted(file)
        assert (made.losses, made.held_out, made.explained) == (whole.losses, whole.held_out, whole.explained)
        expected = whole.head.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in made.head.state_dict().items())
    assert len(set(whole.losses)) == 12


def test_no_number_of_steps_breaks_the_schedule() -> None:
    for epochs in range(1, 13):
        config = HeadConfig(base="none", layer=1, state_size=6, rank=2)
        made = fit(config, noisy(), loss="fudge", epochs=epochs, batch_size=100, learning_rate=0.01, seed=0)
        assert len(made.losses) == epochs


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    checkpoints.language_model(root / "model", seed=0)
    (root / "prompts.txt").write_text("Where?\nIt drips\nA tap\n")
    return root


def recipe(world: Path, out: str, **changes: Any) -> ValueRecipe:
    given = {
        "model": str(world / "model"), "prompts": str(world / "prompts.txt"), "out": str(world / out),
        "reward": "rule:length?max_words=3", "loss": "transfer-q", "rank": 3, "k": 3, "rollout_len": 2, "responses": 2,
        "epochs": 3, "max_new_tokens": 5, "device": "cpu", "concurrency": 2, **changes,
    }  # fmt: skip
    return ValueRecipe.model_validate(given)


def trained(asked: ValueRecipe, *, stop: tuple[str, int] | None = None, resume: bool = False) -> Outcome:
    def on_progress(doing: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        if (doing, done) == stop:
            raise Stopped

    return train_head(asked, read_placed(Path(asked.prompts)), resume=resume, on_progress=on_progress)


KILLED = """
import os, signal, sys
from pathlib import Path
from alignstar.cli.prompts import read_placed
from alignstar.train.recipes import ValueRecipe
from alignstar.train.value_run import train_head
asked = ValueRecipe.model_validate_json(sys.argv[1])
def on_progress(doing, done, total):
    if (doing, done) == ("responses", 4):
        os.kill(os.getpid(), signal.SIGKILL)
train_head(asked, read_placed(Path(asked.prompts)), on_progress=on_progress)
"""


def test_a_killed_training_goes_on_and_ends_with_the_same_head(world: Path) -> None:
    whole = trained(recipe(world, "whole"))
    assert whole.resumed is None
    asked = recipe(world, "broken")
    ended = subprocess.run([sys.executable, "-c", KILLED, asked.model_dump_json()], check=False)
    assert ended.returncode == -signal.SIGKILL
    with pytest.raises(OptionError, match="go on with --resume"):
        trained(asked)
    with pytest.raises(Stopped):
        trained(asked, stop=("training", 2), resume=True)
    made = trained(asked, resume=True)
    assert (made.resumed, made.tokens) == (6, whole.tokens)
    for name in ("value.safetensors", "value.json", "metrics.json", "loss.svg"):
        assert (made.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    assert not (made.folder / "checkpoints").exists()


def test_a_branch_goes_on_to_the_bit(world: Path) -> None:
    """Stopped between epochs, head and branch are those of a training that nobody stopped."""
    whole = trained(recipe(world, "whole-branch", branch=1, epochs=4))
    asked = recipe(world, "broken-branch", branch=1, epochs=4)
    with pytest.raises(Stopped):
        trained(asked, stop=("training", 2))
    made = trained(asked, resume=True)
    for name in ("value.safetensors", "value.json", "metrics.json"):
        assert (made.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_what_was_decoded_before_a_stop_is_not_decoded_again(world: Path) -> None:
    asked = recipe(world, "stopped")
    with pytest.raises(Stopped):
        trained(asked, stop=("responses", 4))
    kept = (world / "stopped/checkpoints/checkpoint-1/responses.jsonl").read_text().splitlines()
    assert len(kept) == 4
    assert trained(recipe(world, "stopped", concurrency=5), resume=True).resumed == 4


def test_another_recipe_another_reward_and_a_finished_folder_are_refused(world: Path) -> None:
    asked = recipe(world, "other", reward=f"python:{__name__}:constant")
    with pytest.raises(Stopped):
        trained(asked, stop=("responses", 1))
    with pytest.raises(OptionError, match=r"begun with something else \(learning_rate: 0.003 -> 0.1\)"):
        trained(recipe(world, "other", reward=asked.reward, learning_rate=0.1), resume=True)
    with pytest.raises(OptionError, match=r"begun with something else .*reward contents"):
        trained(recipe(world, "other"), resume=True)
    trained(asked, resume=True)
    for resume in (False, True):
        with pytest.raises(OptionError, match="holds a finished training"):
            trained(asked, resume=resume)


def constant(prompt: str, reply: str, complete: bool) -> float:
    return float(len(reply))


def test_room_is_for_the_prompt_and_the_whole_response() -> None:
    prompts = [replace(PROMPT, ids=tuple(range(n))) for n in (5, 7, 6)]
    for following, kept in ((2, [5, 6]), (1, [5, 7, 6]), (3, [5])):
        room = with_room(prompts, limit=8, rewards=[], following=following)
        assert [len(prompt.ids) for prompt in room] == kept
    assert with_room(prompts, limit=None, rewards=[], following=9) == prompts


def test_prompts_without_room_for_a_response_are_left_out_and_counted(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (world / "long.txt").write_text("Where?\n" + "long " * 30 + "\n")
    asked = recipe(world, "long", prompts=str(world / "long.txt"), epochs=1)
    (world / "long.yaml").write_text(asked.model_dump_json())
    with pytest.raises(SystemExit) as ended:
        main(["train", "value", str(world / "long.yaml")])
    assert ended.value.code == 0
    assert "Prompts left out: 1 leave no room for a response." in capsys.readouterr().out
    data = json.loads((world / "long/metrics.json").read_text())["data"]
    assert (data["prompts"], data["left_out"]) == (1, {"leave no room for a response": 1})
    (world / "long.txt").write_text("long " * 30 + "\n")
    with pytest.raises(OptionError, match="None of 1 prompts leaves room for max_new_tokens=5"):
        trained(recipe(world, "none", prompts=str(world / "long.txt")))
    assert not (world / "none").exists()
