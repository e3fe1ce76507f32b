"""`alignstar train policy` on a tiny model: what its steps are taken on, stops, refusals, what comes out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignstar.errors import OptionError, PromptError
from alignstar.types import Message, Prompt, Reply

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

NAN = float("nan")


def rows() -> list[dict[str, str]]:
    return [{"prompt": text} for text in ("Hello", "How are you", "Bye", "Hello")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import checkpoints

    return checkpoints.language_model(tmp_path_factory.mktemp("base"), seed=0)


def letters(prompt: str, reply: str, complete: bool) -> float:
    """A reward of one group: the share of capitals."""
    return sum(c.isupper() for c in reply) / max(1, len(reply))


def digits(prompt: str, reply: str, complete: bool) -> float:
    """A reward of another group: the share of digits."""
    return sum(c.isdecimal() for c in reply) / max(1, len(reply))


def broken(prompt: str, reply: str, complete: bool) -> float:
    """A reward that is no number for half of what it sees."""
    return NAN if len(reply) % 2 else 0.0


GROUPS = [f"python:{__name__}:letters", f"python:{__name__}:digits"]


def recipe(base: Path, out: Path, **changes: Any) -> Any:
    from alignstar.train.recipes import PolicyRecipe

    return PolicyRecipe.model_validate(
        {
            "model": str(base), "data": f"python:{__name__}:rows", "groups": GROUPS, "out": str(out),
            "max_steps": 4, "batch_size": 8, "responses": 4, "max_new_tokens": 6, "reference": 12, "lora": {"rank": 2},
            "learning_rate": 1e-2, "checkpoint_every": 1, "log_every": 1, "device": "cpu",
            **changes,
        }
    )  # fmt: skip


class Ends:
    """A watcher that ends the process, as it were, after a step."""

    def __init__(self, after: int | None = None) -> None:
        self.after = after
        self.seen: list[int] = []

    def begin(self, *, total: int, done: int) -> None:
        self.seen.append(done)

    def stepped(self, step: int, values: Any) -> None:
        if step == self.after and values:
            raise KeyboardInterrupt

    def looked(self, step: int, values: Any) -> None:
        raise AssertionError("nothing is held out")


def weights_of(folder: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def rows_of(folder: Path, *keys: str) -> list[tuple[float, ...]]:
    log = json.loads((folder / "metrics.json").read_text())["log"]
    return [tuple(row[key] for key in keys) for row in log if keys[0] in row]


class Alone:
    """A reward that is asked one thing at a time: the length of the reply."""

    name = "alone"
    range = None
    asked = 0

    async def score(self, prompt: Prompt, replies: Sequence[Reply]) -> list[float]:
        assert Alone.asked == 0, "two questions share a batch"
        Alone.asked += 1
        await asyncio.sleep(0)
        Alone.asked -= 1
        return [float(len(prompt.text) + len(reply.text)) for reply in replies]


def test_scores_do_not_depend_on_what_else_is_scored() -> None:
    """Rewards are asked one after another; the table is in the order of the replies."""
    from alignstar.train.policy_run import scores_of

    prompts = [Prompt(messages=(Message(role="user", content=text),), text=text, ids=(1,)) for text in ("a", "bcd")]
    answered = [(prompts[i].messages, Reply(text="x" * n, complete=True)) for i, n in ((1, 5), (0, 2), (1, 7))]
    table = scores_of([Alone(), Alone()], prompts)(answered)
    assert table.tolist() == [[8.0, 8.0], [3.0, 3.0], [10.0, 10.0]]


def test_every_prompt_comes_before_any_comes_again() -> None:
    from alignstar.train.policy import order

    made = order(5, 23, seed=1)
    passes = [made[i : i + 5] for i in range(0, 20, 5)]
    assert [sorted(one) for one in passes] == [list(range(5))] * 4
    assert len({tuple(one) for one in passes}) > 1
    assert len(set(made[20:])) == 3
    assert order(5, 8, seed=1) == made[:8]
    assert order(5, 23, seed=2) != made


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from alignstar.train.policy_run import train_policy

    folder = tmp_path_factory.mktemp("whole") / "out"
    train_policy(recipe(base, folder, momentum=0.5), watcher=Ends())
    return folder


def test_every_step_is_taken_on_the_group_that_is_worst_off(whole: Path) -> None:
    told = rows_of(whole, "group 0 reward", "group 1 reward", "group 0 weight", "group 1 weight", "reward")
    assert len(told) == 4
    means, chosen = np.zeros(2), []
    for step, (first, second, *weights, trained_on) in enumerate(told):
        batch = np.array([first, second])
        means = batch if step == 0 else 0.5 * means + 0.5 * batch
        chosen.append(int(np.argmin(means)))
        assert trained_on == pytest.approx(batch[chosen[-1]], abs=1e-5)
        assert weights == pytest.approx([chosen.count(u) / len(chosen) for u in (0, 1)], abs=1e-5)
    notes = json.loads((whole / "alignstar.json").read_text())
    assert notes["standing"]["steps"] == 4
    assert notes["standing"]["means"] == pytest.approx(means.tolist(), abs=1e-5)


def test_a_training_that_was_ended_goes_on_as_if_it_had_not_been(base: Path, whole: Path, tmp_path: Path) -> None:
    """Its weights and its groups' standing, a running mean over all batches, are those of an undisturbed one."""
    from alignstar.train.policy_run import train_policy

    made = recipe(base, tmp_path / "out", momentum=0.5)
    with pytest.raises(KeyboardInterrupt):
        train_policy(made, watcher=Ends(after=3))
    again = Ends()
    outcome = train_policy(made, resume=True, watcher=again)
    assert again.seen == [outcome.resumed]
    assert outcome.resumed in (2, 3)
    assert (
        json.loads((tmp_path / "out" / "alignstar.json").read_text())["standing"]
        == (json.loads((whole / "alignstar.json").read_text())["standing"])
    )
    ours, theirs = weights_of(tmp_path / "out"), weights_of(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_adapter_is_the_model_that_decoding_loads(base: Path, whole: Path) -> None:
    import alignstar

    with alignstar.load(baseline=str(whole)) as aligner:
        assert aligner.generate("Hello", method="greedy", max_new_tokens=4).ids


def test_the_pooled_policy_is_plain_rlhf_on_the_weighted_sum(base: Path, tmp_path: Path) -> None:
    from alignstar.train.policy_run import train_policy

    how = {"max_steps": 2, "standardise": False}
    pooled = recipe(base, tmp_path / "a", objective="pooled", prior=[3.0, 1.0], **how)
    summed = recipe(base, tmp_path / "b", groups=[f"python:{__name__}:mixed"], objective="maxmin", **how)
    for made in (pooled, summed):
        train_policy(made, watcher=Ends())
    ours, theirs = weights_of(tmp_path / "a"), weights_of(tmp_path / "b")
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)
    assert any(bool(torch.any(value != 0)) for name, value in ours.items() if "lora_B" in name)


