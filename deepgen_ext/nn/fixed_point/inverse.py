"""The inverse of x + g(x) for a contraction g, by fixed-point iteration."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from deepgen_ext import ops

from .gradient import with_implicit_gradient
from .iteration import Iteration, iterate
from .mlp import FusedMLP, NotFused, fused_mlp
from .result import FixedPointError, FixedPointResult, empty_result, result_of

METHODS = ("auto", "picard", "anderson")


@torch.compiler.disable
def fixed_point_inverse(
    g: Callable[[Tensor], Tensor],
    y: Tensor,
    *,
    lipschitz: float,
    tol: float = 1e-6,
    max_iterations: int = 200,
    method: str = "auto",
    x0: Tensor | None = None,
    raise_on_failure: bool = True,
    compact: bool | None = None,
    rounding: float = 2.0,
    fused: bool | None = None,
) -> FixedPointResult:
    r"""Solves x + g(x) = y for x, sample by sample, where Lip(g) <= lipschitz < 1.

    All norms are 2-norms over the elements of a sample. With r = y - g(x) - x and p = x + r, the
    Picard step, Banach's theorem gives

        |p - x*| <= (L |r| + e) / (1 - L),

    e the rounding of p. That is `error_bound`, and a sample stops when it is at most `tol`. e is taken
    as rounding * eps (|x| + |y|), by which g may be off too (more is met where hidden units or biases
    are much larger than x). A tolerance below 2 e / (1 - L) cannot be reached and is raised to it, or,
    where rounding leads the Picard steps in a circle and |r| falls no more, to the bound reached:
    `result.tolerance` says which was used. `lipschitz` is believed until two evaluations show more:
    then the measured expansion takes its place, and from 1 on the sample is given up (status 2).

    ==========  ==================================================================================
    method      next x
    ==========  ==================================================================================
    "picard"    p: |r| falls by the contraction of g, about log(tol) / log(L) evaluations
    "anderson"  the mixture of the last p with the least mixed residual (Anderson 1965; Walker & Ni
                2011), 5 of them, 10 for L > 0.9. Where |r| does not fall, p of the last x whose did.
                Where a Picard step has made |r| ten times smaller, another one: a sample on which g
                contracts by far more than L says pays nothing for mixtures.
    "auto"      "anderson", or "picard" for L <= 0.1, where a few evaluations do
    ==========  ==================================================================================

    Contraction near 1 is what Anderson's method is for. With g = Q'tanh(Qx) times 0.98 or -0.98,
    where Picard steps take 490 to 750 evaluations of g to an error of 1e-6, it took at most 16 and 84
    (Newton's method with GMRES at least 46 and 355, a Jacobian-vector product counted as two).

    Args:
        g: maps (n, ...) to the same shape and dtype; row i of the result depends on row i alone.
        y: (n, ...) floating-point. Half types are iterated in float32, with g in the half type.
        lipschitz: L in (0, 1), a bound on the Lipschitz constant of g in the 2-norm.
        tol: the error |x - x*| to reach, > 0, absolute. For the gradient: relative to its norm.
        max_iterations: evaluations of g that a sample may take, >= 1.
        method: see above.
        x0: like y, where to start; y itself if None.
        raise_on_failure: raise FixedPointError (with the result as `.result`) where a sample fails;
            else its `status` says so, its bound is inf or above the tolerance, and its gradient NaN.
        compact: on the CPU, call g with the samples that still run only. None: where g is a Module.
            False for a g that closes over tensors of the batch, as a context. On CUDA g always gets
            all samples, those that have stopped stay as they are, and the host waits once, for
            raise_on_failure.
        fused: iterate in one kernel (`ops.fixed_point_mlp`), which MLPs of known layers can
            (`fixed_point.mlp`): a Sequential of Linear, parametrized or masked ones too, with ReLU, ELU,
            LeakyReLU, Softplus, Tanh, Sigmoid or SiLU between, nn.MLP or nn.LipschitzMLP. None: where
            it can be; `result.method` says whether it was.
            True: a ValueError says why not. False: never.
        rounding: the error of computing y - g(x), in eps of |x| + |y|; >= 0.5.

    Differentiable in y and in what g closes over, by the implicit function theorem:
    (I + J^T) w = grad is solved by the same iteration with vector-Jacobian products, and the gradient
    of a parameter is -w^T dg/dtheta. Memory does not grow with the iterations; one more evaluation
    makes the graph. The gradient has no gradient: asking for it raises RuntimeError. Breaks the graph
    under torch.compile, and is then what it is in eager mode.

    Raises:
        ValueError, TypeError: an argument that does not fit.
        FixedPointError: see raise_on_failure; in the backward pass always.

    Behrmann et al. 2019, arXiv:1811.00995.
    """
    _check(y, lipschitz, tol, max_iterations, method, x0, rounding)
    if compact is None:
        compact = isinstance(g, nn.Module)
    options = _Options(lipschitz, max_iterations, method, rounding * torch.finfo(y.dtype).eps)
    with torch.no_grad():
        mlp = None if fused is False else _fused(g, y, required=fused is True)
        result = (
            _solve(g, y, x0, tol, options, compact)
            if mlp is None
            else _solve_mlp(mlp, y, x0, tol, options)
        )
    if raise_on_failure and not bool(result.converged.all()):
        raise FixedPointError("fixed_point_inverse", result)
    if not torch.is_grad_enabled():
        return result

    def solve_adjoint(vjp: Callable[[Tensor], Tensor], grad: Tensor) -> Tensor:
        # J^T has the bound of J. All samples or none: the graph behind vjp is that of all.
        relative = min(tol, 1e-3) * grad.flatten(1).double().norm(dim=1)
        linear = "picard" if method == "picard" else "anderson"
        adjoint = _solve(vjp, grad, None, relative, options._replace(method=linear), False)
        if bool((~adjoint.converged & result.converged).any()):
            raise FixedPointError("the gradient of fixed_point_inverse", adjoint)
        return adjoint.x

    x = with_implicit_gradient(g, y, result.x, result.converged, solve_adjoint)
    return result._replace(x=x)


class _Options(NamedTuple):
    lipschitz: float
    max_iterations: int
    method: str
    rounding: float  # in units of |x| + |y|

    def steps(self) -> tuple[str, int]:
        """What kind of steps, and how many pairs Anderson's method keeps."""
        if self.method == "picard" or (self.method == "auto" and self.lipschitz <= 0.1):
            return "picard", 0
        return "anderson", 5 if self.lipschitz <= 0.9 else 10


def _solve(
    g: Callable[[Tensor], Tensor],
    y: Tensor,
    x0: Tensor | None,
    tol: float | Tensor,
    options: _Options,
    compact: bool,
) -> FixedPointResult:
    """With g called from here, for samples of any shape."""
    method, memory = options.steps()
    n, shape = y.shape[0], y.shape[1:]
    if n == 0:
        return empty_result(torch.empty_like(y), method)
    working = torch.float32 if y.dtype in (torch.float16, torch.bfloat16) else y.dtype

    def rows(x: Tensor) -> Tensor:
        given = x.view(len(x), *shape).to(y.dtype)
        value = g(given)
        if not isinstance(value, Tensor) or value.shape != given.shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"g: expected g(x) of the shape of x, {tuple(given.shape)}, got {got}"
                + (" (compact=False for a g that closes over tensors of the batch)" * compact)
            )
        if value.dtype != y.dtype:
            raise TypeError(f"g: expected g(x) of the dtype of y, {y.dtype}, got {value.dtype}")
        return value.reshape(x.shape).to(working)

    flat = y.reshape(n, shape.numel()).to(working)
    start = flat if x0 is None else x0.reshape(n, shape.numel()).to(working)
    run = Iteration(start.clone(memory_format=torch.contiguous_format), flat, tol, memory)
    iterate(
        rows,
        run,
        lipschitz=options.lipschitz,
        rounding=options.rounding,
        max_iterations=options.max_iterations,
        compact=compact,
    )
    return result_of(run.x.view(y.shape).to(y.dtype), run.record, run.state, method)


