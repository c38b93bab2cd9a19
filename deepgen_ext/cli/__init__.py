"""``deepgen``: train, sample and evaluate models, show what was built. Run ``deepgen --help``."""

from __future__ import annotations

import os
from typing import Any

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


def main() -> None:
    """The entry point of the command ``deepgen``."""
    app()


# Each adds its commands to the app, in the order in which --help lists them.
from deepgen_ext.cli import training, trained, latents, games, scoring, profiling, showing  # noqa: E402, F401, I001
