"""Statements of the paper as numbers that must not be negative, and wrong readings that they must catch.

Each check gives a slack: right side minus left side of an inequality; for an identity, minus the distance of its sides.
Knows worlds and the exact policies of `transfer`; prints nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from alignstar.sampling import Array, log_softmax
from alignstar.theory import transfer, tree
from alignstar.theory.transfer import Aligned
from alignstar.theory.tree import Levels


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A tree of responses: the SFT policy, two rewards of complete responses, the two strengths, a candidate count."""

    sft: Levels
    reward: Levels
    baseline_reward: Levels
    alpha: float
    beta: float
    k: int

    @property
    def horizon(self) -> int:
        """Most tokens of a response."""
        return len(self.sft)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How the paper is read; the defaults are right, any other value is an error that a check must catch."""

    base: Literal["baseline", "sft"] = "baseline"
    h_factor: float = 1.0
    q_sign: float = 1.0
    missing_steps: int = 0
    decode_with: Literal["alpha", "beta"] = "alpha"
    normaliser: Literal["conditional", "unconditional"] = "conditional"
    base_has_m: bool = True


MUTANTS: Mapping[str, Reading] = {
    "base sft": Reading(base="sft"),
    "2 alpha h": Reading(h_factor=2.0),
    "sign of Q": Reading(q_sign=-1.0),
    "T-1": Reading(missing_steps=1),
    "beta for alpha": Reading(decode_with="beta"),
    "unconditional normaliser": Reading(normaliser="unconditional"),
    "M left out": Reading(base_has_m=False),
}
RIGHT = Reading()
TOLERANCE = 1e-9


def draw(seed: int, index: int) -> World:
    """World `index` of a seed: 2-4 tokens, 1-4 steps, full support, from nearly flat to very peaked laws and rewards.

    In a quarter of the worlds only the rarest response has a reward, and the strengths are such that baseline and
    decoding each go part of the way to it: there the bounds are nearly tight.
    """
    rng = np.random.default_rng((seed, index))
    vocab_size, horizon = int(rng.integers(2, 5)), 1 + index % 4
    shape = {"vocab_size": vocab_size, "horizon": horizon}
    kind = index // 4 % 4
    sharpness = float(rng.uniform(3.0, 10.0) if kind == 0 else rng.uniform(0.2, 3.0))
    sft = tree.tabulate(lambda _: log_softmax(sharpness * rng.normal(size=vocab_size)), **shape)
    alpha, beta = np.exp(rng.uniform(np.log(0.1), np.log(3.0), size=2))
    if kind == 0:
        rarest = float(np.min(tree.law(sft)))
        beta = rng.uniform(1.1, 1.5) / -rarest
        alpha = rng.uniform(0.6, 1.0) / -(rarest + 1 / beta)
        laws = tuple(r[:, None] + p for r, p in zip(tree.reach(sft), sft, strict=True))
        reward = tuple((levels <= rarest).astype(np.float64) for levels in laws)
    elif kind == 1:  # ties abound
        reward = tree.leaves(lambda _: float(rng.integers(3)), **shape)
    else:
        offset = float(rng.normal()) if kind == 2 else 0.0
        reward = tree.leaves(lambda _: offset + float(rng.uniform()), **shape)
    return World(
        sft=sft,
        reward=reward,
        baseline_reward=tree.leaves(lambda _: float(rng.uniform()), **shape),
        alpha=float(alpha),
        beta=float(beta),
        k=int(rng.integers(1, vocab_size + 1)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What several checks need of a world: the baseline, its values, the best responses, flat rewards."""

    baseline: Levels
    tq: Levels
    rewards: Array
    rho_sft: Array
    rho_baseline: Array
    rho_star: Array

    @property
    def spread(self) -> float:
        """r_max - r_min."""
        return float(np.ptp(self.rewards))

    def gap(self, policy: Levels) -> float:
        """Sub-Gap (Eq. 18)."""
        return float(np.max(self.rewards) - np.exp(tree.law(policy)) @ self.rewards)


def _known(world: World) -> _Known:
    baseline = transfer.gibbs(world.sft, world.reward, world.beta)
    rewards, rho_sft = tree.flat(world.reward), tree.law(world.sft)
    return _Known(
        baseline=baseline,
        tq=tree.mean(baseline, world.reward),
        rewards=rewards,
        rho_sft=rho_sft,
        rho_baseline=tree.law(baseline),
        # With several best responses the reference's law among them gives the smallest divergence.
        rho_star=log_softmax(np.where(rewards == np.max(rewards), rho_sft, -np.inf)),
    )


