"""A decoder whose pixels depend on each other: a PixelCNN that is told a map of the latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..autoregressive import PixelCNN
from .decoder_distributions import Bernoulli, DecoderDistribution


class PixelDecoder(DecoderDistribution):
    """p(x|z) = product over pixels of p(x_i | x_<i, f(z)), where f(z) is what a decoder puts out.

    The "parameters" of a `DecoderDistribution` are here the map f(z), (n, K, H, W), that conditions
    each layer of the PixelCNN. The PixelCNN's own weights belong to the model that holds both.

    Args:
        pixels: the PixelCNN, with conditional_channels = K.
        n_levels: of the data.
        binarized: pixels are bits, drawn on with the probability level / (n_levels - 1), as of
            `Bernoulli`; the PixelCNN has two levels then, else `n_levels`.
    """

    has_mean = False

    def __init__(self, pixels: PixelCNN, n_levels: int, binarized: bool = False) -> None:
        super().__init__(pixels.image_shape[0], n_levels)
        self.parameters = pixels.conditional_channels
        self.pixels = pixels
        self.name = "bernoulli pixelcnn" if binarized else "pixelcnn"
        self.unit = "nats" if binarized else "bits/dim"
        self._bits = Bernoulli(self.channels, n_levels) if binarized else None

    @property
    def domain(self) -> str:
        return self._bits.domain if self._bits else super().domain

    def target(
        self, levels: Tensor, noise: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        if self._bits:
            return self._bits.target(levels, noise, generator)
        return super().target(levels, noise, generator)

    def embed(self, target: Tensor, dtype: torch.dtype) -> Tensor:
        if self._bits:
            return self._bits.embed(target, dtype)
        return super().embed(target, dtype)

    def log_prob(self, parameters: Tensor, target: Tensor) -> Tensor:
        n, k = parameters.shape[:2]
        levels = target.unsqueeze(1).expand(n, k, *target.shape[1:]).flatten(0, 1)
        return self.pixels.log_prob(levels, parameters.flatten(0, 1)).view(n, k)

    def draw(self, parameters: Tensor, generator: torch.Generator | None) -> Tensor:
        levels = self.pixels.sample(parameters.shape[0], condition=parameters, generator=generator)
        return levels * (self.n_levels - 1) if self._bits else levels

    @torch.no_grad()
    def start_at(self, target: Tensor) -> None:
        """Start every pixel's distribution at the frequencies of the levels in `target`."""
        output = self.pixels.network.output
        n_levels = self.pixels.n_levels
        for channel, values in enumerate(target.unbind(1)):
            counts = torch.bincount(values.flatten().long(), minlength=n_levels).double()
            logits = ((counts + 1) / (counts.sum() + n_levels)).log()
            output.bias[channel * n_levels :][:n_levels].copy_(logits)


def pixel_channels_for(image_shape: Sequence[int], wanted: int | None) -> int:
    """As wanted; by default 32, or the next multiple of the image's channels, which PixelCNN orders."""
    return wanted if wanted is not None else -(-32 // image_shape[0]) * image_shape[0]
