"""The command as a process: an interrupt keeps what is finished, standard error stays clean."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

import checkpoints

COMMAND = [sys.executable, "-c", "from alignstar.cli import main; main()"]


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.language_model(tmp_path_factory.mktemp("model") / "sft", seed=1)


def test_cycles_are_searched_for_seldom():
    told = "import atexit, gc; atexit.register(lambda: print(gc.get_threshold()[0]))\n" + COMMAND[-1]
    out = subprocess.check_output([sys.executable, "-c", told.replace("main()", "main(['--version'])")], text=True)
    assert out.split()[-1] == "50000"


@pytest.mark.slow
def test_an_interrupt_keeps_what_is_finished(sft: Path, tmp_path: Path):
    (tmp_path / "slow.py").write_text(
        "import time\ndef words(prompt, reply, complete):\n    time.sleep(0.3)\n    return float(len(reply))\n"
    )
    prompts, out = tmp_path / "p.txt", tmp_path / "o.jsonl"
    prompts.write_text("".join(f"prompt {i}\n" for i in range(200)))
    run = subprocess.Popen(
        [
            *COMMAND, "generate", "--sft", sft, "--reward", "python:slow:words", "--method", "sample",
            "--max-new-tokens", "3", "--prompts", prompts, "--json", "--out", out, "--concurrency", "1",
        ],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert run.stdout is not None
    first = run.stdout.readline()
    run.send_signal(signal.SIGINT)
    rest, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    assert err == ""
    rows = [json.loads(line) for line in (first + rest).splitlines()]
    assert 1 <= len(rows) < 200
    assert [row["prompt"] for row in rows] == [f"prompt {i}" for i in range(len(rows))]
    assert [json.loads(line) for line in out.read_text().splitlines()] == rows
    assert not list(tmp_path.glob("*.partial"))


def test_a_pipe_gets_responses_and_nothing_else(sft: Path, tmp_path: Path):
    run = subprocess.run(
        [*COMMAND, "generate", "--sft", sft, "--method", "greedy", "--max-new-tokens", "3", "--json"],
        cwd=tmp_path, input="a prompt\n", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, "")
    (row,) = map(json.loads, run.stdout.splitlines())
    assert row["prompt"] == "a prompt"
    assert row["reward"] is None


@pytest.mark.slow
def test_a_reader_who_leaves_is_no_fault(sft: Path, tmp_path: Path):
    prompts = tmp_path / "p.txt"
    prompts.write_text("a\n" * 50)
    run = subprocess.Popen(
        [*COMMAND, "generate", "--sft", sft, "--method", "greedy", "--prompts", prompts, "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert run.stdout is not None
    assert run.stderr is not None
    run.stdout.close()
    assert "Traceback" not in run.stderr.read()
    assert run.wait(timeout=60) != 0
    run.stderr.close()
