"""Pictures of a game: samples of fixed latents, translations there and back, losses over steps."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepgen_ext.models import AdversarialModel, BiGAN, CycleGAN
from deepgen_ext.objectives import quantize
from deepgen_ext.recipes import require
from deepgen_ext.recipes.pictures import save_figure, save_grid

__all__ = ["save_losses", "save_model", "save_points", "save_translations"]

SHOWN = 10  # images in a row of reconstructions or translations


@torch.no_grad()
def save_model(
    net: AdversarialModel,
    held_out: Sequence[Tensor],
    out: Path,
    step: int,
    generator: torch.Generator,
) -> None:
    """``samples-STEP.png`` of the run in ``out``, and ``reconstructions-STEP.png`` of a BiGAN.

    Of vectors the samples over data; of a CycleGAN translations of data of both domains.
    """
    path = out / f"samples-{step:06d}.png"
    if isinstance(net, CycleGAN):
        save_translations(net, held_out, path)
        return
    (data,) = held_out
    if net.n_levels is None:
        if net.shape == (2,):
            save_points(net.sample(2000, generator=generator), data[:2000], path)
        return
    levels = quantize(net.sample(64, generator=generator), net.n_levels)
    save_grid(levels, net.n_levels, path)
    if isinstance(net, BiGAN):
        some = data[:SHOWN]
        rebuilt = quantize(net.reconstruct(some.to(levels.device)), net.n_levels)
        rows = torch.cat([some, rebuilt.cpu()])
        name = f"reconstructions-{step:06d}.png"
        save_grid(rows, net.n_levels, out / name, columns=len(some))


@torch.no_grad()
def save_translations(net: CycleGAN, held_out: Sequence[Tensor], path: Path) -> None:
    """Six rows: images of a, their translations, these translated back; the same of b."""
    device = next(net.parameters()).device
    n = min(SHOWN, *(len(domain) for domain in held_out))
    rows = []
    for images, direction in zip(held_out, ("a-to-b", "b-to-a"), strict=True):
        some = images[:n].to(device)
        there, back = net.there_and_back(some, direction)
        rows += [some, quantize(there, net.n_levels), quantize(back, net.n_levels)]
    save_grid(torch.cat([row.cpu() for row in rows]), net.n_levels, path, columns=n)


def save_points(samples: Tensor, data: Tensor, path: Path, *, title: str = "") -> None:
    """Samples (n, 2) over data (m, 2)."""
    require("matplotlib", "drawing samples").use("Agg")
    pyplot = require("matplotlib.pyplot", "drawing samples")
    figure, axes = pyplot.subplots(figsize=(5, 5), layout="constrained")
    for points, label, color in ((data, "data", "0.7"), (samples, "samples", "C0")):
        x, y = points.detach().cpu().float().T.numpy()
        axes.scatter(x, y, s=3, linewidths=0, color=color, label=f"{len(points):,} {label}")
    axes.set(xlabel="$x_1$", ylabel="$x_2$", aspect="equal", title=title)
    axes.legend(loc="upper right", markerscale=3)
    save_figure(figure, path)


def save_losses(metrics: Path, path: Path) -> None:
    """The losses of ``metrics.csv`` over the generator's steps, and the critic's gap below."""
    require("matplotlib", "drawing losses").use("Agg")
    pyplot = require("matplotlib.pyplot", "drawing losses")
    with open(metrics, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["generator"]]
    figure, (above, below) = pyplot.subplots(
        2, 1, figsize=(7, 6), sharex=True, layout="constrained"
    )
    for name in ("critic", "generator"):
        _plot(above, rows, name, name)
    for name, label in (("gap", "training data"), ("test_gap", "held-out data")):
        _plot(below, rows, name, label)
    above.set(ylabel="loss")
    below.set(xlabel="steps of the generator", ylabel="E s(x) - E s(G(z))")
    for axes in (above, below):
        axes.legend()
        axes.grid(alpha=0.3)
    save_figure(figure, path)


def _plot(axes: Any, rows: list[dict[str, str]], name: str, label: str) -> None:
    found = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
    if found:
        steps, values = zip(*found, strict=True)
        axes.plot(steps, values, marker="." if len(found) < 30 else None, label=label)
