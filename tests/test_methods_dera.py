"""DeRa and GenARM against enumeration and closed forms: the law of a product of two models, and what it costs."""

import itertools

import numpy as np
import pytest

from alignstar.aligner import Aligner
from alignstar.errors import NeedsError, PromptError
from alignstar.meter import Meter, metering
from alignstar.methods.dera import dera, genarm, product
from alignstar.methods.plain import greedy, sample
from alignstar.models.toy import ToyCodec, ToyModel
from alignstar.sampling import Sampling, log_softmax, tempered
from alignstar.theory import transfer, tree
from worlds import PROMPT, ids_of, softmax, steps_of, toy_table, w1

WEIGHTS = (-0.7, 0.0, 0.25, 0.5, 1.0, 2.0, 10.0)
STRATEGIES = (
    {"selection": "greedy"},
    {},
    {"temperature": 0.6},
    {"temperature": 1.3, "top_k": 2},
    {"temperature": 0.9, "top_p": 0.7},
)


def pair(seed, vocab_size=4, **law):
    """Two models that disagree."""
    return ToyModel.random(seed, vocab_size, **law), ToyModel.random(seed + 500, vocab_size, **law)


async def run(method, sft, baseline, **options):
    return await steps_of(method(PROMPT, sft=sft, baseline=baseline, **{"max_new_tokens": 6, **options}))


def seen(steps):
    """All that a trace says of the decisions."""
    return [(s.emitted, s.finish, s.near_ties) for s in steps]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
@pytest.mark.parametrize("zeros", [0.0, 0.4])
async def test_the_end_points_are_the_models_themselves(strategy, zeros):
    """Token for token, near ties included, whatever the other model excludes and however large its vocabulary is."""
    plain = {name: value for name, value in strategy.items() if name != "selection"}
    method = greedy if "selection" in strategy else sample
    for seed in range(40):
        sft, baseline = ToyModel.random(seed, zeros=zeros), ToyModel.random(seed + 500, 6, zeros=zeros)
        for weight, model in ((0.0, sft), (1.0, baseline)):
            expected = await steps_of(method(PROMPT, sft=model, max_new_tokens=6, seed=seed, **plain))
            found = await run(dera, sft, baseline, weight=weight, seed=seed, **strategy)
            assert seen(found) == seen(expected)
            told = [[c.logp for s in steps for c in s.considered] for steps in (found, expected)]
            assert told[0] == pytest.approx(told[1], abs=1e-12)


async def test_greedy_takes_the_best_token_of_the_product():
    for seed, weight in itertools.product(range(20), WEIGHTS):
        sft, baseline = pair(seed)
        steps = await run(dera, sft, baseline, weight=weight, selection="greedy")
        for t, step in enumerate(steps):
            state = PROMPT.ids + ids_of(steps[:t])
            law = log_softmax((1 - weight) * sft.law(state) + weight * baseline.law(state))
            assert step.emitted == (int(np.argmax(law)),)
            assert step.considered[0].logp == pytest.approx(law.max(), abs=1e-12)


async def test_the_log_odds_are_linear_in_lambda():
    """And at lambda 1/2 the law is the normalised geometric mean, in every state."""
    for seed in range(20):
        one, other = (model.law((seed,)) for model in pair(seed, 5))
        laws = {weight: product((one, other), (1 - weight, weight)) for weight in WEIGHTS}
        for weight, law in laws.items():
            assert np.exp(law).sum() == pytest.approx(1.0, abs=1e-12)
            odds = np.diff(laws[0.0]) + weight * (np.diff(laws[1.0]) - np.diff(laws[0.0]))
            assert np.diff(law) == pytest.approx(odds, abs=1e-10)
        mean = np.sqrt(np.exp(one) * np.exp(other))
        assert np.exp(laws[0.5]) == pytest.approx(mean / mean.sum(), abs=1e-12)


