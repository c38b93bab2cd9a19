"""block_triangular_linear: a layer of MADE, forward and with its gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Case, Entry, Results, Rival, Setting
from deepgen_ext import ops, reference

Shape = tuple[int, int, int]  # batch, columns, rows
TINY: Shape = (3, 5, 7)


def _masked(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    return F.linear(x, weight * mask, bias)


def _case(shape: Shape, backward: bool, setting: Setting) -> Case:
    batch, columns, rows = TINY if setting.tiny else shape
    x = setting.random(batch, columns, seed=0)
    weight = setting.random(rows, columns, seed=1, scale=columns**-0.5)
    bias = setting.random(rows, seed=2)
    cotangent = setting.random(batch, rows, seed=3)
    visible = (torch.arange(rows) + 1) * columns // rows
    mask = (torch.arange(columns) < visible[:, None]).to(weight)

    def run(function: Callable[..., Tensor], double: bool = False) -> Results:
        leaves = [t.double() if double else t for t in (x, weight, bias)]
        leaves = [t.detach().requires_grad_(backward) for t in leaves]
        y = function(*leaves)
        if not backward:
            return [y]
        return y, *torch.autograd.grad(y, leaves, cotangent.to(y.dtype))

    masked = partial(_masked, mask=mask)
    return Case(
        (batch, columns, rows),
        partial(run, partial(ops.block_triangular_linear, visible=visible)),
        partial(run, partial(reference.block_triangular_linear, visible=visible), True),
        [
            Rival("eager, times the mask", partial(run, masked)),
            Rival("torch.compile, times the mask", partial(run, setting.compiled(masked))),
        ],
        [Rival("dense, no mask", partial(run, F.linear))],
    )


ENTRIES = [
    Entry(
        f"block_triangular_linear {columns}->{rows}, batch {batch} {name}",
        partial(_case, (batch, columns, rows), backward),
    )
    for batch, columns, rows in ((64, 784, 512), (64, 512, 1568), (256, 784, 512))
    for name, backward in (("forward", False), ("forward+backward", True))
]
