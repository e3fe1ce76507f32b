"""`alignstar train sft | reward | dpo`: shows the progress and says what came out of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from alignstar.cli.progress import Stages
from alignstar.train.recipes import DPORecipe, RewardRecipe, SFTRecipe, TrainingRecipe, read_training_recipe

if TYPE_CHECKING:
    from alignstar.evaluate.statistics import Interval
    from alignstar.train.quality import Quality
    from alignstar.train.run import Outcome

USES = {
    "sft": "--sft {out} or --baseline {out}",
    "reward": "--reward {out}",
    "dpo": "--baseline {out}",
}


def train_sft(path: Path, *, resume: bool, overwrite: bool) -> None:
    """Supervised fine-tuning."""
    _train("sft", read_training_recipe(path, SFTRecipe), resume=resume, overwrite=overwrite)


def train_reward(path: Path, *, resume: bool, overwrite: bool, layers: str | None = None) -> None:
    """A reward model; `layers` instead of the recipe's."""
    recipe = read_training_recipe(path, RewardRecipe, layers=layers)
    _train("reward", recipe, resume=resume, overwrite=overwrite)


def train_dpo(path: Path, *, resume: bool, overwrite: bool) -> None:
    """A baseline by direct preference optimisation."""
    _train("dpo", read_training_recipe(path, DPORecipe), resume=resume, overwrite=overwrite)


def _train(kind: str, recipe: TrainingRecipe, *, resume: bool, overwrite: bool) -> None:
    from alignstar.train.common import quiet
    from alignstar.train.run import train

    quiet()
    with _Shown() as shown:
        outcome = train(kind, recipe, resume=resume, overwrite=overwrite, watcher=shown, on_progress=shown.to)
    for line in told(outcome, kind):
        typer.echo(line)


def told(outcome: Outcome, kind: str) -> list[str]:
    """The training in a few lines, for the terminal."""
    from alignstar.train.data import told as counts

    fitted, chosen = outcome.fitted, outcome.chosen
    losses = [row["loss"] for row in fitted.log if "loss" in row]
    went = "" if outcome.resumed is None else f" (went on from step {outcome.resumed:,})"
    stopped = "stopped early, " if fitted.steps < fitted.total else ""
    early = "" if fitted.best_step is None else f"; {stopped}the weights are those of step {fitted.best_step:,}"
    held = f", held-out loss {fitted.held_out['loss']:.4g}" if fitted.held_out else ""
    fell = f": training loss {losses[0]:.4g} to {losses[-1]:.4g}{held}" if losses else held.replace(",", ":", 1)
    lines = [
        f"{outcome.folder}: {fitted.steps:,} of {fitted.total:,} steps in {_clock(fitted.seconds)}{went}{fell}{early}.",
        f"Rows: {len(chosen.training):,} to learn from, {len(chosen.held_out):,} held out"
        + (f"; left out of {chosen.rows:,}: {counts(chosen.left_out)}." if chosen.left_out else "."),
    ]
    lines += [] if outcome.quality is None else _quality_lines(outcome.quality)
    lines.append(
        f"{outcome.folder}/metrics.json and loss.svg say more. Use it with {USES[kind].format(out=outcome.folder)}."
    )
    return lines


def _quality_lines(quality: Quality) -> list[str]:
    length = quality.length
    chance = ": perhaps no better than chance" if quality.accuracy.low <= 0.5 else ""
    return [
        f"Held out, {quality.pairs:,} pairs of {quality.prompts:,} prompts:",
        f"  accuracy           {_share(quality.accuracy)}{chance}",
        f"  log loss, Brier    {quality.log_loss:.3f}, {quality.brier:.3f} (knowing nothing: 0.693, 0.250)",
        f"  calibration error  {quality.calibration_error:.3f}",
        f"  longer reply wins  {_share(length.model_longer)} by the model, {_share(length.label_longer)} by the labels",
        f"  accuracy where     {_share(length.accuracy_shorter)} the shorter one is preferred, "
        f"{_share(length.accuracy_longer)} the longer one",
        f"  score and length   correlate by {_number(length.score_correlation)}, within pairs by "
        f"{_number(length.margin_correlation)}",
    ]


def _share(share: Interval) -> str:
    if share.n == 0:
        return "nothing (n = 0)"
    return f"{share.mean:.1%} [{share.low:.1%}, {share.high:.1%}]"


def _number(value: float) -> str:
    return "nothing (no variation)" if math.isnan(value) else f"{value:.2f}"


def _clock(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


class _Shown(Stages):
    """A progress bar over steps with the last losses; a line for every look at the held-out rows."""

    def __init__(self) -> None:
        super().__init__()
        self._total = 0
        self._loss = ""

    def begin(self, *, total: int, done: int) -> None:
        """Draw the bar."""
        self._total = total
        self.to("training", done, total)

    def stepped(self, step: int, values: Mapping[str, float]) -> None:
        """One more, or what the last ones lost."""
        if "loss" in values:
            self._loss = f"loss {values['loss']:.4g}"
        self.to("training", step, self._total, self._loss)

    def looked(self, step: int, values: Mapping[str, float]) -> None:
        """Leave a line."""
        parts: list[Any] = [f"held-out loss {values['loss']:.4g}"]
        parts += [f"accuracy {values[name]:.1%}" for name in ("accuracy", "rewards/accuracies") if name in values]
        so_far = f"{self._loss}, " if self._loss else ""
        Console(stderr=True).print(
            f"step {step:,} of {self._total:,}: {so_far}{', '.join(parts)}", markup=False, highlight=False,
            soft_wrap=True,
        )  # fmt: skip