@pytest.mark.parametrize("weight", [-0.7, 0.5, 2.0])
async def test_what_either_model_excludes_is_excluded(weight):
    """Between and beyond the end points; where nothing is left the SFT model's law stands."""
    none, met = -np.inf, 0
    one, other = np.log([0.5, 0.3, 0.2]), np.log([0.2, 0.8, 1.0])
    one[2] = other[0] = none
    law = product((one, other), (1 - weight, weight))
    assert np.exp(law).tolist() == [0.0, 1.0, 0.0]
    for seed in range(60):
        sft, baseline = pair(seed, zeros=0.6)
        steps = await run(dera, sft, baseline, weight=weight, seed=seed)
        for t, step in enumerate(steps):
            laws = [model.law(PROMPT.ids + ids_of(steps[:t])) for model in (sft, baseline)]
            shared = np.all(np.isfinite(laws), axis=0)
            allowed = shared if shared.any() else np.isfinite(laws[0])
            assert allowed[step.emitted[0]]
            assert np.isfinite(step.considered[0].logp)
            met += not shared.any()
    assert met, "no state without a common token: choose other worlds"


async def test_vocabularies_of_different_size_share_what_they_share():
    large, small = ToyModel.random(1, 6), ToyModel.random(2, 4)
    for weight, models in itertools.product((0.5, 2.0), ((large, small), (small, large))):
        for seed in range(20):
            assert max(ids_of(await run(dera, *models, weight=weight, seed=seed))) < 4


@pytest.mark.parametrize(("weight", "distance"), [(0.0, 0.0), (0.5, 0.010558), (1.0, 0.0), (2.0, 0.044944)])
async def test_the_worked_example(weight, distance):
    """Total variation between the token-wise blend and the model of strength beta/lambda that it stands for."""
    world, _ = w1()
    baseline = world.gibbs(0.5)

    def policy(state):
        laws = [model.law(PROMPT.ids + state) for model in (world.sft, baseline)]
        return product(laws, (1 - weight, weight))

    blend = tree.tabulate(policy, vocab_size=3, horizon=2)
    sft = tree.tabulate(lambda state: world.sft.law(PROMPT.ids + state), vocab_size=3, horizon=2)
    exact = transfer.gibbs(sft, tree.leaves(world.r, vocab_size=3, horizon=2), 0.5 / weight) if weight else sft
    far = 0.5 * np.abs(np.exp(tree.law(blend)) - np.exp(tree.law(exact))).sum()
    assert far == pytest.approx(distance, abs=6e-7)
    for state in ((0,), (1,)):  # the last step is exact
        assert tree.row(blend, state) == pytest.approx(tree.row(exact, state), abs=1e-12)


@pytest.mark.parametrize("strategy", [{}, {"temperature": 0.6}, {"temperature": 1.5, "top_k": 2}, {"top_p": 0.8}])
async def test_the_sampled_law(strategy):
    """Every response is drawn as often as enumeration of the product says."""
    world, _ = w1()
    baseline, weight, n = world.gibbs(0.5), 1.5, 2000
    sampling = Sampling(**strategy)

    def law(prefix):
        return log_softmax(tempered(product([m.law(prefix) for m in (world.sft, baseline)], (-0.5, 1.5)), sampling))

    exact = {ids: np.exp(logp) for ids, logp in ToyModel(law, vocab_size=3).trajectories(PROMPT.ids, 2)}
    counts = dict.fromkeys(exact, 0)
    for seed in range(n):
        steps = await run(dera, world.sft, baseline, weight=weight, seed=seed, max_new_tokens=2, **strategy)
        counts[ids_of(steps)] += 1
    for ids, p in exact.items():
        assert counts[ids] / n == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / n) + 1e-12)


