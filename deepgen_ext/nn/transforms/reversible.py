"""Backpropagation that rebuilds activations from outputs instead of storing them.

The forward pass runs without a graph and keeps its last output. The backward pass walks the layers
from last to first; `Transform.rebuild` turns each output into its input plus a graph of that one
layer, which is differentiated and dropped. At any time one layer's graph and two activations are
alive.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .random_state import RandomState
from .transform import Transform


@torch.compiler.disable(reason="the reversible backward pass runs the layers' autograd itself")
def run_reversibly(
    layers: list[Transform], x: Tensor, context: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Apply `layers` in turn: same results, with memory that does not grow with their number.

    A layer may return None for a log-det that is counted elsewhere, but not all of them.
    """
    layer_parameters = [layer.rebuild_inputs() for layer in layers]
    # Parameters are inputs of the Function: so autograd, and the hooks of DDP, see their gradients.
    parameters = list(dict.fromkeys(p for group in layer_parameters for p in group))
    return _ReversibleChain.apply(layers, layer_parameters, x, context, *parameters)


class _ReversibleChain(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        layers: list[Transform],
        layer_parameters: list[list[Tensor]],
        x: Tensor,
        context: Tensor | None,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        device = x.device
        before = RandomState.capture(device)
        random_states, log_dets, y = [], [], x
        for layer in layers:
            random_states.append(RandomState.capture(device))
            y, log_det = layer(y, context)
            if log_det is not None:
                log_dets.append(log_det)
        # Most conditioners draw nothing: then there is nothing to replay, and no state to keep.
        drew_nothing = before.equals(RandomState.capture(device))
        ctx.random_states = None if drew_nothing else random_states
        ctx.autocast = _autocast_settings(device)
        ctx.layers, ctx.layer_parameters, ctx.parameters = layers, layer_parameters, parameters
        ctx.save_for_backward(y, context)
        return y, torch.stack(log_dets).sum(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_log_det: Tensor) -> tuple[Tensor | None, ...]:
        y, context = ctx.saved_tensors
        needs_x, needs_context = ctx.needs_input_grad[2:4]
        if context is not None:
            context = context.detach().requires_grad_(needs_context)
        grads: dict[Tensor, Tensor] = {}

        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(torch.autocast(**ctx.autocast))
            if ctx.random_states is not None:
                stack.callback(RandomState.capture(y.device).restore)
            for index in reversed(range(len(ctx.layers))):
                if ctx.random_states is not None:
                    ctx.random_states[index].restore()
                x, y_again, log_det = ctx.layers[index].rebuild(y, context)
                wanted = list(ctx.layer_parameters[index])
                if needs_context:
                    wanted.append(context)
                if index > 0 or needs_x:
                    wanted.append(x)
                for tensor, grad in _differentiate(
                    (y_again, log_det), wanted, (grad_y, grad_log_det)
                ):
                    grads[tensor] = grads[tensor] + grad if tensor in grads else grad
                grad_y = grads.pop(x, None)
                if (
                    grad_y is None
                ):  # a layer may ignore its input, and the first one may not need this
                    grad_y = torch.zeros_like(x)
                y = x.detach()

        grad_context = grads.get(context) if needs_context else None
        grad_parameters = (grads.get(parameter) for parameter in ctx.parameters)
        return None, None, grad_y if needs_x else None, grad_context, *grad_parameters


def _differentiate(
    outputs: tuple[Tensor | None, ...], inputs: list[Tensor], grad_outputs: tuple[Tensor, ...]
) -> list[tuple[Tensor, Tensor]]:
    """(input, gradient) of those inputs that the outputs depend on."""
    pairs = [
        (y, g)
        for y, g in zip(outputs, grad_outputs, strict=True)
        if y is not None and y.requires_grad
    ]
    if not pairs or not inputs:
        return []
    live, weights = zip(*pairs, strict=True)
    gradients = torch.autograd.grad(live, inputs, weights, allow_unused=True)
    return [(x, g) for x, g in zip(inputs, gradients, strict=True) if g is not None]


def _autocast_settings(device: torch.device) -> dict[str, Any]:
    """The arguments of torch.autocast that run the layers again in the dtypes of now."""
    return {
        "device_type": device.type,
        "dtype": torch.get_autocast_dtype(device.type),
        "enabled": torch.is_autocast_enabled(device.type),
        # A weight cast once without a graph, in an inverse, must not be reused where a graph is
        # wanted.
        "cache_enabled": False,
    }
