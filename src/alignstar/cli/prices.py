"""What a recipe costs before anything is opened: the table of `alignstar eval --dry-run`. Computes by `bench.plan`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from alignstar.bench.plan import Cost, costs
from alignstar.errors import OptionError
from alignstar.evaluate.recipe import Entry, Recipe, Resolved
from alignstar.methods.roles import models_used

SKIPPING = "accelerated, all others certified away"
"""The way of running a search that is a lower bound, and no estimate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """One method's cost per response: tokens, and the floating-point operations that they are.

    2 per parameter and token; None where a count of parameters is not stated. `unpriced` says why there is no cost.
    """

    label: str
    cost: Cost | None
    flops: float | None
    unpriced: str | None = None


def price(entry: Entry, recipe: Recipe) -> Priced:
    """The cost of one response by one method."""
    options = dict(entry.options)
    if options.get("transfer") == "auto" and recipe.reward_in("baseline_reward") is not None:
        options["transfer"] = "indirect"
    indirect = options.get("transfer") == "indirect"
    given = frozenset(recipe.models.given)
    used = models_used(options, given) & given
    # A search that the SFT model does alone costs what it costs the baseline.
    if used == frozenset({"sft"}) and "candidate_source" in options:
        options |= {"candidate_source": "baseline", "rollout_model": "baseline", "base_policy": "baseline"}
    assumed = recipe.pricing
    del options["max_new_tokens"]
    try:
        ways = costs(
            entry.method,
            options,
            prompt=assumed.prompt_tokens,
            response=recipe.max_new_tokens,
            vocab=assumed.vocabulary,
        )
    except OptionError as error:
        return Priced(label=entry.label, cost=None, flops=None, unpriced=str(error))
    cost = [way for way in ways if way.way != SKIPPING][-1]
    judging = [recipe.reward_in("reward"), recipe.reward_in("baseline_reward") if indirect else None]
    lm = _mean(recipe.models.given[role].parameters for role in sorted(used))
    rm = _mean(recipe.rewards[name].parameters for name in judging if name is not None)
    return Priced(label=entry.label, cost=cost, flops=_flops(cost, lm, rm))


def _mean(parameters: Iterable[float | None]) -> float | None:
    """Of the models that share tokens evenly; None where one is not known."""
    counts = list(parameters)
    known = [count for count in counts if count is not None]
    return sum(known) / len(known) if known and len(known) == len(counts) else None


def _flops(cost: Cost, lm: float | None, rm: float | None) -> float | None:
    if lm is None or (rm is None and cost.rm_tokens):
        return None
    return 2.0 * (lm * cost.lm_tokens + (rm or 0.0) * cost.rm_tokens)


def print_prices(resolved: Resolved) -> None:
    """Print the table, what was taken for granted, and what is not known."""
    recipe, console = resolved.recipe, Console()
    prices = [price(entry, recipe) for entry in resolved.entries]
    replies = None if recipe.data.prompts is None else recipe.data.prompts * len(recipe.seeds)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=recipe.name, title_justify="left", title_style="bold")
    table.add_column("method", overflow="fold")
    for column in ("LM tokens", "RM tokens", "sequential", "PFLOP", "whole run: PFLOP"):
        table.add_column(column, justify="right")
    for one in prices:
        if one.cost is None:
            table.add_row(one.label, *["?"] * 5)
            continue
        whole = None if one.flops is None or replies is None else one.flops * replies
        table.add_row(
            one.label, f"{one.cost.lm_tokens:,}", f"{one.cost.rm_tokens:,}", f"{one.cost.sequential_steps:,}",
            _peta(one.flops), _peta(whole),
        )  # fmt: skip
    console.print(table)
    totals = [one.flops for one in prices if one.flops is not None]
    if replies is not None and totals:
        console.print(f"All methods, {replies:,} replies each: {_peta(sum(totals) * replies)} PFLOP.")
    for line in _notes(resolved, prices):
        console.print(line, style="dim", markup=False, highlight=False)


def _notes(resolved: Resolved, prices: list[Priced]) -> list[str]:
    recipe = resolved.recipe
    unpriced = {one.unpriced for one in prices if one.unpriced is not None}
    counts = {f"models.{role}": model.parameters for role, model in recipe.models.given.items()}
    counts |= {f"rewards.{name}": reward.parameters for name, reward in recipe.rewards.items() if reward.role != "gold"}
    missing = [name for name, count in counts.items() if count is None]
    return [
        f"Per reply, alone, from a cold start, of full length: {recipe.pricing.prompt_tokens} prompt tokens (assumed), "
        f"{recipe.max_new_tokens} response tokens; no reward of known range. FLOP: 2 per parameter and token.",
        f"Unknown, to be filled in before it can run: {', '.join(recipe.unknown) or 'nothing'}.",
        *([f"Parameters not stated: {', '.join(missing)}."] if missing else []),
        *(f"Not priced: {reason}" for reason in sorted(unpriced)),
    ]


def _peta(flops: float | None) -> str:
    return "?" if flops is None else f"{flops / 1e15:,.3g}"
