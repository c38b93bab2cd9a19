"""What a density costs a classifier: accuracy and bits/dim at three weights of ln p(x).

The table of R. Chen et al. 2019 (CIFAR-10), here with its spread over seeds and on data that a CPU
learns.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from deepgen_ext.recipes import RecipeError
from deepgen_ext.recipes.batches import batch_indices, batch_noise, generator_for
from deepgen_ext.recipes.data import Dataset, load_classes
from deepgen_ext.recipes.fits import (
    append_row,
    in_words,
    markdown,
    run_side_by_side,
    write_text,
)
from deepgen_ext.recipes.hybrid import BODIES, Hybrid, body
from deepgen_ext.recipes.metrics import evaluate

__all__ = ["Fit", "Measured", "fit_hybrid", "plan_fits", "run_fits", "table_of", "write_table"]

WEIGHTS = ("0", "1/D", "1")
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Fit:
    """One network to train: which flow under the classifier, which lambda, and how."""

    data: str
    body: str
    weight: str
    seed: int
    steps: int
    batch_size: int


@dataclass(frozen=True)
class Measured:
    """On held-out images: the share of right classes, and bits/dim (nan for lambda = 0)."""

    fit: Fit
    accuracy: float
    bits_per_dim: float
    seconds: float


def fit_hybrid(fit: Fit) -> Measured:
    """Adam with a cosine schedule; then every held-out image is scored once."""
    start = time.monotonic()
    data, (train_labels, _) = load_classes(fit.data)
    torch.manual_seed(generator_for(fit.seed, fit.body, fit.weight).initial_seed())
    model = Hybrid(body(fit.body, data.shape, data.n_levels), int(train_labels.max()) + 1)
    weight = 1 / model.flow.dims if fit.weight == "1/D" else float(fit.weight)
    for step in range(fit.steps):
        chosen = batch_indices(fit.seed, step, fit.batch_size, len(data.train))
        levels, labels = data.train[chosen], train_labels[chosen]
        noise = batch_noise(fit.seed, step, tuple(levels.shape))
        if step == 0:
            model.flow.initialize(levels, noise=noise)
            adam = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, fit.steps)
        loss = model.loss(levels, labels, noise, weight)
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 100.0)
        adam.step()
        schedule.step()
    accuracy, bits = _score(model, data, weight > 0)
    return Measured(fit, accuracy, bits, time.monotonic() - start)


@torch.no_grad()
def _score(model: Hybrid, data: Dataset, with_density: bool) -> tuple[float, float]:
    """Classes of the middle of each level; bits/dim as `deepgen evaluate` measures them."""
    model.eval()
    middle = torch.full(data.test.shape, 0.5)
    _, logits = model(data.test, middle, with_density=False)
    accuracy = (logits.argmax(1) == data.labels[1]).double().mean().item()
    if not with_density:
        return accuracy, math.nan
    return accuracy, evaluate(model.flow, data.test, n_levels=data.n_levels).mean


def plan_fits(
    data: str,
    bodies: Sequence[str] | None,
    weights: Sequence[str] | None,
    *,
    seeds: int,
    steps: int,
    batch_size: int,
) -> list[Fit]:
    """All combinations, of all bodies and weights where None is given."""
    load_classes(data)
    for flag, given, known in (("--body", bodies, BODIES), ("--weight", weights, WEIGHTS)):
        for name in given or ():
            if name not in known:
                raise RecipeError(f"{flag} must be one of {', '.join(known)}; got '{name}'")
    every = itertools.product([data], bodies or BODIES, weights or WEIGHTS, range(seeds))
    return [Fit(*chosen, steps=steps, batch_size=batch_size) for chosen in every]


def run_fits(
    fits: Sequence[Fit], outs: Sequence[Path] = (), *, jobs: int | None, console: Console
) -> list[Measured]:
    """Each fit on one core, `jobs` at a time, with a line of progress for each; the files hold what has
    been measured so far.
    """
    results = []
    for number, measured in enumerate(run_side_by_side(fit_hybrid, fits, jobs), 1):
        fit = measured.fit
        console.print(
            f"{number}/{len(fits)}  {fit.body} lambda={fit.weight} seed {fit.seed}: accuracy "
            f"{100 * measured.accuracy:.2f} %, {measured.bits_per_dim:.3f} bits/dim, "
            f"{measured.seconds:.0f} s",
            highlight=False,
            soft_wrap=True,
        )
        results.append(measured)
        for out in outs:
            write_table(results, out)
    return results


def _columns(results: Sequence[Measured]) -> list[tuple[str, str]]:
    """(heading, weight) as in the paper: accuracy alone at 0, then bits/dim and accuracy."""
    weights = [weight for weight in WEIGHTS if any(m.fit.weight == weight for m in results)]
    columns = []
    for weight in weights:
        if weight != "0":
            columns.append((f"lambda={weight}: bits/dim", weight))
        columns.append((f"lambda={weight}: accuracy, %", weight))
    return columns


def _rows(results: Sequence[Measured]) -> Iterator[list[str]]:
    for name in BODIES:
        mine = [m for m in results if m.fit.body == name]
        if not mine:
            continue
        row = [name]
        for heading, weight in _columns(results):
            at = [m for m in mine if m.fit.weight == weight]
            if "bits" in heading:
                row.append(in_words([m.bits_per_dim for m in at], 3))
            else:
                row.append(in_words([100 * m.accuracy for m in at], 2))
        yield row


def _caption(results: Sequence[Measured]) -> str:
    fit, seeds = results[0].fit, len({m.fit.seed for m in results})
    minutes = sum(m.seconds for m in results) / 60
    spread = f"mean and standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    return (
        f"held-out images of {fit.data}, {spread}; {fit.steps} steps of {fit.batch_size} images; "
        f"{minutes:.1f} minutes of one core in all"
    )


def _command(results: Sequence[Measured]) -> str:
    """What writes this table again."""
    fits = [m.fit for m in results]
    seeds = 1 + max(fit.seed for fit in fits)
    fit = fits[0]
    words = ["deepgen hybrid-table", f"--data {fit.data}", f"--steps {fit.steps}"]
    words += [f"--batch-size {fit.batch_size}", f"--seeds {seeds}"]
    for flag, name, known in (("--body", "body", BODIES), ("--weight", "weight", WEIGHTS)):
        found = {getattr(fit, name) for fit in fits}
        if found != set(known):
            words += [f"{flag} {value}" for value in known if value in found]
    return " ".join(words)


def table_of(results: Sequence[Measured]) -> Table:
    """Flows down, lambda across."""
    headings = [heading for heading, _ in _columns(results)]
    table = Table("flow", *headings, box=box.SIMPLE, caption=_caption(results))
    for row in _rows(results):
        table.add_row(*row)
    return table


def write_table(results: Sequence[Measured], out: Path) -> None:
    """Every fit as a row of a .csv, or the table as Markdown (.md)."""
    if out.suffix.lower() == ".md":
        headings = [heading for heading, _ in _columns(results)]
        table = markdown(["flow", *headings], list(_rows(results)))
        caption = f"{_caption(results)}. Written by `{_command(results)}`."
        write_text(out, f"{table}\n\n{caption}\n")
        return
    write_text(out, "")
    for m in results:
        measured = {"accuracy": m.accuracy, "bits_per_dim": m.bits_per_dim}
        append_row(out, asdict(m.fit) | measured | {"seconds": round(m.seconds, 2)})
