"""A value head on its way: its weights, its optimizer and the best weights so far, all of that as one file; the epochs.

The file is in safetensors: numbers and JSON, nothing that runs. Knows no loss and no data.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.utils import clip_grad_norm_

from alignstar.errors import FailedError
from alignstar.files import replacing
from alignstar.sampling import IntArray
from alignstar.train.settings import OnProgress

HEAD, BEST, OPTIMIZER, TOLD = "head.", "best.", "optimizer.", "training"


class Lesson(Protocol):
    """What a head learns from."""

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        ...

    def batches(self, epoch: int) -> Iterable[IntArray]:
        """An epoch's batches, rows of what is learned from; no more than `steps`."""
        ...

    def loss(self, rows: IntArray) -> torch.Tensor:
        """The loss [] on a batch, with its gradient."""
        ...

    def judged(self) -> float:
        """The loss on what is held out."""
        ...


class HeadTraining:
    """A head that is fitted in at most `steps` steps; `losses` and `held_out` are those of its epochs so far.

    `rates` are the learning rates of its parts, by the names of its children; `learning_rate` is that of all others.
    """

    def __init__(
        self,
        head: torch.nn.Module,
        *,
        learning_rate: float,
        steps: int,
        rates: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self.head = head
        self.losses: list[float] = []
        self.held_out: list[float] = []
        self.best: Mapping[str, torch.Tensor] = _copy(head)
        parts = {name: list(part.parameters()) for name, part in head.named_children()}
        rate = {name: rates.get(name, learning_rate) for name, parameters in parts.items() if parameters}
        groups = [{"params": parts[name], "lr": rate[name]} for name in rate]
        self._optimizer = torch.optim.AdamW(groups, weight_decay=1e-4)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer,
            max_lr=list(rate.values()),
            total_steps=max(steps + 1, 11),  # of 10 the warm-up would be no step, which torch divides by
            pct_start=0.1,
        )

    @property
    def least(self) -> float:
        """The best held-out loss so far."""
        return min(self.held_out, default=float("inf"))

    def step(self, loss: torch.Tensor) -> None:
        """One step down."""
        self._optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(self.head.parameters(), 10.0)
        self._optimizer.step()
        self._schedule.step()

    def end_epoch(self, loss: float, held_out: float) -> None:
        """Note an epoch's losses; the weights are the best ones where the second is lower than before."""
        if held_out < self.least:
            self.best = _copy(self.head)
        self.losses.append(loss)
        self.held_out.append(held_out)

    def save(self, path: Path) -> None:
        """Write where the training is; a reader sees the file before or this one."""
        state = self._optimizer.state_dict()
        tensors = {f"{HEAD}{name}": value for name, value in self.head.state_dict().items()}
        tensors |= {f"{BEST}{name}": value for name, value in self.best.items()}
        for number, moments in state["state"].items():
            tensors |= {f"{OPTIMIZER}{number}.{name}": value for name, value in moments.items()}
        told = {
            "losses": self.losses, "held_out": self.held_out, "steps": self._schedule.last_epoch,
            "groups": state["param_groups"],
        }  # fmt: skip
        with replacing(path) as working:
            save_file({k: t.contiguous() for k, t in tensors.items()}, working, metadata={TOLD: json.dumps(told)})

    def load(self, path: Path) -> None:
        """Go on from where a training was saved; all further steps are those that it would have made."""
        with safe_open(path, framework="pt") as file:
            told = json.loads(file.metadata()[TOLD])
            tensors: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.losses, self.held_out = told["losses"], told["held_out"]
        self.head.load_state_dict(_part(tensors, HEAD))
        self.best = _part(tensors, BEST)
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in _part(tensors, OPTIMIZER).items():
            number, _, kind = name.partition(".")
            moments.setdefault(int(number), {})[kind] = value
        self._optimizer.load_state_dict({"state": moments, "param_groups": told["groups"]})
        self._schedule.load_state_dict({"last_epoch": told["steps"]})


def learn(
    going: HeadTraining,
    lesson: Lesson,
    *,
    epochs: int,
    learning_rate: float,
    checkpoint: Path | None,
    on_progress: OnProgress,
) -> None:
    """Train to the end, from the file `checkpoint` where it is there; it is written after every epoch (None: never).

    The head has the weights of its best epoch then. Raises FailedError where the loss is not finite.
    """
    if checkpoint is not None and checkpoint.exists():
        going.load(checkpoint)
    for epoch in range(len(going.losses), epochs):
        on_progress("training", epoch, epochs)
        total, count = 0.0, 0
        for rows in lesson.batches(epoch):
            value = lesson.loss(rows)
            going.step(value)
            total += float(value.detach()) * len(rows)
            count += len(rows)
        judged = lesson.judged()
        if not judged < float("inf"):
            raise FailedError(f"The value head's loss became {judged}; lower learning_rate={learning_rate:g}.")
        going.end_epoch(total / count, judged)
        if checkpoint is not None:
            going.save(checkpoint)
        on_progress("training", epoch + 1, epochs)
    going.head.load_state_dict(going.best)


def _copy(head: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in head.state_dict().items()}


def _part(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
