"""A chain of planar flows with its log-determinant, all steps in one pass over the samples."""

from __future__ import annotations

import torch
from torch import Tensor

from deepgen_ext._extension import library
from deepgen_ext.ops.flow_chain import check_chain, register_chain, softplus


def planar_chain(z: Tensor, w: Tensor, u: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    r"""Computes z <- z + u_hat tanh(w'z + b) for K steps, and log_det = sum of log|det|, fused.

    u_hat = u + (m(w'u) - w'u) w / |w|^2 with m(x) = -1 + log(1 + e^x) keeps every step invertible:
    u_hat'w > -1, and

        log|det| = log(1 + u_hat'w (1 - t^2)) = log(t^2 + log(1 + e^(w'u)) (1 - t^2)),

    t = tanh(w'z + b), of which the second form has no cancellation. As w tends to 0 the formula
    sends u_hat to infinity, by 0.31 / |w|; w = 0, and a w whose elements all lie below eps^2 of its
    dtype, mean u_hat = u, a translation.

    Args:
        z: (n, D), float32, float64, bfloat16 or float16, any strides, CPU or CUDA.
        w: (K, D), of z's dtype and device; K may be 0. Or (n, K, D), parameters of each sample, as
            the encoder of a variational posterior gives them: such chains run in plain torch.
        u: the shape of w.
        b: (K,) or (n, K).

    Returns:
        z after the last step, like z, and log_det, (n,): float32 for half types, else z's dtype.
        In nats.

    Differentiable in all four, twice (the second time in plain torch operations), not through
    torch.func. The graph keeps z alone: states are computed again in the backward pass.
    Deterministic, for any number of threads. Under autocast it runs in float32. NaNs propagate.

    Raises:
        ValueError: another shape or device than expected.
        TypeError: a tensor that is not floating-point, or dtypes that differ.

    Rezende & Mohamed 2015, arXiv:1505.05770.
    """
    z, given = check_chain(z, {"w": w, "u": u}, {"b": b})
    w = given["w"]
    u_hat, slope = invertible(w, given["u"])
    parameters = torch.cat((w, u_hat, slope[..., None], given["b"][..., None]), -1)
    if parameters.ndim == 3:
        return in_torch(z, parameters)
    return library.planar_chain(z, parameters)


def invertible(w: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """(u_hat, 1 + u_hat'w > 0) of w and u, each (..., D)."""
    inner = (w * u).sum(-1, keepdim=True)
    # w / |w|^2 by way of w / max|w|: |w|^2 itself underflows long before w does.
    largest = w.detach().abs().amax(-1, keepdim=True)
    is_zero = largest < torch.finfo(w.dtype).eps ** 2
    scale = torch.where(is_zero, 1.0, largest)
    direction = w / scale
    square = torch.where(is_zero, 1.0, (direction * direction).sum(-1, keepdim=True))
    slope = softplus(inner)
    correction = (slope - 1 - inner) * direction / (square * scale)
    u_hat = u + torch.where(is_zero, torch.zeros_like(correction), correction)
    return u_hat, torch.where(is_zero, torch.ones_like(slope), slope).squeeze(-1)


def in_torch(z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
    """The chain of packed parameters [w, u_hat, 1 + u_hat'w, b], (K, 2D + 2) or (n, K, 2D + 2)."""
    state, features = z.to(parameters.dtype), z.shape[1]
    log_det = state.new_zeros(z.shape[0])
    for step in parameters.unbind(-2):
        w, u_hat, slope, b = step.split((features, features, 1, 1), -1)
        a = (state * w).sum(-1, keepdim=True) + b
        t, decay = torch.tanh(a), torch.exp(-2 * a.abs())
        stretch = t * t + slope * (4 * decay / (1 + decay) ** 2)
        log_det = log_det + stretch.log().squeeze(-1)
        state = state + u_hat * t
    return state.to(z.dtype), log_det


register_chain("planar_chain", in_torch)
