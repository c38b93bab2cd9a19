from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def power_iteration(
    weights: Sequence[Tensor],
    us: Sequence[Tensor],
    vs: Sequence[Tensor],
    n_iterations: int = 1,
    eps: float = 1e-12,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """u <- normalize(W v), v <- normalize(W'u), repeated; then sigma = u'Wv, of each W (out, ...).

    u and v carry no gradient. Where W v = 0 they stay as they were, and sigma is 0.
    """
    new_us, new_vs, sigmas = [], [], []
    for weight, u, v in zip(weights, us, vs, strict=True):
        matrix = weight.flatten(1).to(v.dtype)
        with torch.no_grad():
            for _ in range(n_iterations):
                if (matrix @ v != 0).any():
                    u = F.normalize(matrix @ v, dim=0, eps=eps)
                    v = F.normalize(matrix.T @ u, dim=0, eps=eps)
        new_us.append(u)
        new_vs.append(v)
        sigmas.append(u @ matrix @ v)
    return new_us, new_vs, torch.stack(sigmas)


def spectral_normalize(
    weights: Sequence[Tensor],
    us: Sequence[Tensor],
    vs: Sequence[Tensor],
    n_iterations: int = 1,
    eps: float = 1e-12,
    coefficient: float | None = None,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
    """W / sigma, W itself where sigma = 0; or W coefficient / sigma where sigma > coefficient, else W."""
    us, vs, sigmas = power_iteration(weights, us, vs, n_iterations, eps)
    scaled = []
    for weight, sigma in zip(weights, sigmas, strict=True):
        stays = sigma == 0 if coefficient is None else sigma <= coefficient
        scaled.append(weight * 1.0 if stays else weight * ((coefficient or 1.0) / sigma))
    return scaled, us, vs, sigmas
