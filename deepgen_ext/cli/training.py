"""``deepgen train`` and the table of energies."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from deepgen_ext.cli import app
from deepgen_ext.cli.arguments import Accelerator, check_suffix
from deepgen_ext.recipes import RecipeError


@app.command(no_args_is_help=True, rich_help_panel="Train and use a model")
def train(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Name of a model: realnvp, glow, maf, iaf, nsf, iresnet, residual-flow, planar, "
            "radial, pixelcnn, pixelcnn++, vae, iwae, hierarchical-vae, pixelvae, vlae, v-ade, av-ade, "
            "gan, wgan, wgan-gp, sn-gan, bigan, cyclegan; an unknown name lists all.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the run.", show_default=False)],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH",
            help="digits, fashion-mnist, two-moons, circles (or rings), checkerboard, 8-gaussians, "
            "spirals; u1, u2, u3, u4: energies, fitted by reverse KL; or a folder of IDX files, "
            "of CIFAR-10's python batches or of pictures; or a .npy/.npz file.",
            show_default=False,
        ),
    ] = None,
    data_b: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH",
            help="The other domain of a CycleGAN. NAME:7 is the class 7 of digits or "
            "fashion-mnist; NAME:inverted, NAME:turned, NAME:mirrored are changed images.",
            show_default="the images of --data, inverted",
        ),
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(help="Stop after so many steps.", show_default="2000")
    ] = None,
    max_seconds: Annotated[
        float | None, typer.Option(help="Stop after so many seconds.", show_default="no limit")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Of all processes together.", show_default="64")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of Adam.", show_default="0.001")
    ] = None,
    warmup_steps: Annotated[
        int | None, typer.Option(help="Linear warm-up.", show_default="100")
    ] = None,
    clip_norm: Annotated[
        float | None, typer.Option(help="Largest gradient norm.", show_default="100")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Decides the whole run.", show_default="0")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="32, 64, bf16-mixed, 16-mixed.", show_default="32")
    ] = None,
    devices: Annotated[int | None, typer.Option(help="Processes (DDP).", show_default="1")] = None,
    accelerator: Accelerator = None,
    set_: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Option of the model; may be repeated.",
            show_default=False,
        ),
    ] = [],  # noqa: B006
    size: Annotated[
        int | None,
        typer.Option(help="Side to which a folder of pictures is resized.", show_default=False),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints.", show_default="500")
    ] = None,
    sample_every: Annotated[
        int | None, typer.Option(help="Steps between sample pictures.", show_default="500")
    ] = None,
    log_every: Annotated[
        int | None, typer.Option(help="Steps between rows of metrics.csv.", show_default="20")
    ] = None,
    tensorboard: Annotated[
        bool | None, typer.Option("--tensorboard", help="Write for TensorBoard too.")
    ] = None,
) -> None:
    """Train MODEL on --data and keep the run in --out.

    It gets config.json, metrics.csv, checkpoint.pt and samples-STEP.png; of an
    adversarial model losses.png too.

    A run that was stopped or killed continues exactly with --resume.
    """
    given = {
        name: value
        for name, value in locals().items()
        if name not in ("set_", "out", "resume") and value is not None
    }  # fmt: skip
    if set_:
        given["options"] = _options(set_)
    from deepgen_ext.recipes import adversarial, registry
    from deepgen_ext.recipes import train as likelihood
    from deepgen_ext.recipes.run import settings_for

    settings = settings_for(given, out, resume=resume)
    recipe = adversarial if registry.recipe(model).adversarial else likelihood
    recipe.train(settings, out, resume=resume, console=Console())


@app.command("energies-table", rich_help_panel="Scores and tables")
def energies_table(
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of each fit.",
            show_default="4000 of planar and radial, 1500 of iaf and coupling",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Fits of each kind.")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples of a step.")] = 256,
    flow: Annotated[
        list[str] | None,
        typer.Option(
            help="planar, radial, iaf, coupling; may be repeated.", show_default="all of them"
        ),
    ] = None,
    energy: Annotated[
        list[str] | None,
        typer.Option(help="u1, u2, u3, u4; may be repeated.", show_default="all of them"),
    ] = None,
    length: Annotated[
        list[int] | None,
        typer.Option(
            min=1, help="K, the number of layers; may be repeated.", show_default="2 8 32"
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Fits at a time.", show_default="one a core")
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
    """Fit flows to the energies of Rezende & Mohamed, print KL(q||p) in nats.

    Mean and spread over seeds; log Z is from quadrature.
    """
    for path in out or ():
        check_suffix(path, (".csv", ".md"))
    from deepgen_ext.recipes.energies_table import fill_table
    from deepgen_ext.recipes.energy_fits import plan_fits

    fits = plan_fits(flow, energy, length, seeds=seeds, steps=steps, batch_size=batch_size)
    fill_table(fits, out or (), jobs=jobs, console=Console())


@app.command("hybrid-table", rich_help_panel="Scores and tables")
def hybrid_table(
    data: Annotated[str, typer.Option(help="Images with classes: digits.")] = "digits",
    steps: Annotated[int, typer.Option(min=1, help="Of each fit.")] = 600,
    seeds: Annotated[int, typer.Option(min=1, help="Fits of each kind.")] = 2,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples of a step.")] = 64,
    body: Annotated[
        list[str] | None,
        typer.Option(
            help="coupling, coupling+1x1, residual; may be repeated.", show_default="all of them"
        ),
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(help="lambda: 0, 1/D, 1; may be repeated.", show_default="all of them"),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Fits at a time.", show_default="one a core")
    ] = None,
    out: Annotated[
        list[Path] | None,
        typer.Option(help="A .csv or .md to write too; may be repeated.", show_default=False),
    ] = None,
) -> None:
    """Train flows under a linear classifier on lambda ln p(x) + ln p(y|x), print what each costs.

    Accuracy and bits/dim on held-out images, mean and spread over seeds.
    """
    for path in out or ():
        check_suffix(path, (".csv", ".md"))
    from deepgen_ext.recipes.hybrid_table import plan_fits, run_fits, table_of

    fits = plan_fits(data, body, weight, seeds=seeds, steps=steps, batch_size=batch_size)
    console = Console()
    results = run_fits(fits, out or (), jobs=jobs, console=console)
    console.print(table_of(results))


def _options(pairs: list[str]) -> dict[str, Any]:
    """``["levels=2", "coupling=additive"]`` to ``{"levels": 2, "coupling": "additive"}``."""
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip() or not text.strip():
            raise RecipeError(f"--set {pair}: expected KEY=VALUE, e.g. --set hidden_channels=64")
        text = {"true": "True", "false": "False", "none": "None"}.get(
            text.strip().lower(), text.strip()
        )
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        options[key.strip()] = (
            list(value) if isinstance(value, tuple) else value
        )  # as JSON will give it back
    return options
