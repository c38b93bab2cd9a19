"""Reordering of features: volume-preserving, and what lets every feature come first once."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..made import permutation_of
from .actnorm import check_channels
from .transform import Transform, zero_log_det


class Permutation(Transform):
    """y[:, i] = x[:, permutation[i]]; log_det = 0. x is (n, D, ...).

    Args:
        permutation: of 0 ... D - 1; or the number D, for one that is drawn from torch's generator.
            It is kept in the state dict.

    Raises:
        ValueError: no permutation, D < 1; on use, another number of features.
    """

    permutation: Tensor
    inverse_permutation: Tensor

    def __init__(self, permutation: int | Sequence[int] | Tensor) -> None:
        super().__init__()
        if isinstance(permutation, Sequence | Tensor) and not (
            isinstance(permutation, Tensor) and permutation.dim() == 0
        ):
            features = len(permutation)
            given: Any = permutation
        else:
            features, given = operator.index(permutation), "random"
        if features < 1:
            raise ValueError(f"permutation: expected at least one feature, got {features}")
        self.register_buffer("permutation", permutation_of(given, features, "permutation"))
        self.register_buffer("inverse_permutation", self.permutation.argsort(), persistent=False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_channels(x, len(self.permutation))
        return x.index_select(1, self.permutation), zero_log_det(x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_channels(y, len(self.permutation))
        return y.index_select(1, self.inverse_permutation), zero_log_det(y)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.inverse_permutation = self.permutation.argsort()

    def extra_repr(self) -> str:
        return f"features={len(self.permutation)}"


class Reverse(Permutation):
    """y[:, i] = x[:, D - 1 - i]; log_det = 0. x is (n, D, ...)."""

    def __init__(self, features: int) -> None:
        super().__init__(torch.arange(operator.index(features)).flip(0) if features > 0 else 0)
