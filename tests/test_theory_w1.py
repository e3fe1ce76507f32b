"""The worked example: one world of seven responses, every number to six digits."""

import numpy as np
import pytest

from alignstar.models.toy import ToyModel, letters_to_ids
from alignstar.theory import transfer, tree

SFT = {"": (0.5, 0.3, 0.2), "A": (0.6, 0.3, 0.1), "B": (0.2, 0.5, 0.3)}
# Order of the responses: E, AA, AB, AE, BA, BB, BE.
RESPONSES = ("E", "AA", "AB", "AE", "BA", "BB", "BE")
REWARD = dict(zip(RESPONSES, (0.0, 0.2, 1.0, 0.4, 0.8, 0.1, 0.6), strict=True))
BASELINE_REWARD = dict(zip(RESPONSES, (0.5, 0.9, 0.3, 0.2, 0.1, 0.7, 0.0), strict=True))
BETA = 0.5


def levels(table):
    def value(ids):
        return table["".join("ABE"[z] for z in ids)]

    return tree.leaves(value, vocab_size=3, horizon=2)


def probabilities(policy):
    """Root, A, B as one list."""
    return [np.exp(tree.row(policy, letters_to_ids(state))) for state in ("", "A", "B")]


def six(*numbers):
    return pytest.approx(np.array(numbers), abs=6e-7)


@pytest.fixture(scope="module")
def sft():
    model = ToyModel.from_table(SFT)
    return tree.tabulate(model.law, vocab_size=3, horizon=2)


@pytest.fixture(scope="module")
def baseline(sft):
    return transfer.gibbs(sft, levels(REWARD), BETA)


@pytest.fixture(scope="module")
def other(sft):
    """The baseline that was aligned to the other reward."""
    return transfer.gibbs(sft, levels(BASELINE_REWARD), BETA)


R = levels(REWARD)
R_BL = levels(BASELINE_REWARD)
FLAT_R = tree.flat(R)


def value(policy):
    return float(np.exp(tree.law(policy)) @ FLAT_R)


def partition(sft, table):
    return float(np.exp(tree.law(sft)) @ np.exp(np.array(list(table.values())) / BETA))


def test_sft(sft):
    assert np.exp(tree.law(sft)) == six(0.2, 0.3, 0.15, 0.05, 0.06, 0.15, 0.09)
    assert value(sft) == six(0.347)


def test_baseline(sft, baseline):
    assert partition(sft, REWARD) == six(2.646386)
    assert np.exp(tree.law(baseline)) == six(0.075575, 0.169116, 0.418820, 0.042049, 0.112297, 0.069230, 0.112913)
    assert value(baseline) == six(0.633971)
    root, a, b = probabilities(baseline)
    assert root == six(0.629985, 0.294440, 0.075575)
    assert a == six(0.268445, 0.664809, 0.066746)
    assert b == six(0.381392, 0.235125, 0.383482)


def test_values(sft, baseline):
    tables = tree.mean(baseline, R), tree.best(R), tree.mean(sft, R)
    for table, root in zip(tables, ((0.745196, 0.558716, 0), (1, 0.8, 0), (0.46, 0.39, 0)), strict=True):
        assert tree.row(table, ()) == six(*root)
        assert tree.row(table, (0,)) == six(0.2, 1.0, 0.4)
        assert tree.row(table, (1,)) == six(0.8, 0.1, 0.6)


def test_aligned_policy(baseline):
    aligned = transfer.direct(baseline, R, 1.0)
    assert np.exp(np.concatenate(aligned.log_c)) == six(1.917669, 2.234591, 1.807408)
    root, a, b = probabilities(aligned.policy)
    assert root == six(0.692136, 0.268455, 0.039410)
    assert a == six(0.146729, 0.808711, 0.044560)
    assert b == six(0.469625, 0.143772, 0.386603)


@pytest.mark.parametrize(
    ("alpha", "v_alg", "gap", "h", "bound_1", "kl_sft", "bound_2"),
    [
        (1.0, 0.759375, 0.240625, 0.058617, 0.889943, 0.604172, 4),
        (0.25, 0.929997, 0.070003, 0.405755, 0.847121, 1.292554, 10),
    ],
)
def test_theorem(sft, baseline, alpha, v_alg, gap, h, bound_1, kl_sft, bound_2):
    policy = transfer.direct(baseline, R, alpha).policy
    assert value(policy) == six(v_alg)
    assert max(FLAT_R) - value(policy) == six(gap)
    rate = tree.along(policy, tree.divergences(policy, baseline))
    assert rate == six(h)
    assert -BETA * np.log(0.15) - alpha * rate == six(bound_1)
    assert tree.kl(tree.law(policy), tree.law(sft)) == six(kl_sft)
    assert (1 / BETA + 2 / alpha) * max(FLAT_R) == six(bound_2)


