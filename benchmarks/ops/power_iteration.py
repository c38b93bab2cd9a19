"""power_iteration: the spectral norms of 20 convolutions with 12 M weights, and W / sigma."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from benchmarks.harness import Case, Entry, Results, Rival, Setting, copy_floors
from deepgen_ext import nn as deepgen_nn
from deepgen_ext import ops, reference

# (out, in) of 3x3 kernels, as in ResNet-18: 11.9 M weights.
CHANNELS = [
    *[(64, 64)] * 4,
    (128, 64),
    *[(128, 128)] * 4,
    (256, 128),
    *[(256, 256)] * 4,
    (512, 256),
    *[(512, 512)] * 3,
    (256, 64),
    (128, 64),
]
TINY = [(4, 3), (5, 4)]


def weights_of(setting: Setting, channels: Sequence[tuple[int, int]] = CHANNELS) -> list[Tensor]:
    return [
        setting.random(out, in_, 3, 3, seed=i, scale=(9 * in_) ** -0.5)
        for i, (out, in_) in enumerate(TINY if setting.tiny else channels)
    ]


def vectors_of(weights: list[Tensor], setting: Setting) -> tuple[list[Tensor], list[Tensor]]:
    us = [F.normalize(setting.random(len(w), seed=50 + i), dim=0) for i, w in enumerate(weights)]
    vs = [
        F.normalize(setting.random(w[0].numel(), seed=90 + i), dim=0) for i, w in enumerate(weights)
    ]
    return us, vs


def eager(weights: list[Tensor], us: list[Tensor], vs: list[Tensor]) -> list[Tensor]:
    """Three matrix-vector products and a division, as torch's parametrization does."""
    scaled = []
    for weight, v in zip(weights, vs, strict=True):
        matrix = weight.flatten(1)
        with torch.no_grad():
            u = F.normalize(torch.mv(matrix, v), dim=0, eps=1e-12)
            v = F.normalize(torch.mv(matrix.t(), u), dim=0, eps=1e-12)
        scaled.append(weight / torch.dot(u, torch.mv(matrix, v)))
    return scaled


def eager_two_products(weights: list[Tensor], us: list[Tensor], vs: list[Tensor]) -> list[Tensor]:
    """sigma = |W'u|, without the third product; as a gradient needs it, by u'Wv."""
    scaled = []
    for weight, v in zip(weights, vs, strict=True):
        matrix = weight.flatten(1)
        u = F.normalize(torch.mv(matrix, v), dim=0, eps=1e-12)
        scaled.append(weight / torch.mv(matrix.t(), u).norm())
    return scaled


def ours(weights: list[Tensor], us: list[Tensor], vs: list[Tensor]) -> list[Tensor]:
    return ops.spectral_normalize(weights, us, vs)[0]


def specification(weights: list[Tensor], us: list[Tensor], vs: list[Tensor]) -> list[Tensor]:
    return reference.spectral_normalize(weights, us, vs)[0]


def case(backward: bool, setting: Setting, channels: Sequence[tuple[int, int]] = CHANNELS) -> Case:
    weights = weights_of(setting, channels)
    us, vs = vectors_of(weights, setting)
    cotangents = [setting.random(*w.shape, seed=200 + i, scale=0.1) for i, w in enumerate(weights)]

    def run(function: Callable, given=None, weight_grads=cotangents) -> Callable[[], Results]:
        matrices, left, right = given or (weights, us, vs)
        if not backward:
            return lambda: function(matrices, left, right)
        leaves = [matrix.detach().requires_grad_() for matrix in matrices]

        def call() -> Results:
            return torch.autograd.grad(function(leaves, left, right), leaves, weight_grads)

        return call

    def expected() -> Results:
        doubles = [[t.double() for t in group] for group in (weights, us, vs)]
        return run(specification, doubles, [c.double() for c in cotangents])()

    rivals = [
        Rival("eager", run(eager)),
        Rival("torch.compile", run(setting.compiled(eager))),
        Rival("torch's parametrization", _parametrized(weights, vs, backward, cotangents)),
    ]
    if not backward:
        rivals.insert(1, Rival("eager, two products", run(eager_two_products)))
    size = (7 if backward else 3) * sum(weight.nbytes for weight in weights)
    return Case(
        (len(weights), sum(weight.numel() for weight in weights)),
        run(ours),
        expected,
        rivals,
        copy_floors(size, setting),
        size,
        notes=(
            "floor: read the weights twice and write them once"
            + ("; then read them once and their gradient twice, write one" if backward else ""),
        ),
    )


