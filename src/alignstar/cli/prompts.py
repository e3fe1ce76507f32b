"""Where a command's prompts come from: a text, a file of lines or of JSON lines, standard input. Knows no model."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

from alignstar.errors import OptionError, PromptError
from alignstar.types import Message

Request: TypeAlias = str | tuple[Message, ...]

ROLES = ("system", "user", "assistant")


def read_prompts(*, prompt: str | None, prompts: str | None) -> list[Request]:
    """The requests, in order.

    `prompt` alone, or those of the file `prompts` ("-": JSON lines from standard input), or standard input as one.
    Raises OptionError when both are given, or neither and standard input is a terminal; PromptError, with the line's
    number, for a file that cannot be read or holds no prompts.
    """
    if prompt is not None and prompts is not None:
        raise OptionError("--prompt and --prompts were both given, one of them is allowed; drop one.")
    if prompt is not None:
        return [prompt]
    if prompts == "-":
        return [request for _, request in _json_lines(sys.stdin.read(), name="standard input")]
    if prompts is not None:
        return [request for _, request in read_placed(Path(prompts))]
    if sys.stdin.isatty():
        raise OptionError("No prompt was given: use --prompt TEXT, --prompts FILE, or pipe a text in.")
    return [_one_prompt(sys.stdin.read())]


def as_json(request: Request) -> str | list[dict[str, str]]:
    """The request as it is written into JSON: a text, or a list of messages."""
    if isinstance(request, str):
        return request
    return [{"role": message.role, "content": message.content} for message in request]


def _one_prompt(text: str) -> str:
    text = text.removesuffix("\n")
    if not text:
        raise PromptError("Standard input holds no prompt (it ends at line 1); pipe a text in or use --prompt TEXT.")
    return text


def read_placed(path: Path) -> list[tuple[str, Request]]:
    """The requests of a prompts file, each with where it stands. Raises PromptError as `read_prompts` does."""
    if path.suffix not in (".jsonl", ".txt"):
        raise PromptError(
            f"Prompts file {str(path)!r} must end in .jsonl (JSON lines) or .txt (one prompt a line); rename it."
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise PromptError(f"Prompts file {str(path)!r} cannot be read ({error.strerror}); check the path.") from error
    except UnicodeDecodeError as error:
        line = 1 + path.read_bytes()[: error.start].count(b"\n")
        raise PromptError(f"Prompts file {str(path)!r}, line {line}: not UTF-8 text; save it as UTF-8.") from error
    if path.suffix == ".jsonl":
        return _json_lines(text, name=f"Prompts file {str(path)!r}")
    name = f"Prompts file {str(path)!r}"
    lines = [(f"{name}, line {n}", line) for n, line in enumerate(text.splitlines(), start=1) if line.strip()]
    return _some(lines, text=text, name=name)


def _json_lines(text: str, *, name: str) -> list[tuple[str, Request]]:
    # Not splitlines: JSON strings may hold other line separators than "\n".
    placed = [(f"{name}, line {n}", line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    return _some([(where, _request(line, where=where)) for where, line in placed], text=text, name=name)


def _some(placed: Sequence[tuple[str, Request]], *, text: str, name: str) -> list[tuple[str, Request]]:
    if not placed:
        last = 1 + text.count("\n")
        raise PromptError(f"{name} ends at line {last} without a prompt; write one per line.")
    return list(placed)


def _request(line: str, *, where: str) -> Request:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise PromptError(
            f"{where}: not JSON ({error.msg}, column {error.colno}); write one object per line."
        ) from error
    if not isinstance(value, dict) or ("prompt" in value) == ("messages" in value):
        raise PromptError(f'{where}: needs an object with either "prompt" or "messages"; write {{"prompt": "..."}}.')
    found = cast(dict[str, Any], value)
    content = found.get("prompt", found.get("messages"))
    if isinstance(content, str) and "prompt" in found:
        return content
    return _messages(content, where=where)


def _messages(value: Any, *, where: str) -> tuple[Message, ...]:
    rule = (
        f'{where}: messages are a list of {{"role": ..., "content": ...}} with texts, role one of {", ".join(ROLES)}; '
    )
    if not isinstance(value, list) or not value:
        raise PromptError(rule + "give at least one.")
    messages: list[Message] = []
    for number, turn in enumerate(cast(Sequence[Any], value), start=1):
        match turn:
            case {"role": str(role), "content": str(content)} if role in ROLES:
                messages.append(Message(role=role, content=content))
            case _:
                raise PromptError(rule + f"message {number} is not.")
    return tuple(messages)
