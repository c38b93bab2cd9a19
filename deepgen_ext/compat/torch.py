"""torch's spectral norms: the parametrization, and the older hook.

A layer steps when its weight is used, each time, as torch has it. `nn.spectral_norm_all` steps a
network once a forward pass: another u and v where a layer is used twice or not at all, so what it
does is not done here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.spectral_norm import SpectralNorm as TorchsHook

from deepgen_ext.nn.spectral_norm import SpectralNorm as OurSpectralNorm
from deepgen_ext.ops import spectral_normalize

from .accelerated import Accelerated


class _SpectralNorm(Accelerated, OurSpectralNorm, parametrizations._SpectralNorm):
    """Of `torch.nn.utils.parametrizations.spectral_norm`."""

    replaces = parametrizations._SpectralNorm
    gain = "the weight is read half as often; nothing to compute in eval mode without gradients"
    keeps = "_kept", "ready"

    coefficient = rtol = atol = None
    grouped = False

    @classmethod
    def why_not(cls, module: Any) -> str:
        if not hasattr(module, "_u"):
            return "a vector, whose norm torch has at once"
        return _why_not_vectors(module._u, module._v)

    def prepare(self) -> None:
        self.forget()

    def forward(self, weight: Tensor) -> Tensor:
        if in_functorch():
            return self.replaces.forward(self, weight)
        return super().forward(weight)

    def step(self, weight: Tensor) -> Tensor:
        # In a checkpoint's second forward too, where nn.SpectralNorm would stand still.
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
        weight = torch.randn(shape, dtype=self._u.dtype, device=self._u.device)
        for mode in (True, False):
            expected, found = original.train(mode)(weight), self.train(mode)(weight)
            yield "the scaled weight", expected, found
        yield "u", original._u, self._u
        yield "v", original._v, self._v


class SpectralNorm(Accelerated, TorchsHook):
    """Of `torch.nn.utils.spectral_norm`: no module, but a hook of one.

    It steps v first, the order in which one read of the weight does not do for a step; what is
    gained is the scaling, and above all its gradient. Eval mode is torch's own.
    """

    replaces = TorchsHook
    gain = "in training the weight is scaled, and its gradient taken, in fewer passes"
    caveat = "parametrizations.spectral_norm gains more"
    keeps = ()

    def compute_weight(self, module: nn.Module, do_power_iteration: bool) -> Tensor:
        if not do_power_iteration:
            return super().compute_weight(module, do_power_iteration)
        weight, u, v = (getattr(module, self.name + part) for part in ("_orig", "_u", "_v"))
        if in_functorch() or _why_not_vectors(u, v):
            return super().compute_weight(module, do_power_iteration)
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
        for part, size in (("_orig", shape), ("_u", 3), ("_v", 2 ** (len(shape) - 1))):
            layer.register_buffer(self.name + part, torch.randn(size, dtype=torch.float64))
        twin = nn.Module()
        for name, tensor in layer.named_buffers():
            twin.register_buffer(name, tensor.clone())
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
