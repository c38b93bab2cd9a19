"""Importance weights w = p(x, z) / q(z|x): their log mean, in one piece or as it comes in."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """ln 1/k sum_i w_i, (n,), of ln w (n, k)."""
    return torch.logsumexp(log_weights, 1) - math.log(log_weights.shape[1])


class RunningLogMeanExp:
    """ln 1/k sum_i w_i of weights that come a few at a time, in float64.

    Keeps two numbers for each of n images: the largest ln w so far, and the sum of w over it.
    """

    def __init__(self, n: int, device: torch.device) -> None:
        self.count = 0
        self._largest = torch.full((n,), -math.inf, dtype=torch.float64, device=device)
        self._sum = torch.zeros(n, dtype=torch.float64, device=device)

    def add(self, log_weights: Tensor) -> None:
        """ln w, (n, any number)."""
        log_weights = log_weights.double()
        largest = torch.maximum(self._largest, log_weights.amax(1))
        # Where every weight so far is zero there is nothing to subtract, and -inf - -inf is nan.
        shift = torch.where(largest.isinf(), 0.0, largest)
        self._sum = self._sum * (self._largest - shift).exp()
        self._sum = self._sum + (log_weights - shift.unsqueeze(1)).exp().sum(1)
        self._largest = largest
        self.count += log_weights.shape[1]

    @property
    def value(self) -> Tensor:
        """(n,) in nats."""
        shift = torch.where(self._largest.isinf(), 0.0, self._largest)
        return shift + self._sum.log() - math.log(self.count)


def doubly_reparametrized(log_weights: Tensor, z: Tensor) -> Tensor:
    """A number for each image, (n,), whose gradient is the doubly reparametrised one.

    Tucker et al., "Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives", 2019,
    arXiv:1810.04152. With v_i = w_i / sum_j w_j the model's parameters get sum_i v_i grad ln w_i,
    and the posterior's sum_i v_i^2 (d ln w_i / d z_i) (d z_i / d phi), which has no term that is
    zero only in expectation: its signal-to-noise ratio rises with k where the other falls.

    Args:
        log_weights: (n, k), in which ln q is constant in the posterior's parameters but for z.
        z: (n, k, D), from which log_weights were computed.
    """
    weights = torch.softmax(log_weights.detach(), 1)
    if z.requires_grad:
        z.register_hook(lambda gradient: gradient * weights.unsqueeze(2).to(gradient.dtype))
    return (weights * log_weights).sum(1)


def with_value(value: Tensor, gradient_of: Tensor) -> Tensor:
    """`value`, with the gradient of `gradient_of`."""
    return value.detach() + (gradient_of - gradient_of.detach())
