"""Log-likelihood of bits, or of targets in [0, 1], under logits: summed in the pass that finds it."""

from __future__ import annotations

import torch
from torch import Tensor

from deepgen_ext._extension import library


def bernoulli_log_prob(x: Tensor, logits: Tensor, *, batch_dims: int = 1) -> Tensor:
    r"""Computes log p(x | l) = sum of x l - softplus(l) over all dimensions but the first batch_dims.

    The negative of `binary_cross_entropy_with_logits`, summed, without a tensor of its terms. x
    broadcasts against the logits and is not copied: k draws of a decoder, (n, k, C, H, W) with
    batch_dims=2, are scored against the images x.unsqueeze(1) of x (n, C, H, W), or (k, n, D)
    against x (n, D). Computed as (x - [l > 0]) l - log(1 + exp(-|l|)), in which nothing overflows
    and, where x is 0 or 1, nothing cancels.

    Args:
        x: in [0, 1], bool, uint8 or of a floating-point type, of a shape that broadcasts to that of
            logits. Values are not checked. What is neither bool, uint8, of the dtype of logits nor
            of that of the result is converted to the latter first.
        logits: float32, float64, bfloat16 or float16, any strides. Where those of a sample do not
            lie side by side in some order of the dimensions, they are copied first.
        batch_dims: dimensions that are kept, 1 to logits.dim().

    Returns:
        logits.shape[:batch_dims], in nats: float32 for half types, else the dtype of logits.

    Differentiable in logits, by (x - sigmoid(l)) g, and in x, by l g, where it asks for a gradient
    (in plain torch operations, as are second derivatives); not through torch.func. Keeps nothing
    but its inputs. Deterministic. Autocast leaves it alone: sums are in float32 at least whatever
    comes in.

    Raises:
        ValueError: x that does not broadcast to logits, another device, batch_dims out of range.
        TypeError: logits that are not floating-point, x that is complex.

    The decoder of Kingma & Welling 2014, arXiv:1312.6114, appendix C.1.
    """
    return library.bernoulli_log_prob(x, logits, batch_dims)


@torch.library.register_fake("deepgen_ext::bernoulli_log_prob")
def _(x, logits, batch_dims):
    sum_type = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return logits.new_empty(logits.shape[:batch_dims], dtype=sum_type)


@torch.library.register_fake("deepgen_ext::bernoulli_log_prob_backward")
def _(grad_output, x, logits, wanted):
    return (
        torch.empty_like(x) if wanted[0] else x.new_empty(0),
        torch.empty_like(logits) if wanted[1] else logits.new_empty(0),
    )


def _save_for_double_backward(ctx, inputs, output) -> None:
    grad_output, x, logits, ctx.wanted = inputs
    ctx.save_for_backward(grad_output, x, logits)


def _double_backward(ctx, by_x, by_logits):
    """The gradient of <by_x, l g> + <by_logits, (x - sigmoid(l)) g>."""
    grad_output, x, logits = ctx.saved_tensors
    values = logits.to(grad_output.dtype)
    g = grad_output.view(*grad_output.shape, *[1] * (logits.dim() - grad_output.dim()))
    of_g = of_x = of_logits = 0
    if ctx.wanted[0]:
        of_g = by_x * values
        of_logits = by_x * g
    if ctx.wanted[1]:
        a = by_logits.to(grad_output.dtype)
        on = torch.sigmoid(values)
        of_g = of_g + a * (x - on)
        of_x = a * g
        of_logits = of_logits - a * g * on * torch.sigmoid(-values)
    needs_g, needs_x, needs_logits = ctx.needs_input_grad[:3]
    return (
        of_g.sum_to_size(g.shape).view_as(grad_output).to(grad_output.dtype) if needs_g else None,
        of_x.sum_to_size(x.shape).to(x.dtype) if needs_x and ctx.wanted[1] else None,
        of_logits.to(logits.dtype) if needs_logits else None,
        None,
    )


torch.library.register_autograd(
    "deepgen_ext::bernoulli_log_prob_backward",
    _double_backward,
    setup_context=_save_for_double_backward,
)