def mixed(prompt: str, reply: str, complete: bool) -> float:
    return 0.75 * letters(prompt, reply, complete) + 0.25 * digits(prompt, reply, complete)


def test_responses_without_a_reward_take_no_part(base: Path, tmp_path: Path) -> None:
    from alignstar.train.policy_run import train_policy

    groups = [GROUPS[0], f"python:{__name__}:broken"]
    train_policy(recipe(base, tmp_path / "out", groups=groups, max_steps=1), watcher=Ends())
    ((left_out,),) = rows_of(tmp_path / "out", "left out")
    assert 0.0 < left_out < 1.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 6}, r"batch_size=6 must be a multiple of responses=4"),
        ({"objective": "pooled", "prior": [1.0]}, r"prior=\[1.0\] must hold one weight for each of 2 groups"),
        ({"prior": [1.0, 2.0]}, r"weighs a pool, and objective is 'maxmin'"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_opened(
    base: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    from alignstar.train.policy_run import train_policy

    with pytest.raises(OptionError, match=words):
        train_policy(recipe(base, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_the_command_trains_and_tells_where_the_groups_stand(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from alignstar.cli import main

    prompts, out = tmp_path / "p.jsonl", tmp_path / "out"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    told = recipe(base, out, max_steps=1, data=str(prompts)).model_dump(mode="json")
    (tmp_path / "r.yaml").write_text(json.dumps(told))
    with pytest.raises(SystemExit) as ended:
        main(["train", "policy", str(tmp_path / "r.yaml")])
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed.err
    assert f"{out}: 1 steps in" in printed.out
    assert "Group 1, python:test_train_policy:digits: expected reward" in printed.out
    assert (out / "loss.svg").read_text().startswith("<svg")


def test_a_row_without_a_prompt_is_refused_with_its_line(base: Path, tmp_path: Path) -> None:
    from alignstar.train.policy_run import train_policy

    (tmp_path / "p.jsonl").write_text('{"prompt": "Hello"}\n{"question": 1}\n')
    with pytest.raises(PromptError, match=r"p\.jsonl, line 2"):
        train_policy(recipe(base, tmp_path / "out", data=str(tmp_path / "p.jsonl")))
    turns = [{"role": role, "content": "Hello"} for role in ("user", "assistant", "user")]
    (tmp_path / "p.jsonl").write_text('{"prompt": "Hello"}\n' + json.dumps({"messages": turns}))
    with pytest.raises(PromptError, match=r"p\.jsonl, line 2: A conversation of 3 messages needs a chat template"):
        train_policy(recipe(base, tmp_path / "out", data=str(tmp_path / "p.jsonl")))


def long_rows() -> list[dict[str, str]]:
    return [*rows(), {"prompt": "long " * 30}]


def test_prompts_without_room_for_a_response_are_left_out_and_counted(base: Path, tmp_path: Path) -> None:
    from alignstar.train.policy_run import train_policy

    told: list[tuple[str, int, int]] = []
    made = recipe(base, tmp_path / "out", data=f"python:{__name__}:long_rows", max_steps=1)
    outcome = train_policy(made, watcher=Ends(), on_progress=lambda *progress: told.append(progress))
    assert outcome.left_out == {"leave no room for a response": 1}
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["prompts"] == 3
    assert told == [("responses to scale by", 8, 12), ("responses to scale by", 12, 12)]
    with pytest.raises(OptionError, match="None of 3 prompts leaves room for max_new_tokens=95"):
        train_policy(recipe(base, tmp_path / "none", max_new_tokens=95))


def test_a_reward_that_has_changed_is_not_gone_on_with(base: Path, tmp_path: Path) -> None:
    import checkpoints
    from alignstar.train.policy_run import train_policy

    group = checkpoints.classifier(tmp_path / "group", seed=1)
    made = recipe(base, tmp_path / "out", groups=[str(group)])
    with pytest.raises(KeyboardInterrupt):
        train_policy(made, watcher=Ends(after=2))
    checkpoints.classifier(group, seed=2)
    with pytest.raises(OptionError, match=r"begun with something else .*group contents"):
        train_policy(made, resume=True)
