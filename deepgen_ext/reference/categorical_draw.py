from __future__ import annotations

import torch
from torch import Tensor

from .accumulation import accumulation_dtype


def categorical_draw(
    logits: Tensor, uniforms: Tensor, *, n_levels: int, temperature: float = 1.0
) -> Tensor:
    """The smallest level whose cdf of softmax(logits / temperature) exceeds the uniform.

    logits (n, C * L, H, W) with the levels of a channel side by side, uniforms and result (n, C, H, W).
    """
    values = logits.to(accumulation_dtype(logits.dtype)).unflatten(1, (-1, n_levels))
    probabilities = torch.softmax(values / temperature, 2)
    cdf = probabilities.cumsum(2)
    below = (cdf <= uniforms.to(cdf.dtype).unsqueeze(2)).sum(2)
    last = n_levels - 1 - (probabilities.flip(2) > 0).int().argmax(2)
    return torch.minimum(below, last)
