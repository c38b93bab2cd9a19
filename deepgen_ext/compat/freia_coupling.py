"""FrEIA's affine couplings: GLOWCouplingBlock and its kin.

Their log-scale is clamp * f(a), with f an activation that the block was given, by default
0.636 atan: that is C 2/pi atan(C a / C) with C = 0.636 clamp pi/2, which the kernel computes itself.
Any other f is called as it is, and what follows it (exponential, scale, shift and log-det) is one pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from FrEIA.modules import coupling_layers
from torch import Tensor, nn

from deepgen_ext.ops import affine_coupling

from .accelerated import Accelerated, is_functional, typed

Result = tuple[tuple[Tensor], Tensor]


class _AffineBlock(Accelerated):
    gain = "scale, shift and log-det in one pass, and their gradient in one"
    keeps: ClassVar[tuple[str, ...]] = ("_slope",)

    @classmethod
    def why_not(cls, module: Any) -> str:
        halves = module.split_len1, module.split_len2
        return "" if all(halves) else f"a split into {halves[0]} and {halves[1]} channels"

    def prepare(self) -> None:
        self._slope = slope_of_atan(self.f_clamp)

    def _is_foreign(self, x: Tensor) -> bool:
        """What the original answers, with its own messages."""
        return x.dim() != self.ndims + 1 or x.shape[1] != self.channels or is_functional()

    def _bound(self) -> float | None:
        """C, where the log-scale is an atan's."""
        if self._slope is None or self.clamp <= 0:
            return None
        return self._slope * self.clamp * (math.pi / 2)

    def _scale(self, x: Tensor, a: Tensor, t: Tensor, rev: bool) -> tuple[Tensor, Tensor]:
        """x scaled and shifted, and the log-det."""
        if not (x.shape == a.shape == t.shape and x.dtype == a.dtype == t.dtype):
            same = x.shape == a.shape == t.shape
            if not same or not torch.is_autocast_enabled(x.device.type):
                return self._scale_in_torch(x, a, t, rev)
            a, t = a.to(x.dtype), t.to(x.dtype)
        bound = self._bound()
        if bound is None:
            result = affine_coupling(x, self.clamp * self.f_clamp(a), t, inverse=rev)
        else:
            result = affine_coupling(x, a * bound, t, scale_map="atan", clamp=bound, inverse=rev)
        return result if result[1].dtype == x.dtype else typed(x, result)

    def _scale_in_torch(self, x: Tensor, a: Tensor, t: Tensor, rev: bool) -> tuple[Tensor, Tensor]:
        """Of a net whose outputs are broadcast, or promote x."""
        log_scale = self.clamp * self.f_clamp(a)
        log_det = log_scale.sum(tuple(range(1, self.ndims + 1)))
        if rev:
            return (x - t) * torch.exp(-log_scale), -log_det
        return torch.exp(log_scale) * x + t, log_det

    def _seen(self, half: Tensor, c: Sequence[Tensor]) -> Tensor:
        return torch.cat((half, *c), 1) if self.conditional else half

    def comparisons(self, original: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
        yield from both_ways(original, self)


class _SharedNet(_AffineBlock):
    """One net for scale and shift."""

    def _scale_by(self, x: Tensor, parameters: Tensor, rev: bool) -> tuple[Tensor, Tensor]:
        channels = x.shape[1]
        # The gradient of a split is one concatenation; of two slices, two tensors and their sum.
        a, t = parameters.split((channels, parameters.shape[1] - channels), 1)
        if self._slope is None or a.dtype != x.dtype or a.numel() != x.numel():
            return self._scale(x, a, t, rev)
        bound = self._slope * self.clamp * (math.pi / 2)
        if bound <= 0:
            return self._scale(x, a, t, rev)
        result = affine_coupling(x, a * bound, t, scale_map="atan", clamp=bound, inverse=rev)
        return result if result[1].dtype == x.dtype else typed(x, result)


class GLOWCouplingBlock(_SharedNet, coupling_layers.GLOWCouplingBlock):
    replaces = coupling_layers.GLOWCouplingBlock

    def forward(
        self, x: Sequence[Tensor], c: Sequence[Tensor] = (), rev: bool = False, jac: bool = True
    ) -> Result:
        if self._is_foreign(x[0]):
            return super().forward(x, c, rev, jac)
        left, right = x[0].split((self.split_len1, self.split_len2), 1)
        if rev:
            right, log_det = self._scale_by(right, self.subnet1(self._seen(left, c)), rev)
            left, more = self._scale_by(left, self.subnet2(self._seen(right, c)), rev)
        else:
            left, log_det = self._scale_by(left, self.subnet2(self._seen(right, c)), rev)
            right, more = self._scale_by(right, self.subnet1(self._seen(left, c)), rev)
        return (torch.cat((left, right), 1),), log_det + more


class RNVPCouplingBlock(_AffineBlock, coupling_layers.RNVPCouplingBlock):
    replaces = coupling_layers.RNVPCouplingBlock

    def forward(
        self, x: Sequence[Tensor], c: Sequence[Tensor] = (), rev: bool = False, jac: bool = True
    ) -> Result:
        if self._is_foreign(x[0]):
            return super().forward(x, c, rev, jac)
        halves = list(x[0].split((self.split_len1, self.split_len2), 1))
        nets = (self.subnet_s2, self.subnet_t2), (self.subnet_s1, self.subnet_t1)
        log_dets = []
        for index in (1, 0) if rev else (0, 1):
            seen = self._seen(halves[1 - index], c)
            a, t = (net(seen) for net in nets[index])
            halves[index], log_det = self._scale(halves[index], a, t, rev)
            log_dets.append(log_det)
        return (torch.cat(halves, 1),), log_dets[0] + log_dets[1]


class AffineCouplingOneSided(_SharedNet, coupling_layers.AffineCouplingOneSided):
    replaces = coupling_layers.AffineCouplingOneSided

    def forward(
        self, x: Sequence[Tensor], c: Sequence[Tensor] = (), rev: bool = False, jac: bool = True
    ) -> Result:
        if self._is_foreign(x[0]):
            return super().forward(x, c, rev, jac)
        kept, moved = x[0].split((self.split_len1, self.split_len2), 1)
        moved, log_det = self._scale_by(moved, self.subnet(self._seen(kept, c)), rev)
        return (torch.cat((kept, moved), 1),), log_det


class ConditionalAffineTransform(_SharedNet, coupling_layers.ConditionalAffineTransform):
    replaces = coupling_layers.ConditionalAffineTransform

    @classmethod
    def why_not(cls, module: Any) -> str:
        return ""  # it uses no split

    def forward(
        self, x: Sequence[Tensor], c: Sequence[Tensor] = (), rev: bool = False, jac: bool = True
    ) -> Result:
        if self._is_foreign(x[0]):
            return super().forward(x, c, rev, jac)
        y, log_det = self._scale_by(x[0], self.subnet(torch.cat(tuple(c), 1)), rev)
        return (y,), log_det


def slope_of_atan(function: Callable[[Tensor], Tensor]) -> float | None:
    """s, where the function is s * atan on every probe; None where it is not, or where it may change."""
    if isinstance(function, nn.Module):
        return None
    size = torch.logspace(-6, 3, 37, dtype=torch.float64)
    probes = torch.cat((-size, size.new_zeros(1), size))
    try:
        with torch.enable_grad():
            found = function(probes.clone())
            if found.requires_grad or found.dtype != probes.dtype:
                return None
            slope = float(found[-1] / torch.atan(probes[-1]))
            is_atan = torch.allclose(found, slope * torch.atan(probes), rtol=1e-12, atol=0.0)
    except Exception:  # whatever a function of the user's wants
        return None
    return slope if is_atan and slope > 0 else None


def both_ways(original: Any, fast: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Of blocks with one input, of the shapes that they were made for."""
    like = next(original.parameters(), torch.zeros((), dtype=torch.float64))
    x, *c = (like.new_empty(2, *dims).normal_() for dims in (*original.dims_in, *original.dims_c))
    for rev in (False, True):
        results = []
        for part in (original, fast):
            torch.manual_seed(0)  # of a net that draws
            (y,), log_det = part((x,), c, rev=rev)
            results.append((y, log_det))
        what = "the reverse" if rev else "the forward"
        yield from zip((what, "its log-det"), *results, strict=True)
