"""Exact Wasserstein distances of 2-d samples."""

from __future__ import annotations

import torch
from rich import box
from rich.table import Table
from torch import Tensor

from deepgen_ext.recipes import RecipeError, require
from deepgen_ext.recipes.data import Dataset

__all__ = ["transport_table", "wasserstein_distance"]

TRANSPORT_SAMPLES = 2000  # an exact plan costs n^2 memory and about n^3 time


def wasserstein_distance(x: Tensor, y: Tensor, order: int = 1) -> float:
    """(min over plans of E |x - y|^order)^(1/order), exact, of samples (n, D) and (m, D)."""
    transport = require("ot", "an exact Wasserstein distance", extra="metrics")
    cost = torch.cdist(x.double(), y.double()).pow(order).numpy()
    return float(transport.emd2([], [], cost, numItermax=10_000_000)) ** (1 / order)


def transport_table(dataset: Dataset, samples: Tensor, split: str, caption: str) -> Table:
    """Of equally many samples of each kind."""
    if dataset.shape != (2,):
        raise RecipeError(f"vectors of {dataset.shape[0]} numbers: scores are of images and of 2-d")
    real, other = dataset.train, dataset.test
    if split == "test":
        real, other = other, real
    n = min(len(samples), len(real), len(other), TRANSPORT_SAMPLES)
    table = Table("", "generated", "the other split", box=box.SIMPLE, caption=caption)
    table.caption_justify = "left"
    table.add_row("samples", f"{n:,}", f"{n:,}")
    table.add_row("real samples", f"{n:,}", f"{n:,}")
    for order in (1, 2):
        distances = [wasserstein_distance(real[:n], y[:n], order) for y in (samples, other)]
        table.add_row(f"Wasserstein-{order}, exact", *(f"{distance:.4f}" for distance in distances))
    return table
