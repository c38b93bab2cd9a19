"""Variational lossy autoencoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...nn.transforms import MaskedAutoregressive, Sequential
from ..autoregressive import PixelCNN
from .pixel_decoder import PixelDecoder, pixel_channels_for
from .posteriors import Draws, log_normal
from .vae import VAE


class VLAE(VAE):
    """Chen et al., "Variational Lossy Autoencoder", 2017, arXiv:1611.02731.

    A PixelCNN that sees a small window around a pixel, and a code z for what such a window cannot
    tell: what is in z is decided by what the decoder is kept from seeing. The prior of z is a flow,
    u = f(z), u ~ N(0, I): ln p(z) = ln N(f(z)) + ln |det df/dz|, autoregressive layers that score z
    in one pass and are drawn from by `ops.autoregressive_inverse`, in about the time of one too.

    Images enter as integer levels (n, C, H, W).

    Args:
        image_shape: (C, H, W).
        latent_features: D, of z.
        receptive_field: r: a pixel sees of the image the r rows above it, r columns to each side.
        prior_steps: autoregressive layers of the flow, in alternating order.
        prior_hidden: width of their nets.
        posterior: as of `VAE`.
        n_levels: number of integer levels of the data, 256 for 8-bit images.
        binarized: as of `PixelVAE`.
        pixel_layers, pixel_channels: of the gated PixelCNN, whose layers but the first are 1x1.
        condition_channels: of the map f(z) that the PixelCNN is told.
        network, hidden_features, channels, activation, flow_steps, flow_hidden: as of `VAE`.

    Raises:
        ValueError: receptive_field, prior_steps or another size below 1, and what `VAE` refuses.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_features: int = 32,
        *,
        receptive_field: int = 2,
        prior_steps: int = 4,
        prior_hidden: int = 64,
        posterior: str = "gaussian",
        n_levels: int = 256,
        binarized: bool = False,
        pixel_layers: int = 3,
        pixel_channels: int | None = None,
        condition_channels: int = 32,
        network: str = "conv",
        hidden_features: Sequence[int] = (200,),
        channels: int = 32,
        activation: str = "elu",
        flow_steps: int | None = None,
        flow_hidden: int = 64,
    ) -> None:
        for name, value in (
            ("receptive_field", receptive_field),
            ("prior_steps", prior_steps),
            ("prior_hidden", prior_hidden),
            ("condition_channels", condition_channels),
        ):
            if value < 1:
                raise ValueError(f"{name}: expected a positive number, got {value}")
        pixels = PixelCNN(
            image_shape,
            pixel_layers,
            pixel_channels_for(image_shape, pixel_channels),
            True,
            2 if binarized else n_levels,
            condition_channels,
            kernel_size=2 * receptive_field + 1,
            hidden_kernel_size=1,
        )
        super().__init__(
            image_shape,
            latent_features,
            decoder=PixelDecoder(pixels, n_levels, binarized),
            posterior=posterior,
            n_levels=n_levels,
            network=network,
            hidden_features=hidden_features,
            channels=channels,
            activation=activation,
            flow_steps=flow_steps,
            flow_hidden=flow_hidden,
        )
        self.receptive_field = receptive_field
        self.pixels = pixels
        self.prior = Sequential(
            *(
                MaskedAutoregressive(
                    latent_features,
                    (prior_hidden, prior_hidden),
                    order="reverse" if step % 2 else "natural",
                )
                for step in range(prior_steps)
            )
        )

    def log_prior(self, z: Tensor) -> Tensor:
        n, k, _ = z.shape
        u, log_det = self.prior(z.flatten(0, 1))
        return log_normal(u.view_as(z)) + log_det.view(n, k)

    def kl(self, h: Tensor, draws: Draws) -> Tensor:
        """That to N(0, I), and what the flow changes of it, from the same draws."""
        changed = log_normal(draws.z) - self.log_prior(draws.z)
        return super().kl(h, draws) + changed.mean(1)

    def latents_of_noise(self, eps: Tensor) -> Tensor:
        return self.prior.inverse(eps)[0]

    @torch.no_grad()
    def initialize(self, batch: Tensor, *, noise: Tensor | None = None) -> None:
        """Start the pixels' distributions at the frequencies of levels in `batch`."""
        self.distribution.start_at(self.target(batch, noise))
