"""The recipe of an evaluation: one YAML or TOML file, checked before anything is loaded.

A list among a method's options is a sweep: the entry becomes one method per combination. What is stored and compared is
the resolved recipe: every default filled in, sweeps expanded, options completed. Knows names, types and bounds; opens
no model and reads no data.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from alignstar.errors import NeedsError, OptionError, UserError
from alignstar.evaluate.recipe_file import read_file, refused
from alignstar.evaluate.rows import NEXT_TURN
from alignstar.methods import MODEL_ROLES
from alignstar.methods.presets import preset as preset_named
from alignstar.methods.roles import models_used
from alignstar.options import complete, roles
from alignstar.rewards.spec import parse_reward


class Section(BaseModel):
    """A part of a recipe: frozen, and nothing in it that is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def sourced(value: Any) -> Any:
    """A bare text is a source."""
    return {"source": value} if isinstance(value, str | list) else value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Parameters: TypeAlias = Annotated[float | None, Field(gt=0)]


class Checkpoint(Section):
    """A language model: a folder, a hub id, or package:NAME/FOLDER. A null source can be priced and not run."""

    source: str | None
    parameters: Parameters = None


class Models(Section):
    """The language models and the value model, or a function that opens them.

    `open` is python:MODULE:FUNCTION; called with `reward` and `baseline_reward` (a Reward or None) it gives an Aligner.
    `compile`: see `alignstar.load`.
    """

    sft: Annotated[Checkpoint | None, BeforeValidator(sourced)] = None
    baseline: Annotated[Checkpoint | None, BeforeValidator(sourced)] = None
    value: Annotated[Checkpoint | None, BeforeValidator(sourced)] = None
    open: Annotated[str | None, Field(pattern="^python:")] = None
    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False
    compile: bool = False

    @property
    def given(self) -> Mapping[str, Checkpoint]:
        """The checkpoints by role."""
        all_of_them = {"sft": self.sft, "baseline": self.baseline, "value": self.value}
        return {role: model for role, model in all_of_them.items() if model is not None}


class RewardEntry(Section):
    """Lines of the reward grammar, added up. "gold" ones are held out: they judge and guide nothing.

    "scored" ones do not judge either: they are shown for how far they are from the baseline's reward.
    """

    source: Annotated[list[str] | None, BeforeValidator(_listed)]
    role: Literal["reward", "baseline_reward", "gold", "scored"] = "gold"
    parameters: Parameters = None


class MethodEntry(Section):
    """A method or a preset with options; an option that is a list is swept."""

    method: str | None = None
    preset: str | None = None
    label: str | None = None
    options: dict[str, Any] = {}


class Source(Section):
    """Where rows come from: a file, a hub data set, or python:MODULE:FUNCTION (called with `split`, if given).

    `columns` says what the source calls prompt, chosen, rejected, ...; `dialogue` whether "Human: / Assistant:" texts
    become messages or stay one text.
    """

    source: str | None
    config: str | None = None
    split: str | None = None
    columns: dict[str, str] = {}
    dialogue: Literal["messages", "text"] = "messages"


class Data(Source):
    """The prompts of an evaluation. Of what fits the limits `prompts` are taken, by `seed`."""

    prompts: Annotated[int | None, Field(ge=1)] = None
    seed: int = 0
    max_prompt_characters: Annotated[int | None, Field(ge=1)] = None
    max_prompt_tokens: Annotated[int | None, Field(ge=1)] = None


class Normalised(Section):
    """Labels of the two methods that the normalised reward calls 1 and 0; null: the baseline's rival and the worst."""

    reference: str | None = None
    lowest: str | None = None


class Metrics(Section):
    """What the report computes of a run beside the rewards.

    `diversity_plus_one`: rep-n as ARGS counts it. `coherence`: the sentence encoder's folder or hub id.
    """

    diversity_plus_one: bool = True
    coherence: str | None = None
    normalised: Normalised = Normalised()


class Pricing(Section):
    """What a dry run takes for granted where no model is opened: mean prompt tokens and size of the vocabulary."""

    prompt_tokens: Annotated[int, Field(ge=1)] = 64
    vocabulary: Annotated[int, Field(ge=1)] = 32000


class Recipe(Section):
    """The file. `baseline` is the label of the method that others are compared with (null: the first).

    `trace` is for how many of the prompts the steps are stored; `concurrency` how many responses are decoded together.
    `stop` null: NEXT_TURN, where the data are written out as turns, so that no reply goes on with a turn of its own.
    """

    name: str
    about: str = ""
    models: Models
    rewards: dict[str, Annotated[RewardEntry, BeforeValidator(sourced)]] = {}
    methods: Annotated[list[MethodEntry], Field(min_length=1)]
    data: Annotated[Data, BeforeValidator(sourced)]
    metrics: Metrics = Metrics()
    pricing: Pricing = Pricing()
    baseline: str | None = None
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0]
    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    stop: Annotated[list[str] | None, BeforeValidator(_listed)] = None
    chat: bool | None = None
    truncate: Literal["left"] | None = None
    trace: Annotated[int, Field(ge=0)] = 3
    concurrency: Annotated[int, Field(ge=1)] = 16

    @property
    def unknown(self) -> list[str]:
        """What must be filled in before the recipe can run: sources that are null."""
        models = [f"models.{role}" for role, model in self.models.given.items() if model.source is None]
        rewards = [f"rewards.{name}" for name, reward in self.rewards.items() if not reward.source]
        return models + rewards + ([] if self.data.source else ["data"])

    def reward_in(self, role: str) -> str | None:
        """The name of the reward in a role."""
        return next((name for name, reward in self.rewards.items() if reward.role == role), None)


