from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def block_triangular_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, visible: Tensor
) -> Tensor:
    """linear(x, weight * mask, bias), where row r of the mask shows the first visible[r] columns."""
    columns = torch.arange(weight.shape[1], device=weight.device)
    masked = columns >= visible.to(weight.device).unsqueeze(1)
    y = F.linear(x, weight.masked_fill(masked, 0))
    return y if bias is None else y + bias
