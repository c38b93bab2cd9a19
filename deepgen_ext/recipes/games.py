"""What the experiments with small games share: points, critics trained on them, a table and a plot."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepgen_ext.models import AdversarialModel
from deepgen_ext.models.adversarial import CriticTerms
from deepgen_ext.recipes import RecipeError, require

__all__ = ["critic_steps", "descend", "figure", "generator_step", "save_rows", "slopes"]

Points = Callable[[int, torch.Generator], Tensor]


def descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def critic_steps(
    model: AdversarialModel,
    optimizer: torch.optim.Optimizer,
    points: Points,
    n_steps: int,
    generator: torch.Generator,
    batch_size: int = 256,
) -> CriticTerms | None:
    """Steps of the critic alone; the terms of the last."""
    terms = None
    for _ in range(n_steps):
        terms = model.critic_terms(points(batch_size, generator), generator=generator)
        descend(terms.loss, optimizer)
        model.after_critic_step()
    return terms


def generator_step(
    model: AdversarialModel,
    optimizer: torch.optim.Optimizer,
    points: Points,
    generator: torch.Generator,
    batch_size: int = 256,
) -> Tensor:
    """One step of the generator; its loss."""
    loss = model.generator_loss(points(batch_size, generator), generator=generator)
    descend(loss, optimizer)
    model.after_generator_step()
    return loss.detach()


def slopes(model: AdversarialModel, x: Tensor) -> Tensor:
    """|grad s(x)| of the critic in evaluation mode, (n,)."""
    training = model.critic.training
    model.critic.eval()
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model.critic(x).sum(), x)
    model.critic.train(training)
    return gradient.norm(dim=1)


def figure(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Any, Any]:
    """(figure, axes[rows][columns]) of matplotlib, without a screen."""
    require("matplotlib", "drawing a figure").use("Agg")
    pyplot = require("matplotlib.pyplot", "drawing a figure")
    return pyplot.subplots(
        rows, columns, figsize=size, layout="constrained", squeeze=False, **options
    )


def save_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """The numbers of a picture, as a .csv beside it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            for row in rows:
                writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in row])
    except OSError as error:
        raise RecipeError(f"{path}: cannot be written: {error.strerror or error}") from None