async def test_an_autoregressive_reward_model_multiplies():
    """GenARM: exactly the law of reward beta log pi_ARM; with ARM = baseline/sft and beta 1 it is the baseline."""
    for seed, beta in itertools.product(range(10), (0.3, 1.0, 4.0)):
        sft, arm = pair(seed)
        steps = await run(genarm, sft, arm, beta=beta, selection="greedy")
        for t, step in enumerate(steps):
            state = PROMPT.ids + ids_of(steps[:t])
            weights = np.exp(sft.law(state)) * np.exp(arm.law(state)) ** (1 / beta)
            assert step.considered[0].logp == pytest.approx(np.log(weights.max() / weights.sum()), abs=1e-12)
        flat = ToyModel(lambda _: np.full(4, -np.log(4)), vocab_size=4)
        for one, other in ((sft, flat), (flat, sft)):
            drawn = await run(genarm, one, other, seed=seed)
            assert ids_of(drawn) == ids_of(await steps_of(sample(PROMPT, sft=sft, max_new_tokens=6, seed=seed)))


async def test_one_token_of_guidance_is_the_gibbs_law():
    """With a horizon of one token the product is the aligned law itself: rho_sft exp(r/beta), r = log pi_ARM."""
    sft, arm = pair(7)
    reward = dict(zip(("A", "B", "C", "E"), arm.law(PROMPT.ids), strict=True))
    table = toy_table(reward, "log pi_ARM")
    r = [table.value(PROMPT, text, ended) for text, ended in (("A", False), ("B", False), ("C", False), ("", True))]
    expected = softmax(sft.law(PROMPT.ids) + np.array(r) / 0.4)
    assert np.exp(product((sft.law(PROMPT.ids), arm.law(PROMPT.ids)), (1.0, 2.5))) == pytest.approx(expected)


@pytest.mark.parametrize(("weight", "asked"), [(0.5, 2), (2.0, 2), (0.0, 1), (1.0, 1)])
async def test_cost_in_closed_form(weight, asked):
    """P + T - 1 positions of each model that has a weight, both at the same time."""
    meter = Meter()
    with metering(meter):
        steps = await run(dera, *pair(0, 6, eos_weight=1e-300), weight=weight, max_new_tokens=7)
    assert len(steps) == 7
    assert meter.usage().lm_tokens == asked * (len(PROMPT.ids) + 6)
    assert meter.usage().sequential_steps == 7


async def test_near_ties_are_counted():
    """The product's tolerance is the models' times the size of their weights."""
    exact = ToyModel(lambda _: log_softmax(np.array([0.0, 1e-3, -50.0])), vocab_size=3, tie_tolerance=0.0)
    rough = ToyModel(lambda _: log_softmax(np.array([0.0, 0.0, -50.0])), vocab_size=3, tie_tolerance=2e-3)
    for weight, tied in ((0.0, False), (0.25, False), (0.5, True), (2.0, True), (-2.0, True)):
        (step,) = await run(dera, exact, rough, weight=weight, selection="greedy", max_new_tokens=1)
        assert step.near_ties == tied


async def test_the_end_of_either_model_ends_the_response():
    two = ToyModel.random(3, 4, n_eos=2, eos_weight=50.0)
    steps = await run(dera, ToyModel.random(3, 4, eos_weight=1e-300), two, weight=0.5)
    assert steps[-1].finish == "stop"
    assert ids_of(steps)[-1] in two.eos_ids


def test_both_models_are_needed_and_both_must_hold_the_response():
    sft, baseline = ToyModel.random(1), ToyModel.random(2, max_context=9)
    codec = ToyCodec()
    with pytest.raises(NeedsError, match="method='dera' needs the baseline model; give one with --baseline"):
        Aligner(sft=sft, codec=codec).generate("A", method="dera")
    aligner = Aligner(sft=sft, baseline=baseline, codec=codec)
    with pytest.raises(PromptError, match="has 1 tokens and 9 may follow, but toy 2 reads 9"):
        aligner.generate("A", method="dera", max_new_tokens=9)
    halfway = aligner.generate("A", method="dera", max_new_tokens=8, **{"lambda": 0.5})
    assert halfway.ids == aligner.generate("A", method="dera", max_new_tokens=8).ids
    assert halfway.options["weight"] == 0.5
