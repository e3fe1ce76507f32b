"""Train a value head of the embedded baseline: Transfer Q*'s values by its complete rollouts, on a branch of it.

Prompts are of the training split; nothing that the demo shows or tunes on is seen. `--log FILE` keeps the rollouts as
they are made: after a stop the same command goes on, and training can be tried again without them. The figures go into
build.json beside the models. Knows the embedded world and the training functions.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from safetensors.torch import load_file, save_file

from alignstar.aligner import Aligner
from alignstar.demo import model_dir
from alignstar.demo.customers import message
from alignstar.demo.settings import MAX_NEW_TOKENS, ROLLOUTS
from alignstar.files import replacing
from alignstar.loading import load
from alignstar.models.hf.value import WEIGHTS
from alignstar.train.kept import Kept
from alignstar.train.rollouts import Seen, valued
from alignstar.train.value_training import train_value

SEED = 0

ROOT = Path(__file__).parent.parent
OUT: Mapping[str, Path] = {"source": model_dir("baseline").parent / "value", "target": ROOT / "bench" / "value_target"}
"""Of the head that tells values of a reward; the package has room for one."""

WIDE = 200
"""Prompts with all candidates rolled out. For the others only likely ones are, a quarter of the work: the first ones
teach what is unlikely and bad, the others what there is to choose between."""
LIKELY: Mapping[str, Any] = {"candidate_rule": "topp", "candidate_top_p": 0.97}
ALONG = 6


def prompts(n: int) -> list[str]:
    """Messages of the training split."""
    rng = random.Random(f"{SEED} value")
    return [message(rng, split="train").text for _ in range(n)]


def rollouts(n: int, kept: Kept, *, reward: str, alpha: float, device: str) -> list[Seen]:
    """Values of candidates along `n` responses, drawn by their scores so that states differ; some may be `kept`."""
    asked, wide = prompts(n), min(n, WIDE)
    with load(baseline=str(model_dir("baseline")), reward=str(model_dir(f"reward_{reward}")), device=device) as aligner:
        return [
            *_part(aligner, asked[:wide], kept, n=n, first=0, alpha=alpha, **ROLLOUTS),
            *_part(aligner, asked[wide:], kept, n=n, first=wide, alpha=alpha, along=ALONG, **ROLLOUTS, **LIKELY),
        ]


def _part(aligner: Aligner, asked: list[str], kept: Kept, *, n: int, **options: Any) -> list[Seen]:
    """The prompts from number `first` on, each with the seed of its number."""
    started = time.perf_counter()

    def keep(number: int, seen: Sequence[Seen]) -> None:
        kept.add(number, seen)
        if len(kept.responses) % 20 == 0:
            print(f"{len(kept.responses)} of {n} responses after {time.perf_counter() - started:.0f} s", flush=True)

    return asyncio.run(
        valued(
            aligner, asked, responses=1, max_new_tokens=MAX_NEW_TOKENS, seed=SEED, concurrency=16,
            known=kept.responses, on_response=keep, selection="sample", **options,
        )
    )  # fmt: skip


def halved(path: Path) -> None:
    """Store a head's weights in half precision, as the embedded models are."""
    weights = {name: tensor.half() for name, tensor in load_file(path).items()}
    with replacing(path) as working:
        save_file(weights, working)
    path.chmod(0o644)  # written as private


def main() -> None:
    """Roll out what is not kept from before; then train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, required=True, help="where the rollouts are kept")
    parser.add_argument("--reward", choices=("source", "target"), default="source")
    parser.add_argument("--prompts", type=int, default=3000)
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=1536)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--layer", type=int, default=None)
    parser.add_argument("--branch", type=int, default=2)
    parser.add_argument("--branch-learning-rate", type=float, default=7e-4)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    with Kept(given.log) as kept:
        seen = rollouts(given.prompts, kept, reward=given.reward, alpha=given.alpha, device=given.device)
    import torch
    from transformers import AutoModelForCausalLM

    if given.threads is not None:
        torch.set_num_threads(given.threads)
    own, started = OUT[given.reward], time.perf_counter()
    out = given.out or own
    model = AutoModelForCausalLM.from_pretrained(model_dir("baseline"), dtype="float32").eval()
    base = os.path.relpath(model_dir("baseline"), out)
    made = train_value(
        model, seen, base=base, out=out, loss="transfer-q", layer=given.layer, rank=given.rank, width=given.width,
        branch=given.branch, branch_learning_rate=given.branch_learning_rate, epochs=given.epochs,
        batch_size=given.batch_size, learning_rate=given.learning_rate, seed=SEED,
        on_progress=lambda doing, done, total: print(f"{doing}: {done} of {total}", flush=True),
    )  # fmt: skip
    halved(out / WEIGHTS)
    figures = {
        "parameters": sum(tensor.numel() for tensor in load_file(out / WEIGHTS).values()),
        "prompts": len({s.prompt for s in seen}),
        "examples": len(seen),
        "losses": [round(loss, 4) for loss in made.losses],
        "explained": round(made.explained, 4),
        "minutes": round((time.perf_counter() - started) / 60),
    }
    print(json.dumps(figures))
    if out == own:
        record = model_dir("baseline").parent / "build.json"
        report = json.loads(record.read_text())
        report["figures"][own.name] = figures
        record.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
