"""KL(q||p) of flows fitted to the energies U1 ... U4: the numbers behind a picture often drawn.

Rezende & Mohamed 2015 show the fitted densities and no figures. Here every entry is a mean over
seeds with its spread, measured on fresh samples, with log Z known from quadrature.
"""

from __future__ import annotations

import csv
import itertools
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from deepgen_ext import models
from deepgen_ext.recipes import RecipeError
from deepgen_ext.recipes.batches import generator_for
from deepgen_ext.recipes.energies import ENERGIES, inverse_temperature, log_normalizer, reverse_kl

__all__ = ["FLOWS", "Fit", "Measured", "fit_energy", "plan_fits", "run_fits", "table_of"]

SCORED_SAMPLES = 65536  # of the final estimate: a standard error of some thousandths of a nat


@dataclass(frozen=True)
class Flow:
    """How one kind of flow is made of K layers, and how fast it learns."""

    build: Callable[[int], nn.Module]
    learning_rate: float


# Hidden widths of 32: the nets of IAF and of the couplings have 20 to 500 times the parameters of a
# planar layer already.
FLOWS = {
    "planar": Flow(lambda length: models.PlanarFlow(2, length), 5e-3),
    "radial": Flow(lambda length: models.RadialFlow(2, length), 5e-3),
    "iaf": Flow(lambda length: models.IAF(2, length, hidden_features=(32, 32)), 2e-3),
    "coupling": Flow(
        lambda length: models.RealNVP((2,), couplings=length, hidden_channels=32), 2e-3
    ),
}
LENGTHS = (2, 8, 32)


@dataclass(frozen=True)
class Fit:
    """One fit: which flow of how many layers to which energy, and how."""

    energy: str
    flow: str
    length: int
    seed: int
    steps: int
    batch_size: int


@dataclass(frozen=True)
class Measured:
    """KL(q||p) in nats after a fit, the standard error of the estimate, and how long it took."""

    fit: Fit
    kl: float
    standard_error: float
    seconds: float


def fit_energy(fit: Fit) -> Measured:
    """Adam with a cosine schedule; the energy is tempered through the first half of the steps."""
    start = time.monotonic()
    flow = FLOWS[fit.flow]
    torch.manual_seed(generator_for(fit.seed, fit.energy, fit.flow, fit.length).initial_seed())
    model = flow.build(fit.length)
    adam = torch.optim.Adam(model.parameters(), lr=flow.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, fit.steps)
    noise = generator_for(fit.seed, "latents")
    for step in range(fit.steps):
        latents = torch.randn(fit.batch_size, 2, generator=noise)
        beta = inverse_temperature(step, fit.steps // 2)
        loss = reverse_kl(model, fit.energy, latents, beta).mean()
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        adam.step()
        schedule.step()
    kl, error = _score(model, fit.energy)
    return Measured(fit, kl, error, time.monotonic() - start)


@torch.no_grad()
def _score(model: nn.Module, energy: str) -> tuple[float, float]:
    """KL(q||p) of fresh latents, the same for every fit, and the standard error of the mean."""
    latents = torch.randn(SCORED_SAMPLES, 2, generator=generator_for(0, "scored latents"))
    values = reverse_kl(model, energy, latents).double()
    return values.mean().item(), (values.std() / math.sqrt(len(values))).item()


def plan_fits(
    flows: Sequence[str] | None,
    energies: Sequence[str] | None,
    lengths: Sequence[int] | None,
    *,
    seeds: int,
    steps: int,
    batch_size: int,
) -> list[Fit]:
    """All combinations, of all flows, energies and lengths where None is given."""
    for flag, given, known in (("--flow", flows, FLOWS), ("--energy", energies, ENERGIES)):
        for name in given or ():
            if name not in known:
                raise RecipeError(f"{flag} must be one of {', '.join(known)}; got '{name}'")
    every = itertools.product(
        energies or ENERGIES, flows or FLOWS, lengths or LENGTHS, range(seeds)
    )
    return [Fit(*chosen, steps=steps, batch_size=batch_size) for chosen in every]


def run_fits(fits: Sequence[Fit], *, jobs: int | None, console: Console) -> list[Measured]:
    """Each fit on one core, `jobs` at a time, with a line of progress for each."""
    jobs = min(jobs or os.cpu_count() or 1, len(fits))
    results = []
    for number, measured in enumerate(_measured(fits, jobs), 1):
        fit = measured.fit
        console.print(
            f"{number}/{len(fits)}  {fit.energy} {fit.flow} K={fit.length} seed {fit.seed}: "
            f"KL {measured.kl:.3f} nats, {measured.seconds:.0f} s",
            highlight=False,
            soft_wrap=True,
        )
        results.append(measured)
    return results


def _measured(fits: Sequence[Fit], jobs: int) -> Iterator[Measured]:
    if jobs == 1:
        yield from map(fit_energy, fits)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (1,)) as pool:
        yield from pool.map(fit_energy, fits)


