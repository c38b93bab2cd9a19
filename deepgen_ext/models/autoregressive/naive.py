"""Sampling as the factorisation says: the whole network once for every pixel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def embed(levels: Tensor, n_levels: int | None, dtype: torch.dtype) -> Tensor:
    """What a network sees of levels: x = 2 levels / (n_levels - 1) - 1, in [-1, 1]. None: `levels`
    are real numbers, which it sees as they are.
    """
    if n_levels is None:
        return levels.to(dtype)
    return 2 * levels.to(dtype) / (n_levels - 1) - 1


def steps_per_pixel(distribution: Any) -> int:
    """How many groups of channels are drawn one after the other, each given those before."""
    return getattr(distribution, "groups_in_order", 1)


@torch.no_grad()
def naive_sample(
    network: nn.Module,
    distribution: Any,
    uniforms: Tensor,
    *,
    condition: Tensor | None = None,
    temperature: float = 1.0,
    levels: Tensor | None = None,
    known: Tensor | None = None,
    on_row: Callable[[int], Any] | None = None,
) -> Tensor:
    """Levels drawn in raster order, a full pass of `network` for each pixel and channel group.

    The specification that the fast samplers are held to: `jacobi_sample` and `nn.AncestralSampler`
    return the same levels for the same uniforms.

    Args:
        network: called with x (n, C, H, W) and the condition, returns the distribution's parameters
            (n, P, H, W); those at a pixel depend on pixels before it alone.
        distribution: `nn.Categorical` or `nn.DiscretizedLogisticMixture`; or `nn.DiagonalGaussian`,
            of real numbers in place of levels and standard normal ones in place of uniforms.
        uniforms: (n, C, H, W) in [0, 1), one for each level.
        condition: passed on to the network.
        temperature: of the draw.
        levels: (n, C, H, W), read where `known` (bool, likewise) is true: these are not drawn.
        on_row: called with the number of each row that is done.

    Returns:
        levels, int64, (n, C, H, W); real numbers have the network's dtype.
    """
    n, channels, height, width = uniforms.shape
    dtype = next(network.parameters()).dtype
    drawn, known = starting_point(
        uniforms, levels, known, dtype if distribution.n_levels is None else torch.int64
    )
    steps = steps_per_pixel(distribution)
    size = channels // steps
    for i in range(height):
        for j in range(width):
            here = (slice(None), slice(None), slice(i, i + 1), slice(j, j + 1))
            for step in range(steps):
                group = (slice(None), slice(step * size, (step + 1) * size), *here[2:])
                if known[group].all():
                    continue
                parameters = network(embed(drawn, distribution.n_levels, dtype), condition)
                new = distribution.draw(parameters[here], uniforms[here], temperature)
                new = new[:, group[1]]
                drawn[group] = torch.where(known[group], drawn[group], new)
        if on_row is not None:
            on_row(i)
    return drawn


def starting_point(
    uniforms: Tensor,
    levels: Tensor | None,
    known: Tensor | None,
    dtype: torch.dtype = torch.int64,
) -> tuple[Tensor, Tensor]:
    """Levels, zero where they are not known, in memory of their own; and that mask."""
    if levels is None or known is None:
        zeros = torch.zeros(uniforms.shape, dtype=dtype, device=uniforms.device)
        return zeros, zeros.bool()
    return torch.where(known, levels.to(dtype), 0), known
