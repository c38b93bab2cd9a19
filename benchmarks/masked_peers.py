"""The masked networks of other libraries: with `peers`, the only place that imports them, lazily."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.peers import NotInstalled, Pair, each


@dataclass(frozen=True)
class MaskedNetwork:
    """A peer's MADE, with ReLU between its layers but after the first `raw` of them."""

    name: str
    net: nn.Module
    raw: int = 0

    def formula(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(m for m in self.net.modules() if hasattr(m, "mask")):
            x = torch.relu(x) if index > self.raw else x
            x = x @ (layer.weight * layer.mask).T + layer.bias
        return x


def masked_networks(features: int, hidden: int) -> Iterator[MaskedNetwork | peers.NotInstalled]:
    """The peers' MADE with two hidden layers and two outputs a feature."""
    makers: dict[str, Callable[..., MaskedNetwork]] = {
        "nflows": lambda *sizes: nflows_maf(*sizes)[1],
        "normflows": _normflows_made,
        "zuko": _zuko_made,
    }
    for peer, make in makers.items():
        installed = peers.is_installed(peer)
        yield make(features, hidden) if installed else peers.NotInstalled(peer)


def _normflows_made(features: int, hidden: int) -> MaskedNetwork:
    from normflows.nets import MADE

    net = MADE(features, hidden, num_blocks=1, output_multiplier=2, use_residual_blocks=False)
    return MaskedNetwork("normflows", net, raw=1)


def _zuko_made(features: int, hidden: int) -> MaskedNetwork:
    from zuko.flows import MaskedAutoregressiveTransform as Layer

    return MaskedNetwork("zuko", Layer(features, hidden_features=(hidden, hidden)).hyper)


def nflows_maf(features: int, hidden: int) -> tuple[nn.Module, MaskedNetwork]:
    """nflows' masked affine autoregressive transform, s = softplus(raw) + 0.001, and its net."""
    from nflows.transforms import MaskedAffineAutoregressiveTransform as Layer

    layer = Layer(features, hidden, num_blocks=1, use_residual_blocks=False)
    return layer, MaskedNetwork("nflows", layer.autoregressive_net)


@dataclass(frozen=True)
class AutoregressiveInverse:
    """A peer's masked autoregressive layer, its own weights: `call` is the inverse of z."""

    name: str
    layer: nn.Module
    inverse: Callable[[nn.Module, Tensor], Pair]
    arithmetic: str

    def to(self, like: Tensor) -> AutoregressiveInverse:
        layer = copy.deepcopy(self.layer).to(like)
        return AutoregressiveInverse(self.name, layer, self.inverse, self.arithmetic)

    def call(self, z: Tensor) -> Pair:
        return self.inverse(self.layer, z)


def autoregressive_inverses(
    dimensions: int, hidden: tuple[int, ...]
) -> Iterator[AutoregressiveInverse | NotInstalled]:
    """The peers' affine masked autoregressive layers with these hidden layers, of equal width."""
    return each(_AUTOREGRESSIVE, dimensions, hidden)


def autoregressive_inverse(
    peer: str, dimensions: int, hidden: tuple[int, ...]
) -> AutoregressiveInverse:
    """That layer of one peer, which is installed."""
    return _AUTOREGRESSIVE[peer](dimensions, hidden)


def _nflows_autoregressive(dimensions: int, hidden: tuple[int, ...]) -> AutoregressiveInverse:
    from nflows.transforms import MaskedAffineAutoregressiveTransform

    layer = MaskedAffineAutoregressiveTransform(
        dimensions, hidden[0], num_blocks=len(hidden) - 1, use_residual_blocks=False
    )
    return AutoregressiveInverse(
        "nflows", layer, lambda layer, z: layer.inverse(z), "s = softplus(raw) + 0.001, own weights"
    )


def _zuko_autoregressive(dimensions: int, hidden: tuple[int, ...]) -> AutoregressiveInverse:
    from zuko.flows import MaskedAutoregressiveTransform

    return AutoregressiveInverse(
        "zuko",
        MaskedAutoregressiveTransform(dimensions, hidden_features=hidden),
        lambda layer, z: layer().inv.call_and_ladj(z),
        "log s = raw / (1 + |raw / ln 0.001|), own weights",
    )


def _normflows_autoregressive(dimensions: int, hidden: tuple[int, ...]) -> AutoregressiveInverse:
    from normflows.flows import MaskedAffineAutoregressive

    layer = MaskedAffineAutoregressive(
        dimensions, hidden[0], num_blocks=len(hidden) - 1, use_residual_blocks=False
    )
    return AutoregressiveInverse(
        "normflows", layer, lambda layer, z: layer.inverse(z), "s = sigmoid(raw + 2) + 0.001"
    )


_AUTOREGRESSIVE = {
    "nflows": _nflows_autoregressive,
    "normflows": _normflows_autoregressive,
    "zuko": _zuko_autoregressive,
}
