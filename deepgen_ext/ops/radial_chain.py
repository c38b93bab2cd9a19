"""A chain of radial flows with its log-determinant, all steps in one pass over the samples."""

from __future__ import annotations

import torch
from torch import Tensor

from deepgen_ext._extension import library
from deepgen_ext.ops.flow_chain import check_chain, register_chain, softplus


def radial_chain(
    z: Tensor, center: Tensor, raw_alpha: Tensor, raw_beta: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Computes z <- z + beta h (z - center) for K steps, and log_det = sum of log|det|, fused.

    h = 1 / (alpha + r), r = |z - center|, alpha = log(1 + e^raw_alpha) > 0 and beta = -alpha +
    log(1 + e^raw_beta) > -alpha, so that every step is invertible;

        log|det| = (D - 1) log(1 + beta h) + log(1 + beta h + beta h' r),

    h' = -1 / (alpha + r)^2, computed as sums of positive terms. beta = 0, the identity, is where
    raw_beta = raw_alpha.

    Args:
        z: (n, D), float32, float64, bfloat16 or float16, any strides, CPU or CUDA.
        center: (K, D), of z's dtype and device; K may be 0. Or (n, K, D), parameters of each
            sample, as the encoder of a variational posterior gives them: such chains run in plain
            torch.
        raw_alpha: (K,) or (n, K).
        raw_beta: (K,) or (n, K).

    Returns:
        z after the last step, like z, and log_det, (n,): float32 for half types, else z's dtype.
        In nats.

    Differentiable in all four, twice (the second time in plain torch operations), not through
    torch.func; at z = center, where r has a kink, its gradient is taken as 0. The graph keeps z
    alone: states are computed again in the backward pass. Deterministic, for any number of
    threads. Under autocast it runs in float32. NaNs propagate.

    Raises:
        ValueError: another shape or device than expected.
        TypeError: a tensor that is not floating-point, or dtypes that differ.

    Rezende & Mohamed 2015, arXiv:1505.05770.
    """
    z, given = check_chain(z, {"center": center}, {"raw_alpha": raw_alpha, "raw_beta": raw_beta})
    alpha, reach = softplus(given["raw_alpha"]), softplus(given["raw_beta"])
    parameters = torch.cat((given["center"], alpha[..., None], reach[..., None]), -1)
    if parameters.ndim == 3:
        return in_torch(z, parameters)
    return library.radial_chain(z, parameters)


def in_torch(z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
    """The chain of packed parameters [center, alpha, alpha + beta], (K, D + 2) or (n, K, D + 2)."""
    state, features = z.to(parameters.dtype), z.shape[1]
    log_det = state.new_zeros(z.shape[0])
    for step in parameters.unbind(-2):
        center, alpha, reach = step.split((features, 1, 1), -1)
        offset = state - center
        r = torch.linalg.vector_norm(offset, dim=-1, keepdim=True)
        near = alpha / (r + alpha)
        across = (r + reach) / (r + alpha)
        along = r / (r + alpha) + near * across
        log_det = log_det + ((features - 1) * across.log() + along.log()).squeeze(-1)
        state = center + across * offset
    return state.to(z.dtype), log_det


register_chain("radial_chain", in_torch)
