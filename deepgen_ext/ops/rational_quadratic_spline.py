"""Monotone rational-quadratic spline, with tails or without: softmax, bin search, map and log-det in one pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deepgen_ext._extension import library


def rational_quadratic_spline(
    x: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    *,
    inverse: bool = False,
    bound: float = 3.0,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    min_derivative: float = 1e-3,
    interval: tuple[float, float, float, float] | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Maps each element of x by a spline of its own, or by its inverse, and sums the logs of the slopes.

    The K bins of an element fill [-bound, bound]: their widths are w_k = 2 * bound * (min_bin_width +
    (1 - K * min_bin_width) * softmax(widths)_k), their heights h_k likewise, the slopes at the K - 1 inner knots are
    min_derivative + softplus(derivatives), and 1 at both ends. In the bin of x, with s = h / w, t = (x - left) / w, and
    d and e the slopes at its ends::

        y     = bottom + h * (s t^2 + d t (1 - t)) / D,                 D = s + (d + e - 2 s) t (1 - t)
        dy/dx = s^2 * (e t^2 + 2 s t (1 - t) + d (1 - t)^2) / D^2

    Outside of [-bound, bound] the map is the identity. log_det is the sum of log dy/dx over all dimensions but the
    first; for the inverse, of log dx/dy. The parameters mean what they mean to nflows'
    `unconstrained_rational_quadratic_spline(..., tails="linear", tail_bound=bound)`.

    With `interval` = (left, right, bottom, top) there are no tails, and the parameters mean what they mean to nflows'
    `rational_quadratic_spline`: the bins fill [left, right] and [bottom, top], and the slopes at the ends are given as
    those at the inner knots are. Outside there is no map: y, log_det and the gradients of what lies there, of its
    parameters too, are NaN. (To raise instead would wait for the GPU.) What is outside by a rounding counts as the end.

    Args:
        x: (n, ...), float32, float64, bfloat16 or float16, on the CPU or a CUDA device.
        widths, heights: (n, ..., K), unnormalised, K from 1 to 100, of x's dtype and device. Any strides: slices of one
            output (n, ..., 3 K - 1) of a conditioner are read where they lie, and so are those of a convolution,
            (n, C * (3 K - 1), H, W), viewed as (n, C, 3 K - 1, H, W) and with the dimension of bins moved to the end.
            Only where more than three dimensions behind the batch cannot be merged is a copy made.
        derivatives: (n, ..., K - 1), likewise; (n, ..., K + 1) with an interval.
        inverse: apply the inverse map.
        bound: where the tails begin, above 0; unused with an interval.
        min_bin_width, min_bin_height: the least share of the range that a bin has, in (0, 1 / K].
        min_derivative: the least slope at a knot, in (0, 1).
        interval: see above; left < right and bottom < top.

    Returns:
        y, like x, and log_det, (n,): float32 for half types, else x's dtype. In nats. With half types the arithmetic is
        in float32.

    Differentiable in x, widths, heights and derivatives, twice (the second time in plain torch operations), not through
    torch.func. The backward pass recomputes the spline, so the graph keeps the inputs only. Deterministic. Under
    autocast it runs in float32. NaN in x, or in the parameters of an x that is not in the tails, gives NaN. The
    quadratic of the inverse is solved so that rounding makes no discriminant negative, and results lie in their bin.

    Raises:
        ValueError: another shape or device than expected, an option out of its range.
        TypeError: a tensor that is not floating-point, or dtypes that differ.

    Durkan, Bekasov, Murray & Papamakarios, "Neural Spline Flows", 2019, arXiv:1906.04032.
    """
    return library.rational_quadratic_spline(
        x,
        widths,
        heights,
        derivatives,
        inverse,
        bound,
        min_bin_width,
        min_bin_height,
        min_derivative,
        interval or (),
    )


@torch.library.register_fake("deepgen_ext::rational_quadratic_spline")
def _(x, widths, heights, derivatives, *options):
    sum_type = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.empty_like(x), x.new_empty(x.shape[0], dtype=sum_type)


