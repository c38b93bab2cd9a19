"""Flows of several kinds and lengths, fitted to the energies U1 ... U4 and scored."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from torch import nn

from deepgen_ext import models
from deepgen_ext.recipes import RecipeError
from deepgen_ext.recipes.batches import generator_for
from deepgen_ext.recipes.energies import (
    ENERGIES,
    inverse_temperature,
    leave_identity,
    reverse_kl,
)
from deepgen_ext.recipes.fits import run_side_by_side

__all__ = ["FLOWS", "LENGTHS", "Fit", "Measured", "fit_energy", "plan_fits", "run_fits"]

SCORED_SAMPLES = 65536  # of the final estimate: a standard error of some thousandths of a nat


@dataclass(frozen=True)
class Flow:
    """How one kind of flow is made of K layers, how fast it learns, and for how long."""

    build: Callable[[int], nn.Module]
    learning_rate: float
    steps: int


# Hidden widths of 32: the nets of IAF and of the couplings have 20 to 500 times the parameters of a
# planar layer already. Their steps cost 2 to 20 times as much as planar ones, which need more of
# them.
FLOWS = {
    "planar": Flow(lambda length: models.PlanarFlow(2, length), 2e-2, 4000),
    "radial": Flow(lambda length: models.RadialFlow(2, length), 2e-2, 4000),
    "iaf": Flow(lambda length: models.IAF(2, length, hidden_features=(32, 32)), 4e-3, 1500),
    "coupling": Flow(
        lambda length: models.RealNVP((2,), couplings=length, hidden_channels=32), 4e-3, 1500
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
    """Adam, warmed up and cooled down; the energy is tempered through the first half of the steps."""
    start = time.monotonic()
    flow = FLOWS[fit.flow]
    torch.manual_seed(generator_for(fit.seed, fit.energy, fit.flow, fit.length).initial_seed())
    model = flow.build(fit.length)
    leave_identity(model)
    # 256 small parameters at K = 32: unfused, Adam would take a third of the time.
    adam = torch.optim.Adam(model.parameters(), lr=flow.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: _pace(step / fit.steps))
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


def _pace(done: float) -> float:
    """The learning rate, as a part of its largest, where a fraction ``done`` of the steps is."""
    return min(1.0, 0.05 + done / 0.05) * 0.5 * (1 + math.cos(math.pi * done))


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
    steps: int | None,
    batch_size: int,
) -> list[Fit]:
    """All combinations, of all flows, energies and lengths where None is given; seed after seed."""
    for flag, given, known in (("--flow", flows, FLOWS), ("--energy", energies, ENERGIES)):
        for name in given or ():
            if name not in known:
                raise RecipeError(f"{flag} must be one of {', '.join(known)}; got '{name}'")
    every = itertools.product(
        range(seeds), energies or ENERGIES, flows or FLOWS, lengths or LENGTHS
    )
    return [
        Fit(energy, flow, length, seed, steps or FLOWS[flow].steps, batch_size)
        for seed, energy, flow, length in every
    ]


def run_fits(fits: Sequence[Fit], *, jobs: int | None, console: Console) -> Iterator[Measured]:
    """Each fit on one core, `jobs` at a time, with a line of progress as it is done."""
    for number, measured in enumerate(run_side_by_side(fit_energy, fits, jobs), 1):
        fit = measured.fit
        console.print(
            f"{number}/{len(fits)}  {fit.energy} {fit.flow} K={fit.length} seed {fit.seed}: "
            f"KL {measured.kl:.3f} nats, {measured.seconds:.0f} s",
            highlight=False,
            soft_wrap=True,
        )
        yield measured
