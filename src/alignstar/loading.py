"""From paths, ids and reward lines to an Aligner: what `alignstar.load` and the command line call.

Knows which roles there are; how a checkpoint is opened is `models/hf/load.py`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from alignstar.aligner import Aligner
from alignstar.errors import ModelError, NeedsError
from alignstar.rewards import Reward
from alignstar.rewards.function import FunctionReward, RewardFunction
from alignstar.rewards.spec import build_reward, parse_reward

if TYPE_CHECKING:
    from alignstar.models.hf.language import HFModel
    from alignstar.models.hf.load import Library

RewardLike: TypeAlias = "str | Sequence[str] | Reward | Callable[..., Any] | None"
"""A line of the reward grammar (`alignstar.rewards.spec`), several to add up, a Reward, or a function."""

PACKAGED = "package:"
"""Begins the name of a folder inside an installed package."""


def load(
    *,
    sft: str | None = None,
    baseline: str | None = None,
    reward: RewardLike = None,
    baseline_reward: RewardLike = None,
    value: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    kv_tokens: int | None = None,
    reuse: bool = True,
    compile: bool = False,
) -> Aligner:
    """Open models of the transformers library and put them on one engine.

    Args:
        sft: directory or hub id of the reference model, or package:NAME/FOLDER for one inside a package.
        baseline: directory or hub id of an already aligned model, or of a LoRA adapter on the reference model.
        reward: what the response is to score high under.
        baseline_reward: what the baseline was aligned to; makes Transfer Q* indirect.
        value: directory of a value head that `alignstar train value` wrote.
        device: "auto" takes cuda, then mps, then cpu.
        dtype: "auto" is float32 on CPU and the checkpoint's own type elsewhere.
        trust_remote_code: run code that comes with a checkpoint.
        kv_tokens: how many positions' keys and values each model may hold (None: a share of the memory).
        reuse: compute shared prefixes once. Off, everything is computed from nothing: slow, for comparison.
        compile: compile the forwards of Llama-shaped models with torch.compile, once per load; on a GPU small ones are
            recorded as CUDA graphs too. What runs uncompiled is named in the log.

    Raises ModelError, OptionError or NeedsError, in one sentence, before anything is decoded.
    """
    aligner, _ = load_judged(
        {},
        sft=sft,
        baseline=baseline,
        reward=reward,
        baseline_reward=baseline_reward,
        value=value,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        kv_tokens=kv_tokens,
        reuse=reuse,
        compile=compile,
    )
    return aligner


def load_judged(
    judges: Mapping[str, RewardLike],
    *,
    sft: str | None = None,
    baseline: str | None = None,
    reward: RewardLike = None,
    baseline_reward: RewardLike = None,
    value: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    kv_tokens: int | None = None,
    reuse: bool = True,
    compile: bool = False,
) -> tuple[Aligner, dict[str, Reward]]:
    """As `load`, and beside the aligner the rewards `judges`, by name: on the same engine, for looking at results."""
    from alignstar.models.hf.adapters import is_adapter
    from alignstar.models.hf.load import Library, check_checkpoint
    from alignstar.models.hf.value import load_head

    sft, baseline = (None if path is None else located(path) for path in (sft, baseline))
    if sft is None and baseline is None:
        raise NeedsError("No language model was given; give one with sft=PATH (--sft) or baseline=PATH (--baseline).")
    # Read first: a typing error is told before minutes of loading.
    specs = [_specs(given) for given in (reward, baseline_reward, *judges.values())]
    for path, role in ((sft, "sft"), (baseline, "baseline")):
        if path is not None:
            check_checkpoint(path, role, adapter=is_adapter(path))
    head = None if value is None else load_head(located(value))
    library = Library(
        device=device, dtype=dtype, trust_remote_code=trust_remote_code, kv_tokens=kv_tokens, reuse=reuse,
        compile=compile,
    )  # fmt: skip
    try:
        if head is not None:
            library.expect(head)
        sft_model, baseline_model = library.pair(sft, baseline)
        value_model = None if head is None else library.value(head)
        rewards = [_reward(library, spec, sft_model, baseline_model) for spec in specs]
    except BaseException:
        library.engine.close()
        raise
    aligner = Aligner(
        sft=sft_model,
        baseline=baseline_model,
        reward=rewards[0],
        baseline_reward=rewards[1],
        value=value_model,
        codec=library.codec(sft or baseline or ""),
        engine=library.engine,
    )
    judging = {name: judge for name, judge in zip(judges, rewards[2:], strict=True) if judge is not None}
    return aligner, judging


@contextmanager
def open_reward(
    lines: Sequence[str],
    *,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    compile: bool = False,
    reuse: bool = True,
) -> Generator[Reward]:
    """The sum of reward lines, without language models: for texts that are there already.

    Without `reuse` nothing is remembered of texts that were read before, which may change a score's last digits.

    Raises as `load` does, NeedsError for the implicit reward, which is made of two language models.
    """
    from alignstar.models.hf.load import Library

    specs = [parse_reward(line) for line in lines]
    if any(one.kind == "implicit" for spec in specs for one in (spec, *spec.parts)):
        raise NeedsError("The implicit reward is made of two language models and cannot score texts; name another.")
    library = Library(device=device, dtype=dtype, trust_remote_code=trust_remote_code, compile=compile, reuse=reuse)
    try:
        reward = _reward(library, specs, None, None)
        assert reward is not None, "there is a line"
        yield reward
    finally:
        library.engine.close()


def located(source: str) -> str:
    """`source`, or the folder that package:NAME/FOLDER is: one that lies inside an installed package.

    Raises ModelError where there is no such folder.
    """
    if not source.startswith(PACKAGED):
        return source
    package, _, inside = source.removeprefix(PACKAGED).partition("/")
    try:
        folder = Path(str(files(package))) / inside
    except ModuleNotFoundError as error:
        raise ModelError(f"{source!r} names the package {package!r}, which is not installed; correct it.") from error
    if not folder.is_dir():
        raise ModelError(f"{source!r} is no folder: the package has no {inside!r}; correct it.")
    return str(folder)


def _specs(given: RewardLike) -> Any:
    if isinstance(given, str):
        return [parse_reward(given)]
    if isinstance(given, Sequence):
        return [parse_reward(line) for line in given]
    return given


def _reward(library: Library, spec: Any, sft: HFModel | None, baseline: HFModel | None) -> Reward | None:
    from alignstar.models.hf.sparsity import Sparsity
    from alignstar.rewards.classifier import ClassifierReward
    from alignstar.rewards.implicit import ImplicitReward

    def implicit(beta: float) -> Reward:
        if sft is None or baseline is None:
            raise NeedsError("The implicit reward compares the baseline with the SFT model; give --sft and --baseline.")
        return ImplicitReward(baseline, sft, beta=beta)

    def classifier(
        path: str, *, sparsify: float | None = None, sparsify_seed: int | None = None, **options: Any
    ) -> Reward:
        sparsity = None if sparsify is None else Sparsity(share=sparsify, seed=sparsify_seed)
        heads, tokenizer = library.classifier(located(path), sparsity)
        return ClassifierReward(heads, tokenizer, max_context=heads.max_context, causal=heads.causal, **options)

    if spec is None or not spec:
        return None
    if isinstance(spec, list):
        return build_reward(spec, open_classifier_reward=classifier, implicit=implicit)
    return FunctionReward(cast("RewardFunction", spec)) if callable(spec) else spec
