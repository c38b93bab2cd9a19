"""A linear layer some of whose weights are held at zero."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .block_triangular import (
    GroupedLinear,
    diagonal_blocks,
    group_rows,
    grouped_linear,
)


class MaskedLinear(nn.Linear):
    """y = x (W o M)^T + b, M a mask of zeros and ones (out_features, in_features).

    The mask is given, or made of degrees: M[o, i] = 1 where in_degrees[i] <= out_degrees[o]
    (Germain et al., "MADE", 2015, arXiv:1502.03509). Weights outside of the mask start at zero,
    have zero gradients, and count as zero whatever is written to them.

    Where the mask is a staircase (degrees sorted) of some size, products with its zeros are left
    out on the CPU, in training too: see `block_triangular`. W o M is kept until the weight changes:
    by an optimiser, load_state_dict, to() or any other in-place operation, which autograd's version
    counter tells. Writing through `weight.data` is the one change that it cannot see: call
    `forget_masked_weight()` (train() and eval() do) after it.

    Args:
        in_features, out_features: as in nn.Linear.
        mask: bool (or zeros and ones), (out_features, in_features).
        in_degrees, out_degrees: integers, (in_features,) and (out_features,), in place of a mask.
        bias: as in nn.Linear.

    Raises:
        ValueError: neither a mask nor both degrees, or all of them; another shape.
    """

    mask: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        mask: Tensor | None = None,
        *,
        in_degrees: Tensor | None = None,
        out_degrees: Tensor | None = None,
        bias: bool = True,
    ) -> None:
        if (mask is None) == (in_degrees is None) or (in_degrees is None) != (out_degrees is None):
            raise ValueError("mask: expected either a mask, or both in_degrees and out_degrees")
        if mask is None:
            mask = degree_mask(in_degrees, out_degrees)
        expected = (out_features, in_features)
        if tuple(mask.shape) != expected:
            raise ValueError(f"mask: expected shape {expected}, got {tuple(mask.shape)}")
        super().__init__(in_features, out_features, bias)
        mask = mask.detach().cpu() != 0
        self.register_buffer("mask", mask, persistent=False)
        self._groups = group_rows(mask)
        self._masks: list[Tensor] | None = None
        self.forget_masked_weight()
        with torch.no_grad():
            self.weight.mul_(mask)

    def forward(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        """x (..., in_features) -> (..., out_features); `addend`, of that shape, is added."""
        if not self._goes_by_groups(x):
            y = F.linear(x, self._masked_weight_here(), self.bias)
            return y if addend is None else y + addend
        shape = (*x.shape[:-1], self.out_features)
        rows = x.reshape(-1, self.in_features)
        if addend is not None:
            bias = addend if self.bias is None else addend + self.bias
            bias = bias.expand(shape).reshape(-1, self.out_features)
        else:
            bias = x.new_zeros(self.out_features) if self.bias is None else self.bias
        if _needs_graph(x, self.weight, bias):
            masks, diagonal = self._diagonal()
            y = GroupedLinear.apply(rows, self.weight, bias, self._groups, masks, *diagonal)
        else:
            y = grouped_linear(rows, self.masked_weight(), bias, self._groups)
        return y.view(shape)

    def masked_weight(self) -> Tensor:
        """W o M without a graph, computed once for each change of the weight."""
        return self._kept("whole", lambda weight: weight * self.mask)

    def differentiable_weight(self) -> Tensor:
        """W o M: with a graph where gradients are wanted, else the tensor that is kept."""
        if torch.is_grad_enabled() and self.weight.requires_grad:
            return self.weight * self.mask
        return self.masked_weight()

    def forget_masked_weight(self) -> None:
        """Drop what is kept of the weight's last value."""
        self._keep: dict[str, tuple[nn.Parameter, Any, Any]] = {}

    def train(self, mode: bool = True) -> MaskedLinear:
        self.forget_masked_weight()
        return super().train(mode)

    def _goes_by_groups(self, x: Tensor) -> bool:
        """Whether the products are cut up: on the CPU, in eager mode, in one dtype."""
        return (
            self._groups is not None
            and not torch.compiler.is_compiling()
            and x.device.type == "cpu"
            and self.weight.device.type == "cpu"
            and x.dtype == self.weight.dtype
            and x.dim() >= 1
            and x.shape[-1] == self.in_features
            and not torch.is_autocast_enabled("cpu")
            and not torch._C._are_functorch_transforms_active()
        )

    def _masked_weight_here(self) -> Tensor:
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return self.weight * self.mask
        return self.differentiable_weight()

    def _diagonal(self) -> tuple[list[Tensor], list[Tensor]]:
        """The masks of the blocks on the diagonal, and these blocks masked."""
        dtype = self.weight.dtype
        if self._masks is None or self._masks[0].dtype != dtype:
            with torch.inference_mode(False):
                self._masks = [mask.to(dtype) for mask in self._groups.masks]
        masks = self._masks
        return masks, self._kept("blocks", lambda w: diagonal_blocks(w, self._groups, masks))

    def _kept(self, what: str, make: Any) -> Any:
        weight = self.weight
        if weight.is_inference():  # it keeps no version
            with torch.no_grad():
                return make(weight)
        # The tensor itself is a part of the key: an address may be used again.
        key = (weight._version, weight.data_ptr(), weight.dtype, weight.device)
        kept = self._keep.get(what)
        if kept is None or kept[0] is not weight or kept[1] != key:
            # Not an inference tensor, whatever mode this is: a graph may want it later.
            with torch.inference_mode(False), torch.no_grad():
                kept = self._keep[what] = (weight, key, make(weight))
        return kept[2]

    def _apply(self, fn: Any, recurse: bool = True) -> MaskedLinear:
        self.forget_masked_weight()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.forget_masked_weight()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_keep": {}, "_masks": None}  # neither copied nor pickled

    def extra_repr(self) -> str:
        groups = 1 if self._groups is None else len(self._groups.rows)
        return f"{super().extra_repr()}, groups={groups}"


def degree_mask(in_degrees: Tensor, out_degrees: Tensor) -> Tensor:
    """M[o, i] = in_degrees[i] <= out_degrees[o], bool."""
    if in_degrees.dim() != 1 or out_degrees.dim() != 1:
        raise ValueError(
            f"in_degrees, out_degrees: expected vectors, got shapes {tuple(in_degrees.shape)} and "
            f"{tuple(out_degrees.shape)}"
        )
    return in_degrees[None, :] <= out_degrees[:, None]


def _needs_graph(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
