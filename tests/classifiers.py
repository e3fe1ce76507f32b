"""Tiny sequence classifiers and a tokenizer, built from configs with seeded random weights; no download."""

from __future__ import annotations

from typing import Any

import torch
import transformers as t
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tiny import randomise

VOCAB = 300
CHATML = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def tokenizer(
    *, bos: bool = False, pad: str | None = "<pad>", template: str | None = None
) -> t.PreTrainedTokenizerFast:
    """Byte level; ids 0.. are <|start|>, <|end|> (end of sequence), <pad>, <s>."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|start|>", "<|end|>", "<pad>", "<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(["hello world, where is my parcel?", "it is on its way to you"] * 3, trainer)
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])
    made: Any = t.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", additional_special_tokens=["<|start|>"]
    )
    if bos:
        made.bos_token = "<s>"
    made.pad_token = pad
    made.chat_template = template
    return made


_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128,
}  # fmt: skip


def config(family: str, *, labels: int = 1, pad_token_id: int | None = None) -> Any:
    """A small configuration of a family."""
    if family == "llama":
        return t.LlamaConfig(**_SIZES, bos_token_id=3, eos_token_id=1, pad_token_id=pad_token_id, num_labels=labels)
    if family == "bert":
        return t.BertConfig(**_SIZES, pad_token_id=2 if pad_token_id is None else pad_token_id, num_labels=labels)
    return t.GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=3, eos_token_id=1,
        pad_token_id=pad_token_id, num_labels=labels,
    )  # fmt: skip


def classifier(family: str, *, labels: int = 1, pad_token_id: int | None = None, seed: int = 0) -> Any:
    """A classifier whose outputs differ clearly from text to text."""
    model: Any = t.AutoModelForSequenceClassification.from_config(
        config(family, labels=labels, pad_token_id=pad_token_id)
    )
    randomise(model, seed, 0.2)
    return model.eval()


def plain_outputs(model: Any, ids: tuple[int, ...]) -> list[float]:
    """The head's outputs for one text alone, by a whole forward without padding."""
    with torch.inference_mode():
        if "score" in dict(model.named_children()):
            hidden = model.base_model(input_ids=torch.tensor([ids])).last_hidden_state
            return model.score(hidden)[0, -1].tolist()
        return model(input_ids=torch.tensor([ids])).logits[0].tolist()
