"""Questions to an OpenAI-compatible chat endpoint: cached on disk, retried, limited in number, tokens and company.

An answer is stored under the hash of everything that was sent, so that asking again costs nothing. What passes by
itself (429, 5xx, time-outs, no connection, no chat completion) is tried again with growing pauses; what does not is
refused at once. The key comes from the environment, goes into one header, and is in no message, file or hash. Knows
nothing of what is asked.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2

from alignstar.errors import FailedError, OptionError
from alignstar.sampling import Noise
from alignstar.types import Message

LONGEST_PAUSE_S = 60.0


class BudgetSpent(FailedError):
    """The limit on requests or tokens is reached; what was answered is in the cache."""


class NoAnswer(FailedError):
    """One question got no answer, however often it was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What may be spent, and how an endpoint is treated.

    `requests` and `tokens` (None: no limit) count what is sent, retries included, and what the endpoint says it used,
    or one token per 3 characters where it says nothing; requests under way when the tokens are spent still finish.
    `attempts` are made of a question, `timeout_s` each, with pauses of `pause_s`, twice that, and so on, or as long as
    the endpoint asks for. `failures` questions in a row without an answer end everything.
    """

    requests: int | None = None
    tokens: int | None = None
    concurrency: int = 8
    attempts: int = 5
    timeout_s: float = 60.0
    pause_s: float = 1.0
    failures: int = 10


@dataclass(slots=True)
class Spent:
    """What was asked of the endpoint and what of the cache."""

    requests: int = 0
    tokens: int = 0
    cached: int = 0


class Chat:
    """A chat endpoint; `url` ends before /chat/completions. Use as an async context manager.

    `cache` is a SQLite file (None: nothing is kept), `key_env` the environment variable with the key; without it no key
    is sent. Raises OptionError for a URL that is none and a cache that cannot be opened.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str,
        cache: Path | None = None,
        key_env: str = "OPENAI_API_KEY",
        limits: Limits | None = None,
    ) -> None:
        self.url, self.model, self.limits, self.spent = url.rstrip("/"), model, limits or Limits(), Spent()
        given = httpx2.URL(self.url)
        if given.scheme not in ("http", "https") or given.userinfo:
            raise OptionError("The endpoint's URL must begin with http:// or https:// and hold no name or password.")
        self._key = os.environ.get(key_env, "")
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx2.AsyncClient(headers=headers, timeout=self.limits.timeout_s)
        self._free = asyncio.Semaphore(self.limits.concurrency)
        self._asking: dict[str, asyncio.Task[str]] = {}
        self._failures = 0
        try:
            self._cache = sqlite3.connect(cache or ":memory:", isolation_level=None)
            self._cache.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, sent TEXT, answer TEXT)")
        except sqlite3.Error as error:
            raise OptionError(f"Cache {str(cache)!r} cannot be used ({error}); delete it or name another.") from error

    async def __aenter__(self) -> Chat:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._client.aclose()
        self._cache.close()

    async def ask(self, messages: Sequence[Message], **parameters: Any) -> str:
        """The answer's text. `parameters` go into the request as they are (temperature, max_tokens, ...).

        Raises NoAnswer after the last attempt, BudgetSpent at the limit, OptionError where the endpoint refuses the
        request (its key, model or parameters), FailedError after too many questions without an answer.
        """
        turns = [{"role": message.role, "content": message.content} for message in messages]
        body = {"model": self.model, "messages": turns, **parameters}
        sent = json.dumps({"url": self.url, **body}, sort_keys=True, ensure_ascii=False)
        key = hashlib.sha256(sent.encode()).hexdigest()
        row = self._cache.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        if row is not None:
            self.spent.cached += 1
            return row[0]
        if key in self._asking:  # the same question, asked twice at a time, is one
            self.spent.cached += 1
            return await asyncio.shield(self._asking[key])
        task = self._asking[key] = asyncio.create_task(self._answered(body))
        try:
            answer = await task
        finally:
            del self._asking[key]
        self._cache.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", (key, sent, answer))
        return answer

    async def _answered(self, body: Mapping[str, Any]) -> str:
        async with self._free:
            try:
                answer = await self._tried(body)
            except NoAnswer as error:
                self._failures += 1
                if self._failures >= self.limits.failures:
                    raise FailedError(
                        f"{self.url} left {self._failures} questions in a row without an answer ({error}); "
                        "see that it works, then ask again: what was answered is kept."
                    ) from error
                raise
        self._failures = 0
        return answer

    async def _tried(self, body: Mapping[str, Any]) -> str:
        """The answer of the first attempt that has one."""
        what = ""
        for attempt in range(self.limits.attempts):
            self._admit()
            wait = None
            try:
                async with asyncio.timeout(self.limits.timeout_s):  # the client's own limit is for each read
                    response = await self._client.post(f"{self.url}/chat/completions", json=dict(body))
            except (httpx2.TransportError, TimeoutError) as error:
                what = type(error).__name__
            else:
                what = f"status {response.status_code}"
                if response.status_code < 300:
                    answer = self._read(response, body)
                    if answer is not None:
                        return answer
                    what += " and no chat completion"
                elif response.status_code != 429 and response.status_code < 500:
                    told = response.text[:200].replace(self._key, "...") if self._key else response.text[:200]
                    raise OptionError(f"{self.url} refused the request with {what}: {told!r}; correct what was sent.")
                wait = _seconds(response.headers.get("retry-after", ""))
            if attempt + 1 < self.limits.attempts:
                await asyncio.sleep(min(LONGEST_PAUSE_S, self._pause(attempt) if wait is None else wait))
        raise NoAnswer(f"{self.limits.attempts} attempts, the last one ended with {what}.")

    def _pause(self, attempt: int) -> float:
        """Doubles every time, and differs by up to two, so that those who failed together do not come back together."""
        spread = float(Noise(seed=self.spent.requests, purpose="pause").uniform(attempt, 1)[0])
        return self.limits.pause_s * 2**attempt * (1 + spread)

    def _admit(self) -> None:
        requests, tokens = self.limits.requests, self.limits.tokens
        if requests is not None and self.spent.requests >= requests:
            raise BudgetSpent(f"{requests} requests, all that were allowed, are spent; allow more to go on.")
        if tokens is not None and self.spent.tokens >= tokens:
            raise BudgetSpent(f"{self.spent.tokens} tokens are spent, {tokens} were allowed; allow more to go on.")
        self.spent.requests += 1

    def _read(self, response: httpx2.Response, body: Mapping[str, Any]) -> str | None:
        """The answer's text; None for a body that is no chat completion."""
        try:
            told = response.json()
        except ValueError:
            told = None
        match told:
            case {"usage": {"total_tokens": int(used)}}:
                self.spent.tokens += used
            case _:
                self.spent.tokens += (len(json.dumps(body["messages"])) + len(response.text)) // 3
        match told:
            case {"choices": [{"message": {"content": str(answer)}}, *_]}:
                return answer
            case _:
                return None


def _seconds(header: str) -> float | None:
    """What Retry-After asks for, where it is a number of seconds."""
    return float(header) if header.strip().isdecimal() else None
