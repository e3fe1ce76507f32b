"""The recipes of `alignstar train`: names, types and bounds. Opens no model and reads no data.

Every relative path of a recipe is relative to where the command runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeAlias, TypeVar

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import AfterValidator, BeforeValidator, ValidationError

from alignstar.errors import OptionError
from alignstar.evaluate.recipe import Section, Source, sourced
from alignstar.evaluate.recipe_file import read_file, refused
from alignstar.layers.choice import checked, may_cut
from alignstar.train.settings import Settings

Positive: TypeAlias = Annotated[int, Ge(1)]
Rate: TypeAlias = Annotated[float, Gt(0), Le(1)]


class Rows(Source):
    """The rows to learn from: `rows` of them, chosen by `seed`; all of them where it is null."""

    rows: Positive | None = None
    seed: int = 0


Data: TypeAlias = Annotated[Rows, BeforeValidator(sourced)]


class Lora(Section):
    """Low-rank adapters instead of all weights; `alpha` null is twice the rank.

    `targets` names the linear layers (null: all of them). With `merge` the whole model is written, not the adapter.
    """

    rank: Positive = 16
    alpha: Annotated[float, Gt(0)] | None = None
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    targets: list[str] | None = None
    merge: bool = False


class WeightsRecipe(Section):
    """What every training of a model's weights is told.

    A null `learning_rate` is the kind's own, ten times that with `lora`. `checkpoint_every` is in steps, or below 1 a
    share of all steps.
    """

    FULL_RATE: ClassVar[float] = 1e-5

    model: str
    out: str
    lora: Lora | None = None
    batch_size: Positive = 16
    learning_rate: Rate | None = None
    checkpoint_every: Annotated[float, Gt(0)] = 0.1
    log_every: Positive = 10
    seed: Annotated[int, Ge(0)] = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    @property
    def rate(self) -> float:
        """The learning rate, null resolved."""
        if self.learning_rate is not None:
            return self.learning_rate
        return self.FULL_RATE * (1 if self.lora is None else 10)


class TrainingRecipe(WeightsRecipe):
    """What every training on rows is told; `Settings` says what the numbers mean.

    `held_out` is the share of the prompts that is held out (null: a tenth), or `held_out_data` are other rows. Rows of
    more than `max_length` tokens are left out.
    """

    data: Data
    held_out: Annotated[float, Ge(0), Lt(1)] | None = None
    held_out_data: Data | None = None
    epochs: Annotated[float, Gt(0)] = 1.0
    max_steps: Positive | None = None
    accumulate: Positive = 1
    max_length: Positive = 1024
    patience: Positive | None = None

    @property
    def share(self) -> float:
        """The share of the prompts of `data` that is held out."""
        return 0.1 if self.held_out is None else self.held_out

    def settings(self) -> Settings:
        """What the trainer is told; the device is still as the recipe says."""
        return Settings(
            learning_rate=self.rate, epochs=self.epochs, max_steps=self.max_steps, batch_size=self.batch_size,
            accumulate=self.accumulate, seed=self.seed, checkpoint_every=self.checkpoint_every,
            patience=self.patience, log_every=self.log_every, device=self.device,
        )  # fmt: skip


class SFTRecipe(TrainingRecipe):
    """`alignstar train sft`: the rows' answers are learnt, of a preference the chosen one."""

    FULL_RATE: ClassVar[float] = 2e-5


LayerChoice: TypeAlias = Annotated[str, AfterValidator(checked)]
"""Which layers, in words: see `alignstar.layers.choice`."""


class RewardRecipe(TrainingRecipe):
    """`alignstar train reward`: a score per conversation from preferences; `center` weighs its pull to zero.

    `layers` says which are trained and where the head is; those above it are cut off. Null: all, by the recipe's rules.
    `pool` is how the state of a conversation is taken to find l*: the mean over its tokens, or its last one's.
    """

    center: Annotated[float, Ge(0)] = 0.01
    layers: LayerChoice | None = None
    pool: Literal["mean", "last"] = "mean"


