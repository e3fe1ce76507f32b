"""Rewards with a sparse last layer: which weights go, and that the reward is the same head with them gone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

import checkpoints
from alignstar import loading
from alignstar.errors import ModelError, OptionError
from alignstar.models.hf.load import MERGE_BELOW, Library
from alignstar.models.hf.sparsity import Sparsity, last_layer
from alignstar.rewards.spec import parse_reward
from alignstar.types import Message, Prompt, Reply
from test_load import adapter

PROMPT = Prompt(messages=(Message(role="user", content="Where is it?"),), text="Where is it?", ids=())
REPLIES = [Reply(text=text, complete=True) for text in ("On its way.", "We do not know.", "")]


def layer(weights: list[list[float]], *, bias: bool = True) -> torch.nn.Linear:
    made = torch.nn.Linear(len(weights[0]), len(weights), bias=bias)
    with torch.no_grad():
        made.weight.copy_(torch.tensor(weights))
    return made


def left(weights: list[list[float]], sparsity: Sparsity) -> list[list[float]]:
    made = layer(weights)
    before = made.bias.tolist()
    sparsity.apply(made)
    assert made.bias.tolist() == before
    return made.weight.tolist()


def test_the_smallest_weights_go_first_over_all_outputs():
    weights = [[3.0, -1.0, 0.5], [-2.0, 4.0, -0.25]]
    assert left(weights, Sparsity(share=0.5)) == [[3.0, 0.0, 0.0], [-2.0, 4.0, 0.0]]
    assert left(weights, Sparsity(share=0.0)) == weights
    assert left(weights, Sparsity(share=1.0)) == [[0.0] * 3] * 2
    assert left([[1.0, -1.0, 1.0, 1.0]], Sparsity(share=0.5)) == [[0.0, 0.0, 1.0, 1.0]], "ties: the lower index goes"


def test_a_seed_draws_the_weights_and_more_include_fewer():
    weights = [[float(n + 1) for n in range(200)]]

    def gone(share: float, seed: int) -> set[int]:
        return {n for n, weight in enumerate(left(weights, Sparsity(share=share, seed=seed))[0]) if not weight}

    chosen = [gone(share, 0) for share in (0.1, 0.3, 0.9)]
    assert [len(some) for some in chosen] == [20, 60, 180]
    assert chosen[0] < chosen[1] < chosen[2]
    assert gone(0.3, 0) == chosen[1] != gone(0.3, 1)
    assert len(chosen[1] & set(range(100))) == pytest.approx(30, abs=4 * (60 * 0.25 * 140 / 199) ** 0.5)


def test_the_last_layer_is_the_one_that_gives_the_outputs():
    head = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    assert last_layer(head, name="r", outputs=2) is head[2]
    for module in (head, torch.nn.Tanh()):
        with pytest.raises(ModelError, match="does not end in a linear layer"):
            last_layer(module, name="r", outputs=3)


def scores(lines: list[str]) -> list[list[float]]:
    """Of every line the replies' scores, all rewards opened together."""
    library = Library(device="cpu")
    rewards = [loading._reward(library, [parse_reward(line)], None, None) for line in lines]  # pyright: ignore[reportPrivateUsage]
    found = [asyncio.run(reward.score(PROMPT, REPLIES)) for reward in rewards if reward is not None]
    library.engine.close()
    return found


def test_a_reward_and_its_sparse_form_are_two_rewards_of_one_checkpoint(tmp_path: Path):
    folder = checkpoints.classifier(tmp_path / "reward", seed=3)
    from transformers import LlamaForSequenceClassification

    other: Any = LlamaForSequenceClassification.from_pretrained(folder)
    Sparsity(share=0.5).apply(other.score)
    other.save_pretrained(tmp_path / "sparse")
    checkpoints.tokenizer().save_pretrained(tmp_path / "sparse")
    whole, half, none, same = scores(
        [str(folder), f"{folder}?sparsify=0.5", f"{folder}?sparsify=1", str(tmp_path / "sparse")]
    )
    assert half == same
    assert half != whole
    assert none == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("shared", [True, False])
def test_an_adapter_s_head_becomes_sparse_wherever_it_stands(tmp_path: Path, shared: bool):
    base = checkpoints.language_model(tmp_path / "base", seed=1)
    folder, _ = adapter(base, tmp_path / "adapter", seed=2, task="SEQ_CLS")
    library = Library(device="cpu", merge_below=0 if shared else MERGE_BELOW)
    library.pair(str(base), None)
    ids = (5, 6, 7)
    plain, some, none = (
        asyncio.run(library.classifier(str(folder), sparsity)[0].outputs([ids])).value[0][0]
        for sparsity in (None, Sparsity(share=0.5, seed=1), Sparsity(share=1.0))
    )
    library.engine.close()
    assert len({plain, some, none}) == 3
    assert none == 0.0


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ("sparsify=1.5", "must lie in 0..1"),
        ("sparsify=nan", "must lie in 0..1"),
        ("sparsify=half", "cannot be read"),
        ("sparsify_seed=1", "give sparsify=SHARE too"),
    ],
)
def test_what_is_no_sparsity_is_said_before_anything_is_opened(options: str, part: str):
    with pytest.raises(OptionError, match=part):
        parse_reward(f"nowhere?{options}")
