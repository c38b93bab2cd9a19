"""discretized_logistic_mixture: the log-likelihood of PixelCNN++, 10 mixtures of 3 channels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from benchmarks.harness import Case, Entry, Results, Rival, Setting, copy_floors
from deepgen_ext import ops, reference

IMAGES = (16, 3, 32, 32)
TINY = (2, 3, 3, 4)
MIXTURES, HALF = 10, 1 / 255


def community(parameters: Tensor, levels: Tensor) -> Tensor:
    """PixelCNN++'s loss as its public ports write it: channels last, and where the probability of a
    level is below 1e-5 the density at its middle in place of it."""
    x = (2 * HALF * levels.to(parameters.dtype) - 1).permute(0, 2, 3, 1)
    rows = parameters.permute(0, 2, 3, 1)
    shape = (*x.shape, MIXTURES)
    logits = rows[..., :MIXTURES]
    means, log_scales, coefficients = (
        part.reshape(shape) for part in rows[..., MIXTURES:].chunk(3, -1)
    )
    log_scales, coefficients = log_scales.clamp(min=-7), torch.tanh(coefficients)
    x = x.unsqueeze(-1) + torch.zeros(shape, dtype=x.dtype, device=x.device)
    second = means[..., 1, :] + coefficients[..., 0, :] * x[..., 0, :]
    third = means[..., 2, :] + coefficients[..., 1, :] * x[..., 0, :]
    third = third + coefficients[..., 2, :] * x[..., 1, :]
    means = torch.stack([means[..., 0, :], second, third], -2)
    centred, inverse = x - means, torch.exp(-log_scales)
    plus, minus, middle = (
        inverse * (centred + HALF),
        inverse * (centred - HALF),
        inverse * centred,
    )
    difference = torch.sigmoid(plus) - torch.sigmoid(minus)
    density = middle - log_scales - 2 * softplus(middle) - torch.log(torch.tensor(127.5))
    inner = torch.where(difference > 1e-5, torch.log(difference.clamp(min=1e-12)), density)
    at_ends = torch.where(x > 0.999, -softplus(minus), inner)
    log_prob = torch.where(x < -0.999, plus - softplus(plus), at_ends).sum(-2)
    return torch.logsumexp(log_prob + torch.log_softmax(logits, -1), -1)


def eager(parameters: Tensor, levels: Tensor) -> Tensor:
    """The exact formula, all channels at once, channels where they are."""
    rows = parameters.unflatten(1, (MIXTURES, MIXTURES))
    level = levels.unsqueeze(2)
    x = 2 * HALF * level.to(rows.dtype) - 1
    coupled = torch.tanh(rows[:, 7:]) * x[:, [0, 0, 1]]
    means = torch.cat([rows[:, 1:2], rows[:, 2:3] + coupled[:, :1],
                       rows[:, 3:4] + coupled[:, 1:2] + coupled[:, 2:]], 1)  # fmt: skip
    inverse = torch.exp(-rows[:, 4:7].clamp(min=-7))
    centre, half_width = (x - means) * inverse, HALF * inverse
    first, last = level == 0, level == 255
    log_prob = torch.where(last, 0, logsigmoid(centre + half_width))
    log_prob = log_prob + torch.where(first, 0, logsigmoid(half_width - centre))
    inner = torch.log(-torch.expm1(-2 * half_width))
    log_prob = log_prob + torch.where(first | last, 0, inner)
    return torch.logsumexp(log_prob.sum(1) + torch.log_softmax(rows[:, 0], 1), 1)


def _case(backward: bool, setting: Setting) -> Case:
    n, channels, height, width = TINY if setting.tiny else IMAGES
    parameters = setting.random(n, 10 * MIXTURES, height, width, seed=0)
    # A trained network's scales are about two levels: exp(-4).
    parameters[:, 4 * MIXTURES : 7 * MIXTURES] -= 4
    levels = torch.randint(
        0, 256, (n, channels, height, width), generator=torch.Generator().manual_seed(1)
    ).to(setting.device)
    sum_dtype = torch.promote_types(parameters.dtype, torch.float32)
    cotangent = setting.random(n, height, width, seed=2).to(sum_dtype)

    def run(function: Callable[..., Tensor], given: Tensor = parameters) -> Callable[[], Results]:
        if not backward:
            return lambda: [function(given, levels)]
        leaf = given.detach().requires_grad_()

        def forward_and_backward() -> Results:
            result = function(leaf, levels)
            return result, *torch.autograd.grad(result, leaf, cotangent.to(result.dtype))

        return forward_and_backward

    exact = run(reference.discretized_logistic_mixture, parameters.double())
    ported = run(community, parameters.double())
    rivals = [
        Rival("eager", run(eager)),
        Rival("eager, as ports have it", run(community), "density in tails", ported),
        Rival("torch.compile", run(setting.compiled(eager))),
    ]
    # Parameters in; backward reads them again and writes as many.
    size = parameters.nbytes * (3 if backward else 1)
    return Case(
        tuple(parameters.shape),
        run(ops.discretized_logistic_mixture),
        exact,
        rivals,
        copy_floors(size, setting),
        size,
        # The rivals' rounding of x, divided by scales down to e^-7.
        tolerance=1e-3 if parameters.dtype in (torch.float32, torch.float64) else 0.5,
    )


def _draws(setting: Setting) -> Case:
    n, channels, height, width = TINY if setting.tiny else IMAGES
    parameters = setting.random(n, 10 * MIXTURES, height, width, seed=0)
    uniforms = torch.rand(
        n, channels, height, width, generator=torch.Generator().manual_seed(1)
    ).to(setting.device)
    draw = reference.discretized_logistic_mixture_draw
    compiled = setting.compiled(draw)
    size = parameters.nbytes + uniforms.nbytes + 8 * uniforms.numel()
    return Case(
        tuple(parameters.shape),
        lambda: [ops.discretized_logistic_mixture_draw(parameters, uniforms)],
        lambda: [draw(parameters.double(), uniforms.double())],
        [
            Rival("eager", lambda: [draw(parameters, uniforms)]),
            Rival("torch.compile", lambda: [compiled(parameters, uniforms)]),
        ],
        copy_floors(size, setting),
        size,
        # Of the largest level: next to the border of two components, another is drawn.
        tolerance=1.1,
    )


ENTRIES = [
    Entry("discretized_logistic_mixture forward", partial(_case, False)),
    Entry("discretized_logistic_mixture forward+backward", partial(_case, True)),
    Entry("discretized_logistic_mixture draw", _draws),
]
