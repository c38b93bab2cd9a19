"""Affine couplings without their nets: nflows' and zuko's."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform, constraints

from deepgen_ext import ops


def affine_coupling_transform(
    inputs: Tensor, transform_params: Tensor, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """nflows' `AffineCouplingTransform._coupling_transform_forward`, or `_inverse`, in one pass.

    outputs = inputs * scale + shift, scale = sigmoid(raw + 2) + 0.001, logabsdet = sum of log scale.

    Args:
        inputs: (n, C, ...), the transformed features.
        transform_params: (n, 2 C, ...), what the net says: the shifts, then the raw scales.
        inverse: (inputs - shift) / scale, and the sum's negative.

    Returns:
        outputs, like inputs, and logabsdet, (n,), in float32 for half types.

    Differentiable twice; float32 under autocast: as `ops.affine_coupling`.

    Raises:
        ValueError: shapes that do not fit one another, another device.
        TypeError: a tensor that is not floating-point, dtypes that differ.
    """
    if inputs.dim() < 2 or transform_params.shape != (
        len(inputs),
        2 * inputs.shape[1],
        *inputs.shape[2:],
    ):
        raise ValueError(
            "transform_params must have twice the features of inputs, "
            f"{tuple(inputs.shape)}, got {tuple(transform_params.shape)}"
        )
    shift, raw = transform_params.chunk(2, 1)
    return ops.affine_coupling(inputs, raw, shift, scale_map="floored_sigmoid", inverse=inverse)


class MonotonicAffineTransform(Transform):
    r"""zuko's: y = e^l x + shift, l = scale / (1 + |scale / ln(slope)|), element by element.

    y and l come from one pass, and one makes their gradients. Of zuko's layers it can be the
    `univariate`. It needs no zuko.

    Args:
        shift, scale: of shapes that broadcast with each other and with x.
        slope: the least e^l, in (0, 1).

    Raises, as `ops.affine_coupling` does, when it is called:
        ValueError: shapes that do not broadcast, another device.
        TypeError: a tensor that is not floating-point, dtypes that differ.
    """

    domain = constraints.real
    codomain = constraints.real
    bijective = True
    sign = +1

    def __init__(self, shift: Tensor, scale: Tensor, slope: float = 1e-3, **kwargs: Any) -> None:
        if not 0 < slope < 1:
            raise ValueError(f"slope must lie in (0, 1), got {slope}")
        super().__init__(**kwargs)
        self.shift = shift
        self.raw_scale = scale
        self.clamp = -math.log(slope)

    @property
    def log_scale(self) -> Tensor:
        return self.raw_scale / (1 + abs(self.raw_scale / self.clamp))

    @property
    def scale(self) -> Tensor:
        return self.log_scale.exp()

    def _call(self, x: Tensor) -> Tensor:
        return self._map(x, inverse=False)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self._map(y, inverse=True)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.log_scale.expand(x.shape)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y and log dy/dx of each element, the second in float32 for half types."""
        return self._map(x, inverse=False)

    def _map(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        x, raw, shift = torch.broadcast_tensors(x, self.raw_scale, self.shift)
        # A sample an element: the op sums over the rest of a sample, and zuko does not.
        y, log_det = ops.affine_coupling(
            x.reshape(-1),
            raw.reshape(-1),
            shift.reshape(-1),
            scale_map="softclip",
            clamp=self.clamp,
            inverse=inverse,
        )
        return y.view(x.shape), log_det.view(x.shape)
