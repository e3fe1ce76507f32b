"""Rewards that are computed from the reply's text alone: length, regex, keywords, repetition.

They know no model and no tokenizer: words are what `WORD` finds. Each declares its range.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Literal

from alignstar.errors import OptionError
from alignstar.meter import current_meter
from alignstar.types import Prompt, Reply

WORD = re.compile(r"\w+|[^\w\s]")
"""A run of word characters, or one punctuation mark: the offline stand-in for NLTK's word_tokenize."""


class RuleReward:
    """A function of the reply's text, with its bounds."""

    def __init__(self, name: str, rule: Callable[[str], float], *, range: tuple[float, float] | None) -> None:
        self.name = name
        self.range = range
        self._rule = rule

    async def score(self, prompt: Prompt, replies: Sequence[Reply]) -> list[float]:
        """The rule's number for each reply's text."""
        current_meter().add("rm_calls", len(replies))
        return [self._rule(reply.text) for reply in replies]


def length(
    *,
    min_words: int | None = None,
    max_words: int | None = None,
    target_words: int | None = None,
    min_characters: int | None = None,
    max_characters: int | None = None,
    target_characters: int | None = None,
) -> RuleReward:
    """1 for a reply inside the bounds, falling linearly to 0; range [0, 1].

    Below a minimum m a length n scores n/m, above a maximum m it scores 1 - (n-m)/m, at least 0; a target is both. Of
    several bounds the worst counts. Words are divided by white space. Raises OptionError without a bound, for a bound
    below 1, and for a minimum above a maximum.
    """
    bounds = {
        "words": _bounds("words", min_words, max_words, target_words),
        "characters": _bounds("characters", min_characters, max_characters, target_characters),
    }
    if all(bound is None for band in bounds.values() for bound in band):
        raise OptionError("rule:length has no bound; give one, such as max_words=50.")

    def rule(text: str) -> float:
        sizes = {"words": len(text.split()), "characters": len(text)}
        return min(_inside(sizes[unit], *band) for unit, band in bounds.items())

    return RuleReward("rule:length", rule, range=(0.0, 1.0))


def _bounds(unit: str, low: int | None, high: int | None, target: int | None) -> tuple[int | None, int | None]:
    for name, bound in (("min", low), ("max", high), ("target", target)):
        if bound is not None and bound < 1:
            raise OptionError(f"{name}_{unit}={bound} must be at least 1.")
    if target is not None and (low is not None or high is not None):
        raise OptionError(f"target_{unit}={target} excludes min_{unit} and max_{unit}; give one or the other.")
    if low is not None and high is not None and low > high:
        raise OptionError(f"min_{unit}={low} must not exceed max_{unit}={high}.")
    return (low, high) if target is None else (target, target)


def _inside(n: int, low: int | None, high: int | None) -> float:
    if low is not None and n < low:
        return n / low
    if high is not None and n > high:
        return max(0.0, 1 - (n - high) / high)
    return 1.0


def regex(
    *,
    pattern: str,
    mode: Literal["present", "count"] = "present",
    weight: float = 1.0,
    max_count: int | None = None,
) -> RuleReward:
    """`weight` for a reply in which the pattern is found (mode "present"), or times the number of matches ("count").

    `max_count` bounds the count, and with it the range; a count without it has none. Matches do not overlap. A negative
    weight punishes. Raises OptionError for a pattern that is no regular expression and for numbers out of bounds.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise OptionError(f"pattern={pattern!r} is no regular expression ({error}); correct it.") from error
    if mode not in ("present", "count"):
        raise OptionError(f"mode={mode!r} is unknown. Known: present, count.")
    if not math.isfinite(weight):
        raise OptionError(f"weight={weight} must be a finite number.")
    if max_count is not None and max_count < 1:
        raise OptionError(f"max_count={max_count} must be at least 1; leave it out to count without a limit.")
    most = 1 if mode == "present" else max_count

    def rule(text: str) -> float:
        if mode == "present":
            return weight if compiled.search(text) else 0.0
        count = sum(1 for _ in compiled.finditer(text))
        return weight * (count if most is None else min(count, most))

    bounds = None if most is None else (min(0.0, weight * most), max(0.0, weight * most))
    return RuleReward("rule:regex", rule, range=bounds)


def keywords(*, present: Sequence[str] = (), absent: Sequence[str] = ()) -> RuleReward:
    """Share of the wishes that a reply fulfils: words (or phrases) that are `present`, and words that are `absent`.

    Whole words, in any case; range [0, 1]. Raises OptionError without a word.
    """
    wishes = [(_whole_word(word), True) for word in present] + [(_whole_word(word), False) for word in absent]
    if not wishes:
        raise OptionError("rule:keywords has no word; give some, such as present=sorry,refund.")

    def rule(text: str) -> float:
        return sum((word.search(text) is not None) == wanted for word, wanted in wishes) / len(wishes)

    return RuleReward("rule:keywords", rule, range=(0.0, 1.0))


def _whole_word(word: str) -> re.Pattern[str]:
    if not word.strip():
        raise OptionError("rule:keywords has an empty word; leave it out.")
    return re.compile(rf"(?<!\w){re.escape(word.strip())}(?!\w)", re.IGNORECASE)


def rep_n(text: str, n: int, *, plus_one: bool = True) -> float:
    """Percentage of n-grams that repeat an earlier one, in [0, 100].

    100 (1 - distinct / (all + 1)) as the published evaluation counts it, so that no text reaches 0; without `plus_one`
    the definition of contrastive search (Su et al. 2022), with 0 for a text that is too short to have an n-gram.
    """
    return repeated(WORD.findall(text), n, plus_one=plus_one)


def repeated(words: Sequence[str], n: int, *, plus_one: bool) -> float:
    """`rep_n` of a text's words."""
    grams = max(0, len(words) - n + 1)
    if not grams and not plus_one:
        return 0.0
    distinct = len(set(zip(*(words[i:] for i in range(n)), strict=False)))
    return 100 * (1 - distinct / (grams + plus_one))


def diversity(text: str, *, plus_one: bool = True) -> float:
    """Product over n = 2, 3, 4 of 1 - rep_n / 100, in [0, 1]; 1 is free of repetition (Su et al. 2022)."""
    return math.prod(1 - rep_n(text, n, plus_one=plus_one) / 100 for n in (2, 3, 4))


def repetition(*, n: int | None = None, plus_one: bool = True) -> RuleReward:
    """Freedom from repetition: the diversity of the reply, or 1 - rep_n / 100 for one `n`; range [0, 1].

    Raises OptionError for n < 1.
    """
    if n is not None and n < 1:
        raise OptionError(f"n={n} must be at least 1; leave it out for the diversity over n = 2, 3, 4.")

    def rule(text: str) -> float:
        return diversity(text, plus_one=plus_one) if n is None else 1 - rep_n(text, n, plus_one=plus_one) / 100

    return RuleReward("rule:repetition", rule, range=(0.0, 1.0))
