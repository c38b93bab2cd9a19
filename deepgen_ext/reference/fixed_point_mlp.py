"""The inverse of x + g(x) for an MLP g, step by step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .fixed_point_step import (
    NEWEST,
    RESIDUAL,
    RUNNING,
    STATUS,
    TOLERANCE,
    VALID,
    fixed_point_step,
)


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
    n, features = y.shape
    x = x0.clone(memory_format=torch.contiguous_format)
    images, residuals = y.new_zeros(n, memory, features), y.new_zeros(n, memory, features)
    gram = torch.zeros(n, memory, memory, dtype=torch.float64)
    record = torch.full((n, 4), torch.inf, dtype=torch.float64)
    record[:, TOLERANCE] = tolerance
    record[:, -1] = 0
    state = torch.zeros(n, 5, dtype=torch.int32)
    for _ in range(max_iterations):
        g_x = mlp(x, weights, biases, betas, activation)
        fixed_point_step(
            x, g_x, y, images, residuals, gram, record, state,
            lipschitz=lipschitz, rounding=rounding,
        )  # fmt: skip
        if not (state[:, STATUS] == RUNNING).any():
            break
    for i in range(n):  # the last iterate that has a bound
        unfinished = state[i, STATUS] != 1 and record[i, RESIDUAL].isfinite()
        if unfinished and memory and state[i, VALID]:
            x[i] = images[i, state[i, NEWEST]]
    state[:, VALID:] = 0
    return x, record, state


def mlp(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], betas: Tensor, activation: str
) -> Tensor:
    for weight, bias, beta in zip(weights[:-1], biases[:-1], betas):
        v = F.linear(x, weight, bias)
        x = {
            "relu": v.relu,
            "elu": lambda v=v, beta=beta: F.elu(v, float(beta)),
            "tanh": v.tanh,
            "lipswish": lambda v=v, beta=beta: v * torch.sigmoid(beta * v) / 1.1,
            "silu": lambda v=v: F.silu(v),
            "sin": lambda v=v: torch.sin(math.pi * v) / math.pi,
            "softplus": lambda v=v, beta=beta: F.softplus(v, float(beta)),
            "leaky_relu": lambda v=v, beta=beta: F.leaky_relu(v, float(beta)),
            "sigmoid": v.sigmoid,
        }[activation]()
    return F.linear(x, weights[-1], biases[-1])
