"""Operator norms of a matrix other than the spectral one: from the p-norm to the q-norm."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .normalized_weight import WARM_UP, NormalizedWeight


class LearnedExponent(nn.Module):
    """An exponent of a norm, 1 < p < 5, that training moves: p = 1 + 4 sigmoid(raw).

    For `spectral_norm(domain=..., codomain=...)`. One that is the codomain of a layer and the domain
    of the next keeps the bound of both together; a network maps into the norm that it bounds where
    the last codomain is the first domain. Chen et al. 2019, arXiv:1906.02735, appendix D.

    Args:
        initial: p at the start, in (1, 5).

    Raises:
        ValueError: another initial.
    """

    def __init__(self, initial: float = 2.0) -> None:
        super().__init__()
        if not 1 < initial < 5:
            raise ValueError(f"initial: expected an exponent in (1, 5), got {initial}")
        share = (initial - 1) / 4
        self.raw = nn.Parameter(torch.tensor(math.log(share / (1 - share))))

    def forward(self) -> Tensor:
        return 1 + 4 * torch.sigmoid(self.raw)


class InducedNorm(NormalizedWeight):
    """W scaled by max |Wx|_q / |x|_p, W the matrix (out, ...): domain p, codomain q, 1 to inf.

    Closed forms: p = 1, the largest q-norm of a column (1 -> 1: of absolute column sums);
    q = inf, the largest dual norm of a row (inf -> inf: of absolute row sums). Else Boyd's power
    iteration, as Residual Flow's mixed norms have it: x -> Wx -> its dual vector u in the dual of q,
    -> W'u -> its dual vector v of p-norm 1. It never falls; its limit is the norm for matrices
    without negative entries, for p = q = 2, and else may be a local maximum: the norm is NP-hard.

    With a `LearnedExponent` it is |Wv|_q / |v|_p, v held fixed: where v has converged that has the
    gradient of the norm in p, q and W, for v is where it is largest.

    Boyd 1974; Chen et al. 2019, arXiv:1906.02735, appendix D.
    """

    def __init__(
        self,
        weight: Tensor,
        domain: float | LearnedExponent,
        codomain: float | LearnedExponent,
        **options,
    ) -> None:
        super().__init__(**options)
        self.domain, self.codomain = domain, codomain
        self.learns = isinstance(domain, nn.Module) or isinstance(codomain, nn.Module)
        matrix = weight.detach().flatten(1)
        with torch.no_grad():
            p, q = self.exponents()
            self.register_buffer("_u", dual_vector(torch.randn_like(matrix[:, 0]), q))
            self.register_buffer("_v", dual_vector(torch.randn_like(matrix[0]), conjugate(p)))
            self.move(*self.iterate(weight.detach(), self._u, self._v, WARM_UP)[:2])

    def exponents(self) -> tuple[float | Tensor, float | Tensor]:
        """p and q: tensors where they are learned."""
        return tuple(e() if isinstance(e, nn.Module) else e for e in (self.domain, self.codomain))

    def iterate(self, weight, u, v, n_iterations):
        matrix = weight.flatten(1)
        p, q = self.exponents()
        if not self.learns and p == 1:
            return u.clone(), v.clone(), norm_of(matrix.T, q).max()
        if not self.learns and q == math.inf:
            return u.clone(), v.clone(), norm_of(matrix, conjugate(p)).max()
        with torch.no_grad():
            for _ in range(n_iterations):
                reached = matrix @ v
                new_u = dual_vector(reached, q)
                new_v = dual_vector(matrix.T @ new_u, conjugate(p))
                moves = (reached != 0).any()
                u, v = torch.where(moves, new_u, u), torch.where(moves, new_v, v)
            u, v = u.clone(), v.clone()
        if self.learns:
            return u, v, p_norm(matrix @ v, q) / p_norm(v, p)
        return u, v, u @ (matrix @ v)

    def depends_on(self) -> tuple[Tensor, ...]:
        learned = (e for e in (self.domain, self.codomain) if isinstance(e, nn.Module))
        return (*super().depends_on(), *(e.raw for e in learned))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, domain={self.domain}, codomain={self.codomain}"


def conjugate(p: float | Tensor) -> float | Tensor:
    """q with 1/p + 1/q = 1."""
    if isinstance(p, Tensor):
        return p / (p - 1)
    return math.inf if p == 1 else 1.0 if p == math.inf else p / (p - 1)


def p_norm(x: Tensor, p: float | Tensor) -> Tensor:
    """|x|_p, 1 <= p <= inf; differentiable in p too, and 0 with gradients of 0 for x = 0."""
    if not isinstance(p, Tensor):
        return torch.linalg.vector_norm(x, p)
    largest = x.detach().abs().max()
    is_zero = largest == 0
    powers = ((x / torch.where(is_zero, 1.0, largest)).abs() ** p).sum() + is_zero
    return largest * powers ** (1 / p)


def norm_of(rows: Tensor, p: float) -> Tensor:
    return torch.linalg.vector_norm(rows, p, dim=-1)


def dual_vector(x: Tensor, p: float | Tensor) -> Tensor:
    """u with <u, x> = |x|_p, of norm 1 in the dual of the p-norm; 0 for x = 0."""
    size = x.abs()
    if not isinstance(p, Tensor) and p == math.inf:
        return F.one_hot(size.argmax(), len(x)).to(x) * x.sign()
    largest = size.max()
    direction = x.sign() * (size / torch.where(largest > 0, largest, 1.0)) ** (p - 1)
    dual = p_norm(direction, conjugate(p))
    return direction / torch.where(dual > 0, dual, 1.0)
