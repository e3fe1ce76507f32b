"""Transfer Q* against the published loop and against plain decoding, on the same models and prompts, in one process.

Compares wall time (medians of alternating repeats), tokens, sequential steps and KV positions, and checks that every
way of running Transfer Q* gives the naive loop's ids. A difference is reported, never hidden. What the naive loop and
`generate` push is counted at their models; ours is what Usage says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from alignstar.bench.naive import naive_transfer_q
from alignstar.bench.rows import Decoded, Difference, Row, Way, alternate, near_tie_steps, pushed_through
from alignstar.bench.setups import KV_TOKENS, Setup, decision_entropy
from alignstar.types import Ids, Response

NAIVE, GENERATE, GREEDY, OURS = "naive", "transformers generate", "greedy", "ours"
SKIPPING, WINDOW = "+ certified skipping", "+ window"

SAVINGS: Mapping[str, Mapping[str, Any]] = {
    "shared prefixes": {"acceleration": "off", "guesses": False},
    "+ spine": {"window": 1, "skip": False, "guesses": False},
    SKIPPING: {"window": 1, "guesses": False},
    WINDOW: {"guesses": False},
    OURS: {},
}
"""Each with the savings of those above it; the last one is the method as it comes."""

PLAIN = (GREEDY, GENERATE)

PER_TOKEN = (
    "lm_tokens", "rm_tokens", "sequential_steps", "discarded_tokens", "recomputed_tokens", "candidates", "certified",
)  # fmt: skip
"""Counts of Usage that are told per emitted token."""

TEXTS_AT_ONCE = 10
"""Texts in one request to the reward model, at most, in multiples of k: a window of positions and some room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is decoded and how often. `naive_tokens`: the naive loop, which costs seconds per token, decodes so many.

    `each_saving` false leaves out everything but naive, ours and plain decoding.
    """

    tokens: int = 96
    naive_tokens: int | None = None
    repeats: int = 3
    k: int = 10
    rollout_len: int = 20
    alpha: float = 1.0
    each_saving: bool = True

    @property
    def options(self) -> dict[str, Any]:
        """Of Transfer Q*, common to all ways. Rollouts go on past the last token, as the published ones do."""
        return {
            "method": "transfer-q", "k": self.k, "rollout_len": self.rollout_len, "alpha": self.alpha,
            "transfer": "direct", "rollout_past_max": True,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A setup's rows, naive first, and what the setup was like."""

    setup: str
    clip: float | None
    prompts: int
    work: Work
    prompt_entropy: float
    entropy: float
    rows: tuple[Row, ...]

    @property
    def naive(self) -> Row:
        """What the others are compared with."""
        return self.rows[0]

    def difference(self, row: Row) -> Difference | None:
        """From naive's ids; plain decoding is not compared."""
        return None if row.name in PLAIN else row.difference(self.naive)

    @property
    def wrong(self) -> list[str]:
        """The ways whose ids differ from naive's where no near tie excuses it."""
        found = [(row.name, self.difference(row)) for row in self.rows]
        return [name for name, difference in found if difference is not None and not difference.near_tie]

    def as_json(self) -> dict[str, Any]:
        """Keys of a run.

        setup, clip (null: no range), prompts, tokens, naive_tokens, k, rollout_len, alpha; prompt_entropy (mean over
        the prompts' positions) and entropy (over the states that naive decided in), nats; rows, naive first. A row has
        name, seconds (every repeat), emitted (tokens of all prompts), tokens (of one), x_naive (median paired ratio of
        seconds per token), ids_equal, first_difference (null, or prompt, token, near_tie), and per emitted token
        lm_tokens, rm_tokens, sequential_steps; lm_kv and rm_kv, the most KV positions held by either model. Ours also
        has discarded_tokens, recomputed_tokens, candidates and certified per token, the shares evaluated and
        without_rollout, near_ties of the whole run.
        """
        return {
            "setup": self.setup, "clip": self.clip, "prompts": self.prompts, "tokens": self.work.tokens,
            "naive_tokens": self.naive.tokens, "k": self.work.k, "rollout_len": self.work.rollout_len,
            "alpha": self.work.alpha, "prompt_entropy": self.prompt_entropy, "entropy": self.entropy,
            "rows": [self._row(row) for row in self.rows],
        }  # fmt: skip

    def _row(self, row: Row) -> dict[str, Any]:
        told = row.as_json() | {"x_naive": row.times_faster_than(self.naive)}
        if row.name in PLAIN:
            return told
        where = self.difference(row)
        place = None if where is None else {"prompt": where.prompt, "token": where.token, "near_tie": where.near_tie}
        return told | {"ids_equal": where is None, "first_difference": place}


