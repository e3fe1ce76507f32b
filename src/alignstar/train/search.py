"""Which mixture is kept: several beginnings, strengths of the penalty and numbers of groups, by held-out votes.

Knows linear rewards and the EM; neither texts nor models. What it is given back after a stop it does not do again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from alignstar.errors import OptionError
from alignstar.sampling import Array
from alignstar.train.linear import LinearRewards
from alignstar.train.mixture import Judged, Mode, State, Votes, advance, begin, judged, smallest_good, starts

Linear: TypeAlias = State[Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is tried. `l2` goes from the strongest penalty down, each begun where the one before ended.

    A strong one keeps groups that began at random from explaining their own users' votes only, with which they would
    never change. `iterations` limits every single EM.
    """

    groups: tuple[int, ...] = (1, 2, 3)
    l2: tuple[float, ...] = (0.1, 0.03, 0.01)
    mode: Mode = "hard"
    restarts: int = 6
    iterations: int = 50
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One EM of a plan."""

    groups: int
    restart: int
    l2: float

    @property
    def key(self) -> str:
        """A name for it, different for every trial."""
        return f"{self.groups}-groups-{self.restart}-l2-{self.l2:g}"


def trials(plan: Plan) -> list[Trial]:
    """All of them, in order. A single group has one beginning only."""
    return [
        Trial(groups=groups, restart=restart, l2=l2)
        for groups in sorted(set(plan.groups))
        for restart in range(plan.restarts if groups > 1 else 1)
        for l2 in sorted(set(plan.l2), reverse=True)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The best beginning of a number of groups and a penalty: the one with the greatest objective.

    `path` are the EMs that led there, from the strongest penalty to this one, each with its penalty.
    """

    trial: Trial
    path: tuple[tuple[float, Linear], ...]
    held_out: Judged

    @property
    def state(self) -> Linear:
        """Where the trial ended."""
        return self.path[-1][1]

    @property
    def likelihoods(self) -> tuple[float, ...]:
        """Of the votes for training, after every iteration of the path [nats]."""
        return tuple(value for _, state in self.path for value in state.likelihoods)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """All rows, the best of every number of groups by held-out votes, and the kept one.

    The groups of `state`, the kept mixture, are numbered by size (ties: by their first user).
    """

    rows: tuple[Row, ...]
    best: Mapping[int, Row]
    kept: Row
    state: Linear


def check(plan: Plan, votes: Votes) -> None:
    """Raises OptionError where there is something to choose and no vote to choose by."""
    choices = len(set(plan.groups)) * len(set(plan.l2))
    if choices > 1 and not votes.held_out.any():
        raise OptionError(
            f"groups={list(plan.groups)} and l2={list(plan.l2)} are chosen by held-out votes, and of no user's votes "
            "one is held out; give one number each, more votes, or a larger held_out."
        )
    if max(plan.groups) > len(votes.users):
        raise OptionError(f"groups={max(plan.groups)} is more than the {len(votes.users)} users; ask for fewer.")


def search(
    differences: Array,
    votes: Votes,
    plan: Plan,
    *,
    known: Mapping[str, Linear],
    on_state: Callable[[Trial, Linear], None],
) -> Found:
    """Every trial of a plan on votes with such `differences` [N, d]; `known` states, by key, are gone on from.

    `on_state` is told every new state. The same plan gives the same result however often it was stopped.
    """
    check(plan, votes)
    ended: dict[Trial, Linear] = {}
    memberships = np.zeros((0, 0))
    n_votes = int(np.sum(~votes.held_out))
    for trial in trials(plan):
        family = LinearRewards(differences, l2=trial.l2, n_votes=n_votes)
        if trial.l2 == max(plan.l2):
            memberships = starts(votes, differences, trial.groups, restart=trial.restart, seed=plan.seed)
        state = known.get(trial.key, begin(family, memberships))
        while not state.done and len(state.objectives) < plan.iterations:
            state = advance(family, votes, state, mode=plan.mode)
            on_state(trial, state)
        ended[trial] = state
        memberships = state.memberships
    return choose(differences, votes, ended)


def choose(differences: Array, votes: Votes, ended: Mapping[Trial, Linear]) -> Found:
    """Of every number of groups the best penalty by held-out votes; of those the smallest that is good enough.

    Ties go to the stronger penalty and to the earlier beginning.
    """
    family = LinearRewards(differences, l2=0.0, n_votes=0)
    chosen: dict[tuple[int, float], Trial] = {}
    for trial, state in ended.items():
        earlier = chosen.get((trial.groups, trial.l2))
        if earlier is None or state.objectives[-1] > ended[earlier].objectives[-1]:
            chosen[trial.groups, trial.l2] = trial
    rows = tuple(
        Row(trial=trial, path=_path(trial, ended), held_out=judged(family, votes, ended[trial]))
        for trial in chosen.values()
    )
    best: dict[int, Row] = {}
    for row in rows:  # from the strongest penalty down
        earlier = best.setdefault(row.trial.groups, row)
        if row.held_out.mean > earlier.held_out.mean:
            best[row.trial.groups] = row
    kept = best[smallest_good({groups: row.held_out for groups, row in best.items()})]
    return Found(rows=rows, best=best, kept=kept, state=numbered(kept.state))


def _path(last: Trial, ended: Mapping[Trial, Linear]) -> tuple[tuple[float, Linear], ...]:
    same = (last.groups, last.restart)
    return tuple((t.l2, state) for t, state in ended.items() if (t.groups, t.restart) == same and t.l2 >= last.l2)


def numbered(state: Linear) -> Linear:
    """The same with its groups in order of their users' number, ties by their first user; without those of no one."""
    groups = state.groups.tolist()
    order = sorted(
        np.flatnonzero(state.memberships.any(axis=0)).tolist(),
        key=lambda u: (-groups.count(u), groups.index(u) if u in groups else len(groups)),
    )
    return replace(state, rewards=tuple(state.rewards[u] for u in order), memberships=state.memberships[:, order])
