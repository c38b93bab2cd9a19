"""Glow."""

from __future__ import annotations

from collections.abc import Sequence

from ...nn import GlowConvNet, ZeroConv2d
from ...nn.transforms import (
    AdditiveCoupling,
    AffineCoupling,
    GlowSteps,
    Sequential,
    Split,
    Squeeze,
    Transform,
    partition_sizes,
)
from .flow import Flow, check_image_shape


class Glow(Flow):
    """Kingma & Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions", 2018.

    `levels` times: squeeze, `steps` steps of (ActNorm, invertible 1x1 convolution, coupling), and,
    but for the last level, a split whose prior is predicted from the half that stays. Published:
    3.35 bits/dim on CIFAR-10 (levels=3, steps=32, hidden_channels=512).

    Args:
        image_shape: (C, H, W); H and W must be multiples of 2**levels.
        levels: number of scales.
        steps: number of steps of each scale.
        hidden_channels: width of the coupling networks.
        coupling: "affine", with the paper's scale sigmoid(raw + 2), or "additive". Additive
            couplings keep log |det| constant, the split priors included (a mean without a scale,
            which the 1x1 convolutions supply): the only setting in which sampling at reduced
            temperature is exact.
        reversible: rebuild activations in the backward pass instead of storing them, see
            `Sequential`.
        n_levels: number of integer levels of the data, 256 for 8-bit images.

    Raises:
        ValueError: sides that `levels` do not divide, an unknown coupling, a size that is not
            positive.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        levels: int = 2,
        steps: int = 8,
        hidden_channels: int = 128,
        coupling: str = "affine",
        reversible: bool = False,
        n_levels: int = 256,
    ) -> None:
        if coupling not in ("affine", "additive"):
            raise ValueError(f"coupling: expected 'affine' or 'additive', got {coupling!r}")
        for name, value in (
            ("levels", levels),
            ("steps", steps),
            ("hidden_channels", hidden_channels),
        ):
            if value < 1:
                raise ValueError(f"{name}: expected a positive number, got {value}")
        check_image_shape(image_shape, squeezes=levels, levels=levels)

        channels, height, width = image_shape
        scales, latent_shapes = [], []
        for level in range(levels):
            channels, height, width = 4 * channels, height // 2, width // 2
            couplings = [_coupling(channels, hidden_channels, coupling) for _ in range(steps)]
            chain = GlowSteps(channels, couplings, reversible=reversible)
            scale = Sequential(Squeeze(), chain)
            if level == levels - 1:
                scales.append((scale, None))
                latent_shapes.append((channels, height, width))
                break
            kept, leaving = partition_sizes(channels)
            outputs = 2 * leaving if coupling == "affine" else leaving
            scales.append((scale, Split(ZeroConv2d(kept, outputs), scale=coupling == "affine")))
            latent_shapes.append((leaving, height, width))
            channels = kept
        super().__init__(image_shape, scales, latent_shapes, n_levels=n_levels, center=0.5)
        self.image_shape = self.shape


def _coupling(channels: int, hidden_channels: int, coupling: str) -> Transform:
    seen, transformed = partition_sizes(channels)
    if coupling == "additive":
        return AdditiveCoupling(GlowConvNet(seen, transformed, hidden_channels))
    net = GlowConvNet(seen, 2 * transformed, hidden_channels)
    return AffineCoupling(net, scale_map="sigmoid")
