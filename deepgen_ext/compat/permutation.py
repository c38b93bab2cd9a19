"""Permutations of features between the layers of nflows and normflows.

An index with a list of features takes four times what `index_select` takes, and its gradient, which
adds one element at a time, more; nflows sorts its permutation for each inverse, where writing to the
permuted places does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .accelerated import Accelerated


class Permutation(Accelerated):
    """nflows', in one dimension."""

    gain = "the inverse without a sort"
    keeps = ()

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        permutation, dim = self._buffers["_permutation"], self._dim
        if dim >= inputs.dim() or inputs.shape[dim] != len(permutation):
            return super().inverse(inputs, context)  # which says what is wrong
        return inputs.index_copy(dim, permutation, inputs), inputs.new_zeros(inputs.shape[0])

    def comparisons(self, original: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
        permutation = self._permutation
        shape = [3] * self._dim + [len(permutation), 2]
        x = torch.randn(shape, dtype=torch.float64, device=permutation.device)
        yield "the inverse", original.inverse(x)[0], self.inverse(x)[0]


class Permute(Accelerated):
    """normflows', of channels."""

    gain = "selections instead of indices, and their gradient without accumulation"
    keeps = ()

    @classmethod
    def why_not(cls, module: Any) -> str:
        return "" if module.mode == "shuffle" else "two slices and their concatenation"

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return _select(z, self._buffers["perm"])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return _select(z, self._buffers["inv_perm"])

    def comparisons(self, original: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
        z = torch.randn(3, self.num_channels, 2, dtype=torch.float64, device=self.perm.device)
        for direction in ("forward", "inverse"):
            expected, found = (getattr(part, direction)(z) for part in (original, self))
            yield from zip((f"the {direction}", "its log-det"), expected, found, strict=True)


def _select(z: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    return z.index_select(1, index), torch.zeros(len(z), device=z.device)
