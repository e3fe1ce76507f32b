"""What a run costs before it starts: tokens, sequential steps and KV positions by closed formulas, from sizes alone.

P prompt tokens, T response tokens, k candidates, n rollouts each, L rollout tokens, N draws. Responses are taken to be
T tokens long, so a response that ends by itself costs less. The reward is taken to read prompt and response as the
language model does, without a template, and to reuse prefixes. Knows no weights and imports no torch.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from alignstar.bench.shapes import Shape
from alignstar.errors import OptionError
from alignstar.options import complete


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One prompt's. `exact` is false where what is thrown away, or what rollouts share by chance, is not foreseen.

    `lm_kv` and `rm_kv` are the most KV positions needed at once. `alone`: prompts are decoded one after another.
    """

    way: str
    lm_tokens: int
    rm_tokens: int
    sequential_steps: int
    lm_kv: int
    rm_kv: int
    exact: bool = True
    alone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """A whole run's: tokens of all prompts, memory of those that run together, seconds where a speed is known."""

    cost: Cost
    lm_tokens: int
    rm_tokens: int
    kv_bytes: int
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Keys: way, the run's lm_tokens, rm_tokens, kv_bytes and seconds, and per_prompt with those of Cost."""
        run = {name: value for name, value in asdict(self).items() if name != "cost"}
        return {"way": self.cost.way, **run, "per_prompt": asdict(self.cost)}


def costs(method: str, given: Mapping[str, Any], *, prompt: int, response: int, vocab: int) -> list[Cost]:
    """The ways of running a method, the dearest first. Raises OptionError for what has no formula."""
    if method not in FORMULAS:
        raise OptionError(f"method={method!r} has no formula of its cost; known: {', '.join(FORMULAS)}.")
    options = {**complete(method, {**given, "max_new_tokens": response}), "vocab": vocab}
    return FORMULAS[method](options, prompt, response)


