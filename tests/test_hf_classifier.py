"""Classifiers on the engine: the score of a text is that of a plain forward of it alone, whatever the company."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import transformers as t
from transformers import AutoModelForSequenceClassification

from alignstar.engine import Engine
from alignstar.meter import together
from alignstar.models.hf.classifier import HFClassifier, ScoreRequest, chains, positions
from alignstar.models.hf.network import HeadReadout, Network, PooledReadout
from tiny import VOCAB, randomise

SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "max_position_embeddings": 128, "pad_token_id": 2,
}  # fmt: skip
PAD_IS_EOS: dict[str, Any] = {**SHAPE, "pad_token_id": 1, "eos_token_id": 1, "bos_token_id": 0}
CONFIGS: dict[str, Any] = {
    "llama": lambda: t.LlamaConfig(**SHAPE, num_labels=1),
    "llama, 3 outputs": lambda: t.LlamaConfig(**SHAPE, num_labels=3),
    "llama, pad is eos": lambda: t.LlamaConfig(**PAD_IS_EOS, num_labels=1),
    "gpt2": lambda: t.GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=3, n_head=4, n_positions=128, pad_token_id=2, num_labels=1
    ),
    "gpt_neox": lambda: t.GPTNeoXConfig(**SHAPE, num_labels=1),
    "qwen2": lambda: t.Qwen2Config(**SHAPE, num_key_value_heads=2, num_labels=1),
    "bloom": lambda: t.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=3, n_head=4, pad_token_id=2, num_labels=1),
    "bert": lambda: t.BertConfig(**SHAPE, num_labels=2),
}
CAUSAL_REUSE = {name: name not in {"bert", "bloom"} for name in CONFIGS}
TEXTS = [tuple(range(5, 25)), tuple(range(5, 30)), tuple(range(5, 15)), (7, 8), (*range(5, 25), 3, 4), (9,)]


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine()
    yield made
    made.close()


def classifier(name: str, engine: Engine, **options: Any) -> tuple[Any, HFClassifier]:
    model: Any = AutoModelForSequenceClassification.from_config(CONFIGS[name](), dtype=torch.float64).eval()
    randomise(model, seed=1, scale=0.2)
    head = dict(model.named_children()).get("score")
    network = Network(
        name,
        model if head is None else model.base_model,
        PooledReadout() if head is None else HeadReadout(head),
        config=model.config,
        device=torch.device("cpu"),
        causal=head is not None,
    )
    return model, HFClassifier(
        network, engine, labels=model.config.num_labels, max_context=128, kv_tokens=2000, **options
    )


def alone(model: Any, text: tuple[int, ...]) -> list[float]:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([text])).logits[0].tolist()


@pytest.mark.parametrize("name", CONFIGS)
async def test_scores_equal_a_plain_forward_of_the_text_alone(name: str, engine: Engine) -> None:
    model, heads = classifier(name, engine)
    assert heads.reuse is CAUSAL_REUSE[name]
    # BLOOM's attention computes its softmax in float32 whatever the weights are.
    tolerance = 1e-6 if name == "bloom" else 1e-9
    expected = [alone(model, text) for text in TEXTS]
    np.testing.assert_allclose((await heads.outputs(TEXTS)).value, expected, atol=tolerance)  # together
    for text, scores in zip(TEXTS, expected, strict=True):  # alone, from what is cached by now
        np.testing.assert_allclose((await heads.outputs([text])).value, [scores], atol=tolerance)
    mixed = await together([heads.outputs([text, TEXTS[0]]) for text in reversed(TEXTS)])
    np.testing.assert_allclose([m.value[0] for m in mixed], expected[::-1], atol=tolerance)
    assert heads.worker.kv_in_use == 0


async def test_a_padding_token_equal_to_eos_does_not_move_the_scored_position(engine: Engine) -> None:
    model, heads = classifier("llama, pad is eos", engine)
    ends_with_eos = (5, 6, 7, 1)
    (got,) = (await heads.outputs([ends_with_eos])).value
    with torch.inference_mode():
        hidden = model.model(input_ids=torch.tensor([ends_with_eos])).last_hidden_state
        expected = model.score(hidden[0, -1]).tolist()
        before_it = model.score(hidden[0, -2]).tolist()
    np.testing.assert_allclose(got, expected, atol=1e-9)
    assert abs(expected[0] - before_it[0]) > 1e-3  # the two positions do differ


async def test_equal_texts_and_equal_beginnings_are_read_once(engine: Engine) -> None:
    _, heads = classifier("llama", engine)
    await heads.outputs([TEXTS[0]] * 5)
    assert heads.worker.pushed == len(TEXTS[0])
    await heads.outputs([(*TEXTS[0], z) for z in range(10)])
    assert heads.worker.pushed == len(TEXTS[0]) + 10
    assert (await heads.outputs([])).value == []


async def test_the_texts_of_one_request_are_kept_together(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though nobody came back to the first ones when the last ones are read."""
    monkeypatch.setattr("alignstar.models.hf.prefix.TRIED", 0)
    _, heads = classifier("llama", engine, max_tokens=64)
    texts = [(i, *range(3, 22)) for i in range(40)]
    first = await heads.outputs(texts)
    assert (first.computed, heads.worker.forwards >= 13) == (800, True)
    again = await heads.outputs(texts)
    assert (again.value, again.computed) == (first.value, 0)


