"""How long `alignstar report` takes for a large run, and how much memory: 10,000 prompts x 4 methods by default.

    python bench/report_size.py [--prompts N] [--methods N] [--traced N] [--words N] [--keep FOLDER]

Makes a folder of recorded results (no model has a part in it), reports it in a process of its own and prints seconds,
peak memory and the page's size. Exit status 1: slower than 20 s, more than 1 GiB, or a page above 10 MB.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from alignstar.evaluate.units import DESCRIPTION, EXPORT, Unit, unit_to_json
from alignstar.options import complete

LIMIT_S, LIMIT_MIB, LIMIT_MB = 20.0, 1024.0, 10.0
TOKENS_PER_STEP = 10
TEXT = (
    "the order has left our store and will be with you by Thursday we are sorry for what happened please send us a "
    "picture of the broken lamp you need not return it your money is on its way back thank you for telling us"
)
WORDS = TEXT.split()
METHODS = (("greedy", {}), ("best-of-n", {"n": 16}), ("args", {"weight": 2.0}))


def entries(count: int) -> list[dict[str, Any]]:
    """Plain decoding, two rivals, and Transfer Q* at as many strengths as are left."""
    alphas = [2.0 ** (1 - n) for n in range(max(0, count - len(METHODS)))]
    listed = [(name, name, options) for name, options in METHODS]
    listed += [(f"transfer-q alpha={alpha:g}", "transfer-q", {"alpha": alpha}) for alpha in alphas]
    return [
        {
            "label": label,
            "method": method,
            "options": {**complete(method, options), "max_new_tokens": 128},
            "chat": None,
        }
        for label, method, options in listed[:count]
    ]


def recipe(prompts: int, methods: int) -> dict[str, object]:
    """What such a run's recipe says."""
    return {
        "name": f"{prompts} prompts x {methods} methods",
        "about": "Recorded results made up for measuring the report.",
        "models": {"sft": {"source": "made/up", "parameters": None}},
        "rewards": {
            "helpfulness": {"source": ["made/up"], "role": "reward", "parameters": None},
            "truth": {"source": ["made/up"], "role": "gold", "parameters": None},
        },
        "methods": entries(methods),
        "data": {"source": "made up", "prompts": prompts, "seed": 0},
        "metrics": {
            "diversity_plus_one": True,
            "coherence": None,
            "normalised": {"reference": None, "lowest": None},
        },
        "baseline": entries(methods)[0]["label"],
        "seeds": [0],
        "max_new_tokens": 128,
        "stop": [],
        "trace": 3,
        "concurrency": 16,
    }


def units(prompts: int, methods: int, traced: int, words: int) -> Iterator[Unit]:
    """By method, prompt, seed; one in five hundred failed."""
    draw = np.random.Generator(np.random.Philox(1))
    difficulty = draw.normal(size=prompts)
    vocabulary = np.array(WORDS)
    asked = [" ".join(vocabulary[draw.integers(0, len(WORDS), size=25)].tolist()) for _ in range(prompts)]
    for place, entry in enumerate(entries(methods)):
        gain = 0.45 * place + 0.2
        for prompt in range(prompts):
            failed = draw.random() < 0.002
            length = int(draw.integers(words // 2, words + 1))
            said = vocabulary[draw.integers(0, len(WORDS), size=length)].tolist()
            reward = float(difficulty[prompt] + gain + draw.normal(scale=0.6))
            yield Unit(
                key=f"{place}-{prompt}",
                method=str(entry["label"]),
                options=entry["options"],
                prompt_index=prompt,
                prompt=f"Request {prompt}: {asked[prompt]}?",
                seed=0,
                response="" if failed else " ".join(said) + ".",
                response_ids=() if failed else tuple(draw.integers(0, 1500, size=length).tolist()),
                finish_reason="error" if failed else "stop",
                rewards={} if failed else {"helpfulness": reward, "truth": float(np.tanh(reward) * 0.5 + 0.4)},
                kl=None if failed or entry["method"] == "best-of-n" else float(8 + 2 * place + draw.normal()),
                usage={} if failed else usage(place, length),
                steps=tuple(step(n, word, draw) for n, word in enumerate(said))
                if prompt < traced and not failed
                else (),
                error="The engine stopped: a forward failed." if failed else None,
            )


def usage(place: int, length: int) -> dict[str, float]:
    """Costs that grow from method to method."""
    return {
        "lm_tokens": (30 + length) * 12**place // 6**place,
        "rm_tokens": 0 if place == 0 else length * 7**place,
        "sequential_steps": length,
        "rm_calls": place * length,
        "near_ties": 0,
        "nan_rewards": 0,
        "wall_s": 0.1,
    }


def step(index: int, word: str, draw: np.random.Generator) -> dict[str, object]:
    """A step with ten candidates."""
    logps = np.sort(-draw.exponential(2.0, size=TOKENS_PER_STEP))[::-1]
    values = draw.normal(size=TOKENS_PER_STEP)
    scores = logps + values
    considered = [
        {"ids": [n], "logp": float(logp), "score": float(score), "value": float(value), "future": [1, 2, 3],
         "log_m": None, "ess": None, "text": WORDS[n]}
        for n, (logp, value, score) in enumerate(zip(logps, values, scores, strict=True))
    ]  # fmt: skip
    return {
        "index": index, "emitted": [int(scores.argmax())], "considered": considered, "chosen": int(scores.argmax()),
        "near_ties": 0, "finish": None, "replaces": False, "text": f" {word}",
    }  # fmt: skip


def write(folder: Path, *, prompts: int, methods: int, traced: int, words: int) -> None:
    """A run's folder, as a finished evaluation leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {"alignstar": "made up", "python": sys.version.split()[0]}
    described = {"recipe": recipe(prompts, methods), "environment": environment}
    (folder / DESCRIPTION).write_text(json.dumps(described))
    with (folder / EXPORT).open("w", encoding="utf-8") as file:
        file.writelines(unit_to_json(unit) + "\n" for unit in units(prompts, methods, traced, words))


def main() -> int:
    """Make, report, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--methods", type=int, default=4)
    parser.add_argument("--traced", type=int, default=3, help="prompts whose steps are stored")
    parser.add_argument("--words", type=int, default=100, help="longest reply")
    parser.add_argument("--keep", type=Path, help="make the folder here and leave it")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        write(folder, prompts=given.prompts, methods=given.methods, traced=given.traced, words=given.words)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.perf_counter()
        status = subprocess.run([sys.executable, "-c", "from alignstar.cli import main; main()", "report", str(folder)])
        seconds = time.perf_counter() - started
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        computed = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        peak = after.ru_maxrss / 1024
        read, page = ((folder / name).stat().st_size / 1e6 for name in (EXPORT, "report.html"))
    print(f"{given.prompts:,} prompts x {given.methods} methods: {read:,.1f} MB of recorded results")
    print(f"{seconds:.1f} s, {computed:.1f} s of them computing, {peak:,.0f} MiB at most, page {page:.2f} MB")
    within = seconds < LIMIT_S and peak < LIMIT_MIB and page < LIMIT_MB
    print("within" if within else "NOT within", f"{LIMIT_S:g} s, {LIMIT_MIB:,.0f} MiB and {LIMIT_MB:g} MB")
    return status.returncode or int(not within)


if __name__ == "__main__":
    sys.exit(main())
