"""Generators and critics of residual blocks: Gulrajani et al. 2017, Miyato et al. 2018."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .networks import Projection, check_labels, halvings

__all__ = ["ConditionalBatchNorm2d", "ResNetCritic", "ResNetGenerator"]


class ConditionalBatchNorm2d(nn.Module):
    """Batch norm whose scale and shift are the class's; without classes its own."""

    def __init__(self, channels: int, n_classes: int = 0) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=not n_classes)
        self.embedding = nn.Embedding(n_classes, 2 * channels) if n_classes else None
        if self.embedding is not None:
            nn.init.ones_(self.embedding.weight[:, :channels])
            nn.init.zeros_(self.embedding.weight[:, channels:])

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        y = self.norm(x)
        if self.embedding is None:
            return y
        scale, shift = self.embedding(labels).to(y.dtype)[:, :, None, None].chunk(2, dim=1)
        return torch.addcmul(shift, scale, y)


class UpBlock(nn.Module):
    """Norm, ReLU, doubled, 3x3, norm, ReLU, 3x3; beside it doubled and 1x1."""

    def __init__(self, channels: int, out_channels: int, n_classes: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(
            ConditionalBatchNorm2d(c, n_classes) for c in (channels, out_channels)
        )
        self.first = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.second = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        h = self.first(_doubled(F.relu(self.norms[0](x, labels))))
        h = self.second(F.relu(self.norms[1](h, labels)))
        return h + _doubled(self.shortcut(x))  # a 1x1 convolution costs a quarter before it


class DownBlock(nn.Module):
    """ReLU, 3x3, ReLU, 3x3, halved; beside it 1x1 and halved. The first block has no first ReLU."""

    def __init__(
        self, channels: int, out_channels: int, *, halve: bool, first: bool = False
    ) -> None:
        super().__init__()
        self.halve, self.is_first = halve, first
        self.first = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.second = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        wanted = halve or channels != out_channels
        self.shortcut = nn.Conv2d(channels, out_channels, 1) if wanted else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(F.relu(self.first(x if self.is_first else F.relu(x))))
        if self.halve:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        return h + (x if self.shortcut is None else self.shortcut(x))


class ResNetGenerator(nn.Module):
    """A dense layer to the smallest map, a residual block for each doubling, tanh at the end.

    All of `channels`. The class chooses the scales and shifts of the batch norms.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_features: int = 128,
        channels: int = 128,
        n_classes: int = 0,
    ) -> None:
        super().__init__()
        times = halvings(image_shape)
        self.latent_features, self.n_classes = latent_features, n_classes
        self.small = (channels, *(side >> times for side in image_shape[1:]))
        self.dense = nn.Linear(latent_features, math.prod(self.small))
        self.blocks = nn.ModuleList(UpBlock(channels, channels, n_classes) for _ in range(times))
        self.norm = nn.BatchNorm2d(channels)
        self.output = nn.Conv2d(channels, image_shape[0], 3, padding=1)
        _start(self)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        check_labels(labels, self.n_classes)
        h = self.dense(z).unflatten(1, self.small)
        for block in self.blocks:
            h = block(h, labels)
        return torch.tanh(self.output(F.relu(self.norm(h))))


class ResNetCritic(nn.Module):
    """A block for each halving, two more, ReLU, the sum over the map, and a dense layer."""

    def __init__(self, image_shape: Sequence[int], channels: int = 128, n_classes: int = 0) -> None:
        super().__init__()
        times = halvings(image_shape)
        self.n_classes = n_classes
        widths = [image_shape[0], *[channels] * times]
        blocks = [
            DownBlock(width, channels, halve=True, first=index == 0)
            for index, width in enumerate(widths[:-1])
        ]
        blocks += [DownBlock(channels, channels, halve=False) for _ in range(2)]
        self.blocks = nn.Sequential(*blocks)
        self.features = channels
        self.output = Projection(channels, n_classes)
        _start(self)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.output(F.relu(self.blocks(x)).sum((2, 3)), labels)


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _start(network: nn.Module) -> None:
    """Xavier's, by the root of 2 larger before a ReLU."""
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            before_relu = name.endswith(("first", "second"))
            nn.init.xavier_uniform_(module.weight, gain=math.sqrt(2) if before_relu else 1.0)
            nn.init.zeros_(module.bias)
