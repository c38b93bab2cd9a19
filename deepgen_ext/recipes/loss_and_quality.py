"""``deepgen loss-and-quality``: does a critic's loss say how good samples are?

Two games on 8 Gaussians. Beside their losses the Wasserstein distance of samples to data, exact
between two sets of points by an optimal assignment: of `N_POINTS` each, whose distance is not 0
even where both are data, and that floor is drawn too. Arjovsky et al. 2017, figures 3 and 4.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from deepgen_ext.models import GAN, WGANGP, AdversarialModel
from deepgen_ext.recipes import require
from deepgen_ext.recipes.densities import sample_density
from deepgen_ext.recipes.games import critic_steps, figure, generator_step, save_rows
from deepgen_ext.recipes.pictures import save_figure

__all__ = ["correlation", "exact_wasserstein", "follow", "run_loss_and_quality"]

GAMES = {
    "GAN, -critic loss": lambda: GAN((2,)),
    "WGAN-GP, critic gap": lambda: WGANGP((2,), one_sided=True),
}
N_POINTS, TIMES = 512, 40


def exact_wasserstein(x: Tensor, y: Tensor) -> float:
    """W_1 of two sets of equally many points, (n, D): the cheapest assignment, |x - y| a unit."""
    optimize = require("scipy.optimize", "the exact Wasserstein distance")
    cost = torch.cdist(x.double(), y.double())
    rows, columns = optimize.linear_sum_assignment(cost.numpy())
    return cost[rows, columns].mean().item()


def follow(model: AdversarialModel, *, steps: int, seed: int) -> list[tuple[int, float, float]]:
    """(step, what the critic says of the distance, the exact distance), about `TIMES` of them."""
    data = sample_density("8-gaussians", 20_000, 1)
    held_out = sample_density("8-gaussians", N_POINTS, 1001)
    generator = torch.Generator().manual_seed(seed)

    def points(n: int, generator: torch.Generator) -> Tensor:
        return data[torch.randint(len(data), (n,), generator=generator)]

    players = (
        model.optimizer(model.critic_parameters(), 5e-4),
        model.optimizer(model.generator_parameters(), 5e-4),
    )
    every = max(1, steps // TIMES)
    rows = []
    for step in range(1, steps + 1):
        terms = critic_steps(model, players[0], points, model.n_critic, generator)
        if step % every == 0:
            with torch.no_grad():
                z = model.draw_noise(N_POINTS, generator)["latents"]
                samples = model.generator(z)
            said = -terms.objective.item()
            rows.append((step, said, exact_wasserstein(samples, held_out)))
        generator_step(model, players[1], points, generator)
    return rows


def correlation(rows: list[tuple[int, float, float]]) -> float:
    """Of what the critic says with the exact distance, by ranks (Spearman): 1 where it always
    knows which samples are better.
    """
    ranks = torch.tensor([row[1:] for row in rows]).argsort(0).argsort(0).double()
    return torch.corrcoef(ranks.T)[0, 1].item()


def run_loss_and_quality(out: Path, *, steps: int, seed: int) -> dict[str, float]:
    """Both games; the rank correlations. ``out`` is the picture, a .csv of that name the numbers."""
    halves = sample_density("8-gaussians", N_POINTS, 7), sample_density("8-gaussians", N_POINTS, 8)
    floor = exact_wasserstein(*halves)
    drawing, panels = figure(2, len(GAMES), (5.5 * len(GAMES), 6), sharex=True)
    rows, found = [], {}
    for column, (name, make) in enumerate(GAMES.items()):
        torch.manual_seed(seed)
        followed = follow(make(), steps=steps, seed=seed)
        found[name] = correlation(followed)
        rows += [(name, *row) for row in followed]
        times, said, distances = zip(*followed, strict=True)
        above, below = panels[0][column], panels[1][column]
        above.plot(times, said)
        above.set(title=f"{name}\nrank correlation with W: {found[name]:.2f}")
        below.plot(times, distances, "C1", label="samples to data")
        below.axhline(floor, color="k", lw=0.8, label="data to data")
        below.set(xlabel="steps of the generator", ylabel=f"W, exact, {N_POINTS} points each")
        below.legend()
        for axes in (above, below):
            axes.grid(alpha=0.3)
    columns = ("game", "step", "critic_says", "wasserstein")
    save_rows(out.with_suffix(".csv"), columns, rows)
    save_figure(drawing, out)
    return found
