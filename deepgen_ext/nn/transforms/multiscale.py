"""Layers that move between the scales of a multi-scale flow."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ... import ops
from .partition import partition_sizes
from .transform import Transform, zero_log_det


class Squeeze(Transform):
    """Space to depth: (n, C, H, W) -> (n, 4C, H/2, W/2), a 2x2 square becomes four channels.

    Dinh et al., "Density estimation using Real NVP", 2017. log_det = 0.
    """

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if x.ndim != 4 or x.shape[2] % 2 or x.shape[3] % 2:
            raise ValueError(f"x: expected (n, C, H, W) with even H and W, got {tuple(x.shape)}")
        # Not F.pixel_unshuffle: that one gets the shape of an empty batch wrong.
        n, c, h, w = x.shape
        squares = x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4)
        return squares.reshape(n, 4 * c, h // 2, w // 2), zero_log_det(x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if y.ndim != 4 or y.shape[1] % 4:
            raise ValueError(f"y: expected (n, 4 C, H, W), got {tuple(y.shape)}")
        n, c, h, w = y.shape
        squares = y.reshape(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3)
        return squares.reshape(n, c // 4, 2 * h, 2 * w), zero_log_det(y)


class Split(Transform):
    """Half of the channels leave as a latent: x -> (kept, z), z standard normal under the model.

    In Glow the part that leaves has the prior N(mu(kept), sigma(kept)). Here the prior is folded
    into the map: z = (x_leaving - mu) / sigma, its log-det counted. So the pair (kept, z) is all
    that the exact inverse needs, nothing is drawn again, and a temperature scales every latent in
    the same way.

    `forward(x) -> ((kept, z), log_det)` and `inverse((kept, z)) -> (x, log_det)`: the one transform
    whose output is a pair. Of an odd number of channels the larger half is kept.

    Args:
        prior: a conditioner from the kept half. It returns (log sigma before its bound, mu),
            concatenated along dim 1, or mu alone where `scale` is False. None: the latent leaves
            as it is.
        scale: whether the prior has a sigma of its own. False keeps the log-det constant, which
            reduced temperature needs.
        clamp: |log sigma| < clamp (the "atan" map of `ops.affine_coupling`).
    """

    def __init__(
        self, prior: nn.Module | None = None, *, scale: bool = True, clamp: float = 4.0
    ) -> None:
        super().__init__()
        if not clamp > 0:
            raise ValueError(f"clamp: expected a positive number, got {clamp}")
        self.prior = prior
        self.scale = scale
        self.clamp = clamp

    def forward(
        self, x: Tensor, context: Tensor | None = None
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        kept, leaving = x.split(partition_sizes(x.shape[1]), dim=1)
        if self.prior is None:
            return (kept, leaving), zero_log_det(x)
        z, log_det = self._standardize(kept, leaving, context, inverse=True)
        return (kept, z), log_det

    def inverse(
        self, y: tuple[Tensor, Tensor], context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        kept, z = y
        if self.prior is None:
            leaving, log_det = z, zero_log_det(z)
        else:
            leaving, log_det = self._standardize(kept, z, context, inverse=False)
        return torch.cat((kept, leaving), dim=1), log_det

    def _standardize(
        self, kept: Tensor, part: Tensor, context: Tensor | None, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        h = self.prior(kept) if context is None else self.prior(kept, context)
        per_channel = 2 if self.scale else 1
        expected = (part.shape[0], per_channel * part.shape[1], *part.shape[2:])
        if h.shape != expected:
            raise ValueError(
                f"prior: expected output of shape {expected} for an input of shape "
                f"{tuple(kept.shape)}, got {tuple(h.shape)}"
            )
        raw_scale, mean = (
            h.to(part.dtype).chunk(2, dim=1) if self.scale else (None, h.to(part.dtype))
        )
        return ops.affine_coupling(
            part, raw_scale, mean, scale_map="atan", clamp=self.clamp, inverse=inverse
        )

    def extra_repr(self) -> str:
        return f"scale={self.scale}, clamp={self.clamp}"
