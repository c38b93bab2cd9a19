"""zuko's GeneralCouplingTransform, of which NICE and RealNVP are made.

Its map alone is half of what surrounds the net. The rest is the mask, turned into indices in each
call, and halves that are read and written one index at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Transform
from torch.distributions.transforms import _InverseTransform
from zuko import nn as zuko_nn
from zuko import transforms
from zuko.flows import coupling
from zuko.utils import broadcast

from deepgen_ext.ops import affine_coupling, rational_quadratic_spline

from .accelerated import Accelerated, is_functional, typed
from .masked_network import key_of
from .zuko_univariate import element_of

NO_FLOOR = 1e-30  # the op wants one, zuko's bins and slopes have none: below every rounding


class Inverse(_InverseTransform):
    """zuko's passes through the net twice for a result and its log-det."""

    def call_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._inv.inverse_and_ladj(y)


class CouplingTransform(transforms.CouplingTransform):
    """zuko's, with one op for the map and its log-det."""

    def __init__(
        self, meta: Callable[[Tensor], Transform], module: Any, context: Tensor | None
    ) -> None:
        Transform.__init__(self)
        self.meta, self.module, self.context = meta, module, context
        self.idx_a, self.idx_b = module.halves()

    @property
    def inv(self) -> Transform:
        if self._inv is None:
            self._inv = Inverse(self)
        return self._inv

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.inverse_and_ladj(y)[0]

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().call_and_ladj(x) if self._is_foreign(x) else self._couple(x, False)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        if not self._is_foreign(y):
            return self._couple(y, True)
        x = super()._inverse(y)
        return x, -super().log_abs_det_jacobian(x, y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        if self._is_foreign(x):
            return super().log_abs_det_jacobian(x, y)
        return self._couple(x, False)[1]

    def _is_foreign(self, x: Tensor) -> bool:
        """What zuko's answers: other shapes, or a context of a batch that x has not."""
        if x.dim() == 0 or x.shape[-1] != len(self.idx_a) + len(self.idx_b) or is_functional():
            return True
        if not x.is_floating_point():
            return True
        c = self.context
        if c is None or c.shape[:-1] == x.shape[:-1]:
            return False
        return c.dim() > x.dim() or any(
            a not in (1, b) for a, b in zip(c.shape[-2::-1], x.shape[-2::-1], strict=False)
        )

    def _couple(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        seen = x.index_select(-1, self.idx_a)
        if self.context is not None:
            seen = torch.cat(broadcast(seen, self.context, ignore=1), -1)
        moving = x.index_select(-1, self.idx_b)
        moved, ladj = self.module.map(self.module.hyper(seen), moving, inverse)
        return x.index_copy(-1, self.idx_b, moved), ladj


class GeneralCouplingTransform(Accelerated, coupling.GeneralCouplingTransform):
    replaces = coupling.GeneralCouplingTransform
    gain = "map and log-det in one pass; halves by indices that are kept"
    keeps: ClassVar[tuple[str, ...]] = ("_halves", "_element")

    @classmethod
    def why_not(cls, module: Any) -> str:
        if element_of(module) is None:
            return "its univariate transform is neither affine nor a rational-quadratic spline"
        if type(module.hyper) is not zuko_nn.MLP:
            return f"its net is no MLP, but {type(module.hyper).__name__}"
        return ""

    def prepare(self) -> None:
        self._element, self._halves = element_of(self), (None, None)
        self.halves()

    def halves(self) -> tuple[Tensor, Tensor]:
        """Indices of what is seen, and of what moves."""
        if not torch.compiler.is_compiling():
            key = key_of((self.mask,))
            if key is None or self._halves[0] != key:
                with torch.inference_mode(False):
                    mask = self.mask.clone()
                    self._halves = key, (mask.nonzero().squeeze(-1), (~mask).nonzero().squeeze(-1))
        return self._halves[1]

    def forward(self, c: Tensor | None = None) -> transforms.CouplingTransform:
        return CouplingTransform(partial(self.meta, c), self, c)

    def map(self, phi: Tensor, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """x (..., F), which the parameters phi (..., F * total) move, and the log-det (...) of it."""
        rows = x.reshape(-1, x.shape[-1])
        phi = phi.to(x.dtype).reshape(*rows.shape, self.total)
        moved, ladj = typed(rows, self._map_rows(phi, rows, inverse))
        return moved.view(x.shape), ladj.view(x.shape[:-1])

    def _map_rows(self, phi: Tensor, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        clamp = self._element["clamp"]
        if self._element["element"] == "affine":
            shift, raw = phi.unbind(-1)
            return affine_coupling(
                x, raw, shift, scale_map="softclip", clamp=clamp, inverse=inverse
            )
        bins = self._element["n_bins"]
        sizes, derivatives = phi.split((2 * bins, bins - 1), -1)
        widths, heights = _softclip(sizes, clamp / 2).split(bins, -1)
        # What the op's softplus makes zuko's slopes of.
        slopes = _softclip(derivatives, clamp).exp()
        return rational_quadratic_spline(
            x,
            widths,
            heights,
            slopes + torch.log(-torch.expm1(-slopes)),
            inverse=inverse,
            bound=self._element["bound"],
            min_bin_width=NO_FLOOR,
            min_bin_height=NO_FLOOR,
            min_derivative=NO_FLOOR,
        )

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        result = super()._apply(fn, recurse)
        if not self.mask.is_meta:
            self.prepare()
        return result

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.prepare()

    def comparisons(self, original: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
        weight = next(self.hyper.parameters())
        features = len(self.mask)
        x = weight.new_empty(3, 2, features).normal_().mul_(3)  # splines have tails
        n_context = weight.shape[1] - len(self.halves()[0])
        c = weight.new_empty(2, n_context).normal_() if n_context else None
        results = []
        for part in (original, self):
            torch.manual_seed(0)  # of a net that draws
            transform = part(c)
            results.append([*transform.call_and_ladj(x), *transform.inv.call_and_ladj(x)])
        names = "the forward", "its log-det", "the inverse", "its log-det"
        yield from zip(names, *results, strict=True)


def _softclip(raw: Tensor, bound: float) -> Tensor:
    return raw / (1 + (raw / bound).abs())
