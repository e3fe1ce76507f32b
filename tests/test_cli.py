"""The command line: every bad input is one sentence and the right status, and what comes out is what was promised."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from alignstar import cli
from alignstar.errors import EngineError, OptionError

pytest.importorskip("torch")

import checkpoints


@dataclass(frozen=True)
class Ran:
    status: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))

    def call(*arguments: str | Path) -> Ran:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Ran(int(ended.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    checkpoints.language_model(root / "sft", seed=1)
    checkpoints.language_model(root / "baseline", seed=2)
    checkpoints.language_model(root / "other-words", seed=3, with_tokenizer=checkpoints.tokenizer(shuffled=True))
    checkpoints.language_model(
        root / "no-bos", seed=4, with_tokenizer=checkpoints.tokenizer(bos=False), bos_token_id=None
    )
    checkpoints.classifier(root / "reward", seed=5)
    checkpoints.pickled(root / "pickled", seed=6)
    (root / "empty").mkdir()
    return root


def one_sentence(ran: Ran, status: int, *said: str) -> None:
    assert ran.status == status, ran.err
    lines = ran.err.strip().splitlines()
    assert len(lines) == 1, ran.err
    assert lines[0].endswith("."), lines[0]
    assert "Traceback" not in ran.err
    for text in said:
        assert text in lines[0], lines[0]


def base(folder: Path) -> tuple[str | Path, ...]:
    return ("generate", "--sft", folder / "sft", "--baseline", folder / "baseline", "--reward", folder / "reward")


TRANSFER = ("--method", "transfer-q", "-o", "k=2", "-o", "rollout_len=2", "--max-new-tokens", "3")


def test_version_help_and_unknown_words(run: Run):
    assert run("--version").out.startswith("alignstar 0.")
    assert "generate" in run("--help").out
    assert run("decode").status == 2
    assert run("generate", "--nope").status == 2


def test_methods_are_listed_and_described(run: Run):
    names = [json.loads(line)["method"] for line in run("methods", "--json").out.splitlines()]
    assert {"greedy", "sample", "best-of-n", "args", "transfer-q"} <= set(names)
    options = {row["option"]: row for row in map(json.loads, run("methods", "transfer-q", "--json").out.splitlines())}
    assert options["k"]["default"] == "10"
    assert "transfer-q" in run("methods").out
    assert "alpha" in run("methods", "transfer-q").out
    one_sentence(run("methods", "bestofn"), 2, "bestofn", "best-of-n")


def test_responses_are_json_objects_in_order(run: Run, folder: Path, tmp_path: Path):
    prompts, out, trace = tmp_path / "p.jsonl", tmp_path / "o.jsonl", tmp_path / "t.jsonl"
    turns = [{"role": "user", "content": "b"}]
    prompts.write_text(json.dumps({"prompt": "a"}) + "\n" + json.dumps({"messages": turns}) + "\n")
    ran = run(*base(folder), *TRANSFER, "--prompts", prompts, "--json", "--out", out, "--trace", trace, "--seed", "7")
    assert (ran.status, ran.err) == (0, "")
    rows = [json.loads(line) for line in ran.out.splitlines()]
    assert [row["prompt"] for row in rows] == ["a", turns]
    for row in rows:
        assert list(row) == [
            "prompt", "response", "response_ids", "method", "finish_reason", "reward", "seed", "usage",
        ]  # fmt: skip
        assert row["method"] == "transfer-q"
        assert row["finish_reason"] in ("stop", "length")
        assert 1 <= len(row["response_ids"]) <= 3
        assert row["seed"] == 7
        assert row["usage"]["lm_tokens"] > 0
    assert out.read_text() == ran.out
    steps = [json.loads(line) for line in trace.read_text().splitlines()]
    assert [s["prompt_index"] for s in steps] == [i for i, row in enumerate(rows) for _ in row["response_ids"]]


def test_stats_say_how_many_candidates_were_certified_away(run: Run, folder: Path):
    # k=2, and a reward of a range so small that the more probable candidate wins whatever it is.
    small = ("-o", "reward_norm=clip(0,1)", "-o", "alpha=1e6", "-o", "transfer=direct")
    ran = run(*base(folder), *TRANSFER, *small, "--prompt", "a", "--json", "--stats")
    assert ran.status == 0
    steps = len(json.loads(ran.out)["response_ids"])
    assert ran.err.startswith(f"{2 * steps} candidates, {steps} (50.0%) certified away; {steps} of {steps} steps")
    assert run(*base(folder), *TRANSFER, "--prompt", "a", "--json").err == ""


def test_text_goes_to_standard_output_and_costs_to_standard_error(run: Run, folder: Path):
    ran = run("generate", "--sft", folder / "sft", "--method", "greedy", "--max-new-tokens", "3", "--prompt", "a")
    assert ran.status == 0
    assert "greedy: " in ran.err
    assert "LM tokens" not in ran.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--method", "nope", "--prompt", "a"), ("nope", "transfer-q")),
        (("--preset", "nope", "--prompt", "a"), ("nope", "official-direct")),
        (("--prompt", "a"), ("--method",)),
        ((*TRANSFER, "-o", "k=0", "--prompt", "a"), ("k",)),
        (("--method", "transfer-q", "-o", "k=0", "--prompt", "a"), ("k=0", ">= 1")),
        (("--method", "transfer-q", "-o", "alpha=0", "--prompt", "a"), ("alpha=0", "> 0")),
        (("--method", "transfer-q", "-o", "alpha=-1", "--prompt", "a"), ("alpha=-1",)),
        (("--method", "transfer-q", "-o", "alpha=nan", "--prompt", "a"), ("alpha=nan", "finite")),
        (("--method", "transfer-q", "-o", "alpha", "--prompt", "a"), ("alpha", "name=value")),
        (("--method", "transfer-q", "-o", "alhpa=1", "--prompt", "a"), ("alhpa", "alpha")),
        (("--method", "greedy", "--max-new-tokens", "0", "--prompt", "a"), ("max_new_tokens=0",)),
        (("--method", "greedy", "--prompt", "a", "--prompts", "b.txt"), ("--prompts",)),
        (("--method", "greedy"), ("no prompt",)),
        (("--method", "greedy", "--prompt", "a" * 200), ("201", "96")),
        (("--method", "transfer-q", "--prompt", "a" * 60, "--max-new-tokens", "40"), ("96",)),
        (("--method", "greedy", "--prompt", "a", "--device", "toaster"), ("toaster",)),
        (("--method", "greedy", "--prompt", "a", "--dtype", "float3"), ("float3",)),
        (("--method", "greedy", "--prompt", "a", "--out", "/no/such/folder/out"), ("--out", "cannot be written")),
        (("--method", "greedy", "--prompt", "a", "--trace", "/"), ("--trace", "cannot be written")),
    ],
)
def test_bad_requests_are_one_sentence(run: Run, folder: Path, arguments: tuple[str, ...], said: tuple[str, ...]):
    one_sentence(run(*base(folder), *arguments), 2, *said)


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ((), ("--sft",)),
        (("--sft", "{}/none"), ("none",)),
        (("--sft", "{}/empty"), ("empty",)),
        (("--sft", "no-such-organisation/no-such-model"), ("no-such-organisation/no-such-model",)),
        (("--sft", "{}/pickled"), ("pickled", "safetensors")),
        (("--sft", "{}/reward"), ("reward",)),
        (("--sft", "{}/sft", "--reward", "{}/baseline"), ("baseline", "classifier")),
        (("--sft", "{}/sft", "--reward", "{}/none"), ("none",)),
        (("--sft", "{}/sft", "--reward", "rule:nope"), ("nope",)),
        (("--sft", "{}/sft", "--reward", "python:no_such_module:f"), ("no_such_module",)),
        (("--sft", "{}/sft", "--baseline", "{}/other-words"), ("tokenizer",)),
    ],
)
def test_bad_models_are_one_sentence(run: Run, folder: Path, models: tuple[str, ...], said: tuple[str, ...]):
    given = [m.format(folder) for m in models]
    one_sentence(run("generate", *given, "--method", "greedy", "--prompt", "a"), 2, *said)


def test_what_a_method_lacks_is_named(run: Run, folder: Path):
    ran = run("generate", "--sft", folder / "sft", "--method", "transfer-q", "--prompt", "a")
    one_sentence(ran, 2, "transfer-q", "needs")
    ran = run("generate", "--sft", folder / "sft", "--method", "best-of-n", "--prompt", "a")
    one_sentence(ran, 2, "best-of-n", "reward")


def test_an_empty_prompt_needs_a_first_token(run: Run, folder: Path):
    ran = run("generate", "--sft", folder / "no-bos", "--method", "greedy", "--prompt", "")
    one_sentence(ran, 2, "prompt")
    ran = run("generate", "--sft", folder / "sft", "--method", "greedy", "--prompt", "", "--max-new-tokens", "2")
    assert ran.status == 0


def test_a_bad_prompts_file_is_found_before_a_model_is_opened(run: Run, tmp_path: Path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a"}\n{"prompt"\n')
    ran = run("generate", "--sft", "/no/model", "--method", "greedy", "--prompts", file)
    one_sentence(ran, 2, "line 2")


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (OptionError("k=0 is\ntoo small; use 1."), 2, "k=0 is too small; use 1."),
        (EngineError("A forward failed."), 1, "A forward failed."),
        (ImportError("no", name="torch"), 2, "needs torch. Install it with: pip install 'alignstar[hf]'."),
        (ImportError("no", name="trl.trainer"), 2, "needs trl. Install it with: pip install 'alignstar[train]'."),
    ],
)
def test_errors_become_a_sentence_and_a_status(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, said: str
):
    def fails() -> None:
        raise error

    monkeypatch.setattr(cli, "_command", lambda name: fails)
    one_sentence(run("methods"), status, said)


def test_an_interrupt_is_130_and_a_fault_of_ours_keeps_its_traceback(run: Run, monkeypatch: pytest.MonkeyPatch):
    def raising(error: BaseException) -> Callable[[str], Callable[[], None]]:
        def fails() -> None:
            raise error

        return lambda name: fails

    monkeypatch.setattr(cli, "_command", raising(KeyboardInterrupt()))
    assert run("methods").status == 130
    monkeypatch.setattr(cli, "_command", raising(ZeroDivisionError("ours")))
    with pytest.raises(ZeroDivisionError):
        cli.main(["methods"])
    monkeypatch.setattr(cli, "_command", raising(ImportError("no", name="alignstar.nope")))
    with pytest.raises(ImportError):
        cli.main(["methods"])
