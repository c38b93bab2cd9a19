"""One scale and shift a channel (activation normalisation), with its log-determinant and both gradients' sums fused."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deepgen_ext._extension import library


def channel_affine(
    x: Tensor, log_scale: Tensor, shift: Tensor, *, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    r"""Computes y = x * exp(log_scale) + shift channel by channel, or its inverse (y - shift) * exp(-log_scale).

    log_det = P * sum(log_scale), negated for the inverse, with P = elements of a channel in one sample; the same for
    every sample. The backward pass reads the gradient and x once and finds both sums a channel on the way.

    Args:
        x: (batch, channels, ...), float32, float64, bfloat16 or float16, any strides.
        log_scale: (channels,), of x's dtype and device.
        shift: (channels,), likewise.
        inverse: apply the inverse map.

    Returns:
        y, like x, and log_det, (batch,): float32 for half types, else x's dtype. In nats.

    Differentiable in all three, twice (the second time in plain torch operations), not through
    torch.func. Deterministic. Under autocast it
    runs in float32.

    Raises:
        ValueError: another shape or device than expected.
        TypeError: a tensor that is not floating-point, or dtypes that differ.

    Glow's activation normalisation: Kingma & Dhariwal 2018, arXiv:1807.03039.
    """
    return library.channel_affine(x, log_scale, shift, inverse)


@torch.library.register_fake("deepgen_ext::channel_affine")
def _(x, log_scale, shift, inverse):
    sum_type = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.empty_like(x), x.new_empty(x.shape[0], dtype=sum_type)


@torch.library.register_fake("deepgen_ext::channel_affine_backward")
def _(grad_output, grad_log_det, x, log_scale, inverse):
    channels = log_scale.shape[0]
    return torch.empty_like(x), log_scale.new_empty(channels), log_scale.new_empty(channels)


def _save_for_double_backward(ctx, inputs, output) -> None:
    *tensors, ctx.inverse = inputs
    ctx.save_for_backward(*tensors)


def _double_backward(ctx, a, b, c):
    """The gradient of the gradients' formulas in csrc/channel_affine.h, with cotangents a, and b, c a channel."""
    g, grad_log_det, x, log_scale = ctx.saved_tensors
    shape = (-1,) + (1,) * (x.dim() - 2)
    over_channel = [0, *range(2, x.dim())]
    positions = math.prod(x.shape[2:])
    b_each, c_each = b.view(shape), c.view(shape)
    if ctx.inverse:
        scale = torch.exp(-log_scale)
        by_g = (a - c_each) * scale.view(shape) - b_each * x
        by_x = -b_each * g
        by_log_scale = scale * (c * g.sum(over_channel) - (a * g).sum(over_channel))
        by_total = -positions * b.sum()
    else:
        scale = torch.exp(log_scale)
        by_g = (a + b_each * x) * scale.view(shape) + c_each
        by_x = b_each * g * scale.view(shape)
        by_log_scale = scale * ((a * g).sum(over_channel) + b * (g * x).sum(over_channel))
        by_total = positions * b.sum()
    return by_g, by_total.to(grad_log_det.dtype).expand_as(grad_log_det), by_x, by_log_scale, None


torch.library.register_autograd(
    "deepgen_ext::channel_affine_backward",
    _double_backward,
    setup_context=_save_for_double_backward,
)

for _device in ("cpu", "cuda"):
    torch.library.register_autocast("deepgen_ext::channel_affine", _device, torch.float32)
