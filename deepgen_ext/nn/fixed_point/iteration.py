"""The loop around the steps: which samples g is called with, and when to stop."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deepgen_ext import ops

from .result import (
    EXPANSION,
    NEWEST,
    RESIDUAL,
    RUNNING,
    STATUS,
    TOLERANCE,
)

CHECK_EVERY = 4  # steps between two looks at a GPU
COMPACT_BELOW = 0.75  # of the samples g is called with still run: the others are left out


class Iteration:
    """The state of a fixed-point iteration on x = y - g(x) for samples (n, D)."""

    def __init__(self, x: Tensor, y: Tensor, tolerance: Tensor, memory: int) -> None:
        n, features = y.shape
        sums = {"dtype": torch.float64, "device": y.device}
        self.x, self.y = x, y
        self.images = y.new_empty(n, memory, features)
        self.residuals = y.new_empty(n, memory, features)
        self.gram = torch.zeros(n, memory, memory, **sums)
        self.record = torch.full((n, 4), torch.inf, **sums)
        self.record[:, TOLERANCE] = tolerance
        self.record[:, EXPANSION] = 0
        self.state = torch.zeros(n, 5, dtype=torch.int32, device=y.device)

    def tensors(self) -> list[Tensor]:
        return [self.x, self.y, self.images, self.residuals, self.gram, self.record, self.state]

    def step(self, g_x: Tensor, lipschitz: float, rounding: float) -> None:
        ops.fixed_point_step(
            self.x,
            g_x,
            self.y,
            self.images,
            self.residuals,
            self.gram,
            self.record,
            self.state,
            lipschitz=lipschitz,
            rounding=rounding,
        )

    def part(self, samples: Tensor) -> Iteration:
        """A copy of some of the samples."""
        part = Iteration.__new__(Iteration)
        (part.x, part.y, part.images, part.residuals, part.gram, part.record, part.state) = (
            t[samples] for t in self.tensors()
        )
        return part

    def take_back(self, part: Iteration, samples: Tensor) -> None:
        for mine, theirs in zip(self.tensors(), part.tensors(), strict=True):
            mine[samples] = theirs

    def finish(self) -> None:
        """Samples that still run give the last iterate that has a bound."""
        if self.images.shape[1]:
            newest = self.state[:, NEWEST].long()[:, None, None]
            last = self.images.take_along_dim(newest, 1)[:, 0]
            known = self.record[:, RESIDUAL].isfinite() & (self.state[:, STATUS] != 1)
            self.x = torch.where(known[:, None], last, self.x)


def iterate(
    g: Callable[[Tensor], Tensor],
    run: Iteration,
    *,
    lipschitz: float,
    rounding: float,
    max_iterations: int,
    compact: bool,
) -> None:
    """Steps until no sample runs or each has had max_iterations evaluations. g maps (n, D) rows."""
    rows: Tensor | None = None  # of `run`, which `part` works on
    part = run
    watch = _Watch(run.x.device)
    for _ in range(max_iterations):
        part.step(g(part.x), lipschitz, rounding)
        if run.x.device.type != "cpu":
            if watch.has_stopped(part.state):
                break
            continue
        running = (part.state[:, STATUS] == RUNNING).nonzero().flatten()
        if not len(running):
            break
        if compact and len(running) <= COMPACT_BELOW * len(part.x):
            if rows is not None:
                run.take_back(part, rows)
            rows = running if rows is None else rows[running]
            part = part.part(running)
    if rows is not None:
        run.take_back(part, rows)
    run.finish()


class _Watch:
    """Tells some steps late, and without waiting for the GPU, that no sample runs any more."""

    def __init__(self, device: torch.device) -> None:
        self.steps = 0
        self.event: torch.cuda.Event | None = None
        self.running: Tensor | None = None
        if device.type == "cuda":
            self.running = torch.ones((), dtype=torch.bool, pin_memory=True)

    def has_stopped(self, state: Tensor) -> bool:
        if self.event is not None and self.event.query():
            self.event = None
            if not self.running:
                return True
        self.steps += 1
        if self.event is None and self.steps % CHECK_EVERY == 0:
            self.running.copy_((state[:, STATUS] == RUNNING).any(), non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()
        return False
