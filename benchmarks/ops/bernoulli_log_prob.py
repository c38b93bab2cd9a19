"""bernoulli_log_prob: pixels under a decoder's logits, alone or k draws of each image."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Case, Entry, Results, Rival, Setting, copy_floors
from deepgen_ext import ops, reference

DRAWS, IMAGES = (20, 50, 784), (64, 1, 12288)  # (n, k, D)
TINY = {DRAWS: (2, 3, 5), IMAGES: (3, 1, 7)}


def eager(x: Tensor, logits: Tensor) -> Tensor:
    """As it is mostly written; of half types the sum alone is in float32."""
    x = x.expand_as(logits)
    nats = F.binary_cross_entropy_with_logits(logits, x, reduction="none")
    return -nats.sum(2, dtype=torch.promote_types(logits.dtype, torch.float32))


def product(x: Tensor, logits: Tensor) -> Tensor:
    """sum of x l as a product with the one image, less the sum of softplus."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    on = torch.matmul(x, logits.transpose(1, 2)).squeeze(1)
    return on.to(dtype) - F.softplus(logits).sum(2, dtype=dtype)


def _case(shape: tuple[int, ...], backward: bool, setting: Setting) -> Case:
    n, k, features = TINY[shape] if setting.tiny else shape
    logits = setting.random(n, k, features, seed=0, scale=3.0)
    x = (setting.random(n, 1, features, seed=1) > 0).to(logits.dtype)
    cotangent = setting.random(n, k, seed=2).to(torch.promote_types(logits.dtype, torch.float32))

    def run(function: Callable[..., Tensor], *given: Tensor) -> Callable[[], Results]:
        x_given, logits_given = given or (x, logits)
        if not backward:
            return lambda: [function(x_given, logits_given)]
        leaf = logits_given.detach().requires_grad_()

        def forward_and_backward() -> Results:
            result = function(x_given, leaf)
            return result, *torch.autograd.grad(result, leaf, cotangent.to(result.dtype))

        return forward_and_backward

    in_full = partial(reference.bernoulli_log_prob, batch_dims=2)
    ours = partial(ops.bernoulli_log_prob, batch_dims=2)
    rivals = [
        Rival("eager", run(eager)),
        Rival("eager, as a product", run(product)),
        Rival("torch.compile", run(setting.compiled(eager))),
    ]
    # Both in; backward reads them again and writes a gradient like the logits.
    size = x.nbytes + logits.nbytes
    if backward:
        size = 2 * size + logits.nbytes
    return Case(
        (n, k, features),
        run(ours),
        run(in_full, x.double(), logits.double()),
        rivals,
        copy_floors(size, setting),
        size,
    )


ENTRIES = [
    Entry("bernoulli_log_prob draws forward", partial(_case, DRAWS, False)),
    Entry("bernoulli_log_prob draws forward+backward", partial(_case, DRAWS, True)),
    Entry("bernoulli_log_prob images forward", partial(_case, IMAGES, False)),
    Entry("bernoulli_log_prob images forward+backward", partial(_case, IMAGES, True)),
]
