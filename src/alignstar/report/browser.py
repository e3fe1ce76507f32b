"""What the page's browser of prompts is given: replies and traces as compact JSON that is safe inside HTML.

Knows Units and what page.js reads. Floats keep five digits: the exact ones are in the files beside the page.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from alignstar.evaluate.units import Unit

_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def embedded(value: Any) -> Markup:
    """`value` as JSON that may stand inside a script element: no text in it can end the element or begin another."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, escape in _UNSAFE.items():
        text = text.replace(character, escape)
    return Markup(text)


def weight(value: Any) -> int:
    """Bytes that `value` takes on the page."""
    return len(embedded(value).encode())


def reply(unit: Unit, *, method: int, rewards: Sequence[str]) -> dict[str, Any]:
    """A unit without its trace; `method` is its place among the methods."""
    common = {"method": method, "seed": unit.seed, "text": unit.response}
    if unit.error is not None:
        return {**common, "error": unit.error, "rewards": [], "kl": None}
    return {
        **common,
        "rewards": [_rounded(unit.rewards.get(name)) for name in rewards],
        "kl": _rounded(unit.kl),
        "finish": unit.finish_reason,
        "lm_tokens": _rounded(unit.usage.get("lm_tokens")),
        "rm_tokens": _rounded(unit.usage.get("rm_tokens")),
    }


def trace(unit: Unit) -> list[dict[str, Any]]:
    """The unit's steps: the text each added, and for each candidate its name, log-prob, value and score."""
    return [
        {
            "index": step["index"],
            "text": step["text"],
            "chosen": step["chosen"],
            "near_ties": step["near_ties"],
            "options": [_option(candidate) for candidate in step["considered"]],
        }
        for step in unit.steps
    ]


def _option(candidate: Mapping[str, Any]) -> list[Any]:
    return [_name(candidate), *(_rounded(candidate[field]) for field in ("logp", "value", "score"))]


def _name(candidate: Mapping[str, Any]) -> str:
    """The candidate's text; of one that has none, an end of sequence that is skipped, its tokens' ids."""
    return candidate["text"] or " ".join(f"#{i}" for i in candidate["ids"])


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")
