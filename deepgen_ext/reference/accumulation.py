"""In which type results are computed and sums accumulate."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def sum_over_all_but_batch(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1) if x.ndim > 1 else x
