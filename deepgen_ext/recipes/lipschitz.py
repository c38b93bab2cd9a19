"""``deepgen lipschitz``: the slope of a critic under weight clipping, a gradient penalty, and
spectral norms.

Each is trained between the same two distributions, half moons and noise around 0, whose Wasserstein
critic would have a slope of 1 nearly everywhere between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deepgen_ext.models import GAN, SNGAN, WGAN, WGANGP, AdversarialModel
from deepgen_ext.recipes.densities import sample_density
from deepgen_ext.recipes.games import critic_steps, figure, save_rows, slopes
from deepgen_ext.recipes.pictures import save_figure

__all__ = ["Slopes", "follow", "run_lipschitz"]

CRITICS = {
    "no bound": lambda: GAN((2,), ema=0),
    "clip 0.01": lambda: WGAN((2,), clip=0.01, ema=0),
    "clip 0.1": lambda: WGAN((2,), clip=0.1, ema=0),
    "penalty 10": lambda: WGANGP((2,), ema=0),
    "spectral norm": lambda: SNGAN((2,), objective="wasserstein", ema=0),
}
TIMES, CELLS, REACH = 20, 80, 3.0


@dataclass(frozen=True)
class Slopes:
    """After so many steps: the mean of |grad s| between data and noise, the largest on a grid."""

    step: int
    mean: float
    largest: float


def follow(model: AdversarialModel, *, steps: int, seed: int) -> tuple[list[Slopes], Tensor]:
    """The slopes while the critic is trained, and their map at the end, (cells, cells)."""
    data = sample_density("two-moons", 20_000, 1)
    generator = torch.Generator().manual_seed(seed)

    def points(n: int, generator: torch.Generator) -> Tensor:
        return data[torch.randint(len(data), (n,), generator=generator)]

    def noise(n: int) -> Tensor:
        return 0.3 * torch.randn(n, 2, generator=generator)

    model.generator.forward = lambda z, labels=None: noise(len(z))
    axis = torch.linspace(-REACH, REACH, CELLS)
    grid = torch.cartesian_prod(axis, axis)
    optimizer = model.optimizer(model.critic_parameters(), 1e-3)
    every = max(1, steps // TIMES)
    found = []
    for done in range(every, steps + 1, every):
        critic_steps(model, optimizer, points, every, generator)
        between = torch.lerp(noise(2048), points(2048, generator), torch.rand(2048, 1))
        largest = slopes(model, grid).max().item()
        found.append(Slopes(done, slopes(model, between).mean().item(), largest))
    return found, slopes(model, grid).view(CELLS, CELLS)


def run_lipschitz(out: Path, *, steps: int, seed: int) -> dict[str, list[Slopes]]:
    """Every critic; ``out`` is the picture, a .csv of that name the numbers."""
    results, rows = {}, []
    drawing, (panels, maps) = figure(2, len(CRITICS), (3 * len(CRITICS), 6))
    for (name, make), above, below in zip(CRITICS.items(), panels, maps, strict=True):
        torch.manual_seed(seed)
        results[name], heat = follow(make(), steps=steps, seed=seed)
        rows += [(name, found.step, found.mean, found.largest) for found in results[name]]
        times = [found.step for found in results[name]]
        above.plot(times, [found.largest for found in results[name]], label="largest")
        above.plot(times, [found.mean for found in results[name]], label="mean between")
        above.axhline(1, color="k", lw=0.8)
        above.set(title=name, yscale="log", xlabel="steps")
        image = below.imshow(
            heat.T.numpy(), origin="lower", extent=(-REACH, REACH) * 2, cmap="magma"
        )
        drawing.colorbar(image, ax=below, shrink=0.8)
    panels[0].set(ylabel="|grad s|")
    panels[0].legend()
    save_rows(out.with_suffix(".csv"), ("critic", "step", "mean", "largest"), rows)
    save_figure(drawing, out)
    return results
