"""Draws levels from softmax logits by inverse cdf: a deterministic function of one uniform a draw."""

from __future__ import annotations

import torch
from torch import Tensor

from deepgen_ext._extension import library


def categorical_draw(
    logits: Tensor, uniforms: Tensor, *, n_levels: int, temperature: float = 1.0
) -> Tensor:
    r"""Draws for each channel and pixel the smallest level l with cdf(l) > uniform.

    cdf is the cumulative sum of softmax(logits / temperature), found in two steps: blocks of 16
    weights are added first. A level of probability zero (logit -inf) is never drawn, whatever the
    uniform; where rounding leaves no cdf above it, the last level with a probability is.

    Args:
        logits: (n, C * n_levels, H, W), the levels of a channel side by side; float32, float64,
            bfloat16 or float16, any strides. Computed in float64 for float64, else in float32.
        uniforms: (n, C, H, W), float32 or float64, in [0, 1). Values are not checked: below 0 act
            as 0, from 1 on as just below 1.
        n_levels: L, 2 or more.
        temperature: of the softmax, positive and finite.

    Returns:
        Levels, int64, (n, C, H, W). Deterministic; not differentiable.

    Raises:
        ValueError: another shape or device than expected, n_levels < 2, or a temperature that is
            not positive.
        TypeError: logits that are not floating-point, uniforms neither float32 nor float64.
    """
    return library.categorical_draw(logits, uniforms, n_levels, temperature)


@torch.library.register_fake("deepgen_ext::categorical_draw")
def _(logits, uniforms, n_levels, temperature):
    return torch.empty(uniforms.shape, dtype=torch.int64, device=logits.device)
