"""What `bench frontier` decodes: every method with its options, at every strength of a small grid.

Three works on the same models: `direct`, the reward is the one that the baseline was aligned to; `indirect`, it is
another one; `groups`, both are wanted, each by a group of people. Knows options and names of rewards; opens no model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alignstar.demo.settings import ROLLOUTS
from alignstar.errors import OptionError
from alignstar.methods.presets import preset
from alignstar.methods.speculative_rejection import Memory

WORKS: Mapping[str, tuple[str, ...]] = {
    "direct": ("source",), "indirect": ("target",), "groups": ("source", "target"),
}  # fmt: skip
"""Work -> the true rewards that are wanted there."""

POOLED = (0.1, 0.5, 0.9)
"""Shares of the people whose taste is "source", in the pooled rewards of `groups`."""

QUICK_ROLLOUTS: Mapping[str, Any] = {"k": 2, "rollout_len": 4}

MOST_ROWS = 1000
"""Speculative Rejection's own limit."""

GROUPS_ALPHA = 0.1
"""Strength of what searches for groups, whose rewards are ratings in [0, 1]."""

GAME_BETA, WEIGHTS_BETA = 0.05, 0.03
"""Strengths of the games that weigh the groups, once per prompt and once for all: those best on tuning prompts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One point of a frontier: a method with options, decoded with the reward of that name.

    Points with the same work and `label` make one curve, `at` is where on it. `drawn`: the response depends on the
    seed. `law`: each step's log-probability is that of the law that was drawn from. `kl_bound` [nats] holds for every
    method that keeps one of a number of draws from the SFT model (None: no such bound).
    """

    work: str
    label: str
    method: str
    reward: str
    at: str = ""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    drawn: bool = False
    law: bool = False
    kl_bound: float | None = None

    @property
    def rows(self) -> int:
        """How many rows a request has at once, at most."""
        if "budget" in self.options:
            return self.options["budget"] // self.options["headroom"]
        return self.options.get("n", 1)

    def first_rows(self, prompt_tokens: int) -> int:
        """How many rows Speculative Rejection begins with, for a prompt of this length."""
        memory = Memory(budget=self.options["budget"], prompt=prompt_tokens, shared=True)
        return memory.rows(self.options["headroom"], MOST_ROWS)

    @property
    def keeps_the_best(self) -> bool:
        """Whether it is best-of-n that keeps the draw of the highest reward."""
        return self.method == "best-of-n" and "selection" not in self.options

    @property
    def one_strength(self) -> bool:
        """Whether one number says where on its curve the point is."""
        return " " not in self.at


def plans(*, beta: float, quick: bool = False, value: bool = False, value_target: bool = False) -> tuple[Plan, ...]:
    """All points, curve by curve; `quick`: at most one or two of each, all cheap.

    `beta` is the strength that the baseline was trained with. Without a `value` head what needs one is left out,
    without a `value_target` head that of the indirect setting.
    """
    direct = (
        *_plain(), *_best_of_n(quick), *_args(quick), *_transfer_q("direct", quick, beta), *_deal(quick),
        *_products(quick), *_speculative_rejection(quick), *_tree_bon(quick), *(_with_value(quick) if value else ()),
    )  # fmt: skip
    indirect = (
        _greedy("indirect", "baseline"), *_drawn("indirect", (4,) if quick else (16, 64)),
        *_transfer_q("indirect", quick, beta), *(_by_head("indirect", quick) if value_target else ()),
    )  # fmt: skip
    return (*direct, *indirect, *_groups(quick))


def alphas(quick: bool) -> tuple[float, ...]:
    """Strengths of what searches with rollouts, weakest first."""
    return (0.5,) if quick else (4.0, 2.0, 1.0, 0.5)


def _strengths(work: str, quick: bool) -> tuple[float, ...]:
    """Those of Transfer Q* in a setting."""
    return alphas(quick) if work == "direct" else alphas(quick)[-3:]


def chosen(all_plans: Sequence[Plan], only: Sequence[str]) -> tuple[Plan, ...]:
    """The plans that one of the names means (no names: all). Raises OptionError for a name that means none.

    What is a curve's name means that curve alone, though it may be its method's name too.
    """
    known = list(dict.fromkeys(name for plan in all_plans for name in (plan.work, plan.method, plan.label)))
    for name in only:
        if name not in known:
            raise OptionError(f"only={name!r} is unknown. Known: {', '.join(known)}.")
    curves = {plan.label for plan in all_plans}
    return tuple(
        plan
        for plan in all_plans
        if not only or any(name == plan.label if name in curves else name in (plan.work, plan.method) for name in only)
    )


def _greedy(work: str, model: str) -> Plan:
    return Plan(work=work, label=f"{model} greedy", method="greedy", reward=WORKS[work][0], options={"model": model})


