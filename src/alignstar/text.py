"""Messages to prompt to token ids and back to text; stop strings; incremental decoding.

Knows no model. A `Codec` hides the tokenizer: the transformers one lives in `models/hf`, the toy one in `models/toy`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from alignstar.errors import OptionError
from alignstar.types import Ids, Message, Prompt

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Codec(Protocol):
    """Turns requests into prompts and token ids into text."""

    @property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end a response."""
        ...

    @property
    def pad_id(self) -> int:
        """The pad token, or an end-of-sequence id where there is none."""
        ...

    def prompt(self, request: str | Sequence[Message], *, chat: bool | None = None) -> Prompt:
        """The prompt for a text or a conversation. `chat`: apply the chat template (None: where there is one).

        Raises PromptError for an empty prompt where the tokenizer has no BOS.
        """
        ...

    def decode(self, ids: Ids, *, special: bool = False) -> str:
        """Text of response tokens as it continues a prompt: a leading space stays.

        Special tokens and the bytes of a character that is not complete at the end are left out. With `special` it is
        the tokenizer's plain decode of `ids`, special tokens and replacement characters included.
        """
        ...


def as_messages(request: str | Sequence[Message]) -> tuple[Message, ...]:
    """A plain text is one user turn."""
    if isinstance(request, str):
        return (Message(role="user", content=request),)
    return tuple(request)


class Stops:
    """Strings that end a response. They may begin in one token and end in another.

    The one that is complete first ends the response, so the result is the same wherever the borders of tokens lie.
    Raises OptionError for an empty string.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self.strings = tuple(strings)
        if "" in self.strings:
            raise OptionError("stop='' is empty and would end every response at once; give a text or leave it out.")

    def cut(self, text: str) -> tuple[str, bool]:
        """`text` up to the stop string that ends first (of two: the longer), and whether there was one."""
        found = [(at + len(s), at) for s in self.strings if (at := text.find(s)) >= 0]
        return (text[: min(found)[1]], True) if found else (text, False)

    def safe(self, text: str) -> str:
        """The part of `text`, which holds no stop string, that no later text can turn into one."""
        longest = max(
            (n for s in self.strings for n in range(min(len(s) - 1, len(text)), 0, -1) if text.endswith(s[:n])),
            default=0,
        )
        return text[: len(text) - longest]


def complete_characters(text: str) -> str:
    """`text` without the replacement characters that an unfinished byte sequence leaves at its end."""
    return text.rstrip(REPLACEMENT)


def decoded(ids: Ids, decode: Callable[[Ids], str]) -> str:
    """`decode(ids)` without the bytes of a character that is not complete at the end.

    A byte-level vocabulary decodes the unfinished bytes alone to replacement characters; one with byte fallback spoils
    the whole run of byte tokens, complete characters included. Hence the longest text that a cut of up to three tokens
    (the most that an unfinished character can have) gives.
    """
    text = decode(ids)
    if not text.endswith(REPLACEMENT):
        return text
    shorter = (complete_characters(decode(ids[: len(ids) - n])) for n in range(1, min(3, len(ids)) + 1))
    return max((complete_characters(text), *shorter), key=len)


SETTLED_EVERY = 16
"""Tokens after which a further part of a text is settled; as many stay that are decoded again."""


class Growing:
    """The text of a response that grows token by token, put together from that of its beginning and of the rest.

    A beginning is settled where that gives the text of the whole: it does not in the middle of a character, nor with a
    codec whose texts are more than their parts. Then the whole is decoded until another beginning is tried.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self.settled = 0  # tokens whose text is not asked for again
        self._text = ""  # theirs
        self._due = 2 * SETTLED_EVERY

    def text(self, ids: Ids) -> str:
        """The text of `ids`, which begin with those of the calls before."""
        if len(ids) < self._due:
            return self._text + self._codec.decode(ids[self.settled :])
        self._due = len(ids) + SETTLED_EVERY
        whole, beginning = self._codec.decode(ids), len(ids) - SETTLED_EVERY
        self.settled, self._text = beginning, self._codec.decode(ids[:beginning])
        if self._text + self._codec.decode(ids[beginning:]) != whole:
            self.settled, self._text = 0, ""
        return whole
