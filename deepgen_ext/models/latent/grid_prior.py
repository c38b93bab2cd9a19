"""An autoregressive prior over a grid of latents."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...nn import AncestralSampler, DiagonalGaussian
from ..autoregressive.pixelcnn import GatedNetwork

Grid = tuple[int, int, int]


class GridPrior(nn.Module):
    """p(z | c) = product over cells, in raster order, of N(z_i; mean, scale), both functions of the
    cells before and of the map c: the gated stacks of a PixelCNN whose pixels are real numbers.

    Channels of a cell are independent given the cells before. Starts as N(0, I). Scoring is one pass;
    drawing computes each activation once (`nn.AncestralSampler`).

    Args:
        grid: (channels, H, W) of z.
        condition_channels: of c, (n, condition_channels, H, W).
        channels, layers, kernel_size: of the gated blocks; an odd kernel.
    """

    def __init__(
        self, grid: Grid, condition_channels: int, channels: int, layers: int, kernel_size: int
    ) -> None:
        super().__init__()
        self.grid = grid
        self.distribution = DiagonalGaussian(grid[0])
        self.network = GatedNetwork(
            grid[0],
            channels,
            self.distribution.parameters,
            groups=1,
            conditional_channels=condition_channels,
            residual=True,
            kernel_sizes=[kernel_size] * layers,
            dilations=[1] * layers,
        )
        nn.init.zeros_(self.network.output.weight)
        nn.init.zeros_(self.network.output.bias)
        self._sampler = AncestralSampler(self.network, grid, self.distribution)

    def forward(self, z: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log scales, of the shape of z (n, channels, H, W), each given the cells before."""
        return self.distribution.moments(self.network(z, condition))

    def log_prob(self, z: Tensor, condition: Tensor) -> Tensor:
        """ln p(z | condition) in nats, (n,)."""
        return self.distribution.log_prob(self.network(z, condition), z)

    @torch.no_grad()
    def draw(self, noise: Tensor, condition: Tensor) -> Tensor:
        """z, (n, channels, H, W), of standard normal noise of that shape; no gradient."""
        return self._sampler(noise, condition).to(noise.dtype)
