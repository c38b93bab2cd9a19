"""Masked autoregressive flow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ...nn.transforms import (
    ActNorm,
    BatchNorm,
    InverseAutoregressive,
    MaskedAutoregressive,
    Transform,
)
from .conditional import ConditionalFlow, shape_of


class AutoregressiveFlow(ConditionalFlow):
    """A chain of autoregressive layers of one direction: what `MAF` and `IAF` share."""

    layer: type[MaskedAutoregressive | InverseAutoregressive]

    def __init__(
        self,
        features: int | Sequence[int],
        transforms: int = 5,
        hidden_features: Sequence[int] = (512, 512),
        element: str = "affine",
        context_features: int = 0,
        batch_norm: bool = False,
        order: str = "reverse",
        scale_map: str = "tanh",
        clamp: float = 2.0,
        n_bins: int = 8,
        bound: float = 3.0,
        activation: str = "relu",
        residual: bool = False,
        n_levels: int = 256,
    ) -> None:
        shape = shape_of(features)
        layers = _chain(
            self.layer,
            math.prod(shape),
            transforms,
            batch_norm,
            order,
            hidden_features=hidden_features,
            element=element,
            context_features=context_features,
            scale_map=scale_map,
            clamp=clamp,
            n_bins=n_bins,
            bound=bound,
            activation=activation,
            residual=residual,
        )
        super().__init__(shape, layers, context_features=context_features, n_levels=n_levels)


class MAF(AutoregressiveFlow):
    """Papamakarios et al., "Masked Autoregressive Flow for Density Estimation", 2017,
    arXiv:1705.07057: a chain of `MaskedAutoregressive` layers from data to noise.

    Scoring is one pass of each net; sampling finds feature after feature, in about the same time.
    The order of the features is reversed from layer to layer, as in the paper (or drawn anew for
    each), inside the nets' masks: nothing is permuted. Before each layer stands an `ActNorm`, or
    the paper's batch normalisation.

    Args:
        features: D of vectors; or the shape of an image (C, H, W), flattened in raster order.
        transforms: number of layers.
        hidden_features: widths of each net.
        element: "affine", or "spline" (the autoregressive neural spline flow).
        context_features: length of the context vectors; 0: none is taken.
        batch_norm: `BatchNorm` in place of `ActNorm`. Its density is exact in evaluation mode only.
        order: "reverse", natural and reversed in turn, or "random", drawn for each layer.
        scale_map, clamp, n_bins, bound, activation, residual: as of `MaskedAutoregressive`.
        n_levels: number of integer levels of the data, 256 for 8-bit images.

    Raises:
        ValueError: what `MaskedAutoregressive` refuses; transforms < 1; an unknown order.
    """

    layer = MaskedAutoregressive


def _chain(
    layer: type[Transform],
    dims: int,
    transforms: int,
    batch_norm: bool,
    order: str,
    **options: Any,
) -> list[Transform]:
    """The layers of an autoregressive flow, each behind a normalisation, from data to noise."""
    if transforms < 1:
        raise ValueError(f"transforms: expected at least 1, got {transforms}")
    if order not in ("reverse", "random"):
        raise ValueError(f"order: expected reverse or random, got {order!r}")
    layers: list[Transform] = []
    for index in range(transforms):
        layers.append(BatchNorm(dims) if batch_norm else ActNorm(dims))
        turn = torch.randperm(dims) if order == "random" else ("natural", "reverse")[index % 2]
        layers.append(layer(dims, order=turn, **options))
    return layers
