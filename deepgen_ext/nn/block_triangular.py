"""y = x W^T + b for a W whose upper right part is zero: the products with zeros are left out.

The rows of a mask that is a staircase (each row sees a prefix of the columns, no row a shorter one
than the row above it) are cut into a few groups. A group of rows needs the columns up to the end of
its longest prefix alone: one matrix product each, of about half of W in all. Forward, the gradient
of x and the gradient of W are each such a list of products, written straight into slices of their
result, so that no masked copy of W is made; of the masked elements only those in the blocks on the
diagonal, 1 / groups of W, are ever multiplied.

Few groups: a small product runs at a lower rate. On two AVX2 cores (784 to 512 columns, 64 samples)
4 groups do 0.63 of the multiplications in 0.64 of the time of the dense product, 8 do 0.56 in 0.66.
A training step takes 0.77 to 0.9 of the unmasked net's from 256 samples on. At 64 nothing is won:
the products then are so small that their starts, the traffic of masks and the zeroing of gradients
cost what the skipped multiplications save.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MOST_GROUPS = 8
FEWEST_UNITS = 128  # of a group, in either direction: where a product still runs at its full rate
ROW_MULTIPLE = 16  # group sizes that the inner kernels of matrix products like


@dataclass(frozen=True)
class Groups:
    """The groups of rows of a mask. Group k has rows[k] rows; they see all columns before
    starts[k] (but for what `masks` says), a part of the next columns[k], and none after them.
    """

    rows: tuple[int, ...]
    starts: tuple[int, ...]
    columns: tuple[int, ...]
    masks: tuple[Tensor, ...]  # of the blocks on the diagonal, (rows[k], columns[k]), bool

    @property
    def reach(self) -> int:
        """The number of columns that any row sees."""
        return self.starts[-1] + self.columns[-1]


def group_rows(mask: Tensor) -> Groups | None:
    """The groups of a bool mask (rows, columns), or None where a plain product is as fast: the mask
    is small, or no staircase.
    """
    rows, columns = mask.shape
    count = min(MOST_GROUPS, rows // FEWEST_UNITS, columns // FEWEST_UNITS)
    if count < 2:
        return None
    lengths = mask.sum(1)
    staircase = torch.arange(columns) < lengths[:, None]
    if not torch.equal(mask, staircase) or bool((lengths[1:] < lengths[:-1]).any()):
        return None
    bounds = [rows * k // count // ROW_MULTIPLE * ROW_MULTIPLE for k in range(count)] + [rows]
    ends = [int(lengths[last - 1]) for last in bounds[1:]]
    starts = [0, *ends[:-1]]
    return Groups(
        tuple(b - a for a, b in zip(bounds[:-1], bounds[1:])),
        tuple(starts),
        tuple(b - a for a, b in zip(starts, ends)),
        tuple(
            mask[a:b, c:d].contiguous() for a, b, c, d in zip(bounds[:-1], bounds[1:], starts, ends)
        ),
    )


def diagonal_blocks(weight: Tensor, groups: Groups, masks: Sequence[Tensor]) -> list[Tensor]:
    """Masked copies of the blocks on the diagonal; `masks` in the dtype of the weight."""
    return [
        rows.narrow(1, start, mask.shape[1]) * mask
        for rows, start, mask in zip(weight.split(groups.rows), groups.starts, masks)
    ]


def grouped_linear(x: Tensor, masked_weight: Tensor, bias: Tensor, groups: Groups) -> Tensor:
    """x W^T + b without a graph, of a weight that is masked already; b (rows,) or (n, rows)."""
    y = x.new_empty(x.shape[0], masked_weight.shape[0])
    for part, rows, b, start, width in zip(
        y.split(groups.rows, 1),
        masked_weight.split(groups.rows),
        bias.split(groups.rows, -1),
        groups.starts,
        groups.columns,
    ):
        seen = start + width
        torch.addmm(b, x.narrow(1, 0, seen), rows.narrow(1, 0, seen).t(), out=part)
    return y


class GroupedLinear(torch.autograd.Function):
    """x (W o mask)^T + b, differentiable, twice too; W is read in place but for `diagonal_blocks`.

    apply(x, weight, bias, groups, masks, *diagonal): masks of the blocks on the diagonal in the
    dtype of the weight, and what `diagonal_blocks` made of it. bias is (rows,) or (n, rows).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        groups: Groups,
        masks: Sequence[Tensor],
        *diagonal: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, *diagonal)
        ctx.groups, ctx.masks, ctx.bias_rows = groups, masks, bias.dim() == 1
        y = x.new_empty(x.shape[0], weight.shape[0])
        for part, rows, b, block, start in zip(
            y.split(groups.rows, 1),
            weight.split(groups.rows),
            bias.split(groups.rows, -1),
            diagonal,
            groups.starts,
        ):
            torch.addmm(b, x.narrow(1, start, block.shape[1]), block.t(), out=part)
            if start:
                part.addmm_(x.narrow(1, 0, start), rows.narrow(1, 0, start).t())
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *diagonal = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        groups, masks = ctx.groups, ctx.masks
        grad_x = grad_weight = None
        if torch.is_grad_enabled():  # it will be differentiated again: in differentiable pieces
            mask = _whole_mask(weight, groups, masks)
            grad_x = g @ (weight * mask) if needs_x else None
            grad_weight = (g.t() @ x) * mask if needs_weight else None
        else:
            grad_x = _grad_input(g, weight, diagonal, groups) if needs_x else None
            grad_weight = _grad_weight(g, x, weight, masks, groups) if needs_weight else None
        grad_bias = (g.sum(0) if ctx.bias_rows else g) if needs_bias else None
        return grad_x, grad_weight, grad_bias, None, None, *[None] * len(diagonal)


def _grad_input(g: Tensor, weight: Tensor, diagonal: Sequence[Tensor], groups: Groups) -> Tensor:
    grad = g.new_empty(g.shape[0], weight.shape[1])
    end = 0
    for block, count, start in zip(diagonal, groups.rows, groups.starts):
        width = block.shape[1]
        part = grad.narrow(1, start, width)
        torch.mm(g.narrow(1, end, count), block, out=part)
        end += count
        below = weight.shape[0] - end
        if below:  # the rows of the groups below see these columns whole
            part.addmm_(
                g.narrow(1, end, below), weight.narrow(0, end, below).narrow(1, start, width)
            )
    if groups.reach < weight.shape[1]:
        grad.narrow(1, groups.reach, weight.shape[1] - groups.reach).zero_()
    return grad


def _grad_weight(
    g: Tensor, x: Tensor, weight: Tensor, masks: Sequence[Tensor], groups: Groups
) -> Tensor:
    grad = torch.empty_like(weight, memory_format=torch.contiguous_format)
    for part, rows, start, mask in zip(
        g.split(groups.rows, 1), grad.split(groups.rows), groups.starts, masks
    ):
        seen = start + mask.shape[1]
        torch.mm(part.t(), x.narrow(1, 0, seen), out=rows.narrow(1, 0, seen))
        rows.narrow(1, start, mask.shape[1]).mul_(mask)
        if seen < rows.shape[1]:
            rows.narrow(1, seen, rows.shape[1] - seen).zero_()
    return grad


def _whole_mask(weight: Tensor, groups: Groups, masks: Sequence[Tensor]) -> Tensor:
    mask = torch.zeros_like(weight)
    for rows, start, block in zip(mask.split(groups.rows), groups.starts, masks):
        rows.narrow(1, 0, start).fill_(1)
        rows.narrow(1, start, block.shape[1]).copy_(block)
    return mask
