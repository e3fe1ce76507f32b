"""Training value heads: what the losses' minima are, on tables; and `alignstar train value` from recipe to decoding."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import alignstar
import checkpoints
import tiny
from alignstar.aligner import Aligner
from alignstar.cli import main
from alignstar.errors import OptionError
from alignstar.meter import together
from alignstar.models.hf.value import HeadConfig, load_head
from alignstar.models.toy import ToyModel
from alignstar.train.branch_training import FittedBranch, Lines, Reading, fit_branch
from alignstar.train.rollouts import Seen, drawn, valued
from alignstar.train.value import Examples, Loss, examples, fit
from alignstar.train.value_training import check, train_value
from alignstar.types import Ids
from worlds import PROMPT, World, codec, random_world

HOW = {"max_new_tokens": 3, "seed": 1, "concurrency": 4}


def enumerated(world: World) -> list[Seen]:
    """Every token of every possible response, as often as the response is likely, with all next tokens."""
    seen: list[Seen] = []
    for ids, logp in world.sft.trajectories(PROMPT.ids, world.horizon):
        for t, token in enumerate(ids):
            law = np.exp(world.sft.law(PROMPT.ids + ids[: t + 1]))
            last = t + 1 == len(ids)
            seen.append(
                Seen(
                    state=PROMPT.ids + ids[:t], token=token, reward=world.r(ids), ended=last, prompt=0,
                    next_ids=() if last else tuple(range(world.vocab_size)),
                    next_p=() if last else tuple(law), weight=float(np.exp(logp)),
                )
            )  # fmt: skip
    return seen


def tabular(world: World, seen: Sequence[Seen], rank: int, loss: Loss) -> dict[Ids, float]:
    """The fitted V of every prefix. Every state has a direction of its own, as has every token: heads are tables."""
    texts = sorted({s.reached for s in seen} | {(*s.reached, z) for s in seen for z in s.next_ids} | {PROMPT.ids})
    states, m = torch.eye(len(texts)), world.vocab_size
    embeddings = torch.eye(m, len(texts))
    index = {text: i for i, text in enumerate(texts)}.__getitem__
    data = Examples(
        states=states, embeddings=embeddings,
        at=torch.tensor([index(s.state if rank else s.reached) for s in seen]),
        token=torch.tensor([s.token for s in seen]),
        rewards=torch.tensor([s.reward for s in seen], dtype=torch.float32),
        ended=torch.tensor([s.ended for s in seen]), prompt=torch.zeros(len(seen), dtype=torch.long),
        weights=torch.tensor([s.weight for s in seen], dtype=torch.float32),
        next_at=torch.tensor(
            [[0] * m if s.ended else [index(s.reached if rank else (*s.reached, z)) for z in s.next_ids] for s in seen]
        ),
        next_token=torch.tensor([[0] * m if s.ended else list(s.next_ids) for s in seen]),
        next_p=torch.tensor([[0.0] * m if s.ended else list(s.next_p) for s in seen]),
    )  # fmt: skip
    config = HeadConfig(base="table", layer=1, state_size=len(texts), rank=rank)
    made = fit(config, data, loss=loss, epochs=1000, batch_size=len(seen), learning_rate=0.1, seed=0)
    told: dict[Ids, float] = {}
    with torch.no_grad():
        for s in seen:
            state = states[index(s.state if rank else s.reached)]
            told[s.reached] = float(made.head(state, embeddings[s.token]))
    return told


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("loss", ["fudge", "cd-q"])
def test_the_minimum_is_the_mean_reward_after_the_prefix(loss: Loss, rank: int) -> None:
    """FUDGE's minimiser and CD-Q's fixed point are V of the model that drew the responses, on every prefix."""
    world = World(ToyModel.random(5, 3), random_world(5, 3).reward, 3, 3)
    seen = enumerated(world)
    told = tabular(world, seen, rank, loss)
    assert len(told) == 3 + 6 + 12
    for prefix, value in told.items():
        expected = sum(p * world.r(ids) for ids, p in world.completions(world.sft, prefix[len(PROMPT.ids) :]))
        assert value == pytest.approx(expected, abs=5e-3), prefix


def test_cd_q_learns_from_ends_alone() -> None:
    """What a response that goes on will be rewarded with does not matter: only its last token's reward does."""
    world = World(ToyModel.random(5, 3), random_world(5, 3).reward, 2, 3)
    seen = [replace(s, reward=s.reward if s.ended else 3.0) for s in enumerated(world)]
    for prefix, value in tabular(world, seen, 0, "cd-q").items():
        expected = sum(p * world.r(ids) for ids, p in world.completions(world.sft, prefix[len(PROMPT.ids) :]))
        assert value == pytest.approx(expected, abs=5e-3), prefix


