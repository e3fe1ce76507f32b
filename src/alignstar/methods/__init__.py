"""The methods: one paper, one file, one async generator of Steps. This file is the table of them.

A method's keyword-only parameters are its contract: a parameter named in MODEL_ROLES is a model or a reward that the
request must bring (or may, where its default is None); every other one is an option with its default and its bounds,
read by `alignstar.options`. `seed` and `max_new_tokens` are parameters of all.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from alignstar.types import Step

Method: TypeAlias = Callable[..., AsyncGenerator[Step, None]]

MODEL_ROLES = ("sft", "baseline", "reward", "baseline_reward", "value")
"""Parameters that are bound to models: two TokenModels (or Samplers), two Scorers, and a ValueModel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodEntry:
    """A line of the table: where the method is, and what a user wants to know before choosing it."""

    function: str
    summary: str
    paper: str
    needs: str
    streams: str
    cost: str

    def load(self) -> Method:
        """The async generator function."""
        module, _, name = self.function.partition(":")
        return getattr(importlib.import_module(module), name)


METHODS: Mapping[str, MethodEntry] = {
    "greedy": MethodEntry(
        function="alignstar.methods.plain:greedy",
        summary="The most probable token at every step",
        paper="-",
        needs="a model (text suffices)",
        streams="token",
        cost="LM P+T",
    ),
    "sample": MethodEntry(
        function="alignstar.methods.plain:sample",
        summary="Draws from the model, with temperature, top-k and top-p",
        paper="-",
        needs="a model (text suffices)",
        streams="token",
        cost="LM P+T",
    ),
    "best-of-n": MethodEntry(
        function="alignstar.methods.best_of_n:best_of_n",
        summary="Draws N responses and keeps the best; or one drawn by reward, regularised, or by a vote of answers",
        paper="Stiennon et al. 2020",
        needs="a model (text suffices), a reward",
        streams="at the end",
        cost="LM P+NT, RM N(P+T)",
    ),
    "args": MethodEntry(
        function="alignstar.methods.args:args",
        summary="Adds the reward of the partial text to every candidate token's log-probability",
        paper="Khanov et al. 2024 (ARGS)",
        needs="a model with log-probs, a reward",
        streams="token",
        cost="LM P+T, RM P+kT",
    ),
    "transfer-q": MethodEntry(
        function="alignstar.methods.transfer_q:transfer_q",
        summary="Values every candidate token by rollouts of an aligned baseline (TQ*, direct and indirect)",
        paper="Chakraborty et al. 2024 (Transfer Q*)",
        needs="a baseline with log-probs, a reward (of known range: far cheaper); "
        "indirect: the baseline's reward, or the SFT model",
        streams="token",
        cost="LM P+nkTL, RM P+nkT(L+1)",
    ),
    "dera": MethodEntry(
        function="alignstar.methods.dera:dera",
        summary="Blends SFT model and baseline, or goes beyond the baseline: alignment strength without training",
        paper="Liu et al. 2024 (DeRa)",
        needs="an SFT model and a baseline, both with log-probs",
        streams="token",
        cost="LM 2(P+T)",
    ),
    "genarm": MethodEntry(
        function="alignstar.methods.dera:genarm",
        summary="Multiplies the model with an autoregressive reward model, given as the baseline",
        paper="Xu et al. 2024 (GenARM)",
        needs="a model, and an autoregressive reward model as baseline, both with log-probs",
        streams="token",
        cost="LM 2(P+T)",
    ),
    "controlled-decoding": MethodEntry(
        function="alignstar.methods.controlled:controlled_decoding",
        summary="Weighs every next token, or chooses among drawn blocks, by a trained value model",
        paper="Mudgal et al. 2024 (Controlled Decoding), Yang and Klein 2021 (FUDGE)",
        needs="a model with log-probs, a value model",
        streams="token; blockwise: block",
        cost="LM P+T, blockwise P+NT for N blocks; the value model its share of P+T, of a scorer P+kT, or nothing",
    ),
    "deal": MethodEntry(
        function="alignstar.methods.deal:deal",
        summary="Beam search that values every extension by the reward of a greedy lookahead",
        paper="Huang et al. 2024 (DeAL)",
        needs="a model with log-probs, a reward (or a constraint as one)",
        streams="token; with several beams what all of them agree on",
        cost="LM P+bkTL, RM P+bkT(L+1)",
    ),
    "speculative-rejection": MethodEntry(
        function="alignstar.methods.speculative_rejection:speculative_rejection",
        summary="Draws as many responses as memory holds and drops the worst whenever it is full",
        paper="Sun et al. 2024 (Speculative Rejection)",
        needs="a model (text suffices), a reward",
        streams="at the end",
        cost="LM P+B(1+a log(NT/B)/log(1/(1-a))) about, B the budget, a the rejection rate; RM the same",
    ),
    "tree-bon": MethodEntry(
        function="alignstar.methods.tree_bon:tree_bon",
        summary="Grows responses segment by segment from the best few by the implicit reward of a DPO model",
        paper="Qiu et al. 2024 (TreeBoN)",
        needs="an SFT model, a DPO model with log-probs trained from it as baseline, a reward",
        streams="at the end",
        cost="LM 2(P+NT), RM N(P+T)",
    ),
    "maxmin": MethodEntry(
        function="alignstar.methods.maxmin:maxmin",
        summary="Transfer Q* for several groups of people at once: every token for the group that is worst off",
        paper="Chakraborty et al. 2024 (MaxMin-RLHF), Son et al. 2025 (RMOD)",
        needs="a model with log-probs, a reward of groups: min(a; b)",
        streams="token",
        cost="LM P+nkTL, RM U(P+nkT(L+1)) for U groups",
    ),
    "best-policy": MethodEntry(
        function="alignstar.methods.best_policy:best_policy",
        summary="Of SFT model and baseline the one whose worst group of people is best off, judged by N draws of each",
        paper="Chakraborty et al. 2024 (MaxMin-RLHF)",
        needs="an SFT model and a baseline (text suffices), a reward of groups: min(a; b)",
        streams="at the end",
        cost="LM 2(P+NT), RM U2N(P+T) for U groups",
    ),
}


def resolve(name: str) -> MethodEntry:
    """The table's entry. Raises OptionError naming the known methods."""
    from alignstar.errors import OptionError

    if name not in METHODS:
        raise OptionError(f"method={name!r} is unknown. Known: {', '.join(METHODS)}.")
    return METHODS[name]


def load(name: str) -> Any:
    """The method's async generator function. Raises OptionError for an unknown name."""
    return resolve(name).load()
