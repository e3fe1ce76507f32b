"""Opens a sequence classifier's checkpoint and refuses one that would not score as it was trained to.

Knows transformers and peft; runs no forward. Only safetensors are read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from transformers import AutoModelForSequenceClassification

from alignstar.errors import ModelError
from alignstar.models.hf.adapters import base_of as adapter_base
from alignstar.models.hf.codec import load_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HEAD_NAMES = ("score", "classifier", "classification_head", "logits_proj")


def open_classifier(
    path: str, dtype: torch.dtype | str, *, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, in evaluation mode on the CPU, and its own tokenizer, of a local directory or hub id.

    A PEFT adapter (task SEQ_CLS with its head among the saved modules) is merged into its base. Raises ModelError where
    there is no such checkpoint, where it is no classifier (its head would be filled at random), and where its weights
    are no safetensors. Code that comes with a checkpoint is run only with `trust_remote_code`.
    """
    is_adapter = Path(path, "adapter_config.json").is_file()
    opening = _open_adapter if is_adapter else _open
    model = opening(path, dtype, trust_remote_code=trust_remote_code)
    return model.eval(), load_tokenizer(path, trust_remote_code=trust_remote_code)


def _open(path: str, dtype: torch.dtype | str, *, base_of: str | None = None, **options: Any) -> Any:
    """Load, and check that every weight came from the checkpoint; `base_of`: all but the head, for this adapter."""
    _refuse_pickles(path)
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(_cannot_open(path, error, base_of)) from error
    missing = sorted(key for key in info["missing_keys"] if base_of is None or not _of_head(key))
    if missing:
        head = next((key for key in missing if _of_head(key)), None)
        what = "is no classifier: its head" if head else "is incomplete: its weight"
        raise ModelError(
            f"{path!r} {what} ({head or missing[0]}) is not in the checkpoint and would be filled at random; "
            "give a checkpoint saved by AutoModelForSequenceClassification."
        )
    return model


def _of_head(key: str) -> bool:
    return any(part in HEAD_NAMES for part in key.split("."))


def _cannot_open(path: str, error: BaseException, base_of: str | None) -> str:
    role = f"the base of the adapter {base_of!r}" if base_of is not None else "a sequence classifier"
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")
    if not Path(path).exists():
        return (
            f"{path!r} is no directory and cannot be fetched as {role} ({reason}); correct the path, or the id and "
            "the connection."
        )
    return f"{path!r} cannot be read as {role} ({reason}); save one there with save_pretrained."


def _refuse_pickles(path: str) -> None:
    directory = Path(path)
    if not directory.is_dir() or any(directory.glob("*.safetensors")):
        return
    pickled = sorted([*directory.glob("pytorch_model*.bin"), *directory.glob("adapter_model.bin")])
    if pickled:
        raise ModelError(
            f"{str(pickled[0])!r} is a pickle, which can run code when it is read; convert it once where you trust it: "
            "load it with from_pretrained(..., use_safetensors=False) and write it with save_pretrained."
        )


def _open_adapter(path: str, dtype: torch.dtype | str, *, trust_remote_code: bool) -> Any:
    from peft import PeftModel

    config = json.loads(Path(path, "adapter_config.json").read_text(encoding="utf-8"))
    if config.get("task_type") != "SEQ_CLS":
        raise ModelError(
            f"{path!r} is an adapter of task {config.get('task_type')}, not of a classifier; train it with "
            "task_type=SEQ_CLS."
        )
    _refuse_pickles(path)
    weights = Path(path, "adapter_model.safetensors")
    if not weights.is_file():
        raise ModelError(f"{path!r} has no adapter_model.safetensors; save the adapter there with save_pretrained.")
    base = _open(
        adapter_base(path),
        dtype,
        base_of=path,
        num_labels=_adapter_outputs(weights),
        trust_remote_code=trust_remote_code,
    )
    # Merged, since the forward knows plain models only.
    return PeftModel.from_pretrained(base, path).merge_and_unload()


def _adapter_outputs(weights: Path) -> int:
    """Rows of the head that the adapter brings."""
    with safe_open(str(weights), framework="pt") as file:
        heads = [key for key in file.keys() if _of_head(key) and key.endswith("weight")]  # noqa: SIM118 - no mapping
        if not heads:
            raise ModelError(
                f"{str(weights)!r} holds no classification head, which would be filled at random; save it with "
                "modules_to_save=['score']."
            )
        # Of a head of several layers the last one gives the outputs.
        return int(file.get_slice(sorted(heads)[-1]).get_shape()[0])
