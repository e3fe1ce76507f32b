"""The demo on tiny stand-ins for the embedded models: what it measures, how it chooses strengths, what it prints."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

import pytest

pytest.importorskip("torch")

import alignstar
import checkpoints
from alignstar import cli
from alignstar.demo import prompts, run, settings, true_reward, tuning
from alignstar.errors import OptionError
from alignstar.types import Message, Prompt, Response, Usage

TOKENS = 4
KEYS = {
    "setting", "method", "options", "prompts", "learned_reward", "true_reward", "true_reward_interval", "kl",
    "lm_tokens", "rm_tokens", "wall_s",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    for seed, name in enumerate(("sft", "baseline")):
        checkpoints.language_model(root / name, seed=seed, max_position_embeddings=512)
    for seed, name in enumerate(("reward_source", "reward_target")):
        checkpoints.classifier(root / name, seed=seed, max_position_embeddings=512)
        (root / name / "alignstar.json").write_text('{"low": -9.0, "high": 9.0}')
    (root / "baseline" / "alignstar.json").write_text('{"beta": 0.5}')
    return root


@pytest.fixture(autouse=True)
def _tiny(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    settings.baseline_beta.cache_clear()
    monkeypatch.setattr(settings, "model_dir", lambda name: folder / name)
    monkeypatch.setattr(tuning, "model_dir", lambda name: folder / name)
    monkeypatch.setattr(tuning, "sweep_file", lambda: tmp_path / "sweep.json")
    monkeypatch.setattr(tuning, "PROMPTS", 1)
    monkeypatch.setattr(tuning, "ALPHAS", (2.0, 0.5))
    monkeypatch.setattr("alignstar.demo.table.ALPHAS", (2.0, 0.5))
    monkeypatch.setattr(run, "MAX_NEW_TOKENS", TOKENS)
    monkeypatch.setattr(settings, "ROLLOUTS", {"k": 2, "rollout_len": 1})
    tuning.store(
        [
            tuning.Tried(setting=setting, method=plan.label, learned_rewards=(0.1, 0.2))
            for setting in settings.SETTINGS
            for plan in settings.plans(setting)
            if plan.tuned
        ]
    )
    yield
    settings.baseline_beta.cache_clear()


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main(["demo", *arguments])
    captured = capsys.readouterr()
    assert (ended.value.code, captured.err) == (0, "")
    return captured.out


def test_rows_have_what_was_promised(capsys: pytest.CaptureFixture[str]):
    rows = [json.loads(line) for line in command(capsys, "--json", "--prompts", "2").splitlines()]
    shared = ["sft-greedy", "baseline-greedy", "best-of-n", "args", "cd-minus"]
    assert [row["method"] for row in rows if row["setting"] == "direct"] == [*shared, "transfer-q"]
    assert [row["method"] for row in rows if row["setting"] == "indirect"] == [
        *shared,
        "transfer-q-direct",
        "transfer-q",
    ]
    for row in rows:
        assert set(row) >= KEYS
        low, high = row["true_reward_interval"]
        assert low <= row["true_reward"] <= high
        assert row["prompts"] == 2
        assert (row["transfer_q_gain"] is None) == (row["method"] == "transfer-q")
        assert row["kl_is_upper_bound"] == (row["method"] == "best-of-n")
    by_name = {(row["setting"], row["method"]): row for row in rows}
    assert by_name["direct", "best-of-n"]["kl"] == pytest.approx(math.log(16) - 15 / 16)
    for setting in settings.SETTINGS:
        winner = by_name[setting, "transfer-q"]["true_reward"]
        for name in shared:
            row = by_name[setting, name]
            assert row["transfer_q_gain"] == pytest.approx(winner - row["true_reward"])
        assert by_name[setting, "args"]["options"]["weight"] == 2.0
        assert by_name[setting, "cd-minus"]["options"]["alpha"] == 0.5
    assert by_name["indirect", "transfer-q"]["options"]["beta"] == 0.5


def test_rollout_methods_of_a_setting_share_k_and_length():
    for setting in settings.SETTINGS:
        rolling = [plan for plan in settings.plans(setting) if plan.method == "transfer-q"]
        assert len({(plan.options["k"], plan.options["rollout_len"]) for plan in rolling}) == 1
        assert all(
            plan.options["k"] == settings.ROLLOUTS["k"] for plan in settings.plans(setting) if plan.label == "args"
        )


def test_measures_are_those_of_the_replies():
    messages = prompts("demo")[:2]
    aligner = alignstar.demo("indirect")
    plan = settings.plans("indirect")[0]
    ticks: list[int] = []
    row = asyncio.run(
        run.decode(aligner, "indirect", plan, messages=messages, alpha=None, on_reply=lambda: ticks.append(1))
    )
    assert len(ticks) == 2
    for message, reply, learned, true in zip(messages, row.replies, row.learned, row.true, strict=True):
        again = aligner.generate(message, method="greedy", model="sft", max_new_tokens=TOKENS)
        assert again.ids == reply.ids
        assert again.reward == pytest.approx(learned, abs=1e-4)
        complete = reply.finish_reason == "stop"
        assert true == true_reward("target", message=message, reply=reply.text, complete=complete)
    # Greedy decoding of the SFT model: the KL is the sum of its own steps' -log pi.
    steps = [step.considered[step.chosen].logp for reply in row.replies for step in reply.steps]
    assert row.kl == pytest.approx(-sum(steps) / 2, abs=1e-3)


def row(label: str, true: tuple[float, ...]) -> run.Row:
    reply = Response(
        prompt=Prompt(messages=(Message(role="user", content="a"),), text="a", ids=(0,)), text="b", ids=(5,),
        method="greedy", finish_reason="stop", reward=1.0, seed=0, usage=Usage(lm_tokens=3),
    )  # fmt: skip
    return run.Row(
        setting="direct", plan=settings.Plan(label=label, method="greedy"), options={}, replies=(reply,) * len(true),
        learned=(1.0,) * len(true), true=true, kl=2.0, kl_is_bound=False, seconds=1.0,
    )  # fmt: skip


def test_a_gain_is_what_transfer_q_has_more():
    worse, best = row("args", (0.1, 0.2, 0.3)), row("transfer-q", (0.3, 0.4, 0.5))
    found = run.as_json(worse, best)
    assert found["transfer_q_gain"] == pytest.approx(0.2)
    assert found["transfer_q_gain_interval"] == pytest.approx([0.2, 0.2])
    assert (found["true_reward"], found["lm_tokens"]) == (pytest.approx(0.2), 3.0)
    assert run.as_json(best, best)["transfer_q_gain"] is None
    assert run.as_json(worse, None)["transfer_q_gain_interval"] is None


def test_the_strength_is_the_one_with_the_best_learned_reward():
    tried = tuning.Tried(setting="direct", method="args", learned_rewards=(0.3, 0.3))
    assert tried.alpha == 2.0
    assert tuning.Tried(setting="direct", method="args", learned_rewards=(0.1, 0.3)).alpha == 0.5


def test_tuning_runs_the_grid_and_is_stored(capsys: pytest.CaptureFixture[str]):
    out = command(capsys, "--tune")
    stored = json.loads(tuning.sweep_file().read_text())
    assert stored["models_sha256"] == tuning.models_digest()
    assert [len(row["learned_rewards"]) for row in stored["sweep"]] == [2] * 7
    assert all(row["alpha"] in (2.0, 0.5) for row in stored["sweep"])
    assert "transfer-q-direct" in out
    assert command(capsys, "--sweep") == out


def test_the_tables_name_every_method(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    out = command(capsys, "--prompts", "1", "--svg", str(tmp_path / "demo.svg"))
    for text in ("direct: reward = source", "indirect: reward = target", "best-of-n", "transfer-q-direct", "≤"):
        assert text in out
    assert (tmp_path / "demo.svg").read_text().startswith("<svg")


def test_an_unknown_setting_is_refused():
    with pytest.raises(OptionError, match="sideways"):
        alignstar.demo("sideways")
