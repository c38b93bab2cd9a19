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
from deepgen_ext.ops import affine_coupling

from .accelerated import Accelerated, has_hooks


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
        if affine.scale_map not in ("exp", "sigmoid", "sigmoid_inv"):
            return f"scale_map={affine.scale_map!r}, which normflows has not either"
        if has_hooks(split) or has_hooks(merge) or _is_hooked(*module.flows):
            return "hooks on its parts, which would not be called"
        return ""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self._couple(z, inverse=False)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self._couple(z, inverse=True)

    def _couple(self, z: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        split, affine, _ = self.flows
        swapped = split.mode == "channel_inv"
        halves = z.chunk(2, dim=1)
        seen, moved = halves[::-1] if swapped else halves
        # One view whose gradient is one stack, where two slices would fill and add two tensors.
        shift, raw = affine.param_map(seen).to(z.dtype).unflatten(1, (-1, 2)).unbind(2)
        if affine.scale_map == "sigmoid":  # the scale divides on the way to x
            zero = moved.new_zeros(()).expand_as(moved)
            if inverse:
                moved, log_det = affine_coupling(moved - shift, raw, zero, scale_map="sigmoid")
            else:
                moved, log_det = affine_coupling(
                    moved, raw, zero, scale_map="sigmoid", inverse=True
                )
                moved = moved + shift
        else:
            scale_map = "exp" if affine.scale_map == "exp" else "sigmoid"
            moved, log_det = affine_coupling(
                moved, raw, shift, scale_map=scale_map, inverse=inverse
            )
        return torch.cat((moved, seen) if swapped else (seen, moved), 1), log_det.to(z.dtype)

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
    before one is taken from what it reads.
    """

    replaces = cnn.ConvNet2d
    gain = "activations in place: less memory to write, the same numbers to the bit"
    keeps = ()

    @classmethod
    def why_not(cls, module: Any) -> str:
        if type(module.net) is not nn.Sequential:
            return "its layers are no Sequential"
        if not any(in_place for _, in_place in _steps(module.net)):
            return "no LeakyReLU behind a convolution"
        return "hooks on its layers, which would see other values" if has_hooks(module) else ""

    def forward(self, x: Tensor) -> Tensor:
        for layer, in_place in _steps(self.net):
            x = F.leaky_relu(x, layer.negative_slope, True) if in_place else layer(x)
        return x

    def comparisons(self, original: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
        first = next(self.parameters())
        x = first.new_empty(3, first.shape[1], 4, 4).normal_()
        for part in (original, self):  # a normalisation initialises itself
            part(x)
        yield "its output", original(x), self(x)


def _steps(net: nn.Sequential) -> Iterator[tuple[nn.Module, bool]]:
    """The layers, and whether each may overwrite what it reads."""
    before = None
    for layer in net:
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
        if _is_hooked(*module.flows[1:]):
            return "hooks on its parts, which would not be called"
        return ""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        couple, convolution, norm = self.flows
        if _is_foreign(z, convolution) or not norm.data_dep_init_done > 0:
            return super().forward(z)
        z, log_det = couple(z)
        weight, log_scale = matrix_of(convolution, inverse=True)
        s = norm.s.view(-1)
        z = multiply(z, weight * s.exp().unsqueeze(1), norm.t.view(-1))
        return z, log_det + (log_scale + s.sum()) * math.prod(z.shape[2:])

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        couple, convolution, norm = self.flows
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


def _is_hooked(*modules: Any) -> bool:
    return any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in modules)


def _outputs(net: Any, first: Tensor) -> int:
    with torch.no_grad():
        return net(first.new_zeros(1, first.shape[1], *[2] * (first.dim() - 2))).shape[1]


def _both_ways(original: Any, fast: Any, z: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    for direction in ("forward", "inverse"):
        expected, found = (getattr(part, direction)(z) for part in (original, fast))
        yield from zip((f"the {direction}", "its log-det"), expected, found, strict=True)