def price(
    cost: Cost, *, prompts: int, together: int, shape: Shape, reward: Shape, speed: Callable[[int], float]
) -> Price:
    """Of a run over `prompts`, `together` at once. `speed` gives tokens/s of the language model for tokens in flight.

    The reward model's speed is the language model's, by their arithmetic per token at the same context.
    """
    at_once = 1 if cost.alone else min(prompts, together)
    context = cost.lm_kv // at_once if cost.alone else cost.lm_kv
    lm_tokens, rm_tokens = prompts * cost.lm_tokens, prompts * cost.rm_tokens
    rate = speed(max(1, at_once * cost.lm_tokens // cost.sequential_steps))
    return Price(
        cost=cost,
        lm_tokens=lm_tokens,
        rm_tokens=rm_tokens,
        kv_bytes=at_once * (cost.lm_kv * shape.kv_bytes + cost.rm_kv * reward.kv_bytes),
        seconds=(lm_tokens + rm_tokens * reward.flops(context) / shape.flops(context)) / rate,
    )


def _plain(options: Mapping[str, Any], p: int, t: int) -> list[Cost]:
    return [Cost(way="token by token", lm_tokens=p + t - 1, rm_tokens=0, sequential_steps=t, lm_kv=p + t, rm_kv=0)]


def _best_of_n(options: Mapping[str, Any], p: int, t: int) -> list[Cost]:
    n = options["n"]
    return [
        Cost(
            way="shared prompt", lm_tokens=p + n * (t - 1), rm_tokens=p + n * t, sequential_steps=t,
            lm_kv=p + n * t, rm_kv=p + n * t, exact=False,
        )
    ]  # fmt: skip


def _args(options: Mapping[str, Any], p: int, t: int) -> list[Cost]:
    k = min(options["k"], options["vocab"])
    return [
        Cost(
            way="shared prefixes", lm_tokens=p + t - 1, rm_tokens=p + k * t, sequential_steps=t,
            lm_kv=p + t, rm_kv=p + t + k,
        )
    ]  # fmt: skip


def _product(options: Mapping[str, Any], p: int, t: int) -> list[Cost]:
    return [
        Cost(
            way="two models", lm_tokens=2 * (p + t - 1), rm_tokens=0, sequential_steps=t, lm_kv=2 * (p + t), rm_kv=0
        )
    ]  # fmt: skip


def _transfer_q(options: Mapping[str, Any], p: int, t: int) -> list[Cost]:
    """The published loop, shared prefixes, and where it applies the accelerated form between its two extremes."""
    for name, priced in PRICED.items():
        if options[name] not in priced:
            known = " or ".join(str(value).lower() for value in priced)
            raise OptionError(f"{name}={options[name]!r} has no formula of its cost; known: {known}.")
    search = Search.of(options, p, t)
    ways = [search.published(), search.shared()]
    if options["rollout_strategy"] != "greedy":
        return ways
    if search.rewards > 1 or options["acceleration"] == "off" or options["candidate_rule"].startswith("sample"):
        return [*ways, search.winner_known("the winner's rollout kept")]
    return [*ways, search.nothing_skipped(options["window"]), search.all_skipped()]


PRICED: Mapping[str, tuple[Any, ...]] = {
    "candidate_source": ("baseline",), "rollout_model": ("baseline",), "implicit_baseline_reward": (False,),
    "base_policy": ("auto", "baseline", "pi_r"), "indirect_mode": ("snis", "unnormalised"),
    "block": (1,), "halving": (1,), "gate": (1.0,), "adaptive_rollouts": (0.0,),
}  # fmt: skip
"""Options of Transfer Q* whose other values ask a second model, or cost what the text makes of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Transfer Q* in numbers: `ahead` holds the length of the rollouts at every step, `rewards` how many are asked."""

    p: int
    k: int
    n: int
    rewards: int
    ahead: tuple[int, ...]

    @classmethod
    def of(cls, options: Mapping[str, Any], p: int, t: int) -> Search:
        """From the method's options; `vocab` among them."""
        indirect = options["transfer"] == "indirect"
        length: int | None = options["rollout_len"]
        if options["rollout_len"] == "auto":
            length = 5 if indirect else 20
        past = options["rollout_past_max"]
        return cls(
            p=p,
            k=options["vocab"] if options["candidate_rule"] == "full" else min(options["k"], options["vocab"]),
            n=options["num_rollouts"],
            rewards=2 if indirect else 1,
            ahead=tuple(
                (t - i - 1) if length is None else length if past else min(length, t - i - 1) for i in range(t)
            ),
        )

    @property
    def t(self) -> int:
        """Steps."""
        return len(self.ahead)

    @property
    def unrolled(self) -> int:
        """Positions that no rollout pushed: those after a step without rollouts."""
        return sum(a == 0 for a in self.ahead[:-1])

    def published(self) -> Cost:
        """Every row computed again at every step."""
        rows = self.k * self.n
        return Cost(
            way="published loop, nothing reused",
            lm_tokens=(self.p + self.t - 1) + sum(rows * (self.p + i + a) for i, a in enumerate(self.ahead) if a),
            rm_tokens=self.rewards * sum(rows * (self.p + i + 1 + a) for i, a in enumerate(self.ahead)),
            sequential_steps=self.t + sum(self.ahead),
            lm_kv=rows * max(self.p + i + a for i, a in enumerate(self.ahead)),
            rm_kv=self.rewards * rows * max(self.p + i + 1 + a for i, a in enumerate(self.ahead)),
            alone=True,
        )

    def shared(self) -> Cost:
        """Every prefix computed once, the rollouts anew at every step."""
        k, n = self.k, self.n
        return Cost(
            way="shared prefixes",
            lm_tokens=self.p + sum(k * (1 + n * (a - 1)) for a in self.ahead if a) + self.unrolled,
            rm_tokens=self.rewards * (self.p + k * sum(1 + n * a for a in self.ahead)),
            sequential_steps=1 + sum(self.ahead) + self.unrolled,
            lm_kv=self._held(k * n),
            rm_kv=self.rewards * (self._held(k * n) + k),
            exact=False,
        )

    def winner_known(self, way: str) -> Cost:
        """The greedy candidate's rollout is the rest of the last winner's: only what is new of it counts."""
        k = self.k
        lm = rm = self.p
        known = 0  # tokens of the last winner's rollout
        for a in self.ahead:
            lm += (k - 1) * a + max(0, a - max(0, known - 1))
            rm += (k - 1) * (1 + a) + max(0, 1 + a - known)
            known = a
        return Cost(
            way=way,
            lm_tokens=lm + self.unrolled,
            rm_tokens=self.rewards * rm,
            sequential_steps=1 + sum(self.ahead) + self.unrolled,
            lm_kv=self._held(k),
            rm_kv=self.rewards * (self._held(k) + k),
        )

    def nothing_skipped(self, window: int) -> Cost:
        """Windows of positions decided together; what lies behind a winner that is not the greedy one is lost."""
        reach = max(1, min(window, max(self.ahead)))
        starts = _starts(window, reach, self.t)
        by_windows = starts[1] + sum(self.ahead[i] for i in starts[:-1])
        return replace(
            self.winner_known("accelerated, no reward range"),
            sequential_steps=by_windows if max(self.ahead) else self.t,
            lm_kv=self._held(reach * self.k),
            rm_kv=self._held(reach * self.k) + reach * self.k,
            exact=False,
        )

    def all_skipped(self) -> Cost:
        """The greedy continuation alone, and its reward at every step."""
        last = self.ahead[-1]
        return Cost(
            way="accelerated, all others certified away",
            lm_tokens=self.p + self.t - 1 + last,
            rm_tokens=self.p + self.t + last,
            sequential_steps=self.t + last,
            lm_kv=self._held(1),
            rm_kv=self._held(1),
            exact=False,
        )

    def _held(self, rollouts: int) -> int:
        """Positions of prompt, response and so many rollouts."""
        return self.p + self.t + rollouts * max(self.ahead)


FORMULAS: Mapping[str, Callable[[Mapping[str, Any], int, int], list[Cost]]] = {
    "greedy": _plain,
    "sample": _plain,
    "best-of-n": _best_of_n,
    "args": _args,
    "dera": _product,
    "genarm": _product,
    "transfer-q": _transfer_q,
}


def measured_speed(shape: Shape, *, context: int, seconds: float = 0.1) -> Callable[[int], float]:
    """Tokens per second by the speed of float32 matrix products of this width on this CPU: an optimistic estimate.

    Each width is measured once, for about `seconds`; widths are rounded down to powers of two up to 256.
    """
    import numpy as np

    rows, columns = min(shape.hidden, 2048), min(shape.intermediate, 8192)
    matrix = np.ones((rows, columns), dtype=np.float32)

    @functools.cache
    def products(width: int) -> float:
        tokens = np.ones((width, rows), dtype=np.float32)
        np.matmul(tokens, matrix)  # the first product also makes the threads
        started, done = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            np.matmul(tokens, matrix)
            done += 1
        return 2.0 * width * rows * columns * done / (time.perf_counter() - started)

    return lambda width: products(1 << (min(width, 256).bit_length() - 1)) / shape.flops(context)


def _starts(window: int, most: int, response: int) -> list[int]:
    """Where the windows of `methods.lazy` begin if each holds to its end, and after them where the response ends."""
    starts, size = [0], (window + 1) // 2
    while starts[-1] < response:
        starts.append(min(starts[-1] + min(size, most), response))
        size = min(size + 2, window)
    return starts
