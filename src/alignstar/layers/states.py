"""The variability of every layer of a transformers model on labelled texts, from one forward of each text.

A layer's state is what a head there would read: the layer's output after the model's final norm, which stays when the
layers above are cut off. States of texts go through a temporary file, [L, N, d] in float32: memory holds one batch.
Knows torch and token ids; the metric is `variability.py`'s, texts and labels are the caller's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from transformers import AutoModel

from alignstar.errors import FailedError, ModelError, PromptError
from alignstar.layers.variability import variability
from alignstar.models.hf.adapters import is_adapter
from alignstar.models.hf.branch import layer_list
from alignstar.models.hf.load import Library, check_checkpoint
from alignstar.sampling import Array

Pool: TypeAlias = Literal["mean", "last"]

POSITIONS = 8192
"""Most positions of one forward."""


def layer_variabilities(
    model: Any,
    texts: Sequence[Sequence[int]],
    labels: Sequence[int],
    *,
    special: Collection[int],
    pool: Pool = "mean",
    on_texts: Callable[[int], None] = lambda _: None,
) -> Array:
    """The variability of the layers 1 to L [L]; a text's state is the mean over its tokens that are not `special`.

    `pool` "last": the state at its last token, which is what a reward's head reads. `on_texts` is told how many texts
    are done. Raises ModelError for a model whose layers are no plain list, PromptError for a text without a token
    that counts, FailedError for states that are not finite.
    """
    backbone = model.base_model
    listed = layer_list(backbone)
    if listed is None:
        raise ModelError(f"{type(model).__name__} keeps its layers in no plain list, so they cannot be told apart.")
    layers = list(backbone.get_submodule(listed))
    shape = (len(layers), len(texts), backbone.config.hidden_size)
    with tempfile.TemporaryFile() as file, torch.inference_mode():
        states = np.memmap(file, dtype=np.float32, shape=shape, mode="w+")
        _read(backbone.eval(), layers, texts, states, frozenset(special), pool, on_texts)
        return np.array([_variability(states[i], labels, i + 1) for i in range(len(layers))])


def open_backbone(path: str, *, device: str, dtype: str) -> Any:
    """The layers of a causal model or classifier, without its head; `dtype` "auto" is float32 on a CPU.

    Raises ModelError for an adapter and for what is no checkpoint in safetensors.
    """
    if is_adapter(path):
        raise ModelError(f"{path!r} is an adapter, whose base has the layers; give the base, or the merged model.")
    check_checkpoint(path, "model")
    library = Library(device=device, dtype=dtype)
    try:
        return AutoModel.from_pretrained(path, dtype=library.torch_dtype(), use_safetensors=True).to(library.device)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"model={path!r} cannot be loaded: {str(error).splitlines()[0].rstrip('.:')}.") from error


def _variability(states: Any, labels: Sequence[int], layer: int) -> float:
    try:
        return variability(states, labels)
    except FailedError as error:
        raise FailedError(f"Layer {layer}: {error}") from None


def _read(
    backbone: Any, layers: Sequence[Any], texts: Sequence[Sequence[int]], into: Any, special: frozenset[int],
    pool: Pool, on_texts: Callable[[int], None],
) -> None:  # fmt: skip
    """Write the pooled states [L, N, d] of all texts; texts of like length share a forward."""
    device = next(backbone.parameters()).device
    weights = [_weights(text, special, pool, number) for number, text in enumerate(texts, start=1)]
    norm = _after_the_last(backbone, layers[-1])
    pooled: dict[int, torch.Tensor] = {}
    weight = torch.empty(0)

    def keep(layer: int) -> Callable[[Any, Any, Any], None]:
        def hook(_module: Any, _given: Any, output: Any) -> None:
            pooled[layer] = torch.einsum("bt,btd->bd", weight, norm(_hidden(output)).float())

        return hook

    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    done = 0
    hooks = [layer.register_forward_hook(keep(i)) for i, layer in enumerate(layers)]
    try:
        while done < len(order):
            count = 1
            while done + count < len(order) and (count + 1) * len(texts[order[done + count]]) <= POSITIONS:
                count += 1
            rows = order[done : done + count]
            longest = len(texts[rows[-1]])
            ids = torch.tensor([[*texts[i], *([0] * (longest - len(texts[i])))] for i in rows], device=device)
            lengths = torch.tensor([len(texts[i]) for i in rows], device=device)
            mask = (torch.arange(longest, device=device)[None] < lengths[:, None]).long()
            weight = torch.tensor([[*weights[i], *([0.0] * (longest - len(texts[i])))] for i in rows], device=device)
            backbone(input_ids=ids, attention_mask=mask, use_cache=False)
            for layer, state in pooled.items():
                into[layer, rows] = state.cpu().numpy()
            done += count
            on_texts(done)
    finally:
        for hook in hooks:
            hook.remove()


def _weights(text: Sequence[int], special: frozenset[int], pool: Pool, number: int) -> list[float]:
    """What each position of a text counts in its state; padding, which follows, counts nothing."""
    if pool == "last":
        counted = [at == len(text) - 1 for at in range(len(text))]
    else:
        counted = [token not in special for token in text]
    if not any(counted):
        raise PromptError(f"Text {number} has no token that is not special; drop it or fill it in.")
    return [float(counts) / sum(counted) for counts in counted]


def _after_the_last(backbone: Any, last: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """What the backbone does to its last layer's output: its final norm, or nothing."""
    came: list[torch.Tensor] = []
    norms: list[Any] = []

    def look(module: Any, given: tuple[Any, ...]) -> None:
        if came and given and given[0] is came[0]:
            norms.append(module)

    hooks = [last.register_forward_hook(lambda _module, _given, output: came.append(_hidden(output)))]
    hooks += [child.register_forward_pre_hook(look) for child in backbone.children()]
    try:
        backbone(input_ids=torch.zeros(1, 1, dtype=torch.long, device=next(backbone.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return norms[0] if norms else lambda states: states


def _hidden(output: Any) -> torch.Tensor:
    """The hidden states among what a layer returns."""
    return output if isinstance(output, torch.Tensor) else output[0]
