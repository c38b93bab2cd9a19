"""A coupling layer whose element map is a monotone rational-quadratic spline."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ... import ops
from .autoregressive import check_spline, start_at_identity
from .coupling import _Coupling


class SplineCoupling(_Coupling):
    """y_moved = spline(x_moved; parameters(x_visible)), y_visible = x_visible; log_det = sum log slope.

    Durkan et al., "Neural Spline Flows", 2019. x is (batch, C, ...), images or vectors (batch, D).
    Between -bound and bound every element has a spline of its own, beyond it is left as it is.

    Args:
        conditioner: any module; called as for `AffineCoupling`. Returns 3 * n_bins - 1 numbers for
            each channel that moves: n_bins widths, n_bins heights, n_bins - 1 derivatives of the
            first channel, then of the second; (batch, C_moved * (3 * n_bins - 1), ...). They are
            unnormalised, as in `deepgen_ext.ops.rational_quadratic_spline`. Where it has an
            attribute `output` with a weight of zeros (an `MLP` as it is built), its bias is set so
            that the layer starts at the identity.
        n_bins: number of pieces of a spline, 1 to 100.
        bound: where the linear tails begin.
        partition: as for `AffineCoupling`.
        swap: exchange the roles of the two halves.

    Raises:
        ValueError: n_bins or bound out of their range; on use, when the conditioner's output has
            the wrong shape.
    """

    def __init__(
        self,
        conditioner: nn.Module,
        *,
        n_bins: int = 8,
        bound: float = 3.0,
        partition: str = "channel",
        swap: bool = False,
    ) -> None:
        super().__init__(conditioner, partition, swap)
        check_spline(n_bins, bound)
        self.n_bins = n_bins
        self.bound = bound
        self.outputs_per_channel = 3 * n_bins - 1
        last = getattr(conditioner, "output", None)
        if isinstance(last, nn.Linear) and last.bias is not None and not last.weight.any():
            bias = last.bias.detach()
            if len(bias) % self.outputs_per_channel == 0:
                start_at_identity(bias.view(-1, self.outputs_per_channel), "spline", n_bins)

    def _split(self, h: Tensor) -> tuple[Tensor, ...]:
        """Widths, heights, derivatives, where they lie."""
        each = h.unflatten(1, (-1, self.outputs_per_channel)).movedim(2, -1)
        return each.split((self.n_bins, self.n_bins, self.n_bins - 1), dim=-1)

    def _affine(
        self, x: Tensor, *parameters: Tensor, inverse: bool, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        # What is visible goes through the tail of its spline: the identity.
        moved = x if mask is None else torch.where(mask, x, 2 * self.bound)
        y, log_det = ops.rational_quadratic_spline(
            moved, *parameters, inverse=inverse, bound=self.bound
        )
        return (y if mask is None else torch.where(mask, y, x)), log_det

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, n_bins={self.n_bins}, bound={self.bound}"
