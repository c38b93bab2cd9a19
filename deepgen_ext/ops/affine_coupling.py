"""Affine coupling: an elementwise affine map with a bounded scale and its log-determinant, in one pass."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deepgen_ext._extension import library

SCALE_FLOOR = 1e-3  # of "softplus" and "floored_sigmoid"


def affine_coupling(
    x: Tensor,
    raw_scale: Tensor | None,
    shift: Tensor,
    *,
    scale_map: str = "exp",
    clamp: float = 2.0,
    inverse: bool = False,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Computes y = x * s + shift (or its inverse) and log_det = sum of log s, fused.

    With l = log s the map from the unbounded `raw_scale` is

    ====================  ====================================  ===================
    scale_map             log s                                 s lies in
    ====================  ====================================  ===================
    "exp"                 raw                                   (0, inf)
    "tanh"                tanh(raw)                             (1/e, e)
    "sigmoid"             log sigmoid(raw + 2)          (Glow)  (0, 1)
    "atan"                clamp * 2/pi * atan(raw / clamp)      (e^-clamp, e^clamp)
    "softclip"            raw / (1 + |raw / clamp|)     (zuko)  (e^-clamp, e^clamp)
    "softplus"            log(softplus(raw) + 0.001)  (nflows)  (0.001, inf)
    "floored_sigmoid"     log(sigmoid(raw + 2) + 0.001)         (0.001, 1.001)
    "reciprocal_sigmoid"  -log sigmoid(raw + 2)    (normflows)  (1, inf)
    ====================  ====================================  ===================

    forward: y = x * s + shift, log_det = sum l; inverse: x = (y - shift) / s, log_det = -sum l. The sum runs over all
    dimensions but the first.

    Args:
        x: (batch, ...), float32, float64, bfloat16 or float16, on the CPU or a CUDA device.
        raw_scale: the shape, dtype and device of x; any strides, so that both halves of a conditioner's output are
            used where they lie. None makes the map additive: y = x + shift, log_det = 0, no scale is touched.
        shift: like raw_scale.
        scale_map: one of the table.
        clamp: bound of |log s| for "atan" and "softclip", above 0; unused by the other maps.
        inverse: apply the inverse map.
        mask: bool, broadcastable to one sample, x.shape[1:]. Elements where it is False pass through unchanged and add
            nothing to log_det (the checkerboard of RealNVP). None transforms everything.

    Returns:
        y, like x, and log_det, (batch,): float32 for half types, else x's dtype. In nats.

    Differentiable in x, raw_scale and shift, twice (the second time in plain torch operations), not through
    torch.func. The backward pass
    recomputes the scale, so the graph keeps x (the result, for the inverse) and raw_scale. Deterministic. Under
    autocast it runs in float32. NaNs propagate.

    Raises:
        ValueError: another shape or device than x's, an unknown scale_map, clamp not above 0, a mask that does not
            broadcast.
        TypeError: a tensor that is not floating-point, dtypes that differ, a mask that is not bool.

    RealNVP: Dinh et al. 2017, arXiv:1605.08803. Glow: Kingma & Dhariwal 2018, arXiv:1807.03039.
    """
    if raw_scale is None:
        return _additive(x, shift, inverse, mask)
    return library.affine_coupling(x, raw_scale, shift, mask, scale_map, clamp, inverse)


def half_coupling(
    visible: Tensor,
    moved: Tensor,
    parameters: Tensor,
    *,
    moved_first: bool = False,
    scale_map: str = "exp",
    clamp: float = 2.0,
    inverse: bool = False,
    order: str = "scale_shift",
    alternating: bool = False,
) -> tuple[Tensor, Tensor]:
    """A whole coupling layer but for its network: y = [visible, affine_coupling(moved)] in one pass.

    The same as splitting `parameters` into raw scale and shift, `affine_coupling` of `moved`, and
    concatenating; neither direction copies a half, and the gradient of `parameters` comes whole, laid out as they are.

    Args:
        visible: (batch, C_visible, ...), copied to y as it is; float32, float64, bfloat16 or float16.
        moved: (batch, C_moved, ...), the other channels of the same tensor, any strides.
        parameters: (batch, 2 C_moved, ...), raw scale and shift: what the network says of `visible`.
        moved_first: y is [moved, visible].
        scale_map, clamp, inverse: as in `affine_coupling`.
        order: how the parameters lie: "scale_shift", one half each, raw scale first; "shift_scale", shift first;
            "shift_scale_pairs", the shift of each channel and its raw scale behind it.
        alternating: y's channels are of visible and moved in turn, visible first unless `moved_first`.

    Returns:
        y, (batch, C_visible + C_moved, ...), and log_det, (batch,): float32 for half types, else x's dtype.

    Differentiable twice, deterministic, float32 under autocast, as `affine_coupling` is.

    Raises:
        ValueError: shapes that do not fit, another device, an unknown scale_map or order, clamp not above 0,
            alternating channels of which one kind has more.
        TypeError: a tensor that is not floating-point, dtypes that differ.
    """
    return library.half_coupling(
        visible, moved, parameters, moved_first, scale_map, clamp, inverse, order, alternating
    )


