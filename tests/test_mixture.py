"""Mixtures of rewards by EM: what never falls, what is found, and what is chosen. Arrays alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from alignstar.errors import OptionError
from alignstar.train.linear import LinearRewards, space_of
from alignstar.train.mixture import (
    Judged,
    Mode,
    State,
    advance,
    begin,
    cast_votes,
    judged,
    log_sigmoid,
    one_hot,
    posterior,
    smallest_good,
    starts,
)
from alignstar.train.mixture_report import agreement
from alignstar.train.search import Plan, Trial, numbered, search, trials

MODES: tuple[Mode, ...] = ("hard", "soft")


def planted(seed: int, rewards, *, users: int = 12, pairs: int = 24, d: int = 4):
    """Differences of chosen and rejected replies' features, who chose, and the truth: user h is of group h mod U."""
    rng = np.random.default_rng(seed)
    group = np.arange(users) % len(rewards)
    x = rng.normal(size=(users * pairs, d))
    user = np.repeat(np.arange(users), pairs)
    margin = np.sum(x * np.asarray(rewards)[group[user]], axis=1)
    wins = rng.random(len(x)) < 1.0 / (1.0 + np.exp(-margin))
    return np.where(wins[:, None], x, -x), [f"user {h}" for h in user], group


def opposite(seed: int, d: int = 4):
    direction = np.random.default_rng(seed + 99).normal(size=d)
    direction *= 2.0 / np.linalg.norm(direction)
    return [direction, -direction]


def run(family, votes, memberships, mode: Mode = "hard", iterations: int = 60):
    state = begin(family, memberships)
    while not state.done and len(state.objectives) < iterations:
        state = advance(family, votes, state, mode=mode)
    return state


def family_of(differences, votes, l2: float = 1e-3):
    return LinearRewards(differences, l2=l2, n_votes=int(np.sum(~votes.held_out)))


@pytest.mark.parametrize("mode", MODES)
def test_the_objective_never_falls(mode: Mode):
    for seed in range(20):
        differences, users, _ = planted(seed, [*opposite(seed), np.zeros(4)], pairs=8)
        votes = cast_votes(users, held_out=0.2, seed=seed)
        for groups in (2, 3, 4):
            memberships = starts(votes, differences, groups, restart=2, seed=seed)
            if mode == "soft":  # and from the middle of the simplex
                memberships = 0.5 * memberships + 0.5 / groups
            state = run(family_of(differences, votes, 1e-2), votes, memberships, mode)
            assert len(state.objectives) > 1
            assert np.min(np.diff(state.objectives)) > -1e-9
            # With hardly any penalty the likelihood is the objective.
            state = run(family_of(differences, votes, 1e-9), votes, memberships, mode)
            assert np.min(np.diff(state.likelihoods), initial=0.0) > -1e-4


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("restart", [0, 1, 2])
def test_planted_groups_are_found(mode: Mode, restart: int):
    """Linear rewards in opposite directions, 24 votes a user: at least 95 % of the users, whatever the beginning."""
    for seed in range(6):
        differences, users, truth = planted(seed, opposite(seed), users=40)
        order = np.random.default_rng(seed).permutation(len(users))  # else the first beginning would be the truth
        differences, users = differences[order], [users[i] for i in order]
        votes = cast_votes(users, held_out=0.0, seed=seed)
        memberships = starts(votes, differences, 2, restart=restart, seed=seed)
        state = run(family_of(differences, votes), votes, memberships, mode)
        names = [str(truth[int(user.split()[1])]) for user in votes.users]
        assert agreement(state.groups.tolist(), names) >= 0.95


def test_one_group_is_the_ordinary_fit():
    differences, users, _ = planted(0, opposite(0))
    votes = cast_votes(users, held_out=0.25, seed=0)
    family = family_of(differences, votes)
    w = family.fitted(family.start(), (~votes.held_out).astype(float))
    for mode in MODES:
        state = run(family, votes, np.ones((12, 1)), mode)
        assert state.rewards[0].tobytes() == w.tobytes()
    # It is the maximum: no gradient is left, and no other reward is better.
    x = differences[~votes.held_out]
    gradient = x.T @ (1.0 / (1.0 + np.exp(x @ w))) - 1e-3 * len(x) * w
    assert np.max(np.abs(gradient)) < 1e-5

    def value(v):
        return np.sum(log_sigmoid(x @ v)) - family.penalty(v)

    rng = np.random.default_rng(0)
    assert all(value(w) > value(w + 0.01 * rng.normal(size=4)) for _ in range(20))
    assert family.penalty(w) == pytest.approx(0.5 * 1e-3 * len(x) * float(w @ w))