def _plain() -> list[Plan]:
    sampled = [
        Plan(
            work="direct", label=f"{model} sample", method="sample", reward="source", options={"model": model},
            drawn=True, law=True,
        )
        for model in ("sft", "baseline")
    ]  # fmt: skip
    return [_greedy("direct", "sft"), _greedy("direct", "baseline"), *sampled]


def _drawn(work: str, sizes: Sequence[int], reward: str | None = None) -> list[Plan]:
    """Best-of-n; its KL bound is Beirami et al. 2024."""
    name = reward or WORKS[work][0]
    return [
        Plan(
            work=work, label="best-of-n" if reward is None else f"best-of-n, {reward}", method="best-of-n",
            reward=name, at=f"n={n}", options={"model": "sft", "n": n}, drawn=True,
            kl_bound=math.log(n) - (n - 1) / n,
        )
        for n in sizes
    ]  # fmt: skip


def _best_of_n(quick: bool) -> list[Plan]:
    """With the other rules for which of n is kept; votes are for tasks with an answer, which this world has not."""
    n = 4 if quick else 64
    others = [("soft", 0.5)] if quick else [("soft", 0.5), ("soft", 0.1), ("regularised", 0.1)]
    rules = [
        Plan(
            work="direct", label=f"best-of-n {rule}", method="best-of-n", reward="source", at=f"n={n} beta={beta:g}",
            options={"model": "sft", "n": n, "selection": rule, "beta": beta}, drawn=True, kl_bound=math.log(n),
        )
        for rule, beta in others
    ]  # fmt: skip
    return [*_drawn("direct", (2, 4) if quick else (4, 16, 64, 256)), *rules]


def _args(quick: bool) -> list[Plan]:
    return [
        Plan(
            work="direct", label="args", method="args", reward="source", at=f"alpha={alpha:g}",
            options={"model": "sft", "k": ROLLOUTS["k"], "weight": 1.0 / alpha},
        )
        for alpha in alphas(quick)
    ]  # fmt: skip


def _transfer_q(work: str, quick: bool, beta: float) -> list[Plan]:
    rollouts = QUICK_ROLLOUTS if quick else ROLLOUTS
    direct = {**rollouts, "transfer": "direct"}
    families: dict[str, Mapping[str, Any]] = {"cd-minus": {**preset("cd-minus").options, **rollouts}}
    if work == "direct":
        families["transfer-q"] = direct
    else:
        indirect = {**rollouts, "transfer": "indirect", "indirect_mode": "snis", "beta": beta}
        families.update({"transfer-q direct": direct, "transfer-q indirect": indirect})
    return [
        Plan(
            work=work, label=label, method="transfer-q", reward=WORKS[work][0], at=f"alpha={alpha:g}",
            options={**options, "alpha": alpha},
        )
        for label, options in families.items()
        for alpha in _strengths(work, quick)
    ]  # fmt: skip


def _deal(quick: bool) -> list[Plan]:
    """With two beams: with one it is cd-minus."""
    options = {"model": "sft", "beam": 2, "k": 2 if quick else 5, "rollout_len": 4 if quick else None}
    return [
        Plan(
            work="direct", label="deal", method="deal", reward="source", at=f"alpha={alpha:g}",
            options={**options, "alpha": alpha},
        )
        for alpha in ((0.5,) if quick else (2.0, 0.5))
    ]  # fmt: skip


def _products(quick: bool) -> list[Plan]:
    """GenARM's autoregressive reward model is played by the baseline: no model of this world was trained as one."""
    blends = [
        Plan(
            work="direct", label="dera", method="dera", reward="source", at=f"lambda={weight:g}",
            options={"weight": weight}, drawn=True, law=True,
        )
        for weight in ((0.5,) if quick else (0.5, 1.5, 2.0, 3.0))
    ]  # fmt: skip
    products = [
        Plan(
            work="direct", label="genarm (baseline)", method="genarm", reward="source", at=f"beta={beta:g}",
            options={"beta": beta}, drawn=True, law=True,
        )
        for beta in ((1.0,) if quick else (2.0, 1.0))
    ]  # fmt: skip
    return [*blends, *products]


def _speculative_rejection(quick: bool) -> list[Plan]:
    """A cross through one setting: its budget, its headroom, its rejection rate."""
    centre = (256, 2, 0.5)
    cross = [
        centre, (128, 2, 0.5), (512, 2, 0.5), (1024, 2, 0.5), (256, 1, 0.5), (256, 4, 0.5), (256, 8, 0.5),
        (256, 2, 0.25), (256, 2, 0.75), (256, 2, 0.9), (512, 1, 0.9),
    ]  # fmt: skip
    return [
        Plan(
            work="direct", label="speculative-rejection", method="speculative-rejection", reward="source",
            at=f"budget={budget} headroom={headroom} rate={rate:g}",
            options={
                "model": "sft", "budget": budget, "headroom": headroom, "rejection_rate": rate, "max_rows": MOST_ROWS,
            },
            drawn=True, kl_bound=math.log(budget / headroom),
        )
        for budget, headroom, rate in ([(96, 8, 0.5)] if quick else cross)
    ]  # fmt: skip


