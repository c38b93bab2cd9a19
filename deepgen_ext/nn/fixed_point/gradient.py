"""The gradient of a fixed point by the implicit function theorem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Vjp = Callable[[Tensor], Tensor]


def with_implicit_gradient(
    g: Callable[[Tensor], Tensor],
    y: Tensor,
    x: Tensor,
    converged: Tensor,
    solve: Callable[[Vjp, Tensor], Tensor],
) -> Tensor:
    """x with the gradients of x = y - g(x) in y and in what g closes over.

    The graph is that of z = y - g(x) at the fixed x, behind a node that turns the gradient of x into
    w = solve(v -> J^T v, gradient). So all that autograd knows of g's parameters serves. Where nothing
    wants a gradient x comes back as it is.
    """
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        value = g(point)
        z = y - value
    # `point` always wants a gradient: whether anything else does shows with x as a constant.
    if not y.requires_grad and not _needs_more_than(value, point):
        return x

    def vjp(w: Tensor) -> Tensor:
        (product,) = torch.autograd.grad(value, point, w, retain_graph=True, allow_unused=True)
        return torch.zeros_like(w) if product is None else product

    return _Implicit.apply(z, x, converged, solve, vjp if value.requires_grad else torch.zeros_like)


def _needs_more_than(value: Tensor, point: Tensor) -> bool:
    """Whether the graph of `value` has another leaf than `point`."""
    seen, nodes = set(), [value.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and leaf is not point:
            return True
        nodes.extend(next_node for next_node, _ in node.next_functions)
    return False


class _Implicit(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, x: Tensor, converged: Tensor, solve: Callable, vjp: Vjp
    ) -> Tensor:
        ctx.solve, ctx.vjp, ctx.converged = solve, vjp, converged
        return torch.where(converged.view(-1, *[1] * (x.dim() - 1)), z, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        with torch.no_grad():
            shape = (-1, *[1] * (grad.dim() - 1))
            wanted = ctx.converged | (grad.flatten(1) == 0).all(1)
            w = ctx.solve(ctx.vjp, torch.where(ctx.converged.view(shape), grad, 0.0))
            w = torch.where(wanted.view(shape), w, torch.nan)
        if torch.is_grad_enabled():
            refuse = torch._C._functions.DelayedError(
                "fixed_point_inverse cannot be differentiated twice: its gradient has no gradient",
                1,
            )
            w = refuse(w.requires_grad_())
        return w, None, None, None, None
