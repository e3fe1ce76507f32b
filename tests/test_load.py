"""Loading: roles share what they can, refuse what they must, and read the checkpoint's own settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GenerationConfig

import alignstar
import checkpoints
from alignstar.errors import ModelError, OptionError
from alignstar.models.hf.load import MERGE_BELOW, Library
from alignstar.sampling import GREEDY, Sampling

PROMPT = tuple(range(40, 60))


@pytest.fixture
def sft(tmp_path: Path) -> Path:
    return checkpoints.language_model(tmp_path / "sft", seed=0)


def adapter(base: Path, folder: Path, *, seed: int, task: str) -> tuple[Path, Any]:
    """A LoRA adapter whose base is named relative to it; its folder, and the model it makes."""
    auto: Any = AutoModelForCausalLM if task == "CAUSAL_LM" else AutoModelForSequenceClassification
    options = {} if task == "CAUSAL_LM" else {"num_labels": 1}
    torch.manual_seed(seed)
    model = auto.from_pretrained(base, **options)
    config = LoraConfig(task_type=task, r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    wrapped: Any = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name or "score" in name:
                parameter.normal_(0, 0.3)
    wrapped.save_pretrained(folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = f"../{base.name}"
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder, wrapped.eval()


@pytest.mark.parametrize("shared", [True, False])
async def test_one_base_serves_the_model_its_aligned_adapter_and_a_reward_adapter(
    shared: bool, sft: Path, tmp_path: Path
) -> None:
    plain: Any = AutoModelForCausalLM.from_pretrained(sft).eval()
    dpo_dir, dpo = adapter(sft, tmp_path / "dpo", seed=1, task="CAUSAL_LM")
    reward_dir, reward = adapter(sft, tmp_path / "reward", seed=2, task="SEQ_CLS")
    library = Library(device="cpu", merge_below=0 if shared else MERGE_BELOW)
    base, aligned = library.pair(str(sft), str(dpo_dir))
    heads, _ = library.classifier(str(reward_dir))
    assert base is not None
    assert aligned is not None
    assert (base.network.module is aligned.network.module) == shared
    assert (heads.network.module is base.network.module.base_model) == shared
    ids = torch.tensor([PROMPT])
    with torch.inference_mode():
        expected = [torch.log_softmax(m(input_ids=ids).logits[0, -1], -1).numpy() for m in (plain, dpo)]
        score = reward(input_ids=ids).logits[0].tolist()
    assert np.abs(expected[0] - expected[1]).max() > 0.05
    for _ in range(2):  # in turns: every forward switches
        everything = np.arange(base.vocab_size)
        np.testing.assert_allclose(await base.next_logprobs(PROMPT, everything), expected[0], atol=1e-4)
        np.testing.assert_allclose((await heads.outputs([PROMPT])).value, [score], atol=1e-4)
        np.testing.assert_allclose(await aligned.next_logprobs(PROMPT, everything), expected[1], atol=1e-4)
        for model in (base, aligned, heads):
            assert model.worker.cache is not None
            model.worker.cache.clear()
    library.engine.close()


async def test_a_reward_adapter_alone_is_merged_into_its_own_base(sft: Path, tmp_path: Path) -> None:
    reward_dir, reward = adapter(sft, tmp_path / "reward", seed=2, task="SEQ_CLS")
    library = Library(device="cpu")
    heads, tokenizer = library.classifier(str(reward_dir))
    with torch.inference_mode():
        score = reward(input_ids=torch.tensor([PROMPT])).logits[0].tolist()
    np.testing.assert_allclose((await heads.outputs([PROMPT])).value, [score], atol=1e-4)
    assert len(tokenizer) == 259
    library.engine.close()


def test_one_vocabulary_may_be_the_other_plus_added_tokens(sft: Path, tmp_path: Path) -> None:
    larger = checkpoints.tokenizer()
    larger.add_tokens(["<tool>", "<call>"])
    longer = checkpoints.language_model(tmp_path / "longer", seed=1, with_tokenizer=larger, vocab_size=261)
    library = Library(device="cpu")
    models = library.pair(str(sft), str(longer))
    assert [m.vocab_size for m in models if m is not None] == [259, 259]
    library.engine.close()
    other = checkpoints.language_model(tmp_path / "other", seed=1, with_tokenizer=checkpoints.tokenizer(shuffled=True))
    with pytest.raises(ModelError, match="different tokenizers"):
        alignstar.load(sft=str(sft), baseline=str(other))


def test_the_checkpoints_own_way_of_decoding_and_ending(sft: Path) -> None:
    library = Library(device="cpu")
    assert library.language(str(sft), role="sft").default_sampling == GREEDY
    GenerationConfig(
        do_sample=True, temperature=0.7, top_k=20, top_p=0.9, eos_token_id=[1, 65], pad_token_id=2
    ).save_pretrained(sft)
    model = Library(device="cpu").language(str(sft), role="sft")
    assert model.default_sampling == Sampling(temperature=0.7, top_k=20, top_p=0.9)
    assert model.eos_ids == {1, 65}
    assert model.max_context == checkpoints.CONTEXT


def test_the_dtype_is_float32_on_cpu_unless_asked(sft: Path) -> None:
    for asked, expected in (("auto", torch.float32), ("float64", torch.float64), ("bfloat16", torch.bfloat16)):
        model = Library(device="cpu", dtype=asked).language(str(sft), role="sft")
        assert model.network.dtype == expected
        assert model.reuse
    with pytest.raises(OptionError, match="float33"):
        Library(dtype="float33")
    with pytest.raises(OptionError, match="device='gpu9'"):
        Library(device="gpu9")


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("missing", "does not exist"),
        ("file", "is a file"),
        ("pickled", "only safetensors are read"),
        ("classifier", "is no causal language model"),
        ("empty", "holds no config.json"),
        ("no/such-model", "cannot be loaded as a causal language model"),
    ],
)
def test_what_is_no_language_model_is_refused_in_one_sentence(what: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    checkpoints.pickled(tmp_path / "pickled", seed=0)
    checkpoints.classifier(tmp_path / "classifier", seed=0)
    path = what if what == "no/such-model" else str(tmp_path / what)
    with pytest.raises(ModelError, match=says) as caught:
        alignstar.load(sft=path)
    assert "\n" not in str(caught.value)
