"""Autoregressive layers: each feature is mapped under parameters that the features before it give."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ... import ops
from ..made import MADE
from .transform import Transform

SCALE_MAPS = ("exp", "tanh", "sigmoid", "atan")
MIN_DERIVATIVE = 1e-3


class _Autoregressive(Transform):
    """What both directions share: the net, the element map, one pass and its inverse."""

    def __init__(
        self,
        features: int,
        hidden_features: Sequence[int] = (512, 512),
        element: str = "affine",
        context_features: int = 0,
        order: Sequence[int] | Tensor | str | None = None,
        *,
        scale_map: str = "tanh",
        clamp: float = 2.0,
        n_bins: int = 8,
        bound: float = 3.0,
        activation: str = "relu",
        residual: bool = False,
    ) -> None:
        super().__init__()
        if element not in ("affine", "spline"):
            raise ValueError(f"element: expected affine or spline, got {element!r}")
        if scale_map not in SCALE_MAPS:
            known = ", ".join(SCALE_MAPS)
            raise ValueError(f"scale_map: expected one of {known}, got {scale_map!r}")
        check_spline(n_bins, bound)
        if not clamp > 0:
            raise ValueError(f"clamp: expected a positive number, got {clamp}")
        self.element = element
        self.scale_map = scale_map
        self.clamp = clamp
        self.n_bins = n_bins
        self.bound = bound
        outputs = 2 if element == "affine" else 3 * n_bins - 1
        self.made = MADE(
            features, hidden_features, outputs, context_features, order, activation, residual
        )
        last = self.made.layers[-1]
        with torch.no_grad():
            last.weight.zero_()
            if self.made.context is not None:
                self.made.context.weight[-last.out_features :].zero_()
            start_at_identity(last.bias.view(features, outputs), element, n_bins)

    @property
    def features(self) -> int:
        return self.made.features

    def _one_pass(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """y_i = element(x_i; parameters of x_j, j before i), all at once."""
        made = self.made
        made.check(x)
        x = made.to_order(x)
        h = made.in_order(x, context)
        if h.dtype != x.dtype:  # autocast runs the net, not the flow, in half precision
            h = h.to(x.dtype)
        h = h.view(x.shape[0], made.features, made.outputs_per_feature)
        if self.element == "affine":
            y, log_det = ops.affine_coupling(
                x, h[..., 0], h[..., 1], scale_map=self.scale_map, clamp=self.clamp
            )
        else:
            y, log_det = spline(x, h, self.n_bins, self.bound)
        return made.from_order(y), log_det

    def _one_by_one(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """The x of `_one_pass`: feature after feature, in the work of one pass."""
        made = self.made
        made.check(y)
        y = made.to_order(y)
        x, log_det = ops.autoregressive_inverse(
            y,
            made.weights(),
            made.biases(context, y.shape[0]),
            made.degrees,
            element=self.element,
            scale_map=self.scale_map,
            clamp=self.clamp,
            n_bins=self.n_bins,
            bound=self.bound,
            activation=made.activation,
            residual=made.residual,
        )
        return made.from_order(x), log_det

    def extra_repr(self) -> str:
        if self.element == "affine":
            return f"element='affine', scale_map={self.scale_map!r}, clamp={self.clamp}"
        return f"element='spline', n_bins={self.n_bins}, bound={self.bound}"


class MaskedAutoregressive(_Autoregressive):
    """y_i = f(x_i; p_i(x_1 ... x_{i-1}, context)) for all i at once; log_det = sum log f'.

    The layer of MAF (Papamakarios et al., "Masked Autoregressive Flow for Density Estimation",
    2017, arXiv:1705.07057). p is a `MADE`. Forward, the direction of the density in a flow from
    data to noise, is one pass of the net; inverse, the direction of samples, finds feature after
    feature, in about the time of one pass too (`ops.autoregressive_inverse`). x is (n, D).

    =========  =============================================  ============================
    element    f                                              parameters of a feature
    =========  =============================================  ============================
    "affine"   x * s + t, see `ops.affine_coupling`           raw scale, t
    "spline"   monotonic, rational-quadratic on               n_bins widths and heights,
               [-bound, bound], the identity outside; see     n_bins - 1 derivatives
               `ops.rational_quadratic_spline`
    =========  =============================================  ============================

    The net's last layer starts at zero, so that the layer starts as the identity (with "sigmoid":
    x * sigmoid(2)).

    Args:
        features, hidden_features, context_features, order, activation, residual: of the `MADE`.
        element: "affine" or "spline".
        scale_map, clamp: how log s is bounded: as in `AffineCoupling`.
        n_bins, bound: of the spline.

    Raises:
        ValueError: what `MADE` refuses, an unknown element or scale_map, a bound or clamp not above
            0, n_bins outside of 1 ... 100; on use, an x that is not (n, D), a missing context.
    """

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._one_pass(x, context)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._one_by_one(y, context)


class InverseAutoregressive(_Autoregressive):
    """The other direction of `MaskedAutoregressive`: samples are one pass, z' = mu + sigma * z.

    The layer of IAF (Kingma et al., "Improved Variational Inference with Inverse Autoregressive
    Flow", 2016, arXiv:1606.04934), placed as every layer of a flow from data to noise: inverse, the
    direction of samples, is the one pass z'_i = f(z_i; p_i(z_1 ... z_{i-1}, context)), with (mu,
    log sigma) functions of the noise; forward, the direction of the density of given data, finds
    feature after feature, in about the time of one pass too. As a variational posterior, call
    `inverse` on the noise.

    Arguments and errors as of `MaskedAutoregressive`.
    """

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._one_by_one(x, context)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._one_pass(y, context)


def spline(
    x: Tensor, parameters: Tensor, n_bins: int, bound: float, *, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """The spline whose parameters (n, ..., 3 n_bins - 1) are widths, heights and derivatives."""
    widths, heights, derivatives = parameters.split((n_bins, n_bins, n_bins - 1), -1)
    return ops.rational_quadratic_spline(
        x,
        widths,
        heights,
        derivatives,
        inverse=inverse,
        bound=bound,
        min_derivative=MIN_DERIVATIVE,
    )


def check_spline(n_bins: int, bound: float) -> None:
    """Raise a ValueError unless these are options of a spline."""
    if not 1 <= n_bins <= 100:
        raise ValueError(f"n_bins: expected 1 to 100, got {n_bins}")
    if not 0 < bound < math.inf:
        raise ValueError(f"bound: expected a finite positive number, got {bound}")


def start_at_identity(bias: Tensor, element: str, n_bins: int) -> None:
    """Set the bias (features, parameters) of a last layer whose weights are zero."""
    bias.zero_()
    if element == "spline":  # equal bins, and the slope 1 at every knot
        bias[:, 2 * n_bins :] = math.log(math.expm1(1 - MIN_DERIVATIVE))
