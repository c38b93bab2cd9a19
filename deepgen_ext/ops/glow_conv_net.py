"""Glow's coupling network on images: one node, matrix products in place of convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deepgen_ext._extension import library
from deepgen_ext.ops.autocast import to_autocast_dtype


def glow_conv_net(
    x: Tensor,
    input_weight: Tensor,
    input_bias: Tensor,
    hidden_weight: Tensor,
    hidden_bias: Tensor,
    output_weight: Tensor,
    output_bias: Tensor,
    log_scale: Tensor,
    context_map: Tensor | None = None,
) -> Tensor:
    r"""Computes y = (W_out * relu(W_hidden relu(W_in * x + b_in + context) + b_hidden) + b_out) e^(3 s).

    W_in and W_out are 3x3 convolutions with zero padding, W_hidden is one of 1x1, s is `log_scale`.

    On the CPU, in float32 and float64, each layer is a matrix product over positions: few channels
    come in and go out, so that the nine taps are spread over columns there. On CUDA, and in half
    precision, it is three of the vendor's convolutions: those are what tensor cores are for.

    Args:
        x: (batch, in_channels, height, width), float32, float64, bfloat16 or float16, any strides.
        input_weight: (hidden_channels, in_channels, 3, 3); like all others of x's dtype. The 3x3
            weights are copied unless they lie with their channels last.
        input_bias: (hidden_channels,).
        hidden_weight: (hidden_channels, hidden_channels, 1, 1).
        hidden_bias: (hidden_channels,).
        output_weight: (out_channels, hidden_channels, 3, 3).
        output_bias: (out_channels,), scaled as the convolution is.
        log_scale: (out_channels,).
        context_map: (batch, hidden_channels, height, width), any strides, those of an expanded
            tensor too.

    Returns:
        (batch, out_channels, height, width), contiguous where the own kernel computes it.

    Differentiable in all tensors, any number of times; a gradient that is to be differentiated is
    that of torch's convolutions. Not through torch.func. Keeps both activations for the gradient,
    2 hidden_channels numbers a position, and nothing where no gradient is asked for. Deterministic
    on the CPU. Under autocast it runs in autocast's dtype, as conv2d does.

    Raises:
        ValueError: another shape or device than expected.
        TypeError: a tensor that is not floating-point, or dtypes that differ.

    Kingma & Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions", 2018,
    arXiv:1807.03039, as in their code.
    """
    parameters = input_weight, input_bias, hidden_weight, hidden_bias
    parameters = *parameters, output_weight, output_bias, log_scale
    return library.glow_conv_net(*to_autocast_dtype(x.device.type, x, *parameters, context_map))


def _image_like(x: Tensor, channels: int) -> Tensor:
    return x.new_empty(x.shape[0], channels, *x.shape[2:])


@torch.library.register_fake("deepgen_ext::glow_conv_net")
def _(x, *given):
    return _image_like(x, given[4].shape[0])


@torch.library.register_fake("deepgen_ext::glow_conv_net_keeping")
def _(x, *given):
    kept = 2 * given[0].shape[0] * x.shape[0] * x.shape[2] * x.shape[3]
    return _image_like(x, given[4].shape[0]), x.new_empty(kept)


@torch.library.register_fake("deepgen_ext::glow_conv_net_backward")
def _(grad_output, x, *given):
    *parameters, _, _, wanted = given
    none = x.new_empty(0)
    return [
        _image_like(x, x.shape[1]) if wanted[0] else none,
        *(_laid_out(p) if wanted[1] else none for p in parameters),
        _image_like(x, parameters[0].shape[0]) if wanted[2] else none,
    ]


def _laid_out(parameter: Tensor) -> Tensor:
    last = torch.channels_last if parameter.dim() == 4 else torch.contiguous_format
    return torch.empty(
        parameter.shape, dtype=parameter.dtype, device=parameter.device, memory_format=last
    )


def _in_torch(
    x,
    input_weight,
    input_bias,
    hidden_weight,
    hidden_bias,
    output_weight,
    output_bias,
    log_scale,
    context_map,
):
    a = F.conv2d(x, input_weight, input_bias, padding=1)
    a = a if context_map is None else a + context_map
    b = F.conv2d(a.relu(), hidden_weight, hidden_bias).relu()
    scale = (3 * log_scale).exp()
    return F.conv2d(b, output_weight * scale.view(-1, 1, 1, 1), output_bias * scale, padding=1)


def _save_for_double_backward(ctx, inputs, output) -> None:
    *tensors, _, ctx.wanted = inputs  # not the activations
    ctx.save_for_backward(*tensors)


def _double_backward(ctx, cotangents):
    """Through the gradient of torch's convolutions."""
    grad_output, *given = ctx.saved_tensors
    wanted = [ctx.wanted[0], *[ctx.wanted[1]] * 7, ctx.wanted[2]]
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = [
            None
            if t is None
            else (t.view_as(t) if t.requires_grad else t.detach().requires_grad_())
            for t in (grad_output, *given)
        ]
        g, *inputs = leaves
        chosen = [i for i, c in enumerate(cotangents) if wanted[i] and c is not None]
        gradients = torch.autograd.grad(
            _in_torch(*inputs), [inputs[i] for i in chosen], g, create_graph=True
        )
        present = [t for t in leaves if t is not None]
        by_present = torch.autograd.grad(
            gradients,
            present,
            [cotangents[i] for i in chosen],
            allow_unused=True,
            create_graph=again,
        )
    by = iter(by_present)
    return *(None if t is None else next(by) for t in leaves), None, None


torch.library.register_autograd(
    "deepgen_ext::glow_conv_net_backward",
    _double_backward,
    setup_context=_save_for_double_backward,
)
