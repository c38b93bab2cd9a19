"""A linear layer some of whose weights are held at zero."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepgen_ext.ops import block_triangular_linear

FEWEST_UNITS = 96  # of either side, for blocks in which products run at their full rate


class MaskedLinear(nn.Linear):
    """y = x (W o M)^T + b, M a mask of zeros and ones (out_features, in_features).

    The mask is given, or made of degrees: M[o, i] = 1 where in_degrees[i] <= out_degrees[o]
    (Germain et al., "MADE", 2015, arXiv:1502.03509). Weights outside of the mask start at zero,
    have zero gradients, and count as zero whatever is written to them.

    Where the mask is a staircase (degrees sorted) of some size, `ops.block_triangular_linear` leaves
    out the products with its zeros on the CPU, in training too. Elsewhere W o M is kept until the
    weight changes: by an optimiser, load_state_dict, to() or any other in-place operation, which
    autograd's version counter tells. Writing through `weight.data` is the one change that it cannot
    see: call `forget_masked_weight()` (train() and eval() do) after it.

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
        self._visible = _staircase(mask)
        self.forget_masked_weight()
        with torch.no_grad():
            self.weight.mul_(mask)

    def forward(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        """x (..., in_features) -> (..., out_features); `addend`, of that shape, is added."""
        if not self._goes_by_blocks(x):
            y = F.linear(x, self._masked_weight_here(), self.bias)
            return y if addend is None else y + addend
        bias = self.bias
        if addend is not None:
            bias = addend if bias is None else addend + bias
        if x.dim() == 2:  # not a view of it, which could not be overwritten for free
            return block_triangular_linear(x, self.weight, bias, self._visible)
        shape = (*x.shape[:-1], self.out_features)
        if addend is not None:
            bias = bias.expand(shape).reshape(-1, self.out_features)
        rows = x.reshape(-1, self.in_features)
        return block_triangular_linear(rows, self.weight, bias, self._visible).view(shape)

    def masked_weight(self) -> Tensor:
        """W o M without a graph, computed once for each change of the weight."""
        weight = self.weight
        if weight.is_inference():  # it keeps no version
            with torch.no_grad():
                return weight * self.mask
        # The tensor itself is a part of the key: an address may be used again.
        key = (weight._version, weight.data_ptr(), weight.dtype, weight.device)
        if self._keep is None or self._keep[0] is not weight or self._keep[1] != key:
            # Not an inference tensor, whatever mode this is: a graph may want it later.
            with torch.inference_mode(False), torch.no_grad():
                self._keep = (weight, key, weight * self.mask)
        return self._keep[2]

    def differentiable_weight(self) -> Tensor:
        """W o M: with a graph where gradients are wanted, else the tensor that is kept."""
        if torch.is_grad_enabled() and self.weight.requires_grad:
            return self.weight * self.mask
        return self.masked_weight()

    def forget_masked_weight(self) -> None:
        """Drop what is kept of the weight's last value."""
        self._keep: tuple[nn.Parameter, Any, Tensor] | None = None

    def train(self, mode: bool = True) -> MaskedLinear:
        self.forget_masked_weight()
        return super().train(mode)

    def _goes_by_blocks(self, x: Tensor) -> bool:
        """Whether the zeros are left out: on the CPU, in one dtype, where autograd alone is at work."""
        return (
            self._visible is not None
            and x.device.type == "cpu"
            and self.weight.device.type == "cpu"
            and x.dtype == self.weight.dtype
            and x.dtype in (torch.float32, torch.float64)
            and x.dim() >= 1
            and x.shape[-1] == self.in_features
            and not torch.is_autocast_enabled("cpu")
            and (torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active())
        )

    def _masked_weight_here(self) -> Tensor:
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return self.weight * self.mask
        return self.differentiable_weight()

    def _apply(self, fn: Any, recurse: bool = True) -> MaskedLinear:
        self.forget_masked_weight()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.forget_masked_weight()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_keep": None}  # neither copied nor pickled


def degree_mask(in_degrees: Tensor, out_degrees: Tensor) -> Tensor:
    """M[o, i] = in_degrees[i] <= out_degrees[o], bool."""
    if in_degrees.dim() != 1 or out_degrees.dim() != 1:
        raise ValueError(
            f"in_degrees, out_degrees: expected vectors, got shapes {tuple(in_degrees.shape)} and "
            f"{tuple(out_degrees.shape)}"
        )
    return in_degrees[None, :] <= out_degrees[:, None]


def _staircase(mask: Tensor) -> Tensor | None:
    """How many columns each row of the mask sees, if these are prefixes that do not shrink and the
    mask is large enough for blocks of it to be left out; else None.
    """
    visible = mask.sum(1)
    prefixes = torch.arange(mask.shape[1]) < visible[:, None]
    if min(mask.shape) < FEWEST_UNITS or not torch.equal(mask, prefixes):
        return None
    return None if bool((visible[1:] < visible[:-1]).any()) else visible