@pytest.mark.parametrize("mode", MODES)
def test_names_of_groups_do_not_matter(mode: Mode):
    for seed in range(6):
        differences, users, _ = planted(seed, [*opposite(seed), np.ones(4)], pairs=10)
        votes = cast_votes(users, held_out=0.0, seed=0)
        memberships = starts(votes, differences, 3, restart=2, seed=seed)
        family = family_of(differences, votes)
        state, turned = (run(family, votes, m, mode) for m in (memberships, memberships[:, [2, 0, 1]]))
        assert turned.memberships == pytest.approx(state.memberships[:, [2, 0, 1]])
        assert np.array(turned.rewards) == pytest.approx(np.array([state.rewards[u] for u in (2, 0, 1)]))
        assert turned.objectives == pytest.approx(state.objectives)


def test_two_groups_for_one_law_are_no_worse_than_one():
    for seed in range(6):
        differences, users, _ = planted(seed, [np.ones(4)])
        votes = cast_votes(users, held_out=0.0, seed=0)
        family = family_of(differences, votes, 1e-9)
        one = run(family, votes, np.ones((12, 1)))
        for restart in range(4):
            memberships = starts(votes, differences, 2, restart=restart, seed=seed)
            assert run(family, votes, memberships).likelihoods[-1] >= one.likelihoods[-1] - 1e-6
            assert run(family, votes, memberships, "soft").likelihoods[-1] >= one.likelihoods[-1] - 1e-6


def test_ties_go_to_the_smallest_group_and_an_empty_one_stays_as_it_is():
    differences, users, _ = planted(0, opposite(0))
    votes = cast_votes(users, held_out=0.0, seed=0)
    family = family_of(differences, votes)
    own = np.full(4, 0.125)
    state = State(rewards=(own, family.start(), own), memberships=one_hot(np.ones(12, dtype=int), 3))
    after = advance(family, votes, state, mode="hard")
    assert after.rewards[0] is own
    assert after.rewards[2] is own
    assert not after.memberships[:, 2].any(), "groups 0 and 2 have the same reward"
    assert after.memberships[:, 0].any()
    for mode in MODES:
        assert np.isfinite(run(family, votes, one_hot(np.zeros(12, dtype=int), 3), mode).objectives[-1])


def test_a_user_who_is_there_twice_and_users_with_one_vote():
    differences, users, truth = planted(1, opposite(1), users=20)
    copied = [f"copy of {user}" for user in users]
    votes = cast_votes([*users, *copied], held_out=0.0, seed=0)
    twice = np.concatenate([differences, differences])
    memberships = one_hot(np.concatenate([truth, truth]), 2)
    state = run(family_of(twice, votes), votes, memberships)
    assert state.groups[:20].tolist() == state.groups[20:].tolist()
    alone = cast_votes(users, held_out=0.0, seed=0)
    once = run(family_of(differences, alone), alone, one_hot(truth, 2))
    assert state.rewards[0] == pytest.approx(once.rewards[0]), "votes given twice change nothing"
    single = cast_votes([f"{i}" for i in range(len(users))], held_out=0.5, seed=0)
    assert not single.held_out.any(), "an only vote is never held out"
    state = run(family_of(differences, single), single, starts(single, differences, 2, restart=1, seed=0))
    assert state.done
    assert np.min(np.diff(state.objectives), initial=0.0) > -1e-9


def test_votes_that_a_reward_tells_without_fault_have_a_finite_fit():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 6))
    x[:, 0] = np.abs(x[:, 0]) + 0.1
    votes = cast_votes(["a", "b"] * 100, held_out=0.0, seed=0)
    for l2 in (1e-3, 1e-6):
        family = family_of(x, votes, l2)
        state = run(family, votes, one_hot(np.array([0, 1]), 2))
        assert state.done
        assert np.isfinite(state.rewards[0]).all()
        assert (x @ state.rewards[0] > 0)[np.array(votes.user) == 0].all()
    far = family_of(1e4 * x, votes)
    assert np.isfinite(run(far, votes, np.ones((2, 1))).likelihoods[-1])
    assert log_sigmoid(np.array([-1e4, 0.0, 1e4])) == pytest.approx([-1e4, -np.log(2.0), 0.0])


