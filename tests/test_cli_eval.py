"""`alignstar eval` as a user calls it: what it prints, its statuses, the price of a recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

import eval_worlds
from alignstar import cli
from alignstar.cli.prices import price
from alignstar.evaluate.recipe import read_recipe, resolve
from alignstar.evaluate.units import open_run

PAPER = Path(__file__).parents[1] / "recipes" / "paper"


@dataclass(frozen=True)
class Ran:
    status: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "140")

    def call(*arguments: object) -> Ran:
        with pytest.raises(SystemExit) as ended:
            cli.main(["eval", *map(str, arguments)])
        captured = capsys.readouterr()
        return Ran(int(ended.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    file = tmp_path / "toy.yaml"
    file.write_text(yaml.safe_dump(eval_worlds.RECIPE, sort_keys=False))
    return file


def test_a_run_says_what_it_made_and_goes_on_when_asked_to(run: Run, toy: Path, tmp_path: Path):
    out = tmp_path / "out"
    ran = run(toy, "--out", out)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == f"32 units in {out} (4 of 16 rows used). Next: alignstar report {out}\n"
    assert len(list(open_run(out).units)) == 32
    again = run(toy, "--out", out)
    assert again.status == 2
    assert "go on with --resume" in again.err
    assert run(toy, "--out", out, "--resume").status == 0


def test_a_failed_prompt_is_told_and_the_status_says_so(
    run: Run, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    fussy = {
        **eval_worlds.RECIPE, "methods": [{"method": "greedy"}], "data": "python:eval_worlds:prompts", "seeds": [0],
        "rewards": {"r": {"source": "python:eval_worlds:refuses_cc", "role": "reward"}},
    }  # fmt: skip
    toy.write_text(yaml.safe_dump(fussy))
    ran = run(toy, "--out", "out")
    assert ran.status == 1
    assert ran.out.startswith("15 units in out (16 of 16 rows used)")
    first, last = ran.err.splitlines()
    assert first.startswith("greedy, prompt 10, seed 0: ")
    assert "no CC here" in first
    assert last == "1 of 16 units failed, as said above; correct the cause, go on with --resume."


def test_bad_input_is_one_sentence(run: Run, toy: Path, tmp_path: Path):
    for arguments, said in (
        ((toy,), "use --out FOLDER, or --dry-run"),
        ((tmp_path / "no.yaml", "--out", tmp_path / "out"), "cannot be read"),
        ((PAPER / "table1-e1.yaml", "--out", tmp_path / "out"), "says null for models.sft, models.baseline"),
    ):
        ran = run(*arguments)
        assert ran.status == 2
        assert said in ran.err
        assert len(ran.err.splitlines()) == 1
    assert run(toy, "--out", tmp_path / "out", "--workers", "0").status == 2
    assert not (tmp_path / "out").exists()


def test_the_price_of_a_paper_s_recipe_is_shown_without_opening_anything(run: Run):
    ran = run(PAPER / "table5-r2.yaml", "--dry-run")
    assert (ran.status, ran.err) == (0, "")
    assert "Unknown, to be filled in before it can run: models.sft." in ran.out
    assert "PFLOP" in ran.out
    for label in ("ARGS-SFT", "DPO", "CD--", "DT", "TQ*"):
        assert label in ran.out


def test_prices_are_tokens_weighted_by_parameters():
    recipe = read_recipe(PAPER / "table5-r2.yaml")
    priced = {entry.label: price(entry, recipe.recipe) for entry in recipe.entries}
    prompt, new, k = 128, 128, 10
    costs = {label: one.cost for label, one in priced.items() if one.cost is not None}
    assert (costs["DPO"].lm_tokens, costs["DPO"].rm_tokens) == (prompt + new - 1, 0)
    assert priced["DPO"].flops == 2 * 6.9e9 * (prompt + new - 1)
    assert (costs["ARGS-SFT"].lm_tokens, costs["ARGS-SFT"].rm_tokens) == (prompt + new - 1, prompt + k * new)
    assert priced["ARGS-SFT"].flops == 2 * (6.9e9 * (prompt + new - 1) + 3e9 * (prompt + k * new))
    assert costs["TQ*"].lm_tokens == costs["DT"].lm_tokens
    assert costs["TQ*"].rm_tokens == 2 * costs["DT"].rm_tokens
    assert priced["TQ*"].flops == 2 * (6.9e9 * costs["TQ*"].lm_tokens + (3e9 + 6.9e9) / 2 * costs["TQ*"].rm_tokens)
    direct = read_recipe(PAPER / "table1-e1.yaml")
    one, other = (price(entry, direct.recipe) for entry in direct.entries if entry.label in ("CD--", "TQ*"))
    assert one.cost == other.cost, "CD-- is the same search by the SFT model"


def test_what_has_no_formula_or_no_parameters_is_said(run: Run, tmp_path: Path):
    recipe = resolve({**eval_worlds.RECIPE, "methods": [{"method": "deal"}, {"method": "greedy"}]})
    deal, greedy = (price(entry, recipe.recipe) for entry in recipe.entries)
    assert deal.cost is None
    assert deal.unpriced is not None
    assert "no formula" in deal.unpriced
    assert (greedy.cost is not None, greedy.flops) == (True, None)
    file = tmp_path / "r.yaml"
    file.write_text(
        "name: x\nmodels: {sft: a}\nmethods: [{method: deal}]\nrewards: {r: {source: b, role: reward}}\ndata: p.jsonl\n"
    )
    ran = run(file, "--dry-run")
    assert ran.status == 0
    assert "Not priced: method='deal' has no formula of its cost" in ran.out
    assert "Parameters not stated: models.sft, rewards.r." in ran.out
