from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    mask_type: str = "B",
    groups_in_order: int = 1,
    dilation: int = 1,
) -> Tensor:
    """conv2d(x, weight * mask, bias, padding="same"): zero padding, an output like x in height and width."""
    mask = causal_mask(weight, mask_type, groups_in_order)
    return F.conv2d(x, weight * mask, bias, padding="same", dilation=dilation)


def causal_mask(weight: Tensor, mask_type: str, groups_in_order: int) -> Tensor:
    """Ones where a weight (out, in, kh, kw) looks at what comes before the pixel, else zeros.

    Rows above the centre and, in its row, the taps left of it see all channels. The centre sees
    the groups of channels before its own ("A") or up to its own ("B").
    """
    outputs, inputs, height, width = weight.shape
    mask = torch.zeros_like(weight)
    mask[:, :, : height // 2] = 1
    mask[:, :, height // 2, : width // 2] = 1
    for o in range(outputs):
        for i in range(inputs):
            own, other = o * groups_in_order // outputs, i * groups_in_order // inputs
            mask[o, i, height // 2, width // 2] = other < own or (other == own and mask_type == "B")
    return mask
