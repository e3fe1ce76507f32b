"""What a recipe's names stand for: models and rewards opened, and what identifies them without opening anything.

Knows the recipe and how things are loaded; decodes nothing.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from alignstar.aligner import Aligner
from alignstar.errors import ModelError, NeedsError, OptionError
from alignstar.evaluate.recipe import Recipe
from alignstar.loading import load_judged, located
from alignstar.rewards import Reward
from alignstar.rewards.function import load_function
from alignstar.rewards.spec import RewardSpec, build_reward, parse_reward
from alignstar.text import Codec

IDENTIFYING = (".json", ".safetensors", ".model", ".txt", ".jinja")
"""Endings of the files of a checkpoint that decide what it says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """An aligner with the recipe's models and its optimised reward, and the other rewards by name."""

    aligner: Aligner
    optimised: str | None
    others: Mapping[str, Reward]

    def __enter__(self) -> World:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.aligner.close()


def open_world(recipe: Recipe) -> World:
    """Open everything that the recipe names; none of its sources is null. Raises what loading raises."""
    optimised, before = recipe.reward_in("reward"), recipe.reward_in("baseline_reward")
    lines = {name: reward.source or [] for name, reward in recipe.rewards.items()}
    gold = {name: lines[name] for name in lines if name not in (optimised, before)}
    models = recipe.models
    guiding: dict[str, Any] = {
        "reward": None if optimised is None else lines[optimised],
        "baseline_reward": None if before is None else lines[before],
    }
    if models.open is not None:
        aligner, others = _opened(models.open, guiding, gold)
    else:
        sources = {role: checkpoint.source for role, checkpoint in models.given.items()}
        how: dict[str, Any] = {"device": models.device, "dtype": models.dtype, "compile": models.compile}
        aligner, others = load_judged(gold, **sources, **guiding, **how, trust_remote_code=models.trust_remote_code)
    if before is not None:
        others = {before: aligner.rewards["baseline_reward"], **others}
    return World(aligner=aligner, optimised=optimised, others=others)


def open_codec(recipe: Recipe) -> Codec:
    """The tokenizer of the recipe's models, without their weights where that is possible. Raises as `open_world`."""
    if recipe.models.open is not None:
        return _opened(recipe.models.open, {"reward": None, "baseline_reward": None}, {})[0].codec
    from alignstar.models.hf.codec import HFCodec, load_tokenizer

    source = next(checkpoint.source for checkpoint in recipe.models.given.values())
    path = located(source or "")
    return HFCodec(load_tokenizer(path, trust_remote_code=recipe.models.trust_remote_code), name=path)


def _opened(
    opener: str, guiding: Mapping[str, list[str] | None], gold: Mapping[str, list[str]]
) -> tuple[Aligner, dict[str, Reward]]:
    """A stranger's models with rewards of lines; those that need a transformers model cannot be had beside them."""

    def build(lines: list[str] | None) -> Reward | None:
        if lines is None:
            return None
        specs = [parse_reward(line) for line in lines]
        return build_reward(specs, open_classifier_reward=_no_classifier, implicit=partial(_no_implicit, opener))

    open_models = cast("Any", load_function(opener.removeprefix("python:")))
    aligner = open_models(**{role: build(lines) for role, lines in guiding.items()})
    if not isinstance(aligner, Aligner):
        raise OptionError(f"models.open={opener!r} returned {type(aligner).__name__}; it must return an Aligner.")
    return aligner, {name: reward for name, lines in gold.items() if (reward := build(lines)) is not None}


def _no_classifier(path: str, **options: Any) -> Reward:
    raise NeedsError(
        f"Reward {path!r} needs models opened by their paths; use python:MODULE:FUNCTION beside models.open."
    )


def _no_implicit(opener: str, beta: float) -> Reward:
    raise NeedsError(
        f"The implicit reward needs models opened by their paths, not by {opener!r}; give sft and baseline."
    )


def identities(recipe: Recipe) -> dict[str, str]:
    """What decides what the models and rewards say, by place in the recipe: digests of files, commits of hub ids.

    Raises ModelError or OptionError for what is not there.
    """
    found = {f"models.{role}": identity_of(c.source) for role, c in recipe.models.given.items() if c.source is not None}
    if recipe.models.open is not None:
        found["models.open"] = _code(recipe.models.open.removeprefix("python:"))
    for name, reward in recipe.rewards.items():
        found[f"rewards.{name}"] = identity_of_reward(reward.source or ())
    return found


def identity_of_reward(lines: Sequence[str]) -> str:
    """What decides what reward lines say, beside their text: digests and commits of what they name."""
    return " + ".join(part for line in lines for part in _of_reward(parse_reward(line)))


def _of_reward(spec: RewardSpec) -> list[str]:
    """Of a reward's line what lies outside of the recipe."""
    if spec.kind == "classifier":
        return [identity_of(spec.target)]
    if spec.kind == "python":
        return [_code(spec.target)]
    return [part for inner in spec.parts for part in _of_reward(inner)]


def identity_of(source: str) -> str:
    """What decides what a checkpoint says: the digest of its files, or the commit of a hub id."""
    folder = Path(located(source)).expanduser()
    if not folder.is_dir():
        return f"{source}@{_commit(source)}"
    digest = hashlib.blake2b(digest_size=16)
    if (folder / "adapter_config.json").is_file():
        from alignstar.models.hf.adapters import base_of

        digest.update(identity_of(base_of(str(folder))).encode())
    for file in sorted(path for path in folder.iterdir() if path.suffix in IDENTIFYING):
        digest.update(f"{file.name}|{file.stat().st_size}|".encode())
        with file.open("rb") as content:
            while block := content.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _commit(name: str) -> str:
    """The commit of a hub id's files, those that the cache holds or would get."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    for file in ("config.json", "adapter_config.json"):
        try:
            return Path(hf_hub_download(name, file)).parent.name
        except RemoteEntryNotFoundError:
            continue
        except (OSError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise ModelError(
                f"{name!r} is no folder and cannot be fetched ({reason}); correct the path, or the id and the "
                "connection."
            ) from error
    raise ModelError(f"{name!r} holds neither config.json nor adapter_config.json; it is no model, correct the id.")


def _code(path: str) -> str:
    """Of a Python function the digest of its module's file."""
    load_function(path)
    file = importlib.import_module(path.partition(":")[0]).__file__
    return hashlib.blake2b(Path(file).read_bytes(), digest_size=16).hexdigest() if file else ""
