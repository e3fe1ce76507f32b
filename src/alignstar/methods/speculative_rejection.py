"""Speculative Rejection: draw as many rows as memory holds, drop the worst of them whenever it is full.

Sun et al. 2024, arXiv:2410.20290, Algorithm 1. The reward reads the partial texts; a decision is taken at the length
at which the rows still alive fill the budget of KV positions.

Differs: 1) memory is counted in positions, not looked up in a table of models; 2) the prompt's positions are held once,
as the engine holds them; 3) of n scored rows max(1, ceil((1 - a) n)) stay, where the published code rounds and may keep
none; 4) a row that ends is never lost: whatever was completed can be returned; 5) rows keep their tokens and their
noise from phase to phase; 6) what a rejected row held counts as free at once. More in docs/papers.md.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

import numpy as np

from alignstar.errors import NeedsError, PromptError
from alignstar.meter import current_meter, together
from alignstar.methods import parameters as p
from alignstar.methods.roles import one_model
from alignstar.methods.rows import Drawing, Row, step_of_best
from alignstar.models import Pooled, Sampler
from alignstar.rewards import Scorer
from alignstar.sampling import Array, Noise, Sampling, near_tie
from alignstar.types import Prompt, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """A budget of KV positions. `shared`: the prompt's are held once for all rows, else once for each."""

    budget: int
    prompt: int
    shared: bool

    def rows(self, headroom: int, most: int) -> int:
        """How many rows to begin with: as many as have room for the prompt and `headroom` tokens, at least one."""
        free, needed = (self.budget - self.prompt, 0) if self.shared else (self.budget, self.prompt)
        return min(most, max(1, free // (needed + headroom)))

    def full_at(self, rows: int) -> int:
        """The response length at which so many rows fill the budget."""
        if self.shared:
            return (self.budget - self.prompt) // rows
        return self.budget // rows - self.prompt

    def phase(self, rows: int, length: int, max_new_tokens: int) -> int:
        """Tokens that rows of this length are drawn further before the next decision; one where none fits."""
        return max(1, min(self.full_at(rows), max_new_tokens) - length)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """A row with the reward of its text so far."""

    row: Row
    score: float
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Which of the scored rows stay."""

    rejection_rate: float
    quantile: str
    tolerance: float

    def kept(self, scored: Sequence[Scored]) -> tuple[list[Scored], bool]:
        """The accepted ones in their order, and whether the cut is in doubt; rows without a usable score never stay.

        "rank" keeps max(1, ceil((1 - a) n)) of n, ties to the earlier one; "interp" all that reach numpy's a-quantile.
        """
        usable = [s for s in scored if s.score > -math.inf]
        if not usable:
            return [], False
        scores = np.array([s.score for s in usable])
        if self.quantile == "interp":
            accepted = set(np.flatnonzero(scores >= np.quantile(scores, self.rejection_rate)).tolist())
        else:
            count = max(1, math.ceil((1.0 - self.rejection_rate) * len(usable) - 1e-9))
            accepted = set(np.argsort(-scores, kind="stable")[:count].tolist())
        stay = [s for i, s in enumerate(usable) if i in accepted]
        rejected = [s.score for i, s in enumerate(usable) if i not in accepted]
        doubt = bool(rejected) and near_tie([min(s.score for s in stay), max(rejected)], self.tolerance)
        return stay, doubt


@dataclass(slots=True, kw_only=True)
class Contest:
    """The decisions of one request: `archive` holds every complete row, `ranked` those that still count in a cut."""

    cut: Cut
    finished_in_quantile: bool
    max_new_tokens: int
    archive: list[Scored] = field(default_factory=list[Scored])
    ranked: list[Scored] = field(default_factory=list[Scored])
    near_ties: int = 0

    def survivors(self, rows: Sequence[Row], rewards: Array) -> list[Row]:
        """The rows that go on, in order, from those that were drawn up to this decision; none: the contest is over."""
        self.near_ties += sum(row.near_ties for row in rows)
        scored = [
            Scored(row=row, score=float(r), complete=row.ended or len(row.ids) >= self.max_new_tokens)
            for row, r in zip(rows, rewards, strict=True)
        ]
        self.archive = _in_order([*self.archive, *(s for s in scored if s.complete)])
        unfinished = [s for s in scored if not s.complete]
        if not unfinished:
            return []
        counted = _in_order([*self.ranked, *scored]) if self.finished_in_quantile else unfinished
        kept, doubt = self.cut.kept(counted)
        self.near_ties += doubt
        self.ranked = [s for s in kept if s.complete]
        if all(s.score == -math.inf for s in (*self.archive, *unfinished)):
            return [unfinished[0].row]  # nothing can be told apart: the first row, as best-of-n takes it
        return [s.row for s in kept if not s.complete]


async def speculative_rejection(
    prompt: Prompt, *, sft: Sampler | None = None, baseline: Sampler | None = None, reward: Scorer,
    model: p.Model = None, budget: p.KVBudget = 2048, rejection_rate: p.RejectionRate = 0.5,
    headroom: p.Headroom = 8, max_rows: p.MaxRows = 1000, prompt_kv: p.PromptKV = "shared",
    quantile: p.Quantile = "rank", finished_in_quantile: p.FinishedInQuantile = True,
    temperature: p.Temperature = 1.0, top_k: p.TopK = None, top_p: p.TopP = 1.0,
    max_new_tokens: p.MaxNewTokens = 128, seed: p.Seed = 0,
) -> AsyncGenerator[Step, None]:  # fmt: skip
    """One Step at the end; `considered` holds the responses that were completed, in the order of their rows.

    Row i is best-of-n's draw i for the same seed as far as it was drawn. Raises NeedsError without the model, or for
    budget=auto where the backend holds no KV; PromptError where the prompt alone fills the budget.
    """
    base = one_model(model, sft, baseline, "speculative-rejection")
    memory = Memory(budget=_positions(budget, base), prompt=len(prompt.ids), shared=prompt_kv == "shared")
    if memory.full_at(1) < 1:
        raise PromptError(
            f"The prompt has {memory.prompt} tokens, but budget={memory.budget} positions must hold it and a response; "
            "raise the budget or shorten the prompt."
        )
    drawing = Drawing(
        model=base, prompt=prompt, scorer=reward, sampling=Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    )
    contest = Contest(
        cut=Cut(rejection_rate=rejection_rate, quantile=quantile, tolerance=base.tie_tolerance),
        finished_in_quantile=finished_in_quantile,
        max_new_tokens=max_new_tokens,
    )
    count = memory.rows(headroom, max_rows)
    root = Row(noise=Noise(seed=seed, purpose="sample"))
    rows = await drawing.extended(root, memory.phase(count, 0, max_new_tokens), n=count)
    while alive := contest.survivors(rows, await reward(prompt, [row.ids for row in rows])):
        tokens = memory.phase(len(alive), len(alive[0].ids), max_new_tokens)  # all alive are equally long
        rows = [row for (row,) in await together([drawing.extended(row, tokens) for row in alive])]
    step = step_of_best(
        [s.row for s in contest.archive],
        [s.score for s in contest.archive],
        near_ties=contest.near_ties,
        tolerance=base.tie_tolerance,
    )
    current_meter().add("near_ties", step.near_ties)
    yield step


def _in_order(scored: Sequence[Scored]) -> list[Scored]:
    return sorted(scored, key=lambda s: s.row.noise.rollout)


def _positions(budget: int | str, base: Sampler) -> int:
    """The budget in positions. `auto` is a constant of the loaded model, so company does not change a response."""
    if isinstance(budget, int):
        return budget
    positions = base.kv_positions if isinstance(base, Pooled) else None
    if positions is None:
        raise NeedsError(
            f"budget=auto needs a backend that holds KV and tells how much, as {base.name!r} does not; give a number."
        )
    return positions - 1  # the engine promises a row one position more than it pushes
