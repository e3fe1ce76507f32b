"""The Codec of a transformers tokenizer, the loading of one, and the comparison of two. Knows no model.

Chat templates go through `apply_chat_template(..., tokenize=True)`, plain text through the plain tokenizer call with
whatever special tokens that adds. Nothing else is tokenised, so no beginning-of-sequence token is ever doubled here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, cast

from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from alignstar.errors import ModelError, PromptError
from alignstar.models.hf.adapters import base_of, is_adapter
from alignstar.text import as_messages, decoded
from alignstar.types import Ids, Message, Prompt


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a local directory or hub id. Code that comes with it is run only if `trust_remote_code` says so.

    An adapter without one has its base's. Raises ModelError where there is none, also for an id that cannot be fetched.
    """
    if is_adapter(path) and not (Path(path) / "tokenizer_config.json").is_file():
        path = base_of(path)
    if Path(path).exists() and not Path(path).is_dir():
        raise ModelError(f"{path!r} is a file; give the directory that holds the tokenizer's files.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError, KeyError) as error:
        place = "has no tokenizer that can be read" if Path(path).is_dir() else "is no directory and cannot be fetched"
        raise ModelError(
            f"{path!r} {place} ({_first_line(error)}); save the tokenizer there with save_pretrained, or correct "
            "the name."
        ) from error
    # Without files transformers makes up a vocabulary of nothing but special tokens.
    if set(vocabulary(tokenizer)) <= set(tokenizer.all_special_tokens):
        raise ModelError(f"{path!r} has no tokenizer files; save the tokenizer there with save_pretrained.")
    return tokenizer


def special_id(tokenizer: PreTrainedTokenizerBase, role: str) -> int | None:
    """The id of the tokenizer's "bos", "eos" or "pad" token."""
    return cast("int | None", getattr(tokenizer, f"{role}_token_id"))


def vocabulary(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Token to id, added tokens included."""
    return cast("Any", tokenizer).get_vocab()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def chat_turns(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages in the form that chat templates read."""
    return [{"role": m.role, "content": m.content} for m in messages]


class HFCodec:
    """A Codec around a transformers tokenizer.

    `eos_ids` are those that the checkpoint's configuration names; the tokenizer's own is added. `name` is what messages
    call it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, eos_ids: Iterable[int] = (), name: str = "") -> None:
        self.tokenizer = tokenizer
        self.name = name or tokenizer.name_or_path
        own = special_id(tokenizer, "eos")
        self.eos_ids = frozenset(eos_ids) | (frozenset() if own is None else {own})
        # A decoder may drop the leading space of what it is given (sentencepiece): response tokens are decoded after
        # this token, whose text is then cut off.
        # What such a tokenizer's own `decode` asks, in half the time: it is asked at every token.
        self._backend = tokenizer.backend_tokenizer if _plainly_decoded(tokenizer) else None
        self._anchor: Ids = tuple(tokenizer("a", add_special_tokens=False)["input_ids"])[-1:]
        self._anchor_chars = len(self._plain(self._anchor))

    @property
    def pad_id(self) -> int:
        """What fills up a shorter row: the padding token, or an end-of-sequence token, or 0 where there is neither."""
        pad, eos = special_id(self.tokenizer, "pad"), special_id(self.tokenizer, "eos")
        if pad is not None:
            return pad
        return min(self.eos_ids, default=0) if eos is None else eos

    @property
    def has_chat_template(self) -> bool:
        """Whether a conversation can be rendered."""
        return self.tokenizer.chat_template is not None

    def prompt(self, request: str | Sequence[Message], *, chat: bool | None = None) -> Prompt:
        """The prompt for a text or a conversation. `chat`: apply the chat template (None: where there is one).

        Raises PromptError for an empty prompt where the tokenizer has no BOS, for several turns without a template, and
        for a conversation that the template refuses.
        """
        messages = as_messages(request)
        if not messages:
            raise PromptError("The conversation is empty; give it at least one message.")
        if chat and not self.has_chat_template:
            raise PromptError(f"{self.name!r} has no chat template; use chat=False to give the text as it is.")
        if chat or (chat is None and self.has_chat_template):
            return self._chat_prompt(messages)
        if len(messages) > 1:
            raise PromptError(
                f"A conversation of {len(messages)} messages needs a chat template, which {self.name!r} has not (or "
                "which chat=False switches off); give the whole prompt as one text."
            )
        return self._text_prompt(messages)

    def decode(self, ids: Ids, *, special: bool = False) -> str:
        """Text of response tokens as it continues a prompt; with `special` the tokenizer's plain decode."""
        if special:
            return self._plain(ids, special=True)
        return decoded(ids, lambda part: self._plain(self._anchor + part)[self._anchor_chars :])

    def _plain(self, ids: Ids, *, special: bool = False) -> str:
        if self._backend is not None:
            return self._backend.decode(list(ids), skip_special_tokens=not special)
        text = self.tokenizer.decode(list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)  # a list of lists would give a list
        return text

    def _chat_prompt(self, messages: tuple[Message, ...]) -> Prompt:
        turns = chat_turns(messages)
        try:
            text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            encoded = self.tokenizer.apply_chat_template(
                turns, tokenize=True, add_generation_prompt=True, return_dict=True
            )
        except TemplateError as error:
            raise PromptError(
                f"The chat template of {self.name!r} refuses this conversation ({_first_line(error)}); "
                "change its turns."
            ) from error
        assert isinstance(text, str)
        assert isinstance(encoded, Mapping)
        return Prompt(messages=messages, text=text, ids=tuple(encoded["input_ids"]))

    def _text_prompt(self, messages: tuple[Message, ...]) -> Prompt:
        text = messages[0].content
        ids: Ids = tuple(self.tokenizer(text)["input_ids"])
        if not ids:
            bos = special_id(self.tokenizer, "bos")
            if bos is None:
                raise PromptError(
                    f"The prompt is empty and {self.name!r} has no beginning-of-sequence token to start from; "
                    "give at least one character."
                )
            ids = (bos,)
        return Prompt(messages=messages, text=text, ids=ids)


def _plainly_decoded(tokenizer: PreTrainedTokenizerBase) -> TypeGuard[PreTrainedTokenizerFast]:
    """Whether the tokenizer's `decode` is its backend's, without clean-up."""
    return isinstance(tokenizer, PreTrainedTokenizerFast) and all(
        getattr(type(tokenizer), name) is getattr(PreTrainedTokenizerFast, name) for name in ("decode", "_decode")
    )


def check_same_tokens(sft: PreTrainedTokenizerBase, baseline: PreTrainedTokenizerBase) -> int:
    """How many leading token ids two tokenizers share: all ids below it mean the same token in both.

    Raises ModelError unless the vocabularies are equal, or one is the other plus added tokens behind its end.
    """
    small, large = sorted((sft, baseline), key=lambda t: len(vocabulary(t)))
    # In the order of ids, so that the same two tokenizers always give the same sentence.
    known, more = (dict(sorted(vocabulary(t).items(), key=lambda item: item[1])) for t in (small, large))
    common = 1 + max(known.values(), default=-1)
    differing = next((token for token, at in known.items() if more.get(token) != at), None)
    if differing is None:
        added: dict[str, int] = cast("Any", large).get_added_vocab()
        differing = next((t for t, at in more.items() if t not in known and (at < common or t not in added)), None)
    if differing is not None:
        raise ModelError(
            f"The SFT and the baseline model have different tokenizers ({sft.name_or_path!r} and "
            f"{baseline.name_or_path!r}: token {differing!r} is {_place(sft, differing)} in the first and "
            f"{_place(baseline, differing)} in the second); decoding needs one vocabulary: take two models of one "
            "family."
        )
    return common


def _place(tokenizer: PreTrainedTokenizerBase, token: str) -> str:
    at = vocabulary(tokenizer).get(token)
    return "missing" if at is None else f"number {at}"
