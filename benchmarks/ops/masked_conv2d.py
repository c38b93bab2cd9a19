"""masked_conv2d: PixelCNN's convolution, which sees only what comes before a pixel."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Case, Entry, Results, Rival, Setting
from deepgen_ext import ops, reference
from deepgen_ext.reference.masked_conv2d import causal_mask

Shape = tuple[int, int, int, int, int]  # batch, in, out, side of the image, side of the kernel
TINY: Shape = (2, 3, 6, 5, 3)


def masked(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    """What everyone copies: a product with the mask in each pass."""
    return F.conv2d(x, weight * mask, bias, padding=weight.shape[-1] // 2)


def dense(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Without a mask, or with weights that were masked before."""
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)


def cropped(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    """The rows below the centre cut off; the rest of the mask is still a product."""
    half = weight.shape[-1] // 2
    rows = (weight * mask)[:, :, : half + 1]
    return F.conv2d(F.pad(x, (half, half, half, 0)), rows, bias)


def split(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Two convolutions, of the rows above and of the row's left part: no masked tap is left."""
    half = weight.shape[-1] // 2
    above = F.pad(x[:, :, :-1], (half, half, half, 0))
    y = F.conv2d(above, weight[:, :, :half], bias)
    return y + F.conv2d(F.pad(x, (half, 0)), weight[:, :, half : half + 1, : half + 1])


def _case(shape: Shape, backward: bool, setting: Setting) -> Case:
    batch, inputs, outputs, side, kernel = TINY if setting.tiny else shape
    x = setting.random(batch, inputs, side, side, seed=0)
    weight = setting.random(outputs, inputs, kernel, kernel, seed=1, scale=(inputs * 25) ** -0.5)
    bias = setting.random(outputs, seed=2)
    cotangent = setting.random(batch, outputs, side, side, seed=3)
    mask = causal_mask(weight, "B", 1)

    def run(function: Callable[..., Tensor], used: Tensor = weight) -> Callable[[], Results]:
        leaves = [t.detach().requires_grad_(backward) for t in (x, used, bias)]
        if not backward:
            return lambda: [function(*leaves)]

        def with_gradients() -> Results:
            y = function(*leaves)
            return y, *torch.autograd.grad(y, leaves, cotangent)

        return with_gradients

    def expected(function: Callable[..., Tensor], used: Tensor = weight) -> Results:
        leaves = [t.double().requires_grad_(backward) for t in (x, used, bias)]
        y = function(*leaves)
        if not backward:
            return [y]
        return y, *torch.autograd.grad(y, leaves, cotangent.double())

    product = partial(masked, mask=mask)
    premasked = weight * mask
    rivals = [
        Rival("eager, times the mask", run(product)),
        Rival(
            "dense, masked before",
            run(dense, premasked),
            "gradients of masked weights too",
            partial(expected, dense, premasked),
        ),
        Rival("rows cropped, vendor", run(partial(cropped, mask=mask))),
        Rival("two vendor convolutions", run(split)),
        Rival("torch.compile, times the mask", run(setting.compiled(product))),
    ]
    # What the targets are fractions of; no floor for a kernel that leaves out half of the taps.
    floor = Rival("dense, no mask", run(dense))
    return Case(
        (batch, inputs, outputs, side, side, kernel),
        run(ops.masked_conv2d),
        partial(expected, reference.masked_conv2d),
        rivals,
        [floor],
        x.nbytes + cotangent.nbytes,
    )


def _entries(name: str, shape: Shape) -> list[Entry]:
    return [
        Entry(f"masked_conv2d {name} forward", partial(_case, shape, False)),
        Entry(f"masked_conv2d {name} forward+backward", partial(_case, shape, True)),
    ]


ENTRIES = [
    *_entries("64->128, k=7", (64, 64, 128, 28, 7)),
    *_entries("64->128, k=3", (64, 64, 128, 28, 3)),
    *_entries("1->64, k=7", (64, 1, 64, 28, 7)),
]
