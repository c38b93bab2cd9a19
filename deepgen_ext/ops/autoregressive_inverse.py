"""The inverse of a masked autoregressive flow, dimension after dimension, in the work of one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deepgen_ext._extension import library


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
    r"""Solves z_i = f(x_i; p_i(x_0, ..., x_{i-1})) for x, with p the parameters that a masked MLP computes (MADE).

    A hidden unit of degree d sees x_0 ... x_{d-1} and the units of degree <= d of the layer below; the parameters of
    dimension i see the units of degree <= i of the last hidden layer. So each unit is computed once, when the
    dimensions that it sees are known, and the whole inverse costs the unmasked half of one density pass, where a
    loop over dimensions costs D passes.

    Without `residual` a hidden layer is h_l = act(W_l h_{l-1} + b_l). With it (nflows' MADE): s = W_1 x + b_1, pairs
    of layers are blocks s <- s + W_b act(W_a act(s) + b_a) + b_b, and the output layer reads s.

    =================  ==============================================  ============================================
    element            f                                               parameters of a dimension
    =================  ==============================================  ============================================
    "affine"           x * s + t, log s bounded by `scale_map`, see    2: raw scale, t
                       `affine_coupling`
    "spline"           rational-quadratic on [-bound, bound], see      3 n_bins - 1: n_bins widths, n_bins heights,
                       `rational_quadratic_spline`                     n_bins - 1 derivatives
    "softclip_spline"  the same without floors; widths and heights     as "spline"
                       w / (1 + |2 w / clamp|) before the softmax,
                       slopes e^v, v = d / (1 + |d / clamp|) (zuko)
    =================  ==============================================  ============================================

    Args:
        z: (n, D), float32 or float64 (half types are computed in float32), columns in the order of the dimensions.
        weights: L + 1 matrices (H_1, D), (H_2, H_1), ..., (D * P, H_L), output rows dimension-major. Entries that the
            degrees mask are not read.
        biases: for each weight (H,), or (n, H): a context's projection included.
        degrees: L ascending int64 vectors (H_l,) on the CPU, values 0 ... D - 1. Any number of units a degree, none
            too.
        element, scale_map, clamp, n_bins, bound: the element map.
        activation: "relu", "elu" or "tanh".
        residual: L odd and all degrees the same.

    Returns:
        x, like z, and log_det (n,) of z -> x: minus the sum of log f'. In nats; float32 for half types.

    Differentiable in z, weights and biases by the implicit function theorem: one substitution backwards through the
    degrees, no graph of D passes; masked entries get a zero gradient. The graph keeps z and x alone, and not through
    torch.func. Differentiating the gradient again raises NotImplementedError. Results depend neither on the number
    of threads nor, but for a batch of one, on the batch. A NaN in z_i makes x_i and what depends on it NaN, in that
    sample.

    Raises:
        ValueError: shapes that do not fit, degrees out of range or not ascending, an unknown option.
        TypeError: dtypes that differ or are not floating-point; degrees that are not int64.

    MADE: Germain et al. 2015, arXiv:1502.03509. MAF: Papamakarios et al. 2017, arXiv:1705.07057.
    """
    options = (element, scale_map, clamp, n_bins, bound, activation, residual)
    if z.dtype in (torch.float16, torch.bfloat16):
        single = [[t.float() for t in tensors] for tensors in (weights, biases)]
        x, log_det = library.autoregressive_inverse(z.float(), *single, list(degrees), *options)
        return x.to(z.dtype), log_det
    return library.autoregressive_inverse(z, list(weights), list(biases), list(degrees), *options)


@torch.library.register_fake("deepgen_ext::autoregressive_inverse")
def _(z, weights, biases, degrees, *options):
    return torch.empty_like(z, memory_format=torch.contiguous_format), z.new_empty(z.shape[0])


@torch.library.register_fake("deepgen_ext::autoregressive_inverse_adjoint")
def _(grad_x, grad_log_det, z, x, weights, biases, degrees, *options):
    units = [weight.shape[0] for weight in weights]
    return [x.new_empty(x.shape[0], size) for size in [x.shape[1], *units[:-1], *units]]


def _refuse(ctx, *cotangents):
    raise NotImplementedError(
        "autoregressive_inverse cannot be differentiated twice: its gradient has no gradient of its own"
    )


torch.library.register_autograd("deepgen_ext::autoregressive_inverse_adjoint", _refuse)

for _device in ("cpu", "cuda"):
    # An error of half precision in one dimension would grow through all later ones.
    torch.library.register_autocast("deepgen_ext::autoregressive_inverse", _device, torch.float32)
