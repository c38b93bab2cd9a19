"""Images drawn pixel by pixel from a causal network that computes each activation once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deepgen_ext._extension import library


def ancestral_sample(
    program: Tensor,
    weights: Tensor,
    conditions: Sequence[Tensor],
    uniforms: Tensor,
    levels: Tensor,
    caches: Tensor,
    *,
    known: Tensor | None = None,
    tile: int = 1,
    n_levels: int = 256,
    temperature: float = 1.0,
    first_row: int = 0,
    last_row: int | None = None,
) -> None:
    r"""Draws rows [first_row, last_row) of n images into `levels`.

    x_i = F^{-1}(u_i | x_1, ..., x_{i-1}) in raster order: ancestral sampling, where the parameters
    of F at pixel i come from a network of which only the column at pixel i is computed; all else it
    needs has been computed at earlier pixels and is kept in `caches`. The network is a program;
    `nn.AncestralSampler` makes one of layers, and is what you want to call instead of this function.

    Args:
        program: int32 words on the CPU, laid out as csrc/ancestral_sample.h says.
        weights: what the program refers to, packed; float32 or float64. It gives the dtype and
            device of all the others but `levels` and `known`.
        conditions: feature maps (rows, columns, n, channels) and vectors (n, channels).
        uniforms: (n, C, H, W) in [0, 1): the only randomness. Of a program that draws real numbers
            from Gaussians: standard normal numbers.
        levels: (n, C, H, W) int64, written; given where `known`. Real numbers have the dtype of
            weights.
        caches: n * (cache elements a sample), zero before the first row, kept between calls.
        known: (n, C, H, W) bool, where levels are given and not drawn; all contiguous.
        tile: samples whose caches interleave: the same for all rows of an image.
        n_levels: levels a channel has; not read where real numbers are drawn.
        temperature: divides logits, multiplies the scales of logistics and of Gaussians, > 0.
        first_row, last_row: the rows to draw; those before were drawn with these very caches.

    No gradient: a draw has none. Results do not depend on the number of threads or on the batch.

    Raises:
        ValueError, TypeError: tensors that do not fit one another or the program's header.
    """
    rows = uniforms.shape[2] if last_row is None else last_row
    library.ancestral_sample(
        program,
        weights,
        list(conditions),
        uniforms,
        known,
        levels,
        caches,
        tile,
        n_levels,
        temperature,
        first_row,
        rows,
    )


@torch.library.register_fake("deepgen_ext::ancestral_sample")
def _(
    program,
    weights,
    conditions,
    uniforms,
    known,
    levels,
    caches,
    tile,
    n_levels,
    temperature,
    first_row,
    last_row,
):
    return None
