"""Models, rewards and prompts for the benchmarks: the embedded ones, and random ones of a given size and entropy.

Every setup gives the same models to the naive loop (plain transformers objects) and to Alignstar (the same objects on
an engine), so that both can be run in one process and their ids compared.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from alignstar.aligner import Aligner
from alignstar.bench.naive import Judge
from alignstar.engine import Engine
from alignstar.models.hf.checkpoint import open_classifier
from alignstar.models.hf.classifier import HFClassifier
from alignstar.models.hf.codec import HFCodec, load_tokenizer
from alignstar.models.hf.language import HFModel
from alignstar.models.hf.network import HeadReadout, LogitsReadout, Network
from alignstar.rewards import Reward, combine
from alignstar.rewards.classifier import ClassifierReward
from alignstar.types import Message, Prompt

KV_TOKENS = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What one row of a benchmark runs on. End-of-sequence is a token like any other, so that lengths are equal.

    `mean` and `std` standardise the reward, `clip` bounds it at +-clip after that (None: no range is declared).
    """

    name: str
    model: Any
    tokenizer: Any
    judge: Judge
    prompts: tuple[Prompt, ...]
    mean: float
    std: float
    clip: float | None

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

    def aligner(self) -> Aligner:
        """The same models on an engine of their own, cold."""
        engine, device = Engine(), torch.device("cpu")
        config = self.model.config
        network = Network(
            self.name, self.model, LogitsReadout(self.model, config.vocab_size), config=config, device=device
        )
        model = HFModel(
            network,
            engine,
            vocab_size=config.vocab_size,
            eos_ids=frozenset(),
            max_context=config.max_position_embeddings,
            kv_tokens=KV_TOKENS,
        )
        judge = self.judge.model
        heads = HFClassifier(
            Network(
                f"{self.name} reward", judge.base_model, HeadReadout(judge.score), config=judge.config, device=device
            ),
            engine,
            labels=1,
            max_context=judge.config.max_position_embeddings,
            kv_tokens=KV_TOKENS,
        )
        reward: Reward = combine.standardise(
            ClassifierReward(heads, self.judge.tokenizer, end_of_turn="never"), self.mean, self.std
        )
        if self.clip is not None:
            reward = combine.clip(reward, -self.clip, self.clip)
        codec = HFCodec(self.tokenizer, name=self.name)
        codec.eos_ids = frozenset()
        return Aligner(baseline=model, reward=reward, codec=codec, engine=engine)


def demo_setup(clip: float | None, prompts: int) -> Setup:
    """The embedded baseline and source reward on the demo's prompts."""
    from alignstar.demo import model_dir
    from alignstar.demo import prompts as messages

    folder, reward = model_dir("baseline"), model_dir("reward_source")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    classifier, reading = open_classifier(str(reward), torch.float32)
    tokenizer = load_tokenizer(str(folder))
    settings = json.loads((reward / "alignstar.json").read_text(encoding="utf-8"))
    codec = HFCodec(tokenizer)
    return Setup(
        name="demo",
        model=model,
        tokenizer=tokenizer,
        judge=Judge(classifier, reading),
        prompts=tuple(codec.prompt(text) for text in messages("evaluation")[:prompts]),
        mean=float(settings["mean"]),
        std=float(settings["std"]),
        clip=clip,
    )


def random_setup(
    clip: float | None, prompts: int, *, prompt_tokens: int, entropy: tuple[float, float] = (1.5, 2.0), seed: int = 0
) -> Setup:
    """A Llama shape of 30 M parameters with random weights, its logits scaled to an entropy, and such a classifier."""
    shape: dict[str, Any] = {
        "vocab_size": 4096,
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "max_position_embeddings": 2048,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
        "initializer_range": 0.05,
    }
    torch.manual_seed(seed)
    model: Any = LlamaForCausalLM(LlamaConfig(**shape)).eval()
    judging: dict[str, Any] = {**shape, "num_labels": 1}
    classifier: Any = LlamaForSequenceClassification(LlamaConfig(**judging)).eval()
    tokenizer = _words(shape["vocab_size"])
    generator = torch.Generator().manual_seed(seed)
    made = [_random_prompt(tokenizer, prompt_tokens, generator) for _ in range(prompts)]
    _scale_logits(model, [p.ids for p in made], entropy)
    judge = Judge(classifier, tokenizer)
    mean, std = _reference(model, judge, made)
    return Setup(
        name=f"30M, prompt {prompt_tokens}",
        model=model,
        tokenizer=tokenizer,
        judge=judge,
        prompts=tuple(made),
        mean=mean,
        std=std,
        clip=clip,
    )


def mean_entropy(model: Any, sequences: Sequence[Sequence[int]]) -> float:
    """Mean entropy of the next-token law over all positions of the sequences [nats]."""
    with torch.inference_mode():
        laws = [torch.log_softmax(model(input_ids=torch.tensor([list(s)])).logits[0].double(), -1) for s in sequences]
    return float(torch.cat([-(law.exp() * law).sum(-1) for law in laws]).mean())


def _words(size: int) -> Any:
    """One token per word w0, w1, ...: text and ids say the same."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    inner = Tokenizer(models.WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def _random_prompt(tokenizer: Any, length: int, generator: torch.Generator) -> Prompt:
    ids = torch.randint(0, len(tokenizer), (length,), generator=generator).tolist()
    text = tokenizer.decode(ids)
    # The blank keeps the prompt's last word and the reply's first apart.
    return Prompt(messages=(Message(role="user", content=f"{text} "),), text=text, ids=tuple(ids))


def _scale_logits(model: Any, sequences: Sequence[Sequence[int]], entropy: tuple[float, float]) -> None:
    """Multiply the output matrix until the mean entropy lies in the interval: bisection on the factor's logarithm."""
    weight = model.lm_head.weight.data.clone()
    low, high = -8.0, 8.0
    for _ in range(40):
        middle = (low + high) / 2
        model.lm_head.weight.data = weight * 2.0**middle
        found = mean_entropy(model, sequences)
        if entropy[0] <= found <= entropy[1]:
            return
        low, high = (middle, high) if found > entropy[1] else (low, middle)


def _reference(model: Any, judge: Judge, prompts: Sequence[Prompt]) -> tuple[float, float]:
    """Mean and standard deviation of raw rewards over sampled continuations of the prompts."""
    torch.manual_seed(1)
    scores: list[torch.Tensor] = []
    with torch.inference_mode():
        for prompt in prompts[:4]:
            rows = model.generate(
                torch.tensor([prompt.ids] * 16), do_sample=True, max_new_tokens=20, pad_token_id=0, top_k=0
            )
            scores.append(judge.of_ids(rows.tolist()))
    raw = torch.cat(scores).double()
    return float(raw.mean()), float(raw.std())
