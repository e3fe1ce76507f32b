"""A frozen model whose last hidden states are features, and the rewards that are linear in them as checkpoints of it.

A reward is a head on the model: `transformers` opens it as AutoModelForSequenceClassification. Several rewards share
the model's weights: in one checkpoint with an output each, and as checkpoints of one output whose files are links to
the same weights on the disk. Knows nothing of preferences.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from alignstar.errors import ModelError
from alignstar.loading import located
from alignstar.models.hf.adapters import is_adapter
from alignstar.models.hf.checkpoint import open_classifier
from alignstar.models.hf.codec import load_tokenizer
from alignstar.models.hf.load import check_checkpoint, pick_device
from alignstar.sampling import Array
from alignstar.train.encode import pad_for
from alignstar.train.value import last_states
from alignstar.types import Ids

BODY, HEAD = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
HEAD_WEIGHT = "score.weight"
TYPES = (torch.float16, torch.bfloat16)
"""In which the weights are written where that changes none of them; else as they are in memory."""


def check_model(source: str) -> None:
    """Raise ModelError, before anything is loaded, for a path that is no checkpoint."""
    path = located(source)
    check_checkpoint(path, "model", adapter=is_adapter(path))


def open_backbone(source: str, *, device: str) -> tuple[Any, PreTrainedTokenizerBase]:
    """A causal language model or a classifier (an adapter is merged), as a classifier whose head counts for nothing.

    Raises ModelError where it cannot be opened, or where its head would not read a single hidden state.
    """
    path = located(source)
    check_model(source)
    if is_adapter(path):
        model, tokenizer = open_classifier(path, torch.float32)
    else:
        tokenizer = load_tokenizer(path)
        try:
            model = AutoModelForSequenceClassification.from_pretrained(
                path, num_labels=1, dtype=torch.float32, use_safetensors=True, ignore_mismatched_sizes=True
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")
            raise ModelError(f"model={source!r} cannot be opened as a classifier ({reason}); correct it.") from error
    if not isinstance(dict(model.named_children()).get("score"), torch.nn.Linear):
        raise ModelError(
            f"model={source!r} has no linear head 'score' on the last token; take a causal model or classifier."
        )
    opened: Any = model
    return opened.to(pick_device(device)).eval(), tokenizer


def read_states(model: Any, texts: Sequence[Ids], on_read: Callable[[int], None]) -> Array:
    """The last hidden state after every text [texts, d]; equal texts are read once."""
    distinct = list(dict.fromkeys(texts))
    row = {text: i for i, text in enumerate(distinct)}
    with torch.inference_mode():
        states = last_states(model.base_model, distinct, on_read)
    return states.double().numpy()[[row[text] for text in texts]]


def save_rewards(
    model: Any, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Ids], heads: Array, out: Path
) -> tuple[Path, tuple[Path, ...]]:
    """Write rewards with weights `heads` [U, d] over the model's states: all in one checkpoint, and each by itself.

    The padding token becomes one with which none of `texts` ends. Earlier folders of these names are replaced.
    """
    model.config.pad_token_id = pad_for(tokenizer, texts)
    joint, alone = out / "rewards", tuple(out / f"group-{u}" for u in range(len(heads)))
    weights = {name: t for name, t in model.state_dict().items() if name != HEAD_WEIGHT}
    kept = next((dtype for dtype in TYPES if _lossless(weights.values(), dtype)), torch.float32)
    for folder, rows in ((joint, heads), *((path, heads[[u]]) for u, path in enumerate(alone))):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if folder == joint:
            body = {name: t.to("cpu", kept).contiguous() for name, t in weights.items()}
            save_file(body, str(folder / BODY), metadata={"format": "pt"})
        else:
            _linked(joint / BODY, folder / BODY)
        head = torch.tensor(rows, dtype=torch.float32)
        save_file({HEAD_WEIGHT: head}, str(folder / HEAD), metadata={"format": "pt"})
        _describe(folder, model, tokenizer, labels=len(rows), dtype=kept, names=[*weights])
    return joint, alone


def _describe(
    folder: Path, model: Any, tokenizer: PreTrainedTokenizerBase, *, labels: int, dtype: torch.dtype, names: list[str]
) -> None:
    """What says how the two files of weights are read."""
    size = sum((folder / name).stat().st_size for name in (BODY, HEAD))
    places = {**dict.fromkeys(names, BODY), HEAD_WEIGHT: HEAD}
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    config = copy.deepcopy(model.config)
    config.num_labels = labels
    config.architectures = [type(model).__name__]
    config.dtype = dtype
    config.save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))


def _lossless(tensors: Sequence[torch.Tensor] | Any, dtype: torch.dtype) -> bool:
    return all(torch.equal(t.to(dtype).to(t.dtype), t) for t in tensors)


def _linked(source: Path, target: Path) -> None:
    """The same file under another name, or a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
