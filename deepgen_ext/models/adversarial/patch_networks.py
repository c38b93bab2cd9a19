"""Networks of CycleGAN: a translator of images, and a critic that scores patches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .networks import SLOPE, normal_weights


class Translator(nn.Module):
    """Images in [-1, 1] to images: 7x7, `times` halvings, residual blocks, doublings, 7x7, tanh.

    Instance norms; padding by reflection at both ends, where that of zeros would show. Johnson et
    al. 2016, arXiv:1603.08155.
    """

    def __init__(self, colors: int, channels: int, times: int, blocks: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(colors, channels, 7, padding=3, padding_mode="reflect", bias=False)
        widths = [channels * 2**index for index in range(times + 1)]
        self.halvings = nn.ModuleList(
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False) for width in widths[:-1]
        )
        self.blocks = nn.ModuleList(_Block(widths[-1]) for _ in range(blocks))
        self.doublings = nn.ModuleList(
            nn.ConvTranspose2d(width, width // 2, 4, stride=2, padding=1, bias=False)
            for width in reversed(widths[1:])
        )
        self.output = nn.Conv2d(channels, colors, 7, padding=3, padding_mode="reflect")
        normal_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(F.instance_norm(self.first(x)))
        for convolution in self.halvings:
            h = F.relu(F.instance_norm(convolution(h)))
        for block in self.blocks:
            h = block(h)
        for convolution in self.doublings:
            h = F.relu(F.instance_norm(convolution(h)))
        return torch.tanh(self.output(h))


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(F.instance_norm(self.first(x)))
        return x + F.instance_norm(self.second(h))


class PatchCritic(nn.Module):
    """Images to scores (n, 1, h, w), one for each place: of what its patch looks like alone.

    4x4 convolutions, `times` of stride 2, then two of stride 1. Isola et al. 2017, arXiv:1611.07004.
    """

    def __init__(self, colors: int, channels: int, times: int) -> None:
        super().__init__()
        widths = [channels * 2**index for index in range(times + 1)]
        self.first = nn.Conv2d(colors, channels, 4, stride=2, padding=1)
        self.layers = nn.ModuleList(
            nn.Conv2d(a, 2 * a, 4, stride=2 if index + 2 <= times else 1, padding=2, bias=False)
            for index, a in enumerate(widths[:-1])
        )
        self.output = nn.Conv2d(widths[-1], 1, 4, padding=2)
        normal_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.first(x), SLOPE)
        for layer in self.layers:
            h = F.leaky_relu(F.instance_norm(layer(h)), SLOPE)
        return self.output(h)
