"""Ways of decoding the same prompts, timed in turn, and their ids compared. Knows nothing of what a way does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from alignstar.types import Ids, Response


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """One run of a way: ids per prompt, seconds of them all, counts per emitted token (peaks: as they are).

    `doubtful` holds for every prompt the steps that had a near tie.
    """

    ids: tuple[Ids, ...]
    seconds: float
    counts: Mapping[str, float]
    doubtful: tuple[frozenset[int], ...] = ()

    @property
    def emitted(self) -> int:
        """Tokens of all prompts."""
        return sum(map(len, self.ids))


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Where a way first gave another token than the reference; `near_tie`: that step's decision was in doubt."""

    prompt: int
    token: int
    near_tie: bool


@dataclass(slots=True)
class Row:
    """One way and its repeats."""

    name: str
    runs: list[Decoded] = field(default_factory=list[Decoded])

    @property
    def counts(self) -> Mapping[str, float]:
        """Of the first repeat."""
        return self.runs[0].counts

    @property
    def tokens(self) -> int:
        """Emitted per prompt."""
        return max(map(len, self.runs[0].ids))

    @property
    def seconds_per_token(self) -> float:
        """Median over repeats."""
        return median(run.seconds / run.emitted for run in self.runs)

    def times_faster_than(self, other: Row) -> float:
        """The median over repeats of paired ratios of seconds per token."""
        return median(
            (theirs.seconds / theirs.emitted) / (own.seconds / own.emitted)
            for own, theirs in zip(self.runs, other.runs, strict=True)
        )

    def difference(self, reference: Row) -> Difference | None:
        """The first one of any repeat from the reference's first repeat, over the tokens that both have."""
        expected = reference.runs[0].ids
        for run in self.runs:
            for p, (own, wanted) in enumerate(zip(run.ids, expected, strict=True)):
                for t, (z, right) in enumerate(zip(own, wanted, strict=False)):
                    if z != right:
                        return Difference(prompt=p, token=t, near_tie=bool(run.doubtful) and t in run.doubtful[p])
        return None

    def as_json(self) -> dict[str, Any]:
        """Keys: name, seconds (of every repeat), emitted (tokens of all prompts), tokens (of a prompt), then counts."""
        return {
            "name": self.name,
            "seconds": [run.seconds for run in self.runs],
            "emitted": self.runs[0].emitted,
            "tokens": self.tokens,
            **self.counts,
        }


Way = Callable[[], Decoded]


def alternate(ways: Mapping[str, Way], *, repeats: int, on_way: Callable[[str], None]) -> list[Row]:
    """Every way in turn, `repeats` times, so that what disturbs the machine disturbs them alike."""
    rows = [Row(name) for name in ways]
    for _ in range(repeats):
        for row in rows:
            on_way(row.name)
            row.runs.append(ways[row.name]())
    return rows


@dataclass(slots=True)
class Pushed:
    """What a module was given: positions pushed, padding included, its forwards, and the most positions in one."""

    tokens: int = 0
    forwards: int = 0
    widest: int = 0


@contextlib.contextmanager
def pushed_through(module: torch.nn.Module) -> Generator[Pushed]:
    """Counts forwards of a transformers model inside the block."""
    count = Pushed()

    def before(_module: torch.nn.Module, _given: tuple[Any, ...], named: dict[str, Any]) -> None:
        ids, cache = named["input_ids"], named.get("past_key_values")
        past = 0 if cache is None else cache.get_seq_length()
        count.tokens += ids.numel()
        count.forwards += 1
        count.widest = max(count.widest, ids.shape[0] * (past + ids.shape[1]))

    handle = module.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield count
    finally:
        handle.remove()


def near_tie_steps(responses: Sequence[Response]) -> tuple[frozenset[int], ...]:
    """For every response the steps that had a near tie."""
    return tuple(frozenset(step.index for step in r.steps if step.near_ties) for r in responses)
