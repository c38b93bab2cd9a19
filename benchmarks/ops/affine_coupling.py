"""affine_coupling: y = x s(raw) + shift and the sum of log s, whatever computed raw and shift."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import peers
from benchmarks.harness import Case, Entry, Results, Rival, Setting, copy_floors, differentiated
from deepgen_ext import ops, reference

IMAGE, TABULAR, SMALL = (64, 96, 16, 16), (1048576, 8), (64, 6, 4, 4)
TINY = {IMAGE: (2, 4, 4, 4), TABULAR: (5, 4), SMALL: (2, 2, 2, 2)}


def eager(x: Tensor, raw: Tensor, shift: Tensor, *, scale_map: str) -> tuple[Tensor, Tensor]:
    """In plain torch with as few passes as it takes."""
    if scale_map == "tanh":
        raw = torch.tanh(raw)
    elif scale_map == "sigmoid":
        raw = F.logsigmoid(raw + 2)
    return torch.addcmul(shift, x, raw.exp()), raw.flatten(1).sum(1)


def eager_forward(
    x: Tensor, raw: Tensor, shift: Tensor, *, scale_map: str
) -> tuple[Tensor, Tensor]:
    """The same where no gradient is wanted: the result goes where the scale was."""
    if scale_map == "tanh":
        raw = torch.tanh(raw)
    elif scale_map == "sigmoid":
        raw = F.logsigmoid(raw + 2)
    scale = raw.exp()
    return torch.addcmul(shift, x, scale, out=scale), raw.flatten(1).sum(1)


def case(shape: tuple[int, ...], scale_map: str, setting: Setting) -> Case:
    x, parameters, _ = _inputs(shape, setting)
    raw, shift = parameters.chunk(2, 1)
    options = {"scale_map": scale_map}
    compiled = setting.compiled(partial(eager, **options))

    def expected() -> Results:
        return reference.affine_coupling(x.double(), raw.double(), shift.double(), **options)

    rivals = [
        Rival("eager", lambda: eager_forward(x, raw, shift, **options)),
        Rival("torch.compile", lambda: compiled(x, raw, shift)),
    ]
    for peer, given in _peers(scale_map, x, raw, shift):
        if isinstance(peer, peers.NotInstalled):
            rivals.append(Rival(peer.name, missing=peer.reason))
            continue
        rivals.append(
            Rival(
                peer.name,
                partial(peer.call, x, given),
                peer.arithmetic,
                partial(peer.formula, x.double(), raw.double(), shift.double()),
            )
        )
    size = x.nbytes * 4 + _log_det_bytes(x)
    return Case(
        tuple(x.shape),
        lambda: ops.affine_coupling(x, raw, shift, **options),
        expected,
        rivals,
        copy_floors(size, setting),
        size,
    )


def _gradients(shape: tuple[int, ...], scale_map: str, setting: Setting) -> Case:
    """Forward and backward, raw scale and shift each a leaf: what the kernels alone do."""
    x, parameters, cotangents = _inputs(shape, setting)
    leaves = x, *parameters.chunk(2, 1)
    options = {"scale_map": scale_map}
    plain = partial(eager, **options)

    def run(function: Callable) -> Callable[[], Results]:
        return differentiated(function, leaves, cotangents)

    # Forward 4, backward reads the gradient, x and raw scale, and writes two: the gradient of the
    # shift is that of y.
    size = x.nbytes * 9 + 2 * _log_det_bytes(x)
    return Case(
        tuple(x.shape),
        run(partial(ops.affine_coupling, **options)),
        _expected(partial(reference.affine_coupling, **options), leaves, cotangents),
        [
            Rival("eager", run(plain)),
            Rival("torch.compile", run(setting.compiled(plain))),
        ],
        copy_floors(size, setting),
        size,
    )


def _gradients_of_output(shape: tuple[int, ...], scale_map: str, setting: Setting) -> Case:
    """Forward and backward down to the conditioner's output, each library in its own layout."""
    x, parameters, cotangents = _inputs(shape, setting)
    options = {"scale_map": scale_map}

    def split(function: Callable) -> Callable:
        return lambda x, h: function(x, *h.chunk(2, 1), **options)

    def run(function: Callable) -> Callable[[], Results]:
        return differentiated(function, (x, parameters), cotangents)

    plain = split(eager)
    rivals = [
        Rival("eager", run(plain)),
        Rival("torch.compile", run(setting.compiled(plain))),
    ]
    raw, shift = parameters.chunk(2, 1)
    for peer, given in _peers(scale_map, x, raw, shift):
        if isinstance(peer, peers.NotInstalled):
            rivals.append(Rival(peer.name, missing=peer.reason))
            continue
        separate = _expected(peer.formula, (x, raw, shift), cotangents)

        def expected(peer: peers.Coupling = peer, separate: Callable = separate) -> Results:
            y, log_det, grad_x, grad_raw, grad_shift = separate()
            return y, log_det, grad_x, peer.pack(grad_raw, grad_shift)

        call = differentiated(peer.call, (x, given), cotangents)
        rivals.append(Rival(peer.name, call, peer.arithmetic, expected))
    size = x.nbytes * 10 + 2 * _log_det_bytes(x)
    return Case(
        tuple(x.shape),
        run(split(ops.affine_coupling)),
        _expected(split(reference.affine_coupling), (x, parameters), cotangents),
        rivals,
        copy_floors(size, setting),
        size,
    )


