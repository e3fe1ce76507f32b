"""The frozen values that travel through a request. No logic, and no import from the package.

Log-probabilities are natural logarithms (nats) of the unmodified model, everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Ids: TypeAlias = tuple[int, ...]
FinishReason: TypeAlias = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation; `role` is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What is to be answered.

    `messages` is what a reward with its own template reads, `text` is what the language model's tokenizer was given
    (chat template applied), `ids` the tokens that the language model sees, special tokens included.
    """

    messages: tuple[Message, ...]
    text: str
    ids: Ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A response, whole or partial, as a reward sees it.

    `text` holds no special token and no stop string. `complete` says that the response ended by itself (an
    end-of-sequence token or a stop string): a response cut at the length limit is not complete. `ids` are the language
    model's tokens (empty where a backend gives text only). `verbatim` is set by the official presets alone: the whole
    text, prompt and special tokens included, that the reward's tokenizer must be given as it stands, with no template.
    """

    text: str
    complete: bool
    ids: Ids = ()
    verbatim: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One thing a method could emit at a step.

    `logp` is its log-probability under the method's base policy [nats], `value` the (estimated) reward that entered the
    decision (None where none did), `score` the number that was maximised or sampled from, `future` the rollout that
    `value` was measured on (the first one, without `ids`), `log_m` and `ess` the indirect transfer's conditional
    log-normaliser and effective sample size (algorithm: Transfer Q*, App. F).
    """

    ids: Ids
    logp: float
    score: float
    value: float | None = None
    future: Ids = ()
    log_m: float | None = None
    ess: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One decision of a method: what it considered, what it chose, what it emitted.

    `emitted` is appended to the response, or, where `replaces` is true, takes the whole response's place. `chosen`
    indexes `considered`. `near_ties` counts decisions inside this step (candidate set, rollout arg-max, selection)
    whose two best values lie within the backend's tolerance. `finish` is set on the last step only. `text` is filled in
    by the aligner: the text that this step adds for a reader (it may lag behind `emitted` while a character or a
    possible stop string is incomplete).
    """

    index: int
    emitted: Ids
    considered: tuple[Candidate, ...] = ()
    chosen: int = 0
    near_ties: int = 0
    finish: FinishReason | None = None
    replaces: bool = False
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one request costs alone on a cold engine, and beside it what company and cache changed.

    Identity (equal whenever two runs of a request are equal): `lm_tokens` positions pushed through language models that
    the request had not itself pushed before; `sequential_steps` the longest chain of its dependent language-model
    forwards; `rm_tokens` positions pushed through reward models; `rm_calls` replies scored; `near_ties`, `nan_rewards`.

    `candidates` counts the candidate tokens of a search's steps, `certified` those that were left without a reward
    because no reward in its declared range could have made them win.

    Circumstance: `cached_tokens` that others had already computed, `recomputed_tokens` that had to be computed again
    (eviction, a model without reuse), `discarded_tokens` of speculation thrown away, `lm_calls` forwards taken part in,
    `peak_kv_tokens` the most KV positions that the engine held while serving it, `wall_s` seconds.
    """

    lm_tokens: int = 0
    sequential_steps: int = 0
    rm_tokens: int = 0
    rm_calls: int = 0
    near_ties: int = 0
    nan_rewards: int = 0
    candidates: int = 0
    certified: int = 0
    cached_tokens: int = 0
    recomputed_tokens: int = 0
    discarded_tokens: int = 0
    lm_calls: int = 0
    peak_kv_tokens: int = 0
    wall_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A finished response.

    `reward` is the final text's score by the request's reward (None without one; its cost is not in `usage`).
    `ids` end with the end-of-sequence token where the model emitted one; with a stop string they end with the token
    that completed it, and `text` ends before it. `options` are the method's options as they were used.
    """

    prompt: Prompt
    text: str
    ids: Ids
    method: str
    finish_reason: FinishReason
    reward: float | None
    seed: int
    usage: Usage
    steps: tuple[Step, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
