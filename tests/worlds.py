"""Small exact worlds for the tests of methods: the worked example W1, random ones, and their values by enumeration."""

from __future__ import annotations

import itertools

import numpy as np

from alignstar.models import Continuation
from alignstar.models.toy import ToyCodec, ToyModel, ToyReward
from alignstar.rewards import Scorer
from alignstar.sampling import GREEDY, log_softmax, tempered
from alignstar.types import Message, Prompt

PROMPT = Prompt(messages=(Message(role="user", content="A"),), text="A", ids=(0,))


def softmax(x):
    e = np.exp(np.asarray(x) - np.max(x))
    return e / e.sum()


def codec(vocab_size=3, n_eos=1):
    return ToyCodec(vocab_size, n_eos=n_eos)


def scorer(reward, vocab_size=3, n_eos=1):
    return Scorer(reward, codec(vocab_size, n_eos))


async def steps_of(generator):
    return [step async for step in generator]


def ids_of(steps):
    """The response that a trace of steps makes."""
    ids = ()
    for step in steps:
        ids = step.emitted if step.replaces else ids + step.emitted
    return ids


def by_id(step, field="score", size=3):
    """A considered field [size] ordered by token id; NaN for tokens that were not candidates."""
    row = np.full(size, np.nan)
    for candidate in step.considered:
        row[candidate.ids[0]] = getattr(candidate, field)
    return row


class Proportional(ToyModel):
    """Draws one-token continuations in proportion to the law, to 1/n, instead of at random: no sampling error."""

    async def continue_(self, prefix, *, max_new_tokens, n=1, sampling=GREEDY, top=None, **others):
        """See Sampler."""
        assert max_new_tokens == 1
        law = self.law(prefix)
        p = np.exp(log_softmax(tempered(law, sampling)))
        ends = np.round(np.cumsum(p) * n).astype(int)
        tops = () if top is None else (self.best(law, top),)
        return [
            Continuation(ids=(z,), logps=law[z : z + 1], ended=z in self.eos_ids, tops=tops)
            for z, count in enumerate(np.diff(ends, prepend=0))
            for _ in range(count)
        ]


class World:
    """A reward on all complete responses of at most `horizon` tokens, an SFT model, and what follows from them."""

    def __init__(self, sft, reward, horizon, vocab_size):
        self.sft, self.reward, self.horizon, self.vocab_size = sft, reward, horizon, vocab_size
        self.codec = codec(vocab_size)

    def r(self, ids, reward=None):
        reply = Scorer(reward or self.reward, self.codec).reply(ids)
        return (reward or self.reward).value(PROMPT, reply.text, reply.complete)

    def completions(self, model, response):
        """(completed response, probability) given the response so far."""
        if response and response[-1] in model.eos_ids:
            return [(response, 1.0)]
        room = self.horizon - len(response)
        return [(response + ids, float(np.exp(logp))) for ids, logp in model.trajectories(PROMPT.ids + response, room)]

    def q(self, model, response, reward=None):
        """TQ(s, z) [vocab_size] by enumeration of the model's completions."""
        return np.array(
            [
                sum(p * self.r(ids, reward) for ids, p in self.completions(model, (*response, z)))
                for z in range(self.vocab_size)
            ]
        )

    def gibbs(self, beta, reward=None, *, kind=ToyModel):
        """The token policy of rho proportional to rho_sft exp(r / beta), as a table."""
        table = {}
        for n in range(self.horizon):
            for state in itertools.product(range(self.vocab_size - 1), repeat=n):
                m = np.array(
                    [
                        sum(
                            p * np.exp(self.r(ids, reward) / beta) for ids, p in self.completions(self.sft, (*state, z))
                        )
                        for z in range(self.vocab_size)
                    ]
                )
                weights = np.exp(self.sft.law(PROMPT.ids + state)) * m
                table[state] = tuple(weights / weights.sum())
        return kind.from_table(table, prompt=PROMPT.ids, default=self.sft, name=f"gibbs {beta}")

    def m(self, model, response, baseline_reward, beta):
        """M(s, z) [vocab_size] by enumeration."""
        return np.array(
            [
                sum(
                    p * np.exp((self.r(ids) - self.r(ids, baseline_reward)) / beta)
                    for ids, p in self.completions(model, (*response, z))
                )
                for z in range(self.vocab_size)
            ]
        )


def toy_table(values, name):
    """A reward from W1's notation: E ends, anything else of two letters is cut."""
    return ToyReward({(k.rstrip("E"), k.endswith("E")): v for k, v in values.items()}, name=name)


def w1(kind=ToyModel):
    """The worked example: (world, its other reward)."""
    sft = kind.from_table(
        {"": (0.5, 0.3, 0.2), "A": (0.6, 0.3, 0.1), "B": (0.2, 0.5, 0.3)}, prompt=PROMPT.ids, name="w1 sft"
    )
    names = ("E", "AA", "AB", "AE", "BA", "BB", "BE")
    r = toy_table(dict(zip(names, (0.0, 0.2, 1.0, 0.4, 0.8, 0.1, 0.6), strict=True)), "r")
    r_bl = toy_table(dict(zip(names, (0.5, 0.9, 0.3, 0.2, 0.1, 0.7, 0.0), strict=True)), "r_bl")
    return World(sft, r, 2, 3), r_bl


def random_world(seed, vocab_size=4, horizon=5, **law):
    """A random SFT model and reward."""
    return World(ToyModel.random(seed, vocab_size, **law), ToyReward(seed=seed), horizon, vocab_size)
