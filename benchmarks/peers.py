"""What other libraries compute for the same work. The only place that imports them, and lazily."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from deepgen_ext import reference

Pair = tuple[Tensor, Tensor]
PEERS = ("nflows", "normflows", "FrEIA", "zuko")


@dataclass(frozen=True)
class Coupling:
    """A peer's affine coupling alone, its conditioner's output given.

    `pack` makes the parameters, as the peer wants them, of (raw scale, shift); `formula` is its
    arithmetic on (x, raw scale, shift). `arithmetic` is empty where both are the reference's.
    """

    name: str
    pack: Callable[[Tensor, Tensor], Tensor]
    call: Callable[[Tensor, Tensor], Pair]
    formula: Callable[[Tensor, Tensor, Tensor], Pair]
    arithmetic: str = ""


@dataclass(frozen=True)
class ChannelAffine:
    """A peer's activation normalisation: `call` takes x, `parameters` are (log scale, shift)."""

    name: str
    call: Callable[[Tensor], Pair]
    parameters: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class NotInstalled:
    """A peer that cannot be asked."""

    name: str

    @property
    def reason(self) -> str:
        return f"{self.name} is not installed"


def is_installed(peer: str) -> bool:
    """Without importing it."""
    return importlib.util.find_spec(peer) is not None


def each(makers: dict[str, Callable[..., Any]], *arguments: Any) -> Iterator[Any]:
    for peer, make in makers.items():
        yield make(*arguments) if is_installed(peer) else NotInstalled(peer)


def couplings(scale_map: str, sample_shape: tuple[int, ...]) -> Iterator[Coupling | NotInstalled]:
    """The peers' couplings nearest to `scale_map`, each transforming (n, *sample_shape)."""
    makers: dict[str, Callable[..., Coupling]] = {"nflows": _nflows_coupling}
    if scale_map in ("exp", "sigmoid"):
        makers["normflows"] = _normflows_coupling
    if scale_map in ("exp", "tanh"):
        makers["FrEIA"] = _freia_coupling
    if scale_map == "exp":
        makers["zuko"] = _zuko_coupling
    return each(makers, scale_map, sample_shape)


def _nflows_coupling(scale_map: str, sample_shape: tuple[int, ...]) -> Coupling:
    from nflows.transforms import AffineCouplingTransform

    channels = sample_shape[0]
    mask = [0] * channels + [1] * channels
    layer = AffineCouplingTransform(mask, lambda seen, outputs: nn.Identity())

    def formula(x: Tensor, raw: Tensor, shift: Tensor) -> Pair:
        scale = torch.sigmoid(raw + 2) + 1e-3
        return x * scale + shift, scale.log().flatten(1).sum(1)

    return Coupling(
        "nflows",
        pack=lambda raw, shift: torch.cat((shift, raw), 1),
        call=layer._coupling_transform_forward,
        formula=formula,
        arithmetic="s = sigmoid(raw + 2) + 0.001",
    )


def _normflows_coupling(scale_map: str, sample_shape: tuple[int, ...]) -> Coupling:
    from normflows.flows import AffineCoupling

    # Its "sigmoid" divides; "sigmoid_inv" is the map of Glow and of the reference.
    layer = AffineCoupling(
        nn.Identity(), scale_map={"sigmoid": "sigmoid_inv"}.get(scale_map, "exp")
    )

    def call(x: Tensor, parameters: Tensor) -> Pair:
        (_, y), log_det = layer([parameters, x])  # the "visible half" is what the conditioner says
        return y, log_det

    return Coupling(
        "normflows",
        pack=lambda raw, shift: torch.stack((shift, raw), 2).flatten(1, 2),
        call=call,
        formula=partial(reference.affine_coupling, scale_map=scale_map),
    )


def _freia_coupling(scale_map: str, sample_shape: tuple[int, ...]) -> Coupling:
    from FrEIA.modules import GLOWCouplingBlock

    channels, *rest = sample_shape
    layer = GLOWCouplingBlock(
        [(2 * channels, *rest)],
        subnet_constructor=lambda seen, outputs: nn.Identity(),
        clamp=1.0,
        clamp_activation="TANH" if scale_map == "tanh" else _unclamped,
    )
    return Coupling(
        "FrEIA",
        pack=lambda raw, shift: torch.cat((raw, shift), 1),
        call=layer._coupling2,  # one of the block's two couplings, without splitting and joining
        formula=partial(reference.affine_coupling, scale_map=scale_map),
    )


def _unclamped(raw: Tensor) -> Tensor:
    return raw


