"""Accelerated Transfer Q* against the plain algorithm on random toy worlds: the same tokens, at a lower cost."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import alignstar
import checkpoints
from alignstar.meter import Meter, metering
from alignstar.methods import lazy
from alignstar.methods.transfer_q import transfer_q
from alignstar.models.toy import ToyModel, ToyReward
from alignstar.sampling import Noise
from alignstar.types import Ids, Prompt, Step, Usage
from worlds import PROMPT, ids_of, scorer, steps_of

BLOCKS, WORLDS = 15, 100
PROMPTS = ("Where?", "a", "It leaks.")


class Coarse(ToyReward):
    """Rewards on a grid of a few values, so that ties and values at the bounds abound; a share of texts is NaN."""

    def __init__(self, *, grid: int, nan_share: float, **options: Any) -> None:
        super().__init__(**options)
        self.grid = grid
        self.nan_share = nan_share

    def value(self, prompt: Prompt, text: str, complete: bool) -> float:
        u = Noise(seed=self.seed, purpose=f"nan {text} {complete}").uniform(0, 1)[0]
        if u < self.nan_share:
            return float("nan")
        share = (super().value(prompt, text, complete) - self.low) / (self.high - self.low)
        return self.low + (self.high - self.low) * round(share * self.grid) / self.grid


@dataclass(frozen=True, kw_only=True)
class World:
    """A toy model, a reward and options of both forms; what only the accelerated form reads is `how`."""

    model: ToyModel
    n_eos: int
    reward: ToyReward
    options: dict[str, Any]
    how: dict[str, Any]

    async def run(self, **options: Any) -> tuple[list[Step], Usage]:
        """Its steps and what they cost."""
        bound = scorer(self.reward, self.model.vocab_size, self.n_eos)
        with metering(Meter()) as meter:
            steps = await steps_of(
                transfer_q(PROMPT, baseline=self.model, reward=bound, **(self.options | self.how | options))
            )
        return steps, meter.usage()

    @property
    def bounded(self) -> bool:
        """Whether the normalised reward has a known range."""
        return self.reward.range is not None or self.options["reward_norm"].startswith(("clip", "sigmoid"))


def random_world(seed: int) -> World:
    """One of very many."""
    rng = random.Random(seed)
    vocab_size, n_eos = rng.randint(3, 7), rng.choice([1, 1, 2])
    model = ToyModel.random(
        seed,
        vocab_size,
        n_eos=n_eos,
        eos_weight=rng.choice([1e-300, 0.3, 1.0, 5.0]),
        ties=rng.random() < 0.4,
        temperature=rng.choice([0.2, 0.5, 1.0, 3.0]),
        zeros=rng.choice([0.0, 0.0, 0.3]),
    )
    model.tie_tolerance = rng.choice([1e-12, 1e-12, 0.0, 0.05])
    low, high = rng.choice([(0.0, 1.0), (-1.0, 1.0), (2.0, 2.5), (-3.0, -1.0)])
    reward = Coarse(
        seed=seed,
        low=low,
        high=high,
        declared=rng.random() < 0.7,
        grid=rng.choice([1, 2, 7, 10**9]),
        nan_share=rng.choice([0.0, 0.0, 0.2, 1.0]),
    )
    options = {
        "k": rng.randint(1, vocab_size + 1),
        "candidate_rule": rng.choice(["topk", "topk", "topp", "full"]),
        "candidate_top_p": rng.choice([0.5, 0.9]),
        "alpha": 10 ** rng.uniform(-1, 1),
        "rollout_len": rng.choice([0, 1, 2, 3, 5, None]),
        "rollout_past_max": rng.random() < 0.2,
        "stop_on_eos": rng.random() < 0.7,
        "selection": rng.choice(["greedy", "greedy", "sample"]),
        "selection_temperature": rng.choice([0.3, 1.0, 2.0]),
        "reward_norm": rng.choice(["none", "none", "clip(-0.2,0.7)", "sigmoid", "standardise(0.3,0.5)"]),
        "max_new_tokens": rng.randint(1, 9),
        "seed": seed,
    }
    how = {"window": rng.randint(1, 8), "wave": rng.choice([None, None, 1, 2, 3]), "skip": rng.random() < 0.9}
    return World(model=model, n_eos=n_eos, reward=reward, options=options, how=how)


def told(steps: list[Step]) -> list[Any]:
    """What must be equal, step for step."""
    winners = [step.considered[step.chosen] for step in steps]
    return [
        (s.index, s.emitted, s.finish, w.ids, w.logp, w.score, w.value, w.future)
        for s, w in zip(steps, winners, strict=True)
    ]


def candidates(step: Step) -> list[Ids]:
    return [c.ids for c in step.considered]


@pytest.mark.parametrize("block", range(BLOCKS))
async def test_the_same_tokens(block: int) -> None:
    certified, steps_plain, steps_lazy = 0, 0, 0
    for seed in range(block * WORLDS, (block + 1) * WORLDS):
        world = random_world(seed)
        plain, full_price = await world.run(acceleration="off")
        fast, price = await world.run()
        assert told(fast) == told(plain), seed
        certified += price.certified
        assert full_price.certified == 0
        assert price.candidates - price.certified == sum(len(step.considered) for step in fast)
        if world.options["rollout_len"] == 0:
            # Without rollouts the near ties are those of candidates and choice: none is overlooked.
            assert [s.near_ties for s in fast] == [s.near_ties for s in plain], seed
        if world.how["window"] == 1:
            assert price.lm_tokens <= full_price.lm_tokens, seed
            assert price.rm_calls <= full_price.rm_calls, seed
        if not (world.bounded and world.how["skip"]):
            assert [candidates(s) for s in fast] == [candidates(s) for s in plain], seed
            assert [s.near_ties for s in fast] == [s.near_ties for s in plain], seed
            assert price.certified == 0
            assert price.candidates == full_price.candidates
            # Nothing is awaited that the plain form does not await too, but for the first window's walk.
            assert price.sequential_steps <= full_price.sequential_steps + world.how["window"] - 1, seed
        elif world.how["wave"] is None:
            steps_plain, steps_lazy = steps_plain + full_price.sequential_steps, steps_lazy + price.sequential_steps
    assert certified > WORLDS
    # Others are rolled out after the greedy candidate, not beside it: where they win everywhere, that is a step more.
    assert steps_lazy <= 1.05 * steps_plain


async def test_the_same_tokens_where_the_best_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever others wait for, and however often: the last of them is looked at before the step is decided."""
    monkeypatch.setattr(lazy, "FIRST_WAVE", 1)
    for seed in range(3 * WORLDS):
        world = random_world(seed)
        world.how["wave"] = None
        plain, _ = await world.run(acceleration="off")
        assert told((await world.run())[0]) == told(plain), seed


