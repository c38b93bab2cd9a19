"""What `deepgen profile OP` runs: every op on random tensors of a given shape, forward, inverse and
backward, beside the specification in plain torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor

from deepgen_ext import ops, reference
from deepgen_ext.profiling import flow_inputs, pixel_inputs
from deepgen_ext.profiling.measurement import Case, Results, Rival, Setting
from deepgen_ext.profiling.prepared import Op, Prepared, Shape

both = ("forward", "inverse", "backward")
OPS: dict[str, Op] = {
    "affine_coupling": Op((64, 96, 16, 16), (2, 4, 4, 4), flow_inputs.affine_coupling, both),
    "ancestral_sample": Op(
        (16, 1, 14, 14),
        (2, 1, 4, 4),
        pixel_inputs.ancestral_sample,
        ("forward",),
        "n, 1, height, width",
    ),
    "autoregressive_inverse": Op(
        (64, 64), (3, 5), flow_inputs.autoregressive_inverse, ("inverse", "backward"), "n, D"
    ),
    "bernoulli_log_prob": Op(
        (20, 50, 784), (2, 3, 5), pixel_inputs.bernoulli_log_prob, axes="n, k, D"
    ),
    "block_triangular_linear": Op(
        (256, 784), (4, 6), flow_inputs.block_triangular_linear, axes="n, D"
    ),
    "categorical_draw": Op(
        (16, 256, 28, 28),
        (2, 8, 3, 3),
        pixel_inputs.categorical_draw,
        ("forward",),
        "n, levels, h, w",
    ),
    "channel_affine": Op((64, 96, 16, 16), (2, 3, 4, 4), flow_inputs.channel_affine, both),
    "discretized_logistic_mixture": Op(
        (16, 50, 32, 32), (2, 10, 3, 3), partial(pixel_inputs.mixture, False), axes="n, 10 K, h, w"
    ),
    "discretized_logistic_mixture_draw": Op(
        (16, 50, 32, 32),
        (2, 10, 3, 3),
        partial(pixel_inputs.mixture, True),
        ("forward",),
        "n, 10 K, h, w",
    ),
    "fixed_point_mlp": Op((1024, 64), (3, 5), flow_inputs.fixed_point_mlp, ("forward",), "n, D"),
    "fixed_point_step": Op((64, 12288), (3, 7), flow_inputs.fixed_point_step, ("forward",), "n, D"),
    "glow_conv_net": Op((64, 6, 8, 8), (2, 2, 4, 4), pixel_inputs.glow_conv_net, axes="n, C, h, w"),
    "half_coupling": Op((64, 96, 16, 16), (2, 4, 4, 4), flow_inputs.half_coupling, both),
    "masked_conv2d": Op(
        (16, 64, 28, 28), (2, 3, 5, 5), pixel_inputs.masked_conv2d, axes="n, C, h, w"
    ),
    "planar_chain": Op(
        (16384, 16), (5, 4), partial(flow_inputs.chain, "planar_chain", 1), axes="n, D"
    ),
    # Its gradient, sigma's by the weights, is plain torch.
    "power_iteration": Op(
        (512, 256, 3, 3),
        (4, 3, 3, 3),
        partial(flow_inputs.power, "power_iteration"),
        ("forward",),
        "out, in, ...",
    ),  # fmt: skip
    "radial_chain": Op(
        (16384, 16), (5, 4), partial(flow_inputs.chain, "radial_chain", 2), axes="n, D"
    ),
    "rational_quadratic_spline": Op((16384, 16), (5, 4), flow_inputs.spline, both),
    "spectral_normalize": Op(
        (512, 256, 3, 3),
        (4, 3, 3, 3),
        partial(flow_inputs.power, "spectral_normalize"),
        axes="out, in, ...",
    ),
}


def case_of(
    name: str, direction: str, setting: Setting, shape: Shape | None, compiled: bool
) -> Case:
    """Ours against plain torch and, if asked for, torch.compile of it. No floors yet.

    Backward is the gradient's op alone: the forward pass has run once, before.

    Raises:
        ValueError, TypeError: what the op says about the shape.
    """
    op = OPS[name]
    used = shape or (op.tiny if setting.tiny else op.shape)
    prepared = op.prepare(used, setting, direction == "inverse")
    plain = prepared.eager or partial(prepared.run, reference)
    ours = partial(prepared.run, ops)
    directed = _backward if direction == "backward" else _forward
    rivals = [Rival(prepared.eager_name, directed(plain, prepared.leaves, setting))]
    if compiled:
        rivals.append(_compiled(plain, prepared.leaves, directed, setting))
    return Case(
        used,
        directed(ours, prepared.leaves, setting),
        partial(_expected, prepared, directed, setting),
        rivals,
        [],
        tolerance=prepared.tolerance if setting.dtype.itemsize >= 4 else None,
    )


def _flat(results: Any) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else list(results)


def _forward(
    function: Callable[..., Any], leaves: Sequence[Tensor], setting: Setting
) -> Callable[[], Results]:
    def run() -> Results:
        with torch.no_grad():
            return _flat(function(*leaves))

    return run


def _backward(
    function: Callable[..., Any], leaves: Sequence[Tensor], setting: Setting
) -> Callable[[], Results]:
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    graph: list[tuple[list[Tensor], list[Tensor]]] = []

    def run() -> Results:
        if not graph:  # the first call builds what the others walk back
            outputs = [t for t in _flat(function(*leaves)) if t.requires_grad]
            weights = [
                setting.random(*t.shape, seed=40 + i).to(t.dtype) for i, t in enumerate(outputs)
            ]
            graph.append((outputs, weights))
        return torch.autograd.grad(graph[0][0], leaves, graph[0][1], retain_graph=True)

    return run


def _compiled(
    plain: Callable[..., Any], leaves: Sequence[Tensor], directed: Callable, setting: Setting
) -> Rival:
    # A donated buffer would be gone after the first of several backward passes.
    with torch._functorch.config.patch(donated_buffer=False):
        run = directed(setting.compiled(plain), leaves, setting)
        try:
            run()
        except Exception as error:
            lines = f"{type(error).__name__}: {error}".splitlines()
            return Rival("torch.compile", missing=lines[0][:60])
    return Rival("torch.compile", run)


def _expected(prepared: Prepared, directed: Callable, setting: Setting) -> Results:
    doubles = [leaf.detach().double() for leaf in prepared.leaves]
    return directed(partial(prepared.run, reference), doubles, setting)()


def described(name: str) -> str:
    """The first line of the op's docstring."""
    return (inspect.getdoc(inspect.getmodule(getattr(ops, name))) or "").splitlines()[0]
