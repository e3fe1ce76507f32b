"""Exact worlds: the statements hold, wrong readings are caught, and the limits of the values are right."""

import json
import math

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from alignstar.cli.theory import theory
from alignstar.models.toy import ToyModel
from alignstar.theory import checks, transfer, tree

WORLDS = [checks.draw(11, index) for index in range(96)]


def invoke(*arguments):
    app = typer.Typer()
    app.command()(theory)
    return CliRunner().invoke(app, list(arguments))


def test_no_statement_is_violated():
    for t in checks.tally(WORLDS):
        assert t.violations == 0, t


@pytest.mark.parametrize(
    ("mutant", "check"),
    [
        ("base sft", "exact identity of part 1"),
        ("2 alpha h", "theorem 1, part 1"),
        ("sign of Q", "exact identity of part 1"),
        ("T-1", "theorem 1, part 2"),
        ("beta for alpha", "exact form of part 2"),
        ("unconditional normaliser", "indirect equals direct with rho_r"),
        ("M left out", "indirect equals direct with rho_r"),
    ],
)
def test_wrong_readings_are_caught(mutant, check):
    violated = {t.check for t in checks.tally(WORLDS, checks.MUTANTS[mutant]) if t.violations}
    assert check in violated


def test_every_mutant_is_named_above():
    marks = test_wrong_readings_are_caught.pytestmark[0].args[1]
    assert {name for name, _ in marks} == set(checks.MUTANTS)


def test_worlds_are_functions_of_seed_and_index():
    a, b, c = checks.draw(3, 5), checks.draw(3, 5), checks.draw(4, 5)
    assert tree.law(a.sft).tobytes() == tree.law(b.sft).tobytes()
    assert tree.law(a.sft).tobytes() != tree.law(c.sft).tobytes()


def test_worlds_differ_in_shape():
    assert {world.horizon for world in WORLDS} == {1, 2, 3, 4}
    assert {world.sft[0].shape[1] for world in WORLDS} == {2, 3, 4}
    assert any(np.sum(r == np.max(r)) > 1 for r in (tree.flat(world.reward) for world in WORLDS))


def below(levels):
    """Every number in one vector; entries of responses that go on included."""
    return np.concatenate([level.ravel() for level in levels])


@pytest.mark.parametrize("world", WORLDS[:12])
def test_weak_training_gives_the_reference_and_strong_training_the_optimum(world):
    baseline = transfer.gibbs(world.sft, world.reward, 1e9)
    assert np.exp(tree.law(baseline)) == pytest.approx(np.exp(tree.law(world.sft)), abs=1e-8)
    assert below(tree.mean(baseline, world.reward)) == pytest.approx(
        below(tree.mean(world.sft, world.reward)), abs=1e-8
    )
    baseline = transfer.gibbs(world.sft, world.reward, 1e-5)
    assert below(tree.mean(baseline, world.reward)) == pytest.approx(below(tree.best(world.reward)), abs=1e-8)


@pytest.mark.parametrize("world", WORLDS[:12])
def test_equal_rewards_make_indirect_direct(world):
    baseline = transfer.gibbs(world.sft, world.reward, world.beta)
    indirect = transfer.indirect(baseline, world.reward, world.reward, world.beta, world.alpha)
    direct = transfer.direct(baseline, world.reward, world.alpha)
    assert below(indirect.policy) == pytest.approx(below(direct.policy), abs=1e-12)
    assert below(indirect.tq) == pytest.approx(below(direct.tq), abs=1e-12)


@pytest.mark.parametrize("world", WORLDS[:24])
def test_shifting_a_reward_changes_no_policy(world):
    def shifted(reward, by):
        return tuple(level + by for level in reward)

    arguments = (world.beta, world.alpha)
    baseline = transfer.gibbs(world.sft, world.baseline_reward, world.beta)
    plain = transfer.indirect(baseline, world.reward, world.baseline_reward, *arguments)
    moved = transfer.indirect(baseline, shifted(world.reward, 0.7), shifted(world.baseline_reward, -0.3), *arguments)
    assert np.exp(tree.law(moved.policy)) == pytest.approx(np.exp(tree.law(plain.policy)), abs=1e-12)
    assert below(moved.tq) - 0.7 == pytest.approx(below(plain.tq), abs=1e-9)


@pytest.mark.parametrize("world", WORLDS[:24])
def test_strong_and_weak_decoding(world):
    baseline = transfer.gibbs(world.sft, world.reward, world.beta)
    assert below(transfer.direct(baseline, world.reward, 1e9).policy) == pytest.approx(below(baseline), abs=1e-7)
    sharp = transfer.direct(baseline, world.reward, 1e-6)
    for policy, tq, base in zip(sharp.policy, sharp.tq, baseline, strict=True):
        best = tq >= np.max(tq, axis=1, keepdims=True) - 1e-12
        if np.min(np.where(best, np.inf, np.max(tq, axis=1, keepdims=True) - tq)) < 1e-3:
            continue  # nearly equal values are told apart only by a still smaller alpha
        limit = np.where(best, np.exp(base), 0.0)
        assert np.exp(policy) == pytest.approx(limit / limit.sum(axis=1, keepdims=True), abs=1e-6)


def test_trees_agree_with_a_models_own_enumeration():
    model = ToyModel.random(5, 4)
    levels = tree.tabulate(lambda ids: model.law((0, 1, *ids)), vocab_size=4, horizon=3)
    trajectories = dict(model.trajectories((0, 1), 3))
    order = [
        ids
        for depth in range(3)
        for ids in sorted(t for t in trajectories if len(t) == depth + 1 and (t[-1] == 3 or depth == 2))
    ]
    assert tree.law(levels) == pytest.approx([trajectories[ids] for ids in order], abs=1e-12)
    reward = tree.leaves(lambda ids: float(len(ids)), vocab_size=4, horizon=3)
    expected = sum(math.exp(logp) * len(ids) for ids, logp in trajectories.items())
    assert np.exp(levels[0][0]) @ tree.mean(levels, reward)[0][0] == pytest.approx(expected, abs=1e-12)


def test_row_finds_a_state():
    levels = tree.tabulate(lambda ids: [float(int("1" + "".join(map(str, ids)))), 0, 0, 0], vocab_size=4, horizon=4)
    assert tree.row(levels, (2, 0, 1))[0] == 1201


def test_command_prints_counts():
    result = invoke("--worlds", "16")
    assert result.exit_code == 0
    assert "exact identity of part 1" in result.output


def test_command_names_what_caught_a_mutant():
    result = invoke("--worlds", "64", "--mutate", "--json")
    assert result.exit_code == 0
    answer = json.loads(result.output)
    assert set(answer["mutants"]) == set(checks.MUTANTS)
    assert all(answer["mutants"].values())
    assert all(c["violations"] == 0 and c["worlds"] == 64 for c in answer["checks"])


def test_command_reports_a_survivor(monkeypatch):
    monkeypatch.setattr("alignstar.cli.theory.MUTANTS", {"none": checks.RIGHT})
    assert invoke("--worlds", "4", "--mutate").exit_code == 3


def test_command_reports_a_violation(monkeypatch):
    wrong = checks.MUTANTS["sign of Q"]
    monkeypatch.setattr("alignstar.cli.theory.tally", lambda worlds, reading=wrong: checks.tally(worlds, reading))
    assert invoke("--worlds", "4").exit_code == 1
