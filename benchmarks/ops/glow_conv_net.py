"""glow_conv_net: the coupling network of Glow, at the sizes of a digits and of a colour model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Case, Entry, Results, Rival, Setting
from deepgen_ext import ops, reference

Shape = tuple[int, int, int, int]  # batch, in, hidden, side; twice as many channels go out as in
TINY: Shape = (2, 1, 4, 3)
SIZES: list[Shape] = [
    (64, 2, 64, 4),
    (64, 4, 64, 2),
    (32, 6, 32, 8),
    (16, 12, 128, 8),
    (16, 6, 128, 16),
]
RELU_TOLERANCE = 2e-3  # where float32 falls on the other side of a ReLU's edge than float64


def layers(x: Tensor, *given: Tensor) -> Tensor:
    """Three convolutions, the scale in the last one's weights."""
    input_weight, input_bias, hidden_weight, hidden_bias, output_weight, output_bias, log = given
    a = F.conv2d(x, input_weight, input_bias, padding=1).relu_()
    b = F.conv2d(a, hidden_weight, hidden_bias).relu_()
    scale = (3 * log).exp()
    return F.conv2d(b, output_weight * scale.view(-1, 1, 1, 1), output_bias * scale, padding=1)


def _products(shape: Shape, backward: bool, setting: Setting) -> Callable[[], Results]:
    """The matrix products alone, of columns that are there already, into matrices that are there.

    Whole ones, which BLAS cuts for several threads: ours cuts samples, and can be below that.
    """
    batch, inputs, hidden, side = shape
    positions = batch * side * side
    calls = []
    for below, above in ((9 * inputs, hidden), (hidden, hidden), (hidden, 18 * inputs)):
        values = setting.random(below, positions, seed=0)
        weight = setting.random(above, below, seed=1)
        results = weight @ values
        calls.append((weight, values, results))
        if backward:
            calls.append((weight.t(), results, torch.empty_like(values)))
            calls.append((results, values.t(), torch.empty_like(weight)))

    def run() -> Results:
        return [torch.mm(a, b, out=c) for a, b, c in calls]

    return run


def _case(shape: Shape, backward: bool, setting: Setting) -> Case:
    shape = TINY if setting.tiny else shape
    batch, inputs, hidden, side = shape
    outputs = 2 * inputs
    # The half of the channels that a coupling shows its network.
    x = setting.random(batch, 2 * inputs, side, side, seed=0)[:, :inputs]
    weights = [
        setting.random(hidden, inputs, 3, 3, seed=1, scale=(9 * inputs) ** -0.5),
        setting.random(hidden, seed=2, scale=0.5),
        setting.random(hidden, hidden, 1, 1, seed=3, scale=hidden**-0.5),
        setting.random(hidden, seed=4, scale=0.5),
        setting.random(outputs, hidden, 3, 3, seed=5, scale=(9 * hidden) ** -0.5),
        setting.random(outputs, seed=6),
        setting.random(outputs, seed=7, scale=0.1),
    ]
    last = [t.to(memory_format=torch.channels_last) if t.dim() == 4 else t for t in weights]
    cotangent = setting.random(batch, outputs, side, side, seed=8)

    def run(
        function: Callable[..., Tensor], used: list[Tensor], dtype: torch.dtype = setting.dtype
    ) -> Callable[[], Results]:
        leaves = [t.detach().to(dtype).requires_grad_(backward) for t in (x, *used)]
        if not backward:
            return lambda: [function(*leaves)]

        def with_gradients() -> Results:
            y = function(*leaves)
            return y, *torch.autograd.grad(y, leaves, cotangent.to(dtype))

        return with_gradients

    rivals = [
        Rival("eager convolutions, channels last", run(layers, last)),
        Rival("eager convolutions, channels first", run(layers, weights)),
        Rival("torch.compile", run(setting.compiled(layers), last)),
    ]
    return Case(
        (batch, inputs, side, side),
        run(ops.glow_conv_net, last),
        lambda: run(reference.glow_conv_net, weights, torch.float64)(),
        rivals,
        [Rival("its matrix products", _products(shape, backward, setting))],
        tolerance=RELU_TOLERANCE if backward else None,
    )


ENTRIES = [
    Entry(
        f"glow_conv_net {batch}x{inputs}x{side}x{side}, hidden {hidden} {direction}",
        partial(_case, (batch, inputs, hidden, side), direction == "forward+backward"),
    )
    for batch, inputs, hidden, side in SIZES
    for direction in ("forward", "forward+backward")
]
