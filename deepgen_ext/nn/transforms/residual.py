"""y = x + g(x) with a contraction g: the layer of i-ResNets and Residual Flows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..fixed_point import fixed_point_inverse
from ..residual_log_det import LogDetEstimator
from .transform import Transform, zero_log_det

_TOLERANCE = {torch.float64: 1e-12}


class InvertibleResidual(Transform):
    """y = x + g(x), Lip(g) < 1; log_det = ln |det(I + dg/dx)|, exact or estimated.

    Behrmann et al., "Invertible Residual Networks", 2019, arXiv:1811.00995. The inverse is the
    fixed point of x = y - g(x), found to a true error (`nn.fixed_point_inverse`) and differentiated
    implicitly. An estimated log-det is drawn anew in each call, from the attribute `generator`
    where that is set, else from torch's own: the contract of a `Transform` then holds for its
    expectation. Where `wants_log_det` is set to False it is zeros, and costs nothing.

    Args:
        g: (n, ...) -> the same shape, each sample on its own; called with the context if there is
            one. `nn.LipschitzMLP` and `nn.LipschitzConvNet` build it.
        log_det: "exact", "series" or "unbiased", or a `LogDetEstimator` with its options.
        eval_log_det: the same in evaluation mode; None: `log_det` there too.
        lipschitz: a bound of Lip(g) with respect to x, in (0, 1); None: `g.lipschitz`.
        tol: largest error of an inverse, in the Euclidean norm of a sample. None: 1e-6, and 1e-12
            in float64. Where the dtype cannot reach it, what it can is aimed for.
        max_iterations: of the inverse; a `FixedPointError` says so if they do not suffice.

    Raises:
        ValueError: no bound given or one that is not in (0, 1); an unknown estimator.
    """

    def __init__(
        self,
        g: nn.Module,
        log_det: str | LogDetEstimator = "unbiased",
        *,
        eval_log_det: str | LogDetEstimator | None = None,
        lipschitz: float | None = None,
        tol: float | None = None,
        max_iterations: int = 500,
    ) -> None:
        super().__init__()
        if lipschitz is None:
            lipschitz = getattr(g, "lipschitz", None)
            if lipschitz is None:
                raise ValueError(
                    f"lipschitz: {type(g).__name__} has no attribute lipschitz, give its bound here"
                )
        if not 0 < lipschitz < 1:
            raise ValueError(f"lipschitz: expected a number in (0, 1), got {lipschitz}")
        if tol is not None and not 0 < tol < float("inf"):
            raise ValueError(f"tol: expected a positive number, got {tol}")
        if max_iterations < 1:
            raise ValueError(f"max_iterations: expected at least 1, got {max_iterations}")
        self.g = g
        self.log_det = _estimator(log_det)
        self.eval_log_det = self.log_det if eval_log_det is None else _estimator(eval_log_det)
        self.lipschitz = lipschitz
        self.tol = tol
        self.max_iterations = max_iterations
        self.generator: torch.Generator | None = None
        self.wants_log_det = True  # False: sampling has no use for it, and it costs more than x

    @property
    def estimator(self) -> LogDetEstimator:
        """The one of the current mode."""
        return self.log_det if self.training else self.eval_log_det

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if not self.wants_log_det:
            output = self.g(x) if context is None else self.g(x, context)
            return x + output, zero_log_det(x)
        estimate = self._estimate(x, context)
        return x + estimate.output, estimate.log_det

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        result = fixed_point_inverse(
            self.g if context is None else lambda x: self.g(x, context),
            y,
            lipschitz=self.lipschitz,
            tol=_TOLERANCE.get(y.dtype, 1e-6) if self.tol is None else self.tol,
            max_iterations=self.max_iterations,
        )
        if not self.wants_log_det:
            return result.x, zero_log_det(y)
        return result.x, -self._estimate(result.x, context).log_det

    def _estimate(self, x: Tensor, context: Tensor | None):
        return self.estimator(
            self.g, x, context, lipschitz=self.lipschitz, generator=self.generator
        )

    def extra_repr(self) -> str:
        return f"lipschitz={self.lipschitz:.3g}, log_det={self.estimator.in_words()}"


def _estimator(log_det: str | LogDetEstimator) -> LogDetEstimator:
    if isinstance(log_det, LogDetEstimator):
        return log_det
    if log_det == "series":
        return LogDetEstimator("series", n_terms=10)
    return LogDetEstimator(log_det)
