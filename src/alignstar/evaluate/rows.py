"""From a row of somebody's data to an example: prompt, and where there are two answers, the better and the worse one.

Recognised by their keys: the types of TRL (prompt-only, language modelling, prompt-completion, preference with and
without prompt, unpaired; texts or conversations), HH-RLHF, UltraFeedback as published and binarised, Nectar,
AlpacaEval. A text with "Human:" and "Assistant:" turns is a dialogue. Knows no file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

from alignstar.errors import PromptError
from alignstar.types import Message

Dialogue: TypeAlias = Literal["messages", "text"]
Turns: TypeAlias = tuple[Message, ...]

ROLES = ("system", "user", "assistant")
ANSWER = "\n\nAssistant:"
NEXT_TURN = "\n\nHuman:"
"""Texts of "Human: ... Assistant:" turns: what stands before an answer, and what a text goes on with after one."""
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One row: the prompt's messages, where it stands, and the answers that it has.

    A preference has two; any other answer stands in `chosen`. `user` is who preferred and `group` what kind of person
    that is, where the row has these keys, `subset` what it says it belongs to. `written_out`: its texts are
    "Human: ... Assistant:" turns, so that a model which goes on with such a text may begin the next turn itself.
    """

    prompt: Turns
    where: str
    chosen: str | None = None
    rejected: str | None = None
    user: str | None = None
    group: str | None = None
    subset: str = "all"
    written_out: bool = False

    @property
    def shown(self) -> str:
        """The prompt for a reader: a single message as it is, several with their roles."""
        if len(self.prompt) == 1:
            return self.prompt[0].content
        return "\n\n".join(f"{message.role}: {message.content}" for message in self.prompt)


def example(
    row: Any, *, where: str, columns: Mapping[str, str] | None = None, dialogue: Dialogue = "messages"
) -> Example:
    """What a row says. `columns` maps a key known here to the row's own. A bare text is a prompt.

    Raises PromptError, beginning with `where`, for a row of no known form or one without a prompt.
    """
    given = _renamed({"prompt": row} if isinstance(row, str) else row, columns or {}, where)
    known = next((read for keys, read in _FORMS if keys <= given.keys()), None)
    if known is None:
        forms = "; ".join(", ".join(sorted(keys)) for keys, _ in _FORMS)
        raise PromptError(
            f"{where}: its keys ({', '.join(sorted(given))}) are those of no known form ({forms}); name them in "
            "data.columns."
        )
    try:
        prompt, chosen, rejected = known(given, dialogue)
    except _Malformed as error:
        raise PromptError(f"{where}: {error}") from None
    if not any(message.content.strip() for message in prompt):
        raise PromptError(f"{where}: the prompt is empty; drop the row or fill it in.")
    user, group = given.get("user"), given.get("group")
    return Example(
        prompt=prompt,
        where=where,
        chosen=chosen,
        rejected=rejected,
        user=None if user is None else str(user),
        group=None if group is None else str(group),
        subset=str(given.get("subset", "all")),
        written_out=any(isinstance(value, str) and _TURN.match(value) for value in given.values()),
    )


Read: TypeAlias = tuple[Turns, str | None, str | None]


class _Malformed(ValueError):
    """What is wrong inside a row of known form, and what to do."""


def _renamed(row: Any, columns: Mapping[str, str], where: str) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise PromptError(f"{where}: is {type(row).__name__}, not an object with keys; write one object per row.")
    given = {str(key): value for key, value in cast("Mapping[Any, Any]", row).items() if value is not None}
    for ours, theirs in columns.items():
        if theirs not in given:
            raise PromptError(f"{where}: has no {theirs!r}, which data.columns calls {ours}; correct one of them.")
        given[ours] = given.pop(theirs)
    return given


def _preference(row: Mapping[str, Any], dialogue: Dialogue) -> Read:
    """TRL's preference with its prompt; binarised UltraFeedback, whose answers repeat the prompt, included."""
    if isinstance(row["chosen"], Sequence) and not isinstance(row["chosen"], str):
        chosen, rejected = _turns(row["chosen"], "chosen"), _turns(row["rejected"], "rejected")
        prompt = _prompt(row["prompt"], dialogue)
        # Answers that hold whole conversations know the earlier turns better than the prompt, which may be one text.
        return (prompt if len(chosen) == 1 else chosen[:-1]), _answer(chosen, "chosen"), _answer(rejected, "rejected")
    return _prompt(row["prompt"], dialogue), _text(row, "chosen"), _text(row, "rejected")


def _pair(row: Mapping[str, Any], dialogue: Dialogue) -> Read:
    """Two whole conversations or texts: the prompt is what they have in common (HH-RLHF: up to the last answer)."""
    if isinstance(row["chosen"], str):
        chosen, rejected = _text(row, "chosen"), _text(row, "rejected")
        common = os.path.commonprefix([chosen, rejected])  # noqa: RUF071 - of texts, not of paths
        end = common.rfind(ANSWER)
        if end < 0 and _TURN.match(chosen):
            raise _Malformed("chosen and rejected are dialogues that have no turn in common; drop the row.")
        # Where texts part inside a word, the word belongs to the answers.
        at = end + len(ANSWER) if end >= 0 else len(common.rstrip())
        answers = [_TURN.split(text[at:])[0].strip() for text in (chosen, rejected)]
        return _prompt(chosen[:at], dialogue), answers[0], answers[1]
    chosen, rejected = _turns(row["chosen"], "chosen"), _turns(row["rejected"], "rejected")
    if chosen[:-1] != rejected[:-1]:
        raise _Malformed("chosen and rejected differ before their last message; drop the row.")
    return chosen[:-1], _answer(chosen, "chosen"), _answer(rejected, "rejected")


