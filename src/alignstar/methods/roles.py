"""Which of the request's models a method's options point at. Knows the names of the roles and no model.

An option whose value is "sft" or "baseline" uses that model; every such choice is made here, so that what is
missing can be said before anything starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from alignstar.errors import NeedsError

M = TypeVar("M")


def models_used(options: Mapping[str, Any], given: frozenset[str]) -> frozenset[str]:
    """The model roles that these (complete) options need; `given` settles what an unset `model` means."""
    values = [value for value in options.values() if isinstance(value, str)]
    used = {value for value in values if value in ("sft", "baseline")}
    if "union" in values:
        used |= {"sft", "baseline"}
    if options.get("partial_reward", "rm") != "rm":
        used.add("baseline")
    if options.get("values") == "head" or options.get("value_top") is not None:
        used.add("value")
    if options.get("implicit_baseline_reward"):
        used.add("sft")
    elif options.get("base_policy") in ("auto", "pi_r"):
        used.add("baseline")
    if "model" in options and options["model"] is None:
        used.add("sft" if "sft" in given else "baseline")
    return frozenset(used)


def required(model: M | None, role: str, method: str) -> M:
    """The model. Raises NeedsError naming the method and the role where it is missing."""
    if model is None:
        raise NeedsError(f"method={method!r} needs the {role} model; give one with --{role}.")
    return model


def one_model(model: str | None, sft: M | None, baseline: M | None, method: str) -> M:
    """The model of a method that decodes with one: the role asked for, else sft, else baseline."""
    role = model or ("sft" if sft is not None else "baseline")
    return required(sft if role == "sft" else baseline, role, method)
