"""A language model that is a table: small enough for every trajectory to be enumerated, exact in float64.

Knows the contracts of `models`, `rewards` and `text`, and nothing of methods. Token ids are 0.. for the letters A, B,
..., then the end-of-sequence token(s); the codec's padding and BOS come after the model's vocabulary. What a request
costs is charged as a transformers backend would charge it, so costs can be checked by counting.
"""

from __future__ import annotations

import asyncio
import functools
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from alignstar.errors import ModelError, PromptError
from alignstar.meter import current_meter
from alignstar.models import Continuation, Top, Within
from alignstar.sampling import GREEDY, Array, IntArray, Noise, Sampling, drawn_scores, log_softmax, near_tie, top_ids
from alignstar.text import as_messages
from alignstar.types import Ids, Message, Prompt, Reply


def letters_to_ids(text: str) -> Ids:
    """Ids of a text of capital letters: A is 0."""
    return tuple(string.ascii_uppercase.index(letter) for letter in text)


class ToyModel:
    """A TokenModel whose next-token law is a pure function of the prefix.

    `rule` gives log-probabilities [vocab_size] for a prefix. The last `n_eos` tokens of the vocabulary end a response.
    """

    def __init__(
        self,
        rule: Callable[[Ids], Array],
        *,
        vocab_size: int,
        n_eos: int = 1,
        name: str = "toy",
        max_context: int | None = None,
        tie_tolerance: float = 1e-12,
        default_sampling: Sampling = GREEDY,
    ) -> None:
        self._rule = rule
        self._cache: dict[Ids, Array] = {}
        self.vocab_size = vocab_size
        self.eos_ids = frozenset(range(vocab_size - n_eos, vocab_size))
        self.name = name
        self.max_context = max_context
        self.tie_tolerance = tie_tolerance
        self.default_sampling = default_sampling

    @classmethod
    def random(
        cls,
        seed: int,
        vocab_size: int = 4,
        *,
        order: int | None = None,
        eos_weight: float = 1.0,
        ties: bool = False,
        temperature: float = 1.0,
        zeros: float = 0.0,
        n_eos: int = 1,
        name: str | None = None,
        max_context: int | None = None,
    ) -> ToyModel:
        """A model with a random law per state, a function of the last `order` tokens (None: of the whole prefix).

        At `temperature` 1 each law is uniform on the simplex, below it is more peaked. `eos_weight` multiplies the
        odds of ending, `ties` rounds logits to whole nats so that exact ties abound, `zeros` is the share of tokens
        that have probability 0 in a state.
        """

        @functools.cache
        def law_of(state: Ids) -> Array:
            noise = Noise(seed=seed, purpose=f"toy law {state}")
            logits = noise.gumbel(0, vocab_size) / temperature
            logits[vocab_size - n_eos :] += np.log(eos_weight)
            if ties:
                logits = np.round(logits)
            impossible = noise.uniform(1, vocab_size) < zeros
            impossible[np.argmax(logits)] = False
            return log_softmax(np.where(impossible, -np.inf, logits))

        def rule(prefix: Ids) -> Array:
            return law_of(prefix if order is None else prefix[max(0, len(prefix) - order) :])

        name = f"toy {seed}" if name is None else name
        return cls(rule, vocab_size=vocab_size, n_eos=n_eos, name=name, max_context=max_context)

    @classmethod
    def from_table(
        cls,
        table: Mapping[str, Sequence[float]] | Mapping[Ids, Sequence[float]],
        *,
        prompt: Ids = (),
        default: ToyModel | None = None,
        n_eos: int = 1,
        name: str = "toy table",
        max_context: int | None = None,
    ) -> ToyModel:
        """A model from probabilities [vocab_size] per prefix; each key (ids, or letters) stands after `prompt`.

        Prefixes that are not in the table follow `default` (None: all tokens equally likely). Raises ModelError for
        rows of different length or rows that do not sum to one.
        """
        laws: dict[Ids, Array] = {}
        for key, row in table.items():
            with np.errstate(divide="ignore"):
                laws[prompt + (letters_to_ids(key) if isinstance(key, str) else key)] = np.log(np.asarray(row, float))
            if abs(sum(row) - 1.0) > 1e-9:
                raise ModelError(f"Row {key!r} sums to {sum(row)}; probabilities sum to 1, divide by the sum.")
        sizes = {len(law) for law in laws.values()}
        if len(sizes) != 1:
            raise ModelError(f"Rows have the lengths {sorted(sizes)}; give every row one probability per token.")
        vocab_size = sizes.pop()
        uniform = np.full(vocab_size, -np.log(vocab_size))

        def rule(prefix: Ids) -> Array:
            law = laws.get(prefix)
            if law is not None:
                return law
            return uniform if default is None else default.law(prefix)

        return cls(rule, vocab_size=vocab_size, n_eos=n_eos, name=name, max_context=max_context)

    def law(self, prefix: Ids) -> Array:
        """Next-token log-probabilities [vocab_size] after `prefix`, free of charge: for tests and enumeration."""
        if prefix not in self._cache:
            self._cache[prefix] = self._rule(prefix)
        return self._cache[prefix]

    def trajectories(self, prefix: Ids, max_new_tokens: int) -> Iterator[tuple[Ids, float]]:
        """Every response of positive probability and its log-probability; responses end with EOS or at the limit."""
        stack: list[tuple[Ids, float]] = [((), 0.0)]
        while stack:
            ids, logp = stack.pop()
            if len(ids) == max_new_tokens or (ids and ids[-1] in self.eos_ids):
                yield ids, logp
                continue
            law = self.law(prefix + ids)
            stack.extend(((*ids, int(z)), logp + float(law[z])) for z in np.flatnonzero(np.isfinite(law))[::-1])

    async def continue_(
        self,
        prefix: Ids,
        *,
        max_new_tokens: int,
        n: int = 1,
        sampling: Sampling = GREEDY,
        noise: Noise | None = None,
        stop_at_eos: bool = True,
        top: Within | None = None,
    ) -> list[Continuation]:
        """See Sampler."""
        await asyncio.sleep(0)
        draw = _Draw(self, sampling, max_new_tokens, stop_at_eos, top)
        if sampling.greedy:
            rows = [draw.row(prefix, None)] * n
        else:
            assert noise is not None, "drawing needs noise"
            rows = [draw.row(prefix, replace(noise, rollout=noise.rollout + i)) for i in range(n)]
        if max_new_tokens > 0:
            pushed = [row.ids[:-1] for row in (rows[:1] if sampling.greedy else rows)]
            calls = max(len(ids) for ids in pushed) + 1
            current_meter().forward(self, prefix, pushed, generated=True, calls=calls)
        return rows

    async def top_next(self, prefix: Ids, k: int | None = None) -> Top:
        """See TokenModel."""
        await asyncio.sleep(0)
        current_meter().forward(self, prefix, calls=1)
        return self.best(self.law(prefix), self.vocab_size if k is None else k)

    async def next_logprobs(self, prefix: Ids, ids: IntArray) -> Array:
        """See TokenModel."""
        await asyncio.sleep(0)
        current_meter().forward(self, prefix, calls=1)
        law = self.law(prefix)
        return np.array([law[z] if 0 <= z < self.vocab_size else -np.inf for z in ids], dtype=np.float64)

    async def logprobs(self, prefix: Ids, continuation: Ids) -> Array:
        """See TokenModel."""
        await asyncio.sleep(0)
        if continuation:
            current_meter().forward(self, prefix, [continuation[:-1]], calls=1)
        return np.array([self.law(prefix + continuation[:j])[z] for j, z in enumerate(continuation)])

    def best(self, law: Array, within: Within) -> Top:
        """The best tokens of a law: `within` a count or a distance in nats from the best one."""
        order = top_ids(law, self.vocab_size)
        ranked = law[order]
        kept = within if isinstance(within, int) else int(np.sum(ranked >= ranked[0] - within))
        kept = min(kept, int(np.sum(np.isfinite(ranked))))
        doubt = near_tie(ranked[kept - 1 : kept + 1], self.tie_tolerance)
        return Top(ids=order[:kept], logps=ranked[:kept], near_tie=doubt)


