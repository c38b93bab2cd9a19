"""The fixed-point solvers of other libraries: the only place that imports them, lazily."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks import peers

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Solver:
    """solve(g, y, tol) -> x of x + g(x) = y; what `tol` bounds is the peer's own affair."""

    name: str
    solve: Callable[[Map, Tensor, float], Tensor]


def solvers() -> Iterator[Solver | peers.NotInstalled]:
    """torchdeq's Anderson and Broyden, normflows' loop of Picard steps."""
    for name, peer, make in (
        ("torchdeq Anderson", "torchdeq", lambda: _torchdeq("anderson")),
        ("torchdeq Broyden", "torchdeq", lambda: _torchdeq("broyden")),
        ("normflows", "normflows", lambda: _normflows),
    ):
        yield Solver(name, make()) if peers.is_installed(peer) else peers.NotInstalled(name)


def _torchdeq(key: str) -> Callable[[Map, Tensor, float], Tensor]:
    from torchdeq.solver import get_solver

    def solve(g: Map, y: Tensor, tol: float) -> Tensor:
        solver = get_solver(key)
        # Anderson's regularisation of 1e-4 is absolute: residuals below it would get no help.
        more = {"lam": 1e-10} if key == "anderson" and y.dtype == torch.float64 else {}
        return solver(lambda x: y - g(x), y, max_iter=1000, tol=tol, stop_mode="abs", **more)[0]

    return solve


def _normflows(g: Map, y: Tensor, tol: float) -> Tensor:
    from normflows.flows.residual import iResBlock

    class Called(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return g(x)

    # It compares squares of differences with its tolerance.
    return iResBlock(Called())._inverse_fixed_point(y, atol=tol**2, rtol=tol**2)


def picard(g: Map, y: Tensor, tol: float) -> Tensor:
    """The loop that one writes, stopped when no element moves by more than tol."""
    x = y
    while True:
        x, last = y - g(x), x
        if (x - last).abs().max() <= tol:
            return x


def loosest(solve: Callable[[float], Tensor], exact: Tensor, goal: float) -> tuple[float, float]:
    """The largest tolerance of a ladder with which every sample's true error is at most `goal`, and the
    error; the last of the ladder where none is.
    """
    error = float("nan")
    for power in range(0, 33):
        tol = 10.0 ** (-power / 4)
        error = true_error(solve(tol), exact)
        if error <= goal:
            break
    return tol, error


def true_error(x: Tensor, exact: Tensor) -> float:
    """The largest 2-norm of a sample's error."""
    return (x.double() - exact).flatten(1).norm(dim=1).max().item()
