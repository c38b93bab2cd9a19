"""A linear map with a staircase of masked weights, whose zeros are not multiplied."""

from __future__ import annotations

import torch
from torch import Tensor

from deepgen_ext._extension import library
from deepgen_ext.ops.autocast import to_autocast_dtype


def block_triangular_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, visible: Tensor
) -> Tensor:
    r"""Computes y_r = b_r + sum over c < visible[r] of W[r, c] x_c, the masked half of W left out.

    This is linear(x, W o M, b) for a mask M whose rows are prefixes that do not shrink: the layers of
    MADE, with units sorted by degree, are of that kind. Blocks that are wholly masked are neither read
    nor multiplied, forward, in the gradient of x and in that of W; on the CPU about 9/16 of the dense
    multiplications are left. Masked weights are never read, their gradient is exactly zero. A nan or
    inf in x may reach rows that do not see it.

    Args:
        x: (batch, columns), float32, float64, bfloat16 or float16, any strides.
        weight: (rows, columns), of x's dtype.
        bias: (rows,), or (batch, rows) where each sample has its own, or None.
        visible: int64 (rows,), on the CPU, ascending, in 0 ... columns.

    Returns:
        (batch, rows), of x's dtype.

    Differentiable in x, weight and bias, any number of times; not through torch.func. Deterministic,
    and the same for any number of threads. Under autocast it runs in autocast's dtype, as linear does.
    Sums of half types are in float32.

    Raises:
        ValueError: shapes that do not fit, `visible` out of range, descending or not on the CPU.
        TypeError: a tensor that is not floating-point, dtypes that differ, `visible` not int64.

    Germain et al., "MADE", 2015, arXiv:1502.03509.
    """
    x, weight, bias = to_autocast_dtype(x.device.type, x, weight, bias)
    return library.block_triangular_linear(x, weight, bias, visible)


@torch.library.register_fake("deepgen_ext::block_triangular_linear")
def _(x, weight, bias, visible):
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.register_fake("deepgen_ext::block_triangular_linear_backward")
def _(grad_output, x, weight, visible, wanted):
    return (
        x.new_empty(x.shape if wanted[0] else 0),
        x.new_empty(weight.shape if wanted[1] else 0),
        x.new_empty(weight.shape[0] if wanted[2] else 0),
    )


def _save_for_double_backward(ctx, inputs, output) -> None:
    grad_output, x, weight, visible, ctx.wanted = inputs
    ctx.save_for_backward(grad_output, x, weight, visible)


def _double_backward(ctx, by_grad_x, by_grad_weight, by_grad_bias):
    """The map is linear in x, in weight and in bias: its gradients' gradients are the same ops."""
    grad_output, x, weight, visible = ctx.saved_tensors
    wanted_g, wanted_x, wanted_weight = ctx.needs_input_grad[:3]
    forward, backward = library.block_triangular_linear, library.block_triangular_linear_backward
    of_g = of_x = of_weight = None
    a = by_grad_x if ctx.wanted[0] else None
    b = by_grad_weight if ctx.wanted[1] else None
    c = by_grad_bias if ctx.wanted[2] else None
    if wanted_g:
        terms = [forward(a, weight, None, visible)] if a is not None else []
        if b is not None:
            terms.append(forward(x, b, c, visible))
        elif c is not None:
            terms.append(c.expand_as(grad_output))
        of_g = sum(terms[1:], terms[0]) if terms else None
    if wanted_x and b is not None:
        of_x = backward(grad_output, x, b, visible, (True, False, False))[0]
    if wanted_weight and a is not None:
        of_weight = backward(grad_output, a, weight, visible, (False, True, False))[1]
    return of_g, of_x, of_weight, None, None


torch.library.register_autograd(
    "deepgen_ext::block_triangular_linear_backward",
    _double_backward,
    setup_context=_save_for_double_backward,
)
