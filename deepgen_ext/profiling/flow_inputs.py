"""Flows, weights and solvers on random tensors, for `cases.OPS`."""

from __future__ import annotations

import math
from itertools import pairwise
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deepgen_ext.profiling.measurement import Setting
from deepgen_ext.profiling.prepared import Prepared, Shape


def affine_coupling(shape: Shape, setting: Setting, inverse: bool) -> Prepared:
    leaves = [setting.random(*shape, seed=s, scale=c) for s, c in ((0, 1.0), (1, 0.5), (2, 1.0))]

    def eager(x: Tensor, raw: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        log_s = torch.tanh(raw)
        if inverse:
            return (x - shift) * torch.exp(-log_s), -log_s.flatten(1).sum(1)
        return torch.addcmul(shift, x, log_s.exp()), log_s.flatten(1).sum(1)

    def run(module: ModuleType, *given: Tensor) -> Any:
        return module.affine_coupling(*given, scale_map="tanh", inverse=inverse)

    return Prepared(leaves, run, eager)


def half_coupling(shape: Shape, setting: Setting, inverse: bool) -> Prepared:
    n, channels, *sides = shape
    half = (n, channels // 2, *sides)
    visible, moved = (setting.random(*half, seed=s) for s in (0, 1))
    parameters = setting.random(n, 2 * half[1], *sides, seed=2, scale=0.5)

    def eager(visible: Tensor, moved: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = parameters.chunk(2, dim=1)
        log_s = torch.tanh(raw)
        if inverse:
            moved = (moved - shift) * torch.exp(-log_s)
            return torch.cat((visible, moved), dim=1), -log_s.flatten(1).sum(1)
        moved = torch.addcmul(shift, moved, log_s.exp())
        return torch.cat((visible, moved), dim=1), log_s.flatten(1).sum(1)

    def run(module: ModuleType, *given: Tensor) -> Any:
        return module.half_coupling(*given, scale_map="tanh", inverse=inverse)

    return Prepared([visible, moved, parameters], run, eager)


def channel_affine(shape: Shape, setting: Setting, inverse: bool) -> Prepared:
    x = setting.random(*shape, seed=0)
    channels = shape[1] if len(shape) > 1 else 1
    of_channels = [setting.random(channels, seed=s, scale=0.3) for s in (1, 2)]
    return Prepared(
        [x, *of_channels], lambda module, *given: module.channel_affine(*given, inverse=inverse)
    )


def spline(shape: Shape, setting: Setting, inverse: bool) -> Prepared:
    bins = 8
    parameters = setting.random(*shape, 3 * bins - 1, seed=1)

    def run(module: ModuleType, x: Tensor, parameters: Tensor) -> Any:
        parts = parameters.split([bins, bins, bins - 1], -1)
        return module.rational_quadratic_spline(x, *parts, inverse=inverse)

    # Of float32, where a slope is steep.
    return Prepared([setting.random(*shape, seed=0), parameters], run, tolerance=1e-3)


def block_triangular_linear(shape: Shape, setting: Setting, inverse: bool) -> Prepared:
    columns = shape[-1]
    visible = torch.arange(columns) + 1
    leaves = [
        setting.random(*shape, seed=0),
        setting.random(columns, columns, seed=1, scale=columns**-0.5),
        setting.random(columns, seed=2),
    ]
    mask = torch.ones_like(leaves[1]).tril()
    return Prepared(
        leaves,
        lambda module, *given: module.block_triangular_linear(*given, visible),
        lambda x, weight, bias: F.linear(x, weight * mask, bias),
    )


def autoregressive_inverse(shape: Shape, setting: Setting, inverse: bool) -> Prepared:
    dimensions = shape[-1]
    hidden = (16, 16) if setting.tiny else (512, 512)
    order = torch.arange(dimensions)
    degrees = [torch.arange(units) * dimensions // units for units in hidden]
    sizes = [dimensions, *hidden, 2 * dimensions]
    layers = list(enumerate(pairwise(sizes)))
    weights = [setting.random(b, a, seed=i, scale=a**-0.5) for i, (a, b) in layers]
    biases = [setting.random(b, seed=10 + i, scale=0.1) for i, (_, b) in layers]
    below, above = [order + 1, *degrees], [*degrees, order.repeat_interleave(2)]
    masks = [(a[:, None] >= b).to(weights[0]) for a, b in zip(above, below, strict=True)]

    def run(module: ModuleType, z: Tensor, *parameters: Tensor) -> Any:
        return module.autoregressive_inverse(z, list(parameters[:3]), list(parameters[3:]), degrees)

    def passes(z: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """A network pass a dimension, as libraries do it; the masks applied before."""
        masked = [w * mask for w, mask in zip(parameters[:3], masks, strict=True)]
        x, log_s = torch.zeros_like(z), z
        for i in range(dimensions):
            h = F.linear(x, masked[0], parameters[3]).relu()
            h = F.linear(h, masked[1], parameters[4]).relu()
            raw, shift = F.linear(h, masked[2], parameters[5]).unflatten(1, (-1, 2)).unbind(2)
            log_s = torch.tanh(raw)
            solved = (z - shift) * torch.exp(-log_s)
            x = torch.where(order.to(z.device) <= i, solved, x)
        return x, -log_s.sum(1)

    leaves = [setting.random(*shape, seed=20), *weights, *biases]
    return Prepared(leaves, run, passes, "eager, a pass a dimension", 1e-3)


def power(name: str, shape: Shape, setting: Setting, inverse: bool) -> Prepared:
    count = 4
    rows, columns = shape[0], math.prod(shape[1:])
    weights = [setting.random(*shape, seed=i, scale=columns**-0.5) for i in range(count)]
    wide = torch.float64 if setting.dtype == torch.float64 else torch.float32
    us = [F.normalize(setting.random(rows, seed=20 + i).to(wide), dim=0) for i in range(count)]
    vs = [F.normalize(setting.random(columns, seed=30 + i).to(wide), dim=0) for i in range(count)]

    def run(module: ModuleType, *weights: Tensor) -> Any:
        like = [[t.to(torch.promote_types(weights[0].dtype, wide)) for t in ts] for ts in (us, vs)]
        results = getattr(module, name)(weights, *like)
        return *results[0], results[-1]

    return Prepared(weights, run)


def chain(name: str, scalars: int, shape: Shape, setting: Setting, inverse: bool) -> Prepared:
    steps, features = (3 if setting.tiny else 16), shape[-1]
    z = setting.random(*shape, seed=0)
    near = 0.3 * features**-0.5
    vectors = [setting.random(steps, features, seed=1 + i, scale=near) for i in range(3 - scalars)]
    numbers = [setting.random(steps, seed=5 + i) for i in range(scalars)]
    return Prepared(
        [z, *vectors, *numbers], lambda module, *given: getattr(module, name)(*given), None,
        tolerance=1e-3,
    )  # fmt: skip


def fixed_point_step(shape: Shape, setting: Setting, inverse: bool) -> Prepared:
    memory = 5
    n, features = shape
    x, y = (setting.random(n, features, seed=s) for s in (0, 1))
    images, residuals = (setting.random(n, memory, features, seed=s) for s in (2, 3))
    gram = residuals.double() @ residuals.double().transpose(1, 2)
    # The residual before: a little larger than this step's; a full history, slot 0 comes next.
    before = [1e-9, torch.inf, 3 * features**0.5, 0.0]
    record = torch.tensor([before], dtype=torch.float64, device=x.device).repeat(n, 1)
    state = torch.tensor([[0, 9, 2**memory - 1, memory - 1, 0]], dtype=torch.int32)
    state = state.to(x.device).repeat(n, 1)

    made: dict[tuple[Any, torch.dtype], list[Tensor]] = {}

    def run(module: ModuleType, x: Tensor, y: Tensor) -> Any:
        """The same step each time: what it reads besides the history is put back, a small copy."""
        if (module, x.dtype) not in made:
            history = [t.to(x.dtype).clone() for t in (images, residuals)]
            made[module, x.dtype] = [x.clone(), 0.5 * y, *history, gram.clone(), record.clone(),
                                     state.clone()]  # fmt: skip
        own, g_x, *history, products, numbers, words = made[module, x.dtype]
        for now, then in ((own, x), (numbers, record), (words, state)):
            now.copy_(then)
        module.fixed_point_step(
            own, g_x, y, *history, products, numbers, words, lipschitz=0.9, rounding=1e-7
        )
        return own, numbers[:, 1].to(x.dtype)

    return Prepared([x, y], run, tolerance=1e-3)


def fixed_point_mlp(shape: Shape, setting: Setting, inverse: bool) -> Prepared:
    n, features = shape
    hidden = 8 if setting.tiny else 128
    weights = []
    for i, (a, b) in enumerate(pairwise((features, hidden, hidden, features))):
        matrix = setting.random(b, a, seed=i).double()
        weights.append((0.9 * matrix / torch.linalg.matrix_norm(matrix, 2)).to(setting.dtype))
    biases = [setting.random(w.shape[0], seed=9, scale=0.1) for w in weights]
    betas = torch.ones(2, dtype=setting.dtype, device=setting.device)
    tolerance = torch.full((n,), 1e-5, dtype=torch.float64, device=setting.device)
    rounding = torch.finfo(setting.dtype).eps

    def run(module: ModuleType, y: Tensor) -> Tensor:
        like = [[t.to(y.dtype) for t in ts] for ts in (weights, biases, [betas])]
        options = {"activation": "elu", "lipschitz": 0.9**3, "rounding": rounding}
        return module.fixed_point_mlp(y, y, tolerance, like[0], like[1], like[2][0], **options)[0]

    @torch.no_grad()
    def picard(y: Tensor) -> Tensor:
        """To the same bound, asked of the host after each step."""
        x, contraction = y, 0.9**3
        for _ in range(200):
            h = F.elu(F.linear(x, weights[0], biases[0]))
            h = F.elu(F.linear(h, weights[1], biases[1]))
            image = y - F.linear(h, weights[2], biases[2])
            step, x = float((image - x).norm(dim=1).max()), image
            if step * contraction / (1 - contraction) <= 1e-5:
                break
        return x

    return Prepared([setting.random(n, features, seed=20)], run, picard, "eager, Picard", 1e-3)
