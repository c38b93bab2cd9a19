"""What the ops on chains of flows share: checks, fakes, and the gradient of the gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Chain = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which parameters and log-dets of samples of `dtype` are computed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), above 0 for every x: F.softplus cuts the curve short at x = 20."""
    return torch.logaddexp(x, torch.zeros_like(x)).clamp_min(torch.finfo(x.dtype).tiny)


def check_chain(
    z: Tensor, vectors: dict[str, Tensor], scalars: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """z and parameters as the arithmetic wants them: (K, D) and (K,), or (n, K, D) and (n, K)."""
    if torch.is_autocast_enabled(z.device.type):
        # Log-determinants are long sums: autocast must not round their terms to half precision.
        z, vectors, scalars = (
            z.float(),
            *({name: t.float() for name, t in group.items()} for group in (vectors, scalars)),
        )
    if not z.is_floating_point():
        raise TypeError(f"z must be a floating-point tensor, got {z.dtype}")
    if z.ndim != 2 or z.shape[1] < 1:
        raise ValueError(f"z must have the shape (batch, features), got {tuple(z.shape)}")
    first_name, first = next(iter(vectors.items()))
    if first.ndim not in (2, 3) or first.shape[-1] != z.shape[1]:
        raise ValueError(
            f"{first_name} must have the shape (steps, {z.shape[1]}), or (batch, steps, "
            f"{z.shape[1]}) with parameters of each sample, got {tuple(first.shape)}"
        )
    if first.ndim == 3 and first.shape[0] != z.shape[0]:
        raise ValueError(
            f"{first_name} must have parameters of each of the {z.shape[0]} samples, "
            f"got {first.shape[0]}"
        )
    for group, expected in ((vectors, first.shape), (scalars, first.shape[:-1])):
        for name, t in group.items():
            if t.dtype != z.dtype:
                raise TypeError(f"{name} must have the dtype of z, {z.dtype}, got {t.dtype}")
            if t.device != z.device:
                raise ValueError(f"{name} must be on the device of z, {z.device}, got {t.device}")
            if t.shape != expected:
                raise ValueError(
                    f"{name} must have the shape {tuple(expected)}, got {tuple(t.shape)}"
                )
    dtype = sum_dtype(z.dtype)
    return z, {name: t.to(dtype) for name, t in {**vectors, **scalars}.items()}


def register_chain(name: str, in_torch: Chain) -> None:
    """The fakes of op `name` and of its backward op, whose gradient is that of `in_torch`.

    `in_torch` is the same map in plain torch. Gradients of gradients are rare: they are not worth
    a kernel.
    """

    def fake(z, parameters):
        return torch.empty_like(z), z.new_empty(z.shape[0], dtype=parameters.dtype)

    def fake_backward(grad_output, grad_log_det, z, parameters):
        return torch.empty_like(z), torch.empty_like(
            parameters, memory_format=torch.contiguous_format
        )

    def save(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    def double_backward(ctx, *cotangents):
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in ctx.saved_tensors]
            grad_output, grad_log_det, z, parameters = leaves
            outputs = in_torch(z, parameters)
            gradients = torch.autograd.grad(
                outputs, (z, parameters), (grad_output, grad_log_det), create_graph=True
            )
            return torch.autograd.grad(gradients, leaves, cotangents)

    torch.library.register_fake(f"deepgen_ext::{name}", fake)
    torch.library.register_fake(f"deepgen_ext::{name}_backward", fake_backward)
    torch.library.register_autograd(
        f"deepgen_ext::{name}_backward", double_backward, setup_context=save
    )
