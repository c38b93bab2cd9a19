"""Rational-quadratic splines of other libraries."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from benchmarks.peers import NotInstalled, Pair, each
from deepgen_ext import reference


@dataclass(frozen=True)
class Spline:
    """A peer's rational-quadratic spline on [-3, 3] with linear tails.

    `call` takes (x, widths, heights, derivatives); `formula` and `arithmetic` as for `Coupling`.
    """

    name: str
    call: Callable[..., Pair]
    formula: Callable[..., Pair]
    arithmetic: str = ""


def splines(inverse: bool) -> Iterator[Spline | NotInstalled]:
    """The peers' splines in one direction."""
    makers = {"nflows": _nflows_spline, "normflows": _normflows_spline, "zuko": _zuko_spline}
    return each(makers, inverse)


def _nflows_spline(inverse: bool) -> Spline:
    from nflows.transforms.splines import unconstrained_rational_quadratic_spline as spline

    return _summed("nflows", spline, inverse)


def _normflows_spline(inverse: bool) -> Spline:
    from normflows.utils.splines import unconstrained_rational_quadratic_spline as spline

    return _summed("normflows", spline, inverse)


def _summed(name: str, spline: Callable[..., Pair], inverse: bool) -> Spline:
    def call(x: Tensor, *parameters: Tensor) -> Pair:
        y, logs = spline(x, *parameters, inverse=inverse, tails="linear", tail_bound=3.0)
        return y, logs.flatten(1).sum(1)

    return Spline(name, call, partial(reference.rational_quadratic_spline, inverse=inverse))


def _zuko_spline(inverse: bool) -> Spline:
    from zuko.transforms import MonotonicRQSTransform

    def call(x: Tensor, *parameters: Tensor) -> Pair:
        transform = MonotonicRQSTransform(*parameters, bound=3.0)
        y, logs = (transform.inv if inverse else transform).call_and_ladj(x)
        return y, logs.flatten(1).sum(1)

    def formula(x: Tensor, widths: Tensor, heights: Tensor, derivatives: Tensor) -> Pair:
        limit = -math.log(1e-3)
        widths, heights = (raw / (1 + (2 * raw / limit).abs()) for raw in (widths, heights))
        slopes = (derivatives / (1 + (derivatives / limit).abs())).exp()
        return reference.rational_quadratic_spline(
            x,
            widths,
            heights,
            slopes.expm1().log(),  # softplus of it is the slope
            inverse=inverse,
            min_bin_width=0,
            min_bin_height=0,
            min_derivative=0,
        )

    return Spline("zuko", call, formula, "raw parameters bounded softly, slopes exp(raw)")
