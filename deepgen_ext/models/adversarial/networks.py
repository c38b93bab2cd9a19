"""Generators and critics: of DCGAN, of residual blocks, and perceptrons for vectors.

Generators map latents (n, latent_features) to images (n, C, H, W) in [-1, 1], or vectors (n, D);
critics map these to scores (n,). With `n_classes` both take labels (n,), int64, as well: a generator
embeds the class, a critic adds the inner product of its features with the class's embedding
(projection: Miyato & Koyama 2018, arXiv:1802.05637).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "DCGANCritic",
    "DCGANGenerator",
    "MLPCritic",
    "MLPGenerator",
    "Projection",
    "halvings",
    "normal_weights",
]

SLOPE = 0.2  # of the leaky ReLUs


def halvings(image_shape: Sequence[int]) -> int:
    """How often the sides of an image are halved: down to 4 or more, and twice at least if they can.

    28 -> 7, 32 -> 4, 64 -> 4, 8 -> 2.

    Raises:
        ValueError: not (C, H, W), or sides that are not even and 4 or more.
    """
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"image_shape: expected (C, H, W), got {tuple(image_shape)}")
    sides = image_shape[1:]
    times = 0
    while all(side % 2 ** (times + 1) == 0 for side in sides) and (
        min(sides) >> (times + 1) >= (2 if times < 2 else 4)
    ):
        times += 1
    if not times:
        raise ValueError(
            f"image_shape: expected even sides of 4 or more, got {sides[0]}x{sides[1]}"
        )
    return times


def normal_weights(network: nn.Module, deviation: float = 0.02) -> None:
    """DCGAN's start: weights of convolutions and dense layers N(0, deviation^2), biases 0."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.normal_(module.weight, std=deviation)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class DCGANGenerator(nn.Module):
    """A dense layer to the smallest map, then 4x4 transposed convolutions of stride 2.

    Batch norm and ReLU between them, tanh at the end. The last map before the image has `channels`,
    each before it twice as many. The class is embedded and concatenated to the latents. Radford et
    al. 2016, arXiv:1511.06434.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_features: int = 128,
        channels: int = 64,
        n_classes: int = 0,
    ) -> None:
        super().__init__()
        times = halvings(image_shape)
        self.latent_features, self.n_classes = latent_features, n_classes
        widths = [channels * 2**i for i in reversed(range(times))]
        self.small = (widths[0], *(side >> times for side in image_shape[1:]))
        embedded = min(latent_features, 32) if n_classes else 0
        self.embedding = nn.Embedding(n_classes, embedded) if n_classes else None
        self.dense = nn.Linear(latent_features + embedded, math.prod(self.small), bias=False)
        self.convolutions = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 4, stride=2, padding=1, bias=False)
            for a, b in pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.output = nn.ConvTranspose2d(widths[-1], image_shape[0], 4, stride=2, padding=1)
        normal_weights(self)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        check_labels(labels, self.n_classes)
        if self.embedding is not None:
            z = torch.cat((z, self.embedding(labels).to(z.dtype)), dim=1)
        h = F.relu(self.norms[0](self.dense(z).unflatten(1, self.small)))
        for convolution, norm in zip(self.convolutions, self.norms[1:], strict=True):
            h = F.relu(norm(convolution(h)))
        return torch.tanh(self.output(h))


class DCGANCritic(nn.Module):
    """4x4 convolutions of stride 2 with `channels`, then twice as many each; leaky ReLU; dense.

    Args:
        batch_norm: after all convolutions but the first, as of Radford et al.; scores are then of
            the batch, which forbids a gradient penalty.
        between: a 3x3 convolution of the same width before each of stride 2, and one at the end, as
            of Miyato et al. 2018, table 3.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        channels: int = 64,
        n_classes: int = 0,
        *,
        batch_norm: bool = False,
        between: bool = False,
    ) -> None:
        super().__init__()
        times = halvings(image_shape)
        self.n_classes = n_classes
        layers: list[nn.Module] = []

        def add(a: int, b: int, size: int, stride: int) -> None:
            norm = batch_norm and bool(layers)
            layers.append(nn.Conv2d(a, b, size, stride, padding=1, bias=not norm))
            if norm:
                layers.append(nn.BatchNorm2d(b))
            layers.append(nn.LeakyReLU(SLOPE))

        width, before = channels, image_shape[0]
        for index in range(times):
            width = channels * 2**index
            if between:
                add(before, width, 3, 1)
                before = width
            add(before, width, 4, 2)
            before = width
        if between:
            add(width, 2 * width, 3, 1)
            width *= 2
        self.layers = nn.Sequential(*layers)
        small = math.prod(side >> times for side in image_shape[1:])
        self.features = width * small
        self.output = Projection(self.features, n_classes)
        normal_weights(self)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.output(self.layers(x).flatten(1), labels)


