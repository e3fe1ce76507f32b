"""Every method of the table against the contract of methods: exactly on toy models, and on transformers models."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

import alignstar
import checkpoints
import method_cases
import method_contract
from alignstar.aligner import Aligner
from alignstar.cli.methods import LETTERS
from alignstar.methods import METHODS
from alignstar.options import complete
from method_cases import Case
from test_aligner_engine import settle

SMALL = {"k": 3, "rollout_len": 4, "n": 4, "beam": 2, "budget": 60, "headroom": 4}
"""Options that keep a search small, where a method has them."""


@pytest.mark.parametrize("law", method_contract.LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("case", method_cases.defaults(), ids=str)
async def test_law(case: Case, law: method_contract.Law) -> None:
    await law(case)


@pytest.mark.parametrize("case", method_cases.variants(), ids=str)
async def test_laws_that_hold_under_every_option(case: Case) -> None:
    for law in method_contract.ALWAYS:
        await law(case)


def test_variants_are_found() -> None:
    found = {str(case) for case in method_cases.variants()}
    assert found >= {"args-strategy=stochastic", "transfer-q-return_best_rollout=True", "dera-selection=greedy"}


def test_every_letter_of_a_cost_is_explained() -> None:
    for letter in method_contract.letters(Case(name="greedy"), method_cases.ONE, 1):
        assert f"{letter} " in LETTERS


@pytest.fixture(scope="module")
def aligner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aligner]:
    root = tmp_path_factory.mktemp("models")
    folders = {
        "sft": str(checkpoints.language_model(root / "sft", seed=1)),
        "baseline": str(checkpoints.language_model(root / "baseline", seed=2)),
        "reward": str(checkpoints.classifier(root / "reward", seed=3)),
        "value": str(checkpoints.value_head(root / "value", base="../sft", layer=2, rank=4)),
    }
    with alignstar.load(**folders, device="cpu") as made:
        yield made


def ask(name: str) -> dict[str, Any]:
    known = complete(name, {})
    return {"method": name, "max_new_tokens": 6, **{o: v for o, v in SMALL.items() if o in known}}


@pytest.mark.parametrize("name", METHODS)
async def test_cancelling_in_the_middle_returns_the_memory(name: str, aligner: Aligner) -> None:
    expected = await aligner.agenerate("Where?", **ask(name))
    for delay in range(4):
        doomed = [asyncio.create_task(aligner.agenerate(f"{i}{delay}: it leaks", **ask(name))) for i in range(2)]
        kept = asyncio.create_task(aligner.agenerate("Where?", **ask(name)))
        await asyncio.sleep(0.004 * delay)
        for task in doomed:
            task.cancel()
        assert (await kept).ids == expected.ids
        outcomes = await asyncio.gather(*doomed, return_exceptions=True)
        assert all(isinstance(o, asyncio.CancelledError) or o.ids for o in outcomes)
    settle(aligner)


@pytest.mark.parametrize("name", METHODS)
async def test_cost_does_not_depend_on_company_or_cache(name: str, aligner: Aligner) -> None:
    prompts = ["The tap drips", "The tap", "A kettle!"]
    alone = [await aligner.agenerate(prompt, **ask(name)) for prompt in prompts]
    async for at, response in aligner.agenerate_many(prompts[::-1], **ask(name)):
        other = alone[len(prompts) - 1 - at]
        assert response.ids == other.ids
        assert method_contract.same(response).usage == method_contract.same(other).usage