def test_soft_memberships_are_the_posterior():
    shares, fits = np.array([0.25, 0.75]), np.log(np.array([[0.2, 0.1], [0.5, 0.5], [1e-3, 0.9]]))
    memberships, total = posterior(shares, fits - 2000.0)
    joint = shares * np.exp(fits)
    assert memberships == pytest.approx(joint / joint.sum(axis=1, keepdims=True))
    assert total == pytest.approx(np.sum(np.log(joint.sum(axis=1))) - 6000.0)
    differences, users, _ = planted(3, opposite(3), pairs=3)
    votes = cast_votes(users, held_out=0.0, seed=0)
    state = run(family_of(differences, votes, 1.0), votes, starts(votes, differences, 2, restart=0, seed=0), "soft")
    assert np.sum(state.shares) == pytest.approx(1.0)
    assert np.all((state.memberships > 0.0) & (state.memberships < 1.0))


def test_who_is_held_out_depends_on_the_seed_and_the_user_alone():
    users = ["a"] * 10 + ["b"] * 7 + ["c"]
    votes = cast_votes(users, held_out=0.25, seed=3)
    held = {name: votes.held_out[[u == name for u in users]] for name in "abc"}
    assert [int(held[name].sum()) for name in "abc"] == [2, 1, 0]
    others = ["z"] * 5 + users
    assert cast_votes(others, held_out=0.25, seed=3).held_out[5:].tolist() == votes.held_out.tolist()
    assert any(cast_votes(users, held_out=0.25, seed=s).held_out.tolist() != votes.held_out.tolist() for s in range(4))


def test_held_out_votes_teach_nothing():
    differences, users, _ = planted(0, opposite(0))
    votes = cast_votes(users, held_out=0.25, seed=0)
    changed = np.where(votes.held_out[:, None], -7.0 * differences, differences)
    first, second = (
        run(family_of(x, votes), votes, starts(votes, x, 2, restart=1, seed=0)) for x in (differences, changed)
    )
    assert first.objectives == second.objectives
    assert first.memberships.tolist() == second.memberships.tolist()
    told = judged(family_of(differences, votes), votes, first)
    margins = differences @ np.array(first.rewards).T
    expected = log_sigmoid(margins[np.arange(len(users)), first.groups[votes.user]])[votes.held_out]
    assert told.mean == pytest.approx(float(np.mean(expected)))
    assert (told.votes, float(np.sum(told.per_user))) == (72, pytest.approx(float(np.sum(expected))))


def test_random_beginnings_are_functions_of_seed_restart_and_user():
    users = [f"u{i}" for i in range(30)]
    votes, more = cast_votes(users, held_out=0, seed=0), cast_votes(["first", *users], held_out=0, seed=0)
    x = np.random.default_rng(0).normal(size=(31, 3))
    draw = starts(votes, x[1:], 3, restart=2, seed=5)
    assert starts(more, x, 3, restart=2, seed=5)[1:].tolist() == draw.tolist()
    assert draw.tolist() != starts(votes, x[1:], 3, restart=4, seed=5).tolist()
    assert draw.tolist() != starts(votes, x[1:], 3, restart=2, seed=6).tolist()
    assert starts(votes, x[1:], 3, restart=0, seed=5).argmax(axis=1).tolist() == [0, 1, 2] * 10
    for restart in range(6):
        assert starts(votes, x[1:], 3, restart=restart, seed=5).sum(axis=1).tolist() == [1.0] * 30


def test_clusters_are_what_users_differ_in():
    """Users in two clouds far apart, in one of many directions that they all share otherwise."""
    rng = np.random.default_rng(0)
    side = np.arange(40) % 2
    x = rng.normal(size=(40, 30)) + 8.0
    x[:, 7] += 12.0 * side
    votes = cast_votes([f"u{i}" for i in range(40)], held_out=0, seed=0)
    for restart in (1, 3, 5):
        found = starts(votes, x, 2, restart=restart, seed=0).argmax(axis=1)
        assert agreement(found.tolist(), [str(s) for s in side]) == 1.0


