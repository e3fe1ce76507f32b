"""The training functions and the models they made: formats, sizes, and a quick rebuild of the whole demo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import alignstar.demo as demo

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

MODELS = demo.model_dir("sft").parent
SCRIPT = Path(__file__).parent.parent / "scripts" / "build_demo.py"


def weights(path: Path) -> Path:
    """The reward models are adapters on the SFT model; the language models are whole."""
    return path / ("adapter_model.safetensors" if "reward" in path.name else "model.safetensors")


def test_shipped_models_are_small_and_hold_no_pickle() -> None:
    files = [f for f in MODELS.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 15_000_000
    assert {f.suffix for f in files} <= {".json", ".jinja", ".safetensors"}
    for name in demo.MODELS:
        assert weights(demo.model_dir(name)).is_file()


def test_shipped_figures_meet_their_promises() -> None:
    report = json.loads((MODELS / "build.json").read_text())
    figures = report["figures"]
    assert figures["sft"]["distinct"] >= 0.9 * report["plan"]["n_samples"]
    assert figures["sft"]["p95_tokens"] < 64
    assert figures["sft"]["entropy_at_sentence_start"] > 4 * figures["sft"]["entropy_inside"]
    assert figures["baseline"]["sampled_source"] > figures["sft"]["sampled_source"]
    for name in demo.REWARDS:
        notes = json.loads((demo.model_dir(f"reward_{name}") / "alignstar.json").read_text())
        # The aim is 0.85; what these models miss of it, and why, is in dev/LOG.md.
        assert notes["accuracy_true"] > 0.7
        assert notes["low"] < notes["mean"] < notes["high"]
        assert notes["std"] > 0
    assert json.loads((demo.model_dir("baseline") / "alignstar.json").read_text())["beta"] > 0


@pytest.mark.parametrize("name", ["sft", "baseline"])
def test_shipped_language_models_write_known_sentences_that_end(name: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from alignstar.demo.truth import read_reply
    from alignstar.train.generation import generate_answers

    tokenizer = AutoTokenizer.from_pretrained(demo.model_dir(name))
    model = AutoModelForCausalLM.from_pretrained(demo.model_dir(name), dtype=torch.float32)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert 2e6 <= model.num_parameters() <= 4e6
    asked = demo.prompts("tuning")[:16]
    answers = generate_answers(model, tokenizer=tokenizer, prompts=asked, temperature=0.0)
    readings = [read_reply(a, text, complete=done) for a, (text, done) in zip(asked, answers, strict=True)]
    assert sum(r.complete for r in readings) >= 15
    assert sum(r.unknown for r in readings) <= 3


@pytest.mark.parametrize("name", demo.REWARDS)
def test_shipped_reward_models_prefer_what_the_truth_prefers(name: str) -> None:
    from alignstar.models.hf.checkpoint import open_classifier
    from alignstar.train.reward import score

    model, tokenizer = open_classifier(str(demo.model_dir(f"reward_{name}")), torch.float32)
    assert model.config.num_hidden_layers >= 8
    asked = "The kettle arrived broken."
    good, bad = (
        "I will send you a new kettle free of charge.",
        "This is not my problem. Please send me your card number.",
    )
    scores = score(
        model, tokenizer=tokenizer, exchanges=[(asked, good, True), (asked, bad, True), (asked, good, False)]
    )
    assert scores[0] > scores[1]
    assert scores[0] > scores[2]


def test_a_pair_cut_short_is_refused_by_dpo(tmp_path: Path) -> None:
    from alignstar.train.dpo import train_dpo
    from alignstar.train.reward import Pair

    pair = Pair(prompt="p", chosen="a", rejected="b", rejected_complete=False)
    with pytest.raises(ValueError, match="complete answers"):
        train_dpo(None, tokenizer=None, pairs=[pair], output_dir=tmp_path, beta=0.1)


@pytest.mark.slow
def test_the_quick_build_rebuilds_everything(tmp_path: Path) -> None:
    env = os.environ | {"OMP_NUM_THREADS": "2"}
    command = [sys.executable, str(SCRIPT), "--quick", "--out", str(tmp_path / "models"), "--work", str(tmp_path / "w")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3_000:]
    report = json.loads((tmp_path / "models" / "build.json").read_text())
    assert set(report["seconds"]) == {"sft", "pairs", "rewards", "baseline", "figures"}
    for name in demo.MODELS:
        assert weights(tmp_path / "models" / name).is_file()
        assert not list((tmp_path / "models" / name).glob("*.bin"))
