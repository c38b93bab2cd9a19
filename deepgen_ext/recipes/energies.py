"""The four energies of Rezende & Mohamed, "Variational Inference with Normalizing Flows", 2015.

A density is known as p(z) = exp(-U(z)) / Z, z in two dimensions, and a flow is fitted to it by the
reverse Kullback-Leibler divergence KL(q||p) = E_q[log q(z) + U(z)] + log Z, which needs no samples
of p. log Z comes from quadrature, so that the divergence itself is known, not only up to a constant.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from deepgen_ext.objectives import standard_normal_log_prob
from deepgen_ext.recipes import RecipeError

__all__ = [
    "ENERGIES",
    "divergences",
    "energy",
    "inverse_temperature",
    "leave_identity",
    "log_density",
    "log_normalizer",
    "reverse_kl",
    "sample_energy",
]

# Outside of this square the densities are below 1e-12 of their peak.
_HALF_WIDTH = 8.0
_WALL = 4.0


def _wave(z: Tensor) -> Tensor:
    """The second coordinate above sin(2 pi z1 / 4)."""
    return z[..., 1] - torch.sin(0.5 * math.pi * z[..., 0])


def _gaussian(x: Tensor, scale: float) -> Tensor:
    """log exp(-x^2 / (2 scale^2))."""
    return -0.5 * (x / scale).square()


def _wall(z: Tensor) -> Tensor:
    """0 for |z1| <= 4, and a parabola beyond: exp(-U2), exp(-U3), exp(-U4) as printed do not decay
    along z1, and their integrals are infinite.
    """
    return 0.5 * ((z[..., 0].abs() - _WALL).clamp_min(0.0) / 0.4).square()


def _u1(z: Tensor) -> Tensor:
    ring = 0.5 * ((torch.linalg.vector_norm(z, dim=-1) - 2.0) / 0.4).square()
    return ring - torch.logaddexp(_gaussian(z[..., 0] - 2, 0.6), _gaussian(z[..., 0] + 2, 0.6))


def _u2(z: Tensor) -> Tensor:
    return -_gaussian(_wave(z), 0.4) + _wall(z)


def _u3(z: Tensor) -> Tensor:
    dent = 3.0 * torch.exp(_gaussian(z[..., 0] - 1, 0.6))
    wave = _wave(z)
    return -torch.logaddexp(_gaussian(wave, 0.35), _gaussian(wave + dent, 0.35)) + _wall(z)


def _u4(z: Tensor) -> Tensor:
    drop = 3.0 * torch.sigmoid((z[..., 0] - 1) / 0.3)
    wave = _wave(z)
    return -torch.logaddexp(_gaussian(wave, 0.4), _gaussian(wave + drop, 0.35)) + _wall(z)


ENERGIES: dict[str, Callable[[Tensor], Tensor]] = {"u1": _u1, "u2": _u2, "u3": _u3, "u4": _u4}


def energy(name: str, z: Tensor) -> Tensor:
    """U(z) of z (..., 2): as in table 1 of the paper within |z1| <= 4, the part that it draws.

    Beyond, U2, U3 and U4 rise by ((|z1| - 4) / 0.4)^2 / 2: as printed they are no densities.
    """
    if z.shape[-1:] != (2,):
        raise ValueError(f"z: expected (..., 2), got {tuple(z.shape)}")
    return ENERGIES[name](z)


def log_density(name: str, z: Tensor) -> Tensor:
    """log p(z) of z (..., 2)."""
    return -energy(name, z) - log_normalizer(name)[0]


def reverse_kl(model: Any, name: str, latents: Tensor, beta: float | Tensor = 1.0) -> Tensor:
    """An estimate of KL(q||p) in nats from each of the ``latents`` (n, 2), drawn from N(0, I): (n,).

    q is the flow ``model`` (its ``inverse`` maps latents to z). ``beta`` tempers the energy: log
    q(z) + beta U(z) + log Z, a divergence where it is 1. Differentiable through the samples.
    """
    if tuple(model.latent_shapes) != ((2,),):
        raise RecipeError(f"the energy {name} is of 2 dimensions, the model of {model.shape}")
    z, log_det = model.inverse([latents])
    log_q = standard_normal_log_prob(latents) - log_det
    return log_q + beta * energy(name, z) + log_normalizer(name)[0]


@torch.no_grad()
def divergences(model: Any, name: str, draws: Tensor) -> tuple[float, float]:
    """KL(p||q) from ``draws`` of p (n, 2), and KL(q||p) from as many of q, in nats."""
    like = next(model.parameters())
    draws = draws.to(like)
    forward = (log_density(name, draws) - model.log_prob(draws)).double()
    latents = torch.randn(draws.shape, generator=torch.Generator().manual_seed(0)).to(like)
    return forward.mean().item(), reverse_kl(model, name, latents).double().mean().item()


def inverse_temperature(step: int, rise: int) -> float:
    """beta of a step: from 0.01 to 1 in ``rise`` steps, so that a flow finds all modes first.

    The paper's is min(1, 0.01 + step / 10000) of 500,000 steps.
    """
    return min(1.0, 0.01 + step / max(1, rise))


@torch.no_grad()
def leave_identity(model: nn.Module) -> None:
    """Draw the weight matrices that start at zero, M of them, from N(0, 4 / (M fan_in)).

    Where every net ends in zeros the flow starts as the identity and q as N(0, I). That is as
    symmetric as U1, and there no gradient tells left from right: short flows stay at a round
    Gaussian over the hole of U1's ring, 2.9 nats from p, for a thousand steps and more (one lobe
    alone is 0.7 from p). A random start leaves that plateau. Likelihoods need none of it: data are
    not as symmetric.
    """
    zeros = [p for p in model.parameters() if p.ndim == 2 and not p.any()]
    for weight in zeros:
        weight.normal_(std=2 / math.sqrt(weight.shape[1] * len(zeros)))


@functools.cache
def log_normalizer(name: str, cells: int = 1024) -> tuple[float, float]:
    """(log Z, its error) of U by the midpoint rule on cells x cells cells of [-8, 8]^2.

    The error is the difference to the same with half as many cells a side. In float64.
    """
    fine, coarse = _quadrature(name, cells), _quadrature(name, cells // 2)
    return fine, abs(fine - coarse)


def _axis(cells: int) -> Tensor:
    step = 2 * _HALF_WIDTH / cells
    return (torch.arange(cells, dtype=torch.float64) + 0.5) * step - _HALF_WIDTH


def _quadrature(name: str, cells: int) -> float:
    axis = _axis(cells)
    rows = [
        torch.logsumexp(-energy(name, torch.cartesian_prod(part, axis)), 0)
        for part in axis.split(128)  # 128 x cells points at a time
    ]
    area = (2 * _HALF_WIDTH / cells) ** 2
    return torch.logsumexp(torch.stack(rows), 0).item() + math.log(area)


@functools.cache
def _cell_probabilities(name: str, cells: int) -> Tensor:
    axis = _axis(cells)
    return torch.softmax(-energy(name, torch.cartesian_prod(axis, axis)), 0)


def sample_energy(name: str, n: int, generator: torch.Generator, cells: int = 800) -> Tensor:
    """``(n, 2)`` points of the density: a cell of side 0.02 by its probability, a point in it.

    Within a cell the density is taken as constant; it changes by a twentieth of its width, 0.35, at
    most.
    """
    probabilities = _cell_probabilities(name, cells)
    edges = probabilities.cumsum(0)
    uniform = torch.rand(n, generator=generator, dtype=torch.float64) * edges[-1]
    index = torch.searchsorted(edges, uniform).clamp_max(len(edges) - 1)
    corner = torch.stack((index // cells, index % cells), 1).double()
    inside = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    return (corner + inside) * (2 * _HALF_WIDTH / cells) - _HALF_WIDTH
