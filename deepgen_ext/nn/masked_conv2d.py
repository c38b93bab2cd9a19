"""The masked convolution as a layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from deepgen_ext import ops


class Raster(NamedTuple):
    """Which mask, in the words of `ops.masked_conv2d`."""

    mask_type: str
    groups_in_order: int

    def visible_at_centre(self, output: int, in_channels: int, out_channels: int) -> int:
        """How many input channels an output channel sees of its own pixel."""
        own = output * self.groups_in_order // out_channels
        groups = own + (self.mask_type == "B")
        return groups * (in_channels // self.groups_in_order)

    def mask(self, shape: Sequence[int], device: torch.device | None = None) -> Tensor:
        """True where a weight of this shape, (out, in, height, width), is used."""
        outputs, inputs, height, width = shape
        mask = torch.zeros(*shape, dtype=torch.bool, device=device)
        mask[:, :, : height // 2] = True
        mask[:, :, height // 2, : width // 2] = True
        seen = [self.visible_at_centre(output, inputs, outputs) for output in range(outputs)]
        order = torch.arange(inputs, device=device)
        mask[:, :, height // 2, width // 2] = order < torch.tensor(seen, device=device)[:, None]
        return mask


class RasterMasked:
    """Mixed into a layer with nn.Conv2d's attributes that computes `ops.masked_conv2d` of its weight
    and bias, and nothing else: a sampler may do it in the layer's place.
    """

    def raster(self) -> Raster | None:
        """The layer's mask; None where it is, at present, another."""
        raise NotImplementedError


class MaskedConv2d(RasterMasked, nn.Module):
    """An nn.Conv2d that sees only what comes before a pixel in raster order: `ops.masked_conv2d`.

    (n, in_channels, H, W) -> (n, out_channels, H, W), with zero padding. `weight`, `bias` and the
    state dict are those of nn.Conv2d(in_channels, out_channels, kernel_size, padding="same").

    Initialised as nn.Conv2d, uniform within +-1/sqrt(fan_in), but fan_in counts only the taps that
    the mask shows: with nn.Conv2d's count, outputs would have half of the variance. With ordered
    groups each has its own count. Masked weights are drawn too, and never used; `mask()` tells
    which they are. A weight decay, which touches them as well, changes no output.

    Args:
        in_channels, out_channels: channels of input and output.
        kernel_size: odd, or a pair (height, width) of odd numbers.
        mask_type: "A" hides the pixel itself (a network's first layer), "B" shows it (the others).
        groups_in_order: how many groups of channels come one after the other inside a pixel (3 for
            red, green, blue); it divides both numbers of channels.
        dilation: distance between taps.
        bias: add one number an output channel.

    van den Oord et al., "Pixel Recurrent Neural Networks", 2016, arXiv:1601.06759.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        mask_type: str = "B",
        groups_in_order: int = 1,
        dilation: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        height, width = (kernel_size,) * 2 if isinstance(kernel_size, int) else kernel_size
        for name, value in (
            ("in_channels", in_channels),
            ("out_channels", out_channels),
            ("groups_in_order", groups_in_order),
            ("dilation", dilation),
        ):
            if value < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        if height % 2 != 1 or width % 2 != 1 or min(height, width) < 1:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        if mask_type not in ("A", "B"):
            raise ValueError(
                f'mask_type must be "A" (without the centre) or "B" (with it), got {mask_type!r}'
            )
        if in_channels % groups_in_order or out_channels % groups_in_order:
            raise ValueError(
                f"groups_in_order must divide the channels, {in_channels} in and {out_channels} "
                f"out, got {groups_in_order}"
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = (height, width)
        self.mask_type = mask_type
        self.groups_in_order = groups_in_order
        self.dilation = dilation
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, height, width))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias anew."""
        group = self.out_channels // self.groups_in_order
        before = self.kernel_size[0] // 2 * self.kernel_size[1] + self.kernel_size[1] // 2
        with torch.no_grad():
            for first in range(0, self.out_channels, group):
                seen = self.raster().visible_at_centre(first, self.in_channels, self.out_channels)
                fan_in = before * self.in_channels + seen
                # An output that sees nothing is its bias: that of a network's first prediction.
                bound = 1 / math.sqrt(max(fan_in, 1))
                self.weight[first : first + group].uniform_(-bound, bound)
                if self.bias is not None:
                    self.bias[first : first + group].uniform_(-bound, bound)

    def mask(self) -> Tensor:
        """Ones where the weight is used and zeros where it is not, (out, in, height, width)."""
        return self.raster().mask(self.weight.shape, self.weight.device).to(self.weight.dtype)

    def raster(self) -> Raster:
        return Raster(self.mask_type, self.groups_in_order)

    def forward(self, x: Tensor) -> Tensor:
        return ops.masked_conv2d(
            x,
            self.weight,
            self.bias,
            mask_type=self.mask_type,
            groups_in_order=self.groups_in_order,
            dilation=self.dilation,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"mask_type={self.mask_type!r}"
            + (f", groups_in_order={self.groups_in_order}" if self.groups_in_order > 1 else "")
            + (f", dilation={self.dilation}" if self.dilation > 1 else "")
            + ("" if self.bias is not None else ", bias=False")
        )
