"""Hierarchical variational autoencoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .decoder_distributions import DecoderDistribution, decoder_distribution
from .top_down_model import TopDownModel


class HierarchicalVAE(TopDownModel):
    """Latents on grids of rising resolution: p(z) = p(z_L) p(z_{L-1}|z_L) ... p(z_1|z_2, ..., z_L).

    Each level has twice the resolution of the one above; the lowest half the image's. p(z_l|z_above)
    is autoregressive over the cells of the grid, sampled incrementally, p(x|z) factored over pixels.
    q(z|x) goes in the same order, from the top down. ELBO = E_q[ln p(x|z)] - sum over levels of
    E_q[KL(q(z_l|x, z_above) || p(z_l|z_above))].

    Kingma et al., "Improved Variational Inference with Inverse Autoregressive Flow", 2016,
    arXiv:1606.04934 (top-down inference, free bits); Sonderby et al. 2016, arXiv:1602.02282.

    Images enter as integer levels (n, C, H, W).

    Args:
        image_shape: (C, H, W); H and W divisible by 2 for each level.
        latent_channels: of each level, the top one first.
        decoder: "discretized_logistic", "bernoulli" (more than two levels are binarised dynamically),
            "gaussian", or a `DecoderDistribution`.
        n_levels: number of integer levels of the data, 256 for 8-bit images.
        channels, prior_channels, prior_layers, prior_kernel_size, free_bits, kl_warmup: as of
            `TopDownModel`.

    Raises:
        ValueError: an image_shape that is not (C, H, W) or that the levels do not divide, an unknown
            decoder, sizes below 1, an even kernel, free_bits or kl_warmup < 0.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_channels: Sequence[int] = (8, 4),
        *,
        decoder: str | DecoderDistribution = "discretized_logistic",
        n_levels: int = 256,
        channels: int = 32,
        prior_channels: int = 32,
        prior_layers: int = 3,
        prior_kernel_size: int = 3,
        free_bits: float = 0.0,
        kl_warmup: int = 0,
    ) -> None:
        super().__init__(
            image_shape,
            decoder_distribution(decoder, checked_shape(image_shape)[0], n_levels),
            _grids(image_shape, latent_channels),
            channels=channels,
            prior_channels=prior_channels,
            prior_layers=prior_layers,
            prior_kernel_size=prior_kernel_size,
            free_bits=free_bits,
            kl_warmup=kl_warmup,
        )

    @torch.no_grad()
    def initialize(self, batch: Tensor, *, noise: Tensor | None = None) -> None:
        """Start the decoder's output at the pixels' statistics in `batch`, levels (n, C, H, W)."""
        target = self.target(batch, noise)
        pixels = target.permute(0, 2, 3, 1).reshape(-1, self.image_shape[0], 1, 1)
        self.output.bias.copy_(self.distribution.start(pixels).flatten())


def checked_shape(image_shape: Sequence[int]) -> tuple[int, int, int]:
    """(C, H, W), or a ValueError."""
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"image_shape: expected (C, H, W), got {tuple(image_shape)}")
    return tuple(image_shape)


def divided(image_shape: Sequence[int], halvings: int, why: str) -> tuple[int, int]:
    """The sides of the image, halved so many times; a ValueError where they do not divide."""
    _, height, width = checked_shape(image_shape)
    if height % 2**halvings or width % 2**halvings:
        raise ValueError(
            f"image_shape: {why} halve the sides {halvings} times, and {height}x{width} is not "
            f"divisible by {2**halvings}"
        )
    return height >> halvings, width >> halvings


def _grids(
    image_shape: Sequence[int], latent_channels: Sequence[int]
) -> list[tuple[int, int, int]]:
    levels = len(latent_channels)
    if not levels or min(latent_channels) < 1:
        raise ValueError(
            f"latent_channels: expected a positive number for each level, got "
            f"{tuple(latent_channels)}"
        )
    divided(image_shape, levels, f"{levels} levels")
    return [
        (channels, *divided(image_shape, levels - index, "levels"))
        for index, channels in enumerate(latent_channels)
    ]
