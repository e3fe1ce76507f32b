"""The benchmarks on tiny models: exact counts, equal ids, a wrong decoder reported, records with all their keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from alignstar import cli
from alignstar.bench import greedy, memory, random_models, rows, setups, tq
from alignstar.bench.setups import Setup, random_setup
from alignstar.cli import bench_tables

TINY = random_models.Shape(
    vocab_size=150,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    max_position_embeddings=128,
)
P, T, K, L = 5, 6, 4, 3
WORK = tq.Work(tokens=T, repeats=1, k=K, rollout_len=L)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("random models")


def opened(scratch: Path, prompts: int = 1, *, flat: bool = False) -> Setup:
    """In float64, so that no near tie is excused."""
    setup = random_setup(prompts, prompt_tokens=P, scratch=scratch, shape=TINY, name="tiny", flat=flat)
    setup.model.double()
    setup.judge.model.double()
    return replace(setup, clip=1.0)


def silent(name: str) -> None:
    """Nobody watches."""


def test_naive_pushes_what_its_shapes_say(scratch: Path):
    decoded = tq.naive(opened(scratch), WORK)
    lengths = range(P, P + T)
    assert decoded.emitted == T
    # A step reads its state, then k rows of state, candidate and all but the last token of a rollout.
    assert round(decoded.counts["lm_tokens"] * T) == sum(n + K * (n + 1 + L - 1) for n in lengths)
    assert round(decoded.counts["rm_tokens"] * T) == sum(K * (n + 1 + L) for n in lengths)
    assert decoded.counts["sequential_steps"] == 1 + L
    assert decoded.counts["lm_kv"] == K * (P + T - 1 + 1 + L - 1)  # what a rollout ends with is not pushed
    assert decoded.counts["rm_kv"] == K * (P + T - 1 + 1 + L)


@pytest.mark.parametrize(
    ("clip", "alpha", "flat"),
    [(1.0, 1.0, False), (2.0, 0.1, True), (4.0, 10.0, False), (None, 1.0, True), (None, 0.1, False)],
)
def test_every_way_gives_naives_ids(scratch: Path, clip: float | None, alpha: float, flat: bool):
    setup = replace(opened(scratch, 2, flat=flat), clip=clip)
    outcome = tq.run(setup, replace(WORK, alpha=alpha, tokens=4), on_way=silent)
    names = [row.name for row in outcome.rows]
    assert names[0] == tq.NAIVE
    assert ("+ certified skipping" in names) == (clip is not None)
    assert outcome.wrong == []
    assert {r["name"]: r["ids_equal"] for r in outcome.as_json()["rows"] if r["name"] not in tq.PLAIN} == {
        name: True for name in names if name not in tq.PLAIN
    }
    low, high = random_models.FLAT if flat else random_models.PEAKED
    assert low <= outcome.prompt_entropy <= high


def test_the_counts_of_ours_are_shares_and_usage(scratch: Path):
    outcome = tq.run(opened(scratch), WORK, on_way=silent)
    counts = {row.name: row.counts for row in outcome.rows}
    plain, mine = counts["shared prefixes"], counts[tq.OURS]
    # Prompt, k rollouts, and then k - 1 of them at every step: the winner's is known but for its last token.
    assert round(plain["lm_tokens"] * T) == P + K * L + (T - 1) * ((K - 1) * L + 1)
    assert plain["candidates"] == mine["candidates"] == K
    assert plain["evaluated"] == 1.0
    assert plain["without_rollout"] == 0.0
    assert mine["evaluated"] == 1.0 - mine["certified"] / K
    assert mine["lm_tokens"] <= plain["lm_tokens"]
    assert counts[tq.GREEDY]["lm_tokens"] * T == P + T - 1
    assert counts[tq.GENERATE]["lm_tokens"] * T == P + T - 1
    assert counts[tq.GENERATE]["sequential_steps"] == 1


def test_naive_may_decode_fewer_tokens_and_is_compared_on_those(scratch: Path):
    outcome = tq.run(opened(scratch), replace(WORK, naive_tokens=2, each_saving=False), on_way=silent)
    assert [row.name for row in outcome.rows] == [tq.NAIVE, tq.OURS, *tq.PLAIN]
    assert (outcome.naive.tokens, outcome.rows[1].tokens) == (2, T)
    assert outcome.wrong == []
    told = outcome.as_json()
    assert (told["tokens"], told["naive_tokens"]) == (T, 2)
    assert "(naive 2)" in str(bench_tables.transfer_q(outcome).title)


def test_a_wrong_decoder_is_reported(scratch: Path, monkeypatch: pytest.MonkeyPatch):
    right = tq.naive

    def wrong(setup: Setup, work: tq.Work) -> rows.Decoded:
        decoded = right(setup, work)
        (ids,) = decoded.ids
        return replace(decoded, ids=((*ids[:3], (ids[3] + 1) % TINY.vocab_size, *ids[4:]),))

    monkeypatch.setattr(tq, "naive", wrong)
    outcome = tq.run(opened(scratch), WORK, on_way=silent)
    assert outcome.wrong == list(tq.SAVINGS)
    for row in outcome.as_json()["rows"]:
        if row["name"] in tq.SAVINGS:
            assert row["first_difference"] == {"prompt": 0, "token": 3, "near_tie": False}
            assert row["ids_equal"] is False


def decoded(*ids: tuple[int, ...], seconds: float = 1.0, doubtful: tuple[frozenset[int], ...] = ()) -> rows.Decoded:
    return rows.Decoded(ids=ids, seconds=seconds, counts={}, doubtful=doubtful)


def test_differences_are_found_in_any_repeat_and_near_ties_only_where_they_are():
    reference = rows.Row("naive", [decoded((1, 2, 3), (4, 5, 6))])
    same = rows.Row("same", [decoded((1, 2, 3, 9), (4, 5, 6, 9))])
    assert same.difference(reference) is None
    late = rows.Row("late", [decoded((1, 2, 3), (4, 5, 6)), decoded((1, 2, 3), (4, 0, 0))])
    assert late.difference(reference) == rows.Difference(prompt=1, token=1, near_tie=False)
    elsewhere = (frozenset({1}), frozenset({2}))
    doubted = rows.Row("doubted", [decoded((1, 2, 3), (4, 0, 6), doubtful=elsewhere)])
    assert doubted.difference(reference) == rows.Difference(prompt=1, token=1, near_tie=False)
    doubted = rows.Row("doubted", [decoded((1, 2, 3), (4, 0, 6), doubtful=(frozenset(), frozenset({1})))])
    assert doubted.difference(reference) == rows.Difference(prompt=1, token=1, near_tie=True)


def test_ratios_are_medians_of_pairs_per_token():
    slow = rows.Row("slow", [decoded((1, 2), seconds=s) for s in (2.0, 4.0, 6.0)])
    fast = rows.Row("fast", [decoded((1, 2, 3, 4), seconds=s) for s in (1.0, 1.0, 4.0)])
    # per token: 1, 2, 3 against 0.25, 0.25, 1: pairs 4, 8, 3
    assert fast.times_faster_than(slow) == 4.0
    assert slow.seconds_per_token == 2.0


def test_repeats_alternate():
    order: list[str] = []

    def way(name: str) -> Callable[[], rows.Decoded]:
        return lambda: order.append(name) or decoded((1,))

    made = rows.alternate({"a": way("a"), "b": way("b")}, repeats=2, on_way=silent)
    assert order == ["a", "b", "a", "b"]
    assert [len(row.runs) for row in made] == [2, 2]


def test_greedy_gives_what_generate_gives(scratch: Path):
    setup = opened(scratch, 3)
    uneven = replace(setup.prompts[0], ids=setup.prompts[0].ids[:2])  # padded at the left beside the others
    outcome = greedy.run(replace(setup, prompts=(uneven, *setup.prompts[1:])), tokens=T, repeats=2, on_way=silent)
    assert outcome.difference is None
    assert outcome.wrong == []
    told = outcome.as_json()
    assert told["ids_equal"] is True
    assert [len(row["seconds"]) for row in told["rows"]] == [2, 2]
    assert [row["emitted"] for row in told["rows"]] == [3 * T, 3 * T]
    setup.model.lm_head.weight.data[outcome.rows[0].runs[0].ids[0][0]] *= -1.0
    moved = greedy.run(setup, tokens=T, repeats=1, on_way=silent).rows[0]
    assert moved.difference(outcome.rows[0]) is not None  # the comparison does look at the model's ids


def test_memory_is_counted_against_prompt_response_and_rollouts(scratch: Path):
    outcome = memory.run(opened(scratch), WORK, factors=(1.3,), repeats=1, on_way=silent)
    assert outcome.needed == P + T + K * L
    assert outcome.bounds == (setups.KV_TOKENS, int(1.3 * outcome.needed))
    assert outcome.kv_bytes == 2 * 2 * 2 * 8 * 8  # key and value, layers, heads, channels, bytes
    wide, narrow = outcome.rows
    assert narrow.counts["lm_kv"] <= outcome.bounds[1]
    assert outcome.share(wide) == wide.counts["lm_kv"] / outcome.needed
    assert outcome.wrong == []
    told = outcome.as_json()["rows"]
    assert [row["ids_equal"] for row in told] == [True, True]
    assert told[1]["x_needed"] == outcome.share(narrow)


def test_random_models_are_written_once_and_prompts_do_not_depend_on_their_number(scratch: Path):
    first = opened(scratch, 2)
    weights = scratch / f"tiny-2x{P}" / "baseline" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    assert opened(scratch, 2).prompts == first.prompts
    assert weights.stat().st_mtime_ns == written
    assert opened(scratch, 1).prompts == first.prompts[:1]
    assert {len(p.ids) for p in first.prompts} == {P}
    raw = torch.cat([first.judge.of_ids([list(p.ids)]) for p in first.prompts])
    assert bool(raw.isfinite().all())
    assert first.std > 0


def test_the_embedded_models_are_a_work():
    setup = replace(setups.demo_setup(2), clip=1.0)
    assert setup.name == "demo"
    assert len(setup.prompts) == 2
    assert setup.std > 0
    outcome = tq.run(setup, tq.Work(tokens=2, repeats=1, k=3, rollout_len=2, each_saving=False), on_way=silent)
    assert outcome.wrong == []
    assert [len(ids) for row in outcome.rows for ids in row.runs[0].ids] == [2] * 8


@dataclass(frozen=True)
class Ran:
    status: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def call(*arguments: str | Path) -> Ran:
        with pytest.raises(SystemExit) as ended:
            cli.main(["bench", *(str(a) for a in arguments)])
        captured = capsys.readouterr()
        return Ran(int(ended.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture
def tiny_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's 30m, but tiny."""
    real = setups.random_setup

    def small(count: int, **given: Any) -> Setup:
        return real(count, **given, shape=TINY, name="tiny")

    monkeypatch.setattr(setups, "random_setup", small)


