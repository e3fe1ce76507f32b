"""The sweep in the package belongs to the models in the package, and to the methods that the demo compares."""

from __future__ import annotations

import json

from alignstar.demo import prompts, settings, tuning


def test_the_sweep_was_made_with_the_shipped_models():
    stored = json.loads(settings.sweep_file().read_text())
    assert stored["models_sha256"] == tuning.models_digest(), "run `alignstar demo --tune`"
    assert stored["alphas"] == list(settings.ALPHAS)
    assert (stored["prompts"], stored["split"]) == (tuning.PROMPTS, "tuning")
    assert (stored["seed"], stored["max_new_tokens"]) == (settings.SEED, settings.MAX_NEW_TOKENS)
    assert stored["rollouts"] == settings.ROLLOUTS


def test_every_tuned_plan_has_its_strength():
    sweep = tuning.stored()
    wanted = {(setting, plan.label) for setting in settings.SETTINGS for plan in settings.plans(setting) if plan.tuned}
    assert set(sweep) == wanted
    for row in json.loads(settings.sweep_file().read_text())["sweep"]:
        assert row["alpha"] == sweep[row["setting"], row["method"]].alpha


def test_tuning_prompts_are_not_demo_prompts():
    assert len(prompts("tuning")) >= tuning.PROMPTS
    assert not set(prompts("tuning")) & set(prompts("demo"))
