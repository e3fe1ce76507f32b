"""The hidden groups of users behind preferences: a mixture of rewards over a frozen model, kept as checkpoints.

MaxMin-RLHF, Chakraborty et al. 2024, arXiv:2402.08925, section 4. Differs: 1) rewards are linear in the last hidden
state and fitted exactly, where the published code trains LoRA adapters by some gradient steps, so that the likelihood
never falls; 2) the number of groups is chosen by held-out votes; 3) several beginnings. Knows examples with users; the
mathematics is in `mixture.py` and `search.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from alignstar.errors import FailedError
from alignstar.evaluate.rows import Example
from alignstar.evaluate.statistics import Interval
from alignstar.files import replace_text, replacing
from alignstar.models.hf.network import context_limit
from alignstar.sampling import Array
from alignstar.train.backbone import open_backbone, read_states, save_rewards
from alignstar.train.encode import Reader
from alignstar.train.folder import STATE
from alignstar.train.linear import space_of
from alignstar.train.mixture import State, Votes, cast_votes
from alignstar.train.mixture_report import accuracy, agreement, described
from alignstar.train.search import Found, Linear, Plan, Trial, check, search, trials
from alignstar.types import Ids

MIXTURE = "mixture.json"
STATES = "states.npy"
FIRST = 1
"""The only checkpoint of a search: it grows."""

DEFAULT = Plan()

OnRead: TypeAlias = Callable[[int, int], None]
OnTrial: TypeAlias = Callable[[int, int, Trial, Linear], None]
"""Told how much is done and of how much; the second also whenever a trial has a new state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One of the groups. `folder` holds its reward as a classifier of one output.

    `share` is its weight, `mean` and `std` describe its reward on the replies that it was learnt from. `own` and
    `pooled`: the share of the held-out votes of its users that its reward tells right, and that the one reward of a
    mixture of one does (None where none was tried).
    """

    folder: str
    share: float
    mean: float
    std: float
    users: int
    votes: int
    own: Interval
    pooled: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """A mixture on the disk: its groups, largest first, `joint`, a classifier with an output per group, and how.

    `assignments` says every user's group. So many votes were `too_long` for the model and left out. `agreement` is the
    share of users whose group is the true one, under the best naming of groups; None where the truth is not known.
    """

    groups: tuple[Group, ...]
    joint: str
    assignments: Mapping[str, int]
    votes: Votes
    found: Found
    too_long: int
    agreement: float | None

    @property
    def folders(self) -> tuple[str, ...]:
        """The groups' rewards."""
        return tuple(group.folder for group in self.groups)

    @property
    def shares(self) -> tuple[float, ...]:
        """The groups' weights."""
        return tuple(group.share for group in self.groups)

    def line(self, kind: str = "min") -> str:
        """The groups as one reward: "min", "soft_min" (the groups' weights as prior) or "game" (see `rewards.spec`)."""
        given = {"min": "", "soft_min": f"1,{','.join(f'{share:.6g}' for share in self.shares)}; ", "game": "1; "}
        lines = [
            f"{self.joint}?output={u}|standardise:{group.mean:.6g},{group.std:.6g}"
            for u, group in enumerate(self.groups)
        ]
        return f"{kind}({given[kind]}{'; '.join(lines)})"


def learn_groups(
    source: str,
    examples: Sequence[Example],
    out: Path,
    plan: Plan = DEFAULT,
    *,
    held_out: float = 0.2,
    components: int = 256,
    device: str = "auto",
    checkpoint: Path | None = None,
    on_read: OnRead = lambda done, total: None,
    on_trial: OnTrial = lambda done, total, trial, state: None,
) -> Learned:
    """Find the groups of the users of `examples` (preferences with a `user`) and write their rewards under `out`.

    `source` is the frozen model. Of every user's votes the share `held_out` chooses the number of groups and the
    penalty. Of the features the `components` leading directions are used. Every step is stored in the folder
    `checkpoint` (None: nowhere), and what is stored there is not done again. Raises ModelError for a model that is
    none, OptionError where there is nothing to choose by.
    """
    model, tokenizer = open_backbone(source, device=device)
    reader = Reader(tokenizer, name=source)
    pairs = [reader.pair(example) for example in examples]
    limit = context_limit(model.config.get_text_config())
    fitting = [limit is None or max(len(pair.chosen), len(pair.rejected)) <= limit for pair in pairs]
    used = [example for example, fits in zip(examples, fitting, strict=True) if fits]
    kept = [pair for pair, fits in zip(pairs, fitting, strict=True) if fits]
    texts = [pair.chosen for pair in kept] + [pair.rejected for pair in kept]
    votes = cast_votes([str(example.user) for example in used], held_out=held_out, seed=plan.seed)
    check(plan, votes)
    store = None if checkpoint is None else Checkpoints(checkpoint)
    states = _states(model, texts, store, on_read, name=source)
    space = space_of(states[: len(kept)], states[len(kept) :], components=components)
    found = _searched(space.differences, votes, plan, store, on_trial)
    heads = space.heads(np.stack(found.state.rewards))
    joint, folders = save_rewards(model, tokenizer, texts, heads, out)
    learned = Learned(
        groups=_groups(space.differences, votes, found, folders=folders, scores=states @ heads.T),
        joint=str(joint),
        assignments=dict(zip(votes.users, found.state.groups.tolist(), strict=True)),
        votes=votes,
        found=found,
        too_long=len(examples) - len(used),
        agreement=_agreement(used, votes, found),
    )
    replace_text(out / MIXTURE, json.dumps(_told(learned, source), indent=1, ensure_ascii=False) + "\n")
    return learned


