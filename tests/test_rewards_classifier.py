from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from alignstar.errors import ModelError, OptionError, PromptError, RewardError
from alignstar.meter import Meter, metering
from alignstar.models.hf.checkpoint import open_classifier
from alignstar.models.hf.load import Library
from alignstar.models.toy import ToyCodec
from alignstar.rewards import Scorer
from alignstar.rewards.classifier import ClassifierReward
from alignstar.rewards.rendering import Rendering
from alignstar.types import Message, Prompt, Reply
from classifiers import CHATML, classifier, config, plain_outputs, tokenizer

WEIGHTS = "adapter_model.safetensors"
PLAIN, CHAT = tokenizer(bos=True), tokenizer(bos=True, template=CHATML)


def asked(*contents: str) -> Prompt:
    roles = ("user", "assistant")
    messages = tuple(Message(role=roles[i % 2], content=content) for i, content in enumerate(contents))
    return Prompt(messages=messages, text="not what a reward reads", ids=(0,))


PROMPT = asked("where is my parcel?")


def said(text: str, *, complete: bool = True, verbatim: str | None = None) -> Reply:
    return Reply(text=text, complete=complete, verbatim=verbatim)


REPLIES = [
    said(" it is on its way"),
    said(" it is", complete=False),
    said(" no."),
    said(" it is on its way to you, hello"),
]


class PlainHeads:
    """Heads by one plain forward per text."""

    def __init__(self, model: Any, *, nan: bool = False) -> None:
        self.name, self.labels, self.model, self.nan = "plain", model.config.num_labels, model, nan
        self.read: list[tuple[int, ...]] = []

    async def outputs(self, texts: list[tuple[int, ...]]) -> Any:
        self.read.extend(texts)
        rows = [[math.nan] * self.labels if self.nan else plain_outputs(self.model, ids) for ids in texts]
        return SimpleNamespace(value=rows, computed=sum(map(len, texts)), held=0)


# What the model reads.


def ids_by_transformers(prompt: Prompt, text: str, **how: bool) -> tuple[int, ...]:
    turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
    turns.append({"role": "assistant", "content": text})
    return tuple(CHAT.apply_chat_template(turns, tokenize=True, return_dict=True, **how)["input_ids"])


@pytest.mark.parametrize("prompt", [PROMPT, asked("hello", "hello world", "so?")])
@pytest.mark.parametrize("text", ["it is on its way", " it is ", "end", "<", "assistant", "start|>"])
def test_a_chat_template_closes_complete_replies_only(prompt: Prompt, text: str) -> None:
    rendering = Rendering(CHAT, name="r")
    whole = ids_by_transformers(prompt, text, add_generation_prompt=False)
    part = ids_by_transformers(prompt, text, continue_final_message=True)
    assert rendering.ids(prompt, said(text)) == whole
    assert rendering.ids(prompt, said(text, complete=False)) == part
    always, never = (Rendering(CHAT, name="r", end_of_turn=how) for how in ("always", "never"))
    assert always.ids(prompt, said(text, complete=False)) == whole
    assert never.ids(prompt, said(text)) == part
    assert whole.count(3) == 0, "the template writes no beginning-of-sequence token, and none is added"


