"""One base in memory, several PEFT adapters on it: who is switched on while a forward runs.

Knows torch modules and peft. All switching happens in the engine's thread.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from safetensors.torch import load_file

from alignstar.errors import ModelError

Switch: TypeAlias = Callable[[], contextlib.AbstractContextManager[None]]
"""Makes a base run with one of its adapters, or with none, for as long as the context lasts."""

CONFIG = "adapter_config.json"


def is_adapter(path: str) -> bool:
    """Whether a local directory holds a PEFT adapter."""
    return (Path(path) / CONFIG).is_file()


def base_of(path: str) -> str:
    """The base that an adapter names: a directory (also one relative to the adapter's), or a hub id."""
    named = json.loads((Path(path) / CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not named:
        raise ModelError(
            f"{path!r} is an adapter whose {CONFIG} names no base_model_name_or_path; name its base there."
        )
    beside = Path(path) / named
    return str(beside.resolve()) if beside.is_dir() else str(named)


class SharedBase:
    """A causal language model and the adapters added to it."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self._peft: Any = None
        self._active: str | None = None

    def add(self, path: str) -> tuple[Switch, Mapping[str, torch.Tensor]]:
        """Load an adapter; returns its switch, and the weights in it that are no adapter's (a reward's head).

        Raises ModelError for an adapter that is not LoRA-like, is not stored as safetensors, or does not fit the base.
        """
        from peft import PeftConfig, get_peft_model, set_peft_model_state_dict

        weights = Path(path) / "adapter_model.safetensors"
        if not weights.is_file():
            raise ModelError(
                f"{path!r} holds no adapter_model.safetensors; save the adapter with safe_serialization=True."
            )
        config: Any = PeftConfig.from_pretrained(path)
        # The head of a reward adapter belongs to the reward, not to the base that others share.
        config.modules_to_save, config.task_type, config.inference_mode = None, None, True
        config.base_model_name_or_path = cast("Any", self.model).name_or_path
        tensors = load_file(weights)
        inner = {name: t for name, t in tensors.items() if ".lora_" in name or "ia3_" in name}
        rest = {name: t for name, t in tensors.items() if name not in inner}
        name = f"adapter{len(self._peft.peft_config) if self._peft is not None else 0}"
        try:
            if self._peft is None:
                self._peft = get_peft_model(
                    cast("Any", self.model), config, adapter_name=name, autocast_adapter_dtype=False
                )
            else:
                self._peft.add_adapter(name, config)
            outcome = set_peft_model_state_dict(self._peft, inner, adapter_name=name)
        except (ValueError, RuntimeError, KeyError) as error:
            raise ModelError(f"The adapter {path!r} does not fit its base: {str(error).splitlines()[0]}") from error
        if outcome.unexpected_keys:
            raise ModelError(
                f"The adapter {path!r} does not fit its base: it has weights for {outcome.unexpected_keys[0]!r}."
            )
        reference = next(p for p in self.model.parameters() if p.is_floating_point())
        self._peft.to(device=reference.device, dtype=reference.dtype)
        self._active = ""  # unknown: whatever comes next switches
        return lambda: self.using(name), rest

    @contextlib.contextmanager
    def using(self, name: str | None) -> Generator[None]:
        """Switch to an adapter (None: the bare base), and leave it so: the next forward is often the same model's."""
        if self._peft is not None and self._active != name:
            tuner = self._peft.base_model
            if name is None:
                tuner.disable_adapter_layers()
            else:
                tuner.enable_adapter_layers()
                tuner.set_adapter(name, inference_mode=True)
            self._active = name
        yield

    def merge(self) -> None:
        """Make the adapter that was added last a part of the weights; no other can be added then."""
        self.model = self._peft.merge_and_unload()
        self._peft = None

    @property
    def bytes(self) -> int:
        """Memory that the base's parameters take."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters())

    def bare(self) -> contextlib.AbstractContextManager[None]:
        """The switch of the base itself."""
        return self.using(None)
