"""Train the embedded world's value head: Transfer Q*'s values by complete rollouts of the baseline, on its last layer.

Prompts are of the training split; nothing that the demo shows or tunes on is seen. `--log FILE` keeps the rollouts, so
that training can be tried again without them. Knows the embedded world and the training functions.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pickle
import random
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from alignstar.demo import model_dir
from alignstar.demo.customers import message
from alignstar.demo.settings import MAX_NEW_TOKENS, ROLLOUTS
from alignstar.loading import load
from alignstar.train.rollouts import Seen, valued
from alignstar.train.value import train_value

OUT = model_dir("baseline").parent / "value"
SEED = 0


def prompts(n: int) -> list[str]:
    """Messages of the training split."""
    rng = random.Random(f"{SEED} value")
    return [message(rng, split="train").text for _ in range(n)]


def rollouts(n: int, *, alpha: float, device: str) -> list[Seen]:
    """Values of all candidates along `n` responses, drawn by their scores so that states differ."""
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if done % 20 == 0:
            print(f"{done} of {n} responses after {time.perf_counter() - started:.0f} s", flush=True)

    started = time.perf_counter()
    with load(baseline=str(model_dir("baseline")), reward=str(model_dir("reward_source")), device=device) as aligner:
        return asyncio.run(
            valued(
                aligner, prompts(n), responses=1, max_new_tokens=MAX_NEW_TOKENS, seed=SEED, concurrency=16,
                on_response=count, alpha=alpha, selection="sample", **ROLLOUTS,
            )
        )  # fmt: skip


def main() -> None:
    """Roll out, or read what was rolled out before; then train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, required=True, help="where the rollouts are kept")
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--layer", type=int, default=None)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    if not given.log.exists():
        given.log.write_bytes(pickle.dumps(rollouts(given.prompts, alpha=given.alpha, device=given.device)))
    seen: list[Seen] = pickle.loads(given.log.read_bytes())
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir("baseline"), dtype="float32").eval()
    made = train_value(
        model, seen, base="../baseline", out=given.out, loss="transfer-q", layer=given.layer, rank=given.rank,
        width=given.width, epochs=given.epochs, learning_rate=given.learning_rate, seed=SEED,
    )  # fmt: skip
    print(json.dumps({"examples": len(seen), "losses": made.losses, "explained": made.explained}))


if __name__ == "__main__":
    main()
