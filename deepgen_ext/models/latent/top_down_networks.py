"""The networks of top-down models: between grids of latents, up and down, and at each of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .grid_prior import Grid, GridPrior

_MAX_LOG_SCALE = 7.0

Size = tuple[int, int]


class ResidualBlock(nn.Module):
    """h + conv(elu(conv(elu(h)))), starting as the identity; 1x1 where there is a single cell."""

    def __init__(self, channels: int, size: Size) -> None:
        super().__init__()
        self.first = _conv(channels, channels, size)
        self.second = _conv(channels, channels, size)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.second(F.elu(self.first(F.elu(h))))


class Coarser(nn.Module):
    """(n, in_channels, *fine) -> (n, channels, *coarse): 4x4 convolutions of stride 2, or one over
    all of the map to a single cell, and a residual block.
    """

    def __init__(self, in_channels: int, channels: int, fine: Size, coarse: Size) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if coarse == (1, 1):
            layers = [nn.ELU(), nn.Conv2d(in_channels, channels, fine)]
        for index in range(_halvings(fine, coarse) if not layers else 0):
            layers.append(nn.ELU() if index or in_channels == channels else nn.Identity())
            layers.append(
                nn.Conv2d(channels if index else in_channels, channels, 4, stride=2, padding=1)
            )
        self.layers = nn.Sequential(*layers, ResidualBlock(channels, coarse))

    def forward(self, h: Tensor) -> Tensor:
        return self.layers(h)


class Finer(nn.Module):
    """(n, channels, *coarse) -> (n, channels, *fine): the transposes of `Coarser`'s convolutions."""

    def __init__(self, channels: int, coarse: Size, fine: Size) -> None:
        super().__init__()
        if coarse == (1, 1):
            layers = [nn.ELU(), nn.ConvTranspose2d(channels, channels, fine)]
        else:
            layers = []
            for _ in range(_halvings(fine, coarse)):
                layers += [nn.ELU(), nn.ConvTranspose2d(channels, channels, 4, 2, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, h: Tensor) -> Tensor:
        return self.layers(h)


class Level(nn.Module):
    """One grid of latents z: q(z|x, above) = N(mean, scale), p(z|above), and what z adds to the map.

    p is a `GridPrior`, or N(0, I) where a single cell stands at the top.

    Args:
        grid: (channels, H, W) of z.
        is_top: nothing is above.
        channels: of the maps h, from above, and d, from the image, both (n, channels, H, W).
        prior_channels, prior_layers, prior_kernel_size: of the `GridPrior`.
    """

    def __init__(
        self,
        grid: Grid,
        channels: int,
        *,
        is_top: bool,
        prior_channels: int,
        prior_layers: int,
        prior_kernel_size: int,
    ) -> None:
        super().__init__()
        self.grid = grid
        latent_channels, *size = grid
        self.posterior = _conv(2 * channels, 2 * latent_channels, tuple(size))
        nn.init.zeros_(self.posterior.weight)
        nn.init.zeros_(self.posterior.bias)
        self.merge = nn.Conv2d(latent_channels, channels, 1)
        self.block = ResidualBlock(channels, tuple(size))
        self.prior = None
        if not (is_top and tuple(size) == (1, 1)):
            self.prior = GridPrior(grid, channels, prior_channels, prior_layers, prior_kernel_size)

    def posterior_of(self, h: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log scale of q(z|x, above), each of the shape of z."""
        mean, log_scale = self.posterior(F.elu(torch.cat((h, d), 1))).chunk(2, 1)
        return mean, log_scale.clamp(-_MAX_LOG_SCALE, _MAX_LOG_SCALE)

    def prior_of(self, z: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log scale of p(z_i | cells of z before i, above), each of the shape of z."""
        if self.prior is None:
            return torch.zeros_like(z), torch.zeros_like(z)
        return self.prior(z, h)

    def draw(self, noise: Tensor, h: Tensor) -> Tensor:
        """z of p(z|above), of standard normal noise of its shape."""
        return noise if self.prior is None else self.prior.draw(noise, h)

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        """The map h with what z says."""
        return self.block(h + self.merge(z))


def _conv(in_channels: int, out_channels: int, size: Size) -> nn.Conv2d:
    kernel = 1 if size == (1, 1) else 3
    return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)


def _halvings(fine: Size, coarse: Size) -> int:
    return (fine[0] // coarse[0]).bit_length() - 1