@dataclass(frozen=True, slots=True)
class _Draw:
    """How `continue_` draws one row."""

    model: ToyModel
    sampling: Sampling
    max_new_tokens: int
    stop_at_eos: bool
    top: Within | None

    def row(self, prefix: Ids, noise: Noise | None) -> Continuation:
        """One continuation; `noise` None is greedy."""
        ids: Ids = ()
        logps: list[float] = []
        tops: list[Top] = []
        near_ties, ended = 0, False
        while len(ids) < self.max_new_tokens and not (ended and self.stop_at_eos):
            law = self.model.law(prefix + ids)
            scores, tolerance = law, self.model.tie_tolerance
            if noise is not None:
                scores = drawn_scores(law, self.sampling, noise, len(prefix) + len(ids))
                tolerance /= self.sampling.temperature
            z = int(np.argmax(scores))
            near_ties += near_tie(scores, tolerance)
            if self.top is not None:
                tops.append(self.model.best(law, self.top))
            ids += (z,)
            logps.append(float(law[z]))
            ended = z in self.model.eos_ids
        return Continuation(ids=ids, logps=np.array(logps), ended=ended, near_ties=near_ties, tops=tuple(tops))


class ToyCodec:
    """The toy vocabulary as text: letters, `n_eos` end tokens, then padding and BOS, which no toy model can emit."""

    def __init__(self, vocab_size: int = 4, *, bos: bool = False, n_eos: int = 1) -> None:
        self.letters = string.ascii_uppercase[: vocab_size - n_eos]
        self.eos_ids = frozenset(range(vocab_size - n_eos, vocab_size))
        self.pad_id = vocab_size
        self.bos_id = vocab_size + 1
        self.bos = bos

    def prompt(self, request: str | Sequence[Message], *, chat: bool | None = None) -> Prompt:
        """See Codec. There is no chat template: the messages' contents are joined."""
        messages = as_messages(request)
        text = "".join(message.content for message in messages)
        unknown = sorted(set(text) - set(self.letters))
        if unknown:
            raise PromptError(f"Prompt {text!r} has {unknown[0]!r}; the toy vocabulary is {self.letters!r}, use that.")
        if not text and not self.bos:
            raise PromptError("The prompt is empty and there is no BOS token; give at least one letter.")
        ids = ((self.bos_id,) if self.bos else ()) + letters_to_ids(text)
        return Prompt(messages=messages, text=text, ids=ids)

    def decode(self, ids: Ids, *, special: bool = False) -> str:
        """See Codec. Special tokens are written </s>, <pad> and <s>."""
        return "".join(self._token(z, special) for z in ids)

    def _token(self, z: int, special: bool) -> str:
        if z < len(self.letters):
            return self.letters[z]
        if not special:
            return ""
        return {self.pad_id: "<pad>", self.bos_id: "<s>"}.get(z, "</s>")


