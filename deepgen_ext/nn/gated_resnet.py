"""The residual block of PixelCNN++."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from .condition import ConditionProjection
from .gates import ConcatELU, GatedSigmoid
from .shifted_conv2d import ShiftedConv2d


class GatedResnet(nn.Module):
    """y = x + a * sigmoid(b), (a, b) = conv(dropout(f(conv(f(x)) + nin(f(s))))) + V c.

    f is `ConcatELU`, the convolutions are `ShiftedConv2d`, nin is a 1x1 convolution of the short
    cut s, c a condition. All but V have normalised weights. Salimans et al., "PixelCNN++", 2017,
    as in their code.

    Args:
        channels: of x and y.
        kernel_size, shift: of the convolutions, see `ShiftedConv2d`.
        shortcut_channels: of s, 0 for none.
        conditional_channels: K of a condition, (n, K) or a map (n, K, H, W).
        dropout: probability to zero an activation in training.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: Sequence[int],
        *,
        shift: str,
        shortcut_channels: int = 0,
        conditional_channels: int = 0,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.activation = ConcatELU()
        self.first = weight_norm(ShiftedConv2d(2 * channels, channels, kernel_size, shift=shift))
        self.shortcut = (
            weight_norm(nn.Conv2d(2 * shortcut_channels, channels, 1))
            if shortcut_channels
            else None
        )
        self.dropout = nn.Dropout(dropout)
        second = ShiftedConv2d(2 * channels, 2 * channels, kernel_size, shift=shift)
        with torch.no_grad():  # nearly the identity at first, as in their code
            second.weight.mul_(0.1)
        self.second = weight_norm(second)
        self.condition = (
            ConditionProjection(conditional_channels, 2 * channels)
            if conditional_channels
            else None
        )
        self.gate = GatedSigmoid()

    def forward(
        self, x: Tensor, shortcut: Tensor | None = None, condition: Tensor | None = None
    ) -> Tensor:
        h = self.first(self.activation(x))
        if shortcut is not None:
            h = h + self.shortcut(self.activation(shortcut))
        h = self.second(self.dropout(self.activation(h)))
        if condition is not None:
            h = h + self.condition(condition)
        return x + self.gate(h)
