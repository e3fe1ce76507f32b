"""Texts with labels, as token ids: what the variability of layers is measured on.

A row is a preference (in any form that an evaluation reads: its better and its worse conversation become a text each,
labelled chosen and rejected), or it has a `text` and a `label`, of two kinds or more. Knows a tokenizer and no model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from alignstar.errors import OptionError, PromptError
from alignstar.evaluate.data import rank, raw_rows
from alignstar.evaluate.recipe import Source
from alignstar.evaluate.rows import example
from alignstar.train.encode import EncodedPair, Reader
from alignstar.types import Ids

REJECTED, CHOSEN = "rejected", "chosen"


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """N texts and the class of each, a place in `names`; so many rows were `too_long`."""

    texts: tuple[Ids, ...]
    labels: tuple[int, ...]
    names: tuple[str, ...]
    too_long: int = 0


def of_pairs(pairs: Iterable[EncodedPair]) -> Labelled:
    """Preferences as texts of two classes."""
    texts = tuple(ids for pair in pairs for ids in (pair.rejected, pair.chosen))
    return Labelled(texts=texts, labels=(0, 1) * (len(texts) // 2), names=(REJECTED, CHOSEN))


def read_labelled(
    source: Source, tokenizer: PreTrainedTokenizerBase, *, name: str, rows: int | None, max_tokens: int, seed: int = 0
) -> Labelled:
    """`rows` rows of a source, chosen by `seed` (None: all), those of more than `max_tokens` tokens left out.

    `name` is what messages call the tokenizer's model. Raises PromptError with file and line for a row of neither form,
    OptionError for a source that cannot be read, and where there are fewer than two classes.
    """
    given = list(raw_rows(source))
    if rows is not None:
        chosen = sorted(range(len(given)), key=lambda place: rank(seed, place))[:rows]
        given = [given[place] for place in sorted(chosen)]
    reader = Reader(tokenizer, name=name)
    found = [_read(row, where, source, reader, tokenizer) for where, row in given]
    fitting = [texts for texts in found if all(len(ids) <= max_tokens for _, ids in texts)]
    names = sorted({label for texts in fitting for label, _ in texts}, key=lambda label: (label != REJECTED, label))
    if len(names) < 2:
        raise OptionError(
            f"{source.source!r} gives {len(names)} kind(s) of texts of at most {max_tokens} tokens in {len(given)} "
            "rows; layers are told apart by how they separate two kinds or more."
        )
    return Labelled(
        texts=tuple(ids for texts in fitting for _, ids in texts),
        labels=tuple(names.index(label) for texts in fitting for label, _ in texts),
        names=tuple(names),
        too_long=len(found) - len(fitting),
    )


def _read(
    row: Any, where: str, source: Source, reader: Reader, tokenizer: PreTrainedTokenizerBase
) -> list[tuple[str, Ids]]:
    """(label, token ids) of a row's texts."""
    match row:
        case {"text": str(text), "label": str() | int() as label}:
            return [(str(label), tuple(cast("list[int]", tokenizer(text)["input_ids"])))]
        case {"label": _}:
            raise PromptError(
                f"{where}: a labelled row needs a text under text, and a text or a whole number as label."
            )
        case _:
            read = example(row, where=where, columns=source.columns, dialogue=source.dialogue)
    if read.chosen is None or read.rejected is None:
        raise PromptError(f"{where}: has not two answers; give rows with chosen and rejected, or with text and label.")
    pair = reader.pair(read)
    return [(REJECTED, pair.rejected), (CHOSEN, pair.chosen)]
