"""What is done with a finished run: samples drawn, held-out data scored."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from deepgen_ext.models import (
    IWAE,
    AdversarialModel,
    CycleGAN,
    LatentModel,
    PixelModel,
    TopDownModel,
)
from deepgen_ext.objectives import quantize
from deepgen_ext.recipes import RecipeError, data
from deepgen_ext.recipes.adversarial_pictures import save_points
from deepgen_ext.recipes.classes import classes_asked
from deepgen_ext.recipes.energies import ENERGIES, divergences, log_density
from deepgen_ext.recipes.metrics import (
    Evaluation,
    evaluate,
    importance_estimate,
    kl_by_level,
    reconstruct,
)
from deepgen_ext.recipes.pictures import save_density, save_grid, save_reconstruction
from deepgen_ext.recipes.progress import Rows
from deepgen_ext.recipes.run import load_model

__all__ = ["METHODS", "draw", "evaluate_run", "sample_run", "save_numbers"]

METHODS = ("incremental", "jacobi", "naive")


@torch.no_grad()
def draw(
    model: torch.nn.Module,
    n: int,
    *,
    temperature: float,
    seed: int,
    chunk: int = 256,
    n_levels: int | None = None,
    labels: Tensor | None = None,
    console: Console | None = None,
    **options: Any,
) -> Tensor:
    """``n`` samples on the CPU, drawn ``chunk`` at a time to bound the memory; the same seed gives
    the same samples. Images as levels, uint8 or int64. ``labels`` are classes of a conditional
    model; ``options`` the model's own.
    """
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    parts = []
    with Rows(console, range(0, n, chunk)) as rows:
        for start in range(0, n, chunk):
            if isinstance(model, PixelModel):
                options["on_row"] = rows.of(start)
            if labels is not None:
                options["labels"] = labels[start : start + chunk]
            part = model.sample(
                min(chunk, n - start), temperature=temperature, generator=generator, **options
            )
            parts.append(part.cpu())
    samples = torch.cat(parts)
    if n_levels is None:
        return samples
    if samples.is_floating_point():
        return quantize(samples, n_levels)
    return samples.to(torch.uint8 if n_levels <= 256 else torch.int64)


def sample_run(
    run: Path,
    *,
    n: int,
    temperature: float,
    seed: int,
    out: Path,
    device: str,
    method: str | None = None,
    mean: bool = False,
    label: Sequence[int] = (),
    console: Console | None = None,
) -> None:
    """Samples of the run's model as a picture (.png), or as numbers (.npy: uint8 levels, or float32
    vectors).
    """
    model, settings, _, shape, n_levels = load_model(run, device)
    if isinstance(model, CycleGAN):
        raise RecipeError(f"cyclegan draws no samples, it translates: deepgen translate {run}")
    options = {}
    if method is not None:
        if not isinstance(model, PixelModel):
            raise RecipeError(
                f"--method is a choice of autoregressive models: {settings.model} has one way"
            )
        if method not in METHODS:
            raise RecipeError(f"--method must be one of {', '.join(METHODS)}; got '{method}'")
        options["method"] = method
    if mean:
        if not isinstance(model, LatentModel):
            raise RecipeError(f"--mean is of models with a decoder of pixels, not {settings.model}")
        if not model.distribution.has_mean:
            raise RecipeError(f"--mean: {settings.model} draws its pixels one after the other")
        options["mean"] = True
    labels = classes_asked(model, settings.model, label, n)
    samples = draw(
        model,
        n,
        temperature=temperature,
        seed=seed,
        n_levels=n_levels,
        labels=labels,
        console=console,
        **options,
    )
    if out.suffix.lower() == ".npy":
        save_numbers(samples, out)
    elif n_levels is not None:
        save_grid(samples, n_levels, out)
    elif shape == (2,) and isinstance(model, AdversarialModel):
        save_points(samples, data.load(settings.data).test[:n], out)
    elif shape == (2,):
        is_energy = settings.data in ENERGIES
        target = functools.partial(log_density, settings.data) if is_energy else None
        save_density(model, samples, out, target=target)
    else:
        raise RecipeError(
            f"vectors of {shape[0]} numbers cannot be drawn: give --out a name that ends in .npy"
        )


def save_numbers(samples: Tensor, out: Path) -> None:
    """A .npy file."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        np.save(out, samples.numpy())
    except OSError as error:
        raise RecipeError(f"{out}: cannot be written: {error.strerror or error}") from None


