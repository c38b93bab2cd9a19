"""What the training loops share: the beginning of a run, its checkpoints, and when it stops."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from deepgen_ext.recipes import RecipeError, checkpoint
from deepgen_ext.recipes.data import Dataset
from deepgen_ext.recipes.processes import Together
from deepgen_ext.recipes.progress import COLUMNS, MetricsFile
from deepgen_ext.recipes.run import Settings, write_config

__all__ = [
    "cuda_devices",
    "fraction",
    "introduce",
    "is_done",
    "open_run",
    "save",
    "stop_if_not_finite",
]


def is_done(settings: Settings, first: int, out: Path, console: Console) -> bool:
    """Whether the run in ``out`` has all its steps already; it then says so."""
    if first < settings.max_steps:
        return False
    console.print(
        f"{out} is at step {first} already: a larger --max-steps continues it",
        soft_wrap=True,
        highlight=False,
    )
    return True


def open_run(
    fabric: Any,
    settings: Settings,
    data: Dataset,
    out: Path,
    *,
    first_step: int,
    columns: Sequence[str] = COLUMNS,
) -> MetricsFile | None:
    """The folder with its ``config.json`` and ``metrics.csv``; None but on the first process."""
    with Together(fabric):
        if not fabric.is_global_zero:
            return None
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecipeError(f"{out}: cannot be made: {error.strerror or error}") from None
        write_config(out, settings, data)
        return MetricsFile(
            out, first_step=first_step, tensorboard=settings.tensorboard, columns=columns
        )


def introduce(
    fabric: Any,
    settings: Settings,
    net: nn.Module,
    description: str,
    out: Path,
    console: Console,
) -> None:
    """One line: what is trained, on what, where."""
    size = sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)
    console.print(
        f"{settings.model}, {size:,} parameters, on {description}, {fabric.world_size} x "
        f"{fabric.device.type}, into {out}",
        highlight=False,
        soft_wrap=True,
    )


def save(
    fabric: Any, path: Path, settings: Settings, net: nn.Module, optimizer: Any, step: int
) -> None:
    """Parameters, the state of the optimiser or of several, loss scaler, step and every process's
    random state.
    """
    random_states = [checkpoint.random_state()]
    if fabric.world_size > 1:
        random_states = [None] * fabric.world_size
        torch.distributed.all_gather_object(random_states, checkpoint.random_state())
    state = {
        "model": settings.model,
        "options": settings.options,
        "step": step,
        "parameters": net.state_dict(),
        "optimizer": optimizer,
        "precision": fabric.strategy.precision.state_dict(),
        "random": random_states,
    }
    with Together(fabric):
        if fabric.is_global_zero:
            checkpoint.save(path, state)


def stop_if_not_finite(bad_step: int, saved: int, path: Path) -> None:
    """Raise if ``bad_step`` is one, and say what is left."""
    if bad_step >= 0:
        kept = (
            f"the checkpoint of step {saved} in {path} is whole"
            if path.exists()
            else "no checkpoint was saved yet"
        )
        raise RecipeError(
            f"the loss or its gradient is not finite at step {bad_step + 1}: {kept}; try a "
            f"smaller --learning-rate or --clip-norm"
        )


def cuda_devices(device: torch.device) -> list[torch.device]:
    """Those whose random state is to be kept."""
    return [device] if device.type == "cuda" else []


def fraction(settings: Settings, first: int, step: int, seconds: float, done: bool) -> float:
    """Of the work, by steps or by seconds, whichever is further."""
    if done:
        return 1.0
    done_steps = (step - first) / (settings.max_steps - first)
    if settings.max_seconds is None:
        return done_steps
    return min(1.0, max(done_steps, seconds / settings.max_seconds))