def _parametrized(
    weights: list[Tensor], vs: list[Tensor], backward: bool, cotangents: list[Tensor]
) -> Callable[[], Results]:
    layers = [_layer(weight) for weight in weights]
    for layer in layers:
        parametrizations.spectral_norm(layer)
    constraints = [layer.parametrizations.weight for layer in layers]
    for constraint in constraints:
        constraint[0].training = True

    def run() -> Results:
        for constraint, v in zip(constraints, vs, strict=True):
            constraint[0]._v.copy_(v)  # the same step again, 5 us a layer
        if backward:
            scaled = [layer.weight for layer in layers]
            leaves = [constraint.original for constraint in constraints]
            return torch.autograd.grad(scaled, leaves, cotangents)
        with torch.no_grad():
            return [layer.weight for layer in layers]

    return run


def _layer(weight: Tensor) -> nn.Conv2d:
    out, in_ = weight.shape[:2]
    layer = nn.Conv2d(in_, out, 3, padding=1, bias=False, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def _norms_case(setting: Setting) -> Case:
    """What SpectralLinear and SpectralConv2d do: the norms alone."""
    weights = weights_of(setting)
    us, vs = vectors_of(weights, setting)

    def norms(weights: list[Tensor], us: list[Tensor], vs: list[Tensor]) -> Results:
        sigmas = []
        for weight, v in zip(weights, vs, strict=True):
            matrix = weight.flatten(1)
            u = F.normalize(torch.mv(matrix, v), dim=0)
            sigmas.append(torch.mv(matrix.t(), u).norm())
        return [torch.stack(sigmas)]

    def expected() -> Results:
        doubles = [[t.double() for t in group] for group in (weights, us, vs)]
        return [reference.power_iteration(*doubles)[2]]

    size = 3 * sum(weight.nbytes for weight in weights)
    return Case(
        (len(weights), sum(weight.numel() for weight in weights)),
        lambda: [ops.power_iteration(weights, us, vs)[2]],
        expected,
        [
            Rival("eager", lambda: norms(weights, us, vs)),
            Rival("torch.compile", partial(setting.compiled(norms), weights, us, vs)),
        ],
        copy_floors(size, setting),
        size,
        notes=("floor: as for W / sigma: read the weights twice and write them once",),
    )


def _eval_case(setting: Setting) -> Case:
    """The weights of 20 layers in eval mode; the floor, a copy as above, is for comparison."""
    weights = weights_of(setting)
    layers, theirs = [_layer(w) for w in weights], [_layer(w) for w in weights]
    for layer, other in zip(layers, theirs, strict=True):
        deepgen_nn.spectral_norm(layer).eval()
        parametrizations.spectral_norm(other).eval()
        other.load_state_dict(layer.state_dict())
    expected = [layer.weight.detach().double() for layer in layers]

    def run(group: list[nn.Module]) -> Callable[[], Results]:
        def call() -> Results:
            with torch.no_grad():
                return [layer.weight for layer in group]

        return call

    size = 3 * sum(weight.nbytes for weight in weights)
    return Case(
        (len(weights), sum(weight.numel() for weight in weights)),
        run(layers),
        lambda: expected,
        [Rival("torch's parametrization", run(theirs))],
        copy_floors(size, setting),
        size,
    )


ENTRIES = [
    Entry("power_iteration W / sigma forward", partial(case, False)),
    Entry("power_iteration W / sigma forward+backward", partial(case, True)),
    Entry("power_iteration norms alone", _norms_case),
    Entry("power_iteration eval", _eval_case),
]
