"""Layers of spectral norm 1 that scale their output by 1 / sigma and write no W / sigma."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .normalized_weight import in_backward
from .spectral_norm import SpectralNorm


class _OutputScaled:
    """What both layers share: y = (W x) f + b, with f = 1 / sigma, or min(1, c / sigma).

    `constraint` holds u and v, which move in each forward pass in training. Half the memory traffic
    of `spectral_norm`, for one more pass over the output, which is smaller than the weight where
    batches or images are small. In eval mode without gradients the layer keeps W f instead, and
    costs what it would cost without the norm.
    """

    constraint: SpectralNorm

    def _constrain(self, n_power_iterations: int, eps: float, coefficient: float | None) -> None:
        if n_power_iterations <= 0:
            raise ValueError(f"n_power_iterations must be positive, got {n_power_iterations}")
        if coefficient is not None and not 0 < coefficient < float("inf"):
            raise ValueError(f"coefficient must be a finite number above 0, got {coefficient}")
        self.constraint = SpectralNorm(
            self.weight,
            0,
            n_iterations=n_power_iterations,
            eps=eps,
            coefficient=coefficient,
            rtol=None,
            atol=None,
        )

    def forward(self, x: Tensor) -> Tensor:
        constraint, weight = self.constraint, self.weight
        if self._keeps():
            return self._product(x, constraint.kept(weight), self.bias)
        if self.training and not in_backward():
            u, v, sigma = constraint.iterate(
                weight, constraint._u, constraint._v, constraint.n_power_iterations
            )
            constraint.move(u, v)
        elif self.training:
            sigma = constraint.iterate(weight, constraint._u, constraint._v, 0)[2]
        else:
            sigma = constraint.iterate(weight, *constraint.eval_vectors(weight), 0)[2]
        y = self._product(x, weight, None)
        factor = constraint.factor(sigma).to(y.dtype)
        if self.bias is None:
            return y * factor
        return torch.addcmul(self._bias_of(y), y, factor)

    def _keeps(self) -> bool:
        return (
            not self.training
            and not (torch.is_grad_enabled() and self.weight.requires_grad)
            and not torch.compiler.is_compiling()
            and not torch._C._are_functorch_transforms_active()
        )


class SpectralLinear(_OutputScaled, nn.Linear):
    """y = x W' / sigma(W) + b, for x (..., in_features).

    The same function as `spectral_norm(nn.Linear(...))`, gradients through sigma included, twice
    differentiable. Buffers `constraint._u`, `constraint._v`.

    Args:
        in_features, out_features, bias: as in nn.Linear.
        n_power_iterations, eps, coefficient: as in `spectral_norm`.

    Raises:
        ValueError: n_power_iterations or coefficient of 0 or less.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        n_power_iterations: int = 1,
        eps: float = 1e-12,
        coefficient: float | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self._constrain(n_power_iterations, eps, coefficient)

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def _bias_of(self, y: Tensor) -> Tensor:
        return self.bias.to(y.dtype)


class SpectralConv2d(_OutputScaled, nn.Conv2d):
    """y = conv(x, W) / sigma(W) + b, sigma of the weight reshaped to (out_channels, rest).

    The same function as `spectral_norm(nn.Conv2d(...))`; see `SpectralLinear`.

    Args:
        in_channels, out_channels, kernel_size and the rest: as in nn.Conv2d.
        n_power_iterations, eps, coefficient: as in `spectral_norm`.

    Raises:
        ValueError: n_power_iterations or coefficient of 0 or less.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *args: Any,
        n_power_iterations: int = 1,
        eps: float = 1e-12,
        coefficient: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, *args, **kwargs)
        self._constrain(n_power_iterations, eps, coefficient)

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(x, weight, bias)

    def _bias_of(self, y: Tensor) -> Tensor:
        return self.bias.to(y.dtype)[:, None, None]
