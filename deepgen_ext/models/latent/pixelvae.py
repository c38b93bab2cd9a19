"""PixelVAE."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..autoregressive import PixelCNN
from .hierarchical_vae import checked_shape, divided
from .pixel_decoder import PixelDecoder, pixel_channels_for
from .top_down_model import TopDownModel

HALVINGS = 2  # between the image and the grid


class PixelVAE(TopDownModel):
    """Gulrajani et al., "PixelVAE: A Latent Variable Model for Natural Images", 2017,
    arXiv:1611.05013: latents say what an image shows, a PixelCNN draws it.

    Three levels of stochasticity: a vector z_2 ~ N(0, I) of the whole image; a grid z_1 of a quarter
    of the image's sides, autoregressive given z_2; pixels, autoregressive given a map f(z_1, z_2)
    that upsampling layers make: ln p(x|z) = sum_i ln p(x_i | x_<i, f(z)). The map is added in each
    layer of a gated PixelCNN, which the incremental sampler draws from. Inference goes from the top
    down: q(z_2|x) q(z_1|x, z_2).

    Images enter as integer levels (n, C, H, W).

    Args:
        image_shape: (C, H, W); H and W divisible by 4.
        latent_features: of the vector z_2.
        grid_channels: of the grid z_1.
        n_levels: number of integer levels of the data, 256 for 8-bit images.
        binarized: pixels are bits, drawn on with the probability level / (n_levels - 1) anew each
            time an image is seen; likelihoods are in nats, and of the bits.
        pixel_layers, pixel_channels, pixel_kernel_size: of the PixelCNN.
        gated: whether it is the gated one.
        channels: of the maps between image and latents, and of f(z).
        prior_channels, prior_layers, prior_kernel_size, free_bits, kl_warmup: as of `TopDownModel`.

    Raises:
        ValueError: an image_shape that is not (C, H, W) or not divisible by 4, sizes below 1, an
            even kernel, free_bits or kl_warmup < 0.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_features: int = 32,
        grid_channels: int = 8,
        *,
        n_levels: int = 256,
        binarized: bool = False,
        pixel_layers: int = 4,
        pixel_channels: int | None = None,
        pixel_kernel_size: int = 5,
        gated: bool = True,
        channels: int = 32,
        prior_channels: int = 32,
        prior_layers: int = 3,
        prior_kernel_size: int = 3,
        free_bits: float = 0.0,
        kl_warmup: int = 0,
    ) -> None:
        image_shape = checked_shape(image_shape)
        for name, value in (
            ("latent_features", latent_features),
            ("grid_channels", grid_channels),
            ("channels", channels),
        ):
            if value < 1:
                raise ValueError(f"{name}: expected a positive number, got {value}")
        size = divided(image_shape, HALVINGS, "convolutions to the grid")
        pixels = PixelCNN(
            image_shape,
            pixel_layers,
            pixel_channels_for(image_shape, pixel_channels),
            gated,
            2 if binarized else n_levels,
            channels,
            kernel_size=pixel_kernel_size,
        )
        super().__init__(
            image_shape,
            PixelDecoder(pixels, n_levels, binarized),
            [(latent_features, 1, 1), (grid_channels, *size)],
            channels=channels,
            prior_channels=prior_channels,
            prior_layers=prior_layers,
            prior_kernel_size=prior_kernel_size,
            free_bits=free_bits,
            kl_warmup=kl_warmup,
        )
        self.latent_features = latent_features
        self.pixels = pixels

    @torch.no_grad()
    def initialize(self, batch: Tensor, *, noise: Tensor | None = None) -> None:
        """Start the pixels' distributions at the frequencies of levels in `batch`."""
        self.distribution.start_at(self.target(batch, noise))
