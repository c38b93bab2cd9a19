"""nflows' splines of single elements."""

from __future__ import annotations

from torch import Tensor

from deepgen_ext import ops


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
    parameters = {
        "unnormalized_widths": unnormalized_widths,
        "unnormalized_heights": unnormalized_heights,
        "unnormalized_derivatives": unnormalized_derivatives,
    }
    for name, tensor in parameters.items():
        if tensor.shape[:-1] != inputs.shape or tensor.dim() == 0:
            raise ValueError(f"{name} must be {(*inputs.shape, '...')}, got {tuple(tensor.shape)}")
    # A sample an element: the op sums over the rest of a sample, and nflows does not.
    outputs, logabsdet = ops.rational_quadratic_spline(
        inputs.reshape(-1),
        *(tensor.reshape(-1, tensor.shape[-1]) for tensor in parameters.values()),
        inverse=inverse,
        bound=tail_bound,
        min_bin_width=min_bin_width,
        min_bin_height=min_bin_height,
        min_derivative=min_derivative,
    )
    return outputs.view(inputs.shape), logabsdet.view(inputs.shape)
