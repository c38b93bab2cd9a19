"""Values whose gradient is that of something else: of an estimate made for the gradient alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class GradientOf(torch.autograd.Function):
    """The value of one tensor with the gradient of another."""

    @staticmethod
    def forward(ctx, value: Tensor, surrogate: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx, cotangent: Tensor) -> tuple[None, Tensor]:
        _refuse_second_derivatives()
        return None, cotangent


class _GradientNow(torch.autograd.Function):
    """A value (n,) with gradients that are known already: `per_sample` of them (n, ...), the others
    of the sum over the batch.
    """

    @staticmethod
    def forward(ctx, value: Tensor, gradients: tuple, per_sample: int, *inputs: Tensor) -> Tensor:
        ctx.gradients, ctx.per_sample = gradients, per_sample
        return value.clone()

    @staticmethod
    def backward(ctx, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivatives()
        if cotangent.numel():
            torch._assert_async(
                (cotangent == cotangent[0]).all(),
                "gradient_in_forward: the loss must weigh the log-dets of all samples alike",
            )
        results: list[Tensor | None] = [None, None, None]
        for index, gradient in enumerate(ctx.gradients):
            if gradient is None:
                results.append(None)
                continue
            if index < ctx.per_sample:
                scale = cotangent.view(-1, *[1] * (gradient.ndim - 1))
            else:
                scale = cotangent.sum() / max(1, cotangent.numel())
            results.append(gradient * scale.to(gradient.dtype))
        return tuple(results)


def with_gradient_now(
    log_det: Tensor, surrogate: Tensor, g: Callable[..., Tensor], x: Tensor, context: Tensor | None
) -> Tensor:
    """`log_det` with the gradient of `surrogate`, computed here; the latter's graph can go."""
    if not isinstance(g, nn.Module):
        raise ValueError("gradient_in_forward: g must be a module, whose parameters are known")
    per_sample = [t for t in (x, context) if t is not None and t.requires_grad]
    parameters = [parameter for parameter in g.parameters() if parameter.requires_grad]
    inputs = [*per_sample, *parameters]
    gradients = torch.autograd.grad(surrogate.sum(), inputs, retain_graph=True, allow_unused=True)
    return _GradientNow.apply(log_det, gradients, len(per_sample), *inputs)


def _refuse_second_derivatives() -> None:
    if torch.is_grad_enabled():  # the backward pass is being recorded: create_graph=True
        raise RuntimeError(
            "the gradient of an estimated log-det can be taken once; log_det='exact' is twice "
            "differentiable"
        )