def _tree_bon(quick: bool) -> list[Plan]:
    """No node has more than n children, so that no response is drawn more than n^layers times as often.

    With 8 layers a segment is 8 tokens: responses of some 25 tokens are then judged on their way more than once.
    """
    made = [(4, "1/(k+1)", 2)]
    if not quick:
        made = [(n, "1/(k+1)", layers) for layers in (4, 8) for n in (8, 16, 32)]
        made += [(16, "uniform", 4), (16, "rm", 4)]
    return [
        Plan(
            work="direct",
            label="tree-bon" + ("" if partial == "1/(k+1)" else f" {partial}") + (" 8 layers" if layers == 8 else ""),
            method="tree-bon", reward="source", at=f"n={n}",
            options={"n": n, "layers": layers, "partial_reward": partial}, drawn=True,
            kl_bound=layers * math.log(n),
        )
        for n, partial, layers in made
    ]  # fmt: skip


def _by_head(work: str, quick: bool) -> list[Plan]:
    """Direct Transfer Q* from a head's values alone, or with rollouts for the three candidates that it values most."""
    direct = {**(QUICK_ROLLOUTS if quick else ROLLOUTS), "transfer": "direct"}
    head = {"k": direct["k"], "transfer": "direct", "values": "head"}
    return [
        Plan(
            work=work, label=label, method="transfer-q", reward=WORKS[work][0], at=f"alpha={alpha:g}",
            options={**options, "alpha": alpha},
        )
        for label, options in (("transfer-q value", head), ("transfer-q top 3", {**direct, "value_top": 3}))
        for alpha in _strengths(work, quick)
    ]  # fmt: skip


def _with_value(quick: bool) -> list[Plan]:
    """What a value head is for; Controlled Decoding starts from the baseline, whose continuations it values."""
    controlled = {"model": "baseline", "k": (QUICK_ROLLOUTS if quick else ROLLOUTS)["k"]}
    blocks = {"model": "baseline", "mode": "blockwise", "blocks": 2 if quick else 8, "block_len": 8}
    token_wise = [
        Plan(
            work="direct", label="controlled-decoding", method="controlled-decoding", reward="source",
            at=f"alpha={alpha:g}", options={**controlled, "alpha": alpha}, drawn=True,
        )
        for alpha in ((0.5,) if quick else (1.0, 0.25))
    ]  # fmt: skip
    block_wise = Plan(
        work="direct", label="controlled-decoding blocks", method="controlled-decoding", reward="source",
        at=f"blocks={blocks['blocks']} block_len={blocks['block_len']}", options=blocks, drawn=True,
    )  # fmt: skip
    return [*_by_head("direct", quick), *token_wise, block_wise]


def _groups(quick: bool) -> list[Plan]:
    """Pooled rewards against fair ones, by rollouts of the SFT model and by best-of-n.

    With one greedy rollout the smallest value of the groups is the value of the smallest reward, hence no row for it.
    """
    rollouts = QUICK_ROLLOUTS if quick else ROLLOUTS
    cd_minus = {**preset("cd-minus").options, **rollouts, "alpha": GROUPS_ALPHA}
    shares = (0.5,) if quick else POOLED
    rewards = [*(f"pooled {share:g}" for share in shares), "maxmin weights", "min"]
    searched = [
        Plan(
            work="groups", label=f"cd-minus, {reward}", method="transfer-q", reward=reward,
            at=f"alpha={GROUPS_ALPHA:g}", options=cd_minus,
        )
        for reward in rewards
    ]  # fmt: skip
    game = Plan(
        work="groups", label="maxmin game", method="maxmin", reward="min", at=f"alpha={GROUPS_ALPHA:g}",
        options={"model": "sft", **rollouts, "alpha": GROUPS_ALPHA, "aggregate": "game"},
    )  # fmt: skip
    sizes = (4,) if quick else (64,)
    drawn = [p for reward in (*rewards, "game", "min standardised") for p in _drawn("groups", sizes, reward)]
    n = 4 if quick else 16
    best = Plan(
        work="groups", label="best-policy", method="best-policy", reward="min", at=f"n={n}", options={"n": n},
        drawn=True,
    )  # fmt: skip
    return [*searched, game, *drawn, best]
