from __future__ import annotations

import torch
from torch import Tensor

from .accumulation import accumulation_dtype


def radial_chain(
    z: Tensor, center: Tensor, raw_alpha: Tensor, raw_beta: Tensor
) -> tuple[Tensor, Tensor]:
    """z <- z + beta h (z - center) for each step, h = 1 / (alpha + r), r = |z - center|.

    alpha = softplus(raw_alpha), beta = -alpha + softplus(raw_beta); log_det = sum (D - 1) log(1 +
    beta h) + log(1 + beta h + beta h' r). z is (n, D); center (K, D), raw_alpha and raw_beta (K,),
    or with n in front of each: parameters of every sample.
    """
    accumulate = accumulation_dtype(z.dtype)
    state, center, raw_alpha, raw_beta = (
        t.to(accumulate) for t in (z, center, raw_alpha, raw_beta)
    )
    log_det = state.new_zeros(z.shape[0])
    alphas, reaches = (torch.logaddexp(t, torch.zeros_like(t)) for t in (raw_alpha, raw_beta))
    for k in range(alphas.shape[-1]):
        alpha, beta = alphas[..., k], reaches[..., k] - alphas[..., k]
        offset = state - center[..., k, :]
        r = torch.linalg.vector_norm(offset, dim=-1)
        h = 1 / (alpha + r)
        log_det = log_det + (z.shape[1] - 1) * torch.log(1 + beta * h)
        log_det = log_det + torch.log(1 + beta * h - beta * h**2 * r)
        state = state + (beta * h)[:, None] * offset
    return state.to(z.dtype), log_det
