"""Gates and nonlinearities of the PixelCNN family: no parameters, channel by channel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Gate(nn.Module):
    """tanh(a) * sigmoid(b): (n, 2 C, H, W) -> (n, C, H, W).

    (a, b) are the halves of the channels, or of each of `groups_in_order` contiguous groups of
    them, so that a group of the output depends on the same group of the input alone. van den Oord
    et al., "Conditional image generation with PixelCNN decoders", 2016, equation 2.
    """

    def __init__(self, groups_in_order: int = 1) -> None:
        super().__init__()
        if groups_in_order < 1:
            raise ValueError(f"groups_in_order: expected a positive number, got {groups_in_order}")
        self.groups_in_order = groups_in_order

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] % (2 * self.groups_in_order):
            raise ValueError(
                f"x: expected a multiple of {2 * self.groups_in_order} channels, "
                f"got {tuple(x.shape)}"
            )
        halves = x.unflatten(1, (self.groups_in_order, 2, -1))
        return (halves[:, :, 0].tanh() * halves[:, :, 1].sigmoid()).flatten(1, 2)

    def extra_repr(self) -> str:
        return f"groups_in_order={self.groups_in_order}"


class GatedSigmoid(nn.Module):
    """a * sigmoid(b), a and b the halves of the channels: (n, 2 C, H, W) -> (n, C, H, W).

    The gate of PixelCNN++ (Salimans et al. 2017).
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] % 2:
            raise ValueError(f"x: expected an even number of channels, got {tuple(x.shape)}")
        a, b = x.chunk(2, 1)
        return a * b.sigmoid()


class ConcatELU(nn.Module):
    """elu of x and of -x, one after the other: (n, C, H, W) -> (n, 2 C, H, W).

    Salimans et al., "PixelCNN++", 2017; the idea is Shang et al.'s concatenated ReLU, 2016.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(torch.cat([x, -x], 1))


class AppendOnes(nn.Module):
    """One channel of ones more, so that a network tells the padding from a pixel whose value is 0.

    (n, C, H, W) -> (n, C + 1, H, W).
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, 0, 1), value=1.0)
