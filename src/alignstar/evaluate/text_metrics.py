"""What can be said of replies without a reward: repetition, diversity, coherence, and where another turn begins.

rep-n and diversity as ARGS (Khanov et al. 2024, arXiv:2402.01694) and Transfer Q* report them, and in the plain form of
contrastive search (Su et al. 2022, arXiv:2202.06417). Coherence is the cosine of two sentence embeddings, by whatever
encoder is given; its name belongs beside the figure. Knows text and arrays only.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from alignstar.rewards.rules import WORD, repeated
from alignstar.sampling import Array

SIMCSE = "princeton-nlp/sup-simcse-bert-base-uncased"
"""The encoder of the coherence that ARGS and Transfer Q* report (Gao et al. 2021, arXiv:2104.08821)."""


TOKENIZER = f"words and marks, {WORD.pattern}"
"""What rep-n counts. NLTK's word_tokenize, which ARGS uses, differs in contractions and in some marks."""

ORDERS = (2, 3, 4)
"""The n of the rep-n that make up the diversity."""

_NEXT_TURN = re.compile(r"human\s*:", re.IGNORECASE)


def cut_at_next_turn(text: str) -> str:
    """`text` up to the next "Human:" turn that the model wrote by itself, in any case; the whole of it without one."""
    turn = _NEXT_TURN.search(text)
    return text if turn is None else text[: turn.start()].rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Repetition:
    """rep-n [%] for n = 2, 3, 4, the diversity, the product of their 1 - rep-n/100, in [0, 1], and the words."""

    rep: tuple[float, ...]
    diversity: float
    words: int


def repetition_of(text: str, *, plus_one: bool = True) -> Repetition:
    """What repeats in a reply, an empty one being " "; the counts are those of `alignstar.rewards.rules`."""
    words = WORD.findall(text)  # an empty text and " " have the same: none
    rep = tuple(repeated(words, n, plus_one=plus_one) for n in ORDERS)
    return Repetition(rep=rep, diversity=math.prod(1 - r / 100 for r in rep), words=len(words))


class SentenceEncoder(Protocol):
    """Turns texts into vectors of one length; deterministic."""

    @property
    def name(self) -> str:
        """What the figure is reported under."""
        ...

    def embed(self, texts: Sequence[str]) -> Array:
        """Vectors [len(texts), d], in order."""
        ...


_MOST = 1 << 16
"""From so many of a kind on, more weigh no more."""


class HashedNgrams:
    """A SentenceEncoder that needs no model: counts of words and pairs of words, hashed into `size` places.

    Cosines of it tell how many words two texts share, not whether they mean the same: no substitute for a trained
    encoder, and reported under its own name. Every count enters as 1 + log(count); case is folded.
    """

    def __init__(self, size: int = 1024) -> None:
        self.size = size
        self.name = f"hashed words and pairs of words ({size})"
        self._places = _Places(size)
        self._weights = np.append(0.0, 1 + np.log(np.arange(1, _MOST + 1)))

    def embed(self, texts: Sequence[str]) -> Array:
        """See SentenceEncoder."""
        return np.array([self._vector(text) for text in texts]).reshape(len(texts), self.size)

    def _vector(self, text: str) -> Array:
        words = np.array([self._places[word] for word in WORD.findall(text.casefold())], dtype=np.int64)
        pairs = (words[:-1] * 31 + words[1:] * 17 + 7) % self.size
        counts = np.bincount(np.concatenate([words, pairs]), minlength=self.size)
        return self._weights[np.minimum(counts, _MOST)]


class _Places(dict[str, int]):
    """Where a word is counted: its checksum, which is the same on every machine."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def __missing__(self, word: str) -> int:
        place = self[word] = zlib.crc32(word.encode()) % self._size
        return place


class Coherence:
    """Cosine of each reply's sentence embedding with its prompt's; equal prompts are embedded once."""

    def __init__(self, encoder: SentenceEncoder) -> None:
        self.encoder = encoder
        self._prompts: dict[str, Array] = {}

    def __call__(self, prompts: Sequence[str], replies: Sequence[str]) -> Array:
        """Cosines [len(replies)], all embedded in one go; NaN where an embedding is zero (an empty reply)."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._prompts]
        if new:
            self._prompts |= zip(new, _unit(self.encoder.embed(new)), strict=True)
        asked = np.array([self._prompts[prompt] for prompt in prompts])
        return (asked * _unit(self.encoder.embed(replies))).sum(axis=1) if len(replies) else np.zeros(0)


def sentence_encoder(source: str | None) -> SentenceEncoder:
    """The encoder of a local folder or of an id in the local cache ("simcse": SIMCSE); None: HashedNgrams.

    Nothing is ever fetched. Raises ModelError for one that is not here.
    """
    if source is None:
        return HashedNgrams()
    from alignstar.models.hf.sentences import HFSentenceEncoder

    return HFSentenceEncoder(SIMCSE if source == "simcse" else source)


def _unit(vectors: Array) -> Array:
    """Vectors of length 1; NaN for the zero vector."""
    with np.errstate(invalid="ignore"):
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
