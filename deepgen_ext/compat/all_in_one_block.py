"""FrEIA's AllInOneBlock: coupling, global scale and offset, permutation.

Beside its net it spends a product with a C x C matrix on a permutation that is known, and makes a
learned one again in each pass, reflection by reflection, of C x C matrices. Here a hard permutation is
an index, scale and offset are folded into the matrix of a soft one, and a reflection is an update of
rank one, or many of them are one product. Without gradients what depends on parameters alone is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from FrEIA.modules import all_in_one_block
from torch import Tensor

from deepgen_ext.nn.transforms.conv1x1 import multiply
from deepgen_ext.ops import affine_coupling

from .accelerated import Accelerated, is_functional
from .freia_coupling import Result, both_ways

# Reflections that are taken one by one: `triu`, of which all at once need three with the gradient,
# wakes a second thread for matrices of any size.
MOST_UPDATES = 8


class Hard(NamedTuple):
    """A hard permutation: out[:, i] = in[:, index[i]]."""

    index: Tensor
    inverse: Tensor


class Outer(NamedTuple):
    """What of one direction depends on parameters alone; `hard` is None with a soft permutation.

    Beside a hard permutation: factor and addend of each channel, (1, C, ...). With a soft one they
    are folded into its matrix, and `undone` is the matrix for `reverse_permutation`.
    """

    hard: Hard | None
    factor: Tensor
    addend: Tensor
    log_scale: Tensor  # summed over the channels
    undone: Tensor | None


class AllInOneBlock(Accelerated, all_in_one_block.AllInOneBlock):
    replaces = all_in_one_block.AllInOneBlock
    gain = "coupling in one pass; permutation, scale and offset without a product, or in one"
    keeps: ClassVar[tuple[str, ...]] = ("_hard", "_kept")

    @classmethod
    def why_not(cls, module: Any) -> str:
        if module.GIN:
            return "a GIN block: its log-scales lose their mean, which no kernel does"
        return "" if all(module.splits) else "one channel alone"

    def prepare(self) -> None:
        self._kept: dict[bool, Any] = {}
        self._hard: tuple[Any, Hard | None] = None, None  # by which its matrices are known again
        if not self.householder:
            self._hard_permutation()
        else:  # a graph behind what a pass has left would keep copies from being made
            for name in ("w_perm", "w_perm_inv"):
                left = getattr(self, name)
                setattr(self, name, None if left is None else left.detach())

    def forward(
        self, x: Sequence[Tensor], c: Sequence[Tensor] = (), rev: bool = False, jac: bool = True
    ) -> Result:
        if self._is_foreign(x[0]):
            return super().forward(x, c, rev, jac)
        outer = self._outer(rev)
        inner = x[0]
        if rev:
            inner = _leave(inner, outer)
        elif self.reverse_pre_permute:
            inner = _permute(inner, outer.hard and outer.hard.inverse, outer.undone)
        kept, moved = inner.split(self.splits, 1)
        a = self.subnet(torch.cat((kept, *c), 1) if self.conditional else kept)
        moved, log_det = self._couple(moved, a, rev)
        y = torch.cat((kept, moved), 1)
        if not rev:
            y = _enter(y, outer)
        elif self.reverse_pre_permute:
            y = _permute(y, outer.hard and outer.hard.index, outer.undone)
        pixels = y.shape[2:].numel()
        return (y,), torch.add(log_det, outer.log_scale, alpha=-pixels if rev else pixels)

    def _is_foreign(self, x: Tensor) -> bool:
        """What the original answers, with its own messages: other shapes and types, or autocast."""
        return (
            x.dim() != self.input_rank + 2
            or x.shape[1] != self.in_channels
            or x.dtype != self.global_scale.dtype
            or torch.is_autocast_enabled(x.device.type)
            or is_functional()
        )

    def _couple(self, x: Tensor, a: Tensor, rev: bool) -> tuple[Tensor, Tensor]:
        if a.dtype != x.dtype or a.numel() != 2 * x.numel():  # broadcast, or promoted
            return self._affine(x, a, rev)
        raw, shift = (0.1 * a).split((x.shape[1], x.shape[1]), 1)
        y, log_det = affine_coupling(x, self.clamp * torch.tanh(raw), shift, inverse=rev)
        return y, log_det if log_det.dtype == x.dtype else log_det.to(x.dtype)

    def _hard_permutation(self) -> Hard | None:
        parts, hard = self._hard
        if self.householder or torch.compiler.is_compiling():
            return hard
        if parts is None or not _is_current(parts, self._parameters):
            hard = hard_permutation(self.w_perm, self.w_perm_inv)
            self._hard = _parts(self._parameters, ("w_perm", "w_perm_inv")), hard
        return hard

    def _outer(self, rev: bool) -> Outer:
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._make_outer(rev)
        kept = self._kept.get(rev)
        if kept is not None and _is_current(kept[0], self._parameters):
            return kept[1]
        with torch.inference_mode(False), torch.no_grad():
            outer = self._make_outer(rev)
        of_it = ("vk_householder", "w_0") if self.householder else ("w_perm", "w_perm_inv")
        parts = _parts(self._parameters, ("global_scale", "global_offset", *of_it))
        self._kept[rev] = None if parts is None else (parts, outer)
        return outer

    def _make_outer(self, rev: bool) -> Outer:
        hard = self._hard_permutation()
        scale, offset = self.global_scale_activation(self.global_scale), self.global_offset
        log_scale = scale.log().sum()
        if rev:
            scale = scale.reciprocal()
            offset = -offset * scale
        if hard is not None:
            return Outer(hard, scale, offset, log_scale, None)
        forth, back = self._matrices()
        scale, offset = scale.view(-1), offset.view(-1)
        if rev:
            return Outer(None, back * scale.unsqueeze(1), offset, log_scale, forth)
        return Outer(None, forth * scale, torch.mv(forth, offset), log_scale, back)

    def _matrices(self) -> tuple[Tensor, Tensor]:
        if not self.householder:
            return self.w_perm.flatten(1), self.w_perm_inv.flatten(1)
        matrix = reflected(self.w_0, self.vk_householder)
        shaped = matrix.detach().view(*matrix.shape, *[1] * self.input_rank)
        self.w_perm, self.w_perm_inv = shaped, shaped.transpose(0, 1)
        return matrix, matrix.t()

    def train(self, mode: bool = True) -> Any:
        self._kept = {}
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        result = super()._apply(fn, recurse)
        if not self.global_scale.is_meta:
            self.prepare()
        return result

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.prepare()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}  # neither copied nor pickled

    def comparisons(self, original: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
        yield from both_ways(original, self)


def _parts(parameters: dict[str, Any], names: Sequence[str]) -> list[Any] | None:
    """By which each tensor is known again; None where nobody can tell."""
    tensors = [parameters.get(name) for name in names]
    if any(tensor is None or tensor.is_inference() for tensor in tensors):
        return None
    return [(n, t, t._version, t.data_ptr()) for n, t in zip(names, tensors, strict=True)]


def _is_current(parts: list[Any], parameters: dict[str, Any]) -> bool:
    for name, tensor, version, address in parts:
        if parameters.get(name) is not tensor or tensor._version != version:
            return False
        if tensor.data_ptr() != address:
            return False
    return True


def _enter(x: Tensor, outer: Outer) -> Tensor:
    """Scaled, shifted, permuted."""
    if outer.hard is None:
        return multiply(x, outer.factor, outer.addend)
    return torch.addcmul(outer.addend, x, outer.factor).index_select(1, outer.hard.index)


def _leave(y: Tensor, outer: Outer) -> Tensor:
    if outer.hard is None:
        return multiply(y, outer.factor, outer.addend)
    return torch.addcmul(outer.addend, y.index_select(1, outer.hard.inverse), outer.factor)


def _permute(x: Tensor, index: Tensor | None, matrix: Tensor | None) -> Tensor:
    return multiply(x, matrix) if index is None else x.index_select(1, index)


def hard_permutation(matrix: Tensor, inverse: Tensor) -> Hard | None:
    """Of a permutation matrix (C, C, 1, ...) and its transpose; None of any other two."""
    with torch.inference_mode(False), torch.no_grad():
        square = matrix.detach().flatten(1)
        index = square.argmax(1)
        expected = torch.zeros_like(square).scatter_(1, index.unsqueeze(1), 1.0)
        is_hard = (
            torch.equal(index.sort()[0], torch.arange(len(index), device=index.device))
            and torch.equal(square, expected)
            and torch.equal(inverse.detach().flatten(1), expected.t())
        )
        return Hard(index, index.argsort()) if is_hard else None


def reflected(matrix: Tensor, vectors: Tensor) -> Tensor:
    """matrix H_1 ... H_k with H_i = I - 2 v_i v_i' / |v_i|^2.

    A few one after another, each an update of rank one; many at once: I - V' T V, where T^-1 is the
    upper triangle of V V' with half of its diagonal (Schreiber & Van Loan 1989).
    """
    if len(vectors) <= MOST_UPDATES:
        for unit in torch.nn.functional.normalize(vectors, dim=1, eps=0.0).unbind():
            matrix = torch.addr(matrix, torch.mv(matrix, unit), unit, alpha=-2)
        return matrix
    products = vectors @ vectors.t()
    triangle = products.triu(1) + torch.diag_embed(0.5 * products.diagonal())
    solved = torch.linalg.solve_triangular(triangle, vectors, upper=True)
    return matrix - (matrix @ vectors.t()) @ solved
