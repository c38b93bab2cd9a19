"""One process or several: Fabric's set-up, and how a failure of one of them ends all of them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from deepgen_ext.recipes import RecipeError, require
from deepgen_ext.recipes.run import PRECISIONS, Settings

__all__ = ["Step", "Together", "start_processes", "stop_processes"]


def start_processes(settings: Settings) -> Any:
    """Fabric with its processes started. A batch is shared evenly among them."""
    try:
        package = require("lightning_fabric", "training")
    except RecipeError as error:
        package = None
        with suppress(RecipeError):
            package = require("lightning.fabric", "training")  # the same code in the larger package
        if package is None:
            raise error
    for name in ("lightning_fabric", "lightning.fabric"):
        # no banner of ranks: our own line says what runs where
        logging.getLogger(name).setLevel(logging.ERROR)
    on_gpu = settings.accelerator != "cpu" and torch.cuda.is_available()
    if settings.precision == "16-mixed" and not on_gpu:  # Fabric would take bfloat16 instead
        raise RecipeError(
            "--precision 16-mixed: float16 and the scaling of its losses are for a GPU, and this run "
            "is on the CPU: bf16-mixed runs there"
        )
    fabric = package.Fabric(
        accelerator=settings.accelerator,
        devices=settings.devices,
        strategy="ddp" if settings.devices > 1 else "auto",
        precision=PRECISIONS[settings.precision],
    )
    fabric.launch()
    if settings.batch_size % fabric.world_size:
        raise RecipeError(
            f"--batch-size {settings.batch_size} is the batch of all processes together: it must "
            f"be divisible by their number, {fabric.world_size}"
        )
    return fabric


def stop_processes(fabric: Any) -> None:
    """Take leave of the others. Left to the interpreter's exit, the threads of their connection have
    been seen to end the process with an abort.
    """
    if fabric.world_size > 1 and torch.distributed.is_initialized():
        fabric.barrier()
        torch.distributed.destroy_process_group()


class Step(nn.Module):
    """A recipe's step as a forward.

    Mixed precision and DDP apply to calls of the module that Fabric wraps, and only to those: with
    one process it does not redirect other methods, marked as forward methods or not.
    """

    def __init__(
        self, net: nn.Module, step: Callable[[Any, Tensor, Tensor | None], Tensor]
    ) -> None:
        super().__init__()
        self.net, self.step = net, step

    def forward(self, batch: Tensor, noise: Tensor | None) -> Tensor:
        return self.step(self.net, batch, noise)


class Together:
    """``with Together(fabric):`` what the first process does alone, and fails at, fails on all.

    Without it the others would wait for ever for the one that has stopped.
    """

    def __init__(self, fabric: Any) -> None:
        self._fabric = fabric

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if self._fabric.world_size == 1:
            return
        if error is not None and not isinstance(error, RecipeError):
            return  # a bug: its traceback now, and Fabric ends the others
        message = self._fabric.broadcast(None if error is None else str(error))
        if message is not None and error is None:
            raise RecipeError(message)
