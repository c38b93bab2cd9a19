"""``deepgen mode-coverage``: which of the modes of a ring and a grid of Gaussians a game finds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deepgen_ext.models import GAN, SNGAN, WGAN, WGANGP, AdversarialModel
from deepgen_ext.recipes.games import critic_steps, figure, generator_step, save_rows
from deepgen_ext.recipes.pictures import save_figure

__all__ = ["Coverage", "centres", "cover", "coverage_of", "run_mode_coverage"]

DEVIATION = 0.05
GAMES = {
    "GAN, minimax": (lambda: GAN((2,), objective="minimax"), 1e-3),
    "GAN, non-saturating": (lambda: GAN((2,)), 1e-3),
    "WGAN, clipping": (lambda: WGAN((2,), clip=0.05), 2e-4),
    "WGAN-GP, one-sided": (lambda: WGANGP((2,), one_sided=True), 1e-3),
    "SN-GAN": (lambda: SNGAN((2,), n_critic=2), 1e-3),
}
SHOWN = 1500


@dataclass(frozen=True)
class Coverage:
    """Of samples: modes with at least a fifth of their share of samples within 4 deviations, and
    the fraction of samples that are that close to any.
    """

    modes: int
    of: int
    good: float


def centres(shape: str) -> Tensor:
    """(modes, 2): "ring", 8 on a circle of radius 1, or "grid", 5x5 in [-1, 1]^2."""
    if shape == "ring":
        angle = torch.arange(8) * (torch.pi / 4)
        return torch.stack((angle.cos(), angle.sin()), dim=1)
    axis = torch.linspace(-1, 1, 5)
    return torch.cartesian_prod(axis, axis)


def coverage_of(samples: Tensor, middle: Tensor) -> Coverage:
    distance, mode = torch.cdist(samples, middle).min(dim=1)
    close = distance <= 4 * DEVIATION
    counts = torch.bincount(mode[close], minlength=len(middle))
    enough = 0.2 * len(samples) / len(middle)
    return Coverage(int((counts >= enough).sum()), len(middle), close.double().mean().item())


def cover(
    model: AdversarialModel, shape: str, *, steps: int, rate: float, seed: int
) -> tuple[Tensor, Coverage]:
    """Train for so many steps of the generator; 5000 samples of its average."""
    middle, generator = centres(shape), torch.Generator().manual_seed(seed)

    def points(n: int, generator: torch.Generator) -> Tensor:
        chosen = middle[torch.randint(len(middle), (n,), generator=generator)]
        return chosen + DEVIATION * torch.randn(n, 2, generator=generator)

    players = (
        model.optimizer(model.critic_parameters(), rate),
        model.optimizer(model.generator_parameters(), rate),
    )
    for _ in range(steps):
        critic_steps(model, players[0], points, model.n_critic, generator)
        generator_step(model, players[1], points, generator)
    samples = model.sample(5000, generator=generator)
    return samples, coverage_of(samples, middle)


def run_mode_coverage(
    out: Path, *, steps: int, seed: int
) -> list[tuple[str, str, int, int, float]]:
    """Every game on both shapes; ``out`` is the picture, a .csv of that name the numbers."""
    shapes = ("ring", "grid")
    rows = []
    drawing, panels = figure(len(shapes), len(GAMES), (3 * len(GAMES), 6.4))
    for shape, line in zip(shapes, panels, strict=True):
        for (name, (make, rate)), axes in zip(GAMES.items(), line, strict=True):
            torch.manual_seed(seed)
            samples, found = cover(make(), shape, steps=steps, rate=rate, seed=seed)
            rows.append((shape, name, found.modes, found.of, found.good))
            axes.scatter(*centres(shape).T.numpy(), s=80, color="0.8", linewidths=0)
            axes.scatter(*samples[:SHOWN].T.numpy(), s=2, linewidths=0)
            text = f"{name}\n{found.modes} of {found.of} modes, {found.good:.0%} close"
            axes.set(title=text, xlim=(-1.7, 1.7), ylim=(-1.7, 1.7), aspect="equal")
    save_rows(out.with_suffix(".csv"), ("shape", "game", "modes", "of", "close"), rows)
    save_figure(drawing, out)
    return rows