def _decode(base: Levels, tq: Levels, world: World, reading: Reading) -> Aligned:
    temperature = world.alpha if reading.decode_with == "alpha" else world.beta
    return transfer.decode(base, transfer.over(tq, reading.q_sign), temperature)


def _theorem(world: World, known: _Known, reading: Reading) -> dict[str, float]:
    alpha, beta = world.alpha, world.beta
    aligned = _decode(known.baseline if reading.base == "baseline" else world.sft, known.tq, world, reading)
    policy, rho = aligned.policy, tree.law(aligned.policy)
    gap = known.gap(policy)
    h = tree.along(policy, tree.divergences(policy, known.baseline))
    h_back = tree.along(policy, tree.divergences(known.baseline, policy))
    kl_star = tree.kl(known.rho_star, known.rho_sft)
    kl_baseline = tree.kl(known.rho_baseline, known.rho_sft)
    kl_between = tree.kl(known.rho_star, known.rho_baseline)
    claimed_h = reading.h_factor * alpha * h
    divergence = tree.kl(rho, known.rho_sft)
    log_z = float(np.log(np.exp(known.rho_sft) @ np.exp(known.rewards / beta)))
    per_step = [
        np.sum(np.exp(p) * tq, axis=1) / alpha - c for p, tq, c in zip(policy, known.tq, aligned.log_c, strict=True)
    ]
    exact_divergence = float(np.exp(rho) @ known.rewards) / beta + tree.along(policy, per_step) - log_z
    steps = world.horizon - reading.missing_steps
    return {
        "theorem 1, part 1": beta * kl_star - claimed_h - gap,
        "theorem 1, part 1, tight": beta * (kl_star - kl_baseline) - claimed_h - gap,
        "exact identity of part 1": -abs(beta * (kl_star - kl_baseline - kl_between) - alpha * (h + h_back) - gap),
        "theorem 1, part 2": (1 / beta + steps / alpha) * known.spread - divergence,
        "exact form of part 2": -abs(exact_divergence - divergence),
        "chain rule of KL": -abs(h - tree.kl(rho, known.rho_baseline)),
    }


def _baseline_law(world: World, known: _Known) -> dict[str, float]:
    """The backward pass's token policy against Eq. 7 written down for whole responses."""
    whole = log_softmax(known.rho_sft + known.rewards / world.beta)
    return {"baseline conditionals": -float(np.max(np.abs(whole - known.rho_baseline)))}


def _sft_as_base(world: World, known: _Known, reading: Reading) -> dict[str, float]:
    policy = _decode(world.sft, known.tq, world, reading).policy
    moved = tree.along(policy, tree.divergences(known.baseline, world.sft))
    kept = tree.along(policy, tree.divergences(policy, world.sft))
    bound = world.beta * tree.kl(known.rho_star, known.rho_sft) + world.alpha * (moved - kept)
    steps = world.horizon - reading.missing_steps
    return {
        "base sft, part 1": bound - known.gap(policy),
        "base sft, part 2": steps / world.alpha * known.spread - tree.kl(tree.law(policy), known.rho_sft),
    }


def _among_best(policy: Levels, k: int) -> Levels:
    """The policy's log-probabilities with all but the k best tokens of each state at -inf; ties to the lower id."""
    ranks = [np.argsort(np.argsort(-p, axis=1, kind="stable"), axis=1) for p in policy]
    return tuple(np.where(rank < k, p, -np.inf) for rank, p in zip(ranks, policy, strict=True))


def _finite_k(world: World, known: _Known, reading: Reading) -> dict[str, float]:
    base = _among_best(known.baseline, world.k)
    policy = _decode(base, known.tq, world, reading).policy
    masses = [np.sum(np.exp(p), axis=1) for p in base]
    price = tree.along(policy, [known.spread * (1 - mass) - world.alpha * np.log(mass) for mass in masses])
    h = tree.along(policy, tree.divergences(policy, known.baseline))
    bound = world.beta * tree.kl(known.rho_star, known.rho_sft) + price - reading.h_factor * world.alpha * h
    return {"finite k": bound - known.gap(policy)}


