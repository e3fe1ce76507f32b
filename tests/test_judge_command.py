"""`alignstar judge`: a run's replies go before a judge, what it said is kept and read again."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from dataclasses import replace

from typer.testing import CliRunner

from alignstar.errors import FailedError, OptionError
from alignstar.evaluate.judge import Judged, judgement
from alignstar.evaluate.judgements import Judgements, read_judgements, write_judgements
from alignstar.evaluate.units import Unit, unit_to_json
from endpoints import endpoint, says


def run_folder(tmp_path):
    recipe = {"methods": [{"label": m, "method": "greedy", "options": {}} for m in ("A", "B")], "baseline": "B"}
    (tmp_path / "run.json").write_text(json.dumps({"recipe": recipe, "environment": {}}))
    units = [
        Unit(
            key=f"{m}{i}", method=m, options={}, prompt_index=i, prompt=f"prompt {i}", seed=0,
            response="long " * 5 if m == "A" else "short", response_ids=(), finish_reason="stop", rewards={}, kl=None,
            usage={}, steps=(), error="broken" if (m, i) == ("B", 3) else None,
        )
        for m in ("A", "B")
        for i in range(6)
    ]  # fmt: skip
    (tmp_path / "units.jsonl").write_text("".join(unit_to_json(unit) + "\n" for unit in units))
    return tmp_path


def longer_wins(body, number):
    text = body["messages"][1]["content"]
    first, second = text.split("[Answer 1]")[1].split("[Task]")[0].split("[Answer 2]")
    return says("9 2" if len(first) > len(second) else "2 9")


def command(folder, answer, *more):
    """Run `alignstar judge` with its endpoint in another thread."""
    import typer

    from alignstar.cli.judge import judge

    app = typer.Typer()
    app.command()(judge)
    started, done, box = threading.Event(), threading.Event(), []

    async def serve():
        async with endpoint(answer) as server:
            box.append(server)
            started.set()
            await asyncio.to_thread(done.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    started.wait()
    try:
        return CliRunner().invoke(app, [str(folder), "--url", box[0].url, "--model", "m", *more]), box[0]
    finally:
        done.set()
        thread.join()


def test_the_command_judges_a_run_and_repeats_for_nothing(tmp_path):
    folder = run_folder(tmp_path)
    result, server = command(folder, longer_wins)
    assert result.exit_code == 0, result.output
    told = json.loads((folder / "judge.json").read_text())
    (one,) = told["judgements"]
    assert (one["first"], one["second"], one["n"], one["wins"], one["losses"]) == ("A", "B", 5, 5, 0)
    assert len(server.asked) == told["spent"]["requests"] == 10  # five prompts that both have, in both orders
    assert "100.0" in result.output
    assert [(pair["index"], pair["seed"], pair["scores"]) for pair in one["pairs"]] == [
        (index, 0, [9.0, 2.0]) for index in (0, 1, 2, 4, 5)
    ]


def test_the_command_says_what_was_left_out(tmp_path):
    folder = run_folder(tmp_path)
    result, _ = command(folder, longer_wins, "--max-requests", "4", "--concurrency", "1")
    assert isinstance(result.exception, FailedError)
    (one,) = json.loads((folder / "judge.json").read_text())["judgements"]
    assert one["n"] + one["not_asked"] == 5
    assert one["not_asked"] > 0
    result, _ = command(folder, longer_wins, "--method", "C")
    assert isinstance(result.exception, OptionError)


def test_what_a_judge_said_is_read_as_it_was_written(tmp_path):
    judged = [
        Judged(index=3, seed=7, scores=(8.0, 3.0), shown=((8.0, 3.0), (3.0, 8.0))),
        Judged(index=4, scores=None, why="unparsable"),
    ]
    one = judgement(judged, judge="m", first="A", second="B", orders="random")
    told = Judgements(
        url="http://here", model="m", orders="both", seed=0, temperature=0.5, spent={"requests": 4}, judgements=(one,)
    )
    assert read_judgements(tmp_path) is None
    write_judgements(told, tmp_path)
    assert read_judgements(tmp_path) == told
    assert told.scores() == {("A", 3, 7): (8.0, 3.0)}
    empty = judgement([], judge="m", first="A", second="B", orders="both")
    write_judgements(replace(told, judgements=(empty,)), tmp_path)
    read = read_judgements(tmp_path)
    assert read is not None
    assert math.isnan(read.judgements[0].win_tie.mean)
    assert not list(tmp_path.glob("*.partial"))