async def test_drawn_tokens_have_the_reward_of_their_response_and_what_may_follow() -> None:
    world = random_world(2)
    with Aligner(baseline=world.sft, reward=world.reward, codec=codec(4)) as aligner:
        seen = await drawn(aligner, "baseline", ["A", "BA"], responses=5, top_m=2, **HOW)
        assert seen == await drawn(aligner, "baseline", ["A", "BA"], responses=5, top_m=2, **{**HOW, "concurrency": 1})
        assert {s.prompt for s in seen} == {0, 1}
        assert sum(s.ended for s in seen) == 10
        for s in seen:
            assert s.state[: 1 + s.prompt] == ((0,), (1, 0))[s.prompt]
            if s.ended:
                assert s.next_ids == ()
                ids = s.reached[1 + s.prompt :]
                reply = aligner.codec.decode(ids)
                prompt = aligner.codec.prompt(("A", "BA")[s.prompt])
                assert s.reward == world.reward.value(prompt, reply, ids[-1] == 3)
            else:
                law = np.exp(world.sft.law(s.reached))
                best = np.argsort(-law)[:2]
                assert s.next_ids == tuple(best)
                assert s.next_p == pytest.approx(tuple(law[best] / law[best].sum()))


async def test_valued_candidates_are_those_of_transfer_q() -> None:
    """At every state that is visited all candidates, with the rewards of their greedy rollouts; the end exactly."""
    world = random_world(4)
    with Aligner(baseline=world.sft, reward=world.reward, codec=codec(4)) as aligner:
        seen = await valued(aligner, ["A"], responses=3, k=4, rollout_len=None, selection="sample", **HOW)
        assert {len(list(group)) for _, group in itertools.groupby(seen, key=lambda s: s.state)} <= {4, 8, 12}
        assert any(s.ended for s in seen)
        for s in seen:
            ids = s.reached[1:]
            while len(ids) < 3 and ids[-1] != 3:
                ids = (*ids, int(np.argmax(world.sft.law((0, *ids)))))
            assert s.reward == world.r(ids)


async def test_tokens_within_rollouts_have_the_value_of_the_whole() -> None:
    """What a greedy rollout from there would give; the candidates are those without, none is told twice."""
    world = random_world(4)
    how: dict[str, Any] = {**HOW, "responses": 3, "k": 4, "rollout_len": None, "selection": "sample"}
    with Aligner(baseline=world.sft, reward=world.reward, codec=codec(4)) as aligner:
        plain = await valued(aligner, ["A"], **how)
        for along in (1, 2, 50):
            seen = await valued(aligner, ["A"], along=along, **how)
            within = [s for s in seen if s.weight < 1.0]
            assert [s for s in seen if s.weight == 1.0] == plain
            assert len(within) > 0
            assert along == 50 or len(within) <= 3 * 2 * along  # three responses, at most two tokens behind a candidate
            for s in within:
                ids = s.reached[1:]
                while len(ids) < 3 and ids[-1] != 3:
                    ids = (*ids, int(np.argmax(world.sft.law((0, *ids)))))
                assert s.reward == world.r(ids)
                assert s.ended == (s.token == 3)
                assert s.token == int(np.argmax(world.sft.law(s.state)))


