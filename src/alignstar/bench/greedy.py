"""Our `greedy` against transformers' own greedy `generate` on the same model: what the engine itself costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from alignstar.bench.rows import Difference, Row, alternate
from alignstar.bench.setups import Setup
from alignstar.bench.tq import GENERATE, GREEDY, generate, ours


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The two rows of a setup, the library's first."""

    setup: str
    prompts: int
    tokens: int
    rows: tuple[Row, Row]

    @property
    def ratio(self) -> float:
        """How many times faster ours is: the median over repeats of paired ratios."""
        return self.rows[1].times_faster_than(self.rows[0])

    @property
    def difference(self) -> Difference | None:
        """The first token that is not the library's."""
        return self.rows[1].difference(self.rows[0])

    @property
    def wrong(self) -> list[str]:
        """Our row's name where its ids differ and no near tie excuses it."""
        return [GREEDY] if self.difference is not None and not self.difference.near_tie else []

    def as_json(self) -> dict[str, Any]:
        """Keys: setup, prompts, tokens, x_generate, ids_equal, rows (those of `Row.as_json`, and tq's counts)."""
        return {
            "setup": self.setup, "prompts": self.prompts, "tokens": self.tokens, "x_generate": self.ratio,
            "ids_equal": self.difference is None, "rows": [row.as_json() for row in self.rows],
        }  # fmt: skip


def run(setup: Setup, *, tokens: int, repeats: int, on_way: Callable[[str], None]) -> Outcome:
    """Both in turn, `repeats` times; ours on a cold engine each time."""
    ways = {
        GENERATE: partial(generate, setup, tokens=tokens),
        GREEDY: partial(ours, setup, tokens=tokens, method="greedy", model="baseline", judged=False),
    }
    theirs, mine = alternate(ways, repeats=repeats, on_way=on_way)
    return Outcome(setup=setup.name, prompts=len(setup.prompts), tokens=tokens, rows=(theirs, mine))
