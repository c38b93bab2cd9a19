"""Convolutions of all kinds as taps on a grid of pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepgen_ext.nn.condition import ConditionProjection
from deepgen_ext.nn.masked_conv2d import RasterMasked
from deepgen_ext.nn.shifted_conv2d import ShiftedConv2d, ShiftedConvTranspose2d

from .program import Ratio, Tap


@dataclass(frozen=True)
class Convolution:
    """A convolution without its padding, which is where the caches have zeros.

    `weight` gives (out, in, kh, kw). In the centre tap of a masked one, output group g sees the
    input groups up to g ("B") or g - 1 ("A") of `groups`.
    """

    in_channels: int
    out_channels: int
    ratio: Ratio
    taps: tuple[Tap, ...]
    weight: Callable[[], Tensor]
    bias: Callable[[], Tensor] | None
    groups: int = 1
    mask_type: str = ""


def as_convolution(layer: nn.Module) -> Convolution | None:
    """The taps of a layer; None for one that no program can express."""
    if isinstance(layer, RasterMasked):
        return _masked(layer)
    if isinstance(layer, ShiftedConvTranspose2d):
        return _transposed(layer)
    if isinstance(layer, ShiftedConv2d):
        return _shifted(layer)
    if isinstance(layer, nn.Conv2d) and not has_own_forward(layer):
        return _pointwise(layer)
    return None


def has_own_forward(layer: nn.Conv2d) -> bool:
    """Whether a subclass may do with a feature map something else than nn.Conv2d does."""
    kind = type(layer)
    if kind is ConditionProjection:  # its own is for vectors
        return False
    return (kind.forward, kind._conv_forward) != (nn.Conv2d.forward, nn.Conv2d._conv_forward)


def _bias(layer: nn.Module) -> Callable[[], Tensor] | None:
    return None if layer.bias is None else lambda: layer.bias


def _masked(layer: RasterMasked) -> Convolution | None:
    raster = layer.raster()
    if raster is None:
        return None
    height, width = layer.kernel_size
    rows, columns = _pair(layer.dilation)
    taps = [
        Tap((ky - height // 2) * rows, (kx - width // 2) * columns, kernel=(ky, kx))
        for ky in range(height // 2 + 1)
        for kx in range(width)
        if ky < height // 2 or kx <= width // 2
    ]
    return Convolution(
        layer.in_channels,
        layer.out_channels,
        Ratio.SAME,
        tuple(taps),
        lambda: layer.weight,
        _bias(layer),
        raster.groups_in_order,
        raster.mask_type,
    )


def _shifted(layer: ShiftedConv2d) -> Convolution:
    height, width = layer.kernel_size
    left = width // 2 if layer.shift == "down" else width - 1
    distance = layer.dilation
    taps = [
        Tap((ky - (height - 1)) * distance, (kx - left) * distance, kernel=(ky, kx))
        for ky in range(height)
        for kx in range(width)
    ]
    return Convolution(
        layer.in_channels,
        layer.out_channels,
        Ratio.SAME if _pair(layer.stride)[0] == 1 else Ratio.FINER,
        tuple(taps),
        lambda: layer.weight,
        _bias(layer),
    )


def _transposed(layer: ShiftedConvTranspose2d) -> Convolution:
    """Output (i, j) gets w[ky, kx] of input ((i - ky) / 2, (j + crop - kx) / 2) where both exist."""
    height, width = layer.kernel_size
    crop = (width - 1) // 2 if layer.shift == "down" else 0
    taps = []
    for ky in range(height):
        for kx in range(width):
            row, column = ky % 2, (kx - crop) % 2
            dy, dx = (row - ky) // 2, (column + crop - kx) // 2
            taps.append(Tap(dy, dx, 2 * row + column, kernel=(ky, kx)))
    return Convolution(
        layer.in_channels,
        layer.out_channels,
        Ratio.COARSER,
        tuple(taps),
        lambda: layer.weight.transpose(0, 1),
        _bias(layer),
    )


def _pointwise(layer: nn.Conv2d) -> Convolution | None:
    if _pair(layer.kernel_size) != (1, 1) or _pair(layer.stride) != (1, 1) or layer.groups != 1:
        return None
    if layer.padding != "same" and layer.padding != "valid" and _pair(layer.padding) != (0, 0):
        return None
    return Convolution(
        layer.in_channels,
        layer.out_channels,
        Ratio.SAME,
        (Tap(0, 0),),
        lambda: layer.weight,
        _bias(layer),
    )


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def is_centre(tap: Tap, conv: Convolution) -> bool:
    """Whether a tap is the one that a mask cuts by channel groups."""
    return bool(conv.mask_type) and tap.dy == 0 and tap.dx == 0


def matrices_of(
    conv: Convolution, begin: int, end: int, channels: int, taps: list[Tap]
) -> Callable[[], Tensor]:
    """The weights of some taps, (taps, end - begin, channels)."""
    chosen = [tap.kernel for tap in taps]

    def matrices() -> Tensor:
        weight = conv.weight()
        flat = weight.flatten(2)[begin:end, :channels]
        places = [row * weight.shape[3] + column for row, column in chosen]
        if places == list(range(places[0], places[-1] + 1)):  # a view, where torch allows one
            return flat[:, :, places[0] : places[-1] + 1].permute(2, 0, 1)
        return flat[:, :, torch.tensor(places, device=weight.device)].permute(2, 0, 1)

    return matrices


def rows_of(biases: Sequence[Callable[[], Tensor]], begin: int, end: int) -> Callable[[], Tensor]:
    """Part of the sum of some biases."""
    return lambda: sum(bias()[begin:end] for bias in biases)
