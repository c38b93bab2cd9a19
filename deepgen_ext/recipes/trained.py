"""What is done with a finished run: samples drawn, held-out data scored."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from rich import box
from rich.table import Table
from torch import Tensor

from deepgen_ext.objectives import quantize
from deepgen_ext.recipes import RecipeError, data
from deepgen_ext.recipes.metrics import evaluate, reconstruct
from deepgen_ext.recipes.pictures import save_density, save_grid, save_reconstruction
from deepgen_ext.recipes.run import load_model

__all__ = ["draw", "evaluate_run", "sample_run"]


@torch.no_grad()
def draw(
    model: torch.nn.Module, n: int, *, temperature: float, seed: int, chunk: int = 256
) -> Tensor:
    """``n`` samples on the CPU, drawn ``chunk`` at a time to bound the memory; the same seed gives
    the same samples.
    """
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    parts = [
        model.sample(min(chunk, n - start), temperature=temperature, generator=generator).cpu()
        for start in range(0, n, chunk)
    ]
    return torch.cat(parts)


def sample_run(run: Path, *, n: int, temperature: float, seed: int, out: Path, device: str) -> None:
    """Samples of the run's model as a picture (.png), or as numbers (.npy: uint8 levels, or float32
    vectors).
    """
    model, _, _, shape, n_levels = load_model(run, device)
    samples = draw(model, n, temperature=temperature, seed=seed)
    if out.suffix.lower() == ".npy":
        values = samples if n_levels is None else quantize(samples, n_levels)
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            np.save(out, values.numpy())
        except OSError as error:
            raise RecipeError(f"{out}: cannot be written: {error.strerror or error}") from None
    elif n_levels is not None:
        save_grid(quantize(samples, n_levels), n_levels, out)
    elif shape == (2,):
        save_density(model, samples, out)
    else:
        raise RecipeError(
            f"vectors of {shape[0]} numbers cannot be drawn: give --out a name that ends in .npy"
        )


def evaluate_run(
    run: Path, *, data_name: str | None, split: str, seed: int, picture: Path | None, device: str
) -> Table:
    """Score the run's model on ``split`` of its own or other data, and measure the error of
    inverse(forward(x)).
    """
    model, settings, step, shape, n_levels = load_model(run, device)
    dataset = data.load(
        data_name or settings.data,
        size=settings.size if data_name in (None, settings.data) else None,
    )
    if dataset.shape != shape or dataset.n_levels != n_levels:
        raise RecipeError(
            f"{run} was trained on samples of shape {shape} with {n_levels or 'real'} levels; "
            f"'{dataset.name}' has {dataset.shape} with {dataset.n_levels or 'real'}"
        )
    samples = dataset.test if split == "test" else dataset.train
    result = evaluate(model, samples, n_levels=n_levels, seed=seed)
    some = samples[:256]
    x, rebuilt = reconstruct(model, some, n_levels=n_levels, seed=seed)
    error = (rebuilt - x).abs()
    if picture is not None:
        if n_levels is None:
            raise RecipeError("--picture shows images, and these data are vectors")
        save_reconstruction(some[:10], quantize(rebuilt[:10], n_levels), n_levels, picture)

    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("model", f"{settings.model}, step {step}")
    table.add_row(
        "data", f"{dataset.name}, {split} split, {result.n} samples of {'x'.join(map(str, shape))}"
    )
    spread = (
        ""
        if math.isnan(result.standard_error)
        else f" +- {result.standard_error:.4f} (standard error)"
    )
    table.add_row(result.unit, f"{result.mean:.4f}{spread}")
    table.add_row("dequantisation", result.dequantisation)
    table.add_row(
        "reconstruction",
        f"|inverse(forward(x)) - x|: mean {error.mean():.1e}, largest {error.max():.1e}",
    )
    return table
