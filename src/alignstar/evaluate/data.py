"""Prompts for an evaluation: JSON, JSON lines, CSV, Parquet (the first three also gzipped), hub data sets, functions.

Every row is recognised by its keys (`alignstar.evaluate.rows`); one that is not is an error with its file and line.
What is too long, or a prompt that an earlier row has too, is left out and counted. Subsampling gives each row a rank
of its own: more prompts add to fewer, and a row's rank depends on its place and the seed alone.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from alignstar.errors import OptionError, PromptError
from alignstar.evaluate.recipe import Data, Source
from alignstar.evaluate.rows import Example, example
from alignstar.rewards.function import load_function
from alignstar.types import Message

SEEN = "the same prompt as an earlier row"
"""Why a row is skipped: a prompt twice would count one opinion twice."""

KINDS = (".jsonl", ".json", ".csv", ".parquet")

CountTokens = Callable[[tuple[Message, ...]], int]
"""How many tokens a prompt has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The examples chosen, in the source's order, and what became of the others.

    `skipped` counts the rows that could not be used, by reason; `rows` is how many there were.
    """

    examples: tuple[Example, ...]
    skipped: Mapping[str, int]
    rows: int


def read_sample(data: Data, *, count_tokens: CountTokens | None = None) -> Sample:
    """Read the source and choose. `count_tokens` is needed where the recipe limits tokens.

    Raises PromptError with file and line for a bad row, OptionError for a source that cannot be read, and for fewer
    prompts than were asked for.
    """
    examples = read_examples(data)
    skipped: Counter[str] = Counter()
    fitting: dict[tuple[Message, ...], tuple[int, Example]] = {}
    for place, one in enumerate(examples):
        reason = SEEN if one.prompt in fitting else _too_long(one, data, count_tokens)
        if reason is None:
            fitting[one.prompt] = (place, one)
        else:
            skipped[reason] += 1
    wanted = len(fitting) if data.prompts is None else data.prompts
    if wanted > len(fitting) or not fitting:
        left = "".join(f", {n} are {reason}" for reason, n in skipped.items())
        raise OptionError(
            f"data.prompts={data.prompts}, but of the {len(examples)} rows of {data.source!r} {len(fitting)} can be "
            f"used{left}; ask for fewer."
        )
    best = sorted(fitting.values(), key=lambda numbered: rank(data.seed, numbered[0]))[:wanted]
    chosen = tuple(one for _, one in sorted(best, key=lambda numbered: numbered[0]))
    return Sample(examples=chosen, skipped=dict(skipped), rows=len(examples))


def _too_long(one: Example, data: Data, count_tokens: CountTokens | None) -> str | None:
    characters, tokens = data.max_prompt_characters, data.max_prompt_tokens
    if characters is not None and len(one.shown) > characters:
        return f"longer than {characters} characters"
    if tokens is not None and count_tokens is not None and count_tokens(one.prompt) > tokens:
        return f"longer than {tokens} tokens"
    return None


def read_examples(data: Source) -> list[Example]:
    """Every row of the source as an example. Raises as `read_sample` does."""
    return [example(row, where=where, columns=data.columns, dialogue=data.dialogue) for where, row in raw_rows(data)]


def rank(seed: int, key: object) -> bytes:
    """The place of `key` in the order of `seed`: what is chosen by it does not depend on what else there is."""
    return hashlib.blake2b(f"{seed}|{key}".encode(), digest_size=16).digest()


def raw_rows(data: Source) -> Iterator[tuple[str, Any]]:
    """(where it stands, row) of every row."""
    source = data.source
    if source is None:
        raise OptionError("data.source is null: nobody has said where the prompts are; fill it in.")
    if source.startswith("python:"):
        return _called(source, data.split)
    path = Path(source)
    suffixes = [s for s in path.suffixes if s != ".gz"]
    if suffixes and suffixes[-1] in KINDS:
        return _file(path, suffixes[-1])
    if path.exists():
        raise OptionError(f"Data file {source!r} must end in one of {', '.join(KINDS)} (or that and .gz); rename it.")
    from alignstar.evaluate.hub import hub_rows

    return hub_rows(source, config=data.config, split=data.split)


def _called(source: str, split: str | None) -> Iterator[tuple[str, Any]]:
    function = cast("Callable[..., Iterable[Any]]", load_function(source.removeprefix("python:")))
    rows = function() if split is None else function(split)
    return ((f"{source}, row {n}", row) for n, row in enumerate(rows, start=1))


def _file(path: Path, kind: str) -> Iterator[tuple[str, Any]]:
    try:
        if kind == ".parquet":
            from alignstar.evaluate.hub import parquet_rows

            yield from parquet_rows(path)
            return
        with _opened(path) as file:
            yield from {".jsonl": _json_lines, ".json": _json_list, ".csv": _csv}[kind](file, str(path))
    except OSError as error:
        reason = error.strerror or str(error)
        raise OptionError(f"Data file {str(path)!r} cannot be read ({reason}); check the path.") from error
    except UnicodeDecodeError as error:
        raise PromptError(f"Data file {str(path)!r} is not UTF-8 text ({error.reason}); save it as UTF-8.") from error


def _opened(path: Path) -> IO[str]:
    # csv wants line ends as they are, and JSON strings may hold other line separators than "\n".
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _json_lines(file: IO[str], name: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield f"{name}, line {number}", _json(line, f"{name}, line {number}")


def _json_list(file: IO[str], name: str) -> Iterator[tuple[str, Any]]:
    rows = _json(file.read(), name)
    if not isinstance(rows, list):
        raise PromptError(f"{name} must hold a list of objects; write one, or one object per line in a .jsonl file.")
    for number, row in enumerate(cast("Sequence[Any]", rows), start=1):
        yield f"{name}, row {number}", row


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise PromptError(f"{where}: not JSON ({error.msg}, column {error.colno}); correct it.") from error


def _csv(file: IO[str], name: str) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.DictReader(file, strict=True)
    try:
        for row in reader:
            where = f"{name}, line {reader.line_num}"
            if None in row or None in row.values():
                raise PromptError(f"{where}: has not as many cells as the first line has names; correct it.")
            yield where, row
    except csv.Error as error:
        raise PromptError(f"{name}, line {reader.reader.line_num}: not CSV ({error}); correct it.") from error