def run(setup: Setup, work: Work, *, on_way: Callable[[str], None]) -> Outcome:
    """Every way in turn, `repeats` times; each starts cold."""
    ways: dict[str, Way] = {NAIVE: partial(naive, setup, work)}
    left_out = set() if work.each_saving else set(SAVINGS) - {OURS}
    if setup.clip is None:
        left_out.add(SKIPPING)  # nothing can be skipped: it would be the row above it
    for name in (name for name in SAVINGS if name not in left_out):
        ways[name] = partial(ours, setup, tokens=work.tokens, **work.options, **SAVINGS[name])
    ways[GREEDY] = partial(ours, setup, tokens=work.tokens, method="greedy", model="baseline", judged=False)
    ways[GENERATE] = partial(generate, setup, tokens=work.tokens)
    rows = alternate(ways, repeats=work.repeats, on_way=on_way)
    return Outcome(
        setup=setup.name,
        clip=setup.clip,
        prompts=len(setup.prompts),
        work=work,
        prompt_entropy=setup.entropy,
        entropy=decision_entropy(setup, rows[0].runs[0].ids),
        rows=tuple(rows),
    )


def naive(setup: Setup, work: Work) -> Decoded:
    """The published loop, one prompt after another."""
    tokens = work.tokens if work.naive_tokens is None else min(work.naive_tokens, work.tokens)
    made: list[Ids] = []
    with pushed_through(setup.model) as lm, pushed_through(setup.judge.model.base_model) as rm:
        started = time.perf_counter()
        for prompt in setup.prompts:
            ids = naive_transfer_q(
                setup.model,
                prompt.ids,
                partial(setup.judged, prompt),
                k=work.k,
                weight=1.0 / work.alpha,
                rollout_len=work.rollout_len,
                max_new_tokens=tokens,
            )
            made.append(tuple(ids))
        seconds = time.perf_counter() - started
    emitted = tokens * len(made)
    counts = {
        "lm_tokens": lm.tokens / emitted,
        "rm_tokens": rm.tokens / emitted,
        "sequential_steps": lm.forwards / emitted,
        "lm_kv": float(lm.widest),
        "rm_kv": float(rm.widest),
    }
    return Decoded(ids=tuple(made), seconds=seconds, counts=counts)


def ours(
    setup: Setup, *, tokens: int, lm_kv: int = KV_TOKENS, guesses: bool = True, judged: bool = True, **options: Any
) -> Decoded:
    """Alignstar on a cold engine, all prompts together; opening the engine is not timed.

    `lm_kv` bounds the positions of the language model. The reward model has room for the texts of one request, which
    the engine admits as if they shared nothing.
    """
    longest = max(len(p.ids) for p in setup.prompts) + tokens + options.get("rollout_len", 0)
    rm_kv = max(KV_TOKENS, TEXTS_AT_ONCE * options.get("k", 1) * longest)
    with setup.opened(lm_kv=lm_kv, rm_kv=rm_kv, guesses=guesses, judged=judged) as opened:
        started = time.perf_counter()
        responses = opened.aligner.generate_many(setup.prompts, max_new_tokens=tokens, **options)
        seconds = time.perf_counter() - started
        rm_held = opened.heads.held
    return Decoded(
        ids=tuple(r.ids for r in responses),
        seconds=seconds,
        counts=_counts(responses, rm_held),
        doubtful=near_tie_steps(responses),
    )


def _counts(responses: Sequence[Response], rm_kv: int) -> dict[str, float]:
    """Usage per emitted token, how often nothing had to be rolled out, and the positions held."""
    emitted = sum(len(r.ids) for r in responses)
    counts = {name: sum(getattr(r.usage, name) for r in responses) / emitted for name in PER_TOKEN}
    steps = [step for r in responses for step in r.steps]
    if counts["candidates"]:
        counts["evaluated"] = 1.0 - counts["certified"] / counts["candidates"]
        counts["without_rollout"] = sum(len(s.considered) <= 1 for s in steps) / len(steps)
    counts["near_ties"] = float(sum(r.usage.near_ties for r in responses))
    counts["lm_kv"] = float(max(r.usage.peak_kv_tokens for r in responses))
    return counts | {"rm_kv": float(rm_kv)}


def generate(setup: Setup, *, tokens: int) -> Decoded:
    """The library's own greedy decoding, all prompts in one batch, padded at the left."""
    width = max(len(p.ids) for p in setup.prompts)
    rows = torch.zeros(len(setup.prompts), width, dtype=torch.long, device=setup.device)
    mask = torch.zeros_like(rows)
    for i, prompt in enumerate(setup.prompts):
        rows[i, width - len(prompt.ids) :] = torch.tensor(prompt.ids)
        mask[i, width - len(prompt.ids) :] = 1
    with torch.inference_mode(), pushed_through(setup.model) as lm:
        started = time.perf_counter()
        made = setup.model.generate(
            rows, attention_mask=mask, do_sample=False, max_new_tokens=tokens, pad_token_id=0
        ).tolist()
        seconds = time.perf_counter() - started
    emitted = tokens * len(made)
    counts = {
        "lm_tokens": lm.tokens / emitted,
        "rm_tokens": 0.0,
        "sequential_steps": lm.forwards / tokens,
        "lm_kv": float(lm.widest),
        "rm_kv": 0.0,
    }
    return Decoded(ids=tuple(tuple(ids[width:]) for ids in made), seconds=seconds, counts=counts)
