"""torch's spectral norms: the parametrization, and the older hook.

A layer steps when its weight is used, each time, as torch has it; what it does then has been
computed for the whole model in one call (`spectral_group.py`). `nn.spectral_norm_all` steps a network
once a forward: another u and v where a layer is used twice or not at all.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.spectral_norm import SpectralNorm as TorchsHook

from deepgen_ext.nn.spectral_norm import SpectralNorm as OurSpectralNorm
from deepgen_ext.ops import spectral_normalize
from deepgen_ext.ops.power_iteration import known_scaled_weight

from .accelerated import Accelerated
from .spectral_group import SpectralGroup, Turn, can_wait


class _SpectralNorm(Accelerated, OurSpectralNorm, parametrizations._SpectralNorm):
    """Of `torch.nn.utils.parametrizations.spectral_norm`."""

    replaces = parametrizations._SpectralNorm
    gain = "one call for all layers, which reads weights half as often; eval mode keeps its weights"
    keeps = "_kept", "ready", "_turn"

    coefficient = rtol = atol = None
    grouped = False
    _turn: Turn

    @classmethod
    def why_not(cls, module: Any) -> str:
        if not hasattr(module, "_u"):
            return "a vector, whose norm torch has at once"
        return _why_not_vectors(module._u, module._v)

    @classmethod
    def together(cls, parts: list[Any]) -> None:
        group = SpectralGroup()
        for part in parts:
            part._turn = Turn(group, part.dim)

    def prepare(self) -> None:
        self.together([self])
        self.forget()

    def forget(self) -> None:
        super().forget()
        self._turn.leave()

    def forward(self, weight: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return super().forward(weight)
        if in_functorch():
            return self.replaces.forward(self, weight)
        if not (self.training and can_wait(weight)):
            return super().forward(weight)
        buffers = self._buffers
        step = self._turn.take(
            weight, buffers["_u"], buffers["_v"], self.n_power_iterations, self.eps
        )
        return self.attach(weight, *step)

    def step(self, weight: Tensor) -> Tensor:
        # What cannot wait. In a checkpoint's second forward too, where nn.SpectralNorm stands still.
        scaled, u, v = self.scaled(weight, self._u, self._v, self.n_power_iterations)
        self.move(u, v)
        return scaled

    def extra_repr(self) -> str:
        return ""

    def comparisons(self, original: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
        # The weight is not this module's: one of two dimensions that count gives the same matrix.
        shape = [1] * max(self.dim + 1, 2)
        shape[1 if self.dim == 0 else 0] = len(self._v)
        shape[self.dim] = len(self._u)
        weight = nn.Parameter(torch.randn(shape, dtype=self._u.dtype, device=self._u.device))
        for mode in (True, False):
            expected, found = original.train(mode)(weight), self.train(mode)(weight)
            yield "the scaled weight", expected, found
        yield "u", original._u, self._u
        yield "v", original._v, self._v


class SpectralNorm(Accelerated, TorchsHook):
    """Of `torch.nn.utils.spectral_norm`: no module, but a hook of one.

    It steps v first: v <- W'u / |W'u|, u <- Wv / |Wv|, sigma = u'Wv. That is the step of the
    parametrization, of W' instead of W, with u and v in each other's place; W' is read as W lies.
    Where that is not possible, because the outputs are not the first dimension or the weight is
    not contiguous, torch iterates, and what is gained is the scaling. Eval mode is torch's own.
    """

    replaces = TorchsHook
    gain = "in training one call for all layers, which reads weights half as often"
    caveat = "parametrizations.spectral_norm gains in eval mode as well"
    keeps = ("_turn",)
    _turn: Turn

    @classmethod
    def together(cls, parts: list[Any]) -> None:
        group = SpectralGroup()
        for part in parts:
            part._turn = Turn(group, transposed=True)

    def prepare(self) -> None:
        self.together([self])

    def compute_weight(self, module: nn.Module, do_power_iteration: bool) -> Tensor:
        if not do_power_iteration:
            return super().compute_weight(module, do_power_iteration)
        weight, u, v = (getattr(module, self.name + part) for part in ("_orig", "_u", "_v"))
        if in_functorch() or weight.ndim < 2 or _why_not_vectors(u, v):
            return super().compute_weight(module, do_power_iteration)
        may_wait = not torch.compiler.is_compiling() and can_wait(weight)
        if may_wait and self.dim == 0 and weight.is_contiguous():
            step = self._turn.take(weight, v, u, self.n_power_iterations, self.eps)
            scaled = step.scaled.t().view_as(weight)
            return known_scaled_weight(weight, scaled, step.v, step.u, step.sigma)
        with torch.no_grad():
            matrix = self.reshape_weight_to_matrix(weight)
            for _ in range(self.n_power_iterations):
                # In place: replicas of DataParallel share these.
                _unit_product(matrix.t(), u, v, self.eps)
                _unit_product(matrix, v, u, self.eps)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        # No iteration, whose u and v are copies: no graph holds those that move.
        scaled, _, _, _ = spectral_normalize(
            [weight.movedim(self.dim, 0)], [u.to(dtype)], [v.to(dtype)], 0
        )
        return scaled[0].movedim(0, self.dim)

    def comparisons(self, original: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
        shape = [2] * max(self.dim + 1, 2)
        shape[self.dim] = 3
        layer = nn.Module()
        layer.register_parameter(self.name + "_orig", nn.Parameter(torch.randn(shape).double()))
        for part, size in (("_u", 3), ("_v", 2 ** (len(shape) - 1))):
            layer.register_buffer(self.name + part, torch.randn(size, dtype=torch.float64))
        twin = copy.deepcopy(layer)
        for moves in (True, False):
            expected = original.compute_weight(twin, moves)
            yield "the scaled weight", expected, self.compute_weight(layer, moves)
        for name, tensor in layer.named_buffers():
            yield name, getattr(twin, name), tensor


def _unit_product(matrix: Tensor, x: Tensor, out: Tensor, eps: float) -> None:
    torch.mv(matrix, x, out=out)
    out.div_(torch.linalg.vector_norm(out).clamp_min_(eps))


def _why_not_vectors(u: Tensor, v: Tensor) -> str:
    if not u.is_floating_point():
        return f"a weight of {u.dtype}"
    return "" if u.numel() and v.numel() else "a weight without elements"


def in_functorch() -> bool:
    """Whether torch.func transforms this call, which our ops refuse."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


REPLACEMENTS = (_SpectralNorm, SpectralNorm)
STAYS: dict[type, str] = {}
