"""Images completed from their first rows by an autoregressive model."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from deepgen_ext.models import PixelModel
from deepgen_ext.recipes import RecipeError, data
from deepgen_ext.recipes.pictures import save_grid
from deepgen_ext.recipes.run import load_model
from deepgen_ext.recipes.trained import METHODS, draw, save_numbers

__all__ = ["complete_run"]


def complete_run(
    run: Path,
    *,
    rows: int | None,
    n: int,
    completions: int,
    temperature: float,
    seed: int,
    out: Path,
    device: str,
    data_name: str | None = None,
    method: str = METHODS[0],
    console: Console | None = None,
) -> Tensor:
    """The first ``n`` test images, each cut after ``rows`` rows (half when None) and completed.

    A picture has a row for each: the image, what was given of it on grey, the completions. A .npy
    holds the completions alone, (n, completions, C, H, W).
    """
    model, settings, _, shape, n_levels = load_model(run, device)
    if not isinstance(model, PixelModel):
        raise RecipeError(f"only an autoregressive model completes images, not {settings.model}")
    height = shape[1]
    rows = height // 2 if rows is None else rows
    if not 0 <= rows < height:
        raise RecipeError(f"--rows must be from 0 to {height - 1} for these images, got {rows}")
    if method not in METHODS:
        raise RecipeError(f"--method must be one of {', '.join(METHODS)}; got '{method}'")
    name = data_name or settings.data
    dataset = data.load(name, size=settings.size if name == settings.data else None)
    if dataset.shape != shape or dataset.n_levels != n_levels:
        raise RecipeError(
            f"{run} was trained on images of shape {shape} with {n_levels} levels; '{name}' has "
            f"{dataset.shape} with {dataset.n_levels or 'real'}"
        )
    images = dataset.test[:n]
    total = len(images) * completions
    given = images[:, :, :rows].repeat_interleave(completions, 0).to(device)
    drawn = draw(
        model,
        total,
        temperature=temperature,
        seed=seed,
        chunk=max(1, total),  # `given` belongs to all of them
        n_levels=n_levels,
        console=console,
        given=given,
        method=method,
    ).unflatten(0, (len(images), completions))
    if out.suffix.lower() == ".npy":
        save_numbers(drawn, out)
        return drawn
    cut = images.clone()
    cut[:, :, rows:] = n_levels // 2
    lines = torch.cat([torch.stack([images, cut], 1).to(drawn.dtype), drawn], 1)
    save_grid(lines.flatten(0, 1), n_levels, out, columns=lines.shape[1])
    return drawn
