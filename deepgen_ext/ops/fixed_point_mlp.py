"""The inverse of x + g(x) for an MLP g, the whole iteration in one kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deepgen_ext._extension import library


def fixed_point_mlp(
    y: Tensor,
    x0: Tensor,
    tolerance: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    betas: Tensor,
    *,
    activation: str = "relu",
    lipschitz: float,
    rounding: float,
    max_iterations: int = 200,
    memory: int = 5,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Solves x + g(x) = y, row by row, for an MLP g(x) = W_n act(... act(W_1 x + b_1) ...) + b_n.

    Lip(g) <= lipschitz < 1. Each row takes the steps of `fixed_point_step`, which says what bounds
    its error and when it stops; what the others do changes nothing for it. `nn.fixed_point_inverse`
    calls this where g is such a network, and adds the gradient.

    ============  ===================================================
    activation    act(v) of hidden layer l, b = betas[l]
    ============  ===================================================
    "relu"        max(v, 0)
    "elu"         v, b (e^v - 1) below 0
    "tanh"        tanh(v)
    "lipswish"    v sigmoid(b v) / 1.1 (R. Chen et al. 2019)
    "silu"        v sigmoid(v)
    "sin"         sin(pi v) / pi
    "softplus"    ln(1 + e^(b v)) / b; v where b v > 20
    "leaky_relu"  v, b v below 0
    "sigmoid"     1 / (1 + e^-v)
    ============  ===================================================

    Args:
        y: (n, D), float32 or float64.
        x0: like y, where to start.
        tolerance: (n,) float64, the error to reach.
        weights: 1 to 16 matrices (H_1, D), (H_2, H_1), ..., (D, H_{n-1}) of y's dtype and device.
        biases: for each weight (H,).
        betas: a number for each hidden layer, (n - 1,), read by the activations above that have it.
        lipschitz, rounding: as in `fixed_point_step`.
        max_iterations: evaluations of g for a row, at least 1.
        memory: pairs that Anderson's method keeps, 2 to 12; 0: Picard steps only.

    Returns:
        x, like y; record (n, 4) float64 and state (n, 5) int32, which say of each row what
        `fixed_point_step` says of them, but for the last three columns of state, 0 here.

    No gradient: nn.fixed_point_inverse has it. Results depend neither on the number of threads nor,
    but for a batch of one, on the batch.

    Raises:
        ValueError, TypeError: tensors that do not fit one another, an option out of its range.
    """
    return library.fixed_point_mlp(
        y,
        x0,
        tolerance,
        list(weights),
        list(biases),
        betas,
        activation,
        lipschitz,
        rounding,
        max_iterations,
        memory,
    )


@torch.library.register_fake("deepgen_ext::fixed_point_mlp")
def _(y, x0, tolerance, weights, *options):
    n = y.shape[0]
    return (
        y.new_empty(y.shape),
        y.new_empty(n, 4, dtype=torch.float64),
        y.new_empty(n, 5, dtype=torch.int32),
    )
