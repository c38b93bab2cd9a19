"""What a fixed-point solver says of each sample."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

TOLERANCE, BOUND, RESIDUAL, EXPANSION = range(4)  # columns of ops.fixed_point_step's record
STATUS, EVALUATIONS, VALID, NEWEST, PROPOSED = range(5)  # of its state
RUNNING, CONVERGED, EXPANDING, NOT_FINITE = range(4)  # what STATUS says

_REASONS = {
    RUNNING: "did not reach the tolerance in the iterations allowed",
    EXPANDING: "g is not contractive: it was measured to expand a distance",
    NOT_FINITE: "y, x0 or g(x) is not finite",
}


class FixedPointResult(NamedTuple):
    """The solution of x + g(x) = y, sample by sample; norms are 2-norms over a sample's elements.

    x: like y. Where a sample has not converged, the best of its iterates.
    error_bound: (n,) float64, |x - x*| <= error_bound; inf where nothing is known.
    iterations: (n,) int64, the evaluations of g that the sample took.
    converged: (n,) bool, error_bound <= tolerance.
    tolerance: (n,) float64, the tolerance used: tol, or what the dtype can reach where that is more.
    expansion: (n,) float64, the largest |g(a) - g(b)| / |a - b| met on the way, after rounding is
        taken off: a lower bound of Lip(g). Where it lies above `lipschitz`, it takes its place.
    status: (n,) int64: 0 not converged, 1 converged, 2 not contractive, 3 not finite.
    method: what solved it, in words.
    """

    x: Tensor
    error_bound: Tensor
    iterations: Tensor
    converged: Tensor
    tolerance: Tensor
    expansion: Tensor
    status: Tensor
    method: str

    def failures(self) -> str:
        """One sentence for each kind of failure, empty where all samples converged."""
        sentences = []
        for status, reason in _REASONS.items():
            samples = (self.status == status).nonzero().flatten()
            if not len(samples):
                continue
            worst = self.error_bound[samples].max().item()
            largest = self.expansion[samples].max().item()
            listed = ", ".join(map(str, samples[:5].tolist())) + (
                ", ..." if len(samples) > 5 else ""
            )
            sentences.append(
                f"{len(samples)} of {len(self.status)} samples ({listed}): {reason} (error bound up"
                f" to {worst:.2e}, measured expansion up to {largest:.3g})"
            )
        return "; ".join(sentences)


class FixedPointError(RuntimeError):
    """Some samples did not converge; `result` has what was reached."""

    def __init__(self, what: str, result: FixedPointResult) -> None:
        super().__init__(f"{what}: {result.failures()}")
        self.result = result


def empty_result(x: Tensor, method: str) -> FixedPointResult:
    none = torch.zeros(0, dtype=torch.float64, device=x.device)
    return FixedPointResult(
        x, none, none.long(), none.bool(), none, none.clone(), none.long(), method
    )


def result_of(x: Tensor, record: Tensor, state: Tensor, method: str) -> FixedPointResult:
    """From what the steps leave."""
    status = state[:, STATUS].long()
    return FixedPointResult(
        x,
        record[:, BOUND].clone(),
        state[:, EVALUATIONS].long(),
        status == CONVERGED,
        record[:, TOLERANCE].clone(),
        record[:, EXPANSION].clone(),
        status,
        method,
    )
