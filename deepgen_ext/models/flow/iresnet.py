"""i-ResNet."""

from __future__ import annotations

from collections.abc import Sequence

from ...nn import LogDetEstimator
from .residual_flow import ResidualFlow


class IResNet(ResidualFlow):
    """Behrmann et al., "Invertible Residual Networks", 2019, arXiv:1811.00995, as a density.

    The architecture of `ResidualFlow` with the paper's ELU and its estimator, a power series cut
    after `n_terms` terms: what `log_prob` returns is biased, by less than
    D L^(n+1) / ((n+1) (1-L)) nats a block, L = coefficient ** 3. Published: 3.45 bits/dim on
    CIFAR-10, 1.05 on MNIST.

    Args:
        n_terms: of the power series, in training and evaluation.
        shape, levels, blocks, hidden, dense_blocks, coefficient, activation, n_power_iterations,
            tol, n_levels: see `ResidualFlow`.

    Raises:
        ValueError: as `ResidualFlow`; n_terms < 1.
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        levels: int = 2,
        blocks: int | None = None,
        hidden: int = 64,
        dense_blocks: int = 0,
        coefficient: float = 0.9,
        activation: str = "elu",
        n_terms: int = 10,
        n_power_iterations: int = 5,
        tol: float | None = None,
        n_levels: int = 256,
    ) -> None:
        super().__init__(
            shape,
            levels,
            blocks,
            hidden,
            dense_blocks,
            coefficient,
            activation,
            log_det=LogDetEstimator("series", n_terms=n_terms),
            n_power_iterations=n_power_iterations,
            tol=tol,
            n_levels=n_levels,
        )
