"""The transformers backend under the contract that every backend is under, with and without prefix reuse."""

from collections.abc import Iterator

import pytest

import contract
from alignstar.engine import Engine
from alignstar.models.hf.language import HFModel
from tiny import causal_lm, hf_model

PREFIXES = ((5, 6, 7, 8, 9), (5, 6, 8), (11,), (5, 6, 7, 9, 9, 9, 4))


@pytest.fixture(scope="module", params=["llama", "mistral", "bloom", "llama without reuse"])
def model(request: pytest.FixtureRequest) -> Iterator[HFModel]:
    family, _, rest = request.param.partition(" ")
    engine = Engine()
    yield hf_model(causal_lm(family), engine=engine, reuse=not rest)
    engine.close()


@pytest.mark.parametrize("law", contract.LAWS, ids=lambda law: law.__name__)
async def test_contract(model: HFModel, law: contract.Law) -> None:
    await law(model, PREFIXES, 1e-9)
