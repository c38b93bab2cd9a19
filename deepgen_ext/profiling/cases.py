"""What `deepgen profile OP` runs: every op on random tensors of a given shape, forward, inverse and
backward, beside the specification in plain torch.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from types import ModuleType
from typing import Any

import torch
import torch._functorch.config
import torch.nn.functional as F
from torch import Tensor, nn

from deepgen_ext import ops, reference
from deepgen_ext.nn import AncestralSampler, Categorical, MaskedConv2d
from deepgen_ext.profiling.measurement import Case, Results, Rival, Setting

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Prepared:
    """Tensors that gradients are asked for, and the op on them, of `ops` or of `reference`.

    `eager` is plain torch written well; None where that is the specification.
    """

    leaves: Sequence[Tensor]
    run: Callable[..., Any]  # (module, *leaves)
    eager: Callable[..., Any] | None = None  # (*leaves)
    eager_name: str = "eager"
    tolerance: float | None = None


@dataclass(frozen=True)
class Op:
    """An op that can be profiled.

    `shape` is that of its first tensor, and what --shape replaces; `prepare(shape, setting,
    inverse)` makes the rest to fit.
    """

    shape: Shape
    tiny: Shape
    prepare: Callable[[Shape, Setting, bool], Prepared]
    directions: tuple[str, ...] = ("forward", "backward")
    axes: str = "n, ..."


def _uniforms(shape: Shape, setting: Setting, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator).to(setting.device, setting.dtype)


def _affine_coupling(shape: Shape, setting: Setting, inverse: bool) -> Prepared:
    leaves = [setting.random(*shape, seed=s, scale=c) for s, c in ((0, 1.0), (1, 0.5), (2, 1.0))]

    def eager(x: Tensor, raw: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        log_s = torch.tanh(raw)
        if inverse:
            return (x - shift) * torch.exp(-log_s), -log_s.flatten(1).sum(1)
        return torch.addcmul(shift, x, log_s.exp()), log_s.flatten(1).sum(1)

    def run(module: ModuleType, *given: Tensor) -> Any:
        return module.affine_coupling(*given, scale_map="tanh", inverse=inverse)

    return Prepared(leaves, run, eager)


def _channel_affine(shape: Shape, setting: Setting, inverse: bool) -> Prepared:
    x = setting.random(*shape, seed=0)
    channels = shape[1] if len(shape) > 1 else 1
    of_channels = [setting.random(channels, seed=s, scale=0.3) for s in (1, 2)]
    return Prepared(
        [x, *of_channels], lambda module, *given: module.channel_affine(*given, inverse=inverse)
    )


def _spline(shape: Shape, setting: Setting, inverse: bool) -> Prepared:
    bins = 8
    parameters = setting.random(*shape, 3 * bins - 1, seed=1)

    def run(module: ModuleType, x: Tensor, parameters: Tensor) -> Any:
        parts = parameters.split([bins, bins, bins - 1], -1)
        return module.rational_quadratic_spline(x, *parts, inverse=inverse)

    # Of float32, where a slope is steep.
    return Prepared([setting.random(*shape, seed=0), parameters], run, tolerance=1e-3)


def _masked_conv2d(shape: Shape, setting: Setting, inverse: bool) -> Prepared:
    channels, kernel = (shape[1] if len(shape) > 1 else 1), 5
    outputs = 2 * channels
    x = setting.random(*shape, seed=0)
    scale = (channels * kernel * kernel / 2) ** -0.5
    weight = setting.random(outputs, channels, kernel, kernel, seed=1, scale=scale)
    mask = torch.zeros(kernel, kernel, device=x.device, dtype=x.dtype)
    mask.view(-1)[: kernel * kernel // 2 + 1] = 1  # type B, one group

    def eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight * mask, bias, padding=kernel // 2)

    leaves = [x, weight, setting.random(outputs, seed=2)]
    return Prepared(leaves, lambda module, *given: module.masked_conv2d(*given), eager)


def _block_triangular_linear(shape: Shape, setting: Setting, inverse: bool) -> Prepared:
    columns = shape[-1]
    visible = torch.arange(columns) + 1
    leaves = [
        setting.random(*shape, seed=0),
        setting.random(columns, columns, seed=1, scale=columns**-0.5),
        setting.random(columns, seed=2),
    ]
    mask = torch.ones_like(leaves[1]).tril()
    return Prepared(
        leaves,
        lambda module, *given: module.block_triangular_linear(*given, visible),
        lambda x, weight, bias: F.linear(x, weight * mask, bias),
    )


def _autoregressive_inverse(shape: Shape, setting: Setting, inverse: bool) -> Prepared:
    dimensions = shape[-1]
    hidden = (16, 16) if setting.tiny else (512, 512)
    order = torch.arange(dimensions)
    degrees = [torch.arange(units) * dimensions // units for units in hidden]
    sizes = [dimensions, *hidden, 2 * dimensions]
    layers = list(enumerate(pairwise(sizes)))
    weights = [setting.random(b, a, seed=i, scale=a**-0.5) for i, (a, b) in layers]
    biases = [setting.random(b, seed=10 + i, scale=0.1) for i, (_, b) in layers]
    below, above = [order + 1, *degrees], [*degrees, order.repeat_interleave(2)]
    masks = [(a[:, None] >= b).to(weights[0]) for a, b in zip(above, below, strict=True)]

    def run(module: ModuleType, z: Tensor, *parameters: Tensor) -> Any:
        return module.autoregressive_inverse(z, list(parameters[:3]), list(parameters[3:]), degrees)

    def passes(z: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """A network pass a dimension, as libraries do it; the masks applied before."""
        masked = [w * mask for w, mask in zip(parameters[:3], masks, strict=True)]
        x, log_s = torch.zeros_like(z), z
        for i in range(dimensions):
            h = F.linear(x, masked[0], parameters[3]).relu()
            h = F.linear(h, masked[1], parameters[4]).relu()
            raw, shift = F.linear(h, masked[2], parameters[5]).unflatten(1, (-1, 2)).unbind(2)
            log_s = torch.tanh(raw)
            solved = (z - shift) * torch.exp(-log_s)
            x = torch.where(order.to(z.device) <= i, solved, x)
        return x, -log_s.sum(1)

    leaves = [setting.random(*shape, seed=20), *weights, *biases]
    return Prepared(leaves, run, passes, "eager, a pass a dimension", 1e-3)


def _power(name: str, shape: Shape, setting: Setting, inverse: bool) -> Prepared:
    count = 4
    rows, columns = shape[0], math.prod(shape[1:])
    weights = [setting.random(*shape, seed=i, scale=columns**-0.5) for i in range(count)]
    wide = torch.float64 if setting.dtype == torch.float64 else torch.float32
    us = [F.normalize(setting.random(rows, seed=20 + i).to(wide), dim=0) for i in range(count)]
    vs = [F.normalize(setting.random(columns, seed=30 + i).to(wide), dim=0) for i in range(count)]

    def run(module: ModuleType, *weights: Tensor) -> Any:
        like = [[t.to(torch.promote_types(weights[0].dtype, wide)) for t in ts] for ts in (us, vs)]
        results = getattr(module, name)(weights, *like)
        return *results[0], results[-1]

    return Prepared(weights, run)


def _chain(name: str, scalars: int, shape: Shape, setting: Setting, inverse: bool) -> Prepared:
    steps, features = (3 if setting.tiny else 16), shape[-1]
    z = setting.random(*shape, seed=0)
    near = 0.3 * features**-0.5
    vectors = [setting.random(steps, features, seed=1 + i, scale=near) for i in range(3 - scalars)]
    numbers = [setting.random(steps, seed=5 + i) for i in range(scalars)]
    return Prepared(
        [z, *vectors, *numbers], lambda module, *given: getattr(module, name)(*given), None,
        tolerance=1e-3,
    )  # fmt: skip


def _categorical_draw(shape: Shape, setting: Setting, inverse: bool) -> Prepared:
    levels = shape[1] if len(shape) > 1 else 2
    logits = setting.random(*shape, seed=0, scale=2.0)
    uniforms = _uniforms((shape[0], 1, *shape[2:]), setting, 1)

    def eager(logits: Tensor) -> Tensor:
        cdf = torch.softmax(logits.float(), 1).cumsum(1)
        return (cdf <= uniforms).sum(1, keepdim=True).clamp(max=levels - 1)

    return Prepared(
        [logits],
        lambda module, logits: module.categorical_draw(
            logits, uniforms.to(logits.dtype), n_levels=levels
        ),
        eager,
        tolerance=1.1,  # next to a step of the cdf the neighbour is drawn
    )


def _mixture(draw: bool, shape: Shape, setting: Setting, inverse: bool) -> Prepared:
    n, channels, *positions = shape
    mixtures = channels // 10
    parameters = setting.random(*shape, seed=0)
    parameters[:, channels * 4 // 10 : channels * 7 // 10] -= 4  # scales of about two levels
    drawn = (n, 3, *positions)
    generator = torch.Generator().manual_seed(1)
    levels = torch.randint(0, 256, drawn, generator=generator).to(setting.device)
    uniforms = _uniforms(drawn, setting, 1)

    def run(module: ModuleType, parameters: Tensor) -> Any:
        if draw:
            given = uniforms.to(parameters.dtype)
            return module.discretized_logistic_mixture_draw(parameters, given, mixtures=mixtures)
        return module.discretized_logistic_mixture(parameters, levels, mixtures=mixtures)

    return Prepared([parameters], run, tolerance=1.1 if draw else 1e-3)


class _Network(nn.Module):
    """A PixelCNN of three layers, as `AncestralSampler` takes it."""

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__()
        self.first = MaskedConv2d(1, channels, 5, mask_type="A")
        self.hidden = MaskedConv2d(channels, channels, 3)
        self.last = nn.Conv2d(channels, levels, 1)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        h = self.first(x).relu()
        return self.last(h + self.hidden(h).relu())


def _ancestral_sample(shape: Shape, setting: Setting, inverse: bool) -> Prepared:
    """What the sampler passes to the op, caught on its way."""
    levels = 4 if setting.tiny else 256
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = _Network(6 if setting.tiny else 64, levels)
    network = network.to(setting.device, setting.dtype)
    if len(shape) != 4 or shape[1] != 1:
        raise ValueError(f"uniforms must have the shape (n, 1, height, width), got {shape}")
    sampler = AncestralSampler(network, shape[1:], Categorical(1, levels))
    uniforms = _uniforms(shape, setting, 1)

    @torch.no_grad()
    def eager(uniforms: Tensor) -> Tensor:
        """A network pass a pixel."""
        drawn = torch.zeros(shape, dtype=torch.long, device=uniforms.device)
        for i in range(shape[2]):
            for j in range(shape[3]):
                logits = network(2 * drawn.to(setting.dtype) / (levels - 1) - 1)[:, :, i, j]
                cdf = logits.softmax(1).cumsum(1)
                below = (cdf <= uniforms[:, :, i, j]).sum(1, keepdim=True)
                drawn[:, :, i, j] = below.clamp(max=levels - 1)
        return drawn

    return Prepared(
        [uniforms],
        lambda module, uniforms: sampler(uniforms) if module is ops else eager(uniforms),
        eager,
        "eager, a pass a pixel",
        1.1,  # one draw next to a step of the cdf changes all that follow
    )


def _fixed_point_step(shape: Shape, setting: Setting, inverse: bool) -> Prepared:
    memory = 5
    n, features = shape
    x, y = (setting.random(n, features, seed=s) for s in (0, 1))
    images, residuals = (setting.random(n, memory, features, seed=s) for s in (2, 3))
    gram = residuals.double() @ residuals.double().transpose(1, 2)
    # The residual before: a little larger than this step's; a full history, slot 0 comes next.
    before = [1e-9, torch.inf, 3 * features**0.5, 0.0]
    record = torch.tensor([before], dtype=torch.float64, device=x.device).repeat(n, 1)
    state = torch.tensor([[0, 9, 2**memory - 1, memory - 1, 0]], dtype=torch.int32)
    state = state.to(x.device).repeat(n, 1)

    made: dict[tuple[Any, torch.dtype], list[Tensor]] = {}

    def run(module: ModuleType, x: Tensor, y: Tensor) -> Any:
        """The same step each time: what it reads besides the history is put back, a small copy."""
        if (module, x.dtype) not in made:
            history = [t.to(x.dtype).clone() for t in (images, residuals)]
            made[module, x.dtype] = [x.clone(), 0.5 * y, *history, gram.clone(), record.clone(),
                                     state.clone()]  # fmt: skip
        own, g_x, *history, products, numbers, words = made[module, x.dtype]
        for now, then in ((own, x), (numbers, record), (words, state)):
            now.copy_(then)
        module.fixed_point_step(
            own, g_x, y, *history, products, numbers, words, lipschitz=0.9, rounding=1e-7
        )
        return own, numbers[:, 1].to(x.dtype)

    return Prepared([x, y], run, tolerance=1e-3)


def _fixed_point_mlp(shape: Shape, setting: Setting, inverse: bool) -> Prepared:
    n, features = shape
    hidden = 8 if setting.tiny else 128
    weights = []
    for i, (a, b) in enumerate(pairwise((features, hidden, hidden, features))):
        matrix = setting.random(b, a, seed=i).double()
        weights.append((0.9 * matrix / torch.linalg.matrix_norm(matrix, 2)).to(setting.dtype))
    biases = [setting.random(w.shape[0], seed=9, scale=0.1) for w in weights]
    betas = torch.ones(2, dtype=setting.dtype, device=setting.device)
    tolerance = torch.full((n,), 1e-5, dtype=torch.float64, device=setting.device)
    rounding = torch.finfo(setting.dtype).eps

    def run(module: ModuleType, y: Tensor) -> Tensor:
        like = [[t.to(y.dtype) for t in ts] for ts in (weights, biases, [betas])]
        options = {"activation": "elu", "lipschitz": 0.9**3, "rounding": rounding}
        return module.fixed_point_mlp(y, y, tolerance, like[0], like[1], like[2][0], **options)[0]

    @torch.no_grad()
    def picard(y: Tensor) -> Tensor:
        """To the same bound, asked of the host after each step."""
        x, contraction = y, 0.9**3
        for _ in range(200):
            h = F.elu(F.linear(x, weights[0], biases[0]))
            h = F.elu(F.linear(h, weights[1], biases[1]))
            image = y - F.linear(h, weights[2], biases[2])
            step, x = float((image - x).norm(dim=1).max()), image
            if step * contraction / (1 - contraction) <= 1e-5:
                break
        return x

    return Prepared([setting.random(n, features, seed=20)], run, picard, "eager, Picard", 1e-3)


both = ("forward", "inverse", "backward")
OPS: dict[str, Op] = {
    "affine_coupling": Op((64, 96, 16, 16), (2, 4, 4, 4), _affine_coupling, both),
    "ancestral_sample": Op(
        (16, 1, 14, 14), (2, 1, 4, 4), _ancestral_sample, ("forward",), "n, 1, height, width"
    ),
    "autoregressive_inverse": Op(
        (64, 64), (3, 5), _autoregressive_inverse, ("inverse", "backward"), "n, D"
    ),
    "block_triangular_linear": Op((256, 784), (4, 6), _block_triangular_linear, axes="n, D"),
    "categorical_draw": Op(
        (16, 256, 28, 28), (2, 8, 3, 3), _categorical_draw, ("forward",), "n, levels, h, w"
    ),
    "channel_affine": Op((64, 96, 16, 16), (2, 3, 4, 4), _channel_affine, both),
    "discretized_logistic_mixture": Op(
        (16, 50, 32, 32), (2, 10, 3, 3), partial(_mixture, False), axes="n, 10 K, h, w"
    ),
    "discretized_logistic_mixture_draw": Op(
        (16, 50, 32, 32), (2, 10, 3, 3), partial(_mixture, True), ("forward",), "n, 10 K, h, w"
    ),
    "fixed_point_mlp": Op((1024, 64), (3, 5), _fixed_point_mlp, ("forward",), "n, D"),
    "fixed_point_step": Op((64, 12288), (3, 7), _fixed_point_step, ("forward",), "n, D"),
    "masked_conv2d": Op((16, 64, 28, 28), (2, 3, 5, 5), _masked_conv2d, axes="n, C, h, w"),
    "planar_chain": Op((16384, 16), (5, 4), partial(_chain, "planar_chain", 1), axes="n, D"),
    # Its gradient, sigma's by the weights, is plain torch.
    "power_iteration": Op(
        (512, 256, 3, 3),
        (4, 3, 3, 3),
        partial(_power, "power_iteration"),
        ("forward",),
        "out, in, ...",
    ),  # fmt: skip
    "radial_chain": Op((16384, 16), (5, 4), partial(_chain, "radial_chain", 2), axes="n, D"),
    "rational_quadratic_spline": Op((16384, 16), (5, 4), _spline, both),
    "spectral_normalize": Op(
        (512, 256, 3, 3), (4, 3, 3, 3), partial(_power, "spectral_normalize"), axes="out, in, ..."
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