def _zuko_coupling(scale_map: str, sample_shape: tuple[int, ...]) -> Coupling:
    from zuko.transforms import MonotonicAffineTransform

    def call(x: Tensor, parameters: Tensor) -> Pair:
        raw, shift = parameters.chunk(2, 1)
        y, log_scale = MonotonicAffineTransform(shift, raw).call_and_ladj(x)
        return y, log_scale.flatten(1).sum(1)

    def formula(x: Tensor, raw: Tensor, shift: Tensor) -> Pair:
        log_scale = raw / (1 + (raw / math.log(1e-3)).abs())
        return x * log_scale.exp() + shift, log_scale.flatten(1).sum(1)

    return Coupling(
        "zuko",
        pack=lambda raw, shift: torch.cat((raw, shift), 1),
        call=call,
        formula=formula,
        arithmetic="log s = raw / (1 + |raw / ln 0.001|)",
    )


def channel_affines(
    sample_shape: tuple[int, ...], log_scale: Tensor, shift: Tensor
) -> Iterator[ChannelAffine | NotInstalled]:
    """The peers' ActNorm layers over (n, *sample_shape), with these parameters."""
    makers = {"nflows": _nflows_actnorm, "normflows": _normflows_actnorm, "FrEIA": _freia_actnorm}
    return each(makers, sample_shape, log_scale, shift)


def _nflows_actnorm(
    sample_shape: tuple[int, ...], log_scale: Tensor, shift: Tensor
) -> ChannelAffine:
    from nflows.transforms import ActNorm

    layer = ActNorm(sample_shape[0]).eval()  # in training mode it would initialise itself
    parameters = _set(layer.log_scale, log_scale), _set(layer.shift, shift)
    return ChannelAffine("nflows", layer, parameters)


def _normflows_actnorm(
    sample_shape: tuple[int, ...], log_scale: Tensor, shift: Tensor
) -> ChannelAffine:
    from normflows.flows import ActNorm

    layer = ActNorm((sample_shape[0], *[1] * (len(sample_shape) - 1)))
    layer.data_dep_init_done = torch.tensor(1.0, device=log_scale.device)
    parameters = _set(layer.s, log_scale), _set(layer.t, shift)

    def call(x: Tensor) -> Pair:
        y, log_det = layer(x)
        return y, log_det.expand(x.shape[0])

    return ChannelAffine("normflows", call, parameters)


def _freia_actnorm(
    sample_shape: tuple[int, ...], log_scale: Tensor, shift: Tensor
) -> ChannelAffine:
    from FrEIA.modules import ActNorm

    layer = ActNorm([sample_shape])
    layer.init_on_next_batch = False
    parameters = _set(layer.scale, log_scale), _set(layer.bias, shift)

    def call(x: Tensor) -> Pair:
        (y,), log_det = layer([x])
        return y, log_det

    return ChannelAffine("FrEIA", call, parameters)


def _set(parameter: nn.Parameter, values: Tensor) -> nn.Parameter:
    parameter.data = values.detach().clone().view(parameter.shape)
    return parameter


def normflows_glow_step(channels: int, conditioner: nn.Module) -> nn.Module | NotInstalled:
    """normflows' GlowBlock in the direction of the density, its network replaced by `conditioner`.

    Coupling, 1x1 convolution, ActNorm, seen from the sampling side: their inverses in turn, the
    ActNorm first, as in a step of Glow. The conditioner's output is read as (shift, raw scale)
    interleaved, s = sigmoid(raw + 2).
    """
    if not is_installed("normflows"):
        return NotInstalled("normflows")
    from normflows.flows import GlowBlock

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = GlowBlock(channels, 1, scale_map="sigmoid")
            coupling, _, actnorm = self.block.flows
            coupling.flows[1].param_map = conditioner
            actnorm.data_dep_init_done = torch.tensor(1.0)

        def forward(self, x: Tensor) -> Pair:
            return self.block.inverse(x)

    return Step()


def normflows_glow_step_formula(step: nn.Module, x: Tensor) -> Pair:
    """What the step above computes, written out: ActNorm, W = P L U, coupling, each an inverse."""
    coupling, rotation, actnorm = step.block.flows
    positions = math.prod(x.shape[2:])
    x = (x - actnorm.t) * (-actnorm.s).exp()
    eye = torch.eye(rotation.num_channels, dtype=x.dtype, device=x.device)
    upper = rotation.U.triu(1) + torch.diag(rotation.sign_S * rotation.log_S.exp())
    weight = rotation.P @ (rotation.L.tril(-1) + eye) @ upper
    visible, moved = torch.einsum("ij,njhw->nihw", weight, x).chunk(2, 1)
    parameters = coupling.flows[1].param_map(visible)
    scale = torch.sigmoid(parameters[:, 1::2] + 2)
    moved = (moved - parameters[:, 0::2]) * scale
    log_det = scale.log().flatten(1).sum(1) + positions * (rotation.log_S.sum() - actnorm.s.sum())
    return torch.cat((visible, moved), 1), log_det
