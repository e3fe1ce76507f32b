"""Kill a training with -9 at random moments, take it up again, and compare with one that nobody disturbed.

    python bench/kill_train.py [--kills 5] [--seed 0] [--kind reward]

The embedded SFT model, an adapter with dropout, a checkpoint every second step. Where a training finishes before all
kills were made the next one begins. Exit status 1: the weights, or the losses of a step, are not the same to the bit.
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

COMMAND = [sys.executable, "-c", "from alignstar.cli import main; main()", "train"]

RECIPE = """
model: package:alignstar/demo/models/sft
data: {{source: "python:alignstar.demo.rows:{rows}", rows: 80}}
held_out: 0.1
out: {out}
lora: {{rank: 4, dropout: 0.1}}
learning_rate: 1e-3
max_steps: 16
batch_size: 4
checkpoint_every: 2
log_every: 1
patience: 8
"""


def start(kind: str, recipe: Path) -> subprocess.Popen[bytes]:
    """The command, in a process of its own."""
    return subprocess.Popen(
        [*COMMAND, kind, str(recipe), "--resume"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def written(kind: str, out: Path) -> Path:
    """The recipe that trains into `out`."""
    file = out.with_suffix(".yaml")
    file.write_text(RECIPE.format(out=out, rows="conversations" if kind == "sft" else "preferences"))
    return file


def finish(kind: str, recipe: Path) -> float:
    """Train to the end; the seconds."""
    began = time.perf_counter()
    status = start(kind, recipe).wait()
    if status != 0:
        sys.exit(f"alignstar train ended with status {status}.")
    return time.perf_counter() - began


def broken(kind: str, recipe: Path, *, kills: int, longest: float, rng: random.Random) -> Iterator[tuple[float, int]]:
    """Kill the training up to `kills` times and finish it; gives each kill's moment [s] and the last whole step."""
    from alignstar.train.folder import last_checkpoint

    for _ in range(kills):
        process, moment = start(kind, recipe), rng.uniform(0.0, longest)
        try:
            process.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            found = last_checkpoint(recipe.with_suffix("") / "checkpoints")
            yield moment, 0 if found is None else int(found.name.rpartition("-")[2])
        else:
            return
    finish(kind, recipe)


def result(out: Path) -> tuple[bytes, list[Any]]:
    """The weights, and the loss of every step."""
    weights = b"".join(file.read_bytes() for file in sorted(out.glob("*.safetensors")))
    log = json.loads((out / "metrics.json").read_text())["log"]
    return weights, [(row["step"], row.get("loss"), row.get("eval_loss")) for row in log if "train_runtime" not in row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=("sft", "reward", "dpo"), default="reward")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rng, killed, runs, different = random.Random(given.seed), 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "whole")
        seconds = finish(given.kind, written(given.kind, whole))
        expected = result(whole)
        print(f"undisturbed: {len(expected[1])} logged rows in {seconds:.1f} s", flush=True)
        while killed < given.kills:
            out, runs = Path(folder, f"broken{runs}"), runs + 1
            recipe = written(given.kind, out)
            for moment, step in broken(given.kind, recipe, kills=given.kills - killed, longest=seconds, rng=rng):
                killed += 1
                print(f"kill {killed} after {moment:.2f} s, last whole checkpoint at step {step}", flush=True)
            different += result(out) != expected
    print(f"{killed} kills, {runs} trainings: {different} with other weights or losses")
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