class NotA(ToyReward):
    """One for every text that does not end in A."""

    def value(self, prompt: Prompt, text: str, complete: bool) -> float:
        return float(not text.endswith("A"))


async def test_the_best_go_first_where_that_spared_the_others() -> None:
    """B is the best of eleven that could win; once it has its reward no other can, which the first step finds out."""
    law = np.log(np.linspace(2.0, 1.0, 13)) - np.log(np.linspace(2.0, 1.0, 13).sum())
    options = {"k": 12, "weight": 50.0, "rollout_len": 0, "max_new_tokens": 4}
    model = ToyModel(lambda prefix: law, vocab_size=13)
    world = World(model=model, n_eos=1, reward=NotA(declared=True), options=options, how={})
    steps, _ = await world.run()
    assert [step.emitted for step in steps] == [(1,)] * 4
    assert [len(step.considered) for step in steps] == [12, 7, 7, 7]


async def test_a_range_that_does_not_hold_shows() -> None:
    """What the equality above rests on: with a bound below rewards that occur, other tokens come out."""
    wrong = 0
    for seed in range(WORLDS):
        world = random_world(seed)
        low, high = world.reward.low, world.reward.high
        world.reward.range = (low, low + 0.3 * (high - low))
        world.options["reward_norm"], world.how["skip"] = "none", True
        plain, _ = await world.run(acceleration="off")
        fast, _ = await world.run()
        wrong += ids_of(fast) != ids_of(plain)
    assert wrong > 5


def endless(seed: int = 0, vocab_size: int = 5) -> ToyModel:
    """A model that never ends by itself."""
    return ToyModel.random(seed, vocab_size, eos_weight=1e-300, temperature=0.5)


@pytest.mark.parametrize(("window", "length", "steps"), [(1, 3, 6), (2, 3, 6), (8, 20, 16), (4, 2, 7), (8, 0, 5)])
async def test_cost_where_everything_is_certified(window: int, length: int, steps: int) -> None:
    """The spine alone is computed: prompt, response, and the last position's rollout."""
    reward = ToyReward(declared=True)
    options = {"k": 4, "alpha": 1e4, "rollout_len": length, "rollout_past_max": True, "max_new_tokens": steps}
    world = World(model=endless(), n_eos=1, reward=reward, options=options, how={"window": window})
    done, usage = await world.run()
    assert all(len(step.considered) == 1 for step in done)
    assert (usage.candidates, usage.certified) == (4 * steps, 3 * steps)
    assert usage.lm_tokens == len(PROMPT.ids) + steps + length - 1
    assert usage.sequential_steps == steps + length
    assert usage.rm_calls == steps