def test_nothing_said_yet_is_where_the_reply_begins() -> None:
    turns = [{"role": "user", "content": "where is my parcel?"}]
    start = CHAT.apply_chat_template(turns, tokenize=True, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert Rendering(CHAT, name="r").ids(PROMPT, said("", complete=False)) == tuple(start)


def test_without_a_template_the_reply_follows_the_prompt() -> None:
    rendering = Rendering(PLAIN, name="r")
    expected = PLAIN("where is my parcel? it is")["input_ids"]
    assert rendering.ids(PROMPT, said(" it is")) == rendering.ids(PROMPT, said(" it is", complete=False))
    assert rendering.ids(PROMPT, said(" it is")) == tuple(expected)
    assert expected[0] == 3
    assert expected.count(3) == 1


def test_an_own_template_ends_with_what_closes_a_turn() -> None:
    rendering = Rendering(CHAT, name="r", template="Human: {prompt}\nAssistant:{response}{eos}")
    expected = CHAT("Human: where is my parcel?\nAssistant: {prompt}<|end|>")["input_ids"]
    assert rendering.ids(PROMPT, said(" {prompt}")) == tuple(expected)
    assert rendering.ids(PROMPT, said(" {prompt}", complete=False)) == tuple(expected[:-1])


@pytest.mark.parametrize("template", ["{prompt}", "{response}{prompt}", "{prompt}{response}{response}", ""])
def test_a_template_has_a_prompt_and_a_response(template: str) -> None:
    with pytest.raises(OptionError, match="template="):
        Rendering(PLAIN, name="r", template=template)


def test_other_settings_are_refused() -> None:
    with pytest.raises(OptionError, match="Known: complete, always, never"):
        Rendering(PLAIN, name="r", end_of_turn="sometimes")  # pyright: ignore[reportArgumentType]
    endless: Any = tokenizer()
    endless.eos_token = None
    with pytest.raises(OptionError, match="eos"):
        Rendering(endless, name="r", template="{prompt}{response}{eos}")
    strict = tokenizer(template="{{ raise_exception('no') }}")
    with pytest.raises(PromptError, match="refuses"):
        Rendering(strict, name="r").ids(PROMPT, said("a"))


def test_verbatim_text_is_tokenised_as_it_stands() -> None:
    text = "<s>hello<|end|><pad>"
    for rendering in (Rendering(CHAT, name="r"), Rendering(PLAIN, name="r", template="{prompt} {response}")):
        ids = rendering.ids(PROMPT, said("ignored", verbatim=text))
        assert ids == tuple(PLAIN(text)["input_ids"])
        assert ids[:2] == (3, 3), "the published loop doubles it, too"


@pytest.mark.parametrize("tokens", [PLAIN, CHAT])
@pytest.mark.parametrize("prompt", [asked("where is my parcel? " * 15), asked("hello world " * 30, "so?", "well")])
def test_a_long_prompt_loses_its_beginning(tokens: Any, prompt: Prompt) -> None:
    free, tight = Rendering(tokens, name="r"), Rendering(tokens, name="r", max_context=60)
    reply = said(" it is on its way")
    assert len(free.ids(prompt, reply)) > 60
    read = tokens.decode(list(tight.ids(prompt, reply)))
    assert len(tight.ids(prompt, reply)) <= 60
    end = free.text(prompt.messages, reply)[-60:]
    assert read.endswith(end)
    # As much of it as fits stays.
    assert len(tight.ids(prompt, reply)) >= 57
    loose = Rendering(tokens, name="r", max_context=500)
    assert loose.ids(prompt, reply) == free.ids(prompt, reply)


def test_a_reply_is_never_cut() -> None:
    rendering = Rendering(PLAIN, name="r", max_context=8)
    for reply in (said("hello world " * 9), said("", verbatim="hello world " * 9)):
        with pytest.raises(RewardError, match="at most 8 tokens"):
            rendering.ids(PROMPT, reply)


def test_an_empty_text_is_its_first_token() -> None:
    assert Rendering(tokenizer(bos=True), name="r").ids(asked(""), said("")) == (3,)
    bare = tokenizer()
    assert Rendering(bare, name="r").ids(asked(""), said("")) == (1,)
    endless: Any = tokenizer()
    endless.eos_token = None
    with pytest.raises(RewardError, match="empty text"):
        Rendering(endless, name="r").ids(asked(""), said(""))


# Scores.


@pytest.fixture(params=["llama", "gpt2", "bert"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def saved(model: Any, tokens: Any, path: Path) -> str:
    model.save_pretrained(path)
    tokens.save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("template", [None, CHATML])
def test_a_score_is_that_of_the_text_alone(family: str, template: str | None, tmp_path: Path) -> None:
    """At any batch size, beside longer and shorter texts, with padding and end token the same or no padding token."""
    tokens = tokenizer(bos=True, pad="<|end|>", template=template)
    tokens.padding_side = "left"
    model = classifier(family, pad_token_id=1 if family == "llama" else None)
    path = saved(model, tokens, tmp_path / family)
    library = Library(device="cpu")
    heads, loaded = library.classifier(path)
    reward = ClassifierReward(heads, loaded, template=None if template else "{prompt}{response}{eos}")
    rendering = Rendering(tokens, name="r", template=None if template else "{prompt}{response}{eos}")
    expected = [plain_outputs(model, rendering.ids(PROMPT, reply))[0] for reply in REPLIES]
    together = asyncio.run(reward.score(PROMPT, REPLIES))
    alone = [asyncio.run(reward.score(PROMPT, [reply]))[0] for reply in reversed(REPLIES)][::-1]
    library.engine.close()
    assert together == pytest.approx(expected, abs=1e-4)
    assert alone == pytest.approx(expected, abs=1e-4)
    assert len({round(score, 3) for score in expected}) == len(REPLIES), "a test of equal scores would be empty"


def test_several_outputs_are_chosen_or_weighted() -> None:
    model = classifier("llama", labels=3)
    heads = PlainHeads(model)
    (row,) = [plain_outputs(model, Rendering(CHAT, name="r").ids(PROMPT, REPLIES[0]))]

    def score(**choice: Any) -> float:
        return asyncio.run(ClassifierReward(heads, CHAT, **choice).score(PROMPT, REPLIES[:1]))[0]

    assert score(output=2) == pytest.approx(row[2], abs=1e-5)
    mixed = 0.5 * row[0] - row[2]
    assert score(weights=(0.5, 0, -1)) == pytest.approx(mixed, abs=1e-5)
    assert score(weights={0: 0.5, 2: -1}) == pytest.approx(mixed, abs=1e-5)
    for choice in ({}, {"output": 3}, {"output": -1}, {"weights": (1, 2)}, {"weights": {3: 1.0}}, {"weights": {}}):
        with pytest.raises(OptionError, match="plain"):
            ClassifierReward(heads, CHAT, **choice)
    with pytest.raises(OptionError, match="exclude"):
        ClassifierReward(heads, CHAT, output=1, weights=(1, 1, 1))


def test_what_reading_costs() -> None:
    model = classifier("gpt2")
    texts = [Rendering(CHAT, name="r").ids(PROMPT, reply) for reply in REPLIES]
    prefixes = {ids[:n] for ids in texts for n in range(1, len(ids) + 1)}
    for causal in (True, False):
        meter = Meter()
        reward = ClassifierReward(PlainHeads(model), CHAT, causal=causal)
        with metering(meter):
            asyncio.run(reward.score(PROMPT, REPLIES[:2]))
            asyncio.run(reward.score(PROMPT, REPLIES[2:]))
        usage = meter.usage()
        assert usage.rm_calls == 4
        assert (usage.lm_tokens, usage.sequential_steps) == (0, 0)
        assert usage.rm_tokens == (len(prefixes) if causal else sum(map(len, texts)))


def test_nan_is_left_to_the_scorer() -> None:
    reward = ClassifierReward(PlainHeads(classifier("gpt2"), nan=True), CHAT)
    assert math.isnan(asyncio.run(reward.score(PROMPT, REPLIES[:1]))[0])
    meter = Meter()
    with metering(meter):
        scores = asyncio.run(Scorer(reward, ToyCodec()).replies(PROMPT, REPLIES[:1]))
    assert scores.tolist() == [-math.inf]
    assert meter.usage().nan_rewards == 1


# Checkpoints.


def test_a_classifier_is_opened_as_it_was_saved(family: str, tmp_path: Path) -> None:
    model = classifier(family, labels=3)
    opened, tokens = open_classifier(saved(model, CHAT, tmp_path / family), torch.float32)
    ids = tuple(tokens("hello world")["input_ids"])
    assert plain_outputs(opened, ids) == plain_outputs(model, ids)
    assert not opened.training
    assert tokens.chat_template == CHATML


def test_a_head_filled_at_random_is_refused(family: str, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(config("gpt2" if family == "gpt2" else "llama"))
    backbone = classifier("bert").bert if family == "bert" else model
    with pytest.raises(ModelError, match=r"is no classifier: its head \((score|classifier)\.(weight|bias)\)") as caught:
        open_classifier(saved(backbone, PLAIN, tmp_path / "lm"), torch.float32)
    assert str(tmp_path / "lm") in str(caught.value)


def test_pickles_and_what_is_not_there_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    config("llama").save_pretrained(folder)
    torch.save(classifier("llama").state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickle.*convert"):
        open_classifier(str(folder), torch.float32)
    (tmp_path / "empty").mkdir()
    for path in (str(tmp_path / "empty"), str(tmp_path / "missing"), "no-such/model"):
        with pytest.raises(ModelError) as caught:
            open_classifier(path, torch.float32)
        assert path in str(caught.value)
        assert "\n" not in str(caught.value)


def adapter(model: Any, path: Path, **options: Any) -> Any:
    lora = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **options)
    adapted: Any = get_peft_model(model, lora)
    adapted.eval().save_pretrained(path)
    return adapted


def test_an_adapter_brings_its_head(tmp_path: Path) -> None:
    base = saved(AutoModelForCausalLM.from_config(config("llama")), PLAIN, tmp_path / "base")
    model: Any = classifier("llama", labels=3)
    model.model.load_state_dict(AutoModelForCausalLM.from_pretrained(base).model.state_dict())
    model.name_or_path = base
    adapted = adapter(model, tmp_path / "adapter")
    PLAIN.save_pretrained(tmp_path / "adapter")
    ids = tuple(PLAIN("hello world")["input_ids"])
    with torch.inference_mode():
        hidden = adapted.base_model.model.model(input_ids=torch.tensor([ids])).last_hidden_state
        expected = adapted.base_model.model.score(hidden)[0, -1].tolist()
    opened, _ = open_classifier(str(tmp_path / "adapter"), torch.float32)
    assert plain_outputs(opened, ids) == pytest.approx(expected, abs=1e-5)


def test_an_adapter_without_its_head_or_for_another_task_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    path.mkdir()
    settings = {"task_type": "CAUSAL_LM", "base_model_name_or_path": "nowhere", "peft_type": "LORA"}
    (path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="CAUSAL_LM"):
        open_classifier(str(path), torch.float32)
    (path / "adapter_config.json").write_text(json.dumps({**settings, "task_type": "SEQ_CLS"}))
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors"):
        open_classifier(str(path), torch.float32)
    save_file({"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(4, 32)}, path / WEIGHTS)
    with pytest.raises(ModelError, match="no classification head"):
        open_classifier(str(path), torch.float32)
    torch.save({}, path / "adapter_model.bin")
    (path / WEIGHTS).unlink()
    with pytest.raises(ModelError, match="pickle"):
        open_classifier(str(path), torch.float32)