def _fused(g: Callable[[Tensor], Tensor], y: Tensor, required: bool) -> FusedMLP | None:
    try:
        return fused_mlp(g, y)
    except NotFused as reason:
        if required:
            raise ValueError(f"fused: g cannot be iterated in one kernel: {reason}") from None
        return None


def _solve_mlp(
    mlp: FusedMLP, y: Tensor, x0: Tensor | None, tol: float, options: _Options
) -> FixedPointResult:
    method, memory = options.steps()
    flat = y.reshape(y.shape[0], y.shape[1:].numel())
    x, record, state = ops.fixed_point_mlp(
        flat,
        flat if x0 is None else x0.reshape(flat.shape),
        torch.full((len(flat),), tol, dtype=torch.float64, device=y.device),
        mlp.weights,
        mlp.biases,
        mlp.betas,
        activation=mlp.activation,
        lipschitz=options.lipschitz,
        rounding=options.rounding,
        max_iterations=options.max_iterations,
        memory=memory,
    )
    return result_of(x.view(y.shape), record, state, f"{method} in one kernel")


def _check(
    y: Tensor,
    lipschitz: float,
    tol: float,
    max_iterations: int,
    method: str,
    x0: Tensor | None,
    rounding: float,
) -> None:
    if not isinstance(y, Tensor) or not y.is_floating_point():
        got = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(f"y: expected a floating-point tensor, got {got}")
    if y.dim() < 1:
        raise ValueError("y: expected shape (n, ...), got ()")
    if not 0 < lipschitz < 1:
        raise ValueError(f"lipschitz: expected a number in (0, 1), got {lipschitz}")
    if not (tol > 0 and math.isfinite(tol)):
        raise ValueError(f"tol: expected a finite number above 0, got {tol}")
    if operator.index(max_iterations) < 1:
        raise ValueError(f"max_iterations: expected at least 1, got {max_iterations}")
    if not (rounding >= 0.5 and math.isfinite(rounding)):
        raise ValueError(f"rounding: expected a finite number of at least 0.5, got {rounding}")
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    if x0 is not None:
        if x0.shape != y.shape:
            raise ValueError(f"x0: expected shape {tuple(y.shape)}, got {tuple(x0.shape)}")
        if x0.dtype != y.dtype or x0.device != y.device:
            raise TypeError(f"x0: expected {y.dtype} on {y.device}, got {x0.dtype} on {x0.device}")
