"""Convolutions that are causal by where their taps are, not by a mask: of PixelCNN++."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHIFTS = ("down", "down_right")


class Shift(nn.Module):
    """The image moved by one row ("down") or one column ("right"); zeros enter.

    y[i, j] = x[i - 1, j], or x[i, j - 1]; (n, C, H, W) -> (n, C, H, W). It turns what a pixel may
    see of "its own row and above" into "rows strictly above".
    """

    def __init__(self, direction: str) -> None:
        super().__init__()
        if direction not in ("down", "right"):
            raise ValueError(f"direction: expected 'down' or 'right', got {direction!r}")
        self.direction = direction

    def forward(self, x: Tensor) -> Tensor:
        if self.direction == "down":
            return F.pad(x[..., :-1, :], (0, 0, 1, 0))
        return F.pad(x[..., :-1], (1, 0))

    def extra_repr(self) -> str:
        return repr(self.direction)


class _Shifted(nn.Module):
    """The parameters, and their checks, that both directions of resolution share."""

    transposed: bool

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        shift: str,
        bias: bool,
    ) -> None:
        super().__init__()
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
            if value < 1:
                raise ValueError(f"{name}: expected a positive number, got {value}")
        if shift not in SHIFTS:
            raise ValueError(f"shift: expected one of {SHIFTS}, got {shift!r}")
        size = (kernel_size,) * 2 if isinstance(kernel_size, int) else tuple(kernel_size)
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"kernel_size: expected (height, width), got {size}")
        if shift == "down" and size[1] % 2 == 0:
            raise ValueError(
                f"kernel_size: shift='down' centres its columns and needs an odd width, got {size}"
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = size
        self.shift = shift
        channels = (in_channels, out_channels)
        if not self.transposed:
            channels = (out_channels, in_channels)
        self.weight = nn.Parameter(torch.empty(*channels, *size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform, of variance 1 / (3 fan_in), as torch's convolutions start."""
        bound = 1 / math.sqrt(self.in_channels * math.prod(self.kernel_size))
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        bias = "" if self.bias is not None else ", bias=False"
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"shift={self.shift!r}{bias}"
        )

    def _check_input(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x: expected (n, {self.in_channels}, H, W), got {tuple(x.shape)}")


class ShiftedConv2d(_Shifted):
    """A convolution that sees rows above and its own: all columns, or only those to the left.

    y[i, j] = bias + sum over taps of weight[:, :, a, b] x[stride i + dy, stride j + dx], with dy =
    -(kh - 1)..0 and, for shift="down", dx centred, -(kw - 1)/2..(kw - 1)/2; for "down_right", dx =
    -(kw - 1)..0; all times `dilation`; zeros outside the image. (n, in, H, W) -> (n, out,
    ceil(H / stride), ceil(W / stride)). Salimans et al., "PixelCNN++", 2017.

    A pixel sees itself: a "down" layer is causal where its input is a map of the rows above (see
    `Shift`), a "down_right" one where its input is a map of the pixels before.

    Args:
        in_channels, out_channels: of the images.
        kernel_size: (height, width); the width odd for shift="down".
        shift: "down" or "down_right".
        stride: 1 or 2.
        bias: learn one.
        dilation: distance of neighbouring taps; 1 where the stride is 2.

    Raises:
        ValueError: anything else than that.
    """

    transposed = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        *,
        shift: str,
        stride: int = 1,
        bias: bool = True,
        dilation: int = 1,
    ) -> None:
        if stride not in (1, 2):
            raise ValueError(f"stride: expected 1 or 2, got {stride}")
        if dilation < 1 or (stride == 2 and dilation != 1):
            raise ValueError(f"dilation: expected 1 (or more where stride is 1), got {dilation}")
        super().__init__(in_channels, out_channels, kernel_size, shift, bias)
        self.stride = stride
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        above, width = ((side - 1) * self.dilation for side in self.kernel_size)
        left = width // 2 if self.shift == "down" else width
        x = F.pad(x, (left, width - left, above, 0))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, stride={self.stride}, dilation={self.dilation}"


class ShiftedConvTranspose2d(_Shifted):
    """Twice the resolution, causally: the transposed convolution that answers a `ShiftedConv2d`.

    full[2 q + a, 2 p + b] = bias + sum weight[:, :, a, b] x[q, p], cut to `output_size`: the first
    rows, and the columns from (kw - 1) / 2 on for shift="down", from 0 for "down_right". A map that
    is cut to its first rows (fewer than ceil(output_size[0] / 2)) gives the first 2 * rows rows.
    Salimans et al., "PixelCNN++", 2017.

    Args:
        in_channels, out_channels: of the images.
        kernel_size: (height, width); the height 1 or 2, the width odd for shift="down".
        shift: "down" or "down_right".
        output_size: (H, W) of the output; the input is (ceil(H / 2), ceil(W / 2)).
        bias: learn one.

    Raises:
        ValueError: anything else than that.
    """

    transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        *,
        shift: str,
        output_size: Sequence[int],
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, shift, bias)
        if self.kernel_size[0] > 2:
            raise ValueError(f"kernel_size: expected a height of 1 or 2, got {self.kernel_size}")
        if len(output_size) != 2 or min(output_size) < 1:
            raise ValueError(f"output_size: expected (H, W), got {tuple(output_size)}")
        self.output_size = tuple(output_size)

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        height, width = self.output_size
        rows, columns = x.shape[2:]
        if columns != (width + 1) // 2 or rows > (height + 1) // 2:
            raise ValueError(
                f"x: for output_size={self.output_size} expected an image of "
                f"({(height + 1) // 2}, {(width + 1) // 2}), got {(rows, columns)}"
            )
        # A side of one tap leaves every second pixel without any: it is the bias alone.
        extra = tuple(int(side == 1) for side in self.kernel_size)
        y = F.conv_transpose2d(x, self.weight, self.bias, 2, 0, extra)
        left = (self.kernel_size[1] - 1) // 2 if self.shift == "down" else 0
        return y[:, :, : min(height, 2 * rows), left : left + width]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, output_size={self.output_size}"
