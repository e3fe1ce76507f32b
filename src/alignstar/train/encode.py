"""From rows to token ids, in the way in which decoding and rewards will read them. Knows a tokenizer and no model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from alignstar.errors import OptionError, PromptError, RewardError
from alignstar.evaluate.rows import Example
from alignstar.models.hf.codec import HFCodec, special_id
from alignstar.rewards.rendering import Rendering
from alignstar.types import Ids, Prompt, Reply


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A prompt and a complete answer to it, as a language model decodes them."""

    prompt: Ids
    answer: Ids


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPair:
    """Two conversations as a reward reads them; the first is preferred."""

    chosen: Ids
    rejected: Ids


class Reader:
    """Reads rows with one tokenizer; `name` is what messages call its model.

    Where there is a chat template it is used; else the prompt is one text that the answer follows.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, name: str) -> None:
        self._codec = HFCodec(tokenizer, name=name)
        self._score = Rendering(tokenizer, name=name)
        self._closed = Rendering(
            tokenizer, name=name, template=None if self._codec.has_chat_template else "{prompt}{response}{eos}"
        )

    @property
    def chat(self) -> bool:
        """Whether conversations are read by a template."""
        return self._codec.has_chat_template

    def exchange(self, example: Example, answer: str) -> Exchange:
        """What the language model is to continue, and with what, the end of the turn included."""
        head = self._prompt(example).ids
        whole = self._ids(self._closed, example, answer)
        # Where the answer's first token takes up the end of the prompt, that token belongs to the answer.
        cut = len(os.path.commonprefix([head, whole]))  # noqa: RUF071 - of tokens, not of paths
        return Exchange(prompt=whole[:cut], answer=whole[cut:])

    def pair(self, example: Example) -> EncodedPair:
        """Both conversations of a preference."""
        assert example.chosen is not None
        assert example.rejected is not None
        self._prompt(example)
        return EncodedPair(
            chosen=self._ids(self._score, example, example.chosen),
            rejected=self._ids(self._score, example, example.rejected),
        )

    def _prompt(self, example: Example) -> Prompt:
        if len(example.prompt) > 1 and not self.chat:
            raise PromptError(
                f"{example.where}: is a conversation of {len(example.prompt)} messages and {self._codec.name!r} has no "
                "chat template; take a model with one, or write dialogue: text for Human/Assistant texts."
            )
        try:
            return self._codec.prompt(example.prompt)
        except PromptError as error:
            raise PromptError(f"{example.where}: {error}") from None

    def _ids(self, rendering: Rendering, example: Example, answer: str) -> Ids:
        prompt = Prompt(messages=example.prompt, text="", ids=())
        try:
            return rendering.ids(prompt, Reply(text=answer, complete=True))
        except (PromptError, RewardError) as error:
            raise PromptError(f"{example.where}: {error}") from None


def pad_for(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Ids]) -> int:
    """A padding token with which no text ends; it becomes the tokenizer's. A classifier reads the last other token.

    Raises OptionError where there is none among the special tokens.
    """
    last = {ids[-1] for ids in texts}
    for role in ("pad", "unk", "bos", "eos"):
        at = special_id(tokenizer, role)
        if at is not None and at not in last:
            tokenizer.pad_token_id = at
            return at
    raise OptionError(
        "Every special token of the tokenizer ends some text, so none can fill up shorter ones; give it a pad_token of "
        "its own."
    )


def digest(texts: Sequence[Ids]) -> str:
    """What tells two lists of texts apart."""
    found = hashlib.blake2b(digest_size=8)
    for ids in texts:
        found.update(b"|" + b",".join(str(i).encode() for i in ids))
    return found.hexdigest()