class DPORecipe(TrainingRecipe):
    """`alignstar train dpo`: direct preference optimisation; `beta` is the weight of the KL divergence."""

    FULL_RATE: ClassVar[float] = 1e-6

    beta: Annotated[float, Gt(0)] = 0.1


class PolicyRecipe(WeightsRecipe):
    """`alignstar train policy`: a language model on the rewards of groups; `alignstar.train.maxmin` has the objectives.

    The prompts are those of `data`. `groups` are reward lines, one per group; `prior` their weights in the pool (null:
    equal). Every step draws `responses` for each of `batch_size` / `responses` prompts. With `standardise` a group's
    reward is brought to mean 0 and variance 1 over `reference` responses of the model that training starts from.
    """

    FULL_RATE: ClassVar[float] = 1e-6

    data: Data
    groups: Annotated[list[str], MinLen(1)]
    objective: Literal["maxmin", "pointwise", "pooled"] = "maxmin"
    prior: list[Annotated[float, Gt(0)]] | None = None
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.0
    standardise: bool = True
    reference: Annotated[int, Ge(2)] = 256
    beta: Annotated[float, Ge(0)] = 0.1
    max_steps: Positive = 200
    batch_size: Positive = 32
    responses: Annotated[int, Ge(2)] = 4
    max_new_tokens: Positive = 128
    temperature: Annotated[float, Gt(0)] = 1.0


class ValueRecipe(Section):
    """`alignstar train value`; docs/papers.md says what the losses are."""

    model: str
    prompts: str
    reward: str | list[str]
    out: str
    loss: Literal["fudge", "cd-q", "transfer-q"] = "fudge"
    layer: Positive | LayerChoice | None = None
    rank: Annotated[int, Ge(0)] = 32
    width: Annotated[int, Ge(0)] = 0
    branch: Annotated[int, Ge(0)] = 0
    branch_learning_rate: Rate = 5e-4
    responses: Positive = 4
    max_new_tokens: Positive = 128
    top_m: Positive = 8
    k: Positive = 10
    alpha: Annotated[float, Gt(0)] = 1.0
    rollout_len: Annotated[int, Ge(0)] | None = None
    epochs: Positive = 10
    batch_size: Positive = 512
    learning_rate: Rate = 3e-3
    seed: int = 0
    device: str = "auto"
    concurrency: Positive = 32


R = TypeVar("R", bound=Section)


def read_training_recipe(path: Path, schema: type[R], **instead: object) -> R:
    """The recipe in a .yaml or .toml file, with values `instead` of its own, None for none of them.

    Raises OptionError with file, key, rule and remedy.
    """
    given = {**read_file(path), **{name: value for name, value in instead.items() if value is not None}}
    try:
        recipe = schema.model_validate(given)
    except ValidationError as error:
        raise refused(error, schema, name=str(path)) from None
    if isinstance(recipe, TrainingRecipe):
        _check(recipe, name=str(path))
    return recipe


def _check(recipe: TrainingRecipe, *, name: str) -> None:
    """What no single key can be blamed for."""
    if recipe.held_out is not None and recipe.held_out_data is not None:
        raise OptionError(f"{name}: held_out={recipe.held_out:g} and held_out_data exclude each other; drop one.")
    if recipe.patience is not None and recipe.held_out == 0:
        raise OptionError(f"{name}: patience={recipe.patience} needs held-out rows and held_out is 0; raise it.")
    if isinstance(recipe, RewardRecipe) and recipe.layers is not None and recipe.lora is not None:
        if recipe.layers == "head":
            raise OptionError(f"{name}: layers=head trains no layer, so lora has nothing to adapt; leave lora out.")
        if may_cut(recipe.layers) and not recipe.lora.merge:
            raise OptionError(
                f"{name}: layers={recipe.layers} cuts off layers, and an adapter would be put on the uncut base; set "
                "lora.merge: true."
            )
    if recipe.checkpoint_every > 1 and recipe.checkpoint_every != int(recipe.checkpoint_every):
        raise OptionError(
            f"{name}: checkpoint_every={recipe.checkpoint_every:g} must be whole steps, or a share below 1; round it."
        )
