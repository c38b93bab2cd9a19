"""Which classes a conditional model draws: those that are asked for, or as the data have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deepgen_ext.recipes import RecipeError
from deepgen_ext.recipes.batches import generator_for

__all__ = ["classes_as", "classes_asked", "share_in_class"]


def classes_asked(model: Any, name: str, asked: Sequence[int], n: int) -> Tensor | None:
    """The classes ``asked`` for in turn, (n,); None where none was.

    Raises:
        RecipeError: a model without classes, or a class that it does not have.
    """
    if not asked:
        return None
    n_classes = getattr(model, "n_classes", 0)
    if not n_classes:
        raise RecipeError(f"--label: this {name} was trained without classes")
    for label in asked:
        if not 0 <= label < n_classes:
            raise RecipeError(f"--label {label}: the classes are 0 to {n_classes - 1}")
    return torch.tensor(asked).repeat(-(-n // len(asked)))[:n]


def classes_as(labels: Tensor, n: int, seed: int) -> Tensor:
    """n classes in the shares that they have in ``labels``, to within one sample, in an order by
    chance: a score of a conditional model is of the data's mixture.
    """
    counts = torch.bincount(labels)
    ends = (counts.cumsum(0) * n).double() / len(labels)  # of each class, among n in their order
    classes = torch.searchsorted(ends, torch.arange(n) + 0.5)
    return classes[torch.randperm(n, generator=generator_for(seed, "classes"))]


def share_in_class(logits: Tensor, labels: Tensor) -> float:
    """The fraction of samples that a classifier puts into the class that was asked for."""
    return (logits.argmax(1) == labels).double().mean().item()
