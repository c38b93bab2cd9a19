"""Chains of planar and radial flows as normflows computes them, given our parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers import NotInstalled, Pair, is_installed


@dataclass(frozen=True)
class Chain:
    """A peer's layers one after another; `as_ours` turns their gradients into those of ours."""

    name: str
    call: Callable[[Tensor], Pair]
    parameters: Sequence[Tensor]
    as_ours: Callable[[Sequence[Tensor]], Sequence[Tensor]]


def planar_chains(parameters: tuple[Tensor, Tensor, Tensor]) -> Iterator[Chain | NotInstalled]:
    """Peers with these w, u and b."""
    if not is_installed("normflows"):
        yield NotInstalled("normflows")
        return
    from normflows.flows import Planar

    w, u, b = (t.detach().clone() for t in parameters)
    layers = [
        Planar((w.shape[1],), u=u[k, None], w=w[k, None], b=b[k, None]) for k in range(len(b))
    ]

    def as_ours(gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        return [torch.cat(list(gradients[i::3])) for i in range(3)]

    yield _chain(layers, [(layer.w, layer.u, layer.b) for layer in layers], as_ours)


def radial_chains(parameters: tuple[Tensor, Tensor, Tensor]) -> Iterator[Chain | NotInstalled]:
    """Peers with this center, raw_alpha and raw_beta; normflows takes alpha itself."""
    if not is_installed("normflows"):
        yield NotInstalled("normflows")
        return
    from normflows.flows import Radial

    center, raw_alpha, raw_beta = (t.detach().clone() for t in parameters)
    layers = []
    for k in range(len(raw_alpha)):
        layer = Radial((center.shape[1],), z_0=center[k, None]).to(center)
        layer.alpha.data = F.softplus(raw_alpha[k, None])
        layer.beta.data = raw_beta[k, None].clone()
        layers.append(layer)

    def as_ours(gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        by_center, by_alpha, by_beta = (torch.cat(list(gradients[i::3])) for i in range(3))
        return by_center, by_alpha * torch.sigmoid(raw_alpha), by_beta

    yield _chain(layers, [(layer.z_0, layer.alpha, layer.beta) for layer in layers], as_ours)


def _chain(
    layers: Sequence[nn.Module],
    parameters: Sequence[tuple[Tensor, ...]],
    as_ours: Callable[[Sequence[Tensor]], Sequence[Tensor]],
) -> Chain:
    def call(z: Tensor) -> Pair:
        log_det = torch.zeros(z.shape[0], dtype=z.dtype, device=z.device)
        for layer in layers:
            z, step = layer(z)
            log_det = log_det + step
        return z, log_det

    return Chain("normflows", call, [t for group in parameters for t in group], as_ours)