async def test_texts_that_begin_each_other_are_read_in_one_forward_and_remembered(engine: Engine) -> None:
    model, heads = classifier("llama", engine)
    spine = tuple(range(5, 35))
    nested = [spine[:n] for n in (30, 12, 20, 21)]
    other = (*spine[:20], 3)
    served = await heads.outputs([*nested, other])
    np.testing.assert_allclose(served.value, [alone(model, text) for text in (*nested, other)], atol=1e-9)
    assert heads.worker.forwards <= 2
    before = heads.worker.forwards
    again = await heads.outputs([other, *nested])
    assert heads.worker.forwards == before
    assert again.value == [served.value[4], *served.value[:4]]
    assert (again.computed, again.calls) == (0, 0)
    await heads.outputs([spine[:13]])  # in the middle of what is known, and never read
    assert heads.worker.forwards == before + 1


def test_chains_by_hand() -> None:
    assert chains([(1, 2), (1,), (1, 3), (1, 2, 4), (2,), (1,)]) == [[(1,), (1, 2), (1, 2, 4)], [(1, 3)], [(2,)]]


@pytest.mark.parametrize("seed", range(12))
async def test_texts_that_share_beginnings_fit_where_their_different_positions_do(seed: int, engine: Engine) -> None:
    rng = random.Random(seed)
    trunk = tuple(rng.randrange(5, VOCAB) for _ in range(60))
    texts = [trunk[: rng.randint(1, 60)] for _ in range(6)]
    texts += [(*text, *(rng.randrange(5, 8) for _ in range(rng.randint(1, 6)))) for text in texts for _ in range(2)]
    request = ScoreRequest(texts, causal=True)
    assert positions(texts) == len({text[:n] for text in texts for n in range(1, len(text) + 1)}) <= request.worst
    model, heads = classifier("llama", engine, max_tokens=rng.choice([8, 2048]))
    heads.worker.capacity = heads.worker.cache.pool.capacity = request.worst  # type: ignore[union-attr]
    served = await heads.outputs(texts)
    np.testing.assert_allclose(served.value, [alone(model, text) for text in texts], atol=1e-9)


async def test_a_long_common_beginning_is_read_once_though_in_parts(engine: Engine) -> None:
    _, heads = classifier("llama", engine, max_tokens=16)
    trunk = tuple(range(5, 60))
    await heads.outputs([(*trunk, z) for z in range(5)])
    assert heads.worker.pushed == len(trunk) + 5