def test_states_are_read_at_each_texts_last_token(tmp_path: Path) -> None:
    """Texts of any length and with common beginnings, in one pass; short batches change nothing."""
    sft = checkpoints.language_model(tmp_path / "sft", seed=0)
    model: Any = AutoModelForCausalLM.from_pretrained(sft).eval()
    texts = [(5, 6, 7), (5, 6), (9,), (5, 6, 8, 4, 3, 2), tuple(range(3, 40))]
    seen = [Seen(state=text, token=3, reward=0.0, ended=True, prompt=0) for text in texts]
    data = examples(model, 2, 4, seen, name="sft")
    with torch.inference_mode():
        for i, text in enumerate(texts):
            alone = model.model(input_ids=torch.tensor([text])).last_hidden_state[0, -1]
            torch.testing.assert_close(data.states[data.at[i]], alone, rtol=0, atol=1e-5)


def test_a_head_is_trained_the_same_twice_and_learns(tmp_path: Path) -> None:
    sft = checkpoints.language_model(tmp_path / "sft", seed=0)
    model: Any = AutoModelForCausalLM.from_pretrained(sft).eval()
    rng = np.random.default_rng(0)
    rows = [tuple(rng.integers(3, 12, size=6).tolist()) for _ in range(300)]
    seen = [Seen(state=r[:-1], token=r[-1], reward=float(r[-1] > 7), ended=True, prompt=i) for i, r in enumerate(rows)]
    options: dict[str, Any] = {
        "base": "../sft",
        "loss": "transfer-q",
        "epochs": 20,
        "batch_size": 16,
        "rank": 6,
        "width": 8,
    }
    first = train_value(model, seen, out=tmp_path / "a", **options)
    again = train_value(model, seen, out=tmp_path / "b", **options)
    other = train_value(model, seen, out=tmp_path / "c", seed=1, **options)
    assert (tmp_path / "a/value.safetensors").read_bytes() == (tmp_path / "b/value.safetensors").read_bytes()
    assert first.losses == again.losses != other.losses
    assert first.losses[-1] < first.losses[0] / 2
    assert first.explained > 0.3
    assert load_head(str(tmp_path / "a")).base == str(sft)
    notes = json.loads((tmp_path / "a/value.json").read_text())["notes"]
    assert (notes["loss"], notes["examples"], notes["seed"]) == ("transfer-q", 300, 0)


def told_by_position(n: int = 240) -> list[Seen]:
    """Rewards that the last state of a random model hardly tells: whether a token of the beginning comes again."""
    rng = np.random.default_rng(1)
    rows = [tuple(rng.integers(3, 12, size=5).tolist()) for _ in range(n)]
    return [
        Seen(state=row[: i + 1], token=z, reward=float(z == row[0]), ended=True, prompt=number)
        for number, row in enumerate(rows)
        for i in (1, 4)
        for z in (row[0], row[0] % 9 + 3)
    ]


def test_a_branch_is_trained_the_same_twice_and_learns_more_than_a_head(tmp_path: Path) -> None:
    """The model itself stays as it is, to the bit, and as trainable as it was; what is stored tells what was fitted."""
    sft = checkpoints.language_model(tmp_path / "sft", seed=0)
    model: Any = AutoModelForCausalLM.from_pretrained(sft).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    how: dict[str, Any] = {
        "base": "../sft", "loss": "transfer-q", "epochs": 12, "batch_size": 32, "rank": 6, "width": 16,
    }  # fmt: skip
    seen = told_by_position()
    alone = train_value(model, seen, out=tmp_path / "alone", **how)
    how |= {"branch": 1, "branch_learning_rate": 1e-2}
    first = train_value(model, seen, out=tmp_path / "a", **how)
    again = train_value(model, seen, out=tmp_path / "b", **how)
    still = train_value(model, seen, out=tmp_path / "c", **{**how, "branch_learning_rate": 1e-9})
    lies = [replace(s, reward=1.0 - s.reward, weight=0.0) for s in seen]
    undeceived = train_value(model, [*lies, *seen], out=tmp_path / "d", **{**how, "batch_size": 64})
    assert (tmp_path / "a/value.safetensors").read_bytes() == (tmp_path / "b/value.safetensors").read_bytes()
    assert first.losses == again.losses
    assert undeceived.held_out[-1] < 0.7 * min(alone.held_out)
    assert first.held_out[-1] < 0.7 * min(min(alone.held_out), min(still.held_out))
    assert first.explained > alone.explained + 0.2
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    stored = load_head(str(tmp_path / "a"))
    assert (stored.head.config.layer, stored.head.config.branch) == (1, 1)
    with alignstar.load(sft=str(sft), value=str(tmp_path / "a"), device="cpu") as aligner:
        value = aligner.values["value"]
        told = asyncio.run(together([value.next_values(s.state, np.array([s.token])) for s in seen]))
    assert isinstance(first, FittedBranch)
    ends = np.mean([(float(q[0]) - s.reward) ** 2 / 2 for q, s in zip(told, seen, strict=True)])
    assert ends < 0.7 * min(alone.losses)


