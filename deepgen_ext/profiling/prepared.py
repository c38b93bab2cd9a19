"""What an op is profiled on: its tensors, and how it is called on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepgen_ext.profiling.measurement import Setting

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Prepared:
    """Tensors that gradients are asked for, and the op on them, of `ops` or of `reference`.

    `eager` is plain torch written well; None where that is the specification.
    """

    leaves: Sequence[Tensor]
    run: Callable[..., Any]  # (module, *leaves)
    eager: Callable[..., Any] | None = None  # (*leaves)
    eager_name: str = "eager"
    tolerance: float | None = None


@dataclass(frozen=True)
class Op:
    """An op that can be profiled.

    `shape` is that of its first tensor, and what --shape replaces; `prepare(shape, setting,
    inverse)` makes the rest to fit.
    """

    shape: Shape
    tiny: Shape
    prepare: Callable[[Shape, Setting, bool], Prepared]
    directions: tuple[str, ...] = ("forward", "backward")
    axes: str = "n, ..."


def random_uniforms(shape: Shape, setting: Setting, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator).to(setting.device, setting.dtype)
