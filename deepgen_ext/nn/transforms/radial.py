"""Radial flows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ... import ops
from ...ops.flow_chain import check_chain, softplus
from ..context import check_context
from .planar import check_sizes, context_projection, described
from .transform import Transform


class Radial(Transform):
    """z <- z + beta h (z - center), h = 1 / (alpha + |z - center|), `length` times.

    Rezende & Mohamed, "Variational Inference with Normalizing Flows", 2015; see
    `deepgen_ext.ops.radial_chain`. z is (n, features). alpha = log(1 + e^raw_alpha) and beta =
    -alpha + log(1 + e^raw_beta) keep every step invertible; its inverse is the root of a quadratic
    equation for the radius.

    Args:
        features: D.
        length: K, the number of steps.
        context_features: 0: the steps are the same for every sample. Otherwise center, raw_alpha
            and raw_beta are those plus a linear map of the context (n, context_features), as in
            the posterior of a variational autoencoder, whose encoder gives the context.

    Raises:
        ValueError: features or length below 1; on use, a shape or a context that does not fit.
    """

    def __init__(self, features: int, length: int = 1, context_features: int = 0) -> None:
        super().__init__()
        check_sizes(features, length, context_features)
        self.features, self.length, self.context_features = features, length, context_features
        self.center = nn.Parameter(torch.randn(length, features))
        self.raw_alpha = nn.Parameter(torch.zeros(length))
        self.raw_beta = nn.Parameter(torch.randn(length) * 0.1)
        self.projection = context_projection(context_features, length * (features + 2))

    def parameters_of(self, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """center (K, D), raw_alpha and raw_beta (K,); with a context (n, K, D) and (n, K)."""
        check_context(context, self.context_features)
        if context is None:
            return self.center, self.raw_alpha, self.raw_beta
        sizes = (self.features, 1, 1)
        moved = self.projection(context).unflatten(1, (self.length, -1)).split(sizes, -1)
        return (
            self.center + moved[0],
            self.raw_alpha + moved[1].squeeze(-1),
            self.raw_beta + moved[2].squeeze(-1),
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return ops.radial_chain(x, *self.parameters_of(context))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return radial_inverse(y, *self.parameters_of(context))

    def extra_repr(self) -> str:
        return described(self)


def radial_inverse(
    y: Tensor, center: Tensor, raw_alpha: Tensor, raw_beta: Tensor
) -> tuple[Tensor, Tensor]:
    """The inverse of `deepgen_ext.ops.radial_chain`, of the same arguments: (z, log_det).

    With q = alpha + beta the radius R = r (r + q) / (r + alpha) that came out has r^2 + (q - R) r =
    alpha R. Computed in float64 and rounded to y's dtype at the end. Differentiable in all four,
    twice. log_det is that of the inverse.
    """
    y, given = check_chain(y, {"center": center}, {"raw_alpha": raw_alpha, "raw_beta": raw_beta})
    center, raw_alpha, raw_beta = (t.double() for t in given.values())
    alphas, reaches = softplus(raw_alpha), softplus(raw_beta)
    z = y.double()
    log_det = z.new_zeros(z.shape[0])
    for k in reversed(range(alphas.shape[-1])):
        alpha, reach = alphas[..., k, None], reaches[..., k, None]
        offset = z - center[..., k, :]
        size = torch.linalg.vector_norm(offset, dim=-1, keepdim=True)
        half = (size - reach) / 2
        product = alpha * size
        # half +- root: whichever has no cancellation; the other follows from their product. The
        # gradient of the root is infinite only where alpha R = 0 and half = 0.
        root = torch.sqrt((half * half + product).clamp_min(torch.finfo(z.dtype).tiny))
        r = torch.where(half > 0, half + root, product / (root + half.abs()))
        near = alpha / (r + alpha)
        across = (r + reach) / (r + alpha)
        along = r / (r + alpha) + near * across
        log_det = log_det - ((z.shape[1] - 1) * across.log() + along.log()).squeeze(-1)
        z = center[..., k, :] + offset / across
    return z.to(y.dtype), log_det.to(given["center"].dtype)