def test_a_branch_is_trained_the_same_twice_where_the_model_drops_out() -> None:
    """Nor does it matter what was drawn before."""
    model = tiny.causal_lm("gpt2", dtype=torch.float32)
    assert model.config.attn_pdrop > 0
    config = HeadConfig(base="tiny", layer=3, state_size=32, rank=2, branch=1)
    how: dict[str, Any] = {
        "epochs": 2,
        "batch_size": 64,
        "learning_rate": 1e-2,
        "branch_learning_rate": 1e-3,
        "seed": 0,
    }
    first = fit_branch(model, config, told_by_position(40), **how)
    torch.rand(1)
    assert fit_branch(model, config, told_by_position(40), **how).losses == first.losses


def test_rows_of_a_branch_hold_every_example_once() -> None:
    """Each at its place in the one row that its text begins; an epoch takes every row once, lengths alike together."""
    seen = [*told_by_position(40), *(replace(s, prompt=s.prompt + 40) for s in told_by_position(4))]
    for rank in (0, 2):
        lines = Lines(seen, rank=rank)
        for s, row, position in zip(seen, lines.row.tolist(), lines.position.tolist(), strict=True):
            assert lines.texts[row][: position + 1] == (s.state if rank else s.reached)
    assert len(lines.texts) == 40
    reading = Reading(Any, Any, torch.zeros(1), lines, batch_size=20, seed=0)  # type: ignore[arg-type]
    apart = {seen[i].prompt for i in reading.held.nonzero()[:, 0].tolist()}
    assert len(apart) == 4
    for examples_, kept in ((reading.taught, ~reading.held), (reading.asked, reading.held)):
        assert sorted(i for several in examples_.values() for i in several.tolist()) == kept.nonzero()[:, 0].tolist()
    for epoch in (0, 1):
        batches = [rows.tolist() for rows in reading.batches(epoch)]
        assert sorted(row for rows in batches for row in rows) == reading.rows.tolist()
        assert len(batches) == reading.steps
    assert batches != [rows.tolist() for rows in reading.batches(0)]


def test_what_cannot_be_learnt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="loss=transfer-q with rank=0 would need a forward for every candidate"):
        check("transfer-q", 0)
    with pytest.raises(OptionError, match="and branch=2 changes them; use branch=0 or another loss"):
        check("cd-q", 0, 2)
    with pytest.raises(OptionError, match="No response has a usable reward"):
        train_value(None, [], base="x", out=tmp_path, loss="fudge")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    checkpoints.language_model(root / "model", seed=0)
    (root / "prompts.txt").write_text("Where?\nIt drips\nA tap\n")
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    (root / "turns.jsonl").write_text('{"prompt": "Where?"}\n' + json.dumps({"messages": turns}))
    (root / "bad.jsonl").write_text('{"prompt": "Where?"}\n{"question": "Why?"}\n')
    return root