def _nectar(row: Mapping[str, Any], dialogue: Dialogue) -> Read:
    ranked = sorted(_answers(row, "answers", "answer", "rank"), key=lambda answer: answer[0])
    return _prompt(row["prompt"], dialogue), ranked[0][1], ranked[-1][1]


def _ultrafeedback(row: Mapping[str, Any], dialogue: Dialogue) -> Read:
    prompt = _prompt(row["instruction"], dialogue)
    if not row["completions"]:
        return prompt, None, None
    ranked = sorted(_answers(row, "completions", "response", "overall_score"), key=lambda answer: -answer[0])
    return prompt, ranked[0][1], ranked[-1][1]


def _instruction(row: Mapping[str, Any], dialogue: Dialogue) -> Read:
    """AlpacaEval's records and Alpaca's, which may have an input to the instruction, and an output."""
    parts = [part for name in ("instruction", "input") if name in row and (part := _text(row, name))]
    output = _text(row, "output") if "output" in row else None
    return _prompt("\n\n".join(parts), dialogue), output, None


def _plain(row: Mapping[str, Any], dialogue: Dialogue) -> Read:
    """Prompt-only, prompt-completion and unpaired preference, whose poor completions (label false) are no answers."""
    prompt = _prompt(row["prompt"], dialogue)
    if "completion" not in row or row.get("label") is False:
        return prompt, None, None
    if isinstance(row["completion"], str):
        return prompt, row["completion"], None
    return prompt, _answer(_turns(row["completion"], "completion"), "completion"), None


def _messages(row: Mapping[str, Any], dialogue: Dialogue) -> Read:
    """Language modelling: everything before a last answer, and that answer."""
    turns = _turns(row["messages"], "messages")
    return (turns[:-1], turns[-1].content, None) if turns[-1].role == "assistant" else (turns, None, None)


_FORMS: tuple[tuple[frozenset[str], Callable[[Mapping[str, Any], Dialogue], Read]], ...] = (
    (frozenset({"prompt", "chosen", "rejected"}), _preference),
    (frozenset({"chosen", "rejected"}), _pair),
    (frozenset({"prompt", "answers"}), _nectar),
    (frozenset({"instruction", "completions"}), _ultrafeedback),
    (frozenset({"prompt"}), _plain),
    (frozenset({"messages"}), _messages),
    (frozenset({"instruction"}), _instruction),
)
"""The keys of each form and its reader; the first whose keys are all there counts."""


def _prompt(value: Any, dialogue: Dialogue) -> Turns:
    if not isinstance(value, str):
        turns = _turns(value, "prompt")
        return turns[:-1] if turns[-1].role == "assistant" and not turns[-1].content.strip() else turns
    if dialogue == "text" or not _TURN.match(value):
        return (Message(role="user", content=value),)
    return _dialogue(value)


def _dialogue(text: str) -> Turns:
    """The turns of a "Human: ... Assistant: ..." text; an answer that is still to come is none."""
    _, *pieces = _TURN.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [
        Message(role=roles[who], content=said.strip()) for who, said in zip(pieces[::2], pieces[1::2], strict=True)
    ]
    return tuple(turns[:-1] if turns[-1].role == "assistant" and not turns[-1].content else turns)


def _turns(value: Any, name: str) -> Turns:
    turns: list[Message] = []
    for number, turn in enumerate(cast("Sequence[Any]", value) if isinstance(value, Sequence) else (), start=1):
        match turn:
            case {"role": str(role), "content": str(content)} if role in ROLES:
                turns.append(Message(role=role, content=content))
            case _:
                raise _Malformed(
                    f"message {number} of {name} must have a role ({', '.join(ROLES)}) and a content that is text."
                )
    if not turns:
        raise _Malformed(f"{name} must be a text or a list of messages, at least one.")
    return tuple(turns)


def _answer(turns: Turns, name: str) -> str:
    if turns[-1].role != "assistant":
        raise _Malformed(f"{name} must end with an assistant's message.")
    return turns[-1].content


def _text(row: Mapping[str, Any], name: str) -> str:
    if not isinstance(row[name], str):
        raise _Malformed(f"{name} must be text, not {type(row[name]).__name__}.")
    return row[name]


def _answers(row: Mapping[str, Any], name: str, text: str, mark: str) -> list[tuple[float, str]]:
    """(mark, text) of every answer in a list of records."""
    found: list[tuple[float, str]] = []
    for answer in row[name]:
        match answer:
            case {**keys} if isinstance(keys.get(text), str) and isinstance(keys.get(mark), int | float):
                found.append((float(keys[mark]), keys[text]))
            case _:
                raise _Malformed(f"each of {name} must have {text}, a text, and {mark}, a number.")
    if not found:
        raise _Malformed(f"{name} is empty; drop the row.")
    return found
