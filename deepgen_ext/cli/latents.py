"""What a model with latents has learned, as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deepgen_ext.cli import app
from deepgen_ext.cli.arguments import Accelerator, RunFolder, check_suffix, device_of

Seed = Annotated[int, typer.Option(min=0, help="Of the binarisation or dequantisation.")]


@app.command(no_args_is_help=True, rich_help_panel="Train and use a model")
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


@app.command(no_args_is_help=True, rich_help_panel="Train and use a model")
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


@app.command(no_args_is_help=True, rich_help_panel="Train and use a model")
def resample(
    run: RunFolder,
    n: Annotated[int, typer.Option("--n", min=1, help="Rows: images to begin with.")] = 8,
    redraws: Annotated[int, typer.Option(min=1, help="Of each of them.")] = 8,
    test: Annotated[
        bool, typer.Option("--test", help="Begin with test images, not with samples.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[
        Path, typer.Option(help="A .png; each picture adds what it draws anew to the name.")
    ] = Path("resampled.png"),
    accelerator: Accelerator = None,
) -> None:
    """Draw images anew, level by level, of a PixelVAE or a hierarchical VAE.

    The first picture keeps all latents of an image and draws the pixels; each
    further one draws the next finer grid of latents too, up to all but the top.
    """
    check_suffix(out, (".png",))
    from deepgen_ext.recipes.resampling import resample_run

    for path in resample_run(
        run, n=n, redraws=redraws, test=test, seed=seed, out=out, device=device_of(accelerator)
    ):
        print(path)
