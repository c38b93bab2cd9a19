"""RealNVP."""

from __future__ import annotations

from collections.abc import Sequence

from ...nn import MLP, ResidualConvNet
from ...nn.transforms import (
    ActNorm,
    AffineCoupling,
    Sequential,
    Split,
    Squeeze,
    Transform,
    partition_sizes,
)
from .flow import Flow, check_image_shape


class RealNVP(Flow):
    """Dinh et al., "Density estimation using Real NVP", 2017; for images and for vectors.

    Images (C, H, W): each level but the last is `couplings` checkerboard couplings, squeeze,
    `couplings` channel couplings, split; the last is `couplings` + 1 checkerboard couplings.
    Vectors (D,): `couplings` couplings, whose partitions alternate between halves and alternate
    elements. An `ActNorm` stands where the paper has batch normalisation, whose map in training is
    no function of the single sample. Scales are bounded by |log s| < 2 ("atan").

    Args:
        shape: (C, H, W), H and W multiples of 2**(levels - 1), or (D,) with D >= 2.
        levels: number of scales, images only.
        couplings: per partition and level for images (default 3), in all for vectors (default 8).
        hidden_channels: width of the coupling networks.
        blocks: residual blocks (images) or hidden layers (vectors) of a coupling network.
        reversible: rebuild activations in the backward pass instead of storing them, see
            `Sequential`.
        n_levels: number of integer levels of the data, 256 for 8-bit images.

    Raises:
        ValueError: a shape that is neither of both, or sides that `levels` do not divide.
    """

    def __init__(
        self,
        shape: Sequence[int],
        levels: int = 2,
        couplings: int | None = None,
        hidden_channels: int = 64,
        blocks: int = 2,
        reversible: bool = False,
        n_levels: int = 256,
    ) -> None:
        if couplings is None:
            couplings = 8 if len(shape) == 1 else 3
        for name, value in (
            ("levels", levels),
            ("couplings", couplings),
            ("hidden_channels", hidden_channels),
            ("blocks", blocks),
        ):
            if value < 1:
                raise ValueError(f"{name}: expected a positive number, got {value}")
        if len(shape) == 1:
            scales = _vector_scales(shape[0], couplings, hidden_channels, blocks, reversible)
            latent_shapes = [tuple(shape)]
            center = 0.0
        else:
            check_image_shape(shape, squeezes=levels - 1, levels=levels)
            scales, latent_shapes = _image_scales(
                shape, levels, couplings, hidden_channels, blocks, reversible
            )
            center = 0.5
        super().__init__(shape, scales, latent_shapes, n_levels=n_levels, center=center)
        if len(shape) == 3:
            self.image_shape = self.shape


def _vector_scales(
    features: int, couplings: int, hidden: int, depth: int, reversible: bool
) -> list[tuple[Transform, None]]:
    if features < 2:
        raise ValueError(
            f"shape: a coupling needs vectors of at least 2 elements, got ({features},)"
        )
    layers: list[Transform] = []
    for index in range(couplings):
        partition = ("channel", "checkerboard")[index // 2 % 2]
        swap = index % 2 == 1
        seen, transformed = partition_sizes(features, partition, swap)
        net = MLP(seen, 2 * transformed, hidden, depth)
        layers.append(ActNorm(features))
        layers.append(AffineCoupling(net, partition=partition, swap=swap, scale_map="atan"))
    return [(Sequential(*layers, reversible=reversible), None)]


def _image_scales(
    shape: Sequence[int], levels: int, couplings: int, hidden: int, blocks: int, reversible: bool
) -> tuple[list[tuple[Transform, Split | None]], list[tuple[int, ...]]]:
    def chain(channels: int, partition: str, count: int) -> Transform:
        layers: list[Transform] = []
        for index in range(count):
            swap = index % 2 == 1
            seen, transformed = partition_sizes(channels, partition, swap)
            net = ResidualConvNet(seen, 2 * transformed, hidden, blocks)
            layers.append(ActNorm(channels))
            layers.append(AffineCoupling(net, partition=partition, swap=swap, scale_map="atan"))
        return Sequential(*layers, reversible=reversible)

    channels, height, width = shape
    scales: list[tuple[Transform, Split | None]] = []
    latent_shapes: list[tuple[int, ...]] = []
    for _ in range(levels - 1):
        before = chain(channels, "checkerboard", couplings)
        channels, height, width = 4 * channels, height // 2, width // 2
        after = chain(channels, "channel", couplings)
        scales.append((Sequential(before, Squeeze(), after), Split()))
        channels, leaving = partition_sizes(channels)
        latent_shapes.append((leaving, height, width))
    scales.append((chain(channels, "checkerboard", couplings + 1), None))
    latent_shapes.append((channels, height, width))
    return scales, latent_shapes
