"""Kill an evaluation with -9 at random moments, take it up again, and compare with a run that nobody disturbed.

    python bench/kill_resume.py [--kills 20] [--seed 0] [--workers 1]

A toy world whose reward sleeps; no model is needed. Where a run finishes before all kills were made the next one
begins. Exit status 1: a unit was lost, stored twice, or is not what the undisturbed run has (times aside).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-c", "from alignstar.cli import main; main()", "eval"]

CIRCUMSTANCE = (
    "wall_s", "cached_tokens", "recomputed_tokens", "discarded_tokens", "lm_calls", "peak_kv_tokens",
)  # fmt: skip
"""What a unit's usage says of time and company; everything else must be the same."""

RECIPE = """
name: kill and resume
models: {open: "python:kill_resume:models"}
rewards:
  slow: {source: "python:kill_resume:slow", role: reward}
  held out: python:kill_resume:held_out
methods:
  - {method: sample, options: {model: sft}}
  - {method: transfer-q, options: {k: 3, rollout_len: 2, alpha: [1, 0.5]}}
data: {source: "python:kill_resume:prompts", prompts: 40}
seeds: [0, 1]
max_new_tokens: 4
concurrency: 4
"""


def models(*, reward: Any, baseline_reward: Any) -> Any:
    """The toy world of the recipe."""
    from alignstar.aligner import Aligner
    from alignstar.models.toy import ToyCodec, ToyModel

    sft, baseline = (ToyModel.random(seed, 6, eos_weight=0.3) for seed in (1, 2))
    return Aligner(sft=sft, baseline=baseline, reward=reward, baseline_reward=baseline_reward, codec=ToyCodec(6))


def prompts() -> list[str]:
    """Every text of three letters."""
    return ["".join(letters) for letters in itertools.product("ABCDE", repeat=3)]


def slow(prompt: str, reply: str, complete: bool) -> float:
    """A reward that takes its time."""
    time.sleep(0.01)
    return reply.count("A") + 0.5 * complete


def held_out(prompt: str, reply: str, complete: bool) -> float:
    """Another reward."""
    return reply.count("B") / (1 + len(reply))


def start(recipe: Path, out: Path, *, workers: int) -> subprocess.Popen[bytes]:
    """The command, in a process of its own."""
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [*COMMAND, str(recipe), "--out", str(out), "--resume", "--workers", str(workers)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.DEVNULL,
    )


def finish(recipe: Path, out: Path, *, workers: int) -> float:
    """Run to the end; the seconds."""
    began = time.perf_counter()
    status = start(recipe, out, workers=workers).wait()
    if status != 0:
        sys.exit(f"alignstar eval ended with status {status}.")
    return time.perf_counter() - began


def broken(recipe: Path, out: Path, *, kills: int, longest: float, rng: random.Random, workers: int) -> Iterator[float]:
    """Kill the run up to `kills` times and finish it; gives the moment of each kill [s after the start]."""
    for _ in range(kills):
        process, moment = start(recipe, out, workers=workers), rng.uniform(0.0, longest)
        try:
            process.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            yield moment
        else:
            break
    finish(recipe, out, workers=workers)


def units(out: Path) -> list[dict[str, Any]]:
    """The exported units without what may differ."""
    rows = [json.loads(line) for line in (out / "units.jsonl").read_text().splitlines()]
    for row in rows:
        row["usage"] = {name: count for name, count in row["usage"].items() if name not in CIRCUMSTANCE}
    return rows


def compare(out: Path, expected: list[dict[str, Any]]) -> dict[str, int]:
    """How many units were lost, doubled, or are different."""
    found = units(out)
    database = sqlite3.connect(out / "run.sqlite")
    sound = database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
    times = Counter(row["key"] for row in found)
    by_key = {row["key"]: row for row in found}
    return {
        "lost": sum(row["key"] not in times for row in expected),
        "doubled": sum(times.values()) - len(times),
        "different": sum(by_key.get(row["key"], row) != row for row in expected),
        "out of order": int([row["key"] for row in found] != [row["key"] for row in expected]),
        "unsound databases": int(not sound),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    rng, faults, killed, runs = random.Random(given.seed), Counter[str](), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder, "recipe.yaml")
        recipe.write_text(RECIPE)
        seconds = finish(recipe, Path(folder, "whole"), workers=given.workers)
        expected = units(Path(folder, "whole"))
        print(f"undisturbed: {len(expected)} units in {seconds:.1f} s")
        while killed < given.kills:
            out, runs = Path(folder, f"broken{runs}"), runs + 1
            for moment in broken(
                recipe, out, kills=given.kills - killed, longest=0.5 * seconds, rng=rng, workers=given.workers
            ):
                killed += 1
                print(f"kill {killed} after {moment:.2f} s", flush=True)
            faults.update(compare(out, expected))
    print(f"{killed} kills, {runs} runs: {', '.join(f'{count} {name}' for name, count in faults.items())}")
    sys.exit(1 if faults.total() else 0)


if __name__ == "__main__":
    main()