class MLPGenerator(nn.Module):
    """Latents to vectors through `depth` hidden layers with ReLU; a class is embedded."""

    def __init__(
        self,
        out_features: int,
        latent_features: int = 16,
        hidden_features: int = 128,
        depth: int = 3,
        n_classes: int = 0,
    ) -> None:
        super().__init__()
        self.latent_features, self.n_classes = latent_features, n_classes
        embedded = min(latent_features, 32) if n_classes else 0
        self.embedding = nn.Embedding(n_classes, embedded) if n_classes else None
        self.layers = _perceptron(latent_features + embedded, hidden_features, depth, nn.ReLU())
        self.output = nn.Linear(hidden_features, out_features)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        check_labels(labels, self.n_classes)
        if self.embedding is not None:
            z = torch.cat((z, self.embedding(labels).to(z.dtype)), dim=1)
        return self.output(self.layers(z))


class MLPCritic(nn.Module):
    """Vectors to scores through `depth` hidden layers with leaky ReLU."""

    def __init__(
        self, in_features: int, hidden_features: int = 128, depth: int = 3, n_classes: int = 0
    ) -> None:
        super().__init__()
        self.n_classes = n_classes
        self.layers = _perceptron(in_features, hidden_features, depth, nn.LeakyReLU(SLOPE))
        self.features = hidden_features
        self.output = Projection(hidden_features, n_classes)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.output(self.layers(x), labels)


class Projection(nn.Module):
    """Scores (n,) of features h: w'h + b, and with classes + e(y)'h."""

    def __init__(self, features: int, n_classes: int = 0) -> None:
        super().__init__()
        self.n_classes = n_classes
        self.dense = nn.Linear(features, 1)
        self.embedding = nn.Embedding(n_classes, features) if n_classes else None
        if self.embedding is not None:
            nn.init.xavier_uniform_(self.embedding.weight)

    def forward(self, h: Tensor, labels: Tensor | None = None) -> Tensor:
        check_labels(labels, self.n_classes)
        scores = self.dense(h).squeeze(1)
        if self.embedding is not None:
            scores = scores + (self.embedding(labels).to(h.dtype) * h).sum(1)
        return scores


def check_labels(labels: Tensor | None, n_classes: int) -> None:
    """Labels are given exactly where there are classes.

    Raises:
        ValueError, TypeError: they are not.
    """
    if not n_classes:
        if labels is not None:
            raise ValueError("labels: this network was built without classes (n_classes=0)")
        return
    if labels is None:
        raise ValueError(f"labels: this network needs the classes, of {n_classes}")
    if labels.dtype != torch.int64 or labels.ndim != 1:
        raise TypeError(f"labels: expected int64 (n,), got {labels.dtype} {tuple(labels.shape)}")


def _perceptron(features: int, hidden: int, depth: int, activation: nn.Module) -> nn.Sequential:
    if hidden < 1 or depth < 1:
        raise ValueError(f"hidden_features, depth: expected 1 or more, got {hidden} and {depth}")
    widths = [features] + [hidden] * depth
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), activation]
    return nn.Sequential(*layers)
