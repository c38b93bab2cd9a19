"""Two-dimensional densities to sample from: the usual pictures of the literature on flows.

Each function returns ``(n, 2)`` float32 points, scaled so that nearly all of them lie in [-4, 4]^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from deepgen_ext.recipes import require

__all__ = ["DENSITIES", "sample_density"]


def _two_moons(n: int, generator: torch.Generator) -> Tensor:
    datasets = require("sklearn.datasets", "the density 'two-moons'")
    points, _ = datasets.make_moons(n, noise=0.08, random_state=_state(generator))
    return 2.0 * (torch.from_numpy(points) - torch.tensor([0.5, 0.25]))


def _circles(n: int, generator: torch.Generator) -> Tensor:
    datasets = require("sklearn.datasets", "the density 'circles'")
    points, _ = datasets.make_circles(n, noise=0.06, factor=0.5, random_state=_state(generator))
    return 3.0 * torch.from_numpy(points)


def _checkerboard(n: int, generator: torch.Generator) -> Tensor:
    """Uniform on the 8 of 16 squares of side 2 whose indices have an even sum."""
    column = torch.randint(0, 4, (n,), generator=generator)
    row = 2 * torch.randint(0, 2, (n,), generator=generator) + column % 2
    corner = torch.stack([column, row], dim=1)
    return 2.0 * (corner + torch.rand(n, 2, generator=generator)) - 4.0


def _eight_gaussians(n: int, generator: torch.Generator) -> Tensor:
    """An even mixture of N(3 (cos a, sin a), 0.3^2 I) over a = 0, pi/4, ..., 7 pi/4."""
    angle = torch.randint(0, 8, (n,), generator=generator) * (math.pi / 4)
    centre = 3.0 * torch.stack([angle.cos(), angle.sin()], dim=1)
    return centre + 0.3 * torch.randn(n, 2, generator=generator)


def _spirals(n: int, generator: torch.Generator) -> Tensor:
    """Two arms r = 3 t, angle = 3 pi t with t = sqrt(u), so that the arms are evenly covered, and
    noise of 0.1.
    """
    t = torch.rand(n, generator=generator).sqrt()
    angle = 3.0 * math.pi * t
    sign = 1.0 - 2.0 * torch.randint(0, 2, (n,), generator=generator)
    arm = torch.stack([angle.cos(), angle.sin()], dim=1) * (3.0 * t * sign)[:, None]
    return arm + 0.1 * torch.randn(n, 2, generator=generator)


def _state(generator: torch.Generator) -> int:
    return int(torch.randint(0, 2**31 - 1, (), generator=generator))


DENSITIES: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "two-moons": _two_moons,
    "circles": _circles,
    "checkerboard": _checkerboard,
    "8-gaussians": _eight_gaussians,
    "spirals": _spirals,
}


def sample_density(name: str, n: int, seed: int) -> Tensor:
    """``(n, 2)`` float32 points of the density ``name``; the same ``seed`` gives the same
    points.
    """
    points = DENSITIES[name](n, torch.Generator().manual_seed(seed))
    return points.to(torch.float32).contiguous()
