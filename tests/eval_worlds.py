"""A toy world as recipes name it: models, rewards and prompts by import path."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from alignstar.aligner import Aligner
from alignstar.models.toy import ToyCodec, ToyModel

VOCAB = 5


def models(*, reward=None, baseline_reward=None):
    """An Aligner of two random toys."""
    return Aligner(
        sft=ToyModel.random(1, VOCAB, eos_weight=0.3),
        baseline=ToyModel.random(2, VOCAB, eos_weight=0.3),
        reward=reward,
        baseline_reward=baseline_reward,
        codec=ToyCodec(VOCAB),
    )


def not_models(*, reward=None, baseline_reward=None):
    return "models"


def prompts(split="ABCD"):
    """Every text of two letters of `split`."""
    return ["".join(letters) for letters in itertools.product(split, repeat=2)]


def longer_prompts():
    return ["AAA", "BBB", "CCC", "DDD"]


def dialogues():
    """Prompts as HH-RLHF has them."""
    return [{"prompt": f"\n\nHuman: {letters}\n\nAssistant:"} for letters in ("AB", "CA", "DD")]


def letters_a(prompt, reply, complete):
    return reply.count("A") + 0.5 * complete


def letters_b(prompt, reply, complete):
    return reply.count("B") / (1 + len(reply))


def never(prompt, reply, complete):
    return float("nan")


def refuses_cc(prompt, reply, complete):
    if prompt == "CC" and not Path("cc-is-fine").exists():
        raise ValueError("no CC here")
    return float(len(reply))


def dies_at_cc(prompt, reply, complete):
    if prompt == "CC" and not Path("cc-is-fine").exists():
        os._exit(7)
    return float(len(reply))


RECIPE = {
    "name": "toy",
    "models": {"open": "python:eval_worlds:models"},
    "rewards": {
        "a": {"source": "python:eval_worlds:letters_a", "role": "reward"},
        "b": "python:eval_worlds:letters_b",
    },
    "methods": [
        {"method": "greedy", "label": "sft", "options": {"model": "sft"}},
        {"method": "sample", "options": {"model": "sft"}},
        {"method": "transfer-q", "options": {"k": 3, "rollout_len": 3, "alpha": [1.0, 0.25]}},
    ],
    "data": {"source": "python:eval_worlds:prompts", "prompts": 4},
    "seeds": [0, 1],
    "max_new_tokens": 5,
    "trace": 1,
}
