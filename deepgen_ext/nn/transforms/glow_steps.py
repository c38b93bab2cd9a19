"""A chain of Glow's steps whose small matrices are computed together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .actnorm import check_channels
from .conv1x1 import ActNormConv1x1, inverse_in_double, lu_product, multiply
from .reversible import run_reversibly
from .sequential import Sequential
from .transform import Transform


class GlowSteps(Sequential):
    """Sequential(ActNormConv1x1, coupling, ActNormConv1x1, coupling, ...), with less overhead.

    The C x C matrices of all 1x1 convolutions are multiplied out, or inverted, as one batch: done
    one by one, their dozen tiny calls a step cost as much as a small coupling network. Layers,
    parameters and results are those of the Sequential. The first, initialising batch, which needs
    the steps one after the other, runs as it does.

    Args:
        channels: number of channels of x, (batch, channels, ...).
        couplings: the coupling of each step, at least one.
        reversible: as in `Sequential`; what still grows with the number of steps are their small
            matrices, as many numbers as their parameters.
    """

    def __init__(
        self, channels: int, couplings: Sequence[Transform], *, reversible: bool = False
    ) -> None:
        if not couplings:
            raise ValueError("couplings: expected at least one, got none")
        layers = [layer for coupling in couplings for layer in (ActNormConv1x1(channels), coupling)]
        super().__init__(*layers, reversible=reversible)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        linear, couplings = self._halves()
        if any(layer.needs_initialization for layer in linear):
            return super().forward(x, context)
        check_channels(x, linear[0].channels)
        factors = _stacked(linear)
        with torch.autocast(x.device.type, enabled=False):
            weights = lu_product(*factors)
        shifts = [layer.shift for layer in linear]
        if self.reversible and torch.is_grad_enabled():
            maps = _linear_maps(weights, shifts, x.dtype)
            layers = [layer for step in zip(maps, couplings, strict=True) for layer in step]
            x, log_det = run_reversibly(layers, x, context)
            return x, log_det + _log_det(x, factors)
        log_dets = []
        for weight, shift, coupling in zip(weights.unbind(), shifts, couplings, strict=True):
            x = multiply(x, weight, shift)
            x, log_det = coupling(x, context)
            log_dets.append(log_det)
        return x, torch.stack(log_dets).sum(0) + _log_det(x, factors)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.reversible and torch.is_grad_enabled():
            return super().inverse(y, context)
        linear, couplings = self._halves()
        check_channels(y, linear[0].channels)
        factors = _stacked(linear)
        with torch.autocast(y.device.type, enabled=False):
            weights, biases = _inverted(lu_product(*factors), [layer.shift for layer in linear])
        log_dets = []
        for index in reversed(range(len(linear))):
            y, log_det = couplings[index].inverse(y, context)
            log_dets.append(log_det)
            y = multiply(y, weights[index], biases[index])
        return y, torch.stack(log_dets).sum(0) - _log_det(y, factors)

    def _halves(self) -> tuple[list[ActNormConv1x1], list[Transform]]:
        """The linear layers and the couplings."""
        layers = list(self.transforms)
        return layers[::2], layers[1::2]


class _LinearMap(Transform):
    """x -> weight x + shift at every position, for one pass: the matrices come with their inverses.

    Its log-det is counted with those of the other steps, and is None here.
    """

    def __init__(
        self, weight: Tensor, shift: Tensor, inverse_weight: Tensor, inverse_shift: Tensor
    ) -> None:
        super().__init__()
        self.map = weight, shift  # in a tuple, so that no parameter is registered a second time
        self.inverse_map = inverse_weight, inverse_shift

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, None]:
        return multiply(x, *self.map), None

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, None]:
        return multiply(y, *self.inverse_map), None

    def rebuild_inputs(self) -> list[Tensor]:
        return [tensor for tensor in self.map if tensor.requires_grad]


def _linear_maps(weights: Tensor, shifts: list[Tensor], dtype: torch.dtype) -> list[_LinearMap]:
    """One map a matrix. The inverses carry no gradient: they rebuild, and are not differentiated."""
    with torch.no_grad(), torch.autocast(weights.device.type, enabled=False):
        inverses, biases = (tensor.to(dtype) for tensor in _inverted(weights, shifts))
    return [
        _LinearMap(*tensors)
        for tensors in zip(weights.unbind(), shifts, inverses, biases, strict=True)
    ]


def _inverted(weights: Tensor, shifts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Matrices and shifts of the inverse maps, in float64."""
    inverses = inverse_in_double(weights)
    return inverses, -(inverses @ torch.stack(shifts).double().unsqueeze(2)).squeeze(2)


def _stacked(layers: list[ActNormConv1x1]) -> list[Tensor]:
    """The factors of all layers, each with a leading dimension for the layer."""
    factors = zip(*(layer.factors() for layer in layers), strict=True)
    return [torch.stack(factor) for factor in factors]


def _log_det(x: Tensor, factors: list[Tensor]) -> Tensor:
    """Of all linear layers together: one number, the same for every sample."""
    *_, log_diagonals, log_scales = factors
    half = x.dtype in (torch.float16, torch.bfloat16)
    total = (log_diagonals + log_scales).sum(dtype=torch.float32 if half else None)
    return total * math.prod(x.shape[2:])
