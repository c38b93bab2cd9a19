"""Encoders of images into features, and decoders of latents into maps: dense or convolutional."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...nn.made import ACTIVATIONS

Shape = tuple[int, int, int]


class DenseEncoder(nn.Module):
    """(n, C, H, W) -> (n, hidden[-1]), a hidden layer for each width."""

    def __init__(self, image_shape: Shape, hidden: Sequence[int], activation: str) -> None:
        super().__init__()
        widths = [math.prod(image_shape), *hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        h = x.flatten(1)
        for layer in self.layers:
            h = _activated(layer(h), self.activation)
        return h


class DenseDecoder(nn.Module):
    """(rows, D) -> (rows, P, H, W), the widths of the encoder in reverse."""

    shares_bias = False  # every pixel has its own

    def __init__(
        self, latent_features: int, hidden: Sequence[int], output_shape: Shape, activation: str
    ) -> None:
        super().__init__()
        widths = [latent_features, *reversed(hidden)]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.output = nn.Linear(widths[-1], math.prod(output_shape))
        self.output_shape = output_shape
        self.activation = activation

    def forward(self, z: Tensor) -> Tensor:
        h = z
        for layer in self.layers:
            h = _activated(layer(h), self.activation)
        return self.output(h).unflatten(1, self.output_shape)

    @torch.no_grad()
    def start_at(self, parameters: Tensor) -> None:
        """Put out these, (P, H, W), where the last hidden layer is zero."""
        self.output.bias.copy_(parameters.flatten())


class ConvEncoder(nn.Module):
    """Two 3x3 convolutions of stride 2 with `channels` and twice as many, then dense layers."""

    def __init__(
        self, image_shape: Shape, channels: int, hidden: Sequence[int], activation: str
    ) -> None:
        super().__init__()
        colors, height, width = image_shape
        self.first = nn.Conv2d(colors, channels, 3, stride=2, padding=1)
        self.second = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)
        inner = (2 * channels, *_quarter(height, width))
        self.dense = DenseEncoder(inner, hidden, activation)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        h = _activated(self.first(x), self.activation)
        return self.dense(_activated(self.second(h), self.activation))


class ConvDecoder(nn.Module):
    """Dense layers, then two 4x4 transposed convolutions of stride 2, cut to the image."""

    shares_bias = True

    def __init__(
        self,
        latent_features: int,
        channels: int,
        hidden: Sequence[int],
        output_shape: Shape,
        activation: str,
    ) -> None:
        super().__init__()
        _, height, width = output_shape
        inner = (2 * channels, *_quarter(height, width))
        self.dense = DenseDecoder(latent_features, hidden, inner, activation)
        self.first = nn.ConvTranspose2d(2 * channels, channels, 4, stride=2, padding=1)
        self.output = nn.ConvTranspose2d(channels, output_shape[0], 4, stride=2, padding=1)
        self.output_shape = output_shape
        self.activation = activation

    def forward(self, z: Tensor) -> Tensor:
        h = _activated(self.dense(z), self.activation)
        h = _activated(self.first(h), self.activation)
        _, height, width = self.output_shape
        return self.output(h)[:, :, :height, :width]

    @torch.no_grad()
    def start_at(self, parameters: Tensor) -> None:
        """As of `DenseDecoder`: (P, 1, 1), the same for all pixels."""
        self.output.bias.copy_(parameters.flatten())


def make_networks(
    network: str,
    image_shape: Shape,
    latent_features: int,
    parameters: int,
    hidden: Sequence[int],
    channels: int,
    activation: str,
) -> tuple[nn.Module, nn.Module, int]:
    """(encoder, decoder, features that the encoder puts out).

    Raises:
        ValueError: an unknown network or activation, a width or channels below 1.
    """
    hidden = tuple(hidden)
    if not hidden or min(hidden) < 1:
        raise ValueError(f"hidden_features: expected one or more positive widths, got {hidden}")
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation: expected one of {', '.join(ACTIVATIONS)}; got {activation!r}"
        )
    output_shape = (parameters, *image_shape[1:])
    if network == "dense":
        encoder = DenseEncoder(image_shape, hidden, activation)
        decoder = DenseDecoder(latent_features, hidden, output_shape, activation)
    elif network == "conv":
        if channels < 1:
            raise ValueError(f"channels: expected a positive number, got {channels}")
        encoder = ConvEncoder(image_shape, channels, hidden, activation)
        decoder = ConvDecoder(latent_features, channels, hidden, output_shape, activation)
    else:
        raise ValueError(f"network: expected dense or conv, got {network!r}")
    return encoder, decoder, hidden[-1]


def _activated(h: Tensor, activation: str) -> Tensor:
    """Nothing else keeps a pre-activation: relu may overwrite it, which saves a tensor a layer."""
    return F.relu_(h) if activation == "relu" else ACTIVATIONS[activation](h)


def _quarter(height: int, width: int) -> tuple[int, int]:
    return -(-height // 4), -(-width // 4)
