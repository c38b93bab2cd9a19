from __future__ import annotations

import torch
from torch import Tensor

from .accumulation import accumulation_dtype


def planar_chain(z: Tensor, w: Tensor, u: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """z <- z + u_hat tanh(w'z + b) for each step; log_det = sum log|1 + u_hat'w (1 - tanh^2)|.

    u_hat = u + (m(w'u) - w'u) w / |w|^2 with m(x) = -1 + log(1 + e^x), and u where w = 0. z is
    (n, D); w, u (K, D) and b (K,), or with n in front of each: parameters of every sample.
    """
    accumulate = accumulation_dtype(z.dtype)
    state, w, u, b = (t.to(accumulate) for t in (z, w, u, b))
    log_det = state.new_zeros(z.shape[0])
    for k in range(b.shape[-1]):
        normal, bias = w[..., k, :], b[..., k]
        inner = (normal * u[..., k, :]).sum(-1, keepdim=True)
        wanted = -1 + torch.logaddexp(inner, torch.zeros_like(inner))
        square = (normal * normal).sum(-1, keepdim=True)
        # Divided by 1 where w = 0: the product is 0 there, and so is its gradient.
        square = torch.where(square > 0, square, torch.ones_like(square))
        u_hat = u[..., k, :] + (wanted - inner) * normal / square
        hidden = torch.tanh((state * normal).sum(-1) + bias)
        log_det = log_det + (1 + (u_hat * normal).sum(-1) * (1 - hidden**2)).abs().log()
        state = state + u_hat * hidden[:, None]
    return state.to(z.dtype), log_det
