"""categorical_draw: one level a channel and pixel, from logits and a uniform."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness import Case, Entry, Results, Rival, Setting, copy_floors
from deepgen_ext import ops, reference

# A batch of whole images; the single pixel that a sampler draws, one image after the other.
IMAGES, PIXELS = (16, 1, 28, 28), (16, 3, 1, 1)
N_LEVELS = 256
TINY = (2, 1, 3, 4)


def searchsorted(logits: Tensor, uniforms: Tensor) -> Tensor:
    """By inverse cdf too: softmax, cumulative sum, binary search."""
    rows = logits.unflatten(1, (-1, N_LEVELS)).movedim(2, -1)
    cdf = torch.softmax(rows, -1).cumsum(-1)
    return torch.searchsorted(cdf, uniforms.unsqueeze(-1), right=True).squeeze(-1).clamp(
        max=N_LEVELS - 1
    )  # fmt: skip


def count_below(logits: Tensor, uniforms: Tensor) -> Tensor:
    """The same without a search: how many levels lie below the uniform."""
    cdf = torch.softmax(logits.unflatten(1, (-1, N_LEVELS)), 2).cumsum(2)
    return (cdf <= uniforms.unsqueeze(2)).sum(2).clamp(max=N_LEVELS - 1)


def multinomial(logits: Tensor) -> Tensor:
    """As it is mostly written, with random numbers of its own."""
    rows = logits.unflatten(1, (-1, N_LEVELS)).movedim(2, -1)
    drawn = torch.multinomial(torch.softmax(rows, -1).reshape(-1, N_LEVELS), 1)
    return drawn.view(rows.shape[:-1])


def _case(shape: tuple[int, ...], setting: Setting) -> Case:
    n, channels, height, width = TINY if setting.tiny else shape
    logits = setting.random(n, channels * N_LEVELS, height, width, seed=0, scale=2.0)
    uniforms = torch.rand(
        n, channels, height, width, generator=torch.Generator().manual_seed(1)
    ).to(setting.device)

    def run(function: Callable[..., Tensor]) -> Callable[[], Results]:
        return lambda: [function(logits, uniforms)]

    def expected() -> Results:
        return [reference.categorical_draw(logits.double(), uniforms.double(), n_levels=N_LEVELS)]

    rivals = [
        Rival("eager, searchsorted", run(searchsorted)),
        Rival("eager, count", run(count_below)),
        # Other random numbers: nothing to compare its levels with.
        Rival(
            "torch.multinomial",
            lambda: [multinomial(logits)],
            "draws on its own",
            lambda: [torch.full(uniforms.shape, N_LEVELS // 2, device=logits.device)],
        ),
        Rival("torch.compile", run(setting.compiled(count_below))),
    ]
    size = logits.nbytes + uniforms.nbytes + 8 * uniforms.numel()
    return Case(
        tuple(logits.shape),
        run(partial(ops.categorical_draw, n_levels=N_LEVELS)),
        expected,
        rivals,
        copy_floors(size, setting),
        size,
        # Of the largest level: a uniform next to a step of the cdf draws its neighbour, or, where
        # levels between are unlikely, one a few steps away.
        tolerance=1.1,
    )


ENTRIES = [
    Entry("categorical_draw images", partial(_case, IMAGES)),
    Entry("categorical_draw pixels", partial(_case, PIXELS)),
]
