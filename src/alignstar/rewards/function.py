"""A Python function as a reward, given by its import path `package.module:function`.

Knows no model. A plain function runs in a worker thread, so one that sleeps or waits for a network does not hold up
anybody else; an async one runs in the caller's event loop.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, TypeAlias, cast

from alignstar.errors import OptionError, RewardError
from alignstar.meter import current_meter, together
from alignstar.types import Prompt, Reply

RewardFunction: TypeAlias = Callable[[Any, str, bool], float | Awaitable[float]]


def load_function(path: str) -> RewardFunction:
    """What `package.module:function` names; the working directory is searched last.

    Raises OptionError where there is no such module or function.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise OptionError(f"python:{path} must read python:package.module:function.")
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing runs the stranger's module
        raise OptionError(
            f"python:{path} cannot be imported ({type(error).__name__}: {error}); correct the path, or run from the "
            "directory of the module."
        ) from error
    function: Any = vars(module).get(name)
    if not callable(function):
        raise OptionError(f"python:{path}: module {module_name!r} has no function {name!r}; correct the name.")
    return cast("RewardFunction", function)


class FunctionReward:
    """Calls f(prompt, response_text, complete) -> float once per reply, the replies of one call concurrently.

    `prompt` is the text of the prompt's messages, joined by blank lines, or with prompt="messages" the list of
    {"role": ..., "content": ...}. `complete` says whether the response ended by itself.
    """

    def __init__(
        self, function: RewardFunction, *, name: str | None = None, prompt: Literal["text", "messages"] = "text"
    ) -> None:
        if prompt not in ("text", "messages"):
            raise OptionError(f"prompt={prompt!r} is unknown. Known: text, messages.")
        self.name = name or (function.__qualname__ if inspect.isroutine(function) else repr(function))
        self.range: tuple[float, float] | None = None
        self._function = function
        self._prompt = prompt

    async def score(self, prompt: Prompt, replies: Sequence[Reply]) -> list[float]:
        """What the function returns. Raises RewardError, naming the function, where it raises or gives no number."""
        current_meter().add("rm_calls", len(replies))
        return await together([self._one(prompt, reply) for reply in replies])

    async def _one(self, prompt: Prompt, reply: Reply) -> float:
        given: Any = [{"role": m.role, "content": m.content} for m in prompt.messages]
        if self._prompt == "text":
            given = "\n\n".join(message.content for message in prompt.messages)

        def call() -> Any:
            try:
                return self._function(given, reply.text, reply.complete)
            except Exception as error:
                # Here, since a StopIteration would never come out of a thread.
                raise self._raised(error) from error

        value = call() if inspect.iscoroutinefunction(self._function) else await asyncio.to_thread(call)
        # A partial or a lambda around an async function does not look like one before it is called.
        if inspect.isawaitable(value):
            try:
                value = await value
            except Exception as error:
                raise self._raised(error) from error
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            raise RewardError(f"Reward {self.name!r} returned {value!r}; it must return one number.") from error

    def _raised(self, error: Exception) -> RewardError:
        return RewardError(f"Reward {self.name!r} raised {type(error).__name__} ({error}); correct it.")
