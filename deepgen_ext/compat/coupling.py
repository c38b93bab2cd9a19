"""nflows' affine coupling: split, net, scale and shift, and the two halves together again.

Its map alone is a third of what surrounds the net. The rest is the split and the merge by index: a
selection each, and one copy of the input into which what has moved is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from nflows.transforms import coupling
from torch import Tensor

from deepgen_ext.ops import affine_coupling

from .accelerated import Accelerated

SMALLEST_RANK, LARGEST_RANK = 2, 4


class AffineCouplingTransform(Accelerated, coupling.AffineCouplingTransform):
    replaces = coupling.AffineCouplingTransform
    gain = "one pass beside the net, forward and inverse; its gradient in one"
    keeps = ()

    @classmethod
    def why_not(cls, module: Any) -> str:
        return "" if module.unconditional_transform is None else "an unconditional transform"

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._couple(inputs, context, inverse=False)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._couple(inputs, context, inverse=True)

    def _couple(
        self, inputs: Tensor, context: Tensor | None, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        if inputs.dim() not in (SMALLEST_RANK, LARGEST_RANK) or inputs.shape[1] != self.features:
            original = super().inverse if inverse else super().forward
            return original(inputs, context)  # which says what is wrong
        moving = self.transform_features
        seen = inputs.index_select(1, self.identity_features)
        shift, raw = self.transform_net(seen, context).to(inputs.dtype).chunk(2, dim=1)
        moved, log_det = affine_coupling(
            inputs.index_select(1, moving),
            raw,
            shift,
            scale_map="floored_sigmoid",
            inverse=inverse,
        )
        return inputs.index_copy(1, moving, moved.to(inputs.dtype)), log_det

    def comparisons(self, original: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
        # The net may want a context of a shape that only it knows: a table answers in its place.
        device = self.transform_features.device
        for rest in ((), (2, 3)):
            x = torch.randn(3, self.features, *rest, dtype=torch.float64, device=device)
            outputs = 2 * self.num_transform_features
            table = torch.randn(3, outputs, *rest, dtype=torch.float64, device=device)
            for direction in ("forward", "inverse"):
                results = []
                for part in (original, self):
                    part.transform_net = _Table(table)
                    results.append(getattr(part, direction)(x))
                yield from zip((f"the {direction}", "its log-det"), *results, strict=True)


class _Table(torch.nn.Module):
    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values

    def forward(self, seen: Tensor, context: Tensor | None = None) -> Tensor:
        return self.values