@pytest.mark.parametrize("how", [{}, {"window": 3, "wave": 2}, {"selection": "sample"}])
def test_the_same_tokens_from_transformers_models(how: dict[str, Any], tmp_path: Path) -> None:
    baseline = checkpoints.language_model(tmp_path / "baseline", seed=5)
    reward = checkpoints.classifier(tmp_path / "reward", seed=6)
    options = {"k": 4, "rollout_len": 5, "reward_norm": "clip(-1,0.6)", "max_new_tokens": 12} | how
    with alignstar.load(baseline=str(baseline), reward=str(reward), dtype="float64", device="cpu") as aligner:
        plain = aligner.generate_many(PROMPTS, **options, acceleration="off")
        fast = aligner.generate_many(PROMPTS, **options)
    for one, other in zip(plain, fast, strict=True):
        assert (one.ids, one.finish_reason) == (other.ids, other.finish_reason)
        assert [s.considered[s.chosen].score for s in one.steps] == pytest.approx(
            [s.considered[s.chosen].score for s in other.steps], abs=1e-9
        )
    assert sum(r.usage.certified for r in fast) > 0


async def test_a_response_is_scored_once() -> None:
    """With complete rollouts, a spine whose greedy candidates win is one response, however many positions it has."""
    options = {"k": 4, "alpha": 1e4, "rollout_len": None, "max_new_tokens": 12}
    world = World(model=endless(), n_eos=1, reward=ToyReward(declared=True), options=options, how={"window": 4})
    _, usage = await world.run()
    assert usage.rm_calls == 1


async def test_what_does_not_apply_is_decoded_plainly() -> None:
    """Rules under which equality does not hold: `considered` has every candidate, and the cost is the plain one."""
    for more in (
        {"rollout_strategy": "sample"},
        {"candidate_rule": "sample_without_replacement"},
        {"reward_norm": "candidate_zscore"},
        {"reward_text": "verbatim"},
        {"return_best_rollout": True},
        {"winner_protection": True, "rollout_len": None},
    ):
        options = {"k": 3, "rollout_len": 3, "max_new_tokens": 5} | more
        world = World(model=endless(), n_eos=1, reward=ToyReward(declared=True), options=options, how={})
        plain, full_price = await world.run(acceleration="off")
        auto, price = await world.run()
        assert (auto, price) == (plain, full_price)


async def test_the_whole_vocabulary_is_looked_at_no_further_than_it_can_win() -> None:
    """A token whose log-probability is more than weight x (r_max - r_min) below the best one's is not even told."""
    asked: list[Any] = []

    class Spy(ToyModel):
        async def continue_(self, prefix: Ids, *, top: Any = None, **others: Any) -> Any:
            asked.append(top)
            return await super().continue_(prefix, top=top, **others)

    model = Spy(ToyModel.random(3, 6).law, vocab_size=6)
    options = {"k": 1, "candidate_rule": "full", "weight": 0.5, "rollout_len": 2, "max_new_tokens": 6}
    reward = ToyReward(low=-1.0, high=2.0, declared=True)
    world = World(model=model, n_eos=1, reward=reward, options=options, how={})
    steps, usage = await world.run()
    assert {round(top, 9) for top in asked if isinstance(top, float)} == {1.5}
    assert {top for top in asked if isinstance(top, int)} == {2}  # of the spine: the best two, to see near ties
    assert usage.candidates == 6 * len(steps)
    asked.clear()
    await world.run(selection="sample")
    assert {top for top in asked if top is not None} == {6, 2}


class LessA(ToyReward):
    """Dislikes the letter A, and knows no bound."""

    def value(self, prompt: Prompt, text: str, complete: bool) -> float:
        return -float(text.count("A"))


async def test_a_window_is_short_where_others_win() -> None:
    """A is always the most probable token and never wins: what a long window evaluates further ahead is for nothing."""
    law = np.log(np.array([0.5, 0.2, 0.15, 0.15 - 1e-9, 1e-9]))
    options = {"k": 3, "weight": 50.0, "rollout_len": 4, "rollout_past_max": True, "max_new_tokens": 16}
    costs = {}
    for window in (1, 8):
        world = World(
            model=ToyModel(lambda prefix: law, vocab_size=5), n_eos=1, reward=LessA(), options=options,
            how={"window": window},
        )  # fmt: skip
        steps, usage = await world.run()
        assert [step.emitted for step in steps] == [(1,)] * 16
        costs[window] = usage.lm_tokens
    assert costs[8] < 2 * costs[1]
