"""torchdeq's solvers of x = func(x), on the step of `nn.fixed_point_inverse`."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from deepgen_ext.nn.fixed_point.iteration import CHECK_EVERY, Iteration
from deepgen_ext.nn.fixed_point.result import (
    EXPANDING,
    EXPANSION,
    PROPOSED,
    RESIDUAL,
    RUNNING,
    STATUS,
    TOLERANCE,
    VALID,
)

Solved = tuple[Tensor, list[Tensor], dict[str, Tensor]]

LEAST_CONTRACTION = 0.5  # of which (L |r| + e) / (1 - L) is |r| and its rounding
NOTHING_YET = 1e8  # what torchdeq has before the first step
PAIRS = 5


@torch.compiler.disable
@torch.no_grad()
def fixed_point_iter(
    func: Callable[[Tensor], Tensor],
    x0: Tensor,
    max_iter: int = 50,
    tol: float = 1e-3,
    stop_mode: str = "abs",
    indexing: Collection[int] | None = None,
    tau: float = 1.0,
    return_final: bool = False,
    **kwargs: Any,
) -> Solved:
    """torchdeq's: x with x = func(x), sample by sample, from evaluations of func alone.

    With p = tau func(x) + (1 - tau) x and r = p - x, the result is the p whose |r| (for "rel": |r| /
    |p|) was the least, as in torchdeq. So are the keys and shapes of the dict. What differs:

    - x is not only moved to p. Mixtures of the last five p are tried (Anderson 1965), and given up
      where one does not lower |r|. Where func is seen to expand a distance, the sample goes to p and
      starts over. So it goes on where plain steps do.
    - A sample ends by itself, not with the slowest of the batch: its x and its numbers stay then.
    - It ends where L |r| / (1 - L) is below tol, L the largest contraction measured, 1/2 at least: a
      bound of the error where L is one of func (Banach's theorem), and never less strict than |r| <
      tol, torchdeq's rule. A slow contraction, 0.99 say, ends at |r| = tol / 99.
    - It also ends where rounding allows no better. With return_final it ends there alone.

    Args:
        func: maps a tensor like x0 to another; a sample of the result depends on that sample alone.
        x0: (n, ...) floating-point; with fewer than two dimensions each element is a sample.
        max_iter: evaluations of func, at least 1.
        tol: see above, >= 0.
        stop_mode: "abs" or "rel".
        indexing: numbers of evaluations after which the best x is kept.
        tau: damping.
        return_final: the last p instead of the best one.
        kwargs: unused, as in torchdeq.

    Returns:
        x, like x0 and without gradient (`nn.fixed_point_inverse` has one); the list of what indexing
        asked for; and, each with a row a sample, "abs_lowest" |r| and "rel_lowest" |r| / |p|, (n,),
        the least or, with return_final, the last; "abs_trace" and "rel_trace", (n, max_iter + 1),
        after 0, 1, ... evaluations, and the least ones once the sample has ended; "nstep", (n,), the
        evaluations after which stop_mode's was reached; "sradius", -1, not estimated.

    Raises:
        ValueError, TypeError: an argument that does not fit. A sample that does not get below tol
            raises nothing, as in torchdeq: look at "abs_lowest".
    """
    return _solve(func, x0, PAIRS, max_iter, tol, stop_mode, indexing, tau, return_final)


@torch.compiler.disable
@torch.no_grad()
def anderson_solver(
    func: Callable[[Tensor], Tensor],
    x0: Tensor,
    max_iter: int = 50,
    tol: float = 1e-3,
    stop_mode: str = "abs",
    indexing: Collection[int] | None = None,
    m: int = 6,
    lam: float = 1e-4,
    tau: float = 1.0,
    return_final: bool = False,
    **kwargs: Any,
) -> Solved:
    """torchdeq's: `fixed_point_iter` above, with mixtures of the last m of 2 to 12 pairs.

    lam, which torchdeq adds to the equations of the mixture, is not used: they are scaled to a unit
    diagonal, so that 1e-10 is enough. Steps are counted from the first evaluation of func, where
    torchdeq leaves its first two out of the traces.
    """
    if not 2 <= m <= 12:
        raise ValueError(f"m: expected 2 to 12, got {m}")
    return _solve(func, x0, m, max_iter, tol, stop_mode, indexing, tau, return_final)


def _solve(
    func: Callable[[Tensor], Tensor],
    x0: Tensor,
    memory: int,
    max_iter: int,
    tol: float,
    stop_mode: str,
    indexing: Collection[int] | None,
    tau: float,
    return_final: bool,
) -> Solved:
    _check(x0, max_iter, tol, stop_mode)
    n = len(x0) if x0.dim() >= 2 else x0.numel()
    working = torch.promote_types(x0.dtype, torch.float32)
    start = x0.reshape(n, -1 if n else 0).to(working)
    floor = torch.full((n,), 0.0 if return_final else tol, dtype=torch.float64, device=x0.device)
    run = Iteration(
        start.clone(memory_format=torch.contiguous_format),
        torch.zeros_like(start, memory_format=torch.contiguous_format),
        floor,
        memory,
    )
    best = _Best(start, stop_mode, return_final)
    kept = []
    for k in range(1, max_iter + 1):
        given = run.x.view(x0.shape).to(x0.dtype)
        value = func(given)
        if value.shape != x0.shape or value.dtype != x0.dtype:
            raise ValueError(
                f"func: expected a result like x0, {x0.dtype} of {tuple(x0.shape)}, got "
                f"{value.dtype} of {tuple(value.shape)}"
            )
        image = value.reshape(start.shape).to(working)
        if tau != 1:
            image = tau * image + (1 - tau) * run.x
        running = run.state[:, STATUS] == RUNNING
        best.take(image, (image - run.x).norm(dim=1), running, k)
        if stop_mode == "rel" and not return_final:
            run.record[:, TOLERANCE] = tol * image.norm(dim=1)
        run.step(-image, LEAST_CONTRACTION, 2 * torch.finfo(x0.dtype).eps)
        _start_over(run, image, best.residual)
        if indexing and k in indexing:
            kept.append(best.x.view(x0.shape).to(x0.dtype))
        is_time = x0.device.type == "cpu" or k % CHECK_EVERY == 0
        if is_time and not bool((run.state[:, STATUS] == RUNNING).any()):
            break
    x = best.x.view(x0.shape).to(x0.dtype)
    if indexing and not kept:
        kept.append(x)
    return x, kept, best.info(max_iter)


def _start_over(run: Iteration, image: Tensor, residual: Tensor) -> None:
    """A plain step, from which on nothing is known, where func expanded a distance."""
    expanding = run.state[:, STATUS] == EXPANDING
    run.x = torch.where(expanding[:, None], image, run.x)
    run.record[:, RESIDUAL] = torch.where(expanding, residual, run.record[:, RESIDUAL])
    run.record[:, EXPANSION].masked_fill_(expanding, 0)
    for column in (STATUS, VALID, PROPOSED):
        run.state[:, column].masked_fill_(expanding, 0)


class _Best:
    """The best p of each sample, and torchdeq's statistics."""

    def __init__(self, x: Tensor, stop_mode: str, is_last: bool) -> None:
        self.x = x
        self.stop_mode, self.is_last = stop_mode, is_last
        nothing = x.new_full((len(x),), NOTHING_YET)
        self.lowest = {"abs": nothing, "rel": nothing}
        self.traces = {mode: [nothing] for mode in self.lowest}
        self.steps = torch.zeros_like(nothing)
        self.residual = nothing

    def take(self, image: Tensor, residual: Tensor, running: Tensor, step: int) -> None:
        self.residual = residual
        for mode, error in (("abs", residual), ("rel", residual / (image.norm(dim=1) + 1e-9))):
            better = running if self.is_last else running & (error < self.lowest[mode])
            if mode == self.stop_mode:
                self.x = torch.where(better[:, None], image, self.x)
                self.steps = torch.where(better, float(step), self.steps)
            self.lowest[mode] = torch.where(better, error, self.lowest[mode])
            self.traces[mode].append(torch.where(running, error, self.lowest[mode]))

    def info(self, max_iter: int) -> dict[str, Tensor]:
        info = {f"{mode}_lowest": lowest for mode, lowest in self.lowest.items()}
        for mode, trace in self.traces.items():
            rest = [self.lowest[mode]] * (max_iter + 1 - len(trace))
            info[f"{mode}_trace"] = torch.stack(trace + rest, 1)
        return {**info, "nstep": self.steps, "sradius": torch.tensor([-1.0])}


def _check(x0: Tensor, max_iter: int, tol: float, stop_mode: str) -> None:
    if not isinstance(x0, Tensor) or not x0.is_floating_point():
        got = x0.dtype if isinstance(x0, Tensor) else type(x0).__name__
        raise TypeError(f"x0: expected a floating-point tensor, got {got}")
    if max_iter < 1:
        raise ValueError(f"max_iter: expected at least 1, got {max_iter}")
    if not (tol >= 0 and math.isfinite(tol)):
        raise ValueError(f"tol: expected a finite number of at least 0, got {tol}")
    if stop_mode not in ("abs", "rel"):
        raise ValueError(f"stop_mode: expected 'abs' or 'rel', got {stop_mode!r}")
