"""``deepgen vanishing-gradient``: what is left for the generator as its critic learns.

A generator is held at its start, and the critic of each game trained against it. The minimax loss
E[ln(1 - D)] flattens as the critic gets sure; -E[ln D] does not, though its gradient gets large and
noisy; the gradient of the Wasserstein game stays as it is. Arjovsky & Bottou 2017, arXiv:1701.04862.
"""

from __future__ import annotations

from pathlib import Path

import torch

from deepgen_ext.models import GAN, WGANGP, AdversarialModel
from deepgen_ext.recipes.densities import sample_density
from deepgen_ext.recipes.games import critic_steps, figure, save_rows
from deepgen_ext.recipes.pictures import save_figure

__all__ = ["gradient_norms", "run_vanishing_gradient"]

GAMES = {
    "minimax": lambda: GAN((2,), objective="minimax", ema=0),
    "non-saturating": lambda: GAN((2,), objective="non-saturating", ema=0),
    "wasserstein, penalty": lambda: WGANGP((2,), ema=0),
}
TIMES = 25  # of measurement


def gradient_norms(
    model: AdversarialModel, *, steps: int, seed: int
) -> list[tuple[int, float, float]]:
    """(steps of the critic, its loss, norm of the generator's gradient)."""
    data = sample_density("8-gaussians", 20_000, 1)
    generator = torch.Generator().manual_seed(seed)

    def points(n: int, generator: torch.Generator) -> torch.Tensor:
        return data[torch.randint(len(data), (n,), generator=generator)]

    optimizer = model.optimizer(model.critic_parameters(), 1e-3)
    every = max(1, steps // TIMES)
    rows = []
    for done in range(every, steps + 1, every):
        terms = critic_steps(model, optimizer, points, every, generator)
        model.zero_grad(set_to_none=True)
        model.generator_loss(points(2048, generator), generator=generator).backward()
        squares = [p.grad.square().sum() for p in model.generator_parameters()]
        rows.append((done, terms.loss.item(), torch.stack(squares).sum().sqrt().item()))
    return rows


def run_vanishing_gradient(out: Path, *, steps: int, seed: int) -> dict[str, list[tuple]]:
    """All games against the same generator; ``out`` is the picture, a .csv of that name the
    numbers.
    """
    results = {}
    for name, make in GAMES.items():
        torch.manual_seed(seed)
        results[name] = gradient_norms(make(), steps=steps, seed=seed)
    rows = [(name, *row) for name, found in results.items() for row in found]
    save_rows(out.with_suffix(".csv"), ("game", "step", "critic_loss", "gradient_norm"), rows)
    drawing, ((axes,),) = figure(1, 1, (7, 4.5))
    for name, found in results.items():
        axes.plot([row[0] for row in found], [row[2] for row in found], label=name)
    axes.set(yscale="log", xlabel="steps of the critic", ylabel="norm of the generator's gradient")
    axes.legend()
    axes.grid(alpha=0.3)
    save_figure(drawing, out)
    return results