def evaluate_run(
    run: Path,
    *,
    data_name: str | None,
    split: str,
    seed: int,
    picture: Path | None,
    device: str,
    k: int | None = None,
    images: int | None = None,
    console: Console | None = None,
) -> Table:
    """Score the run's model on ``split`` of its own or other data, and measure the error of
    inverse(forward(x)). Of a latent-variable model the bound is scored, and with ``k`` the
    likelihood estimated from so many importance samples of each image.
    """
    model, settings, step, shape, n_levels = load_model(run, device)
    if isinstance(model, AdversarialModel):
        raise RecipeError(
            f"{settings.model} is an adversarial model: it draws samples and has no likelihood that "
            f"could be measured; deepgen scores compares its samples with data"
        )
    dataset = data.load(
        data_name or settings.data,
        size=settings.size if data_name in (None, settings.data) else None,
    )
    if dataset.shape != shape or dataset.n_levels != n_levels:
        raise RecipeError(
            f"{run} was trained on samples of shape {shape} with {n_levels or 'real'} levels; "
            f"'{dataset.name}' has {dataset.shape} with {dataset.n_levels or 'real'}"
        )
    samples = (dataset.test if split == "test" else dataset.train)[:images]
    if k is not None and not isinstance(model, LatentModel):
        raise RecipeError(f"--k is of latent-variable models: {settings.model} scores exactly")
    result = evaluate(model, samples, n_levels=n_levels, seed=seed)
    reconstruction = "none: the model has no latents"
    if isinstance(model, PixelModel):
        if picture is not None:
            raise RecipeError(f"--picture shows reconstructions, and {settings.model} has none")
    elif isinstance(model, LatentModel):
        what = "mean" if model.distribution.has_mean else "draw"
        reconstruction = f"the decoder's {what}, see --picture"
        if picture is not None:
            some = samples[:10]
            rebuilt = quantize(model.reconstruct(some.to(device)), n_levels)
            save_reconstruction(some, rebuilt.cpu(), n_levels, picture)
    else:
        some = samples[:256]
        x, rebuilt = reconstruct(model, some, n_levels=n_levels, seed=seed)
        error = (rebuilt - x).abs()
        reconstruction = (
            f"|inverse(forward(x)) - x|: mean {error.mean():.1e}, largest {error.max():.1e}"
        )
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
    table.add_row(result.unit, _in_words(result) + _bound_in_words(model))
    if isinstance(model, TopDownModel):
        table.add_row("KL by level", _levels_in_words(model, samples, seed))
    if dataset.energy is not None:
        forward, reverse = divergences(model, dataset.energy, samples)
        table.add_row(
            "KL(p||q), KL(q||p)", f"{forward:.4f}, {reverse:.4f} nats; p is {dataset.name}"
        )
    if k is not None:
        estimate = _estimate(model, samples, k, seed, console)
        table.add_row(
            f"{result.unit}, k={k}",
            f"{_in_words(estimate)}: -ln p(x) from {k} importance samples an image, in expectation "
            f"an upper bound",
        )
    table.add_row("dequantisation", result.dequantisation)
    if result.log_det:
        table.add_row("log-det", result.log_det)
    table.add_row("reconstruction", reconstruction)
    return table


def _in_words(result: Evaluation) -> str:
    if math.isnan(result.standard_error):
        return f"{result.mean:.4f}"
    return f"{result.mean:.4f} +- {result.standard_error:.4f} (standard error)"


def _bound_in_words(model: torch.nn.Module) -> str:
    """What the score of a latent-variable model is: nothing is said of the others."""
    if not isinstance(model, LatentModel):
        return ""
    name = (
        f"F_{model.k}, the bound of {model.k} weighted draws" if isinstance(model, IWAE) else "ELBO"
    )
    return f": -{name}, in expectation an upper bound of -ln p(x)"


def _levels_in_words(model: TopDownModel, samples: Tensor, seed: int) -> str:
    nats = kl_by_level(model, samples, seed=seed)
    parts = [
        f"{value:.3f} of {channels} x {height}x{width}"
        for value, (channels, height, width) in zip(nats, model.grids, strict=True)
    ]
    return ", ".join(parts) + " (nats an image, the top one first)"


def _estimate(
    model: LatentModel, samples: Tensor, k: int, seed: int, console: Console | None
) -> Evaluation:
    console = console or Console(quiet=True)
    columns = TextColumn("image {task.completed:.0f}/{task.total:.0f}"), BarColumn(bar_width=None)
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("images", total=len(samples))
        return importance_estimate(
            model, samples, k=k, seed=seed, on_image=lambda done: bar.update(task, completed=done)
        )