class Checkpoints:
    """What a search has done so far, in a folder; a reader sees a step whole or not at all.

    The hidden states come first, and with them what makes the folder a checkpoint of a `TrainingFolder`.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def states(self) -> Array | None:
        """The hidden states, if they are there."""
        path = self.folder / STATES
        return np.load(path) if path.exists() else None

    def keep_states(self, states: Array) -> None:
        """Store them."""
        with replacing(self.folder / STATES) as working, working.open("wb") as file:
            np.save(file, states)
        replace_text(self.folder / STATE, json.dumps({"global_step": FIRST}))

    def trials(self) -> dict[str, Linear]:
        """The states of the trials that were begun, by key."""
        return {path.stem: _linear(json.loads(path.read_text())) for path in self.folder.glob("*-groups-*.json")}

    def keep_trial(self, trial: Trial, state: Linear) -> None:
        """Store where a trial is."""
        told = asdict(state) | {
            "rewards": [reward.tolist() for reward in state.rewards],
            "memberships": state.memberships.tolist(),
        }
        replace_text(self.folder / f"{trial.key}.json", json.dumps(told))


def _linear(told: Mapping[str, Any]) -> Linear:
    return State(
        rewards=tuple(np.array(reward) for reward in told["rewards"]),
        memberships=np.array(told["memberships"]),
        likelihoods=tuple(told["likelihoods"]),
        objectives=tuple(told["objectives"]),
        done=told["done"],
    )


def _states(model: Any, texts: Sequence[Ids], store: Checkpoints | None, on_read: OnRead, *, name: str) -> Array:
    """The states after all texts [2 N, d]."""
    states = None if store is None else store.states()
    if states is None:
        total = len(set(texts))
        states = read_states(model, texts, lambda done: on_read(done, total))
        if not np.isfinite(states).all():
            raise FailedError(f"model={name!r} gives hidden states that are not finite; take another.")
        if store is not None:
            store.keep_states(states)
    return states


def _searched(differences: Array, votes: Votes, plan: Plan, store: Checkpoints | None, on_trial: OnTrial) -> Found:
    places = {trial: i for i, trial in enumerate(trials(plan))}

    def on_state(trial: Trial, state: Linear) -> None:
        if store is not None:
            store.keep_trial(trial, state)
        on_trial(places[trial], len(places), trial, state)

    return search(differences, votes, plan, known={} if store is None else store.trials(), on_state=on_state)


def _groups(
    differences: Array, votes: Votes, found: Found, *, folders: Sequence[Path], scores: Array
) -> tuple[Group, ...]:
    groups = found.state.groups
    pooled = found.best[1].state.rewards[0] if 1 in found.best else None
    return tuple(
        Group(
            folder=str(folder),
            share=float(found.state.shares[u]),
            mean=float(scores[:, u].mean()),
            std=float(scores[:, u].std()) or 1.0,
            users=int(np.sum(groups == u)),
            votes=int(np.sum(groups[votes.user] == u)),
            own=accuracy(differences, votes, found.state.rewards[u], groups == u),
            pooled=None if pooled is None else accuracy(differences, votes, pooled, groups == u),
        )
        for u, folder in enumerate(folders)
    )


def _agreement(used: Sequence[Example], votes: Votes, found: Found) -> float | None:
    truth = {example.user: example.group for example in used}
    names = [name for user in votes.users if (name := truth[user]) is not None]
    return agreement(found.state.groups.tolist(), names) if len(names) == len(votes.users) else None


def _told(learned: Learned, source: str) -> dict[str, Any]:
    return {
        "model": source,
        **described(learned.found, learned.votes.users),
        "rewards": [asdict(group) for group in learned.groups],
        "joint": learned.joint,
        "lines": {kind: learned.line(kind) for kind in ("min", "soft_min", "game")},
        "too_long": learned.too_long,
        "agreement": learned.agreement,
    }