def _tower(world: World) -> dict[str, float]:
    """M by the backward pass against M by summing over whole responses, and M of the prompt against Z_r / Z_BL."""
    baseline = transfer.gibbs(world.sft, world.baseline_reward, world.beta)
    m = transfer.log_m(baseline, world.reward, world.baseline_reward, world.beta)
    delta = transfer.over(transfer.minus(world.reward, world.baseline_reward), world.beta)
    reached = tree.reach(baseline)
    joint = [np.exp(r[:, None] + p + d) for r, p, d in zip(reached, baseline, delta, strict=True)]
    ends = [*(level[:, -1:] for level in joint[:-1]), joint[-1]]
    worst = 0.0
    for depth, (r, p, logs) in enumerate(zip(reached, baseline, m, strict=True)):
        whole = np.sum([end.reshape(len(r), -1).sum(axis=1) for end in ends[depth:]], axis=0)
        worst = max(worst, float(np.max(np.abs(tree.log_sum_exp(p + logs) - np.log(whole) + r))))
    rho_sft = np.exp(tree.law(world.sft))
    z, z_bl = (rho_sft @ np.exp(tree.flat(x) / world.beta) for x in (world.reward, world.baseline_reward))
    ratio = float(tree.log_sum_exp(baseline[0] + m[0])[0] - np.log(z / z_bl))
    return {"tower rule of M": -worst, "M of the prompt is Z_r / Z_BL": -abs(ratio)}


def _indirect(world: World, known: _Known, reading: Reading) -> dict[str, float]:
    rewards = world.reward, world.baseline_reward
    baseline = transfer.gibbs(world.sft, world.baseline_reward, world.beta)
    aligned = transfer.indirect(baseline, *rewards, world.beta, world.alpha)
    if reading != RIGHT:
        m = transfer.log_m(baseline, *rewards, world.beta)
        total = transfer.weighted(baseline, *rewards, world.beta)
        log_z = tree.log_sum_exp(baseline[0] + m[0])
        normalisers = m if reading.normaliser == "conditional" else tuple(np.broadcast_to(log_z, x.shape) for x in m)
        tq = tuple(w * np.exp(-logs) for w, logs in zip(total, normalisers, strict=True))
        base = tree.normalise(transfer.plus(baseline, m)) if reading.base_has_m else baseline
        aligned = _decode(base, tq, world, reading)
    direct = transfer.direct(known.baseline, world.reward, world.alpha)
    difference = np.exp(tree.law(aligned.policy)) - np.exp(tree.law(direct.policy))
    return {"indirect equals direct with rho_r": -float(np.max(np.abs(difference)))}


def _monotone(world: World, known: _Known, reading: Reading) -> dict[str, float]:
    """Greedy rollouts to the end, arg-max selection: the winner's reward never falls, greedy's own included."""
    policy = known.baseline
    futures = tree.backward(world.reward, lambda t, below: below[np.arange(len(below)), np.argmax(policy[t], axis=1)])
    base = known.baseline if reading.base == "baseline" else world.sft
    candidates = _among_best(policy, world.k)
    eos = futures[0].shape[1] - 1
    winners = [float(futures[0][0, np.argmax(policy[0][0])])]
    ids: tuple[int, ...] = ()
    while len(ids) < world.horizon and eos not in ids:
        scores = tree.row(base, ids) + reading.q_sign * tree.row(futures, ids) / world.alpha
        z = int(np.argmax(np.where(np.isfinite(tree.row(candidates, ids)), scores, -np.inf)))
        winners.append(float(tree.row(futures, ids)[z]))
        ids += (z,)
    return {"monotone improvement": float(np.min(np.diff(winners)))}


def check(world: World, reading: Reading = RIGHT) -> dict[str, float]:
    """Slack of every statement in one world [nats or reward]; negative beyond TOLERANCE is a violation."""
    known = _known(world)
    return {
        **_baseline_law(world, known),
        **_theorem(world, known, reading),
        **_sft_as_base(world, known, reading),
        **_finite_k(world, known, reading),
        **_tower(world),
        **_indirect(world, known, reading),
        **_monotone(world, known, reading),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """One statement over many worlds."""

    check: str
    worlds: int
    violations: int
    worst_slack: float


def tally(worlds: Sequence[World], reading: Reading = RIGHT) -> tuple[Tally, ...]:
    """Every statement checked in every world."""
    return tallied([check(world, reading) for world in worlds])


def tallied(slacks: Sequence[Mapping[str, float]]) -> tuple[Tally, ...]:
    """The slacks of many worlds, statement by statement; every world has the same statements."""
    return tuple(
        Tally(
            check=name,
            worlds=len(slacks),
            violations=sum(s[name] < -TOLERANCE for s in slacks),
            worst_slack=min(s[name] for s in slacks),
        )
        for name in slacks[0]
    )
