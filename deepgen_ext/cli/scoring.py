"""Scores of samples against data, and the networks whose features they are computed from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deepgen_ext.cli import app
from deepgen_ext.cli.arguments import Accelerator, RunFolder, check_suffix, device_of
from deepgen_ext.recipes import RecipeError


@app.command(no_args_is_help=True, rich_help_panel="Scores and tables")
def scores(
    run: RunFolder,
    n: Annotated[int, typer.Option("--n", min=1, help="Samples to draw.")] = 5000,
    feature_network: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Of images: a file of deepgen feature-network, or TorchScript (Inception).",
            show_default=False,
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Real samples: train or test.")] = "train",
    temperature: Annotated[float, typer.Option(min=0.0, help="As of deepgen sample.")] = 1.0,
    mean: Annotated[
        bool, typer.Option("--mean", help="Of a VAE: the expected pixels, not draws of them.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    accelerator: Accelerator = None,
) -> None:
    """Score samples of a trained model: FID, KID, IS, precision and recall of images.

    Of 2-d data the exact Wasserstein distances. Beside them what held-out data score.
    """
    if split not in ("test", "train"):
        raise RecipeError(f"--split must be test or train, got '{split}'")
    from deepgen_ext.recipes.scores import score_run

    Console().print(
        score_run(
            run,
            n=n,
            network_path=feature_network,
            split=split,
            temperature=temperature,
            mean=mean,
            seed=seed,
            device=device_of(accelerator),
            console=Console(stderr=True),
        )
    )


@app.command("feature-network", no_args_is_help=True, rich_help_panel="Scores and tables")
def feature_network(
    out: Annotated[Path, typer.Option(help="A .pt.", show_default=False)],
    data: Annotated[
        str, typer.Option(metavar="NAME|PATH", help="Images with classes: digits, fashion-mnist.")
    ] = "digits",
    features: Annotated[int, typer.Option(min=2, help="Of the layer before the classes.")] = 128,
    channels: Annotated[int, typer.Option(min=1, help="Of the first convolution.")] = 32,
    steps: Annotated[int, typer.Option(min=1)] = 1000,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Train a small classifier, by whose features deepgen scores compares images.

    For those who have no weights of Inception at hand, and for images that Inception never saw.
    """
    check_suffix(out, (".pt",))
    from deepgen_ext.recipes.feature_network import save_feature_network, train_classifier

    console = Console()
    state = train_classifier(
        data,
        features=features,
        channels=channels,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        console=console,
    )
    save_feature_network(out, state)
    console.print(
        f"{out}: classifier of {state['data']}, {features} features, accuracy "
        f"{100 * state['accuracy']:.1f} % on the test split",
        highlight=False,
        soft_wrap=True,
    )


@app.command(rich_help_panel="Scores and tables")
def ablation(
    data: Annotated[
        str, typer.Option(metavar="NAME|PATH", help="Images: digits, fashion-mnist, a path.")
    ] = "digits",
    seeds: Annotated[int, typer.Option(min=1, help="Fits of each row.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Of the generator, in each fit.")] = 4000,
    batch_size: Annotated[int, typer.Option(min=1, help="Images of a step.")] = 64,
    n: Annotated[int, typer.Option("--n", min=1, help="Samples that are scored.")] = 5000,
    row: Annotated[
        list[str] | None,
        typer.Option(
            help="GAN, VAE, V-ADE, AV-GDE, AV-ADE; may be repeated.", show_default="all of them"
        ),
    ] = None,
    feature_network: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="As of deepgen scores; trained where there is no such file."
        ),
    ] = Path("feature-network.pt"),
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Fits at a time.", show_default="one a core")
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder for samples of each fit.", show_default=False)
    ] = None,
    out: Annotated[
        list[Path] | None,
        typer.Option(
            help="A .csv, a row a fit, or a .md, the table; may be repeated. Fits that the .csv has "
            "already are not run again.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train GAN, VAE and the VAEs with a flow, a critic or both; print bits/dim, IS and FID.

    The table of Lucas et al. 2019, "Adaptive density estimation for generative models".
    """
    for path in out or ():
        check_suffix(path, (".csv", ".md"))
    from deepgen_ext.recipes.ablation import fill_table, prepare_feature_network
    from deepgen_ext.recipes.ablation_fits import plan_fits

    console = Console()
    fits = plan_fits(
        data,
        row,
        seeds=seeds,
        steps=steps,
        batch_size=batch_size,
        n_generated=n,
        feature_network=feature_network,
    )
    prepare_feature_network(feature_network, data, console)
    fill_table(fits, out or (), jobs=jobs, pictures=pictures, console=console)
