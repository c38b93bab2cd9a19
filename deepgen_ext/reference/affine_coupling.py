from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .accumulation import accumulation_dtype, sum_over_all_but_batch


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
    atan(raw / clamp) ("atan"), raw / (1 + |raw / clamp|) ("softclip"), log(softplus(raw) + 0.001)
    ("softplus"), log(sigmoid(raw + 2) + 0.001) ("floored_sigmoid"), -log sigmoid(raw + 2)
    ("reciprocal_sigmoid"), or 0 where `raw_scale` is None.
    Where `mask` (broadcastable to x.shape[1:]) is False, y = x.
    """
    accumulate = accumulation_dtype(x.dtype)
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
        elif scale_map == "softclip":
            log_scale = raw / (1 + (raw / clamp).abs())
        elif scale_map == "softplus":
            log_scale = (F.softplus(raw, threshold=100.0) + 1e-3).log()
        elif scale_map == "floored_sigmoid":
            log_scale = ((raw + 2).sigmoid() + 1e-3).log()
        elif scale_map == "reciprocal_sigmoid":
            log_scale = -F.logsigmoid(raw + 2)
        else:
            raise ValueError(f"scale_map: unknown, {scale_map!r}")
    shift = shift.to(accumulate)
    if mask is not None:
        log_scale = torch.where(mask, log_scale, 0.0)
        shift = torch.where(mask, shift, 0.0)
    if inverse:
        y = (x.to(accumulate) - shift) * (-log_scale).exp()
        log_scale = -log_scale
    else:
        y = x.to(accumulate) * log_scale.exp() + shift
    return y.to(x.dtype), sum_over_all_but_batch(log_scale)


def half_coupling(
    visible: Tensor,
    moved: Tensor,
    parameters: Tensor,
    *,
    moved_first: bool = False,
    scale_map: str = "exp",
    clamp: float = 2.0,
    inverse: bool = False,
    order: str = "scale_shift",
    alternating: bool = False,
) -> tuple[Tensor, Tensor]:
    """[visible, affine_coupling(moved)], or the reverse, of `parameters` = [raw scale, shift]; or
    [shift, raw scale] ("shift_scale"), or both by turns, shift first ("shift_scale_pairs"). With
    `alternating` y has the channels of visible and moved by turns.
    """
    if order == "shift_scale_pairs":
        shift, raw_scale = parameters.unflatten(1, (-1, 2)).unbind(2)
    else:
        raw_scale, shift = parameters.chunk(2, dim=1)
        if order == "shift_scale":
            raw_scale, shift = shift, raw_scale
    moved, log_det = affine_coupling(
        moved, raw_scale, shift, scale_map=scale_map, clamp=clamp, inverse=inverse
    )
    halves = (moved, visible) if moved_first else (visible, moved)
    y = torch.stack(halves, 2).flatten(1, 2) if alternating else torch.cat(halves, dim=1)
    return y, log_det
