"""The specification of every op: the same signatures as `deepgen_ext.ops`, in plain torch.

Tests and benchmarks compare with these functions. Nothing that ships calls them in place of a
kernel. They check no inputs and take no short cut: one line of mathematics is one line of code.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def affine_coupling(
    x: Tensor,
    raw_scale: Tensor | None,
    shift: Tensor,
    *,
    scale_map: str = "exp",
    clamp: float = 2.0,
    inverse: bool = False,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y = x * s + shift, or (x - shift) / s with `inverse`; log_det = +- sum log s, shape (batch,).

    log s = raw ("exp"), tanh(raw) ("tanh"), log sigmoid(raw + 2) ("sigmoid"), clamp * 2/pi *
    atan(raw / clamp) ("atan"), or 0 where `raw_scale` is None. Where `mask` (broadcastable to
    x.shape[1:]) is False, y = x.
    """
    accumulate = _accumulation_dtype(x.dtype)
    if raw_scale is None:
        log_scale = torch.zeros_like(x, dtype=accumulate)
    else:
        raw = raw_scale.to(accumulate)
        if scale_map == "exp":
            log_scale = raw
        elif scale_map == "tanh":
            log_scale = raw.tanh()
        elif scale_map == "sigmoid":
            log_scale = F.logsigmoid(raw + 2)
        elif scale_map == "atan":
            log_scale = clamp * (2 / math.pi) * (raw / clamp).atan()
        else:
            raise ValueError(f"scale_map: expected exp, tanh, sigmoid or atan, got {scale_map!r}")
    shift = shift.to(accumulate)
    if mask is not None:
        log_scale = torch.where(mask, log_scale, 0.0)
        shift = torch.where(mask, shift, 0.0)
    if inverse:
        y = (x.to(accumulate) - shift) * (-log_scale).exp()
        log_scale = -log_scale
    else:
        y = x.to(accumulate) * log_scale.exp() + shift
    return y.to(x.dtype), _sum_over_all_but_batch(log_scale)


def channel_affine(
    x: Tensor, log_scale: Tensor, shift: Tensor, *, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """y = x * exp(log_scale) + shift per channel, or (x - shift) * exp(-log_scale) with `inverse`.

    x is (batch, C, ...), log_scale and shift (C,). log_det = +- (positions per channel) * sum
    log_scale, (batch,).
    """
    accumulate = _accumulation_dtype(x.dtype)
    per_channel = (-1,) + (1,) * (x.ndim - 2)
    scale = log_scale.to(accumulate).view(per_channel)
    offset = shift.to(accumulate).view(per_channel)
    values = x.to(accumulate)
    y = (values - offset) * (-scale).exp() if inverse else values * scale.exp() + offset
    positions = math.prod(x.shape[2:])
    log_det = log_scale.to(accumulate).sum() * (-positions if inverse else positions)
    return y.to(x.dtype), log_det.expand(x.shape[0])


def _accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _sum_over_all_but_batch(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1) if x.ndim > 1 else x
