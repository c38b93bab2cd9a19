"""What a model with latents has learned, as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deepgen_ext.cli import app
from deepgen_ext.cli.arguments import Accelerator, RunFolder, check_suffix, device_of

Seed = Annotated[int, typer.Option(min=0, help="Of the binarisation or dequantisation.")]


@app.command(no_args_is_help=True)
def latents(
    run: RunFolder,
    kind: Annotated[
        str, typer.Option(help="traversal, interpolations or reconstructions.")
    ] = "traversal",
    n: Annotated[
        int,
        typer.Option(
            "--n", min=2, help="Images a side (traversal), a row (interpolations), in all."
        ),
    ] = 12,
    dims: Annotated[
        tuple[int, int] | None,
        typer.Option(help="Latents of the traversal.", show_default="the two that vary most"),
    ] = None,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="A .png.")] = Path("latents.png"),
    accelerator: Accelerator = None,
) -> None:
    """Draw what a VAE's latents mean.

    Traversal: two latents over the quantiles of the prior, the others as of the first test image.
    Interpolations: between latents of pairs of test images, which stand at the ends of each row.
    """
    check_suffix(out, (".png",))
    from deepgen_ext.recipes.latent_pictures import draw_latents

    draw_latents(run, kind=kind, n=n, dims=dims, seed=seed, out=out, device=device_of(accelerator))
    print(out)


@app.command(no_args_is_help=True)
def posteriors(
    runs: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Folders of runs with 2 latents.")
    ],
    n: Annotated[int, typer.Option("--n", min=1, help="Test images.")] = 6,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="A .png.")] = Path("posteriors.png"),
    accelerator: Accelerator = None,
) -> None:
    """Draw true posteriors of two latents, on a grid, against the approximate ones.

    A row for each run, a VAE and an IWAE for instance; a column for each test image.
    """
    check_suffix(out, (".png",))
    from deepgen_ext.recipes.latent_pictures import draw_posteriors

    draw_posteriors(runs, n=n, seed=seed, out=out, device=device_of(accelerator))
    print(out)
