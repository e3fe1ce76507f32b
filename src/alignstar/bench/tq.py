"""Transfer Q* against the published loop and against plain decoding, on the same models and prompts, in one process.

Prints ratios of wall time (medians of alternating repeats), tokens and sequential steps, and checks that every way of
running Transfer Q* gives the naive loop's ids. A difference is reported, never hidden.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from alignstar.aligner import Aligner
from alignstar.bench.naive import naive_transfer_q
from alignstar.bench.setups import Setup, mean_entropy
from alignstar.types import Ids, Response

K, ROLLOUT_LEN, ALPHA = 10, 20, 1.0
COMMON: Mapping[str, Any] = {
    "method": "transfer-q", "k": K, "rollout_len": ROLLOUT_LEN, "alpha": ALPHA, "transfer": "direct",
    "rollout_past_max": True,
}  # fmt: skip

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "shared prefixes": {"acceleration": "off"},
    "+ spine": {"window": 1, "skip": False},
    "+ certified skipping": {"window": 1},
    "+ window of 8": {"window": 8},
}
"""Each with the savings of those above it."""


@dataclass(slots=True)
class Row:
    """One way of decoding: seconds of every repeat, ids per prompt, and counts per emitted token."""

    name: str
    ids: tuple[Ids, ...] = ()
    seconds: list[float] = field(default_factory=list[float])
    counts: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A setup's rows, naive first, and what the setup was like."""

    setup: str
    clip: float | None
    tokens: int
    prompts: int
    entropy: float
    rows: tuple[Row, ...]

    def ratio(self, row: Row) -> float:
        """How many times faster than naive: the median over repeats of paired ratios."""
        return median(n / own for n, own in zip(self.rows[0].seconds, row.seconds, strict=False))

    def equal(self, row: Row) -> bool:
        """Whether the ids are the naive loop's."""
        return row.ids == self.rows[0].ids

    def as_json(self) -> dict[str, Any]:
        """Everything printed, and the seconds behind it."""
        return {
            "setup": self.setup, "clip": self.clip, "tokens": self.tokens, "prompts": self.prompts,
            "next_token_entropy": self.entropy, "k": K, "rollout_len": ROLLOUT_LEN, "alpha": ALPHA,
            "rows": [
                {"name": r.name, "seconds": r.seconds, "x_naive": self.ratio(r), "ids_equal": self.equal(r), **r.counts}
                for r in self.rows
            ],
        }  # fmt: skip


def run(setup: Setup, *, tokens: int, repeats: int, on_row: Callable[[str], None]) -> Outcome:
    """Every way in turn, `repeats` times; each starts cold."""
    naive, plain = Row("naive"), Row("transformers generate")
    ours = [Row(name) for name in VARIANTS if setup.clip is not None or name != "+ certified skipping"]
    greedy = Row("greedy")
    for _ in range(repeats):
        on_row(naive.name)
        _time(naive, lambda: _naive(setup, tokens, naive))
        for row in ours:
            on_row(row.name)
            with setup.aligner() as aligner:
                _time(row, lambda row=row, aligner=aligner: _ours(aligner, setup, tokens, row, VARIANTS[row.name]))
        on_row(greedy.name)
        with setup.aligner() as aligner:
            _time(greedy, lambda aligner=aligner: _ours(aligner, setup, tokens, greedy, None))
        on_row(plain.name)
        _time(plain, lambda: _generate(setup, tokens, plain))
    sequences = [p.ids + ids for p, ids in zip(setup.prompts, naive.ids, strict=True)]
    return Outcome(
        setup=setup.name,
        clip=setup.clip,
        tokens=tokens,
        prompts=len(setup.prompts),
        entropy=mean_entropy(setup.model, sequences),
        rows=(naive, *ours, greedy, plain),
    )


def _time(row: Row, decode: Callable[[], Sequence[Ids]]) -> None:
    started = time.perf_counter()
    ids = tuple(decode())
    row.seconds.append(time.perf_counter() - started)
    assert not row.ids or row.ids == ids, f"{row.name} gave other ids in another repeat"
    row.ids = ids


def _naive(setup: Setup, tokens: int, row: Row) -> list[Ids]:
    """One prompt after another. Its tokens are counted from the shapes that it pushes."""
    made: list[Ids] = []
    pushed = 0
    for prompt in setup.prompts:
        ids = naive_transfer_q(
            setup.model,
            prompt.ids,
            lambda rows, prompt=prompt: setup.judged(prompt, rows),
            k=K,
            weight=1.0 / ALPHA,
            rollout_len=ROLLOUT_LEN,
            max_new_tokens=tokens,
        )
        made.append(tuple(ids))
        # generate prefills k rows of the prompt, the response and a candidate, then pushes all but the last new token
        lengths = [len(prompt.ids) + t for t in range(tokens)]
        pushed += sum(n + K * (n + 1 + ROLLOUT_LEN - 1) for n in lengths)
    row.counts = {"lm_tokens": pushed / (tokens * len(made)), "sequential_steps": float(ROLLOUT_LEN + 1)}
    return made


def _ours(aligner: Aligner, setup: Setup, tokens: int, row: Row, options: Mapping[str, Any] | None) -> list[Ids]:
    how = {"method": "greedy", "model": "baseline"} if options is None else {**COMMON, **options}
    responses = aligner.generate_many(setup.prompts, max_new_tokens=tokens, **how)
    row.counts = _counts(responses)
    return [r.ids for r in responses]


def _counts(responses: Sequence[Response]) -> dict[str, float]:
    """Usage per emitted token, and how often nothing had to be rolled out."""
    emitted = sum(len(r.ids) for r in responses)
    names = ("lm_tokens", "rm_tokens", "sequential_steps", "discarded_tokens", "candidates", "certified")
    counts = {name: sum(getattr(r.usage, name) for r in responses) / emitted for name in names}
    steps = [step for r in responses for step in r.steps]
    counts["near_ties"] = float(sum(r.usage.near_ties for r in responses))
    counts["steps_without_rollout"] = sum(len(s.considered) <= 1 for s in steps) / len(steps)
    counts["peak_kv_tokens"] = float(max(r.usage.peak_kv_tokens for r in responses))
    return counts


def _generate(setup: Setup, tokens: int, row: Row) -> list[Ids]:
    """The library's own greedy decoding: prompts of one length together, as its users would."""
    made: dict[int, Ids] = {}
    lengths = {len(p.ids) for p in setup.prompts}
    for length in lengths:
        mine = [i for i, p in enumerate(setup.prompts) if len(p.ids) == length]
        rows = torch.tensor([setup.prompts[i].ids for i in mine])
        with torch.inference_mode():
            out = setup.model.generate(
                rows, attention_mask=torch.ones_like(rows), do_sample=False, max_new_tokens=tokens, pad_token_id=0
            )
        made.update((i, tuple(ids[length:])) for i, ids in zip(mine, out.tolist(), strict=True))
    row.counts = {"lm_tokens": 1.0, "sequential_steps": 1.0}
    return [made[i] for i in range(len(setup.prompts))]
