"""What customers of the small shop write: products, problems and messages, by split.

Knows the text of messages and which wording and slots belong to which split. Does not know replies, rewards or models.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from alignstar.demo.wordings import HELD_OUT, MORE, WORDINGS

SPLITS = ("train", "tuning", "demo", "evaluation")

WEARABLES = ("jacket", "shirt", "coat", "sweater", "dress", "helmet", "raincoat", "belt", "hat")
DEVICES = ("kettle", "toaster", "lamp", "radio", "clock", "heater", "printer", "blender", "fan", "camera", "speaker")
FURNITURE = ("desk", "chair", "shelf", "tent", "table", "bike", "grill", "cabinet")
OTHERS = ("backpack", "rug", "pillow", "teapot", "suitcase")
PRODUCTS = WEARABLES + DEVICES + FURNITURE + OTHERS

AGENTS = ("Mara", "Tom", "Priya", "Jonas", "Elena", "Sam")

PROBLEMS = tuple(WORDINGS)

OPENINGS = (
    "Hello.", "Hi.", "Good morning.", "Good evening.", "Dear support team.", "Hello again.", "Hi there.",
)  # fmt: skip
MOODS = (
    "I am quite upset about this.",
    "This is the second time.",
    "There is no hurry.",
    "I am really annoyed.",
    "It was a gift for my mother.",
    "I need it before the weekend.",
    "I have been a customer for years.",
    "I expected better from you.",
    "I am sure it is only a small mistake.",
    "Normally your shop is very good.",
)
REQUESTS = (
    "What can you do?",
    "Please help me.",
    "Can you sort this out?",
    "Please let me know.",
    "What happens now?",
    "Thank you for your help.",
    "I hope you can help.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A customer's message and what it was made from."""

    text: str
    problem: str
    product: str
    order: str


def wordings(problem: str, *, split: str) -> tuple[str, ...]:
    """The sentences that may state `problem` in `split`; no two splits share one."""
    main, held_out = WORDINGS[problem], HELD_OUT[problem]
    return {
        "train": main[:8] + MORE[problem],
        "tuning": main[8:],
        "demo": held_out[:2],
        "evaluation": held_out[2:],
    }[split]


def products(problem: str, *, split: str) -> tuple[str, ...]:
    """The products that may meet `problem` in `split`; no two splits share a pair of problem and product."""
    fitting = {
        "size": WEARABLES,
        "fault": DEVICES,
        "missing": FURNITURE + DEVICES,
    }.get(problem, PRODUCTS)
    shift = PROBLEMS.index(problem)
    kept = {"train": (0, 1, 2, 3, 4), "tuning": (5,), "demo": (6,), "evaluation": (7,)}[split]
    return tuple(p for i, p in enumerate(fitting) if (i + shift) % 8 in kept)


def order_number(rng: random.Random, *, split: str) -> str:
    """An order number such as B42; its last digit belongs to the split alone."""
    last = {"train": "0123456", "tuning": "7", "demo": "8", "evaluation": "9"}[split]
    return f"{rng.choice('ABCDEFGH')}{rng.randrange(1, 10)}{rng.choice(last)}"


def message(rng: random.Random, *, split: str, problem: str | None = None) -> Message:
    """One customer message of two to five short sentences, from the wordings and slots of `split`."""
    problem = problem or rng.choice(PROBLEMS)
    product = rng.choice(products(problem, split=split))
    order = order_number(rng, split=split)
    parts = [rng.choice(OPENINGS)] if rng.random() < 0.6 else []
    if rng.random() < 0.7:
        parts.append(f"My order number is {order}." if rng.random() < 0.6 else f"This is about order {order}.")
    parts.append(rng.choice(wordings(problem, split=split)).format(product=product))
    if rng.random() < 0.5:
        parts.append(rng.choice(MOODS))
    if rng.random() < 0.5 or len(parts) == 1:
        parts.append(rng.choice(REQUESTS))
    return Message(text=" ".join(parts), problem=problem, product=product, order=order)
