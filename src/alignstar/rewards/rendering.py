"""What a reward model is given to read: the prompt and a reply, whole or partial, in its own template, as token ids.

Knows a tokenizer and no model. Text is tokenised once: with the tokenizer's special tokens where there is no chat
template, without them where the template has written them.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from alignstar.errors import OptionError, PromptError, RewardError
from alignstar.types import Ids, Message, Prompt, Reply

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EndOfTurn: TypeAlias = Literal["complete", "always", "never"]
END_OF_TURN = ("complete", "always", "never")

PLAIN = "{prompt}{response}"
_MARK = "\ue000"  # a character for private use: a template neither trims it nor gives it a meaning


class Rendering:
    """One reward model's way of reading.

    `end_of_turn` says which replies are closed by what the template writes after them: those that are complete, all, or
    none. `template` is text with {prompt} and then {response}, each once, and {eos} for the tokenizer's end-of-sequence
    token; what follows {response} is the end of the turn. Without it the tokenizer's chat template is used, or the
    plain prompt followed by the reply where it has none. {prompt} is the text of the messages, joined by blank lines.
    `max_context` is the most tokens that the model reads (None: no limit); a longer text loses the beginning of its
    prompt, never anything of its reply. Raises OptionError for an unknown `end_of_turn` or a template that is not so.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        end_of_turn: EndOfTurn = "complete",
        template: str | None = None,
        max_context: int | None = None,
    ) -> None:
        if end_of_turn not in END_OF_TURN:
            raise OptionError(f"end_of_turn={end_of_turn!r} is unknown. Known: {', '.join(END_OF_TURN)}.")
        self._tokenizer: Any = tokenizer
        self._name = name
        self._end_of_turn = end_of_turn
        self._max_context = max_context
        self._chat = template is None and self._tokenizer.chat_template is not None
        self._before, self._between, self._after = self._parts(PLAIN if template is None else template)
        self._suffix = functools.lru_cache(maxsize=64)(self._find_suffix)

    def ids(self, prompt: Prompt, reply: Reply) -> Ids:
        """Tokens of the prompt followed by the reply; `reply.verbatim` is tokenised exactly as it stands.

        Raises RewardError where the reply alone is too long for the model, PromptError where the chat template refuses
        the conversation.
        """
        if reply.verbatim is not None:
            ids = self._encode(reply.verbatim, special=True)
            if not self._fits(ids):
                raise self._too_long(len(ids))
            return ids
        ids = self._read(prompt.messages, reply)
        if self._fits(ids):
            return ids
        characters = range(1 + sum(len(message.content) for message in prompt.messages))
        cut = bisect_left(
            characters, True, key=lambda n: self._fits(self._read(_without_beginning(prompt.messages, n), reply))
        )
        if cut == len(characters):
            raise self._too_long(len(self._read(_without_beginning(prompt.messages, cut), reply)))
        return self._read(_without_beginning(prompt.messages, cut), reply)

    def shortest(self, prompt: Prompt) -> int:
        """Tokens that the prompt and an empty reply take, uncut."""
        return len(self._read(prompt.messages, Reply(text="", complete=True)))

    def text(self, messages: Sequence[Message], reply: Reply) -> str:
        """The text that is tokenised."""
        closed = self._end_of_turn == "always" or (self._end_of_turn == "complete" and reply.complete)
        if not self._chat:
            asked = "\n\n".join(message.content for message in messages)
            return self._before + asked + self._between + reply.text + (self._after if closed else "")
        rendered = self._render(messages, reply.text)
        if closed:
            return rendered
        suffix = self._suffix(tuple(messages))
        if not rendered.endswith(suffix):
            raise RewardError(
                f"The chat template of reward {self._name!r} ends this reply in an unusual way, so its end of turn "
                "cannot be left out; set end_of_turn=always."
            )
        return rendered.removesuffix(suffix)

    def _read(self, messages: Sequence[Message], reply: Reply) -> Ids:
        return self._encode(self.text(messages, reply), special=not self._chat)

    def _encode(self, text: str, *, special: bool) -> Ids:
        ids = self._tokenizer(text, add_special_tokens=special)["input_ids"]
        if ids:
            return tuple(ids)
        # Nothing was said yet: a model must read something, and every text begins like this.
        start = (
            self._tokenizer.bos_token_id if self._tokenizer.bos_token_id is not None else self._tokenizer.eos_token_id
        )
        if start is None:
            raise RewardError(
                f"Reward {self._name!r} was given an empty text and its tokenizer has no token to start from."
            )
        return (start,)

    def _fits(self, ids: Ids) -> bool:
        return self._max_context is None or len(ids) <= self._max_context

    def _too_long(self, length: int) -> RewardError:
        return RewardError(
            f"Reward {self._name!r} reads at most {self._max_context} tokens and the reply without its prompt takes "
            f"{length}; lower max_new_tokens or rollout_len."
        )

    def _render(self, messages: Sequence[Message], reply: str) -> str:
        from jinja2 import TemplateError

        turns = [{"role": m.role, "content": m.content} for m in (*messages, Message(role="assistant", content=reply))]
        try:
            text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False)
        except TemplateError as error:
            raise PromptError(
                f"The chat template of reward {self._name!r} refuses this conversation ({error}); change its turns, or "
                "give the reward a template."
            ) from error
        return cast("str", text)

    def _find_suffix(self, messages: tuple[Message, ...]) -> str:
        return self._render(messages, _MARK).rpartition(_MARK)[2]

    def _parts(self, template: str) -> tuple[str, str, str]:
        before, has_prompt, rest = template.partition("{prompt}")
        between, has_response, after = rest.partition("{response}")
        if not has_prompt or not has_response or any(f in before + between + after for f in ("{prompt}", "{response}")):
            raise OptionError(f"template={template!r} must hold {{prompt}} and then {{response}}, each once.")
        if "{eos}" in template and self._tokenizer.eos_token is None:
            raise OptionError(
                f"template={template!r} names {{eos}}, which the tokenizer of {self._name!r} does not have."
            )
        eos = self._tokenizer.eos_token or ""
        return before.replace("{eos}", eos), between.replace("{eos}", eos), after.replace("{eos}", eos)


def _without_beginning(messages: Sequence[Message], characters: int) -> tuple[Message, ...]:
    """The messages without the first `characters` of their contents; turns stay, since templates count them."""
    kept: list[Message] = []
    for message in messages:
        kept.append(replace(message, content=message.content[characters:]))
        characters = max(0, characters - len(message.content))
    return tuple(kept)
