"""The folder of a training: what it was begun with, its checkpoints, and when it is finished. Safe against any end.

`run.json` comes first and says what is trained; `checkpoints/` holds what the trainer writes; `alignstar.json` comes
last, after the weights, `metrics.json` and `loss.svg`: only where it stands the training is finished. Knows no model.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from alignstar import __version__
from alignstar.errors import OptionError
from alignstar.evaluate.jsonl import json_line
from alignstar.evaluate.plan import refuse_other
from alignstar.files import replace_text

BEGUN, FINISHED, METRICS, PLOT, CHECKPOINTS, LOCK = (
    "run.json", "alignstar.json", "metrics.json", "loss.svg", "checkpoints", "run.lock",
)  # fmt: skip

OURS = (LOCK, BEGUN)
"""How the files begin that can stand in a folder before `run.json` is whole."""

STATE = "trainer_state.json"
"""The file of a checkpoint that is written last."""


class TrainingFolder:
    """A folder in which one training at a time is at work. Use as a context manager.

    Raises OptionError where another process trains in it, and where it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / CHECKPOINTS
        try:
            self._made = not path.exists()
            path.mkdir(parents=True, exist_ok=True)
            self._strangers = not (path / BEGUN).exists() and any(not p.name.startswith(OURS) for p in path.iterdir())
            # A transaction that never ends: released by the system however this process ends.
            self._lock = sqlite3.connect(path / LOCK, timeout=0, isolation_level=None)
            self._lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise OptionError(f"out={str(path)!r} is being trained in; wait for it, or end it.") from error
            raise OptionError(f"out={str(path)!r} cannot be written ({error}); choose another folder.") from error
        except OSError as error:
            raise OptionError(f"out={str(path)!r} cannot be written ({error.strerror}); choose another.") from error

    def __enter__(self) -> TrainingFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.close()
        for left in self.path.glob(LOCK + "*"):
            left.unlink()
        if self._made and not any(self.path.iterdir()):
            self.path.rmdir()

    def admit(self, *, resume: bool, overwrite: bool) -> None:
        """Raise OptionError unless a training may begin here or, with `resume`, go on.

        A training without a checkpoint has lost nothing and may be begun anew.
        """
        name = str(self.path)
        if self._strangers:
            raise OptionError(f"out={name!r} holds files that no training wrote; choose another folder, or empty it.")
        if overwrite or not (self.path / BEGUN).exists():
            return
        if (self.path / FINISHED).exists():
            raise OptionError(f"out={name!r} holds a finished training; choose another, or replace it: --overwrite.")
        if not resume and last_checkpoint(self.checkpoints) is not None:
            raise OptionError(f"out={name!r} holds a training that was begun; go on with --resume, or --overwrite it.")

    def begin(self, fixed: Mapping[str, Any], *, overwrite: bool = False) -> Path | None:
        """Begin or go on; the checkpoint to go on from. `fixed` is all that decides the weights.

        Raises OptionError, with what differs, where there is a checkpoint of something else.
        """
        now = {"alignstar": __version__, **json.loads(json_line(fixed))}
        begun = self.path / BEGUN
        if overwrite and begun.exists():
            for old in [p for p in self.path.iterdir() if not p.name.startswith(LOCK)]:
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        checkpoint = last_checkpoint(self.checkpoints)
        if checkpoint is None:
            replace_text(begun, json.dumps(now, indent=1, ensure_ascii=False) + "\n")
        else:
            refuse_other(json.loads(begun.read_text(encoding="utf-8")), now, folder=str(self.path))
        return checkpoint

    def finish(self, *, notes: Mapping[str, Any], metrics: Mapping[str, Any], plot: str, plotted: str = PLOT) -> None:
        """Write what there is to say, the plot as `plotted`, and last that the training is finished; checkpoints go."""
        replace_text(self.path / METRICS, _indented(metrics))
        replace_text(self.path / plotted, plot)
        replace_text(self.path / FINISHED, _indented(notes))
        shutil.rmtree(self.checkpoints, ignore_errors=True)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written whole; those that were not are removed.

    A checkpoint's last file is a JSON object that names its step: one that is cut short, or missing, says that the
    process ended meanwhile.
    """
    found: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if match is None:
            continue
        if _step_of(path) == int(match[1]):
            found[int(match[1])] = path
        else:
            shutil.rmtree(path)
    return found[max(found)] if found else None


def _step_of(checkpoint: Path) -> int | None:
    try:
        return json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["global_step"]
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _indented(values: Mapping[str, Any]) -> str:
    """JSON that a reader can follow; numbers that are not finite are null."""
    return json.dumps(json.loads(json_line(values)), indent=1, ensure_ascii=False) + "\n"
