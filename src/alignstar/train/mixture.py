"""A mixture of rewards from the preferences of many users, by expectation maximisation. Pure maths on arrays.

MaxMin-RLHF, Chakraborty et al. 2024, arXiv:2402.08925, section 4: users belong to hidden groups, and the members of a
group choose by Bradley-Terry on its reward. E: a user belongs to the group under which their votes are likeliest. M: a
group's reward is fitted to its users' votes. Knows votes as rows and rewards as a `Family`; neither texts nor models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from alignstar.sampling import Array, IntArray, Noise

R = TypeVar("R")

Mode: TypeAlias = Literal["hard", "soft"]
Mask: TypeAlias = NDArray[np.bool_]

TOLERANCE = 1e-7
"""Nats per vote: the soft form stops when an iteration gains less."""
MAX_STEPS = 100
"""Of k-means."""


class Family(Protocol[R]):
    """Rewards of one kind, `R`, that can be fitted to weighted votes."""

    def start(self) -> R:
        """The reward that a group begins with."""
        ...

    def fitted(self, reward: R, weights: Array) -> R:
        """What maximises sum_i weights_i log sigma(margin_i) less the penalty, from `reward` on; never below it.

        `weights` [N]; votes of weight 0 are not looked at.
        """
        ...

    def margins(self, reward: R) -> Array:
        """Reward of the chosen less that of the rejected reply, for every vote [N]."""
        ...

    def penalty(self, reward: R) -> float:
        """What the fit pays for this reward [nats]."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Votes:
    """Who gave every vote, and which are held out: `user` [N] holds indices into `users`, `held_out` [N]."""

    users: tuple[str, ...]
    user: IntArray
    held_out: Mask

    def per_user(self, numbers: Array, *, held_out: bool = False) -> Array:
        """Sums [H, ...] over every user's votes, of `numbers` [N, ...]: those for training, or those held out."""
        chosen = self.held_out if held_out else ~self.held_out
        sums = np.zeros((len(self.users), *numbers.shape[1:]))
        np.add.at(sums, self.user[chosen], numbers[chosen])
        return sums


def cast_votes(users: Sequence[str], *, held_out: float, seed: int) -> Votes:
    """Votes in the given order; users are numbered as they first appear.

    Of each user's n votes floor(held_out n) are held out, chosen by the seed and the user's id alone.
    """
    names = tuple(dict.fromkeys(users))
    index = {name: i for i, name in enumerate(names)}
    user = np.array([index[name] for name in users], dtype=np.int64)
    apart = np.zeros(len(users), dtype=np.bool_)
    for i, name in enumerate(names):
        own = np.flatnonzero(user == i)
        ranks = np.argsort(Noise(seed=seed, purpose=f"held out {name}").uniform(0, len(own)), kind="stable")
        apart[own[ranks[: int(held_out * len(own))]]] = True
    return Votes(users=names, user=user, held_out=apart)


@dataclass(frozen=True, slots=True, kw_only=True)
class State(Generic[R]):
    """Where an EM stands after an M-step and the E-step that follows it.

    `memberships` [H, U] sum to 1 for every user; in the hard form they are 0 or 1. `likelihoods` and `objectives` hold,
    per iteration, the votes' log-likelihood [nats] (hard: that of every user's own group; soft: of the observed votes)
    and that less the penalties. The objective never falls; `done` says that nothing will change any more.
    """

    rewards: tuple[R, ...]
    memberships: Array
    likelihoods: tuple[float, ...] = ()
    objectives: tuple[float, ...] = ()
    done: bool = False

    @property
    def shares(self) -> Array:
        """The groups' weights [U]."""
        return np.mean(self.memberships, axis=0)

    @property
    def groups(self) -> IntArray:
        """Every user's group [H]; ties go to the smallest."""
        return np.argmax(self.memberships, axis=1).astype(np.int64)


def begin(family: Family[R], memberships: Array) -> State[R]:
    """Before the first M-step."""
    return State(rewards=tuple(family.start() for _ in range(memberships.shape[1])), memberships=memberships)


def advance(family: Family[R], votes: Votes, state: State[R], *, mode: Mode) -> State[R]:
    """One iteration: M, from the rewards that are there (a group without users keeps its own), then E."""
    shares = state.shares
    weights = np.where(votes.held_out[:, None], 0.0, state.memberships[votes.user])  # [N, U]
    rewards = tuple(
        family.fitted(reward, weights[:, u]) if weights[:, u].any() else reward
        for u, reward in enumerate(state.rewards)
    )
    fits = likelihoods(family, votes, rewards)  # [H, U]
    if mode == "hard":
        memberships = one_hot(np.argmax(fits, axis=1), len(rewards))
        total = float(np.sum(np.max(fits, axis=1)))
        done = bool(np.array_equal(memberships, state.memberships))
    else:
        memberships, total = posterior(shares, fits)
        done = False
    objective = total - sum(family.penalty(reward) for reward in rewards)
    if mode == "soft" and state.objectives:
        done = objective - state.objectives[-1] <= TOLERANCE * int(np.sum(~votes.held_out))
    return State(
        rewards=rewards,
        memberships=memberships,
        likelihoods=(*state.likelihoods, total),
        objectives=(*state.objectives, objective),
        done=done,
    )


