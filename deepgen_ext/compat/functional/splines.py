"""nflows' splines of single elements."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deepgen_ext import ops


class InputOutsideDomain(ValueError):
    """An input of a spline without tails lies beyond its ends."""


def unconstrained_rational_quadratic_spline(
    inputs: Tensor,
    unnormalized_widths: Tensor,
    unnormalized_heights: Tensor,
    unnormalized_derivatives: Tensor,
    inverse: bool = False,
    tails: str = "linear",
    tail_bound: float = 1.0,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    min_derivative: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """nflows', on `ops.rational_quadratic_spline`: an element's y and log dy/dx, or the inverse's.

    Args:
        inputs: of any shape (...,).
        unnormalized_widths, unnormalized_heights: (..., K).
        unnormalized_derivatives: (..., K - 1).
        inverse, tails, tail_bound, min_bin_width, min_bin_height, min_derivative: as nflows has them.

    Returns:
        outputs and logabsdet, both like inputs; the second in float32 for half types.

    Raises:
        ValueError: tails other than "linear", which nflows has not either; parameters whose shape
            is not that of inputs and one dimension more; as the op.
        TypeError: as the op.
    """
    if tails != "linear":
        raise ValueError(f"tails must be 'linear', got {tails!r}")
    return _each_by_itself(
        inputs,
        unnormalized_widths,
        unnormalized_heights,
        unnormalized_derivatives,
        inverse=inverse,
        bound=tail_bound,
        min_bin_width=min_bin_width,
        min_bin_height=min_bin_height,
        min_derivative=min_derivative,
    )


def rational_quadratic_spline(
    inputs: Tensor,
    unnormalized_widths: Tensor,
    unnormalized_heights: Tensor,
    unnormalized_derivatives: Tensor,
    inverse: bool = False,
    left: float = 0.0,
    right: float = 1.0,
    bottom: float = 0.0,
    top: float = 1.0,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    min_derivative: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """nflows': a spline from [left, right] to [bottom, top], with given slopes at the ends too.

    Args:
        inputs: of any shape (...,), from left to right, or from bottom to top for the inverse.
        unnormalized_widths, unnormalized_heights: (..., K).
        unnormalized_derivatives: (..., K + 1).
        inverse, left, right, bottom, top, min_bin_width, min_bin_height, min_derivative: as nflows has them.

    Returns:
        outputs and logabsdet, both like inputs; the second in float32 for half types.

    Raises:
        InputOutsideDomain: inputs beyond the ends. As in nflows that look waits for the device, and
            breaks a graph; but the inverse is held to bottom and top, not to left and right. The op
            with its `interval` gives NaN instead.
        ValueError: parameters whose shape is not that of inputs and one dimension more; as the op.
        TypeError: as the op.
    """
    least, largest = (bottom, top) if inverse else (left, right)
    if inputs.numel() and (torch.min(inputs) < least or torch.max(inputs) > largest):
        raise InputOutsideDomain(f"inputs must lie between {least} and {largest}")
    return _each_by_itself(
        inputs,
        unnormalized_widths,
        unnormalized_heights,
        unnormalized_derivatives,
        inverse=inverse,
        interval=(left, right, bottom, top),
        min_bin_width=min_bin_width,
        min_bin_height=min_bin_height,
        min_derivative=min_derivative,
    )


def _each_by_itself(
    inputs: Tensor, widths: Tensor, heights: Tensor, derivatives: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """A sample an element: the op sums over the rest of a sample, and nflows does not."""
    parameters = {
        "unnormalized_widths": widths,
        "unnormalized_heights": heights,
        "unnormalized_derivatives": derivatives,
    }
    for name, tensor in parameters.items():
        if tensor.shape[:-1] != inputs.shape or tensor.dim() == 0:
            raise ValueError(f"{name} must be {(*inputs.shape, '...')}, got {tuple(tensor.shape)}")
    outputs, logabsdet = ops.rational_quadratic_spline(
        inputs.reshape(-1),
        *(tensor.reshape(-1, tensor.shape[-1]) for tensor in parameters.values()),
        **options,
    )
    return outputs.view(inputs.shape), logabsdet.view(inputs.shape)
