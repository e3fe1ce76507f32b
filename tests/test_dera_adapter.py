"""DeRa where the baseline is an adapter on the SFT model: one base in memory, decoded as two full models would be."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import checkpoints
from alignstar.methods.dera import dera
from alignstar.models.hf.language import HFModel
from alignstar.models.hf.load import Library
from alignstar.sampling import Noise, log_softmax
from alignstar.types import Ids, Message, Prompt
from test_load import adapter
from worlds import ids_of, steps_of

IDS = tuple(range(40, 60))
PROMPT = Prompt(messages=(Message(role="user", content="x"),), text="x", ids=IDS)
LENGTH = 8


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any, Any]:
    """The SFT model's folder and the adapter's, and both models as plain transformers models."""
    root = tmp_path_factory.mktemp("models")
    sft = checkpoints.language_model(root / "sft", seed=0)
    dpo, aligned = adapter(sft, root / "dpo", seed=1, task="CAUSAL_LM")
    return sft, dpo, AutoModelForCausalLM.from_pretrained(sft).eval(), aligned


def expected(models: tuple[Any, Any], weight: float, *, seed: int, greedy: bool) -> Ids:
    """DeRa as its paper writes it: the weighted sum of two models' logits, drawn from token by token."""
    noise, ids = Noise(seed=seed, purpose="sample"), IDS
    for _ in range(LENGTH):
        with torch.inference_mode():
            logits = [m(input_ids=torch.tensor([ids])).logits[0, -1].double().numpy() for m in models]
        law = log_softmax((1.0 - weight) * logits[0] + weight * logits[1])
        scores = law if greedy else law + noise.gumbel(len(ids), len(law))
        ids = (*ids, int(np.argmax(scores)))
        if ids[-1] == checkpoints.config().eos_token_id:
            break
    return ids[len(IDS) :]


def pair(library: Library, sft: Path, dpo: Path) -> tuple[HFModel, HFModel]:
    base, aligned = library.pair(str(sft), str(dpo))
    assert base is not None
    assert aligned is not None
    return base, aligned


@pytest.mark.parametrize("how", [{"merge_below": 0}, {"merge_below": 0, "reuse": False}, {}], ids=str)
@pytest.mark.parametrize("weight", [-0.5, 0.0, 0.5, 1.0, 2.0])
async def test_a_base_with_an_adapter_decodes_as_two_models(
    weight: float, how: dict[str, Any], folders: tuple[Path, Path, Any, Any]
) -> None:
    """With the adapter switched on and off around every forward, and with it merged into a copy."""
    sft, dpo, *plain = folders
    library = Library(device="cpu", dtype="float64", **how)
    base, aligned = pair(library, sft, dpo)
    assert (base.network.module is aligned.network.module) == ("merge_below" in how)
    for seed, greedy in ((0, True), (1, False), (2, False)):
        strategy: dict[str, Any] = {"selection": "greedy"} if greedy else {}
        steps = await steps_of(
            dera(PROMPT, sft=base, baseline=aligned, weight=weight, max_new_tokens=LENGTH, seed=seed, **strategy)
        )
        assert ids_of(steps) == expected((plain[0], plain[1]), weight, seed=seed, greedy=greedy)
    library.engine.close()


async def test_every_strength_at_once_on_one_base(folders: tuple[Path, Path, Any, Any]) -> None:
    """Side by side, forwards with and without the adapter take turns; no request changes another one."""
    sft, dpo, *_ = folders
    library = Library(device="cpu", merge_below=0)
    base, aligned = pair(library, sft, dpo)

    async def run(weight: float) -> Ids:
        return ids_of(
            await steps_of(dera(PROMPT, sft=base, baseline=aligned, weight=weight, max_new_tokens=LENGTH, seed=4))
        )

    weights = (0.0, 0.5, 1.0, 2.0)
    alone = [await run(weight) for weight in weights]
    assert len(set(alone)) > 1, "all strengths give the same response: choose other weights"
    for model in (base, aligned):
        assert model.worker.cache is not None
        model.worker.cache.clear()
    assert await asyncio.gather(*(run(weight) for weight in weights)) == alone
    library.engine.close()