ROW = {
    "name", "seconds", "emitted", "tokens", "x_naive", "ids_equal", "first_difference", "lm_tokens", "rm_tokens",
    "sequential_steps", "lm_kv", "rm_kv", "evaluated", "without_rollout", "near_ties", "discarded_tokens",
}  # fmt: skip


def flags(how: dict[str, Any]) -> list[str]:
    return [str(word) for name, value in how.items() for word in (f"--{name}", value)]


RECORD = ["bench", "machine", "versions", "commit", "settings", "peak_rss_bytes", "runs"]


@pytest.mark.usefixtures("tiny_work")
def test_one_command_runs_every_combination_and_records_it(run: Callable[..., Ran], tmp_path: Path):
    out = tmp_path / "new" / "tq.json"
    out.parent.mkdir()
    how = {
        "work": "30m", "prompts": "1,2", "prompt-tokens": "4", "clip": "1,none", "alpha": "0.1", "tokens": 3,
        "naive-tokens": 2, "repeats": 1, "k": 3, "rollout-len": 2, "out": out,
    }  # fmt: skip
    ran = run("tq", "--ours-only", *flags(how))
    assert ran.status == 0, ran.err
    for word in ("no range", "clip +-1", "entropy", "evaluated", "no rollout", "LM", "steps", "KV", "equal", "naive 2"):
        assert word in ran.out
    told = json.loads(out.read_text())
    assert list(told) == RECORD
    assert told["bench"] == "tq"
    assert set(told["machine"]) == {"platform", "cpu", "cores", "threads", "accelerator"}
    assert set(told["versions"]) == {"python", "alignstar", "torch", "transformers", "numpy"}
    assert told["settings"]["naive_tokens"] == 2
    assert [(r["setup"], r["prompts"], r["clip"], r["alpha"]) for r in told["runs"]] == [
        ("tiny, prompt 4", count, clip, 0.1) for count in (1, 2) for clip in (1.0, None)
    ]
    assert set(told["runs"][0]["rows"][1]) >= ROW


