"""From paths, ids and reward lines to an Aligner: what `alignstar.load` and the command line call.

Knows which roles there are; how a checkpoint is opened is `models/hf/load.py`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from alignstar.aligner import Aligner
from alignstar.errors import NeedsError
from alignstar.rewards import Reward
from alignstar.rewards.function import FunctionReward, RewardFunction
from alignstar.rewards.spec import build_reward, parse_reward

if TYPE_CHECKING:
    from alignstar.models.hf.language import HFModel
    from alignstar.models.hf.load import Library

RewardLike: TypeAlias = "str | Sequence[str] | Reward | Callable[..., Any] | None"
"""A line of the reward grammar (`alignstar.rewards.spec`), several to add up, a Reward, or a function."""


def load(
    *,
    sft: str | None = None,
    baseline: str | None = None,
    reward: RewardLike = None,
    baseline_reward: RewardLike = None,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    kv_tokens: int | None = None,
    reuse: bool = True,
) -> Aligner:
    """Open models of the transformers library and put them on one engine.

    Args:
        sft: directory or hub id of the reference model.
        baseline: directory or hub id of an already aligned model, or of a LoRA adapter on the reference model.
        reward: what the response is to score high under.
        baseline_reward: what the baseline was aligned to; makes Transfer Q* indirect.
        device: "auto" takes cuda, then mps, then cpu.
        dtype: "auto" is float32 on CPU and the checkpoint's own type elsewhere.
        trust_remote_code: run code that comes with a checkpoint.
        kv_tokens: how many positions' keys and values each model may hold (None: a share of the memory).
        reuse: compute shared prefixes once. Off, everything is computed from nothing: slow, for comparison.

    Raises ModelError, OptionError or NeedsError, in one sentence, before anything is decoded.
    """
    from alignstar.models.hf.adapters import is_adapter
    from alignstar.models.hf.load import Library, check_checkpoint

    if sft is None and baseline is None:
        raise NeedsError("No language model was given; give one with sft=PATH (--sft) or baseline=PATH (--baseline).")
    specs = [_specs(given) for given in (reward, baseline_reward)]  # a typing error is told before minutes of loading
    for path, role in ((sft, "sft"), (baseline, "baseline")):
        if path is not None:
            check_checkpoint(path, role, adapter=is_adapter(path))
    library = Library(device=device, dtype=dtype, trust_remote_code=trust_remote_code, kv_tokens=kv_tokens, reuse=reuse)
    try:
        sft_model, baseline_model = library.pair(sft, baseline)
        rewards = [_reward(library, spec, sft_model, baseline_model) for spec in specs]
    except BaseException:
        library.engine.close()
        raise
    return Aligner(
        sft=sft_model,
        baseline=baseline_model,
        reward=rewards[0],
        baseline_reward=rewards[1],
        codec=library.codec(sft or baseline or ""),
        engine=library.engine,
    )


def _specs(given: RewardLike) -> Any:
    if isinstance(given, str):
        return [parse_reward(given)]
    if isinstance(given, Sequence):
        return [parse_reward(line) for line in given]
    return given


def _reward(library: Library, spec: Any, sft: HFModel | None, baseline: HFModel | None) -> Reward | None:
    from alignstar.rewards.classifier import ClassifierReward
    from alignstar.rewards.implicit import ImplicitReward

    def implicit(beta: float) -> Reward:
        if sft is None or baseline is None:
            raise NeedsError("The implicit reward compares the baseline with the SFT model; give --sft and --baseline.")
        return ImplicitReward(baseline, sft, beta=beta)

    def classifier(path: str, **options: Any) -> Reward:
        heads, tokenizer = library.classifier(path)
        return ClassifierReward(heads, tokenizer, max_context=heads.max_context, causal=heads.causal, **options)

    if spec is None or not spec:
        return None
    if isinstance(spec, list):
        return build_reward(spec, open_classifier_reward=classifier, implicit=implicit)
    return FunctionReward(cast("RewardFunction", spec)) if callable(spec) else spec
