"""How a reward is written in one line of text, for the command line and recipe files.

    [WEIGHT*]SOURCE[?OPTION=VALUE[&OPTION=VALUE]...][|TRANSFORMATION]...

SOURCE is one of

    DIRECTORY or HUB-ID             a sequence classifier    output=2  weights=0.5,0.5
                                                             end_of_turn=complete|always|never
                                                             template={prompt}{response}{eos}
                                                             sparsify=SHARE  sparsify_seed=
    rule:length                     bounds on the reply      min_words= max_words= target_words=
                                                             min_characters= max_characters= target_characters=
    rule:regex                      a pattern                pattern=  mode=present|count  weight=  max_count=
    rule:keywords                   words                    present=a,b  absent=c
    rule:repetition                 freedom from repetition  n=  plus_one=true|false
    python:PACKAGE.MODULE:FUNCTION  any function             prompt=text|messages
    implicit                        the DPO reward of baseline against SFT model            beta=0.1
    min(LINE; LINE; ...)            the worst of several groups' rewards, each a line like this one
    soft_min(KAPPA[,PRIOR,PRIOR...]; LINE; LINE; ...)   a soft worst; PRIOR are the groups' weights (left out: equal)
    game(BETA[,DRAWS]; LINE; LINE; ...)   the groups weighted anew for every prompt, for the best worst group

TRANSFORMATION is affine:SLOPE,INTERCEPT or standardise:MEAN,STD or clip:LOW,HIGH or sigmoid[:SCALE]: from left to
right, before the weight. A game stands alone: without weight, transformation or company. Groups hold no groups. Inside
a value | & % and (in lists) the comma are written %7C %26 %25 %2C, inside a group ; is %3B; a line break is %0A. SHARE
of the weights of a classifier's last layer become zero: the smallest, or with a seed those it draws. Examples:

    models/reward?output=2|standardise:0.1,2.3|clip:-1,1
    0.5*rule:length?max_words=50
    python:my_rewards:politeness
    min(models/a|affine:0.12,0.31; models/b|affine:0.09,0.44)

Several rewards are added up. This file knows the names and builds what needs no model; opening a classifier and finding
the models of the implicit reward are its caller's.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias
from urllib.parse import unquote

from alignstar.errors import OptionError
from alignstar.rewards import Reward, combine, groups, rules
from alignstar.rewards.function import FunctionReward, load_function

Kind: TypeAlias = Literal["classifier", "rule", "python", "implicit", "groups"]
Convert: TypeAlias = Callable[[str], Any]

OpenClassifier: TypeAlias = Callable[..., Reward]
"""Called with the path, and with those of the classifier's options that were given."""
Implicit: TypeAlias = Callable[[float], Reward]
"""Called with beta."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transformation:
    """A step such as clip:-1,1: its name and its numbers."""

    name: str
    numbers: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSpec:
    """What one line says. `target` is the path, the rule's name or the import path; `text` the line itself.

    Of groups `target` is what is made of them (min, soft_min, game), with its `numbers`, and `parts` are their lines.
    """

    text: str
    kind: Kind
    target: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    transformations: tuple[Transformation, ...] = ()
    weight: float = 1.0
    numbers: tuple[float, ...] = ()
    parts: tuple[RewardSpec, ...] = ()


def _number(text: str) -> float:
    return float(text)


def _truth(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("it must be true or false")
    return text == "true"


def _share(text: str) -> float:
    share = float(text)
    if not 0 <= share <= 1:
        raise ValueError("it must lie in 0..1")
    return share


def _words(text: str) -> tuple[str, ...]:
    return tuple(unquote(word) for word in text.split(","))


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(word) for word in text.split(","))


_CONVERT: Mapping[str, Convert] = {
    "output": int,
    "weights": _numbers,
    "sparsify": _share,
    "sparsify_seed": int,
    **dict.fromkeys(("min_words", "max_words", "target_words"), int),
    **dict.fromkeys(("min_characters", "max_characters", "target_characters"), int),
    "max_count": int,
    "weight": _number,
    "present": _words,
    "absent": _words,
    "n": int,
    "plus_one": _truth,
    "beta": _number,
}
"""Options that are no plain text."""

RULES: Mapping[str, Callable[..., Reward]] = {
    "length": rules.length,
    "regex": rules.regex,
    "keywords": rules.keywords,
    "repetition": rules.repetition,
}
_OPTIONS: Mapping[Kind, tuple[str, ...]] = {
    "classifier": ("output", "weights", "end_of_turn", "template", "sparsify", "sparsify_seed"),
    "python": ("prompt",),
    "implicit": ("beta",),
}
_TRANSFORMATIONS: Mapping[str, tuple[Callable[..., Reward], tuple[int, ...]]] = {
    "affine": (combine.affine, (2,)),
    "standardise": (combine.standardise, (2,)),
    "clip": (combine.clip, (2,)),
    "sigmoid": (combine.sigmoid, (0, 1)),
}
"""Name -> what makes it, and how many numbers it may be given."""

_GROUPS = re.compile(r"(min|soft_min|game)\((.*)\)\s*((?:\|[^;)]*)?)", re.DOTALL)
_WEIGHT = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*\*")


def parse_reward(text: str) -> RewardSpec:
    """Read one line of the grammar above. Raises OptionError, with what was wrong and what is known."""
    weight = _WEIGHT.match(text)
    body = text[weight.end() :] if weight else text
    several = _GROUPS.fullmatch(body.strip())
    if several:
        return _several(text, several, 1.0 if weight is None else float(weight.group(1)))
    source, *steps = body.strip().split("|")
    address, has_options, options = source.partition("?")
    kind, target = _kind(address.strip(), text)
    allowed = tuple(inspect.signature(RULES[target]).parameters) if kind == "rule" else _OPTIONS[kind]
    return RewardSpec(
        text=text,
        kind=kind,
        target=target,
        options=_options(options, allowed, text) if has_options else {},
        transformations=tuple(_transformation(step.strip(), text) for step in steps),
        weight=float(weight.group(1)) if weight else 1.0,
    )


def _several(text: str, found: re.Match[str], weight: float) -> RewardSpec:
    what, inside, steps = found.groups()
    lines = inside.split(";")
    given = "" if what == "min" else lines.pop(0)
    try:
        numbers = _numbers(given) if given else ()
    except ValueError as error:
        raise OptionError(f"{given!r} in reward={text!r} cannot be read ({error}); correct it.") from error
    allowed = {"min": (0,), "soft_min": (1, len(lines) + 1), "game": (1, 2)}[what]
    if len(numbers) not in allowed or (what == "game" and not all(n.is_integer() for n in numbers[1:])):
        raise OptionError(
            f"reward={text!r} must read soft_min(KAPPA; LINE; ...), soft_min(KAPPA,PRIOR,...; LINE; ...) with a PRIOR "
            "for every group, or game(BETA; LINE; ...), game(BETA,DRAWS; LINE; ...) with a whole number of DRAWS."
        )
    if what == "game" and (weight != 1.0 or steps):
        raise OptionError(f"reward={text!r} is a game, which stands alone; weight and transform its groups instead.")
    parts = tuple(parse_reward(line.strip()) for line in lines)
    if any(part.kind == "groups" for part in parts):
        raise OptionError(f"reward={text!r} has groups inside groups; write all groups in one.")
    return RewardSpec(
        text=text,
        kind="groups",
        target=what,
        transformations=tuple(_transformation(step.strip(), text) for step in steps.split("|")[1:]),
        weight=weight,
        numbers=numbers,
        parts=parts,
    )


def _kind(address: str, text: str) -> tuple[Kind, str]:
    if not address:
        raise OptionError(
            f"reward={text!r} names no reward; give a directory, rule:NAME, python:MODULE:FUNCTION, implicit."
        )
    if address == "implicit":
        return "implicit", ""
    if address.startswith("python:"):
        return "python", address.removeprefix("python:")
    if address.startswith("rule:"):
        rule = address.removeprefix("rule:")
        if rule not in RULES:
            raise OptionError(f"rule {rule!r} in reward={text!r} is unknown. Known: {', '.join(RULES)}.")
        return "rule", rule
    return "classifier", address


def _options(options: str, allowed: Sequence[str], text: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for option in options.split("&"):
        name, has_value, value = option.partition("=")
        name = name.strip()
        if name not in allowed:
            raise OptionError(f"option {name!r} in reward={text!r} is unknown. Known: {', '.join(allowed)}.")
        if not has_value or name in values:
            raise OptionError(f"option {name!r} in reward={text!r} needs one value: {name}=VALUE.")
        convert = _CONVERT.get(name, unquote)
        try:
            values[name] = convert(value if convert is _words else unquote(value))
        except ValueError as error:
            raise OptionError(f"{name}={value!r} in reward={text!r} cannot be read ({error}); correct it.") from error
    if "sparsify_seed" in values and "sparsify" not in values:
        raise OptionError(f"reward={text!r} draws weights and does not say how many; give sparsify=SHARE too.")
    return values


def _transformation(step: str, text: str) -> Transformation:
    name, _, given = step.partition(":")
    if name not in _TRANSFORMATIONS:
        raise OptionError(
            f"transformation {name!r} in reward={text!r} is unknown. Known: {', '.join(_TRANSFORMATIONS)} "
            "(a | inside a value is written %7C)."
        )
    counts = _TRANSFORMATIONS[name][1]
    try:
        numbers = _numbers(given) if given else ()
    except ValueError as error:
        raise OptionError(f"{step!r} in reward={text!r} cannot be read ({error}); correct it.") from error
    if len(numbers) not in counts:
        raise OptionError(
            f"{step!r} in reward={text!r} takes {' or '.join(map(str, counts))} numbers, not {len(numbers)}."
        )
    return Transformation(name=name, numbers=numbers)


def build_reward(
    spec: RewardSpec | Sequence[RewardSpec], *, open_classifier_reward: OpenClassifier, implicit: Implicit
) -> Reward:
    """The reward that one line describes, or the weighted sum of several.

    Raises OptionError for values that a reward refuses, and whatever the two callables raise.
    """
    specs = (spec,) if isinstance(spec, RewardSpec) else tuple(spec)
    if len(specs) > 1 and any(one.target == "game" and one.kind == "groups" for one in specs):
        raise OptionError("A game stands alone; write what is to be added inside its groups.")
    parts = [(one.weight, _build(one, open_classifier_reward, implicit)) for one in specs]
    if len(parts) == 1 and parts[0][0] == 1.0:
        return parts[0][1]
    return combine.WeightedSum(parts)


def _build(spec: RewardSpec, open_classifier_reward: OpenClassifier, implicit: Implicit) -> Reward:
    if spec.kind == "classifier":
        reward = open_classifier_reward(spec.target, **spec.options)
    elif spec.kind == "rule":
        reward = _rule(spec)
    elif spec.kind == "python":
        reward = FunctionReward(load_function(spec.target), name=f"python:{spec.target}", **spec.options)
    elif spec.kind == "groups":
        reward = _groups(
            spec,
            [build_reward(p, open_classifier_reward=open_classifier_reward, implicit=implicit) for p in spec.parts],
        )
    else:
        reward = implicit(spec.options.get("beta", 0.1))
    for step in spec.transformations:
        reward = _TRANSFORMATIONS[step.name][0](reward, *step.numbers)
    return reward


def _groups(spec: RewardSpec, parts: Sequence[Reward]) -> Reward:
    if spec.target == "min":
        return groups.pointwise_min(parts)
    first, *more = spec.numbers
    if spec.target == "soft_min":
        return groups.soft_min(parts, first, more or None)
    return groups.game(parts, first, *(int(number) for number in more))


def _rule(spec: RewardSpec) -> Reward:
    rule = RULES[spec.target]
    needed = [
        n for n, p in inspect.signature(rule).parameters.items() if p.default is p.empty and n not in spec.options
    ]
    if needed:
        raise OptionError(f"reward={spec.text!r} needs a {needed[0]}: rule:{spec.target}?{needed[0]}=VALUE.")
    return rule(**spec.options)
