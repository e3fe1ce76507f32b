"""Rows of the embedded world for recipes of `alignstar train`, in TRL's forms. Knows no model.

Use as python:alignstar.demo.rows:preferences with a split: train, tuning or evaluation.
"""

from __future__ import annotations

import random
from typing import Any

from alignstar.demo.customers import message
from alignstar.demo.people import Reply, annotate, staff
from alignstar.demo.replies import reply

ROWS = 4_000
"""How many rows a split has; a recipe's `rows` takes fewer."""

SHARPNESS = 12.0
"""How sure the annotators are [nats per unit of true reward], as for the embedded reward models."""


def conversations(split: str = "train") -> list[dict[str, Any]]:
    """Customers' messages with replies of careful and brief agents."""
    rng = random.Random(f"conversations {split}")
    asked = [message(rng, split=split) for _ in range(ROWS)]
    return [{"prompt": m.text, "completion": reply(rng, m, manner=rng.choice(("careful", "brief")))} for m in asked]


def preferences(split: str = "train") -> list[dict[str, Any]]:
    """Two replies in the shop's mixture of manners to each message, and which one a thorough annotator prefers."""
    rng = random.Random(f"preferences {split}")
    asked = [message(rng, split=split) for _ in range(ROWS)]
    pairs = [(m.text, Reply(text=reply(rng, m)), Reply(text=reply(rng, m))) for m in asked]
    people = staff(thorough_share=1.0, sharpness=SHARPNESS)
    return [
        {"prompt": p.message, "chosen": p.chosen.text, "rejected": p.rejected.text, "user": p.annotator}
        for p in annotate(pairs, annotators=people)
    ]
