"""The pair of networks that an adversarial model has by default, for samples of a shape."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .networks import DCGANCritic, DCGANGenerator, MLPCritic, MLPGenerator
from .residual_networks import ResNetCritic, ResNetGenerator

NETWORKS = ("dcgan", "resnet", "mlp")


def make_networks(
    shape: Sequence[int],
    network: str | None,
    latent_features: int | None,
    width: int | None,
    n_classes: int,
    *,
    batch_norm: bool = False,
    between: bool = False,
) -> tuple[dict[str, nn.Module], nn.Module]:
    """({"generator": ...}, critic) for samples of `shape`: "dcgan" or "resnet" for images, "mlp" for vectors.

    `width` is channels or hidden features; `batch_norm` and `between` are of DCGAN's critic.

    Raises:
        ValueError: a network that is not for this shape, sizes below 1.
    """
    is_image = len(shape) == 3
    network = network or ("dcgan" if is_image else "mlp")
    if network not in NETWORKS:
        raise ValueError(f"network: expected one of {', '.join(NETWORKS)}; got {network!r}")
    if is_image == (network == "mlp"):
        wanted = "dcgan or resnet, these are images" if is_image else "mlp, these are vectors"
        raise ValueError(f"network: expected {wanted}; got {network!r}")
    latent_features = latent_features or (128 if is_image else 16)
    width = width or (64 if is_image else 128)
    for name, value in (("latent_features", latent_features), ("width", width)):
        if value < 1:
            raise ValueError(f"{name}: expected 1 or more, got {value}")
    if n_classes < 0:
        raise ValueError(f"n_classes: expected 0 or more, got {n_classes}")
    if network == "mlp":
        generator = MLPGenerator(shape[0], latent_features, width, n_classes=n_classes)
        critic = MLPCritic(shape[0], width, n_classes=n_classes)
    elif network == "resnet":
        generator = ResNetGenerator(shape, latent_features, width, n_classes)
        critic = ResNetCritic(shape, width, n_classes)
    else:
        generator = DCGANGenerator(shape, latent_features, width, n_classes)
        critic = DCGANCritic(shape, width, n_classes, batch_norm=batch_norm, between=between)
    return {"generator": generator}, critic


def check_shape(shape: Sequence[int], n_levels: int | None) -> None:
    """(C, H, W) with levels, or (D,) without.

    Raises:
        ValueError: anything else.
    """
    if len(shape) not in (1, 3) or min(shape) < 1:
        raise ValueError(f"shape: expected (C, H, W) or (D,), got {tuple(shape)}")
    if (len(shape) == 3) != (n_levels is not None):
        raise ValueError(f"n_levels: images have them and vectors do not, got {n_levels}")
