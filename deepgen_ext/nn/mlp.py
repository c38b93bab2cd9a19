"""Multilayer perceptron, the conditioner of flows on vectors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .context import check_context


class MLP(nn.Module):
    """(n, in_features) -> (n, out_features) through `depth` hidden layers with SiLU.

    The last layer starts at zero, so that a flow starts close to the identity. A context (n,
    context_features) is concatenated to the input.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden_features: int = 64,
        depth: int = 2,
        context_features: int = 0,
    ) -> None:
        super().__init__()
        widths = [in_features + context_features] + [hidden_features] * depth
        self.hidden = nn.ModuleList(
            nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.output = nn.Linear(widths[-1], out_features)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        self.context_features = context_features

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        check_context(context, self.context_features)
        h = x if context is None else torch.cat((x, context), dim=1)
        for layer in self.hidden:
            h = F.silu(layer(h))
        return self.output(h)
