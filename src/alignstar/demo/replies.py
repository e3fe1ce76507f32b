"""The mixture of replies the shop's support desk writes: kind, curt, chatty, vague, wrong, rude and unsafe.

Knows how replies are put together from phrases. Does not know what a reply is worth.
"""

from __future__ import annotations

import random

from alignstar.demo.customers import AGENTS, PROBLEMS, Message
from alignstar.demo.phrases import DETAILS, GENERAL, SYMPATHY, actions, expand

MAX_WORDS = 42

# Share of each manner of reply. A little more than a third of replies do not help, a tenth are rude, a tenth unsafe.
MANNERS = {"careful": 0.15, "brief": 0.17, "chatty": 0.16, "vague": 0.20, "wrong": 0.12, "rude": 0.10, "unsafe": 0.10}

# Chance that a reply of this manner holds a sentence of this kind, in the order in which the kinds are written.
HABITS: dict[str, tuple[tuple[str, float], ...]] = {
    "careful": (
        ("greeting", 0.4), ("sympathy", 0.6), ("empathy", 0.4), ("action", 1.0), ("detail", 0.65),
        ("caution", 0.15), ("offer", 0.45), ("closing", 0.35),
    ),
    "brief": (("greeting", 0.15), ("action", 1.0), ("detail", 0.35), ("caution", 0.25), ("closing", 0.15)),
    "chatty": (
        ("greeting", 0.7), ("empathy", 0.3), ("padding", 0.8), ("action", 0.45), ("vague", 0.5), ("padding", 0.4),
        ("offer", 0.25), ("closing", 0.6),
    ),
    "vague": (
        ("greeting", 0.5), ("empathy", 0.3), ("vague", 1.0), ("question", 0.4), ("padding", 0.3), ("offer", 0.1),
        ("closing", 0.4),
    ),
    "wrong": (
        ("greeting", 0.4), ("empathy", 0.3), ("wrong action", 1.0), ("wrong detail", 0.4), ("caution", 0.1),
        ("offer", 0.15), ("closing", 0.3),
    ),
    "rude": (
        ("greeting", 0.1), ("rude", 1.0), ("refuse", 0.4), ("action", 0.25), ("rude", 0.4), ("vague", 0.2),
        ("question", 0.15),
    ),
    "unsafe": (
        ("greeting", 0.4), ("empathy", 0.25), ("action", 0.35), ("unsafe", 1.0), ("detail", 0.15), ("vague", 0.25),
        ("offer", 0.15), ("closing", 0.3),
    ),
}  # fmt: skip


def reply(rng: random.Random, message: Message, *, manner: str | None = None) -> str:
    """One reply of two to five sentences to `message`, at most `MAX_WORDS` words, in a random manner unless given."""
    manner = manner or rng.choices(tuple(MANNERS), weights=tuple(MANNERS.values()))[0]
    while True:
        sentences = _draw(rng, message, manner)
        if 2 <= len(sentences) <= 5 and len(" ".join(sentences).split()) <= MAX_WORDS:
            return " ".join(sentences)


def _draw(rng: random.Random, message: Message, manner: str) -> list[str]:
    agent = rng.choice(AGENTS)
    other = rng.choice([p for p in PROBLEMS if p != message.problem])
    sentences: list[str] = []
    for kind, chance in HABITS[manner]:
        if rng.random() >= chance:
            continue
        problem = other if kind.startswith("wrong") else message.problem
        sentence = _sentence(rng, kind.removeprefix("wrong "), problem)
        sentence = sentence.format(product=message.product, order=message.order, agent=agent)
        if sentence not in sentences:
            sentences.append(sentence)
    return sentences


def _sentence(rng: random.Random, kind: str, problem: str) -> str:
    if kind == "action":
        return rng.choice(expand(rng.choice(actions(problem))))
    table = {"detail": DETAILS, "sympathy": SYMPATHY}.get(kind)
    return rng.choice(table[problem] if table else GENERAL[kind])
