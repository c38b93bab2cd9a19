"""The rational-quadratic splines of nflows and normflows outside of autoregressive nets: two copies of
one code. The net that a coupling layer has is called as before; what changes is what follows it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from deepgen_ext.ops import rational_quadratic_spline

from .accelerated import Accelerated

MOST_BINS = 100
UNIT = (0.0, 1.0, 0.0, 1.0)  # where both libraries' splines without tails lie


class Spline(Accelerated):
    gain = "splines and their log-det in one pass, and their gradient in one"
    caveat = "an inverse whose discriminant rounds below zero is solved, not refused"
    keeps = ()
    outside_domain: type[Exception] | None = None  # what it raises beyond the ends, without tails

    @classmethod
    def why_not(cls, module: Any) -> str:
        """Options that the kernel does not have."""
        if module.tails not in ("linear", None):
            return f"tails={module.tails!r}: only linear ones are known, and none"
        if module.tails and torch.is_tensor(module.tail_bound):
            return "a bound for each feature"
        bins = cls.bins(module)
        least = (module.min_bin_width, module.min_bin_height)
        if not all(0 < size * bins <= 1 for size in least) or not 0 < module.min_derivative < 1:
            return f"smallest bins {least} or slope {module.min_derivative} out of their range"
        return "" if bins <= MOST_BINS else f"{bins} bins, of {MOST_BINS} at most"

    def bins(self) -> int:
        raise NotImplementedError

    def spline(
        self, x: Tensor, widths: Tensor, heights: Tensor, derivatives: Tensor, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        is_checked = self.tails is None and self.outside_domain is not None
        if is_checked and (torch.min(x) < 0 or torch.max(x) > 1):
            raise self.outside_domain()
        ends = {"bound": float(self.tail_bound)} if self.tails else {"interval": UNIT}
        return rational_quadratic_spline(
            x,
            widths,
            heights,
            derivatives,
            inverse=inverse,
            **ends,
            min_bin_width=self.min_bin_width,
            min_bin_height=self.min_bin_height,
            min_derivative=self.min_derivative,
        )

    def points(self, *shape: int, like: Tensor) -> Tensor:
        """On both sides of the tails' begin; without tails all over the interval."""
        if self.tails is None:
            return like.new_empty(shape).uniform_()
        return self.tail_bound * like.new_empty(shape).normal_()


class SplineCoupling(Spline):
    """Of a PiecewiseRationalQuadraticCoupling."""

    def bins(self) -> int:
        return self.num_bins

    def _coupling_transform(
        self, inputs: Tensor, transform_params: Tensor, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        bins = self.num_bins
        each = transform_params.to(inputs.dtype).unflatten(1, (inputs.shape[1], -1)).movedim(2, -1)
        sizes, derivatives = each.split((2 * bins, each.shape[-1] - 2 * bins), dim=-1)
        widths, heights = (sizes * self._softmax_scale()).split(bins, dim=-1)
        return self.spline(inputs, widths, heights, derivatives, inverse)

    def _softmax_scale(self) -> float:
        for name in ("hidden_features", "hidden_channels"):
            if hasattr(self.transform_net, name):
                return getattr(self.transform_net, name) ** -0.5
        warnings.warn(
            "Inputs to the softmax are not scaled down: initialization might be bad.", stacklevel=2
        )
        return 1.0

    def comparisons(self, original: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
        # The net is the same: what its outputs are turned into is compared.
        features = self.num_transform_features
        outputs = features * self._transform_dim_multiplier()
        options = {"dtype": torch.float64, "device": self.transform_features.device}
        for rest in ((), (2, 3)):
            x = self.points(3, features, *rest, like=torch.empty(0, **options))
            parameters = 3 * torch.randn(3, outputs, *rest, **options)
            for inverse in (False, True):
                with warnings.catch_warnings():  # of nets whose width is not known
                    warnings.simplefilter("ignore")
                    # normflows and nflows scale the parameters in place.
                    results = [
                        part._coupling_transform(x, parameters.clone(), inverse)
                        for part in (original, self)
                    ]
                yield from zip(("the spline", "its log-det"), *results, strict=True)


class SplineCDF(Spline):
    """Of a PiecewiseRationalQuadraticCDF: parameters of its own, one set for the whole batch."""

    def bins(self) -> int:
        return self.unnormalized_widths.shape[-1]

    def _spline(self, inputs: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        parameters = (
            self.unnormalized_widths,
            self.unnormalized_heights,
            self.unnormalized_derivatives,
        )
        shared = (p.to(inputs.dtype).expand(len(inputs), *p.shape) for p in parameters)
        return self.spline(inputs, *shared, inverse)

    def comparisons(self, original: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
        widths = self.unnormalized_widths
        x = self.points(3, *widths.shape[:-1], like=widths)
        for inverse in (False, True):
            results = [part._spline(x, inverse) for part in (original, self)]
            yield from zip(("the spline", "its log-det"), *results, strict=True)
