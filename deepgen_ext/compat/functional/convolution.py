"""F.conv2d of a weight that a mask is multiplied into."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from deepgen_ext import ops
from deepgen_ext.compat.masked_convolution import raster_of
from deepgen_ext.nn.masked_conv2d import Raster

# Of each mask that is still alive, by its identity: what it was found to be, and at which version.
_known: dict[int, tuple[weakref.ref[Tensor], int, torch.Size, Raster | None]] = {}


def masked_conv2d(
    input: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """`F.conv2d(input, weight * mask, bias, stride, padding, dilation, groups)` for raster masks, on
    `ops.masked_conv2d`: what the mask hides is neither read nor multiplied, in either direction.

    A raster mask shows the pixels above and those left in the row, and of the centre the channel
    groups before the output's own (A) or up to its own (B). The mask is compared with those once,
    which waits for the device, and anew only where it is another tensor or has been written to: keep
    the mask, in a buffer. Under torch.compile that look breaks the graph.

    Args:
        input: (n, C, H, W) or (C, H, W).
        weight: (C_out, C, height, width), both odd.
        mask: zeros and ones, or bool, that broadcast to weight's shape. It gets no gradient.
        bias: (C_out,).
        stride, padding, dilation, groups: as F.conv2d has them. Only what keeps the image's size:
            strides 1, one group, padding "same" or dilation * (size // 2), one dilation for both
            directions.

    Returns:
        (n, C_out, H, W), or (C_out, H, W).

    Differentiable as `ops.masked_conv2d`. A nan in a hidden weight stays hidden.

    Raises:
        ValueError: an option or a mask that the kernel does not have. The message names the call
            that computes it, slowly: nothing here does so by itself.
        TypeError: as the op.
    """
    height_and_width = tuple(weight.shape[2:])
    steps, strides = _pair(dilation), _pair(stride)
    half = tuple(d * (k // 2) for d, k in zip(steps, height_and_width, strict=False))
    if weight.dim() != 4 or any(size % 2 == 0 for size in height_and_width):
        _refuse(f"weight of shape {tuple(weight.shape)}: only (out, in, odd, odd) is known")
    if strides != (1, 1) or groups != 1:
        _refuse(f"stride {stride}, groups {groups}: only 1 is known")
    if steps[0] != steps[1]:
        _refuse(f"dilation {dilation}: only one for both directions is known")
    if padding != "same" and (isinstance(padding, str) or _pair(padding) != half):
        _refuse(f"padding {padding!r}: only {half}, which keeps the image's size, is known")
    if mask.requires_grad:
        _refuse("a mask that requires a gradient")
    raster = _raster(mask, weight.shape)
    if raster is None:
        _refuse("its mask is not a raster mask, A or B, of channels in contiguous groups")
    y = ops.masked_conv2d(
        input.unsqueeze(0) if input.dim() == 3 else input,
        weight,
        bias,
        mask_type=raster.mask_type,
        groups_in_order=raster.groups_in_order,
        dilation=steps[0],
    )
    return y.squeeze(0) if input.dim() == 3 else y


def _pair(value: int | Sequence[int]) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * 2 if len(values) == 1 else values


def _refuse(reason: str) -> None:
    raise ValueError(
        f"masked_conv2d has no kernel for this: {reason}. The slow way is F.conv2d(input, weight * "
        "mask, bias, stride, padding, dilation, groups)."
    )


@torch.compiler.disable
def _raster(mask: Tensor, shape: torch.Size) -> Raster | None:
    if mask.is_inference():  # which counts no writes
        return _found(mask, shape)
    seen = _known.get(id(mask))
    if seen is None or seen[0]() is not mask or seen[1:3] != (mask._version, shape):
        key = id(mask)
        last = weakref.ref(mask, lambda dead: _forget(key, dead))
        seen = _known[key] = last, mask._version, shape, _found(mask, shape)
    return seen[3]


def _forget(key: int, dead: weakref.ref[Tensor]) -> None:
    if key in _known and _known[key][0] is dead:
        del _known[key]


def _found(mask: Tensor, shape: torch.Size) -> Raster | None:
    try:
        torch.broadcast_shapes(mask.shape, shape)
    except RuntimeError:
        return None
    return raster_of(mask, shape)
