"""Sentence embeddings of a transformers encoder, as SimCSE reads them. Never fetches anything.

The pooler's output where the model has one, else the mean of the last layer over the text's positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from alignstar.errors import ModelError
from alignstar.sampling import Array

MAX_TOKENS = 512
"""Longer texts are cut, as the published evaluation does."""


class HFSentenceEncoder:
    """An encoder from a local folder, or from an id that lies in the local cache. On the CPU, in float32."""

    def __init__(self, path: str) -> None:
        self.name = path
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)
            self._model: Any = AutoModel.from_pretrained(path, local_files_only=True, use_safetensors=True)
        except (OSError, ValueError, ImportError, KeyError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise ModelError(
                f"Sentence encoder {path!r} cannot be opened and is not fetched by itself ({reason}); give a folder "
                "that holds it, or leave it out for hashed words."
            ) from error
        self._model.eval()
        positions = cast("int | None", getattr(self._model.config, "max_position_embeddings", None))
        self._max_tokens = min(MAX_TOKENS, positions or MAX_TOKENS)

    def embed(self, texts: Sequence[str]) -> Array:
        """Vectors [len(texts), hidden size], in order."""
        batch = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
        )
        with torch.inference_mode():
            output = self._model(**batch)
        pooled = output.get("pooler_output")
        if pooled is None:
            there = batch["attention_mask"].unsqueeze(-1)
            pooled = (output["last_hidden_state"] * there).sum(dim=1) / there.sum(dim=1)
        return pooled.to(torch.float64).numpy().astype(np.float64)