def test_the_number_of_groups_is_chosen_by_held_out_votes():
    plan = Plan(groups=(1, 2, 3), l2=(0.03, 0.001), restarts=3)
    for seed in range(3):
        for rewards, expected in ((opposite(seed), 2), ([np.ones(4)], 1)):
            differences, users, truth = planted(seed, rewards, users=16, pairs=40)
            votes = cast_votes(users, held_out=0.25, seed=seed)
            found = search(differences, votes, plan, known={}, on_state=lambda trial, state: None)
            assert found.kept.trial.groups == expected
            assert len(found.rows) == 6
            assert agreement(found.state.groups.tolist(), [str(t) for t in truth]) == 1.0
            best = found.best[2]
            assert best.held_out.mean == max(row.held_out.mean for row in found.rows if row.trial.groups == 2)


def test_the_smallest_number_within_one_standard_error():
    def told(*per_user: float) -> Judged:
        return Judged(mean=sum(per_user) / 40, per_user=np.array(per_user), votes=40)

    worse, even = told(-3.0, -3.2, -2.9, -3.1), told(-2.0, -2.1, -1.9, -2.0)
    assert smallest_good({1: worse, 2: even, 3: told(-1.9, -2.2, -1.9, -1.95)}) == 2
    assert smallest_good({1: worse, 2: even, 3: told(-1.5, -1.6, -1.4, -1.5)}) == 3
    assert smallest_good({1: told(-2.0, -2.0, -2.0, -2.0), 2: told(-9.0, -2.0, -2.0, -2.0)}) == 1
    assert smallest_good({2: even, 1: even}) == 1


@pytest.mark.parametrize("mode", MODES)
def test_a_search_that_was_stopped_anywhere_ends_the_same(mode: Mode):
    differences, users, _ = planted(2, opposite(2), pairs=12)
    votes = cast_votes(users, held_out=0.2, seed=0)
    plan = Plan(groups=(1, 2), l2=(0.1, 0.01), restarts=2, mode=mode, iterations=6)
    states: list[tuple[str, State]] = []
    whole = search(differences, votes, plan, known={}, on_state=lambda t, s: states.append((t.key, s)))
    keys: list[str] = []
    for stop in range(0, len(states), 3):
        keys.clear()
        known = dict(states[:stop])
        found = search(differences, votes, plan, known=known, on_state=lambda t, s: keys.append(t.key))
        assert keys == [key for key, _ in states[stop:]]
        assert found.state.memberships.tobytes() == whole.state.memberships.tobytes()
        assert np.array(found.state.rewards).tobytes() == np.array(whole.state.rewards).tobytes()
        assert [row.likelihoods for row in found.rows] == [row.likelihoods for row in whole.rows]


def test_trials_go_from_the_strongest_penalty_down_and_one_group_has_one_beginning():
    plan = Plan(groups=(2, 1, 2), l2=(0.01, 0.1), restarts=2)
    told = [(t.groups, t.restart, t.l2) for t in trials(plan)]
    assert told == [(1, 0, 0.1), (1, 0, 0.01), (2, 0, 0.1), (2, 0, 0.01), (2, 1, 0.1), (2, 1, 0.01)]
    assert len({t.key for t in trials(plan)}) == 6
    assert Trial(groups=2, restart=1, l2=0.1).key != Trial(groups=1, restart=2, l2=0.1).key


def test_a_path_goes_on_where_the_stronger_penalty_ended():
    moved = 0
    for seed in range(4):
        differences, users, _ = planted(seed, [*opposite(seed), np.ones(4)], users=15, pairs=5)
        votes = cast_votes(users, held_out=0.2, seed=0)
        plan = Plan(groups=(2,), l2=(0.3, 0.01), restarts=1)
        found = search(differences, votes, plan, known={}, on_state=lambda t, s: None)
        (_, first), (_, second) = next(row.path for row in found.rows if row.trial.l2 == 0.01)
        family = family_of(differences, votes, 0.01)
        assert run(family, votes, first.memberships).objectives == second.objectives
        assert len(found.rows[1].likelihoods) == len(first.likelihoods) + len(second.likelihoods)
        moved += run(family, votes, starts(votes, differences, 2, restart=0, seed=0)).objectives != second.objectives
    assert moved, "elsewhere it would have ended elsewhere"


