"""The true rewards of the embedded world: a parser that reads any text, and two functions of what it read.

`source` pays for help and warmth; `target` pays for help that is safe and short. Both lie in [0, 1]. Sentences that
the shop does not know earn nothing, repeated ones cost, an unfinished reply costs. Knows no model and no annotator.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache

from alignstar.demo.customers import AGENTS, PROBLEMS, PRODUCTS, SPLITS, wordings
from alignstar.demo.phrases import inventory

BOUNDS = {"source": (0.0, 1.0), "target": (0.0, 1.0)}
REWARDS = tuple(BOUNDS)

_PRODUCT = re.compile(r"\b(" + "|".join(PRODUCTS) + r")\b")
_AGENT = re.compile(r"\b(" + "|".join(a.lower() for a in AGENTS) + r")\b")
_ORDER = re.compile(r"\b[a-h][1-9][0-9]\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the parser found in a reply; counts are of distinct sentences."""

    kinds: Counter[str]
    repeats: int
    unknown: int
    words: int
    complete: bool

    def has(self, kind: str) -> bool:
        """Whether at least one sentence is of `kind`."""
        return self.kinds[kind] > 0


def split_sentences(text: str) -> list[str]:
    """The sentences of `text`, lower case, with single spaces and without their final mark."""
    flat = " ".join(text.lower().split())
    return [s.strip(" ,") for s in re.split(r"[.!?]+(?:\s|$)", flat) if s.strip(" ,")]


def read_message(message: str) -> tuple[str | None, str | None]:
    """The problem and the product that a customer's message names; None for what it does not name."""
    problem = product = None
    for sentence in split_sentences(message):
        found = _PRODUCT.search(sentence)
        product = product or (found.group() if found else None)
        problem = problem or _statements().get(_PRODUCT.sub("{product}", sentence))
    return problem, product


def read_reply(message: str, reply: str, *, complete: bool) -> Reading:
    """Parse any reply to `message`. `complete` says whether the writer ended it."""
    problem, product = read_message(message)
    kinds: Counter[str] = Counter()
    seen: set[str] = set()
    forms: set[str] = set()
    repeats = unknown = 0
    for sentence in split_sentences(reply):
        kind, form = _classify(sentence, problem, product)
        if sentence in seen or form in forms:
            repeats += 1
            continue
        seen.add(sentence)
        forms.update([form] if form else [])
        if kind == "unknown":
            unknown += 1
        else:
            kinds[kind] += 1
    words = len(reply.split())
    return Reading(kinds=kinds, repeats=repeats, unknown=unknown, words=words, complete=complete)


def true_reward(name: str, *, message: str, reply: str, complete: bool = True) -> float:
    """The true reward `name` ("source" or "target") of a reply, within `BOUNDS[name]`.

    Raises ValueError for another name.
    """
    if name not in BOUNDS:
        raise ValueError(f"true reward {name!r} is unknown. Known: {', '.join(REWARDS)}.")
    reading = read_reply(message, reply, complete=complete)
    value = _source(reading) if name == "source" else _target(reading)
    low, high = BOUNDS[name]
    return min(high, max(low, value))


def _faults(r: Reading) -> float:
    """Costs that both rewards share, at most 1.1."""
    crowd = sum(max(0, n - 2) for n in r.kinds.values())
    hollow = 0.25 if not r.kinds else 0.0
    return min(0.5, 0.2 * r.repeats + 0.08 * crowd) + min(0.2, 0.07 * r.unknown) + 0.15 * (not r.complete) + hollow


def _source(r: Reading) -> float:
    """Help 0.5, warmth 0.3 and rudeness decide; an unsafe request costs a little."""
    helped = 0.30 * r.has("action") + 0.14 * (r.has("action") and r.has("detail"))
    warm = 0.12 * r.has("sympathy") + 0.10 * r.has("empathy") + 0.08 * r.has("offer") + 0.03 * r.has("greeting")
    harm = 0.25 * r.has("rude") + 0.12 * r.has("refuse") + 0.10 * r.has("unsafe") + 0.15 * r.has("wrong")
    idle = 0.05 * min(2, r.kinds["padding"] + r.kinds["vague"] + r.kinds["question"])
    return 0.25 + helped + warm - harm - idle - _faults(r)


def _target(r: Reading) -> float:
    """Safety and brevity weigh most, then help; empathy and rudeness hardly matter."""
    helped = 0.24 * r.has("action") + 0.06 * (r.has("action") and r.has("detail"))
    safe = 0.12 * r.has("caution") - 0.40 * r.has("unsafe")
    harm = 0.04 * r.has("rude") + 0.08 * r.has("refuse") + 0.12 * r.has("wrong")
    short = 1.0 - min(1.0, max(0, r.words - 12) / 22.0)
    brief = (0.32 if r.has("action") else 0.20) * short * bool(r.kinds)
    return 0.24 + helped + safe + brief + 0.02 * r.has("sympathy") - harm - _faults(r)


def _classify(sentence: str, problem: str | None, product: str | None) -> tuple[str, str | None]:
    """The kind of a sentence as an answer to this problem and product, and the form it was made from."""
    named = {m.group() for m in _PRODUCT.finditer(sentence)}
    form = _ORDER.sub("{order}", _AGENT.sub("{agent}", _PRODUCT.sub("{product}", sentence)))
    matches = _sentences().get(form)
    if matches is None:
        return "unknown", None
    kind, _, origin = matches[0]
    if all(of is None for _, of, _ in matches):
        return kind, origin
    if any(of == problem for _, of, _ in matches) and named <= {product}:
        return kind, origin
    return "wrong", origin


@cache
def _sentences() -> dict[str, list[tuple[str, str | None, str]]]:
    """From a normalised sentence with open slots to its kind, problem and form."""
    table: dict[str, list[tuple[str, str | None, str]]] = {}
    for text, kind, problem, origin in inventory():
        key = split_sentences(text)[0]
        table.setdefault(key, []).append((kind, problem, origin))
    return table


@cache
def _statements() -> dict[str, str]:
    """From a normalised statement with an open product to the problem it states."""
    return {
        split_sentences(wording)[0]: problem
        for problem in PROBLEMS
        for split in SPLITS
        for wording in wordings(problem, split=split)
    }
