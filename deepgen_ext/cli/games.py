"""What adversarial games do: small experiments, each a picture and its numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deepgen_ext.cli import app
from deepgen_ext.cli.arguments import check_suffix

Steps = Annotated[int, typer.Option(min=1, help="Steps of each training.")]
Seed = Annotated[int, typer.Option(min=0)]
Picture = Annotated[Path, typer.Option(help="A .png; the numbers go to a .csv of that name.")]


@app.command(rich_help_panel="Experiments")
def divergences(steps: Steps = 400, seed: Seed = 0, out: Picture = Path("divergences.png")) -> None:
    """Measure KL, JS and W of two parallel lines by critics, against what is exact.

    And the gradient that each game gives a generator that should move its line.
    """
    check_suffix(out, (".png",))
    from deepgen_ext.recipes.divergences import closed_forms, run_divergences

    console = Console(highlight=False)
    for line in run_divergences(out, steps=steps, seed=seed):
        _, js, distance = closed_forms(line.theta)
        console.print(
            f"theta {line.theta:+.1f}  KL {line.kl:7.2f}  JS {line.js:.3f} (exact {js:.3f})  "
            f"W {line.wasserstein:.3f} ({distance:.3f})"
        )
    print(out)


@app.command("vanishing-gradient", rich_help_panel="Experiments")
def vanishing_gradient(
    steps: Steps = 1000, seed: Seed = 0, out: Picture = Path("vanishing-gradient.png")
) -> None:
    """Follow a generator's gradient while its critic learns, in three games."""
    check_suffix(out, (".png",))
    from deepgen_ext.recipes.vanishing_gradient import run_vanishing_gradient

    console = Console(highlight=False)
    for name, rows in run_vanishing_gradient(out, steps=steps, seed=seed).items():
        console.print(f"{name:22} |gradient| {rows[0][2]:.2e} -> {rows[-1][2]:.2e}")
    print(out)


@app.command("mode-coverage", rich_help_panel="Experiments")
def mode_coverage(
    steps: Steps = 2000, seed: Seed = 0, out: Picture = Path("mode-coverage.png")
) -> None:
    """Count the modes that five games find of a ring and a grid of Gaussians."""
    check_suffix(out, (".png",))
    from deepgen_ext.recipes.mode_coverage import run_mode_coverage

    console = Console(highlight=False)
    for shape, name, modes, of, good in run_mode_coverage(out, steps=steps, seed=seed):
        console.print(f"{shape}  {name:20} {modes:2} of {of} modes, {good:.0%} of samples close")
    print(out)


@app.command(rich_help_panel="Experiments")
def lipschitz(steps: Steps = 1000, seed: Seed = 0, out: Picture = Path("lipschitz.png")) -> None:
    """Follow a critic's slope: clipped, penalised, spectrally normalised, free."""
    check_suffix(out, (".png",))
    from deepgen_ext.recipes.lipschitz import run_lipschitz

    console = Console(highlight=False)
    for name, found in run_lipschitz(out, steps=steps, seed=seed).items():
        last = found[-1]
        console.print(f"{name:14} |grad s|: mean {last.mean:.3g}, largest {last.largest:.3g}")
    print(out)


@app.command("loss-and-quality", rich_help_panel="Experiments")
def loss_and_quality(
    steps: Steps = 1500, seed: Seed = 0, out: Picture = Path("loss-and-quality.png")
) -> None:
    """Compare a critic's loss with the exact distance of samples, GAN and WGAN-GP."""
    check_suffix(out, (".png",))
    from deepgen_ext.recipes.loss_and_quality import run_loss_and_quality

    console = Console(highlight=False)
    for name, value in run_loss_and_quality(out, steps=steps, seed=seed).items():
        console.print(f"{name:22} rank correlation with the exact distance {value:+.2f}")
    print(out)


@app.command("cyclegan-failure", rich_help_panel="Experiments")
def cyclegan_failure(
    steps: Steps = 500, seed: Seed = 0, out: Picture = Path("cyclegan-failure.png")
) -> None:
    """Translate digits into negatives of other digits and back: what a CycleGAN's losses allow.

    Two trainings, of --seed and the next one, on 8x8 digits without pairs.
    """
    check_suffix(out, (".png",))
    from deepgen_ext.recipes.cyclegan_failure import run_cyclegan_failure, verdict

    console = Console(highlight=False)
    for found in run_cyclegan_failure(out, steps=steps, seed=seed):
        console.print(f"seed {found.seed}: {verdict(found)}", soft_wrap=True)
    print(out)