class Entry(Section):
    """One method of a resolved recipe: no sweep, every option there."""

    label: str
    method: str
    options: dict[str, Any]
    chat: bool | None


class Resolved(Section):
    """A recipe that was found in order, and its methods with sweeps expanded."""

    recipe: Recipe
    entries: list[Entry]

    @property
    def baseline(self) -> str:
        """The label of the method that others are compared with."""
        return self.recipe.baseline or self.entries[0].label

    def stopping(self, *, written_out: bool) -> Resolved:
        """The same with `stop` filled in; `written_out` says what the data are."""
        given = self.recipe.stop
        stop = given if given is not None else [NEXT_TURN] if written_out else []
        return self.model_copy(update={"recipe": self.recipe.model_copy(update={"stop": stop})})

    def as_json(self) -> dict[str, Any]:
        """What is stored: the recipe with every default, `methods` being the entries."""
        whole = self.recipe.model_dump(mode="json")
        return {**whole, "methods": [e.model_dump(mode="json") for e in self.entries], "baseline": self.baseline}


def read_recipe(path: str | Path) -> Resolved:
    """Read and check a recipe's file. Raises OptionError or NeedsError, with file, key, rule and remedy."""
    return resolve(read_file(Path(path)), name=str(path))


def resolve(given: Mapping[str, Any], *, name: str = "recipe") -> Resolved:
    """Check a recipe that was read already; `name` is what messages call it. Raises as `read_recipe` does."""
    try:
        recipe = Recipe.model_validate(dict(given))
    except ValidationError as error:
        raise refused(error, Recipe, name=name) from None
    try:
        _check_rewards(recipe)
        entries = [entry for one in recipe.methods for entry in _expanded(one, recipe)]
        _check_labels(entries, recipe)
        for entry in entries:
            _check_needs(entry, recipe)
    except UserError as error:
        raise type(error)(f"{name}: {error}") from None
    return Resolved(recipe=recipe, entries=entries)


def _check_rewards(recipe: Recipe) -> None:
    if recipe.models.open is None and not recipe.models.given:
        raise OptionError("models names no model; give sft, baseline or both.")
    if recipe.models.open is not None and recipe.models.given:
        raise OptionError("models.open opens all models itself; leave out sft and baseline, or open.")
    if recipe.models.open is not None and recipe.models.compile:
        raise OptionError("models.compile=true is for models opened by their paths, not by models.open; leave it out.")
    for role in ("reward", "baseline_reward"):
        having = [name for name, reward in recipe.rewards.items() if reward.role == role]
        if len(having) > 1:
            raise OptionError(f"rewards {', '.join(having)} have the role {role}, which one can have; make one gold.")
    for reward in recipe.rewards.values():
        for line in reward.source or ():
            parse_reward(line)


def _expanded(entry: MethodEntry, recipe: Recipe) -> list[Entry]:
    """One per combination of the swept options, the last one fastest."""
    chosen = None if entry.preset is None else preset_named(entry.preset)
    method = entry.method or ("" if chosen is None else chosen.method)
    if not method:
        raise OptionError("A method's entry has neither method nor preset; write one, `alignstar methods` lists them.")
    if chosen is not None and chosen.method != method:
        raise OptionError(f"preset={entry.preset!r} belongs to method={chosen.method!r}, not {method!r}; drop one.")
    for ours in ("seed", "max_new_tokens"):
        if ours in entry.options:
            raise OptionError(f"{ours!r} is the whole recipe's, not an option of {method}; write it at the top level.")
    swept = {name: value for name, value in entry.options.items() if isinstance(value, list)}
    made: list[Entry] = []
    for combination in itertools.product(*swept.values()):
        varied = dict(zip(swept, combination, strict=True))
        given = {**entry.options, **varied, "max_new_tokens": recipe.max_new_tokens}
        options = complete(method, given, chosen)
        label = " ".join([entry.label or entry.preset or method, *(f"{n}={_shown(v)}" for n, v in varied.items())])
        made.append(
            Entry(
                label=label,
                method=method,
                options={n: v for n, v in options.items() if n != "seed"},
                chat=recipe.chat if recipe.chat is not None or chosen is None else chosen.chat,
            )
        )
    if not made:
        empty = next(name for name, value in swept.items() if not value)
        raise OptionError(f"{empty} of {method} is an empty list, which leaves nothing to run; give it a value.")
    return made


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _check_labels(entries: list[Entry], recipe: Recipe) -> None:
    labels = [entry.label for entry in entries]
    double = next((label for label in labels if labels.count(label) > 1), None)
    if double is not None:
        raise OptionError(f"Two methods are called {double!r}; give one of them a label of its own.")
    normalised = recipe.metrics.normalised
    for asked in (recipe.baseline, normalised.reference, normalised.lowest):
        if asked is not None and asked not in labels:
            raise OptionError(f"No method is called {asked!r}; known: {', '.join(labels)}.")


def _check_needs(entry: Entry, recipe: Recipe) -> None:
    """Every model and reward that the method asks for is there. A stranger's models show only when they are opened."""
    if recipe.models.open is not None:
        return
    given = frozenset(recipe.models.given)
    used = models_used(entry.options, given)
    there = given | {role for role in MODEL_ROLES if recipe.reward_in(role) is not None}
    for need in roles(entry.method):
        if need.name not in there and (need.required or need.name in used):
            where = "rewards, with that role" if need.name.endswith("reward") else "models"
            raise NeedsError(f"{entry.label!r} needs the {need.name}, which the recipe has not; add it to {where}.")
