"""KV positions that the language model holds under Transfer Q* with one long prompt.

They are compared with prompt + response + k rollouts. The engine keeps what it has room for, since it may be asked for
again; so what it *needs* shows when the room is bounded: each bound is a row, with what had to be computed again, and
the same ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from alignstar.bench.rows import Row, alternate
from alignstar.bench.setups import KV_TOKENS, Setup
from alignstar.bench.tq import Work, ours


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Rows by their bound on the language model's positions, the widest first."""

    setup: str
    clip: float | None
    work: Work
    needed: int
    bounds: tuple[int, ...]
    kv_bytes: int
    rows: tuple[Row, ...]

    def share(self, row: Row) -> float:
        """Positions held, in multiples of `needed`."""
        return row.counts["lm_kv"] / self.needed

    @property
    def wrong(self) -> list[str]:
        """The rows whose ids differ from the widest one's where no near tie excuses it."""
        found = [(row.name, row.difference(self.rows[0])) for row in self.rows]
        return [name for name, difference in found if difference is not None and not difference.near_tie]

    def as_json(self) -> dict[str, Any]:
        """Keys of a run.

        setup, clip (null: no range), tokens, k, rollout_len, alpha; needed, that is prompt + response + k rollouts;
        kv_bytes of one position; rows with the keys of `Row.as_json` and of tq's counts, and bound, x_needed,
        ids_equal (to the first row's).
        """
        return {
            "setup": self.setup, "clip": self.clip, "tokens": self.work.tokens, "k": self.work.k,
            "rollout_len": self.work.rollout_len, "alpha": self.work.alpha, "needed": self.needed,
            "kv_bytes": self.kv_bytes,
            "rows": [
                row.as_json()
                | {"bound": bound, "x_needed": self.share(row), "ids_equal": row.difference(self.rows[0]) is None}
                for bound, row in zip(self.bounds, self.rows, strict=True)
            ],
        }  # fmt: skip


def run(setup: Setup, work: Work, *, factors: Sequence[float], repeats: int, on_way: Callable[[str], None]) -> Outcome:
    """One prompt, with room for everything and then with `factors` times what is needed."""
    needed = len(setup.prompts[0].ids) + work.tokens + work.k * work.rollout_len
    bounds = (KV_TOKENS, *(int(factor * needed) for factor in factors))
    names = ("unbounded", *(f"at most {factor:g} x" for factor in factors))
    ways = {
        name: partial(ours, setup, tokens=work.tokens, lm_kv=bound, **work.options)
        for name, bound in zip(names, bounds, strict=True)
    }
    rows = alternate(ways, repeats=repeats, on_way=on_way)
    return Outcome(
        setup=setup.name,
        clip=setup.clip,
        work=work,
        needed=needed,
        bounds=bounds,
        kv_bytes=_kv_bytes(setup),
        rows=tuple(rows),
    )


def _kv_bytes(setup: Setup) -> int:
    config = setup.model.config
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * setup.model.dtype.itemsize
