"""ln |det(I + dg/dx)| of a contraction g: exact, or estimated from products with its Jacobian.

With J = dg/dx and Lip(g) < 1, ln det(I + J) = sum_k (-1)^(k+1) tr(J^k) / k, and tr(J^k) = E v' J^k v
for probes v of independent signs. All products v' J^k share one forward graph of g: a term costs
one backward pass with respect to x. The gradient is that of E v' (sum_k (-1)^k J^k) J v with the
left factor held fixed (the Neumann series), so that one product more is all that is differentiated
through, whatever the number of terms. R. Chen et al., "Residual Flows for Invertible Generative
Modeling", 2019, arXiv:1906.02735.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .known_gradient import GradientOf, with_gradient_now

METHODS = ("exact", "series", "unbiased")


class Estimate(NamedTuple):
    """g(x) and the log-det (n,), both differentiable, with the estimates of which the log-det is
    the mean, one a probe: `draws` (n_probes, n), without a gradient.
    """

    output: Tensor
    log_det: Tensor
    draws: Tensor

    @property
    def standard_error(self) -> Tensor:
        """Of the log-det as an estimate, (n,): nan for a single draw, which says nothing of it."""
        n = self.draws.shape[0]
        if n < 2:
            return torch.full_like(self.draws[0], math.nan)
        return self.draws.std(0) / math.sqrt(n)


@dataclass(frozen=True)
class LogDetEstimator:
    """How ln |det(I + dg/dx)| is computed.

    Args:
        method: "exact": the whole Jacobian, D products in one pass over D copies of x, and its
            determinant. "series": the first `n_terms` of the power series: biased, by at most
            D L^(n+1) / ((n+1) (1-L)) for Lip(g) = L and n terms. "unbiased": `n_terms` exact terms,
            then as many more as a coin allows (Russian roulette), each divided by the probability
            that it is reached.
        n_terms: see `method`.
        n_probes: independent estimates, of which the mean is taken.
        stop: "unbiased" only: a term is followed by no other with this probability. The variance is
            finite while L^2 < 1 - stop. None: min(1/2, 1 - L), for which it is.
        gradient_in_forward: compute the gradient in the forward pass and keep that alone, instead
            of the graph of a product. Only for losses that weigh all samples of a batch alike, a
            sum or a mean: any other is refused in the backward pass.

    The gradient can be taken once, but for "exact"; differentiating it again raises a RuntimeError.
    """

    method: str = "unbiased"
    n_terms: int = 4
    n_probes: int = 1
    stop: float | None = None
    gradient_in_forward: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"log_det: expected one of {', '.join(METHODS)}, got {self.method!r}")
        for name, least in (("n_terms", 1), ("n_probes", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if self.stop is not None and not 0 < self.stop < 1:
            raise ValueError(f"stop: expected a probability in (0, 1), got {self.stop}")

    @torch.compiler.disable(reason="it differentiates g inside the forward pass")
    def __call__(
        self,
        g: Callable[..., Tensor],
        x: Tensor,
        context: Tensor | None = None,
        *,
        lipschitz: float,
        generator: torch.Generator | None = None,
    ) -> Estimate:
        """Of g, each sample of which depends on its own x (n, ...) and context alone. A g with a
        `linearize` as that of `nn.LipschitzMLP` is spared a backward pass a term.

        Probes, and the numbers of terms, are drawn from `generator`, else from torch's own. With a
        generator on a GPU "unbiased" waits for the device once.

        Raises:
            ValueError: g(x) has another shape than x; lipschitz is outside (0, 1);
                `gradient_in_forward` for a g that is no module.
            TypeError: x is not of floating-point numbers.
        """
        _check(x, lipschitz)
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                context = None if context is None else context.clone()
                return self(g, x.clone(), context, lipschitz=lipschitz, generator=generator)
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            leaf = x if differentiable and x.requires_grad else x.detach().requires_grad_()
            if self.method == "exact":
                estimate = _exact(g, leaf, context, differentiable)
            else:
                weights = self._weights(lipschitz, generator)
                estimate = self._from_products(g, leaf, context, weights, generator, differentiable)
        return estimate if differentiable else Estimate(*(part.detach() for part in estimate))

    def in_words(self) -> str:
        """For tables: the method and what its numbers are."""
        if self.method == "exact":
            return "exact"
        probes = f"{self.n_probes} probe{'s' * (self.n_probes > 1)}"
        if self.method == "series":
            return f"power series cut after {self.n_terms} terms (biased), {probes}"
        return f"unbiased, {self.n_terms} terms and Russian roulette, {probes}"

    def _weights(self, lipschitz: float, generator: torch.Generator | None) -> list[list[float]]:
        """[term][probe]: 1, or 0 where the roulette has stopped, or 1 / P(the term is reached)."""
        weights = [[1.0] * self.n_probes for _ in range(self.n_terms)]
        if self.method == "series":
            return weights
        going_on = 1 - (min(0.5, 1 - lipschitz) if self.stop is None else self.stop)
        device = "cpu" if generator is None else generator.device
        uniforms = torch.rand(
            self.n_probes, generator=generator, device=device, dtype=torch.float64
        )
        further = [int(math.log(1 - u) / math.log(going_on)) for u in uniforms.tolist()]
        for extra in range(1, max(further) + 1):
            weights.append([going_on**-extra if extra <= count else 0.0 for count in further])
        return weights

    def _from_products(
        self,
        g: Callable[..., Tensor],
        x: Tensor,
        context: Tensor | None,
        weights: list[list[float]],
        generator: torch.Generator | None,
        differentiable: bool,
    ) -> Estimate:
        n, probes = x.shape[0], self.n_probes
        copies = x if probes == 1 else x.repeat(probes, *[1] * (x.ndim - 1))
        given = context
        if context is not None and probes > 1:
            given = context.repeat(probes, *[1] * (context.ndim - 1))
        with torch.set_grad_enabled(differentiable or not hasattr(g, "linearize")):
            output, product = _linearized(g, copies, given)
        v = _signs(copies, generator)
        row = v  # v' J^k
        neumann = torch.zeros_like(v)
        draws = torch.zeros(probes * n, dtype=_accumulate(x.dtype), device=x.device)
        for k, per_probe in enumerate(weights, 1):
            weight = (-1) ** (k + 1) * _as_rows(per_probe, n, x)
            neumann = neumann + (weight.view(-1, *[1] * (x.ndim - 1)) * row).to(x.dtype)
            row = product(row)
            draws = draws + weight / k * _row_dot(row, v)
            if is_spent(row):
                break
        draws = draws.view(probes, n)
        log_det = draws.mean(0)
        if differentiable:
            (last,) = torch.autograd.grad(output, copies, neumann, create_graph=True)
            surrogate = _row_dot(last, v).view(probes, n).mean(0)
            if self.gradient_in_forward:
                log_det = with_gradient_now(log_det, surrogate, g, x, context)
            else:
                log_det = GradientOf.apply(log_det, surrogate)
        return Estimate(output[:n], log_det, draws)


def _exact(
    g: Callable[..., Tensor], x: Tensor, context: Tensor | None, differentiable: bool
) -> Estimate:
    n, dims = x.shape[0], math.prod(x.shape[1:])
    copies = x.repeat_interleave(dims, 0)
    if context is not None:
        context = context.repeat_interleave(dims, 0)
    eye = torch.eye(dims, dtype=x.dtype, device=x.device)
    units = eye.expand(n, dims, dims).reshape(copies.shape)
    if differentiable or not hasattr(g, "linearize"):
        output = _call(g, copies, context)
        (rows,) = torch.autograd.grad(output, copies, units, create_graph=differentiable)
    else:
        with torch.no_grad():
            output, product = g.linearize(copies, context)
            rows = product(units)
    jacobian = rows.reshape(n, dims, dims).to(_accumulate(x.dtype))
    log_det = torch.linalg.slogdet(eye.to(jacobian.dtype) + jacobian)[1]
    return Estimate(output.view(n, dims, *x.shape[1:])[:, 0], log_det, log_det.detach()[None])


def _call(g: Callable[..., Tensor], x: Tensor, context: Tensor | None) -> Tensor:
    output = g(x) if context is None else g(x, context)
    if output.shape != x.shape:
        raise ValueError(
            f"g: expected g(x) of the shape of x {tuple(x.shape)}, got {tuple(output.shape)}"
        )
    return output


def _linearized(
    g: Callable[..., Tensor], x: Tensor, context: Tensor | None
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """g(x), and v -> v' dg/dx: g's own `linearize`, or one backward pass for each v."""
    if hasattr(g, "linearize"):
        return g.linearize(x, context)
    output = _call(g, x, context)

    def product(v: Tensor) -> Tensor:
        return torch.autograd.grad(output, x, v, retain_graph=True)[0]

    return output, product


def is_spent(v: Tensor) -> bool:
    """Whether what is left of a power series, from v' J^k on, is nothing beside any rounding.

    On a CPU alone: where J contracts by far more than its bound says, the late terms are subnormal
    numbers, whose products take ten times as long, to add nothing.
    """
    if v.device.type != "cpu" or v.dtype == torch.float16 or torch.compiler.is_compiling():
        return False
    if torch._C._are_functorch_transforms_active():
        return False
    kind = torch.finfo(v.dtype)
    return v.numel() == 0 or v.detach().abs().amax().item() < kind.tiny / kind.eps


def _check(x: Tensor, lipschitz: float) -> None:
    if not x.is_floating_point():
        raise TypeError(f"x: expected a floating-point tensor, got {x.dtype}")
    if x.ndim < 2:
        raise ValueError(f"x: expected (batch, ...), got {tuple(x.shape)}")
    if not 0 < lipschitz < 1:
        raise ValueError(f"lipschitz: expected a number in (0, 1), got {lipschitz}")


def _signs(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """+1 or -1: of all probes with unit variance these make v' J v vary least."""
    device = x.device if generator is None else generator.device
    bits = torch.randint(0, 2, x.shape, generator=generator, device=device, dtype=torch.int8)
    return (2 * bits - 1).to(x.device, x.dtype)


def _accumulate(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _row_dot(a: Tensor, b: Tensor) -> Tensor:
    accumulate = _accumulate(a.dtype)
    return (a.to(accumulate) * b.to(accumulate)).flatten(1).sum(1)


def _as_rows(per_probe: list[float], n: int, x: Tensor) -> Tensor:
    """(probes * n,): each probe's weight for each of its samples."""
    weights = torch.tensor(per_probe, dtype=_accumulate(x.dtype))
    return weights.to(x.device, non_blocking=True).repeat_interleave(n)
