"""Functions of a known Lipschitz constant below 1, which fixed_point_inverse is tested on."""

from __future__ import annotations

import itertools

import torch
from torch import nn

F64 = torch.float64
METHODS = ("picard", "anderson", "auto")


def linear(outputs: int, inputs: int, norm: float) -> nn.Linear:
    """Of operator norm `norm`."""
    layer = nn.Linear(inputs, outputs, dtype=F64)
    with torch.no_grad():
        layer.weight.mul_(norm / torch.linalg.matrix_norm(layer.weight, 2))
    return layer


def network(features=6, hidden=(9, 8), norm=0.9, activation=nn.Tanh, seed=0) -> nn.Sequential:
    """Lip <= norm ** layers."""
    torch.manual_seed(seed)
    sizes = (features, *hidden, features)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [linear(b, a, norm), activation()]
    return nn.Sequential(*layers[:-1])


def rotated_tanh(sign: float, factor: float, features: int, seed: int = 0):
    """sign factor Q'tanh(Qx): its Jacobian is symmetric, of one sign, of norm up to `factor`."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(features, features, generator=generator, dtype=F64))[0]
    return lambda x: sign * factor * torch.tanh(x @ q.to(x).T) @ q.to(x)


class Counted:
    """g, and how often it was called."""

    def __init__(self, g):
        self.g, self.calls = g, 0

    def __call__(self, x):
        self.calls += 1
        return self.g(x)
