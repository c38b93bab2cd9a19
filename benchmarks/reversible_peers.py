"""memcnn's reversible couplings with the networks given. The only place that imports it."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from benchmarks.peers import NotInstalled, is_installed


class _ScaleAndShift(nn.Module):
    """What memcnn's couplings ask of a network: the scale itself, and the shift."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = self.network(x).chunk(2, 1)
        return torch.sigmoid(raw + 2), shift


def couplings_of_memcnn(networks: list[nn.Module]) -> nn.Module | NotInstalled:
    """Networks in pairs: the first of a pair moves the first half, the second the other one.

    A step empties the tensor that it is called with.
    """
    if not is_installed("memcnn"):
        return NotInstalled("memcnn")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of autocast's old names, and a filter that it sets
        import memcnn

        pairs = zip(networks[::2], networks[1::2], strict=True)
        couplings = [memcnn.AffineCoupling(*pair, adapter=_ScaleAndShift) for pair in pairs]
    return nn.Sequential(*map(memcnn.InvertibleModuleWrapper, couplings))
