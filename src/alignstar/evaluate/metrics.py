"""From units to figures: what is measured on a reply, and what is computed from several rewards or methods together.

Every figure says its unit and its convention (`Metric.about`), for the same name means different things in different
papers. Knows units and statistics; asks no model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from alignstar.errors import OptionError
from alignstar.evaluate.statistics import Bootstrap, Interval
from alignstar.evaluate.text_metrics import ORDERS, TOKENIZER, repetition_of
from alignstar.evaluate.units import Unit
from alignstar.sampling import Array

Better: TypeAlias = Literal["higher", "lower", ""]
Normalisation: TypeAlias = Literal["range", "ratio"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A figure's name, how it is shown, which direction is better ("": neither), and its convention in one sentence."""

    name: str
    title: str
    unit: str
    better: Better
    about: str


def reply_metrics(*, plus_one: bool, encoder: str) -> list[Metric]:
    """The figures that are measured on single replies, beside the rewards."""
    counted = "+ 1" if plus_one else "without + 1"
    rep = f"100 (1 - distinct n-grams / (n-grams {counted})), {TOKENIZER}"
    return [
        Metric(
            name="diversity",
            title="diversity",
            unit="",
            better="higher",
            about=f"product of 1 - rep-n/100 over n = 2, 3, 4, mean of replies; n-grams {counted}, {TOKENIZER}",
        ),
        *(Metric(name=f"rep_{n}", title=f"rep-{n}", unit="%", better="lower", about=rep) for n in ORDERS),
        Metric(
            name="coherence",
            title="coherence",
            unit="",
            better="higher",
            about=f"cosine of the sentence embeddings of prompt and reply; encoder: {encoder}",
        ),
        Metric(
            name="kl",
            title="KL to SFT",
            unit="nats",
            better="",
            about="mean of log pi_Alg(y) - log pi_sft(y); for a method that takes the best token -log pi_sft(y)",
        ),
        Metric(
            name="kl_rao_blackwell",
            title="KL to SFT, Rao-Blackwell",
            unit="nats",
            better="",
            about="mean of the sum over t of KL(pi_Alg(.|s_t) || pi_sft(.|s_t)) on the states visited: the same in "
            "expectation, of less variance; for a method that takes the best token -log pi_sft(y)",
        ),
        Metric(name="words", title="length", unit="words", better="", about=f"words of a reply: {TOKENIZER}"),
        Metric(
            name="response_tokens",
            title="length",
            unit="tokens",
            better="",
            about="tokens of a reply, its end included, by the language model's tokenizer",
        ),
        Metric(
            name="lm_tokens",
            title="LM tokens",
            unit="tokens",
            better="lower",
            about="positions pushed through language models per reply, decoded alone from a cold start",
        ),
        Metric(
            name="rm_tokens",
            title="RM tokens",
            unit="tokens",
            better="lower",
            about="positions pushed through reward models per reply, decoded alone from a cold start",
        ),
        Metric(
            name="sequential_steps",
            title="sequential steps",
            unit="forwards",
            better="lower",
            about="longest chain of dependent forwards per reply: a measure of latency",
        ),
        Metric(name="wall_s", title="time", unit="s", better="lower", about="wall time per reply, beside the others"),
    ]


