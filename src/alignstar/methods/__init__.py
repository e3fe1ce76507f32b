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

MODEL_ROLES = ("sft", "baseline", "reward", "baseline_reward")
"""Parameters that are bound to models: two TokenModels (or Samplers) and two Scorers."""


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
        needs="one model",
        streams="token",
        cost="LM P+T",
    ),
    "sample": MethodEntry(
        function="alignstar.methods.plain:sample",
        summary="Draws from the model, with temperature, top-k and top-p",
        paper="-",
        needs="one model",
        streams="token",
        cost="LM P+T",
    ),
    "best-of-n": MethodEntry(
        function="alignstar.methods.best_of_n:best_of_n",
        summary="Draws N responses and keeps the one with the highest reward",
        paper="Stiennon et al. 2020",
        needs="a model (text suffices), a reward",
        streams="at the end",
        cost="LM P+NT, RM N(P+T)",
    ),
    "args": MethodEntry(
        function="alignstar.methods.args:args",
        summary="Adds the reward of the partial text to every candidate token's log-probability",
        paper="Khanov et al. 2024 (ARGS)",
        needs="a token model, a reward",
        streams="token",
        cost="LM P+T, RM P+kT",
    ),
    "transfer-q": MethodEntry(
        function="alignstar.methods.transfer_q:transfer_q",
        summary="Values every candidate token by rollouts of an aligned baseline (TQ*, direct and indirect)",
        paper="Chakraborty et al. 2024 (Transfer Q*)",
        needs="a baseline token model, a reward; indirect: the baseline's reward, or the SFT model",
        streams="token",
        cost="LM P+nkTL, RM P+nkT(L+1)",
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
