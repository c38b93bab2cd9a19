from __future__ import annotations

import math

from torch import Tensor

from .accumulation import accumulation_dtype


def channel_affine(
    x: Tensor, log_scale: Tensor, shift: Tensor, *, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """y = x * exp(log_scale) + shift per channel, or (x - shift) * exp(-log_scale) with `inverse`.

    x is (batch, C, ...), log_scale and shift (C,). log_det = +- (positions per channel) * sum
    log_scale, (batch,).
    """
    accumulate = accumulation_dtype(x.dtype)
    per_channel = (-1,) + (1,) * (x.ndim - 2)
    scale = log_scale.to(accumulate).view(per_channel)
    offset = shift.to(accumulate).view(per_channel)
    values = x.to(accumulate)
    y = (values - offset) * (-scale).exp() if inverse else values * scale.exp() + offset
    positions = math.prod(x.shape[2:])
    log_det = log_scale.to(accumulate).sum() * (-positions if inverse else positions)
    return y.to(x.dtype), log_det.expand(x.shape[0])
