"""half_coupling: a coupling layer but for its network, from halves and the network's output to y."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Case, Entry, Results, Rival, Setting, copy_floors, differentiated
from deepgen_ext import ops, reference

IMAGE, SMALL = (64, 96, 16, 16), (64, 6, 4, 4)


def eager(
    visible: Tensor, moved: Tensor, parameters: Tensor, *, scale_map: str
) -> tuple[Tensor, Tensor]:
    """As such a layer is written in plain torch."""
    raw, shift = parameters.chunk(2, 1)
    log_scale = F.logsigmoid(raw + 2) if scale_map == "sigmoid" else raw
    y = torch.cat((visible, torch.addcmul(shift, moved, log_scale.exp())), 1)
    return y, log_scale.flatten(1).sum(1)


def separate(
    visible: Tensor, moved: Tensor, parameters: Tensor, *, scale_map: str
) -> tuple[Tensor, Tensor]:
    """With the op for the map alone."""
    raw, shift = parameters.chunk(2, 1)
    y, log_det = ops.affine_coupling(moved, raw, shift, scale_map=scale_map)
    return torch.cat((visible, y), 1), log_det


def case(shape: tuple[int, ...], scale_map: str, backward: bool, setting: Setting) -> Case:
    n, channels, *sides = (2, 4, 4, 4) if setting.tiny else shape
    half = channels // 2
    x = setting.random(n, channels, *sides, seed=0)
    parameters = setting.random(n, 2 * half, *sides, seed=1, scale=0.5)
    leaves = (*x.chunk(2, 1), parameters)  # halves of one tensor, as a layer before leaves them
    sum_dtype = torch.float64 if setting.dtype == torch.float64 else torch.float32
    cotangents = setting.random(*x.shape, seed=2), setting.random(n, seed=3).to(sum_dtype)
    options = {"scale_map": scale_map}

    def run(function: Callable) -> Callable[[], Results]:
        function = partial(function, **options)
        if backward:
            return differentiated(function, leaves, cotangents)
        return lambda: function(*leaves)

    def expected() -> Results:
        doubles = [leaf.double() for leaf in leaves]
        function = partial(reference.half_coupling, **options)
        if not backward:
            return function(*doubles)
        return differentiated(function, doubles, [c.double() for c in cotangents])()

    # In halves of x: forward reads 4 and writes 2; backward reads the gradient of the moved half,
    # that half and the raw scale, and writes the gradients of moved, raw scale and shift. The
    # gradient of the visible half is that of y.
    size = x.nbytes // 2 * (12 if backward else 6) + math.prod(cotangents[1].shape) * 4
    return Case(
        tuple(x.shape),
        run(ops.half_coupling),
        expected,
        [
            Rival("ours: chunk, affine_coupling, cat", run(separate)),
            Rival("eager", run(eager)),
            Rival("torch.compile", run(setting.compiled(eager))),
        ],
        copy_floors(size, setting),
        size,
    )


ENTRIES = [
    Entry(
        f"half_coupling {name} {scale_map} {'forward+backward' if backward else 'forward'}",
        partial(case, shape, scale_map, backward),
    )
    for name, shape in (("image", IMAGE), ("small", SMALL))
    for scale_map in ("exp", "sigmoid")
    for backward in (False, True)
]