def likelihoods(family: Family[R], votes: Votes, rewards: Sequence[R], *, held_out: bool = False) -> Array:
    """Log-likelihood [H, U] of every user's votes under every group's reward [nats]."""
    margins = np.stack([family.margins(reward) for reward in rewards], axis=1)
    return votes.per_user(log_sigmoid(margins), held_out=held_out)


def log_sigmoid(x: Array) -> Array:
    """log(1 / (1 + exp(-x))), without overflow."""
    return -np.logaddexp(0.0, -x)


def one_hot(groups: IntArray | NDArray[np.intp], count: int) -> Array:
    """Memberships [H, count] of users who belong to one group each."""
    return np.eye(count)[groups]


def posterior(shares: Array, fits: Array) -> tuple[Array, float]:
    """gamma_hu proportional to shares_u exp(fits_hu) [H, U], and sum_h log sum_u shares_u exp(fits_hu) [nats]."""
    with np.errstate(divide="ignore"):
        joint = np.log(shares) + fits
    totals = np.logaddexp.reduce(joint, axis=1)
    return np.exp(joint - totals[:, None]), float(np.sum(totals))


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """How well a mixture tells the held-out votes: mean log-likelihood per vote [nats], and each user's sum [H].

    `votes` is how many there are.
    """

    mean: float
    per_user: Array
    votes: int


def judged(family: Family[R], votes: Votes, state: State[R]) -> Judged:
    """The held-out votes, each user's by the groups that the votes for training put them in."""
    fits = likelihoods(family, votes, state.rewards, held_out=True)
    per_user = posterior_predictive(state.memberships, fits)
    count = int(np.sum(votes.held_out))
    return Judged(mean=float(np.sum(per_user)) / count if count else float("nan"), per_user=per_user, votes=count)


def posterior_predictive(memberships: Array, fits: Array) -> Array:
    """Of each user's votes under their own mixture of groups: log sum_u gamma_hu exp(fits_hu) [H]."""
    with np.errstate(divide="ignore"):
        return np.logaddexp.reduce(np.log(memberships) + fits, axis=1)


def smallest_good(found: Mapping[int, Judged]) -> int:
    """The smallest number of groups within one standard error of the best one's held-out likelihood.

    The error is that of the difference, over users (Breiman et al. 1984, the one-standard-error rule).
    """
    best = max(found, key=lambda groups: (found[groups].mean, -groups))
    for groups in sorted(found):
        gaps = found[best].per_user - found[groups].per_user
        error = float(np.std(gaps, ddof=1) * np.sqrt(len(gaps))) if len(gaps) > 1 else 0.0
        if float(np.sum(gaps)) <= error:
            return groups
    return best


def starts(votes: Votes, wins: Array, groups: int, *, restart: int, seed: int) -> Array:
    """Memberships [H, groups] to begin with.

    Restart 0 is that of the published code, user h in group h mod U; odd ones are k-means clusters of what wins with
    every user, the mean of `wins` [N, d] over their votes for training, in the U - 1 directions in which users differ
    the most (Ding and He 2004); the other ones are random. A user's draws are a function of the seed, the restart and
    the user's id.
    """
    if restart == 0:
        return one_hot(np.arange(len(votes.users)) % groups, groups)
    draws = np.array(
        [Noise(seed=seed, purpose=f"member {name}", rollout=restart).uniform(0, groups) for name in votes.users]
    )
    if restart % 2 == 0:
        return one_hot((draws[:, 0] * groups).astype(np.int64), groups)
    means = votes.per_user(wins) / votes.per_user(np.ones(len(wins)))[:, None]
    left, stretched, _ = np.linalg.svd(means - np.mean(means, axis=0), full_matrices=False)
    leading = max(1, groups - 1)
    return one_hot(clusters(left[:, :leading] * stretched[:leading], draws), groups)


def clusters(points: Array, draws: Array) -> IntArray:
    """K-means clusters [H] of points [H, d], from centres drawn as k-means++ does, by `draws` in (0, 1) [H, K]."""
    near = np.ones(len(points))
    centres = points[:0]
    for draw in draws.T:
        # The smallest of exponential times with rates `near` is a draw in proportion to them.
        with np.errstate(divide="ignore"):
            first = int(np.argmin(-np.log(draw) / near))
        centres = np.concatenate([centres, points[[first]]])
        near = np.min(_distances(points, centres), axis=1)
    nearest = np.argmin(_distances(points, centres), axis=1)
    for _ in range(MAX_STEPS):
        held = [nearest == k for k in range(len(centres))]
        centres = np.stack(
            [np.mean(points[own], axis=0) if own.any() else centre for own, centre in zip(held, centres, strict=True)]
        )
        before, nearest = nearest, np.argmin(_distances(points, centres), axis=1)
        if np.array_equal(before, nearest):
            break
    return nearest.astype(np.int64)


def _distances(points: Array, centres: Array) -> Array:
    """Squared distances [H, K]."""
    return np.stack([np.sum((points - centre) ** 2, axis=1) for centre in centres], axis=1)
