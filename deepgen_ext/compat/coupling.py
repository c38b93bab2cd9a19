"""nflows' affine coupling: split, net, scale and shift, and the two halves together again.

Its map alone is a third of what surrounds the net. The rest is the split and the merge by index: of
halves, and of alternate features, they are views and one pass (`half_coupling`); of others a selection
each, and one copy of the input into which what has moved is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from nflows.transforms import coupling
from torch import Tensor

from deepgen_ext.ops import affine_coupling, half_coupling

from .accelerated import Accelerated

SMALLEST_RANK, LARGEST_RANK = 2, 4


class Arrangement(NamedTuple):
    """Where the features that move lie, if in one piece or alternately."""

    moved_first: bool
    alternating: bool
    sizes: tuple[int, int]  # of the two pieces in order


class AffineCouplingTransform(Accelerated, coupling.AffineCouplingTransform):
    replaces = coupling.AffineCouplingTransform
    gain = "one pass beside the net, forward and inverse; its gradient in one"

    @classmethod
    def why_not(cls, module: Any) -> str:
        return "" if module.unconditional_transform is None else "an unconditional transform"

    def prepare(self) -> None:
        self._kept = None, 0, None

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._couple(inputs, context, inverse=False)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._couple(inputs, context, inverse=True)

    def _couple(
        self, inputs: Tensor, context: Tensor | None, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        if inputs.dim() not in (SMALLEST_RANK, LARGEST_RANK) or inputs.shape[1] != self.features:
            original = super().inverse if inverse else super().forward
            return original(inputs, context)  # which says what is wrong
        arrangement = self._arrangement()
        if arrangement is None:
            return self._by_index(inputs, context, inverse)
        moved_first, alternating, sizes = arrangement
        pieces = inputs.unflatten(1, (-1, 2)).unbind(2) if alternating else inputs.split(sizes, 1)
        moved, seen = pieces if moved_first else pieces[::-1]
        seen = seen.contiguous()  # as what the index picks is: some nets call .view
        parameters = self._parameters_of(seen, context, inputs)
        return half_coupling(
            seen,
            moved,
            parameters,
            moved_first=moved_first,
            scale_map="floored_sigmoid",
            inverse=inverse,
            order="shift_scale",
            alternating=alternating,
        )

    def _by_index(
        self, inputs: Tensor, context: Tensor | None, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        moving = self.transform_features
        seen = inputs.index_select(1, self.identity_features)
        shift, raw = self._parameters_of(seen, context, inputs).chunk(2, dim=1)
        moved, log_det = affine_coupling(
            inputs.index_select(1, moving),
            raw,
            shift,
            scale_map="floored_sigmoid",
            inverse=inverse,
        )
        return inputs.index_copy(1, moving, moved.to(inputs.dtype)), log_det

    def _parameters_of(self, seen: Tensor, context: Tensor | None, inputs: Tensor) -> Tensor:
        parameters = self._modules["transform_net"](seen, context)
        return parameters if parameters.dtype == inputs.dtype else parameters.to(inputs.dtype)

    def _arrangement(self) -> Arrangement | None:
        """As the buffers say, which a state_dict may change."""
        moving = self._buffers["transform_features"]
        if torch.compiler.is_compiling() or moving.is_inference():
            return None
        buffer, version, arrangement = self._kept
        if buffer is not moving or version != moving._version:
            arrangement = arrangement_of(moving.tolist(), self.identity_features.tolist())
            self._kept = moving, moving._version, arrangement
        return arrangement

    def comparisons(self, original: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
        # The net may want a context of a shape that only it knows: a table answers in its place.
        device = self.transform_features.device
        for rest in ((), (2, 3)):
            x = torch.randn(3, self.features, *rest, dtype=torch.float64, device=device)
            outputs = 2 * self.num_transform_features
            table = torch.randn(3, outputs, *rest, dtype=torch.float64, device=device)
            for direction in ("forward", "inverse"):
                results = []
                for part in (original, self):
                    part.transform_net = _Table(table)
                    results.append(getattr(part, direction)(x))
                yield from zip((f"the {direction}", "its log-det"), *results, strict=True)


def arrangement_of(moving: list[int], staying: list[int]) -> Arrangement | None:
    moved_first = moving[:1] == [0]
    first, second = (moving, staying) if moved_first else (staying, moving)
    sizes = len(first), len(second)
    every = list(range(sum(sizes)))
    if moving and staying and first + second == every:
        return Arrangement(moved_first, False, sizes)
    if moving and first == every[::2] and second == every[1::2] and sizes[0] == sizes[1]:
        return Arrangement(moved_first, True, sizes)
    return None


class _Table(torch.nn.Module):
    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values

    def forward(self, seen: Tensor, context: Tensor | None = None) -> Tensor:
        return self.values
