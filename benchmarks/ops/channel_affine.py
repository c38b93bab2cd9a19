"""channel_affine: one scale and shift a channel, and its log-det (activation normalisation)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.harness import Case, Entry, Results, Rival, Setting, copy_floors, differentiated
from deepgen_ext import ops, reference

IMAGE, TABULAR = (64, 96, 16, 16), (65536, 64)
TINY = {IMAGE: (2, 3, 4, 4), TABULAR: (5, 3)}


def eager(x: Tensor, log_scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """As it is mostly written: a product and a sum."""
    scale, offset = _per_channel(x, log_scale.exp(), shift)
    return x * scale + offset, _log_det(x, log_scale)


def addcmul(x: Tensor, log_scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """In one pass."""
    scale, offset = _per_channel(x, log_scale.exp(), shift)
    return torch.addcmul(offset, x, scale), _log_det(x, log_scale)


def _per_channel(x: Tensor, *values: Tensor) -> list[Tensor]:
    return [value.view(-1, *[1] * (x.ndim - 2)) for value in values]


def _log_det(x: Tensor, log_scale: Tensor) -> Tensor:
    return (math.prod(x.shape[2:]) * log_scale.sum()).expand(x.shape[0])


def _case(shape: tuple[int, ...], backward: bool, setting: Setting) -> Case:
    x = setting.random(*(TINY[shape] if setting.tiny else shape), seed=0)
    log_scale, shift = (setting.random(x.shape[1], seed=s, scale=0.3) for s in (1, 2))
    sum_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    cotangents = (
        setting.random(*x.shape, seed=3),
        setting.random(x.shape[0], seed=4).to(sum_dtype),
    )
    leaves = x, log_scale, shift

    def run(function: Callable) -> Callable[[], Results]:
        if backward:
            return differentiated(function, leaves, cotangents)
        return lambda: function(*leaves)

    def expected() -> Results:
        doubles = [leaf.double() for leaf in leaves]
        if backward:
            weights = [cotangent.double() for cotangent in cotangents]
            return differentiated(reference.channel_affine, doubles, weights)()
        return reference.channel_affine(*doubles)

    rivals = [
        Rival("eager", run(eager)),
        Rival("eager, torch.addcmul", run(addcmul)),
        Rival("torch.compile", run(setting.compiled(addcmul))),
    ]
    for peer in peers.channel_affines(tuple(x.shape[1:]), log_scale, shift):
        if isinstance(peer, peers.NotInstalled):
            rivals.append(Rival(peer.name, missing=peer.reason))
        else:
            rivals.append(Rival(peer.name, _peer_run(peer, x, cotangents if backward else None)))
    size = x.nbytes * (5 if backward else 2)
    return Case(
        tuple(x.shape),
        run(ops.channel_affine),
        expected,
        rivals,
        copy_floors(size, setting),
        size,
    )


def _peer_run(
    peer: peers.ChannelAffine, x: Tensor, cotangents: tuple[Tensor, Tensor] | None
) -> Callable[[], Results]:
    if cotangents is None:

        def run() -> Results:
            with torch.no_grad():
                return peer.call(x)

        return run
    leaves = x.detach().requires_grad_(), *peer.parameters

    def run_with_gradients() -> Results:
        results = peer.call(leaves[0])
        grad_x, *rest = torch.autograd.grad(results, leaves, cotangents)
        return *results, grad_x, *(grad.flatten() for grad in rest)

    return run_with_gradients


ENTRIES = [
    Entry("channel_affine image forward", partial(_case, IMAGE, False)),
    Entry("channel_affine image forward+backward", partial(_case, IMAGE, True)),
    Entry("channel_affine tabular forward", partial(_case, TABULAR, False)),
    Entry("channel_affine tabular forward+backward", partial(_case, TABULAR, True)),
]
