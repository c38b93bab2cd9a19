"""rational_quadratic_spline: a monotone spline an element, and its log-det, parameters given."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks import peers, spline_peers
from benchmarks.harness import Case, Entry, Results, Rival, Setting, copy_floors, differentiated
from deepgen_ext import ops, reference

TABULAR, IMAGE = (65536, 64), (64, 12, 32, 32)
TINY = {TABULAR: (5, 3), IMAGE: (2, 2, 3, 3)}
BINS = 8
SIZES = (BINS, BINS, BINS - 1)
# A float32 knows the edges of the narrowest of these bins to 1e-4 of its width.
TOLERANCE = {torch.float32: 1e-3}
# Of a gradient's largest entry: where bins are narrow plain torch in float32 is as far from float64.
GRADIENT_TOLERANCE = {torch.float32: 2e-2}


def _inputs(shape: tuple[int, ...], setting: Setting) -> tuple[Tensor, tuple[Tensor, ...]]:
    """x, most of it between the bounds, and the slices of one output of a conditioner."""
    n, channels, *rest = TINY[shape] if setting.tiny else shape
    x = setting.random(n, channels, *rest, seed=0, scale=1.5)
    output = setting.random(n, channels, sum(SIZES), *rest, seed=1, scale=0.5)
    return x, output.movedim(2, -1).split(SIZES, -1)


def _forward(shape: tuple[int, ...], inverse: bool, setting: Setting) -> Case:
    x, parameters = _inputs(shape, setting)
    plain = partial(reference.rational_quadratic_spline, inverse=inverse)
    compiled = setting.compiled(plain)
    doubles = [t.double() for t in (x, *parameters)]

    rivals = [
        Rival("eager", lambda: plain(x, *parameters)),
        Rival("torch.compile", lambda: compiled(x, *parameters)),
    ]
    for peer in spline_peers.splines(inverse):
        if isinstance(peer, peers.NotInstalled):
            rivals.append(Rival(peer.name, missing=peer.reason))
        else:
            expected = partial(peer.formula, *doubles) if peer.arithmetic else None
            call = partial(_without_gradients, peer.call, x, *parameters)
            rivals.append(Rival(peer.name, call, peer.arithmetic, expected))
    size = x.nbytes * (sum(SIZES) + 2)
    return Case(
        tuple(x.shape),
        lambda: ops.rational_quadratic_spline(x, *parameters, inverse=inverse),
        lambda: plain(*doubles),
        rivals,
        copy_floors(size, setting),
        size,
        TOLERANCE.get(x.dtype),
    )


def _without_gradients(function: Callable[..., Results], *tensors: Tensor) -> Results:
    with torch.no_grad():
        return function(*tensors)


def _gradients(shape: tuple[int, ...], inverse: bool, setting: Setting) -> Case:
    """Forward and backward, widths, heights and derivatives each a leaf."""
    x, parameters = _inputs(shape, setting)
    leaves = x, *parameters
    cotangents = (
        setting.random(*x.shape, seed=3),
        setting.random(x.shape[0], seed=4).to(_sum_dtype(x)),
    )
    plain = partial(reference.rational_quadratic_spline, inverse=inverse)

    def expected() -> Results:
        doubles = [[t.double() for t in tensors] for tensors in (leaves, cotangents)]
        return differentiated(plain, *doubles)()

    rivals = [
        Rival("eager", differentiated(plain, leaves, cotangents)),
        Rival("torch.compile", differentiated(setting.compiled(plain), leaves, cotangents)),
    ]
    for peer in spline_peers.splines(inverse):
        if isinstance(peer, peers.NotInstalled):
            rivals.append(Rival(peer.name, missing=peer.reason))
        elif not peer.arithmetic:
            rivals.append(Rival(peer.name, differentiated(peer.call, leaves, cotangents)))
    # Forward as above; backward reads gradient, x and parameters, and writes those of the latter.
    size = x.nbytes * (3 * sum(SIZES) + 5)
    return Case(
        tuple(x.shape),
        differentiated(partial(ops.rational_quadratic_spline, inverse=inverse), leaves, cotangents),
        expected,
        rivals,
        copy_floors(size, setting),
        size,
        GRADIENT_TOLERANCE.get(x.dtype),
    )


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


ENTRIES = [
    Entry("rational_quadratic_spline tabular forward", partial(_forward, TABULAR, False)),
    Entry("rational_quadratic_spline tabular inverse", partial(_forward, TABULAR, True)),
    Entry("rational_quadratic_spline image forward", partial(_forward, IMAGE, False)),
    Entry("rational_quadratic_spline image inverse", partial(_forward, IMAGE, True)),
    Entry(
        "rational_quadratic_spline tabular forward+backward", partial(_gradients, TABULAR, False)
    ),
    Entry("rational_quadratic_spline tabular inverse+backward", partial(_gradients, TABULAR, True)),
]
