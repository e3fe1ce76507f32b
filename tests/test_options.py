"""Options at the edge: reading, completing, refusing, describing."""

import math

import pytest

from alignstar.errors import OptionError
from alignstar.methods import METHODS
from alignstar.methods.presets import PRESETS, preset
from alignstar.options import assignments, complete, describe, roles


def test_texts_become_values():
    given = ["k=3", "alpha=1e-2", "rollout_len=none", "stop-on-eos=False", "selection=sample", "reward_norm=clip(0,1)"]
    assert assignments(given) == {
        "k": 3,
        "alpha": 0.01,
        "rollout_len": None,
        "stop_on_eos": False,
        "selection": "sample",
        "reward_norm": "clip(0,1)",
    }
    assert math.isnan(assignments(["alpha=nan"])["alpha"])


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["k"], "Option 'k' must have the form name=value"),
        (["=3"], "must have the form name=value"),
        (["k=1", "k=2"], "Option 'k' is given twice"),
        (["seed=1"], "'seed=1' is no option of a method; use --seed"),
        (["max-new-tokens=1"], "use --max-new-tokens"),
    ],
)
def test_broken_assignments(pairs, message):
    with pytest.raises(OptionError, match=message):
        assignments(pairs)


@pytest.mark.parametrize("method", METHODS)
def test_defaults_are_those_of_the_signature_and_pass_their_own_rules(method):
    options = complete(method, {})
    assert options["seed"] == 0
    assert options["max_new_tokens"] == 128
    assert complete(method, options | ({"alpha": 1.0} if "alpha" in options else {})) == options


def test_what_is_given_wins_over_the_preset_and_the_preset_over_the_default():
    chosen = PRESETS["official-direct"]
    assert complete("transfer-q", {}, chosen)["rollout_len"] == 20
    assert complete("transfer-q", {"rollout_len": 3}, chosen)["rollout_len"] == 3
    assert complete("transfer-q", {}, chosen)["weight"] == 1.0
    assert "alpha" not in complete("transfer-q", {}, chosen)
    strength = complete("transfer-q", {"alpha": 0.5}, chosen)
    assert (strength["alpha"], strength["weight"]) == (0.5, None)
    for known in PRESETS.values():
        complete(known.method, {}, known)


def test_other_names():
    assert complete("transfer-q", {"num_candidates": 4})["k"] == 4
    with pytest.raises(OptionError, match="Option 'k' is given under two names"):
        complete("transfer-q", {"num_candidates": 4, "k": 4})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"k": 0}, r"k=0 must be a whole number >= 1 .*; leave it out for 10\."),
        ({"k": 2.5}, r"k=2.5 must be a whole number"),
        ({"k": True}, r"k=true must be a whole number"),
        ({"k": "many"}, r"k=many must be a whole number"),
        ({"alpha": 0}, r"alpha=0 must be a finite number > 0 .*; leave it out for 1.0\."),
        ({"alpha": -1.0}, r"alpha=-1.0 must be a finite number > 0"),
        ({"alpha": math.nan}, r"alpha=nan must be a finite number"),
        ({"alpha": math.inf}, r"alpha=inf must be a finite number"),
        ({"weight": -0.5}, r"weight=-0.5 must be a finite number >= 0 or none"),
        ({"rollout_len": -1}, r"rollout_len=-1 must be a whole number >= 0 or auto or none"),
        ({"rollout_top_p": 1.5}, r"rollout_top_p=1.5 must be a finite number > 0 and <= 1"),
        ({"selection": "best"}, r"selection=best must be greedy or sample"),
        ({"max_new_tokens": 0}, r"max_new_tokens=0 must be a whole number >= 1"),
        ({"seed": "x"}, r"seed=x must be a whole number"),
        ({"alpha": 1.0, "weight": 1.0}, r"alpha=1.0 and weight=1.0 say the same thing; give one"),
        ({"rolout_len": 3}, r"'rolout_len' is no option of transfer-q; did you mean rollout_len\? Known: "),
        ({"zzz": 3}, r"'zzz' is no option of transfer-q; known: acceleration, adaptive_rollouts, "),
        ({"reward": 3}, r"'reward' is no option of transfer-q"),
    ],
)
def test_refusals_name_value_rule_and_remedy(given, message):
    with pytest.raises(OptionError, match=message) as error:
        complete("transfer-q", given)
    assert "\n" not in str(error.value)


def test_unknown_names():
    with pytest.raises(OptionError, match=r"method='bestofn' is unknown. Known: greedy"):
        complete("bestofn", {})
    with pytest.raises(OptionError, match=r"preset='x' is unknown. Known: official-direct"):
        preset("x")


@pytest.mark.parametrize("method", METHODS)
def test_every_option_has_a_rule_and_a_meaning(method):
    rows = describe(method)
    assert all(row["values"] and row["meaning"] for row in rows)
    assert {row["option"] for row in rows} == set(complete(method, {})) - {"seed", "max_new_tokens"}


def test_roles():
    needs = {need.name: need for need in roles("transfer-q")}
    assert list(needs) == ["sft", "baseline", "reward", "baseline_reward", "value"]
    assert needs["reward"].required
    assert not needs["baseline_reward"].required
    assert needs["baseline"].tokens
    assert not any(need.tokens for need in roles("best-of-n"))