class ToyReward:
    """A reward from a table; texts outside it get a number in [low, high] that is a pure function of seed and text.

    `table` maps (text, complete) to the reward. `nan` holds texts that are scored NaN. `declared` says whether the
    range is declared (that the table's values lie within it is then the caller's promise). Its tokens are characters.
    """

    def __init__(
        self,
        table: Mapping[tuple[str, bool], float] | None = None,
        *,
        seed: int = 0,
        low: float = 0.0,
        high: float = 1.0,
        declared: bool = False,
        nan: frozenset[str] = frozenset(),
        name: str = "toy reward",
    ) -> None:
        self.table = dict(table or {})
        self.seed = seed
        self.low = low
        self.high = high
        self.nan = nan
        self.name = name
        self.range = (low, high) if declared else None

    def value(self, prompt: Prompt, text: str, complete: bool) -> float:
        """The reward of one reply, free of charge: for tests and enumeration."""
        if text in self.nan:
            return float("nan")
        if (text, complete) in self.table:
            return self.table[text, complete]
        u = Noise(seed=self.seed, purpose=f"toy reward {prompt.text}|{text}|{complete}").uniform(0, 1)[0]
        return self.low + (self.high - self.low) * float(u)

    async def score(self, prompt: Prompt, replies: Sequence[Reply]) -> list[float]:
        """See Reward."""
        await asyncio.sleep(0)
        meter = current_meter()
        meter.add("rm_calls", len(replies))
        characters = tuple(ord(letter) for letter in prompt.text)
        meter.forward(self, characters, [tuple(ord(c) for c in reply.text) for reply in replies], reward=True)
        return [self.value(prompt, reply.text, reply.complete) for reply in replies]