def test_divergences_from_sft(sft, baseline):
    best = np.where(max(FLAT_R) == FLAT_R, 0.0, -np.inf)
    assert tree.kl(best, tree.law(sft)) == six(1.897120)
    assert tree.kl(tree.law(baseline), tree.law(sft)) == six(0.294747)


def test_sft_as_base(sft, baseline):
    policy = transfer.decode(sft, tree.mean(baseline, R), 1.0).policy
    assert probabilities(policy)[0] == six(0.592494, 0.295017, 0.112489)
    assert value(policy) == six(0.497856)
    assert tree.kl(tree.law(policy), tree.law(sft)) == six(0.087011)


def test_sft_as_baseline(sft):
    policy = transfer.direct(sft, R, 1.0).policy
    assert probabilities(policy)[0] == six(0.551892, 0.308748, 0.139360)
    assert value(policy) == six(0.479991)


def test_other_baseline(sft, other):
    z_bl = partition(sft, BASELINE_REWARD)
    assert z_bl == six(3.478024)
    ratio = partition(sft, REWARD) / z_bl
    assert ratio == six(0.760888)
    delta = (FLAT_R - tree.flat(R_BL)) / BETA
    assert float(np.exp(tree.law(other)) @ np.exp(delta)) == pytest.approx(ratio, abs=1e-12)
    root, a, b = probabilities(other)
    assert root == six(0.621848, 0.221840, 0.156312)
    assert a == six(0.839140, 0.126372, 0.034488)
    assert b == six(0.094981, 0.788373, 0.116646)


def test_conditional_normaliser(other):
    m = transfer.log_m(other, R, R_BL, BETA)
    root, a, b = probabilities(m)
    assert root == six(0.770844, 1.009900, 0.367879)
    assert a == six(0.246597, 4.055200, 1.491825)
    assert b == six(4.055200, 0.301194, 3.320117)


def test_unnormalised_values_leave_the_range(other):
    total = transfer.weighted(other, R, R_BL, BETA)
    assert tree.row(total, ()) == six(0.574430, 0.564247, 0)
    assert tree.row(total, (0,)) == six(0.049319, 4.055200, 0.596730)


def test_exact_indirect_is_exact_direct(baseline, other):
    indirect = transfer.indirect(other, R, R_BL, BETA, 1.0)
    direct = transfer.direct(baseline, R, 1.0)
    assert np.exp(tree.law(indirect.policy)) == pytest.approx(np.exp(tree.law(direct.policy)), abs=1e-14)
    for a, b in zip(indirect.tq, direct.tq, strict=True):
        assert a == pytest.approx(b, abs=1e-14)


def greedy_values(policy, leaf):
    """The reward of the greedy completion after every state and token."""
    return tree.backward(leaf, lambda t, below: below[np.arange(len(below)), np.argmax(policy[t], axis=1)])


def decoded(scores):
    ids = ()
    while len(ids) < 2 and (not ids or ids[-1] != 2):
        ids += (int(np.argmax(tree.row(scores, ids))),)
    return "".join("ABE"[z] for z in ids)


def test_greedy_rollouts_direct_with_the_other_baseline(other):
    scores = transfer.plus(other, greedy_values(other, R))
    assert tree.row(scores, ()) == six(-0.275059, -1.405800, -1.855902)
    assert tree.row(scores, (0,)) == six(0.024622, -1.068525, -2.967137)
    assert decoded(scores) == "AA"


def test_greedy_rollouts_unnormalised(other):
    delta = transfer.over(transfer.minus(R, R_BL), BETA)
    values = tuple(np.exp(d) * r for d, r in zip(delta, R, strict=True))
    scores = transfer.plus(other, greedy_values(other, values))
    assert tree.row(scores, ()) == six(-0.425740, -1.475680, -1.855902)
    assert tree.row(scores, (0,)) == six(-0.126059, 1.986675, -2.770408)
    assert decoded(scores) == "AB"


def test_greedy_rollouts_self_normalised(other):
    delta = transfer.over(transfer.minus(R, R_BL), BETA)
    scores = transfer.plus(other, greedy_values(other, delta), greedy_values(other, R))
    assert tree.row(scores, ()) == six(-1.675059, -2.605800, -2.855902)
    assert tree.row(scores, (0,)) == six(-1.375378, 0.331475, -2.567137)
    assert decoded(scores) == "AB"


def test_greedy_rollouts_direct(baseline):
    scores = transfer.plus(baseline, greedy_values(baseline, R))
    assert tree.row(scores, ()) == six(0.537940, -0.622679, -2.582633)
    assert tree.row(scores, (0,)) == six(-1.115108, 0.591745, -2.306868)
    assert decoded(scores) == "AB"
