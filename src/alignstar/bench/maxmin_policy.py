"""The policies of `bench maxmin`: low-rank adapters on the SFT model, trained on the rewards that were learnt."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignstar.bench.maxmin_world import Learned, World
from alignstar.demo.customers import message
from alignstar.demo.people import Reply
from alignstar.demo.settings import MAX_NEW_TOKENS
from alignstar.sampling import Array
from alignstar.train.common import lora_config, run_trainer, trainer_options
from alignstar.train.generation import generate_answers
from alignstar.train.maxmin import Objective
from alignstar.train.policy import Answered, Fairness, policy_trainer
from alignstar.train.recipes import Lora
from alignstar.train.settings import Settings
from alignstar.types import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How a policy is trained; `batch` counts responses, `responses` of them to a prompt."""

    steps: int = 40
    batch: int = 64
    responses: int = 4
    beta: float = 0.2
    learning_rate: float = 2e-3
    rank: int = 16
    samples: int = 4


class Silent:
    """A Watcher that tells nobody."""

    def begin(self, *, total: int, done: int) -> None:
        """See Watcher."""

    def stepped(self, step: int, values: object) -> None:
        """See Watcher."""

    def looked(self, step: int, values: object) -> None:
        """See Watcher."""


def trainer_of(
    world: World, course: Course, *, on_train: Callable[[object], None] = lambda _: None
) -> Callable[[Learned, str, int], list[list[Reply]]]:
    """(rewards, objective, seed) -> `samples` replies of the trained policy to each message of the pool.

    `pooled` is plain RLHF on the pooled reward; the others train on the groups' rewards. `on_train` is told the log.
    """

    def train(learned: Learned, objective: str, seed: int) -> list[list[Reply]]:
        heads = learned.pooled[None] if objective == "pooled" else learned.groups
        chosen: Objective = "pointwise" if objective == "pointwise" else "maxmin"  # of one group they are the same

        def scores(answers: Sequence[Answered]) -> Array:
            exchanges = [(m[-1].content, Reply(text=r.text, complete=r.complete)) for m, r in answers]
            return world.features(exchanges) @ heads.T

        rng = random.Random(f"alignstar bench maxmin policy {seed}")
        asked = {message(rng, split="train").text: None for _ in range(course.steps * course.batch // course.responses)}
        settings = Settings(
            learning_rate=course.learning_rate, max_steps=course.steps, batch_size=course.batch, seed=seed,
            log_every=10,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as scratch:
            trainer, reward = policy_trainer(
                world.policy(), tokenizer=world.tokenizer,
                prompts=[(Message(role="user", content=text),) for text in asked], scores=scores,
                fairness=Fairness(objective=chosen), options=trainer_options(settings, output_dir=Path(scratch)),
                beta=course.beta, responses=course.responses, max_new_tokens=MAX_NEW_TOKENS,
                lora=lora_config(Lora(rank=course.rank), task="CAUSAL_LM"),
            )  # fmt: skip
            fitted = run_trainer(trainer, settings, watcher=Silent())
        on_train((fitted.log, reward.standing))
        texts = [text for text in world.pool.messages for _ in range(course.samples)]
        answers = generate_answers(
            fitted.model, tokenizer=world.tokenizer, prompts=texts, max_new_tokens=MAX_NEW_TOKENS, seed=100 + seed
        )
        replies = [Reply(text=text, complete=ended) for text, ended in answers]
        return [replies[i : i + course.samples] for i in range(0, len(replies), course.samples)]

    return train