def _additive(
    x: Tensor, shift: Tensor, inverse: bool, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    if x.shape != shift.shape:
        raise ValueError(
            f"shift must have the shape of x, {tuple(x.shape)}, got {tuple(shift.shape)}"
        )
    if not (x.is_floating_point() and shift.is_floating_point()):
        raise TypeError(
            f"x and shift must be floating-point tensors, got {x.dtype} and {shift.dtype}"
        )
    if mask is not None:
        shift = shift * mask
    y = x - shift if inverse else x + shift
    sum_type = torch.float64 if x.dtype == torch.float64 else torch.float32
    return y, x.new_zeros(x.shape[0], dtype=sum_type)


@torch.library.register_fake("deepgen_ext::affine_coupling")
def _(x, raw_scale, shift, mask, scale_map, clamp, inverse):
    sum_type = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.empty_like(x), x.new_empty(x.shape[0], dtype=sum_type)


@torch.library.register_fake("deepgen_ext::affine_coupling_backward")
def _(grad_output, grad_log_det, x, raw_scale, mask, scale_map, clamp, inverse):
    gradients = [torch.empty_like(x), torch.empty_like(raw_scale)]
    if inverse or mask is not None:
        gradients.append(torch.empty_like(raw_scale))
    return gradients


@torch.library.register_fake("deepgen_ext::half_coupling")
def _(visible, moved, parameters, *args, **options):
    sum_type = torch.float64 if moved.dtype == torch.float64 else torch.float32
    sizes = [moved.shape[0], visible.shape[1] + moved.shape[1], *moved.shape[2:]]
    layout = torch._prims_common.suggest_memory_format(moved)
    y = torch.empty(sizes, dtype=moved.dtype, device=moved.device, memory_format=layout)
    return y, moved.new_empty(moved.shape[0], dtype=sum_type)


@torch.library.register_fake("deepgen_ext::half_coupling_backward")
def _(grad_output, grad_log_det, moved, parameters, *args, **options):
    return torch.empty_like(moved), torch.empty_like(parameters)


def _log_scale_derivatives(
    raw: Tensor, scale_map: str, clamp: float
) -> tuple[Tensor, Tensor, Tensor]:
    """l = log s(raw), its slope l' and its curvature l''."""
    if scale_map == "exp":
        return raw, torch.ones_like(raw), torch.zeros_like(raw)
    if scale_map == "tanh":
        log_scale = torch.tanh(raw)
        slope = 1 - log_scale**2
        return log_scale, slope, -2 * log_scale * slope
    if scale_map in ("sigmoid", "reciprocal_sigmoid"):
        slope = torch.sigmoid(-raw - 2)
        parts = torch.nn.functional.logsigmoid(raw + 2), slope, slope * (slope - 1)
        return parts if scale_map == "sigmoid" else tuple(-part for part in parts)
    if scale_map == "softclip":
        part = clamp / (clamp + raw.abs())
        return raw * part, part**2, -2 * part**3 / clamp * raw.sign()
    if scale_map in ("softplus", "floored_sigmoid"):
        if scale_map == "softplus":
            scale = torch.nn.functional.softplus(raw, threshold=100.0) + SCALE_FLOOR
            rise = torch.sigmoid(raw)
            bend = rise * torch.sigmoid(-raw)
        else:
            scale = torch.sigmoid(raw + 2) + SCALE_FLOOR
            rise = torch.sigmoid(raw + 2) * torch.sigmoid(-raw - 2)
            bend = rise * (torch.sigmoid(-raw - 2) - torch.sigmoid(raw + 2))
        slope = rise / scale
        return scale.log(), slope, bend / scale - slope**2
    ratio = raw / clamp
    slope = (2 / math.pi) / (1 + ratio**2)
    return (
        clamp * (2 / math.pi) * torch.atan(ratio),
        slope,
        -2 * ratio * slope / (clamp * (1 + ratio**2)),
    )


def _save_for_double_backward(ctx, inputs, output) -> None:
    *tensors, scale_map, clamp, inverse = inputs
    ctx.save_for_backward(*tensors)
    ctx.options = scale_map, clamp, inverse


def _double_backward(ctx, cotangents):
    g, grad_log_det, x, raw_scale, mask = ctx.saved_tensors
    a, b = cotangents[:2]
    c = cotangents[2] if len(cotangents) == 3 else torch.zeros_like(g)
    gradients = _second_gradients(g, grad_log_det, x, raw_scale, mask, ctx.options, (a, b, c))
    return *gradients, None, None, None, None


def _save_half_for_double_backward(ctx, inputs, output) -> None:
    *others, ctx.order = inputs
    _save_for_double_backward(ctx, others, output)


def _double_backward_of_half(ctx, by_moved, by_parameters):
    g, grad_log_det, moved, parameters = ctx.saved_tensors
    raw_scale, _ = _parameter_halves(parameters, ctx.order)
    cotangents = (by_moved, *_parameter_halves(by_parameters, ctx.order))
    *gradients, by_raw = _second_gradients(
        g, grad_log_det, moved, raw_scale, None, ctx.options, cotangents
    )
    halves = by_raw, torch.zeros_like(by_raw)
    if ctx.order != "scale_shift":
        halves = halves[::-1]
    in_pairs = ctx.order == "shift_scale_pairs"
    whole = torch.stack(halves, 2).flatten(1, 2) if in_pairs else torch.cat(halves, 1)
    return *gradients, whole, None, None, None, None


def _parameter_halves(parameters: Tensor, order: str) -> tuple[Tensor, Tensor]:
    """Raw scale and shift."""
    if order == "shift_scale_pairs":
        return parameters[:, 1::2], parameters[:, ::2]
    first, second = parameters.chunk(2, 1)
    return (first, second) if order == "scale_shift" else (second, first)


def _second_gradients(g, grad_log_det, x, raw_scale, mask, options, cotangents):
    """The gradient of the gradients' formulas in csrc/affine_coupling.h, with cotangents (a, b, c)."""
    scale_map, clamp, inverse = options
    a, b, c = cotangents
    log_scale, slope, curvature = _log_scale_derivatives(raw_scale, scale_map, clamp)
    total = grad_log_det.to(g.dtype).reshape(-1, *[1] * (g.dim() - 1))
    if inverse:
        inverse_scale = torch.exp(-log_scale)
        by_g = (a - c) * inverse_scale - b * x * slope
        by_total = -b * slope
        by_x = -b * g * slope
        by_raw = (c - a) * g * slope * inverse_scale - b * (g * x + total) * curvature
    else:
        scale = torch.exp(log_scale)
        by_g = a * scale + b * x * scale * slope + c
        by_total = b * slope
        by_x = b * g * scale * slope
        by_raw = a * g * scale * slope + b * (
            g * x * scale * slope**2 + (g * x * scale + total) * curvature
        )
    if mask is not None:
        by_g = torch.where(mask, by_g, a)
        zero = torch.zeros((), dtype=g.dtype, device=g.device)
        by_total, by_x, by_raw = (torch.where(mask, v, zero) for v in (by_total, by_x, by_raw))
    by_total = (
        by_total.sum(dim=list(range(1, g.dim()))).to(grad_log_det.dtype)
        if g.dim() > 1
        else by_total
    )
    return by_g, by_total, by_x, by_raw


torch.library.register_autograd(
    "deepgen_ext::affine_coupling_backward",
    _double_backward,
    setup_context=_save_for_double_backward,
)

torch.library.register_autograd(
    "deepgen_ext::half_coupling_backward",
    _double_backward_of_half,
    setup_context=_save_half_for_double_backward,
)

for _device in ("cpu", "cuda"):
    # Log-determinants are long sums: autocast must not round their terms to half precision.
    torch.library.register_autocast("deepgen_ext::affine_coupling", _device, torch.float32)
    torch.library.register_autocast("deepgen_ext::half_coupling", _device, torch.float32)
