"""Named sets of options that reproduce a published program or a named special case.

A preset is a method, its options, and how the prompt is made. Options given beside a preset win over it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from alignstar.errors import OptionError


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """`chat` False: the plain tokenizer call, no chat template; None: as the tokenizer has it."""

    method: str
    summary: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    chat: bool | None = None


_OFFICIAL = {
    "k": 10,
    "weight": 1.0,
    "candidate_source": "baseline",
    "candidate_rule": "topk",
    "base_policy": "baseline",
    "num_rollouts": 1,
    "rollout_model": "baseline",
    "rollout_strategy": "checkpoint",
    "rollout_past_max": True,
    "selection": "greedy",
    "reward_norm": "none",
    "reward_text": "verbatim",
    "stop_on_eos": False,
}

PRESETS: Mapping[str, Preset] = {
    "official-direct": Preset(
        method="transfer-q",
        summary="The published program of Transfer Q*, direct: raw texts, 20-token rollouts, no stop at EOS",
        options={**_OFFICIAL, "transfer": "direct", "rollout_len": 20},
        chat=False,
    ),
    "official-indirect": Preset(
        method="transfer-q",
        summary="The published program of Transfer Q*, indirect: exp((r - r_BL)/2) r, 5-token rollouts",
        options={
            **_OFFICIAL,
            "transfer": "indirect",
            "rollout_len": 5,
            "indirect_mode": "unnormalised",
            "beta": 2.0,
            "log_weight_clip": None,
        },
        chat=False,
    ),
    "cd-minus": Preset(
        method="transfer-q",
        summary="CD--: Transfer Q* with the SFT model in the baseline's place (controlled decoding by rollouts)",
        options={
            "k": 10,
            "alpha": 1.0,
            "candidate_source": "sft",
            "base_policy": "sft",
            "rollout_model": "sft",
            "rollout_len": 20,
            "transfer": "direct",
        },
    ),
}


def preset(name: str) -> Preset:
    """The preset. Raises OptionError naming the known ones."""
    if name not in PRESETS:
        raise OptionError(f"preset={name!r} is unknown. Known: {', '.join(PRESETS)}.")
    return PRESETS[name]