def _inputs(
    shape: tuple[int, ...], setting: Setting
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """x, a conditioner's output, and cotangents of (y, log_det)."""
    n, channels, *rest = TINY.get(shape, TINY[TABULAR]) if setting.tiny else shape
    x = setting.random(n, channels, *rest, seed=0)
    parameters = setting.random(n, 2 * channels, *rest, seed=1, scale=0.5)
    grad_log_det = setting.random(n, seed=3).to(_sum_dtype(x))
    return x, parameters, (setting.random(*x.shape, seed=2), grad_log_det)


def _peers(
    scale_map: str, x: Tensor, raw: Tensor, shift: Tensor
) -> Iterator[tuple[peers.Coupling | peers.NotInstalled, Tensor | None]]:
    for peer in peers.couplings(scale_map, tuple(x.shape[1:])):
        given = None if isinstance(peer, peers.NotInstalled) else peer.pack(raw, shift)
        yield peer, given


def _expected(
    function: Callable, leaves: tuple[Tensor, ...], cotangents: tuple[Tensor, ...]
) -> Callable[[], Results]:
    def run() -> Results:
        doubles = [leaf.double() for leaf in leaves]
        return differentiated(function, doubles, [c.double() for c in cotangents])()

    return run


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _log_det_bytes(x: Tensor) -> int:
    return math.prod(x.shape[:1]) * _sum_dtype(x).itemsize


ENTRIES = [
    Entry("affine_coupling image exp forward", partial(case, IMAGE, "exp")),
    Entry("affine_coupling image tanh forward", partial(case, IMAGE, "tanh")),
    Entry("affine_coupling image sigmoid forward", partial(case, IMAGE, "sigmoid")),
    Entry("affine_coupling tabular exp forward", partial(case, TABULAR, "exp")),
    Entry("affine_coupling image exp forward+backward", partial(_gradients, IMAGE, "exp")),
    Entry(
        "affine_coupling image sigmoid forward+backward to the conditioner",
        partial(_gradients_of_output, IMAGE, "sigmoid"),
    ),
    Entry(
        "affine_coupling image exp forward+backward to the conditioner",
        partial(_gradients_of_output, IMAGE, "exp"),
    ),
    Entry("affine_coupling small exp forward", partial(case, SMALL, "exp")),
    Entry("affine_coupling small exp forward+backward", partial(_gradients, SMALL, "exp")),
]
