"""The inverse of y = x + g(x) with its log-det, in evaluations of g: i-ResNets when they sample."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks import peers, residual_peers
from benchmarks.harness import Case, Entry, Results, Rival, Setting
from deepgen_ext.nn import LipschitzConvNet, LipschitzMLP, LogDetEstimator
from deepgen_ext.nn.transforms import InvertibleResidual

NETWORK = "g alone"
TERMS = 10
ERROR = 1e-5  # of the inverses, ours and the eager one's


def _mlp(setting: Setting) -> tuple[nn.Module, tuple[int, ...]]:
    features, hidden, batch = (4, 8, 3) if setting.tiny else (64, 128, 1024)
    return LipschitzMLP(features, (hidden,) * 3), (batch, features)


def _conv(setting: Setting) -> tuple[nn.Module, tuple[int, ...]]:
    shape, hidden, batch = ((2, 4, 4), 4, 2) if setting.tiny else ((4, 16, 16), 64, 32)
    return LipschitzConvNet(shape, hidden), (batch, *shape)


def _inverse(
    make: Callable[[Setting], tuple[nn.Module, tuple[int, ...]]], setting: Setting
) -> Case:
    """From y, made of a known x, to x and the log-det by a power series with given signs."""
    torch.manual_seed(0)
    g, shape = make(setting)
    g = g.to(setting.device, setting.dtype)
    x = setting.random(*shape, seed=1)
    for _ in range(50):
        g(x[:1])  # power iterations
    g.eval()
    layer = InvertibleResidual(g, LogDetEstimator("series", n_terms=TERMS), tol=ERROR)
    layer.generator = torch.Generator(setting.device)
    double = copy.deepcopy(g).double()
    with torch.no_grad():
        y = (x.double() + double(x.double())).to(x)
    bits = torch.randint(
        0, 2, shape, generator=layer.generator.manual_seed(0), dtype=torch.int8, device=x.device
    )
    signs = 2 * bits - 1

    def ours() -> Results:
        layer.generator.manual_seed(0)
        with torch.no_grad():
            return layer.inverse(y)

    def known() -> Results:
        return x, -_series(double, x.double(), signs.double())

    def eager() -> Results:
        with torch.no_grad():
            z = _picard(g, y, g.lipschitz)
        return z, -_series(g, z, signs.to(z))

    def forward() -> Results:
        with torch.no_grad():
            return [g(x)]

    return Case(
        shape,
        ours,
        known,
        [Rival("eager: plain iteration, autograd", eager), _normflows(g, y)],
        [Rival(NETWORK, forward)],
        tolerance=1e-3,
    )


def _picard(g: nn.Module, y: Tensor, lipschitz: float) -> Tensor:
    """Until the whole batch is within ERROR, by the same bound as ours."""
    x, moved = y - g(y), y
    while (x - moved).flatten(1).norm(dim=1).max() * lipschitz / (1 - lipschitz) > ERROR:
        x, moved = y - g(x), x
    return x


def _series(g: nn.Module, x: Tensor, signs: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    output, row = g(x), signs
    total = x.new_zeros(x.shape[0])
    for k in range(1, TERMS + 1):
        (row,) = torch.autograd.grad(output, x, row, retain_graph=True)
        total = total + (-1) ** (k + 1) / k * (row * signs).flatten(1).sum(1)
    return total


def _normflows(g: nn.Module, y: Tensor) -> Rival:
    """Its block around the same g."""
    name = f"normflows, {TERMS} terms"
    block = residual_peers.normflows_block(g, TERMS)
    if isinstance(block, peers.NotInstalled):
        return Rival(name, missing=block.reason)
    own = residual_peers.normflows_block(copy.deepcopy(g).double(), TERMS)

    def run() -> Results:
        with torch.no_grad():
            x, _ = block.inverse(y, 0)
        return [x]

    def expected() -> Results:
        with torch.no_grad():
            return [own.inverse(y.double())]

    return Rival(name, run, "(dx)^2 < 1e-5 (1 + |y|), its own probes", expected)


ENTRIES = [
    Entry("residual inverse + log-det mlp 64, 128x3, batch 1024", partial(_inverse, _mlp)),
    Entry("residual inverse + log-det conv (32, 4, 16, 16)", partial(_inverse, _conv)),
]
