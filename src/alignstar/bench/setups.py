"""Models, rewards and prompts for the benchmarks: the embedded ones, and random ones of a given size and entropy.

A setup gives the same models to the plain loops (transformers objects) and to Alignstar (the same objects on an
engine), so that both can be run in one process and their ids compared.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from alignstar.aligner import Aligner
from alignstar.bench import random_models
from alignstar.bench.naive import Judge
from alignstar.engine import Engine
from alignstar.models.hf.checkpoint import open_classifier
from alignstar.models.hf.classifier import HFClassifier
from alignstar.models.hf.codec import HFCodec, load_tokenizer
from alignstar.models.hf.language import HFModel
from alignstar.models.hf.network import HeadReadout, LogitsReadout, Network, context_limit
from alignstar.models.hf.rows import Served
from alignstar.rewards import Reward, combine
from alignstar.rewards.classifier import ClassifierReward
from alignstar.types import Ids, Prompt

KV_TOKENS = 1 << 16


class WatchedHeads:
    """A classifier that keeps to itself what it held, so that a request's Usage tells the language model's positions.

    `held` is the most KV positions that the classifier held so far.
    """

    def __init__(self, heads: HFClassifier) -> None:
        self._heads = heads
        self.name = heads.name
        self.labels = heads.labels
        self.held = 0

    async def outputs(self, texts: Sequence[Ids]) -> Served[list[list[float]]]:
        """See rewards.classifier.Heads."""
        served = await self._heads.outputs(texts)
        self.held = max(self.held, served.held)
        return replace(served, held=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A setup's models on an engine of their own."""

    aligner: Aligner
    heads: WatchedHeads


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What one row of a benchmark runs on. End-of-sequence is a token like any other, so that lengths are equal.

    `mean` and `std` standardise the reward, `clip` bounds it at +-clip after that (None: no range is declared).
    `entropy` is the mean next-token entropy over the prompts' positions [nats]. `model` and `judge` are as transformers
    makes them; the engine, which lays weights out anew, has copies.
    """

    name: str
    model: Any
    tokenizer: Any
    judge: Judge
    prompts: tuple[Prompt, ...]
    mean: float
    std: float
    entropy: float
    clip: float | None = None

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self.model.device

    @cached_property
    def copies(self) -> tuple[Any, Any]:
        """The models that the engine runs: language model, classifier."""
        return copy.deepcopy(self.model), copy.deepcopy(self.judge.model)

    def judged(self, prompt: Prompt, rows: torch.Tensor) -> torch.Tensor:
        """Rewards of full rows of token ids for the naive loop: decode, render, one plain forward."""
        replies = [
            self.tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for row in rows[:, len(prompt.ids) :].tolist()
        ]
        raw = self.judge.of_ids([self._rendered(prompt, reply) for reply in replies])
        scores = (raw.to(torch.float64) - self.mean) / self.std
        return scores if self.clip is None else scores.clamp(-self.clip, self.clip)

    def _rendered(self, prompt: Prompt, reply: str) -> list[int]:
        tokenizer = self.judge.tokenizer
        if tokenizer.chat_template is None:
            return tokenizer(prompt.messages[0].content + reply)["input_ids"]
        turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
        turns.append({"role": "assistant", "content": reply})
        return tokenizer.apply_chat_template(turns, tokenize=True, continue_final_message=True, return_dict=True)[
            "input_ids"
        ]

    @contextmanager
    def opened(
        self, *, lm_kv: int = KV_TOKENS, rm_kv: int = KV_TOKENS, guesses: bool = True, judged: bool = True
    ) -> Generator[Opened]:
        """The same models on a cold engine; each holds at most so many positions.

        Without `guesses` a forward decides one token of a row. Without `judged` no response is scored at its end.
        """
        engine, device = Engine(), self.device
        own, judge = self.copies
        config = own.config
        model = HFModel(
            Network(self.name, own, LogitsReadout(own, config.vocab_size), config=config, device=device),
            engine,
            vocab_size=config.vocab_size,
            eos_ids=frozenset(),
            max_context=context_limit(config),
            kv_tokens=lm_kv,
            guesses=guesses,
        )
        readout = HeadReadout(judge.score)
        heads = WatchedHeads(
            HFClassifier(
                Network(f"{self.name} reward", judge.base_model, readout, config=judge.config, device=device),
                engine,
                labels=1,
                max_context=context_limit(judge.config),
                kv_tokens=rm_kv,
            )
        )
        reward: Reward = combine.standardise(
            ClassifierReward(heads, self.judge.tokenizer, end_of_turn="never"), self.mean, self.std
        )
        if self.clip is not None:
            reward = combine.clip(reward, -self.clip, self.clip)
        codec = HFCodec(self.tokenizer, name=self.name)
        codec.eos_ids = frozenset()
        with Aligner(baseline=model, reward=reward if judged else None, codec=codec, engine=engine) as aligner:
            yield Opened(aligner=aligner, heads=heads)


def demo_setup(prompts: int, *, device: str = "cpu") -> Setup:
    """The embedded baseline and the reward that it was aligned to, on held-out prompts of the demo."""
    from alignstar.demo import model_dir
    from alignstar.demo import prompts as messages

    folder = model_dir("baseline")
    codec = HFCodec(load_tokenizer(str(folder)))
    made = tuple(codec.prompt(text) for text in messages("evaluation")[:prompts])
    return _opened("demo", folder, model_dir("reward_source"), made, device)


def random_setup(
    prompts: int,
    *,
    prompt_tokens: int,
    scratch: Path,
    flat: bool = False,
    shape: random_models.Shape = random_models.SHAPE_30M,
    name: str = "30m",
    device: str = "cpu",
) -> Setup:
    """Random models of a shape, written under `scratch`, and random prompts of one length.

    The mean next-token entropy over the prompts is 1.5 to 2 nats; `flat`: above 4.
    """
    folder = scratch / f"{name}-{'flat-' if flat else ''}{prompts}x{prompt_tokens}"
    made = random_models.prompts(shape, count=prompts, length=prompt_tokens)
    if not folder.exists():
        random_models.write(folder, shape, made, entropy=random_models.FLAT if flat else random_models.PEAKED)
    title = f"{name}{', flat' if flat else ''}, prompt {prompt_tokens}"
    return _opened(title, folder / "baseline", folder / "reward", made, device)


def _opened(name: str, language: Path, reward: Path, prompts: tuple[Prompt, ...], device: str) -> Setup:
    loaded: Any = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32)
    model = loaded.eval().to(device)
    model.generation_config.eos_token_id = None
    classifier, reading = open_classifier(str(reward), torch.float32)
    scale = json.loads((reward / "alignstar.json").read_text(encoding="utf-8"))
    return Setup(
        name=name,
        model=model,
        tokenizer=load_tokenizer(str(language)),
        judge=Judge(torch.nn.Module.to(classifier, device), reading),
        prompts=prompts,
        mean=float(scale["mean"]),
        std=float(scale["std"]),
        entropy=random_models.mean_entropy(model, [p.ids for p in prompts]),
    )


def decision_entropy(setup: Setup, responses: tuple[Ids, ...]) -> float:
    """Mean next-token entropy of the states in which the responses' tokens were decided [nats]."""
    starts = [len(prompt.ids) - 1 for prompt in setup.prompts]
    sequences = [p.ids + ids[:-1] for p, ids in zip(setup.prompts, responses, strict=True)]
    return random_models.mean_entropy(setup.model, sequences, starts)