def reward_metrics(name: str, role: str, convention: str, slope: Interval | None, baseline: str) -> dict[str, Metric]:
    """The figures of a reward, by kind: "reward", "normalised", "length_controlled", "gap"."""
    meaning = {
        "gold": "held out: it guides no method",
        "reward": "optimised",
        "baseline_reward": "what the baseline learned",
        "scored": "shown for its shift from what the baseline learned",
    }[role]
    bend = ""
    if slope is not None:
        bend = f" ({slope.mean:.3g} [{slope.low:.3g}, {slope.high:.3g}] per word, {slope.n} prompts)"
    titles = {
        "reward": (name, f"mean reward ({meaning}) of the replies, cut at stop strings"),
        "normalised": (f"{name}, normalised", f"mean reward as {convention}"),
        "length_controlled": (
            f"{name}, length-controlled",
            f"mean reward at the mean length of all methods, by one slope within prompts and methods{bend}",
        ),
        "gap": (
            f"over-optimisation by {name}",
            f"optimised minus this reward, each standardised by its mean and deviation over the prompts of {baseline}",
        ),
    }
    return {
        kind: Metric(
            name=f"{kind}:{name}", title=title, unit="", better="lower" if kind == "gap" else "higher", about=about
        )
        for kind, (title, about) in titles.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """A figure of cost: what a token of a language model and one of a reward model count, by reply or by its token."""

    metric: Metric
    lm: float
    rm: float
    per_token: bool


def cost_metrics(weight: float | None) -> list[Cost]:
    """The figures of cost computed from the counts; where it is known also those in `weight` (`reward_weight`)."""
    per_token = "per token of the replies, the ratio of the totals"
    costs = [
        Cost(metric=_cost("lm_per_token", "LM tokens per token", f"LM tokens {per_token}"), lm=1, rm=0, per_token=True),
        Cost(metric=_cost("rm_per_token", "RM tokens per token", f"RM tokens {per_token}"), lm=0, rm=1, per_token=True),
    ]
    if weight is None:
        return costs
    sized = f"LM tokens + {weight:.4g} RM tokens (the ratio of the models' parameters)"
    total = _cost("cost", "cost", f"{sized} per reply")
    share = _cost("cost_per_token", "cost per token", f"{sized} {per_token}")
    return [
        *costs,
        Cost(metric=total, lm=1, rm=weight, per_token=False),
        Cost(metric=share, lm=1, rm=weight, per_token=True),
    ]


def _cost(name: str, title: str, about: str) -> Metric:
    return Metric(name=name, title=title, unit="LM tokens" if "cost" in name else "tokens", better="lower", about=about)


def measured(unit: Unit, *, plus_one: bool) -> dict[str, float]:
    """The figures of one reply but for coherence; NaN where there is none."""
    repeats = repetition_of(unit.response, plus_one=plus_one)
    return {
        **{f"reward:{name}": _number(score) for name, score in unit.rewards.items()},
        "diversity": repeats.diversity,
        **{f"rep_{n}": rep for n, rep in zip(ORDERS, repeats.rep, strict=True)},
        "kl": _number(unit.kl),
        "kl_rao_blackwell": _number(unit.kl_rao_blackwell),
        "words": float(repeats.words),
        "response_tokens": float(len(unit.response_ids)),
        **{name: _number(unit.usage.get(name)) for name in ("lm_tokens", "rm_tokens", "sequential_steps", "wall_s")},
    }


def _number(score: float | None) -> float:
    return math.nan if score is None or not math.isfinite(score) else float(score)


def standardised(values: Array, reference: Array) -> Array:
    """`values` minus the mean of `reference`, over its standard deviation; NaN where that has no spread."""
    known = reference[~np.isnan(reference)]
    spread = float(known.std()) if len(known) else 0.0
    return (values - known.mean()) / spread if spread > 0 else np.full(len(values), np.nan)


def over_optimisation(learned: Array, gold: Array, *, reference_learned: Array, reference_gold: Array) -> Array:
    """Gap per prompt: learned minus gold reward, each standardised by its mean and deviation over a reference method.

    0 for the reference method itself, on average; positive where the optimised reward has risen further than the
    held-out one (Gao et al. 2023, arXiv:2210.10760).
    """
    return standardised(learned, reference_learned) - standardised(gold, reference_gold)


def normalised(
    means: Bootstrap,
    columns: Mapping[str, Any],
    *,
    convention: Normalisation = "range",
    reference: str | None = None,
    lowest: str | None = None,
) -> tuple[dict[str, Interval], str]:
    """Normalised mean reward of every method, and the convention in words.

    `columns` gives each method's column of `means`. "range": (r - r_lowest) / (r_reference - r_lowest), the reference
    being 1 and the lowest 0 (Transfer Q*, Evaluation 1); "ratio": r / r_reference. Without names the methods of the
    highest and of the lowest mean are taken, as found in the sample, in every resample. NaN where the two are equal, or
    r_reference is 0.
    """
    drawn = {label: means.means(column) for label, column in columns.items() if means.n(column)}
    for asked in (reference, lowest):
        if asked is not None and asked not in drawn:
            raise OptionError(f"{asked!r} has no mean reward to normalise with; known: {', '.join(drawn)}.")
    if not drawn:
        return {}, "no method has a reward"
    top = reference or max(drawn, key=lambda label: drawn[label][0])
    low = lowest or min(drawn, key=lambda label: drawn[label][0])
    floor = drawn[low] if convention == "range" else np.zeros_like(drawn[low])
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = {label: (r - floor) / (drawn[top] - floor) for label, r in drawn.items()}
    about = f"(r - r[{low}]) / (r[{top}] - r[{low}])" if convention == "range" else f"r / r[{top}]"
    return {label: means.of(share, n=means.n(columns[label])) for label, share in shares.items()}, about


def length_controlled(
    rewards: Mapping[str, Array], lengths: Mapping[str, Array], *, level: float, resamples: int, seed: int
) -> tuple[dict[str, Interval], Interval | None]:
    """Mean reward of every method at the mean length of all: r - slope (length - mean length); and that slope.

    One slope for all methods, by least squares with an effect for every prompt and every method, so that it is what
    length brings within a prompt and not what good prompts or methods have. Of the prompts that every method has;
    nothing without any. The intervals include the slope's uncertainty.
    """
    if not rewards:
        return {}, None
    r, x = np.column_stack(list(rewards.values())), np.column_stack([lengths[label] for label in rewards])
    complete = ~np.isnan(r + x).any(axis=1)
    r, x = r[complete], x[complete]
    if not len(r):
        return {}, None
    within_r, within_x = r - r.mean(axis=1, keepdims=True), x - x.mean(axis=1, keepdims=True)
    columns: dict[Any, Array] = {"xx": (within_x**2).sum(axis=1), "xr": (within_x * within_r).sum(axis=1)}
    for at, label in enumerate(rewards):
        columns |= {("r", label): r[:, at], ("x", label): x[:, at]}
    means = Bootstrap(columns, level=level, resamples=resamples, seed=seed)
    mean_x = np.column_stack([means.means(("x", label)) for label in rewards])  # [1 + resamples, methods]
    mean_r = np.column_stack([means.means(("r", label)) for label in rewards])
    far_x, far_r = mean_x - mean_x.mean(axis=1, keepdims=True), mean_r - mean_r.mean(axis=1, keepdims=True)
    spread = means.means("xx") - (far_x**2).sum(axis=1)
    common = means.means("xr") - (far_x * far_r).sum(axis=1)
    # Where every reply of a prompt has the same length, but for the methods' own means, there is nothing to control.
    flat = spread <= 1e-12 * (1.0 + means.means("xx"))
    slope = np.where(flat, 0.0, common / np.where(flat, 1.0, spread))
    adjusted = mean_r - slope[:, None] * far_x
    controlled = {label: means.of(adjusted[:, at], n=len(r)) for at, label in enumerate(rewards)}
    return controlled, means.of(slope, n=len(r))


def cost_of(cost: Cost, means: Bootstrap, label: str) -> Interval:
    """A method's cost from its columns ("lm_tokens", label), ...; NaN per token where the replies have none."""
    total = cost.lm * means.means(("lm_tokens", label)) + cost.rm * means.means(("rm_tokens", label))
    if cost.per_token:
        with np.errstate(invalid="ignore", divide="ignore"):
            total = total / means.means(("response_tokens", label))
    return means.of(total, n=means.n(("lm_tokens", label)))


def reward_weight(recipe: Mapping[str, Any]) -> float | None:
    """How many tokens of the language model one of the reward model weighs: the ratio of their parameters.

    Of two language models the larger one counts. None where the recipe does not say how many parameters they have.
    """
    models: Mapping[str, Any] = recipe.get("models", {})
    sizes = [given["parameters"] for role in ("sft", "baseline") if (given := models.get(role))]
    optimised = [reward["parameters"] for reward in recipe.get("rewards", {}).values() if reward["role"] == "reward"]
    if not sizes or not optimised or None in (*sizes, *optimised):
        return None
    return sum(optimised) / max(sizes)
