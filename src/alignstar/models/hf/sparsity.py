"""A classifier's last layer with a share of its weights set to zero: a reward that differs from it by a known amount.

Transfer Q* (arXiv:2405.20495, section 4.2) makes target rewards of a source reward "by inducing sparsity in the final
linear layer"; which weights go is not stated. Knows modules; reads no checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from alignstar.errors import ModelError
from alignstar.sampling import Noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparsity:
    """The share of weights that become zero: the smallest in absolute value, or, with a seed, whichever it draws.

    A larger share of the same choice includes the smaller one.
    """

    share: float
    seed: int | None = None

    def __str__(self) -> str:
        return f"sparsify={self.share:g}" + ("" if self.seed is None else f"&sparsify_seed={self.seed}")

    def apply(self, layer: torch.nn.Linear) -> None:
        """Set the layer's weights to zero, round(share x their number) of them; a bias stays."""
        weights = layer.weight.detach().flatten()
        if self.seed is None:
            ranks = weights.abs().to(device="cpu", dtype=torch.float64)
        else:
            ranks = torch.from_numpy(Noise(seed=self.seed, purpose="sparsify").uniform(0, len(weights)))
        gone = torch.argsort(ranks, stable=True)[: round(self.share * len(weights))]
        with torch.no_grad():
            layer.weight.view(-1)[gone.to(weights.device)] = 0.0


def last_layer(module: torch.nn.Module, *, name: str, outputs: int) -> torch.nn.Linear:
    """The linear layer that gives a classifier's outputs. Raises ModelError where there is none of that many."""
    linear = [inner for inner in module.modules() if isinstance(inner, torch.nn.Linear)]
    if not linear or linear[-1].out_features != outputs:
        raise ModelError(f"Reward {name!r} does not end in a linear layer, so it cannot be sparsified; leave that out.")
    return linear[-1]
