"""A small byte-level BPE tokenizer with a chat template, trained from texts.

Knows the four special tokens of a conversation. Does not know any model or world.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD, END, CUSTOMER, AGENT = "<|pad|>", "<|end|>", "<|customer|>", "<|agent|>"

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}{{ '<|agent|>' + message['content'] + '<|end|>' }}"
    "{%- else -%}{{ '<|customer|>' + message['content'] }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|agent|>' }}{%- endif -%}"
)


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, max_length: int = 512) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocab_size` tokens; pad and end are different tokens, there is no bos."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END, CUSTOMER, AGENT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer=trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[CUSTOMER, AGENT],
        model_max_length=max_length,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def render_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """The text of a conversation with one message, up to where the answer starts."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        tokenize=False,
        add_generation_prompt=True,
    )
    return cast("str", text)


def encode_exchanges(
    tokenizer: PreTrainedTokenizerBase, exchanges: Sequence[tuple[str, str, bool]]
) -> list[tuple[list[int], list[int]]]:
    """Token ids of each (prompt, answer, complete) as (prompt ids, answer ids), through the chat template.

    The end-of-turn token follows the answer only where it is complete.
    """
    heads = [render_prompt(tokenizer, prompt) for prompt, _, _ in exchanges]
    end = cast("str", tokenizer.eos_token)
    tails = [answer + (end if complete else "") for _, answer, complete in exchanges]
    head_ids = tokenizer(heads, add_special_tokens=False)["input_ids"]
    tail_ids = tokenizer(tails, add_special_tokens=False)["input_ids"]
    return list(zip(head_ids, tail_ids, strict=True))
