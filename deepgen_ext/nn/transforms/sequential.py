"""Composition of invertible layers, storing activations or rebuilding them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .reversible import run_reversibly
from .transform import Inverse, Transform, zero_log_det


class Sequential(Transform):
    """f_K(... f_2(f_1(x))); the log-dets add up.

    Args:
        transforms: the layers, in the order of the forward direction. None at all is the identity.
        reversible: keep only the last output for the backward pass and rebuild each layer's input
            from its output (Gomez et al., "The Reversible Residual Network", 2017). Memory then
            does not grow with depth; the price is one more evaluation of each layer. Gradients
            agree with the stored mode up to the rounding of the inverses, flow to x, context and
            parameters, and can be taken once: differentiating them again raises a RuntimeError.
            Dropout and autocast are replayed as they were. Layers nested in a Sequential are
            rebuilt one by one. It runs outside of torch.compile's graph.
    """

    def __init__(self, *transforms: Transform, reversible: bool = False) -> None:
        super().__init__()
        for index, transform in enumerate(transforms):
            if not isinstance(transform, Transform):
                raise TypeError(
                    f"transforms[{index}]: expected a Transform, got {type(transform).__name__}"
                )
        self.transforms = nn.ModuleList(transforms)
        self.reversible = reversible

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.reversible and torch.is_grad_enabled() and (layers := list(self.flattened())):
            return run_reversibly(layers, x, context)
        log_dets = []
        for transform in self.transforms:
            x, log_det = transform(x, context)
            log_dets.append(log_det)
        return x, _total(log_dets, x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.reversible and torch.is_grad_enabled() and (layers := list(self.flattened())):
            return run_reversibly([Inverse(layer) for layer in reversed(layers)], y, context)
        log_dets = []
        for transform in reversed(self.transforms):
            y, log_det = transform.inverse(y, context)
            log_dets.append(log_det)
        return y, _total(log_dets, y)

    def flattened(self) -> Iterator[Transform]:
        """The layers, with those of nested Sequentials in their place."""
        for transform in self.transforms:
            if isinstance(transform, Sequential):
                yield from transform.flattened()
            else:
                yield transform

    def __len__(self) -> int:
        return len(self.transforms)

    def __getitem__(self, index: int) -> Transform:
        return self.transforms[index]

    def __iter__(self) -> Iterator[Transform]:
        return iter(self.transforms)

    def extra_repr(self) -> str:
        return "reversible=True" if self.reversible else ""


def _total(log_dets: list[Tensor], x: Tensor) -> Tensor:
    if not log_dets:
        return zero_log_det(x)
    if len(log_dets) == 1:
        return log_dets[0]
    return torch.stack(log_dets).sum(0)  # two calls, where a chain of additions makes one a layer
