"""The edge: what a user gave for a method's options, checked against the method's signature and completed.

Reads signatures; calls no method. Methods themselves take plain keywords and check none of this again.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from typing_extensions import Doc

from alignstar.errors import OptionError
from alignstar.methods import MODEL_ROLES, load
from alignstar.methods.presets import Preset
from alignstar.models import TokenModel

ALIASES = {"num_candidates": "k", "lambda": "weight", "lookahead": "rollout_len", "value": "values"}
"""Other names that papers use -> ours."""

RIVALS = (("alpha", "weight"),)
"""Options that say the same thing; at most one of a pair may be given. The second wins over the first's default."""

_OWN_FLAGS = ("method", "preset", "seed", "max_new_tokens", "stop", "chat", "truncate", "prompt")
_WORDS = {"none": None, "null": None, "true": True, "false": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleNeed:
    """A model or reward parameter of a method. `tokens`: a TokenModel, where a Sampler is not enough."""

    name: str
    required: bool
    tokens: bool


def assignments(pairs: Sequence[str]) -> dict[str, Any]:
    """Options from "key=value" texts: numbers, true, false and none are read as such, all else is text.

    Raises OptionError for a text without "=", an option given twice, or one that has a flag of its own.
    """
    given: dict[str, Any] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        name = key.strip().replace("-", "_")
        if not separator or not name:
            raise OptionError(f"Option {pair!r} must have the form name=value; write for example -o k=10.")
        if name in given:
            raise OptionError(f"Option {name!r} is given twice; leave one out.")
        if name in _OWN_FLAGS:
            raise OptionError(f"{pair!r} is no option of a method; use --{name.replace('_', '-')}.")
        given[name] = _value(value.strip())
    return given


def complete(method: str, given: Mapping[str, Any], preset: Preset | None = None) -> dict[str, Any]:
    """Every option of the method: what was given, else the preset's, else the default.

    Raises OptionError for an unknown method or option, a value against its rule, or two options that say the same.
    """
    parameters = _options(method)
    named = _renamed(method, given, frozenset(parameters))
    for first, second in RIVALS:
        if first in named and second in named and named[second] is not None:
            raise OptionError(
                f"{first}={_shown(named[first])} and {second}={_shown(named[second])} say the same thing; give one."
            )
    merged = {**_preset_options(preset, named), **named}
    try:
        checked = _schema(method).model_validate(merged)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        raise OptionError(_broken(parameters[name], merged[name])) from None
    options = {name: getattr(checked, name) for name in parameters}
    for first, second in RIVALS:
        if options.get(second) is not None and first not in named:
            options.pop(first, None)
    return options


def describe(method: str) -> list[dict[str, Any]]:
    """One row per option of the method, for tables: option, default, values, meaning. Raises OptionError."""
    return [
        {
            "option": name,
            "default": _shown(parameter.default),
            "values": _rule(parameter.annotation),
            "meaning": meaning,
        }
        for name, parameter in _options(method).items()
        if name not in _OWN_FLAGS
        for meaning in [_meaning(parameter.annotation)]
    ]


def roles(method: str) -> list[RoleNeed]:
    """The models and rewards that the method takes. Raises OptionError for an unknown method."""
    return [
        RoleNeed(
            name=name,
            required=parameter.default is parameter.empty,
            tokens=TokenModel in (parameter.annotation, *get_args(parameter.annotation)),
        )
        for name, parameter in _parameters(method).items()
        if name in MODEL_ROLES
    ]


@functools.cache
def _parameters(method: str) -> Mapping[str, inspect.Parameter]:
    function = load(method)
    hints = get_type_hints(function, include_extras=True)
    parameters = list(inspect.signature(function).parameters.values())[1:]  # the first one is the prompt
    return {parameter.name: parameter.replace(annotation=hints[parameter.name]) for parameter in parameters}


def _options(method: str) -> dict[str, inspect.Parameter]:
    return {name: parameter for name, parameter in _parameters(method).items() if name not in MODEL_ROLES}


@functools.cache
def _schema(method: str) -> type[BaseModel]:
    fields: dict[str, Any] = {name: (p.annotation, p.default) for name, p in _options(method).items()}
    config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    return create_model(f"{method} options", __config__=config, **fields)


def _renamed(method: str, given: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for key, value in given.items():
        name = ALIASES.get(key, key) if key not in known else key
        if name not in known:
            near = difflib.get_close_matches(key, sorted(known), n=1)
            hint = f"did you mean {near[0]}? Known" if near else "known"
            raise OptionError(f"{key!r} is no option of {method}; {hint}: {', '.join(sorted(known))}.")
        if name in named:
            raise OptionError(f"Option {name!r} is given under two names; leave one out.")
        named[name] = value
    return named


def _preset_options(preset: Preset | None, named: Mapping[str, Any]) -> dict[str, Any]:
    options = dict(preset.options) if preset is not None else {}
    for pair in RIVALS:
        if any(name in named for name in pair):
            for name in pair:
                options.pop(name, None)
    return options


def _broken(parameter: inspect.Parameter, value: Any) -> str:
    return (
        f"{parameter.name}={_shown(value)} must be {_rule(parameter.annotation)} ({_meaning(parameter.annotation)}); "
        f"leave it out for {_shown(parameter.default)}."
    )


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) and value else repr(value)


def _meaning(annotation: Any) -> str:
    return next((note.documentation for note in get_args(annotation) if isinstance(note, Doc)), "")


def _rule(annotation: Any) -> str:
    """What values an annotation allows, in words."""
    origin = get_origin(annotation)
    if origin is Annotated:
        base, *notes = get_args(annotation)
        return _rule(base) + "".join(_bound(note) for note in notes)
    if origin in (Union, UnionType):
        return " or ".join(_rule(part) for part in get_args(annotation))
    if origin is Literal:
        return " or ".join(str(choice) for choice in get_args(annotation))
    return {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", NoneType: "none"}[
        annotation
    ]


def _bound(note: Any) -> str:
    if isinstance(note, Ge):
        return f" >= {note.ge}"
    if isinstance(note, Gt):
        return f" > {note.gt}"
    if isinstance(note, Le):
        return f" and <= {note.le}"
    if isinstance(note, Lt):
        return f" and < {note.lt}"
    return ""