RECIPE = {"model": "model", "prompts": "prompts.txt", "reward": "rule:length?max_words=3", "responses": 2, "epochs": 2,
          "max_new_tokens": 5, "device": "cpu"}  # fmt: skip


def written(root: Path, **changes: Any) -> str:
    lines = [f"{key}: {json.dumps(value)}" for key, value in {**RECIPE, **changes}.items() if value is not None]
    (root / "recipe.yaml").write_text("\n".join(lines) + "\n")
    return str(root / "recipe.yaml")


@pytest.mark.parametrize(
    "changes",
    [{"loss": "fudge", "rank": 0, "layer": 1}, {"loss": "cd-q", "rank": 0, "top_m": 2}, {"loss": "cd-q", "rank": 3},
     {"loss": "transfer-q", "rank": 3, "k": 3, "rollout_len": 2},
     {"loss": "transfer-q", "rank": 4, "k": 3, "rollout_len": 2, "branch": 1},
     {"loss": "fudge", "rank": 5, "branch": 1, "layer": 1}],
)  # fmt: skip
def test_from_a_recipe_to_decoding(
    changes: dict[str, Any], world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world)
    out = f"heads/{changes['loss']}-{changes['rank']}"
    with pytest.raises(SystemExit) as ended:
        main(["train", "value", written(world, out=out, **changes)])
    told = capsys.readouterr()
    assert ended.value.code == 0, told.err
    assert told.out.startswith(f"{out}: loss ")
    assert f"Use it with --value {out}" in told.out
    assert sorted(path.name for path in Path(out).iterdir()) == [
        "alignstar.json", "loss.svg", "metrics.json", "run.json", "value.json", "value.safetensors",
    ]  # fmt: skip
    with alignstar.load(baseline="model", reward=RECIPE["reward"], value=out, device="cpu") as aligner:
        method = {"method": "transfer-q", "value": "head"} if changes["rank"] else {"method": "controlled-decoding"}
        assert aligner.generate("Where?", max_new_tokens=4, **method).ids


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "'out' is missing; add it."),
        ({"out": "o", "epoch": 3}, "'epoch' is unknown; did you mean epochs? Known: alpha, batch_size,"),
        ({"out": "o", "loss": "mse"}, "loss='mse' must be 'fudge', 'cd-q' or 'transfer-q'; correct it."),
        ({"out": "o", "rank": -1}, "rank=-1 must be greater than or equal to 0; correct it."),
        ({"out": "o", "loss": "transfer-q", "rank": 0}, "loss=transfer-q with rank=0 would need a forward"),
        ({"out": "o", "prompts": "bad.jsonl"}, "Prompts file 'bad.jsonl', line 2: needs an object with either"),
        ({"out": "o", "prompts": "turns.jsonl"}, "Prompts file 'turns.jsonl', line 2: A conversation of 3 messages"),
        ({"out": "o", "prompts": "no.txt"}, "Prompts file 'no.txt' cannot be read"),
        ({"out": "o", "model": "./no"}, "'./no' does not exist"),
        ({"out": "o", "layer": 9}, "layer=9 of"),
        ({"out": "o", "layer": 2, "branch": 1}, "branch=1 behind layer=2 of"),
        ({"out": "o", "branch": 2}, "branch=2 behind layer=0 of"),
        (
            {"out": "o", "branch": 1, "layer": "head"},
            "layer='head' says where a head reads a model that stays as it is",
        ),
        ({"out": "o", "branch": 1, "loss": "cd-q"}, "loss=cd-q learns from its own values in states that stay"),
        ({"out": "o", "reward": "rule:nothing"}, "rule:nothing"),
    ],
)
def test_bad_recipes_are_one_sentence(
    changes: dict[str, Any],
    message: str,
    world: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(world)
    with pytest.raises(SystemExit) as ended:
        main(["train", "value", written(world, **changes)])
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert message in told
    assert told.count("\n") == 1
    assert not Path("o").exists()


def test_an_unknown_kind_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "values", "recipe.yaml"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == ("kind='values' is unknown. Known: sft, reward, dpo, value, mixture, policy.\n")
