"""Rewards of some layers against rewards of all: accuracy, trained parameters, what scoring costs.

Every choice starts from the same model and the same head and learns from the same pairs for as long. A work gives
pairs: `thorough` and `brief`, the tastes of the embedded world's two groups on replies that its shop writes, or a file
of preferences. Held-out pairs have prompts of their own. Measures, and prints nothing.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from alignstar.demo import model_dir
from alignstar.demo.customers import message
from alignstar.demo.people import Reply, annotate, staff
from alignstar.demo.replies import reply
from alignstar.errors import OptionError
from alignstar.evaluate.data import rank, read_examples
from alignstar.evaluate.recipe import Source
from alignstar.evaluate.rows import Example
from alignstar.evaluate.statistics import Interval, by_prompt, mean_interval, paired_difference
from alignstar.layers.states import Pool
from alignstar.layers.variability import star_of
from alignstar.models.hf.codec import load_tokenizer
from alignstar.train.data import split
from alignstar.train.encode import EncodedPair, Reader, pad_for
from alignstar.train.layered import Layered, layered
from alignstar.train.reward import fit_reward, score_ids
from alignstar.train.settings import Settings
from alignstar.types import Message

CHOICES: Mapping[str, tuple[str, Pool]] = {
    "full": ("full", "mean"),
    "star": ("star", "mean"),
    "star, last states": ("star", "last"),
    "star_k(2)": ("star_k(2)", "mean"),
    "top_k(2)": ("top_k(2)", "mean"),
    "head": ("head", "mean"),
}
"""What is compared: a choice, and by which states l* is found. The first is what the others are compared with."""

TASTES = ("thorough", "brief")
SHARPNESS = 12.0
"""Nats per unit of true reward by which people choose, as where the embedded rewards were made."""

TIMED = 128
"""So many conversations are scored by the clock: the RM seconds."""

HEAD_RATE = 20.0
"""A head alone learns so many times faster: at the layers' rate it would stop far from its best."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How long and how fast every choice learns. `repeats` is how often scoring is timed."""

    epochs: float = 2.0
    batch_size: int = 16
    learning_rate: float = 1e-3
    seeds: int = 1
    repeats: int = 5
    device: str = "cpu"

    def clock(self) -> float:
        """Seconds; on a CPU those of this process alone, whoever else computes there."""
        return time.process_time() if self.device == "cpu" else time.perf_counter()


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Preferences as tokens of the model in `path`; `prompt` tells which held-out pairs share a prompt."""

    name: str
    path: str
    tokenizer: PreTrainedTokenizerBase
    training: tuple[EncodedPair, ...]
    held_out: tuple[EncodedPair, ...]
    prompt: tuple[int, ...]

    @property
    def texts(self) -> list[tuple[int, ...]]:
        """The held-out conversations, the preferred ones first."""
        return [pair.chosen for pair in self.held_out] + [pair.rejected for pair in self.held_out]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One choice. `band` is its first and last trained layer and its head's, `layers` are those that are kept.

    `accuracy` is on held-out pairs, the mean over seeds; `difference` is that minus the first choice's, pair by pair.
    `rm_seconds` are those of scoring the same `TIMED` conversations again and again, `reference_seconds` the first
    choice's, timed in turn with them; `time` is the median of their ratios. `work` is tokens x layers of scoring all
    held-out conversations, `share` that over the first choice's.
    """

    choice: str
    band: tuple[int, int, int]
    layers: int
    trained: int
    accuracy: Interval
    difference: Interval
    train_seconds: float
    rm_seconds: tuple[float, ...]
    reference_seconds: tuple[float, ...]
    time: float
    work: int
    share: float

    @property
    def verdict(self) -> Literal["within", "worse", "better"]:
        """`within` where the interval of the difference holds zero, which says no more than how wide it is."""
        if not self.difference.excludes_zero:
            return "within"
        return "worse" if self.difference.high < 0 else "better"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Everything measured on one work. `nu` is the variability by layer on its training pairs, `star` the least.

    Both by how a text's state is taken.
    """

    work: str
    training: int
    held_out: int
    layers: int
    total: int
    nu: dict[str, tuple[float, ...]]
    star: dict[str, int]
    rows: tuple[Row, ...]

    def as_json(self) -> dict[str, Any]:
        """Everything."""
        return asdict(self)


def threads_used(asked: int | None) -> int:
    """How many threads torch uses, which are `asked` from now on if that is a number."""
    if asked is not None:
        torch.set_num_threads(asked)
    return torch.get_num_threads()


def run(work: Work, course: Course, *, on_choice: Callable[[str], None] = lambda _: None) -> Outcome:
    """Every choice on one work; `on_choice` is told each before it starts."""
    trained: list[tuple[Layered, list[list[bool]], float, list[float]]] = []
    first: Any = None
    for name in CHOICES:
        on_choice(f"{work.name}: {name}")
        made, right, seconds = _learnt(work, course, *CHOICES[name])
        first = first or made.model
        times = _timed(work, course, first, made.model)
        trained.append((replace(made, model=None), right, seconds, times))  # two models at a time in memory
    positions = sum(len(text) for text in work.texts)
    reference = _by_prompt(work, trained[0][1])
    rows = [
        Row(
            choice=name,
            band=(made.band.bottom, made.band.top, made.band.head),
            layers=made.band.head,
            trained=made.trained,
            accuracy=mean_interval(_by_prompt(work, right)),
            difference=paired_difference(_by_prompt(work, right), reference),
            train_seconds=seconds,
            rm_seconds=tuple(times[1::2]),
            reference_seconds=tuple(times[::2]),
            time=statistics.median(b / a for a, b in zip(times[::2], times[1::2], strict=True)),
            work=positions * made.band.head,
            share=made.band.head / made.layers,
        )
        for name, (made, right, seconds, times) in zip(CHOICES, trained, strict=True)
    ]
    nu = {pool: made.nu for (_, pool), (made, *_) in zip(CHOICES.values(), trained, strict=True) if made.nu}
    return Outcome(
        work=work.name,
        training=len(work.training),
        held_out=len(work.held_out),
        layers=trained[0][0].layers,
        total=trained[0][0].total,
        nu=nu,
        star={pool: star_of(values) for pool, values in nu.items()},
        rows=tuple(rows),
    )


def demo_work(taste: str, *, pairs: int, held_out: int, path: str | None = None) -> Work:
    """One group's noisy choices between two replies that the shop's people write, to messages of both splits."""
    both = [_chosen_by(taste, n, of) for of, n in (("train", pairs), ("tuning", held_out))]
    return _work(taste, path or str(model_dir("sft")), both[0], both[1], (pairs, held_out), max_tokens=512)


def file_work(data: str, *, pairs: int, held_out: int, max_tokens: int, path: str | None = None) -> Work:
    """`pairs` rows of a file of preferences and up to `held_out` pairs of other prompts; long ones are left out.

    Prompts are parted in the ratio of the two numbers. Raises as `alignstar train` does for bad rows, OptionError
    where too few are left.
    """
    examples = [e for e in read_examples(Source(source=data)) if e.chosen is not None and e.rejected is not None]
    order = sorted(range(len(examples)), key=lambda at: rank(0, at))
    training, other = split([examples[at] for at in order], share=held_out / (pairs + held_out), seed=0)
    counts = (pairs, held_out)
    made = _work(Path(data).name, path or str(model_dir("sft")), training, other, counts, max_tokens=max_tokens)
    if len(made.training) < pairs or len(made.held_out) < 2:
        raise OptionError(
            f"pairs={pairs}, but {data!r} has {len(made.training)} to learn from and {len(made.held_out)} held out, of "
            f"at most {max_tokens} tokens; ask for fewer."
        )
    return made


def _chosen_by(taste: str, n: int, of: str) -> list[Example]:
    rng = random.Random(f"layers {taste} {of}")
    pairs: list[tuple[str, Reply, Reply]] = []
    while len(pairs) < n:
        asked = message(rng, split=of)
        first, second = (Reply(text=reply(rng, asked)) for _ in range(2))
        if first != second:
            pairs.append((asked.text, first, second))
    people = staff(thorough_share=float(taste == "thorough"), sharpness=SHARPNESS)
    return [
        Example(
            prompt=(Message(role="user", content=p.message),), where=f"pair {at}", chosen=p.chosen.text,
            rejected=p.rejected.text,
        )
        for at, p in enumerate(annotate(pairs, annotators=people, seed=len(pairs)))
    ]  # fmt: skip


def _work(
    name: str,
    path: str,
    training: Sequence[Example],
    held_out: Sequence[Example],
    counts: tuple[int, int],
    *,
    max_tokens: int,
) -> Work:
    """The first `counts` of both that are short enough."""
    tokenizer = load_tokenizer(path)
    reader = Reader(tokenizer, name=path)

    def read(examples: Sequence[Example], count: int) -> list[tuple[Example, EncodedPair]]:
        pairs = ((e, reader.pair(e)) for e in examples)
        short = ((e, pair) for e, pair in pairs if max(len(pair.chosen), len(pair.rejected)) <= max_tokens)
        return list(islice(short, count))

    learnt, kept = read(training, counts[0]), read(held_out, counts[1])
    pad_for(tokenizer, [ids for _, pair in (*learnt, *kept) for ids in (pair.chosen, pair.rejected)])
    prompts = {prompt: at for at, prompt in enumerate(dict.fromkeys(e.prompt for e, _ in kept))}
    return Work(
        name=name, path=path, tokenizer=tokenizer, training=tuple(pair for _, pair in learnt),
        held_out=tuple(pair for _, pair in kept), prompt=tuple(prompts[e.prompt] for e, _ in kept),
    )  # fmt: skip


def _learnt(work: Work, course: Course, choice: str, pool: Pool) -> tuple[Layered, list[list[bool]], float]:
    """The last seed's classifier, which held-out pairs each seed's orders rightly, and the seconds of training."""
    right: list[list[bool]] = []
    rate = course.learning_rate * (HEAD_RATE if choice == "head" else 1.0)
    settings = [
        Settings(
            learning_rate=min(1.0, rate), epochs=course.epochs, batch_size=course.batch_size, seed=seed,
            device=course.device,
        )
        for seed in range(course.seeds)
    ]  # fmt: skip
    began = course.clock()
    made: Layered | None = None
    for setting in settings:
        with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as scratch:
            torch.manual_seed(setting.seed)
            model = AutoModelForSequenceClassification.from_pretrained(work.path, num_labels=1, dtype=torch.float32)
            made = layered(model.to(course.device), choice, work.training, tokenizer=work.tokenizer, pool=pool)
            fit_reward(
                made.model, work.training, tokenizer=work.tokenizer, settings=setting, output_dir=Path(scratch),
                watcher=_Silent(),
            )  # fmt: skip
        scores = np.asarray(_scores(work, made.model, work.texts)).reshape(2, -1)
        right.append((scores[0] > scores[1]).tolist())
    assert made is not None
    return made, right, (course.clock() - began) / course.seeds


def _scores(work: Work, model: Any, texts: Sequence[tuple[int, ...]]) -> list[float]:
    return score_ids(model, texts, pad_id=cast("int", work.tokenizer.pad_token_id))


def _timed(work: Work, course: Course, first: Any, model: Any) -> list[float]:
    """Seconds of scoring with the first choice's model and with this one, in turn."""
    times: list[float] = []
    for _ in range(course.repeats):
        for scoring in (first, model):
            began = course.clock()
            _scores(work, scoring, work.texts[:TIMED])
            times.append(course.clock() - began)
    return times


def _by_prompt(work: Work, right: Sequence[Sequence[bool]]) -> list[float]:
    """The share of right orders, of every prompt."""
    prompts = [at for _ in right for at in work.prompt]
    values = [float(r) for one in right for r in one]
    return by_prompt(values, prompts, n_prompts=len(set(work.prompt))).tolist()


class _Silent:
    """A watcher that nobody watches."""

    def begin(self, *, total: int, done: int) -> None:
        """Nothing."""

    def stepped(self, step: int, values: Any) -> None:
        """Nothing."""

    def looked(self, step: int, values: Any) -> None:
        """Nothing."""
