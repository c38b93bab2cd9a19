"""A convolution over what comes before each pixel in raster order; masked taps are never read."""

from __future__ import annotations

import torch
from torch import Tensor

from deepgen_ext._extension import library
from deepgen_ext.ops.autocast import to_autocast_dtype


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    mask_type: str = "B",
    groups_in_order: int = 1,
    dilation: int = 1,
) -> Tensor:
    r"""Computes conv2d(x, weight * mask, bias, padding="same") without touching what the mask hides.

    The mask shows all channels of the pixels above and, in the same row, left of the centre. At the
    centre it shows the channel groups before the output's own (mask A) or up to its own (mask B);
    channel c of N belongs to group c * groups_in_order // N. With one group, A hides the centre and
    B shows it.

    Masked weights and the pixels behind them are neither read nor multiplied, in either direction:
    a nan there goes nowhere, and the gradient of a masked weight is exactly zero. A mask that hides
    everything (A, 1x1, one group) leaves the bias, or zeros.

    Args:
        x: (batch, in_channels, height, width), float32, float64, bfloat16 or float16, any strides.
        weight: (out_channels, in_channels, kernel height, kernel width), both odd; of x's dtype.
        bias: (out_channels,), of x's dtype.
        mask_type: "A" or "B".
        groups_in_order: how many groups of channels come one after the other inside a pixel; 3 for
            red, green, blue. It divides in_channels and out_channels.
        dilation: distance between taps, in pixels.

    Returns:
        (batch, out_channels, height, width), of x's dtype and memory format.

    Differentiable in x, weight and bias, any number of times; not through torch.func. Deterministic
    on the CPU; on a GPU as far as cuDNN is. Under autocast it runs in autocast's dtype, as conv2d
    does. Sums of half types are in float32.

    Raises:
        ValueError: an even kernel, another mask_type than A or B, channels that groups_in_order
            does not divide, another shape or device than expected.
        TypeError: a tensor that is not floating-point, or dtypes that differ.

    van den Oord et al., "Pixel Recurrent Neural Networks", 2016, arXiv:1601.06759.
    """
    x, weight, bias = to_autocast_dtype(x.device.type, x, weight, bias)
    return library.masked_conv2d(x, weight, bias, mask_type, groups_in_order, dilation)


@torch.library.register_fake("deepgen_ext::masked_conv2d")
def _(x, weight, bias, mask_type, groups_in_order, dilation):
    return _like_image(x, weight.shape[0])


@torch.library.register_fake("deepgen_ext::masked_conv2d_backward")
def _(grad_output, x, weight, mask_type, groups_in_order, dilation, wanted):
    return (
        torch.empty_like(x) if wanted[0] else x.new_empty(0),
        weight.new_empty(weight.shape) if wanted[1] else x.new_empty(0),
        weight.new_empty(weight.shape[0]) if wanted[2] else x.new_empty(0),
    )


def _like_image(x: Tensor, channels: int) -> Tensor:
    y = x.new_empty(x.shape[0], channels, *x.shape[2:])
    channels_last = torch._prims_common.suggest_memory_format(x) == torch.channels_last
    return y.to(memory_format=torch.channels_last) if channels_last else y


def _save_for_double_backward(ctx, inputs, output) -> None:
    grad_output, x, weight, *ctx.options, ctx.wanted = inputs
    ctx.save_for_backward(grad_output, x, weight)


def _double_backward(ctx, by_grad_x, by_grad_weight, by_grad_bias):
    """The convolution is linear in x, in weight and in bias: its gradients' gradients are the same ops."""
    grad_output, x, weight = ctx.saved_tensors
    wanted_g, wanted_x, wanted_weight = ctx.needs_input_grad[:3]
    forward, backward = library.masked_conv2d, library.masked_conv2d_backward
    of_g = of_x = of_weight = None
    a = by_grad_x if ctx.wanted[0] else None
    b = by_grad_weight if ctx.wanted[1] else None
    c = by_grad_bias if ctx.wanted[2] else None
    if wanted_g:
        terms = [forward(a, weight, None, *ctx.options)] if a is not None else []
        if b is not None:
            terms.append(forward(x, b, c, *ctx.options))
        elif c is not None:
            terms.append(c.view(1, -1, 1, 1).expand_as(grad_output))
        of_g = sum(terms[1:], terms[0]) if terms else None
    if wanted_x and b is not None:
        of_x = backward(grad_output, x, b, *ctx.options, (True, False, False))[0]
    if wanted_weight and a is not None:
        of_weight = backward(grad_output, a, weight, *ctx.options, (False, True, False))[1]
    return of_g, of_x, of_weight, None, None, None, None


torch.library.register_autograd(
    "deepgen_ext::masked_conv2d_backward",
    _double_backward,
    setup_context=_save_for_double_backward,
)
