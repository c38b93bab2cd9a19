"""``deepgen``: train, sample and evaluate models, show what was built. Run ``deepgen --help``."""

from __future__ import annotations

import ast
import os
from pathlib import Path
from typing import Annotated, Any

# Without it a busy neighbour stalls every parallel region for a scheduler's tick (measured: 8 times
# slower training). libgomp reads it when torch is first imported.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

try:
    import typer
    from rich.console import Console
    from typer.core import TyperGroup
except ModuleNotFoundError as missing:
    raise SystemExit(f'deepgen needs {missing.name}: pip install "deepgen_ext[recipes]"') from None

# Everything that imports torch is imported inside the commands: --help answers at once.
from deepgen_ext.recipes import RecipeError

__all__ = ["app", "main"]


class _Commands(TyperGroup):
    """Turns a `RecipeError` into one red sentence and exit code 2; a bug keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except RecipeError as error:
            if os.environ.get("LOCAL_RANK", "0") == "0":  # of several processes one speaks
                console = Console(stderr=True, highlight=False)
                console.print(
                    str(error), style="red", markup=False, soft_wrap=not console.is_terminal
                )
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            Console(stderr=True).print(
                "stopped; the last checkpoint is whole, and --resume continues from it"
            )
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train, sample and evaluate deep generative models on fused kernels.",
)

RunFolder = Annotated[
    Path, typer.Argument(metavar="DIR", help="Folder of a run, as train --out made it.")
]
Accelerator = Annotated[str | None, typer.Option(help="auto, cpu or cuda.", show_default="auto")]


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


def _device(accelerator: str | None) -> str:
    import torch

    if accelerator not in (None, "auto", "cpu", "cuda"):
        raise RecipeError(f"--accelerator must be one of auto, cpu, cuda; got '{accelerator}'")
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise RecipeError("--accelerator cuda: torch sees no CUDA device here")
    return "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"


@app.command(no_args_is_help=True)
def train(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Name of a model: realnvp, glow; an unknown name lists all.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the run.", show_default=False)],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH",
            help="digits, fashion-mnist, two-moons, circles, checkerboard, 8-gaussians, spirals; "
            "or a folder of IDX files, of CIFAR-10's python batches or of pictures; or a "
            ".npy/.npz file.",
            show_default=False,
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

    It gets config.json, metrics.csv, checkpoint.pt and samples-STEP.png.

    A run that was stopped or killed continues exactly with --resume.
    """
    given = {
        name: value
        for name, value in locals().items()
        if name not in ("set_", "out", "resume") and value is not None
    }  # fmt: skip
    if set_:
        given["options"] = _options(set_)
    from deepgen_ext.recipes.run import settings_for
    from deepgen_ext.recipes.train import train as train_model

    settings = settings_for(given, out, resume=resume)
    train_model(settings, out, resume=resume, console=Console())


@app.command(no_args_is_help=True)
def sample(
    run: RunFolder,
    n: Annotated[int, typer.Option("--n", min=1, help="Number of samples.")] = 64,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="Scale of the latents' deviation.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[Path, typer.Option(help="A .png, or a .npy for the numbers.")] = Path(
        "samples.png"
    ),
    accelerator: Accelerator = None,
) -> None:
    """Draw samples from a trained model."""
    if out.suffix.lower() not in (".png", ".npy"):
        raise RecipeError(f"--out {out}: expected a name that ends in .png or .npy")
    from deepgen_ext.recipes.trained import sample_run

    sample_run(run, n=n, temperature=temperature, seed=seed, out=out, device=_device(accelerator))
    print(out)


@app.command(no_args_is_help=True)
def evaluate(
    run: RunFolder,
    data: Annotated[
        str | None,
        typer.Option(metavar="NAME|PATH", help="Other data.", show_default="the run's own"),
    ] = None,
    split: Annotated[str, typer.Option(help="test or train.")] = "test",
    seed: Annotated[int, typer.Option(min=0, help="Of the dequantisation noise.")] = 0,
    picture: Annotated[
        Path | None,
        typer.Option(help="PNG of inputs above reconstructions.", show_default=False),
    ] = None,
    accelerator: Accelerator = None,
) -> None:
    """Measure bits/dim (images) or nats (vectors) on held-out data, and the error of
    inverse(forward(x)).
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
            device=_device(accelerator),
        )
    )


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the pictures and the run.")] = Path("demo"),
    seconds: Annotated[float, typer.Option(min=1.0, help="Time to train.")] = 60.0,
) -> None:
    """Train a small Glow on digits, draw from it, and time the fused op: about two minutes."""
    from deepgen_ext.recipes.demo import run_demo

    run_demo(out, seconds=seconds, console=Console())


@app.command()
def info() -> None:
    """Show versions, devices, SIMD level, compiled architectures, and which op has which
    kernels.
    """
    import deepgen_ext

    console = Console()
    for table in _info_tables(dict(deepgen_ext.build_info())):
        console.print(table)


def _info_tables(facts: dict[str, Any]) -> list[Any]:
    """One table of facts, and one of ops against devices from the entry ``ops``: {name: ["cpu",
    "cuda"]}.
    """
    from rich import box
    from rich.table import Table

    ops = facts.pop("ops", {})
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        table.add_row(name.replace("_", " "), text if value not in (None, "", [], ()) else "none")
    kernels = Table("op", "cpu", "cuda", box=box.SIMPLE, pad_edge=False)
    for name, devices in ops.items():
        kernels.add_row(name, *("yes" if device in devices else "-" for device in ("cpu", "cuda")))
    return [table, kernels]


def main() -> None:
    """The entry point of the command ``deepgen``."""
    app()


if __name__ == "__main__":
    main()
