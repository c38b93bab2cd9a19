"""Operator norms of a matrix other than the spectral one: from the p-norm to the q-norm."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .normalized_weight import WARM_UP, NormalizedWeight


class InducedNorm(NormalizedWeight):
    """W scaled by max |Wx|_q / |x|_p, W the matrix (out, ...): domain p, codomain q, 1 to inf.

    Closed forms: p = 1, the largest q-norm of a column (1 -> 1: of absolute column sums);
    q = inf, the largest dual norm of a row (inf -> inf: of absolute row sums). Else Boyd's power
    iteration, as Residual Flow's mixed norms have it: x -> Wx -> its dual vector u in the dual of q,
    -> W'u -> its dual vector v of p-norm 1. It never falls; its limit is the norm for matrices
    without negative entries, for p = q = 2, and else may be a local maximum: the norm is NP-hard.

    Boyd 1974; Chen et al. 2019, arXiv:1906.02735, appendix D.
    """

    def __init__(self, weight: Tensor, domain: float, codomain: float, **options) -> None:
        super().__init__(**options)
        self.domain, self.codomain = domain, codomain
        matrix = weight.detach().flatten(1)
        self.register_buffer("_u", dual_vector(torch.randn_like(matrix[:, 0]), codomain))
        self.register_buffer("_v", dual_vector(torch.randn_like(matrix[0]), conjugate(domain)))
        self.move(*self.iterate(weight.detach(), self._u, self._v, WARM_UP)[:2])

    def iterate(self, weight, u, v, n_iterations):
        matrix = weight.flatten(1)
        if self.domain == 1:
            return u.clone(), v.clone(), norm_of(matrix.T, self.codomain).max()
        if self.codomain == math.inf:
            return u.clone(), v.clone(), norm_of(matrix, conjugate(self.domain)).max()
        with torch.no_grad():
            for _ in range(n_iterations):
                reached = matrix @ v
                new_u = dual_vector(reached, self.codomain)
                new_v = dual_vector(matrix.T @ new_u, conjugate(self.domain))
                moves = (reached != 0).any()
                u, v = torch.where(moves, new_u, u), torch.where(moves, new_v, v)
            u, v = u.clone(), v.clone()
        return u, v, u @ (matrix @ v)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, domain={self.domain}, codomain={self.codomain}"


def conjugate(p: float) -> float:
    """q with 1/p + 1/q = 1."""
    return math.inf if p == 1 else 1.0 if p == math.inf else p / (p - 1)


def norm_of(rows: Tensor, p: float) -> Tensor:
    return torch.linalg.vector_norm(rows, p, dim=-1)


def dual_vector(x: Tensor, p: float) -> Tensor:
    """u with <u, x> = |x|_p, of norm 1 in the dual of the p-norm; 0 for x = 0."""
    size = x.abs()
    if p == math.inf:
        return F.one_hot(size.argmax(), len(x)).to(x) * x.sign()
    largest = size.max()
    direction = x.sign() * (size / torch.where(largest > 0, largest, 1.0)) ** (p - 1)
    dual = torch.linalg.vector_norm(direction, conjugate(p))
    return direction / torch.where(dual > 0, dual, 1.0)