def _rows(results: Sequence[Measured]) -> Iterator[tuple[str, int, dict[str, list[float]]]]:
    """(flow, K, {energy: the KL of each seed}) in the order of FLOWS and K."""
    kinds = sorted({(m.fit.flow, m.fit.length) for m in results}, key=_place)
    for flow, length in kinds:
        by_energy: dict[str, list[float]] = {}
        for m in results:
            if (m.fit.flow, m.fit.length) == (flow, length):
                by_energy.setdefault(m.fit.energy, []).append(m.kl)
        yield flow, length, by_energy


def _place(kind: tuple[str, int]) -> tuple[int, int]:
    return list(FLOWS).index(kind[0]), kind[1]


def _in_words(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}"
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def _caption(results: Sequence[Measured]) -> str:
    fit, seeds = results[0].fit, len({m.fit.seed for m in results})
    worst = max(m.standard_error for m in results)
    minutes = sum(m.seconds for m in results) / 60
    spread = f", mean and standard deviation of {seeds} seeds" if seeds > 1 else ", one seed"
    return (
        f"KL(q||p) in nats{spread}; {fit.steps} steps of {fit.batch_size} samples; standard error "
        f"of an estimate at most {worst:.3f}; {minutes:.1f} minutes of one core in all"
    )


def table_of(results: Sequence[Measured]) -> Table:
    """Flows and K down, energies across; log Z below each."""
    energies = sorted({m.fit.energy for m in results})
    table = Table("flow", "K", *energies, box=box.SIMPLE, caption=_caption(results))
    for flow, length, by_energy in _rows(results):
        table.add_row(flow, str(length), *(_in_words(by_energy[e]) for e in energies))
    table.add_section()
    table.add_row("log Z", "", *(f"{log_normalizer(e)[0]:.6f}" for e in energies))
    return table


def write_table(results: Sequence[Measured], out: Path) -> None:
    """Every fit as a row of a .csv, or the table as Markdown (.md)."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix.lower() == ".md":
            out.write_text(_markdown(results))
            return
        names = [field.name for field in fields(Fit)]
        with open(out, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*names, "kl", "standard_error", "seconds", "log_z"])
            for m in results:
                values: list[Any] = [getattr(m.fit, name) for name in names]
                log_z = log_normalizer(m.fit.energy)[0]
                writer.writerow([*values, m.kl, m.standard_error, round(m.seconds, 2), log_z])
    except OSError as error:
        raise RecipeError(f"{out}: cannot be written: {error.strerror or error}") from None


def _markdown(results: Sequence[Measured]) -> str:
    energies = sorted({m.fit.energy for m in results})
    lines = [f"| flow | K | {' | '.join(energies)} |", f"|{'---|' * (2 + len(energies))}"]
    for flow, length, by_energy in _rows(results):
        cells = " | ".join(_in_words(by_energy[e]) for e in energies)
        lines.append(f"| {flow} | {length} | {cells} |")
    return "\n".join([*lines, "", _caption(results), ""])
