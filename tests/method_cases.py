"""The table's methods as cases for tests: with which options, bound to which small random models, and run.

A method gets the fewest models that its signature asks for. What is new in the table becomes a case at once; a new role
needs a line in `bindings`.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alignstar.errors import UserError
from alignstar.meter import Meter, metering
from alignstar.methods import METHODS, load
from alignstar.methods.roles import models_used
from alignstar.models.toy import ToyCodec, ToyModel, ToyReward
from alignstar.models.toy_value import ToyValue
from alignstar.options import complete, describe, roles
from alignstar.rewards import Reward, Scorer
from alignstar.types import Ids, Message, Prompt, Step, Usage

SMALL = {"budget": 40, "headroom": 2}
"""Options that make a method show what it does on responses of a few tokens, where it has them."""

OTHER_RULES = {"stop_on_eos"}
"""Options under which a response is something else: end-of-sequence as a token like any other."""

MORE = (
    {"beam": 3},
    {"weight": 2.5},
    {"block": 3},
    {"halving": 2},
    {"gate": 0.6},
    {"num_rollouts": 3, "rollout_strategy": "sample"},
    {"value_top": 2},
)
"""Numbers that make another search of a method, where it has them."""

VOCABULARY = 5


@dataclass(frozen=True, kw_only=True)
class Case:
    """A method with options that differ from its defaults; `worlds` says how many random worlds a law tries."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    worlds: int = 12

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{option}={value}" for option, value in self.options.items())])

    @property
    def given(self) -> dict[str, Any]:
        """The options that are not left at their defaults."""
        known = complete(self.name, {})
        return {**{o: v for o, v in SMALL.items() if o in known}, **self.options}

    @property
    def needed(self) -> set[str]:
        """The roles that the method cannot do without."""
        used = models_used(complete(self.name, self.given), frozenset(("sft", "baseline")))
        return {need.name for need in roles(self.name) if need.required or need.name in used}


def defaults() -> list[Case]:
    """Every method as it is."""
    return [Case(name=name) for name in METHODS]


@functools.cache
def variants() -> list[Case]:
    """Every method with every listed value of every option, one at a time, and with what MORE names; if it takes it."""
    cases: list[Case] = []
    for name in METHODS:
        for row in describe(name):
            values = {"true or false": [True, False]}.get(row["values"], row["values"].split(" or "))
            listed = row["option"] not in OTHER_RULES and all(
                isinstance(v, bool) or accepts(name, row, v) for v in values
            )
            others = [v for v in values if str(v).lower() != row["default"]]
            found = [Case(name=name, options={row["option"]: v}, worlds=3) for v in others if listed]
            cases.extend(case for case in found if starts(case))
        cases.extend(case for more in MORE for case in [Case(name=name, options=more, worlds=3)] if starts(case))
    return cases


def accepts(name: str, row: Mapping[str, Any], value: str) -> bool:
    """Whether the text is a value of the option, and not what its values are called."""
    try:
        complete(name, {row["option"]: value})
    except UserError:
        return False
    return row["values"] != "text"


def starts(case: Case) -> bool:
    """Whether the option is taken with nothing else changed."""
    try:
        asyncio.run(run(case, bindings(case), max_new_tokens=1))
    except UserError:
        return False
    return True


def prompt(text: str) -> Prompt:
    return Prompt(messages=(Message(role="user", content=text),), text=text, ids=tuple(ord(c) - 65 for c in text))


ONE, LONG = prompt("A"), prompt("BACAB")


def bindings(case: Case, seed: int = 0, *, kind: type[ToyModel] = ToyModel, reward: Reward | None = None, **law: Any):
    """The fewest models and rewards, by role: small random ones."""
    made = {
        "sft": lambda: kind.random(seed, VOCABULARY, **law),
        "baseline": lambda: kind.random(seed + 500, VOCABULARY, **law),
        "reward": lambda: reward or ToyReward(seed=seed),
        "baseline_reward": lambda: ToyReward(seed=seed + 500),
        "value": lambda: ToyValue.random(seed),
    }
    return {role: made[role]() for role in sorted(case.needed)}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One request: its trace and what it cost."""

    steps: Sequence[Step]
    usage: Usage

    @property
    def ids(self) -> Ids:
        ids: Ids = ()
        for step in self.steps:
            ids = step.emitted if step.replaces else ids + step.emitted
        return ids


def method(case: Case, bound: Mapping[str, Any], asked: Prompt, *, n_eos: int = 1, **options: Any):
    """The method's generator."""
    codec = ToyCodec(VOCABULARY, n_eos=n_eos)
    models = {role: Scorer(m, codec) if "reward" in role else m for role, m in bound.items()}
    return load(case.name)(asked, **models, **complete(case.name, {**case.given, **options}))


async def run(case: Case, bound: Mapping[str, Any], asked: Prompt = LONG, **options: Any) -> Run:
    with metering(Meter()) as meter:
        steps = [step async for step in method(case, bound, asked, **{"max_new_tokens": 7, **options})]
    return Run(steps=steps, usage=meter.usage())
