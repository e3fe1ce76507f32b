"""What `bench plan` promises: hand-computed numbers, and the Usage of real runs on toy and tiny models."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from alignstar import cli
from alignstar.aligner import Aligner
from alignstar.bench.plan import Cost, costs, measured_speed, price
from alignstar.bench.shapes import Shape, shape_of
from alignstar.errors import ModelError, OptionError
from alignstar.models.toy import ToyCodec, ToyModel, ToyReward
from alignstar.types import Usage

V = 6
PROMPT = "ABC"
SMALL = Shape(
    layers=2, hidden=8, heads=4, kv_heads=2, head_dim=3, intermediate=16, vocab=50, dtype="bfloat16"
)  # fmt: skip


def usage(method: str, response: int, **options: Any) -> Usage:
    """Of a toy model that does not end, every position and reward charged as a transformers backend would."""
    sft, baseline = (ToyModel.random(1, V, eos_weight=1e-12) for _ in range(2))
    aligner = Aligner(sft=sft, baseline=baseline, reward=ToyReward(seed=1, declared=True), codec=ToyCodec(V))
    made = aligner.generate(PROMPT, method=method, max_new_tokens=response, **options)
    assert len(made.ids) == response
    return made.usage


def planned(method: str, response: int, way: int = 0, **options: Any) -> Cost:
    return costs(method, options, prompt=len(PROMPT), response=response, vocab=V)[way]


def counts(of: Usage | Cost, *names: str) -> tuple[int, ...]:
    return tuple(getattr(of, name) for name in names)


ALL = ("lm_tokens", "rm_tokens", "sequential_steps")


@pytest.mark.parametrize("response", [1, 2, 7])
@pytest.mark.parametrize("method", ["greedy", "sample", "args", "dera", "genarm"])
def test_token_by_token_methods_cost_what_was_planned(method: str, response: int):
    options = {"k": 3} if method == "args" else {}
    assert counts(usage(method, response, **options), *ALL) == counts(planned(method, response, **options), *ALL)


def test_best_of_n_costs_at_most_what_was_planned():
    real, plan = usage("best-of-n", 7, n=4), planned("best-of-n", 7, n=4)
    assert counts(real, *ALL) == counts(plan, *ALL)
    assert plan.lm_tokens == 3 + 4 * 6


@pytest.mark.parametrize("past", [True, False])
@pytest.mark.parametrize("length", [0, 1, 5, None])
@pytest.mark.parametrize("response", [1, 2, 7, 20])
def test_transfer_q_without_acceleration_costs_what_was_planned(response: int, length: int | None, past: bool):
    options = {"k": 3, "rollout_len": length, "rollout_past_max": past, "acceleration": "off"}
    plan = planned("transfer-q", response, -1, **options)
    assert counts(usage("transfer-q", response, **options), *ALL) == counts(plan, *ALL)


@pytest.mark.parametrize("past", [True, False])
@pytest.mark.parametrize("response", [1, 7, 20])
@pytest.mark.parametrize("window", [1, 3, 8])
def test_the_accelerated_form_lies_between_its_two_extremes(window: int, response: int, past: bool):
    options = {"k": 3, "rollout_len": 5, "rollout_past_max": past, "window": window}
    ways = costs("transfer-q", options, prompt=3, response=response, vocab=V)
    nothing, everything = ways[-2:]
    # So weak a reward that the most probable token always wins: what is looked at ahead is never thrown away.
    unskipped = usage("transfer-q", response, **options, skip=False, alpha=1e8)
    assert counts(unskipped, "lm_tokens", "sequential_steps") == counts(nothing, "lm_tokens", "sequential_steps")
    skipped = usage("transfer-q", response, **options, alpha=1e8)
    assert counts(skipped, "lm_tokens", "sequential_steps") == counts(everything, "lm_tokens", "sequential_steps")
    if window == 1:
        assert unskipped.rm_tokens == nothing.rm_tokens
        assert skipped.rm_tokens == everything.rm_tokens
    between = usage("transfer-q", response, **options, alpha=0.3)
    assert between.lm_tokens >= everything.lm_tokens


def test_the_worked_example():
    """P=100, T=128, k=10, L=20, by hand: S = TP + T(T+1)/2 = 21,056."""
    published, shared, nothing, everything = costs(
        "transfer-q", {"k": 10, "rollout_len": 20, "rollout_past_max": True}, prompt=100, response=128, vocab=4096
    )
    assert counts(published, *ALL) == (227 + 10 * (21_056 + 128 * 19), 10 * (21_056 + 128 * 20), 128 * 21)
    assert counts(published, *ALL) == (235_107, 236_160, 2_688)
    assert counts(shared, *ALL) == (100 + 10 * 128 * 20, 100 + 10 * 128 * 21, 128 * 20 + 1) == (25_700, 26_980, 2_561)
    assert counts(nothing, "lm_tokens", "rm_tokens") == (100 + 200 + 127 * 181, 100 + 210 + 127 * 190)
    assert nothing.lm_tokens == 23_287
    assert counts(everything, *ALL) == (100 + 127 + 20, 100 + 128 + 20, 148)
    assert shared.lm_kv == 100 + 128 + 10 * 20
    assert published.lm_kv == 10 * (100 + 127 + 20)


def test_rollouts_that_are_drawn_share_only_their_candidate():
    published, shared = costs(
        "transfer-q",
        {"k": 2, "num_rollouts": 3, "rollout_strategy": "sample", "rollout_len": 4, "rollout_past_max": True},
        prompt=5, response=2, vocab=50,
    )  # fmt: skip
    assert published.lm_tokens == (5 + 1) + 6 * (5 + 4) + 6 * (6 + 4)
    assert shared.lm_tokens == 5 + 2 * 2 * (1 + 3 * 3)
    assert shared.rm_tokens == 5 + 2 * 2 * (1 + 3 * 4)


def test_indirect_transfer_reads_two_rewards_and_shorter_rollouts():
    direct, indirect = (
        costs("transfer-q", {"transfer": how, "rollout_len": 5, "k": 2}, prompt=5, response=9, vocab=50)[1]
        for how in ("direct", "indirect")
    )
    assert indirect.rm_tokens == 2 * direct.rm_tokens
    assert indirect.lm_tokens == direct.lm_tokens
    assert costs("transfer-q", {"transfer": "indirect", "k": 2}, prompt=5, response=9, vocab=50)[1] == indirect


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("nope", {}, "nope"),
        ("transfer-q", {"candidate_source": "union"}, "candidate_source='union'"),
        ("transfer-q", {"block": 2}, "block=2"),
        ("transfer-q", {"base_policy": "sft"}, "base_policy='sft'"),
        ("transfer-q", {"k": 0}, "k=0"),
        ("greedy", {"k": 3}, "k"),
    ],
)
def test_what_has_no_formula_is_refused(method: str, options: dict[str, Any], said: str):
    with pytest.raises(OptionError, match=said):
        costs(method, options, prompt=3, response=3, vocab=9)


def test_shapes_by_hand():
    assert SMALL.kv_bytes == 2 * 2 * 2 * 3 * 2  # key and value, layers, key-value heads, channels, bytes
    products = 2 * (2 * 8 * 3 * (4 + 2) + 3 * 8 * 16)  # q and o of 4 heads, k and v of 2; gate, up and down
    assert SMALL.parameters == products + 2 * 50 * 8
    assert SMALL.flops(10) == 2 * (products + 50 * 8) + 4 * 2 * 4 * 3 * 10


def test_a_run_is_priced_from_its_prompts():
    cost = Cost(way="w", lm_tokens=100, rm_tokens=40, sequential_steps=10, lm_kv=30, rm_kv=20)
    reward = Shape(layers=1, hidden=8, heads=4, kv_heads=4, head_dim=2, intermediate=16, vocab=50, dtype="float32")
    asked: list[int] = []

    def speed(width: int) -> float:
        asked.append(width)
        return 50.0

    priced = price(cost, prompts=3, together=2, shape=SMALL, reward=reward, speed=speed)
    assert (priced.lm_tokens, priced.rm_tokens) == (300, 120)
    assert priced.kv_bytes == 2 * (30 * SMALL.kv_bytes + 20 * 2 * 4 * 2 * 4)
    assert priced.seconds == pytest.approx((300 + 120 * reward.flops(30) / SMALL.flops(30)) / 50.0)
    assert asked == [2 * 100 // 10]
    assert set(priced.as_json()) == {"way", "lm_tokens", "rm_tokens", "kv_bytes", "seconds", "per_prompt"}


def test_the_published_loop_runs_one_prompt_at_a_time():
    cost = Cost(way="w", lm_tokens=10, rm_tokens=0, sequential_steps=10, lm_kv=30, rm_kv=0, alone=True)
    assert price(cost, prompts=9, together=4, shape=SMALL, reward=SMALL, speed=lambda _: 1.0).kv_bytes == (
        30 * SMALL.kv_bytes
    )


def test_a_measured_speed_is_one_per_width():
    speed = measured_speed(SMALL, context=10, seconds=0.001)
    assert speed(3) == speed(2) > 0  # rounded down to a power of two
    assert speed(999) == speed(256)


LLAMA = {
    "num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 3,
    "intermediate_size": 16, "vocab_size": 50, "dtype": "bfloat16", "model_type": "llama",
}  # fmt: skip


def folder_with(folder: Path, config: object, name: str = "config.json") -> str:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(config if isinstance(config, str) else json.dumps(config))
    return str(folder)


def test_a_shape_is_read_from_a_configuration(tmp_path: Path):
    assert shape_of(folder_with(tmp_path / "llama", LLAMA), {}) == SMALL
    assert shape_of(folder_with(tmp_path / "nested", {"text_config": LLAMA}), {}) == SMALL
    assert shape_of(str(tmp_path / "llama"), {"dtype": "float32"}).kv_bytes == 2 * SMALL.kv_bytes
    adapter = folder_with(tmp_path / "lora", {"base_model_name_or_path": "../llama"}, "adapter_config.json")
    assert shape_of(adapter, {}) == SMALL
    gpt2 = {"n_layer": 3, "n_embd": 12, "n_head": 2, "n_inner": None, "vocab_size": 9, "model_type": "gpt2"}
    assert shape_of(folder_with(tmp_path / "gpt2", gpt2), {}) == Shape(
        layers=3, hidden=12, heads=2, kv_heads=2, head_dim=6, intermediate=48, vocab=9, dtype="float32",
        feed_forward_matrices=2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("config", "given", "said"),
    [
        (None, {}, "layers; give it with --layers"),
        ({**LLAMA, "vocab_size": None}, {}, "vocab"),
        ({**LLAMA, "dtype": "int4"}, {}, "int4"),
        ("{", {}, "not JSON"),
        ("[1]", {}, "no JSON object"),
    ],
)
def test_a_bad_shape_is_one_sentence(tmp_path: Path, config: object, given: dict[str, int], said: str):
    with pytest.raises(ModelError, match=said) as refused:
        shape_of(None if config is None else folder_with(tmp_path / "model", config), given)
    assert str(refused.value).endswith(".")


@dataclass(frozen=True)
class Ran:
    status: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def call(*arguments: str | Path) -> Ran:
        with pytest.raises(SystemExit) as ended:
            cli.main(["bench", "plan", *(str(a) for a in arguments)])
        captured = capsys.readouterr()
        return Ran(int(ended.value.code or 0), captured.out, captured.err)

    return call


SIZES = ("--layers", "2", "--hidden", "8", "--heads", "4", "--vocab", "50", "--tokens-per-s", "100")


def test_the_command_prints_and_records(run: Callable[..., Ran], tmp_path: Path):
    out = tmp_path / "plan.json"
    ran = run(*SIZES, "--prompts", "3", "--prompt-tokens", "10", "--max-new-tokens", "5", "-o", "k=4", "--out", out)
    assert ran.status == 0, ran.err
    for word in ("LM tokens", "RM tokens", "steps", "KV MiB", "seconds", "published loop", "certified"):
        assert word in ran.out
    told = json.loads(out.read_text())
    assert list(told) == ["bench", "machine", "versions", "commit", "settings", "peak_rss_bytes", "runs"]
    assert told["settings"]["option"] == ["k=4"]
    assert told["runs"][0]["lm_tokens"] == 3 * told["runs"][0]["per_prompt"]["lm_tokens"]
    printed = json.loads(run(*SIZES, "--method", "greedy", "--json").out)
    assert [row["way"] for row in printed["runs"]] == ["token by token"]
    assert printed["runs"][0]["seconds"] == pytest.approx((64 + 127) / 100)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), ("layers", "--layers")),
        (("/no/model",), ("/no/model", "config.json")),
        ((*SIZES, "--tokens-per-s", "0"), ("tokens_per_s=0",)),
        ((*SIZES, "--dtype", "int3"), ("int3",)),
        ((*SIZES, "--method", "nope"), ("nope", "greedy")),
        ((*SIZES, "-o", "k=0"), ("k=0",)),
        ((*SIZES, "-o", "kk=3"), ("kk", "did you mean")),
        ((*SIZES, "--out", "/no/such/folder/file"), ("--out", "cannot be written")),
    ],
)
def test_bad_input_is_one_sentence(run: Callable[..., Ran], arguments: tuple[str, ...], said: tuple[str, ...]):
    ran = run(*arguments)
    assert ran.status == 2, ran.err
    lines = ran.err.strip().splitlines()
    assert len(lines) == 1, ran.err
    assert all(word in lines[0] for word in said), lines[0]


def test_planning_loads_no_torch():
    script = (
        "import sys\nfrom alignstar.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n"
        "    assert not end.code\nassert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, "bench", "plan", *SIZES], check=True, capture_output=True)
