"""What tables of many fits share: fits side by side, rows kept as they are done, cells in words."""

from __future__ import annotations

import csv
import multiprocessing
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch

from deepgen_ext.recipes import RecipeError

__all__ = ["append_row", "in_words", "markdown", "read_rows", "run_side_by_side", "write_text"]

Fit = TypeVar("Fit")
Measured = TypeVar("Measured")


def run_side_by_side(
    run: Callable[[Fit], Measured], fits: Sequence[Fit], jobs: int | None
) -> Iterator[Measured]:
    """run(fit) of each, in order, each on one core, ``jobs`` at a time; None: one a core."""
    jobs = min(jobs or os.cpu_count() or 1, len(fits))
    if jobs <= 1:
        yield from map(run, fits)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (1,)) as pool:
        yield from pool.map(run, fits)


def append_row(path: Path, row: Mapping[str, object]) -> None:
    """One row more of a .csv, below a header where the file is new or empty."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists() or path.stat().st_size == 0
        with open(path, "a", newline="") as file:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be written: {error.strerror or error}") from None


def read_rows(path: Path, columns: Sequence[str], what: str) -> list[dict[str, str]]:
    """What `append_row` wrote.

    Raises:
        RecipeError: a file with other columns, that is not ``what``, or that cannot be read.
    """
    try:
        with open(path, newline="") as file:
            rows = csv.DictReader(file)
            if rows.fieldnames != list(columns):
                raise RecipeError(f"{path}: not {what}; expected {','.join(columns)}")
            return list(rows)
    except (OSError, ValueError) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(f"{path}: cannot be read: {error}") from None


def write_text(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be written: {error.strerror or error}") from None


def in_words(values: Sequence[float], digits: int) -> str:
    """The mean, and of several the standard deviation; nothing of none."""
    if not values:
        return ""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
