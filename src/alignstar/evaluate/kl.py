"""KL divergence from the SFT model along a response, state by state [nats].

plain: sum over t of log pi_Alg(y_t|s_t) - log pi_sft(y_t|s_t). Rao-Blackwellised: sum over t of
KL(pi_Alg(.|s_t) || pi_sft(.|s_t)) on the states visited: the same expectation over responses, never negative, of less
variance. Either's mean over responses estimates the trajectory KL.

What pi_Alg is: for a method that takes the best token a point mass, so that both are -log pi_sft(y); for one that draws
from softmax(score / T) that law over the candidates of the step, given their values (rollouts included); for plain
sampling and products of models the tempered law over the vocabulary. Methods that choose among whole responses have no
law in closed form, and so no figure here; best-of-N has the bound log N - (N-1)/N (Beirami et al. 2024,
arXiv:2401.01879). Knows models and the trace of a response; no run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from alignstar.meter import Meter, metering
from alignstar.methods.dera import product
from alignstar.methods.roles import one_model
from alignstar.models import Sampler, TokenModel
from alignstar.sampling import GREEDY, Array, IntArray, Sampling, log_softmax, tempered
from alignstar.types import Ids, Response

PRODUCTS = ("dera", "genarm")
"""Methods that draw from a product of two models' laws."""

POINT_MASS = "point mass: -log pi_sft(y)"
CANDIDATES = "softmax(score / T) over each step's candidates, given their values"
VOCABULARY = "the law that tokens are drawn from, over the vocabulary"
BOUND = "upper bound: log N - (N-1)/N"
UNKNOWN = "no law in closed form"

Law: TypeAlias = tuple[IntArray, Array]
"""Tokens [c] and their log-probabilities [c] under pi_Alg in one state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """Both estimates for one response, and what pi_Alg was taken to be."""

    plain: float
    rao_blackwell: float
    law: str


def law_of(method: str, options: Mapping[str, Any]) -> str:
    """What is known of the law of a method's tokens: POINT_MASS, CANDIDATES, VOCABULARY, BOUND or UNKNOWN."""
    if options.get("mode") == "blockwise":
        return UNKNOWN
    if method in ("greedy", "deal") or options.get("strategy" if method == "args" else "selection") == "greedy":
        return POINT_MASS
    if method in ("sample", *PRODUCTS):
        return VOCABULARY
    if method == "best-of-n" and options["selection"] == "best":
        return BOUND
    return CANDIDATES if _temperature(options) is not None and not options.get("return_best_rollout") else UNKNOWN


def best_of_n_bound(n: int) -> float:
    """The bound log N - (N-1)/N on how far best-of-N is from the model that it draws from [nats]."""
    return math.log(n) - (n - 1) / n


def state_divergence(log_alg: Array, log_sft: Array) -> float:
    """KL(pi_Alg || pi_sft) in one state [nats], over the tokens that pi_Alg can emit; inf where pi_sft excludes one."""
    drawn = log_alg > -np.inf
    return float(np.sum(np.exp(log_alg[drawn]) * (log_alg[drawn] - log_sft[drawn])))


async def divergence(response: Response, models: Mapping[str, Sampler]) -> Divergence | None:
    """Both estimates of a traced response, from the models by role; costs nothing in anybody's meter.

    None without an SFT model that tells log-probabilities, without a law, where candidates were left out of the trace
    (skipped ones have no score) or a step emitted several tokens, and where the SFT model excludes what was drawn (the
    divergence is infinite).
    """
    sft = models.get("sft")
    if not isinstance(sft, TokenModel):
        return None
    with metering(Meter()):
        law = law_of(response.method, response.options)
        if law == POINT_MASS:
            surprise = -float((await sft.logprobs(response.prompt.ids, response.ids)).sum())
            found = Divergence(plain=surprise, rao_blackwell=surprise, law=law)
        elif law == CANDIDATES and not response.usage.certified and len(response.steps) == len(response.ids):
            found = await _summed(response, sft, law, _candidate_laws(response))
        elif law == VOCABULARY:
            laws = await _vocabulary_laws(response, models)
            found = None if laws is None else await _summed(response, sft, law, laws)
        else:
            found = None
    return found if found is not None and math.isfinite(found.rao_blackwell + found.plain) else None


async def _summed(response: Response, sft: TokenModel, law: str, laws: Sequence[Law]) -> Divergence:
    plain = spread = 0.0
    for t, (ids, log_alg) in enumerate(laws):
        log_sft = await sft.next_logprobs(response.prompt.ids + response.ids[:t], ids)
        at = int(np.flatnonzero(ids == response.ids[t])[0])
        plain += float(log_alg[at] - log_sft[at])
        spread += state_divergence(log_alg, log_sft)
    return Divergence(plain=plain, rao_blackwell=spread, law=law)


def _candidate_laws(response: Response) -> list[Law]:
    temperature = _temperature(response.options) or 1.0
    return [
        (
            np.array([candidate.ids[0] for candidate in step.considered], dtype=np.int64),
            _softmax(np.array([candidate.score for candidate in step.considered]), step.chosen, temperature),
        )
        for step in response.steps
    ]


async def _vocabulary_laws(response: Response, models: Mapping[str, Sampler]) -> list[Law] | None:
    """The laws that `sample`, `dera` and `genarm` drew from; None without a model that tells them."""
    options = response.options
    asked: Sequence[Sampler | None]
    if response.method == "sample":
        asked, powers = [one_model(options["model"], models.get("sft"), models.get("baseline"), "sample")], [1.0]
    else:
        second = options["weight"] if response.method == "dera" else 1.0 / options["beta"]
        powers = [1.0 - second if response.method == "dera" else 1.0, second]
        asked = [models.get("sft"), models.get("baseline")]
    weighed = [(model, power) for model, power in zip(asked, powers, strict=True) if power != 0.0]
    known = [(model, power) for model, power in weighed if isinstance(model, TokenModel)]
    if len(known) < len(weighed):
        return None
    sampling = Sampling(temperature=options["temperature"], top_k=options["top_k"], top_p=options["top_p"])
    vocabulary = np.arange(max(model.vocab_size for model, _ in known))
    return [
        (vocabulary, await _product_law(known, response.prompt.ids + response.ids[:t], vocabulary, sampling))
        for t in range(len(response.ids))
    ]


async def _product_law(
    models: Sequence[tuple[TokenModel, float]], state: Ids, vocabulary: IntArray, sampling: Sampling
) -> Array:
    laws = [await model.next_logprobs(state, vocabulary) for model, _ in models]
    law = laws[0] if len(laws) == 1 else product(laws, [power for _, power in models])
    return log_softmax(law if sampling == GREEDY else tempered(law, sampling))


def _temperature(options: Mapping[str, Any]) -> float | None:
    """What a step's scores are divided by before one of its candidates is drawn; None where none is."""
    if options.get("strategy") == "stochastic":
        return options["temperature"]
    if options.get("mode") == "tokenwise":
        return 1.0
    return options.get("selection_temperature")


def _softmax(scores: Array, chosen: int, temperature: float) -> Array:
    """Log-probabilities [c] of a draw; without any usable score the most probable candidate was taken."""
    if np.all(np.isneginf(scores)):
        return _point(len(scores), chosen)
    return log_softmax(scores / temperature)


def _point(size: int, chosen: int) -> Array:
    return np.where(np.arange(size) == chosen, 0.0, -np.inf)
