"""Pictures of what a run's latents mean, and of its true and approximate posteriors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from deepgen_ext.models import VAE, VLAE, LatentModel, PixelVAE, TopDownModel
from deepgen_ext.objectives import quantize
from deepgen_ext.recipes import RecipeError, require
from deepgen_ext.recipes.batches import generator_for
from deepgen_ext.recipes.data import Dataset, load
from deepgen_ext.recipes.pictures import save_figure, save_grid
from deepgen_ext.recipes.run import Settings, load_model

__all__ = ["KINDS", "draw_latents", "draw_posteriors", "true_posterior"]

KINDS = ("traversal", "interpolations", "reconstructions")
_OUTERMOST = 0.02  # quantile of the prior at which a traversal begins and ends


@torch.no_grad()
def draw_latents(
    run: Path,
    *,
    kind: str,
    n: int,
    seed: int,
    out: Path,
    device: str,
    dims: tuple[int, int] | None = None,
) -> None:
    """A grid of expected images: see ``deepgen latents --help``."""
    if kind not in KINDS:
        raise RecipeError(f"--kind must be one of {', '.join(KINDS)}; got '{kind}'")
    model, settings, data = _load(run, device)
    if kind == "traversal" and not _has_normal_code(model):
        raise RecipeError(
            f"--kind traversal goes over the quantiles of N(0, I), and the prior of {settings.model} "
            f"is autoregressive: try --kind interpolations"
        )
    images = data.test[:1024]
    noise = _noise(images, seed).to(device)
    latents = model.infer(images.to(device), noise=noise)
    if kind == "traversal":
        code = latents[:, : model.latent_features]
        rows = _traversal(code, n, dims)
        if isinstance(model, TopDownModel):  # what is below follows, without noise
            rest = model.noise_features - model.latent_features
            grid = torch.nn.functional.pad(rows.flatten(0, 1), (0, rest))
            rows = model.redrawn(grid, torch.zeros_like(grid), 1).unflatten(0, (n, n))
    elif kind == "interpolations":
        rows = _interpolations(latents, n, lines=8)
    else:
        rows = latents[:n].unsqueeze(0)
    generator = torch.Generator(device).manual_seed(generator_for(seed, "pixels").initial_seed())
    shown = model.shown(model.decode(rows.flatten(0, 1)), generator)
    levels = quantize(shown, model.n_levels).cpu().unflatten(0, rows.shape[:2])
    if kind == "interpolations":
        pairs = images[: 2 * len(rows)].unflatten(0, (-1, 2)).to(levels.dtype)
        levels = torch.cat((pairs[:, :1], levels, pairs[:, 1:]), 1)
    elif kind == "reconstructions":
        levels = torch.cat((images[:n].unsqueeze(0).to(levels.dtype), levels))
    save_grid(levels.flatten(0, 1), model.n_levels, out, columns=levels.shape[1])


def _has_normal_code(model: LatentModel) -> bool:
    """Whether the first latents of the model, `latent_features` of them, are N(0, I) in its prior."""
    if isinstance(model, TopDownModel):
        return isinstance(model, PixelVAE)
    return isinstance(model, VAE) and not isinstance(model, VLAE)


def _traversal(latents: Tensor, n: int, dims: tuple[int, int] | None) -> Tensor:
    """(n, n, D): down the first of two latents, to the right the second."""
    features = latents.shape[1]
    if dims is None:
        dims = tuple(latents.var(0).argsort(descending=True)[:2].tolist())
    if not all(0 <= dim < features for dim in dims) or len(set(dims)) != len(dims):
        raise RecipeError(f"--dims must be two of the latents 0 to {features - 1}, got {dims}")
    quantiles = torch.linspace(_OUTERMOST, 1 - _OUTERMOST, n, dtype=torch.float64)
    values = torch.special.ndtri(quantiles).to(latents)
    grid = latents[:1].repeat(n * n, 1)
    grid[:, dims[0]] = values.repeat_interleave(n)
    if len(dims) == 2:
        grid[:, dims[1]] = values.repeat(n)
    return grid.view(n, n, features)


def _interpolations(latents: Tensor, n: int, lines: int) -> Tensor:
    """(lines, n, D): straight from the latents of one image to those of the next."""
    lines = min(lines, len(latents) // 2)
    first, last = latents[0 : 2 * lines : 2, None], latents[1 : 2 * lines : 2, None]
    return torch.lerp(first, last, torch.linspace(0, 1, n).to(latents)[:, None])


@torch.no_grad()
def true_posterior(model: VAE, target: Tensor, z: Tensor, *, chunk: int = 1000) -> Tensor:
    """ln p(z|x), (n, m), of n images at the m points z (m, 2) of an even grid, normalised over it
    as if it held all of the posterior.
    """
    points = z.unsqueeze(0)
    log_prior = model.log_prior(points)
    rows = []
    for image in target.split(1):
        parts = [model.log_likelihood_of_latents(image, part) for part in points.split(chunk, 1)]
        rows.append(torch.cat(parts, 1) + log_prior)
    return torch.log_softmax(torch.cat(rows).double(), 1)


@torch.no_grad()
def draw_posteriors(
    runs: Sequence[Path], *, n: int, seed: int, out: Path, device: str, cells: int = 120
) -> None:
    """Heat maps of p(z|x) under contours of q(z|x): a row for each run, a column for each image.

    Each map shows the square that holds both; contours enclose 50 and 95 per cent of q.
    """
    require("matplotlib", "drawing posteriors").use("Agg")
    pyplot = require("matplotlib.pyplot", "drawing posteriors")
    loaded = [_load(run, device) for run in runs]
    for run, (model, settings, _) in zip(runs, loaded, strict=True):
        if not isinstance(model, VAE):
            raise RecipeError(f"posteriors are drawn of one code of an image, not {settings.model}")
        if model.latent_features != 2:
            raise RecipeError(
                f"{run} has {model.latent_features} latents, and a map has 2: train it with "
                f"--set latent_features=2"
            )
    figure, grid = pyplot.subplots(
        len(runs),
        n + 1,
        squeeze=False,
        figsize=(1.8 * (n + 1), 1.8 * len(runs)),
        layout="constrained",
    )
    for line, run, (model, settings, data) in zip(grid, runs, loaded, strict=True):
        images = data.test[:n]
        target = model.target(images.to(device), _noise(images, seed).to(device))
        h = model.encode(target)
        line[0].axis("off")
        k = f", k={model.k}" if settings.model == "iwae" else ""
        line[0].text(0.5, 0.5, f"{settings.model}{k}\n{Path(run).name}", ha="center", va="center")
        for index, axes in enumerate(line[1:]):
            if index < len(images):
                part = slice(index, index + 1)
                _draw_map(axes, model, target[part], h[part], cells)
            else:
                axes.axis("off")
    save_figure(figure, out)


def _draw_map(axes: object, model: VAE, target: Tensor, h: Tensor, cells: int) -> None:
    """One image: zoom from the whole prior to the square that holds nearly all of p and q."""
    z = _square(h, torch.zeros(2).to(h), 4.5, cells)
    box = _bounding(z, true_posterior(model, target, z)[0], model.posterior(z.unsqueeze(0), h)[0])
    z = _square(h, *box, cells)
    p = true_posterior(model, target, z)[0].exp().view(cells, cells)
    log_q = model.posterior(z.unsqueeze(0), h)[0].double()
    q = torch.softmax(log_q, 0).view(cells, cells)
    x, y = (z[:, dim].view(cells, cells).cpu().numpy() for dim in range(2))
    axes.pcolormesh(x, y, p.cpu().numpy(), cmap="magma", shading="nearest")
    levels = sorted(_level_of_mass(q, mass) for mass in (0.5, 0.95))
    if levels[0] < levels[1]:
        axes.contour(x, y, q.cpu().numpy(), levels=levels, colors="deepskyblue", linewidths=1.0)
    axes.set_aspect("equal")
    axes.tick_params(labelsize=6)
    axes.locator_params(nbins=4)


def _square(like: Tensor, centre: Tensor, radius: float, cells: int) -> Tensor:
    """(cells^2, 2): the first latent varies slowest."""
    axis = torch.linspace(-radius, radius, cells).to(like)
    return torch.cartesian_prod(axis, axis) + centre


def _bounding(z: Tensor, *log_masses: Tensor) -> tuple[Tensor, float]:
    """Centre and half the side of a square around 99 per cent of each of the masses on z."""
    kept = torch.zeros(len(z), dtype=torch.bool, device=z.device)
    for log_mass in log_masses:
        mass = torch.softmax(log_mass.double(), 0)
        kept |= mass >= _level_of_mass(mass, 0.99)
    low, high = z[kept].amin(0), z[kept].amax(0)
    step = 9.0 / math.sqrt(len(z))
    return (low + high) / 2, float((high - low).max()) / 2 + 2 * step


def _level_of_mass(density: Tensor, mass: float) -> float:
    """The level above which there is so much of a density that adds up to 1."""
    ordered = density.flatten().sort(descending=True).values
    inside = int((ordered.cumsum(0) < mass).sum())
    return float(ordered[min(inside, len(ordered) - 1)])


def _noise(images: Tensor, seed: int) -> Tensor:
    """Of the pixels: an image keeps its binarisation from picture to picture."""
    return torch.rand(images.shape, generator=generator_for(seed, "picture"))


def _load(run: Path, device: str) -> tuple[LatentModel, Settings, Dataset]:
    model, settings, _, _, _ = load_model(run, device)
    if not isinstance(model, LatentModel):
        raise RecipeError(f"only a model with an encoder has such pictures, not {settings.model}")
    return model, settings, load(settings.data, size=settings.size)
