"""What a text may go on with, guessed from texts that went on: what lets one forward decide several tokens.

A guess costs nothing but its place in a forward and can change no token: the model's own choice decides at every
position whether the next guess is read at all (prompt look-up decoding, Saxena 2023; Leviathan et al. 2023,
arXiv:2211.17192, for greedy choices). Knows token ids alone.
"""

from __future__ import annotations

from collections.abc import Sequence

ENDINGS = (8, 4, 2)
"""Lengths of the endings that are looked up. One of n tokens vouches for n guesses."""

REMEMBERED = 1 << 17
"""Endings in one generation; the generation before is kept beside it."""


class Guesses:
    """Where every short ending of the latest texts was last seen, and so what followed it."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, ...], tuple[list[int], int]] = {}
        self._before = self._seen

    def learn(self, text: list[int], start: int) -> None:
        """Take in text[start:]; the list is kept and may grow, but what it holds must stay."""
        if len(self._seen) > REMEMBERED:
            self._before, self._seen = self._seen, {}
        for at in range(start, len(text)):
            for length in ENDINGS:
                if length <= at:
                    self._seen[tuple(text[at - length : at])] = (text, at)

    def after(self, text: Sequence[int], count: int) -> list[int]:
        """At most `count` tokens that followed the longest known ending of `text` when it was last seen."""
        for length in ENDINGS:
            key = tuple(text[-length:])
            found = self._seen.get(key) or self._before.get(key)
            if found is not None:
                source, at = found
                guessed: list[int] = []
                while len(guessed) < min(count, length) and at < len(source) + (len(guessed) if source is text else 0):
                    # A text that repeats itself is its own source: beyond its end stand the guesses.
                    guessed.append(source[at] if at < len(source) else guessed[at - len(source)])
                    at += 1
                return guessed
        return []
