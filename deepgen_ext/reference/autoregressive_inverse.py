from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .affine_coupling import affine_coupling

ACTIVATIONS = {"relu": F.relu, "elu": F.elu, "tanh": torch.tanh}


def masked_network(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    degrees: Sequence[Tensor],
    *,
    activation: str = "relu",
    residual: bool = False,
) -> Tensor:
    """The parameters of all dimensions, (n, D, P), by one full pass.

    A unit of degree d sees x_0 ... x_{d-1} and units of degree <= d; dimension i units <= i.
    """
    act = ACTIVATIONS[activation]
    order = torch.arange(x.shape[1])
    per_dimension = weights[-1].shape[0] // x.shape[1]
    below = [order + 1, *degrees]
    above = [*degrees, order.repeat_interleave(per_dimension)]
    layers = [
        (torch.where((a[:, None] >= b).to(w.device), w, 0.0), bias)
        for w, bias, a, b in zip(weights, biases, above, below, strict=True)
    ]

    def linear(values: Tensor, layer: tuple[Tensor, Tensor]) -> Tensor:
        return values @ layer[0].T + layer[1]

    h = linear(x, layers[0])
    if residual:
        for first, second in zip(layers[1:-1:2], layers[2:-1:2], strict=True):
            h = h + linear(act(linear(act(h), first)), second)
    else:
        h = act(h)
        for layer in layers[1:-1]:
            h = act(linear(h, layer))
    return linear(h, layers[-1]).unflatten(1, (x.shape[1], per_dimension))


def autoregressive_inverse(
    z: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    degrees: Sequence[Tensor],
    *,
    element: str = "affine",
    scale_map: str = "tanh",
    clamp: float = 2.0,
    n_bins: int = 8,
    bound: float = 3.0,
    activation: str = "relu",
    residual: bool = False,
) -> tuple[Tensor, Tensor]:
    """Solves z_i = f(x_i; parameters_i(x_0 ... x_{i-1})) by D full passes, one a dimension.

    f is x * s + t with parameters [raw scale, t] ("affine"), or the rational-quadratic spline with
    [K widths, K heights, K - 1 derivatives] ("spline"), or that of zuko with as many, bounded by
    `clamp` ("softclip_spline"). log_det (n,) is that of z -> x.
    """
    known: list[Tensor] = []
    log_det = z.new_zeros(z.shape[0])
    for i in range(z.shape[1]):
        # What is not known yet is not seen either.
        x = torch.stack([*known, *[torch.zeros_like(z[:, 0])] * (z.shape[1] - i)], 1)
        p = masked_network(x, weights, biases, degrees, activation=activation, residual=residual)
        p = p[:, i]
        if element == "affine":
            x_i, log_det_i = affine_coupling(
                z[:, i], p[:, 0], p[:, 1], scale_map=scale_map, clamp=clamp, inverse=True
            )
        else:
            soft = clamp if element == "softclip_spline" else None
            x_i, log_det_i = _spline_inverse(z[:, i], p, n_bins, bound, soft)
        known.append(x_i)
        log_det = log_det + log_det_i
    return torch.stack(known, 1), log_det


def _spline_inverse(
    z: Tensor, p: Tensor, n_bins: int, bound: float, soft: float | None
) -> tuple[Tensor, Tensor]:
    from .rational_quadratic_spline import rational_quadratic_spline

    widths, heights, derivatives = p.unsqueeze(1).split([n_bins, n_bins, n_bins - 1], -1)
    least = 1e-3
    if soft is not None:
        least = 0.0
        widths, heights = (t / (1 + (2 * t / soft).abs()) for t in (widths, heights))
        slopes = (derivatives / (1 + (derivatives / soft).abs())).exp()
        derivatives = slopes.expm1().log()  # whose softplus they are
    x, log_det = rational_quadratic_spline(
        z[:, None],
        widths,
        heights,
        derivatives,
        inverse=True,
        bound=bound,
        min_bin_width=least,
        min_bin_height=least,
        min_derivative=least,
    )
    return x[:, 0], log_det
