from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .accumulation import accumulation_dtype


def rational_quadratic_spline(
    x: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    *,
    inverse: bool = False,
    bound: float = 3.0,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    min_derivative: float = 1e-3,
    interval: tuple[float, float, float, float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Durkan et al. 2019, equations 4 to 8, with linear tails outside [-bound, bound], or on an interval
    (left, right, bottom, top) with NaN outside.

    x is (n, ...), widths and heights (n, ..., K), derivatives (n, ..., K - 1), or K + 1 with an
    interval, unnormalised. log_det is (n,).
    """
    accumulate = accumulation_dtype(x.dtype)
    value = x.to(accumulate)
    ends = interval or (-bound, bound, -bound, bound)
    left, width = _bins(widths.to(accumulate), *ends[:2], min_bin_width)
    bottom, height = _bins(heights.to(accumulate), *ends[2:], min_bin_height)
    slopes = min_derivative + F.softplus(derivatives.to(accumulate), threshold=100.0)
    if interval is None:
        slopes = F.pad(slopes, (1, 1), value=1.0)
    least, largest = ends[2:] if inverse else ends[:2]
    inside = (value >= least) & (value <= largest)
    within = torch.where(inside, value, (least + largest) / 2)
    edges = (bottom if inverse else left)[..., 1:]
    index = (within[..., None] >= edges).sum(-1, keepdim=True)
    left, width, bottom, height, d, e = (
        t.gather(-1, index)[..., 0]
        for t in (left, width, bottom, height, slopes[..., :-1], slopes[..., 1:])
    )
    s = height / width
    if inverse:
        rise = within - bottom
        a = height * (s - d) + rise * (d + e - 2 * s)
        b = height * d - rise * (d + e - 2 * s)
        c = -s * rise
        t = 2 * c / (-b - (b**2 - 4 * a * c).clamp_min(0).sqrt())
        y = left + width * t
    else:
        t = (within - left) / width
        y = bottom + height * (s * t**2 + d * t * (1 - t)) / (s + (d + e - 2 * s) * t * (1 - t))
    slope = (
        s**2
        * (e * t**2 + 2 * s * t * (1 - t) + d * (1 - t) ** 2)
        / (s + (d + e - 2 * s) * t * (1 - t)) ** 2
    )
    beyond = torch.where(value.isnan() | (interval is not None), torch.nan, 0.0)
    log_slope = torch.where(inside, slope.log(), beyond)
    log_det = log_slope.flatten(1).sum(1) if x.ndim > 1 else log_slope
    return torch.where(inside, y, value + beyond).to(x.dtype), -log_det if inverse else log_det


def _bins(raw: Tensor, least: float, largest: float, smallest: float) -> tuple[Tensor, Tensor]:
    """Left edges and widths of the K bins that fill [least, largest]."""
    shares = smallest + (1 - smallest * raw.shape[-1]) * raw.softmax(-1)
    widths = (largest - least) * shares
    return F.pad(widths.cumsum(-1)[..., :-1], (1, 0)) + least, widths
