"""One reward for groups that disagree: exact statements, wrong readings of them, the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from alignstar.cli.theory import theory
from alignstar.errors import OptionError
from alignstar.theory import impossibility, tree
from alignstar.theory.impossibility import Divided, best, draw, example, laws, objective, pooled, price, tally

WORLDS = [draw(7, index) for index in range(48)]


def invoke(*arguments: str):
    app = typer.Typer()
    app.command()(theory)
    return CliRunner().invoke(app, list(arguments))


def test_no_statement_is_violated():
    for told in tally(WORLDS):
        assert told.violations == 0, told
        assert told.worlds == len(WORLDS)


@pytest.mark.parametrize(
    ("mutant", "check"),
    [
        ("eta for 1 - eta", "pooled preference"),
        ("8 for 4", "reward mismatch"),
        ("KL the other way round", "alignment gap is beta KL"),
        ("8 TV squared", "alignment gap is large"),
    ],
)
def test_wrong_readings_are_caught(mutant: str, check: str):
    violated = {t.check for t in tally(WORLDS, impossibility.MUTANTS[mutant]) if t.violations}
    assert check in violated


def test_every_wrong_reading_is_named_above():
    marks = test_wrong_readings_are_caught.pytestmark[0].args[1]
    assert {name for name, _ in marks} == set(impossibility.MUTANTS)


def test_the_pooled_reward_of_a_pair_is_the_logit_of_all_votes():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        rewards, share = 3.0 * rng.normal(size=(2, 2)), float(rng.uniform(0.01, 0.99))
        shares = np.array([share, 1.0 - share])
        p = float(shares @ laws(rewards)[:, 0, 1])
        r = pooled(rewards, shares)
        assert r[0] - r[1] == pytest.approx(np.log(p / (1.0 - p)), abs=1e-9)
        assert np.sum(r) == pytest.approx(0.0, abs=1e-9)


def test_the_pooled_reward_is_the_likeliest_one():
    """Against any other reward, on unlimited votes of every pair; with one group it is that group's own."""
    for world in WORLDS[:12]:
        p = np.tensordot(world.shares, laws(world.rewards), axes=1)

        def likelihood(r, p=p):
            return float(np.sum(p * np.log(laws(r[None])[0])))

        r = pooled(world.rewards, world.shares)
        rng = np.random.default_rng(0)
        assert all(likelihood(r) > likelihood(r + 0.01 * rng.normal(size=len(r))) for _ in range(20))
        alone = pooled(world.rewards, np.array([1.0, 0.0]))
        own = world.rewards[0] - np.mean(world.rewards[0])
        assert alone == pytest.approx(own, abs=1e-7)


def test_a_groups_own_policy_is_the_best_for_it():
    for world in WORLDS[:12]:
        rng = np.random.default_rng(1)
        own = best(world, world.rewards[1])
        reached = objective(world, 1, own)
        assert reached == pytest.approx(
            world.beta * np.log(np.exp(world.reference) @ np.exp(world.rewards[1] / world.beta))
        )
        for _ in range(10):
            other = best(world, world.rewards[1] + rng.normal(size=len(own)))
            assert objective(world, 1, other) == pytest.approx(reached - world.beta * tree.kl(other, own))


def test_the_smaller_a_minority_the_more_it_pays():
    prices = [price(example(share), 1) for share in impossibility.SHARES]
    for name in ("mismatch", "least", "gap", "bound"):
        assert (np.diff([getattr(p, name) for p in prices]) > 0).all(), name
    majority = [price(example(share), 0).gap for share in impossibility.SHARES]
    assert (np.diff(majority) < 0).all()
    assert prices[0].gap == pytest.approx(majority[0]), "half and half"
    least = price(example(0.5), 1)
    assert least.least == pytest.approx(4 * 0.5 * (2 / (1 + np.exp(-2.0)) - 1))
    assert least.mismatch == pytest.approx(2.0), "all votes together: no preference between the two"


def test_groups_that_agree_pay_nothing():
    agreed = Divided(
        reference=np.log(np.array([0.2, 0.3, 0.5])), rewards=np.array([[1.0, 0.0, 3.0]] * 2),
        shares=np.array([0.7, 0.3]), beta=0.5,
    )  # fmt: skip
    for group in (0, 1):
        told = price(agreed, group)
        assert (told.mismatch, told.least, told.gap, told.bound) == pytest.approx((0.0, 0.0, 0.0, 0.0), abs=1e-9)


def test_worlds_are_functions_of_seed_and_index():
    first, again, other = draw(3, 5), draw(3, 5), draw(4, 5)
    assert first.rewards.tobytes() == again.rewards.tobytes()
    assert first.rewards.tobytes() != other.rewards.tobytes()
    minorities = [float(world.shares[1]) for world in WORLDS]
    assert min(minorities) < 0.1 < 0.4 < max(minorities)


def test_the_command(tmp_path: Path):
    picture = tmp_path / "one.svg"
    ran = invoke("--impossibility", "--worlds", "8", "--mutate", "--json", "--svg", str(picture))
    assert ran.exit_code == 0, ran.output
    told = json.loads(ran.stdout)
    assert [check["violations"] for check in told["checks"]] == [0, 0, 0, 0]
    assert all(told["mutants"].values())
    assert [row["share"] for row in told["example"]] == list(impossibility.SHARES)
    assert told["example"][0]["pooled_margin"] == pytest.approx(0.0, abs=1e-9)
    drawn = picture.read_text()
    assert drawn.startswith("<svg")
    for name in ("mismatch", "minority&#39;s gap", "majority&#39;s gap", "share η of the minority"):
        assert name in drawn
    ran = invoke("--impossibility", "--worlds", "4")
    assert ran.exit_code == 0
    for text in ("pooled margin", "reward mismatch", "alignment gap is large", "50%"):
        assert text in ran.stdout
    assert "theorem 1" not in ran.stdout


def test_the_picture_belongs_to_the_impossibility():
    with pytest.raises(OptionError, match=r"--svg 'x\.svg' draws what --impossibility shows"):
        raise invoke("--svg", "x.svg").exception