@pytest.mark.usefixtures("tiny_work")
def test_wrong_ids_are_an_exit_status(run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    right = tq.generate

    def wrong(setup: Setup, *, tokens: int) -> rows.Decoded:
        found = right(setup, tokens=tokens)
        return replace(found, ids=tuple((*ids[:-1], (ids[-1] + 1) % TINY.vocab_size) for ids in found.ids))

    monkeypatch.setattr(greedy, "generate", wrong)
    out = tmp_path / "greedy.json"
    how = {"work": "30m", "prompts": 1, "prompt-tokens": 4, "tokens": 2, "repeats": 1, "out": out}
    ran = run("greedy", *flags(how))
    assert ran.status == 1
    assert "DIFFER" in ran.out
    assert ran.err.strip().endswith("no near tie excuses it: greedy.")
    assert json.loads(out.read_text())["runs"][0]["ids_equal"] is False


@pytest.mark.usefixtures("tiny_work")
def test_memory_prints_and_records(run: Callable[..., Ran], tmp_path: Path):
    out = tmp_path / "memory.json"
    how = {
        "prompt-tokens": 9, "tokens": 3, "k": 3, "rollout-len": 2, "clip": "none", "bound": "1.5,2", "out": out,
    }  # fmt: skip
    ran = run("memory", *flags(how))
    assert ran.status == 0, ran.err
    (told,) = json.loads(out.read_text())["runs"]
    assert told["needed"] == 9 + 3 + 6
    assert [row["bound"] for row in told["rows"]] == [setups.KV_TOKENS, 27, 36]
    assert "x needed" in ran.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("tq", "--work", "31m"), ("31m", "demo, 30m")),
        (("tq", "--prompts", "1,x"), ("prompts='x'", "whole number")),
        (("tq", "--prompt-tokens", "0"), ("prompt_tokens='0'",)),
        (("tq", "--clip", "1,-2"), ("clip='-2'",)),
        (("tq", "--clip", "nan"), ("clip='nan'",)),
        (("tq", "--alpha", "0"), ("alpha='0'",)),
        (("tq", "--flat"), ("--work 30m",)),
        (("greedy", "--device", "toaster"), ("toaster",)),
        (("memory", "--bound", "inf"), ("bound='inf'",)),
        (("tq", "--out", "/no/such/folder/file"), ("--out", "cannot be written")),
    ],
)
def test_bad_requests_are_one_sentence(run: Callable[..., Ran], arguments: tuple[str, ...], said: tuple[str, ...]):
    ran = run(*arguments)
    assert ran.status == 2, ran.err
    lines = ran.err.strip().splitlines()
    assert len(lines) == 1, ran.err
    assert all(word in lines[0] for word in said), lines[0]