@torch.library.register_fake("deepgen_ext::rational_quadratic_spline_backward")
def _(grad_output, grad_log_det, x, widths, heights, derivatives, *options):
    return tuple(torch.empty_like(t) for t in (x, widths, heights, derivatives))


def _in_torch(
    x,
    widths,
    heights,
    derivatives,
    inverse,
    bound,
    min_width,
    min_height,
    min_slope,
    interval,
):
    """The formulas of the docstring, for the gradient's gradient: y and log_det."""
    least_x, largest_x, least_y, largest_y = interval or (-bound, bound, -bound, bound)

    def bins_of(
        raw: Tensor, smallest: float, least: float, largest: float
    ) -> tuple[Tensor, Tensor]:
        shares = smallest + (1 - smallest * raw.shape[-1]) * raw.softmax(-1)
        sizes = (largest - least) * shares
        return F.pad(sizes.cumsum(-1)[..., :-1], (1, 0)) + least, sizes

    left, width = bins_of(widths, min_width, least_x, largest_x)
    bottom, height = bins_of(heights, min_height, least_y, largest_y)
    # Not F.softplus: it turns linear at 20, and the kernel does not.
    slopes = min_slope + F.softplus(derivatives, threshold=100.0)
    if not interval:
        slopes = F.pad(slopes, (1, 1), value=1.0)
    least, largest = (least_y, largest_y) if inverse else (least_x, largest_x)
    inside = (x >= least) & (x <= largest)
    beyond, log_beyond = (x + torch.nan, torch.nan) if interval else (x, 0.0)
    value = torch.where(inside, x, (least + largest) / 2)
    edges = (bottom if inverse else left)[..., 1:]
    index = (value.unsqueeze(-1) >= edges).sum(-1, keepdim=True)
    chosen = (left, width, bottom, height, slopes[..., :-1], slopes[..., 1:])
    left, width, bottom, height, d, e = (t.gather(-1, index).squeeze(-1) for t in chosen)
    s = height / width
    if inverse:
        r = (value - bottom) / height
        b = d - r * (d + e - 2 * s)
        root = (b * b + 4 * (s - b) * s * r).clamp_min(0).sqrt()
        t = 2 * s * r / (b + root)
    else:
        t = (value - left) / width
    divisor = s + (d + e - 2 * s) * t * (1 - t)
    slope = s * s * (e * t * t + 2 * s * t * (1 - t) + d * (1 - t) * (1 - t)) / (divisor * divisor)
    log_det = torch.where(inside, slope.log(), log_beyond).sum(tuple(range(1, x.dim())))
    if inverse:
        return torch.where(inside, left + width * t, beyond), -log_det
    y = bottom + height * (s * t * t + d * t * (1 - t)) / divisor
    return torch.where(inside, y, beyond), log_det


def _save_for_double_backward(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.options = inputs[6:]


def _double_backward(ctx, *cotangents):
    """Through the gradient of the same formulas in torch operations."""
    given = ctx.saved_tensors
    compute = torch.float64 if given[2].dtype == torch.float64 else torch.float32
    with torch.enable_grad():
        leaves = [tensor.detach().to(compute).requires_grad_() for tensor in given]
        g, grad_log_det, *inputs = leaves
        results = _in_torch(*inputs, *ctx.options)
        gradients = torch.autograd.grad(results, inputs, (g, grad_log_det), create_graph=True)
        by_leaves = torch.autograd.grad(
            gradients, leaves, [cotangent.to(compute) for cotangent in cotangents]
        )
    by_tensors = [by.to(tensor.dtype) for by, tensor in zip(by_leaves, given, strict=True)]
    return *by_tensors, *[None] * 6


torch.library.register_autograd(
    "deepgen_ext::rational_quadratic_spline_backward",
    _double_backward,
    setup_context=_save_for_double_backward,
)

for _device in ("cpu", "cuda"):
    torch.library.register_autocast(
        "deepgen_ext::rational_quadratic_spline", _device, torch.float32
    )
