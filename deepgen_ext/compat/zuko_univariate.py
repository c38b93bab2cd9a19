"""zuko's univariate transforms that our ops know, as options of `ops.autoregressive_inverse`."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from zuko import transforms


def element_of(module: Any) -> dict[str, Any] | None:
    """Of a lazy transform with `univariate` and `shapes`; None where no op knows them."""
    univariate, options = module.univariate, {}
    if isinstance(univariate, partial):
        if univariate.args:
            return None
        univariate, options = univariate.func, univariate.keywords
    slope = options.get("slope", 1e-3)
    if not 0 < slope < 1 or not set(options) <= {"slope", "bound"}:
        return None
    clamp = -math.log(slope)
    shapes = [tuple(shape) for shape in module.shapes]
    if univariate is transforms.MonotonicAffineTransform and shapes == [(), ()]:
        return {"element": "affine", "scale_map": "softclip", "clamp": clamp}
    if univariate is transforms.MonotonicRQSTransform and len(shapes) == 3:
        n_bins = shapes[0][0]
        if shapes == [(n_bins,), (n_bins,), (n_bins - 1,)] and 1 <= n_bins <= 100:
            bound = float(options.get("bound", 5.0))
            return {"element": "softclip_spline", "clamp": clamp, "n_bins": n_bins, "bound": bound}
    return None
