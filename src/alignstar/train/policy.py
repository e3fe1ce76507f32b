"""A policy trained on the rewards of several groups, on trl's RLOOTrainer: its reward is what `maxmin` combines.

Every step draws `responses` responses per prompt from the policy, scores them for every group, combines the scores, and
takes one policy-gradient step on the combined reward minus beta log(pi / pi_0), whole responses, baseline by
leave-one-out (Ahmadian et al. 2024, arXiv:2402.14740). Knows prompts and a function that scores; not where rewards come
from.

Differs from Algorithm 1 of arXiv:2402.08925: 1) REINFORCE with a leave-one-out baseline instead of PPO.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias, cast

import numpy as np
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import ExportableState
from trl import RLOOConfig, RLOOTrainer

from alignstar.sampling import Array, Noise
from alignstar.train.maxmin import Objective, Scale, Standing, combine
from alignstar.types import Message, Reply

Answered: TypeAlias = tuple[tuple[Message, ...], Reply]
"""A conversation and a reply to it."""

GroupScores: TypeAlias = Callable[[Sequence[Answered]], Array]
"""The reward [n, U] that every group has for every reply, in the given order."""


MEAN, WEIGHT = "group {} reward", "group {} weight"
"""Of a row of the log: a group's mean reward on the scale that is trained on, and its weight on average so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fairness:
    """What is made of the groups' rewards; see `maxmin.combine`. `scale`: what they are standardised by (None: not)."""

    objective: Objective
    prior: tuple[float, ...] | None = None
    momentum: float = 0.0
    scale: Scale | None = None


class GroupReward:
    """The one reward function that the trainer calls, once for the batch of every step; keeps the groups' standing."""

    def __init__(
        self,
        scores: GroupScores,
        fairness: Fairness,
        *,
        prompts: Sequence[tuple[Message, ...]],
        eos_ids: frozenset[int],
        standing: Standing,
    ) -> None:
        self.standing = standing
        self.__name__ = fairness.objective  # what the trainer calls it in its log
        self._scores = scores
        self._fairness = fairness
        self._prompts = prompts
        self._eos_ids = eos_ids

    def __call__(
        self,
        *,
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        number: Sequence[int],
        log_metric: Callable[[str, float], None],
        **_: Any,
    ) -> list[float]:
        """One reward per completion; NaN, which the trainer leaves out, where a group has none that is finite."""
        texts = [text if isinstance(text, str) else text[0]["content"] for text in completions]
        rewards = self._scores(
            [
                (self._prompts[i], Reply(text=text, complete=ids[-1] in self._eos_ids, ids=tuple(ids)))
                for i, text, ids in zip(number, texts, completion_ids, strict=True)
            ]
        )
        told = self._fairness
        scaled = rewards if told.scale is None else told.scale(rewards)
        combined, self.standing = combine(
            scaled, objective=told.objective, standing=self.standing, prior=told.prior, momentum=told.momentum
        )
        usable = ~np.isnan(combined)
        for u, mean in enumerate(np.mean(scaled[usable], axis=0).tolist()):
            log_metric(MEAN.format(u), mean)
            log_metric(WEIGHT.format(u), self.standing.weights[u])
        log_metric("left out", float(np.mean(~usable)))
        return combined.tolist()


class KeepStanding(TrainerCallback, ExportableState):
    """Puts the groups' standing into every checkpoint."""

    def __init__(self, reward: GroupReward) -> None:
        self._reward = reward

    def state(self) -> dict[str, Any]:
        """See ExportableState."""
        return {"args": {}, "attributes": asdict(self._reward.standing)}


def standing_of(trainer_state: Mapping[str, Any]) -> Standing:
    """The groups' standing in the trainer_state.json of a checkpoint."""
    kept = trainer_state["stateful_callbacks"][KeepStanding.__name__]["attributes"]
    return Standing(means=tuple(kept["means"]), weights=tuple(kept["weights"]), steps=kept["steps"])


def policy_trainer(
    model: PreTrainedModel | PeftModel,
    *,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[tuple[Message, ...]],
    scores: GroupScores,
    fairness: Fairness,
    options: Mapping[str, Any],
    beta: float,
    responses: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    lora: LoraConfig | None = None,
    standing: Standing | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[RLOOTrainer, GroupReward]:
    """A trainer whose `train()` does it, and its reward.

    `options` are keyword arguments of every trainer of trl (`common.trainer_options`), with `max_steps`; the batch size
    counts responses and must be a multiple of `responses`. `beta` weighs the KL divergence of whole responses to the
    model as it is given [nats].
    """
    chat = tokenizer.chat_template is not None
    needed = options["max_steps"] * options["per_device_train_batch_size"] // responses
    rows = [{"prompt": _asked(prompts[i], chat), "number": i} for i in order(len(prompts), needed, options["seed"])]
    config = RLOOConfig(
        **options, beta=beta, num_generations=responses, max_completion_length=max_new_tokens, temperature=temperature,
        shuffle_dataset=False, log_completions=False,
    )  # fmt: skip
    ends = model.generation_config.eos_token_id if model.generation_config is not None else None
    eos_ids = frozenset([ends] if isinstance(ends, int) else ends or []) | {cast("int", tokenizer.eos_token_id)}
    reward = GroupReward(scores, fairness, prompts=prompts, eos_ids=eos_ids, standing=standing or Standing())
    trainer = RLOOTrainer(
        model=model, reward_funcs=cast("Any", reward), args=config, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, peft_config=lora, callbacks=[KeepStanding(reward), *callbacks],
    )  # fmt: skip
    return trainer, reward


def order(prompts: int, count: int, seed: int) -> list[int]:
    """Which prompt comes when: all of them before any comes again, every time in another order.

    The trainer's own shuffling would begin anew where a training goes on after its first pass.
    """
    passes = -(-count // prompts)
    shuffled = [
        np.argsort(Noise(seed=seed, purpose="prompts", step=i).uniform(0, prompts), kind="stable")
        for i in range(passes)
    ]
    return np.concatenate(shuffled)[:count].tolist()


def _asked(messages: tuple[Message, ...], chat: bool) -> Any:
    if chat:
        return [{"role": message.role, "content": message.content} for message in messages]
    return messages[-1].content  # a tokenizer without a template reads one text