def test_groups_are_numbered_by_size_and_those_of_no_one_are_left_out():
    memberships = one_hot(np.array([3, 1, 1, 0, 3, 1]), 5)
    state = State(rewards=tuple(np.full(2, float(u)) for u in range(5)), memberships=memberships)
    after = numbered(state)
    assert [float(reward[0]) for reward in after.rewards] == [1.0, 3.0, 0.0]
    assert after.groups.tolist() == [1, 0, 0, 2, 1, 0]
    even = dataclasses.replace(state, memberships=one_hot(np.array([3, 1, 3, 1]), 5))
    assert [float(reward[0]) for reward in numbered(even).rewards] == [3.0, 1.0]


def test_features_are_standardised_and_weights_go_back_to_states():
    rng = np.random.default_rng(0)
    chosen, rejected = rng.normal(size=(2, 50, 5)) * np.array([1.0, 10.0, 0.1, 1.0, 0.0]) + 3.0
    for components in (9, 3):
        space = space_of(chosen, rejected, components=components)
        w = rng.normal(size=(2, space.differences.shape[1]))
        assert space.differences.shape == (50, min(5, components))
        assert (chosen - rejected) @ space.heads(w).T == pytest.approx(space.differences @ w.T)
    whole = space_of(chosen, rejected, components=5).differences
    leading = np.linalg.svd(whole, compute_uv=False)[:3]
    assert np.linalg.svd(space_of(chosen, rejected, components=3).differences, compute_uv=False) == pytest.approx(
        leading
    )
    scaled = space_of(1000.0 * chosen, 1000.0 * rejected, components=9).differences
    assert scaled == pytest.approx(whole)


def test_agreement_names_every_group_once():
    assert agreement([0, 0, 1, 1], ["b", "b", "a", "a"]) == 1.0
    assert agreement([0, 0, 0, 0], ["a", "a", "a", "b"]) == 0.75
    assert agreement([0, 1, 2, 0], ["a", "a", "a", "a"]) == 0.5, "one true group has one name only"
    assert agreement([0, 0, 1, 1, 1], ["a", "a", "a", "b", "b"]) == 0.8


def test_what_cannot_be_chosen_is_refused():
    votes = cast_votes(["a", "b"], held_out=0.5, seed=0)

    def ask(plan: Plan):
        return search(np.ones((2, 3)), votes, plan, known={}, on_state=lambda trial, state: None)

    with pytest.raises(OptionError, match="are chosen by held-out votes, and of no user's votes one is held out"):
        ask(Plan(groups=(1, 2), l2=(0.1,)))
    with pytest.raises(OptionError, match="groups=3 is more than the 2 users; ask for fewer"):
        ask(Plan(groups=(3,), l2=(0.1,)))
    assert ask(Plan(groups=(2,), l2=(0.1,))).kept.trial.groups == 2


def test_the_best_beginning_is_kept():
    differences, users, _ = planted(5, [*opposite(5), np.ones(4)], users=15, pairs=6)
    votes = cast_votes(users, held_out=0.2, seed=0)
    told: dict[str, float] = {}
    plan = Plan(groups=(3,), l2=(0.01,), restarts=8)
    found = search(
        differences, votes, plan, known={}, on_state=lambda t, s: told.update({t.key: s.objectives[-1]})
    )  # fmt: skip
    assert len(set(told.values())) > 1
    assert found.kept.state.objectives[-1] == max(told.values())


def test_a_fit_does_not_depend_on_where_it_begins_and_is_never_worse_than_that():
    for seed in range(8):
        differences, users, _ = planted(seed, opposite(seed)[:1])
        family = family_of(differences, cast_votes(users, held_out=0.0, seed=0))
        weights = np.random.default_rng(seed).random(len(users))
        found = family.fitted(family.start(), weights)
        for size in (1.0, 30.0, 300.0):
            begun = size * np.random.default_rng(seed).normal(size=4)
            assert family.fitted(begun, weights) == pytest.approx(found, abs=1e-5)
        assert family.fitted(found, weights) == pytest.approx(found, abs=1e-9)
