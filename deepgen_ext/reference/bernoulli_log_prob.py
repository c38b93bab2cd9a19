from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .accumulation import accumulation_dtype


def bernoulli_log_prob(x: Tensor, logits: Tensor, *, batch_dims: int = 1) -> Tensor:
    """sum over all dimensions but the first batch_dims of x * logits - softplus(logits)."""
    values = logits.to(accumulation_dtype(logits.dtype))
    # softplus(l) = -logsigmoid(-l), which has no threshold
    log_prob = x.to(values.dtype) * values + F.logsigmoid(-values)
    return (
        log_prob.sum(list(range(batch_dims, logits.ndim))) if batch_dims < logits.ndim else log_prob
    )
