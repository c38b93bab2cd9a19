"""Pictures of a run: grids of samples, inputs above their reconstructions, 2-d densities."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepgen_ext.recipes import RecipeError, require

__all__ = ["save_density", "save_figure", "save_grid", "save_reconstruction", "to_bytes"]

_GAP = 1  # pixels between tiles, before enlarging
_PAPER = 255


def to_bytes(levels: Tensor, n_levels: int) -> Tensor:
    """Levels 0 ... n_levels - 1 spread over 0 ... 255."""
    return (
        (levels.detach().cpu().double() * (255.0 / (n_levels - 1)))
        .round()
        .clamp(0, 255)
        .to(torch.uint8)
    )


def _tile(pixels: Tensor, columns: int) -> Tensor:
    """``(n, C, H, W)`` side by side on white paper, row by row: ``(C, rows * (H + gap) + gap,
    ...)``.
    """
    n, channels, height, width = pixels.shape
    rows = math.ceil(n / columns)
    paper = torch.full(
        (channels, rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP),
        _PAPER,
        dtype=torch.uint8,
    )
    for index in range(n):
        top = _GAP + (index // columns) * (height + _GAP)
        left = _GAP + (index % columns) * (width + _GAP)
        paper[:, top : top + height, left : left + width] = pixels[index]
    return paper


def _save(paper: Tensor, path: Path, min_width: int) -> None:
    """Write a PNG, enlarged by a whole factor so that every pixel of a small image stays a sharp
    square.
    """
    image = require("PIL.Image", "writing a picture")
    channels, _, width = paper.shape
    if channels not in (1, 3):
        raise RecipeError(f"a picture has 1 or 3 channels, these samples have {channels}")
    factor = max(1, round(min_width / width))
    paper = paper.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)
    pixels = paper[0].numpy() if channels == 1 else paper.permute(1, 2, 0).contiguous().numpy()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(pixels).save(path, format="PNG")
    except OSError as error:
        raise RecipeError(f"{path}: cannot be written: {error.strerror or error}") from None


def save_grid(
    levels: Tensor, n_levels: int, path: Path, *, columns: int | None = None, min_width: int = 640
) -> None:
    """A grid of images ``(n, C, H, W)`` given as levels, as square as ``n`` allows."""
    columns = columns or max(1, math.ceil(math.sqrt(len(levels))))
    _save(_tile(to_bytes(levels, n_levels), columns), path, min_width)


def save_reconstruction(
    inputs: Tensor, rebuilt: Tensor, n_levels: int, path: Path, *, min_width: int = 640
) -> None:
    """Two rows of levels ``(n, C, H, W)``: the inputs, and below each what the model made of it."""
    pair = torch.cat([to_bytes(inputs, n_levels), to_bytes(rebuilt, n_levels)])
    _save(_tile(pair, len(inputs)), path, min_width)


@torch.no_grad()
def save_density(
    model: Any,
    samples: Tensor,
    path: Path,
    *,
    cells: int = 200,
    target: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Samples ``(n, 2)`` of ``model`` beside a heat map of its density exp(log_prob).

    With ``target``, the log-density it was fitted to, a third map: of both on [-6, 6]^2 and one
    scale of colours, which ends at the target's peak.
    """
    require("matplotlib", "drawing a density").use("Agg")
    pyplot = require("matplotlib.pyplot", "drawing a density")
    parameter = next(model.parameters())
    points = samples.detach().cpu().float()
    points = points[torch.isfinite(points).all(dim=1)]
    centre, radius = (torch.zeros(2), 6.0) if target is not None else _middle(points)
    axis = torch.linspace(-radius, radius, cells)
    grid = torch.cartesian_prod(axis, axis) + centre
    log_prob = model.log_prob(grid.to(parameter.device, parameter.dtype)).float().cpu()
    maps = {"density of the model": log_prob}
    brightest = None
    if target is not None:
        maps["density of the target"] = target(grid)
        brightest = float(target(grid).max().exp())
    left, bottom = (centre - radius).tolist()
    box = (left, left + 2 * radius, bottom, bottom + 2 * radius)

    columns = 1 + len(maps)
    figure, (scatter, *heats) = pyplot.subplots(
        1, columns, figsize=(4.5 * columns + 0.6, 4.8), layout="constrained"
    )
    scatter.scatter(*points.T.numpy(), s=2, linewidths=0)
    scatter.set(title=f"{len(points):,} samples", xlim=box[:2], ylim=box[2:], aspect="equal")
    scatter.set(xlabel="$x_1$", ylabel="$x_2$")
    for heat, (title, values) in zip(heats, maps.items(), strict=True):
        # rows are the second coordinate
        density = values.exp().nan_to_num(0.0, 0.0, 0.0).view(cells, cells).T
        image = heat.imshow(
            density.numpy(),
            origin="lower",
            extent=box,
            cmap="magma",
            interpolation="nearest",
            vmin=None if brightest is None else 0.0,
            vmax=brightest,
        )
        heat.set(title=title, xlabel="$x_1$")
    figure.colorbar(image, ax=heats, shrink=0.85, pad=0.02)
    save_figure(figure, path)


def save_figure(figure: Any, path: Path) -> None:
    """Write a PNG of a figure of matplotlib, and close it."""
    pyplot = require("matplotlib.pyplot", "drawing a figure")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120, format="png")
    except OSError as error:
        raise RecipeError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        pyplot.close(figure)


def _middle(points: Tensor) -> tuple[Tensor, float]:
    """Centre and half the side of a square that holds nearly all of the points."""
    if not len(points):
        return torch.zeros(2), 4.0
    centre = points.median(dim=0).values
    reach = torch.quantile((points - centre).abs().amax(dim=1), 0.99).item()
    return centre, max(1e-3, 1.25 * reach)
