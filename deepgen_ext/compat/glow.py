"""normflows' Glow: the step, its invertible 1x1 convolution, and affine couplings with their split.

What a step spends beside its net is many small calls: the C x C matrix assembled from its factors,
inverted twice for sampling, a convolution of few channels, the normalisation before or behind it, and
a dozen elementwise passes of the coupling. Here normalisation and matrix are one product, and the
coupling one pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from normflows.flows import mixing, normalization, reshape
from normflows.flows.affine import coupling, glow
from normflows.nets import cnn
from torch import Tensor, nn

from deepgen_ext.nn.transforms.conv1x1 import multiply
from deepgen_ext.ops import half_coupling

from .accelerated import Accelerated, has_hooks, is_hooked

# Of the scale in the direction to x.
SCALE_MAPS = {"exp": "exp", "sigmoid": "reciprocal_sigmoid", "sigmoid_inv": "sigmoid"}

# From where on channels last gain, on one core: positions in the batch and in one picture.
LEAST_POSITIONS, LEAST_OF_ONE, MOST_CHANNELS = 1024, 64, 96


class AffineCouplingBlock(Accelerated, coupling.AffineCouplingBlock):
    replaces = coupling.AffineCouplingBlock
    gain = "scale, shift and log-det in one pass, and their gradient in one"
    keeps = ()

    @classmethod
    def why_not(cls, module: Any) -> str:
        split, affine, merge = module.flows
        kinds = reshape.Split, coupling.AffineCoupling, reshape.Merge
        if tuple(map(type, module.flows)) != kinds:
            return "its parts are not those that it was made with"
        if split.mode not in ("channel", "channel_inv") or merge.mode != split.mode:
            return f"split_mode={split.mode!r}: only channels are known"
        if not affine.scale:
            return "one addition, which no kernel shortens"
        if affine.scale_map not in SCALE_MAPS:
            return f"scale_map={affine.scale_map!r}, which normflows has not either"
        if has_hooks(split) or has_hooks(merge) or is_hooked(*module.flows):
            return "hooks on its parts, which would not be called"
        return ""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self._couple(z, inverse=False)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self._couple(z, inverse=True)

    def _couple(self, z: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        split, affine, _ = self._modules["flows"]._modules.values()
        swapped = split.mode == "channel_inv"
        halves = z.chunk(2, dim=1)
        seen, moved = halves[::-1] if swapped else halves
        parameters = affine._modules["param_map"](seen)
        z, log_det = half_coupling(
            seen,
            moved,
            parameters if parameters.dtype == z.dtype else parameters.to(z.dtype),
            moved_first=swapped,
            scale_map=SCALE_MAPS[affine.scale_map],
            inverse=inverse,
            order="shift_scale_pairs",
        )
        return z, log_det if log_det.dtype == z.dtype else log_det.to(z.dtype)

    def comparisons(self, original: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
        first = next(
            part for part in self.flows[1].param_map.modules() if hasattr(part, "weight")
        ).weight
        seen = first.shape[1]
        outputs = _outputs(self.flows[1].param_map, first)
        z = first.new_empty(3, seen + outputs // 2, *[2] * (first.dim() - 2)).normal_()
        yield from _both_ways(original, self, z)


class Invertible1x1Conv(Accelerated, mixing.Invertible1x1Conv):
    replaces = mixing.Invertible1x1Conv
    gain = "two triangular solves instead of two inverses, products instead of convolutions"
    keeps = ()

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if _is_foreign(z, self):
            return super().forward(z)
        weight, log_det = matrix_of(self, inverse=True)
        return multiply(z, weight), log_det * math.prod(z.shape[2:])

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if _is_foreign(z, self):
            return super().inverse(z)
        weight, log_det = matrix_of(self, inverse=False)
        return multiply(z, weight), log_det * math.prod(z.shape[2:])

    def comparisons(self, original: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
        weight = next(self.parameters())
        yield from _both_ways(original, self, weight.new_empty(3, len(weight), 2, 3).normal_())


class ConvNet2d(Accelerated, cnn.ConvNet2d):
    """Its LeakyReLUs need no memory of their own: neither their gradient nor that of the convolution
    before one is taken from what it reads. On a CPU its convolutions, of few channels on one side,
    take 0.6 to 0.98 of the time with channels last, unless pictures or batch are small: then the
    weights, which stay as they lie and are copied in each call, cost more than is gained.
    """

    replaces = cnn.ConvNet2d
    gain = "activations in place; on a CPU channels last between its layers"
    keeps = ()

    @classmethod
    def why_not(cls, module: Any) -> str:
        if type(module.net) is not nn.Sequential:
            return "its layers are no Sequential"
        if not any(in_place for _, in_place in _steps(module.net)):
            return "no LeakyReLU behind a convolution"
        return "hooks on its layers, which would see other values" if has_hooks(module) else ""

    def forward(self, x: Tensor) -> Tensor:
        turns = _gains_by_channels_last(x)
        if turns:
            x = x.contiguous(memory_format=torch.channels_last)
        for layer, in_place in _steps(self._modules["net"]):
            x = F.leaky_relu(x, layer.negative_slope, True) if in_place else layer(x)
        return x.contiguous() if turns else x

    def comparisons(self, original: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
        first = next(self.parameters())
        x = first.new_empty(LEAST_POSITIONS // 256, first.shape[1], 16, 16).normal_()
        for part in (original, self):  # a normalisation initialises itself
            part(x)
        yield "its output", original(x), self(x)


def _gains_by_channels_last(x: Tensor) -> bool:
    """Where it was measured to: 3 to 96 channels seen, nets of 16 to 512."""
    if not x.is_cpu or x.dim() != 4 or not x.is_floating_point():
        return False
    batch, channels, height, width = x.shape
    positions = height * width
    return (
        channels <= MOST_CHANNELS
        and positions >= LEAST_OF_ONE
        and batch * positions >= LEAST_POSITIONS
        and not x.is_contiguous(memory_format=torch.channels_last)
    )


def _steps(net: nn.Sequential) -> Iterator[tuple[nn.Module, bool]]:
    """The layers, and whether each may overwrite what it reads."""
    before = None
    for layer in net._modules.values():
        is_leaky = type(layer) is nn.LeakyReLU and layer.negative_slope >= 0
        yield layer, is_leaky and type(before) is nn.Conv2d
        before = layer


class GlowBlock(Accelerated, glow.GlowBlock):
    replaces = glow.GlowBlock
    gain = "normalisation and 1x1 convolution in one product"
    keeps = ()

    @classmethod
    def why_not(cls, module: Any) -> str:
        kinds = coupling.AffineCouplingBlock, mixing.Invertible1x1Conv, normalization.ActNorm
        for part, kind in zip(module.flows, kinds, strict=False):
            if part.__class__ is not kind and getattr(part, "replaces", None) is not kind:
                return "its parts are not those that it was made with"
        if len(module.flows) != 3:
            return "no 1x1 convolution"
        if is_hooked(*module.flows[1:]):
            return "hooks on its parts, which would not be called"
        return ""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        couple, convolution, norm = self._modules["flows"]._modules.values()
        if _is_foreign(z, convolution) or not norm.data_dep_init_done > 0:
            return super().forward(z)
        z, log_det = couple(z)
        weight, log_scale = matrix_of(convolution, inverse=True)
        s = norm.s.view(-1)
        z = multiply(z, weight * s.exp().unsqueeze(1), norm.t.view(-1))
        return z, log_det + (log_scale + s.sum()) * math.prod(z.shape[2:])

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        couple, convolution, norm = self._modules["flows"]._modules.values()
        if _is_foreign(z, convolution) or not norm.data_dep_init_done > 0:
            return super().inverse(z)
        weight, log_scale = matrix_of(convolution, inverse=False)
        s = norm.s.view(-1)
        weight = weight * torch.exp(-s)
        z = multiply(z, weight, -(weight @ norm.t.view(-1)))
        linear = (log_scale - s.sum()) * math.prod(z.shape[2:])
        z, log_det = couple.inverse(z)
        return z, log_det + linear

    def comparisons(self, original: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
        z = torch.randn(3, self.flows[1].num_channels, 2, 4, dtype=torch.float64)
        z = z.to(self.flows[2].s.device)
        for part in (original, self):  # the first batch initialises the normalisation
            part(z)
        yield from _both_ways(original, self, z)


def matrix_of(convolution: Any, inverse: bool) -> tuple[Tensor, Tensor]:
    """What the 1x1 convolution multiplies by, and ln |det|; normflows calls forward what inverts it."""
    if not convolution.use_lu:
        weight = convolution.W
        log_det = torch.slogdet(weight)[1]
        if inverse:
            return torch.inverse(weight.double()).to(weight.dtype), -log_det
        return weight, log_det
    log_det = convolution.log_S.sum()
    lower = convolution.L.tril(-1) + convolution.eye
    diagonal = convolution.sign_S * convolution.log_S.exp()
    upper = convolution.U.triu(1) + torch.diag(diagonal)
    if not inverse:
        return convolution.P @ (lower @ upper), log_det
    solved = torch.linalg.solve_triangular(
        lower.double(), convolution.P.t().double(), upper=False, unitriangular=True
    )
    solved = torch.linalg.solve_triangular(upper.double(), solved, upper=True)
    return solved.to(lower.dtype), -log_det


def _is_foreign(z: Tensor, convolution: Any) -> bool:
    """What the original answers, with its own messages: no pictures of its dtype, or autocast."""
    weight = convolution.log_S if convolution.use_lu else convolution.W
    shape = z.dim() == 4 and z.shape[1] == convolution.num_channels
    return not shape or z.dtype != weight.dtype or torch.is_autocast_enabled(z.device.type)


def _outputs(net: Any, first: Tensor) -> int:
    with torch.no_grad():
        return net(first.new_zeros(1, first.shape[1], *[2] * (first.dim() - 2))).shape[1]


def _both_ways(original: Any, fast: Any, z: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    for direction in ("forward", "inverse"):
        expected, found = (getattr(part, direction)(z) for part in (original, fast))
        yield from zip((f"the {direction}", "its log-det"), expected, found, strict=True)
