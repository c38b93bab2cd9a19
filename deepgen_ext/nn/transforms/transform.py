"""The contract of an invertible layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .random_state import RandomState


class Transform(nn.Module):
    """An invertible map y = f(x) whose log |det dy/dx| is known.

    `forward(x, context=None) -> (y, log_det)` and `inverse(y, context=None) -> (x, log_det)`, x of
    shape (batch, ...). `log_det` is (batch,) and belongs to the map that was applied: the inverse
    returns log |det dx/dy|, the negative of the forward's at the matching point. It is accumulated
    in float32 for half types, else in the input's dtype. Calling a transform changes none of its
    state (`ActNorm`'s initialisation is the one exception), so that x, y and gradients can be
    rebuilt at any time.
    """

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} has no inverse")

    def rebuild(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """From an output y to (x, y, log_det): x a new leaf, the others recomputed with a graph.

        The reversible mode of `Sequential` calls it in its backward pass, with gradients enabled. A
        layer whose inverse shares work with its forward overrides it to do that work once. y itself
        is left as it is.
        """
        random_state = RandomState.capture(y.device)
        with torch.no_grad():
            x, _ = self.inverse(y, context)
        random_state.restore()
        x = x.detach().requires_grad_()
        y, log_det = self(x, context)
        return x, y, log_det

    def rebuild_inputs(self) -> list[Tensor]:
        """The tensors, besides x and the context, that the graph of `rebuild` gives gradients of."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


class Inverse(Transform):
    """The same map in the other direction: forward is `transform.inverse`, and the reverse."""

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.transform = transform

    def rebuild_inputs(self) -> list[Tensor]:
        return self.transform.rebuild_inputs()

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.transform.inverse(x, context)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.transform(y, context)


def zero_log_det(x: Tensor) -> Tensor:
    """The log-det of a map that keeps volume: zeros (batch,), float32 for half types."""
    half = x.dtype in (torch.float16, torch.bfloat16)
    return x.new_zeros(x.shape[0], dtype=torch.float32 if half else x.dtype)
