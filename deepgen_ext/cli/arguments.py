"""What several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deepgen_ext.recipes import RecipeError

__all__ = ["Accelerator", "RunFolder", "check_suffix", "device_of"]

RunFolder = Annotated[
    Path, typer.Argument(metavar="DIR", help="Folder of a run, as train --out made it.")
]
Accelerator = Annotated[str | None, typer.Option(help="auto, cpu or cuda.", show_default="auto")]


def device_of(accelerator: str | None) -> str:
    import torch

    if accelerator not in (None, "auto", "cpu", "cuda"):
        raise RecipeError(f"--accelerator must be one of auto, cpu, cuda; got '{accelerator}'")
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise RecipeError("--accelerator cuda: torch sees no CUDA device here")
    return "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"


def check_suffix(out: Path, suffixes: tuple[str, ...] = (".png", ".npy")) -> None:
    """One sentence for a name that ends otherwise."""
    if out.suffix.lower() not in suffixes:
        raise RecipeError(f"--out {out}: expected a name that ends in {' or '.join(suffixes)}")
