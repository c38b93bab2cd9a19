"""The largest singular values of many matrices by power iteration, and the matrices scaled by them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deepgen_ext._extension import _C, library


def power_iteration(
    weights: Sequence[Tensor],
    us: Sequence[Tensor],
    vs: Sequence[Tensor],
    n_iterations: int = 1,
    eps: float = 1e-12,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    r"""Computes u <- W v / |W v|, v <- W'u / |W'u| n_iterations times, then sigma = u'Wv, of each W.

    All matrices go in one call, on the GPU one launch for each phase of a step, and a step reads W
    once: W_i v and (W_i v) W_i row by row, with sigma = |W'u| where torch reads W again. Norms
    below eps count as eps, as in `torch.nn.functional.normalize`.

    Args:
        weights: matrices (out, in), or tensors (out, ...) whose rows are flattened; float32,
            float64, bfloat16 or float16, all of one dtype and device. Transposed and channels-last
            weights are read as they lie.
        us: (out,) each; read only where n_iterations is 0, or W v = 0. Of the dtype of the weights,
            for half ones float32: all sums are in it.
        vs: (in,) each, likewise.
        n_iterations: 0 or more; 0 gives sigma of the u and v given.
        eps: 0 or more.

    Returns:
        (us, vs, sigmas): new tensors, nothing is overwritten; sigmas is (len(weights),), of the
        dtype of us. sigma never
        exceeds the true norm but by rounding. Where W v = 0, of a zero matrix above all, sigma is 0
        and u and v are those given, so that the iteration goes on once W is no longer zero. In
        float32 norms of W between 1e-15 and 1e15 are in reach: v' = W'Wv is kept before it is
        normalised.

    sigmas are differentiable in the weights, with u and v held fixed (d sigma / dW = u v'), any
    number of times, not through torch.func. Deterministic, for any number of threads.

    Raises:
        ValueError: no weights, lists of other lengths, another shape or device than expected, an
            empty matrix, n_iterations or eps below 0.
        TypeError: weights that are not floating-point, or dtypes that do not fit.

    Miyato et al. 2018, arXiv:1802.05957.
    """
    if len(weights) == 0:  # torch needs a tensor to find the kernel by
        raise ValueError("weights must hold at least one matrix")
    results = library.power_iteration(weights, us, vs, n_iterations, eps)
    n = len(weights)
    return results[:n], results[n : 2 * n], results[-1]


def spectral_normalize(
    weights: Sequence[Tensor],
    us: Sequence[Tensor],
    vs: Sequence[Tensor],
    n_iterations: int = 1,
    eps: float = 1e-12,
    coefficient: float | None = None,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
    r"""Power iteration, then W / sigma; or with a coefficient c, W c / sigma where sigma > c, else W.

    A weight is scaled while the cache still holds what the iteration has read of it. Its gradient,
    f G - f <G, W> / sigma u v' with f the factor, takes two passes.

    Args:
        weights, us, vs, n_iterations, eps: as for `power_iteration`.
        coefficient: above 0. None: divide whatever sigma is, below 0 too, as it can be of a u and v
            that do not belong to the weight (n_iterations = 0).

    Returns:
        (scaled, us, vs, sigmas). Where sigma = 0 the weight comes back as it is; a NaN in a weight
        makes all of it NaN, and no other.

    Differentiable in the weights with u and v held fixed, through sigma too, twice and more (from
    the second time on in plain torch operations), not through torch.func. Deterministic.

    Raises:
        ValueError, TypeError: as `power_iteration`; a coefficient of 0 or less, or not finite.
    """
    if len(weights) == 0:
        raise ValueError("weights must hold at least one matrix")
    results = library.spectral_normalize(weights, us, vs, n_iterations, eps, coefficient)
    n = len(weights)
    return results[:n], results[n : 2 * n], results[2 * n : 3 * n], results[-1]


def scaled_weight_gradients(
    grads: Sequence[Tensor],
    grad_sigmas: Tensor,
    weights: Sequence[Tensor],
    us: Sequence[Tensor],
    vs: Sequence[Tensor],
    sigmas: Tensor,
    coefficient: float | None = None,
) -> list[Tensor]:
    """The gradients of the weights of `spectral_normalize`, for a scaled weight that was kept."""
    return library.spectral_normalize_backward(
        grads, grad_sigmas, weights, us, vs, sigmas, coefficient
    )


def known_scaled_weight(
    weight: Tensor,
    scaled: Tensor,
    u: Tensor,
    v: Tensor,
    sigma: Tensor,
    coefficient: float | None = None,
) -> Tensor:
    """What `spectral_normalize` made of one weight under no_grad, with the graph it would have had.

    sigma is (1,). Computes nothing; for eager mode, where a call that is an op costs too much.
    """
    if not (torch.is_grad_enabled() and weight.requires_grad):
        return scaled
    return _C.known_scaled_weight(weight, scaled, u, v, sigma, coefficient or 0.0)


def _vectors(us, vs, weights):
    return [
        *map(torch.empty_like, us),
        *map(torch.empty_like, vs),
        us[0].new_empty(len(weights)),
    ]


@torch.library.register_fake("deepgen_ext::power_iteration")
def _(weights, us, vs, n_iterations, eps):
    return _vectors(us, vs, weights)


@torch.library.register_fake("deepgen_ext::spectral_normalize")
def _(weights, us, vs, n_iterations, eps, coefficient):
    return [*map(torch.empty_like, weights), *_vectors(us, vs, weights)]


@torch.library.register_fake("deepgen_ext::spectral_normalize_backward")
def _(grads, grad_sigmas, weights, us, vs, sigmas, coefficient):
    return [torch.empty_like(weight) for weight in weights]


def _save_for_double_backward(ctx, inputs, output) -> None:
    grads, grad_sigmas, weights, us, vs, sigmas, ctx.coefficient = inputs
    ctx.save_for_backward(grad_sigmas, sigmas, *grads, *weights, *us, *vs)


def _double_backward(ctx, cotangents):
    """Of f G + (g - f <G, W> / sigma) u v' with f = c / sigma, or of G + g u v' where f is 1."""
    grad_sigmas, sigmas, *rest = ctx.saved_tensors
    n, c = len(sigmas), ctx.coefficient
    grads, weights, us, vs = (rest[i * n : (i + 1) * n] for i in range(4))
    depends = sigmas != 0 if c is None else ~(sigmas <= c)  # as csrc/power_iteration.h: NaN does
    sigma = torch.where(depends, sigmas, 1.0)
    factors = torch.where(depends, (1.0 if c is None else c) / sigma, 1.0)
    slopes = torch.where(depends, factors / sigma, 0.0)  # -df / dsigma
    by_grads, by_grad_sigmas, by_weights, by_sigmas = [], [], [], []
    for i in range(n):
        a, grad, weight = (t.to(sigmas.dtype) for t in (cotangents[i], grads[i], weights[i]))
        along = us[i] @ a.flatten(1) @ vs[i]
        inner = (grad * weight).sum()
        by_grads.append((factors[i] * a - slopes[i] * along * weight).to(grads[i].dtype))
        by_grad_sigmas.append(along)
        by_weights.append((-slopes[i] * along * grad).to(weights[i].dtype))
        by_sigmas.append(slopes[i] * (2 * inner * along / sigma[i] - (a * grad).sum()))
    none = [None] * n
    return (
        by_grads,
        torch.stack(by_grad_sigmas),
        by_weights,
        none,
        none,
        torch.stack(by_sigmas),
        None,
    )


torch.library.register_autograd(
    "deepgen_ext::spectral_normalize_backward",
    _double_backward,
    setup_context=_save_for_double_backward,
)
