"""Kill a training with -9 at random moments, take it up again, and compare with one that nobody disturbed.

    python bench/kill_train.py [--kills 5] [--seed 0] [--kind reward]

The embedded models, small settings, a kill at any moment after the training itself has begun. Where a training finishes
before all kills were made the next one begins. Exit status 1: the weights, or the losses of a step, are not the same to
the bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignstar.demo import prompts
from alignstar.train.folder import FINISHED, last_checkpoint

COMMAND = [sys.executable, "-c", "from alignstar.cli import main; main()", "train"]

COMMON = """
model: package:alignstar/demo/models/sft
out: {out}
device: cpu
"""

WEIGHTS = """
data: {{source: "python:alignstar.demo.rows:{rows}", rows: 80}}
held_out: 0.1
lora: {{rank: 4, dropout: 0.1}}
learning_rate: 1e-3
max_steps: 16
batch_size: 4
checkpoint_every: 2
log_every: 1
patience: 8
"""

RECIPES = {
    **dict.fromkeys(("sft", "reward", "dpo"), WEIGHTS),
    "policy": """
data: {{source: "python:alignstar.demo.rows:{rows}", rows: 40}}
groups: [package:alignstar/demo/models/reward_source, package:alignstar/demo/models/reward_target]
momentum: 0.5
lora: {{rank: 4}}
learning_rate: 1e-3
max_steps: 8
batch_size: 8
responses: 4
max_new_tokens: 16
reference: 16
checkpoint_every: 1
log_every: 1
""",
    "mixture": """
data: {{source: "python:alignstar.demo.opinions:opinions", split: "1:1", rows: 400}}
groups: [1, 2]
restarts: 3
""",
    "value": """
prompts: {out}.txt
reward: "rule:length?target_words=12"
loss: transfer-q
rank: 8
width: 16
responses: 2
k: 4
rollout_len: 8
max_new_tokens: 16
epochs: 12
batch_size: 32
""",
}
"""Kind -> what follows `COMMON`. A rule's reward is the same in every batch, a model's only up to its last digits."""


def start(kind: str, recipe: Path) -> subprocess.Popen[bytes]:
    """The command, in a process of its own."""
    return subprocess.Popen(
        [*COMMAND, kind, str(recipe), "--resume"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def written(kind: str, out: Path) -> Path:
    """The recipe that trains into `out`."""
    file, rows = out.with_suffix(".yaml"), "preferences" if kind in ("reward", "dpo") else "conversations"
    file.write_text((COMMON + RECIPES[kind]).format(out=out, rows=rows))
    out.with_suffix(".txt").write_text("".join(f"{prompt}\n" for prompt in prompts("tuning")[:8]))
    return file


def spent(process: subprocess.Popen[bytes]) -> float:
    """The seconds of CPU that it has had: a busy machine moves no kill."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def finish(kind: str, recipe: Path) -> tuple[float, float]:
    """Train to the end; the seconds of CPU until the training itself begins, and until it ends."""
    process, begun = start(kind, recipe), recipe.with_suffix("") / "run.json"
    first = last = 0.0
    while process.poll() is None:
        last = spent(process)
        first = first if begun.exists() else last
        time.sleep(0.02)
    if process.returncode != 0:
        sys.exit(f"alignstar train ended with status {process.returncode}.")
    return first, last


def broken(
    kind: str, recipe: Path, *, kills: int, between: tuple[float, float], rng: random.Random
) -> Iterator[tuple[float, str]]:
    """Kill the training up to `kills` times and finish it; gives each kill's moment [CPU s] and the last checkpoint."""
    for _ in range(kills):
        process, moment = start(kind, recipe), rng.uniform(*between)
        while process.poll() is None and spent(process) < moment:
            time.sleep(0.02)
        if process.poll() is not None:
            return
        process.kill()
        process.wait()
        yield moment, kept(recipe.with_suffix("") / "checkpoints")
        if (recipe.with_suffix("") / FINISHED).exists():
            return
    finish(kind, recipe)


def kept(checkpoints: Path) -> str:
    """The last whole checkpoint, in words."""
    found = last_checkpoint(checkpoints)
    if found is None:
        return "nothing"
    files = [file for file in found.rglob("*") if file.is_file()]
    return f"{found.name}, {len(files)} files, {sum(file.stat().st_size for file in files):,} bytes"


def result(out: Path) -> tuple[bytes, list[Any], dict[str, Any]]:
    """The weights, the losses of every step, and whatever else was measured."""
    weights = b"".join(file.read_bytes() for file in sorted(out.rglob("*.safetensors")))
    told = json.loads((out / "metrics.json").read_text())
    log = [row for row in told.pop("log", []) if "train_runtime" not in row]
    told.pop("seconds", None)
    return weights, [[row.get(key) for key in ("step", "epoch", "loss", "eval_loss", "reward")] for row in log], told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=tuple(RECIPES), default="reward")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rng, killed, runs, different = random.Random(given.seed), 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "whole")
        between = finish(given.kind, written(given.kind, whole))
        expected = result(whole)
        first, last = between
        print(
            f"undisturbed: {len(expected[0]):,} bytes of weights, {len(expected[1])} logged rows; begins after "
            f"{first:.1f} s of CPU, ends after {last:.1f} s",
            flush=True,
        )
        while killed < given.kills:
            out, runs = Path(folder, f"broken{runs}"), runs + 1
            recipe = written(given.kind, out)
            for moment, left in broken(given.kind, recipe, kills=given.kills - killed, between=between, rng=rng):
                killed += 1
                print(f"kill {killed} after {moment:.2f} s of CPU, kept: {left}", flush=True)
            different += result(out) != expected
    print(f"{killed} kills, {runs} trainings: {different} with other weights or losses")
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
