"""What is learnt from: rows of somebody's data, chosen, split into training and held-out ones, and counted.

Rows are read as for an evaluation (`alignstar.evaluate.data`): one that is not of a known form is an error with its
file and line. Knows no tokenizer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from alignstar.errors import OptionError, PromptError
from alignstar.evaluate.data import rank, read_examples
from alignstar.evaluate.rows import Example
from alignstar.train.recipes import Rows, TrainingRecipe

Need: TypeAlias = Literal["prompt", "answer", "pair"]

EQUAL = "have two equal answers"
EMPTY = "have an empty answer"
HELD_OUT = "have a prompt that is held out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The rows that are used, what became of the others (counts by reason), and how many the sources had.

    No prompt is both in `training` and in `held_out`.
    """

    training: tuple[Example, ...]
    held_out: tuple[Example, ...]
    left_out: Mapping[str, int] = field(default_factory=dict[str, int])
    rows: int

    def only(self, fits: Callable[[Example], bool], *, reason: str) -> Chosen:
        """Those that fit; the others are counted under `reason`. Raises OptionError where none is left to train on."""
        training, held_out = (tuple(e for e in some if fits(e)) for some in (self.training, self.held_out))
        lost = len(self.training) + len(self.held_out) - len(training) - len(held_out)
        left_out = {**self.left_out, reason: lost} if lost else self.left_out
        if not training:
            raise OptionError(f"No row is left to learn from: of {self.rows:,}, {told(left_out)}; change the data.")
        return Chosen(training=training, held_out=held_out, left_out=left_out, rows=self.rows)


def told(left_out: Mapping[str, int]) -> str:
    """The counts in words."""
    return ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())


def choose(recipe: TrainingRecipe, *, need: Need) -> Chosen:
    """The rows of a recipe.

    Raises PromptError with file and line for a bad row and for one without what is needed, OptionError for a source
    that cannot be read or has too few rows.
    """
    counts: Counter[str] = Counter()
    rows, training = read_usable(recipe.data, need, counts)
    if recipe.held_out_data is None:
        training, held_out = split(training, share=recipe.share, seed=recipe.seed)
    else:
        more, held_out = read_usable(recipe.held_out_data, need, counts)
        rows += more
        apart = {example.prompt for example in held_out}
        counts[HELD_OUT] += sum(example.prompt in apart for example in training)
        training = [example for example in training if example.prompt not in apart]
    everything = Chosen(training=tuple(training), held_out=tuple(held_out), left_out=+counts, rows=rows)
    return everything.only(lambda _: True, reason="")


def split(examples: Sequence[Example], *, share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples, apart by prompt: a `share` of the prompts (rounded, one at least) is held out.

    Who is held out is a function of the seed and the prompt, and more rows leave most of them where they are.
    """
    prompts = sorted(dict.fromkeys(e.prompt for e in examples), key=lambda prompt: rank(seed, prompt))
    count = max(1, round(share * len(prompts))) if share > 0 and len(prompts) > 1 else 0
    apart = set(prompts[:count])
    return [e for e in examples if e.prompt not in apart], [e for e in examples if e.prompt in apart]


def read_usable(source: Rows, need: Need, counts: Counter[str]) -> tuple[int, list[Example]]:
    """How many rows are chosen of a source, and those of them that can be used; `counts` takes the others by reason."""
    examples = read_examples(source)
    if source.rows is not None:
        if source.rows > len(examples):
            raise OptionError(f"data.rows={source.rows}, but {source.source!r} has {len(examples)}; ask for fewer.")
        chosen = sorted(range(len(examples)), key=lambda place: rank(source.seed, place))[: source.rows]
        examples = [examples[place] for place in sorted(chosen)]
    return len(examples), [e for e in examples if _usable(e, need, counts)]


def _usable(example: Example, need: Need, counts: Counter[str]) -> bool:
    if need == "prompt":
        return True
    if need == "pair":
        if example.chosen is None or example.rejected is None:
            raise PromptError(
                f"{example.where}: has not two answers; give rows with chosen and rejected, or name them in "
                "data.columns."
            )
        counts[EQUAL] += example.chosen == example.rejected
        return example.chosen != example.rejected
    if example.chosen is None:
        raise PromptError(
            f"{example.where}: has no answer to learn; give messages that end with an assistant's, a completion, or "
            "name it in data.columns."
        )
    counts[EMPTY] += not example.chosen.strip()
    return bool(example.chosen.strip())
