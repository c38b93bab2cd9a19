"""What is done with a trained model: samples, completions, scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deepgen_ext.cli import app
from deepgen_ext.cli.arguments import Accelerator, RunFolder, check_suffix, device_of
from deepgen_ext.recipes import RecipeError


@app.command(no_args_is_help=True, rich_help_panel="Train and use a model")
def sample(
    run: RunFolder,
    n: Annotated[int, typer.Option("--n", min=1, help="Number of samples.")] = 64,
    temperature: Annotated[
        float,
        typer.Option(min=0.0, help="Scale of the latents' deviation; divides a PixelCNN's logits."),
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[Path, typer.Option(help="A .png, or a .npy for the numbers.")] = Path(
        "samples.png"
    ),
    method: Annotated[
        str | None,
        typer.Option(
            help="Of a PixelCNN: incremental, jacobi, naive. All draw the same images.",
            show_default="incremental",
        ),
    ] = None,
    mean: Annotated[
        bool, typer.Option("--mean", help="Of a VAE: the expected pixels, not draws of them.")
    ] = False,
    label: Annotated[
        list[int] | None,
        typer.Option(
            help="Of a model with classes: the class to draw; repeated, these classes in turn.",
            show_default="by chance",
        ),
    ] = None,
    accelerator: Accelerator = None,
) -> None:
    """Draw samples from a trained model."""
    check_suffix(out)
    from deepgen_ext.recipes.trained import sample_run

    sample_run(
        run,
        n=n,
        temperature=temperature,
        seed=seed,
        out=out,
        device=device_of(accelerator),
        method=method,
        mean=mean,
        label=label or (),
        console=Console(stderr=True),
    )
    print(out)


@app.command(no_args_is_help=True, rich_help_panel="Train and use a model")
def complete(
    run: RunFolder,
    rows: Annotated[
        int | None, typer.Option(help="Rows of each image that are given.", show_default="half")
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Test images to complete.")] = 8,
    completions: Annotated[int, typer.Option(min=1, help="Of each image.")] = 6,
    temperature: Annotated[float, typer.Option(min=0.0, help="Divides the logits.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    data: Annotated[
        str | None,
        typer.Option(metavar="NAME|PATH", help="Other data.", show_default="the run's own"),
    ] = None,
    method: Annotated[str, typer.Option(help="incremental, jacobi or naive.")] = "incremental",
    out: Annotated[Path, typer.Option(help="A .png, or a .npy for the numbers.")] = Path(
        "completions.png"
    ),
    accelerator: Accelerator = None,
) -> None:
    """Complete test images from their first rows with a trained PixelCNN.

    In a row of the picture: the image, what is given of it, the completions.
    """
    check_suffix(out)
    from deepgen_ext.recipes.completion import complete_run

    complete_run(
        run,
        rows=rows,
        n=n,
        completions=completions,
        temperature=temperature,
        seed=seed,
        data_name=data,
        method=method,
        out=out,
        device=device_of(accelerator),
        console=Console(stderr=True),
    )
    print(out)


@app.command(no_args_is_help=True, rich_help_panel="Train and use a model")
def evaluate(
    run: RunFolder,
    data: Annotated[
        str | None,
        typer.Option(metavar="NAME|PATH", help="Other data.", show_default="the run's own"),
    ] = None,
    split: Annotated[str, typer.Option(help="test or train.")] = "test",
    seed: Annotated[int, typer.Option(min=0, help="Of the noise of pixels and latents.")] = 0,
    k: Annotated[
        int | None,
        typer.Option(
            "--k",
            min=1,
            help="Of a VAE or IWAE: estimate the likelihood too, from so many importance samples.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Score the first ones only.", show_default="all")
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(help="PNG of inputs above reconstructions.", show_default=False),
    ] = None,
    accelerator: Accelerator = None,
) -> None:
    """Measure bits/dim or nats on held-out data, and the error of inverse(forward(x)).

    Of a latent-variable model the bound, and with --k an estimate of the likelihood.
    """
    if split not in ("test", "train"):
        raise RecipeError(f"--split must be test or train, got '{split}'")
    from deepgen_ext.recipes.trained import evaluate_run

    Console().print(
        evaluate_run(
            run,
            data_name=data,
            split=split,
            seed=seed,
            picture=picture,
            device=device_of(accelerator),
            k=k,
            images=images,
            console=Console(stderr=True),
        )
    )


@app.command(no_args_is_help=True, rich_help_panel="Train and use a model")
def translate(
    run: RunFolder,
    direction: Annotated[str, typer.Option(help="a-to-b or b-to-a.")] = "a-to-b",
    n: Annotated[int, typer.Option("--n", min=1, help="Images to translate.")] = 10,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH", help="Other data.", show_default="the run's own, held out"
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="A .png, or a .npy for the numbers.")] = Path(
        "translations.png"
    ),
    accelerator: Accelerator = None,
) -> None:
    """Translate images from one domain to the other with a trained CycleGAN.

    Rows of the picture: the images, their translations, these translated back.
    """
    check_suffix(out)
    from deepgen_ext.recipes.translation import translate_run

    error = translate_run(
        run, direction=direction, n=n, data_name=data, out=out, device=device_of(accelerator)
    )
    print(f"{out}  mean |there and back - x| {error:.4f}")
